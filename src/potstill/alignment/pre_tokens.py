"""Cuts a text into pre-tokens: stretches whose tokens do not depend on the text around them.

    >>> class Letters:  # stands in for a tokenizer: one token a letter, but `> <` is one token
    ...     def encode(self, text, add_special_tokens):
    ...         pieces = list(re.finditer("> <|.", text, re.DOTALL))
    ...         self.ids = [256 if piece[0] == "> <" else ord(piece[0]) for piece in pieces]
    ...         self.offsets = [piece.span() for piece in pieces]
    ...         return self
    ...     def encode_batch(self, texts, add_special_tokens):
    ...         return [Letters().encode(text, False) for text in texts]
    >>> pieces = (*(bytes([byte]) for byte in range(256)), b"> <")
    >>> pre_tokens = PreTokens(Encoder(Vocabulary(pieces, {}, None, None, None, False, ""), Letters()))
    >>> pre_tokens.boundaries(b"So 4 *\\n12"), pre_tokens.tokens(b" 4 *") == tuple(b" 4 *")
    ([2, 4, 6], True)
    >>> pre_tokens.boundaries(b"3 > 2 > <b")  # none between `>` and `<`
    [1, 3, 5]
    >>> pre_tokens.next_boundary(b"3 >", 2), pre_tokens.next_boundary(b"3 > ", 2), pre_tokens.next_boundary(b"3 > 2", 2)
    (None, None, 3)

A pre-token is whitespace and what follows it up to the next *boundary*. A boundary is a whitespace byte after a visible
one, unless the tokenizer joins the two sides **in this text**. Nearly no piece has whitespace after something
visible, so nearly every such position is a boundary. Where the bytes of a piece that has (`.` with a newline in cl100k,
`> </` in Gemma) lie across a position, it is *doubtful*, and the tokens decide: it is a boundary if the tokens of its
two sides are those of the whole. So an unusual piece changes nothing where it is not written.
"""

from __future__ import annotations

import re
from bisect import bisect_left, bisect_right
from collections import defaultdict
from collections.abc import Iterator
from functools import lru_cache
from itertools import accumulate
from typing import Any, Final

from potstill.tokenization.encoder import Encoder, build_id_encoder, get_encoder
from potstill.tokenization.vocabulary import Vocabulary

MAX_CACHED_TEXTS: Final = 400_000  # then the cache is emptied, which changes no result
WHITESPACE: Final = b" \t\n\v\f\r"
# Unicode's own spaces are kept inside pre-tokens: no-break space and others of two or three bytes.
_BOUNDARY: Final = re.compile(
    rb"[ \t\n\v\f\r]"
    rb"(?<=[!-~\x80-\xff].)(?<!\xc2[\x85\xa0].)(?<!\xe2[\x80\x81]..)(?<!\xe3\x80\x80.)(?<!\xe1[\x9a\xa0]..)",
    re.DOTALL,
)
MIN_LOOKBACK: Final = 64  # at least so many bytes before the position where one text leaves another are cut again
_CARRIERS: Final = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.,;:!?-+*/=()[]<>'\""
_ALNUM: Final = frozenset(b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz")
# A newline after which a pre-tokenizer that joins newlines to signs may cut differently if no sign stands before it.
_NEWLINE: Final = re.compile(rb"[\r\n](?![!-.0-~])")
MAX_LONGER_PIECES: Final = 40  # that are tried: a beginning of more pieces than so many is not settled
# The letters that change a beginning most often come first: then nothing of it is settled, and the rest need no try.
_NEXT_LETTERS: Final = [bytes([code]) for code in sorted(range(0x21, 0x7F), key=lambda code: not chr(code).isalnum())]


class InnerEncoder:
    """The tokens of a stretch as they are inside a text: after a letter, so that no dummy space is put before it. The
    letter (the carrier) is the first one that no piece joins to the stretch."""

    def __init__(self, encoder: Encoder) -> None:
        self.encoder = encoder
        self._encode = build_id_encoder(encoder.library)
        self.cache: dict[tuple[bytes, bool], tuple[int, ...]] = {}
        self._carrier_ids: dict[str, list[int]] = {}

    def ids(self, stretch: bytes, first: bool = False) -> tuple[int, ...]:
        """Its tokens inside a text, or at the start of a text if `first`. Bytes that are not UTF-8 are U+FFFD."""
        key = (stretch, first)
        cached = self.cache.get(key)
        if cached is None:
            if len(self.cache) >= MAX_CACHED_TEXTS:
                self.cache.clear()
            cached = self.cache[key] = self.encode(stretch.decode("utf-8", "replace"), first)
        return cached

    def encode(self, text: str, first: bool) -> tuple[int, ...]:
        """The same, without the cache."""
        if first:
            return tuple(self._encode(text))
        # Alone, a stretch would get what a tokenizer puts before a text (the dummy space of SentencePiece). If a piece
        # joins the carrier to the stretch, the ids do not begin with the carrier's own: the next carrier is tried.
        for carrier in _CARRIERS:
            alone = self._carrier(carrier)
            ids = self._encode(carrier + text)
            if ids[: len(alone)] == alone:
                return tuple(ids[len(alone) :])
        return tuple(self._encode(text))

    def inner_bytes(self, text: str, first: bool) -> set[int]:
        """The bytes of the text that lie inside a token, so that no token begins or ends before them."""
        shift, spans = 0, None
        for carrier in () if first else _CARRIERS:
            encoding = self.encoder.encode_batch([carrier + text])[0]
            if encoding.ids[: len(self._carrier(carrier))] == self._carrier(carrier):
                shift, spans = 1, encoding.spans
                break
        spans = self.encoder.encode_batch([text])[0].spans if spans is None else spans
        return {byte - shift for start, end in spans for byte in range(start + 1, end)}

    def _carrier(self, letter: str) -> list[int]:
        cached = self._carrier_ids.get(letter)
        if cached is None:
            cached = self._carrier_ids[letter] = list(self._encode(letter))
        return cached


class Boundaries:
    """The boundaries of one tokenizer, in texts that begin with a pre-token; with `first`, with that of a whole text.

    certain  no position of any text is doubtful
    reach    bytes after a boundary beyond which the text has no influence on it
    """

    def __init__(self, inner: InnerEncoder) -> None:
        self.inner = inner
        library, vocabulary = inner.encoder.library, inner.encoder.vocabulary
        self._crossing = _crossing_pieces(vocabulary, library)
        self._crossing_reach = max((len(right) for rows in self._crossing.values() for _, right, _ in rows), default=0)
        self.reach = max(self._crossing_reach, MIN_LOOKBACK)
        self._joins = _joins_newlines(library)
        # Many tokenizers are certain (T5, GPT-2): the pattern gives their boundaries, and nothing below is needed.
        self.certain = not self._crossing and not self._joins
        self._cache: dict[tuple[bytes, bool, bool], list[int]] = {}

    def all(self, text: bytes, first: bool = False, ended: bool = True) -> list[int]:
        """Where the pre-tokens of a text begin, the first one left out. A text that goes on (not `ended`) has no
        boundary where a piece could come to lie whose beginning is the end of the text."""
        positions = [match.start() for match in _BOUNDARY.finditer(text)]
        if self.certain:
            return positions
        doubtful = [position for position in positions if self._is_doubtful(text, position, ended)]
        return self._decide(text, positions, doubtful, first, ended) if doubtful else positions

    def next(self, text: bytes, start: int, first: bool = False) -> int | None:
        """The first boundary at or after a position of a text that goes on; None if there is none."""
        match = _BOUNDARY.search(text, max(start, 0))
        # Called for every outcome of every step: the whole text is decided only if the first match is doubtful.
        if match is None or self.certain or not self._is_doubtful(text, match.start(), False):
            return None if match is None else match.start()
        boundaries = self.all(text, first, ended=False)
        index = bisect_left(boundaries, start)
        return boundaries[index] if index < len(boundaries) else None

    def last(self, text: bytes, end: int, first: bool = False) -> int:
        """The last boundary up to a position of a text that goes on, 0 if there is none."""
        position = last_possible_boundary(text, end)
        if not position or self.certain or not self._is_doubtful(text, position, False):
            return position
        return max([boundary for boundary in self.all(text, first, ended=False) if boundary <= end], default=0)

    def is_unsure(self, before: bytes, after: bytes) -> bool:
        """Whether a position between two bytes, the second one whitespace, is doubtful in some texts."""
        return (before + after) in self._crossing or (self._joins and after in b"\r\n" and before[0] not in _ALNUM)

    def _is_doubtful(self, text: bytes, position: int, ended: bool) -> bool:
        """Whether a piece lies across a position, or may do so where the text goes on."""
        for left, right, _ in self._crossing.get(text[position - 1 : position + 1], ()):
            if text.endswith(left, 0, position):
                after = text[position : position + len(right)]
                if after == right or (not ended and right.startswith(after)):
                    return True
        return self._joins and text[position - 1] not in _ALNUM and _NEWLINE.match(text, position) is not None

    def _decide(self, text: bytes, positions: list[int], doubtful: list[int], first: bool, ended: bool) -> list[int]:
        """The positions without those doubtful ones that are not boundaries."""
        key = text, first, ended
        cached = self._cache.get(key)
        if cached is None:
            if len(self._cache) >= MAX_CACHED_TEXTS:
                self._cache.clear()
            # Between two sure boundaries the tokens depend on nothing outside: each stretch is decided alone.
            wrong = set(doubtful)
            sure = [0, *(position for position in positions if position not in wrong), len(text)]
            for start, group in _group_doubtful(sure, doubtful):
                end = sure[bisect_left(sure, group[-1])]
                inside = [position - start for position in group]
                kept = self._confirm(text[start:end], inside, first and not start, ended or end < len(text))
                wrong -= {start + position for position in kept}
            cached = self._cache[key] = [position for position in positions if position not in wrong]
        return cached

    def _confirm(self, stretch: bytes, positions: list[int], first: bool, ended: bool) -> Iterator[int]:
        """Those of the doubtful positions of a stretch between sure boundaries that are boundaries."""
        inner = self.inner.inner_bytes(stretch.decode("utf-8", "replace"), first)
        likely: list[int] = []
        before = readable = 0
        for position in positions:
            # `inner` counts bytes of the readable text, in which each invalid sequence became a U+FFFD.
            readable += len(stretch[before:position].decode("utf-8", "replace").encode())
            before = position
            if readable not in inner and (ended or not self._begins_piece(stretch, position, first)):
                likely.append(position)
        # That no token lies across is not enough: the tokens of the two sides alone must be those of the whole.
        for before, position, after in zip([0, *likely], likely, [*likely[1:], len(stretch)], strict=False):
            starts = first and not before
            whole = self.inner.ids(stretch[before:after], starts)
            if self.inner.ids(stretch[before:position], starts) + self.inner.ids(stretch[position:after]) == whole:
                yield position

    def _begins_piece(self, stretch: bytes, position: int, first: bool) -> bool:
        """Whether the end of a text begins a piece across a position, which the tokenizer would write there."""
        after = stretch[position : position + self._crossing_reach]
        if position + len(after) < len(stretch):
            return False
        for left, right, token in self._crossing.get(stretch[position - 1 : position + 1], ()):
            if len(after) < len(right) and right.startswith(after) and stretch.endswith(left, 0, position):
                ids = self.inner.ids(stretch[:position] + right, first)
                if ids[-1:] == (token,) or not _is_utf8(right):
                    return True
        return False


class PreTokens:
    """The pre-tokens of one tokenizer, and their tokens as far as they were needed.

    certain  no position of any text is doubtful
    reach    bytes after a boundary beyond which the text has no influence on it
    """

    def __init__(self, encoder: Encoder) -> None:
        self.encoder = encoder
        self._inner = InnerEncoder(encoder)
        self.ids = self._inner.ids
        bounds = Boundaries(self._inner)
        self.certain, self.reach = bounds.certain, bounds.reach
        self.boundaries, self.next_boundary, self.last_boundary = bounds.all, bounds.next, bounds.last
        self.is_unsure = bounds.is_unsure
        self._settled: dict[tuple[bytes, bytes, bool, PreTokens | None], tuple[int, ...]] = {}
        self._widths = [len(piece or b"") for piece in encoder.vocabulary.table]
        self._token_ends: dict[bytes, tuple[int, ...]] = {}
        self._sorted_pieces: list[bytes] | None = None

    def __repr__(self) -> str:
        return f"PreTokens({self.encoder!r})"

    def context(self, before: bytes, token: bytes) -> tuple[bytes, bytes]:
        """Where a token stands in its pre-token: the bytes before it since the last whitespace, and itself. The pieces
        of the tokenizer have no say in this: the context is the same whatever joins its pre-token to the one before."""
        if self.certain:
            return before, token
        return before[last_possible_boundary(before + token, len(before)) :], token

    def tokens(self, text: bytes, first: bool = False) -> tuple[int, ...]:
        """The tokens of a text that begins with a pre-token, or of a whole text if `first`."""
        cached = self._inner.cache.get((text, first))
        if cached is not None:
            return cached
        boundaries = self.boundaries(text, first)
        if not boundaries:
            return self.ids(text, first)
        tokens = self.ids(text[: boundaries[0]], first)
        for start, end in zip(boundaries, [*boundaries[1:], len(text)], strict=True):
            tokens += self.ids(text[start:end])
        return tokens

    def cuts(self, pre_token: bytes, start: int, end: int) -> bool:
        """Whether tokens of a pre-token inside a text begin or end at both positions."""
        # A teacher whose tokenizer would join a candidate to what follows could not have written it as this candidate.
        ends = self._token_ends.get(pre_token)
        if ends is None:
            if len(self._token_ends) >= MAX_CACHED_TEXTS:
                self._token_ends.clear()
            ids = self._inner.encode(pre_token.decode("utf-8", "replace"), first=False)
            ends = self._token_ends[pre_token] = tuple(accumulate([self._widths[token] for token in ids], initial=0))
        return start in ends and end in ends

    def settled(self, before: bytes, token: bytes, first: bool, teacher: PreTokens | None) -> tuple[int, ...]:
        """The first tokens of a pre-token of which only the beginning is known, as far as all its continuations share
        them.

        before, token  the beginning. A continuation does not count if the teacher's tokenizer would then cut the last
                       token of the beginning differently

        Continuations are: the end of the pre-token; any visible letter of ASCII; and whatever makes a longer piece.
        """
        key = before, token, first, teacher
        cached = self._settled.get(key)
        if cached is None:
            if len(self._settled) >= MAX_CACHED_TEXTS:
                self._settled.clear()
            cached = self._settled[key] = self._shared(before, token, first, teacher)
        return cached

    def _shared(self, before: bytes, token: bytes, first: bool, teacher: PreTokens | None) -> tuple[int, ...]:
        beginning = before + token
        if _is_incomplete_utf8(beginning):
            return ()

        # None for a continuation that the teacher rules out: it settles nothing and unsettles nothing.
        def tokens(more: bytes) -> tuple[int, ...] | None:
            if more and teacher and not teacher.cuts(beginning + more, len(before), len(beginning)):
                return None
            return self._inner.encode(beginning.decode("utf-8", "replace") + more.decode("utf-8", "replace"), first)

        shared = tokens(b"") or ()
        for letter in _NEXT_LETTERS:
            if not shared:
                return ()
            shared = _common_prefix(shared, tokens(letter))
        # What is left may still change where several more letters make one longer piece: from each shared token on, try
        # the pieces that begin with the rest of the beginning.
        pieces = [self.encoder.vocabulary.bytes_of(token) or b"" for token in shared]
        spelled = self.encoder.vocabulary.split(list(shared)) if first else pieces
        left = len(beginning)
        for index, piece in enumerate(spelled):
            # A dummy space is part of the first piece, not of the text.
            dummy = pieces[index][: len(pieces[index]) - len(piece)]
            rest = dummy + beginning[len(beginning) - left :]
            left -= len(piece)
            # The normalizer of T5 writes a newline as a space. A pre-token has whitespace only at its start.
            longer = self._longer_pieces(rest.replace(b"\n", b" ") if index == 0 else rest)
            if len(longer) > MAX_LONGER_PIECES:
                return shared[:index]
            for more in longer:
                if len(_common_prefix(shared, tokens(more))) <= index:
                    return shared[:index]
        return shared

    def _longer_pieces(self, start: bytes) -> list[bytes]:
        """What pieces that begin with these bytes have after them, at most one more than MAX_LONGER_PIECES."""
        # In sorted order the pieces with a common beginning follow one another.
        if self._sorted_pieces is None:
            self._sorted_pieces = sorted(piece for piece in self.encoder.vocabulary.table if piece)
        longer = []
        for index in range(bisect_right(self._sorted_pieces, start), len(self._sorted_pieces)):
            if not self._sorted_pieces[index].startswith(start) or len(longer) > MAX_LONGER_PIECES:
                break
            longer.append(self._sorted_pieces[index][len(start) :])
        return longer


def get_pre_tokens(tokenizer: object) -> PreTokens:
    """The pre-tokens of a tokenizer, the same object for the tokenizers that were used last."""
    return _pre_tokens_of(get_encoder(tokenizer))


@lru_cache(maxsize=8)
def _pre_tokens_of(encoder: Encoder) -> PreTokens:
    return PreTokens(encoder)


def is_whitespace(byte: bytes) -> bool:
    """Whether a byte begins a pre-token where it stands after something visible; False for no byte."""
    return byte != b"" and byte in WHITESPACE


def last_possible_boundary(text: bytes, end: int) -> int:
    """The last whitespace byte after a visible one up to a position, 0 if there is none: a boundary, but for crossing
    pieces."""
    if _BOUNDARY.match(text, end):
        return end
    last = 0
    while match := _BOUNDARY.search(text, last + 1, end):
        last = match.start()
    return last


def _group_doubtful(sure: list[int], doubtful: list[int]) -> Iterator[tuple[int, list[int]]]:
    """The sure boundaries before doubtful positions, each with the doubtful ones up to the next sure boundary."""
    groups: dict[int, list[int]] = defaultdict(list)
    for position in doubtful:
        groups[sure[bisect_left(sure, position) - 1]].append(position)
    yield from groups.items()


def _crossing_pieces(vocabulary: Vocabulary, library: Any) -> dict[bytes, list[tuple[bytes, bytes, int]]]:
    """The pieces that lie across a possible boundary, as (bytes before it, bytes after it, token), by the two bytes
    around the boundary, the shortest piece first."""
    # By the two bytes around the boundary, because a text is looked up at each of its possible boundaries.
    crossing: dict[bytes, list[tuple[bytes, bytes, int]]] = defaultdict(list)
    for token, piece in enumerate(vocabulary.table):
        if piece and len(piece) > 1:
            for match in _BOUNDARY.finditer(piece, 1):
                cut = match.start()
                crossing[piece[cut - 1 : cut + 1]].append((piece[:cut], piece[cut:], token))
    added_tokens = getattr(library, "get_added_tokens_decoder", dict)()
    for token, added in added_tokens.items():  # one that takes the whitespace after it
        if added.rstrip and not added.special and added.content.strip():
            name = added.content.encode()
            for white in WHITESPACE:
                crossing[name[-1:] + bytes([white])].append((name, bytes([white]), token))
    return {key: sorted(rows, key=lambda row: len(row[0]) + len(row[1])) for key, rows in crossing.items()}


def _joins_newlines(library: Any) -> bool:
    """Whether the pre-tokenizer joins newlines to the sign before them (`[^\\s\\p{L}\\p{N}]+[\\r\\n]*`), so that whitespace
    is cut differently after a sign than elsewhere."""
    # Tried instead of read: the pattern of a pre-tokenizer can be written in many ways.
    pre_tokenizer = getattr(library, "pre_tokenizer", None)
    if pre_tokenizer is not None:
        cuts = [cut for _, cut in pre_tokenizer.pre_tokenize_str("x!\ny")]
    else:
        cuts = library.cuts("x!\ny") if hasattr(library, "cuts") else []
    return any(start <= 1 and end == 3 for start, end in cuts)


def _common_prefix(shared: tuple[int, ...], tokens: tuple[int, ...] | None) -> tuple[int, ...]:
    if tokens is None:
        return shared
    if shared == tokens[: len(shared)]:
        return shared
    length = 0
    while length < len(tokens) and shared[length] == tokens[length]:
        length += 1
    return shared[:length]


def _is_utf8(data: bytes) -> bool:
    try:
        data.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True


def _is_incomplete_utf8(data: bytes) -> bool:
    """Whether the last character lacks bytes."""
    try:
        data.decode("utf-8")
    except UnicodeDecodeError as error:
        return error.reason == "unexpected end of data"
    return False
