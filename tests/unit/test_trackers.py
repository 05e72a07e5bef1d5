"""Trackers: every step is sent once across restarts, and each tracking library shows it with the run's own time and the
run's configuration."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from potstill import cli, tracking
from potstill.errors import UserError
from potstill.recipe import flatten_values, parse_recipe
from potstill.records import Checkpoint, Score
from potstill.serialization import to_json
from potstill.storage.manifest import Identity
from potstill.tracking import Point, TrackerRun, read_points

RECIPE = parse_recipe("name: mine\nteacher: {kind: human}\n", "mine.yaml")


def metrics(run: Path, steps: Sequence[int], salt: float = 0.0, torn: str = "") -> None:
    rows = [{"step": step, "loss": 1 / step + salt, "losses": {"few-shot-answer": 0.5}, "tokens": 9} for step in steps]
    path = run / "train" / "metrics.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows) + torn)


def scores(run: Path, step: int, accuracy: float) -> None:
    (run / "evaluate" / str(step)).mkdir(parents=True, exist_ok=True)
    right = round(8 * accuracy)
    score = Score(
        Checkpoint(step), "sums", "validation", "zero-shot-answer", "greedy", 8, right, 0, 0, right / 8, 0.0, 1.0
    )
    (run / "evaluate" / str(step) / "scores.json").write_text(json.dumps([to_json(score)]))


def made_from(run: Path, stage: str, what: str) -> None:
    """The stage began from something."""
    inputs = {"student.model": what, "student.model (commit)": f"commit of {what}", "collect": "c"}
    (run / stage).mkdir(parents=True, exist_ok=True)
    (run / stage / "begun.json").write_text(json.dumps(Identity(stage, {}, {}, inputs).as_json()))


START = datetime.fromisoformat("2026-01-02T03:04:05.500+00:00")
LATER = "2026-01-05T00:00:00.000+00:00"


def logged(run: Path, minutes: Sequence[float], checkpoints: Mapping[int, float], version: str = "0.0.2") -> None:
    """The run recorded when its steps ended, and when its checkpoints were evaluated, in minutes after its start."""
    rows = [{"step": step, "seconds": 0.5, "time": at(minute)} for step, minute in enumerate(minutes, 1)]
    (run / "train" / "speed.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    log: list[dict[str, object]] = [
        {"time": time, "event": "start", "versions": {"potstill": version}}
        for time, version in ((START.isoformat(), "0.0.1"), (LATER, version))
    ]
    for step, minute in checkpoints.items():
        moment = (START + timedelta(minutes=minute)).isoformat()
        log.append({"time": moment, "event": "evaluated", "stage": "evaluate", "step": step})
    (run / "log.jsonl").write_text("".join(json.dumps(row) + "\n" for row in log))


def at(minute: float) -> float:
    """Seconds since 1970."""
    return START.timestamp() + 60 * minute


def shown(run: Path) -> None:
    """A run of three steps, whose second step was evaluated."""
    made_from(run, "train", "a")
    metrics(run, range(1, 4))
    scores(run, 2, 0.5)
    logged(run, [1, 2, 4], {2: 3})


class Listener:
    """A tracker that only listens. `runs` are those that were begun, in their order, by id."""

    resumes = True
    runs: dict[str, list[Point]] = {}  # noqa: RUF012
    versions: list[str] = []  # noqa: RUF012

    def __init__(self, run: TrackerRun) -> None:
        self.id = run.id
        self.runs.setdefault(run.id, [])
        self.versions.append(run.config["run"].get("potstill", ""))

    def send(self, points: Sequence[Point]) -> None:
        self.runs[self.id] += points

    def close(self) -> None:
        pass


@pytest.fixture
def listener(monkeypatch: pytest.MonkeyPatch) -> type[Listener]:
    Listener.runs, Listener.versions = {}, []
    monkeypatch.setitem(tracking.TRACKER_CLASSES, "wandb", Listener)
    monkeypatch.setattr(tracking, "check_installed", lambda to: None)
    return Listener


def losses(run: Path) -> list[tuple[int, float]]:
    return [(point.step, point.values["train/loss"]) for point in read_points(run, RECIPE)["train"]]


def test_points_are_read_while_somebody_writes(tmp_path: Path) -> None:
    metrics(tmp_path, [1, 2], torn='{"step": 3, "lo')
    (tmp_path / "train" / "speed.jsonl").write_text('{"step": 1, "seconds": 0.5, "utilisation": null, "time": 7.5}\n')
    scores(tmp_path, 10, 0.75)
    scores(tmp_path, 2, 0.5)
    (tmp_path / "evaluate" / "2-0.5").mkdir()
    (tmp_path / "evaluate" / "20").mkdir()  # is being answered
    assert read_points(tmp_path, RECIPE) == {
        "train": [
            Point(1, {"train/loss": 1.0, "train/losses/few-shot-answer": 0.5, "train/tokens": 9.0}, 7.5),
            Point(2, {"train/loss": 0.5, "train/losses/few-shot-answer": 0.5, "train/tokens": 9.0}),
        ],
        "speed": [Point(1, {"speed/seconds": 0.5}, 7.5)],
        "validation": [
            Point(2, {"validation/zero-shot-answer.greedy/sums": 0.5}),
            Point(10, {"validation/zero-shot-answer.greedy/sums": 0.75}),
        ],
    }


def test_nothing_is_sent_twice_and_what_is_made_again_is_not_doubled(tmp_path: Path, listener: type[Listener]) -> None:
    made_from(tmp_path, "train", "a")
    metrics(tmp_path, range(1, 7))
    assert tracking.track(tmp_path, RECIPE, "wandb") == 6 and tracking.track(tmp_path, RECIPE, "wandb") == 0
    metrics(tmp_path, range(1, 5))  # cut after the checkpoint of step 4
    assert tracking.track(tmp_path, RECIPE, "wandb") == 0
    metrics(tmp_path, range(1, 9))  # made again, to the bit, and on
    scores(tmp_path, 4, 0.5)
    assert tracking.track(tmp_path, RECIPE, "wandb") == 3
    (tmp_path / "train" / "speed.jsonl").write_text('{"step": 1, "seconds": 0.5}\n')
    assert tracking.track(tmp_path, RECIPE, "wandb") == 1
    (tmp_path / "train" / "speed.jsonl").write_text('{"step": 1, "seconds": 0.7}\n')  # the same step took longer
    assert tracking.track(tmp_path, RECIPE, "wandb") == 0
    [own] = listener.runs.values()
    assert own.pop().values == {"speed/seconds": 0.5}
    assert [point.step for point in own] == [1, 2, 3, 4, 5, 6, 7, 8, 4]
    with open(tmp_path / "tracked" / "wandb.jsonl", "ab") as remembered:  # killed while it remembered a point
        remembered.write(b'{"stream": "train", "st')
    assert tracking.track(tmp_path, RECIPE, "wandb") == 0 and len(listener.runs) == 1
    metrics(tmp_path, range(1, 10))
    assert tracking.track(tmp_path, RECIPE, "wandb") == 1 and tracking.track(tmp_path, RECIPE, "wandb") == 0
    metrics(tmp_path, range(1, 9), salt=0.5)  # repeated on another machine: the same steps
    assert tracking.track(tmp_path, RECIPE, "wandb") == 0
    made_from(tmp_path, "train", "b")  # another training in the same folder
    assert tracking.track(tmp_path, RECIPE, "wandb") == 10 and len(listener.runs) == 2
    assert [point.step for point in list(listener.runs.values())[1]] == [*range(1, 9), 1, 4]
    assert tracking.track(tmp_path, RECIPE, "wandb") == 0


def test_the_base_may_answer_after_its_checkpoints(tmp_path: Path, listener: type[Listener], capfd) -> None:
    """As where checkpoints answer while training goes on, and the base in `evaluate`."""
    made_from(tmp_path, "train", "a")
    metrics(tmp_path, range(1, 5))
    for step in (2, 4):
        scores(tmp_path, step, 0.5)
        assert tracking.track(tmp_path, RECIPE, "wandb") == (5 if step == 2 else 1)
    scores(tmp_path, 0, 0.25)
    assert tracking.track(tmp_path, RECIPE, "wandb") == 1 and tracking.track(tmp_path, RECIPE, "wandb") == 0
    [own] = listener.runs.values()
    assert [point.step for point in own] == [1, 2, 3, 4, 2, 4, 0] and "again" not in capfd.readouterr().err
    made_from(tmp_path, "evaluate/2", "a")
    assert tracking.track(tmp_path, RECIPE, "wandb") == 0, "the stage began, as it was expected to"
    made_from(tmp_path, "evaluate/4", "b")
    assert tracking.track(tmp_path, RECIPE, "wandb") == 0, "other weights at another step"
    made_from(tmp_path, "evaluate/2", "b")
    scores(tmp_path, 2, 0.75)
    assert tracking.track(tmp_path, RECIPE, "wandb") == 7 and len(listener.runs) == 2
    assert "validation 2 was run again" in capfd.readouterr().err
    assert [point.step for point in list(listener.runs.values())[1]] == [1, 2, 3, 4, 0, 2, 4]


def test_a_point_has_the_time_at_which_the_run_made_it(tmp_path: Path, listener: type[Listener], capfd) -> None:
    shown(tmp_path)
    assert tracking.track(tmp_path, RECIPE, "wandb") == 7 and capfd.readouterr().err == ""
    [own] = listener.runs.values()
    assert [point.time for point in own] == [at(1), at(2), at(4), at(1), at(2), at(4), at(3)]
    metrics(tmp_path, range(1, 5))  # a step without a recorded time, as in the run of an earlier version
    assert tracking.track(tmp_path, RECIPE, "wandb") == 1
    assert own[-1].time is None and capfd.readouterr().err.startswith("the run did not record the time of some points")


def test_following_goes_on_while_a_process_works_on_the_run(tmp_path: Path, listener, monkeypatch) -> None:
    """As `potstill run`, which evaluates and tests after the training."""
    shown(tmp_path)
    (tmp_path / "train" / "manifest.json").write_text("{}")
    working = [["process 1"], ["process 1"], []]
    monkeypatch.setattr(tracking.run_folder, "working_processes", lambda run_dir: working.pop(0))
    monkeypatch.setattr(tracking.time, "sleep", lambda seconds: scores(tmp_path, 4, 0.75))
    assert tracking.track(tmp_path, RECIPE, "wandb", follow=True) == 8 and working == []
    [own] = listener.runs.values()
    assert own[-1].step == 4


def watch_a_run_that_learns_facts(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The run is continued by another version of potstill between two looks of `--follow`."""
    shown(run)

    def sleep(seconds: float) -> None:
        metrics(run, range(1, 5))
        logged(run, [1, 2, 4, 5], {2: 3}, version="0.0.3")
        (run / "train" / "manifest.json").write_text("{}")

    monkeypatch.setattr(tracking.time, "sleep", sleep)


def test_following_tells_the_tracker_what_the_run_has_recorded_since(tmp_path: Path, listener, monkeypatch) -> None:
    watch_a_run_that_learns_facts(tmp_path, monkeypatch)
    assert tracking.track(tmp_path, RECIPE, "wandb", follow=True) == 9
    [own] = listener.runs.values()
    assert listener.versions == ["0.0.2", "0.0.3"] and [point.step for point in own] == [1, 2, 3, 1, 2, 3, 2, 4, 4]


def test_tensorboard_has_every_step_once_if_a_run_records_facts(tmp_path: Path, monkeypatch) -> None:
    pytest.importorskip("tensorboard", reason="the extra tensorboard is not installed")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    watch_a_run_that_learns_facts(tmp_path, monkeypatch)
    assert tracking.track(tmp_path, RECIPE, "tensorboard", follow=True) == 9
    seen = EventAccumulator(str(tmp_path / "tracked" / "tensorboard"))
    seen.Reload()
    assert [event.step for event in seen.Scalars("train/loss")] == [1, 2, 3, 4]
    assert b'`"0.0.3"`' in seen.Tensors("configuration")[0].tensor_proto.string_val


def test_the_configuration_is_the_recipe_and_what_the_run_recorded(tmp_path: Path) -> None:
    assert tracking.read_config(tmp_path, RECIPE)["run"] == {
        "base": "random weights",
        "teacher": "human",
        "fingerprints": {},
    }
    shown(tmp_path)
    config = tracking.read_config(tmp_path, RECIPE)
    assert config.pop("run") == {
        "base": "random weights",
        "teacher": "human",
        "potstill": "0.0.2",
        "started": START.isoformat(),
        "fingerprints": {"student_model": "a", "student_model_commit": "commit of a"},
    }
    assert config == RECIPE.model_dump(mode="json")
    flat = flatten_values(config)
    assert flat["train.formats.zero-shot-rationale"] == 1 and flat["sets"] == {} and "train" not in flat


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 6), st.integers(1, 4), st.booleans(), st.booleans()), min_size=1, max_size=6))
def test_after_any_cuts_the_newest_run_has_every_step_once(tmp_path_factory, history) -> None:
    """Each life of a training: how much of the file is kept, how many steps follow, whether it is made from something
    else, and whether anybody looks."""
    run = tmp_path_factory.mktemp("run")
    Listener.runs = {}
    values: list[float] = []
    made, longest = 0, 0
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(tracking.TRACKER_CLASSES, "trackio", Listener)
        patch.setattr(tracking, "check_installed", lambda to: None)
        for kept, more, otherwise, looked in [*history, (99, 1, False, True)]:
            if otherwise:
                made, longest, values = made + 1, 0, []
            values = values[:kept]
            values += [1 / (len(values) + i + 1) + made for i in range(more)]
            made_from(run, "train", str(made))
            rows = [{"step": step, "loss": value} for step, value in enumerate(values, 1)]
            (run / "train" / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
            if looked:
                tracking.track(run, RECIPE, "trackio")
                longest = max(longest, len(values))
    newest = list(Listener.runs.values())[-1]
    assert [point.step for point in newest] == list(range(1, longest + 1))
    assert [point.values["train/loss"] for point in newest[: len(values)]] == values


def test_following_ends_with_the_training(tmp_path: Path, listener: type[Listener], monkeypatch) -> None:
    looks = []

    def sleep(seconds: float) -> None:  # the training goes on between two looks
        looks.append(seconds)
        metrics(tmp_path, range(1, 2 * len(looks) + 1))
        if len(looks) == 3:
            (tmp_path / "train" / "manifest.json").write_text("{}")

    monkeypatch.setattr(tracking.time, "sleep", sleep)
    with pytest.raises(UserError, match="E-track-no-points"):
        tracking.track(tmp_path, RECIPE, "wandb")
    assert tracking.track(tmp_path, RECIPE, "wandb", follow=True) == 6 and len(looks) == 3
    assert [point.step for point in next(iter(listener.runs.values()))] == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize("to", tracking.TRACKERS)
def test_a_library_that_is_missing_is_one_message(to: str, tmp_path: Path, monkeypatch, capsys) -> None:
    metrics(tmp_path, [1])
    (tmp_path / "recipe.yaml").write_text("name: mine\n")
    monkeypatch.setitem(sys.modules, to, None)
    monkeypatch.setattr(sys, "argv", ["potstill", "track", str(tmp_path), "--to", to])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    message = capsys.readouterr().err
    assert ended.value.code == 2 and message.startswith(f"--to: {to} is not installed\n")
    assert f"pip install 'potstill[{to}]'" in message


def test_tensorboard_reads_every_step_once(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="the extra tensorboard is not installed")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for steps, salt in ((range(1, 7), 0.0), (range(1, 5), 0.0), (range(1, 9), 0.25)):
        metrics(tmp_path, steps, salt)
        tracking.track(tmp_path, RECIPE, "tensorboard")
        seen = EventAccumulator(str(tmp_path / "tracked" / "tensorboard"))
        seen.Reload()
        assert sorted(seen.Tags()["scalars"]) == ["train/loss", "train/losses/few-shot-answer", "train/tokens"]
        told = [(event.step, pytest.approx(event.value, abs=1e-6)) for event in seen.Scalars("train/loss")]
        assert told == losses(tmp_path)


def test_tensorboard_shows_the_configuration_and_the_times_of_the_run(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="the extra tensorboard is not installed")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData  # pyright: ignore

    shown(tmp_path)
    tracking.track(tmp_path, RECIPE, "tensorboard")
    seen = EventAccumulator(str(tmp_path / "tracked" / "tensorboard"))
    seen.Reload()
    times = {tag: [event.wall_time for event in seen.Scalars(tag)] for tag in seen.Tags()["scalars"]}
    assert times["train/loss"] == times["speed/seconds"] == [at(1), at(2), at(4)]
    assert times["validation/zero-shot-answer.greedy/sums"] == [at(3)] and "speed/time" not in times

    [table] = seen.Tensors("configuration")
    cells = [cell.decode() for cell in table.tensor_proto.string_val]
    assert [size.size for size in table.tensor_proto.tensor_shape.dim] == [len(cells) // 2, 2]
    rows = dict(zip(cells[::2], cells[1::2], strict=True))
    assert rows["name"] == '`"mine"`' and rows["train.steps"] == f"`{RECIPE.train.steps}`"
    assert rows["run.fingerprints.student_model"] == '`"a"`' and table.wall_time == at(0)

    content = seen.SummaryMetadata("_hparams_/session_start_info").plugin_data.content
    session = HParamsPluginData.FromString(content).session_start_info
    assert session.start_time_secs == at(0) and session.hparams["train.steps"].number_value == RECIPE.train.steps
    assert session.hparams["run.potstill"].string_value == "0.0.2"


def test_a_value_with_backticks_is_still_code() -> None:
    assert tracking._as_code("a `b` |") == '``"a `b` |"``' and tracking._as_code([1, "ü\n"]) == '`[1, "ü\\n"]`'


def test_wandb_has_every_step_once_offline(tmp_path: Path, monkeypatch) -> None:
    pytest.importorskip("wandb", reason="the extra wandb is not installed")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    metrics(tmp_path, range(1, 5))
    tracking.track(tmp_path, RECIPE, "wandb")
    metrics(tmp_path, range(1, 7))
    scores(tmp_path, 4, 0.5)
    tracking.track(tmp_path, RECIPE, "wandb")
    stored = sorted((tmp_path / "tracked").rglob("*.wandb"))
    rows = [row for path in stored for row in offline_rows(path)]
    assert len({path.stem for path in stored}) == 1, "one run of theirs, in two sessions"
    own = [(int(row["step"]), row["train/loss"]) for row in rows if "train/loss" in row]
    assert own == losses(tmp_path)
    assert [row["step"] for row in rows if "validation/zero-shot-answer.greedy/sums" in row] == [4]


def test_wandb_has_the_configuration_and_the_times_of_the_run(tmp_path: Path, monkeypatch) -> None:
    pytest.importorskip("wandb", reason="the extra wandb is not installed")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    shown(tmp_path)
    tracking.track(tmp_path, RECIPE, "wandb")
    longer = parse_recipe("name: mine\nteacher: {kind: human}\ntrain: {steps: 70000}\n", "mine.yaml")
    metrics(tmp_path, range(1, 5))
    logged(tmp_path, [1, 2, 4, 6000], {2: 3})
    tracking.track(tmp_path, longer, "wandb")  # the training was continued
    stored = sorted((tmp_path / "tracked").rglob("*.wandb"), key=lambda path: path.stat().st_mtime)
    rows = [row for path in stored for row in offline_rows(path)]
    times = [(row["step"], row["_timestamp"]) for row in rows if "train/loss" in row]
    assert times == [(1, at(1)), (2, at(2)), (3, at(4)), (4, at(6000))]
    assert [row["_timestamp"] for row in rows if "validation/zero-shot-answer.greedy/sums" in row] == [at(3)]
    first, second = (offline_config(path) for path in stored)
    assert first["train"] == RECIPE.model_dump(mode="json")["train"] and second["train"]["steps"] == 70000
    assert first["run"] == tracking.read_config(tmp_path, RECIPE)["run"]


def offline_rows(path: Path) -> list[dict[str, Any]]:
    return [
        {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in record.history.item}
        for record in offline_records(path)
        if record.WhichOneof("record_type") == "history"
    ]


def offline_config(path: Path) -> dict[str, Any]:
    updates = [record.config for record in offline_records(path) if record.WhichOneof("record_type") == "config"]
    return {item.key: json.loads(item.value_json) for update in updates for item in update.update if item.key}


def offline_records(path: Path) -> Iterator[Any]:
    """The records of a file that `wandb sync` would send: a LevelDB log behind a header of seven bytes."""
    from wandb.proto import wandb_internal_pb2 as proto

    data, place, part = path.read_bytes(), 7, b""
    while place + 7 <= len(data):
        room = 32768 - place % 32768
        length, kind = int.from_bytes(data[place + 4 : place + 6], "little"), data[place + 6] if room >= 7 else 0
        if not kind:  # the rest of a block
            place += room
            continue
        part += data[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # whole, or the last piece
            yield proto.Record.FromString(part)  # pyright: ignore
            part = b""


def test_trackio_has_every_step_once(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    pytest.importorskip("trackio", reason="the extra trackio is not installed")
    from trackio.sqlite_storage import SQLiteStorage

    run = tmp_path / "run"
    metrics(run, range(1, 5))
    tracking.track(run, RECIPE, "trackio", project="potstill-test")
    metrics(run, range(1, 7))
    scores(run, 4, 0.5)
    tracking.track(run, RECIPE, "trackio", project="potstill-test")
    [name] = SQLiteStorage.get_runs("potstill-test")
    rows = SQLiteStorage.get_logs("potstill-test", name)
    assert [(row["step"], row["train/loss"]) for row in rows if "train/loss" in row] == losses(run)
    assert [row["step"] for row in rows if any(key.startswith("validation/") for key in row)] == [4]


def test_trackio_has_the_configuration_and_the_seconds_of_the_run(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    pytest.importorskip("trackio", reason="the extra trackio is not installed")
    from trackio.sqlite_storage import SQLiteStorage

    run = tmp_path / "run"
    shown(run)
    tracking.track(run, RECIPE, "trackio", project="potstill-times")
    assert tracking.track(run, RECIPE, "trackio", project="potstill-times") == 0
    [name] = SQLiteStorage.get_runs("potstill-times")
    rows = SQLiteStorage.get_logs("potstill-times", name)
    assert [row["run/seconds"] for row in rows] == [60, 120, 240, 60, 120, 240, 180]
    config = SQLiteStorage.get_run_config("potstill-times", name)
    assert config is not None
    assert {key: value for key, value in config.items() if not key.startswith("_")} == tracking.read_config(run, RECIPE)
