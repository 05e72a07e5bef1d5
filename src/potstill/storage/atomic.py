"""Every operation of potstill that writes to a disk. An interrupted operation leaves the old state or the new state.

    >>> import tempfile; folder = Path(tempfile.mkdtemp())
    >>> write_file(folder / "a.txt", b"all of it or nothing")
    >>> with Appender(folder / "b.jsonl") as file:
    ...     file.append([{"x": 1}, {"x": 2}])
    >>> (folder / "b.jsonl").read_text()
    '{"x":1}\\n{"x":2}\\n'

A crash may also leave a `.potstill-partial` file, which the next run deletes, or an incomplete last line, which the next
`Appender` cuts off. Tests set `crash` to a function that raises, or kills the process, before, during and after each
operation.

Only flushed (fsync) data is safe from a power loss. This applies to the content of files and to the names in a folder.
`write_file`, `write_folder` and `remove` return when content and names are on the disk. Appended rows are on the disk
when `sync` returns, or about a second later. Data that was not flushed may be lost or damaged; parts of it may be NUL
bytes.
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

PARTIAL_SUFFIX = ".potstill-partial"  # only potstill writes files with this suffix; the next run deletes them
RESUMED_SUFFIX = ".potstill-part"  # files with this suffix are continued, not deleted
LINKED_SUFFIXES = (".npy", ".parquet", ".safetensors")  # of files that are written once
SYNC_INTERVAL = 1.0  # seconds after which appended rows are flushed to the disk
FOLDER_SYNC_UNSUPPORTED = (errno.EINVAL, errno.ENOTSUP, errno.ENOSYS)  # errors of file systems that cannot sync folders


def _no_crash(operation: Operation, moment: Moment, path: Path) -> None:
    """Do nothing. Tests replace this function."""


crash: Callable[[Operation, Moment, Path], None] = _no_crash


def write_file(path: Path, data: bytes) -> None:
    """Write `data` to `path` atomically: write a partial file, flush it to the disk, then rename it.

    Raises UserError if the disk is full or not writable.
    """
    with write_stream(path) as file:
        file.write(data)


@contextlib.contextmanager
def write_stream(path: Path) -> Iterator[BinaryIO]:
    """Yield a file to write in parts. The file appears at `path` only if the block succeeds; see `write_file`."""
    with _replacing(path, _partial_path(path), "wb") as file:
        yield file


@contextlib.contextmanager
def resume_stream(path: Path) -> Iterator[BinaryIO]:
    """Yield a file to append to. It contains the data that earlier, failed blocks for `path` wrote.

    It appears at `path` if the block succeeds. If the block fails, the data stays in a file next to `path` for the next
    block; an empty file is deleted.
    """
    with _replacing(path, path.with_name(f".{path.name}{RESUMED_SUFFIX}"), "a+b") as file:
        yield file


@contextlib.contextmanager
def _replacing(path: Path, partial: Path, mode: Literal["wb", "a+b"]) -> Iterator[BinaryIO]:
    """Yield the file `partial`, which replaces `path` if the block succeeds. If the block fails, the file is deleted,
    unless it was opened for appending and has data."""
    crash("write", "before", path)
    with as_user_errors(path):
        make_folder(path.parent)
        try:
            with open(partial, mode) as file:
                yield file
                file.flush()
                crash("write", "middle", path)
                os.fsync(file.fileno())
            os.replace(partial, path)
            _sync_folder(path.parent)
        except Exception:
            if partial.exists() and (mode == "wb" or not partial.stat().st_size):
                partial.unlink()
            raise
    crash("write", "after", path)


def write_json(path: Path, value: Any) -> None:
    write_file(path, (json.dumps(value, ensure_ascii=False, indent=1) + "\n").encode())


def write_jsonl(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    write_file(path, b"".join(encode_json_line(row) for row in rows))


def encode_json_line(row: Mapping[str, Any]) -> bytes:
    """One record as one line of compact JSON in UTF-8."""
    text = json.dumps(row, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    try:
        return text.encode() + b"\n"
    except UnicodeEncodeError:  # UTF-8 cannot encode half of a surrogate pair, but a JSON escape can
        return json.dumps(row, separators=(",", ":"), allow_nan=False).encode() + b"\n"


class Appender:
    """A JSONL file that grows record by record. Opening it cuts off an incomplete last line.

    `append` passes its rows to the system in one write. A crash may leave the last line incomplete. A power loss may
    lose or damage any rows of the last `SYNC_INTERVAL` seconds, but no rows from before the last `sync`.

    ordered  whether the order of the rows is part of a result. If True, opening the file also cuts off the first damaged
             line and all lines after it. Otherwise a damaged line stays in the file, and readers skip it.
    """

    def __init__(self, path: Path, *, ordered: bool = False) -> None:
        self.path = path
        with as_user_errors(path):
            make_folder(path.parent)
            new = not path.exists()
            self._file = open(path, "ab", buffering=0)  # noqa: SIM115 - closed by __exit__
            if new:
                _sync_folder(path.parent)
            self._cut_incomplete_line()
            if ordered:
                self._cut_from_damaged_line()
        self._synced = time.monotonic()

    def _cut_incomplete_line(self) -> None:
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

    def _cut_from_damaged_line(self) -> None:
        keep = 0
        with open(self.path, "rb") as file:
            for line in file:
                if NUL_BYTE in line:
                    os.truncate(self.path, keep)
                    return
                keep += len(line)

    def append(self, rows: Iterable[Mapping[str, Any]]) -> None:
        self.append_lines(encode_json_line(row) for row in rows)

    def append_lines(self, lines: Iterable[bytes]) -> None:
        """Append lines from `encode_json_line` in one write."""
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
        """Flush all appended rows to the disk."""
        with as_user_errors(self.path):
            os.fsync(self._file.fileno())
        self._synced = time.monotonic()

    def _write(self, data: bytes) -> None:
        while data:  # an unbuffered write may write only a part of the data
            data = data[self._file.write(data) :]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with as_user_errors(self.path):
            os.fsync(self._file.fileno())
            self._file.close()


def open_message_file(path: Path) -> BinaryIO:
    """A file for the messages of another process, which it appends to. No result is read from it."""
    with as_user_errors(path):
        make_folder(path.parent)
        return path.open("ab")


def make_folder(path: Path) -> None:
    """Make a folder and its missing parents, and flush their names to the disk."""
    missing = []
    parent = path
    while not parent.exists():
        missing.append(parent)
        parent = parent.parent
    path.mkdir(parents=True, exist_ok=True)
    for folder in reversed(missing):
        _sync_folder(folder.parent)


@contextlib.contextmanager
def write_folder(path: Path) -> Iterator[Path]:
    """Yield a new folder that other libraries may write into.

    The folder appears at `path` only if the block succeeds. It then replaces an older folder at `path`.
    """
    crash("folder", "before", path)
    partial, older = _partial_path(path), _partial_path(path, "older")
    with as_user_errors(path):
        _delete_any(partial)
        make_folder(partial)
        try:
            yield partial
            for file in partial.rglob("*"):
                if file.is_file():
                    copy_mode(partial, file)
            _sync_tree(partial)
        except Exception:
            shutil.rmtree(partial, ignore_errors=True)
            raise
        crash("folder", "middle", path)
        _delete_any(older)
        replaced = os.path.lexists(path)
        if replaced:
            os.replace(path, older)
        os.replace(partial, path)
        _sync_folder(path.parent)
        if replaced:
            _delete_any(older)
            _sync_folder(path.parent)
    crash("folder", "after", path)


def rename_folder(source: Path, path: Path) -> None:
    """Give a complete folder its name. There is nothing at `path`."""
    crash("folder", "before", path)
    with as_user_errors(path):
        _sync_tree(source)
        crash("folder", "middle", path)
        os.rename(source, path)
        _sync_folder(path.parent)
    crash("folder", "after", path)


def link_or_copy(source: Path, path: Path) -> None:
    """Give a file a second name, or copy it, if it may grow (JSON lines) or the disk has no links.

    Every other file of potstill is replaced as a whole when it changes, which leaves the second name as it is.
    """
    make_folder(path.parent)
    if source.suffix in LINKED_SUFFIXES:
        with contextlib.suppress(OSError):
            os.link(source, path)
            return
    shutil.copyfile(source, path)


def copy_mode(source: Path, path: Path) -> None:
    """Copy the read and write permissions of `source`, a file or folder that potstill made, to the file `path`.

    safetensors makes files that only their owner may read, whatever the umask is.
    """
    os.chmod(path, source.stat().st_mode & 0o666)


def remove(path: Path) -> None:
    """Remove a file, folder or link. It is renamed first, so a half-deleted folder never has the name `path`.

    For a link to a folder, only the link is removed.
    """
    if not os.path.lexists(path):
        return
    crash("remove", "before", path)
    with as_user_errors(path):
        partial = _partial_path(path)
        _delete_any(partial)
        os.replace(path, partial)
        _sync_folder(path.parent)
        crash("remove", "middle", path)
        _delete_any(partial)
        _sync_folder(path.parent)  # otherwise the partial name could reappear after a power loss
    crash("remove", "after", path)


def delete_partial_files(path: Path) -> None:
    """Delete the partial files and folders that interrupted operations left directly in a folder."""
    if path.is_dir():
        for partial in path.glob(f".*{PARTIAL_SUFFIX}"):
            with as_user_errors(partial):
                _delete_any(partial)


def _partial_path(path: Path, label: str = "") -> Path:
    """A path next to `path` for a file or folder that is not yet complete, or not yet deleted."""
    return path.with_name(f".{path.name}{'.' * bool(label)}{label}{PARTIAL_SUFFIX}")


def _delete_any(path: Path) -> None:
    """Delete a file, folder or link if it exists. Links are unlinked, because `rmtree` refuses a link to a folder."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _sync_tree(path: Path) -> None:
    """Flush the content of every file in a folder, and all names in the folder."""
    for folder, _, names in os.walk(path):
        for name in names:
            if not os.path.islink(os.path.join(folder, name)):
                with open(os.path.join(folder, name), "rb") as file:
                    os.fsync(file.fileno())
        _sync_folder(Path(folder))


def _sync_folder(path: Path) -> None:
    """Flush the names in a folder. Only then is a new file or a rename safe from a power loss."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as fault:
        if fault.errno not in FOLDER_SYNC_UNSUPPORTED:
            raise
    finally:
        os.close(handle)


def write_rolling_files(
    folder: Path, lines: Iterable[bytes], name: str, *, max_lines: int, max_bytes: int
) -> list[Path]:
    """Write lines into as many files as the limits require.

    The folder appears with all of its files, or not at all. Without lines, there is no folder.

        >>> import tempfile; folder = Path(tempfile.mkdtemp()) / "out"
        >>> paths = write_rolling_files(folder, [b"a\\n", b"bb\\n", b"c\\n"], "lines", max_lines=2, max_bytes=5)
        >>> [(path.name, path.read_bytes()) for path in paths]
        [('lines-0001.jsonl', b'a\\nbb\\n'), ('lines-0002.jsonl', b'c\\n')]

    Raises UserError if `folder` exists and is not empty, before it reads the first line.
    """
    if folder.is_symlink() or (folder.exists() and not (folder.is_dir() and not any(folder.iterdir()))):
        raise UserError(
            "the output folder is not empty", code="E-storage-folder-exists", where=folder, hint="name a new folder"
        )
    rows = iter(lines)
    first = next(rows, None)
    if first is None:
        return []
    names: list[str] = []
    with write_folder(folder) as partial, contextlib.ExitStack() as stack:
        file: BinaryIO | None = None
        count = size = 0
        for line in chain([first], rows):
            if file is None or count == max_lines or size + len(line) > max_bytes:
                stack.close()
                names.append(f"{name}-{len(names) + 1:04}.jsonl")
                file = stack.enter_context(write_stream(partial / names[-1]))
                count = size = 0
            file.write(line)
            count, size = count + 1, size + len(line)
    return [folder / name for name in names]
