"""Selection of a checkpoint: the mean over sets, ties, and differences that are not significant."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from potstill.errors import UserError
from potstill.evaluation import selection
from potstill.evaluation.selection import Selection
from potstill.records import Checkpoint


def select(table: dict, *rule: str, **settings: int) -> Selection:
    return selection.select_checkpoint({Checkpoint(step): row for step, row in table.items()}, *rule, **settings)


def steps(checkpoints: tuple[Checkpoint, ...]) -> tuple[int, ...]:
    return tuple(checkpoint.step for checkpoint in checkpoints)


def right(share: float, n: int = 100) -> list[bool]:
    return [i < share * n for i in range(n)]


def test_the_mean_weighs_sets_and_not_questions() -> None:
    table = {100: {"a": right(0.9, 1000), "b": right(0.1, 10)}, 200: {"a": right(0.6, 1000), "b": right(0.6, 10)}}
    chosen = select(table)
    assert chosen.best == Checkpoint(200)
    assert [value for _, value in chosen.table] == pytest.approx([0.5, 0.6])


def test_of_equal_steps_the_earlier_wins_whatever_the_order_of_the_table() -> None:
    same = {"a": right(0.5)}
    chosen = select({300: same, 100: same, 200: {"a": right(0.1)}})
    assert chosen.best == Checkpoint(100)
    assert steps(chosen.tied) == (100, 300)


def test_a_clear_loser_is_not_tied_and_a_near_one_is() -> None:
    chosen = select({0: {"a": right(0.1)}, 1: {"a": right(0.50)}, 2: {"a": right(0.52)}})
    assert (chosen.best.step, steps(chosen.tied)) == (2, (1, 2))


def test_ties_are_paired() -> None:
    # The same accuracies: the same questions lost (paired, sure) against wins and losses that nearly cancel (unsure).
    best = [True] * 56 + [False] * 44
    nested = [True] * 46 + [False] * 54
    crossed = [False] * 30 + [True] * 26 + [True] * 20 + [False] * 24
    assert sum(nested) == sum(crossed)
    assert steps(select({1: {"a": best}, 2: {"a": nested}}).tied) == (1,)
    assert steps(select({1: {"a": best}, 2: {"a": crossed}}).tied) == (1, 2)


@given(st.lists(st.lists(st.booleans(), min_size=6, max_size=6), min_size=1, max_size=6), st.randoms())
def test_the_best_is_the_highest_and_is_tied_with_itself(rows: list[list[bool]], random) -> None:
    table = {10 * i: {"a": row[:2], "b": row[2:]} for i, row in enumerate(rows)}
    chosen = select(table, draws=50)
    values = dict(chosen.table)
    assert values[chosen.best] == max(values.values())
    assert chosen.best in chosen.tied
    shuffled = list(table.items())
    random.shuffle(shuffled)
    assert select(dict(shuffled), draws=50) == chosen


DIFFERENT = "E-select-different-questions"


@pytest.mark.parametrize(
    ("table", "rule", "code", "where"),
    [
        ({}, "mean-out-of-distribution", "E-select-no-checkpoint", "select"),
        ({0: {}}, "mean-out-of-distribution", "E-select-no-validation-set", "select"),
        ({0: {}}, "in-distribution", "E-select-no-validation-set", "select"),
        ({0: {"a": []}}, "mean-out-of-distribution", "E-select-empty-set", "select: step 0, a"),
        ({0: {"a": [True]}, 5: {"a": [True, False]}}, "mean-out-of-distribution", DIFFERENT, "select"),
        ({0: {"a": [True]}, 5: {"b": [True]}}, "mean-out-of-distribution", DIFFERENT, "select"),
        ({0: {"a": [True]}}, "best-loss", "E-select-unknown-rule", "select.rule"),
    ],
)
def test_wrong_tables_are_refused(table, rule: str, code: str, where: str) -> None:
    with pytest.raises(UserError) as error:
        select(table, rule)
    assert (error.value.code, error.value.where) == (code, where)
