"""`spans` and `dtw`, compiled by Numba, for callers that align many short texts one by one, or very long ones.

    >>> teacher, student = [(0, 2), (2, 4)], [(0, 2), (2, 3), (3, 4)]
    >>> [chunk.kind for chunk in spans(teacher, student)]
    ['same', 'split']
    >>> dtw(["12", "."], ["▁$12", "."]).groups
    ((0,), (1,))

The results equal those of the functions of the same names in `char_spans` and `time_warping`. They need the extra
`compiled` (Numba with LLVM, 210 MB). The first call of a function on a machine compiles it for one to three seconds; later
processes load it from Numba's cache. The stage `align` does not use this module: aligning spans takes 0.2 to 4 % of its
time, and importing Numba half a second.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from potstill.alignment import char_spans, time_warping
from potstill.alignment.char_spans import Span, SpanAlignment
from potstill.alignment.time_warping import DtwAlignment
from potstill.errors import UserError

try:
    from numba import njit
except ImportError:
    raise UserError(
        "compiled alignment needs Numba",
        code="E-align-no-numba",
        where="potstill.alignment.compiled",
        hint='pip install "potstill[compiled]", or use potstill.alignment.spans and dtw, which give the same results',
    ) from None


def spans(teacher_offsets: Sequence[Span] | np.ndarray, student_offsets: Sequence[Span] | np.ndarray) -> SpanAlignment:
    """See `char_spans.spans`. Only contiguous offsets, which nearly every text has, take the compiled path."""
    teacher, student = char_spans.as_pairs(teacher_offsets, "teacher"), char_spans.as_pairs(student_offsets, "student")
    if not teacher.flags.c_contiguous or not student.flags.c_contiguous:  # Numba compiles a function for each layout
        teacher, student = np.ascontiguousarray(teacher), np.ascontiguousarray(student)
    teacher_bounds, student_bounds, kinds = _walk(teacher, student)
    if not len(kinds):
        return char_spans.spans(teacher, student)
    return SpanAlignment(teacher_bounds, student_bounds, kinds)


def dtw(teacher: Sequence[str], student: Sequence[str]) -> DtwAlignment:
    """See `time_warping.dtw`."""
    time_warping.check_tokens(teacher, student)
    if not teacher or not student:
        return time_warping.dtw(teacher, student)
    return time_warping.find_path(_CompiledTable(teacher, student))


class _CompiledTable(time_warping.CostTable):
    """A table whose cells are computed and followed back by compiled loops."""

    def fill(self, before: np.ndarray, start: int, end: int) -> np.ndarray:
        least = np.empty((end - start + 1, len(self.student_index) + 1), self.dtype)
        least[0], least[1:, 0] = before, np.iinfo(self.dtype).max // 2
        _fill(least, self.distances, np.array(self.teacher_index[start:end]), self.student_index.astype(np.uint32))
        return least

    @staticmethod
    def backtrace(least: np.ndarray, start: int, i: int, j: int) -> tuple[list[int], list[int], int, int]:
        rows, columns = np.empty((2, i - start + j), np.int64)
        count, i, j = _step_back(least.ravel(), least.shape[1], start, i, j, rows, columns)
        return rows[:count].tolist(), columns[:count].tolist(), i, j


_step_back = njit(cache=True)(time_warping.step_back)


@njit(cache=True)
def _is_contiguous(side):  # type: ignore[no-untyped-def]
    end = 0
    for token in range(len(side)):
        if side[token, 0] != end or side[token, 1] <= end:
            return False
        end = side[token, 1]
    return True


@njit(cache=True)
def _walk(teacher, student):  # type: ignore[no-untyped-def]
    """The bounds [n + 1] of both sides and the kinds [n]; n is 0 if a side has gaps or overlaps, or the lengths differ."""
    most = min(len(teacher), len(student))
    teacher_bounds, student_bounds = np.empty(most + 1, np.int64), np.empty(most + 1, np.int64)
    kinds = np.empty(most, np.uint8)
    if not (most and teacher[-1, 1] == student[-1, 1] and _is_contiguous(teacher) and _is_contiguous(student)):
        return teacher_bounds[:1], student_bounds[:1], kinds[:0]
    i = j = before_i = before_j = chunk = 0
    teacher_bounds[0] = student_bounds[0] = 0
    while i < len(teacher):
        if teacher[i, 1] < student[j, 1]:
            i += 1
        elif teacher[i, 1] > student[j, 1]:
            j += 1
        else:
            i, j = i + 1, j + 1
            kinds[chunk] = (i - before_i > 1) + 2 * (j - before_j > 1)
            chunk += 1
            teacher_bounds[chunk] = before_i = i
            student_bounds[chunk] = before_j = j
    return teacher_bounds[: chunk + 1], student_bounds[: chunk + 1], kinds[:chunk]


@njit(cache=True)
def _fill(least, distances, teacher, student):  # type: ignore[no-untyped-def]
    """Compute the rows of `least` after the first one; see `CostTable.fill`."""
    entry = np.empty(len(student), least.dtype)
    for i in range(len(teacher)):
        before, row, change = least[i], least[i + 1], distances[teacher[i]]
        for j in range(len(student)):  # a loop of its own, which the compiler vectorizes
            entry[j] = min(before[j], before[j + 1])
        for j in range(len(student)):
            row[j + 1] = min(row[j], entry[j]) + change[student[j]]
