"""The precision of a loss's matrix products, whatever the model's own products are made in.

>>> lower(torch.zeros(1, dtype=torch.bfloat16)), lower(torch.zeros(1))
(True, False)
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor


def lower(hidden: Tensor) -> bool:
    """Whether a model works in less than float32 here: its states say so, or autocast does."""
    return hidden.dtype in (torch.bfloat16, torch.float16) or torch.is_autocast_enabled(hidden.device.type)


@contextmanager
def products(kind: str, low: bool) -> Iterator[None]:
    """Inside, products take float32 as it is, on this kind of device ("cuda"). Of a model that works in less, a GPU
    makes them as TF32: factors are rounded to its 10 bits (a bfloat16 has 7), sums stay in float32, and tensor cores
    compute it; a model in float32 keeps all its digits."""
    matmul = torch.backends.cuda.matmul
    with torch.autocast(kind, enabled=False):
        if kind != "cuda" or not low:
            yield
            return
        before, matmul.fp32_precision = matmul.fp32_precision, "tf32"
        try:
            yield
        finally:
            matmul.fp32_precision = before
