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
from collections.abc import Iterator
from pathlib import Path

from potstill.errors import UserError
from potstill.files import disk, reading


@contextlib.contextmanager
def locked(run: Path) -> Iterator[None]:
    """Hold the run for this process. Raises UserError if another process holds it; a killed one does not."""
    import filelock

    with reading.mine_to_mend(run):
        run.mkdir(parents=True, exist_ok=True)
    lock = filelock.FileLock(run / ".lock")
    try:
        with reading.mine_to_mend(run / ".lock"):
            lock.acquire(timeout=0)
    except filelock.Timeout:
        raise UserError(
            "another process is working on this run", where=run, do="wait until it ends, or choose another name"
        ) from None
    try:
        yield
    finally:
        lock.release()


def log(run: Path, event: str, **measured: object) -> None:
    """Append one line to the run's log: the moment, the event, and what was measured."""
    moment = datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds")
    with disk.Appender(run / "log.jsonl") as lines:
        lines.append([{"time": moment, "event": event, **measured}])
