"""Trackers: every step is sent once across restarts, and each tracking library accepts it."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from potstill import cli, tracking
from potstill.errors import UserError
from potstill.records import Checkpoint, Score
from potstill.serialization import to_json
from potstill.tracking import Point, read_points


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
    (run / stage).mkdir(parents=True, exist_ok=True)
    (run / stage / "begun.json").write_text(json.dumps(what))


class Listener:
    """A tracker that only listens. `runs` are those that were begun, in their order, by id."""

    resumes = True
    runs: dict[str, list[Point]] = {}  # noqa: RUF012

    def __init__(self, folder: Path, name: str, run_id: str, project: str) -> None:
        self.id = run_id
        self.runs.setdefault(run_id, [])

    def send(self, points: Sequence[Point]) -> None:
        self.runs[self.id] += points

    def close(self) -> None:
        pass


@pytest.fixture
def listener(monkeypatch: pytest.MonkeyPatch) -> type[Listener]:
    Listener.runs = {}
    monkeypatch.setitem(tracking.TRACKER_CLASSES, "wandb", Listener)
    monkeypatch.setattr(tracking, "check_installed", lambda to: None)
    return Listener


def losses(run: Path) -> list[tuple[int, float]]:
    return [(point.step, point.values["train/loss"]) for point in read_points(run)["train"]]


def test_points_are_read_while_somebody_writes(tmp_path: Path) -> None:
    metrics(tmp_path, [1, 2], torn='{"step": 3, "lo')
    (tmp_path / "train" / "speed.jsonl").write_text('{"step": 1, "seconds": 0.5, "utilisation": null}\n')
    scores(tmp_path, 10, 0.75)
    scores(tmp_path, 2, 0.5)
    (tmp_path / "evaluate" / "2-0.5").mkdir()
    (tmp_path / "evaluate" / "20").mkdir()  # is being answered
    assert read_points(tmp_path) == {
        "train": [
            Point(1, {"train/loss": 1.0, "train/losses/few-shot-answer": 0.5, "train/tokens": 9.0}),
            Point(2, {"train/loss": 0.5, "train/losses/few-shot-answer": 0.5, "train/tokens": 9.0}),
        ],
        "speed": [Point(1, {"speed/seconds": 0.5})],
        "validation": [
            Point(2, {"validation/zero-shot-answer.greedy/sums": 0.5}),
            Point(10, {"validation/zero-shot-answer.greedy/sums": 0.75}),
        ],
    }


def test_nothing_is_sent_twice_and_what_is_made_again_is_not_doubled(tmp_path: Path, listener: type[Listener]) -> None:
    made_from(tmp_path, "train", "a")
    metrics(tmp_path, range(1, 7))
    assert tracking.track(tmp_path, "mine", "wandb") == 6 and tracking.track(tmp_path, "mine", "wandb") == 0
    metrics(tmp_path, range(1, 5))  # cut after the checkpoint of step 4
    assert tracking.track(tmp_path, "mine", "wandb") == 0
    metrics(tmp_path, range(1, 9))  # made again, to the bit, and on
    scores(tmp_path, 4, 0.5)
    assert tracking.track(tmp_path, "mine", "wandb") == 3
    (tmp_path / "train" / "speed.jsonl").write_text('{"step": 1, "seconds": 0.5}\n')
    assert tracking.track(tmp_path, "mine", "wandb") == 1
    (tmp_path / "train" / "speed.jsonl").write_text('{"step": 1, "seconds": 0.7}\n')  # the same step took longer
    assert tracking.track(tmp_path, "mine", "wandb") == 0
    [own] = listener.runs.values()
    assert own.pop().values == {"speed/seconds": 0.5}
    assert [point.step for point in own] == [1, 2, 3, 4, 5, 6, 7, 8, 4]
    with open(tmp_path / "tracked" / "wandb.jsonl", "ab") as remembered:  # killed while it remembered a point
        remembered.write(b'{"stream": "train", "st')
    assert tracking.track(tmp_path, "mine", "wandb") == 0 and len(listener.runs) == 1
    metrics(tmp_path, range(1, 10))
    assert tracking.track(tmp_path, "mine", "wandb") == 1 and tracking.track(tmp_path, "mine", "wandb") == 0
    metrics(tmp_path, range(1, 9), salt=0.5)  # repeated on another machine: the same steps
    assert tracking.track(tmp_path, "mine", "wandb") == 0
    made_from(tmp_path, "train", "b")  # another training in the same folder
    assert tracking.track(tmp_path, "mine", "wandb") == 10 and len(listener.runs) == 2
    assert [point.step for point in list(listener.runs.values())[1]] == [*range(1, 9), 1, 4]
    assert tracking.track(tmp_path, "mine", "wandb") == 0


def test_the_base_may_answer_after_its_checkpoints(tmp_path: Path, listener: type[Listener], capfd) -> None:
    """As where checkpoints answer while training goes on, and the base in `evaluate`."""
    made_from(tmp_path, "train", "a")
    metrics(tmp_path, range(1, 5))
    for step in (2, 4):
        scores(tmp_path, step, 0.5)
        assert tracking.track(tmp_path, "mine", "wandb") == (5 if step == 2 else 1)
    scores(tmp_path, 0, 0.25)
    assert tracking.track(tmp_path, "mine", "wandb") == 1 and tracking.track(tmp_path, "mine", "wandb") == 0
    [own] = listener.runs.values()
    assert [point.step for point in own] == [1, 2, 3, 4, 2, 4, 0] and capfd.readouterr().err == ""
    made_from(tmp_path, "evaluate", "a")
    assert tracking.track(tmp_path, "mine", "wandb") == 0, "the stage began, as it was expected to"
    made_from(tmp_path, "evaluate", "b")
    scores(tmp_path, 2, 0.75)
    assert tracking.track(tmp_path, "mine", "wandb") == 7 and len(listener.runs) == 2
    assert "evaluate was run again" in capfd.readouterr().err
    assert [point.step for point in list(listener.runs.values())[1]] == [1, 2, 3, 4, 0, 2, 4]


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
                tracking.track(run, "mine", "trackio")
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
        tracking.track(tmp_path, "mine", "wandb")
    assert tracking.track(tmp_path, "mine", "wandb", follow=True) == 6 and len(looks) == 3
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
        tracking.track(tmp_path, "mine", "tensorboard")
        seen = EventAccumulator(str(tmp_path / "tracked" / "tensorboard"))
        seen.Reload()
        assert sorted(seen.Tags()["scalars"]) == ["train/loss", "train/losses/few-shot-answer", "train/tokens"]
        told = [(event.step, pytest.approx(event.value, abs=1e-6)) for event in seen.Scalars("train/loss")]
        assert told == losses(tmp_path)


def test_wandb_has_every_step_once_offline(tmp_path: Path, monkeypatch) -> None:
    pytest.importorskip("wandb", reason="the extra wandb is not installed")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    metrics(tmp_path, range(1, 5))
    tracking.track(tmp_path, "mine", "wandb")
    metrics(tmp_path, range(1, 7))
    scores(tmp_path, 4, 0.5)
    tracking.track(tmp_path, "mine", "wandb")
    stored = sorted((tmp_path / "tracked").rglob("*.wandb"))
    rows = [row for path in stored for row in offline(path)]
    assert len({path.stem for path in stored}) == 1, "one run of theirs, in two sessions"
    own = [(int(row["step"]), row["train/loss"]) for row in rows if "train/loss" in row]
    assert own == losses(tmp_path)
    assert [row["step"] for row in rows if "validation/zero-shot-answer.greedy/sums" in row] == [4]


def offline(path: Path) -> list[dict[str, float]]:
    """The rows of a file that `wandb sync` would send: records in a LevelDB log behind a header of seven bytes."""
    from wandb.proto import wandb_internal_pb2 as proto

    data, place, part, rows = path.read_bytes(), 7, b"", []
    while place + 7 <= len(data):
        room = 32768 - place % 32768
        length, kind = int.from_bytes(data[place + 4 : place + 6], "little"), data[place + 6] if room >= 7 else 0
        if not kind:  # the rest of a block
            place += room
            continue
        part += data[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # whole, or the last piece
            record = proto.Record.FromString(part)
            part = b""
            if record.WhichOneof("record_type") == "history":
                items = record.history.item
                rows.append({item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in items})
    return rows


def test_trackio_has_every_step_once(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    pytest.importorskip("trackio", reason="the extra trackio is not installed")
    from trackio.sqlite_storage import SQLiteStorage

    run = tmp_path / "run"
    metrics(run, range(1, 5))
    tracking.track(run, "mine", "trackio", project="potstill-test")
    metrics(run, range(1, 7))
    scores(run, 4, 0.5)
    tracking.track(run, "mine", "trackio", project="potstill-test")
    [name] = SQLiteStorage.get_runs("potstill-test")
    rows = SQLiteStorage.get_logs("potstill-test", name)
    assert [(row["step"], row["train/loss"]) for row in rows if "train/loss" in row] == losses(run)
    assert [row["step"] for row in rows if any(key.startswith("validation/") for key in row)] == [4]
