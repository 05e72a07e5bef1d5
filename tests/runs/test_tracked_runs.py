"""`potstill track` on whole runs: a tracker receives the numbers of the report, with the times of the log."""

from __future__ import annotations

import datetime
import math
from collections.abc import Sequence
from pathlib import Path

import pytest

import tiny
from potstill import runner, storage, tracking
from potstill.evaluation import checkpoint as checkpoints
from potstill.records import BASE, Checkpoint
from potstill.report import collect
from potstill.report.model import Interval
from potstill.tracking import Point, TrackerRun

CAUSAL = "student={shape: {family: causal, d_model: 16, layers: 1, heads: 2, d_ff: 32}, tokenizer: student-tokenizer}"
TEXTS = "evaluate.texts={prose: prose.md, one: one.md}"


class Listener:
    """A tracker that only listens."""

    resumes = True
    runs: list[TrackerRun] = []  # noqa: RUF012
    points: list[Point] = []  # noqa: RUF012

    def __init__(self, run: TrackerRun) -> None:
        self.runs.append(run)

    def send(self, points: Sequence[Point]) -> None:
        self.points += points

    def close(self) -> None:
        pass


@pytest.fixture
def listener(monkeypatch: pytest.MonkeyPatch) -> type[Listener]:
    Listener.runs, Listener.points = [], []
    monkeypatch.setitem(tracking.TRACKER_CLASSES, "wandb", Listener)
    monkeypatch.setattr(tracking, "check_installed", lambda to: None)
    return Listener


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    data = tiny.world(tmp_path_factory.mktemp("tracked"))
    (data / "prose.md").write_text("Tom has pens.\n\nHe gets more pens.\n\nAdd 2 to 3.\n")
    (data / "one.md").write_text("One text has no interval.\n")
    return data


def log(run_dir: Path, event: str) -> list[dict]:
    return [row for _, row in storage.read_jsonl(run_dir / "log.jsonl") if row["event"] == event]


def seconds(row: dict) -> float:
    return datetime.datetime.fromisoformat(row["time"]).timestamp()


def interval(name: str, interval: Interval) -> dict[str, float]:
    return {name: interval.value, f"{name}/low": interval.low, f"{name}/high": interval.high}


def test_a_tracker_has_the_test_scores_of_the_report_and_the_times_of_the_run(
    world: Path, tmp_path: Path, listener: type[Listener], capfd: pytest.CaptureFixture[str]
) -> None:
    changes = CAUSAL, TEXTS, "evaluate.test_decodings=[vote-2]", tiny.ON_POLICY
    run_dir = tiny.make(world, tmp_path / "run", *changes)
    recipe = tiny.recipe(world, *changes)
    capfd.readouterr()
    assert tracking.track(run_dir, recipe, "wandb") == 4 + 4 + 3 + 3
    assert capfd.readouterr().err == "", "every point has a time"
    streams = tracking.read_points(run_dir, recipe)
    assert {stream: [point.step for point in points] for stream, points in streams.items()} == {
        "train": [1, 2, 3, 4],
        "speed": [1, 2, 3, 4],
        "validation": [0, 2, 4],
        "test": [0, (step := checkpoints.read_choice(run_dir).checkpoint.step)],
        "test-on-policy": [step],
    }
    assert listener.points == [point for points in streams.values() for point in points]
    assert tracking.track(run_dir, recipe, "wandb") == 0 and len(listener.runs) == 1

    # The numbers are those of the report.
    report = collect.collect_report(run_dir, recipe)
    base, chosen = (point.values for point in streams["test"])
    [after] = (point.values for point in streams["test-on-policy"])
    expected_base, expected = dict[str, float](), dict[str, float]()
    assert {row.chosen.decoding for row in report.comparisons} == {"greedy", "vote-2"}
    for row in report.comparisons:
        name = f"test/{row.chosen.format}.{row.chosen.decoding}/{row.chosen.set}"
        for values, score in ((expected_base, row.base), (expected, row.chosen)):
            values |= {name: score.accuracy, f"{name}/low": score.low, f"{name}/high": score.high}
        expected |= interval(f"{name}/change", row.difference)
    for texts in report.texts:
        name = f"test/bits-per-byte/{texts.chosen.name}"
        expected_base[name], expected[name] = texts.base.bits_per_byte, texts.chosen.bits_per_byte
        expected |= interval(f"{name}/change", texts.difference)
    for bound in ("low", "high"):
        assert math.isnan(expected.pop(f"test/bits-per-byte/one/change/{bound}"))
    assert (base, chosen) == (expected_base, expected)
    [control] = report.controls
    for row in control.comparisons:
        name = f"test-on-policy/{row.chosen.format}.{row.chosen.decoding}/{row.chosen.set}"
        assert (after[name], after[f"{name}/change"]) == (row.chosen.accuracy, row.difference.value)

    # The times are in the order in which the run made the points.
    done = {row["stage"]: seconds(row) for row in log(run_dir, "done")}
    order = ("train", "validation", "test", "test-on-policy")
    made = [point.time for stream in order for point in streams[stream] if point.time is not None]
    assert made == sorted(made) and len(made) == 4 + 3 + 2 + 1
    assert done["align"] <= made[0] <= made[3] <= done["train"] <= made[4] and made[-1] <= done["test"]
    evaluated = {(row["stage"], row["step"]): seconds(row) for row in log(run_dir, "evaluated")}
    assert evaluated["evaluate", 2] == streams["validation"][1].time and ("test", 0) in evaluated

    # The configuration names the models.
    [run] = listener.runs
    facts = run.config["run"]
    assert run.start == seconds(log(run_dir, "start")[0]) and run.name == "tiny"
    assert facts["potstill"] and (facts["base"], facts["teacher"]) == ("random weights", "teacher")
    assert facts["selected"] == Checkpoint(step).name and set(facts["fingerprints"]) == {
        "student_tokenizer",
        "teacher_model",
    }


def test_more_training_keeps_the_run_of_the_tracker_and_adds_its_scores(
    world: Path, tmp_path: Path, listener: type[Listener]
) -> None:
    changes = ("train.schedule=constant", "evaluate.formats=[zero-shot-rationale]")
    run_dir = tiny.make(world, tmp_path / "run", *changes, until="test")
    tracking.track(run_dir, tiny.recipe(world, *changes), "wandb")
    before = len(listener.points)
    tiny.make(world, run_dir, *changes, "train.steps=6", until="test")
    tracking.track(run_dir, tiny.recipe(world, *changes, "train.steps=6"), "wandb")
    assert len({run.id for run in listener.runs}) == 1
    new = [(point.step, next(iter(point.values)).partition("/")[0]) for point in listener.points[before:]]
    chosen = checkpoints.read_choice(run_dir).checkpoint
    tested = {point.step for point in listener.points if any(name.startswith("test/") for name in point.values)}
    assert new[:5] == [(5, "train"), (6, "train"), (5, "speed"), (6, "speed"), (6, "validation")]
    assert tested >= {BASE.step, chosen.step} and [stream for _, stream in new[5:]] in ([], ["test"])


def test_other_test_questions_begin_a_new_run_of_the_tracker(
    world: Path, tmp_path: Path, listener: type[Listener], capfd: pytest.CaptureFixture[str]
) -> None:
    changes = ("evaluate.formats=[zero-shot-rationale]",)
    run_dir = tiny.make(world, tmp_path / "run", *changes, until="test")
    recipe = tiny.recipe(world, *changes)
    tracking.track(run_dir, recipe, "wandb")
    other = tiny.recipe(world, *changes, "evaluate.test_decodings=[vote-2]")
    runner.run(other, run_dir=run_dir, redo="test", until="test")
    capfd.readouterr()
    tracking.track(run_dir, other, "wandb")
    assert len({run.id for run in listener.runs}) == 2 and "test 0 was run again" in capfd.readouterr().err
