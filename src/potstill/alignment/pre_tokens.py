"""Cuts a text into pre-tokens: stretches whose tokens do not depend on the text around them.

    >>> from tokenizers import Tokenizer, models
    >>> vocab = {piece: index for index, piece in enumerate(["> <", *"> <", "> ", *"So 4*2b\\n"])}
    >>> pre_tokens = get_pre_tokens(Tokenizer(models.BPE(vocab, [(">", " "), ("> ", "<")])))
    >>> pre_tokens.boundaries(b"So 4 *\\n2")
    [2, 4, 6]
    >>> pre_tokens.boundaries(b"2 > 4 > <b")  # none between `>` and `<`, which are in one token
    [1, 5]
    >>> pre_tokens.next_boundary(b"2 >", 2), pre_tokens.next_boundary(b"2 >\\n", 2)
    (None, 3)

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
from itertools import accumulate, pairwise
from typing import Any, Final

from potstill.tokenization.encoder import Encoder, build_id_encoder, get_encoder
from potstill.tokenization.vocabulary import Vocabulary

MAX_CACHED_TEXTS: Final = 400_000
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
MAX_LONGER_PIECES: Final = 40  # that are tried: if more pieces begin like this, the beginning is not settled
# The letters that change a beginning most often come first: then nothing of it is settled, and the rest need no try.
_NEXT_LETTERS: Final = [bytes([code]) for code in sorted(range(0x21, 0x7F), key=lambda code: not chr(code).isalnum())]


class PreTokens:
    """The pre-tokens of one tokenizer, and their tokens as far as they were needed.

    Texts begin with a pre-token inside of a longer text; with `first`, they begin a text. Bytes that are not UTF-8 are
    U+FFFD.

    certain  no position of any text is doubtful
    reach    bytes after a boundary beyond which the text has no influence on it
    """

    def __init__(self, encoder: Encoder) -> None:
        self.encoder = encoder
        self._encode = build_id_encoder(encoder.library)
        self._crossing = _crossing_pieces(encoder.vocabulary, encoder.library)
        self._crossing_reach = max((len(right) for rows in self._crossing.values() for _, right, _ in rows), default=0)
        self._joins_newlines = _joins_newlines(encoder.library)
        # Many tokenizers are certain (T5, GPT-2): the pattern alone gives their boundaries.
        self.certain = not self._crossing and not self._joins_newlines
        self.reach = max(self._crossing_reach, MIN_LOOKBACK)
        self._widths = [len(piece or b"") for piece in encoder.vocabulary.table]
        self._sorted_pieces: list[bytes] | None = None
        cached = lru_cache(MAX_CACHED_TEXTS)
        self.ids, self.tokens, self.settled = cached(self._ids), cached(self._tokens), cached(self._settled)
        self._carrier_ids, self._token_ends = cached(self._encode), cached(self._uncached_token_ends)
        self._boundaries_of_doubtful = cached(self._uncached_boundaries_of_doubtful)

    def __repr__(self) -> str:
        return f"PreTokens({self.encoder!r})"

    # Tokens.

    def _ids(self, stretch: bytes, first: bool = False) -> tuple[int, ...]:
        """The tokens of a stretch inside a text, or at the start of a text if `first`."""
        return self._encode_inside(stretch.decode("utf-8", "replace"), first)

    def _tokens(self, text: bytes, first: bool = False) -> tuple[int, ...]:
        """The tokens of a text as those of its pre-tokens."""
        tokens: tuple[int, ...] = ()
        for start, end in pairwise([0, *self.boundaries(text, first), len(text)]):
            tokens += self.ids(text[start:end], first and not start)
        return tokens

    def _encode_inside(self, text: str, first: bool) -> tuple[int, ...]:
        # Alone, a stretch would get what a tokenizer puts before a text (the dummy space of SentencePiece). So it is
        # encoded after a letter, the carrier. If a piece joins the carrier to the stretch, the ids do not begin with
        # the carrier's own, and the next carrier is tried.
        for carrier in () if first else _CARRIERS:
            alone, ids = self._carrier_ids(carrier), self._encode(carrier + text)
            if ids[: len(alone)] == alone:
                return tuple(ids[len(alone) :])
        return tuple(self._encode(text))

    def _bytes_inside_tokens(self, text: str, first: bool) -> set[int]:
        """The bytes of the text before which no token begins or ends."""
        shift, spans = 0, None
        for carrier in () if first else _CARRIERS:
            encoding, alone = self.encoder.encode_batch([carrier + text])[0], self._carrier_ids(carrier)
            if encoding.ids[: len(alone)] == alone:
                shift, spans = 1, encoding.spans
                break
        spans = self.encoder.encode_batch([text])[0].spans if spans is None else spans
        return {byte - shift for start, end in spans for byte in range(start + 1, end)}

    # Boundaries.

    def boundaries(self, text: bytes, first: bool = False, ended: bool = True) -> list[int]:
        """Where the pre-tokens of a text begin, the first one left out. A text that continues (not `ended`) has no
        boundary where its end may become part of a piece that lies across."""
        positions = [match.start() for match in _BOUNDARY.finditer(text)]
        if self.certain or not any(self._is_doubtful(text, position, ended) for position in positions):
            return positions
        return self._boundaries_of_doubtful(text, first, ended)

    def next_boundary(self, text: bytes, start: int, first: bool = False) -> int | None:
        """The first boundary at or after a position of a text that continues; None without one."""
        match = _BOUNDARY.search(text, max(start, 0))
        # Called for every outcome of every step: the whole text is decided only if the first match is doubtful.
        if match is None or self.certain or not self._is_doubtful(text, match.start(), False):
            return None if match is None else match.start()
        return next((boundary for boundary in self.boundaries(text, first, ended=False) if boundary >= start), None)

    def last_boundary(self, text: bytes, end: int, first: bool = False) -> int:
        """The last boundary up to a position of a text that continues, 0 without one."""
        position = _last_possible_boundary(text, end)
        if not position or self.certain or not self._is_doubtful(text, position, False):
            return position
        return max([boundary for boundary in self.boundaries(text, first, ended=False) if boundary <= end], default=0)

    def is_unsure(self, before: bytes, after: bytes) -> bool:
        """Whether a position between two bytes, the second one whitespace, is doubtful in some texts."""
        joins_newline = self._joins_newlines and after in b"\r\n" and before[0] not in _ALNUM
        return (before + after) in self._crossing or joins_newline

    def context(self, before: bytes, token: bytes) -> tuple[bytes, bytes]:
        """A token with the bytes before it in its pre-token, since the last whitespace. It does not depend on the pieces
        of the tokenizer: the context is the same if one joins its pre-token to the one before."""
        if self.certain:
            return before, token
        return before[_last_possible_boundary(before + token, len(before)) :], token

    def _is_doubtful(self, text: bytes, position: int, ended: bool) -> bool:
        """Whether a piece lies across a position, or may do so where the text continues."""
        for left, right, _ in self._crossing.get(text[position - 1 : position + 1], ()):
            if text.endswith(left, 0, position):
                after = text[position : position + len(right)]
                if after == right or (not ended and right.startswith(after)):
                    return True
        return self._joins_newlines and text[position - 1] not in _ALNUM and _NEWLINE.match(text, position) is not None

    def _uncached_boundaries_of_doubtful(self, text: bytes, first: bool, ended: bool) -> list[int]:
        """The boundaries of a text with doubtful positions."""
        positions = [match.start() for match in _BOUNDARY.finditer(text)]
        doubtful = {position for position in positions if self._is_doubtful(text, position, ended)}
        # Between two sure boundaries the tokens depend on nothing outside: each stretch is decided alone.
        sure = [0, *(position for position in positions if position not in doubtful), len(text)]
        groups: dict[int, list[int]] = defaultdict(list)
        for position in sorted(doubtful):
            groups[bisect_left(sure, position)].append(position)
        boundaries = set(positions) - doubtful
        for index, group in groups.items():
            start, end = sure[index - 1], sure[index]
            inside = [position - start for position in group]
            confirmed = self._confirm(text[start:end], inside, first and not start, ended or end < len(text))
            boundaries |= {start + position for position in confirmed}
        return sorted(boundaries)

    def _confirm(self, stretch: bytes, positions: list[int], first: bool, ended: bool) -> Iterator[int]:
        """Those of the doubtful positions of a stretch between sure boundaries that are boundaries."""
        inside_tokens = self._bytes_inside_tokens(stretch.decode("utf-8", "replace"), first)
        likely: list[int] = []
        before = readable = 0
        for position in positions:
            # `inside_tokens` counts bytes of the readable text, in which each invalid sequence became a U+FFFD.
            readable += len(stretch[before:position].decode("utf-8", "replace").encode())
            before = position
            if readable not in inside_tokens and (ended or not self._begins_piece(stretch, position, first)):
                likely.append(position)
        # That no token lies across is not enough: the tokens of the two sides alone must be those of the whole.
        for before, position, after in zip([0, *likely], likely, [*likely[1:], len(stretch)], strict=False):
            starts = first and not before
            whole = self.ids(stretch[before:after], starts)
            if self.ids(stretch[before:position], starts) + self.ids(stretch[position:after], False) == whole:
                yield position

    def _begins_piece(self, stretch: bytes, position: int, first: bool) -> bool:
        """Whether the end of a text begins a piece across a position, which the tokenizer would write there."""
        after = stretch[position : position + self._crossing_reach]
        if position + len(after) < len(stretch):
            return False
        for left, right, token in self._crossing.get(stretch[position - 1 : position + 1], ()):
            if len(after) < len(right) and right.startswith(after) and stretch.endswith(left, 0, position):
                ids = self.ids(stretch[:position] + right, first)
                if ids[-1:] == (token,) or _utf8_fault(right):
                    return True
        return False

    # Pre-tokens of which only a part is known.

    def cuts(self, pre_token: bytes, start: int, end: int) -> bool:
        """Whether tokens of a pre-token inside a text begin or end at both positions."""
        # A teacher whose tokenizer would join a candidate to what follows could not have written it as this candidate.
        ends = self._token_ends(pre_token)
        return start in ends and end in ends

    def _uncached_token_ends(self, pre_token: bytes) -> tuple[int, ...]:
        ids = self._encode_inside(pre_token.decode("utf-8", "replace"), first=False)
        return tuple(accumulate([self._widths[token] for token in ids], initial=0))

    def _settled(self, before: bytes, token: bytes, first: bool, teacher: PreTokens | None) -> tuple[int, ...]:
        """The first tokens of a pre-token of which only the beginning is known, as far as all its continuations share
        them.

        before, token  the beginning. A continuation does not count if the teacher's tokenizer would then cut the last
                       token of the beginning differently

        Continuations are: the end of the pre-token; any visible letter of ASCII; and all that make a longer piece.
        """
        beginning = before + token
        if _utf8_fault(beginning) == "unexpected end of data":
            return ()

        # None for a continuation that the teacher rules out: the shared tokens do not depend on it.
        def tokens(more: bytes) -> tuple[int, ...] | None:
            if more and teacher and not teacher.cuts(beginning + more, len(before), len(beginning)):
                return None
            return self._encode_inside(beginning.decode("utf-8", "replace") + more.decode("utf-8", "replace"), first)

        shared = tokens(b"") or ()
        for letter in _NEXT_LETTERS:
            if not shared:
                return ()
            shared = _common_prefix(shared, tokens(letter))
        # These tokens may still change where several more letters make one longer piece: from each of them on, try the
        # pieces that begin with the rest of the beginning.
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
            if any(len(_common_prefix(shared, tokens(more))) <= index for more in longer):
                return shared[:index]
        return shared

    def _longer_pieces(self, start: bytes) -> list[bytes]:
        """The bytes after `start` in the pieces that begin with it, at most one more than MAX_LONGER_PIECES."""
        # In sorted order the pieces with a common beginning follow one another.
        if self._sorted_pieces is None:
            self._sorted_pieces = sorted(piece for piece in self.encoder.vocabulary.table if piece)
        low = bisect_right(self._sorted_pieces, start)
        near = self._sorted_pieces[low : low + MAX_LONGER_PIECES + 1]
        return [piece[len(start) :] for piece in near if piece.startswith(start)]


def get_pre_tokens(tokenizer: object) -> PreTokens:
    """The pre-tokens of a tokenizer; those of the last tokenizers are cached."""
    return _pre_tokens_of(get_encoder(tokenizer))


@lru_cache(maxsize=8)
def _pre_tokens_of(encoder: Encoder) -> PreTokens:
    return PreTokens(encoder)


def is_whitespace(byte: bytes) -> bool:
    """Whether a byte begins a pre-token where it stands after something visible; False for no byte."""
    return byte != b"" and byte in WHITESPACE


def _last_possible_boundary(text: bytes, end: int) -> int:
    """The last whitespace byte after a visible one up to a position, else 0. It is a boundary unless a piece lies across
    it."""
    if _BOUNDARY.match(text, end):
        return end
    last = 0
    while match := _BOUNDARY.search(text, last + 1, end):
        last = match.start()
    return last


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
    if tokens is None or shared == tokens[: len(shared)]:
        return shared
    length = 0
    while length < len(tokens) and shared[length] == tokens[length]:
        length += 1
    return shared[:length]


def _utf8_fault(data: bytes) -> str | None:
    """Why bytes are not UTF-8; None if they are."""
    try:
        data.decode("utf-8")
    except UnicodeDecodeError as error:
        return error.reason
    return None
