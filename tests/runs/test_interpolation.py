"""Interpolated weights between base and student: more candidates in evaluation, selection, test and report."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from typer.testing import CliRunner

import tiny
from potstill import cli, dry_run, models
from potstill.errors import UserError
from potstill.evaluation import checkpoint
from potstill.records import BASE, Checkpoint, Choice, Score
from potstill.serialization import from_json, to_json
from potstill.stages import open_stage
from potstill.storage import manifest

MIX = "evaluate.interpolate=[0.5, 0.25]"
NAMES = ["0", "2", "2-0.25", "2-0.5", "4", "4-0.25", "4-0.5"]


@pytest.fixture(scope="module")
def mixed(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run that gets shares afterwards."""
    run_dir = tiny.make(world, tmp_path_factory.mktemp("mix") / "run", until="select")
    assert json.loads((run_dir / "evaluate" / "manifest.json").read_text())["counts"]["steps"] == [0, 2, 4]
    assert (
        "interpolate"
        not in (run_dir / "evaluate" / "manifest.json").read_text() + (run_dir / "evaluate/2/manifest.json").read_text()
    )
    before = {path: path.stat().st_mtime_ns for path in (run_dir / "evaluate" / "2").iterdir()}
    tiny.make(world, run_dir, MIX, until="test")
    assert before == {path: path.stat().st_mtime_ns for path in (run_dir / "evaluate" / "2").iterdir()}, (
        "answered again"
    )
    return run_dir


def test_every_share_answers_and_may_be_chosen(mixed: Path) -> None:
    assert [who.name for who in checkpoint.list_answered_checkpoints(mixed / "evaluate")] == sorted(
        NAMES, key=Checkpoint.parse
    )
    table = checkpoint.read_choice(mixed).table
    assert [who.name for who, _ in table] == sorted(NAMES[1:], key=Checkpoint.parse)
    assert table == tuple((who, value) for who, value in table if 0 <= value <= 1)


def test_a_mix_is_the_mean_of_the_weights(world: Path, mixed: Path) -> None:
    recipe = tiny.recipe(world, MIX)
    base, full, half, quarter = (
        checkpoint.open_checkpoint(mixed, recipe, who).weights()
        for who in (BASE, Checkpoint(4), Checkpoint(4, 0.5), Checkpoint(4, 0.25))
    )
    for name in base:
        assert torch.allclose(half[name], (base[name] + full[name]) / 2, atol=1e-7)
        assert torch.allclose(quarter[name], base[name] + (full[name] - base[name]) / 4, atol=1e-7)
    assert any(not torch.equal(base[name], full[name]) for name in base)


def test_shares_added_later_equal_a_run_that_had_them_at_once(world: Path, mixed: Path, tmp_path: Path) -> None:
    once = tiny.contents(tiny.make(world, tmp_path / "run", MIX, until="select"))
    assert {name: content for name, content in tiny.contents(mixed).items() if not name.startswith("test/")} == once


def test_a_chosen_mix_is_tested_and_saved_as_a_plain_folder(world: Path, mixed: Path, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    shutil.copytree(mixed, run_dir)
    best = Checkpoint(4, 0.5)
    other = Choice(best, "r", "zero-shot-rationale", "greedy", ((BASE, 0.0), (best, 0.1)), (best,))
    choice = json.loads((run_dir / "select" / "choice.json").read_text())
    row = choice | {"step": best.json_value, "tied": [best.json_value]}
    (run_dir / "select" / "choice.json").write_text(json.dumps(row, indent=1))
    assert from_json(Choice, to_json(other)) == other and to_json(other)["step"] == "4-0.5"
    recipe = tiny.recipe(world, MIX)
    shutil.rmtree(run_dir / "test")
    counts = open_stage("test").make(run_dir, recipe)[1]
    assert counts == {"steps": [0, "4-0.5"]}
    for stage in ("select", "test"):
        manifest.finish_stage(run_dir / stage, manifest.Identity(stage, {}, {}, {}), [], counts)
    assert open_stage("report").make(run_dir, recipe)[1]["step"] == "4-0.5"
    saved = load_file(run_dir / "student" / "model.safetensors")
    wanted = checkpoint.open_checkpoint(run_dir, recipe, best).weights()
    assert all(torch.equal(saved[name], wanted[name]) for name in saved)
    assert models.open_student(run_dir / "student").family == "t5"
    page = (run_dir / "report" / "index.html").read_text()
    assert "step 4 × 0.5" in page and "“350 × 0.3” means 0.3 times the weights" in page
    assert '"4-0.5"' in (run_dir / "report" / "selection.csv").read_text()
    assert "Step 4 × 0.5 of a training run" in (run_dir / "student" / "README.md").read_text()


def test_a_mix_can_be_compared_and_looked_at(mixed: Path) -> None:
    result = CliRunner().invoke(cli.app, ["compare", f"{mixed}@0", f"{mixed}@4-0.5"])
    assert "first: run step 0; second: run step 4 × 0.5" in result.stdout, result.output
    question = next(checkpoint.read_predictions(mixed / "evaluate", BASE, "zero-shot-rationale", "greedy")).question
    shown = CliRunner().invoke(cli.app, ["show", str(mixed), "--prediction", question]).stdout
    assert "4 × 0.25" in shown


def test_shares_are_not_taken_back(world: Path, mixed: Path) -> None:
    with pytest.raises(UserError) as raised:
        tiny.make(world, mixed, until="evaluate")
    assert (raised.value.code, raised.value.where) == ("E-run-shrinks", "evaluate.interpolate")


def test_the_plan_counts_the_mixes(world: Path) -> None:
    assert "  evaluation      7 x" in dry_run.describe_run(tiny.recipe(world, MIX))


def test_a_run_without_mixes_is_written_as_before() -> None:
    score = Score(Checkpoint(350), "a", "test", "f", "greedy", 2, 1, 0, 0, 0.5, 0.1, 0.9)
    assert next(iter(to_json(score))) == "step" and to_json(score)["step"] == 350
    assert from_json(Score, to_json(score)) == score


@pytest.mark.parametrize("text", ["", "x", "3-", "3-1.0", "-3", "3-0.50", "03"])
def test_what_names_no_contender_is_refused(text: str) -> None:
    with pytest.raises(ValueError):
        Checkpoint.parse(text)
