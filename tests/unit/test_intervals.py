"""Intervals against plain formulas, other software's numbers and their own meaning."""

from __future__ import annotations

import math
import sys
from pathlib import Path
from random import Random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from potstill.evaluation import intervals

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
import interval_coverage


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


@pytest.mark.parametrize("number", ["share right", "difference from the base", "difference of two students"])
@pytest.mark.parametrize(("seeds", "questions", "spread", "share"), [
    (2, 50, 0.0, 0.3), (3, 200, 0.2, 0.05), (2, 200, 0.5, 0.3), (3, 200, 0.5, 0.6), (5, 200, 0.5, 0.3),
])  # fmt: skip
def test_an_interval_over_seeds_and_questions_covers_the_truth(
    number: str, seeds: int, questions: int, spread: float, share: float
) -> None:
    """`benchmarks/interval_coverage.py` on fewer studies; 95 % of 600 are at least 93 % in all but one of a hundred."""
    generator = np.random.default_rng(seeds * questions)
    covered, half = interval_coverage.cover(number, share, spread, seeds, questions, 600, 0.95, generator)
    assert covered >= 0.93 and 0 < half < 1


def test_three_seeds_of_one_recipe_compared_ten_times_claim_no_difference() -> None:
    """Six seeds of one recipe, in all ten splits into three and three, in ten studies. Run against run does claim some."""
    generator = np.random.default_rng(17)
    claims = [interval_coverage.count_claims(generator, 0.5, 0.95) for _ in range(10)]
    assert sum(seeds for seeds, _ in claims) <= 2 and sum(pairs for _, pairs in claims) >= 20


def test_a_large_difference_between_recipes_is_claimed() -> None:
    generator = np.random.default_rng(17)
    difficulty = generator.normal(0, 1.5, 200)
    first, second = (interval_coverage.answer(generator, share, 0.2, 3, difficulty) for share in (0.6, 0.3))
    difference, low, high = intervals.seeds_difference(first, second)
    assert low > 0 and low <= difference <= high


@given(st.lists(st.lists(st.booleans(), min_size=4, max_size=4), min_size=2, max_size=4), st.randoms())
def test_the_order_of_seeds_and_questions_changes_nothing(rows: list[list[bool]], random: Random) -> None:
    columns = random.sample(range(4), 4)
    shuffled = [[row[column] for column in columns] for row in random.sample(rows, len(rows))]
    share, low, high = intervals.seeds_share(rows)
    assert intervals.seeds_share(shuffled) == pytest.approx((share, low, high))
    assert 0 <= low <= share <= high <= 1 and low < high
    opposite = intervals.seeds_share([[not value for value in row] for row in rows])
    assert opposite == pytest.approx((1 - share, 1 - high, 1 - low))
    assert intervals.seeds_difference(rows, rows)[0] == 0
    one, two = intervals.seeds_difference(rows, rows[:1]), intervals.seeds_difference(rows[:1], rows)
    assert one == pytest.approx((-two[0], -two[2], -two[1]))


def test_seeds_that_agree_on_every_question_are_one_sample_of_questions() -> None:
    """Then the bounds are those of Wilson's interval, with Student's t for the normal quantile."""
    row = [1.0] * 30 + [0.0] * 70
    share, low, high = intervals.seeds_share([row] * 3)
    wilson = intervals.wilson_interval(30, 100)
    assert share == 0.3 and (low, high) == pytest.approx(wilson, abs=0.002) and high - low > wilson[1] - wilson[0]
    assert intervals.seeds_share([[0.0] * 50] * 2) == pytest.approx((0, *intervals.wilson_interval(0, 50)), abs=1e-3)


def test_an_interval_over_seeds_by_hand() -> None:
    """Two seeds and three questions: the parts of the two-way table, each with its own quantile."""
    rows = [[1.0, 0.0, 1.0], [1.0, 1.0, 1.0]]
    mean, low, high = intervals.seeds_interval(rows)
    seeds = np.var([2 / 3, 1], ddof=1) / 2
    questions = np.var([1, 1 / 2, 1], ddof=1) / 3
    rest = sum(value**2 for value in [1 / 6, -1 / 3, 1 / 6] * 2) / 2 / 6
    t1, t2 = 12.706204736, 4.30265273
    half = math.sqrt(t1**2 * seeds + max(t2**2 * (questions - rest), 0))
    assert (mean, low, high) == pytest.approx((5 / 6, 5 / 6 - half, 5 / 6 + half))


def test_a_mean_over_sets_is_the_interval_of_one_set_if_there_is_one_and_weighs_sets_alike() -> None:
    first, second = [[1.0, 0, 1, 1], [1.0, 0, 0, 1]], [[0.0, 1], [1.0, 1]]
    mean, low, high = intervals.seeds_mean_share([first, second])
    assert mean == pytest.approx((5 / 8 + 3 / 4) / 2) and 0 <= low < mean < high <= 1
    assert intervals.seeds_mean_share([first]) == intervals.seeds_share(first)
    # Twice the same set: the seeds differ as much, and there are twice as many questions.
    both = intervals.seeds_mean_difference([first, first], [[[0.0] * 4]] * 2)
    once = intervals.seeds_interval(first)
    assert both[0] == pytest.approx(once[0]) and both[2] - both[0] < once[2] - once[0]


def test_the_difference_of_two_recipes_by_hand() -> None:
    first, second = [[1.0, 1, 0, 1], [1.0, 0, 0, 1]], [[0.0, 1, 0, 0], [0.0, 0, 1, 0], [0.0, 0, 0, 1]]
    difference, low, high = intervals.seeds_difference(first, second)
    other, other_low, other_high = intervals.seeds_difference(second, first)
    assert difference == pytest.approx(5 / 8 - 1 / 4) and other == pytest.approx(-difference)
    assert (other_low, other_high) == pytest.approx((-high, -low))
    of_seeds = 12.706204736**2 * np.var([3 / 4, 2 / 4], ddof=1) / 2 + 0  # the seeds of the second have equal means
    by_question = np.var([1.0, 1 / 2 - 1 / 3, -1 / 3, 1 - 1 / 3], ddof=1) / 4
    assert math.sqrt(of_seeds) <= (high - low) / 2 <= math.sqrt(of_seeds + 3.1825**2 * by_question)
    # Equal answers everywhere have the interval of half a wrong question.
    nothing, low, high = intervals.seeds_difference([[1.0] * 50] * 2, [[1.0] * 50] * 3)
    assert nothing == 0 and (high - low) / 2 == pytest.approx(1.96 * math.sqrt(0.5) / 50, abs=1e-4)


def test_two_seeds_that_disagree_about_everything_say_nothing() -> None:
    mean, low, high = intervals.seeds_interval([[1.0, 1, 1, 1], [0.0, 0, 0, 0]])
    assert mean == 0.5 and low < 0 and high > 1
    share, low, high = intervals.seeds_share([[1.0, 1, 1, 1], [0.0, 0, 0, 0]])
    assert share == 0.5 and low < 0.02 and high > 0.98
