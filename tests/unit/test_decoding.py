"""Self-consistency, best-of-n and pass@k: each estimate is the mean over all choices of k from n samples, counted here."""

from __future__ import annotations

from itertools import combinations, permutations
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import tiny
from potstill import storage
from potstill.errors import UserError
from potstill.evaluation import checkpoint
from potstill.evaluation.decoding import (
    DECODING_PATTERN,
    Decoding,
    choose_answers,
    compute_pass_curves,
    list_sampling_specs,
    parse_decoding,
)
from potstill.evaluation.self_consistency import best_of_accuracy, majority_index, pass_at_k, vote_accuracy
from potstill.recipe import parse_recipe, recipe_json_schema
from potstill.records import BASE, Checkpoint, Prediction

samples = st.lists(st.sampled_from(["7", "8", "9", None]), min_size=1, max_size=6)


@settings(max_examples=60, deadline=None)
@given(samples)
def test_the_vote_of_k_is_the_mean_over_all_orders(found: list[str | None]) -> None:
    right = [value == "7" for value in found]
    accuracies = vote_accuracy(list(zip(found, right, strict=True)))
    for k in range(1, len(found) + 1):
        hits = [
            right[order[majority_index([found[at] for at in order])]] for order in permutations(range(len(found)), k)
        ]
        assert accuracies[k - 1] == pytest.approx(sum(hits) / len(hits))


@given(st.lists(st.booleans(), min_size=1, max_size=8))
def test_any_right_is_the_mean_over_all_choices(right: list[bool]) -> None:
    accuracies = pass_at_k(len(right), sum(right))
    for k in range(1, len(right) + 1):
        hits = [any(chosen) for chosen in combinations(right, k)]
        assert accuracies[k - 1] == pytest.approx(sum(hits) / len(hits))
    assert accuracies[0] == pytest.approx(sum(right) / len(right))


@given(st.lists(st.tuples(st.integers(-5, 0).map(float), st.booleans()), min_size=1, max_size=8))
def test_best_of_k_is_the_mean_over_all_choices(rows: list[tuple[float, bool]]) -> None:
    accuracies = best_of_accuracy(rows)
    for k in range(1, len(rows) + 1):
        hits = [rows[max(chosen, key=lambda at: (rows[at][0], -at))][1] for chosen in combinations(range(len(rows)), k)]
        assert accuracies[k - 1] == pytest.approx(sum(hits) / len(hits))


def test_forty_samples_are_counted_at_once() -> None:
    rows = [(str(at % 13), at % 13 == 0) for at in range(38)] + [(None, False)] * 2
    accuracies = vote_accuracy(rows)
    assert len(accuracies) == 40 and all(0 <= share <= 1 for share in accuracies)
    assert accuracies[0] == pytest.approx(3 / 40)


def answers() -> list[Prediction]:
    rows = {"a": [("1", -3.0), ("2", -1.0), ("1", -2.0)], "b": [(None, -1.0), ("5", -9.0), (None, -0.5)]}
    verdicts = {"1": "right", "5": "right"}
    return [
        Prediction(name, "m", "number", f"{name}{at}", "end", verdicts.get(value or "", "wrong"), value, at, known)  # type: ignore[arg-type]
        for name, own in rows.items()
        for at, (value, known) in enumerate(own)
    ]


def test_one_answer_is_chosen() -> None:
    assert [answer.text for answer in choose_answers("vote-3", answers())] == ["a0", "b1"]
    assert [answer.text for answer in choose_answers("best-3", answers())] == ["a1", "b2"]
    assert [answer.text for answer in choose_answers("vote-1", answers()[::-1])] == ["b0", "a0"]


def test_tries_of_a_set() -> None:
    rows = compute_pass_curves(answers(), checkpoint=Checkpoint(3), split="test", format="f", drawing="samples")
    accuracies = {(row.how, row.k): row.accuracy for row in rows}
    assert (
        accuracies["vote", 3] == 1.0
        and accuracies["any", 1] == pytest.approx((2 / 3 + 1 / 3) / 2) == accuracies["best", 1]
    )
    assert accuracies["best", 3] == 0.0
    assert all(row.n == 2 and row.low <= row.accuracy <= row.high and row.high > row.low for row in rows)


def test_names() -> None:
    assert [
        parse_decoding(name) for name in ("greedy", "vote-8", "best-40", "greedy+calculator", "vote-3+calculator")
    ] == [
        Decoding("greedy"),
        Decoding("vote", 8),
        Decoding("best", 40),
        Decoding("greedy", calculator=True),
        Decoding("vote", 3, calculator=True),
    ]
    drawn = list_sampling_specs(["vote-8", "best-40", "greedy", "vote-2+calculator"])
    assert [(each.name, each.samples) for each in drawn] == [("samples", 40), ("greedy", 1), ("samples+calculator", 2)]
    definition = recipe_json_schema()["$defs"]["EvaluateSection"]["properties"]["decodings"]["items"]
    assert definition["pattern"] == DECODING_PATTERN


@pytest.mark.parametrize("named", ["vote", "vote-0", "best-of-3", "greedy+calc", "greedy, greedy"])
def test_what_is_no_decoding_is_refused(named: str) -> None:
    with pytest.raises(UserError, match=r"decoding"):
        parse_recipe(f"name: x\nteacher: {{kind: human}}\nevaluate: {{decodings: [{named}]}}\n", "x.yaml")


def test_a_run_with_every_decoding(tmp_path: Path) -> None:
    data = tiny.world(tmp_path)
    asked = ("evaluate.decodings=[vote-3, greedy]", "evaluate.test_decodings=[best-4+calculator]", "train.steps=2")
    run = tiny.make(data, tmp_path / "run", *asked)
    choice = checkpoint.read_choice(run)
    assert choice.decoding == "vote-3"
    at = run / "test" / choice.checkpoint.name
    drawn = list(storage.iter_records(Prediction, at / "zero-shot-rationale.samples+calculator.jsonl"))
    chosen = list(
        checkpoint.read_predictions(run / "test", choice.checkpoint, "zero-shot-rationale", "best-4+calculator")
    )
    assert len(drawn) == 4 * len(chosen) and {each.index for each in drawn} == {0, 1, 2, 3}
    for each in chosen:
        own = [row for row in drawn if row.question == each.question]
        assert each in own and each.likelihood == max(row.likelihood or 0 for row in own)
    assert not (run / "evaluate" / choice.checkpoint.name / "zero-shot-rationale.best-4+calculator.jsonl").exists()
    names = {score.decoding for score in checkpoint.read_scores(run / "test", choice.checkpoint)}
    assert names == {"vote-3", "greedy", "best-4+calculator"}
    assert {row.k for row in checkpoint.read_pass_curve(run / "test", BASE)} == {1, 2, 3, 4}
    page = (run / "report" / "index.html").read_text()
    assert "best-4+calculator" in page and "any answer right" in page
    assert (run / "report" / "tries.csv").read_text().count("\n") > 20
    # What only the test asks for changes nothing about validation.
    before = (run / "evaluate" / "manifest.json").read_bytes()
    more = (asked[0], "evaluate.test_decodings=[greedy+calculator]", asked[2])
    recipe = tiny.recipe(data, *more)
    from potstill import runner

    runner.run(recipe, run_dir=run, redo="test")
    assert (run / "evaluate" / "manifest.json").read_bytes() == before
