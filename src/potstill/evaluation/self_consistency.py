"""The accuracy with k of n samples per question: the exact mean over all ways to choose k samples.

    >>> samples = [("8", True), ("8", True), ("9", False), (None, False)]      # extracted value, whether it is right
    >>> majority_index([value for value, _ in samples])  # the first sample with the most frequent value
    0
    >>> [round(share, 3) for share in vote_accuracy(samples)], round(pass_at_k(4, 2)[1], 3)
    ([0.5, 0.667, 0.75, 1.0], 0.833)

A vote counts canonical values; a sample without a value does not vote. If several values have the most votes, the value
that was sampled first wins. If the order of the samples is random, these values win with equal probability.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from fractions import Fraction
from math import comb
from typing import Final

VERSION: Final = 1  # version of the counting of votes


def majority_index(values: Sequence[str | None]) -> int:
    """The index of the first sample with the most frequent value; 0 if no sample has a value."""
    counts = Counter(value for value in values if value is not None)
    if not counts:
        return 0
    most = max(counts.values())
    return next(index for index, value in enumerate(values) if value is not None and counts[value] == most)


def vote_accuracy(samples: Sequence[tuple[str | None, bool]]) -> list[float]:
    """For k = 1 to n: the probability that the vote of k samples, chosen without replacement, is right.

    samples  (value, whether it is right)

    A right value v wins with `votes` votes if `votes` of its samples are chosen and no other value gets more votes. If t
    other values get the same number of votes, v wins with probability 1 / (t + 1). The result is the exact sum over v and
    `votes`.
    """
    n = len(samples)
    right = {value for value, is_right in samples if is_right and value is not None}
    counts = Counter(value for value, _ in samples if value is not None)
    without_value = n - sum(counts.values())
    wins = [Fraction(0)] * n  # number of choices of k samples whose vote is right; a tie counts partly
    for value in sorted(right):
        others = sorted(count for other, count in counts.items() if other != value)
        for votes in range(1, counts[value] + 1):
            ways = comb(counts[value], votes)
            for size, credit in _count_losing_draws(others, without_value, votes).items():
                if 1 <= votes + size <= n:
                    wins[votes + size - 1] += ways * credit
    return [float(count / comb(n, k)) for k, count in enumerate(wins, 1)]


def _count_losing_draws(others: Sequence[int], without_value: int, votes: int) -> dict[int, Fraction]:
    """Number of samples chosen from the other values -> number of ways in which no other value gets more than `votes`.

    others         number of samples of each other value
    without_value  number of samples without a value

    A way in which t other values get exactly `votes` votes counts 1 / (t + 1).
    """
    # Values with less than `votes` samples can neither win nor tie, so all of their samples are interchangeable.
    free = without_value + sum(count for count in others if count < votes)
    ways = {(size, 0): comb(free, size) for size in range(free + 1)}  # (chosen, tied) -> ways
    for count in (count for count in others if count >= votes):
        extended: dict[tuple[int, int], int] = {}
        for (size, tied), known in ways.items():
            for chosen in range(votes + 1):
                key = (size + chosen, tied + (chosen == votes))
                extended[key] = extended.get(key, 0) + known * comb(count, chosen)
        ways = extended
    credit: dict[int, Fraction] = {}
    for (size, tied), known in ways.items():
        credit[size] = credit.get(size, Fraction(0)) + Fraction(known, tied + 1)
    return credit


def pass_at_k(n: int, right: int) -> list[float]:
    """For k = 1 to n: the probability that k of n samples contain a right sample (Chen et al. 2021, section 2.1).

    right  number of right samples
    """
    return [float(1 - Fraction(comb(n - right, k), comb(n, k))) for k in range(1, n + 1)]


def most_likely_index(likelihoods: Sequence[float]) -> int:
    """The index of the most likely sample; of equally likely samples, the first."""
    return max(range(len(likelihoods)), key=likelihoods.__getitem__)


def best_of_accuracy(samples: Sequence[tuple[float, bool]]) -> list[float]:
    """For k = 1 to n: the probability that the most likely of k samples is right.

    samples  (log-probability, whether it is right)

    >>> best_of_accuracy([(-1.0, True), (-2.0, False)])
    [0.5, 1.0]
    """
    order = sorted(range(len(samples)), key=lambda index: (-samples[index][0], index))
    n, accuracies = len(samples), []
    for k in range(1, n + 1):
        # The sample of rank r is the most likely of k if the other k - 1 are among the n - 1 - r less likely samples.
        ways = sum(comb(n - 1 - rank, k - 1) for rank, index in enumerate(order) if samples[index][1])
        accuracies.append(float(Fraction(ways, comb(n, k))))
    return accuracies
