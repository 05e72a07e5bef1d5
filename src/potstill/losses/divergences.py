"""Divergences as plain formulas of log-probabilities at the candidates.

    >>> log_q, p = torch.tensor([[0.5, 0.25, 0.25]]).log(), torch.tensor([[0.5, 0.25]])
    >>> float(forward_kl(log_q, p, "tail")), float(reverse_kl(log_q, p, "tail"))
    (0.0, 0.0)
    >>> round(float(unlikelihood(torch.tensor([[0.75]]).log(), torch.tensor([[1.0]]))), 4)  # -log(1 - 3/4)
    1.3863

log_q [n, k] comes from `candidate_log_probabilities`, or [n, k + 1] with `rest=True`, which a tail needs; p [n, k] are
the teacher's probabilities, where 0 is padding. All return [n], in nats, not reduced.
"""

from __future__ import annotations

import torch
from torch import Tensor

from potstill.losses.sparse import MIN_TAIL, MissingProbability, tail_probability


def forward_kl(log_q: Tensor, p: Tensor, mass: MissingProbability = "raw") -> Tensor:
    """sum p log(p / q): of the student from the teacher, as `sparse` computes it with a gradient of its own."""
    taught, said = _terms(log_q, p, mass)
    # A slot of probability 0 adds 0, whatever the student says there (where it says -inf, its product would be NaN).
    return (torch.xlogy(taught, taught) - taught * torch.where(taught > 0, said, 0.0)).sum(1)


def reverse_kl(log_q: Tensor, p: Tensor, mass: MissingProbability = "tail") -> Tensor:
    """sum q log(q / p) over the candidates: of the teacher from the student, which drops what the teacher does not say.

    raw           over the candidates, neither side normalised: may be negative
    renormalised  both normalised over the candidates
    tail          the rest is one more outcome; a teacher who shows everything is taken to leave it 1e-6, since the
                  divergence from 0 is infinite
    """
    shown = p > 0
    said = torch.where(shown, log_q[:, : p.shape[1]], -torch.inf)
    if mass == "renormalised":
        said, p = said - said.logsumexp(1, keepdim=True), p / p.sum(1, keepdim=True)
    terms = torch.where(shown, said.exp() * (torch.where(shown, said, 0.0) - torch.where(shown, p, 1.0).log()), 0.0)
    if mass != "tail":
        return terms.sum(1)
    rest = _rest(log_q, p)
    some = rest > -torch.inf  # a rest of nothing adds 0, where its product would be NaN
    rest = torch.where(some, rest, 0.0)
    return terms.sum(1) + torch.where(some, rest.exp() * (rest - tail_probability(p).clamp_min(MIN_TAIL).log()), 0.0)


def unlikelihood(log_q: Tensor, p: Tensor) -> Tensor:
    """-sum p log(1 - q): what a wrong chain's tokens cost the more, the surer the student is of them (Welleck et al.
    2020). q is taken as at most 1 - 1e-6, so that a student who is certain has a finite cost and no gradient."""
    q = log_q[:, : p.shape[1]].exp().clamp_max(1 - 1e-6)
    return -(p * torch.log1p(-q)).sum(1)


def _terms(log_q: Tensor, p: Tensor, mass: MissingProbability) -> tuple[Tensor, Tensor]:
    said = log_q[:, : p.shape[1]]
    if mass == "renormalised":
        return p / p.sum(1, keepdim=True), said
    if mass == "tail":
        return torch.cat([p, tail_probability(p).unsqueeze(1)], 1), torch.cat([said, _rest(log_q, p).unsqueeze(1)], 1)
    return p, said


def _rest(log_q: Tensor, p: Tensor) -> Tensor:
    assert log_q.shape[1] == p.shape[1] + 1, "a tail needs candidate_log_probabilities(..., rest=True)"
    return log_q[:, -1]
