"""Placing: where tokens stand in a text, of some of which the bytes are unknown or the entry is missing.

>>> defects = set()
>>> content, places = place("é 4", [b"", "é".encode(), b" 4"], defects)     # the second is é, seen with the first
>>> [(content[p.start : p.end], p.prefix) for p in places if p], defects
([(b'\\xc3', b''), (b'\\xa9', b'\\xc3'), (b' 4', b'')], set())
>>> content, places = place("a é 4", [b"a", b"\\xa9", b" 4"], defects)        # the entry of b" \\xc3" is not there
>>> [(p.start, p.end) for p in places], defects
([(0, 1), (3, 4), (4, 6)], {'entries missing'})
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from potstill.records import End, running_spans

NEAR = 64  # bytes without an entry that may stand before a token
UNKNOWN = "�".encode()


class Place(NamedTuple):
    """Bytes start to end; `prefix` are those of the same character that tokens of unknown bytes gave before it."""

    start: int
    end: int
    prefix: bytes = b""


def running(pieces: Sequence[bytes]) -> list[Place | None]:
    """The places of tokens that make the text one after the other."""
    return [Place(start, end) for start, end in running_spans(pieces)]


def place(text: str, pieces: Sequence[bytes | End | None], defects: set[str]) -> tuple[bytes, list[Place | None]]:
    """The content, and the place of each piece in it; None where its bytes or its place cannot be told.

    pieces  bytes; empty for a token that gave only bytes of an unfinished character; None for one that is not known

    The content is the text, but where the text has U+FFFD for a byte that a piece knows, it has that byte.
    """
    walk = _Walk(text.encode("utf-8", "replace"), len(pieces))
    for number, piece in enumerate(pieces):
        if not isinstance(piece, bytes) or not piece:
            walk.waiting.append(number)
            walk.bare = walk.bare and piece == b""
        elif not walk.take(number, piece, defects):
            break
    walk.finish(defects)
    return bytes(walk.content), walk.places


class _Walk:
    def __init__(self, rest: bytes, count: int) -> None:
        self.rest, self.at = rest, 0
        self.content = bytearray()
        self.places: list[Place | None] = [None] * count
        self.waiting: list[int] = []
        self.bare = True  # those that wait gave nothing but bytes of one character

    def take(self, number: int, piece: bytes, defects: set[str]) -> bool:
        """Place a piece; False where the text ends before it."""
        stripped = self.at == 0 and not self.waiting and piece[:1] == b" " and not self.rest.startswith(b" ")
        if stripped and self.rest.startswith(piece[1:]):
            piece = piece[1:] or piece
        if self.waiting and self._completes(number, piece):
            return True
        if not self.waiting and self.rest.startswith(UNKNOWN, self.at) and not _whole(piece):
            self._put(number, piece, len(UNKNOWN))
            return True
        found = self.rest.find(piece, self.at, self.at + NEAR + len(piece))
        if found < 0:
            left = self.rest[self.at :]
            if not left and not _whole(piece):  # a text that ends inside a character, whose bytes a text cannot show
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
                prefix = _unfinished(self.rest[start : self.at])
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
        self.places[number] = Place(start, len(self.content), prefix)

    def _skip(self, to: int) -> None:
        self.content += self.rest[self.at : to]
        self.at = to


def _whole(piece: bytes) -> bool:
    try:
        piece.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True


def _unfinished(piece: bytes) -> bytes:
    """The bytes at the end that are not yet a character."""
    for size in range(1, min(4, len(piece) + 1)):
        tail = piece[-size:]
        if tail[0] >= 0xC0:
            return tail if not _whole(tail) else b""
    return b""
