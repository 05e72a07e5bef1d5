"""Sends a run's configuration and metrics to TensorBoard, Weights & Biases or trackio, during training or afterwards.

    track(run_dir, recipe, "tensorboard")                # the points so far
    track(run_dir, recipe, "wandb", follow=True)         # also the later points, until the run ends

No stage uses trackers. `train` writes `metrics.jsonl` and `speed.jsonl`, and `evaluate` and `test` write the scores of
checkpoints. A tracker receives every point of these files once, in the order of the file, and nothing is read back from
it. A point has the time at which the run made it, and not the time at which it is sent.

`tracked/<tracker>.jsonl` in the run's folder lists the points that were sent, so a later process sends only new points. If
a resumed training repeats steps, their points are not sent again. If the training, or the evaluation of a step, was run
again with other inputs, a new run of the tracker begins. A training that is made longer continues its run.

    >>> flat_numbers("train", {"step": 7, "loss": 0.5, "losses": {"few-shot-answer": 0.25}, "utilisation": None})
    {'train/loss': 0.5, 'train/losses/few-shot-answer': 0.25}
"""

from __future__ import annotations

import importlib.util
import json
import math
import time
import uuid
from collections.abc import Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple, Protocol, get_args

import numpy as np

from potstill import progress, storage
from potstill.errors import UserError
from potstill.evaluation import checkpoint as checkpoints
from potstill.evaluation import choice as choices
from potstill.evaluation import intervals
from potstill.recipe import Recipe, flatten_values
from potstill.records import BASE, Checkpoint
from potstill.report.run_files import RunFiles, compare_answers
from potstill.storage import manifest, run_folder

TrackerName = Literal["tensorboard", "wandb", "trackio"]
TRACKERS: Final[tuple[TrackerName, ...]] = get_args(TrackerName)
TRACKER_STATE: Final = "tracked"  # folder in the run's folder
STREAMS: Final = {"train": "metrics.jsonl", "speed": "speed.jsonl"}
POLL_INTERVAL: Final = 5.0  # seconds between two reads of the growing files

Streams = dict[str, list["Point"]]


@dataclass(frozen=True, slots=True)
class Point:
    """Numbers of one step by name, such as `train/loss`, `speed/seconds` and `validation/<format>.<decoding>/<set>`.

    time  when the run made them, in seconds since 1970; None if the run did not record it
    """

    step: int
    values: Mapping[str, float]
    time: float | None = None


@dataclass(frozen=True, slots=True)
class TrackerRun:
    """A run as a tracker shows it.

    folder   folder for files of the tracker in the run's folder
    name     name of the run
    id       id of the run in the tracker. A folder has several ids if its stages were run with different inputs
    project  project of the run; TensorBoard has no projects
    config   the configuration by `read_config`
    start    when the run started, in seconds since 1970; None if its log does not say
    """

    folder: Path
    name: str
    id: str
    project: str
    config: Mapping[str, Any]
    start: float | None = None


class Tracker(Protocol):
    """An open run of a tracker. The points of a call are in the order of their steps. Step 0 of `validation` and of `test`
    may come after later steps, because the base may be evaluated after other checkpoints."""

    def send(self, points: Sequence[Point]) -> None: ...

    def close(self) -> None: ...


def track(run_dir: Path, recipe: Recipe, to: TrackerName, *, project: str = "potstill", follow: bool = False) -> int:
    """Send the configuration and the points of a run to a tracker. Returns the number of points sent.

    recipe   recipe of the run; its name is the name of the run in the tracker
    project  project of the run in the tracker; TensorBoard has no projects
    follow   continue until the run is tested, or until it is trained and no process works on it

    Raises UserError if the library is missing, if the run has no metrics yet, and if another process sends this run.
    """
    sent = 0
    lock = storage.hold_lock(run_dir / TRACKER_STATE, f".{to}.lock", 0, f"another process is sending this run to {to}")
    with lock, closing(_TrackerSession(run_dir, recipe, to, project)) as session:
        while True:
            finished = not follow or _is_finished(run_dir)  # read before the points
            streams = read_points(run_dir, recipe)
            if finished and not any(streams.values()):
                what, hint = "the run has no metrics yet", "train first, or use --follow"
                raise UserError(what, code="E-track-no-points", where=run_dir, hint=hint)
            sent += session.send_new(streams)
            if finished:
                return sent
            time.sleep(POLL_INTERVAL)


def _is_finished(run_dir: Path) -> bool:
    trained, tested = ((run_dir / stage / manifest.MANIFEST_FILE).exists() for stage in ("train", "test"))
    return tested or (trained and not run_folder.working_processes(run_dir))


# What is sent


def read_config(run_dir: Path, recipe: Recipe) -> dict[str, Any]:
    """The configuration of a run as nested plain values: the recipe with all defaults, and in `run` the facts of the run.

    The facts are those that the run has recorded so far: `potstill` (the version), `started`, `base` and `teacher`, the
    `fingerprints` (SHA-256 of the models, and commits of models from the hub) and `selected` (the checkpoint).
    """
    log = storage.read_complete_lines(run_dir / "log.jsonl")
    starts = [row for row in log if row["event"] == "start"]
    facts: dict[str, Any] = {"base": recipe.student.model or "random weights", "teacher": recipe.teacher_label}
    if starts:
        facts |= {"potstill": starts[-1]["versions"]["potstill"], "started": starts[0]["time"]}
    begun = [manifest.read_begun(run_dir / stage) for stage in ("sample", "train", "test/0")]
    inputs = {name: digest for identity in begun if identity for name, digest in identity.inputs.items()}
    facts["fingerprints"] = {
        name.replace(" (commit)", "_commit").replace(".", "_"): digest
        for name, digest in sorted(inputs.items())
        if name.startswith(("student.", "teacher.", "teachers."))
    }
    if (run_dir / "select" / checkpoints.CHOICE_FILE).exists():
        facts["selected"] = checkpoints.read_choice(run_dir).checkpoint.name
    return {**recipe.model_dump(mode="json"), "run": facts}


def read_points(run_dir: Path, recipe: Recipe) -> Streams:
    """The points of a run by stream, in the order of their files.

    train, speed    one point for each step
    validation      one point for each evaluated checkpoint. Interpolated checkpoints are left out, because they have the
                    same steps
    test            one point for the base, and one for the selected checkpoint
    test-on-policy  one point for the result of on-policy distillation, at the step of the selected checkpoint

    Another process may be writing the files: an incomplete last line is skipped. A stage writes the time of a point first,
    so it is read last.
    """
    rows = {stream: list(storage.read_complete_lines(run_dir / "train" / file)) for stream, file in STREAMS.items()}
    times = {row["step"]: row.get("time") for row in rows["speed"]}
    streams: Streams = {
        stream: [Point(row["step"], flat_numbers(stream, row), times.get(row["step"])) for row in found]
        for stream, found in rows.items()
    }
    files, scores = RunFiles(run_dir, recipe), dict[_Scored, dict[str, float]]()
    for scored in _list_scored(run_dir, recipe):
        if scored.stream == "validation":
            scores[scored] = _read_validation(run_dir, scored.checkpoint)
        else:
            scores[scored] = _read_test(files, scored)
    evaluated = _read_evaluation_times(run_dir)
    streams["validation"] = []
    for scored, values in scores.items():
        point = Point(scored.checkpoint.step, values, evaluated.get((scored.stage, scored.checkpoint)))
        streams.setdefault(scored.stream, []).append(point)
    return streams


def flat_numbers(stream: str, row: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of a row by name, without its step and time."""
    numbers: dict[str, float] = {}
    for name, value in row.items():
        if isinstance(value, Mapping):
            numbers |= {f"{stream}/{name}/{key}": float(inner) for key, inner in value.items() if inner is not None}
        elif name not in ("step", "time") and isinstance(value, (int, float)) and not isinstance(value, bool):
            numbers[f"{stream}/{name}"] = float(value)
    return numbers


class _Scored(NamedTuple):
    """A checkpoint whose scores in a stage's folder are sent."""

    stream: str
    stage: str
    checkpoint: Checkpoint


def _list_scored(run_dir: Path, recipe: Recipe) -> list[_Scored]:
    """The checkpoints with scores on validation, and those whose test is finished; one checkpoint per stream and step."""
    scored = [
        _Scored("validation", "evaluate", checkpoint)
        for checkpoint in checkpoints.list_answered_checkpoints(run_dir / "evaluate")
        if checkpoint.is_plain and (run_dir / "evaluate" / checkpoint.name / checkpoints.SCORES_FILE).exists()
    ]
    tested = choices.list_checkpoints_to_test(run_dir, recipe) if (run_dir / "test").is_dir() else []
    for checkpoint in tested:
        if (run_dir / "test" / checkpoint.name / manifest.MANIFEST_FILE).exists():
            scored.append(_Scored("test-on-policy" if checkpoint.on_policy_steps else "test", "test", checkpoint))
    return scored


def _read_validation(run_dir: Path, checkpoint: Checkpoint) -> dict[str, float]:
    scores = checkpoints.read_scores(run_dir / "evaluate", checkpoint)
    return {f"validation/{score.format}.{score.decoding}/{score.set}": score.accuracy for score in scores}


def _read_evaluation_times(run_dir: Path) -> dict[tuple[str, Checkpoint], float]:
    """(stage, checkpoint) -> when the checkpoint had answered all questions, in seconds since 1970."""
    log = storage.read_complete_lines(run_dir / "log.jsonl")
    evaluated = (row for row in log if row["event"] == "evaluated")
    return {(row["stage"], Checkpoint.parse(row["step"])): _seconds_since_1970(row["time"]) for row in evaluated}


def _seconds_since_1970(time: str) -> float:
    return datetime.fromisoformat(time).timestamp()


def _read_test(files: RunFiles, scored: _Scored) -> dict[str, float]:
    """The accuracies on test, the bits per byte, and for all but the base the changes, each with its 95 % interval.

    The numbers are those of the report: the changes are paired over questions or texts.
    """
    stream, _, checkpoint = scored
    folder, values = files.run_dir / "test", dict[str, float]()
    for score in checkpoints.read_scores(folder, checkpoint):
        name = f"{stream}/{score.format}.{score.decoding}/{score.set}"
        values |= _with_interval(name, score.accuracy, score.low, score.high)
        if checkpoint != BASE:
            base, own = (files.test_answers(row, score.format, score.decoding) for row in (BASE, checkpoint))
            change = compare_answers(base, own, score.set).difference
            values |= _with_interval(f"{name}/change", change.value, change.low, change.high)
    base_texts, texts = (checkpoints.read_text_scores(folder, row) for row in (BASE, checkpoint))
    for before, after in zip(base_texts, texts, strict=True):
        name = f"{stream}/bits-per-byte/{after.name}"
        values[name] = after.bits_per_byte
        if checkpoint != BASE:
            assert before.bytes == after.bytes, f"{before.name}: the checkpoints read different texts"
            change = intervals.ratio_bootstrap(after.bits, before.bits, after.bytes)
            values |= _with_interval(f"{name}/change", *change)
    return values


def _with_interval(name: str, value: float, low: float, high: float) -> dict[str, float]:
    """A value and its bounds by name. The bounds of a single text are NaN and left out."""
    named = {name: value, f"{name}/low": low, f"{name}/high": high}
    return {key: number for key, number in named.items() if not math.isnan(number)}


# Sending


class _TrackerSession:
    """A run of a tracker, and the points that were sent to it. The tracker is opened when the first point is sent."""

    def __init__(self, run_dir: Path, recipe: Recipe, to: TrackerName, project: str) -> None:
        check_installed(to)
        self.run_dir, self.recipe, self.to, self.project = run_dir, recipe, to, project
        self.tracker_class = TRACKER_CLASSES[to]
        self.path = run_dir / TRACKER_STATE / f"{to}.jsonl"
        self.tracker: Tracker | None = None
        self.run_id = ""
        self.sent: set[tuple[str, int]] = set()  # (stream, step)
        self.identities: dict[str, str] = {}  # `train`, `validation 500`: digest of its inputs when last read
        self.config: dict[str, Any] = {}
        self.warned = False
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
        before = len(self.sent)
        self._check_config()
        for stream, points in streams.items():
            new = [point for point in points if (stream, point.step) not in self.sent]
            if new:
                self._warn_without_time(stream, new)
                if self.tracker is None:
                    self.tracker = self.tracker_class(self._describe_run())
                self.tracker.send(new)
                self.sent.update((stream, point.step) for point in new)
                self._remember(
                    {"stream": stream, "step": point.step, "time": point.time, "values": dict(point.values)}
                    for point in new
                )
        return len(self.sent) - before

    def _describe_run(self) -> TrackerRun:
        started, folder = self.config["run"].get("started"), self.run_dir / TRACKER_STATE
        start = None if started is None else _seconds_since_1970(started)
        return TrackerRun(folder, self.recipe.name, self.run_id, self.project, self.config, start)

    def _check_config(self) -> None:
        """Close the tracker if the run has recorded new facts, such as the selected checkpoint: it receives the configuration
        when it is opened. A tracker that cannot resume then receives all points again."""
        config = read_config(self.run_dir, self.recipe)
        if config != self.config:
            self.config = config
            self.close()
            if not self.tracker_class.resumes:
                self.sent.clear()

    def _warn_without_time(self, stream: str, points: Sequence[Point]) -> None:
        if not self.warned and any(point.time is None for point in points):
            text = f"the run did not record the time of some points ({stream}): they have the time of sending"
            progress.print_line(text, "yellow")
            self.warned = True

    def _check_identities(self) -> None:
        """Start a new run of the tracker if the training, or the evaluation of a step, was run again with other inputs."""
        folders = {"train": self.run_dir / "train"}
        for stream, stage, checkpoint in _list_scored(self.run_dir, self.recipe):
            folders[f"{stream} {checkpoint.step}"] = self.run_dir / stage / checkpoint.name
        paths = {name: folder / manifest.BEGUN_FILE for name, folder in folders.items()}
        now = {name: storage.file_digest(path) for name, path in paths.items() if path.exists()}
        changed = [name for name in now if self.identities.get(name, now[name]) != now[name]]
        if changed:
            text = f"{changed[0]} was run again with other inputs: a new {self.to} run begins"
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
    """Event files in the run's folder, so that `tensorboard --logdir runs` shows every run. The configuration is a table in
    the tab TEXT, and the columns of the tab HPARAMS.

    Every process removes the earlier files and writes all points again, because events cannot be removed from a file, and
    a step in two files would be shown twice.
    """

    resumes = False

    def __init__(self, run: TrackerRun) -> None:
        from tensorboard.compat.proto.event_pb2 import SessionLog  # pyright: ignore
        from tensorboard.plugins.hparams.summary_v2 import hparams_pb  # pyright: ignore  # `api` needs tensorflow
        from tensorboard.plugins.text.summary_v2 import text_pb  # pyright: ignore[reportMissingImports]
        from tensorboard.summary.writer.event_file_writer import EventFileWriter  # pyright: ignore[reportMissingImports]

        path = run.folder / "tensorboard"
        storage.remove(path)
        self.writer = EventFileWriter(str(path))
        # This event makes a running TensorBoard drop the points of the removed files.
        self._add(0, run.start, session_log=SessionLog(status=SessionLog.START))
        config = {key: value for key, value in flatten_values(run.config).items() if value is not None}
        cells = [["key", "value"], *([key, _as_code(value)] for key, value in config.items())]
        self._add(0, run.start, summary=text_pb("configuration", np.array(cells, dtype=object)))
        plain = {key: json.dumps(value) if isinstance(value, (list, dict)) else value for key, value in config.items()}
        self._add(0, run.start, summary=hparams_pb(plain, start_time_secs=run.start))

    def send(self, points: Sequence[Point]) -> None:
        from tensorboard.compat.proto.summary_pb2 import Summary  # pyright: ignore

        for point in points:
            values = [Summary.Value(tag=name, simple_value=value) for name, value in point.values.items()]
            self._add(point.step, point.time, summary=Summary(value=values))
        self.writer.flush()

    def _add(self, step: int, time_made: float | None, **content: object) -> None:
        from tensorboard.compat.proto.event_pb2 import Event  # pyright: ignore

        self.writer.add_event(Event(wall_time=time.time() if time_made is None else time_made, step=step, **content))

    def close(self) -> None:
        self.writer.close()


def _as_code(value: object) -> str:
    """A plain value as JSON in a Markdown code span."""
    text = json.dumps(value, ensure_ascii=False)
    fence = "``" if "`" in text else "`"
    return f"{fence}{text}{fence}"


class TrackioTracker:
    """A run in trackio's data folder (TRACKIO_DIR), which `trackio show` reads.

    trackio gives every row the time of sending and has no way to change it. So each row also has `run/seconds`, the seconds
    since the run's start, which trackio offers as an x axis.
    """

    resumes = True

    def __init__(self, run: TrackerRun) -> None:
        import trackio  # pyright: ignore[reportMissingImports]

        self.start, name = run.start, f"{run.name}-{run.id}"
        self.run = trackio.init(project=run.project, name=name, resume="allow", config=dict(run.config))

    def send(self, points: Sequence[Point]) -> None:
        for point in points:
            values = dict(point.values)
            if self.start is not None and point.time is not None:
                values["run/seconds"] = round(point.time - self.start, 3)
            self.run.log(values, step=point.step)

    def close(self) -> None:
        self.run.finish()


class WandbTracker:
    """A run of Weights & Biases, which later processes continue. WANDB_MODE=offline writes it into the run's folder.

    wandb's own steps can only grow, but validation points are sent after training. So `step` is a logged value, and it
    is the x axis of all other values. `_timestamp` is wandb's wall time.
    """

    resumes = True

    def __init__(self, run: TrackerRun) -> None:
        import wandb  # pyright: ignore[reportMissingImports]

        self.run = wandb.init(project=run.project, name=run.name, id=run.id, resume="allow", dir=str(run.folder))
        self.run.config.update(dict(run.config), allow_val_change=True)  # unlike `init`, also in a continued run
        self.run.define_metric("step")
        self.run.define_metric("*", step_metric="step")

    def send(self, points: Sequence[Point]) -> None:
        for point in points:
            made = {} if point.time is None else {"_timestamp": point.time}
            self.run.log({"step": point.step, **point.values, **made})

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
