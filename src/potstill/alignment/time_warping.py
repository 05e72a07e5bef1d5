"""The canonical text: what tokenizers leave of a text whatever they normalise, with the way back to its bytes.

    >>> found = normalize_text("Caf\\u00e9 \\ufb01ve\\r\\n".encode())
    >>> found.text, found.starts[3], found.ends[3]  # the accented letter has two bytes, the ligature gives two letters
    ('cafefive', 3, 5)
    >>> found.starts[4:6], found.ends[4:6]
    ([6, 6], [9, 9])

No white space (`▁` is some), no control characters, no combining marks, compatibility forms decomposed, case folded. It
only serves to find places: whether two tokens are the same is not decided by it.

Dynamic time warping of token strings: the published method (PAPER section 4).

>>> dtw(["12", "."], ["▁$12", "."]).groups
((0,), (1,))
"""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

import numpy as np
from rapidfuzz.distance import Levenshtein
from rapidfuzz.process import cdist

from potstill.errors import UserError

_REPLACEMENT = "\ufffd"


@dataclass(frozen=True, slots=True)
class NormalizedText:
    """text          letters without what tokenizers add, drop or fold
    starts, ends  of each letter: the bytes of the original that it stands for
    """

    text: str
    starts: list[int]
    ends: list[int]


def normalize_text(data: bytes) -> NormalizedText:
    """The canonical text of some bytes. Bytes that are not UTF-8 are U+FFFD, one each."""
    letters: list[str] = []
    starts: list[int] = []
    ends: list[int] = []
    at = 0
    for letter in data.decode("utf-8", "surrogateescape"):
        width = 1 if "\udc80" <= letter <= "\udcff" else len(letter.encode("utf-8"))
        for plain in _normalize_letter(letter):
            letters.append(plain)
            starts.append(at)
            ends.append(at + width)
        at += width
    return NormalizedText("".join(letters), starts, ends)


@lru_cache(maxsize=1 << 14)
def _normalize_letter(letter: str) -> str:
    if "\udc80" <= letter <= "\udcff":
        return _REPLACEMENT
    plain = unicodedata.normalize("NFKD", unicodedata.normalize("NFKD", letter).casefold())
    return "".join(one for one in plain if unicodedata.category(one)[0] not in "CMZ" and one != "▁")


MAX_DTW_CELLS: Final = 10**8  # cells of dynamic time warping: at most about 12 bytes each


@dataclass(frozen=True, slots=True)
class DtwAlignment:
    """cost    the least sum of edit distances; infinite where only one side has tokens
    groups  [students] for each student token the teacher tokens that it is aligned to, ascending
    """

    cost: float
    groups: tuple[tuple[int, ...], ...]


def dtw(teacher: Sequence[str], student: Sequence[str]) -> DtwAlignment:
    """Dynamic time warping between two sequences of token strings, by the recurrence of Fu et al. (PAPER section 4):

        f(i, j) = c(i, j) + min(f(i - 1, j), f(i, j - 1), f(i - 1, j - 1)),  f(0, 0) = 0, infinite at the other borders,
        c(i, j) = Levenshtein(teacher i without " ", student j without "▁")

    with no gap penalty. On a tie the way back prefers the diagonal, then the step of the teacher.
    Time and memory are proportional to the cells; raises UserError above 10^8 of them.
    """
    rows, columns = len(teacher), len(student)
    if rows * columns > MAX_DTW_CELLS:
        hint = "align shorter texts, or use the rule `span`, which is linear"
        raise UserError("too long for dynamic time warping", found=f"{rows} x {columns} tokens", hint=hint)
    if not rows or not columns:
        return DtwAlignment(0.0 if rows == columns else math.inf, ((),) * columns)
    of_teacher, own = _index_distinct([token.replace(" ", "") for token in teacher])
    of_student, theirs = _index_distinct([token.replace("▁", "") for token in student])
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
    return DtwAlignment(float(least[rows, columns]), _backtrace(least))


def _index_distinct(tokens: Sequence[str]) -> tuple[list[int], list[str]]:
    places: dict[str, int] = {}
    return [places.setdefault(token, len(places)) for token in tokens], list(places)


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
