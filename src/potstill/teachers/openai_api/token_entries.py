"""Entries: what a server says of each token of a text, step by step, whichever form it says it in.

>>> listing = Logprobs(tokens=[" 4", "token_id:17"], token_logprobs=[-0.1, -0.2])
>>> read_entries(Choice(text=" 4", logprobs=listing), ReaderContext("teacher", "raw"))[1]
TokenEntry(piece=b'', name=17, value=-0.2, tops=[])

Matching: which of a server's entries speak of a text. A server may hide or change what a model thought, and still
list the log-probabilities of it; they must not come to stand on the words of the answer.

    >>> said = [TokenEntry(token.encode(), token, -0.1, ()) for token in ["<think>", "4", "?", "</think>", "4", "."]]
    >>> match_text(said, b"4."), match_parts(said, [b"4?", b"4."])
    ((4, 6), [(1, 3), (4, 6)])

Placing: where tokens stand in a text, of some of which the bytes are unknown or the entry is missing.

>>> defects = set()
>>> content, places = locate_tokens("é 4", [b"", "é".encode(), b" 4"], defects)     # the second is é, seen with the first
>>> [(content[p.start : p.end], p.prefix) for p in places if p], defects
([(b'\\xc3', b''), (b'\\xa9', b'\\xc3'), (b' 4', b'')], set())
>>> content, places = locate_tokens("a é 4", [b"a", b"\\xa9", b" 4"], defects)        # the entry of b" \\xc3" is not there
>>> [(p.start, p.end) for p in places], defects
([(0, 1), (3, 4), (4, 6)], {'entries missing'})
"""

from __future__ import annotations

import re
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Final, Literal, NamedTuple

from potstill.records import END, End, Semantics, token_spans
from potstill.teachers.openai_api.response import Choice, Logprobs, TokenOutcome, token_bytes

LearntPart = Literal["both", "reasoning", "answer"]
# None: another special token, or bytes that cannot be told; empty: only bytes of an unfinished character
Piece = bytes | End | None


@dataclass(frozen=True, slots=True)
class ReaderContext:
    """What is known of a server when its bodies are read.

    pieces  id and position in the text -> what the token means there, where the teacher's tokenizer is at hand
    ends    the strings by which the server names the end
    learn   which part of a reasoning model's answer becomes the chain
    stops   whether stop strings were sent: then a text that ends without an entry for the end was cut at one
    """

    source: str
    semantics: Semantics
    pieces: Callable[[int, int], Piece] | None = None
    ends: frozenset[str] = frozenset()
    learn: LearntPart = "both"
    stops: bool = False


class TokenEntry(NamedTuple):
    """One entry. `name` is its id, else its string; tops are (piece, name, log-probability or None)."""

    piece: Piece
    name: int | str
    value: float | None
    tops: Sequence[tuple[Piece, int | str, float | None]]


def read_entries(choice: Choice, reader: ReaderContext) -> list[TokenEntry]:
    """The entries of a choice, in order; none where it has no log-probabilities."""
    listing = choice.logprobs
    if listing is None:
        return []
    if listing.content is not None:
        return [_read_entry(entry, position, reader) for position, entry in enumerate(listing.content)]
    return _read_parallel_lists(listing, reader)


def _read_entry(entry: TokenOutcome, position: int, reader: ReaderContext) -> TokenEntry:
    tops = [
        (_read_piece(one.token, token_bytes(one), one.id, position, reader), _name_of(one), one.logprob)
        for one in getattr(entry, "top_logprobs", None) or ()
    ]
    name, piece = _name_of(entry), _read_piece(entry.token, token_bytes(entry), entry.id, position, reader)
    if isinstance(name, int) and reader.pieces is None:
        # The bytes of an entry may also hold those of entries that were left out; among the outcomes they are its own.
        piece = next((own for own, other, _ in tops if other == name), piece)
    return TokenEntry(piece, name, entry.logprob, tops)


def _read_parallel_lists(listing: Logprobs, reader: ReaderContext) -> list[TokenEntry]:
    tokens, values = listing.tokens or [], listing.token_logprobs or []
    tops = listing.top_logprobs or []
    found = []
    for position, token in enumerate(tokens):
        shown = (tops[position] if position < len(tops) else None) or {}
        found.append(
            TokenEntry(
                _read_piece(token or "", None, None, position, reader),
                _parse_token_id(token or ""),
                values[position] if position < len(values) else None,
                [
                    (_read_piece(what, None, None, position, reader), _parse_token_id(what), value)
                    for what, value in shown.items()
                ],
            )
        )
    return found


def _name_of(one: TokenOutcome) -> int | str:
    return one.id if one.id is not None else _parse_token_id(one.token)


def _parse_token_id(token: str) -> int | str:
    """vLLM writes `token_id:17` if it is asked to."""
    told = token[9:19] if token.startswith("token_id:") else ""
    return int(told) if len(token) < 20 and told.isascii() and told.isdecimal() else token


def _read_piece(token: str, told: bytes | None, number: int | None, position: int, reader: ReaderContext) -> Piece:
    if number is None and isinstance(known := _parse_token_id(token), int):
        number, token = known, ""
    if number is not None and reader.pieces is not None:
        return reader.pieces(number, position)
    if token in reader.ends:
        return END
    if told and (told != b"\xef\xbf\xbd" or "�" not in token):
        return told
    return token.encode("utf-8", "replace") if "�" not in token else None


Window = tuple[int, int]  # entries from the first up to, but not with, the second
_THOUGHT_NAMES: Final = rb"think|thinking|thought|thoughts|reasoning|seed:think"
_OPENING_TAG: Final = re.compile(
    rb"\s*(?:<(?:%b)>|\[THINK\]|<\|channel\|>\w+<\|message\|>)" % _THOUGHT_NAMES, re.IGNORECASE
)
_CLOSING_TAG: Final = re.compile(
    rb"</(?:%b)>|\[/THINK\]|<\|channel\|>final<\|message\|>" % _THOUGHT_NAMES, re.IGNORECASE
)


def match_text(steps: Sequence[TokenEntry], text: bytes) -> Window:
    """The entries of a text that is all that the server shows; all of them where nothing says that some are of another
    text. What comes behind the text (an end, a stop string) is in the window."""
    joined, at = _join_entries(steps)
    if not text or joined.startswith(text):
        return 0, len(steps)
    found = joined.rfind(text)
    if found > 0:
        return _first_entry(at, found), len(steps)
    closed = None if _CLOSING_TAG.search(text) else _last_closing_tag(joined)
    return (_skip_whitespace(steps, _first_entry(at, closed[1]), text) if closed else 0), len(steps)


def match_parts(steps: Sequence[TokenEntry], parts: Sequence[bytes]) -> list[Window]:
    """The entries of each part of a text, in order, of which the last is its answer; an empty window where there are
    none."""
    joined, at = _join_entries(steps)
    closed, opened = _last_closing_tag(joined), _OPENING_TAG.match(joined)
    found: list[Window] = []
    stop = len(steps)
    for place, part in reversed(list(enumerate(parts))):
        start = joined.rfind(part, 0, at[stop]) if part else -1
        own = stop, stop
        if start >= 0:
            first, end = _first_entry(at, start), bisect_left(at, start + len(part))
            own = first, max(first, end if at[end] == start + len(part) else end - 1)
        elif part and place == len(parts) - 1:
            own = (_skip_whitespace(steps, _first_entry(at, closed[1]), part), stop) if closed else own
        elif part and place == 0:
            end = min(stop, bisect_left(at, closed[0])) if closed else stop
            first = _first_entry(at, opened.end()) if opened else 0
            own = min(first, end), end
        found.append(own)
        stop = own[0]
    return found[::-1]


def _join_entries(steps: Sequence[TokenEntry]) -> tuple[bytes, list[int]]:
    """The bytes of all entries, and where each begins; one of unknown bytes has none."""
    pieces = [step.piece if isinstance(step.piece, bytes) else b"" for step in steps]
    return b"".join(pieces), list(accumulate(map(len, pieces), initial=0))


def _first_entry(at: Sequence[int], start: int) -> int:
    """The first entry that begins at a byte or behind it; of those without bytes that stand right before it, none."""
    found = bisect_left(at, start)
    return bisect_right(at, start) - 1 if at[found] == start else found


def _skip_whitespace(steps: Sequence[TokenEntry], first: int, text: bytes) -> int:
    """The first entry behind white space that the text does not begin with: servers strip it."""
    while first < len(steps):
        piece = steps[first].piece
        if not isinstance(piece, bytes) or not piece or piece.strip() or text.startswith(piece):
            break
        first += 1
    return first


def _last_closing_tag(joined: bytes) -> tuple[int, int] | None:
    """Where the last tag that closes a thought begins and ends."""
    tags = list(_CLOSING_TAG.finditer(joined))
    return tags[-1].span() if tags else None


MAX_GAP_BYTES = 64  # bytes without an entry that may stand before a token
REPLACEMENT = "�".encode()


class TokenSpan(NamedTuple):
    """Bytes start to end; `prefix` are those of the same character that tokens of unknown bytes gave before it."""

    start: int
    end: int
    prefix: bytes = b""


def consecutive_spans(pieces: Sequence[bytes]) -> list[TokenSpan | None]:
    """The places of tokens that make the text one after the other."""
    return [TokenSpan(start, end) for start, end in token_spans(pieces)]


def locate_tokens(
    text: str, pieces: Sequence[bytes | End | None], defects: set[str]
) -> tuple[bytes, list[TokenSpan | None]]:
    """The content, and the place of each piece in it; None where its bytes or its place cannot be told.

    pieces  bytes; empty for a token that gave only bytes of an unfinished character; None for one that is not known

    The content is the text, but where the text has U+FFFD for a byte that a piece knows, it has that byte.
    """
    walk = _TokenLocator(text.encode("utf-8", "replace"), len(pieces))
    for number, piece in enumerate(pieces):
        if not isinstance(piece, bytes) or not piece:
            walk.waiting.append(number)
            walk.bare = walk.bare and piece == b""
        elif not walk.take(number, piece, defects):
            break
    walk.finish(defects)
    return bytes(walk.content), walk.places


class _TokenLocator:
    def __init__(self, rest: bytes, count: int) -> None:
        self.rest, self.at = rest, 0
        self.content = bytearray()
        self.places: list[TokenSpan | None] = [None] * count
        self.waiting: list[int] = []
        self.bare = True  # those that wait gave nothing but bytes of one character

    def take(self, number: int, piece: bytes, defects: set[str]) -> bool:
        """Place a piece; False where the text ends before it."""
        stripped = self.at == 0 and not self.waiting and piece[:1] == b" " and not self.rest.startswith(b" ")
        if stripped and self.rest.startswith(piece[1:]):
            piece = piece[1:] or piece
        if self.waiting and self._completes(number, piece):
            return True
        if not self.waiting and self.rest.startswith(REPLACEMENT, self.at) and not _is_utf8(piece):
            self._put(number, piece, len(REPLACEMENT))
            return True
        found = self.rest.find(piece, self.at, self.at + MAX_GAP_BYTES + len(piece))
        if found < 0:
            left = self.rest[self.at :]
            if not left and not _is_utf8(piece):  # a text that ends inside a character, whose bytes a text cannot show
                self._put(number, piece, 0)
                return True
            if piece.startswith(left):  # a stop string cut the text off here
                defects.add("tokens beyond the text")
                return False
            defects.add("entries missing")
            return True
        self._settle(found, defects)
        self._put(number, piece, len(piece))
        return True

    def _completes(self, number: int, piece: bytes) -> bool:
        """A string that is a whole character, given for the token that finished it, after tokens without a string."""
        first = len(piece.decode("utf-8", "replace")[:1].encode())
        if first < 2 or not self.rest.startswith(piece, self.at):
            return False
        if self.rest.find(piece, self.at + 1, self.at + 4 * len(self.waiting) + len(piece)) >= 0:
            self.waiting.append(number)  # those that wait may be whole characters before it: the text has it twice
            self.bare = False
        elif self.bare and len(self.waiting) + 1 == first:  # each gave one byte: the only possibility
            for done, other in enumerate(self.waiting):
                self._put(other, piece[done : done + 1], 1, piece[:done])
            self._clear()
            self._put(number, piece[first - 1 :], len(piece) - first + 1, piece[: first - 1])
        else:
            self.waiting.append(number)
            self.bare = False
            self._skip(self.at + len(piece))
        return True

    def _settle(self, found: int, defects: set[str]) -> None:
        """What stands before `found` belongs to the tokens that wait, or to none."""
        gap = found - self.at
        if self.waiting and self.bare and gap == len(self.waiting):
            start = self.at
            for other in self.waiting:
                prefix = _unfinished_bytes(self.rest[start : self.at])
                self._put(other, self.rest[self.at : self.at + 1], 1, prefix)
        elif self.waiting:
            defects.add("bytes unknown")
        elif gap:
            defects.add("entries missing")
        self._clear()
        self._skip(found)

    def finish(self, defects: set[str]) -> None:
        if self.waiting or self.at < len(self.rest):
            if "tokens beyond the text" in defects:
                self._clear()
                self._skip(len(self.rest))
            else:
                self._settle(len(self.rest), defects)

    def _clear(self) -> None:
        self.waiting.clear()
        self.bare = True

    def _put(self, number: int, piece: bytes, wide: int, prefix: bytes = b"") -> None:
        start = len(self.content)
        self.content += piece
        self.at += wide
        self.places[number] = TokenSpan(start, len(self.content), prefix)

    def _skip(self, to: int) -> None:
        self.content += self.rest[self.at : to]
        self.at = to


def _is_utf8(piece: bytes) -> bool:
    try:
        piece.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True


def _unfinished_bytes(piece: bytes) -> bytes:
    """The bytes at the end that are not yet a character."""
    for size in range(1, min(4, len(piece) + 1)):
        tail = piece[-size:]
        if tail[0] >= 0xC0:
            return tail if not _is_utf8(tail) else b""
    return b""
