"""A crash at one moment of one operation of `storage`, as where a machine stops."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from potstill.storage import atomic


class Crash(BaseException):
    """What stops a stage where a machine would."""


@contextmanager
def crash(number: int) -> Iterator[None]:
    """Raise Crash at the moment of this number, counted from 0; those of the log are not counted: it is not resumed."""
    left = number

    def stop(operation: atomic.Operation, moment: atomic.Moment, path: Path) -> None:
        nonlocal left
        if path.name != "log.jsonl":
            if left == 0:
                raise Crash
            left -= 1

    atomic.crash = stop
    try:
        yield
    finally:
        atomic.crash = atomic._no_crash
