"""Aligns the tokens of a teacher and a student, and makes the student's training targets from the alignment.

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

`dtw` is the published method (Fu et al. 2023, section 4). It compares strings. `spans` compares offsets in one text; it
is exact and takes linear time. `align_pieces` computes the offsets first: use it if only the bytes of the tokens are
known, or if a tokenizer has changed the text. `transfer` makes the target of a chain, and `completions` prepares it for
the rule `text`. All of them are pure functions.
"""

from __future__ import annotations

from typing import Final

from potstill.alignment.char_spans import (
    CHUNK_KINDS,
    Chunk,
    NormalizedText,
    SpanAlignment,
    align_pieces,
    normalize_text,
    spans,
)
from potstill.alignment.cross_tokenizer import RULES, transfer
from potstill.alignment.text_rule_completions import Completions, completions
from potstill.alignment.time_warping import MAX_DTW_CELLS, DtwAlignment, dtw

VERSION: Final = 1  # of the alignments; stored in the manifest of the stage that aligns

__all__ = [
    "CHUNK_KINDS",
    "MAX_DTW_CELLS",
    "RULES",
    "VERSION",
    "Chunk",
    "Completions",
    "DtwAlignment",
    "NormalizedText",
    "SpanAlignment",
    "align_pieces",
    "completions",
    "dtw",
    "normalize_text",
    "spans",
    "transfer",
]
