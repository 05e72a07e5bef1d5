"""Intervals against plain formulas, other software's numbers and their own meaning."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from potstill import intervals


@given(st.integers(1, 500), st.data())
def test_wilson_solves_its_equation(n: int, data: st.DataObject) -> None:
    right = data.draw(st.integers(0, n))
    low, high = intervals.wilson(right, n)
    assert 0 <= low <= right / n <= high <= 1
    z = 1.959963984540054
    for bound in (low, high):
        if 0 < bound < 1:
            assert abs(right / n - bound) == pytest.approx(z * math.sqrt(bound * (1 - bound) / n), abs=1e-9)
    expected = stats.binomtest(right, n).proportion_ci(0.95, method="wilson")
    assert (low, high) == pytest.approx((expected.low, expected.high), abs=1e-12)


def test_wilson_of_nothing_knows_nothing() -> None:
    assert intervals.wilson(0, 0) == (0.0, 1.0)
    with pytest.raises(AssertionError):
        intervals.wilson(3, 2)


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
    assert intervals.mcnemar(a, b) == pytest.approx(min(1.0, 2 * tail))
    assert intervals.mcnemar(a, b) == pytest.approx(intervals.mcnemar(b, a))
