"""A disk that loses its power: what may be left of a run's folder, by what was flushed (fsync) until then.

    with cut_at(folder, number, survivors, draw):     # PowerLoss at the moment of this number
        tiny.make(world, folder)                      # then `survivors` holds what the disk still has

Certain after a power loss are only the content of a file and the names in a folder when they were last flushed. Of what
came later, any part may be there: without a `draw` none of it is, and with one each name and each file is as it was
flushed, as it was at the end, or in between: a file cut somewhere, or with NUL bytes in the place of some pages.
A moment is one of `disk.crash`, or a flush that does not happen any more.
"""

from __future__ import annotations

import os
import random
import resource
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from crashing import Crash
from potstill.storage import atomic

PAGE = 512  # of a disk, small as these files are


class PowerLoss(Crash):
    """What stops a stage where the power goes."""


class Disk:
    """What is certain of a folder: by inode, as names move."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.content: dict[int, bytes] = {}
        self.names: dict[int, dict[str, int]] = {}
        self._kept: dict[int, int] = {}  # inode -> a handle, so that its number is not given to another file
        for at, _, names in os.walk(root):
            for path in (at, *(os.path.join(at, name) for name in names)):
                handle = os.open(path, os.O_RDONLY)
                self.flush(handle)
                os.close(handle)

    def flush(self, handle: int) -> None:
        found = os.fstat(handle)
        self._keep(found.st_ino, f"/proc/self/fd/{handle}")
        if stat.S_ISDIR(found.st_mode):
            self.names[found.st_ino] = self._listing(f"/proc/self/fd/{handle}")
        else:
            self.content[found.st_ino] = Path(f"/proc/self/fd/{handle}").read_bytes()

    def survivors(self, to: Path, draw: random.Random | None) -> None:
        """Write what is left into a new folder."""
        self._folder(self.root.stat().st_ino, str(self.root), to, draw)

    def close(self) -> None:
        for handle in self._kept.values():
            os.close(handle)

    def _folder(self, inode: int, now: str | None, to: Path, draw: random.Random | None) -> None:
        to.mkdir()
        certain = self.names.get(inode, {})
        current = {} if now is None or draw is None else self._listing(now)
        for name in sorted(certain.keys() | current.keys()):
            chosen = certain.get(name) if draw is None or draw.random() < 0.5 else current.get(name)
            if chosen is None:
                continue
            path = self._path(chosen)
            if stat.S_ISDIR(os.stat(path).st_mode):
                self._folder(chosen, path, to / name, draw)
            else:
                (to / name).write_bytes(self._file(chosen, path, draw))

    def _file(self, inode: int, path: str, draw: random.Random | None) -> bytes:
        certain = self.content.get(inode, b"")
        if draw is None:
            return certain
        current = Path(path).read_bytes()
        kind = draw.choice(("certain", "current", "cut", "holes"))
        if kind in ("certain", "current"):
            return certain if kind == "certain" else current
        pairs = enumerate(zip(certain, current, strict=False))
        common = next((at for at, (was, now) in pairs if was != now), min(len(certain), len(current)))
        if kind == "cut":
            return current[: draw.randint(common, len(current))]
        torn = bytearray(current)
        for start in range(common, len(torn), PAGE):
            if draw.random() < 0.5:
                end = min(start + PAGE, len(torn))
                torn[start:end] = bytes(end - start)
        return bytes(torn)

    def _listing(self, path: str) -> dict[str, int]:
        found = {entry.name: entry.inode() for entry in os.scandir(path)}
        for name, inode in found.items():
            self._keep(inode, os.path.join(path, name))
        return found

    def _keep(self, inode: int, path: str) -> None:
        if inode not in self._kept:
            self._kept[inode] = os.open(path, os.O_RDONLY)

    def _path(self, inode: int) -> str:
        return f"/proc/self/fd/{self._kept[inode]}"


@contextmanager
def cut_at(folder: Path, number: int, survivors: Path, draw: random.Random | None = None) -> Iterator[list[str]]:
    """Raise PowerLoss at the moment of this number, counted from 0, and write what the disk then holds to `survivors`.
    Yields the moments so far. `folder` is whole on the disk when this begins."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    machine, moments = Disk(folder), list[str]()
    plain, root = os.fsync, str(folder)

    def moment(what: str) -> None:
        if survivors.exists():
            raise PowerLoss  # another thread, after the end
        moments.append(what)
        if len(moments) == number + 1:
            machine.survivors(survivors, draw)
            raise PowerLoss

    def fsync(handle: int) -> None:
        path = os.readlink(f"/proc/self/fd/{handle}")
        if path.startswith(root):
            if os.path.basename(path) != "log.jsonl":
                moment(f"flush of {path[len(root) :]}")
            machine.flush(handle)

    def crash(operation: atomic.Operation, at: atomic.Moment, path: Path) -> None:
        if path.name != "log.jsonl":
            moment(f"{operation} of {path}, {at}")

    os.fsync, atomic.crash = fsync, crash
    try:
        yield moments
    finally:
        os.fsync, atomic.crash = plain, atomic._no_crash
        machine.close()
