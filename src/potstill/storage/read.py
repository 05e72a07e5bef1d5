"""Readers of files: bytes, JSON, records and digests. Errors are `UserError`s with the file and the line.

>>> import tempfile; from potstill.records import Verdict
>>> path = Path(tempfile.mkdtemp()) / "verdicts.jsonl"
>>> _ = path.write_text('{"grade": "right", "found": "7"}\\n{"grade": "right", "fond": "8"}\\n')
>>> verdicts = iter_records(Verdict, path)
>>> next(verdicts).grade
'right'
>>> try: next(verdicts)
... except UserError as fault: print(fault.code, fault.found)
E-storage-invalid-record unknown field 'fond'
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

from potstill.errors import UserError
from potstill.serialization import Record, from_json

NUL_BYTE: Final = b"\0"  # JSON never contains it; a line that does was damaged by a power loss
RESTORE_HINT: Final = "restore the file from a copy; `potstill check RUN` lists every changed file of a run"
LINE_HINT: Final = "correct this line, or restore the file from a copy"
RERUN_HINT: Final = "and run the same command again; all finished work is kept"
RACE_WINDOW_NS: Final = 50_000_000  # two writes within this time may leave the same time stamps
OS_ERROR_HINTS: Final = {
    errno.ENOSPC: f"free some disk space {RERUN_HINT}",
    errno.EDQUOT: f"raise the quota {RERUN_HINT}",
    errno.EFBIG: f"raise the limit on file sizes {RERUN_HINT}",
    errno.EACCES: "give yourself the permission, or choose another folder",
    errno.EPERM: "give yourself the permission, or choose another folder",
    errno.EROFS: "choose a folder on a writable disk",
    errno.ENOENT: "check the path",
    errno.EISDIR: "name a file, not a folder",
    errno.ENOTDIR: "a part of this path is a file, but must be a folder: move the file, or choose another folder",
    errno.EEXIST: "this path is a file, but must be a folder: move the file, or choose another folder",
    errno.ENAMETOOLONG: "choose a shorter name",
    errno.ELOOP: "a link in this path points to itself: remove the link, or name another path",
    errno.EIO: f"the disk failed to read or write: check the disk {RERUN_HINT}",
    errno.ESTALE: f"the network file system lost this file: mount the file system again {RERUN_HINT}",
    errno.EMFILE: f"raise the limit on open files (ulimit -n) {RERUN_HINT}",
    errno.EBUSY: f"another program uses this file: close that program {RERUN_HINT}",
}

_digest_cache: dict[tuple[int, int, int, int, int], str] = {}


@contextlib.contextmanager
def as_user_errors(path: Path) -> Iterator[None]:
    """Convert operating-system errors about a path to UserError."""
    try:
        yield
    except OSError as fault:
        if fault.errno not in OS_ERROR_HINTS:
            raise
        what, hint = fault.strerror or str(fault), OS_ERROR_HINTS[fault.errno]
        raise UserError(what, code="E-storage-os-error", where=path, hint=hint) from fault


def read_bytes(path: Path) -> bytes:
    with as_user_errors(path):
        return path.read_bytes()


def read_json(path: Path) -> Any:
    try:
        return json.loads(read_bytes(path))
    except (ValueError, RecursionError) as fault:
        what, code = "not valid JSON", "E-storage-invalid-json"
        raise UserError(what, code=code, where=path, found=fault, hint=RESTORE_HINT) from None


def read_jsonl(path: Path, *, torn: bool = False) -> Iterator[tuple[int, dict[str, Any]]]:
    """The number (from 1) and record of each line. Raises UserError for a line that is not a JSON object.

    torn  whether to skip an incomplete last line and lines that a power loss damaged
    """
    with as_user_errors(path), open(path, "rb") as file:
        for number, line in enumerate(file, 1):
            if torn and not line.endswith(b"\n"):
                return  # do not read on: another process may have appended the rest of this line
            if not line.strip() or (torn and NUL_BYTE in line):
                continue
            where = f"{path} line {number}"
            try:
                row = json.loads(line, parse_constant=_refuse_non_finite)
            except (ValueError, RecursionError) as fault:
                what, code = "the line is not valid JSON", "E-storage-invalid-json"
                raise UserError(what, code=code, where=where, found=fault, hint=LINE_HINT) from None
            if not isinstance(row, dict):
                what, hint = "the line is not a JSON object", "write one {...} per line"
                raise _record_error(what, where, type(row).__name__, hint)
            yield number, row


def read_complete_lines(path: Path) -> Iterator[dict[str, Any]]:
    """The records in the complete lines of a file to which another process may append. Empty for a missing file.

    An incomplete last line stays in the file; the next `Appender` cuts it off.
    """
    if path.exists():
        for _, row in read_jsonl(path, torn=True):
            yield row


def iter_records(kind: type[Record], path: Path) -> Iterator[Record]:
    """The records of a JSONL file; see `read_jsonl`. Raises UserError if a line is not a record of the class `kind`."""
    for number, row in read_jsonl(path):
        yield _parse_record(kind, row, f"{path} line {number}")


def read_record(kind: type[Record], path: Path) -> Record:
    """The record in a JSON file. Raises UserError if the file is not a record of the class `kind`."""
    return _parse_record(kind, read_json(path), str(path))


def read_records(kind: type[Record], path: Path) -> list[Record]:
    """The list of records in a JSON file. Raises UserError if the file is not a list of records of the class `kind`."""
    rows = read_json(path)
    if not isinstance(rows, list):
        raise _record_error("the file is not a JSON list", path, type(rows).__name__)
    return [_parse_record(kind, row, f"{path} entry {number}") for number, row in enumerate(rows, 1)]


@contextlib.contextmanager
def as_format_errors(path: Path) -> Iterator[None]:
    """Convert errors from parsing the content of a run's JSON file to UserError: somebody has changed the file."""
    try:
        yield
    except (KeyError, TypeError, ValueError, AttributeError) as fault:
        found = f"no field {fault}" if isinstance(fault, KeyError) else fault
        what, code = "the file is not in potstill's format", "E-storage-invalid-format"
        raise UserError(what, code=code, where=path, found=found, hint=RESTORE_HINT) from None


def _parse_record(kind: type[Record], row: Any, where: str) -> Record:
    try:
        return from_json(kind, row)
    except (KeyError, TypeError, ValueError, AttributeError, AssertionError, RecursionError, OverflowError) as fault:
        found = f"no field {fault}" if isinstance(fault, KeyError) else fault
        raise _record_error(f"not a valid {kind.__name__.lower()}", where, found) from None


def _record_error(what: str, where: object, found: object, hint: str = RESTORE_HINT) -> UserError:
    return UserError(what, code="E-storage-invalid-record", where=where, found=found, hint=hint)


def file_digest(path: Path, tick: Callable[[int], object] | None = None) -> str:
    """SHA-256 of a file in hexadecimal; for a folder, SHA-256 over the names and digests of its files.

    A file that this process has already digested is not read again if its size and time stamps are unchanged. `tick` is
    called with the number of bytes of each read.
    """
    if path.is_dir():
        files = sorted(file for file in path.rglob("*") if file.is_file())
        rows = [f"{file.relative_to(path).as_posix()} {file_digest(file, tick)}\n" for file in files]
        return hashlib.sha256("".join(rows).encode("utf-8", "surrogateescape")).hexdigest()
    with as_user_errors(path), open(path, "rb", buffering=0) as file:
        state, start_ns = _file_state(os.fstat(file.fileno())), time.time_ns()
        if state in _digest_cache:
            return _digest_cache[state]
        digest, block = hashlib.sha256(), bytearray(1 << 20)
        view = memoryview(block)
        while count := file.readinto(block):
            digest.update(view[:count])
            if tick is not None:
                tick(count)
        # Do not cache the digest if the file changed while it was read, or so shortly before that a change after the
        # read may leave the same time stamps.
        if state == _file_state(os.fstat(file.fileno())) and start_ns - max(state[3:]) > RACE_WINDOW_NS:
            _digest_cache[state] = digest.hexdigest()
    return digest.hexdigest()


def is_digest_cached(path: Path) -> bool:
    """Whether `file_digest` can return the digest without reading the file."""
    return _file_state(path.stat()) in _digest_cache


def _file_state(stat: os.stat_result) -> tuple[int, int, int, int, int]:
    """Properties of a file that a write changes: device, inode, size, and two time stamps in ns."""
    return stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns


def folder_fingerprint(path: Path) -> str:
    """SHA-256 over the names, the sizes, and the first and last MiB of every file in a folder of weights.

    Takes milliseconds for tens of GB. A change in the middle of a file that keeps its size is not detected.
    """
    digest = hashlib.sha256()
    files = [path] if path.is_file() else sorted(file for file in path.rglob("*") if file.is_file())
    for file in files:
        with as_user_errors(file), open(file, "rb") as stream:
            size = file.stat().st_size
            digest.update(f"{file.name if file == path else file.relative_to(path).as_posix()}\0{size}\0".encode())
            digest.update(stream.read(1 << 20))
            if size > 1 << 20:
                stream.seek(max(1 << 20, size - (1 << 20)))
                digest.update(stream.read())
    return digest.hexdigest()


def _refuse_non_finite(name: str) -> None:
    """Refuse NaN and the infinities, which Python's JSON reader accepts, but which no file of potstill may contain."""
    raise ValueError(f"{name} is not valid JSON")
