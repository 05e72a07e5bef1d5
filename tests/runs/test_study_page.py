"""The page of a study from the folders of real runs, whose checkpoints have planted accuracies."""

from __future__ import annotations

import csv
import io
import math
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import planted
import tiny
from potstill import storage, study
from potstill.report.study_model import Experiment
from potstill.report.study_page import build_study_page

VALIDATION = {
    "sums": {0: 0.1, 1: 0.2, 2: 0.6, 3: 0.7, 4: 0.9},
    "other": {0: 0.1, 1: 0.3, 2: 0.5, 3: 0.8, 4: 0.6},
    "more": {0: 0.8, 1: 0.7, 2: 0.6, 3: 0.2, 4: 0.1},
}
TEST = {
    "sums": {0: 0.1, 2: 0.5, 3: 0.7, 4: 0.8},
    "other": {0: 0.1, 2: 0.4, 3: 0.7, 4: 0.5},
    "more": {0: 0.9, 2: 0.6, 3: 0.3, 4: 0.1},
}
STUDY = """
name: bounds
title: What does a bound cost?
recipe: tiny.yaml
set: {train.checkpoint_every: 1, train.steps: 4, select.also: [in-distribution]}
grid:
  bound: {free: {select.rule: mean-out-of-distribution}, bounded: {select.retain: {generic: 20}}}
  train.seed: [3, 4]
"""
pytestmark = pytest.mark.slow
Rows = list[dict[str, str]]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[study.Study]:
    """The study, whose runs are finished. The working folder has its folder."""
    data = planted.world(tiny.world(tmp_path_factory.mktemp("large")))
    with pytest.MonkeyPatch.context() as patch:
        planted.plant(patch, VALIDATION, TEST)
        patch.chdir(tmp_path_factory.mktemp("here"))
        Path("tiny.yaml").write_text(tiny.RECIPE + f"data: {data}\n", "utf-8")
        Path("bounds.yaml").write_text(STUDY, "utf-8")
        plan = study.open_study(Path("bounds.yaml"))
        for run in plan.runs:
            study.make_run(plan, run)
        yield plan


def grids(plan: study.Study) -> list[Experiment]:
    folders = {run.name: run.run_dir for run in plan.runs}
    return [
        Experiment(one.name, one.title, one.axes, [(name, of, folders[name]) for name, of in one.choices.items()])
        for one in plan.experiments
    ]


def build(plan: study.Study, *unfinished: str) -> tuple[str, dict[str, Rows]]:
    """The page and the tables."""
    files = build_study_page(plan.name, plan.title, grids(plan), dict.fromkeys(unfinished, ""))
    tables = {name: list(csv.DictReader(io.StringIO(text))) for name, text in files.items() if isinstance(text, str)}
    return str(files["index.html"]), {name: rows for name, rows in tables.items() if name.endswith(".csv")}


def planted_share(plan: study.Study, accuracies: planted.Accuracies, name: str, split: str, step: int) -> float:
    """The share of right answers that `planted` gives to the questions of a set."""
    n = sum(1 for _ in storage.read_jsonl(plan.runs[0].run_dir / "collect" / f"{name}.{split}.jsonl"))
    return math.ceil(accuracies[name][step] * n - 1e-9) / n


def test_the_page_has_the_planted_numbers(made: study.Study) -> None:
    page, tables = build(made)
    assert "4 runs, all finished" in page and "What does a bound cost?" in page
    for run in made.runs:
        assert f'href="{run.name}/report/index.html"' in page and (run.run_dir / "report/index.html").is_file()
    # Free: step 3 is best out of distribution. Bounded to 20 points of generic: step 2.
    front = {(row["group"], row["of"]): row for row in tables["figures/bounds-retention.csv"]}
    for group, step in (("base", 0), ("free", 3), ("bounded", 2)):
        row = front[group, "out-of-distribution"]
        shares = [float(row["specialized"]), float(row["generic"])]
        assert shares == pytest.approx(
            [planted_share(made, TEST, name, "test", step) for name in ("other", "more")], abs=1e-6
        )
    curve = [row for row in tables["figures/bounds-tradeoff.csv"] if row["of"] == "out-of-distribution"]
    assert len(curve) == 20
    for row in curve:
        step = int(row["step"])
        values = [float(row["specialized"]), float(row["generic"])]
        known = [planted_share(made, VALIDATION, name, "validation", step) for name in ("other", "more")]
        assert values == pytest.approx(known, abs=1e-6)
        chosen = 3 if row["group"] == "free" else 2
        assert (row["chosen"] == "chosen") == (step == chosen) and (row["front"] == "front") == (step != 4)
    losses = tables["figures/bounds-loss.csv"]
    assert len(losses) == 16 and {row["objective"] for row in losses} == {""}


def test_each_rule_has_its_choice_and_its_test_result_where_it_was_tested(made: study.Study) -> None:
    page, tables = build(made)
    rows = [row for row in tables["figures/bounds-rules.csv"] if row["run"].startswith("bounded.seed-3")]
    steps = {(row["rule"], row["step"], row["of"]) for row in rows}
    assert ("mean-out-of-distribution", "2", "generic") in steps and ("without-retain", "3", "") in steps
    assert "not tested" in page


def test_shared_stages_are_paid_once(made: study.Study) -> None:
    _, tables = build(made)
    cost = {(row["run"], row["what"]): float(row["number"]) for row in tables["figures/cost.csv"]}
    runs = [run.name for run in made.runs]
    tokens = storage.manifest.read_finished(made.runs[0].run_dir / "sample")
    assert tokens and cost["all runs", "tokens sampled"] == tokens.counts["tokens"] > 0
    assert [name for name in runs if (name, "seconds of sample") in cost] == runs[:1]
    trained = [name for name in runs if (name, "seconds of train") in cost]
    assert len(trained) == 2, "runs that differ only in the selection share their training"
    total = sum(cost[name, "seconds of train"] for name in trained)
    assert cost["all runs", "seconds of train"] == pytest.approx(total, abs=0.01)


def test_runs_that_cannot_be_shown_are_named(made: study.Study, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second, *_ = (run.name for run in made.runs)
    (made.runs[1].run_dir / "recipe.yaml").rename(made.runs[1].run_dir / "elsewhere.yaml")
    try:
        page, tables = build(made, first)
    finally:
        (made.runs[1].run_dir / "elsewhere.yaml").rename(made.runs[1].run_dir / "recipe.yaml")
    assert "4 runs, of which 2 are finished" in page
    named = re.findall(r"<li><bdi>([^<]+)</bdi>: ", page)
    assert named == [first, second] and "one group of runs (bounded)" in page
    assert {row["group"] for row in tables["figures/bounds-retention.csv"]} == {"base", "bounded"}
