"""Divergences between a sparse teacher and the student; `train.divergence` chooses one by its name in `DIVERGENCES`.

    >>> log_q, p = torch.tensor([[0.5, 0.25, 0.25]]).log(), torch.tensor([[0.5, 0.25]])
    >>> all(abs(divergence(log_q, p, "tail").item()) < 1e-6 for divergence in DIVERGENCES.values())
    True

A divergence is a function (log_q, p, missing_probability) -> [n], not reduced, in nats or without a unit. Its gradient
comes from autograd through log_q.

    log_q  [n, k] the student's log-probabilities of the candidates (`candidate_log_probabilities`); under `tail`
           [n, k + 1], with the rest of the vocabulary in the last column (`with_rest=True`)
    p      [n, k] the teacher's probabilities. A slot with p = 0 is padding, and must add 0 to the value and the gradient
           for every log_q

To add a divergence, write such a function and enter it in `DIVERGENCES`; nothing else changes. If it has a keyword
`beta`, it gets the value of `train.divergence_beta`, and this key becomes part of the identity of a run (`uses_beta`).

    missing_probability   forward_kl                       reverse_kl, generalized_jsd (`_mask_and_rescale`)
    raw                   the tail is left out             refused
    renormalised          p is scaled to a sum of 1        p and q are scaled to a sum of 1
    tail                  the tail is one more outcome     the same; the teacher's tail is at least 1e-6, because the
                                                           reverse divergence from 0 is infinite

The tail is the rest of the vocabulary, all tokens that are not candidates.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

import torch
from torch import Tensor

from potstill.errors import UserError
from potstill.losses.sparse import (
    MIN_TAIL,
    MISSING_PROBABILITY_MODES,
    HeadSettings,
    Kernel,
    MissingProbability,
    check_renormalisable,
    check_shapes,
    chunked_logit_function,
    default_chunk_rows,
    mask_candidates,
    sparse_kl,
    tail_probability,
    weighted_sparse_kl,
)

Divergence = Callable[[Tensor, Tensor, MissingProbability], Tensor]


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
    with_rest     add a column, so that the result is [n, k + 1]: the log-probability of all tokens that are not
                  candidates. It is a sum over these tokens, so it is exact even if the candidates have nearly all of
                  the probability
    is_candidate  [n, k] bool: False for slots that are padding; None if there is no padding. A padded slot still gets
                  the log-probability of its id, which the caller must ignore. The rest includes its token, unless
                  another slot of the row is a candidate with that id. Candidates are distinct within a row

    Returns float32 (float64 for float64 inputs), even for bfloat16 inputs and under autocast; -inf for an empty rest.
    The memory in addition to the result is one chunk of logits. Asserts shapes and ids.
    """
    check_shapes(hidden, lm_head, ids, bias)
    is_candidate = torch.ones_like(ids, dtype=torch.bool) if is_candidate is None else is_candidate
    assert is_candidate.shape == ids.shape, "is_candidate has the shape of ids"
    k = ids.shape[1]

    def compute(logits: Tensor, ids: Tensor, is_candidate: Tensor) -> tuple[Tensor, ...]:
        normaliser = logits.logsumexp(1, keepdim=True)
        log_q = logits.gather(1, ids) - normaliser
        if with_rest:
            others = mask_candidates(logits, ids, is_candidate)
            log_q = torch.cat([log_q, others.logsumexp(1, keepdim=True) - normaliser], 1)
        return log_q, normaliser

    def differentiate(
        logits: Tensor, grad: Tensor, log_q: Tensor, normaliser: Tensor, ids: Tensor, is_candidate: Tensor
    ) -> Tensor:
        # The gradient of log q_c is [c] - q, because every column subtracts the normaliser, whose gradient is q. So the
        # second term is -q times the sum of the columns' gradients.
        gradient = (logits - normaliser).exp_().mul_(-grad.sum(1, keepdim=True))
        if with_rest:
            # d log(rest) / d logit is q divided by the rest's probability. An empty rest (-inf) gets exp(-inf) = 0.
            log_rest = log_q[:, -1:]
            rest_normaliser = torch.where(log_rest > -torch.inf, normaliser + log_rest, torch.inf)
            others = mask_candidates(logits, ids, is_candidate)
            gradient.addcmul_((others - rest_normaliser).exp_(), grad[:, -1:])
        return gradient.scatter_add_(1, ids, grad[:, :k].contiguous())

    settings = HeadSettings(float(scale), softcap, chunk_rows or default_chunk_rows(lm_head))
    return chunked_logit_function(compute, differentiate, hidden, lm_head, bias, settings, ids, is_candidate)


def forward_kl(log_q: Tensor, p: Tensor, missing_probability: MissingProbability = "raw") -> Tensor:
    """KL(teacher || student) = sum p log(p / q), [n] in nats, not reduced. The student learns to cover every outcome that
    is likely for the teacher. Training uses `sparse_kl`, which computes the same value, and its gradient by formula."""
    k = p.shape[1]
    if missing_probability == "renormalised":
        p = p / p.sum(1, keepdim=True)
    elif missing_probability == "tail":
        p = torch.cat([p, tail_probability(p).unsqueeze(1)], 1)
        log_q = torch.cat([log_q[:, :k], _log_rest(log_q, k).unsqueeze(1)], 1)
    # A slot with probability 0 must add 0: with a log-probability of -inf, the product would be NaN.
    return (torch.xlogy(p, p) - p * torch.where(p > 0, log_q[:, : p.shape[1]], 0.0)).sum(1)


def reverse_kl(log_q: Tensor, p: Tensor, missing_probability: MissingProbability = "tail") -> Tensor:
    """KL(student || teacher) = sum q log(q / p), [n] in nats, not reduced. The student learns to avoid every outcome that
    is unlikely for the teacher. Raises UserError for `raw`."""
    is_candidate = p > 0
    log_q_candidates, p = _mask_and_rescale("reverse_kl", log_q, p, missing_probability)
    zero_on_padding = torch.where(is_candidate, log_q_candidates, 0.0)
    terms = log_q_candidates.exp() * (zero_on_padding - torch.where(is_candidate, p, 1.0).log())
    values = torch.where(is_candidate, terms, 0.0).sum(1)
    if missing_probability != "tail":
        return values
    log_rest = _log_rest(log_q, p.shape[1])
    has_rest = log_rest > -torch.inf  # an empty rest adds 0, where the product would be NaN
    log_rest = torch.where(has_rest, log_rest, 0.0)
    log_tail = tail_probability(p).clamp_min(MIN_TAIL).log()
    return values + torch.where(has_rest, log_rest.exp() * (log_rest - log_tail), 0.0)


def generalized_jsd(
    log_q: Tensor, p: Tensor, missing_probability: MissingProbability = "tail", *, beta: float = 0.5
) -> Tensor:
    """Generalized Jensen-Shannon divergence (Agarwal et al. 2024), as in TRL's GKD trainer. [n], not reduced:

    beta KL(teacher || m) + (1 - beta) KL(student || m) with the mixture m = beta teacher + (1 - beta) student.

    Divided by beta, it tends to `forward_kl` as beta -> 0; divided by 1 - beta, it tends to `reverse_kl` as beta -> 1.
    Raises UserError for `raw`.
    """
    assert 0 < beta < 1, f"beta is between 0 and 1, not {beta}: its limits are forward_kl and reverse_kl"
    is_outcome = p > 0
    log_q_outcomes, p = _mask_and_rescale("generalized_jsd", log_q, p, missing_probability)
    if missing_probability == "tail":
        log_rest, tail = _log_rest(log_q, p.shape[1]), tail_probability(p).clamp_min(MIN_TAIL)
        is_outcome = torch.cat([is_outcome, (log_rest > -torch.inf).unsqueeze(1)], 1)
        log_q_outcomes = torch.cat([log_q_outcomes, log_rest.unsqueeze(1)], 1)
        p = torch.cat([p, tail.unsqueeze(1)], 1)
    # Padding gets log 1 for teacher and student, so that no infinity enters the mixture; the last line drops its terms.
    log_q_outcomes = torch.where(is_outcome, log_q_outcomes, 0.0)
    log_p = torch.where(is_outcome, p, 1.0).log()
    log_m = torch.logaddexp(log_p + math.log(beta), log_q_outcomes + math.log1p(-beta))
    terms = beta * log_p.exp() * (log_p - log_m) + (1 - beta) * log_q_outcomes.exp() * (log_q_outcomes - log_m)
    return torch.where(is_outcome, terms, 0.0).sum(1)


DIVERGENCES: Final[Mapping[str, Divergence]] = {
    "forward_kl": forward_kl,
    "reverse_kl": reverse_kl,
    "generalized_jsd": generalized_jsd,
}


def uses_beta(name: str) -> bool:
    """Whether the divergence has a keyword `beta`, so that `train.divergence_beta` changes it. False for a name that is
    not in `DIVERGENCES`, which `Loss` refuses."""
    return name in DIVERGENCES and "beta" in inspect.signature(DIVERGENCES[name]).parameters


@dataclass(frozen=True, slots=True)
class Loss:
    """The function that training minimises at each supervised position.

    divergence           a name in `DIVERGENCES`
    missing_probability  how the probability outside the candidates is treated: raw, renormalised or tail
    beta                 the value of the keyword `beta`, for divergences that have it
    kernel               how `weighted_sum` of forward_kl is computed; it changes only the rounding

    Raises UserError for an unknown divergence, and for a combination that the divergence refuses.

    >>> hidden, lm_head, ids, probs = torch.zeros(1, 2), torch.zeros(4, 2), torch.tensor([[0]]), torch.tensor([[0.5]])
    >>> Loss("generalized_jsd", "tail")(hidden, lm_head, ids, probs)
    tensor([0.0338])
    """

    divergence: str = "forward_kl"
    missing_probability: MissingProbability = "raw"
    beta: float = 0.5
    kernel: Kernel = "plain"

    def __post_init__(self) -> None:
        modes = MISSING_PROBABILITY_MODES
        assert self.missing_probability in modes, f"{self.missing_probability!r} is not one of {', '.join(modes)}"
        if self.divergence not in DIVERGENCES:
            raise UserError(
                "unknown divergence",
                code="E-train-unknown-divergence",
                where="train.divergence",
                found=self.divergence,
                hint=f"use one of {', '.join(DIVERGENCES)}",
            )
        self._function(torch.tensor([[0.5, 0.5]]).log(), torch.tensor([[0.5]]), self.missing_probability)

    @property
    def _function(self) -> Divergence:
        function: Any = DIVERGENCES[self.divergence]
        return partial(function, beta=self.beta) if uses_beta(self.divergence) else function

    def __call__(self, hidden: Tensor, lm_head: Tensor, ids: Tensor, probs: Tensor, **head: Any) -> Tensor:
        """The values [n] for hidden states [n, d], not reduced. `head` may have bias, scale and softcap, as in
        `sparse_kl`."""
        if self.divergence == "forward_kl":
            return sparse_kl(hidden, lm_head, ids, probs, missing_probability=self.missing_probability, **head)
        log_q = candidate_log_probabilities(
            hidden, lm_head, ids, with_rest=self.missing_probability == "tail", is_candidate=probs > 0, **head
        )
        return self.of_log_probabilities(log_q, probs)

    def of_log_probabilities(self, log_q: Tensor, probs: Tensor) -> Tensor:
        """The values [n] from a result of `candidate_log_probabilities` (`with_rest` under tail), not reduced."""
        if self.missing_probability == "renormalised":
            check_renormalisable(probs)
        return self._function(log_q, probs, self.missing_probability)

    def weighted_sum(
        self, hidden: Tensor, lm_head: Tensor, ids: Tensor, probs: Tensor, weights: Tensor, **head: Any
    ) -> tuple[Tensor, Tensor]:
        """sum(weights * values) [] with its gradient, and the values [n] as constants."""
        if self.divergence == "forward_kl":  # saves one matrix product
            head = {"missing_probability": self.missing_probability, "kernel": self.kernel, **head}
            return weighted_sparse_kl(hidden, lm_head, ids, probs, weights, **head)
        values = self(hidden, lm_head, ids, probs, **head)
        return (weights * values).sum(), values.detach()


DEFAULT_LOSS: Final = Loss()  # forward KL over the teacher's candidates, as in the paper


def _mask_and_rescale(
    name: str, log_q: Tensor, p: Tensor, missing_probability: MissingProbability
) -> tuple[Tensor, Tensor]:
    """log_q and p at the candidates, [n, k] each; log_q is -inf on padding (p = 0).

    Under `renormalised`, q and p are divided by their sums over the candidates. Under `tail` they do not change, and the
    caller adds the tail. Raises UserError for `raw`.

    name  name of the divergence, for the message
    """
    if missing_probability == "raw":
        raise UserError(
            f"{name} needs the teacher's probability outside the candidates, and missing_probability: raw leaves it out",
            code="E-train-divergence-needs-tail",
            where="train.missing_probability",
            found="raw",
            hint="set train.missing_probability: tail (or renormalised)",
        )
    log_q = torch.where(p > 0, log_q[:, : p.shape[1]], -torch.inf)
    if missing_probability == "renormalised":
        log_q, p = log_q - log_q.logsumexp(1, keepdim=True), p / p.sum(1, keepdim=True)
    return log_q, p


def _log_rest(log_q: Tensor, k: int) -> Tensor:
    """The student's log-probability [n] of the rest of the vocabulary: the last column under `tail`."""
    assert log_q.shape[1] == k + 1, "tail needs candidate_log_probabilities(..., with_rest=True)"
    return log_q[:, -1]
