"""Checkpoints: a Hugging Face folder of every candidate step, and the engine's state of the newest.

    checkpoints/250/model.safetensors ...
    checkpoints/500/model.safetensors ... engine.safetensors      or engine/, of a student that is spread over processes

    with Checkpoints(folder, student, optimizer, beside=True) as checkpoints:
        for step in training.steps(...):
            checkpoints.save(step.step)     # copies weights and state, and returns
            checkpoints.check()             # raises what has gone wrong so far

With `beside` a checkpoint is a copy in the host's memory, taken between two steps and written by a thread beside those
that follow. One is written at a time: the next `save` waits for it. On the disk all is as if the loop had waited: a
folder appears whole or not at all, and the state of an older one goes only after that.
"""

from __future__ import annotations

import time
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from torch import Tensor

from potstill import files
from potstill.students import Student
from potstill.training.optimizer import Optimizer, restore_bytes, save_state, state
from potstill.training.sharding import spread, weights
from potstill.training.shards import restore_shards, save_shards
from potstill.training.team import agreed, first

ENGINE: Final = "engine.safetensors"  # of a student that is whole
SHARDS: Final = "engine"  # of one that is spread over processes


class Checkpoints:
    """Those of a training that goes on.

    folder   where they lie, a folder a step
    beside   whether a copy is written beside the next steps. What is spread over processes is always written between
             two steps: its parts make one folder, and the processes have to agree when it is whole
    seconds  for which the loop stood still, so far
    """

    def __init__(self, folder: Path, student: Student, optimizer: Optimizer, *, beside: bool) -> None:
        self.folder, self.seconds = folder, 0.0
        self._student, self._optimizer = student, optimizer
        self._pool = ThreadPoolExecutor(1, "checkpoint") if beside and first() and not spread(student) else None
        self._under_way: Future[None] | None = None

    def save(self, step: int) -> None:
        """The checkpoint of a step; returns when weights and state may change again.

        Raises what went wrong with the one before, as `check` does.
        """
        self.wait()
        began = time.monotonic()
        if self._pool is None:
            _save(self.folder, step, self._student, self._optimizer)
        else:
            copied = self._student.copied(), _copied(state(self._optimizer, parameters=self._student.adapted))
            self._under_way = self._pool.submit(_write, self.folder, step, self._student, *copied)
        self.seconds += time.monotonic() - began

    def check(self) -> None:
        """Raises what the writing of a checkpoint has raised, such as the UserError of a full disk; does not wait."""
        if self._under_way is not None and self._under_way.done():
            self.wait()

    def wait(self) -> None:
        """Until everything that was saved lies on the disk. Raises as `check` does."""
        under_way, self._under_way = self._under_way, None
        if under_way is not None:
            began = time.monotonic()
            under_way.result()
            self.seconds += time.monotonic() - began

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        """Waits for the one under way also where training fails: it is whole, and a resume begins there."""
        if self._pool is not None:
            self._pool.shutdown()
        if error is None:
            self.wait()


def saved(folder: Path, last: int | None = None) -> list[int]:
    """The steps that have a checkpoint, in their order; up to `last`, if it is given."""
    found = sorted(int(path.name) for path in folder.glob("*") if path.name.isdigit())
    return [step for step in found if last is None or step <= last]


def newest(folder: Path) -> int:
    """The newest checkpoint that training can go on from, 0 if there is none. Clears away what a crash has left."""
    if not folder.is_dir():
        return 0
    files.sweep(folder)
    for older in folder.iterdir():
        files.sweep(older)
    steps = [step for step in saved(folder) if any((folder / str(step) / name).exists() for name in (ENGINE, SHARDS))]
    found = max(steps, default=0)
    _forget(folder, [step for step in steps if step < found])  # a crash between saving the newest and this
    return found


def restore(checkpoint: Path, optimizer: Optimizer) -> None:
    """The engine's state of a checkpoint. Raises UserError where it is damaged or another model's."""
    if (checkpoint / SHARDS).exists():
        restore_shards(optimizer, checkpoint / SHARDS)
    else:
        restore_bytes(optimizer, files.read_bytes(checkpoint / ENGINE))


def cut(metrics: Path, step: int) -> None:
    """Rows of steps after the checkpoint will come again: keep those up to it. What is torn goes when it is appended
    to."""
    rows = list(files.whole_rows(metrics))
    kept = [row for row in rows if row["step"] <= step]
    if len(kept) < len(rows):
        files.write_jsonl(metrics, kept)


def _save(folder: Path, step: int, student: Student, optimizer: Optimizer) -> None:
    """Between two steps, by every process at once; the first one writes, but for the state of a student that is
    spread."""
    if not spread(student):
        if first():
            _write(folder, step, student, None, state(optimizer, parameters=student.adapted))
        return
    whole = weights(student)
    with files.folder(folder / str(step)) if first() else nullcontext() as inside:
        if inside is not None:
            student.save(inside, weights=whole)
        at = agreed(lambda: inside)
        assert at is not None
        save_shards(optimizer, at / SHARDS, parameters=student.adapted)
    if first():
        _forget(folder, [older for older in saved(folder) if older < step])


def _write(
    folder: Path, step: int, student: Student, weights: dict[str, Tensor] | None, engine: dict[str, Tensor]
) -> None:
    """A whole checkpoint; then the state of the older ones goes. weights: None for those of the student now."""
    with files.folder(folder / str(step)) as inside:
        student.save(inside, weights=weights)
        save_state(engine, inside / ENGINE)
    _forget(folder, [older for older in saved(folder) if older < step])


def _forget(folder: Path, steps: list[int]) -> None:
    for step in steps:
        for name in (ENGINE, SHARDS):
            files.remove(folder / str(step) / name)


def _copied(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.detach().to("cpu", copy=True) for name, value in tensors.items()}
