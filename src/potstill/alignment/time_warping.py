"""Aligns two sequences of token strings by dynamic time warping, the published method (Fu et al. 2023, section 4).

>>> dtw(["12", "."], ["▁$12", "."]).groups
((0,), (1,))
"""

from __future__ import annotations

import math
import reprlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from rapidfuzz.distance import Levenshtein
from rapidfuzz.process import cdist

from potstill.errors import UserError

MAX_DTW_CELLS: Final = 4 * 10**9  # about 64,000 x 64,000 tokens, half a minute
# Above so many cells, the rows are computed twice, and only about two square roots of them are kept.
MAX_STORED_CELLS: Final = 1 << 24


@dataclass(frozen=True, slots=True, repr=False)
class DtwAlignment:
    """The result of `dtw`.

    cost    the least sum of edit distances; infinite if only one side has tokens
    groups  [student tokens] the indices of the teacher tokens aligned to each student token, ascending
    """

    cost: float
    groups: tuple[tuple[int, ...], ...]

    def __repr__(self) -> str:
        return f"DtwAlignment(cost={self.cost}, groups={reprlib.repr(self.groups)})"


def dtw(teacher: Sequence[str], student: Sequence[str]) -> DtwAlignment:
    """Dynamic time warping between two sequences of token strings, by the recurrence of Fu et al. (2023, section 4):

        f(i, j) = c(i, j) + min(f(i - 1, j), f(i, j - 1), f(i - 1, j - 1)),  f(0, 0) = 0, infinite at the other borders,
        c(i, j) = Levenshtein(teacher i without " ", student j without "▁")

    There is no gap penalty. The backtrace prefers the diagonal on a tie, then the step to the previous teacher token.
    Time is proportional to the product of the lengths; memory, too, up to MAX_STORED_CELLS cells, and above to the student's
    tokens times the square root of the teacher's. Raises UserError above MAX_DTW_CELLS cells, and for tokens that are
    not strings.
    """
    check_tokens(teacher, student)
    if not teacher or not student:
        return DtwAlignment(0.0 if len(teacher) == len(student) else math.inf, ((),) * len(student))
    return find_path(CostTable(teacher, student))


def check_tokens(teacher: Sequence[str], student: Sequence[str]) -> None:
    """Raises UserError above MAX_DTW_CELLS cells, and for tokens that are not strings."""
    rows, columns = len(teacher), len(student)
    for side, tokens in (("teacher", teacher), ("student", student)):
        wrong = next((token for token in tokens if not isinstance(token, str)), None)
        if isinstance(tokens, str) or wrong is not None:
            raise UserError(
                "dynamic time warping compares lists of strings",
                code="E-align-not-strings",
                where=f"tokens of the {side}",
                found=f"{tokens if wrong is None else wrong!r}"[:80],
                hint="give a list of token strings; decode tokens that are bytes",
            )
    if rows * columns > MAX_DTW_CELLS:
        raise UserError(
            "the texts are too long for dynamic time warping",
            code="E-align-too-long",
            found=f"{rows} x {columns} tokens",
            hint="align shorter texts, or use the rule `span`, which is linear",
        )


def find_path(table: CostTable) -> DtwAlignment:
    """The cheapest path through a table."""
    rows, columns = len(table.teacher_index), len(table.student_index)
    stride = rows if rows * columns <= MAX_STORED_CELLS else math.isqrt(rows - 1) + 1
    starts = range(0, rows, stride)
    first_rows = [table.border()]
    for start in starts:
        block = table.fill(first_rows[-1], start, min(start + stride, rows))
        first_rows.append(block[-1].copy())
    groups: list[list[int]] = [[] for _ in range(columns)]
    row, column, cost = rows, columns, float(first_rows.pop()[-1])
    # The backtrace needs the cells of one block at a time. Only those of the last one still exist.
    for start in reversed(starts):
        first_row = first_rows.pop()
        if row > start and start != starts[-1]:
            block = table.fill(first_row, start, row)
        path_rows, path_columns, row, column = table.backtrace(block, start, row, column)
        for token, group in zip(path_rows, path_columns, strict=True):
            groups[group].append(token)
    return DtwAlignment(cost, tuple(tuple(reversed(group)) for group in groups))


class CostTable:
    """The cells f(i, j) of two sequences of token strings, computed row by row."""

    def __init__(self, teacher: Sequence[str], student: Sequence[str]) -> None:
        self.teacher_index, teacher_strings = _index_distinct([token.replace(" ", "") for token in teacher])
        student_index, student_strings = _index_distinct([token.replace("▁", "") for token in student])
        self.student_index = np.array(student_index)
        self.distances = cdist(teacher_strings, student_strings, scorer=Levenshtein.distance, dtype=np.int32)
        # Whole numbers keep the subtraction below exact. Infinity must stay above every cost after a sum is subtracted.
        is_small = int(self.distances.max()) * (len(teacher) + len(student)) < 2**29
        self.dtype: Any = np.int32 if is_small else np.int64
        # By the index of the teacher's string, the sums of its distances to the first 0, 1, 2, ... student tokens.
        self.sums: dict[int, np.ndarray] = {}
        self.most_sums = MAX_STORED_CELLS // len(student)

    def border(self) -> np.ndarray:
        """[student tokens + 1]: the row before the teacher's first token."""
        row = np.full(len(self.student_index) + 1, np.iinfo(self.dtype).max // 2, self.dtype)
        row[0] = 0
        return row

    def fill(self, before: np.ndarray, start: int, end: int) -> np.ndarray:
        """[end - start + 1, student tokens + 1]: the row `before`, and those of the teacher's tokens `start` to `end`."""
        columns = len(self.student_index)
        least = np.full((end - start + 1, columns + 1), np.iinfo(self.dtype).max // 2, self.dtype)
        least[0] = before
        best = np.empty(columns, self.dtype)
        for row, string in enumerate(self.teacher_index[start:end], 1):
            # A path that enters the row at column k and goes to column j costs its entry cost plus sums[j] - sums[k - 1].
            # So the best entry for column j is the running minimum of (entry cost - sums[k - 1]), and the whole row is
            # computed at once.
            sums = self._sums(string)
            np.minimum(least[row - 1, 1:], least[row - 1, :-1], out=best)
            np.subtract(best, sums[:-1], out=best)
            np.minimum.accumulate(best, out=best)
            np.add(best, sums[1:], out=least[row, 1:])
        return least

    @staticmethod
    def backtrace(least: np.ndarray, start: int, i: int, j: int) -> tuple[list[int], list[int], int, int]:
        """The teacher's and the student's tokens on the cheapest path from cell (i, j) back to the row `start`, and the cell
        at which the path reaches that row, or the first column.

        least  the rows from `start` on
        """
        rows, columns = [0] * (i - start + j), [0] * (i - start + j)
        # A memoryview gives whole numbers of Python, faster than the array.
        count, i, j = step_back(least.ravel().data, least.shape[1], start, i, j, rows, columns)
        return rows[:count], columns[:count], i, j

    def _sums(self, string: int) -> np.ndarray:
        if not self.sums and len(self.distances) <= self.most_sums:
            self.sums = dict(enumerate(self._sum_distances(self.distances)))  # faster than one by one
        sums = self.sums.get(string)
        if sums is None:
            (sums,) = self._sum_distances(self.distances[string : string + 1])
            if len(self.sums) < self.most_sums:
                self.sums[string] = sums
        return sums

    def _sum_distances(self, distances: np.ndarray) -> np.ndarray:
        """[strings, student tokens + 1]: the sums of the distances to the first 0, 1, 2, ... student tokens."""
        sums = np.zeros((len(distances), len(self.student_index) + 1), self.dtype)
        np.cumsum(distances[:, self.student_index], axis=1, dtype=self.dtype, out=sums[:, 1:])
        return sums


def step_back(costs, width, start, i, j, rows, columns):  # type: ignore[no-untyped-def]
    """Write the cells of the path into `rows` and `columns`. Returns their number, and the cell that `backtrace` returns.

    costs  [rows x width] flat. `compiled` compiles this function, so it has neither annotations nor objects
    """
    count = 0
    while i > start and j:
        rows[count], columns[count] = i - 1, j - 1
        count += 1
        cell = (i - start) * width + j
        diagonal, up, left = costs[cell - width - 1], costs[cell - width], costs[cell - 1]
        if diagonal <= up and diagonal <= left:
            i, j = i - 1, j - 1
        elif up <= left:
            i -= 1
        else:
            j -= 1
    return count, i, j


def _index_distinct(strings: Sequence[str]) -> tuple[list[int], list[str]]:
    """The index of each string in the list of distinct strings, and that list."""
    indices: dict[str, int] = {}
    return [indices.setdefault(string, len(indices)) for string in strings], list(indices)
