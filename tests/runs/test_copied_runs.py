"""A copied or renamed run needs only its own folder, and two trainings are compared without a p-value."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

import tiny
from potstill import runner
from potstill.cli import compare, export, status
from potstill.errors import UserError


def test_a_run_without_what_it_was_made_from_reports_again(
    world: Path, tmp_path: Path, finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Copied to where neither the sets nor the teacher nor the student's tokenizer is."""
    at = Path(shutil.copytree(finished, tmp_path / "elsewhere" / "copied"))
    (tmp_path / "data").mkdir()
    recipe = tiny.recipe(tmp_path / "data")
    before = tiny.contents(at)
    runner.run(recipe, run_dir=at)
    assert tiny.contents(at) == before and "an input is missing" in capsys.readouterr().err
    for call in (status.print_status, status.print_overview, lambda at: list(export.export_rows(at, "messages"))):
        call(at)
    compare.compare_runs(f"{at}@0", f"{at}@4")
    with pytest.raises(UserError, match="E-recipe-missing-path"):  # this needs more than its folder, and loses nothing
        runner.run(recipe, run_dir=at, redo="evaluate")
    assert tiny.contents(at) == before


def test_a_run_that_was_renamed_writes_its_page_again_and_nothing_else(
    world: Path, tmp_path: Path, finished: Path
) -> None:
    run_dir = Path(shutil.copytree(finished, tmp_path / "renamed"))
    before = tiny.contents(run_dir)
    runner.run(tiny.recipe(world, "name=renamed"), run_dir=run_dir)
    after = tiny.contents(run_dir)
    assert before.keys() == after.keys()
    assert {name.partition("/")[0] for name in after if after[name] != before[name]} <= {"report", "student"}
    assert b"renamed" in after["report/index.html"] and b"# renamed" in after["student/README.md"]


def test_a_report_stays_where_its_controls_are_not(world: Path, tmp_path: Path, finished: Path) -> None:
    other = Path(shutil.copytree(finished, tmp_path / "other"))
    run_dir = Path(shutil.copytree(finished, tmp_path / "run"))
    recipe = tiny.recipe(world, f"report.controls=[{other.name}]")
    runner.run(recipe, run_dir=run_dir, redo="report")
    before = tiny.contents(run_dir)
    other.rename(tmp_path / "moved")
    runner.run(recipe, run_dir=run_dir)
    assert tiny.contents(run_dir) == before
    with pytest.raises(UserError, match="the control run other has not finished"):
        runner.run(recipe, run_dir=run_dir, redo="report")
    assert tiny.contents(run_dir) == before


def test_two_trainings_are_compared_without_p(
    world: Path, tmp_path: Path, finished: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """They differ in the seed of the order alone; a copy of a run is the same training."""
    monkeypatch.setenv("COLUMNS", "200")
    run_dir = Path(shutil.copytree(finished, tmp_path / "seeded"))
    runner.run(tiny.recipe(world, "train.learning_rate=5e-3"), run_dir=run_dir, redo="train", until="test")
    copied = Path(shutil.copytree(finished, tmp_path / "copied"))
    told = {}
    for name, first, second in (
        ("two", finished, run_dir),
        ("a base", f"{finished}@0", f"{run_dir}@4"),
        ("one", f"{finished}@0", f"{finished}@4"),
        ("copy", finished, copied),
        ("bases", f"{finished}@0", f"{run_dir}@0"),
    ):
        compare.compare_runs(str(first), str(second))
        told[name] = capsys.readouterr().out
    for name in ("two", "a base"):
        assert "do not include the variation between seeds" in told[name]
        assert " p " not in told[name]
    for name in ("one", "copy", "bases"):
        assert "for these weights" in told[name] and " p " in told[name]


def test_tables_say_what_their_intervals_are_over(finished: Path) -> None:
    for name in ("summary", "before-after"):
        head, *rows = (finished / "report" / f"{name}.csv").read_text().splitlines()
        assert head.endswith('"interval_over"') and any(row.endswith('"questions, one seed"') for row in rows)
    assert "other seeds of this recipe can differ by several points" in (finished / "report" / "index.html").read_text()
