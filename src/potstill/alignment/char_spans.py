"""Aligns two tokenizations of one text by where their tokens lie in it.

>>> [chunk.kind for chunk in spans([(0, 2), (2, 4)], [(0, 2), (2, 3), (3, 4)])]
['same', 'split']
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import ArrayLike

from potstill.errors import UserError
from potstill.records import TargetKind

CHUNK_KINDS: Final[tuple[TargetKind, ...]] = ("same", "merged", "split", "mixed")
Span = tuple[int, int]
_ZERO: Final = np.zeros(1, np.int64)


@dataclass(frozen=True, slots=True)
class Chunk:
    """A stretch of text that begins and ends with whole tokens on both sides.

    teacher, student  indices of the tokens of each side
    kind              same: one token on each side; merged: several teacher tokens make one student token; split: one
                      teacher token is several student tokens; mixed: anything else, also where one side has no token
    """

    teacher: range
    student: range
    kind: TargetKind


@dataclass(frozen=True, slots=True, eq=False)
class SpanAlignment:
    """The minimal common chunks of two tokenizations, in order; every token of both lies in exactly one chunk.

    teacher, student  [n + 1] int64, chunk k holds tokens teacher[k] to teacher[k + 1]
    kinds             [n] uint8, indices in CHUNK_KINDS
    """

    teacher: np.ndarray
    student: np.ndarray
    kinds: np.ndarray

    def __len__(self) -> int:
        return len(self.kinds)

    def __iter__(self) -> Iterator[Chunk]:
        teacher, student = self.teacher.tolist(), self.student.tolist()
        for k, kind in enumerate(self.kinds.tolist()):
            yield Chunk(range(*teacher[k : k + 2]), range(*student[k : k + 2]), CHUNK_KINDS[kind])

    def __repr__(self) -> str:
        tokens = f"{self.teacher[-1]} teacher tokens, {self.student[-1]} student tokens"
        return f"SpanAlignment({len(self)} chunks: {tokens})"


def spans(teacher_offsets: Sequence[Span] | np.ndarray, student_offsets: Sequence[Span] | np.ndarray) -> SpanAlignment:
    """Align two tokenizations of one text by where their tokens lie in it, in linear time.

    teacher_offsets, student_offsets  [n, 2] start and end of each token, in the same unit (bytes or characters) of the
                                      same text, without special tokens

    Text that no student token covers (whitespace that its tokenizer collapses or drops) has no width: lengths are
    counted in covered text. A token without width (a newline that the student drops, a dummy space) joins the chunk
    that *follows*, because what it decides is what comes next; at the end of the text it is a chunk of its own with
    nothing on the other side. Tokens that overlap (several in one character) stay together. Where the teacher's tokens
    leave a hole, the student's tokens in it make a chunk without a teacher token.

    Raises UserError where an array is not [n, 2] of whole numbers, where a span ends before it starts, and where the
    offsets include a special token: (0, 0) after a token that has a width.
    """
    return align_spans(_checked(teacher_offsets, "teacher"), _checked(student_offsets, "student"))


def align_spans(teacher: np.ndarray, student: np.ndarray) -> SpanAlignment:
    """As `spans`, for offsets [n, 2] int64 that are known to be those of tokens of one text."""
    if _is_contiguous(teacher) and _is_contiguous(student) and teacher[-1, 1] == student[-1, 1]:
        return _align_contiguous(teacher[:, 1], student[:, 1])
    left, right = _TokenSpans(teacher), _TokenSpans(student)
    # Each side is cut wherever none of its tokens lies across; the common cuts, counted in text that the student
    # covers, bound the chunks.
    cover = _CoveredText(right)
    inner = right.borders
    cuts, indices = _unique_cuts([[0], cover.done[inner - 1], [cover.total]], [[0], inner, [len(right)]])
    starts, stops = cover.measure(left.lows), cover.measure(left.highs)
    inner = left.borders
    # A border has two sides: they differ where the teacher's tokens leave a hole.
    sides = np.stack([stops[inner - 1], starts[inner]], axis=1).ravel()
    ends = [0] * len(starts[:1]), [len(left)] * len(stops[-1:])
    teacher_cuts, teacher_indices = _unique_cuts(
        [[0], starts[:1], sides, stops[-1:], [cover.total]], [[0], ends[0], inner.repeat(2), ends[1], [len(left)]]
    )
    common, in_teacher, in_student = np.intersect1d(teacher_cuts, cuts, assume_unique=True, return_indices=True)
    bounds = np.stack([teacher_indices[in_teacher], indices[in_student]])
    # Tokens without width at the end of the text lie after the last cut: a chunk of their own.
    if tuple(bounds[:, -1]) != (len(left), len(right)):
        bounds = np.concatenate([bounds, [[len(left)], [len(right)]]], axis=1)
        common = np.append(common, cover.total)
    teachers, students = np.diff(bounds, axis=1)
    width = np.diff(common)
    # A lone teacher token is the same as a lone student token only if it has all of the chunk's width.
    filled = np.zeros(len(width), bool)
    lone = bounds[0, :-1][teachers == 1]
    filled[teachers == 1] = stops[lone] - starts[lone] == width[teachers == 1]
    kinds = np.full(len(width), CHUNK_KINDS.index("mixed"), np.uint8)
    kinds[(teachers == 1) & (students > 1)] = CHUNK_KINDS.index("split")
    kinds[(teachers > 1) & (students == 1)] = CHUNK_KINDS.index("merged")
    kinds[(teachers == 1) & (students == 1) & filled & (width > 0)] = CHUNK_KINDS.index("same")
    return SpanAlignment(bounds[0], bounds[1], kinds)


def _checked(offsets: Sequence[Span] | np.ndarray, side: str) -> np.ndarray:
    """[n, 2] int64. Raises UserError for what cannot be the offsets of the tokens of a text."""
    array = np.asarray(offsets)
    if not array.size:
        return np.zeros((0, 2), np.int64)
    if array.ndim != 2 or array.shape[1] != 2 or array.dtype.kind not in "iu":
        raise UserError(
            "offsets are not pairs of whole numbers",
            code="E-align-offsets",
            where=f"offsets of the {side}",
            found=f"shape {array.shape}, {array.dtype}",
            hint="give [(start, end), ...], one pair for each token",
        )
    array = array.astype(np.int64, copy=False)
    starts, stops = array[:, 0], array[:, 1]
    if (starts < 0).any() or (starts > stops).any():
        token = int(np.flatnonzero((starts < 0) | (starts > stops))[0])
        raise UserError(
            "a token ends before it starts",
            code="E-align-offsets",
            where=f"token {token} of the {side}",
            found=tuple(array[token].tolist()),
        )
    # Libraries give (0, 0) to special tokens (BOS, EOS, padding). After text no real token can begin at 0.
    special = (stops == 0) & (np.maximum.accumulate(stops) > 0)
    if special.any():
        raise UserError(
            "the offsets include a special token",
            code="E-align-special-token",
            where=f"token {int(np.flatnonzero(special)[0])} of the {side}",
            found="(0, 0) after tokens of the text",
            hint="encode with add_special_tokens=False and without padding",
        )
    return array


def _is_contiguous(spans: np.ndarray) -> bool:
    """Whether every token has a width and begins where the one before it ends, the first one at 0."""
    starts, ends = spans[:, 0], spans[:, 1]
    return bool(len(spans) and starts[0] == 0 and (starts[1:] == ends[:-1]).all() and (starts < ends).all())


def _align_contiguous(teacher: np.ndarray, student: np.ndarray) -> SpanAlignment:
    """The usual case: both sides cover the text without holes and overlaps, so the ends of the tokens suffice."""
    bounds = []
    for side, other in ((teacher, student), (student, teacher)):
        is_end = np.zeros(side[-1] + 1, bool)
        is_end[other] = True
        bounds.append(np.concatenate((_ZERO, np.flatnonzero(is_end[side]) + 1)))
    merged, split = (side[1:] - side[:-1] > 1 for side in bounds)
    return SpanAlignment(bounds[0], bounds[1], merged.view(np.uint8) + 2 * split.view(np.uint8))


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
    """Measures positions of a text in the length of what the student's tokens cover before them."""

    def __init__(self, side: _TokenSpans) -> None:
        before = np.concatenate([[0], side.highs[:-1]])[: len(side)]
        self.starts = np.maximum(side.spans[:, 0], before)
        self.widths = np.maximum(side.highs - self.starts, 0)
        self.done = np.cumsum(self.widths)
        self.total = int(self.done[-1]) if len(side) else 0

    def measure(self, offsets: np.ndarray) -> np.ndarray:
        if not len(self.starts):
            return np.zeros(len(offsets), np.int64)
        token = np.searchsorted(self.starts, offsets, side="right") - 1
        inside = np.clip(offsets - self.starts[token], 0, self.widths[token])
        return np.where(token < 0, 0, self.done[token] - self.widths[token] + inside)


def _unique_cuts(cuts: Sequence[ArrayLike], indices: Sequence[ArrayLike]) -> tuple[np.ndarray, np.ndarray]:
    """Each cut once, with the first of its token indices: a token without width at a cut comes after the cut."""
    all_cuts, all_indices = np.concatenate([*map(np.asarray, cuts)]), np.concatenate([*map(np.asarray, indices)])
    keep = np.concatenate([[True], all_cuts[1:] != all_cuts[:-1]])
    return all_cuts[keep].astype(np.int64), all_indices[keep].astype(np.int64)
