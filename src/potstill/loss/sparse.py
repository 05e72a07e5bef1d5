"""Kullback-Leibler divergence from a sparse teacher, whose gradient in the logits is known.

    >>> hidden, head = torch.randn(3, 2), torch.randn(9, 2)
    >>> ids, p = torch.tensor([[3], [0], [8]]), torch.tensor([[1.0], [0.5], [1.0]])
    >>> weights = torch.tensor([1.0, 0.5, 2.0])
    >>> total, values = weighted(hidden, head, ids, p, weights)
    >>> bool(torch.isclose(total, (weights * sparse(hidden, head, ids, p)).sum()))
    True

Two ways through the same formulas, row chunk by row chunk. `sparse` gives a value for every position and computes
logits twice, once forward and once backward: four matrix products. `weighted` is told what each value counts, so the
gradient is complete when its chunk of logits is there: three products, and nothing is computed again.
"""

from __future__ import annotations

from typing import Any, Final, Literal, get_args

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from potstill.errors import UserError
from potstill.loss.formula import logits_of, slope_of, values_of
from potstill.loss.gradients import Gradients
from potstill.loss.kernels import Kernel
from potstill.loss.kernels import chunk as chunk_of
from potstill.loss.precision import lower, products

Mass = Literal["raw", "renormalised", "tail"]
MASSES: Final[tuple[str, ...]] = get_args(Mass)
CHUNK_ELEMENTS: Final = 1 << 24  # logits that live at a time: 64 MiB in float32
CHUNK_ROWS: Final = 256  # at least: for every chunk the head is read, and its gradient read and written


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
    under autocast (on a GPU then as TF32, see `precision`); gradients come back in the dtype of hidden, head and bias.
    A position without any probability has the loss 0 under `raw` and `tail`. Raises UserError where `renormalised`
    meets such a position; asserts shapes and ids.
    """
    _check(hidden, head, ids, probabilities, mass, bias)
    rows = chunk or chunk_rows(head)
    values = _Sparse.apply(hidden, head, bias, ids, probabilities, mass, float(scale), cap, rows)
    assert isinstance(values, Tensor)
    return values


def weighted(
    hidden: Tensor,
    head: Tensor,
    ids: Tensor,
    probabilities: Tensor,
    weights: Tensor,
    *,
    mass: Mass = "raw",
    bias: Tensor | None = None,
    scale: float = 1.0,
    cap: float | None = None,
    chunk: int | None = None,
    kernel: Kernel = "plain",
) -> tuple[Tensor, Tensor]:
    """sum(weights * sparse(...)), and the values of `sparse`, which are constants here.

    weights  [n] float: constants
    kernel   see `kernels`; the value does not depend on it but for rounding. All else as in `sparse`

    The gradient is made in the forward pass and held until the backward pass, which can be run once: as much memory as
    hidden states and head have. Returns ([] float32, [n] float32).
    """
    _check(hidden, head, ids, probabilities, mass, bias)
    assert weights.shape == hidden.shape[:1] and not weights.requires_grad, f"weights of {tuple(weights.shape)}"
    rows = chunk or chunk_rows(head)
    found: Any = _Weighted.apply(hidden, head, bias, ids, probabilities, weights, mass, float(scale), cap, rows, kernel)
    return found


def _check(hidden: Tensor, head: Tensor, ids: Tensor, probabilities: Tensor, mass: str, bias: Tensor | None) -> None:
    assert mass in MASSES, f"mass is one of {', '.join(MASSES)}, not {mass!r}"
    check_sizes(hidden, head, ids, bias)
    assert probabilities.shape == ids.shape, (
        f"candidates {tuple(ids.shape)}, probabilities {tuple(probabilities.shape)}"
    )
    assert not probabilities.requires_grad, "the teacher's probabilities are constants"
    if mass == "renormalised" and len(ids) and bool((probabilities.sum(1) <= 0).any()):
        raise UserError(
            "a position has no kept probability, so there is nothing to renormalise",
            where="loss",
            do="use mass: raw or tail, or a transfer rule that keeps the written token",
        )


def chunk_rows(head: Tensor) -> int:
    """How many rows of logits live at a time where the caller does not say."""
    return max(CHUNK_ROWS, CHUNK_ELEMENTS // head.shape[0])


def check_sizes(hidden: Tensor, head: Tensor, ids: Tensor, bias: Tensor | None) -> None:
    """Assertions on what cannot match. A head may have more rows than the tokenizer has tokens, never fewer."""
    assert hidden.ndim == 2 and head.ndim == 2 and hidden.shape[1] == head.shape[1], (
        f"hidden states {tuple(hidden.shape)} do not fit a head of {tuple(head.shape)}"
    )
    assert hidden.shape[0] == ids.shape[0], f"{hidden.shape[0]} hidden states, candidates {tuple(ids.shape)}"
    assert bias is None or bias.shape == (head.shape[0],), f"a bias of {tuple(bias.shape)} for {head.shape[0]} logits"
    if len(ids):
        low, high = int(ids.min()), int(ids.max())
        assert low >= 0 and high < head.shape[0], f"candidate ids {low} to {high} for a head of {head.shape[0]} rows"


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
        low = lower(hidden)
        with products(hidden.device.type, low):
            kind = torch.float64 if hidden.dtype == torch.float64 else torch.float32
            p = probabilities.to(kind)
            p = p / p.sum(1, keepdim=True) if mass == "renormalised" else p
            wide, wide_bias = head.to(kind), None if bias is None else bias.to(kind)
            values = hidden.new_empty(len(hidden), dtype=kind)
            normaliser, rest = torch.empty_like(values), torch.empty_like(values)
            for start in range(0, len(hidden), rows):
                at = slice(start, start + rows)
                logits = logits_of(hidden[at].to(kind), wide, wide_bias, scale, cap)
                values[at], normaliser[at], rest[at] = values_of(logits, ids[at], p[at], mass)
        ctx.save_for_backward(hidden, head, bias, ids, p, normaliser, rest)
        ctx.settings = mass, scale, cap, rows, low
        return values

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        hidden, head, bias, ids, p, normaliser, rest = ctx.saved_tensors
        mass, scale, cap, rows, low = ctx.settings
        with products(hidden.device.type, low):
            wide, wide_bias = head.to(p.dtype), None if bias is None else bias.to(p.dtype)
            gradients = Gradients(hidden, wide, wide_bias, ctx.needs_input_grad[:3], scale)
            for start in range(0, len(hidden), rows):
                at = slice(start, start + rows)
                states = hidden[at].to(p.dtype)
                logits = logits_of(states, wide, wide_bias, scale, cap)
                slope = slope_of(logits, ids[at], p[at], normaliser[at], rest[at], mass, grad[at])
                if cap is not None:
                    slope.mul_(1 - (logits / cap).square())
                gradients.add(at, states, slope)
        return (*gradients.made(head, bias), *[None] * 6)


class _Weighted(torch.autograd.Function):
    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any,
        hidden: Tensor,
        head: Tensor,
        bias: Tensor | None,
        ids: Tensor,
        probabilities: Tensor,
        weights: Tensor,
        mass: str,
        scale: float,
        cap: float | None,
        rows: int,
        kernel: Kernel,
    ) -> tuple[Tensor, Tensor]:
        both = chunk_of(kernel)
        with products(hidden.device.type, lower(hidden)):
            kind = torch.float64 if hidden.dtype == torch.float64 else torch.float32
            p, count = probabilities.to(kind), weights.to(kind)
            p = p / p.sum(1, keepdim=True) if mass == "renormalised" else p
            wide, wide_bias = head.to(kind), None if bias is None else bias.to(kind)
            values = hidden.new_empty(len(hidden), dtype=kind)
            gradients = Gradients(hidden, wide, wide_bias, ctx.needs_input_grad[:3], scale)
            for start in range(0, len(hidden), rows):
                at = slice(start, start + rows)
                states = hidden[at].to(kind)
                logits = logits_of(states, wide, wide_bias, scale, cap)
                values[at], slope = both(logits, ids[at], p[at], count[at], mass, cap)
                gradients.add(at, states, slope)
        ctx.made = gradients.made(head, bias)
        ctx.mark_non_differentiable(values)
        return (values * count).sum(), values

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        made, ctx.made = ctx.made, None
        assert made is not None, "the gradient of a weighted sum is made once, and given once"
        return (*(None if own is None else own.mul_(grad) for own in made), *[None] * 8)
