"""Intervals against plain formulas, other software's numbers and their own meaning."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from potstill.evaluation import intervals


@given(st.integers(1, 500), st.data())
def test_wilson_solves_its_equation(n: int, data: st.DataObject) -> None:
    right = data.draw(st.integers(0, n))
    low, high = intervals.wilson_interval(right, n)
    assert 0 <= low <= right / n <= high <= 1
    z = 1.959963984540054
    for bound in (low, high):
        if 0 < bound < 1:
            assert abs(right / n - bound) == pytest.approx(z * math.sqrt(bound * (1 - bound) / n), abs=1e-9)
    expected = stats.binomtest(right, n).proportion_ci(0.95, method="wilson")
    assert (low, high) == pytest.approx((expected.low, expected.high), abs=1e-12)


def test_wilson_of_nothing_knows_nothing() -> None:
    assert intervals.wilson_interval(0, 0) == (0.0, 1.0)
    with pytest.raises(AssertionError):
        intervals.wilson_interval(3, 2)


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=60), st.integers(0, 99))
def test_bootstrap_is_seeded_antisymmetric_and_holds_its_point(pairs: list[tuple[bool, bool]], seed: int) -> None:
    a, b = [float(x) for x, _ in pairs], [float(y) for _, y in pairs]
    point, low, high = intervals.paired_bootstrap(a, b, seed=seed, draws=300)
    assert intervals.paired_bootstrap(a, b, seed=seed, draws=300) == (point, low, high)
    assert point == pytest.approx(np.mean(a) - np.mean(b))
    assert -1 - 1e-9 <= low <= high <= 1 + 1e-9
    assert intervals.paired_bootstrap(a, a, seed=seed, draws=50) == (0.0, 0.0, 0.0)


def test_bootstrap_agrees_with_redrawing_the_questions() -> None:
    generator = np.random.default_rng(1)
    a, b = (generator.random(200) < 0.6).astype(float), (generator.random(200) < 0.5).astype(float)
    _, low, high = intervals.paired_bootstrap(a.tolist(), b.tolist(), seed=3, draws=8000)
    drawn = generator.integers(0, 200, size=(8000, 200))
    expected = np.quantile((a - b)[drawn].mean(axis=1), [0.025, 0.975])
    assert (low, high) == pytest.approx(tuple(expected), abs=0.012)


def test_bootstrap_of_several_sets_weighs_them_alike() -> None:
    large, small = ([1.0] * 100, [0.0] * 100), ([0.0], [0.0])
    assert intervals.stratified_bootstrap([large, small]) == (0.5, 0.5, 0.5)


@given(st.lists(st.tuples(st.booleans(), st.booleans()), max_size=40))
def test_mcnemar_is_the_sum_of_coin_tosses(pairs: list[tuple[bool, bool]]) -> None:
    a, b = [x for x, _ in pairs], [y for _, y in pairs]
    wins, losses = sum(x and not y for x, y in pairs), sum(y and not x for x, y in pairs)
    n = wins + losses
    tail = sum(math.comb(n, k) for k in range(min(wins, losses) + 1)) / 2**n
    assert intervals.mcnemar_p_value(a, b) == pytest.approx(min(1.0, 2 * tail))
    assert intervals.mcnemar_p_value(a, b) == pytest.approx(intervals.mcnemar_p_value(b, a))


groups = st.lists(st.lists(st.booleans(), min_size=1, max_size=30), min_size=2, max_size=8)


@given(groups)
def test_clustered_means_are_the_means_and_shuffling_within_groups_changes_nothing(items: list[list[bool]]) -> None:
    values = [[float(x) for x in group] for group in items]
    (micro, low, high), (macro, macro_low, macro_high) = intervals.clustered_intervals(values)
    flat = [x for group in values for x in group]
    assert micro == pytest.approx(np.mean(flat)) and low < micro < high
    assert macro == pytest.approx(np.mean([np.mean(group) for group in values])) and macro_low < macro < macro_high
    again = intervals.clustered_intervals([group[::-1] for group in values])
    assert np.ravel(again) == pytest.approx(np.ravel(((micro, low, high), (macro, macro_low, macro_high))))


def test_clustered_is_the_t_interval_of_the_groups_where_they_are_of_one_size() -> None:
    generator = np.random.Generator(np.random.PCG64(1))
    values = [list((generator.random(50) < share).astype(float)) for share in generator.random(27)]
    means = [np.mean(group) for group in values]
    expected = stats.t.interval(0.95, 26, np.mean(means), stats.sem(means))
    (micro, low, high), (macro, macro_low, macro_high) = intervals.clustered_intervals(values)
    assert (macro_low, macro_high) == pytest.approx(expected) and macro == pytest.approx(micro)
    assert (low, high) == pytest.approx(expected)  # of equal sizes both are the same estimate
    narrow = intervals.wilson_interval(round(sum(map(sum, values))), 27 * 50)
    assert high - low > narrow[1] - narrow[0]


def test_clustered_covers_when_tasks_are_drawn_too() -> None:
    generator = np.random.Generator(np.random.PCG64(2))
    hit = 0
    for _ in range(300):
        shares = generator.beta(2, 2, size=27)  # mean one half
        _, (_, low, high) = intervals.clustered_intervals(
            [list((generator.random(20) < p).astype(float)) for p in shares]
        )
        hit += low <= 0.5 <= high
    assert 0.92 <= hit / 300 <= 0.98


def test_clustered_is_never_certain() -> None:
    (_, low, high), (_, macro_low, macro_high) = intervals.clustered_intervals([[1.0] * 20] * 27)
    assert low < 1 < high and macro_low < 1 < macro_high
    one = intervals.clustered_intervals([[1.0, 0.0, 1.0]])
    assert one[0] == one[1] and one[0][1] < one[0][0] < one[0][2]


@pytest.mark.parametrize(
    ("seeds", "questions", "between_seeds"), [(3, 100, 0.0), (3, 100, 0.4), (2, 80, 0.4), (5, 300, 0.4)]
)
def test_an_interval_over_seeds_and_questions_covers_the_truth(seeds, questions, between_seeds):
    """A logistic model with normal effects of seeds and questions; the truth is the mean over many of both."""
    generator = np.random.default_rng(seeds * questions)

    def draw(rows: int, columns: int) -> np.ndarray:
        effects = generator.normal(0, between_seeds, (rows, 1)) + generator.normal(0, 1.5, (1, columns))
        return 1 / (1 + np.exp(0.5 - effects))

    truth, hits = draw(3000, 3000).mean(), 0
    for _ in range(600):
        chances = draw(seeds, questions)
        _, low, high = intervals.seeds_interval((generator.random(chances.shape) < chances).astype(float).tolist())
        hits += low <= truth <= high
    assert 0.91 <= hits / 600 <= 0.99


@pytest.mark.parametrize(("seeds", "questions"), [((3, 3), 60), ((2, 4), 200)])
def test_the_difference_of_two_recipes_is_covered(seeds: tuple[int, int], questions: int):
    """Two recipes with seeds of their own on the same questions; some are harder, and more so for one of the two."""
    generator = np.random.default_rng(5)
    hits = 0
    for _ in range(600):
        hard, tilt = generator.normal(0, 0.15, questions), generator.normal(0, 0.1, questions)
        tables = []
        for count, mean, sign in zip(seeds, (0.6, 0.45), (1, -1), strict=True):
            chances = np.clip(mean + generator.normal(0, 0.04, (count, 1)) + hard + sign * tilt, 0, 1)
            tables.append((generator.random(chances.shape) < chances).astype(float).tolist())
        _, low, high = intervals.seeds_difference(tables[0], tables[1])
        hits += low <= 0.15 <= high
    assert 0.91 <= hits / 600 <= 0.995


def test_the_difference_of_two_recipes_by_hand():
    first, second = [[1.0, 1, 0, 1], [1.0, 0, 0, 1]], [[0.0, 1, 0, 0], [0.0, 0, 1, 0], [0.0, 0, 0, 1]]
    difference, low, high = intervals.seeds_difference(first, second)
    other, other_low, other_high = intervals.seeds_difference(second, first)
    assert difference == pytest.approx(5 / 8 - 1 / 4) and other == pytest.approx(-difference)
    assert (other_low, other_high) == pytest.approx((-high, -low))
    between = np.var([3 / 4, 2 / 4], ddof=1) / 2 + 0  # the seeds of the second have equal means
    by_question = np.var([1.0, 1 / 2 - 1 / 3, -1 / 3, 1 - 1 / 3], ddof=1) / 4
    assert (high - low) / 2 > 1.96 * math.sqrt(max(between, by_question))
    # Equal answers everywhere have the interval of half a wrong question.
    nothing, low, high = intervals.seeds_difference([[1.0] * 50] * 2, [[1.0] * 50] * 3)
    assert nothing == 0 and (high - low) / 2 == pytest.approx(1.96 * math.sqrt(0.5) / 50, abs=1e-4)


def test_an_interval_over_seeds_is_at_least_that_of_its_parts():
    mean, low, high = intervals.seeds_interval([[1.0, 1, 1, 1], [0.0, 0, 0, 0]])
    assert mean == 0.5 and low < 0 and high > 1  # two seeds that disagree about everything say nothing
    assert intervals.seeds_interval([[1.0, 0, 1], [1.0, 0, 1]])[1] < 2 / 3 - 0.5
    mean, low, high = intervals.seeds_interval([[1.0] * 100, [1.0] * 100])
    assert mean == 1 and low == pytest.approx(1 - 1.96 * math.sqrt(0.5) / 100, abs=1e-4)  # half a wrong question
