"""The likelihood of given texts under a decoder-only student: bits and bytes of each text.

    rows = measure_texts(student, ["The cat sat on the mat.", "It rained."])
    sum(row.bits for row in rows) / sum(row.bytes for row in rows)       # bits per byte

Bits per byte does not depend on the tokenizer, so different models can be compared. It changes long before accuracy does.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor

from potstill.models import Student

WINDOW: Final = 1024  # maximum number of tokens that the model reads at once; a longer text is read in windows


@dataclass(frozen=True, slots=True)
class TextBits:
    """bits   -log2 of the probability of the predicted tokens of a text
    bytes  size of the same tokens in UTF-8. The first token of a text is predicted only if the tokenizer begins every text
           with a special token (such as `<s>`), because otherwise no token precedes it
    """

    bits: float
    bytes: int


def measure_texts(
    student: Student, texts: Sequence[str], *, window: int = WINDOW, advance: Callable[[], object] = lambda: None
) -> list[TextBits]:
    """The bits and bytes of each text, which is read separately and without a chat template.

    student  a decoder-only student
    window   maximum number of tokens that the model reads at once. A longer text is split into windows. The last token of a
             window is the first token of the next window, so each token is predicted once
    advance  function that is called after each text
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
    skipped = (
        0 if prefix or not encoding.spans else encoding.spans[0][1]
    )  # bytes of a first token without a preceding token
    nats = 0.0
    for start in range(0, len(ids) - 1, window):
        part = torch.tensor([ids[start : start + window + 1]], device=student.device)
        nats += _sum_nats(student.model, part)
    if len(ids) < 2:
        return TextBits(0.0, 0)
    return TextBits(nats / math.log(2), len(text.encode()) - skipped)


def _sum_nats(model: Any, ids: Tensor) -> float:
    """The negative log-probability (nats) of ids[0, 1:], each given all ids before it. ids: [1, n] int64."""
    logits = model(input_ids=ids[:, :-1], use_cache=False).logits[0].float()
    return float(torch.nn.functional.cross_entropy(logits, ids[0, 1:], reduction="none").double().sum())
