"""Groups of runs that differ only in seeds, and their scores, against the plain formulas."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from potstill.errors import UserError
from potstill.evaluation import intervals
from potstill.report.group_scores import SEED_KEYS, RunAnswers, describe_keys, group_runs, label_groups, score_groups

Row = Sequence[bool]


def run(name: str, right: Row, seed: int = 1, **options: Any) -> RunAnswers:
    """A run that answers the questions of one set, in one format."""
    keys: Mapping[str, Any] = options.pop("keys", {"student.model": "a", "train.divergence": "forward_kl"})
    answers = options.pop("answers", {"greedy": {f"q{n}": ("sums", value) for n, value in enumerate(right)}})
    seeds: dict[str, int] = dict.fromkeys(SEED_KEYS, seed)
    return RunAnswers(name, keys, seeds, answers, training=options.pop("training", name), **options)


def base(name: str, right: Row, model: str = "a") -> RunAnswers:
    return run(name, right, keys={"student.model": model}, training="", is_fixed=True, is_base=True)


def clip(interval: tuple[float, float, float]) -> tuple[float, float, float]:
    value, low, high = interval
    return value, max(low, -1.0), min(high, 1.0)


REVERSE = {"student.model": "a", "train.divergence": "reverse_kl"}
rows = st.lists(st.lists(st.booleans(), min_size=5, max_size=5), min_size=2, max_size=4)


@given(rows, rows)
def test_scores_are_the_plain_formulas(first: list[Row], second: list[Row]) -> None:
    runs = [run(f"a{n}", row, n) for n, row in enumerate(first)]
    runs += [run(f"b{n}", row, n, keys=REVERSE) for n, row in enumerate(second)]
    scores = score_groups(group_runs(runs))
    assert [score.group for score in scores] == ["train.divergence=forward_kl", "train.divergence=reverse_kl"]
    for score, table in zip(scores, (first, second), strict=True):
        assert (score.share, score.low, score.high) == intervals.seeds_share(table)
        assert score.by_seed == tuple(statistics.fmean(row) for row in table) and score.n == 5
        assert score.interval_over == "seeds and questions"
    assert scores[0].difference is None and scores[0].baseline is None
    change = scores[1].difference, scores[1].difference_low, scores[1].difference_high
    assert change == clip(intervals.seeds_difference(second, first))
    assert scores[1].baseline == scores[0].group and scores[1].difference_over == "seeds and questions"


def test_a_single_run_says_that_it_is_one_seed() -> None:
    first, second = [True, False, True, True], [False, False, True, False]
    scores = score_groups(group_runs([run("a", first), run("b", second, keys=REVERSE)]))
    assert [score.interval_over for score in scores] == ["questions, one seed"] * 2
    assert (scores[0].low, scores[0].high) == intervals.wilson_interval(3, 4)
    change = scores[1].difference, scores[1].difference_low, scores[1].difference_high
    assert change == intervals.paired_difference(second, first)
    assert scores[1].difference_over == "questions, one seed"


def test_each_group_is_compared_with_the_base_of_its_own_student() -> None:
    right = [[True, True, False, True], [True, False, False, True]]
    runs = [
        base("base a", [True, False, False, False]),
        base("base b", [False, False, False, False], "b"),
        *(run(f"a{n}", row, n) for n, row in enumerate(right)),
        *(run(f"b{n}", row, n, keys=REVERSE | {"student.model": "b"}) for n, row in enumerate(right)),
    ]
    groups = group_runs(runs)
    assert [group.label for group in groups] == [
        "base, student.model=a",
        "base, student.model=b",
        "student.model=a, train.divergence=forward_kl",
        "student.model=b, train.divergence=reverse_kl",
    ]
    scores = score_groups(groups, "own base")
    assert [score.baseline for score in scores] == [None, None, groups[0].label, groups[1].label]
    assert [score.difference for score in scores] == [None, None, 0.375, 0.625]
    assert [score.interval_over for score in scores] == ["questions"] * 2 + ["seeds and questions"] * 2
    assert scores[2].difference_over == "seeds and questions", "no seed decided the weights of the base"
    differences = [[1.0 - 1, 1 - 0, 0 - 0, 1 - 0], [1.0 - 1, 0 - 0, 0 - 0, 1 - 0]]
    change = scores[2].difference, scores[2].difference_low, scores[2].difference_high
    assert change == clip(intervals.seeds_interval(differences))
    assert all(score.difference is None for score in score_groups(groups, None))


def test_named_keys_divide_and_other_keys_are_refused() -> None:
    right = [True, False, True]
    keys = [{"student.model": model, "train.steps": steps} for model in "ab" for steps in (10, 20)]
    runs = [run(f"{number} {seed}", right, seed, keys=row) for number, row in enumerate(keys) for seed in (1, 2)]
    assert [group.keys for group in group_runs(runs, ["student", "train"])] == keys
    by_seed = group_runs(runs[:2], ["train.seed"])
    assert [(group.label, group.seeds) for group in by_seed] == [("train.seed=1", (1,)), ("train.seed=2", (2,))]
    assert [group.label for group in group_runs(runs[:4], ["train.steps"])] == ["train.steps=10", "train.steps=20"]
    with pytest.raises(UserError) as error:
        group_runs(runs, ["student.model"])
    assert (error.value.code, error.value.found) == ("E-report-unnamed-keys", "train.steps")
    with pytest.raises(UserError) as error:
        group_runs(runs, ["student.modle"])
    assert error.value.code == "E-report-unknown-key"


@pytest.mark.parametrize("seed, training", [(1, "other"), (2, "a")], ids=["same seeds", "same training"])
def test_one_training_is_not_two_seeds(seed: int, training: str) -> None:
    with pytest.raises(UserError) as error:
        group_runs([run("a", [True], 1, training="a"), run("b", [True], seed, training=training)])
    assert error.value.code == "E-report-same-seeds"


def test_only_common_questions_count_and_a_set_that_a_group_lacks_has_no_row() -> None:
    def answers(*questions: str, **other: str) -> Mapping[str, Any]:
        return {"greedy": dict.fromkeys(questions, ("sums", True)) | {q: (name, False) for q, name in other.items()}}

    runs = [
        run("a", [], answers=answers("q1", "q2", "q3", x="more", y="more", z="alone")),
        run("b", [], answers=answers("q2", "q3", "q4"), keys=REVERSE),
    ]
    scores = score_groups(group_runs(runs))
    assert [(score.set, score.group, score.n) for score in scores] == [
        ("more", "train.divergence=forward_kl", 2),
        ("sums", "train.divergence=forward_kl", 2),
        ("sums", "train.divergence=reverse_kl", 2),
    ]


@given(rows, rows)
def test_a_mean_over_sets_weighs_every_set_alike(first: list[Row], second: list[Row]) -> None:
    """Of sets of different sizes, after the sets of its kind."""

    def several(name: str, row: Row, seed: int = 1, **options: Any) -> RunAnswers:
        right = {f"a{n}": ("sums", value) for n, value in enumerate(row)}
        right |= {f"b{n}": ("more", value) for n, value in enumerate(row[:2])}
        kinds = {"sums": "out-of-distribution", "more": "out-of-distribution"}
        return run(name, [], seed, answers={"greedy": right}, groups=kinds, **options)

    runs = [several(f"a{n}", row, n) for n, row in enumerate(first)]
    runs += [several("b", second[0], keys=REVERSE)]
    scores = score_groups(group_runs(runs))
    assert [(score.of, score.set) for score in scores[::2]] == [
        ("set", "more"), ("set", "sums"), ("mean over sets", "out-of-distribution"),
    ]  # fmt: skip
    more, sums, mean = scores[::2]
    assert mean.share == pytest.approx((more.share + sums.share) / 2) and mean.n == more.n + sums.n
    assert mean.by_seed == pytest.approx([(a + b) / 2 for a, b in zip(more.by_seed, sums.by_seed, strict=True)])
    tables = [[row[:2] for row in first], first]
    assert (mean.share, mean.low, mean.high) == intervals.seeds_mean_share(tables)
    change = scores[-1].difference, scores[-1].difference_low, scores[-1].difference_high
    assert change == clip(intervals.seeds_mean_difference([[second[0][:2]], [second[0]]], tables))


def test_a_group_is_named_by_the_keys_that_differ() -> None:
    groups = [{"a": 1, "b": None, "c": "x" * 60}, {"a": 1, "b": 2, "c": "y"}, {"a": 1, "b": None, "c": "y"}]
    assert label_groups(groups) == [f"c={'x' * 37}...", "b=2, c=y", "c=y"]


def test_groups_that_differ_in_many_keys_are_named_by_their_first_run() -> None:
    keys = [{f"section.key_{n}": value for n in range(6)} for value in "ab"]
    groups = group_runs([run("runs/a", [True, True], keys=keys[0]), run("runs/b", [True, True], keys=keys[1])])
    assert [group.label for group in groups] == ["runs/a", "runs/b"] and groups[0].keys == keys[0]
    assert describe_keys(groups[1].keys).startswith("section.key_0=b, section.key_1=b")


def test_labels_of_groups_are_different_although_long_values_are_cut() -> None:
    runs = [run(end, [True, True], keys={"student.model": "x" * 50 + end}) for end in "ab"]
    labels = [group.label for group in group_runs(runs)]
    assert labels == [f"student.model={'x' * 37}... (1)", f"student.model={'x' * 37}... (2)"]
