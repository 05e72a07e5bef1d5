"""Kernels: one chunk's formula as it is written, or compiled into fewer passes over the logits; which is faster where.

    >>> logits, ids, p = torch.zeros(1, 4), torch.tensor([[3]]), torch.tensor([[1.0]])
    >>> values, slope = chunk("plain")(logits, ids, p, torch.tensor([1.0]), "raw", None)
    >>> values, slope
    (tensor([1.3863]), tensor([[ 0.2500,  0.2500,  0.2500, -0.7500]]))

Between its matrix products the loss reads and writes the logits of a chunk about ten times, compiled about four. On a
CPU that is little beside the products, and other bits; on a GPU, whose products are faster than its memory, it may be
as much as they are. So a CPU is never asked, and a GPU measured.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Final, Literal, get_args

import torch
from torch import Tensor
from torch.utils.benchmark import Timer

from potstill.loss.formula import both_of
from potstill.loss.precision import products

Kernel = Literal["plain", "compiled"]
KERNELS: Final[tuple[str, ...]] = get_args(Kernel)
Chunk = Callable[[Tensor, Tensor, Tensor, Tensor, str, float | None], tuple[Tensor, Tensor]]


@dataclass(frozen=True, slots=True)
class Measured:
    """kernel: the faster one; seconds: of a chunk, by kernel; why: what stood against compiling, None if nothing."""

    kernel: Kernel
    seconds: dict[Kernel, float]
    why: str | None = None


@cache
def chunk(kernel: Kernel) -> Chunk:
    """`formula.both_of`. Compiled, it raises torch's own errors at its first call where nothing can be compiled."""
    if kernel == "plain":
        return both_of
    # Sizes are left open, since every micro-batch has other ones and a compilation takes seconds. Sizes of one, and two
    # that happen to be equal, still are compiled apart, for each mass: more often than torch expects.
    return torch.compile(both_of, dynamic=True, fullgraph=True, recompile_limit=64)  # type: ignore[return-value]


def measured(
    rows: int, vocabulary: int, candidates: int, mass: str, cap: float | None, device: torch.device, low: bool
) -> Measured:
    """Both kernels on one chunk of float32 logits [rows, vocabulary] on this device: a fraction of a second each, after
    compiling. Needs a few chunks of memory.

    low  whether the model works in less than float32, see `precision`: what is compiled here is what training runs
    """
    logits = torch.randn(rows, vocabulary, device=device)
    ids = torch.arange(candidates, device=device).expand(rows, -1).contiguous()
    p, count = torch.full(ids.shape, 0.9 / candidates, device=device), torch.ones(rows, device=device)

    def seconds(kernel: Kernel) -> float:
        own = chunk(kernel)
        work = {"once": lambda: own(logits.clone(), ids, p, count, mass, cap)}  # a chunk's logits are written over
        with torch.no_grad(), products(device.type, low):
            work["once"]()
            timer = Timer("once()", globals=work, num_threads=torch.get_num_threads())
            return timer.blocked_autorange(min_run_time=0.3).median

    plain = seconds("plain")
    try:
        compiled = seconds("compiled")
    except Exception as error:  # whatever a compiler says
        why = (str(error).strip() or "no reason given").splitlines()[0][:200]
        return Measured("plain", {"plain": plain}, f"{type(error).__name__}: {why}")
    return Measured("compiled" if compiled < plain else "plain", {"plain": plain, "compiled": compiled})
