"""One run's folder: the lock that keeps a second process out, and the log of what depends on the machine.

    >>> import tempfile; run = Path(tempfile.mkdtemp())
    >>> with lock_run(run):
    ...     append_log(run, "train", seconds=3)
    >>> [row["event"] for _, row in read.read_jsonl(run / "log.jsonl")]
    ['train']

Time, speed, memory and library versions go to `log.jsonl` and nowhere else; no digest covers it.
"""

from __future__ import annotations

import contextlib
import datetime
import os
import platform
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from potstill.errors import UserError
from potstill.storage import atomic, read

SHARD_LOCK: Final = ".shard-{}.lock"


@contextlib.contextmanager
def lock_run(run_dir: Path, *, wait: float = 0, beside_shards: bool = False) -> Iterator[None]:
    """Hold the run for this process. A killed process holds nothing.

    wait           seconds to wait for another process
    beside_shards  shards may go on sampling meanwhile

    Raises UserError if another process holds the run, or one of its shards.
    """
    with hold_lock(run_dir, ".lock", wait, "another process is working on this run"):
        for lock in () if beside_shards else sorted(run_dir.glob(SHARD_LOCK.format("*"))):
            with hold_lock(
                run_dir, lock.name, 0, f"a shard of this run is being sampled ({lock.stem.removeprefix('.')})"
            ):
                pass
        yield


def lock_shard(run_dir: Path, number: int, count: int) -> contextlib.AbstractContextManager[None]:
    """Hold one shard of a run's sampling for this process. Raises UserError if another process holds it."""
    name = f"{number}-of-{count}"
    return hold_lock(
        run_dir, SHARD_LOCK.format(name), 0, f"another process is sampling shard {number}/{count} of this run"
    )


@contextlib.contextmanager
def hold_lock(run_dir: Path, name: str, wait: float, otherwise: str) -> Iterator[None]:
    """Hold the lock `name` in a folder, after at most `wait` seconds. Raises UserError(otherwise), and where the disk
    cannot lock files: a marker instead of a lock would outlive a killed process, and keep every later one out."""
    import inspect

    import filelock

    with read.as_user_errors(run_dir):
        atomic.make_folder(run_dir)
    known = inspect.signature(filelock.FileLock.__init__).parameters
    hard: dict[str, Any] = {"fallback_to_soft": False} if "fallback_to_soft" in known else {}
    lock = filelock.FileLock(run_dir / name, **hard)
    try:
        with read.as_user_errors(run_dir / name):
            lock.acquire(timeout=wait)
    except filelock.Timeout:
        found = _describe_holder(run_dir, name)
        raise UserError(
            otherwise, where=run_dir, found=found, hint="wait until it ends, or choose another name"
        ) from None
    except (OSError, NotImplementedError) as fault:
        raise UserError(
            "this disk cannot lock files, so two processes could write to one run",
            where=run_dir / name,
            found=fault,
            hint="mount it with locks (NFS: with lockd, or -o local_lock=flock for one machine; Lustre: -o flock),"
            " or put runs/ on another disk",
        ) from None
    try:
        yield
    finally:
        lock.release()


def running_shards(run_dir: Path) -> list[str]:
    """The shards of a run that processes are sampling now, such as `3-of-8`."""
    running = []
    for lock in sorted(run_dir.glob(SHARD_LOCK.format("*"))):
        try:
            with hold_lock(run_dir, lock.name, 0, "held"):
                pass
        except UserError:
            running.append(lock.stem.removeprefix(".shard-"))
    return running


def _describe_holder(run_dir: Path, name: str) -> str:
    """The process that holds a lock of the run, and since when, as the run's log says; empty where it does not."""
    part = re.fullmatch(SHARD_LOCK.format(r"(\d+)-of-(\d+)").replace(".", r"\."), name)
    shard = "/".join(part.groups()) if part else None
    begun: dict[str, Any] = {}
    with contextlib.suppress(UserError):  # a log that cannot be read is not what this message is about
        for row in read.read_complete_lines(run_dir / "log.jsonl"):
            if row.get("event") == "start" and row.get("shard") == shard:
                begun = row
    pid, host = begun.get("pid"), begun.get("host")
    if not isinstance(pid, int) or (host == platform.node() and not _is_process_alive(pid)):
        return ""
    return f"process {pid} on {host}, since {begun.get('time')}"


def _is_process_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True  # somebody else's
    return True


def append_log(run_dir: Path, event: str, **measured: object) -> None:
    """Append one line to the run's log: the moment, the event, and what was measured."""
    moment = datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds")
    with atomic.Appender(run_dir / "log.jsonl") as lines:
        lines.append([{"time": moment, "event": event, **measured}])
