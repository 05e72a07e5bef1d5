"""How far the student's next-token distribution is from a sparse distribution of the teacher.

    >>> import torch
    >>> hidden, head = torch.zeros(1, 2), torch.zeros(4, 2)                   # the student says 1/4 to each of 4 tokens
    >>> sparse_kl(hidden, head, torch.tensor([[3]]), torch.tensor([[1.0]]))      # a hard label: cross-entropy, log 4
    tensor([1.3863])
    >>> ids, probabilities = torch.tensor([[0, 1]]), torch.tensor([[0.5, 0.25]])
    >>> round(sparse_kl(hidden, head, ids, probabilities, mass="tail").item(), 4)  # (log 2 - log 2 / 2) / 2
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

Two tiers. `sparse` and `weighted` know this gradient, and never hold more than a chunk of logits.
`candidate_log_probabilities` gives log q at the candidates, as differentiable as anything else in torch, for every
other divergence: `forward`, `reverse` and `unlikelihood` are a few lines each on it.
"""

from __future__ import annotations

from typing import Final

from potstill.losses.candidates import candidate_log_probabilities
from potstill.losses.divergences import forward_kl, reverse_kl, unlikelihood
from potstill.losses.sparse import (
    KERNELS,
    MISSING_PROBABILITY_MODES,
    Kernel,
    KernelTiming,
    MissingProbability,
    chunk_rows,
    measure_kernels,
    sparse_kl,
    weighted_sparse_kl,
)

VERSION: Final = 2  # of the values that this room computes

__all__ = [
    "KERNELS",
    "MISSING_PROBABILITY_MODES",
    "VERSION",
    "Kernel",
    "KernelTiming",
    "MissingProbability",
    "candidate_log_probabilities",
    "chunk_rows",
    "forward_kl",
    "measure_kernels",
    "reverse_kl",
    "sparse_kl",
    "unlikelihood",
    "weighted_sparse_kl",
]
