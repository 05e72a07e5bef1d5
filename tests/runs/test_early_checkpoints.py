"""More checkpoints at the start of a training (`train.checkpoints`): the same training, evaluated at more steps."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

import tiny
from crashing import Crash, crash
from potstill import dry_run
from potstill.errors import UserError
from potstill.evaluation import checkpoint, selection
from potstill.recipe import parse_recipe
from potstill.storage import manifest

PLAIN = ("train.steps=6", "train.checkpoint_every=4")
LOG = (*PLAIN, "train.checkpoints=log")


def steps_of(train: str) -> list[int]:
    return parse_recipe(f"name: a\ntrain: {train}", "a.yaml").train.checkpoint_steps


@pytest.mark.parametrize(
    ("train", "steps"),
    [
        ("{steps: 600}", [250, 500, 600]),
        ("{steps: 600, checkpoints: log}", [1, 2, 4, 8, 16, 32, 64, 128, 250, 500, 600]),
        ("{steps: 10, checkpoints: log}", [1, 2, 4, 8, 10]),
        ("{steps: 8, checkpoint_every: 8, checkpoints: log}", [1, 2, 4, 8]),
        ("{steps: 600, checkpoint_every: 200, checkpoints: [400, 50, 3, 600]}", [3, 50, 200, 400, 600]),
    ],
)
def test_named_steps_are_added_to_the_regular_ones(train: str, steps: list[int]) -> None:
    assert steps_of(train) == steps


@pytest.mark.parametrize(
    ("train", "code"),
    [
        ("{steps: 6, checkpoints: [7]}", "E-recipe-checkpoints"),
        ("{steps: 6, checkpoints: [0]}", "E-recipe-value"),
        ("{steps: 6, checkpoints: []}", "E-recipe-value"),
        ("{steps: 6, checkpoints: 2}", "E-recipe-value"),
        ("{steps: 6, checkpoints: linear}", "E-recipe-value"),
    ],
)
def test_steps_that_are_never_reached_are_refused(train: str, code: str) -> None:
    with pytest.raises(UserError) as fault:
        steps_of(train)
    assert fault.value.code == code


def test_extra_checkpoints_do_not_count_for_early_stopping() -> None:
    """The rise to the best value may be among them, but their fall does not end a training."""
    values, counted = [0.0, 0.2, 0.1, 0.1, 0.1], [False, False, False, True, False]
    assert selection.count_since_best(values, counted) == (1, 1)
    assert selection.count_since_best(values, [True] * 5) == (1, 3)


@pytest.fixture(scope="module")
def dense(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.make(world, tmp_path_factory.mktemp("dense") / "run", *LOG, until="select")


def test_the_training_is_the_same_and_every_step_can_be_chosen(world: Path, dense: Path, tmp_path: Path) -> None:
    plain = tiny.make(world, tmp_path / "run", *PLAIN, until="train")
    done = manifest.read_finished(dense / "train")
    assert done is not None and done.counts["checkpoints"] == [1, 2, 4, 6]
    assert done.identity.recipe["train.checkpoints"] == "log"
    for name in ("metrics.jsonl", "checkpoints/4/model.safetensors", "checkpoints/6/engine.safetensors"):
        assert (dense / "train" / name).read_bytes() == (plain / "train" / name).read_bytes()
    assert [each.step for each, _ in checkpoint.read_choice(dense).table] == [1, 2, 4, 6]
    assert [path.parent.name for path in (dense / "train" / "checkpoints").glob("*/engine.safetensors")] == ["6"]
    plain_done = manifest.read_finished(plain / "train")
    assert plain_done is not None and "train.checkpoints" not in plain_done.identity.recipe


def test_crash_upon_crash_it_saves_the_same_checkpoints(world: Path, dense: Path, tmp_path: Path) -> None:
    run_dir, crashes = tmp_path / "run", 0
    shutil.copytree(
        dense, run_dir, ignore=lambda folder, _: ["train", "evaluate", "select"] if folder == str(dense) else []
    )
    while True:
        try:
            with crash(11 + 7 * crashes):
                tiny.make(world, run_dir, *LOG, until="train")
            break
        except Crash:
            crashes += 1
    assert crashes > 2
    found = tiny.contents(run_dir)
    assert found == {name: content for name, content in tiny.contents(dense).items() if name in found}


def test_the_dry_run_counts_them(world: Path) -> None:
    text = dry_run.describe_run(tiny.recipe(world, *LOG))
    assert "  evaluation      5 x" in text and "checkpoints     4 of" in text
