"""One run's folder: the lock that keeps a second process out, and the log of what depends on the machine.

    >>> import tempfile; run = Path(tempfile.mkdtemp())
    >>> with locked(run):
    ...     log(run, "train", seconds=3)
    >>> [row["event"] for _, row in reading.read_jsonl(run / "log.jsonl")]
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
from potstill.files import disk, reading

SHARD: Final = ".shard-{}.lock"


@contextlib.contextmanager
def locked(run: Path, *, wait: float = 0, beside_shards: bool = False) -> Iterator[None]:
    """Hold the run for this process. A killed process holds nothing.

    wait           seconds to wait for another process
    beside_shards  shards may go on sampling meanwhile

    Raises UserError if another process holds the run, or one of its shards.
    """
    with held(run, ".lock", wait, "another process is working on this run"):
        for lock in () if beside_shards else sorted(run.glob(SHARD.format("*"))):
            with held(run, lock.name, 0, f"a shard of this run is being sampled ({lock.stem.removeprefix('.')})"):
                pass
        yield


def shard_locked(run: Path, number: int, count: int) -> contextlib.AbstractContextManager[None]:
    """Hold one shard of a run's sampling for this process. Raises UserError if another process holds it."""
    name = f"{number}-of-{count}"
    return held(run, SHARD.format(name), 0, f"another process is sampling shard {number}/{count} of this run")


@contextlib.contextmanager
def held(run: Path, name: str, wait: float, otherwise: str) -> Iterator[None]:
    """Hold the lock `name` in a folder, after at most `wait` seconds. Raises UserError(otherwise), and where the disk
    cannot lock files: a marker instead of a lock would outlive a killed process, and keep every later one out."""
    import inspect

    import filelock

    with reading.mine_to_mend(run):
        disk.make_folder(run)
    known = inspect.signature(filelock.FileLock.__init__).parameters
    hard: dict[str, Any] = {"fallback_to_soft": False} if "fallback_to_soft" in known else {}
    lock = filelock.FileLock(run / name, **hard)
    try:
        with reading.mine_to_mend(run / name):
            lock.acquire(timeout=wait)
    except filelock.Timeout:
        found = _holder(run, name)
        raise UserError(otherwise, where=run, found=found, do="wait until it ends, or choose another name") from None
    except (OSError, NotImplementedError) as fault:
        raise UserError(
            "this disk cannot lock files, so two processes could write to one run",
            where=run / name,
            found=fault,
            do="mount it with locks (NFS: with lockd, or -o local_lock=flock for one machine; Lustre: -o flock),"
            " or put runs/ on another disk",
        ) from None
    try:
        yield
    finally:
        lock.release()


def shards_running(run: Path) -> list[str]:
    """The shards of a run that processes are sampling now, such as `3-of-8`."""
    running = []
    for lock in sorted(run.glob(SHARD.format("*"))):
        try:
            with held(run, lock.name, 0, "held"):
                pass
        except UserError:
            running.append(lock.stem.removeprefix(".shard-"))
    return running


def _holder(run: Path, name: str) -> str:
    """The process that holds a lock of the run, and since when, as the run's log says; empty where it does not."""
    part = re.fullmatch(SHARD.format(r"(\d+)-of-(\d+)").replace(".", r"\."), name)
    shard = "/".join(part.groups()) if part else None
    begun: dict[str, Any] = {}
    with contextlib.suppress(UserError):  # a log that cannot be read is not what this message is about
        for row in reading.whole_rows(run / "log.jsonl"):
            if row.get("event") == "start" and row.get("shard") == shard:
                begun = row
    pid, host = begun.get("pid"), begun.get("host")
    if not isinstance(pid, int) or (host == platform.node() and not _alive(pid)):
        return ""
    return f"process {pid} on {host}, since {begun.get('time')}"


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True  # somebody else's
    return True


def log(run: Path, event: str, **measured: object) -> None:
    """Append one line to the run's log: the moment, the event, and what was measured."""
    moment = datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds")
    with disk.Appender(run / "log.jsonl") as lines:
        lines.append([{"time": moment, "event": event, **measured}])
