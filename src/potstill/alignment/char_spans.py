"""Aligns two tokenizations by the offsets of their tokens, in one text or in two texts that differ a little.

`spans` takes the offsets of the tokens in one text:

    >>> [chunk.kind for chunk in spans([(0, 2), (2, 4)], [(0, 2), (2, 3), (3, 4)])]
    ['same', 'split']

`align_pieces` takes the bytes of the tokens and computes the offsets. The texts may differ in case, Unicode form and
whitespace, and the student's may have unknown tokens:

    >>> teacher, student = [b"4", b" \\xc3\\x97", b" 3"], [b"", b" 4", None, b"3"]  # BOS; a sign without a piece
    >>> [(list(chunk.teacher), list(chunk.student), chunk.kind) for chunk in align_pieces(teacher, student)]
    [([0], [0, 1], 'split'), ([1], [2], 'same'), ([2], [3], 'same')]

It compares normalized texts, whose letters keep their offsets in the original. A normalized text has no whitespace (`▁`
counts as whitespace), no control characters and no combining marks; its compatibility forms are decomposed, and its
case is folded.

    >>> normalized = normalize_text("Caf\\u00e9 \\ufb01ve\\r\\n".encode())
    >>> normalized.text, normalized.starts[3:6], normalized.ends[3:6]  # `é` has two bytes, the ligature gives two letters
    ('cafefive', [3, 6, 6], [5, 9, 9])
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

import numpy as np

from potstill.errors import UserError
from potstill.records import TargetKind, token_spans

CHUNK_KINDS: Final[tuple[TargetKind, ...]] = ("same", "merged", "split", "mixed")  # in arrays: 0, 1, 2, 3
Span = tuple[int, int]
_INT64: Final = np.dtype(np.int64)
# Limits of `align_pieces`, in letters of the normalized texts:
_RESYNC_LENGTH: Final = 6  # a gap ends where so many letters of both texts are equal
_MAX_GAP: Final = 64  # letters of a gap, both sides together; a longer gap ends at a long common substring
_MAX_GAP_CELLS: Final = 40_000  # a larger gap is not aligned letter by letter: all of its tokens share one range
_UNKNOWN_LETTER: Final = "\x00"  # represents an unknown token, which may stand for any letters


@dataclass(frozen=True, slots=True)
class Chunk:
    """A stretch of text that begins and ends at a token boundary of both tokenizations.

    teacher, student  indices of the tokens in it
    kind              same: one teacher token is one student token; merged: several teacher tokens are one student
                      token; split: one teacher token is several student tokens; mixed: anything else, including a chunk
                      without teacher tokens or without student tokens
    """

    teacher: range
    student: range
    kind: TargetKind


@dataclass(frozen=True, slots=True, eq=False)
class SpanAlignment:
    """The smallest common chunks of two tokenizations, in order. Every token lies in exactly one chunk.

    teacher, student  [n + 1] int64; chunk k has the tokens from teacher[k] up to but not including teacher[k + 1]
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
    """Align two tokenizations of one text by the offsets of their tokens, in linear time.

    teacher_offsets, student_offsets  [n, 2] start and end of each token in the text, without special tokens. Both
                                      arrays count in the same unit, bytes or characters

    Lengths count only text that a student token covers: whitespace that the student's tokenizer collapses or drops has
    no width. A token without width (a newline that the student drops, a dummy space) belongs to the chunk *after* it,
    because it decides what comes next. At the end of the text it is a chunk without tokens of the other side. Tokens
    that overlap (several tokens in one character) lie in one chunk. If the teacher's tokens leave a gap, the student's
    tokens in the gap are a chunk without teacher tokens.

    Raises UserError if an array is not [n, 2] of whole numbers, if a token ends before it starts, or if the offsets
    include a special token: (0, 0) after a token that has a width.
    """
    teacher, student = as_pairs(teacher_offsets, "teacher"), as_pairs(student_offsets, "student")
    if _is_contiguous(teacher) and _is_contiguous(student) and teacher[-1, 1] == student[-1, 1]:
        return _align_contiguous(teacher[:, 1], student[:, 1])  # contiguous offsets need no further check
    return _align_general(_checked(teacher, "teacher"), _checked(student, "student"))


def align_spans(teacher: np.ndarray, student: np.ndarray) -> SpanAlignment:
    """Does the work of `spans` without its checks, for offsets [n, 2] int64 that are known to be valid."""
    if _is_contiguous(teacher) and _is_contiguous(student) and teacher[-1, 1] == student[-1, 1]:
        return _align_contiguous(teacher[:, 1], student[:, 1])
    return _align_general(teacher, student)


def _align_general(teacher: np.ndarray, student: np.ndarray) -> SpanAlignment:
    """Align offsets that may have gaps and overlaps."""
    ends, starts, borders = _find_borders(teacher)
    student_ends, _, student_borders = _find_borders(student)
    # Positions are counted in text that the student covers. For the k-th student token (counted from 1), begins[k] is
    # the offset at which it begins to cover new text, widths[k] is the length of that new text, and done[k] is the
    # length of all text covered by the tokens up to it. Entry 0 is the start of the text.
    begins = np.append(0, np.maximum(student[:, 0], np.append(0, student_ends)[:-1]))
    widths = np.append(0, np.maximum(student_ends - begins[1:], 0))
    done = np.cumsum(widths)

    def covered(offsets: np.ndarray) -> np.ndarray:
        token = np.searchsorted(begins, offsets, side="right") - 1
        return done[token] - widths[token] + np.clip(offsets - begins[token], 0, widths[token])

    # A tokenization has a cut at every position that no token crosses. The cuts that both tokenizations have bound the
    # chunks. A cut of the teacher has two offsets, the end of the tokens before it and the start of the tokens after
    # it, which differ at a gap. If several tokens share a cut, the first one counts, so that tokens without width come
    # after it.
    starts, ends = covered(starts), covered(ends)
    index = np.array([0, *borders, len(teacher)])
    sides = np.stack([np.append(0, ends)[index], np.append(starts, done[-1])[index]], axis=1).ravel()
    teacher_cuts, first = np.unique(sides, return_index=True)
    teacher_index = index.repeat(2)[first]
    index = np.array([0, *student_borders, len(student)])
    student_cuts, first = np.unique(done[index], return_index=True)
    cuts, in_teacher, in_student = np.intersect1d(teacher_cuts, student_cuts, assume_unique=True, return_indices=True)
    bounds = np.stack([teacher_index[in_teacher], index[first][in_student]])
    # Tokens without width at the end of the text lie after the last cut, in a separate chunk.
    if tuple(bounds[:, -1]) != (len(teacher), len(student)):
        bounds = np.concatenate([bounds, [[len(teacher)], [len(student)]]], axis=1)
        cuts = np.append(cuts, done[-1])
    (teachers, students), width = np.diff(bounds, axis=1), np.diff(cuts)
    # A chunk of one teacher token and one student token is "same" only if the teacher token fills it.
    is_full = (np.append(ends - starts, 0)[bounds[0, :-1]] == width) & (width > 0)
    is_split, is_merged = (teachers == 1) & (students > 1), (teachers > 1) & (students == 1)
    is_same = (teachers == 1) & (students == 1) & is_full
    kinds = np.select([is_same, is_merged, is_split], [0, 1, 2], 3).astype(np.uint8)
    return SpanAlignment(bounds[0], bounds[1], kinds)


def as_pairs(offsets: Sequence[Span] | np.ndarray, side: str) -> np.ndarray:
    """The offsets as [n, 2] int64. Raises UserError if they have another shape or are not whole numbers."""
    array = np.asarray(offsets)
    if array.dtype is _INT64 and array.ndim == 2 and array.shape[1] == 2:
        return array
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
    return array.astype(np.int64, copy=False)


def _checked(array: np.ndarray, side: str) -> np.ndarray:
    """The same array. Raises UserError if its offsets cannot be those of the tokens of a text."""
    starts, stops = array[:, 0], array[:, 1]
    if (starts < 0).any() or (starts > stops).any():
        token = int(np.flatnonzero((starts < 0) | (starts > stops))[0])
        where, found = f"token {token} of the {side}", tuple(array[token].tolist())
        raise UserError("a token ends before it starts", code="E-align-offsets", where=where, found=found)
    # Libraries give the offsets (0, 0) to special tokens (BOS, EOS, padding). No token after other text can begin at 0.
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
    """Whether every token has a width and begins at the end of the token before it, the first token at 0."""
    starts, ends = spans[:, 0], spans[:, 1]
    # Bytes are compared in a third of the time of `(starts[1:] == ends[:-1]).all()`: a text has only some hundred tokens.
    return bool(
        len(spans)
        and starts[0] == 0
        and starts[1:].tobytes() == ends[:-1].tobytes()
        and 0 not in (starts < ends).tobytes()
    )


def _align_contiguous(teacher: np.ndarray, student: np.ndarray) -> SpanAlignment:
    """Align by the ends of the tokens, which suffice if both sides cover the text without gaps and overlaps."""
    teacher_end, student_end = np.zeros(int(teacher[-1]) + 1, bool), np.zeros(int(teacher[-1]) + 1, bool)
    teacher_end[teacher] = student_end[student] = True
    last = student_end[teacher].nonzero()[0]  # the last teacher token of each chunk
    bounds = np.zeros((2, len(last) + 1), np.int64)
    np.add(last, 1, out=bounds[0, 1:])
    np.add(teacher_end[student].nonzero()[0], 1, out=bounds[1, 1:])
    merged, split = (bounds[:, 1:] - bounds[:, :-1] > 1).view(np.uint8)
    return SpanAlignment(bounds[0], bounds[1], merged + 2 * split)


def _find_borders(spans: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Three arrays: [n] the end of tokens 0 to i; [n] the start of tokens i to n - 1; and the borders, which are the
    indices i for which the tokens before i share no byte with the tokens from i on."""
    ends, starts = np.maximum.accumulate(spans[:, 1]), np.minimum.accumulate(spans[::-1, 0])[::-1]
    return ends, starts, np.flatnonzero(ends[:-1] <= starts[1:]) + 1


@dataclass(frozen=True, slots=True)
class NormalizedText:
    """A normalized text, and the offsets of its letters in the original.

    text          the letters, without anything that tokenizers add, drop or fold
    starts, ends  [letters] start and end of each letter's bytes in the original
    """

    text: str
    starts: list[int]
    ends: list[int]


def normalize_text(data: bytes) -> NormalizedText:
    """The normalized text of some bytes. Every byte that is not UTF-8 becomes one U+FFFD."""
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


def align_pieces(teacher: Sequence[bytes], student: Sequence[bytes | None]) -> SpanAlignment:
    """Align two tokenizations by the bytes of their tokens. Their texts may differ a little.

    teacher  the bytes of each token
    student  the bytes of each token; None for the unknown token, which may stand for any letters; empty for a token
             without text (BOS)

    Raises UserError if a piece is a string instead of bytes.
    """
    wrong = next((piece for piece in (*teacher, *student) if isinstance(piece, str)), None)
    if wrong is not None:
        raise UserError(
            "a piece is text, not bytes",
            code="E-align-text-for-bytes",
            found=repr(wrong)[:80],
            hint="use text.encode()",
        )
    original, (text, ranges) = normalize_text(b"".join(teacher)), _normalize_pieces(student)
    matched = _match_letters(original.text, text)
    reached, offsets = 0, []
    for low, high in ranges:
        # Letters without a partner in the teacher's text have an empty range.
        inside = [(original.starts[i], original.ends[j - 1]) for i, j in matched[low:high] if i < j]
        start = min((start for start, _ in inside), default=reached)
        end = max((end for _, end in inside), default=start)
        offsets.append((start, end))
        reached = max(reached, end)
    return align_spans(*(np.asarray(side, np.int64).reshape(-1, 2) for side in (token_spans(teacher), offsets)))


@lru_cache(maxsize=1 << 14)
def _normalize_letter(character: str) -> str:
    if "\udc80" <= character <= "\udcff":
        return "\ufffd"
    folded = unicodedata.normalize("NFKD", unicodedata.normalize("NFKD", character).casefold())
    return "".join(letter for letter in folded if unicodedata.category(letter)[0] not in "CMZ" and letter != "▁")


def _normalize_pieces(student: Sequence[bytes | None]) -> tuple[str, list[Span]]:
    """The normalized text of the pieces, and the range of its letters that belongs to each piece."""
    known = normalize_text(b"".join(piece or b"" for piece in student))
    text: list[str] = []
    ranges: list[Span] = []
    letter = offset = 0
    for piece in student:
        low = len(text)
        if piece is None:
            text.append(_UNKNOWN_LETTER)
        offset += len(piece or b"")
        # A letter whose bytes lie in several pieces belongs to the one that ends it.
        while letter < len(known.text) and known.ends[letter] <= offset:
            text.append(known.text[letter])
            letter += 1
        ranges.append((low, len(text)))
    return "".join(text), ranges


def _match_letters(teacher: str, student: str) -> list[Span]:
    """[student letters] the range of teacher letters that each one stands for; an empty range for an added letter."""
    # Both texts are read in parallel. At a difference, the loop searches for the nearest position from which the texts
    # are equal again, and aligns only the gap before it by edit distance. The text after the gap does not depend on it.
    matched: list[Span] = []
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


def _resynchronize(teacher: str, student: str, i: int, j: int) -> Span:
    """The nearest positions after i and j from which the texts are equal; the ends of the texts if there are none."""
    # The nearest positions are those that skip the fewest letters, both sides added.
    for distance in range(1, _MAX_GAP + 1):
        for step in range(distance + 1):
            a, b = i + step, j + distance - step
            if a > len(teacher) or b > len(student):
                continue
            if teacher[a : a + _RESYNC_LENGTH] == student[b : b + _RESYNC_LENGTH] and (
                len(teacher) - a >= _RESYNC_LENGTH or len(teacher) - a == len(student) - b
            ):
                return a, b
    # The quadratic search above would be too slow for a longer gap. Instead, find the first long substring of the
    # student's text that the teacher's text has too, at most about twice as far away.
    for b in range(j, min(j + 64 * _MAX_GAP, len(student) - 4 * _RESYNC_LENGTH)):
        a = teacher.find(student[b : b + 4 * _RESYNC_LENGTH], i, i + 2 * (b - j) + 64 * _MAX_GAP)
        if a >= 0:
            return a, b
    return len(teacher), len(student)


def _align_gap(teacher: str, student: str, start: int) -> list[Span]:
    """The ranges of teacher letters for the student letters of a gap, by the least edit distance.

    Teacher letters without a partner belong to the student letter before them.

    start  the index of the gap's first letter in the teacher's text
    """
    rows, columns = len(teacher), len(student)
    if rows * columns > _MAX_GAP_CELLS or not rows:
        return [(start, start + rows)] * columns

    def change(i: int, j: int) -> float:
        # To match an unknown token costs less than to match a wrong letter, which costs less than to drop both letters.
        return 0.0 if teacher[i - 1] == student[j - 1] else 0.5 if student[j - 1] == _UNKNOWN_LETTER else 1.5

    cost = [[float(j) for j in range(columns + 1)]]
    for i in range(1, rows + 1):
        row = [float(i)]
        for j in range(1, columns + 1):
            row.append(min(cost[i - 1][j - 1] + change(i, j), cost[i - 1][j] + 1, row[j - 1] + 1))
        cost.append(row)
    i, j = rows, columns
    ranges = [(0, 0)] * columns
    end = rows
    while j:
        if i and cost[i][j] == cost[i - 1][j - 1] + change(i, j):
            i, j = i - 1, j - 1
            ranges[j] = (start + i, start + end)
            end = i
        elif cost[i][j] == cost[i][j - 1] + 1:
            j -= 1
            ranges[j] = (start + end, start + end)
        else:
            i -= 1
    if end and columns:  # teacher letters before the first student letter belong to it
        first = next((j for j, (low, high) in enumerate(ranges) if low < high), 0)
        ranges[first] = (start, max(ranges[first][1], start + end))
    return ranges
