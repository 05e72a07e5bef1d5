"""The student's log-probabilities of a few candidates a position: the tier under every divergence.

    >>> hidden, head = torch.zeros(1, 2), torch.zeros(4, 2)                   # 1/4 to each of 4 tokens
    >>> candidate_log_probabilities(hidden, head, torch.tensor([[3, 0]]), rest=True).exp()
    tensor([[0.2500, 0.2500, 0.5000]])

The gradient of log q_c in the logits is [c] - q, so the backward pass needs the gradients of the candidates only, and
makes the logits of a chunk a second time.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from potstill.losses.sparse import (
    HeadGradients,
    check_shapes,
    chunk_rows,
    compute_logits,
    is_low_precision,
    mask_candidates,
    matmul_precision,
)


def candidate_log_probabilities(
    hidden: Tensor,
    head: Tensor,
    ids: Tensor,
    *,
    rest: bool = False,
    shown: Tensor | None = None,
    bias: Tensor | None = None,
    scale: float = 1.0,
    cap: float | None = None,
    chunk: int | None = None,
) -> Tensor:
    """Natural log-probabilities [n, k] of the candidates under softmax over the whole vocabulary.

    hidden, head, ids, bias, scale, cap, chunk  as in `potstill.losses.sparse`
    rest   one more column: the log-probability of everything that is not a candidate, [n, k + 1]; summed over what it
           is made of, so that it has digits where the candidates have almost everything
    shown  [n, k] bool: which slots are candidates; the others (padding) have the value of their id and belong to the
           rest. None for all. Those shown are distinct in their row

    Returns float32 (float64 for float64 inputs), also for bfloat16 inputs and under autocast; -inf for a rest of
    nothing. Memory beside the result: one chunk of logits. Raises as `sparse` does.
    """
    check_shapes(hidden, head, ids, bias)
    assert shown is None or shown.shape == ids.shape, "one mark for each candidate"
    rows = chunk or chunk_rows(head)
    marks = torch.ones_like(ids, dtype=torch.bool) if shown is None else shown
    return _CandidateLogProbabilities.apply(hidden, head, bias, ids, marks, rest, float(scale), cap, rows)  # type: ignore[return-value]


class _CandidateLogProbabilities(torch.autograd.Function):
    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any,
        hidden: Tensor,
        head: Tensor,
        bias: Tensor | None,
        ids: Tensor,
        shown: Tensor,
        rest: bool,
        scale: float,
        cap: float | None,
        rows: int,
    ) -> Tensor:
        low = is_low_precision(hidden)
        with matmul_precision(hidden.device.type, low):
            kind = torch.float64 if hidden.dtype == torch.float64 else torch.float32
            wide, wide_bias = head.to(kind), None if bias is None else bias.to(kind)
            found = hidden.new_empty(len(ids), ids.shape[1] + rest, dtype=kind)
            normaliser = hidden.new_empty(len(ids), 1, dtype=kind)
            for start in range(0, len(ids), rows):
                at = slice(start, start + rows)
                logits = compute_logits(hidden[at].to(kind), wide, wide_bias, scale, cap)
                normaliser[at] = logits.logsumexp(1, keepdim=True)
                found[at, : ids.shape[1]] = logits.gather(1, ids[at]) - normaliser[at]
                if rest:
                    found[at, -1:] = (
                        mask_candidates(logits, ids[at], shown[at]).logsumexp(1, keepdim=True) - normaliser[at]
                    )
        ctx.save_for_backward(hidden, head, bias, ids, shown, normaliser, found)
        ctx.settings = rest, scale, cap, rows, low
        return found

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        hidden, head, bias, ids, shown, normaliser, found = ctx.saved_tensors
        rest, scale, cap, rows, low = ctx.settings
        width = ids.shape[1]
        with matmul_precision(hidden.device.type, low):
            kind = found.dtype
            wide, wide_bias = head.to(kind), None if bias is None else bias.to(kind)
            gradients = HeadGradients(hidden, wide, wide_bias, ctx.needs_input_grad[:3], scale)
            for start in range(0, len(ids), rows):
                at = slice(start, start + rows)
                states = hidden[at].to(kind)
                logits = compute_logits(states, wide, wide_bias, scale, cap)
                slope = (logits - normaliser[at]).exp_().mul_(-grad[at].sum(1, keepdim=True))
                if rest:  # its own distribution: q over the rest
                    beside = torch.where(found[at, -1:] > -torch.inf, normaliser[at] + found[at, -1:], torch.inf)
                    slope.addcmul_((mask_candidates(logits, ids[at], shown[at]) - beside).exp_(), grad[at, -1:])
                slope.scatter_add_(1, ids[at], grad[at, :width].contiguous())
                if cap is not None:
                    slope.mul_(1 - (logits / cap).square())
                gradients.add(at, states, slope)
        return (*gradients.made(head, bias), *[None] * 6)
