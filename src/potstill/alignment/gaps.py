"""Aligning tokens by their own bytes, where the two texts agree and where they do not.

    >>> teacher, student = [b"4", b" \\xc3\\x97", b" 3"], [b"", b" 4", None, b"3"]  # BOS; a sign without a piece
    >>> [(list(chunk.teacher), list(chunk.student), chunk.kind) for chunk in align_pieces(teacher, student)]
    [([0], [0, 1], 'split'), ([1], [2], 'same'), ([2], [3], 'same')]

The canonical texts of both sides are walked together. Where they part, the nearest place is sought from which both say
the same again, and only what lies between, the gap, is aligned by edit distance. Behind a gap nothing depends on it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from potstill.alignment.char_spans import SpanAlignment, spans
from potstill.alignment.time_warping import NormalizedText, normalize_text
from potstill.records import token_spans

RESYNC_LENGTH: Final = 6  # letters that must be the same for the two texts to be together again
MAX_GAP: Final = 64  # letters that a gap may hold on both sides together; beyond that by whole stretches of text
MAX_GAP_CELLS: Final = 40_000  # of a gap that is aligned letter by letter; in a larger one all tokens share one place
UNKNOWN_LETTER: Final = "\x00"  # stands for an unknown token: any letters
Range = tuple[int, int]


def align_pieces(teacher: Sequence[bytes], student: Sequence[bytes | None]) -> SpanAlignment:
    """Align two tokenizations of which only the bytes of the tokens are known, and whose texts may differ: in case, in
    Unicode form, in white space, by unknown tokens.

    student  None for the unknown token, which stands for any letters; empty for what is no text (BOS)
    """
    own = normalize_text(b"".join(teacher))
    theirs, ranges = _normalize_pieces(student)
    places = _byte_ranges(own, theirs, _match_letters(own.text, theirs))
    reached, found = 0, []
    for low, high in ranges:
        covered = [place for place in places[low:high] if place is not None]
        start = min((start for start, _ in covered), default=reached)
        end = max((end for _, end in covered), default=start)
        found.append((start, end))
        reached = max(reached, end)
    return spans(token_spans(teacher), found)


def _normalize_pieces(student: Sequence[bytes | None]) -> tuple[str, list[Range]]:
    """The canonical text of the pieces, and which of its letters each of them has."""
    known = normalize_text(b"".join(piece or b"" for piece in student))
    text: list[str] = []
    ranges: list[Range] = []
    letter = at = 0
    for piece in student:
        low = len(text)
        if piece is None:
            text.append(UNKNOWN_LETTER)
        at += len(piece or b"")
        # A letter whose bytes lie in several pieces belongs to the one that ends it.
        while letter < len(known.text) and known.ends[letter] <= at:
            text.append(known.text[letter])
            letter += 1
        ranges.append((low, len(text)))
    return "".join(text), ranges


def _match_letters(own: str, theirs: str) -> list[Range]:
    """[letters of theirs] the range of letters of `own` that each stands for; empty ranges for what is added."""
    found: list[Range] = []
    i = j = 0
    while i < len(own) or j < len(theirs):
        if i < len(own) and j < len(theirs) and own[i] == theirs[j]:
            found.append((i, i + 1))
            i, j = i + 1, j + 1
            continue
        behind_i, behind_j = _resynchronize(own, theirs, i, j)
        found += _align_gap(own[i:behind_i], theirs[j:behind_j], i)
        i, j = behind_i, behind_j
    return found


def _resynchronize(own: str, theirs: str, i: int, j: int) -> Range:
    """The nearest places, behind i and j, from which the two say the same; the ends where there are none."""
    for apart in range(1, MAX_GAP + 1):
        for step in range(apart + 1):
            a, b = i + step, j + apart - step
            if a > len(own) or b > len(theirs):
                continue
            if own[a : a + RESYNC_LENGTH] == theirs[b : b + RESYNC_LENGTH] and (
                len(own) - a >= RESYNC_LENGTH or len(own) - a == len(theirs) - b
            ):
                return a, b
    # A longer gap: the first stretch of their text that comes again in ours, no farther than its length away.
    for b in range(j, min(j + 64 * MAX_GAP, len(theirs) - 4 * RESYNC_LENGTH)):
        a = own.find(theirs[b : b + 4 * RESYNC_LENGTH], i, i + 2 * (b - j) + 64 * MAX_GAP)
        if a >= 0:
            return a, b
    return len(own), len(theirs)


def _align_gap(own: str, theirs: str, start: int) -> list[Range]:
    """Least edit distance inside a gap. Letters of ours that nothing stands for belong to the letter before them."""
    rows, columns = len(own), len(theirs)
    if rows * columns > MAX_GAP_CELLS or not rows:
        return [(start, start + rows)] * columns
    cost = [[float(j) for j in range(columns + 1)]]
    for i in range(1, rows + 1):
        row = [float(i)]
        for j in range(1, columns + 1):
            change = 0.0 if own[i - 1] == theirs[j - 1] else 0.5 if theirs[j - 1] == UNKNOWN_LETTER else 1.5
            row.append(min(cost[i - 1][j - 1] + change, cost[i - 1][j] + 1, row[j - 1] + 1))
        cost.append(row)
    i, j = rows, columns
    found = [(0, 0)] * columns
    end = rows
    while j:
        change = 0.0 if i and own[i - 1] == theirs[j - 1] else 0.5 if theirs[j - 1] == UNKNOWN_LETTER else 1.5
        if i and cost[i][j] == cost[i - 1][j - 1] + change:
            i, j = i - 1, j - 1
            found[j] = (start + i, start + end)
            end = i
        elif cost[i][j] == cost[i][j - 1] + 1:
            j -= 1
            found[j] = (start + end, start + end)
        else:
            i -= 1
    if end and columns:  # what stands before the first letter belongs to that
        first = next((place for place in range(columns) if found[place][0] < found[place][1]), 0)
        found[first] = (start, max(found[first][1], start + end))
    return found


def _byte_ranges(own: NormalizedText, theirs: str, matched: list[Range]) -> list[Range | None]:
    """[letters of theirs] the bytes of our text; None for an added letter."""
    return [(own.starts[low], own.ends[high - 1]) if low < high else None for low, high in matched]
