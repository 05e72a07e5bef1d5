"""The minimal common chunks of two tokenizations of one text.

>>> [chunk.kind for chunk in spans([(0, 2), (2, 4)], [(0, 2), (2, 3), (3, 4)])]
['same', 'split']
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import ArrayLike

from potstill.records import TargetKind

CHUNK_KINDS: Final[tuple[TargetKind, ...]] = ("same", "merged", "split", "mixed")
Span = tuple[int, int]
_ZERO: Final = np.zeros(1, np.int64)


@dataclass(frozen=True, slots=True)
class Chunk:
    """A stretch of text that begins and ends with whole tokens on both sides.

    kind  same: one token on each side; merged: several of the teacher's make one of the student's; split: one of the
          teacher's is several of the student's; mixed: anything else, so also where one side has no token
    """

    teacher: range
    student: range
    kind: TargetKind


@dataclass(frozen=True, slots=True, eq=False)
class SpanAlignment:
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
            yield Chunk(range(*own[place : place + 2]), range(*theirs[place : place + 2]), CHUNK_KINDS[kind])


def spans(teacher: Sequence[Span] | np.ndarray, student: Sequence[Span] | np.ndarray) -> SpanAlignment:
    """Align two tokenizations of one text by where their tokens lie in it, in linear time.

    teacher, student  [n, 2] start and end of each token, in the same unit (bytes) of the same text

    What no student span covers (white space that its tokenizer collapses or drops) has no width: lengths are counted
    in covered text. A token without width (a newline that the student drops, a dummy space) joins the chunk that
    *follows*, for what it decides is what comes next; at the end of the text it is a chunk with nothing on the other
    side. Tokens that overlap (several in one character) stay together. Where the teacher's tokens leave a hole, the
    student's tokens in it make a chunk without a teacher token.
    """
    left, right = (np.asarray(side, np.int64).reshape(-1, 2) for side in (teacher, student))
    if _is_contiguous(left) and _is_contiguous(right) and left[-1, 1] == right[-1, 1]:
        return _align_contiguous(left[:, 1], right[:, 1])
    own, theirs = _TokenSpans(left), _TokenSpans(right)
    cover = _CoveredText(theirs)
    inner = theirs.borders
    cuts, places = _unique_cuts([[0], cover.done[inner - 1], [cover.total]], [[0], inner, [len(theirs)]])
    starts, stops = cover.at(own.lows), cover.at(own.highs)
    inner = own.borders
    # A border has two sides: they differ where the teacher's tokens leave a hole.
    sides = np.stack([stops[inner - 1], starts[inner]], axis=1).ravel()
    ends = [0] * len(starts[:1]), [len(own)] * len(stops[-1:])
    teacher_cuts, teacher_places = _unique_cuts(
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
    kinds = np.full(len(width), CHUNK_KINDS.index("mixed"), np.uint8)
    kinds[(teachers == 1) & (students > 1)] = CHUNK_KINDS.index("split")
    kinds[(teachers > 1) & (students == 1)] = CHUNK_KINDS.index("merged")
    kinds[(teachers == 1) & (students == 1) & filled & (width > 0)] = CHUNK_KINDS.index("same")
    return SpanAlignment(bounds[0], bounds[1], kinds)


def _is_contiguous(spans: np.ndarray) -> bool:
    """Whether every token has a width and begins where the one before it ends, the first one at 0."""
    starts, ends = spans[:, 0], spans[:, 1]
    return bool(len(spans) and starts[0] == 0 and (starts[1:] == ends[:-1]).all() and (starts < ends).all())


def _align_contiguous(teacher: np.ndarray, student: np.ndarray) -> SpanAlignment:
    """The same for the usual case: both sides cover the text without holes and overlaps, so their ends say all."""
    bounds = []
    for own, other in ((teacher, student), (student, teacher)):
        ends = np.zeros(own[-1] + 1, bool)
        ends[other] = True
        shared = np.flatnonzero(ends[own])
        bounds.append(np.concatenate((_ZERO, shared + 1)))
    teachers, students = (side[1:] - side[:-1] > 1 for side in bounds)
    return SpanAlignment(bounds[0], bounds[1], teachers.view(np.uint8) + 2 * students.view(np.uint8))


class _TokenSpans:
    """One tokenization: before token i nothing ends after highs[i - 1], from it on nothing begins before lows[i]."""

    def __init__(self, spans: np.ndarray) -> None:
        self.spans = spans
        self.highs = np.maximum.accumulate(self.spans[:, 1])
        self.lows = np.minimum.accumulate(self.spans[::-1, 0])[::-1]
        # Tokens 0 to border - 1 and the rest share no byte.
        self.borders = np.flatnonzero(self.highs[:-1] <= self.lows[1:]) + 1

    def __len__(self) -> int:
        return len(self.spans)


class _CoveredText:
    """Places in a text, counted in what the student's tokens cover of it."""

    def __init__(self, side: _TokenSpans) -> None:
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


def _unique_cuts(cuts: Sequence[ArrayLike], places: Sequence[ArrayLike]) -> tuple[np.ndarray, np.ndarray]:
    """Each cut once, with the first of its places: what has no width at a cut comes after it."""
    all_cuts, all_places = np.concatenate([*map(np.asarray, cuts)]), np.concatenate([*map(np.asarray, places)])
    keep = np.concatenate([[True], all_cuts[1:] != all_cuts[:-1]])
    return all_cuts[keep].astype(np.int64), all_places[keep].astype(np.int64)
