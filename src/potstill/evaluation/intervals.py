"""Confidence intervals and tests for accuracies and for differences between accuracies.

    >>> low, high = wilson_interval(8, 10)
    >>> round(low, 3), round(high, 3)
    (0.49, 0.943)
    >>> mcnemar_p_value([True] * 8 + [False] * 2, [False] * 8 + [False] * 2)
    0.0078125
    >>> difference, low, high = paired_bootstrap([1, 1, 1, 0], [0, 1, 0, 0], seed=0)
    >>> difference, low <= difference <= high
    (0.5, True)

`level` is the confidence level, 0.95 by default. All random numbers come from a seed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

import numpy as np
from scipy import stats

VERSION: Final = 1  # version of all intervals; stored with scores, choices and reports


def wilson_interval(right: float, n: int, level: float = 0.95) -> tuple[float, float]:
    """Interval of a share (Wilson 1927), both ends in [0, 1]; (0, 1) for n = 0.

    right  number of right items of n; the sum, if items count partly

    `scipy.stats.binomtest(...).proportion_ci(method="wilson")` is not used: it differs in the last digit for half of all
    inputs (stored scores would change), refuses sums that are not integers, and takes 13 times as long.
    """
    assert 0 <= right <= n, f"{right} right of {n}"
    if n == 0:
        return 0.0, 1.0
    z = float(stats.norm.ppf(0.5 + level / 2))
    share = right / n
    center = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    # For right = 0 and right = n, the exact bound is 0 or 1; the square root leaves a remainder of 1e-17.
    return (0.0 if right == 0 else max(0.0, center - half)), (1.0 if right == n else min(1.0, center + half))


def paired_difference(a: Sequence[bool], b: Sequence[bool], level: float = 0.95) -> tuple[float, float, float]:
    """Share of a minus share of b over the same questions, with its interval: (difference, low, high).

    Newcombe's square-and-add method for paired shares (Statistics in Medicine 1998, method 10). Unlike a bootstrap
    interval, it has a width even if a and b agree on every question: twenty equal answers do not prove equality.
    """
    assert len(a) == len(b) > 0, f"{len(a)} answers against {len(b)}"
    n = len(a)
    both = sum(bool(x) and bool(y) for x, y in zip(a, b, strict=True))
    right_a, right_b = sum(map(bool, a)), sum(map(bool, b))
    share_a, share_b = right_a / n, right_b / n
    (low_a, high_a), (low_b, high_b) = wilson_interval(right_a, n, level), wilson_interval(right_b, n, level)
    # The correlation phi of a and b, with Newcombe's continuity correction.
    spread = right_a * (n - right_a) * right_b * (n - right_b)
    product = both * (n - right_a - right_b + both) - (right_a - both) * (right_b - both)
    phi = max(product - n / 2, 0.0) if product > 0 else float(product)
    phi = phi / math.sqrt(spread) if spread else 0.0
    below = (share_a - low_a) ** 2 - 2 * phi * (share_a - low_a) * (high_b - share_b) + (high_b - share_b) ** 2
    above = (high_a - share_a) ** 2 - 2 * phi * (high_a - share_a) * (share_b - low_b) + (share_b - low_b) ** 2
    difference = share_a - share_b
    return difference, difference - math.sqrt(max(0.0, below)), difference + math.sqrt(max(0.0, above))


def paired_bootstrap(
    a: Sequence[float], b: Sequence[float], seed: int = 0, level: float = 0.95, draws: int = 2000
) -> tuple[float, float, float]:
    """Mean of a - b over the same questions, with its percentile bootstrap interval: (difference, low, high).

    seed, draws  seed and number of the bootstrap samples
    """
    return stratified_bootstrap([(a, b)], seed=seed, level=level, draws=draws)


def stratified_bootstrap(
    pairs: Sequence[tuple[Sequence[float], Sequence[float]]], seed: int = 0, level: float = 0.95, draws: int = 2000
) -> tuple[float, float, float]:
    """Mean over the sets of each set's mean of a - b, with its percentile bootstrap interval: (difference, low, high).

    pairs  a and b of each set. Every set is resampled separately
    """
    assert pairs and all(len(a) == len(b) > 0 for a, b in pairs), "pairs must have equal lengths and must not be empty"
    differences = [np.asarray(a, dtype=np.float64) - np.asarray(b, dtype=np.float64) for a, b in pairs]
    point = float(np.mean([d.mean() for d in differences]))
    generator = np.random.Generator(np.random.PCG64(seed))
    means = np.zeros(draws)
    for d in differences:
        # To resample n questions, it is enough to draw the count of each distinct difference: only a few numbers.
        values, counts = np.unique(d, return_counts=True)
        times = generator.multinomial(len(d), counts / len(d), size=draws)
        means += times @ values / len(d)
    low, high = np.quantile(means / len(differences), [0.5 - level / 2, 0.5 + level / 2])
    return point, float(low), float(high)


def ratio_bootstrap(
    a: Sequence[float],
    b: Sequence[float],
    sizes: Sequence[float],
    seed: int = 0,
    level: float = 0.95,
    draws: int = 2000,
) -> tuple[float, float, float]:
    """sum(a - b) / sum(sizes) over the same items, with its percentile bootstrap interval: (difference, low, high).

    Items are resampled together with their sizes, so the interval shows how far other items could move the ratio. With a
    single item, both bounds are NaN.
    """
    assert len(a) == len(b) == len(sizes) > 0, "one size and two values for each item"
    differences = np.asarray(a, dtype=np.float64) - np.asarray(b, dtype=np.float64)
    weights = np.asarray(sizes, dtype=np.float64)
    point = float(differences.sum() / weights.sum())
    if len(a) == 1:
        return point, math.nan, math.nan
    generator = np.random.Generator(np.random.PCG64(seed))
    drawn = generator.integers(len(a), size=(draws, len(a)))
    ratios = differences[drawn].sum(1) / weights[drawn].sum(1)
    low, high = np.quantile(ratios, [0.5 - level / 2, 0.5 + level / 2])
    return point, float(low), float(high)


def seeds_interval(rows: Sequence[Sequence[float]], level: float = 0.95) -> tuple[float, float, float]:
    """Mean of a table of seeds and questions, with its interval for other seeds and other questions: (mean, low, high).

    rows  one row per seed, with one value per question: 1 for right and 0 for wrong, or differences from the base

    Seeds and questions are crossed random effects: all seeds answer the same questions. The variance of the mean is
    (MS_seeds + MS_questions - MS_rest) / n, where MS are the mean squares of the two-way table and n is its number of
    values. It is at least the variance from only the seeds, from only the questions, and of half a wrong question.
    The t quantile has Satterthwaite's degrees of freedom (Biometrics Bulletin 1946), so that two or three different
    seeds give a wide interval.
    """
    table = np.asarray(rows, dtype=np.float64)
    seeds, questions = table.shape
    assert seeds > 1 and questions > 1, f"a table of {seeds} seeds and {questions} questions has no interval"
    mean = float(table.mean())
    squares = _mean_squares(table)
    variance = max(squares[0] + squares[1] - squares[2], squares[0], squares[1]) / table.size
    freedom = [seeds - 1, questions - 1, (seeds - 1) * (questions - 1)]
    half = _half_width([square / table.size for square in squares], freedom, variance, questions, level)
    return mean, mean - half, mean + half


def seeds_difference(
    first: Sequence[Sequence[float]], second: Sequence[Sequence[float]], level: float = 0.95
) -> tuple[float, float, float]:
    """Mean of the first table minus that of the second, for other seeds and other questions: (difference, low, high).

    first, second  tables as in `seeds_interval`: two trainings with several seeds each, on the same questions. The numbers
                   of seeds may differ; seeds are not paired

    The variance is that of the seeds' means in the first, plus the same in the second, plus that of the questions' mean
    differences, minus what remains of each question and seed, which these count twice. It has the lower bounds and the
    degrees of freedom of `seeds_interval`.
    """
    tables = [np.asarray(rows, dtype=np.float64) for rows in (first, second)]
    questions = tables[0].shape[1]
    assert tables[1].shape[1] == questions > 1, "both tables need the same questions, two or more"
    assert all(len(table) > 1 for table in tables), "one seed has no interval over seeds"
    difference = float(tables[0].mean() - tables[1].mean())
    squares = [_mean_squares(table) for table in tables]
    between = [row[0] / table.size for row, table in zip(squares, tables, strict=True)]
    rest = [row[2] / table.size for row, table in zip(squares, tables, strict=True)]
    by_question = float((tables[0].mean(0) - tables[1].mean(0)).var(ddof=1)) / questions
    variance = max(sum(between) + by_question - sum(rest), sum(between), by_question)
    freedom = [len(table) - 1 for table in tables]
    freedom += [questions - 1, *(count * (questions - 1) for count in freedom)]
    half = _half_width([*between, by_question, *rest], freedom, variance, questions, level)
    return difference, difference - half, difference + half


def _mean_squares(table: np.ndarray) -> tuple[float, float, float]:
    """The mean squares of seeds, questions and the rest in a table of seeds and questions."""
    seeds, questions = table.shape
    by_seed, by_question = table.mean(1), table.mean(0)
    rest = table - by_seed[:, None] - by_question[None, :] + float(table.mean())
    return (
        questions * float(by_seed.var(ddof=1)),
        seeds * float(by_question.var(ddof=1)),
        float((rest**2).sum()) / ((seeds - 1) * (questions - 1)),
    )


def _half_width(parts: Sequence[float], freedom: Sequence[int], variance: float, questions: int, level: float) -> float:
    """Half an interval of Student's t with Satterthwaite's degrees of freedom, at least that of half a wrong question.

    parts  the terms of the variance, with their degrees of freedom
    """
    floor = 0.5 / questions**2
    if variance < floor:
        return float(stats.norm.ppf(0.5 + level / 2)) * math.sqrt(floor)
    spread = sum(part**2 / count for part, count in zip(parts, freedom, strict=True))
    return float(stats.t.ppf(0.5 + level / 2, variance**2 / spread)) * math.sqrt(variance)


def clustered_intervals(
    groups: Sequence[Sequence[float]], level: float = 0.95
) -> tuple[tuple[float, float, float], tuple[float, float, float]]:
    """Mean over all items, and mean of the groups' means, both as (mean, low, high).

    groups  the items of each task: 1 for right and 0 for wrong, or differences between two models on the same items

    The intervals show how far another sample of tasks could move the mean. They are intervals of Student's t with one
    degree of freedom less than groups. For the mean over items, residuals are summed within groups (cluster-robust
    variance). If all groups agree, the width would be 0; therefore, the variance is at least that of independent items,
    and at least that of half a wrong item.
    """
    assert groups and all(len(group) > 0 for group in groups), "every group needs items"
    sizes = np.array([len(group) for group in groups], dtype=np.float64)
    sums = np.array([math.fsum(group) for group in groups])
    n, count = float(sizes.sum()), len(groups)
    micro, macro = float(sums.sum() / n), float((sums / sizes).mean())
    values = np.concatenate([np.asarray(group, dtype=np.float64) for group in groups])
    floor = max(float(np.sort(values).var()), 0.5 / n) / n  # sorted, so that the result does not depend on the order
    if count == 1:
        half = float(stats.norm.ppf(0.5 + level / 2)) * math.sqrt(floor)
        return (micro, micro - half, micro + half), (macro, macro - half, macro + half)
    t = float(stats.t.ppf(0.5 + level / 2, count - 1))
    robust = count / (count - 1) * float(((sums - micro * sizes) ** 2).sum()) / n**2
    between = float((sums / sizes).var(ddof=1)) / count
    halves = [t * math.sqrt(max(variance, floor)) for variance in (robust, between)]
    return (micro, micro - halves[0], micro + halves[0]), (macro, macro - halves[1], macro + halves[1])


def mcnemar_p_value(a: Sequence[bool], b: Sequence[bool]) -> float:
    """Exact two-sided p-value of McNemar's test, whose null hypothesis is that a and b are right equally often.

    It is the probability that a fair coin decides the questions on which a and b disagree at least as unevenly.
    """
    assert len(a) == len(b), f"{len(a)} answers against {len(b)}"
    only_a = sum(bool(x) and not y for x, y in zip(a, b, strict=True))
    only_b = sum(bool(y) and not x for x, y in zip(a, b, strict=True))
    if only_a + only_b == 0:
        return 1.0
    return float(stats.binomtest(only_a, only_a + only_b, 0.5).pvalue)
