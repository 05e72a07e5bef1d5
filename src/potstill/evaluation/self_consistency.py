"""What n samples of a question say about k of them: exact means over every choice of k, not one choice's luck.

    >>> samples = [("8", True), ("8", True), ("9", False), (None, False)]      # what each found, whether it is right
    >>> majority_index([found for found, _ in samples])  # the first sample with the voted answer
    0
    >>> [round(share, 3) for share in vote_accuracy(samples)], round(pass_at_k(4, 2)[1], 3)
    ([0.5, 0.667, 0.75, 1.0], 0.833)

A vote counts canonical values; a sample without one has no vote. Of values with equally many votes the one wins that
was drawn first, which for samples in random order is each of them with equal chance. Pure.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from fractions import Fraction
from math import comb
from typing import Final

VERSION: Final = 1  # of how votes are counted


def majority_index(found: Sequence[str | None]) -> int:
    """The place of the sample whose value has most votes; 0 where none has a value."""
    counts = Counter(value for value in found if value is not None)
    if not counts:
        return 0
    most = max(counts.values())
    return next(at for at, value in enumerate(found) if value is not None and counts[value] == most)


def vote_accuracy(samples: Sequence[tuple[str | None, bool]]) -> list[float]:
    """For k = 1 to n: the chance that the vote of k samples, drawn without replacement, is right."""
    n = len(samples)
    right = {value for value, is_right in samples if is_right and value is not None}
    counts = Counter(value for value, _ in samples if value is not None)
    silent = n - sum(counts.values())
    found = [Fraction(0)] * n
    for value in sorted(right):
        others = sorted(count for other, count in counts.items() if other != value)
        for votes in range(1, counts[value] + 1):
            ways = comb(counts[value], votes)
            for size, credit in _count_losing_draws(others, silent, votes).items():
                if 1 <= votes + size <= n:
                    found[votes + size - 1] += ways * credit
    return [float(share / comb(n, k)) for k, share in enumerate(found, 1)]


def _count_losing_draws(others: Sequence[int], silent: int, votes: int) -> dict[int, Fraction]:
    """Ways to draw from the other values (how often each occurs) and the silent samples so that none has more than
    `votes` votes, by the number drawn; a way in which t of them have equally many counts 1 / (t + 1)."""
    free = silent + sum(count for count in others if count < votes)
    ways = {(size, 0): comb(free, size) for size in range(free + 1)}  # (drawn, tied) -> ways
    for count in (count for count in others if count >= votes):
        after: dict[tuple[int, int], int] = {}
        for (size, tied), known in ways.items():
            for drawn in range(votes + 1):
                key = (size + drawn, tied + (drawn == votes))
                after[key] = after.get(key, 0) + known * comb(count, drawn)
        ways = after
    credit: dict[int, Fraction] = {}
    for (size, tied), known in ways.items():
        credit[size] = credit.get(size, Fraction(0)) + Fraction(known, tied + 1)
    return credit


def pass_at_k(n: int, right: int) -> list[float]:
    """For k = 1 to n: the chance that k of the n samples hold a right one (pass@k; Chen et al. 2021, section 2.1)."""
    return [float(1 - Fraction(comb(n - right, k), comb(n, k))) for k in range(1, n + 1)]


def most_likely_index(likelihoods: Sequence[float]) -> int:
    """The place of the likeliest sample, of equal ones the first."""
    return max(range(len(likelihoods)), key=lambda at: (likelihoods[at], -at))


def best_of_accuracy(samples: Sequence[tuple[float, bool]]) -> list[float]:
    """For k = 1 to n: the chance that the likeliest of k samples is right. samples: (log-likelihood, right).

    >>> best_of_accuracy([(-1.0, True), (-2.0, False)])
    [0.5, 1.0]
    """
    order = sorted(range(len(samples)), key=lambda at: (-samples[at][0], at))
    n, found = len(samples), []
    for k in range(1, n + 1):
        ways = sum(comb(n - 1 - rank, k - 1) for rank, at in enumerate(order) if samples[at][1])
        found.append(float(Fraction(ways, comb(n, k))))
    return found
