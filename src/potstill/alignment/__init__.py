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

    >>> [chunk.kind for chunk in align_pieces([b"Caf", b"\\xc3\\xa9", b" 12"], [b" cafe", b" 12"])]
    ['merged', 'same']

`dtw` is the published method (PAPER section 4), which compares strings. `spans` is exact and linear, and compares
places in one text. `pieces` is for tokens of which only their own bytes are known, and for texts that a tokenizer has
changed: it finds the places first. All are pure.
"""

from __future__ import annotations

from typing import Final

from potstill.alignment.char_spans import CHUNK_KINDS, Chunk, SpanAlignment, spans
from potstill.alignment.gaps import align_pieces
from potstill.alignment.time_warping import MAX_DTW_CELLS, DtwAlignment, NormalizedText, dtw, normalize_text

VERSION: Final = 1  # of which tokens stand for the same text; stored in the manifest of the stage that aligns

__all__ = [
    "CHUNK_KINDS",
    "MAX_DTW_CELLS",
    "VERSION",
    "Chunk",
    "DtwAlignment",
    "NormalizedText",
    "SpanAlignment",
    "align_pieces",
    "dtw",
    "normalize_text",
    "spans",
]
