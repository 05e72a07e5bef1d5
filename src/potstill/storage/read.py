"""Reading: files as bytes, JSON and records, and what the system says about a path as the user's error.

>>> import tempfile; from potstill.records import Verdict
>>> path = Path(tempfile.mkdtemp()) / "verdicts.jsonl"
>>> _ = path.write_text('{"grade": "right", "found": "7"}\\n{"grade": "right", "fond": "8"}\\n')
>>> verdicts = iter_records(Verdict, path)
>>> next(verdicts)
Verdict(grade='right', answer='7', dropped=None)
>>> try: next(verdicts)
... except UserError as fault: print(fault.what, fault.found)
not a verdict unknown field 'fond'
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

NUL_BYTE: Final = b"\0"  # JSON has none: a line with one was never on the disk as a whole when the power was lost
RESTORE_HINT: Final = "restore the file from a copy; `potstill check RUN` lists everything of a run that differs"
LINE_HINT: Final = "correct this line, or restore the file from a copy"
RERUN_HINT: Final = "and run the same command again; nothing that was finished is lost"
RACE_WINDOW_NS: Final = 50_000_000  # ns after a write within which another one could leave the same times
OS_ERROR_HINTS: Final = {
    errno.ENOSPC: f"make room on the disk {RERUN_HINT}",
    errno.EDQUOT: f"raise the quota {RERUN_HINT}",
    errno.EFBIG: f"raise the limit on file sizes {RERUN_HINT}",
    errno.EACCES: "give yourself the permission, or choose another folder",
    errno.EPERM: "give yourself the permission, or choose another folder",
    errno.EROFS: "choose a folder on a disk that can be written to",
    errno.ENOENT: "check the path",
    errno.EISDIR: "name a file, not a folder",
    errno.ENOTDIR: "a part of this path is a file where a folder belongs: move it, or choose another folder",
    errno.EEXIST: "a file stands where a folder belongs: move it, or choose another folder",
    errno.ENAMETOOLONG: "choose a shorter name",
    errno.ELOOP: "a link in this path leads back to itself: remove it, or name another path",
    errno.EIO: f"the disk has failed to read or write: check it {RERUN_HINT}",
    errno.ESTALE: f"the network file system has lost this file: mount it again {RERUN_HINT}",
    errno.EMFILE: f"raise the limit on open files (ulimit -n) {RERUN_HINT}",
    errno.EBUSY: f"another program holds it: close that program {RERUN_HINT}",
}


_digest_cache: dict[tuple[int, int, int, int, int], str] = {}


@contextlib.contextmanager
def as_user_errors(path: Path) -> Iterator[None]:
    """Turn what the system says about a path into the user's error."""
    try:
        yield
    except OSError as fault:
        if fault.errno not in OS_ERROR_HINTS:
            raise
        raise UserError(fault.strerror or str(fault), where=path, hint=OS_ERROR_HINTS[fault.errno]) from fault


def read_bytes(path: Path) -> bytes:
    with as_user_errors(path):
        return path.read_bytes()


def read_json(path: Path) -> Any:
    try:
        return json.loads(read_bytes(path))
    except (ValueError, RecursionError) as fault:
        raise UserError("not valid JSON", where=path, found=fault, hint=RESTORE_HINT) from None


def read_jsonl(path: Path, *, torn: bool = False) -> Iterator[tuple[int, dict[str, Any]]]:
    """Line number (from 1) and record of each line. Raises UserError for a line that is not a JSON object.

    torn  whether the file may end in a line that was not written to its end, and is left out; so is a line that a power
          loss has torn
    """
    with as_user_errors(path), open(path, "rb") as file:
        for number, text in enumerate(file, 1):
            if torn and not text.endswith(b"\n"):
                return  # its other half may be there by now, and is no line either
            if not text.strip() or (torn and NUL_BYTE in text):
                continue
            try:
                row = json.loads(text, parse_constant=_refuse_non_finite)
            except (ValueError, RecursionError) as fault:
                raise UserError(
                    "not a whole line of JSON",
                    where=f"{path} line {number}",
                    found=fault,
                    hint=LINE_HINT,
                ) from None
            if not isinstance(row, dict):
                raise UserError(
                    "not a JSON object",
                    where=f"{path} line {number}",
                    found=type(row).__name__,
                    hint="one {...} a line",
                )
            yield number, row


def read_complete_lines(path: Path) -> Iterator[dict[str, Any]]:
    """The records of a file that somebody appends to, or did until they were killed: those of its whole lines, none
    where it is not there yet. Cuts nothing off: who appends next does, by opening it."""
    if path.exists():
        for _, row in read_jsonl(path, torn=True):
            yield row


def iter_records(kind: type[Record], path: Path, *, torn: bool = False) -> Iterator[Record]:
    """The records of a JSONL file, one a line; see `read_jsonl`. Raises UserError for a line that is no such record."""
    for number, row in read_jsonl(path, torn=torn):
        yield _parse_record(kind, row, f"{path} line {number}")


def read_record(kind: type[Record], path: Path) -> Record:
    """The one record of a JSON file. Raises UserError where it holds no such record."""
    return _parse_record(kind, read_json(path), str(path))


def read_records(kind: type[Record], path: Path) -> list[Record]:
    """The records of a JSON file that is a list of them. Raises UserError where it holds anything else."""
    rows = read_json(path)
    if not isinstance(rows, list):
        raise UserError("not a list", where=path, found=type(rows).__name__, hint=RESTORE_HINT)
    return [_parse_record(kind, row, f"{path} entry {number}") for number, row in enumerate(rows, 1)]


@contextlib.contextmanager
def as_format_errors(path: Path) -> Iterator[None]:
    """Taking a JSON file of a run apart: what does not fit is the user's error, for somebody has changed the file."""
    try:
        yield
    except (KeyError, TypeError, ValueError, AttributeError) as fault:
        found = f"no field {fault}" if isinstance(fault, KeyError) else fault
        raise UserError("not what potstill has written", where=path, found=found, hint=RESTORE_HINT) from None


def _parse_record(kind: type[Record], row: Any, where: str) -> Record:
    try:
        return from_json(kind, row)
    except (KeyError, TypeError, ValueError, AttributeError, AssertionError, RecursionError, OverflowError) as fault:
        raise UserError(
            f"not a {kind.__name__.lower()}",
            where=where,
            found=f"no field {fault}" if isinstance(fault, KeyError) else fault,
            hint=RESTORE_HINT,
        ) from None


def file_digest(path: Path, tick: Callable[[int], object] | None = None) -> str:
    """SHA-256 of a file, in hexadecimal; of a folder, over the names and digests of its files.

    tick  is called with how many bytes more were read
    A file that this process has read before is not read again, as long as its size and times are the same.
    """
    if path.is_dir():
        inside = sorted(file for file in path.rglob("*") if file.is_file())
        rows = [f"{file.relative_to(path).as_posix()} {file_digest(file, tick)}\n" for file in inside]
        return hashlib.sha256("".join(rows).encode("utf-8", "surrogateescape")).hexdigest()
    with as_user_errors(path), open(path, "rb", buffering=0) as file:
        before, began = _file_state(os.fstat(file.fileno())), time.time_ns()
        if before in _digest_cache:
            return _digest_cache[before]
        state, block = hashlib.sha256(), bytearray(1 << 20)
        view = memoryview(block)
        while count := file.readinto(block):
            state.update(view[:count])
            if tick is not None:
                tick(count)
        if before == _file_state(os.fstat(file.fileno())) and began - max(before[3:]) > RACE_WINDOW_NS:
            _digest_cache[before] = state.hexdigest()
    return state.hexdigest()


def is_digest_cached(path: Path) -> bool:
    """Whether `digest` would not have to read a file."""
    return _file_state(path.stat()) in _digest_cache


def _file_state(found: os.stat_result) -> tuple[int, int, int, int, int]:
    """What is other after a file was written to: device, inode, size, and two times in ns."""
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns


def folder_fingerprint(path: Path) -> str:
    """Identity of a folder of weights: SHA-256 over names, sizes, and the first and last MiB of each file.

    Tens of gigabytes are known again in milliseconds; a change inside the middle of a file of equal size is not seen.
    """
    state = hashlib.sha256()
    files = [path] if path.is_file() else sorted(file for file in path.rglob("*") if file.is_file())
    for file in files:
        with as_user_errors(file), open(file, "rb") as opened:
            size = file.stat().st_size
            state.update(f"{file.name if file == path else file.relative_to(path).as_posix()}\0{size}\0".encode())
            state.update(opened.read(1 << 20))
            if size > 1 << 20:
                opened.seek(max(1 << 20, size - (1 << 20)))
                state.update(opened.read())
    return state.hexdigest()


def _refuse_non_finite(name: str) -> None:
    """NaN and the infinities, which Python writes and JSON does not know: no record of ours could hold them."""
    raise ValueError(f"{name} is no JSON")
