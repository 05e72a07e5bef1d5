"""How well a decoder-only student predicts given texts: bits and bytes of each text.

    rows = measure_texts(student, ["The cat sat on the mat.", "It rained."])
    sum(row.bits for row in rows) / sum(row.bytes for row in rows)       # bits per byte

Bits per byte does not depend on the tokenizer, so it compares models, and it changes long before an accuracy does.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor

from potstill.models import Student

WINDOW: Final = 1024  # tokens that the model reads at once; a longer text is read in windows


@dataclass(frozen=True, slots=True)
class TextBits:
    """bits   that the model needs for the predicted tokens of a text: -log2 of their probability
    bytes  of the same tokens, in UTF-8. The first token of a text counts only if the tokenizer begins every text with
           a token (such as `<s>`), because nothing precedes it otherwise
    """

    bits: float
    bytes: int


def measure_texts(
    student: Student, texts: Sequence[str], *, window: int = WINDOW, advance: Callable[[], object] = lambda: None
) -> list[TextBits]:
    """The bits and bytes of each text, each text alone, without a chat template.

    student  decoder-only
    window   the most tokens that the model reads at once. A longer text is cut into windows, and the last token of a
             window is the first that the next one reads, so each token is predicted once
    advance  called after each text
    """
    assert student.family == "causal", "an encoder-decoder predicts no text without an input"
    rows = []
    for text in texts:
        rows.append(_measure_text(student, text, window))
        advance()
    return rows


@torch.inference_mode()
def _measure_text(student: Student, text: str, window: int) -> TextBits:
    encoding = student.tokenizer.encode(text)
    prefix = student.tokenizer.prefix
    ids = [*prefix, *encoding.ids]
    skipped = 0 if prefix or not encoding.spans else encoding.spans[0][1]  # bytes of a token that nothing precedes
    nats = 0.0
    for start in range(0, len(ids) - 1, window):
        part = torch.tensor([ids[start : start + window + 1]], device=student.device)
        nats += _sum_nats(student.model, part)
    if len(ids) < 2:
        return TextBits(0.0, 0)
    return TextBits(nats / math.log(2), len(text.encode()) - skipped)


def _sum_nats(model: Any, ids: Tensor) -> float:
    """-log of the probability of ids[0, 1:], given what precedes each. ids [1, n] int64."""
    logits = model(input_ids=ids[:, :-1], use_cache=False).logits[0].float()
    return float(torch.nn.functional.cross_entropy(logits, ids[0, 1:], reduction="none").double().sum())
