"""The locks of a run's folder, and the log of machine-dependent facts.

    >>> import tempfile; folder = Path(tempfile.mkdtemp())
    >>> with lock_run(folder):
    ...     append_log(folder, "train", seconds=3)
    >>> [row["event"] for _, row in read.read_jsonl(folder / "log.jsonl")]
    ['train']

Time, speed, memory and library versions are written only to `log.jsonl`, which no digest covers.
"""

from __future__ import annotations

import contextlib
import datetime
import os
import platform
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from potstill.errors import UserError
from potstill.storage import atomic, read

SHARD_LOCK: Final = ".shard-{}.lock"


@contextlib.contextmanager
def lock_run(run_dir: Path, *, wait: float = 0, allow_shards: bool = False) -> Iterator[None]:
    """Lock a run for this process. The lock ends with the process, even if the process is killed.

    wait          seconds to wait for another process
    allow_shards  whether other processes may make shards of a stage meanwhile

    Raises UserError if another process holds the lock of the run or of one of its shards.
    """
    with hold_lock(run_dir, ".lock", wait, "another process is working on this run"):
        for lock in () if allow_shards else sorted(run_dir.glob(SHARD_LOCK.format("*"))):
            message = f"another process is working on a shard of this run ({lock.stem.removeprefix('.')})"
            with hold_lock(run_dir, lock.name, 0, message):
                pass
        yield


def lock_shard(run_dir: Path, number: int, count: int) -> contextlib.AbstractContextManager[None]:
    """Lock one shard of a run's work for this process. Raises UserError if another process holds the lock."""
    name = SHARD_LOCK.format(f"{number}-of-{count}")
    return hold_lock(run_dir, name, 0, f"another process is working on shard {number}/{count} of this run")


@contextlib.contextmanager
def hold_lock(folder: Path, name: str, wait: float, message: str) -> Iterator[None]:
    """Lock the file `name` in a folder. Waits at most `wait` seconds for another process.

    Raises UserError(message) if another process holds the lock, and UserError if the disk cannot lock files. A marker file
    would be no substitute for a lock: it would outlive a killed process and block all later processes.
    """
    import inspect

    import filelock

    with read.as_user_errors(folder):
        atomic.make_folder(folder)
    parameters = inspect.signature(filelock.FileLock.__init__).parameters
    options: dict[str, Any] = {"fallback_to_soft": False} if "fallback_to_soft" in parameters else {}
    lock = filelock.FileLock(folder / name, **options)
    try:
        with read.as_user_errors(folder / name):
            lock.acquire(timeout=wait)
    except filelock.Timeout:
        holder, hint = _describe_holder(folder, name), "wait until it ends, or choose another name"
        raise UserError(message, code="E-run-locked", where=folder, found=holder, hint=hint) from None
    except (OSError, NotImplementedError) as fault:
        what = "this disk cannot lock files, so two processes could write to one run"
        hint = (
            "mount the disk with locks (NFS: lockd or -o local_lock=flock; Lustre: -o flock), or move runs/ elsewhere"
        )
        raise UserError(what, code="E-storage-no-locks", where=folder / name, found=fault, hint=hint) from None
    try:
        yield
    finally:
        lock.release()


def running_shards(run_dir: Path) -> list[str]:
    """The shards of a run on which other processes are working now, such as `3-of-8`."""
    locks = sorted(run_dir.glob(SHARD_LOCK.format("*")))
    return [lock.stem.removeprefix(".shard-") for lock in locks if _is_locked(run_dir, lock.name)]


def is_shard_running(run_dir: Path, number: int, count: int) -> bool:
    """Whether another process is working on a shard of a run now."""
    return _is_locked(run_dir, SHARD_LOCK.format(f"{number}-of-{count}"))


def _is_locked(run_dir: Path, name: str) -> bool:
    try:
        with hold_lock(run_dir, name, 0, "the lock is held"):
            return False
    except UserError as fault:
        if fault.code != "E-run-locked":
            raise
        return True


def list_saved_steps(folder: Path, last: int | None = None) -> list[int]:
    """The steps that have a checkpoint in a folder of checkpoints, sorted; up to `last`, if it is given."""
    steps = sorted(int(path.name) for path in folder.glob("*") if path.name.isdigit())
    return steps if last is None else [step for step in steps if step <= last]


def working_processes(run_dir: Path) -> list[str]:
    """The processes that work on a run now, such as `process 123 on host, since 2026-11-28T10:00:00.000+00:00`.

    A process counts if the log names it and it still holds its lock.
    """
    working = []
    for lock in (".lock", *sorted(path.name for path in run_dir.glob(SHARD_LOCK.format("*")))):
        if (holder := _describe_holder(run_dir, lock)) and _is_locked(run_dir, lock):
            working.append(holder)
    return working


def _describe_holder(run_dir: Path, name: str) -> str:
    """The process that holds a lock of the run, according to the run's log; empty if the log does not say."""
    match = re.fullmatch(SHARD_LOCK.format(r"(\d+)-of-(\d+)").replace(".", r"\."), name)
    shard = "/".join(match.groups()) if match else None
    start: dict[str, Any] = {}
    with contextlib.suppress(UserError):  # an unreadable log must not hide the message about the lock
        for row in read.read_complete_lines(run_dir / "log.jsonl"):
            if row.get("event") == "start" and row.get("shard") == shard:
                start = row
    pid, host = start.get("pid"), start.get("host")
    if not isinstance(pid, int):
        return ""
    if host == platform.node():
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return ""
        except OSError:
            pass  # another user's process
    return f"process {pid} on {host}, since {start.get('time')}"


def append_log(run_dir: Path, event: str, **values: object) -> None:
    """Append one line to the run's log: the time, the event, and the values."""
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds")
    with atomic.Appender(run_dir / "log.jsonl") as file:
        file.append([{"time": now, "event": event, **values}])


def cache_folder() -> Path:
    """The folder of downloaded and converted files: POTSTILL_CACHE, or `potstill` in the platform's cache folder."""
    folder = os.environ.get("POTSTILL_CACHE")
    if folder:
        return Path(folder)
    default = Path.home() / ("Library/Caches" if sys.platform == "darwin" else ".cache")
    return Path(os.environ.get("XDG_CACHE_HOME") or default) / "potstill"
