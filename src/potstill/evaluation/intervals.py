"""Intervals: how sure an accuracy, or a difference of two, is.

    >>> low, high = wilson_interval(8, 10)
    >>> round(low, 3), round(high, 3)
    (0.49, 0.943)
    >>> mcnemar_p_value([True] * 8 + [False] * 2, [False] * 8 + [False] * 2)
    0.0078125
    >>> difference, low, high = paired_bootstrap([1, 1, 1, 0], [0, 1, 0, 0], seed=0)
    >>> difference, low <= difference <= high
    (0.5, True)

Pure: no clock; every draw comes from the seed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

import numpy as np
from scipy import stats

VERSION: Final = 1  # of every interval; stored with scores, choices and pages


def wilson_interval(right: float, n: int, level: float = 0.95) -> tuple[float, float]:
    """Interval of a share (Wilson 1927), both ends in [0, 1]. With n = 0 nothing is known: (0, 1).

    right  how many of n; of items that count as parts of one, their sum
    """
    assert 0 <= right <= n, f"{right} right of {n}"
    if n == 0:
        return 0.0, 1.0
    z = float(stats.norm.ppf(0.5 + level / 2))
    share = right / n
    middle = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    # At the ends the exact bound is 0 or 1; the square root leaves a rest of 1e-17.
    return (0.0 if right == 0 else max(0.0, middle - half)), (1.0 if right == n else min(1.0, middle + half))


def paired_difference(a: Sequence[bool], b: Sequence[bool], level: float = 0.95) -> tuple[float, float, float]:
    """Share of a minus share of b over the same questions, with its interval: (difference, low, high).

    Newcombe's square-and-add method for paired shares (Statistics in Medicine 1998, method 10). Unlike a bootstrap it
    keeps a width where the two never disagree: twenty questions without a change do not prove that nothing changed.
    """
    assert len(a) == len(b) > 0, f"{len(a)} answers against {len(b)}"
    n = len(a)
    both = sum(bool(x) and bool(y) for x, y in zip(a, b, strict=True))
    of_a, of_b = sum(map(bool, a)), sum(map(bool, b))
    share_a, share_b = of_a / n, of_b / n
    (low_a, high_a), (low_b, high_b) = wilson_interval(of_a, n, level), wilson_interval(of_b, n, level)
    spread = of_a * (n - of_a) * of_b * (n - of_b)
    product = both * (n - of_a - of_b + both) - (of_a - both) * (of_b - both)
    phi = max(product - n / 2, 0.0) if product > 0 else float(product)
    phi = phi / math.sqrt(spread) if spread else 0.0
    below = (share_a - low_a) ** 2 - 2 * phi * (share_a - low_a) * (high_b - share_b) + (high_b - share_b) ** 2
    above = (high_a - share_a) ** 2 - 2 * phi * (high_a - share_a) * (share_b - low_b) + (share_b - low_b) ** 2
    difference = share_a - share_b
    return difference, difference - math.sqrt(max(0.0, below)), difference + math.sqrt(max(0.0, above))


def paired_bootstrap(
    a: Sequence[float], b: Sequence[float], seed: int = 0, level: float = 0.95, draws: int = 2000
) -> tuple[float, float, float]:
    """Mean of a - b over the same questions, with its percentile bootstrap interval: (difference, low, high)."""
    return stratified_bootstrap([(a, b)], seed=seed, level=level, draws=draws)


def stratified_bootstrap(
    pairs: Sequence[tuple[Sequence[float], Sequence[float]]], seed: int = 0, level: float = 0.95, draws: int = 2000
) -> tuple[float, float, float]:
    """The same for several sets: the mean over sets of each set's mean of a - b, each set redrawn within itself."""
    assert pairs and all(len(a) == len(b) > 0 for a, b in pairs), "pairs of equal length, none empty"
    differences = [np.asarray(a, dtype=np.float64) - np.asarray(b, dtype=np.float64) for a, b in pairs]
    point = float(np.mean([d.mean() for d in differences]))
    generator = np.random.Generator(np.random.PCG64(seed))
    means = np.zeros(draws)
    for d in differences:
        # Redrawing n questions is drawing how often each distinct difference comes: exact, and there are few of them.
        values, counts = np.unique(d, return_counts=True)
        times = generator.multinomial(len(d), counts / len(d), size=draws)
        means += times @ values / len(d)
    low, high = np.quantile(means / len(differences), [0.5 - level / 2, 0.5 + level / 2])
    return point, float(low), float(high)


def clustered_intervals(
    groups: Sequence[Sequence[float]], level: float = 0.95
) -> tuple[tuple[float, float, float], tuple[float, float, float]]:
    """Mean over all items, and mean of the groups' means, each with an interval that takes whole groups as drawn.

    groups  the items of each task: 1 and 0 for right and not, or differences of two models on the same items
    Student's t over G groups, G - 1 degrees of freedom, for the items' mean with the residuals summed within groups
    (the cluster-robust variance). It says how far another choice of tasks could move the mean. Where all groups agree
    it would claim certainty, so no bound is nearer than that of as many independent items (their variance at least
    that of one half item wrong).
    """
    assert groups and all(len(group) > 0 for group in groups), "groups with items"
    sizes = np.array([len(group) for group in groups], dtype=np.float64)
    sums = np.array([math.fsum(group) for group in groups])
    n, count = float(sizes.sum()), len(groups)
    micro, macro = float(sums.sum() / n), float((sums / sizes).mean())
    values = np.concatenate([np.asarray(group, dtype=np.float64) for group in groups])
    floor = max(float(np.sort(values).var()), 0.5 / n) / n  # sorted: the order of the items changes no bit
    if count == 1:
        half = float(stats.norm.ppf(0.5 + level / 2)) * math.sqrt(floor)
        return (micro, micro - half, micro + half), (macro, macro - half, macro + half)
    t = float(stats.t.ppf(0.5 + level / 2, count - 1))
    robust = count / (count - 1) * float(((sums - micro * sizes) ** 2).sum()) / n**2
    between = float((sums / sizes).var(ddof=1)) / count
    halves = [t * math.sqrt(max(variance, floor)) for variance in (robust, between)]
    return (micro, micro - halves[0], micro + halves[0]), (macro, macro - halves[1], macro + halves[1])


def mcnemar_p_value(a: Sequence[bool], b: Sequence[bool]) -> float:
    """Exact two-sided p of McNemar's test on the same questions: could the disagreements be a fair coin's?"""
    assert len(a) == len(b), f"{len(a)} answers against {len(b)}"
    only_a = sum(bool(x) and not y for x, y in zip(a, b, strict=True))
    only_b = sum(bool(y) and not x for x, y in zip(a, b, strict=True))
    if only_a + only_b == 0:
        return 1.0
    return float(stats.binomtest(only_a, only_a + only_b, 0.5).pvalue)
