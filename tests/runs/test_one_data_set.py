"""One task with one data set: no other set is needed, the checkpoint is selected on its validation part, and the page, the
card and the messages claim nothing about other sets."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import tiny
from potstill.evaluation import checkpoint, choice, selection
from potstill.recipe import load_recipe
from potstill.report import collect, notes
from potstill.storage import manifest

ONE_SET = ("select.rule=in-distribution", "questions={train: [sums], validation: 0.3, test: 0.3}")


@pytest.fixture(scope="module")
def run_dir(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.make(world, tmp_path_factory.mktemp("one") / "run", *ONE_SET)


def test_the_checkpoint_is_the_best_on_the_sets_own_validation_part(run_dir: Path) -> None:
    recipe = load_recipe(run_dir / "recipe.yaml")
    made = checkpoint.read_choice(run_dir)
    assert made.rule == "in-distribution"
    outcomes = {each: choice.read_selection_outcomes(run_dir, recipe, each) for each, _ in made.table}
    assert {name for table in outcomes.values() for name in table} == {"sums"}
    assert dict(made.table) == {each: selection.mean_set_accuracy(table) for each, table in outcomes.items()}


def test_only_the_sets_of_the_rule_belong_to_the_identity_of_the_selection(run_dir: Path, finished: Path) -> None:
    keys = []
    for folder in (run_dir, finished):
        done = manifest.read_finished(folder / "select")
        assert done is not None
        keys.append({key for key in done.identity.recipe if key.startswith("questions")})
    assert keys == [{"questions.in_distribution"}, {"questions.out_of_distribution"}]


def test_page_and_card_claim_nothing_about_other_sets(run_dir: Path, finished: Path) -> None:
    report = collect.collect_report(run_dir, load_recipe(run_dir / "recipe.yaml"))
    assert set(report.groups.values()) == {"in-distribution"}
    [note] = notes.note_groups(load_recipe(run_dir / "recipe.yaml"))
    assert note in report.notes
    for name in ("report/index.html", "student/README.md"):
        text = (
            (run_dir / name).read_text("utf-8").partition("The recipe with all defaults")[0].partition("## Recipe")[0]
        )
        assert note in text and "mean-out-of-distribution" not in text
        shown = text.partition("</style>")[2].replace(note, "") if name.endswith("html") else text.replace(note, "")
        assert "out-of-distribution" not in shown, name
    assert not list(notes.note_groups(load_recipe(finished / "recipe.yaml"))), "other pages are as before"
    rows = json.loads((run_dir / "collect" / "manifest.json").read_text())["counts"]["questions"]
    assert set(rows) == {"sums.train", "sums.validation", "sums.test"}
