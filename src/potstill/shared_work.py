"""Shared work: several processes each make a shard of a stage, and one of them merges what all have stored.

    with process_group(run_dir, recipe) as (is_main, group):     # under torchrun or srun
        ...
        share_stage(group, run_dir, recipe, "evaluate")

A shard stores its work in the folder of its stage, in files of its own, batch by batch. What a batch is does not depend on
the number of shards, so nothing is lost if a process dies: any process, alone or as a shard, continues with the batches
that nobody has stored. The stage's `make` merges all of them.

Processes that were started separately (`--shard 2/8`) leave a file when their shard is done. The process that finds the
files of all shards merges them.
"""

from __future__ import annotations

import shlex
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from potstill import process, progress, storage
from potstill.recipe import Recipe, recipe_to_yaml
from potstill.stages import open_stage
from potstill.storage import run_folder
from potstill.storage.segments import Shard

if TYPE_CHECKING:
    from potstill.training.process_group import ProcessGroup

SHARDS_FOLDER: Final = "shards"  # in the folder of a stage while shards of it are made


def mark_done(folder: Path, shard: Shard) -> None:
    """Record that a shard of the stage in `folder` is done."""
    storage.write_json(_done_path(folder, shard), {})


def is_done(folder: Path, shard: Shard) -> bool:
    return _done_path(folder, shard).exists()


def list_missing(folder: Path, count: int) -> list[int]:
    """The numbers of the shards that are not done."""
    return [number for number in range(1, count + 1) if not is_done(folder, Shard(number, count))]


def _done_path(folder: Path, shard: Shard) -> Path:
    return folder / SHARDS_FOLDER / f"done-{shard.number:04}-of-{shard.count:04}.json"


def completing_command(stage: str, run_dir: Path) -> str:
    """The command that makes everything that is missing of a stage, in one process, and merges it."""
    return f"potstill {stage} {shlex.quote(str(run_dir))}"


@contextmanager
def explain_failure(stage: str, run_dir: Path) -> Iterator[None]:
    """If the block fails, print the command that completes the stage. A termination signal fails the block."""
    is_default = threading.current_thread() is threading.main_thread() and (
        signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    )
    if is_default:
        signal.signal(signal.SIGTERM, _terminate)
    try:
        yield
    except BaseException:
        command = completing_command(stage, run_dir)
        progress.print_line(f"{stage:<9} not complete; every stored batch is kept. To complete it: {command}", "yellow")
        raise
    finally:
        if is_default:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _terminate(*_: object) -> None:
    raise SystemExit(128 + signal.SIGTERM)


# The processes of one launcher


@contextmanager
def process_group(run_dir: Path, recipe: Recipe) -> Iterator[tuple[bool, ProcessGroup | None]]:
    """Whether this is the main process, and the group of the processes that torchrun or srun started.

    The group is None for a single process. The main process makes the stages; the other processes come to the stages to
    which it calls them.
    """
    rank = process.read_process_rank()
    if rank.world == 1:
        yield True, None
        return
    from potstill.training.process_group import ProcessGroup

    group = ProcessGroup(rank)
    if not rank.is_main:
        with progress.muted():
            for name in group.follow(recipe_to_yaml(recipe)):
                _make_called(group, run_dir, recipe, name)
        yield False, group
        return
    try:
        yield True, group
    except BaseException:
        group.dismiss(seconds=1.0)
        raise
    group.dismiss()


def _make_called(group: ProcessGroup, run_dir: Path, recipe: Recipe, name: str) -> None:
    """Make a stage, or a shard of it, to which the main process has called this process."""
    stage, shard = open_stage(name), Shard(group.rank.rank + 1, group.rank.world)
    with group.report_failure():
        if stage.distributed:
            group.come()
            with group.collectives():
                stage.make(run_dir, recipe)
        else:
            with run_folder.lock_shard(run_dir, shard.number, shard.count):
                group.come()
                stage.make_shard(run_dir, recipe, shard)
                group.finish()


def make_together(group: ProcessGroup, run_dir: Path, recipe: Recipe, name: str) -> Any:
    """Make a distributed stage in all processes. Returns its result."""
    group.call(name, recipe_to_yaml(recipe))
    with group.collectives():
        return open_stage(name).make(run_dir, recipe)


def share_stage(group: ProcessGroup, run_dir: Path, recipe: Recipe, name: str) -> None:
    """Make all shards of a stage, one in each process. Afterwards, `make` merges them.

    Raises UserError if another process fails or was killed.
    """
    stage, shard = open_stage(name), Shard(1, group.rank.world)
    if reason := stage.launcher_conflict(recipe):
        progress.print_line(f"{name:<9} made by the first process alone: {reason}")
        return
    with explain_failure(name, run_dir):
        stage.begin_shards(run_dir, recipe, shard)
        group.call(name, recipe_to_yaml(recipe))
        stage.make_shard(run_dir, recipe, shard)
        group.wait_for_shards(name, lambda rank: run_folder.is_shard_running(run_dir, rank + 1, group.rank.world))
