"""Matching: which of a server's entries speak of a text. A server may hide or change what a model thought, and still
list the log-probabilities of it; they must not come to stand on the words of the answer.

    >>> said = [Step(token.encode(), token, -0.1, ()) for token in ["<think>", "4", "?", "</think>", "4", "."]]
    >>> window(said, b"4."), windows(said, [b"4?", b"4."])
    ((4, 6), [(1, 3), (4, 6)])
"""

from __future__ import annotations

import re
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from itertools import accumulate
from typing import Final

from potstill.teachers.openai.entries import Step

Window = tuple[int, int]  # entries from the first up to, but not with, the second
_NAMES: Final = rb"think|thinking|thought|thoughts|reasoning|seed:think"
_OPENED: Final = re.compile(rb"\s*(?:<(?:%b)>|\[THINK\]|<\|channel\|>\w+<\|message\|>)" % _NAMES, re.IGNORECASE)
_CLOSED: Final = re.compile(rb"</(?:%b)>|\[/THINK\]|<\|channel\|>final<\|message\|>" % _NAMES, re.IGNORECASE)


def window(steps: Sequence[Step], text: bytes) -> Window:
    """The entries of a text that is all that the server shows; all of them where nothing says that some are of another
    text. What comes behind the text (an end, a stop string) is in the window."""
    joined, at = _joined(steps)
    if not text or joined.startswith(text):
        return 0, len(steps)
    found = joined.rfind(text)
    if found > 0:
        return _first(at, found), len(steps)
    closed = None if _CLOSED.search(text) else _last(joined)
    return (_white(steps, _first(at, closed[1]), text) if closed else 0), len(steps)


def windows(steps: Sequence[Step], parts: Sequence[bytes]) -> list[Window]:
    """The entries of each part of a text, in order, of which the last is its answer; an empty window where there are
    none."""
    joined, at = _joined(steps)
    closed, opened = _last(joined), _OPENED.match(joined)
    found: list[Window] = []
    stop = len(steps)
    for place, part in reversed(list(enumerate(parts))):
        start = joined.rfind(part, 0, at[stop]) if part else -1
        own = stop, stop
        if start >= 0:
            first, end = _first(at, start), bisect_left(at, start + len(part))
            own = first, max(first, end if at[end] == start + len(part) else end - 1)
        elif part and place == len(parts) - 1:
            own = (_white(steps, _first(at, closed[1]), part), stop) if closed else own
        elif part and place == 0:
            end = min(stop, bisect_left(at, closed[0])) if closed else stop
            first = _first(at, opened.end()) if opened else 0
            own = min(first, end), end
        found.append(own)
        stop = own[0]
    return found[::-1]


def _joined(steps: Sequence[Step]) -> tuple[bytes, list[int]]:
    """The bytes of all entries, and where each begins; one of unknown bytes has none."""
    pieces = [step.piece if isinstance(step.piece, bytes) else b"" for step in steps]
    return b"".join(pieces), list(accumulate(map(len, pieces), initial=0))


def _first(at: Sequence[int], start: int) -> int:
    """The first entry that begins at a byte or behind it; of those without bytes that stand right before it, none."""
    found = bisect_left(at, start)
    return bisect_right(at, start) - 1 if at[found] == start else found


def _white(steps: Sequence[Step], first: int, text: bytes) -> int:
    """The first entry behind white space that the text does not begin with: servers strip it."""
    while first < len(steps):
        piece = steps[first].piece
        if not isinstance(piece, bytes) or not piece or piece.strip() or text.startswith(piece):
            break
        first += 1
    return first


def _last(joined: bytes) -> tuple[int, int] | None:
    """Where the last tag that closes a thought begins and ends."""
    tags = list(_CLOSED.finditer(joined))
    return tags[-1].span() if tags else None
