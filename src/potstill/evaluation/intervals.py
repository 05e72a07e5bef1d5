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
from dataclasses import dataclass
from functools import cache
from typing import Final

import numpy as np
from scipy import stats

VERSION: Final = (
    1  # version of the intervals that are stored with scores, choices and reports: those over seeds are not
)

Table = Sequence[Sequence[float]] | np.ndarray  # one row per seed, with one value per question


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


def seeds_share(rows: Table, level: float = 0.95) -> tuple[float, float, float]:
    """Share of right answers, with its interval for other seeds and other questions of the same kind: (share, low, high).

    rows  one row per seed, two or more, with one value per question, two or more: 1 for right and 0 for wrong

    Seeds and questions are crossed random effects, because all seeds answer the same questions. The variance of the mean
    has a part from the seeds' means and a part from the questions' means, less what both count (the two-way analysis of
    variance). Half the interval is the square root of the sum of the parts, each times the square of its own t quantile:
    one degree of freedom less than seeds, or than questions. Such an interval covers at least as often as it says
    (Banerjee 1960), also with two or three seeds. One quantile with Satterthwaite's degrees of freedom covers less,
    because few seeds that agree by chance give a short interval; a bootstrap over seeds and questions covers far less.
    A share has a variance that depends on it, so the bounds are those of Wilson's interval with as many questions as
    would give this half.
    """
    return seeds_mean_share([rows], level)


def seeds_mean_share(sets: Sequence[Table], level: float = 0.95) -> tuple[float, float, float]:
    """Mean over sets of the share of right answers, with its interval as in `seeds_share`: (share, low, high).

    sets  a table for each set, as in `seeds_share`. The seeds are the same in all of them, and in the same order
    """
    tables = [np.asarray(rows, dtype=np.float64) for rows in sets]
    assert tables and all(len(table) > 1 for table in tables), "one seed has no interval over seeds"
    share, half = _seeds_half([(table, np.zeros_like(table[:1])) for table in tables], level)
    n = sum(table.shape[1] for table in tables)
    ratio = half**2 / max(share * (1 - share), 0.5 / n * (1 - 0.5 / n))  # z²/n in Wilson's interval
    center, spread = share + ratio / 2, math.sqrt(ratio * share * (1 - share) + ratio**2 / 4)
    low, high = (center - spread) / (1 + ratio), (center + spread) / (1 + ratio)
    return share, (0.0 if share == 0 else max(0.0, low)), (1.0 if share == 1 else min(1.0, high))


def seeds_interval(rows: Table, level: float = 0.95) -> tuple[float, float, float]:
    """Mean of any values of seeds and questions, with its interval as in `seeds_difference`: (mean, low, high).

    rows  one row per seed with one value per question, such as differences from another student of the same seed
    """
    return seeds_difference(rows, [[0.0] * len(rows[0])], level)


def seeds_difference(first: Table, second: Table, level: float = 0.95) -> tuple[float, float, float]:
    """Mean of the first table minus that of the second, for other seeds and other questions: (difference, low, high).

    first, second  tables as in `seeds_share`, on the same questions. The numbers of seeds may differ; seeds are not
                   paired. A table of one row is a model that no seed decided, such as the base: it is taken as it is.
                   At least one of the tables needs several rows

    The parts of the variance are those of the seeds' means in each table, and that of the questions' mean differences,
    less what remains of each question and seed, which both count. The interval is made of them as in `seeds_share`.
    """
    return seeds_mean_difference([first], [second], level)


def seeds_mean_difference(
    first: Sequence[Table], second: Sequence[Table], level: float = 0.95
) -> tuple[float, float, float]:
    """Mean over sets of `seeds_difference`: (difference, low, high).

    first, second  a table for each set, in the same order of sets. The seeds are the same in all sets
    """
    pairs = [
        (np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)) for a, b in zip(first, second, strict=True)
    ]
    assert pairs and max(map(len, pairs[0])) > 1, "one seed has no interval over seeds"
    difference, half = _seeds_half(pairs, level)
    return difference, difference - half, difference + half


def _seeds_half(pairs: Sequence[tuple[np.ndarray, np.ndarray]], level: float) -> tuple[float, float]:
    """Mean over sets of the first table's mean minus the second's, and half its interval.

    It is at least what the questions alone give, and at least that of half a wrong question in every set.
    """
    count = len(pairs)
    questions = [first.shape[1] for first, _ in pairs]
    assert all(second.shape[1] == n > 1 for (_, second), n in zip(pairs, questions, strict=True)), (
        "two questions or more"
    )
    difference = sum(float(first.mean() - second.mean()) for first, second in pairs) / count
    from_seeds, rest = 0.0, [0.0] * count
    for tables in zip(*pairs, strict=True):
        seeds = len(tables[0])
        assert all(len(table) == seeds for table in tables), "all sets have the same seeds"
        if seeds > 1:
            of_seed = np.mean([table.mean(1) for table in tables], axis=0)
            from_seeds += _quantile(seeds - 1, level) ** 2 * float(of_seed.var(ddof=1)) / seeds
            rest = [before + _rest(table) for before, table in zip(rest, tables, strict=True)]
    scales = [_quantile(n - 1, level) ** 2 / count**2 for n in questions]
    between = [
        float((first.mean(0) - second.mean(0)).var(ddof=1)) / n
        for (first, second), n in zip(pairs, questions, strict=True)
    ]
    from_questions = sum(s * max(b - r, 0.0) for s, b, r in zip(scales, between, rest, strict=True))
    only_questions = sum(s * b for s, b in zip(scales, between, strict=True))
    floor = float(stats.norm.ppf(0.5 + level / 2)) ** 2 * sum(0.5 / n**2 for n in questions) / count**2
    return difference, math.sqrt(max(from_seeds + from_questions, only_questions, floor))


@cache
def _quantile(freedom: int, level: float) -> float:
    return float(stats.t.ppf(0.5 + level / 2, freedom))


def _rest(table: np.ndarray) -> float:
    """The variance of the mean from what is neither of a seed nor of a question, in a table of seeds and questions."""
    seeds, questions = table.shape
    rest = table - table.mean(1)[:, None] - table.mean(0)[None, :] + float(table.mean())
    return float((rest**2).sum()) / ((seeds - 1) * (questions - 1)) / table.size


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


@dataclass(frozen=True, slots=True)
class LineFit:
    """A straight line through the means of sizes, with its interval.

    slope    change of the mean for a step of 1 on the horizontal axis, and its interval
    p_value  of the test whose null hypothesis is that the line is flat
    points   (x, mean, low, high) of the line, at both ends and between them
    """

    slope: float
    low: float
    high: float
    p_value: float
    points: tuple[tuple[float, float, float, float], ...]


def fit_line(x: Sequence[float], sets: Sequence[Table], level: float = 0.95) -> LineFit:
    """The least-squares line of the mean over sets, with its interval for other sizes and other questions of the same kind.

    x     position of each size, three or more, such as the logarithm of its parameters
    sets  for each set, one row per size with one value per question: the share of seeds that have it right

    A size is one observation, however many seeds it has: what is peculiar to a size (its settings, its pretraining, how far
    the truth is from a line) is common to its seeds, so seeds are not further evidence for a slope. The interval is that of
    Student's t with two degrees of freedom less than sizes, from the distances of the sizes from the line, which contain
    the noise of seeds and questions. It is at least what the questions alone give, because three sizes can lie on a line by
    chance, and at least that of half a wrong question at every size. A bootstrap over runs is not used: with three or four
    sizes, many of its samples have only one or two of them.

    >>> fit = fit_line([5.0, 6.0, 7.0], [[[0, 0, 0, 1], [0, 0, 1, 1], [0, 1, 1, 1]]])
    >>> round(fit.slope, 6), [round(mean, 6) for _, mean, _, _ in fit.points[::10]], fit.low < fit.slope < fit.high
    (0.25, [0.25, 0.5, 0.75], True)
    """
    at = np.asarray(x, dtype=np.float64)
    tables = [np.asarray(rows, dtype=np.float64) for rows in sets]
    assert len(at) > 2 and len(np.unique(at)) > 2 and tables, "three sizes or more"
    centred, count = at - at.mean(), len(tables)
    spread = float(centred @ centred)
    slopes = [centred @ table / spread for table in tables]  # of each question
    middles = [table.mean(0) for table in tables]
    means = np.mean([table.mean(1) for table in tables], axis=0)
    slope = sum(float(one.mean()) for one in slopes) / count
    rest = means - means.mean() - slope * centred
    freedom = len(at) - 2
    error = math.sqrt(float(rest @ rest) / freedom)
    t, z = _quantile(freedom, level), float(stats.norm.ppf(0.5 + level / 2))

    def of_questions(values: Sequence[np.ndarray], scale: float) -> float:
        floor = scale * sum(0.5 / len(one) ** 2 for one in values)
        return math.sqrt(max(sum(float(one.var(ddof=1)) / len(one) for one in values), floor)) / count

    errors = error / math.sqrt(spread), of_questions(slopes, 1 / spread)
    half = max(t * errors[0], z * errors[1])
    steps = np.linspace(at.min(), at.max(), 21)
    points = []
    for place, offset in zip(steps.tolist(), (steps - at.mean()).tolist(), strict=True):
        mean = float(means.mean()) + slope * offset
        scale = 1 / len(at) + offset**2 / spread
        asked = of_questions([a + offset * b for a, b in zip(middles, slopes, strict=True)], scale)
        own = max(t * error * math.sqrt(scale), z * asked)
        points.append((place, mean, max(0.0, mean - own), min(1.0, mean + own)))
    by_questions = 2 * float(stats.norm.sf(abs(slope) / errors[1]))
    by_sizes = 2 * float(stats.t.sf(abs(slope) / errors[0], freedom)) if errors[0] else by_questions
    return LineFit(slope, slope - half, slope + half, max(by_sizes, by_questions), tuple(points))
