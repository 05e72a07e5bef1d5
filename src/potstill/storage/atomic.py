"""The only writer: every byte that potstill leaves on a disk goes through the operations of this module.

    >>> import tempfile; folder = Path(tempfile.mkdtemp())
    >>> write_file(folder / "a.txt", b"whole or not at all")
    >>> with Appender(folder / "b.jsonl") as lines:
    ...     lines.append([{"x": 1}, {"x": 2}])
    >>> (folder / "b.jsonl").read_text()
    '{"x":1}\\n{"x":2}\\n'

Each operation can be crashed by a test before, in the middle of, and after it: set `crash` to a function that raises
or kills. What an operation leaves behind then is either nothing, or a `.potstill-partial` that the next run deletes, or
a torn last line that the next `Appender` cuts off.

After a power loss only what was flushed (fsync) is certain: the content of files, and the names in a folder. `write`,
`folder` and `remove` return when both are on the disk. Appended rows are when `sync` returns, or about a second later.
What was not flushed may be lost or torn, and a part of it may read as NUL bytes.

Parts: lines in a new folder of files, none longer or larger than it may be.

>>> import tempfile; out = Path(tempfile.mkdtemp()) / "out"
>>> [path.name for path in write_rolling_files(out, [b"a\\n", b"bb\\n", b"c\\n"], "lines", most_lines=2, most_bytes=5)]
['lines-0001.jsonl', 'lines-0002.jsonl']
>>> (out / "lines-0002.jsonl").read_bytes()
b'c\\n'
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO, Literal, Self

from potstill.errors import UserError
from potstill.storage.read import NUL_BYTE, as_user_errors

Operation = Literal["write", "append", "folder", "remove"]
Moment = Literal["before", "middle", "after"]

PARTIAL_SUFFIX = ".potstill-partial"  # a name that nobody else gives a file: these are deleted
SYNC_INTERVAL = 1.0  # seconds after which appended rows are flushed to the disk
FOLDER_SYNC_UNSUPPORTED = (errno.EINVAL, errno.ENOTSUP, errno.ENOSYS)  # of file systems that cannot flush a folder


def _no_crash(operation: Operation, moment: Moment, path: Path) -> None:
    """Tests put their own function here."""


crash: Callable[[Operation, Moment, Path], None] = _no_crash


def write_file(path: Path, data: bytes) -> None:
    """Put `data` at `path`, whole or not at all: written beside it, flushed to the disk, then renamed into place.

    Raises UserError where the disk is full or may not be written to.
    """
    with write_stream(path) as file:
        file.write(data)


@contextlib.contextmanager
def write_stream(path: Path) -> Iterator[BinaryIO]:
    """A file that is written piece by piece and appears at `path` only when the block ends well; see `write`."""
    crash("write", "before", path)
    beside = _partial_path(path)
    with as_user_errors(path):
        make_folder(path.parent)
        try:
            with open(beside, "wb") as file:
                yield file
                file.flush()
                crash("write", "middle", path)
                os.fsync(file.fileno())
            os.replace(beside, path)
            _sync_folder(path.parent)
        except Exception:
            beside.unlink(missing_ok=True)
            raise
    crash("write", "after", path)


def write_json(path: Path, value: Any) -> None:
    write_file(path, (json.dumps(value, ensure_ascii=False, indent=1) + "\n").encode())


def write_jsonl(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    write_file(path, b"".join(encode_json_line(row) for row in rows))


def encode_json_line(row: Mapping[str, Any]) -> bytes:
    """One record as one line of compact JSON."""
    text = json.dumps(row, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    try:
        return text.encode() + b"\n"
    except UnicodeEncodeError:  # half of a surrogate pair has no UTF-8, but an escape in JSON
        return json.dumps(row, separators=(",", ":"), allow_nan=False).encode() + b"\n"


class Appender:
    """A JSONL file that grows record by record. Opening it cuts a torn last line off.

    `append` hands its rows to the system as one write; a crash in it can tear them, at worst within a line. A power
    loss may take or tear those of the last `SYNC_EVERY` seconds, in any order, but none from before the last `sync`.

    ordered  whether the order of the rows is part of a result: then opening it also cuts off everything from the first
             line on that a power loss has torn. Otherwise such a line stays, and those who read the file skip it.
    """

    def __init__(self, path: Path, *, ordered: bool = False) -> None:
        self.path = path
        with as_user_errors(path):
            make_folder(path.parent)
            new = not path.exists()
            self._file = open(path, "ab", buffering=0)  # noqa: SIM115 - closed by __exit__
            if new:
                _sync_folder(path.parent)
            self._cut_torn_line()
            if ordered:
                self._cut_from_hole()
        self._synced = time.monotonic()

    def _cut_torn_line(self) -> None:
        with open(self.path, "rb") as file:
            end = file.seek(0, os.SEEK_END)
            keep, block = end, 1 << 16
            while keep > 0:
                start = max(0, keep - block)
                file.seek(start)
                newline = file.read(keep - start).rfind(b"\n")
                if newline >= 0:
                    keep = start + newline + 1
                    break
                keep = start
        if keep < end:
            os.truncate(self.path, keep)

    def _cut_from_hole(self) -> None:
        keep = 0
        with open(self.path, "rb") as file:
            for text in file:
                if NUL_BYTE in text:
                    os.truncate(self.path, keep)
                    return
                keep += len(text)

    def append(self, rows: Iterable[Mapping[str, Any]]) -> None:
        self.append_lines(encode_json_line(row) for row in rows)

    def append_lines(self, lines: Iterable[bytes]) -> None:
        """Lines as `line` makes them, together in one write."""
        data = b"".join(lines)
        if not data:
            return
        crash("append", "before", self.path)
        with as_user_errors(self.path):
            start = os.fstat(self._file.fileno()).st_size
            try:
                self._write(data[: len(data) // 2])
                crash("append", "middle", self.path)
                self._write(data[len(data) // 2 :])
            except OSError:
                os.ftruncate(self._file.fileno(), start)
                raise
        crash("append", "after", self.path)
        if time.monotonic() - self._synced >= SYNC_INTERVAL:
            self.sync()

    def sync(self) -> None:
        """Return when every row so far is on the disk."""
        with as_user_errors(self.path):
            os.fsync(self._file.fileno())
        self._synced = time.monotonic()

    def _write(self, data: bytes) -> None:
        while data:  # an unbuffered write may take less than it was given
            data = data[self._file.write(data) :]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with as_user_errors(self.path):
            os.fsync(self._file.fileno())
            self._file.close()


def make_folder(path: Path) -> None:
    """Make a folder and those above it where they are missing; their names are on the disk when this returns."""
    missing = []
    above = path
    while not above.exists():
        missing.append(above)
        above = above.parent
    path.mkdir(parents=True, exist_ok=True)
    for made in reversed(missing):
        _sync_folder(made.parent)


@contextlib.contextmanager
def write_folder(path: Path) -> Iterator[Path]:
    """A new folder that other libraries may write into; it appears at `path` only when the block ends well.

    An older folder at `path` is replaced.
    """
    crash("folder", "before", path)
    beside, older = _partial_path(path), _partial_path(path, "older")
    with as_user_errors(path):
        _delete_any(beside)
        make_folder(beside)
        try:
            yield beside
            for made in beside.rglob("*"):
                if made.is_file():
                    copy_mode(beside, made)
            _sync_tree(beside)
        except Exception:
            shutil.rmtree(beside, ignore_errors=True)
            raise
        crash("folder", "middle", path)
        _delete_any(older)
        replaced = os.path.lexists(path)
        if replaced:
            os.replace(path, older)
        os.replace(beside, path)
        _sync_folder(path.parent)
        if replaced:
            _delete_any(older)
            _sync_folder(path.parent)
    crash("folder", "after", path)


def copy_mode(source: Path, path: Path) -> None:
    """Let others read and write a file as they may a file or folder that was made here: safetensors makes files that
    their owner alone may read, whatever the umask says."""
    os.chmod(path, source.stat().st_mode & 0o666)


def remove(path: Path) -> None:
    """Take a file, a folder or a link away; it is gone from its name before its content is deleted.

    Where a link stands for a folder, the link goes and the folder stays.
    """
    if not os.path.lexists(path):
        return
    crash("remove", "before", path)
    with as_user_errors(path):
        gone = _partial_path(path)
        _delete_any(gone)
        os.replace(path, gone)
        _sync_folder(path.parent)
        crash("remove", "middle", path)
        _delete_any(gone)
        _sync_folder(path.parent)  # else it could come back under the name that nobody looks for any more
    crash("remove", "after", path)


def delete_partial_files(path: Path) -> None:
    """Delete what an interrupted operation left directly in a folder, and nothing that somebody else has put there."""
    if path.is_dir():
        for left in path.glob(f".*{PARTIAL_SUFFIX}"):
            with as_user_errors(left):
                _delete_any(left)


def _partial_path(path: Path, what: str = "") -> Path:
    """The name beside `path` of what is not whole yet, or not deleted yet."""
    return path.with_name(f".{path.name}{'.' * bool(what)}{what}{PARTIAL_SUFFIX}")


def _delete_any(path: Path) -> None:
    """Delete whatever stands there, if anything does; `rmtree` refuses a link to a folder."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _sync_tree(path: Path) -> None:
    """Flush the content of every file of a folder, and the names of all that is in it."""
    for at, _, names in os.walk(path):
        for name in names:
            if not os.path.islink(os.path.join(at, name)):
                with open(os.path.join(at, name), "rb") as opened:
                    os.fsync(opened.fileno())
        _sync_folder(Path(at))


def _sync_folder(path: Path) -> None:
    """Flush the names in a folder: a new file or a rename is certain only after this."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as fault:
        if fault.errno not in FOLDER_SYNC_UNSUPPORTED:
            raise
    finally:
        os.close(handle)


def write_rolling_files(
    out: Path, lines: Iterable[bytes], name: str, *, most_lines: int, most_bytes: int
) -> list[Path]:
    """Put lines into as many files as they need; the folder appears with all of them or not at all. No line: no folder.

    Raises UserError where something stands at `out` already, before the first line is asked for.
    """
    if out.is_symlink() or (out.exists() and not (out.is_dir() and not any(out.iterdir()))):
        raise UserError("there is something already", where=out, hint="name a new folder")
    rows = iter(lines)
    first = next(rows, None)
    if first is None:
        return []
    names: list[str] = []
    with write_folder(out) as folder, contextlib.ExitStack() as opened:
        file: BinaryIO | None = None
        count = size = 0
        for line in chain([first], rows):
            if file is None or count == most_lines or size + len(line) > most_bytes:
                opened.close()
                names.append(f"{name}-{len(names) + 1:04}.jsonl")
                file = opened.enter_context(write_stream(folder / names[-1]))
                count = size = 0
            file.write(line)
            count, size = count + 1, size + len(line)
    return [out / each for each in names]
