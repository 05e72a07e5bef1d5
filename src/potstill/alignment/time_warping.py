"""Aligns two sequences of token strings by dynamic time warping, the published method (Fu et al. 2023, section 4).

>>> dtw(["12", "."], ["▁$12", "."]).groups
((0,), (1,))
"""

from __future__ import annotations

import math
import reprlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from rapidfuzz.distance import Levenshtein
from rapidfuzz.process import cdist

from potstill.errors import UserError

MAX_DTW_CELLS: Final = 10**8  # a cell takes at most about 12 bytes


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
    Time and memory are proportional to the product of the lengths. Raises UserError above 10^8 cells, and for tokens
    that are not strings.
    """
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
    if not rows or not columns:
        return DtwAlignment(0.0 if rows == columns else math.inf, ((),) * columns)
    teacher_index, teacher_strings = _index_distinct([token.replace(" ", "") for token in teacher])
    student_index, student_strings = _index_distinct([token.replace("▁", "") for token in student])
    distances = cdist(teacher_strings, student_strings, scorer=Levenshtein.distance, dtype=np.int32)
    # Whole numbers keep the subtraction below exact. Infinity must stay above every cost after a sum is subtracted from it.
    dtype = np.int32 if int(distances.max()) * (rows + columns) < 2**29 else np.int64
    infinity = np.iinfo(dtype).max // 2
    sums = np.zeros((len(teacher_strings), columns + 1), dtype)
    np.cumsum(distances[:, student_index], axis=1, dtype=dtype, out=sums[:, 1:])
    least = np.full((rows + 1, columns + 1), infinity, dtype)
    least[0, 0] = 0
    best = np.empty(columns, dtype)
    for row, string in enumerate(teacher_index, 1):
        # A path that enters the row at column k and goes to column j costs its entry cost plus sums[j] - sums[k - 1]. So
        # the best entry for column j is the running minimum of (entry cost - sums[k - 1]), and the whole row is computed
        # at once.
        np.minimum(least[row - 1, 1:], least[row - 1, :-1], out=best)
        np.subtract(best, sums[string, :-1], out=best)
        np.minimum.accumulate(best, out=best)
        np.add(best, sums[string, 1:], out=least[row, 1:])
    return DtwAlignment(float(least[rows, columns]), _backtrace(least))


def _index_distinct(strings: Sequence[str]) -> tuple[list[int], list[str]]:
    """The index of each string in the list of distinct strings, and that list."""
    indices: dict[str, int] = {}
    return [indices.setdefault(string, len(indices)) for string in strings], list(indices)


def _backtrace(least: np.ndarray) -> tuple[tuple[int, ...], ...]:
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
