"""Selection of a checkpoint: rules, bounds, ties, differences that are not significant, and the Pareto front."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from potstill.errors import UserError
from potstill.evaluation import selection
from potstill.evaluation.selection import Retention, Selection, pareto_front
from potstill.records import Checkpoint, Choice
from potstill.serialization import from_json, to_json


def select(table: dict, *rule: str, **settings) -> Selection:
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


# Rules and bounds


def outcomes(**shares: float) -> dict[str, list[bool]]:
    return {name: right(share) for name, share in shares.items()}


def test_weights_move_the_choice() -> None:
    table = {100: outcomes(a=0.9, b=0.1), 200: outcomes(a=0.2, b=0.6), 300: outcomes(a=0.6, b=0.3)}
    for weights, step, value in (
        ({"a": 1.0, "b": 1.0}, 100, 0.5),
        ({"a": 1.0, "b": 4.0}, 200, 0.52),
        ({"a": 2.0, "b": 1.0}, 100, 1.9 / 3),
    ):
        chosen = select(table, "weighted", weights=weights)
        assert chosen.best.step == step and dict(chosen.table)[chosen.best] == pytest.approx(value)
    equal = select(table, "weighted", weights={"a": 0.1, "b": 0.1})
    assert (equal.best, equal.tied) == (select(table).best, select(table).tied), "equal weights are the mean"


def test_a_tie_under_weights_is_tied() -> None:
    """A set with a large weight counts with its weight in the interval, too."""
    table = {1: {"a": right(0.5), "b": right(0.9)}, 2: {"a": right(0.52), "b": right(0.1)}}
    assert steps(select(table, "weighted", weights={"a": 100.0, "b": 0.01}).tied) == (1, 2)
    assert steps(select(table, "weighted", weights={"a": 1.0, "b": 1.0}).tied) == (1,)


def test_rounding_does_not_decide_between_equal_checkpoints() -> None:
    """0.1 + 0.7 is less than 0.2 + 0.6 in floating point; both means are 0.4."""
    early, late = outcomes(a=0.1, b=0.7), outcomes(a=0.2, b=0.6)
    assert selection.mean_set_accuracy(early) < selection.mean_set_accuracy(late)
    chosen = select({100: early, 200: late, 300: outcomes(a=0.3, b=0.4)})
    assert (chosen.best.step, steps(chosen.equal)) == (100, (100, 200))
    weighted = select(
        {100: outcomes(a=0.3, b=0.0), 200: outcomes(a=0.0, b=0.1)}, "weighted", weights={"a": 0.1, "b": 0.3}
    )
    assert steps(weighted.equal) == (100, 200), "weights are decimal numbers"


def bound(points: float, base: float = 0.8, name: str = "generic", **kept: float) -> Retention:
    return Retention(
        name, points, {"g": right(base)}, {Checkpoint(int(step[1:])): {"g": right(v)} for step, v in kept.items()}
    )


RISING = {100: outcomes(a=0.2), 200: outcomes(a=0.4), 300: outcomes(a=0.5)}


def test_a_bound_changes_the_choice() -> None:
    loose = select(RISING, retain=[bound(80.0, s100=0.7, s200=0.6, s300=0.1)])
    assert loose.best == select(RISING).best == Checkpoint(300)
    kept = select(RISING, retain=[bound(20.0, s100=0.7, s200=0.6, s300=0.1)])
    assert kept.best.step == 200, "20 points are allowed"
    assert steps(kept.tied) == (200,) and [value for _, value in kept.table] == [0.2, 0.4, 0.5]
    assert dict(kept.bounds[0].lost) == {Checkpoint(100): 10.0, Checkpoint(200): 20.0, Checkpoint(300): 70.0}
    both = [bound(20.0, s100=0.7, s200=0.6, s300=0.1), bound(5.0, name="g", s100=0.8, s200=0.7, s300=0.8)]
    assert select(RISING, retain=both).best.step == 100


def test_a_decimal_bound_is_met_by_exactly_this_loss() -> None:
    table = {100: {"g": right(0.777, 1000)}}
    assert select(
        {100: outcomes(a=0.5)}, retain=[Retention("g", 2.3, {"g": right(0.8, 1000)}, {Checkpoint(100): table[100]})]
    )


def test_nothing_is_chosen_if_nothing_keeps_the_bounds() -> None:
    with pytest.raises(UserError) as error:
        select(RISING, retain=[bound(5.0, s100=0.7, s200=0.74, s300=0.1)])
    assert (error.value.code, error.value.where) == ("E-select-retain", "select.retain")
    assert "step 200" in error.value.found and "6.0 points of generic (at most 5)" in error.value.found


def test_a_bound_on_other_questions_is_refused() -> None:
    with pytest.raises(UserError) as error:
        select(
            {100: outcomes(a=0.5)}, retain=[Retention("g", 5.0, {"g": [True]}, {Checkpoint(100): {"g": [True, True]}})]
        )
    assert (error.value.code, error.value.where) == (DIFFERENT, "select.retain.g")
    with pytest.raises(UserError) as error:
        select({100: outcomes(a=0.5)}, retain=[Retention("g", 5.0, {"g": []}, {Checkpoint(100): {"g": []}})])
    assert error.value.code == "E-select-empty-set"


def test_a_choice_is_written_with_its_bounds_and_read_again() -> None:
    made = select(RISING, retain=[bound(20.0, s100=0.7, s200=0.6, s300=0.1)])
    labels = ("weighted", "zero-shot-rationale", "greedy")
    choice = Choice(made.best, *labels, made.table, made.tied, made.equal, made.optimism, (("a", 1.0),), made.bounds)
    row = to_json(choice)
    assert row["bounds"] == [{"name": "generic", "points": 20.0, "lost": [[100, 10.0], [200, 20.0], [300, 70.0]]}]
    assert from_json(Choice, row) == choice
    assert [choice.bounds[0].keeps(Checkpoint(step)) for step in (100, 200, 300)] == [True, True, False]
    older = Choice(made.best, *labels, made.table, made.tied)
    assert list(to_json(older)) == ["step", "rule", "format", "decoding", "table", "tied"]
    assert from_json(Choice, to_json(older)) == older


# Pareto front

POINTS = st.dictionaries(st.text(max_size=3), st.tuples(*[st.integers(0, 4).map(float)] * 2), min_size=1, max_size=8)


@given(POINTS)
def test_the_front_is_what_no_point_dominates(points: dict[str, tuple[float, float]]) -> None:
    def dominates(one: tuple[float, float], other: tuple[float, float]) -> bool:
        return all(a >= b for a, b in zip(one, other, strict=True)) and one != other

    front = pareto_front(points)
    assert front and set(front) == {k for k, v in points.items() if not any(dominates(w, v) for w in points.values())}
    assert [points[key][0] for key in front] == sorted(points[key][0] for key in front)
    assert all(any(dominates(points[key], points[k]) for key in front) for k in points.keys() - set(front))
