"""Reading: files as bytes, JSON and records, and what the system says about a path as the user's error.

>>> import tempfile; from potstill.records import Verdict
>>> path = Path(tempfile.mkdtemp()) / "verdicts.jsonl"
>>> _ = path.write_text('{"grade": "right", "found": "7"}\\n{"grade": "right", "fond": "8"}\\n')
>>> verdicts = records(Verdict, path)
>>> next(verdicts)
Verdict(grade='right', found='7', dropped=None)
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

from potstill.encoding import Record, from_json
from potstill.errors import UserError

HOLE: Final = b"\0"  # JSON has none: a line with one was never on the disk as a whole when the power was lost
RESTORE: Final = "restore the file from a copy; `potstill check RUN` lists everything of a run that differs"
LINE: Final = "correct this line, or restore the file from a copy"
AGAIN: Final = "and run the same command again; nothing that was finished is lost"
RACE: Final = 50_000_000  # ns after a write within which another one could leave the same times
ADVICE: Final = {
    errno.ENOSPC: f"make room on the disk {AGAIN}",
    errno.EDQUOT: f"raise the quota {AGAIN}",
    errno.EFBIG: f"raise the limit on file sizes {AGAIN}",
    errno.EACCES: "give yourself the permission, or choose another folder",
    errno.EPERM: "give yourself the permission, or choose another folder",
    errno.EROFS: "choose a folder on a disk that can be written to",
    errno.ENOENT: "check the path",
    errno.EISDIR: "name a file, not a folder",
    errno.ENOTDIR: "a part of this path is a file where a folder belongs: move it, or choose another folder",
    errno.EEXIST: "a file stands where a folder belongs: move it, or choose another folder",
    errno.ENAMETOOLONG: "choose a shorter name",
    errno.ELOOP: "a link in this path leads back to itself: remove it, or name another path",
    errno.EIO: f"the disk has failed to read or write: check it {AGAIN}",
    errno.ESTALE: f"the network file system has lost this file: mount it again {AGAIN}",
    errno.EMFILE: f"raise the limit on open files (ulimit -n) {AGAIN}",
    errno.EBUSY: f"another program holds it: close that program {AGAIN}",
}


_known: dict[tuple[int, int, int, int, int], str] = {}


@contextlib.contextmanager
def mine_to_mend(path: Path) -> Iterator[None]:
    """Turn what the system says about a path into the user's error."""
    try:
        yield
    except OSError as fault:
        if fault.errno not in ADVICE:
            raise
        raise UserError(fault.strerror or str(fault), where=path, do=ADVICE[fault.errno]) from fault


def read_bytes(path: Path) -> bytes:
    with mine_to_mend(path):
        return path.read_bytes()


def read_json(path: Path) -> Any:
    try:
        return json.loads(read_bytes(path))
    except (ValueError, RecursionError) as fault:
        raise UserError("not valid JSON", where=path, found=fault, do=RESTORE) from None


def read_jsonl(path: Path, *, torn: bool = False) -> Iterator[tuple[int, dict[str, Any]]]:
    """Line number (from 1) and record of each line. Raises UserError for a line that is not a JSON object.

    torn  whether the file may end in a line that was not written to its end, and is left out; so is a line that a power
          loss has torn
    """
    with mine_to_mend(path), open(path, "rb") as file:
        for number, text in enumerate(file, 1):
            if torn and not text.endswith(b"\n"):
                return  # its other half may be there by now, and is no line either
            if not text.strip() or (torn and HOLE in text):
                continue
            try:
                row = json.loads(text, parse_constant=_no_number)
            except (ValueError, RecursionError) as fault:
                raise UserError(
                    "not a whole line of JSON",
                    where=f"{path} line {number}",
                    found=fault,
                    do=LINE,
                ) from None
            if not isinstance(row, dict):
                raise UserError(
                    "not a JSON object", where=f"{path} line {number}", found=type(row).__name__, do="one {...} a line"
                )
            yield number, row


def whole_rows(path: Path) -> Iterator[dict[str, Any]]:
    """The records of a file that somebody appends to, or did until they were killed: those of its whole lines, none
    where it is not there yet. Cuts nothing off: who appends next does, by opening it."""
    if path.exists():
        for _, row in read_jsonl(path, torn=True):
            yield row


def records(kind: type[Record], path: Path, *, torn: bool = False) -> Iterator[Record]:
    """The records of a JSONL file, one a line; see `read_jsonl`. Raises UserError for a line that is no such record."""
    for number, row in read_jsonl(path, torn=torn):
        yield _record(kind, row, f"{path} line {number}")


def read_record(kind: type[Record], path: Path) -> Record:
    """The one record of a JSON file. Raises UserError where it holds no such record."""
    return _record(kind, read_json(path), str(path))


def read_records(kind: type[Record], path: Path) -> list[Record]:
    """The records of a JSON file that is a list of them. Raises UserError where it holds anything else."""
    rows = read_json(path)
    if not isinstance(rows, list):
        raise UserError("not a list", where=path, found=type(rows).__name__, do=RESTORE)
    return [_record(kind, row, f"{path} entry {number}") for number, row in enumerate(rows, 1)]


@contextlib.contextmanager
def as_written(path: Path) -> Iterator[None]:
    """Taking a JSON file of a run apart: what does not fit is the user's error, for somebody has changed the file."""
    try:
        yield
    except (KeyError, TypeError, ValueError, AttributeError) as fault:
        found = f"no field {fault}" if isinstance(fault, KeyError) else fault
        raise UserError("not what potstill has written", where=path, found=found, do=RESTORE) from None


def _record(kind: type[Record], row: Any, where: str) -> Record:
    try:
        return from_json(kind, row)
    except (KeyError, TypeError, ValueError, AttributeError, AssertionError, RecursionError, OverflowError) as fault:
        raise UserError(
            f"not a {kind.__name__.lower()}",
            where=where,
            found=f"no field {fault}" if isinstance(fault, KeyError) else fault,
            do=RESTORE,
        ) from None


def digest(path: Path, tick: Callable[[int], object] | None = None) -> str:
    """SHA-256 of a file, in hexadecimal; of a folder, over the names and digests of its files.

    tick  is called with how many bytes more were read
    A file that this process has read before is not read again, as long as its size and times are the same.
    """
    if path.is_dir():
        inside = sorted(file for file in path.rglob("*") if file.is_file())
        rows = [f"{file.relative_to(path).as_posix()} {digest(file, tick)}\n" for file in inside]
        return hashlib.sha256("".join(rows).encode("utf-8", "surrogateescape")).hexdigest()
    with mine_to_mend(path), open(path, "rb", buffering=0) as file:
        before, began = _inode(os.fstat(file.fileno())), time.time_ns()
        if before in _known:
            return _known[before]
        state, block = hashlib.sha256(), bytearray(1 << 20)
        view = memoryview(block)
        while count := file.readinto(block):
            state.update(view[:count])
            if tick is not None:
                tick(count)
        if before == _inode(os.fstat(file.fileno())) and began - max(before[3:]) > RACE:
            _known[before] = state.hexdigest()
    return state.hexdigest()


def known(path: Path) -> bool:
    """Whether `digest` would not have to read a file."""
    return _inode(path.stat()) in _known


def _inode(found: os.stat_result) -> tuple[int, int, int, int, int]:
    """What is other after a file was written to: device, inode, size, and two times in ns."""
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns


def fingerprint(path: Path) -> str:
    """Identity of a folder of weights: SHA-256 over names, sizes, and the first and last MiB of each file.

    Tens of gigabytes are known again in milliseconds; a change inside the middle of a file of equal size is not seen.
    """
    state = hashlib.sha256()
    files = [path] if path.is_file() else sorted(file for file in path.rglob("*") if file.is_file())
    for file in files:
        with mine_to_mend(file), open(file, "rb") as opened:
            size = file.stat().st_size
            state.update(f"{file.name if file == path else file.relative_to(path).as_posix()}\0{size}\0".encode())
            state.update(opened.read(1 << 20))
            if size > 1 << 20:
                opened.seek(max(1 << 20, size - (1 << 20)))
                state.update(opened.read())
    return state.hexdigest()


def _no_number(name: str) -> None:
    """NaN and the infinities, which Python writes and JSON does not know: no record of ours could hold them."""
    raise ValueError(f"{name} is no JSON")
