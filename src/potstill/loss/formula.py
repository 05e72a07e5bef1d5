"""The formulas of one chunk of rows: logits, values, and the gradient of the values in the logits.

>>> logits = logits_of(torch.zeros(1, 2), torch.zeros(4, 2), None, 1.0, None)
>>> values_of(logits, torch.tensor([[3]]), torch.tensor([[1.0]]), "raw")[0]
tensor([1.3863])
"""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor

NO_TAIL: Final = 1e-6  # what is missing to 1 below this is the rounding of a sum, not a tail


def logits_of(hidden: Tensor, head: Tensor, bias: Tensor | None, scale: float, cap: float | None) -> Tensor:
    logits = hidden @ head.T
    if scale != 1.0:
        logits.mul_(scale)
    if bias is not None:
        logits.add_(bias)
    return logits if cap is None else logits.div_(cap).tanh_().mul_(cap)


def values_of(logits: Tensor, ids: Tensor, p: Tensor, mass: str) -> tuple[Tensor, Tensor, Tensor]:
    """Values, log-normalisers and the student's log-probability outside the candidates (0 where it is not needed)."""
    normaliser = logits.logsumexp(1)
    shown = p > 0
    log_q = logits.gather(1, ids) - normaliser.unsqueeze(1)
    values = torch.where(shown, torch.xlogy(p, p) - p * log_q, 0.0).sum(1)
    if mass != "tail":
        return values, normaliser, torch.zeros_like(values)
    # The sum over what is not a candidate, not 1 - Q: near Q = 1 the difference would have no digits left.
    rest = without(logits, ids, shown).logsumexp(1) - normaliser
    tail = tail_of(p)
    values = values + torch.where(tail > 0, torch.xlogy(tail, tail) - tail * rest, 0.0)
    return values, normaliser, rest


def slope_of(
    logits: Tensor,
    ids: Tensor,
    p: Tensor,
    normaliser: Tensor,
    rest: Tensor,
    mass: str,
    count: Tensor,
    *,
    free: bool = False,
) -> Tensor:
    """The gradient of sum(count * values) in the logits, [rows, v]; `free`: whose memory may be written over."""
    shifted = logits.sub_(normaliser.unsqueeze(1)) if free and mass != "tail" else logits - normaliser.unsqueeze(1)
    q = shifted.exp_()
    if mass != "tail":
        return q.mul_((p.sum(1) * count).unsqueeze(1)).scatter_add_(1, ids, p * -count.unsqueeze(1))
    shown, tail = p > 0, tail_of(p)
    seen = torch.where(shown, q.gather(1, ids), 0.0)
    # Elsewhere M q - (1 - M) Q q / (1 - Q), the last factor as one exponential; on a candidate M q + (1 - M) q - p.
    relative = torch.where(tail > 0, normaliser + rest, torch.inf).unsqueeze(1)
    elsewhere = (without(logits, ids, shown) - relative).exp_().mul_((tail * seen.sum(1)).unsqueeze(1))
    q.mul_((1 - tail).unsqueeze(1)).sub_(elsewhere)
    q.scatter_add_(1, ids, torch.where(shown, seen * tail.unsqueeze(1) - p, 0.0))
    return q.mul_(count.unsqueeze(1))


def both_of(
    logits: Tensor, ids: Tensor, p: Tensor, count: Tensor, mass: str, cap: float | None
) -> tuple[Tensor, Tensor]:
    """Values, and the gradient of sum(count * values) in the logits as they were before the cap; writes over them."""
    bend = None if cap is None else 1 - (logits / cap).square()
    values, normaliser, rest = values_of(logits, ids, p, mass)
    slope = slope_of(logits, ids, p, normaliser, rest, mass, count, free=True)
    return values, slope if bend is None else slope.mul_(bend)


def without(logits: Tensor, ids: Tensor, shown: Tensor) -> Tensor:
    """The logits with the candidates' own taken out; the ids of padded slots stay."""
    hide = torch.where(shown, -torch.inf, torch.inf).to(logits.dtype)
    return logits.scatter_reduce(1, ids, hide, "amin")


def tail_of(p: Tensor) -> Tensor:
    tail = 1 - p.sum(1)
    return torch.where(tail > NO_TAIL, tail, 0.0)
