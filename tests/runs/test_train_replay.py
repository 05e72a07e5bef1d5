"""Replay: generic rows get the share of weight that the recipe sets, and contain no evaluated question."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import tiny
from expect import user_error
from potstill import dry_run, models
from potstill.data import run_questions
from potstill.data.contamination import contained_shares
from potstill.data.splits import canonical_question
from potstill.errors import UserError
from potstill.records import Split
from potstill.report import collect, figures
from potstill.storage import manifest, read
from potstill.training import examples

SPLITS: tuple[Split, ...] = ("validation", "test")
SETS = "train.replay={share: 0.25, sets: [more]}"


@pytest.fixture(scope="module")
def run(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    rows = [
        {"prompt": "Say it again: pens", "answer": "pens"},
        {"prompt": "Q: Who? A: I.\nQ: What do 1 and 1 make?", "answer": "2"},  # holds a measured question
        {"prompt": "what do 2 and 1 make", "answer": "3"},  # is one, if it was not drawn for training
    ]
    file = world.parent / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    changes = (f"train.replay={{share: 0.25, sets: [more], file: {file}}}",)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(figures, "draw_figures", lambda told: {})  # figures take seconds and are not looked at
        return tiny.make(world, tmp_path_factory.mktemp("replay") / "run", *changes)


def test_each_step_gives_replay_its_share_of_the_weight(run: Path) -> None:
    from potstill.run_reader import open_run

    asked = open_run(run).recipe
    lesson = examples.read_training_data(run, asked, models.from_recipe(asked))
    seen: set[str] = set()
    for step in (1, 2, 3, 50):
        rows = lesson.examples(step)
        weight = sum(row.weight * len(row.target) for row in rows)
        own = [row for row in rows if row.format == "replay"]
        assert len(own) == examples.replay_rows_per_step(asked) == 2  # of 5 groups
        assert sum(row.weight * len(row.target) for row in own) == pytest.approx(0.25 * weight)
        assert {kind for row in own for kind in row.target.kinds} <= {"hard", "end"}
        assert len(rows) == sum(map(len, lesson.micro_batches(step)))
        seen |= {row.question for row in own}
    assert len(seen) > 4, "other rows in other steps"


def test_nothing_that_is_measured_is_replayed(run: Path) -> None:
    done = manifest.read_finished(run / "train")
    assert done is not None
    asked = [(name, split) for name in tiny.SETS for split in SPLITS]
    measured = [question for name, split in asked for question in run_questions.read_questions(run, [name], split)]
    forms = {canonical_question(q.text) for q in measured}
    rows = run_questions.read_replay(run, ["more"])
    near = run_questions.read_overlaps(run)
    kept = [row for row in rows if near.get(row.id, 0) < 0.9]
    assert kept and all(canonical_question(row.text) not in forms for row in kept)
    held = contained_shares({row.id: row.text for row in kept}, [q.text for q in measured])
    assert all(share < 0.9 for share in held.values())
    assert done.counts["replayed rows"] == len(kept) < len(rows)
    assert done.counts["rows too near to a measured question"] == len(rows) - len(kept)


def test_what_was_trained_is_told_by_format(run: Path) -> None:
    from potstill.run_reader import open_run

    report = collect.collect_report(run, open_run(run).recipe)
    rows = [cost for cost in report.costs if cost.label.startswith("of these")]
    by_format = {cost.label.removeprefix("of these positions: "): cost.number for cost in rows}
    total = next(cost.number for cost in report.costs if cost.label == "positions trained on")
    assert list(by_format)[-1] == "replay" and sum(by_format.values()) == total
    assert any("Replay: 25.0 % of the weight of every step" in note for note in report.notes)
    assert "Replay: 25.0" in (run / "report" / "index.html").read_text()
    first = next(read.read_jsonl(run / "train" / "metrics.jsonl"))[1]
    assert "replay" in first["losses"]


def test_a_recipe_without_replay_leaves_no_trace_of_it(world: Path, tmp_path: Path) -> None:
    run_dir = tiny.make(world, tmp_path / "run", until="train")
    for stage in ("collect", "train"):
        assert "replay" not in (run_dir / stage / "manifest.json").read_text()
    assert not (run_dir / "collect" / "more.train.jsonl").exists()


def test_the_plan_says_what_is_replayed(world: Path) -> None:
    assert "replay adds 2 rows to each step with 25% of its weight" in dry_run.describe_run(tiny.recipe(world, SETS))


@pytest.mark.parametrize(
    "change, found",
    [
        ("{share: 0.1}", "E-recipe-replay-empty"),
        ("{share: 0.1, sets: [sums]}", "E-recipe-set-trained"),
        ("{share: 0.1, sets: [other]}", "E-recipe-set-selects"),
        ("{share: 1.0, sets: [more]}", "E-recipe-value"),
    ],
)
def test_a_replay_that_would_deceive_is_refused(world: Path, change: str, found: str) -> None:
    with pytest.raises(UserError, match=found):
        tiny.recipe(world, f"train.replay={change}")


def test_a_run_where_every_row_is_measured_stops(world: Path, tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    run_dir = tiny.make(world, tmp_path / "run", until="collect")
    rows = [
        {"prompt": q.text, "answer": q.gold} for q in run_questions.read_questions(run_dir, ["other"], "validation")
    ]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with user_error("E-train-replay-contaminated"):
        tiny.make(world, tmp_path / "other", f"train.replay={{share: 0.1, file: {file}}}", until="train")
