"""Splits a text into pre-tokens: substrings whose tokens do not depend on the text around them.

    >>> from tokenizers import Tokenizer, models
    >>> vocab = {piece: index for index, piece in enumerate(["> <", *"> <", "> ", *"So 4*2b\\n"])}
    >>> pre_tokens = get_pre_tokens(Tokenizer(models.BPE(vocab, [(">", " "), ("> ", "<")])))
    >>> pre_tokens.boundaries(b"So 4 *\\n2")
    [2, 4, 6]
    >>> pre_tokens.boundaries(b"2 > 4 > <b")  # no boundary between `>` and `<`, which are in one token
    [1, 5]
    >>> pre_tokens.next_boundary(b"2 >", 2), pre_tokens.next_boundary(b"2 >\\n", 2)
    (None, 3)

A pre-token is whitespace and the text after it, up to the next *boundary*. A boundary is the position of a whitespace
byte after a visible byte, unless the tokenizer joins the text before and after it **in this text**. Hardly any piece has
whitespace after a visible byte, so nearly every such position is a boundary. The exceptions are pieces such as `> </` in
Gemma, or `.` with a newline in cl100k. If the bytes of such a piece lie across a position, the position is *doubtful*:
it is a boundary only if the texts before and after it, tokenized alone, give the tokens of the whole. So an unusual
piece has no effect on texts that do not contain it.
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
# Unicode spaces of two or three bytes, such as the no-break space, do not begin a pre-token.
_BOUNDARY: Final = re.compile(
    rb"[ \t\n\v\f\r]"
    rb"(?<=[!-~\x80-\xff].)(?<!\xc2[\x85\xa0].)(?<!\xe2[\x80\x81]..)(?<!\xe3\x80\x80.)(?<!\xe1[\x9a\xa0]..)",
    re.DOTALL,
)
MIN_LOOKBACK: Final = 64  # at least so many bytes before the first difference of two texts are split again
_CARRIERS: Final = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.,;:!?-+*/=()[]<>'\""
_ALNUM: Final = frozenset(b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz")
# Some pre-tokenizers join newlines to the sign before them. After such a newline they may split the text differently.
_NEWLINE: Final = re.compile(rb"[\r\n](?![!-.0-~])")
MAX_LONGER_PIECES: Final = 40  # if more pieces have a common beginning, none are tried: the tokens are not settled
# Letters and digits, which most often change the tokens before them, come first: then no token is settled, and the loop
# over the letters can stop.
_NEXT_LETTERS: Final = [bytes([code]) for code in sorted(range(0x21, 0x7F), key=lambda code: not chr(code).isalnum())]


class PreTokens:
    """The pre-tokens of one tokenizer, with a cache of their tokens.

    The arguments of the methods are parts of a longer text that begin with a pre-token; with `first`, they are the
    start of the text. Bytes that are not UTF-8 become U+FFFD.

    certain  whether no position of any text is doubtful
    reach    the number of bytes after a position that can decide whether it is a boundary
    """

    def __init__(self, encoder: Encoder) -> None:
        self.encoder = encoder
        self._encode = build_id_encoder(encoder.library)
        self._crossing = _crossing_pieces(encoder.vocabulary, encoder.library)
        self._crossing_reach = max((len(right) for rows in self._crossing.values() for _, right, _ in rows), default=0)
        self._joins_newlines = _joins_newlines(encoder.library)
        # Many tokenizers are certain (T5, GPT-2): the regular expression alone gives their boundaries.
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
        """The tokens of a substring, which is inside a text, or at its start if `first`."""
        return self._encode_inside(stretch.decode("utf-8", "replace"), first)

    def _tokens(self, text: bytes, first: bool = False) -> tuple[int, ...]:
        """The tokens of a text, which are the tokens of its pre-tokens."""
        tokens: tuple[int, ...] = ()
        for start, end in pairwise([0, *self.boundaries(text, first), len(text)]):
            tokens += self.ids(text[start:end], first and not start)
        return tokens

    def _encode_inside(self, text: str, first: bool) -> tuple[int, ...]:
        # A tokenizer may add a prefix to a text (SentencePiece adds a dummy space), which a substring inside a text must
        # not get. So the substring is encoded after a letter, the carrier. If a piece joins the carrier to the
        # substring, the ids do not begin with the carrier's ids, and the next carrier is tried.
        for carrier in () if first else _CARRIERS:
            alone, ids = self._carrier_ids(carrier), self._encode(carrier + text)
            if ids[: len(alone)] == alone:
                return tuple(ids[len(alone) :])
        return tuple(self._encode(text))

    def _bytes_inside_tokens(self, text: str, first: bool) -> set[int]:
        """The offsets of the text that lie inside a token."""
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
        """The start of every pre-token of a text, apart from the first one.

        A text that continues (not `ended`) has no boundary that a piece may cross once more text is added.
        """
        positions = [match.start() for match in _BOUNDARY.finditer(text)]
        if self.certain or not any(self._is_doubtful(text, position, ended) for position in positions):
            return positions
        return self._boundaries_of_doubtful(text, first, ended)

    def next_boundary(self, text: bytes, start: int, first: bool = False) -> int | None:
        """The first boundary at or after the position `start` of a text that continues; None if there is none."""
        match = _BOUNDARY.search(text, max(start, 0))
        # Called for every outcome of every step, so the whole text is split only if the first match is doubtful.
        if match is None or self.certain or not self._is_doubtful(text, match.start(), False):
            return None if match is None else match.start()
        return next((boundary for boundary in self.boundaries(text, first, ended=False) if boundary >= start), None)

    def last_boundary(self, text: bytes, end: int, first: bool = False) -> int:
        """The last boundary at or before the position `end` of a text that continues; 0 if there is none."""
        position = _last_possible_boundary(text, end)
        if not position or self.certain or not self._is_doubtful(text, position, False):
            return position
        return max([boundary for boundary in self.boundaries(text, first, ended=False) if boundary <= end], default=0)

    def is_unsure(self, before: bytes, after: bytes) -> bool:
        """Whether the position between two bytes, the second of them whitespace, is doubtful in some texts."""
        joins_newline = self._joins_newlines and after in b"\r\n" and before[0] not in _ALNUM
        return (before + after) in self._crossing or joins_newline

    def word(self, text: bytes) -> bytes:
        """The part of a text after its last possible boundary, which does not depend on the pieces of the tokenizer: it stays
        the same if a piece joins the last pre-token to the one before it."""
        return text if self.certain else text[_last_possible_boundary(text, len(text)) :]

    def _is_doubtful(self, text: bytes, position: int, ended: bool) -> bool:
        """Whether the bytes of a piece lie across a position, or may do so once more text is added (not `ended`)."""
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
        # The tokens between two sure boundaries depend on no other text, so the doubtful positions there are decided alone.
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
        """The doubtful positions that are boundaries, in a stretch of text between two sure boundaries."""
        inside_tokens = self._bytes_inside_tokens(stretch.decode("utf-8", "replace"), first)
        likely: list[int] = []
        before = readable = 0
        for position in positions:
            # `inside_tokens` has offsets in the decoded text, in which each invalid sequence became a U+FFFD.
            readable += len(stretch[before:position].decode("utf-8", "replace").encode())
            before = position
            if readable not in inside_tokens and (ended or not self._begins_piece(stretch, position, first)):
                likely.append(position)
        # A position that no token crosses is not enough: the texts before and after it, tokenized alone, must give the
        # tokens of the whole.
        for before, position, after in zip([0, *likely], likely, [*likely[1:], len(stretch)], strict=False):
            starts = first and not before
            whole = self.ids(stretch[before:after], starts)
            if self.ids(stretch[before:position], starts) + self.ids(stretch[position:after], False) == whole:
                yield position

    def _begins_piece(self, stretch: bytes, position: int, first: bool) -> bool:
        """Whether the text ends inside a piece that crosses the position. A piece counts only if the tokenizer would use it
        for the text with the rest of the piece added."""
        after = stretch[position : position + self._crossing_reach]
        if position + len(after) < len(stretch):
            return False
        for left, right, token in self._crossing.get(stretch[position - 1 : position + 1], ()):
            if len(after) < len(right) and right.startswith(after) and stretch.endswith(left, 0, position):
                ids = self.ids(stretch[:position] + right, first)
                if ids[-1:] == (token,) or _utf8_fault(right):
                    return True
        return False

    # Incomplete pre-tokens.

    def cuts(self, pre_token: bytes, start: int, end: int) -> bool:
        """Whether both positions are token boundaries of a pre-token inside a text."""
        # If the teacher's tokenizer joined a candidate to the text after it, the teacher could not have written that text
        # with this candidate.
        ends = self._token_ends(pre_token)
        return start in ends and end in ends

    def _uncached_token_ends(self, pre_token: bytes) -> tuple[int, ...]:
        ids = self._encode_inside(pre_token.decode("utf-8", "replace"), first=False)
        return tuple(accumulate([self._widths[token] for token in ids], initial=0))

    def _settled(self, before: bytes, token: bytes, first: bool, teacher: PreTokens | None) -> tuple[int, ...]:
        """The first tokens of a pre-token that are the same for all continuations of its beginning.

        before, token  the beginning, in two parts. A continuation does not count if, with it, the teacher's tokenizer has
                       no token boundary before or after the part `token`

        The continuations tried are the end of the pre-token, every visible ASCII character, and the rest of every longer
        piece.
        """
        beginning = before + token
        if _utf8_fault(beginning) == "unexpected end of data":
            return ()

        # None for a continuation that the teacher's tokenizer rules out: it does not limit the shared tokens.
        def tokens(more: bytes) -> tuple[int, ...] | None:
            if more and teacher and not teacher.cuts(beginning + more, len(before), len(beginning)):
                return None
            return self._encode_inside(beginning.decode("utf-8", "replace") + more.decode("utf-8", "replace"), first)

        shared = tokens(b"") or ()
        for letter in _NEXT_LETTERS:
            if not shared:
                return ()
            shared = _common_prefix(shared, tokens(letter))
        # Several more letters may still complete a longer piece and change these tokens. So for each token, try the pieces
        # that begin with the text from this token on.
        pieces = [self.encoder.vocabulary.bytes_of(token) or b"" for token in shared]
        spelled = self.encoder.vocabulary.split(list(shared)) if first else pieces
        left = len(beginning)
        for index, piece in enumerate(spelled):
            # A dummy space is in the first piece, but not in the text.
            dummy = pieces[index][: len(pieces[index]) - len(piece)]
            rest = dummy + beginning[len(beginning) - left :]
            left -= len(piece)
            # T5's normalizer replaces a newline by a space. A pre-token has whitespace only at its start.
            longer = self._longer_pieces(rest.replace(b"\n", b" ") if index == 0 else rest)
            if len(longer) > MAX_LONGER_PIECES:
                return shared[:index]
            if any(len(_common_prefix(shared, tokens(more))) <= index for more in longer):
                return shared[:index]
        return shared

    def _longer_pieces(self, start: bytes) -> list[bytes]:
        """The rest of each piece that begins with `start`, for at most MAX_LONGER_PIECES + 1 pieces."""
        # Pieces with the same beginning are adjacent in sorted order.
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
    """Whether a byte is whitespace, which begins a pre-token after a visible byte. False for an empty string."""
    return byte != b"" and byte in WHITESPACE


def _last_possible_boundary(text: bytes, end: int) -> int:
    """The position, at or before `end`, of the last whitespace byte after a visible byte; 0 if there is none. It is a
    boundary unless a piece crosses it."""
    if _BOUNDARY.match(text, end):
        return end
    last = 0
    while match := _BOUNDARY.search(text, last + 1, end):
        last = match.start()
    return last


def _crossing_pieces(vocabulary: Vocabulary, library: Any) -> dict[bytes, list[tuple[bytes, bytes, int]]]:
    """The pieces that cross a possible boundary, as (bytes before it, bytes after it, token), the shortest piece first.

    The keys are the two bytes around the boundary, because every possible boundary of a text is looked up.
    """
    crossing: dict[bytes, list[tuple[bytes, bytes, int]]] = defaultdict(list)
    for token, piece in enumerate(vocabulary.table):
        if piece and len(piece) > 1:
            for match in _BOUNDARY.finditer(piece, 1):
                cut = match.start()
                crossing[piece[cut - 1 : cut + 1]].append((piece[:cut], piece[cut:], token))
    added_tokens = getattr(library, "get_added_tokens_decoder", dict)()
    for token, added in added_tokens.items():  # an added token may include the whitespace after it
        if added.rstrip and not added.special and added.content.strip():
            name = added.content.encode()
            for white in WHITESPACE:
                crossing[name[-1:] + bytes([white])].append((name, bytes([white]), token))
    return {key: sorted(rows, key=lambda row: len(row[0]) + len(row[1])) for key, rows in crossing.items()}


def _joins_newlines(library: Any) -> bool:
    """Whether the pre-tokenizer joins newlines to the sign before them (`[^\\s\\p{L}\\p{N}]+[\\r\\n]*`), so that it splits
    whitespace after a sign differently."""
    # An example decides, because the pattern of a pre-tokenizer can be written in many ways.
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
    """The reason why the bytes are not UTF-8; None if they are."""
    try:
        data.decode("utf-8")
    except UnicodeDecodeError as error:
        return error.reason
    return None
