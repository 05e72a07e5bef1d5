"""Trackers: a run's metrics in TensorBoard, Weights & Biases or trackio, brought there from its files.

    track(run, "mine", "tensorboard")                # what there is now
    track(run, "mine", "wandb", follow=True)         # and what comes, until training ends

Training knows nothing of them: it writes `metrics.jsonl`, cuts it when it goes on from a checkpoint, and these read it.
What was brought is remembered in `tracked/<tracker>.jsonl` in the run's folder, so nothing is brought twice. Steps that
a resumed training makes again, to the bit, are the same points. Where they came out otherwise, the tracker's run is
begun anew, for no tracker can take a point back. Each library has one owner here and is an extra.
"""

from __future__ import annotations

import importlib.util
import time
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Final, Literal, Protocol, Self, get_args

from potstill import files, progress
from potstill.errors import UserError
from potstill.files import manifest
from potstill.trackers import points, tensorboard, trackio, wandb
from potstill.trackers.points import Point, Streams

Name = Literal["tensorboard", "wandb", "trackio"]
NAMES: Final[tuple[Name, ...]] = get_args(Name)
FOLDER: Final = "tracked"
EVERY: Final = 5.0  # seconds between two looks at files that grow


class Tracker(Protocol):
    """One run of a tracker, open. What is sent together comes in the order of its steps; step 0 may come last, because
    checkpoints may answer before the base does. Streams come in any order."""

    def send(self, points: Sequence[Point]) -> None: ...

    def close(self) -> None: ...


def track(run: Path, name: str, to: Name, *, project: str = "potstill", follow: bool = False) -> int:
    """Bring what a run measured to a tracker; returns the number of points that were new to it.

    name     the run's, as the tracker shows it
    project  where it shows it; TensorBoard has none
    follow   go on until the run's training is finished

    Raises UserError where the library is missing, where nothing was measured yet, and if another process does this.
    """
    folder, brought = run / FOLDER, 0
    lock = files.held(folder, f".{to}.lock", 0, f"another process brings this run to {to}")
    with lock, _Brought(run, name, to, project) as tracked:
        while True:
            ended = not follow or (run / "train" / manifest.MANIFEST).exists()  # before the last look, not after it
            found = points.read(run)
            if ended and not any(found.values()):
                raise UserError("nothing was measured yet", where=run, do="train first, or use --follow")
            brought += tracked.bring(found)
            if ended:
                return brought
            time.sleep(EVERY)


class _Brought:
    """A tracker's run and what it has been told. It is opened when there is something to tell."""

    def __init__(self, run: Path, name: str, to: Name, project: str) -> None:
        self.run, self.name, self.to, self.project = run, name, to, project
        self.open, self.remembers = _opener(to)
        self.path = run / FOLDER / f"{to}.jsonl"
        self.tracker: Tracker | None = None
        self.told: dict[str, dict[int, Point]] = {}  # stream -> step -> what it was told
        rows = list(files.whole_rows(self.path)) if self.remembers else []
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
            files.write_jsonl(self.path, [{"run": self.id}])

    def bring(self, found: Streams) -> int:
        """Tell the tracker what it does not know; the number of points that are new."""
        for stream, rows in found.items():
            told = self.told.get(stream, {})
            step = next((row.step for row in rows if _differ(stream, told.get(row.step, row), row)), None)
            if step is not None:
                said = (
                    f"{stream} of step {step} came out otherwise when it was made again: a new run of {self.to} begins"
                )
                progress.say(said, "yellow")
                self._anew()
                break
        new = {
            stream: [row for row in rows if row.step not in self.told.get(stream, {})] for stream, rows in found.items()
        }
        count = sum(map(len, new.values()))
        if count:
            if self.tracker is None:
                self.tracker = self.open(self.run / FOLDER, self.name, self.id, self.project)
            for stream, rows in new.items():
                self.tracker.send(rows)
                self.told.setdefault(stream, {}).update((row.step, row) for row in rows)
                self._remember(stream, rows)
        return count

    def _remember(self, stream: str, rows: list[Point]) -> None:
        if self.remembers:
            with files.Appender(self.path) as lines:
                lines.append({"stream": stream, "step": row.step, "values": dict(row.values)} for row in rows)

    def close(self) -> None:
        if self.tracker is not None:
            self.tracker.close()
            self.tracker = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, fault: BaseException | None, at: TracebackType | None) -> None:
        self.close()


def _differ(stream: str, told: Point, now: Point) -> bool:
    """Whether a tracker would have to take a point back. Time is never the same again; the first was true too."""
    return stream != "speed" and told != now


def _opener(to: Name) -> tuple[Callable[[Path, str, str, str], Tracker], bool]:
    """What opens a run of a tracker (folder, name, id, project), and whether the run of an earlier process can go on
    there: TensorBoard's files are written anew instead. Raises UserError where its library is missing."""
    spec = importlib.util.find_spec(to)
    if spec is None or spec.origin is None:  # wandb leaves folders of its name behind, which Python takes for packages
        raise UserError(f"{to} is not installed", where="--to", do=f"pip install 'potstill[{to}]'")
    runs = {"tensorboard": tensorboard.Run, "wandb": wandb.Run, "trackio": trackio.Run}
    return runs[to], to != "tensorboard"
