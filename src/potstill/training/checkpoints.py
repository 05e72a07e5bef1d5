"""Checkpoints: a Hugging Face folder for every saved step, and the optimizer's state of the newest one.

    checkpoints/250/model.safetensors ...
    checkpoints/500/model.safetensors ... engine.safetensors      or engine/, for a student that is sharded

    with CheckpointWriter(folder, student, optimizer, background=True) as checkpoints:
        for step in train_steps(...):
            checkpoints.save(step.step)     # copies weights and state, and returns
            checkpoints.check()             # raises the error of an earlier save, if there was one

With `background` a checkpoint is copied to the host's memory between two steps, and a thread writes it while the next
steps run. Only one is written at a time: the next `save` waits for it. The files look as if the loop had waited: a
folder appears complete or not at all, and only then is the older checkpoint's state removed. The caller must flush the
metrics of all earlier steps before it saves: training never resumes from a checkpoint whose metrics are incomplete.
"""

from __future__ import annotations

import time
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path
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
from potstill.training.optimizer import (
    Optimizer,
    optimizer_state,
    restore_optimizer_bytes,
    save_optimizer_state,
)

OPTIMIZER_FILE: Final = "engine.safetensors"
OPTIMIZER_FOLDER: Final = "engine"  # of a sharded student


class CheckpointWriter:
    """Writes the checkpoints of a running training.

    folder      one folder for each step is written there
    background  write while the next steps run. A sharded student is always written between two steps: its parts form
                one folder, and the processes have to agree when it is complete
    seconds     how long the training loop has waited so far
    """

    def __init__(self, folder: Path, student: Student, optimizer: Optimizer, *, background: bool) -> None:
        self.folder, self.seconds = folder, 0.0
        self._student, self._optimizer = student, optimizer
        in_background = background and is_main_process() and not is_sharded(student)
        self._executor = ThreadPoolExecutor(1, "checkpoint") if in_background else None
        self._pending: Future[None] | None = None

    def save(self, step: int) -> None:
        """Save the checkpoint of a step; returns when weights and state may change again.

        Raises the error of the previous checkpoint, as `check` does.
        """
        self.wait()
        began = time.monotonic()
        if self._executor is None:
            _save_in_place(self.folder, step, self._student, self._optimizer)
        else:
            state = _copy_to_cpu(optimizer_state(self._optimizer, parameters=self._student.has_adapters))
            weights = self._student.copy_weights()
            self._pending = self._executor.submit(_write_checkpoint, self.folder, step, self._student, weights, state)
        self.seconds += time.monotonic() - began

    def check(self) -> None:
        """Raise the error of a background write, such as a UserError for a full disk; does not wait."""
        if self._pending is not None and self._pending.done():
            self.wait()

    def wait(self) -> None:
        """Wait until everything that was saved is on the disk. Raises as `check` does."""
        pending, self._pending = self._pending, None
        if pending is not None:
            began = time.monotonic()
            pending.result()
            self.seconds += time.monotonic() - began

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        """Waits for a background write also if training fails: its checkpoint is good, and a resume begins there."""
        if self._executor is not None:
            self._executor.shutdown()
        if error is None:
            self.wait()


def list_saved_steps(folder: Path, last: int | None = None) -> list[int]:
    """The steps that have a checkpoint, sorted; up to `last`, if it is given."""
    steps = sorted(int(path.name) for path in folder.glob("*") if path.name.isdigit())
    return steps if last is None else [step for step in steps if step <= last]


def find_newest_checkpoint(folder: Path, metrics: Path) -> int:
    """The newest step from which training can resume, 0 if there is none. Removes what a crash left behind.

    Its metrics must be complete: rows that a disk lost come back only if their steps are trained again.
    """
    if not folder.is_dir():
        return 0
    storage.delete_partial_files(folder)
    for checkpoint in folder.iterdir():
        storage.delete_partial_files(checkpoint)
    names = (OPTIMIZER_FILE, OPTIMIZER_FOLDER)
    steps = [step for step in list_saved_steps(folder) if any((folder / str(step) / name).exists() for name in names)]
    complete = len(_read_metric_rows(metrics)) if steps else 0
    newest = max((step for step in steps if step <= complete), default=0)
    if steps and newest < steps[-1]:
        fault = f"{metrics.name} lacks step {complete + 1}, although there is a checkpoint of step {steps[-1]}"
        progress.print_line(f"{fault}: training continues from step {newest}", "yellow")
    _remove_older_states(folder, newest)  # a crash may have left two
    if newest:
        _check_digests(folder, newest)
    return newest


def remove_digests(folder: Path) -> None:
    """Call at the end of training: from then on the manifest of the stage has the digests."""
    storage.remove(_digests_folder(folder))


def restore_checkpoint(checkpoint: Path, optimizer: Optimizer) -> None:
    """Restore the optimizer's state. Raises UserError if it is damaged or belongs to another model."""
    if (checkpoint / OPTIMIZER_FOLDER).exists():
        restore_optimizer_shards(optimizer, checkpoint / OPTIMIZER_FOLDER)
    else:
        restore_optimizer_bytes(optimizer, storage.read_bytes(checkpoint / OPTIMIZER_FILE))


def truncate_metrics(metrics: Path, step: int) -> None:
    """Keep the rows up to the checkpoint's step: the later steps are trained again."""
    if not metrics.exists():
        return
    kept = _read_metric_rows(metrics)[:step]
    if b"".join(map(storage.encode_json_line, kept)) != storage.read_bytes(metrics):
        storage.write_jsonl(metrics, kept)


def _read_metric_rows(metrics: Path) -> list[dict[str, Any]]:
    """The rows of the steps 1, 2, 3, ..., up to the first one that is missing or incomplete."""
    rows: list[dict[str, Any]] = []
    try:
        for row in storage.read_complete_lines(metrics):
            if row.get("step") != len(rows) + 1:
                break
            rows.append(row)
    except UserError:  # a line that is not JSON ends the rows; the caller reports what is missing
        pass
    return rows


def _save_in_place(folder: Path, step: int, student: Student, optimizer: Optimizer) -> None:
    """Save between two steps. Every process calls it; the first one writes everything but a sharded optimizer state."""
    if not is_sharded(student):
        if is_main_process():
            _write_checkpoint(folder, step, student, None, optimizer_state(optimizer, parameters=student.has_adapters))
        return
    weights = full_state_dict(student)
    with storage.write_folder(folder / str(step)) if is_main_process() else nullcontext() as unfinished:
        if unfinished is not None:
            student.save(unfinished, weights=weights)
            _write_digests(folder, step, unfinished)  # the sharded state has its own digests
        target = broadcast_from_main(lambda: unfinished)
        assert target is not None
        save_optimizer_shards(optimizer, target / OPTIMIZER_FOLDER, parameters=student.has_adapters)
    if is_main_process():
        _remove_older_states(folder, step)


def _write_checkpoint(
    folder: Path, step: int, student: Student, weights: dict[str, Tensor] | None, state: dict[str, Tensor]
) -> None:
    """Write a whole checkpoint, then remove the state of older ones. weights: None for the student's current ones."""
    with storage.write_folder(folder / str(step)) as unfinished:
        student.save(unfinished, weights=weights)
        save_optimizer_state(state, unfinished / OPTIMIZER_FILE)
        _write_digests(folder, step, unfinished)
    _remove_older_states(folder, step)


def _write_digests(folder: Path, step: int, unfinished: Path) -> None:
    """Record the digests of a checkpoint before it is moved into place, in a folder beside the checkpoints."""
    digests = {path.name: storage.file_digest(path) for path in sorted(unfinished.iterdir()) if path.is_file()}
    storage.write_json(_digests_folder(folder) / f"{step}.json", digests)


def _check_digests(folder: Path, step: int) -> None:
    """Raises UserError if a checkpoint was changed. Checkpoints of older versions have no digests."""
    path = _digests_folder(folder) / f"{step}.json"
    for name, digest in (storage.read_json(path) if path.exists() else {}).items():
        file = folder / str(step) / name
        if not file.is_file() or storage.file_digest(file) != digest:
            raise UserError(
                "the checkpoint was changed after training wrote it",
                code="E-train-checkpoint-changed",
                where=file,
                found="other bytes" if file.is_file() else "no such file",
                hint=f"restore it, or remove {file.parent}: training then continues from an older checkpoint or from step 0",
            )


def _digests_folder(folder: Path) -> Path:
    return folder.with_name("digests")


def _remove_older_states(folder: Path, step: int) -> None:
    """Remove the optimizer's states of the steps before one; their weights stay."""
    for older in list_saved_steps(folder, step - 1):
        for name in (OPTIMIZER_FILE, OPTIMIZER_FOLDER):
            storage.remove(folder / str(older) / name)


def _copy_to_cpu(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.detach().to("cpu", copy=True) for name, value in tensors.items()}
