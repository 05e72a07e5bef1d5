"""The words of a student's tokenizer: stretches of a text whose tokens do not depend on what stands around them.

    >>> class Letters:  # stands in for a tokenizer: one token a letter
    ...     def encode(self, text, add_special_tokens):
    ...         self.ids, self.offsets = list(text.encode()), [(i, i + 1) for i in range(len(text))]
    ...         return self
    >>> words = Words(Fast(Vocabulary(tuple(bytes([b]) for b in range(256)), {}, None, None, None, False, ""), Letters()))
    >>> words.seams(b"So 4 *\\n12")
    [2, 4, 6]
    >>> words.tokens(b" 4 *") == tuple(b" 4 *")
    True

A word here is white space and what follows it up to the next white space. It ends at a *seam*: a white byte behind a
visible one. No tokenizer of the kinds that `vocabulary` reads joins a piece across a seam, except that some join a
newline to the punctuation before it (`.\\n` in cl100k): which white bytes those are, the pieces themselves say.
"""

from __future__ import annotations

import re
import weakref
from typing import Final

from potstill.vocabulary import Fast, Vocabulary, fast

LIMIT: Final = 400_000  # words remembered; then all are forgotten, which changes no result
_WHITE: Final = b" \t\n\v\f\r"
# Unicode's own spaces are kept inside words: no-break space and others of two or three bytes.
_BEHIND: Final = (
    rb"(?<=[!-~\x80-\xff].)(?<!\xc2[\x85\xa0].)(?<!\xe2[\x80\x81]..)(?<!\xe3\x80\x80.)(?<!\xe1[\x9a\xa0]..)"
)
_CARRIER: Final = "a"


class Words:
    """The words of one tokenizer, and their tokens as far as they were asked for."""

    def __init__(self, coder: Fast) -> None:
        self.coder = coder
        self._white = bytes(byte for byte in _WHITE if byte not in _glued(coder.vocabulary)) or b" "
        self._seam = re.compile(b"[" + re.escape(self._white) + b"]" + _BEHIND, re.DOTALL)
        self._known: dict[tuple[bytes, bool], tuple[int, ...]] = {}
        self._carrier = len(self._encoded(_CARRIER))

    def seams(self, text: bytes) -> list[int]:
        """Where words begin, the first one left out."""
        return [found.start() for found in self._seam.finditer(text)]

    def seam(self, text: bytes, start: int) -> int | None:
        """The first seam at or after a place; None if there is none."""
        found = self._seam.search(text, max(start, 0))
        return None if found is None else found.start()

    def last(self, text: bytes, end: int) -> int:
        """The last seam up to a place, 0 if there is none."""
        if self._seam.match(text, end):
            return end
        found = 0
        for match in self._seam.finditer(text, 0, end):
            found = match.start()
        return found

    def ids(self, word: bytes, first: bool = False) -> tuple[int, ...]:
        """The tokens of one word inside a text, or at the start of a text if `first`."""
        key = (word, first)
        known = self._known.get(key)
        if known is None:
            text = word.decode("utf-8", "replace")
            # Inside a text: behind a letter, so that no dummy space is put before it.
            known = self._encoded(text) if first else self._encoded(_CARRIER + text)[self._carrier :]
            if len(self._known) >= LIMIT:
                self._known.clear()
            self._known[key] = known
        return known

    def tokens(self, text: bytes, first: bool = False) -> tuple[int, ...]:
        """The tokens of a text that begins with a word, or of a whole text if `first`."""
        known = self._known.get((text, first))
        if known is not None:
            return known
        seams = self.seams(text)
        if not seams:
            return self.ids(text, first)
        found = self.ids(text[: seams[0]], first)
        for start, end in zip(seams, [*seams[1:], len(text)], strict=True):
            found += self.ids(text[start:end])
        return found

    def _encoded(self, text: str) -> tuple[int, ...]:
        return tuple(self.coder.library.encode(text, add_special_tokens=False).ids)


_words: weakref.WeakKeyDictionary[Fast, Words] = weakref.WeakKeyDictionary()


def words_of(tokenizer: object) -> Words:
    """The words of a tokenizer, remembered as long as it lives."""
    coder = fast(tokenizer)
    known = _words.get(coder)
    if known is None:
        known = _words[coder] = Words(coder)
    return known


def _glued(vocabulary: Vocabulary) -> set[int]:
    """The white bytes that some piece has right behind a visible one."""
    pieces = b"\0".join(piece for piece in vocabulary.table if piece)
    return {found[1] for found in re.findall(rb"[!-~][ \t\n\v\f\r]", pieces)}
