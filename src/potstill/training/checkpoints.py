"""Checkpoints: a Hugging Face folder for every saved step, and the optimizer's state of the newest step.

    checkpoints/250/model.safetensors ...                         with LoRA adapter_model.safetensors ...
    checkpoints/500/model.safetensors ... engine.safetensors      or engine/, for a sharded student

    with CheckpointWriter(folder, student, optimizer, background=True) as checkpoints:
        for step in train_steps(...):
            checkpoints.save(step.step)     # copies weights and state, and returns
            checkpoints.check()             # raises the error of an earlier save, if there was one

With `background`, a checkpoint is copied to the host's memory between two steps, and a thread writes it while the next
steps run. The next `save` waits until it is written. The files are the same as without `background`: a folder appears
only when it is complete, and the older checkpoint's state is removed afterwards. Before it saves, the caller must flush
the metrics of all earlier steps, because training never resumes from a checkpoint whose metrics are incomplete.
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
OPTIMIZER_FOLDER: Final = "engine"  # for a sharded student


class CheckpointWriter:
    """Writes the checkpoints of a running training.

    folder      parent of the checkpoints, which are one folder per step
    background  write while the next steps run. A sharded student is always written between two steps, because the
                processes write parts of one folder and have to agree when it is complete
    seconds     how long the training loop has waited for checkpoints so far
    """

    def __init__(self, folder: Path, student: Student, optimizer: Optimizer, *, background: bool) -> None:
        self.folder, self.seconds = folder, 0.0
        self._student, self._optimizer = student, optimizer
        in_background = background and is_main_process() and not is_sharded(student)
        self._executor = ThreadPoolExecutor(1, "checkpoint") if in_background else None
        self._pending: Future[None] | None = None

    def save(self, step: int) -> None:
        """Save the checkpoint of a step. Returns as soon as the weights and the state may change again.

        Raises the error of the previous checkpoint, as `check` does.
        """
        self.wait()
        began = time.monotonic()
        if self._executor is None:
            _save_in_place(self.folder, step, self._student, self._optimizer)
        else:
            state = _copy_to_cpu(optimizer_state(self._optimizer))
            weights = self._student.copy_weights()
            self._pending = self._executor.submit(_write_checkpoint, self.folder, step, self._student, weights, state)
        self.seconds += time.monotonic() - began

    def check(self) -> None:
        """Raise the error of a background write, such as a UserError for a full disk. Does not wait for a write."""
        if self._pending is not None and self._pending.done():
            self.wait()

    def wait(self) -> None:
        """Wait until the last saved checkpoint is on the disk. Raises the error of its write, as `check` does."""
        pending, self._pending = self._pending, None
        if pending is not None:
            began = time.monotonic()
            pending.result()
            self.seconds += time.monotonic() - began

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        """Wait for a background write, even if training fails: the checkpoint is valid, and training can resume from it."""
        if self._executor is not None:
            self._executor.shutdown()
        if error is None:
            self.wait()


def find_newest_checkpoint(folder: Path, metrics: Path) -> int:
    """The newest step from which training can resume; 0 if there is none. Removes the incomplete files of a crash.

    A step counts only if the metrics up to it are complete, because lost rows come back only if their steps are trained
    again.
    """
    if not folder.is_dir():
        return 0
    storage.delete_partial_files(folder)
    for checkpoint in folder.iterdir():
        storage.delete_partial_files(checkpoint)
    names = (OPTIMIZER_FILE, OPTIMIZER_FOLDER)
    steps = [
        step for step in storage.list_saved_steps(folder) if any((folder / str(step) / name).exists() for name in names)
    ]
    complete = len(_read_metric_rows(metrics)) if steps else 0
    newest = max((step for step in steps if step <= complete), default=0)
    if steps and newest < steps[-1]:
        fault = f"{metrics.name} lacks step {complete + 1}, although there is a checkpoint of step {steps[-1]}"
        progress.print_line(f"{fault}: training continues from step {newest}", "yellow")
    _remove_older_states(folder, newest)  # a crash may have left the states of two steps
    if newest:
        _check_digests(folder, newest)
    return newest


def remove_digests(folder: Path) -> None:
    """Remove the digests of the checkpoints. Called at the end of training, when the stage's manifest has the digests."""
    storage.remove(_digests_folder(folder))


def restore_checkpoint(checkpoint: Path, optimizer: Optimizer) -> None:
    """Restore the optimizer's state. Raises UserError if it is damaged or belongs to another model."""
    if (checkpoint / OPTIMIZER_FOLDER).exists():
        restore_optimizer_shards(optimizer, checkpoint / OPTIMIZER_FOLDER)
    else:
        restore_optimizer_bytes(optimizer, storage.read_bytes(checkpoint / OPTIMIZER_FILE))


def truncate_metrics(metrics: Path, step: int) -> None:
    """Remove the rows after the checkpoint's step, because the later steps are trained again."""
    if not metrics.exists():
        return
    kept = _read_metric_rows(metrics)[:step]
    if b"".join(map(storage.encode_json_line, kept)) != storage.read_bytes(metrics):
        storage.write_jsonl(metrics, kept)


def _read_metric_rows(metrics: Path) -> list[dict[str, Any]]:
    """The rows of the steps 1, 2, 3, ..., before the first row that is missing or incomplete."""
    rows: list[dict[str, Any]] = []
    try:
        for row in storage.read_complete_lines(metrics):
            if row.get("step") != len(rows) + 1:
                break
            rows.append(row)
    except UserError:  # a line that is not JSON ends the rows; the caller reports the missing step
        pass
    return rows


def _save_in_place(folder: Path, step: int, student: Student, optimizer: Optimizer) -> None:
    """Save between two steps. Every process must call it. The first process writes all files, except that every process
    writes its part of a sharded optimizer state."""
    if not is_sharded(student):
        if is_main_process():
            _write_checkpoint(folder, step, student, None, optimizer_state(optimizer))
        return
    weights = full_state_dict(student)
    with storage.write_folder(folder / str(step)) if is_main_process() else nullcontext() as unfinished:
        if unfinished is not None:
            student.save_checkpoint(unfinished, weights=weights)
            _write_digests(folder, step, unfinished)  # the sharded state has its own digests
        target = broadcast_from_main(lambda: unfinished)
        assert target is not None
        save_optimizer_shards(optimizer, target / OPTIMIZER_FOLDER)
    if is_main_process():
        _remove_older_states(folder, step)


def _write_checkpoint(
    folder: Path, step: int, student: Student, weights: dict[str, Tensor] | None, state: dict[str, Tensor]
) -> None:
    """Write a whole checkpoint, then remove the states of older checkpoints. `weights`: None for the student's current
    weights."""
    with storage.write_folder(folder / str(step)) as unfinished:
        student.save_checkpoint(unfinished, weights=weights)
        save_optimizer_state(state, unfinished / OPTIMIZER_FILE)
        _write_digests(folder, step, unfinished)
    _remove_older_states(folder, step)


def _write_digests(folder: Path, step: int, unfinished: Path) -> None:
    """Write the digests of a checkpoint's files into a folder next to the checkpoints, before the checkpoint is moved into
    place."""
    digests = {path.name: storage.file_digest(path) for path in sorted(unfinished.iterdir()) if path.is_file()}
    storage.write_json(_digests_folder(folder) / f"{step}.json", digests)


def _check_digests(folder: Path, step: int) -> None:
    """Raises UserError if a file of the checkpoint was changed. Checkpoints of older versions have no digests."""
    path = _digests_folder(folder) / f"{step}.json"
    for name, digest in (storage.read_json(path) if path.exists() else {}).items():
        file = folder / str(step) / name
        if not file.is_file() or storage.file_digest(file) != digest:
            raise UserError(
                "the checkpoint was changed after training wrote it",
                code="E-train-checkpoint-changed",
                where=file,
                found="the digest differs" if file.is_file() else "the file is missing",
                hint=f"restore the file, or remove {file.parent}: training then resumes from an older checkpoint or step 0",
            )


def _digests_folder(folder: Path) -> Path:
    return folder.with_name("digests")


def _remove_older_states(folder: Path, step: int) -> None:
    """Remove the optimizer's states of the steps before `step`; their weights stay."""
    for older in storage.list_saved_steps(folder, step - 1):
        for name in (OPTIMIZER_FILE, OPTIMIZER_FOLDER):
            storage.remove(folder / str(older) / name)


def _copy_to_cpu(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.detach().to("cpu", copy=True) for name, value in tensors.items()}
