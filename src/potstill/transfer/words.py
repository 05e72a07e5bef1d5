"""The words of a student's tokenizer: stretches of a text whose tokens do not depend on what stands around them.

    >>> class Letters:  # stands in for a tokenizer: one token a letter
    ...     def encode(self, text, add_special_tokens):
    ...         self.ids, self.offsets = list(text.encode()), [(i, i + 1) for i in range(len(text))]
    ...         return self
    >>> from potstill.vocabulary import Vocabulary
    >>> every = tuple(bytes([byte]) for byte in range(256))
    >>> words = Words(Fast(Vocabulary(every, {}, None, None, None, False, ""), Letters()))
    >>> words.seams(b"So 4 *\\n12")
    [2, 4, 6]
    >>> words.tokens(b" 4 *") == tuple(b" 4 *")
    True

A word here is white space and what follows it up to the next *seam* (module `seams`): a white byte behind a visible
one, unless the tokenizer joins the two sides in this text.
"""

from __future__ import annotations

import weakref
from bisect import bisect_right
from itertools import accumulate
from typing import Final

from potstill.transfer.seams import LIMIT, WHITE, Inside, Seams, last_place
from potstill.vocabulary import Fast, fast

MANY: Final = 40  # longer pieces that are tried: a beginning of more than so many is not settled
# Those first that most often change a beginning: then nothing of it is settled, and the rest need not be tried.
_LETTERS: Final = [bytes([letter]) for letter in sorted(range(0x21, 0x7F), key=lambda one: not chr(one).isalnum())]


class Words:
    """The words of one tokenizer, and their tokens as far as they were asked for."""

    def __init__(self, coder: Fast) -> None:
        self.coder = coder
        self._inside = Inside(coder)
        self.ids, self._encoded = self._inside.ids, self._inside.encoded
        found = Seams(self._inside)
        self._certain, self.reach = found.certain, found.reach
        self.seams, self.seam, self.last, self.unsure = found.all, found.next, found.last, found.unsure
        self._settled: dict[tuple[bytes, bytes, bool, Words | None], tuple[int, ...]] = {}
        self._widths = [len(piece or b"") for piece in coder.vocabulary.table]
        self._ends: dict[bytes, tuple[int, ...]] = {}
        self._sorted: list[bytes] | None = None

    def sure(self, text: bytes, first: bool, ended: bool) -> set[int]:
        """Its beginning and its seams."""
        return {0, *self.seams(text, first, ended)}

    def place(self, before: bytes, token: bytes) -> tuple[bytes, bytes]:
        """Where a token stands: what is before it since the last white space, of a beginning of its word; and itself.
        No piece of the tokenizer has a say in this: a place is the same whatever joins its word to the one before."""
        if self._certain:
            return before, token
        return before[last_place(before + token, len(before)) :], token

    def white(self, byte: bytes) -> bool:
        """Whether a byte begins a word where it stands behind something visible; not if it is none."""
        return byte != b"" and byte in WHITE

    def tokens(self, text: bytes, first: bool = False) -> tuple[int, ...]:
        """The tokens of a text that begins with a word, or of a whole text if `first`."""
        known = self._inside.known.get((text, first))
        if known is not None:
            return known
        seams = self.seams(text, first)
        if not seams:
            return self.ids(text, first)
        found = self.ids(text[: seams[0]], first)
        for start, end in zip(seams, [*seams[1:], len(text)], strict=True):
            found += self.ids(text[start:end])
        return found

    def cuts(self, word: bytes, start: int, end: int) -> bool:
        """Whether tokens of a word inside a text begin or end at both places."""
        ends = self._ends.get(word)
        if ends is None:
            if len(self._ends) >= LIMIT:
                self._ends.clear()
            ids = self._encoded(word.decode("utf-8", "replace"), first=False)
            ends = self._ends[word] = tuple(accumulate([self._widths[token] for token in ids], initial=0))
        return start in ends and end in ends

    def settled(self, before: bytes, token: bytes, first: bool, teacher: Words | None) -> tuple[int, ...]:
        """The first tokens of a word of which only a beginning is known, as far as every way to go on shares them.

        before, token  the beginning: its last token may not grow, if the teacher's tokenizer would then cut it
                       differently
        Ways are: the end of the word; any visible letter of ASCII behind it; and whatever makes it a longer piece.
        """
        key = before, token, first, teacher
        known = self._settled.get(key)
        if known is None:
            if len(self._settled) >= LIMIT:
                self._settled.clear()
            known = self._settled[key] = self._shared(before, token, first, teacher)
        return known

    def _shared(self, before: bytes, token: bytes, first: bool, teacher: Words | None) -> tuple[int, ...]:
        word = before + token
        if _incomplete(word):
            return ()

        def tokens(more: bytes) -> tuple[int, ...] | None:
            if more and teacher and not teacher.cuts(word + more, len(before), len(word)):
                return None
            return self._encoded(word.decode("utf-8", "replace") + more.decode("utf-8", "replace"), first)

        shared = tokens(b"") or ()
        for letter in _LETTERS:
            if not shared:
                return ()
            shared = _prefix(shared, tokens(letter))
        pieces = [self.coder.vocabulary.bytes_of(piece) or b"" for piece in shared]
        spelled = self.coder.vocabulary.split(list(shared)) if first else pieces
        left = len(word)
        for place, piece in enumerate(spelled):
            rest = pieces[place][: len(pieces[place]) - len(piece)] + word[len(word) - left :]
            left -= len(piece)
            longer = self._longer(rest.replace(b"\n", b" ") if place == 0 else rest)
            if len(longer) > MANY:
                return shared[:place]
            for more in longer:
                if len(_prefix(shared, tokens(more))) <= place:
                    return shared[:place]
        return shared

    def _longer(self, start: bytes) -> list[bytes]:
        """What pieces that begin with these bytes have behind them, at most one more than MANY."""
        if self._sorted is None:
            self._sorted = sorted(piece for piece in self.coder.vocabulary.table if piece)
        found = []
        for place in range(bisect_right(self._sorted, start), len(self._sorted)):
            if not self._sorted[place].startswith(start) or len(found) > MANY:
                break
            found.append(self._sorted[place][len(start) :])
        return found


_words: weakref.WeakKeyDictionary[Fast, Words] = weakref.WeakKeyDictionary()


def words_of(tokenizer: object) -> Words:
    """The words of a tokenizer, remembered as long as it lives."""
    coder = fast(tokenizer)
    known = _words.get(coder)
    if known is None:
        known = _words[coder] = Words(coder)
    return known


def _prefix(shared: tuple[int, ...], tokens: tuple[int, ...] | None) -> tuple[int, ...]:
    if tokens is None:
        return shared
    if shared == tokens[: len(shared)]:
        return shared
    place = 0
    while place < len(tokens) and shared[place] == tokens[place]:
        place += 1
    return shared[:place]


def _incomplete(data: bytes) -> bool:
    """Whether the last character lacks bytes."""
    try:
        data.decode("utf-8")
    except UnicodeDecodeError as error:
        return error.reason == "unexpected end of data"
    return False
