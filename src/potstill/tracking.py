"""Sends a run's metrics to TensorBoard, Weights & Biases or trackio, during training or afterwards.

    track(run_dir, "mine", "tensorboard")                # the points so far
    track(run_dir, "mine", "wandb", follow=True)         # also the later points, until training ends

Training does not use trackers. It writes `metrics.jsonl` and `speed.jsonl`, and `evaluate` writes the scores of every
checkpoint. A tracker receives every point of these files once, in the order of the file, and nothing is read back from
it. `tracked/<tracker>.jsonl` in the run's folder lists the points that were sent, so a later process sends only new
points. If a resumed training repeats steps, their points are not sent again. If the stage `train` or `evaluate` was run
again with other inputs, a new run of the tracker begins.

    >>> flat_numbers("train", {"step": 7, "loss": 0.5, "losses": {"few-shot-answer": 0.25}, "utilisation": None})
    {'train/loss': 0.5, 'train/losses/few-shot-answer': 0.25}
"""

from __future__ import annotations

import importlib.util
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal, Protocol, get_args

from potstill import progress, storage
from potstill.errors import UserError
from potstill.evaluation import checkpoint as checkpoints
from potstill.storage import manifest

TrackerName = Literal["tensorboard", "wandb", "trackio"]
TRACKERS: Final[tuple[TrackerName, ...]] = get_args(TrackerName)
TRACKER_STATE: Final = "tracked"  # folder in the run's folder
STREAMS: Final = {"train": "metrics.jsonl", "speed": "speed.jsonl"}
POLL_INTERVAL: Final = 5.0  # seconds between two reads of the growing files

Streams = dict[str, list["Point"]]


@dataclass(frozen=True, slots=True)
class Point:
    """Numbers of one step by name: `train/loss`, `speed/seconds`, `validation/<format>.<decoding>/<set>`."""

    step: int
    values: Mapping[str, float]


class Tracker(Protocol):
    """An open run of a tracker. The points of a call are in the order of their steps. Step 0 of `validation` may come
    after later steps, because the base may be evaluated after other checkpoints."""

    def send(self, points: Sequence[Point]) -> None: ...

    def close(self) -> None: ...


def track(run_dir: Path, name: str, to: TrackerName, *, project: str = "potstill", follow: bool = False) -> int:
    """Send the metrics of a run to a tracker. Returns the number of points sent.

    name     name of the run in the tracker
    project  project of the run in the tracker; TensorBoard has no projects
    follow   continue until the run's training is finished

    Raises UserError if the library is missing, if the run has no metrics yet, and if another process sends this run.
    """
    sent = 0
    lock = storage.hold_lock(run_dir / TRACKER_STATE, f".{to}.lock", 0, f"another process is sending this run to {to}")
    with lock, closing(_TrackerSession(run_dir, name, to, project)) as session:
        while True:
            finished = not follow or (run_dir / "train" / manifest.MANIFEST_FILE).exists()  # read before the points
            streams = read_points(run_dir)
            if finished and not any(streams.values()):
                what, hint = "the run has no metrics yet", "train first, or use --follow"
                raise UserError(what, code="E-track-no-points", where=run_dir, hint=hint)
            sent += session.send_new(streams)
            if finished:
                return sent
            time.sleep(POLL_INTERVAL)


def read_points(run_dir: Path) -> Streams:
    """The points of a run by stream, in the order of their files. `train` and `speed` have one point per step,
    `validation` has one per evaluated checkpoint. Another process may be writing the files: an incomplete last line is
    skipped."""
    streams: Streams = {}
    for stream, file in STREAMS.items():
        rows = storage.read_complete_lines(run_dir / "train" / file)
        streams[stream] = [Point(row["step"], flat_numbers(stream, row)) for row in rows]
    return {**streams, "validation": list(_iter_validation(run_dir / "evaluate"))}


def flat_numbers(stream: str, row: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of a row by name, without its step."""
    numbers: dict[str, float] = {}
    for name, value in row.items():
        if isinstance(value, Mapping):
            numbers |= {f"{stream}/{name}/{key}": float(inner) for key, inner in value.items() if inner is not None}
        elif name != "step" and isinstance(value, (int, float)) and not isinstance(value, bool):
            numbers[f"{stream}/{name}"] = float(value)
    return numbers


def _iter_validation(folder: Path) -> Iterator[Point]:
    """The accuracies of the evaluated checkpoints, one point per step. Interpolated checkpoints are left out, because they
    have the same steps."""
    for checkpoint in checkpoints.list_answered_checkpoints(folder):
        if checkpoint.is_plain and (folder / checkpoint.name / checkpoints.SCORES_FILE).exists():
            scores = checkpoints.read_scores(folder, checkpoint)
            names = {f"validation/{score.format}.{score.decoding}/{score.set}": score.accuracy for score in scores}
            yield Point(checkpoint.step, names)


class _TrackerSession:
    """A run of a tracker, and the points that were sent to it. The tracker is opened when the first point is sent."""

    def __init__(self, run_dir: Path, name: str, to: TrackerName, project: str) -> None:
        check_installed(to)
        self.run_dir, self.name, self.to, self.project = run_dir, name, to, project
        self.tracker_class = TRACKER_CLASSES[to]
        self.path = run_dir / TRACKER_STATE / f"{to}.jsonl"
        self.tracker: Tracker | None = None
        self.run_id = ""
        self.sent: set[tuple[str, int]] = set()  # (stream, step)
        self.identities: dict[str, str] = {}  # by stage, the digest of its inputs when they were last read
        for row in storage.read_complete_lines(self.path) if self.tracker_class.resumes else ():
            self.run_id = row.get("run", self.run_id)
            self.identities |= row.get("identities", {})
            if "stream" in row:
                self.sent.add((row["stream"], row["step"]))
        if not self.run_id:
            self._start_run()

    def _start_run(self) -> None:
        self.close()
        self.run_id, self.sent, self.identities = uuid.uuid4().hex[:8], set(), {}
        if self.tracker_class.resumes:
            storage.write_jsonl(self.path, [{"run": self.run_id}])

    def send_new(self, streams: Streams) -> int:
        """Send the points that the tracker does not have, and return their number."""
        self._check_identities()
        count = 0
        for stream, points in streams.items():
            new = [point for point in points if (stream, point.step) not in self.sent]
            if new:
                if self.tracker is None:
                    folder = self.run_dir / TRACKER_STATE
                    self.tracker = self.tracker_class(folder, self.name, self.run_id, self.project)
                self.tracker.send(new)
                self.sent.update((stream, point.step) for point in new)
                self._remember({"stream": stream, "step": point.step, "values": dict(point.values)} for point in new)
                count += len(new)
        return count

    def _check_identities(self) -> None:
        """Start a new run of the tracker if a stage was run again with other inputs."""
        paths = {stage: self.run_dir / stage / manifest.BEGUN_FILE for stage in ("train", "evaluate")}
        now = {stage: storage.file_digest(path) for stage, path in paths.items() if path.exists()}
        changed = [stage for stage in now if self.identities.get(stage, now[stage]) != now[stage]]
        if changed:
            text = f"the stage {changed[0]} was run again with other inputs: a new {self.to} run begins"
            progress.print_line(text, "yellow")
            self._start_run()
        if now.items() - self.identities.items():
            self.identities |= now
            self._remember([{"identities": now}])

    def _remember(self, rows: Iterable[Mapping[str, Any]]) -> None:
        if self.tracker_class.resumes:
            with storage.Appender(self.path) as file:
                file.append(rows)

    def close(self) -> None:
        if self.tracker is not None:
            self.tracker.close()
            self.tracker = None


class TensorBoardTracker:
    """Event files in the run's folder, so that `tensorboard --logdir runs` shows every run.

    Every process removes the earlier files and writes all points again, because events cannot be removed from a file, and
    a step in two files would be shown twice.
    """

    resumes = False

    def __init__(self, folder: Path, name: str, run_id: str, project: str) -> None:
        from tensorboard.compat.proto.event_pb2 import SessionLog  # pyright: ignore
        from tensorboard.summary.writer.event_file_writer import EventFileWriter  # pyright: ignore[reportMissingImports]

        path = folder / "tensorboard"
        storage.remove(path)
        self.writer = EventFileWriter(str(path))
        # This event makes a running TensorBoard drop the points of the removed files.
        self._add(0, session_log=SessionLog(status=SessionLog.START))

    def send(self, points: Sequence[Point]) -> None:
        from tensorboard.compat.proto.summary_pb2 import Summary  # pyright: ignore

        for point in points:
            values = [Summary.Value(tag=name, simple_value=value) for name, value in point.values.items()]
            self._add(point.step, summary=Summary(value=values))
        self.writer.flush()

    def _add(self, step: int, **content: object) -> None:
        from tensorboard.compat.proto.event_pb2 import Event  # pyright: ignore

        self.writer.add_event(Event(wall_time=time.time(), step=step, **content))

    def close(self) -> None:
        self.writer.close()


class TrackioTracker:
    """A run in trackio's data folder (TRACKIO_DIR), which `trackio show` reads."""

    resumes = True

    def __init__(self, folder: Path, name: str, run_id: str, project: str) -> None:
        import trackio  # pyright: ignore[reportMissingImports]

        self.run = trackio.init(project=project, name=f"{name}-{run_id}", resume="allow")

    def send(self, points: Sequence[Point]) -> None:
        for point in points:
            self.run.log(dict(point.values), step=point.step)

    def close(self) -> None:
        self.run.finish()


class WandbTracker:
    """A run of Weights & Biases, which later processes continue. WANDB_MODE=offline writes it into the run's folder.

    wandb's own steps can only grow, but validation points are sent after training. So `step` is a logged value, and it
    is the x axis of all other values.
    """

    resumes = True

    def __init__(self, folder: Path, name: str, run_id: str, project: str) -> None:
        import wandb  # pyright: ignore[reportMissingImports]

        self.run = wandb.init(project=project, name=name, id=run_id, resume="allow", dir=str(folder))
        self.run.define_metric("step")
        self.run.define_metric("*", step_metric="step")

    def send(self, points: Sequence[Point]) -> None:
        for point in points:
            self.run.log({"step": point.step, **point.values})

    def close(self) -> None:
        import wandb  # pyright: ignore[reportMissingImports]

        self.run.finish()
        wandb.teardown()  # completes the file of an offline run


TRACKER_CLASSES: Final[dict[TrackerName, type[TensorBoardTracker] | type[TrackioTracker] | type[WandbTracker]]] = {
    "tensorboard": TensorBoardTracker,
    "trackio": TrackioTracker,
    "wandb": WandbTracker,
}


def check_installed(to: TrackerName) -> None:
    """Raise UserError if the library of a tracker is not installed."""
    spec = importlib.util.find_spec(to)
    if spec is None or spec.origin is None:  # wandb leaves folders named wandb, which Python imports as packages
        hint = f"pip install 'potstill[{to}]'"
        raise UserError(f"{to} is not installed", code="E-track-not-installed", where="--to", hint=hint)
