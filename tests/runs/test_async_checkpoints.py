"""Checkpoints written during the next steps have the same bytes, and each is whole or absent after any crash."""

from __future__ import annotations

import errno
import os
import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import safetensors
import safetensors.torch
import torch

import tiny
from crashing import Crash
from potstill import training
from potstill.errors import UserError
from potstill.storage import atomic, read
from potstill.training.checkpoints import OPTIMIZER_FILE, CheckpointWriter
from training_steps import make_student, train

SIX = ("train.steps=6",)
Hook = Callable[[atomic.Operation, atomic.Moment, Path], None]


@pytest.fixture(scope="module")
def aligned(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.make(world, tmp_path_factory.mktemp("aligned") / "run", *SIX, until="align")


@pytest.fixture(scope="module")
def waited(world: Path, aligned: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """What a training leaves that waits for its checkpoints."""
    run_dir = Path(shutil.copytree(aligned, tmp_path_factory.mktemp("waited") / "run"))
    return tiny.contents(tiny.make(world, run_dir, *SIX, "train.async_checkpoints=false", until="train"))


@contextmanager
def hooked(hook: Hook) -> Iterator[None]:
    atomic.crash = hook
    try:
        yield
    finally:
        atomic.crash = atomic._no_crash


def beside() -> bool:
    return threading.current_thread().name.startswith("checkpoint")


@contextmanager
def late(then: Hook) -> Iterator[None]:
    """The thread begins to write only when training waits for it: all steps up to then are done and logged."""
    asked, wait = threading.Event(), CheckpointWriter.wait

    def waiting(self: CheckpointWriter) -> None:
        asked.set()
        try:
            wait(self)
        finally:
            asked.clear()

    def hook(operation: atomic.Operation, moment: atomic.Moment, path: Path) -> None:
        if beside() and (operation, moment) == ("folder", "before"):
            assert asked.wait(20), "training waits for the one before at the next checkpoint, or at its end"
        then(operation, moment, path)

    with pytest.MonkeyPatch.context() as patch, hooked(hook):
        patch.setattr(CheckpointWriter, "wait", waiting)
        yield


def test_a_checkpoint_written_late_has_the_bytes_of_its_step(
    world: Path, aligned: Path, waited: dict[str, bytes], tmp_path: Path
) -> None:
    run_dir, logged = Path(shutil.copytree(aligned, tmp_path / "run")), list[int]()

    def hook(operation: atomic.Operation, moment: atomic.Moment, path: Path) -> None:
        if beside() and (operation, moment) == ("folder", "before"):
            logged.append(sum(1 for _ in read.read_jsonl(run_dir / "train" / "metrics.jsonl")))

    with late(hook):
        tiny.make(world, run_dir, *SIX, until="train")
    assert logged == [4, 6, 6], "the next steps were done meanwhile, and one was written at a time"
    assert tiny.contents(run_dir) == waited


@pytest.mark.slow
@pytest.mark.parametrize("number", [1, 7, 12])
def test_a_crash_while_a_checkpoint_is_written_late(
    world: Path, aligned: Path, waited: dict[str, bytes], tmp_path: Path, number: int
) -> None:
    """In the middle of the first folder, of removing the first one's state, and before removing the second one's. Then
    all of the process is gone."""
    run_dir, left, crashed = Path(shutil.copytree(aligned, tmp_path / "run")), number, False

    def stop(operation: atomic.Operation, moment: atomic.Moment, path: Path) -> None:
        nonlocal left, crashed
        if crashed:
            raise Crash
        if beside() and operation in ("folder", "remove"):
            crashed, left = left == 0, left - 1
            if crashed:
                raise Crash

    with late(stop), pytest.raises(Crash):
        tiny.make(world, run_dir, *SIX, until="train")
    tiny.make(world, run_dir, *SIX, until="train")
    assert tiny.contents(run_dir) == waited


@pytest.mark.parametrize("step", [2, 6])
def test_a_full_disk_stops_the_run_with_its_message(
    world: Path, aligned: Path, waited: dict[str, bytes], tmp_path: Path, step: int
) -> None:
    run_dir = Path(shutil.copytree(aligned, tmp_path / "run"))

    def full(operation: atomic.Operation, moment: atomic.Moment, path: Path) -> None:
        if (operation, moment, path.name) == ("folder", "middle", str(step)):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with hooked(full), pytest.raises(UserError, match=rf"checkpoints/{step}: No space(.|\n)*E-storage-os-error"):
        tiny.make(world, run_dir, *SIX, until="train")
    assert not (run_dir / "train" / "manifest.json").exists()
    assert not (run_dir / "train" / "checkpoints" / str(step)).exists()
    assert len((run_dir / "train" / "metrics.jsonl").read_text().splitlines()) <= step + 2, (
        "at the next one at the latest"
    )
    tiny.make(world, run_dir, *SIX, until="train")
    assert tiny.contents(run_dir) == waited


def test_a_state_that_the_disk_has_no_room_for_is_an_error_of_the_system(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(tensors: object, path: Path) -> None:
        raise safetensors.SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(safetensors.torch, "save_file", full)
    with pytest.raises(OSError) as error:
        training.save_optimizer_state({"a": torch.zeros(2)}, tmp_path / "engine")
    assert error.value.errno == errno.ENOSPC


@pytest.mark.parametrize("family", ["t5", "causal"])
def test_a_copy_does_not_change_with_the_student(family, tmp_path: Path) -> None:
    student = make_student(family)
    optimizer = training.build_optimizer(student)
    train(student, 1, 1, optimizer)
    (tmp_path / "now").mkdir()
    student.save(tmp_path / "now")
    engine, copied = training.optimizer_state_bytes(optimizer), student.copy_weights()
    with CheckpointWriter(tmp_path / "kept", student, optimizer, background=True) as checkpoints:
        checkpoints.save(1)
        train(student, 2, 2, optimizer)
    for path in (tmp_path / "now").iterdir():
        assert (tmp_path / "kept" / "1" / path.name).read_bytes() == path.read_bytes(), path.name
    assert (
        (tmp_path / "kept" / "1" / OPTIMIZER_FILE).read_bytes() == engine != training.optimizer_state_bytes(optimizer)
    )
    ties = {name: value.data_ptr() for name, value in student.model.state_dict().items()}
    assert len({value.data_ptr() for value in copied.values()}) == len(set(ties.values())), "tied weights once"
    assert safetensors.torch.load(engine).keys() == training.optimizer_state(optimizer).keys()
