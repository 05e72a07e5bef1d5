"""Which tokens of a teacher and of a student stand for the same text.

    >>> aligned = dtw(["W", "eng", " earns", " $", "12", ".", "\\n", "She"], "▁We ng ▁earn s ▁$12 . ▁She".split())
    >>> aligned.cost, aligned.groups
    (6.0, ((0,), (1,), (2,), (3,), (4,), (5, 6), (7,)))

    >>> #             W      eng     earns   $12
    >>> teacher = [(0, 1), (1, 4), (4, 10), (10, 14)]
    >>> student = [(0, 2), (2, 4), (4, 9), (9, 10), (10, 14)]  # We ng earn s $12
    >>> for chunk in spans(teacher, student):
    ...     print(list(chunk.teacher), list(chunk.student), chunk.kind)
    [0, 1] [0, 1] mixed
    [2] [2, 3] split
    [3] [4] same

`dtw` is the published method (PAPER section 4), which compares strings; `spans` is exact and linear, and compares
places in one text. Both are pure.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import ArrayLike
from rapidfuzz.distance import Levenshtein
from rapidfuzz.process import cdist

from potstill.errors import UserError
from potstill.records import Kind

LIMIT: Final = 10**8  # cells of dynamic time warping: at most about 12 bytes each
KINDS: Final[tuple[Kind, ...]] = ("same", "merged", "split", "mixed")
Span = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Warping:
    """cost    the least sum of edit distances; infinite where only one side has tokens
    groups  [students] for each student token the teacher tokens that it is aligned to, ascending
    """

    cost: float
    groups: tuple[tuple[int, ...], ...]


def dtw(teacher: Sequence[str], student: Sequence[str]) -> Warping:
    """Dynamic time warping between two sequences of token strings, by the recurrence of Fu et al. (PAPER section 4):

        f(i, j) = c(i, j) + min(f(i - 1, j), f(i, j - 1), f(i - 1, j - 1)),  f(0, 0) = 0, infinite at the other borders,
        c(i, j) = Levenshtein(teacher i without " ", student j without "▁")

    with no gap penalty. On a tie the way back prefers the diagonal, then the step of the teacher.
    Time and memory are proportional to the cells; raises UserError above 10^8 of them.
    """
    rows, columns = len(teacher), len(student)
    if rows * columns > LIMIT:
        do = "align shorter texts, or use the rule `span`, which is linear"
        raise UserError("too long for dynamic time warping", found=f"{rows} x {columns} tokens", do=do)
    if not rows or not columns:
        return Warping(0.0 if rows == columns else math.inf, ((),) * columns)
    of_teacher, own = _distinct([token.replace(" ", "") for token in teacher])
    of_student, theirs = _distinct([token.replace("▁", "") for token in student])
    distances = cdist(own, theirs, scorer=Levenshtein.distance, dtype=np.int32)
    # Whole numbers keep the subtraction below exact. Infinity must stay above every sum in the row that it enters.
    kind = np.int32 if int(distances.max()) * (rows + columns) < 2**29 else np.int64
    infinity = np.iinfo(kind).max // 2
    sums = np.zeros((len(own), columns + 1), kind)
    np.cumsum(distances[:, of_student], axis=1, dtype=kind, out=sums[:, 1:])
    least = np.full((rows + 1, columns + 1), infinity, kind)
    least[0, 0] = 0
    best = np.empty(columns, kind)
    for row, distinct in enumerate(of_teacher, 1):
        # A run along the row from column k costs sums[j] - sums[k - 1]: what enters at k, less what lies before it, is
        # comparable for every k, so the best entry up to j is a running minimum.
        np.minimum(least[row - 1, 1:], least[row - 1, :-1], out=best)
        np.subtract(best, sums[distinct, :-1], out=best)
        np.minimum.accumulate(best, out=best)
        np.add(best, sums[distinct, 1:], out=least[row, 1:])
    return Warping(float(least[rows, columns]), _way_back(least))


def _distinct(tokens: Sequence[str]) -> tuple[list[int], list[str]]:
    places: dict[str, int] = {}
    return [places.setdefault(token, len(places)) for token in tokens], list(places)


def _way_back(least: np.ndarray) -> tuple[tuple[int, ...], ...]:
    i, j = least.shape[0] - 1, least.shape[1] - 1
    groups: list[list[int]] = [[] for _ in range(j)]
    while i and j:
        groups[j - 1].append(i - 1)
        diagonal, up, left = least[i - 1, j - 1], least[i - 1, j], least[i, j - 1]
        if diagonal <= up and diagonal <= left:
            i, j = i - 1, j - 1
        elif up <= left:
            i -= 1
        else:
            j -= 1
    return tuple(tuple(reversed(group)) for group in groups)


@dataclass(frozen=True, slots=True)
class Chunk:
    """A stretch of text that begins and ends with whole tokens on both sides.

    kind  same: one token on each side; merged: several of the teacher's make one of the student's; split: one of the
          teacher's is several of the student's; mixed: anything else, so also where one side has no token
    """

    teacher: range
    student: range
    kind: Kind


@dataclass(frozen=True, slots=True, eq=False)
class Chunks:
    """The minimal common chunks of two tokenizations, in order; every token of both lies in exactly one.

    teacher, student  [n + 1] chunk k owns tokens teacher[k] to teacher[k + 1]
    kinds             [n] uint8, places in KINDS
    """

    teacher: np.ndarray
    student: np.ndarray
    kinds: np.ndarray

    def __len__(self) -> int:
        return len(self.kinds)

    def __iter__(self) -> Iterator[Chunk]:
        own, theirs = self.teacher.tolist(), self.student.tolist()
        for place, kind in enumerate(self.kinds.tolist()):
            yield Chunk(range(*own[place : place + 2]), range(*theirs[place : place + 2]), KINDS[kind])


def spans(teacher: Sequence[Span] | np.ndarray, student: Sequence[Span] | np.ndarray) -> Chunks:
    """Align two tokenizations of one text by where their tokens lie in it, in linear time.

    teacher, student  [n, 2] start and end of each token, in the same unit (bytes) of the same text

    What no student span covers (white space that its tokenizer collapses or drops) has no width: lengths are counted
    in covered text. A token without width (a newline that the student drops, a dummy space) joins the chunk that
    *follows*, for what it decides is what comes next; at the end of the text it is a chunk with nothing on the other
    side. Tokens that overlap (several in one character) stay together. Where the teacher's tokens leave a hole, the
    student's tokens in it make a chunk without a teacher token.
    """
    own, theirs = _Side(teacher), _Side(student)
    cover = _Cover(theirs)
    inner = theirs.borders
    cuts, places = _first([[0], cover.done[inner - 1], [cover.total]], [[0], inner, [len(theirs)]])
    starts, stops = cover.at(own.lows), cover.at(own.highs)
    inner = own.borders
    # A border has two sides: they differ where the teacher's tokens leave a hole.
    sides = np.stack([stops[inner - 1], starts[inner]], axis=1).ravel()
    ends = [0] * len(starts[:1]), [len(own)] * len(stops[-1:])
    teacher_cuts, teacher_places = _first(
        [[0], starts[:1], sides, stops[-1:], [cover.total]], [[0], ends[0], inner.repeat(2), ends[1], [len(own)]]
    )
    common, in_teacher, in_student = np.intersect1d(teacher_cuts, cuts, assume_unique=True, return_indices=True)
    bounds = np.stack([teacher_places[in_teacher], places[in_student]])
    if tuple(bounds[:, -1]) != (len(own), len(theirs)):
        bounds = np.concatenate([bounds, [[len(own)], [len(theirs)]]], axis=1)
        common = np.append(common, cover.total)
    teachers, students = np.diff(bounds, axis=1)
    width = np.diff(common)
    filled = np.zeros(len(width), bool)
    lone = bounds[0, :-1][teachers == 1]
    filled[teachers == 1] = stops[lone] - starts[lone] == width[teachers == 1]
    kinds = np.full(len(width), KINDS.index("mixed"), np.uint8)
    kinds[(teachers == 1) & (students > 1)] = KINDS.index("split")
    kinds[(teachers > 1) & (students == 1)] = KINDS.index("merged")
    kinds[(teachers == 1) & (students == 1) & filled & (width > 0)] = KINDS.index("same")
    return Chunks(bounds[0], bounds[1], kinds)


class _Side:
    """One tokenization: before token i nothing ends after highs[i - 1], from it on nothing begins before lows[i]."""

    def __init__(self, spans: Sequence[Span] | np.ndarray) -> None:
        self.spans = np.asarray(spans, np.int64).reshape(-1, 2)
        self.highs = np.maximum.accumulate(self.spans[:, 1])
        self.lows = np.minimum.accumulate(self.spans[::-1, 0])[::-1]
        # Tokens 0 to border - 1 and the rest share no byte.
        self.borders = np.flatnonzero(self.highs[:-1] <= self.lows[1:]) + 1

    def __len__(self) -> int:
        return len(self.spans)


class _Cover:
    """Places in a text, counted in what the student's tokens cover of it."""

    def __init__(self, side: _Side) -> None:
        before = np.concatenate([[0], side.highs[:-1]])[: len(side)]
        self.starts = np.maximum(side.spans[:, 0], before)
        self.widths = np.maximum(side.highs - self.starts, 0)
        self.done = np.cumsum(self.widths)
        self.total = int(self.done[-1]) if len(side) else 0

    def at(self, places: np.ndarray) -> np.ndarray:
        if not len(self.starts):
            return np.zeros(len(places), np.int64)
        owner = np.searchsorted(self.starts, places, side="right") - 1
        inside = np.clip(places - self.starts[owner], 0, self.widths[owner])
        return np.where(owner < 0, 0, self.done[owner] - self.widths[owner] + inside)


def _first(cuts: Sequence[ArrayLike], places: Sequence[ArrayLike]) -> tuple[np.ndarray, np.ndarray]:
    """Each cut once, with the first of its places: what has no width at a cut comes after it."""
    all_cuts, all_places = np.concatenate([*map(np.asarray, cuts)]), np.concatenate([*map(np.asarray, places)])
    keep = np.concatenate([[True], all_cuts[1:] != all_cuts[:-1]])
    return all_cuts[keep].astype(np.int64), all_places[keep].astype(np.int64)
