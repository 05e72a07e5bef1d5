"""Checkpoints: a Hugging Face folder of every candidate step, and the engine's state of the newest.

    checkpoints/250/model.safetensors ...
    checkpoints/500/model.safetensors ... engine.safetensors      or engine/, of a student that is spread over processes

    with Checkpoints(folder, student, optimizer, beside=True) as checkpoints:
        for step in training.steps(...):
            checkpoints.save(step.step)     # copies weights and state, and returns
            checkpoints.check()             # raises what has gone wrong so far

With `beside` a checkpoint is a copy in the host's memory, taken between two steps and written by a thread beside those
that follow. One is written at a time: the next `save` waits for it. On the disk all is as if the loop had waited: a
folder appears whole or not at all, and the state of an older one goes only after that. Whoever saves has flushed the
metrics of all steps before: a checkpoint whose metrics are not complete is not one to go on from.
"""

from __future__ import annotations

import time
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from torch import Tensor

from potstill import files, progress
from potstill.errors import UserError
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


def newest(folder: Path, metrics: Path) -> int:
    """The newest checkpoint that training can go on from, 0 if there is none. Clears away what a crash has left.

    Its metrics have to be complete: rows that a disk has lost come again only if their steps do.
    """
    if not folder.is_dir():
        return 0
    files.sweep(folder)
    for older in folder.iterdir():
        files.sweep(older)
    steps = [step for step in saved(folder) if any((folder / str(step) / name).exists() for name in (ENGINE, SHARDS))]
    known = len(_rows(metrics)) if steps else 0
    found = max((step for step in steps if step <= known), default=0)
    if steps and found < steps[-1]:
        lost = f"{metrics.name} has no row for step {known + 1}, though there is a checkpoint of step {steps[-1]}"
        progress.say(f"{lost}: training continues from step {found}", "yellow")
    _forget(folder, [step for step in steps if step < found])  # a crash between saving the newest and this
    if found:
        _check(folder, found)
    return found


def forget_digests(folder: Path) -> None:
    """When training has ended: from now on the manifest of its stage holds the digests."""
    files.remove(_digests(folder))


def restore(checkpoint: Path, optimizer: Optimizer) -> None:
    """The engine's state of a checkpoint. Raises UserError where it is damaged or another model's."""
    if (checkpoint / SHARDS).exists():
        restore_shards(optimizer, checkpoint / SHARDS)
    else:
        restore_bytes(optimizer, files.read_bytes(checkpoint / ENGINE))


def cut(metrics: Path, step: int) -> None:
    """Keep the rows up to the checkpoint: those of later steps will come again, whole or torn."""
    if not metrics.exists():
        return
    kept = _rows(metrics)[:step]
    if b"".join(map(files.line, kept)) != files.read_bytes(metrics):
        files.write_jsonl(metrics, kept)


def _rows(metrics: Path) -> list[dict[str, Any]]:
    """The rows of the steps 1, 2, 3, ..., up to the first one that is missing or is not whole."""
    rows: list[dict[str, Any]] = []
    try:
        for row in files.whole_rows(metrics):
            if row.get("step") != len(rows) + 1:
                break
            rows.append(row)
    except UserError:  # not a line of JSON: it ends here, and who asks says so
        pass
    return rows


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
            _note(folder, step, inside)  # the state has digests of its own
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
        _note(folder, step, inside)
    _forget(folder, [older for older in saved(folder) if older < step])


def _note(folder: Path, step: int, inside: Path) -> None:
    """Write down the digests of a checkpoint that lies in `inside` and is not in its place yet. They lie beside the
    checkpoints, until training ends."""
    digests = {path.name: files.digest(path) for path in sorted(inside.iterdir()) if path.is_file()}
    files.write_json(_digests(folder) / f"{step}.json", digests)


def _check(folder: Path, step: int) -> None:
    """Raises UserError where a checkpoint is not what was written. One of an older version has no digests."""
    noted = _digests(folder) / f"{step}.json"
    for name, digest in (files.read_json(noted) if noted.exists() else {}).items():
        path = folder / str(step) / name
        if not path.is_file() or files.digest(path) != digest:
            raise UserError(
                "the checkpoint is not what training has written",
                where=path,
                found="other bytes" if path.is_file() else "no such file",
                do=f"restore it, or remove {path.parent}: training then continues from an older one, or from the start",
            )


def _digests(folder: Path) -> Path:
    return folder.with_name("digests")


def _forget(folder: Path, steps: list[int]) -> None:
    for step in steps:
        for name in (ENGINE, SHARDS):
            files.remove(folder / str(step) / name)


def _copied(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.detach().to("cpu", copy=True) for name, value in tensors.items()}
