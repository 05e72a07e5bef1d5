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

from potstill import progress, storage
from potstill.errors import UserError
from potstill.models import Student
from potstill.training.distributed import (
    broadcast_from_main,
    full_state_dict,
    is_main_process,
    is_sharded,
    restore_optimizer_shards,
    save_optimizer_shards,
)
from potstill.training.optimizer import Optimizer, optimizer_state, restore_optimizer_bytes, save_optimizer_state

OPTIMIZER_FILE: Final = "engine.safetensors"  # of a student that is whole
OPTIMIZER_FOLDER: Final = "engine"  # of one that is spread over processes


class CheckpointWriter:
    """Those of a training that goes on.

    folder   where they lie, a folder a step
    beside   whether a copy is written beside the next steps. What is spread over processes is always written between
             two steps: its parts make one folder, and the processes have to agree when it is whole
    seconds  for which the loop stood still, so far
    """

    def __init__(self, folder: Path, student: Student, optimizer: Optimizer, *, beside: bool) -> None:
        self.folder, self.seconds = folder, 0.0
        self._student, self._optimizer = student, optimizer
        self._pool = (
            ThreadPoolExecutor(1, "checkpoint") if beside and is_main_process() and not is_sharded(student) else None
        )
        self._under_way: Future[None] | None = None

    def save(self, step: int) -> None:
        """The checkpoint of a step; returns when weights and state may change again.

        Raises what went wrong with the one before, as `check` does.
        """
        self.wait()
        began = time.monotonic()
        if self._pool is None:
            _save_in_place(self.folder, step, self._student, self._optimizer)
        else:
            copied = (
                self._student.copied(),
                _copy_to_cpu(optimizer_state(self._optimizer, parameters=self._student.adapted)),
            )
            self._under_way = self._pool.submit(_write_checkpoint, self.folder, step, self._student, *copied)
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


def list_saved_steps(folder: Path, last: int | None = None) -> list[int]:
    """The steps that have a checkpoint, in their order; up to `last`, if it is given."""
    found = sorted(int(path.name) for path in folder.glob("*") if path.name.isdigit())
    return [step for step in found if last is None or step <= last]


def find_newest_checkpoint(folder: Path, metrics: Path) -> int:
    """The newest checkpoint that training can go on from, 0 if there is none. Clears away what a crash has left.

    Its metrics have to be complete: rows that a disk has lost come again only if their steps do.
    """
    if not folder.is_dir():
        return 0
    storage.delete_partial_files(folder)
    for older in folder.iterdir():
        storage.delete_partial_files(older)
    steps = [
        step
        for step in list_saved_steps(folder)
        if any((folder / str(step) / name).exists() for name in (OPTIMIZER_FILE, OPTIMIZER_FOLDER))
    ]
    known = len(_read_metric_rows(metrics)) if steps else 0
    found = max((step for step in steps if step <= known), default=0)
    if steps and found < steps[-1]:
        lost = f"{metrics.name} has no row for step {known + 1}, though there is a checkpoint of step {steps[-1]}"
        progress.print_line(f"{lost}: training continues from step {found}", "yellow")
    _remove_optimizer_states(
        folder, [step for step in steps if step < found]
    )  # a crash between saving the newest and this
    if found:
        _check_digests(folder, found)
    return found


def remove_digests(folder: Path) -> None:
    """When training has ended: from now on the manifest of its stage holds the digests."""
    storage.remove(_digests_folder(folder))


def restore_checkpoint(checkpoint: Path, optimizer: Optimizer) -> None:
    """The engine's state of a checkpoint. Raises UserError where it is damaged or another model's."""
    if (checkpoint / OPTIMIZER_FOLDER).exists():
        restore_optimizer_shards(optimizer, checkpoint / OPTIMIZER_FOLDER)
    else:
        restore_optimizer_bytes(optimizer, storage.read_bytes(checkpoint / OPTIMIZER_FILE))


def truncate_metrics(metrics: Path, step: int) -> None:
    """Keep the rows up to the checkpoint: those of later steps will come again, whole or torn."""
    if not metrics.exists():
        return
    kept = _read_metric_rows(metrics)[:step]
    if b"".join(map(storage.encode_json_line, kept)) != storage.read_bytes(metrics):
        storage.write_jsonl(metrics, kept)


def _read_metric_rows(metrics: Path) -> list[dict[str, Any]]:
    """The rows of the steps 1, 2, 3, ..., up to the first one that is missing or is not whole."""
    rows: list[dict[str, Any]] = []
    try:
        for row in storage.read_complete_lines(metrics):
            if row.get("step") != len(rows) + 1:
                break
            rows.append(row)
    except UserError:  # not a line of JSON: it ends here, and who asks says so
        pass
    return rows


def _save_in_place(folder: Path, step: int, student: Student, optimizer: Optimizer) -> None:
    """Between two steps, by every process at once; the first one writes, but for the state of a student that is
    spread."""
    if not is_sharded(student):
        if is_main_process():
            _write_checkpoint(folder, step, student, None, optimizer_state(optimizer, parameters=student.adapted))
        return
    whole = full_state_dict(student)
    with storage.write_folder(folder / str(step)) if is_main_process() else nullcontext() as inside:
        if inside is not None:
            student.save(inside, weights=whole)
            _write_digests(folder, step, inside)  # the state has digests of its own
        at = broadcast_from_main(lambda: inside)
        assert at is not None
        save_optimizer_shards(optimizer, at / OPTIMIZER_FOLDER, parameters=student.adapted)
    if is_main_process():
        _remove_optimizer_states(folder, [older for older in list_saved_steps(folder) if older < step])


def _write_checkpoint(
    folder: Path, step: int, student: Student, weights: dict[str, Tensor] | None, engine: dict[str, Tensor]
) -> None:
    """A whole checkpoint; then the state of the older ones goes. weights: None for those of the student now."""
    with storage.write_folder(folder / str(step)) as inside:
        student.save(inside, weights=weights)
        save_optimizer_state(engine, inside / OPTIMIZER_FILE)
        _write_digests(folder, step, inside)
    _remove_optimizer_states(folder, [older for older in list_saved_steps(folder) if older < step])


def _write_digests(folder: Path, step: int, inside: Path) -> None:
    """Write down the digests of a checkpoint that lies in `inside` and is not in its place yet. They lie beside the
    checkpoints, until training ends."""
    digests = {path.name: storage.file_digest(path) for path in sorted(inside.iterdir()) if path.is_file()}
    storage.write_json(_digests_folder(folder) / f"{step}.json", digests)


def _check_digests(folder: Path, step: int) -> None:
    """Raises UserError where a checkpoint is not what was written. One of an older version has no digests."""
    noted = _digests_folder(folder) / f"{step}.json"
    for name, digest in (storage.read_json(noted) if noted.exists() else {}).items():
        path = folder / str(step) / name
        if not path.is_file() or storage.file_digest(path) != digest:
            raise UserError(
                "the checkpoint is not what training has written",
                where=path,
                found="other bytes" if path.is_file() else "no such file",
                hint=f"restore it, or remove {path.parent}: training then continues from an older one, or from the start",
            )


def _digests_folder(folder: Path) -> Path:
    return folder.with_name("digests")


def _remove_optimizer_states(folder: Path, steps: list[int]) -> None:
    for step in steps:
        for name in (OPTIMIZER_FILE, OPTIMIZER_FOLDER):
            storage.remove(folder / str(step) / name)


def _copy_to_cpu(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.detach().to("cpu", copy=True) for name, value in tensors.items()}
