"""Aligns two tokenizations by where their tokens lie: in one text, or in two texts that differ a little.

`spans` reads offsets in one text:

    >>> [chunk.kind for chunk in spans([(0, 2), (2, 4)], [(0, 2), (2, 3), (3, 4)])]
    ['same', 'split']

`align_pieces` reads the bytes of the tokens, and finds the offsets itself. The two texts may differ in case, Unicode
form and whitespace, and the student's may have unknown tokens:

    >>> teacher, student = [b"4", b" \\xc3\\x97", b" 3"], [b"", b" 4", None, b"3"]  # BOS; a sign without a piece
    >>> [(list(chunk.teacher), list(chunk.student), chunk.kind) for chunk in align_pieces(teacher, student)]
    [([0], [0, 1], 'split'), ([1], [2], 'same'), ([2], [3], 'same')]

It compares normalized texts: what all tokenizers keep of a text, with the way back to its bytes. They have no whitespace
(`▁` is some), no control characters and no combining marks; compatibility forms are decomposed, and case is folded.

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
# Of `align_pieces`, in letters of the normalized texts:
_RESYNC_LENGTH: Final = 6  # that must be the same for the two texts to be together again
_MAX_GAP: Final = 64  # that a gap may have on both sides together; beyond it whole stretches of text are sought
_MAX_GAP_CELLS: Final = 40_000  # of a gap that is aligned letter by letter; in a larger one all tokens share one range
_UNKNOWN_LETTER: Final = "\x00"  # stands for an unknown token: any letters


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
    that *follows*, because it decides what comes next; at the end of the text it is a chunk with nothing on the other
    side. Tokens that overlap (several in one character) stay together. Where the teacher's tokens leave a hole, the
    student's tokens in it make a chunk without a teacher token.

    Raises UserError where an array is not [n, 2] of whole numbers, where a span ends before it starts, and where the
    offsets include a special token: (0, 0) after a token that has a width.
    """
    return align_spans(_checked(teacher_offsets, "teacher"), _checked(student_offsets, "student"))


def align_spans(teacher: np.ndarray, student: np.ndarray) -> SpanAlignment:
    """As `spans`, for offsets [n, 2] int64 that are known to be those of tokens of one text."""
    if _is_contiguous(teacher) and _is_contiguous(student) and teacher[-1, 1] == student[-1, 1]:
        return _align_contiguous(teacher[:, 1], student[:, 1])
    ends, starts, borders = _find_borders(teacher)
    student_ends, _, student_borders = _find_borders(student)
    # Positions are counted in text that the student covers: begins[k], widths[k] and done[k] are where its k-th token
    # (counted from 1) begins to cover new text, how much of it, and how much is covered up to there. Entry 0 is the
    # start of the text.
    begins = np.append(0, np.maximum(student[:, 0], np.append(0, student_ends)[:-1]))
    widths = np.append(0, np.maximum(student_ends - begins[1:], 0))
    done = np.cumsum(widths)

    def covered(offsets: np.ndarray) -> np.ndarray:
        token = np.searchsorted(begins, offsets, side="right") - 1
        return done[token] - widths[token] + np.clip(offsets - begins[token], 0, widths[token])

    # Each side is cut wherever none of its tokens lies across; the cuts of both sides bound the chunks. A cut of the
    # teacher has two sides, the end of the tokens before and the start of those after: they differ at a hole. Where
    # several tokens share a cut, the first counts: a token without width comes after the cut.
    starts, ends = covered(starts), covered(ends)
    index = np.array([0, *borders, len(teacher)])
    sides = np.stack([np.append(0, ends)[index], np.append(starts, done[-1])[index]], axis=1).ravel()
    teacher_cuts, first = np.unique(sides, return_index=True)
    teacher_index = index.repeat(2)[first]
    index = np.array([0, *student_borders, len(student)])
    student_cuts, first = np.unique(done[index], return_index=True)
    cuts, in_teacher, in_student = np.intersect1d(teacher_cuts, student_cuts, assume_unique=True, return_indices=True)
    bounds = np.stack([teacher_index[in_teacher], index[first][in_student]])
    # Tokens without width at the end of the text lie after the last cut: a separate chunk.
    if tuple(bounds[:, -1]) != (len(teacher), len(student)):
        bounds = np.concatenate([bounds, [[len(teacher)], [len(student)]]], axis=1)
        cuts = np.append(cuts, done[-1])
    (teachers, students), width = np.diff(bounds, axis=1), np.diff(cuts)
    # A lone teacher token is the same as a lone student token only if it has all of the chunk's width.
    is_full = (np.append(ends - starts, 0)[bounds[0, :-1]] == width) & (width > 0)
    is_split, is_merged = (teachers == 1) & (students > 1), (teachers > 1) & (students == 1)
    is_same = (teachers == 1) & (students == 1) & is_full
    kinds = np.select([is_same, is_merged, is_split], [0, 1, 2], 3).astype(np.uint8)
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
        where, found = f"token {token} of the {side}", tuple(array[token].tolist())
        raise UserError("a token ends before it starts", code="E-align-offsets", where=where, found=found)
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
        bounds.append(np.append(0, np.flatnonzero(is_end[side]) + 1))
    merged, split = (side[1:] - side[:-1] > 1 for side in bounds)
    return SpanAlignment(bounds[0], bounds[1], merged.view(np.uint8) + 2 * split.view(np.uint8))


def _find_borders(spans: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """[n] where the tokens up to each one end, [n] where the tokens from each one on begin, and the borders: tokens 0 to
    border - 1 share no byte with the rest."""
    ends, starts = np.maximum.accumulate(spans[:, 1]), np.minimum.accumulate(spans[::-1, 0])[::-1]
    return ends, starts, np.flatnonzero(ends[:-1] <= starts[1:]) + 1


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


def align_pieces(teacher: Sequence[bytes], student: Sequence[bytes | None]) -> SpanAlignment:
    """Align two tokenizations of which only the bytes of the tokens are known, and whose texts may differ.

    teacher  the bytes of each token
    student  the bytes of each token; None for the unknown token, which stands for any letters; empty for a token that
             is not text (BOS)

    Raises UserError for pieces that are text and not bytes.
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
    """The normalized text of the pieces, and which of its letters each of them has."""
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
    """[student letters] the range of teacher letters that each stands for; an empty range for an added letter."""
    # The texts are walked together. Where they part, the nearest position is sought from which they are the same again,
    # and only the gap between is aligned by edit distance: what follows does not depend on the gap.
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
    """The nearest positions after i and j from which the two texts are the same; their ends where there are none."""
    # Nearest first, by the sum of what both sides skip.
    for distance in range(1, _MAX_GAP + 1):
        for step in range(distance + 1):
            a, b = i + step, j + distance - step
            if a > len(teacher) or b > len(student):
                continue
            if teacher[a : a + _RESYNC_LENGTH] == student[b : b + _RESYNC_LENGTH] and (
                len(teacher) - a >= _RESYNC_LENGTH or len(teacher) - a == len(student) - b
            ):
                return a, b
    # A longer gap, for which the quadratic search above would be too slow: the first longer stretch of the student's
    # text that the teacher's text has too, at most about twice as far away.
    for b in range(j, min(j + 64 * _MAX_GAP, len(student) - 4 * _RESYNC_LENGTH)):
        a = teacher.find(student[b : b + 4 * _RESYNC_LENGTH], i, i + 2 * (b - j) + 64 * _MAX_GAP)
        if a >= 0:
            return a, b
    return len(teacher), len(student)


def _align_gap(teacher: str, student: str, start: int) -> list[Span]:
    """Least edit distance inside a gap. Teacher letters without a partner belong to the letter before them.

    start  where the gap begins in the teacher's text
    """
    rows, columns = len(teacher), len(student)
    if rows * columns > _MAX_GAP_CELLS or not rows:
        return [(start, start + rows)] * columns

    def change(i: int, j: int) -> float:
        # An unknown token is a better partner than any wrong letter; a wrong one is better than leaving both out.
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
    if end and columns:  # teacher letters before the first letter belong to it
        first = next((j for j, (low, high) in enumerate(ranges) if low < high), 0)
        ranges[first] = (start, max(ranges[first][1], start + end))
    return ranges
