"""The student's log-probabilities at the candidates of each position, which every divergence can be computed from.

    >>> hidden, lm_head = torch.zeros(1, 2), torch.zeros(4, 2)                   # 1/4 to each of 4 tokens
    >>> candidate_log_probabilities(hidden, lm_head, torch.tensor([[3, 0]]), with_rest=True).exp()
    tensor([[0.2500, 0.2500, 0.5000]])

The gradient of log q_c in the logits is [c] - q, so the backward pass needs only the gradients of the candidates and
computes each chunk's logits a second time.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from potstill.losses.sparse import (
    HeadGradients,
    check_shapes,
    compute_logits,
    default_chunk_rows,
    is_low_precision,
    mask_candidates,
    matmul_precision,
)


def candidate_log_probabilities(
    hidden: Tensor,
    lm_head: Tensor,
    ids: Tensor,
    *,
    with_rest: bool = False,
    is_candidate: Tensor | None = None,
    bias: Tensor | None = None,
    scale: float = 1.0,
    softcap: float | None = None,
    chunk_rows: int | None = None,
) -> Tensor:
    """Natural log-probabilities [n, k] of the candidates under a softmax over the whole vocabulary.

    hidden, lm_head, ids, bias, scale, softcap, chunk_rows  as in `potstill.losses.sparse_kl`
    with_rest     one more column [n, k + 1]: the log-probability of all tokens that are not candidates. It is summed
                  over these tokens, so it is exact also where the candidates have almost all probability
    is_candidate  [n, k] bool: False for slots that are padding. Such a slot still gets the log-probability of the id
                  that stands there, which the caller has to ignore; its token is in the rest, unless another slot of
                  the row is a candidate with that id. None if there is no padding. Candidates are distinct within a row

    Returns float32 (float64 for float64 inputs), also for bfloat16 inputs and under autocast; -inf for an empty rest.
    Memory beside the result: one chunk of logits. Asserts shapes and ids.
    """
    check_shapes(hidden, lm_head, ids, bias)
    assert is_candidate is None or is_candidate.shape == ids.shape, "is_candidate has the shape of ids"
    rows = chunk_rows or default_chunk_rows(lm_head)
    mask = torch.ones_like(ids, dtype=torch.bool) if is_candidate is None else is_candidate
    return _CandidateLogProbabilities.apply(  # type: ignore[return-value]
        hidden, lm_head, bias, ids, mask, with_rest, float(scale), softcap, rows
    )


class _CandidateLogProbabilities(torch.autograd.Function):
    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any,
        hidden: Tensor,
        lm_head: Tensor,
        bias: Tensor | None,
        ids: Tensor,
        is_candidate: Tensor,
        with_rest: bool,
        scale: float,
        softcap: float | None,
        chunk_rows: int,
    ) -> Tensor:
        low = is_low_precision(hidden)
        with matmul_precision(hidden.device.type, low):
            dtype = torch.float64 if hidden.dtype == torch.float64 else torch.float32
            head_product, bias_product = lm_head.to(dtype), None if bias is None else bias.to(dtype)
            log_q = hidden.new_empty(len(ids), ids.shape[1] + with_rest, dtype=dtype)
            normaliser = hidden.new_empty(len(ids), 1, dtype=dtype)
            for start in range(0, len(ids), chunk_rows):
                rows = slice(start, start + chunk_rows)
                logits = compute_logits(hidden[rows].to(dtype), head_product, bias_product, scale, softcap)
                normaliser[rows] = logits.logsumexp(1, keepdim=True)
                log_q[rows, : ids.shape[1]] = logits.gather(1, ids[rows]) - normaliser[rows]
                if with_rest:
                    others = mask_candidates(logits, ids[rows], is_candidate[rows])
                    log_q[rows, -1:] = others.logsumexp(1, keepdim=True) - normaliser[rows]
        ctx.save_for_backward(hidden, lm_head, bias, ids, is_candidate, normaliser, log_q)
        ctx.settings = with_rest, scale, softcap, chunk_rows, low
        return log_q

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        hidden, lm_head, bias, ids, is_candidate, normaliser, log_q = ctx.saved_tensors
        with_rest, scale, softcap, chunk_rows, low = ctx.settings
        k = ids.shape[1]
        with matmul_precision(hidden.device.type, low):
            dtype = log_q.dtype
            head_product, bias_product = lm_head.to(dtype), None if bias is None else bias.to(dtype)
            gradients = HeadGradients(hidden, head_product, bias_product, ctx.needs_input_grad[:3], scale)
            for start in range(0, len(ids), chunk_rows):
                rows = slice(start, start + chunk_rows)
                states = hidden[rows].to(dtype)
                logits = compute_logits(states, head_product, bias_product, scale, softcap)
                # Every column of log q subtracts the normaliser, whose gradient is q: -q times the sum of gradients.
                slope = (logits - normaliser[rows]).exp_().mul_(-grad[rows].sum(1, keepdim=True))
                if with_rest:
                    # d log(rest) / d logit is q over the rest's mass. An empty rest (-inf) gets exp(-inf) = 0.
                    log_rest = log_q[rows, -1:]
                    rest_normaliser = torch.where(log_rest > -torch.inf, normaliser[rows] + log_rest, torch.inf)
                    others = mask_candidates(logits, ids[rows], is_candidate[rows])
                    slope.addcmul_((others - rest_normaliser).exp_(), grad[rows, -1:])
                slope.scatter_add_(1, ids[rows], grad[rows, :k].contiguous())
                if softcap is not None:
                    slope.mul_(1 - (logits / softcap).square())
                gradients.add(rows, states, slope)
        return (*gradients.finish(lm_head, bias), *[None] * 6)
