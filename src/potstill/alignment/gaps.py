"""Aligns tokens by their own bytes, also where the two texts differ: in case, Unicode form, whitespace, unknown tokens.

    >>> teacher, student = [b"4", b" \\xc3\\x97", b" 3"], [b"", b" 4", None, b"3"]  # BOS; a sign without a piece
    >>> [(list(chunk.teacher), list(chunk.student), chunk.kind) for chunk in align_pieces(teacher, student)]
    [([0], [0, 1], 'split'), ([1], [2], 'same'), ([2], [3], 'same')]

Both sides are compared as normalized text: what tokenizers leave of a text, with the way back to its bytes. It has no
whitespace (`▁` is some), no control characters and no combining marks; compatibility forms are decomposed, and case is
folded. It serves only to find positions; whether two tokens are the same is not decided by it.

    >>> normalized = normalize_text("Caf\\u00e9 \\ufb01ve\\r\\n".encode())
    >>> normalized.text, normalized.starts[3], normalized.ends[3]  # the accented letter has two bytes
    ('cafefive', 3, 5)
    >>> normalized.starts[4:6], normalized.ends[4:6]  # one ligature gives two letters
    ([6, 6], [9, 9])

The normalized texts are walked together. Where they part, the nearest position is sought from which both say the same
again, and only the gap between is aligned by edit distance. What follows does not depend on the gap.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

import numpy as np

from potstill.alignment.char_spans import SpanAlignment, align_spans
from potstill.errors import UserError
from potstill.records import token_spans

RESYNC_LENGTH: Final = 6  # letters that must be the same for the two texts to be together again
MAX_GAP: Final = (
    64  # letters that a gap may hold on both sides together; a longer one is left by whole stretches of text
)
MAX_GAP_CELLS: Final = 40_000  # of a gap that is aligned letter by letter; in a larger one all tokens share one range
UNKNOWN_LETTER: Final = "\x00"  # stands for an unknown token: any letters
_REPLACEMENT = "\ufffd"
Range = tuple[int, int]


@dataclass(frozen=True, slots=True)
class NormalizedText:
    """text          letters without what tokenizers add, drop or fold
    starts, ends  [letters] the bytes of the original that each letter stands for
    """

    text: str
    starts: list[int]
    ends: list[int]


def normalize_text(data: bytes) -> NormalizedText:
    """The normalized text of some bytes. Bytes that are not UTF-8 are U+FFFD, one each."""
    letters: list[str] = []
    starts: list[int] = []
    ends: list[int] = []
    offset = 0
    for character in data.decode("utf-8", "surrogateescape"):
        width = 1 if "\udc80" <= character <= "\udcff" else len(character.encode("utf-8"))
        for letter in _normalize_letter(character):
            letters.append(letter)
            starts.append(offset)
            ends.append(offset + width)
        offset += width
    return NormalizedText("".join(letters), starts, ends)


@lru_cache(maxsize=1 << 14)
def _normalize_letter(character: str) -> str:
    if "\udc80" <= character <= "\udcff":
        return _REPLACEMENT
    folded = unicodedata.normalize("NFKD", unicodedata.normalize("NFKD", character).casefold())
    return "".join(letter for letter in folded if unicodedata.category(letter)[0] not in "CMZ" and letter != "▁")


def align_pieces(teacher: Sequence[bytes], student: Sequence[bytes | None]) -> SpanAlignment:
    """Align two tokenizations of which only the bytes of the tokens are known, and whose texts may differ.

    teacher  the bytes of each token
    student  the bytes of each token; None for the unknown token, which stands for any letters; empty for what is not
             text (BOS)

    Raises UserError for pieces that are text and not bytes.
    """
    wrong = next((piece for piece in (*teacher, *student) if isinstance(piece, str)), None)
    if wrong is not None:
        raise UserError(
            "a piece is text, not bytes",
            code="E-align-text-for-bytes",
            found=repr(wrong)[:80],
            hint="give the bytes of each token: text.encode()",
        )
    original = normalize_text(b"".join(teacher))
    text, ranges = _normalize_pieces(student)
    byte_ranges = _byte_ranges(original, _match_letters(original.text, text))
    reached, offsets = 0, []
    for low, high in ranges:
        covered = [span for span in byte_ranges[low:high] if span is not None]
        start = min((start for start, _ in covered), default=reached)
        end = max((end for _, end in covered), default=start)
        offsets.append((start, end))
        reached = max(reached, end)
    return align_spans(_as_array(token_spans(teacher)), _as_array(offsets))


def _as_array(offsets: Sequence[Range]) -> np.ndarray:
    return np.asarray(offsets, np.int64).reshape(-1, 2)


def _normalize_pieces(student: Sequence[bytes | None]) -> tuple[str, list[Range]]:
    """The normalized text of the pieces, and which of its letters each of them has."""
    known = normalize_text(b"".join(piece or b"" for piece in student))
    text: list[str] = []
    ranges: list[Range] = []
    letter = offset = 0
    for piece in student:
        low = len(text)
        if piece is None:
            text.append(UNKNOWN_LETTER)
        offset += len(piece or b"")
        # A letter whose bytes lie in several pieces belongs to the one that ends it.
        while letter < len(known.text) and known.ends[letter] <= offset:
            text.append(known.text[letter])
            letter += 1
        ranges.append((low, len(text)))
    return "".join(text), ranges


def _match_letters(teacher: str, student: str) -> list[Range]:
    """[student letters] the range of teacher letters that each stands for; an empty range for an added letter."""
    matched: list[Range] = []
    i = j = 0
    while i < len(teacher) or j < len(student):
        if i < len(teacher) and j < len(student) and teacher[i] == student[j]:
            matched.append((i, i + 1))
            i, j = i + 1, j + 1
            continue
        next_i, next_j = _resynchronize(teacher, student, i, j)
        matched += _align_gap(teacher[i:next_i], student[j:next_j], i)
        i, j = next_i, next_j
    return matched


def _resynchronize(teacher: str, student: str, i: int, j: int) -> Range:
    """The nearest positions after i and j from which the two texts say the same; their ends where there are none."""
    # Nearest first, by the sum of what both sides skip.
    for distance in range(1, MAX_GAP + 1):
        for step in range(distance + 1):
            a, b = i + step, j + distance - step
            if a > len(teacher) or b > len(student):
                continue
            if teacher[a : a + RESYNC_LENGTH] == student[b : b + RESYNC_LENGTH] and (
                len(teacher) - a >= RESYNC_LENGTH or len(teacher) - a == len(student) - b
            ):
                return a, b
    # A longer gap: the first longer stretch of the student's text that comes again in the teacher's, no farther than
    # its own distance away. The quadratic search above would be too slow.
    for b in range(j, min(j + 64 * MAX_GAP, len(student) - 4 * RESYNC_LENGTH)):
        a = teacher.find(student[b : b + 4 * RESYNC_LENGTH], i, i + 2 * (b - j) + 64 * MAX_GAP)
        if a >= 0:
            return a, b
    return len(teacher), len(student)


def _align_gap(teacher: str, student: str, start: int) -> list[Range]:
    """Least edit distance inside a gap. Teacher letters that nothing stands for belong to the letter before them.

    start  where the gap begins in the teacher's text
    """
    rows, columns = len(teacher), len(student)
    if rows * columns > MAX_GAP_CELLS or not rows:
        return [(start, start + rows)] * columns
    # An unknown token is a better partner than any wrong letter; a wrong letter is better than leaving both out.
    cost = [[float(j) for j in range(columns + 1)]]
    for i in range(1, rows + 1):
        row = [float(i)]
        for j in range(1, columns + 1):
            change = 0.0 if teacher[i - 1] == student[j - 1] else 0.5 if student[j - 1] == UNKNOWN_LETTER else 1.5
            row.append(min(cost[i - 1][j - 1] + change, cost[i - 1][j] + 1, row[j - 1] + 1))
        cost.append(row)
    i, j = rows, columns
    ranges = [(0, 0)] * columns
    end = rows
    while j:
        change = 0.0 if i and teacher[i - 1] == student[j - 1] else 0.5 if student[j - 1] == UNKNOWN_LETTER else 1.5
        if i and cost[i][j] == cost[i - 1][j - 1] + change:
            i, j = i - 1, j - 1
            ranges[j] = (start + i, start + end)
            end = i
        elif cost[i][j] == cost[i][j - 1] + 1:
            j -= 1
            ranges[j] = (start + end, start + end)
        else:
            i -= 1
    if end and columns:  # what stands before the first letter belongs to it
        first = next((j for j, (low, high) in enumerate(ranges) if low < high), 0)
        ranges[first] = (start, max(ranges[first][1], start + end))
    return ranges


def _byte_ranges(original: NormalizedText, matched: list[Range]) -> list[Range | None]:
    """[student letters] the bytes of the teacher's text that each stands for; None for an added letter."""
    return [(original.starts[low], original.ends[high - 1]) if low < high else None for low, high in matched]
