"""Rules, bounds and other choices in whole runs, whose checkpoints have planted accuracies."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

import planted
import tiny
from potstill import dry_run, runner, storage
from potstill.cli import results
from potstill.errors import UserError
from potstill.evaluation import checkpoint, choice
from potstill.recipe import parse_recipe
from potstill.recipe.selection import WITHOUT_RETAIN
from potstill.records import Checkpoint, Choice
from potstill.report import notes
from potstill.report.model import WITHOUT_BOUNDS
from potstill.run_status import read_status
from potstill.stages import open_stage
from potstill.storage import manifest
from potstill.study.shared_stages import stage_keys

STEPS = ("train.checkpoint_every=1", "train.steps=4")
# Specialized ability rises while generic ability falls; test differs from validation.
VALIDATION = {
    "sums": {0: 0.1, 1: 0.2, 2: 0.6, 3: 0.7, 4: 0.9},
    "other": {0: 0.1, 1: 0.3, 2: 0.5, 3: 0.8, 4: 0.6},
    "more": {0: 0.8, 1: 0.7, 2: 0.6, 3: 0.2, 4: 0.1},
}
TEST = {
    "sums": {0: 0.1, 1: 0.1, 2: 0.5, 3: 0.7, 4: 0.8},
    "other": {0: 0.1, 1: 0.2, 2: 0.4, 3: 0.7, 4: 0.5},
    "more": {0: 0.9, 1: 0.8, 2: 0.6, 3: 0.3, 4: 0.1},
}
BOUND = "select.retain={generic: 20}"
WEIGHTED = ("select.rule=weighted", "select.weights={more: 5, other: 1}")
ALSO = "select.also=[without-retain, in-distribution]"


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return planted.world(tiny.world(tmp_path_factory.mktemp("large")))


@pytest.fixture(scope="module")
def evaluated(large: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run until `evaluate`, to copy."""
    run_dir = tmp_path_factory.mktemp("evaluated") / "run"
    with pytest.MonkeyPatch.context() as patch:
        planted.plant(patch, VALIDATION, TEST)
        return tiny.make(large, run_dir, *STEPS, until="evaluate")


@pytest.fixture
def run_dir(evaluated: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    planted.plant(monkeypatch, VALIDATION, TEST)
    return tiny.before(evaluated, tmp_path / "run", "select")


def choose(large: Path, run_dir: Path, *changes: str) -> Choice:
    return checkpoint.read_choice(tiny.make(large, run_dir, *STEPS, *changes, until="select"))


def steps_tested(run_dir: Path) -> list[str]:
    return sorted(path.name for path in (run_dir / "test").iterdir() if path.is_dir())


@pytest.mark.parametrize(
    ("changes", "step"),
    [
        ((), 3),
        (("select.rule=in-distribution",), 4),
        (WEIGHTED, 1),
        ((BOUND,), 2),
        (("select.retain={more: 60, other: 0}",), 3),
    ],
)
def test_each_rule_chooses_its_own_checkpoint(large: Path, run_dir: Path, changes: tuple[str, ...], step: int) -> None:
    if "in-distribution" in "".join(changes):  # the rule would leave the other groups empty
        changes = (*changes, "questions.out_of_distribution=[other]", "questions.generic=[more]")
    assert choose(large, run_dir, *changes).checkpoint == Checkpoint(step)


def test_the_choice_says_how_it_was_made(large: Path, run_dir: Path) -> None:
    made = choose(large, run_dir, BOUND)
    lost = {checkpoint.step: points for checkpoint, points in made.bounds[0].lost}
    assert (made.bounds[0].name, made.bounds[0].points) == ("generic", 20.0)
    assert lost == pytest.approx({1: 10, 2: 20, 3: 60, 4: 70})
    assert made.equal == (Checkpoint(2),) and made.optimism is not None and 0 <= made.optimism < 0.2
    identity = manifest.read_manifest(run_dir / "select" / "manifest.json").identity.recipe
    assert identity["select.retain.generic"] == 20.0 and identity["questions.generic"] == ["more"]
    status = {stage.stage: stage.text for stage in read_status(run_dir).stages}
    assert status["select"] == "step 2; 2 excluded by select.retain"
    weighted = choose(large, tiny.before(run_dir, run_dir.parent / "weighted", "select"), *WEIGHTED)
    assert weighted.weights == (("more", 5.0), ("other", 1.0)) and not weighted.bounds


def test_equal_checkpoints_are_named_and_the_earlier_is_chosen(
    large: Path, run_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage.remove(run_dir / "evaluate")
    planted.plant(monkeypatch, VALIDATION | {"other": dict.fromkeys(range(1, 5), 0.5)}, TEST)
    made = choose(large, run_dir)
    assert made.checkpoint.step == 1 and made.equal == tuple(map(Checkpoint, range(1, 5)))


def test_without_the_keys_the_identity_is_the_former_one(large: Path, run_dir: Path) -> None:
    choose(large, run_dir)
    row = json.loads((run_dir / "select" / "manifest.json").read_text())
    assert sorted(row["recipe"]) == [
        *("evaluate.decodings", "questions.out_of_distribution", "seed", "select.format", "select.rule")
    ]
    assert row["versions"] == {"exam": 1, "intervals": 1, "selection": 1} and row["counts"] == {"step": 3}


def test_a_bound_that_nothing_keeps_stops_the_run_and_loses_nothing(large: Path, run_dir: Path) -> None:
    before = tiny.contents(run_dir / "evaluate")
    with pytest.raises(UserError) as fault:
        choose(large, run_dir, "select.retain={generic: 5}")
    assert (fault.value.code, fault.value.where) == ("E-select-retain", "select.retain")
    assert "step 1" in fault.value.found and "10.0 points of generic (at most 5)" in fault.value.found
    assert tiny.contents(run_dir / "evaluate") == before
    assert choose(large, run_dir, "select.retain={generic: 10}").checkpoint.step == 1


def test_a_test_row_offered_to_the_selection_is_refused(large: Path, run_dir: Path) -> None:
    """A test answer among the validation answers of a checkpoint, in a folder whose manifest was also changed."""
    folder = run_dir / "evaluate" / "2"
    [path] = folder.glob("zero-shot-rationale.*.jsonl")
    rows = [row for _, row in storage.read_jsonl(path)]
    taken = next(row for _, row in storage.read_jsonl(run_dir / "collect" / "other.test.jsonl"))
    at = next(at for at, row in enumerate(rows) if row["set"] == "other")
    rows[at] = rows[at] | {"question": taken["id"]}
    storage.write_jsonl(path, rows)
    recipe = tiny.recipe(large, *STEPS)
    with pytest.raises(UserError) as fault:
        choice.choose_checkpoint(run_dir, recipe)
    assert (fault.value.code, fault.value.found) == ("E-select-not-validation", taken["id"])


def test_only_the_chosen_checkpoint_answers_test_questions(large: Path, run_dir: Path) -> None:
    tiny.make(large, run_dir, *STEPS, BOUND, until="test")
    assert steps_tested(run_dir) == ["0", "2"]


def test_other_choices_are_tested_on_request_and_may_be_added(large: Path, run_dir: Path) -> None:
    tiny.make(large, run_dir, *STEPS, BOUND)
    answers = {path: path.stat().st_mtime_ns for path in (run_dir / "test").rglob("*.jsonl")}
    plans = {plan.stage: plan.action for plan in runner.plan_stages(tiny.recipe(large, *STEPS, BOUND, ALSO), run_dir)}
    assert (plans["select"], plans["test"], plans["report"]) == ("keep", "extend", "make")
    tiny.make(large, run_dir, *STEPS, BOUND, ALSO)
    assert steps_tested(run_dir) == ["0", "2", "3"], "with the bound, in-distribution chooses step 2, too"
    assert answers == {path: path.stat().st_mtime_ns for path in answers}, "nothing was answered again"
    assert read_status(run_dir).stages[-2].counts["also"] == ["without-retain", "in-distribution"]
    with pytest.raises(UserError) as fault:
        tiny.make(large, run_dir, *STEPS, BOUND, "select.also=[in-distribution]")
    assert (fault.value.code, fault.value.where) == ("E-run-shrinks", "select.also")


def test_page_and_table_tell_the_test_price_of_the_bound(
    large: Path, run_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Step 2 instead of step 3: 30 points less out of distribution, 30 more on generic tasks, by the planted test answers."""
    weights = "select.weights={more: 1}"
    tiny.make(large, run_dir, *STEPS, BOUND, ALSO, weights)
    rows = list(csv.DictReader((run_dir / "report" / "rules.csv").open(encoding="utf-8")))
    price = {row["group"]: float(row["price"]) for row in rows if row["rule"] == "without-retain" and row["price"]}
    assert price == pytest.approx({"in-distribution": -0.2, "out-of-distribution": -0.3, "generic": 0.3}, abs=0.06)
    chosen = {row["rule"]: row["step"] for row in rows}
    assert chosen == {"mean-out-of-distribution": "2", "without-retain": "3", "in-distribution": "2", "weighted": "1"}
    assert {row["rule"] for row in rows if row["split"] == "test"} == chosen.keys() - {"weighted"}, (
        "step 1 was not tested"
    )
    page = (run_dir / "report" / "index.html").read_text("utf-8")
    assert "Test price: against step 3, the choice without the bounds, step 2 has" in page
    assert (
        "What each rule would choose" in page
        and "3 of 4 steps lose more" not in page
        and "2 of 4 steps lose more" in page
    )
    retained = list(csv.DictReader((run_dir / "report" / "retain.csv").open(encoding="utf-8")))
    assert [row["excluded"] for row in retained] == ["", "", "excluded", "excluded"]
    front = list(csv.DictReader((run_dir / "report" / "pareto.csv").open(encoding="utf-8")))
    assert [row["step"] for row in front if row["front"] and row["group"] == "out-of-distribution"] == [
        "0",
        "1",
        "2",
        "3",
    ]
    results.print_summary(run_dir)
    assert "chosen: step 2 (mean-out-of-distribution, at most 20 points of generic lost)" in capsys.readouterr().out
    assert "at most 20 points of generic lost" in (run_dir / "student" / "README.md").read_text("utf-8")


def test_the_names_of_other_choices_are_those_of_the_page() -> None:
    assert WITHOUT_BOUNDS == WITHOUT_RETAIN


def test_added_later_or_at_once_the_test_is_the_same(large: Path, run_dir: Path, tmp_path: Path) -> None:
    later = tiny.before(run_dir, tmp_path / "later", "select")
    tiny.make(large, later, *STEPS, BOUND, until="test")
    tiny.make(large, later, *STEPS, BOUND, ALSO, until="test")
    tiny.make(large, run_dir, *STEPS, BOUND, ALSO, until="test")
    found = tiny.contents(later)
    names = [name for name in found if name not in ("test/manifest.json", "test/begun.json")]
    assert {name: found[name] for name in names} == {name: tiny.contents(run_dir)[name] for name in names}
    identities = [manifest.read_manifest(each / "test" / "manifest.json").identity for each in (later, run_dir)]
    assert manifest.identity_differences(*identities) == []


def test_other_weights_are_another_choice(large: Path, run_dir: Path) -> None:
    also = ("select.also=[weighted]", "select.weights={more: 5, other: 1}")
    tiny.make(large, run_dir, *STEPS, until="test")
    tiny.make(large, run_dir, *STEPS, *also, until="test")
    assert steps_tested(run_dir) == ["0", "1", "3"]
    with pytest.raises(UserError) as fault:
        tiny.make(large, run_dir, *STEPS, also[0], "select.weights={more: 1, other: 1}", until="test")
    assert fault.value.code == "E-run-shrinks"


def test_runs_of_a_study_share_a_test_only_with_the_same_other_choices(large: Path) -> None:
    one, same, other = (stage_keys(tiny.recipe(large, BOUND, *also)) for also in ((), (), (ALSO,)))
    assert one == same and {name for name in one if one[name] != other[name]} == {"test", "report"}
    without = stage_keys(tiny.recipe(large))
    assert {name for name in one if one[name] != without[name]} == {"select", "test", "report"}


def test_the_dry_run_counts_the_other_choices(large: Path) -> None:
    assert "  test            4 x" in dry_run.describe_run(tiny.recipe(large, BOUND, ALSO))


@pytest.mark.parametrize(
    ("select", "code"),
    [
        ("{rule: weighted}", "E-recipe-select-weights"),
        ("{weights: {nowhere: 1}}", "E-recipe-select-weights"),
        ("{rule: weighted, weights: {svamp: 0}}", "E-recipe-select-weights"),
        ("{rule: weighted, weights: {svamp: -1, asdiv: 3}}", "E-recipe-value"),
        ("{rule: weighted, weights: {}}", "E-recipe-value"),
        ("{retain: {nowhere: 5}}", "E-recipe-select-retain"),
        ("{retain: {generic: -1}}", "E-recipe-value"),
        ("{retain: {generic: 5}, rule: in-distribution}", "E-recipe-select-retain"),
        ("{also: [mean-out-of-distribution]}", "E-recipe-select-also"),
        ("{also: [without-retain]}", "E-recipe-select-also"),
        ("{also: [weighted]}", "E-recipe-select-also"),
        ("{also: [in-distribution, in-distribution]}", "E-recipe-named-twice"),
        ("{also: [best-loss]}", "E-recipe-value"),
    ],
)
def test_what_a_recipe_does_not_have_is_refused(select: str, code: str) -> None:
    with pytest.raises(UserError) as fault:
        parse_recipe(f"name: a\nselect: {select}\n", "a.yaml")
    assert fault.value.code == code


def test_early_stopping_depends_on_the_rule_and_not_on_bounds(large: Path) -> None:
    changes = ("train.early_stopping_patience=1", BOUND, ALSO, *WEIGHTED)
    free = set(open_stage("train").free(tiny.recipe(large, *changes)))
    assert {"select.retain.generic", "select.also"} <= free and not {"select.rule", "select.weights.more"} & free
    assert "select.weights.more" in open_stage("train").free(tiny.recipe(large, *changes[:3], WEIGHTED[1]))


def test_the_page_of_a_weighted_rule_says_what_was_not_measured(large: Path) -> None:
    sets = "questions={train: [sums], in_distribution: [sums], out_of_distribution: [], generic: []}"
    [note] = notes.note_groups(tiny.recipe(large, sets, "select={rule: weighted, weights: {sums: 1}}"))
    assert "questions of sums, by their weighted mean accuracy." in note and "No generic set was measured" in note


def test_a_weighted_rule_needs_no_other_sets() -> None:
    text = "name: a\nquestions: {out_of_distribution: []}\nselect: {rule: weighted, weights: {gsm8k: 1, bbh: 1}}\n"
    read = parse_recipe(text, "a.yaml")
    assert choice.list_rule_sets(read, "weighted") == ["gsm8k", "bbh"]
    assert choice.list_other_choices(read) == ["in-distribution"]
