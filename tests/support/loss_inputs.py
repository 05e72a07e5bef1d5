"""Random inputs of the sparse losses."""

from __future__ import annotations

import torch


def random_inputs(seed: int, n: int = 7, d: int = 5, v: int = 13, k: int = 4, dtype=torch.float32):
    """Random states and candidates: distinct ids, kept masses under 1, some padded slots."""
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(n, d, generator=generator, dtype=dtype)
    head = torch.randn(v, d, generator=generator, dtype=dtype)
    ids = torch.stack([torch.randperm(v, generator=generator)[:k] for _ in range(n)])
    weights = torch.rand(n, k, generator=generator, dtype=dtype) + 0.05
    kept = 0.6 + 0.39 * torch.rand(n, 1, generator=generator, dtype=dtype)
    used = torch.arange(k) < torch.randint(1, k + 1, (n, 1), generator=generator)
    weights = weights * used
    return hidden, head, torch.where(used, ids, 0), weights / weights.sum(1, keepdim=True) * kept


SMOOTH = ["forward_kl", "reverse_kl", "generalized_jsd"]  # the gradient is 0 where p = q, and small near it
