"""The one loss: how far the student's next-token distribution is from a sparse distribution of the teacher.

    >>> hidden, head = torch.zeros(1, 2), torch.zeros(4, 2)                   # the student says 1/4 to each of 4 tokens
    >>> sparse(hidden, head, torch.tensor([[3]]), torch.tensor([[1.0]]))      # a hard label: cross-entropy, log 4
    tensor([1.3863])
    >>> ids, probabilities = torch.tensor([[0, 1]]), torch.tensor([[0.5, 0.25]])
    >>> round(sparse(hidden, head, ids, probabilities, mass="tail").item(), 4)  # 0.5 log 2 + 0.25 log 1 + 0.25 log 1/2
    0.1733

A hard label is a distribution of one candidate with probability 1, so sample matching, answers, human rationales and
distribution matching are the same function (PAPER section 5). Let p be the candidates' probabilities of a position,
M their sum (the kept mass), q the student's softmax over the whole vocabulary and Q the student's mass on the
candidates.

    mass          value                                                      gradient in the logits
    raw           sum p log(p / q)                                           M q - p          (the paper's)
    renormalised  sum (p / M) log((p / M) / q)                               q - p / M
    tail          sum p log(p / q) + (1 - M) log((1 - M) / (1 - Q))          q - p on the candidates,
                                                                             q (M - Q) / (1 - Q) elsewhere

All of them are 0 with gradient 0 where q is the teacher's own distribution (`raw`: where it is shown whole, M = 1).
"""

from __future__ import annotations

from typing import Any, Final, Literal, get_args

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from potstill.errors import UserError

VERSION: Final = 1  # of the values that this module computes

Mass = Literal["raw", "renormalised", "tail"]
MASSES: Final[tuple[str, ...]] = get_args(Mass)
CHUNK_ELEMENTS: Final = 1 << 24  # logits that live at a time where `chunk` is not given: 64 MiB in fp32
NO_TAIL: Final = 1e-6  # what is missing to 1 below this is the rounding of a sum, not a tail


def sparse(
    hidden: Tensor,
    head: Tensor,
    ids: Tensor,
    probabilities: Tensor,
    *,
    mass: Mass = "raw",
    bias: Tensor | None = None,
    scale: float = 1.0,
    cap: float | None = None,
    chunk: int | None = None,
) -> Tensor:
    """Kullback-Leibler divergence of the student from a sparse teacher, per position, in nats; not reduced.

    hidden         [n, d] float: the last hidden state at the supervised positions only
    head           [v, d] float: the output embedding; its rows beyond the tokenizer (padding) are part of the softmax,
                   as they are when the model generates
    ids            [n, k] int64 in [0, v): the candidates of each position, distinct within it
    probabilities  [n, k] float in [0, 1]; a slot of probability 0 is padding, whatever its id
    mass           what becomes of a kept mass under 1: see the table above
    bias           [v] added to the logits; `scale` multiplies hidden @ head.T (d_model^-0.5 in T5 v1.0)
    cap            logits become cap * tanh(logits / cap) (Gemma 2)
    chunk          rows whose logits live at a time; the value does not depend on it

    Returns [n] float32 (float64 for float64 inputs). Products are computed in float32 also for bfloat16 inputs and
    under autocast; gradients come back in the dtype of hidden, head and bias. A position without any probability has
    the loss 0 under `raw` and `tail`. Raises UserError where `renormalised` meets such a position; asserts shapes and
    ids.
    """
    n, k = ids.shape
    assert mass in MASSES, f"mass is one of {', '.join(MASSES)}, not {mass!r}"
    assert hidden.ndim == 2 and head.ndim == 2 and hidden.shape[1] == head.shape[1], (
        f"hidden states {tuple(hidden.shape)} do not fit a head of {tuple(head.shape)}"
    )
    assert hidden.shape[0] == n and probabilities.shape == (n, k), (
        f"{hidden.shape[0]} hidden states, candidates {tuple(ids.shape)}, probabilities {tuple(probabilities.shape)}"
    )
    assert bias is None or bias.shape == (head.shape[0],), f"a bias of {tuple(bias.shape)} for {head.shape[0]} logits"
    assert not probabilities.requires_grad, "the teacher's probabilities are constants"
    if n:
        low, high = int(ids.min()), int(ids.max())
        assert low >= 0 and high < head.shape[0], f"candidate ids {low} to {high} for a head of {head.shape[0]} rows"
    if mass == "renormalised" and n and bool((probabilities.sum(1) <= 0).any()):
        raise UserError(
            "a position has no kept probability, so there is nothing to renormalise",
            where="loss",
            do="use mass: raw or tail, or a transfer rule that keeps the written token",
        )
    rows = chunk or max(1, CHUNK_ELEMENTS // head.shape[0])
    values = _Sparse.apply(hidden, head, bias, ids, probabilities, mass, float(scale), cap, rows)
    assert isinstance(values, Tensor)
    return values


class _Sparse(torch.autograd.Function):
    """Keeps the log-normaliser of every row, and computes the logits of a chunk a second time in the backward pass."""

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any,
        hidden: Tensor,
        head: Tensor,
        bias: Tensor | None,
        ids: Tensor,
        probabilities: Tensor,
        mass: str,
        scale: float,
        cap: float | None,
        rows: int,
    ) -> Tensor:
        with torch.autocast(hidden.device.type, enabled=False):
            kind = torch.float64 if hidden.dtype == torch.float64 else torch.float32
            p = probabilities.to(kind)
            p = p / p.sum(1, keepdim=True) if mass == "renormalised" else p
            wide, wide_bias = head.to(kind), None if bias is None else bias.to(kind)
            values = hidden.new_empty(len(hidden), dtype=kind)
            normaliser, rest = torch.empty_like(values), torch.empty_like(values)
            for start in range(0, len(hidden), rows):
                at = slice(start, start + rows)
                logits = _logits(hidden[at].to(kind), wide, wide_bias, scale, cap)
                values[at], normaliser[at], rest[at] = _forward(logits, ids[at], p[at], mass)
        ctx.save_for_backward(hidden, head, bias, ids, p, normaliser, rest)
        ctx.settings = mass, scale, cap, rows
        return values

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        hidden, head, bias, ids, p, normaliser, rest = ctx.saved_tensors
        mass, scale, cap, rows = ctx.settings
        needs_hidden, needs_head, needs_bias = ctx.needs_input_grad[:3]
        with torch.autocast(hidden.device.type, enabled=False):
            wide, wide_bias = head.to(p.dtype), None if bias is None else bias.to(p.dtype)
            to_hidden = torch.empty_like(hidden) if needs_hidden else None
            to_head = torch.zeros_like(wide) if needs_head else None
            to_bias = torch.zeros_like(wide_bias) if needs_bias and wide_bias is not None else None
            for start in range(0, len(hidden), rows):
                at = slice(start, start + rows)
                states = hidden[at].to(p.dtype)
                logits = _logits(states, wide, wide_bias, scale, cap)
                slope = _slope(logits, ids[at], p[at], normaliser[at], rest[at], mass)
                if cap is not None:
                    slope.mul_(1 - (logits / cap).square())
                slope.mul_(grad[at].unsqueeze(1))
                if to_bias is not None:
                    to_bias += slope.sum(0)
                if to_hidden is not None:
                    to_hidden[at] = (slope @ wide).mul_(scale)
                if to_head is not None:
                    to_head.addmm_(slope.T, states, alpha=scale)
        return (
            to_hidden,
            None if to_head is None else to_head.to(head.dtype),
            None if to_bias is None or bias is None else to_bias.to(bias.dtype),
            *[None] * 6,
        )


def _logits(hidden: Tensor, head: Tensor, bias: Tensor | None, scale: float, cap: float | None) -> Tensor:
    logits = hidden @ head.T
    if scale != 1.0:
        logits.mul_(scale)
    if bias is not None:
        logits.add_(bias)
    return logits if cap is None else logits.div_(cap).tanh_().mul_(cap)


def _forward(logits: Tensor, ids: Tensor, p: Tensor, mass: str) -> tuple[Tensor, Tensor, Tensor]:
    """Values, log-normalisers and the student's log-probability outside the candidates (0 where it is not needed)."""
    normaliser = logits.logsumexp(1)
    shown = p > 0
    log_q = logits.gather(1, ids) - normaliser.unsqueeze(1)
    values = torch.where(shown, torch.xlogy(p, p) - p * log_q, 0.0).sum(1)
    if mass != "tail":
        return values, normaliser, torch.zeros_like(values)
    # The sum over what is not a candidate, not 1 - Q: near Q = 1 the difference would have no digits left.
    rest = _elsewhere(logits, ids, shown).logsumexp(1) - normaliser
    tail = _tail(p)
    values = values + torch.where(tail > 0, torch.xlogy(tail, tail) - tail * rest, 0.0)
    return values, normaliser, rest


def _slope(logits: Tensor, ids: Tensor, p: Tensor, normaliser: Tensor, rest: Tensor, mass: str) -> Tensor:
    """The gradient of the values in the logits, [rows, v]."""
    q = (logits - normaliser.unsqueeze(1)).exp_()
    if mass != "tail":
        return q.mul_(p.sum(1, keepdim=True)).scatter_add_(1, ids, -p)
    shown, tail = p > 0, _tail(p)
    seen = torch.where(shown, q.gather(1, ids), 0.0)
    # Elsewhere M q - (1 - M) Q q / (1 - Q), the last factor as one exponential; on a candidate M q + (1 - M) q - p.
    relative = torch.where(tail > 0, normaliser + rest, torch.inf).unsqueeze(1)
    elsewhere = (_elsewhere(logits, ids, shown) - relative).exp_().mul_((tail * seen.sum(1)).unsqueeze(1))
    q.mul_((1 - tail).unsqueeze(1)).sub_(elsewhere)
    return q.scatter_add_(1, ids, torch.where(shown, seen * tail.unsqueeze(1) - p, 0.0))


def _elsewhere(logits: Tensor, ids: Tensor, shown: Tensor) -> Tensor:
    """The logits with the candidates' own taken out; the ids of padded slots stay."""
    hide = torch.where(shown, -torch.inf, torch.inf).to(logits.dtype)
    return logits.scatter_reduce(1, ids, hide, "amin")


def _tail(p: Tensor) -> Tensor:
    tail = 1 - p.sum(1)
    return torch.where(tail > NO_TAIL, tail, 0.0)
