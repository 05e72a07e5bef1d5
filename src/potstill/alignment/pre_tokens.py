"""Where a text falls into words whose tokens do not depend on one another: the *seams* of a tokenizer.

A seam is a white byte behind a visible one, unless the tokenizer joins the two sides **in this text**. Nearly no piece
has white space behind something visible, so nearly every such place is a seam. Where the bytes of one that has (`.`
with a newline in cl100k, `> </` in Gemma) lie across a place, the place is *doubtful*, and the tokens decide: it is a
seam if the tokens of its two sides are those of the whole. So an odd piece changes nothing where it is not written.

    >>> class Letters:  # stands in for a tokenizer: one token a letter, but `> <` is one token
    ...     def encode(self, text, add_special_tokens):
    ...         found = list(re.finditer("> <|.", text))
    ...         self.ids = [256 if one[0] == "> <" else ord(one[0]) for one in found]
    ...         return self
    ...     def encode_batch(self, texts, add_special_tokens):
    ...         return [Letters().encode(text, False) for text in texts]
    >>> pieces = (*(bytes([byte]) for byte in range(256)), b"> <")
    >>> seams = Boundaries(InnerEncoder(Encoder(Vocabulary(pieces, {}, None, None, None, False, ""), Letters())))
    >>> seams.all(b"3 > 2 > <b")  # none between `>` and `<`
    [1, 3, 5]
    >>> seams.next(b"3 >", 2), seams.next(b"3 > ", 2), seams.next(b"3 > 2", 2)  # texts that go on
    (None, None, 3)

The words of a student's tokenizer: stretches of a text whose tokens do not depend on what stands around them.

    >>> class Letters:  # stands in for a tokenizer: one token a letter
    ...     def encode(self, text, add_special_tokens):
    ...         self.ids, self.offsets = list(text.encode()), [(i, i + 1) for i in range(len(text))]
    ...         return self
    >>> from potstill.tokenization.vocabulary import Vocabulary
    >>> every = tuple(bytes([byte]) for byte in range(256))
    >>> words = PreTokens(Encoder(Vocabulary(every, {}, None, None, None, False, ""), Letters()))
    >>> words.seams(b"So 4 *\\n12")
    [2, 4, 6]
    >>> words.tokens(b" 4 *") == tuple(b" 4 *")
    True

A word here is white space and what follows it up to the next *seam* (module `seams`): a white byte behind a visible
one, unless the tokenizer joins the two sides in this text.
"""

from __future__ import annotations

import re
import weakref
from bisect import bisect_left, bisect_right
from collections import defaultdict
from collections.abc import Iterator
from itertools import accumulate
from typing import Any, Final

from potstill.tokenization.encoder import Encoder, build_id_encoder, get_encoder
from potstill.tokenization.vocabulary import Vocabulary

MAX_CACHED_TEXTS: Final = 400_000  # texts remembered; then all are forgotten, which changes no result
WHITESPACE: Final = b" \t\n\v\f\r"
# Unicode's own spaces are kept inside words: no-break space and others of two or three bytes.
_BOUNDARY: Final = re.compile(
    rb"[ \t\n\v\f\r]"
    rb"(?<=[!-~\x80-\xff].)(?<!\xc2[\x85\xa0].)(?<!\xe2[\x80\x81]..)(?<!\xe3\x80\x80.)(?<!\xe1[\x9a\xa0]..)",
    re.DOTALL,
)
MIN_LOOKBACK: Final = (
    64  # bytes of a text before the place at which it leaves another one that are looked at again, at least
)
_CARRIERS: Final = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.,;:!?-+*/=()[]<>'\""
_ALNUM: Final = frozenset(b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz")
# A newline behind which a pre-tokenizer that joins newlines to signs may cut otherwise if no sign stands before it.
_NEWLINE: Final = re.compile(rb"[\r\n](?![!-.0-~])")


class InnerEncoder:
    """The tokens of a stretch of a text as they are inside a text: behind a letter, so that no dummy space is put
    before it. The letter is the first one that no piece joins to the stretch."""

    def __init__(self, coder: Encoder) -> None:
        self.coder = coder
        self._ids = build_id_encoder(coder.library)
        self.known: dict[tuple[bytes, bool], tuple[int, ...]] = {}
        self._carriers: dict[str, list[int]] = {}

    def ids(self, stretch: bytes, first: bool = False) -> tuple[int, ...]:
        """Its tokens inside a text, or at the start of a text if `first`. Bytes that are not UTF-8 are U+FFFD."""
        key = (stretch, first)
        known = self.known.get(key)
        if known is None:
            if len(self.known) >= MAX_CACHED_TEXTS:
                self.known.clear()
            known = self.known[key] = self.encoded(stretch.decode("utf-8", "replace"), first)
        return known

    def encoded(self, text: str, first: bool) -> tuple[int, ...]:
        """The same, not remembered."""
        if first:
            return tuple(self._ids(text))
        for carrier in _CARRIERS:
            own = self._carrier(carrier)
            found = self._ids(carrier + text)
            if found[: len(own)] == own:
                return tuple(found[len(own) :])
        return tuple(self._ids(text))

    def inner(self, text: str, first: bool) -> set[int]:
        """The bytes of the text that lie inside a token, so that no token begins or ends before them."""
        shift, spans = 0, None
        for carrier in () if first else _CARRIERS:
            found = self.coder.encode_batch([carrier + text])[0]
            if found.ids[: len(self._carrier(carrier))] == self._carrier(carrier):
                shift, spans = 1, found.spans
                break
        spans = self.coder.encode_batch([text])[0].spans if spans is None else spans
        return {byte - shift for start, end in spans for byte in range(start + 1, end)}

    def _carrier(self, letter: str) -> list[int]:
        known = self._carriers.get(letter)
        if known is None:
            known = self._carriers[letter] = list(self._ids(letter))
        return known


class Boundaries:
    """The seams of one tokenizer. A text begins with a word; with `first` it is the beginning of a whole text.

    certain  no place of any text is doubtful
    reach    so many bytes behind a seam what follows does not join its two sides
    """

    def __init__(self, inside: InnerEncoder) -> None:
        self.inside = inside
        library, vocabulary = inside.coder.library, inside.coder.vocabulary
        self._odd = _crossing_pieces(vocabulary, library)
        self._reach = max([len(right) for own in self._odd.values() for _, right, _ in own], default=0)
        self.reach = max(self._reach, MIN_LOOKBACK)
        self._joins = _joins_newlines(library)
        self.certain = not self._odd and not self._joins
        self._known: dict[tuple[bytes, bool, bool], list[int]] = {}

    def all(self, text: bytes, first: bool = False, ended: bool = True) -> list[int]:
        """Where the words of a text begin, the first one left out. One that goes on (not `ended`) has no seam where a
        piece of which its end has the beginning could come to lie."""
        places = [found.start() for found in _BOUNDARY.finditer(text)]
        if self.certain:
            return places
        doubtful = [place for place in places if self._doubtful(text, place, ended)]
        return self._decided(text, places, doubtful, first, ended) if doubtful else places

    def next(self, text: bytes, start: int, first: bool = False) -> int | None:
        """The first seam at or after a place of a text that goes on; None if there is none."""
        found = _BOUNDARY.search(text, max(start, 0))
        if found is None or self.certain or not self._doubtful(text, found.start(), False):
            return None if found is None else found.start()
        seams = self.all(text, first, ended=False)
        at = bisect_left(seams, start)
        return seams[at] if at < len(seams) else None

    def last(self, text: bytes, end: int, first: bool = False) -> int:
        """The last seam up to a place of a text that goes on, 0 if there is none."""
        at = last_possible_boundary(text, end)
        if not at or self.certain or not self._doubtful(text, at, False):
            return at
        return max([seam for seam in self.all(text, first, ended=False) if seam <= end], default=0)

    def unsure(self, before: bytes, behind: bytes) -> bool:
        """Whether a place between two bytes, the second one white, is doubtful in some texts."""
        return (before + behind) in self._odd or (self._joins and behind in b"\r\n" and before[0] not in _ALNUM)

    def _doubtful(self, text: bytes, place: int, ended: bool) -> bool:
        """Whether a piece lies across a place, or may where the text goes on."""
        for left, right, _ in self._odd.get(text[place - 1 : place + 1], ()):
            if text.endswith(left, 0, place):
                there = text[place : place + len(right)]
                if there == right or (not ended and right.startswith(there)):
                    return True
        return self._joins and text[place - 1] not in _ALNUM and _NEWLINE.match(text, place) is not None

    def _decided(self, text: bytes, places: list[int], doubtful: list[int], first: bool, ended: bool) -> list[int]:
        key = text, first, ended
        known = self._known.get(key)
        if known is None:
            if len(self._known) >= MAX_CACHED_TEXTS:
                self._known.clear()
            wrong = set(doubtful)
            sure = [0, *(place for place in places if place not in wrong), len(text)]
            for start, own in _group_doubtful(sure, doubtful):
                end = sure[bisect_left(sure, own[-1])]
                stretch, inside = text[start:end], [place - start for place in own]
                kept = self._kept(stretch, inside, first and not start, ended or end < len(text))
                wrong -= {start + place for place in kept}
            known = self._known[key] = [place for place in places if place not in wrong]
        return known

    def _kept(self, stretch: bytes, places: list[int], first: bool, ended: bool) -> Iterator[int]:
        """Those of the doubtful places of a stretch between sure ones that are seams."""
        inner = self.inside.inner(stretch.decode("utf-8", "replace"), first)
        likely: list[int] = []
        at = readable = 0
        for place in places:
            readable += len(stretch[at:place].decode("utf-8", "replace").encode())
            at = place
            if readable not in inner and (ended or not self._begun(stretch, place, first)):
                likely.append(place)
        for before, place, behind in zip([0, *likely], likely, [*likely[1:], len(stretch)], strict=False):
            own = first and not before
            whole = self.inside.ids(stretch[before:behind], own)
            if self.inside.ids(stretch[before:place], own) + self.inside.ids(stretch[place:behind]) == whole:
                yield place

    def _begun(self, stretch: bytes, place: int, first: bool) -> bool:
        """Whether the end of a text begins a piece across a place, which the tokenizer would write there."""
        there = stretch[place : place + self._reach]
        if place + len(there) < len(stretch):
            return False
        for left, right, token in self._odd.get(stretch[place - 1 : place + 1], ()):
            if len(there) < len(right) and right.startswith(there) and stretch.endswith(left, 0, place):
                written = self.inside.ids(stretch[:place] + right, first)
                if written[-1:] == (token,) or not _is_utf8(right):
                    return True
        return False


def last_possible_boundary(text: bytes, end: int) -> int:
    """The last white byte behind a visible one up to a place, 0 if there is none: a seam, but for odd pieces."""
    if _BOUNDARY.match(text, end):
        return end
    found = 0
    while seam := _BOUNDARY.search(text, found + 1, end):
        found = seam.start()
    return found


def _group_doubtful(sure: list[int], doubtful: list[int]) -> Iterator[tuple[int, list[int]]]:
    """The sure places before doubtful ones, each with the doubtful ones up to the next sure place."""
    own: dict[int, list[int]] = defaultdict(list)
    for place in doubtful:
        own[sure[bisect_left(sure, place) - 1]].append(place)
    yield from own.items()


def _crossing_pieces(vocabulary: Vocabulary, library: Any) -> dict[bytes, list[tuple[bytes, bytes, int]]]:
    """The pieces that lie across white space: (what is before the place, what is behind, token) by the two bytes
    around the place, the shortest first."""
    found: dict[bytes, list[tuple[bytes, bytes, int]]] = defaultdict(list)
    for token, piece in enumerate(vocabulary.table):
        if piece and len(piece) > 1:
            for match in _BOUNDARY.finditer(piece, 1):
                at = match.start()
                found[piece[at - 1 : at + 1]].append((piece[:at], piece[at:], token))
    added = getattr(library, "get_added_tokens_decoder", dict)()
    for token, about in added.items():  # one that takes the white space behind it
        if about.rstrip and not about.special and about.content.strip():
            name = about.content.encode()
            for white in WHITESPACE:
                found[name[-1:] + bytes([white])].append((name, bytes([white]), token))
    return {key: sorted(own, key=lambda one: len(one[0]) + len(one[1])) for key, own in found.items()}


def _joins_newlines(library: Any) -> bool:
    """Whether the pre-tokenizer joins newlines to the sign before them (`[^\\s\\p{L}\\p{N}]+[\\r\\n]*`), so that white
    space is cut otherwise behind a sign than elsewhere."""
    steps = getattr(library, "pre_tokenizer", None)
    if steps is not None:
        cuts = [cut for _, cut in steps.pre_tokenize_str("x!\ny")]
    else:
        cuts = library.cuts("x!\ny") if hasattr(library, "cuts") else []
    return any(start <= 1 and end == 3 for start, end in cuts)


def _is_utf8(data: bytes) -> bool:
    try:
        data.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True


MAX_LONGER_PIECES: Final = 40  # longer pieces that are tried: a beginning of more than so many is not settled
# Those first that most often change a beginning: then nothing of it is settled, and the rest need not be tried.
_NEXT_LETTERS: Final = [bytes([letter]) for letter in sorted(range(0x21, 0x7F), key=lambda one: not chr(one).isalnum())]


class PreTokens:
    """The words of one tokenizer, and their tokens as far as they were asked for."""

    def __init__(self, coder: Encoder) -> None:
        self.coder = coder
        self._inside = InnerEncoder(coder)
        self.ids, self._encoded = self._inside.ids, self._inside.encoded
        found = Boundaries(self._inside)
        self._certain, self.reach = found.certain, found.reach
        self.seams, self.seam, self.last, self.unsure = found.all, found.next, found.last, found.unsure
        self._settled: dict[tuple[bytes, bytes, bool, PreTokens | None], tuple[int, ...]] = {}
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
        return before[last_possible_boundary(before + token, len(before)) :], token

    def white(self, byte: bytes) -> bool:
        """Whether a byte begins a word where it stands behind something visible; not if it is none."""
        return byte != b"" and byte in WHITESPACE

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
            if len(self._ends) >= MAX_CACHED_TEXTS:
                self._ends.clear()
            ids = self._encoded(word.decode("utf-8", "replace"), first=False)
            ends = self._ends[word] = tuple(accumulate([self._widths[token] for token in ids], initial=0))
        return start in ends and end in ends

    def settled(self, before: bytes, token: bytes, first: bool, teacher: PreTokens | None) -> tuple[int, ...]:
        """The first tokens of a word of which only a beginning is known, as far as every way to go on shares them.

        before, token  the beginning: its last token may not grow, if the teacher's tokenizer would then cut it
                       differently
        Ways are: the end of the word; any visible letter of ASCII behind it; and whatever makes it a longer piece.
        """
        key = before, token, first, teacher
        known = self._settled.get(key)
        if known is None:
            if len(self._settled) >= MAX_CACHED_TEXTS:
                self._settled.clear()
            known = self._settled[key] = self._shared(before, token, first, teacher)
        return known

    def _shared(self, before: bytes, token: bytes, first: bool, teacher: PreTokens | None) -> tuple[int, ...]:
        word = before + token
        if _is_incomplete_utf8(word):
            return ()

        def tokens(more: bytes) -> tuple[int, ...] | None:
            if more and teacher and not teacher.cuts(word + more, len(before), len(word)):
                return None
            return self._encoded(word.decode("utf-8", "replace") + more.decode("utf-8", "replace"), first)

        shared = tokens(b"") or ()
        for letter in _NEXT_LETTERS:
            if not shared:
                return ()
            shared = _common_prefix(shared, tokens(letter))
        pieces = [self.coder.vocabulary.bytes_of(piece) or b"" for piece in shared]
        spelled = self.coder.vocabulary.split(list(shared)) if first else pieces
        left = len(word)
        for place, piece in enumerate(spelled):
            rest = pieces[place][: len(pieces[place]) - len(piece)] + word[len(word) - left :]
            left -= len(piece)
            longer = self._longer(rest.replace(b"\n", b" ") if place == 0 else rest)
            if len(longer) > MAX_LONGER_PIECES:
                return shared[:place]
            for more in longer:
                if len(_common_prefix(shared, tokens(more))) <= place:
                    return shared[:place]
        return shared

    def _longer(self, start: bytes) -> list[bytes]:
        """What pieces that begin with these bytes have behind them, at most one more than MANY."""
        if self._sorted is None:
            self._sorted = sorted(piece for piece in self.coder.vocabulary.table if piece)
        found = []
        for place in range(bisect_right(self._sorted, start), len(self._sorted)):
            if not self._sorted[place].startswith(start) or len(found) > MAX_LONGER_PIECES:
                break
            found.append(self._sorted[place][len(start) :])
        return found


_pre_tokens_cache: weakref.WeakKeyDictionary[Encoder, PreTokens] = weakref.WeakKeyDictionary()


def get_pre_tokens(tokenizer: object) -> PreTokens:
    """The words of a tokenizer, remembered as long as it lives."""
    coder = get_encoder(tokenizer)
    known = _pre_tokens_cache.get(coder)
    if known is None:
        known = _pre_tokens_cache[coder] = PreTokens(coder)
    return known


def _common_prefix(shared: tuple[int, ...], tokens: tuple[int, ...] | None) -> tuple[int, ...]:
    if tokens is None:
        return shared
    if shared == tokens[: len(shared)]:
        return shared
    place = 0
    while place < len(tokens) and shared[place] == tokens[place]:
        place += 1
    return shared[:place]


def _is_incomplete_utf8(data: bytes) -> bool:
    """Whether the last character lacks bytes."""
    try:
        data.decode("utf-8")
    except UnicodeDecodeError as error:
        return error.reason == "unexpected end of data"
    return False
