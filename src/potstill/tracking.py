"""What a run measured by step, as three streams of points, read from its files while they grow.

    >>> flat_numbers("train", {"step": 7, "loss": 0.5, "losses": {"few-shot-answer": 0.25}, "utilisation": None})
    {'train/loss': 0.5, 'train/losses/few-shot-answer': 0.25}

`train` is every line of `metrics.jsonl`, `speed` what the machine took beside it, `validation` the accuracies of the
checkpoints that have answered. A file is read up to its last whole line: somebody may be writing to it.

Trackers: a run's metrics in TensorBoard, Weights & Biases or trackio, brought there from its files.

    track(run, "mine", "tensorboard")                # what there is now
    track(run, "mine", "wandb", follow=True)         # and what comes, until training ends

Training knows nothing of them: it writes `metrics.jsonl`, cuts it when it goes on from a checkpoint, and these read it.
What was brought is remembered in `tracked/<tracker>.jsonl` in the run's folder, so nothing is brought twice. Steps that
a resumed training makes again, to the bit, are the same points. Where they came out otherwise, the tracker's run is
begun anew, for no tracker can take a point back. Each library has one owner here and is an extra.

TensorBoard: event files in the run's folder, so that `tensorboard --logdir runs` shows every run.

Written anew by every process: an event file only grows, and two of them may not tell the same step.

trackio: a run in its own folder of projects (TRACKIO_DIR), which `trackio show` reads.

Weights & Biases: one run, that later processes go on with; WANDB_MODE=offline writes it into the run's folder.

Its own steps can only grow, and validation is told after training: so the step is a value, and every other is drawn
against it.
"""

from __future__ import annotations

import importlib.util
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Literal, Protocol, Self, get_args

from potstill import progress, storage
from potstill.errors import UserError
from potstill.evaluation import checkpoint
from potstill.storage import manifest

STREAMS: Final = {"train": "metrics.jsonl", "speed": "speed.jsonl"}
Streams = dict[str, list["Point"]]


@dataclass(frozen=True, slots=True)
class Point:
    """Numbers of one step by name: `train/loss`, `speed/seconds`, `validation/<format>.<decoding>/<set>`."""

    step: int
    values: Mapping[str, float]


def read_points(run_dir: Path) -> Streams:
    """Every stream of a run, in the order of its file; a stream without a file yet is empty."""
    found = {
        name: [_point(name, row) for row in storage.read_complete_lines(run_dir / "train" / file)]
        for name, file in STREAMS.items()
    }
    return {**found, "validation": list(_iter_validation(run_dir / "evaluate"))}


def flat_numbers(stream: str, row: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of a record by name; its step, and what is no number, left out."""
    found: dict[str, float] = {}
    for name, value in row.items():
        if isinstance(value, Mapping):
            found |= {f"{stream}/{name}/{key}": float(inner) for key, inner in value.items() if inner is not None}
        elif name != "step" and isinstance(value, (int, float)) and not isinstance(value, bool):
            found[f"{stream}/{name}"] = float(value)
    return found


def _point(stream: str, row: Mapping[str, Any]) -> Point:
    return Point(row["step"], flat_numbers(stream, row))


def _iter_validation(folder: Path) -> Iterator[Point]:
    """The checkpoints that have answered, in their order; mixes with the base share their steps and are left out."""
    for who in checkpoint.list_answered_checkpoints(folder):
        if who.is_plain and (folder / who.name / checkpoint.SCORES_FILE).exists():
            scores = checkpoint.read_scores(folder, who)
            names = {f"validation/{score.format}.{score.decoding}/{score.set}": score.accuracy for score in scores}
            yield Point(who.step, names)


TrackerName = Literal["tensorboard", "wandb", "trackio"]
TRACKERS: Final[tuple[TrackerName, ...]] = get_args(TrackerName)
TRACKER_STATE: Final = "tracked"
POLL_INTERVAL: Final = 5.0  # seconds between two looks at files that grow


class Tracker(Protocol):
    """One run of a tracker, open. What is sent together comes in the order of its steps; step 0 may come last, because
    checkpoints may answer before the base does. Streams come in any order."""

    def send(self, points: Sequence[Point]) -> None: ...

    def close(self) -> None: ...


def track(run_dir: Path, name: str, to: TrackerName, *, project: str = "potstill", follow: bool = False) -> int:
    """Bring what a run measured to a tracker; returns the number of points that were new to it.

    name     the run's, as the tracker shows it
    project  where it shows it; TensorBoard has none
    follow   go on until the run's training is finished

    Raises UserError where the library is missing, where nothing was measured yet, and if another process does this.
    """
    folder, brought = run_dir / TRACKER_STATE, 0
    lock = storage.hold_lock(folder, f".{to}.lock", 0, f"another process brings this run to {to}")
    with lock, _TrackerSession(run_dir, name, to, project) as tracked:
        while True:
            ended = (
                not follow or (run_dir / "train" / manifest.MANIFEST_FILE).exists()
            )  # before the last look, not after it
            found = read_points(run_dir)
            if ended and not any(found.values()):
                raise UserError("nothing was measured yet", where=run_dir, hint="train first, or use --follow")
            brought += tracked.bring(found)
            if ended:
                return brought
            time.sleep(POLL_INTERVAL)


class _TrackerSession:
    """A tracker's run and what it has been told. It is opened when there is something to tell."""

    def __init__(self, run_dir: Path, name: str, to: TrackerName, project: str) -> None:
        self.run, self.name, self.to, self.project = run_dir, name, to, project
        self.open, self.remembers = _tracker_opener(to)
        self.path = run_dir / TRACKER_STATE / f"{to}.jsonl"
        self.tracker: Tracker | None = None
        self.told: dict[str, dict[int, Point]] = {}  # stream -> step -> what it was told
        rows = list(storage.read_complete_lines(self.path)) if self.remembers else []
        self.id = rows[0]["run"] if rows else ""
        for row in rows[1:]:
            self.told.setdefault(row["stream"], {})[row["step"]] = Point(row["step"], row["values"])
        if not rows:
            self._anew()

    def _anew(self) -> None:
        """Another run of the tracker, which knows nothing yet."""
        self.close()
        self.id, self.told = uuid.uuid4().hex[:8], {}
        if self.remembers:
            storage.write_jsonl(self.path, [{"run": self.id}])

    def bring(self, found: Streams) -> int:
        """Tell the tracker what it does not know; the number of points that are new."""
        for stream, rows in found.items():
            told = self.told.get(stream, {})
            step = next((row.step for row in rows if _would_rewrite(stream, told.get(row.step, row), row)), None)
            if step is not None:
                said = (
                    f"{stream} of step {step} came out otherwise when it was made again: a new run of {self.to} begins"
                )
                progress.print_line(said, "yellow")
                self._anew()
                break
        new = {
            stream: [row for row in rows if row.step not in self.told.get(stream, {})] for stream, rows in found.items()
        }
        count = sum(map(len, new.values()))
        if count:
            if self.tracker is None:
                self.tracker = self.open(self.run / TRACKER_STATE, self.name, self.id, self.project)
            for stream, rows in new.items():
                self.tracker.send(rows)
                self.told.setdefault(stream, {}).update((row.step, row) for row in rows)
                self._remember(stream, rows)
        return count

    def _remember(self, stream: str, rows: list[Point]) -> None:
        if self.remembers:
            with storage.Appender(self.path) as lines:
                lines.append({"stream": stream, "step": row.step, "values": dict(row.values)} for row in rows)

    def close(self) -> None:
        if self.tracker is not None:
            self.tracker.close()
            self.tracker = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, fault: BaseException | None, at: TracebackType | None) -> None:
        self.close()


def _would_rewrite(stream: str, told: Point, now: Point) -> bool:
    """Whether a tracker would have to take a point back. Time is never the same again; the first was true too."""
    return stream != "speed" and told != now


def _tracker_opener(to: TrackerName) -> tuple[Callable[[Path, str, str, str], Tracker], bool]:
    """What opens a run of a tracker (folder, name, id, project), and whether the run of an earlier process can go on
    there: TensorBoard's files are written anew instead. Raises UserError where its library is missing."""
    spec = importlib.util.find_spec(to)
    if spec is None or spec.origin is None:  # wandb leaves folders of its name behind, which Python takes for packages
        raise UserError(f"{to} is not installed", where="--to", hint=f"pip install 'potstill[{to}]'")
    runs = {"tensorboard": TensorBoardTracker, "wandb": WandbTracker, "trackio": TrackioTracker}
    return runs[to], to != "tensorboard"


class TensorBoardTracker:
    def __init__(self, folder: Path, name: str, id: str, project: str) -> None:
        from tensorboard.compat.proto.event_pb2 import SessionLog  # pyright: ignore
        from tensorboard.summary.writer.event_file_writer import EventFileWriter  # pyright: ignore[reportMissingImports]

        at = folder / "tensorboard"
        storage.remove(at)
        self.writer = EventFileWriter(str(at))
        # One that is looking at the files that were here forgets what it has read.
        self._add(0, session_log=SessionLog(status=SessionLog.START))

    def send(self, points: Sequence[Point]) -> None:
        from tensorboard.compat.proto.summary_pb2 import Summary  # pyright: ignore

        for point in points:
            values = [Summary.Value(tag=name, simple_value=value) for name, value in point.values.items()]
            self._add(point.step, summary=Summary(value=values))
        self.writer.flush()

    def _add(self, step: int, **what: object) -> None:
        from tensorboard.compat.proto.event_pb2 import Event  # pyright: ignore

        self.writer.add_event(Event(wall_time=time.time(), step=step, **what))

    def close(self) -> None:
        self.writer.close()


class TrackioTracker:
    def __init__(self, folder: Path, name: str, id: str, project: str) -> None:
        import trackio  # pyright: ignore[reportMissingImports]

        self.run = trackio.init(project=project, name=f"{name}-{id}", resume="allow")

    def send(self, points: Sequence[Point]) -> None:
        for point in points:
            self.run.log(dict(point.values), step=point.step)

    def close(self) -> None:
        self.run.finish()


class WandbTracker:
    def __init__(self, folder: Path, name: str, id: str, project: str) -> None:
        import wandb  # pyright: ignore[reportMissingImports]

        self.run = wandb.init(project=project, name=name, id=id, resume="allow", dir=str(folder))
        self.run.define_metric("step")
        self.run.define_metric("*", step_metric="step")

    def send(self, points: Sequence[Point]) -> None:
        for point in points:
            self.run.log({"step": point.step, **point.values})

    def close(self) -> None:
        import wandb  # pyright: ignore[reportMissingImports]

        self.run.finish()
        wandb.teardown()  # finish alone may come back before the file of an offline run is whole
