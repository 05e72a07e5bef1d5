"""Losses: divergences between the student's next-token distribution and a sparse distribution of the teacher.

    >>> import torch
    >>> hidden, lm_head = torch.zeros(1, 2), torch.zeros(4, 2)               # the student gives 1/4 to each of 4 tokens
    >>> sparse_kl(hidden, lm_head, torch.tensor([[3]]), torch.tensor([[1.0]]))   # a hard label: cross-entropy, log 4
    tensor([1.3863])
    >>> ids, probs = torch.tensor([[0, 1]]), torch.tensor([[0.5, 0.25]])
    >>> value = sparse_kl(hidden, lm_head, ids, probs, missing_probability="tail")   # (log 2 - log 2 / 2) / 2
    >>> round(value.item(), 4)
    0.1733

A hard label is a distribution of one candidate with probability 1. So the same function serves sample matching,
answers, human rationales and distribution matching (Fu et al. 2023, section 5). For one position, let p be the
candidates' probabilities, M their sum, q the student's softmax over the whole vocabulary, and Q the sum of q over the
candidates.

    missing_probability  forward KL                                          gradient in the logits
    raw                  sum p log(p / q)                                    M q - p          (the paper's)
    renormalised         sum (p / M) log((p / M) / q)                        q - p / M
    tail                 sum p log(p / q) + (1 - M) log((1 - M) / (1 - Q))   q - p on the candidates,
                                                                             q (M - Q) / (1 - Q) elsewhere

All of these values and gradients are 0 if q is the teacher's own distribution (under `raw`, only if the candidates are
complete, M = 1).

`sparse_kl` and `weighted_sparse_kl` compute this gradient by its formula, and hold only one chunk of logits at a time.
The other divergences are functions in `potstill.losses.divergences`. They take `candidate_log_probabilities`, and
autograd computes their gradients.
"""

from __future__ import annotations

from typing import Final

from potstill.losses.divergences import (
    DEFAULT_LOSS,
    DIVERGENCES,
    Divergence,
    Loss,
    candidate_log_probabilities,
    forward_kl,
    generalized_jsd,
    reverse_kl,
    uses_beta,
)
from potstill.losses.on_policy import ON_POLICY_MEASURES, OnPolicyLoss, WrittenPositions
from potstill.losses.sparse import (
    KERNELS,
    MISSING_PROBABILITY_MODES,
    Kernel,
    KernelTiming,
    MissingProbability,
    default_chunk_rows,
    measure_kernels,
    sparse_kl,
    weighted_sparse_kl,
)

VERSION: Final = 2  # of the values that the losses return

__all__ = [
    "DEFAULT_LOSS",
    "DIVERGENCES",
    "KERNELS",
    "MISSING_PROBABILITY_MODES",
    "ON_POLICY_MEASURES",
    "VERSION",
    "Divergence",
    "Kernel",
    "KernelTiming",
    "Loss",
    "MissingProbability",
    "OnPolicyLoss",
    "WrittenPositions",
    "candidate_log_probabilities",
    "default_chunk_rows",
    "forward_kl",
    "generalized_jsd",
    "measure_kernels",
    "reverse_kl",
    "sparse_kl",
    "uses_beta",
    "weighted_sparse_kl",
]
