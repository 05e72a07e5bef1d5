"""Evaluation during training and early stopping: the same files as without it, after any crash."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import tiny
from crashing import Crash, crash
from potstill.errors import UserError
from potstill.evaluation import checkpoint
from potstill.recipe import load_recipe
from potstill.report import collect
from potstill.storage import manifest

STOP = ("train.early_stopping_patience=1", "train.steps=8")


@pytest.fixture(scope="module")
def plain(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.make(world, tmp_path_factory.mktemp("plain") / "run", until="evaluate")


@pytest.fixture(scope="module")
def stopped(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.make(world, tmp_path_factory.mktemp("stopped") / "run", *STOP, until="test")


def test_what_is_answered_while_training_is_what_evaluate_finds(world: Path, plain: Path, tmp_path: Path) -> None:
    run_dir = tiny.make(world, tmp_path / "run", "train.evaluate=true", until="train")
    answers = {path: path.stat().st_mtime_ns for path in (run_dir / "evaluate").rglob("*.jsonl")}
    assert {path.parent.name for path in answers} == {"2", "4"}
    tiny.make(world, run_dir, "train.evaluate=true", until="evaluate")
    assert answers == {path: path.stat().st_mtime_ns for path in answers}
    assert tiny.contents(run_dir) == tiny.contents(plain), "the key leaves no trace but in the recipe"


def test_training_stops_where_no_later_checkpoint_is_better(world: Path, stopped: Path) -> None:
    """A student of four steps knows nothing: no checkpoint is better than the first."""
    counts = manifest.read_finished(stopped / "train")
    assert counts is not None and counts.counts["stopped"] and counts.counts["steps"] == 4
    assert (
        counts.counts["checkpoints"] == [2, 4] == [each.step for each in checkpoint.read_evaluated_checkpoints(stopped)]
    )
    assert counts.identity.recipe["evaluate.max_tokens"] == 6 and "version of answers" in counts.identity.inputs
    report = collect.collect_report(stopped, load_recipe(stopped / "recipe.yaml"))
    assert any("stopped at step 4 of 8" in note for note in report.notes)
    before = tiny.contents(stopped)
    tiny.make(world, stopped, *STOP, until="test")
    assert tiny.contents(stopped) == before, "it does not go on by itself"


def test_what_decided_the_end_must_not_change(world: Path, stopped: Path) -> None:
    with pytest.raises(UserError, match="E-run-stage-differs") as fault:
        tiny.make(world, stopped, *STOP, "evaluate.max_tokens=7")
    assert "evaluate.max_tokens: 6 -> 7" in str(fault.value)


def test_without_it_training_does_not_read_how_it_is_evaluated(plain: Path) -> None:
    row = json.loads((plain / "train" / "manifest.json").read_text())
    assert not [key for key in row["recipe"] if key.split(".")[0] in ("evaluate", "select", "questions")]
    assert not {"train.early_stopping_patience", "train.evaluate", "train.replay"} & set(row["recipe"])
    assert "stopped" not in row["counts"]


def test_crash_upon_crash_it_stops_at_the_same_step(world: Path, stopped: Path, tmp_path: Path) -> None:
    run_dir, crashes = tmp_path / "run", 0
    tiny.make(world, run_dir, *STOP, until="align")
    while True:
        try:
            with crash(13 + 7 * crashes):
                tiny.make(world, run_dir, *STOP, until="train")
            break
        except Crash:
            crashes += 1
    assert crashes > 2
    tiny.make(world, run_dir, *STOP, until="test")
    assert tiny.contents(run_dir) == tiny.contents(stopped)
