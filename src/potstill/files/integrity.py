"""Integrity: whether the files of a finished stage still are what its manifest says, to the byte.

    >>> import tempfile; run = Path(tempfile.mkdtemp()); (run / "filter").mkdir()
    >>> _ = (run / "filter" / "a").write_bytes(b"a")
    >>> done = manifest.finish(run / "filter", manifest.Identity("filter", {}, {}, {}), [run / "filter" / "a"], {})
    >>> verify(run, done)
    >>> _ = (run / "filter" / "a").write_bytes(b"b")
    >>> try: verify(run, done)
    ... except UserError as fault: print(fault.what)
    changed since its stage was finished

`manifest.finished` looks at sizes, which costs nothing. These read every byte: SHA-256 of a GB takes about a second.
A file that this process has read already is not read again, as long as its size and times stay.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from potstill import progress
from potstill.errors import UserError
from potstill.files import manifest, reading
from potstill.files.manifest import Manifest


@dataclass(frozen=True, slots=True)
class Difference:
    """A file that is not as it was written: what is wrong with it, in one line."""

    path: Path
    what: str


def verify(
    run: Path, done: Manifest, unread: Collection[str] = (), tick: Callable[[int], object] | None = None
) -> None:
    """Raise UserError for the first output of a finished stage whose bytes have changed.

    unread  beginnings of the names of outputs that nobody is going to read
    tick    is called with how many bytes more were read
    """
    for found in differences(run, _read(done.outputs, unread), tick):
        raise UserError(
            "changed since its stage was finished",
            where=found.path,
            found=found.what,
            do=manifest.remedy(done.identity.stage, done.identity),
        )


def differences(
    run: Path, outputs: Mapping[str, Mapping[str, Any]], tick: Callable[[int], object] | None = None
) -> Iterator[Difference]:
    """Every output that is gone, unreadable, of another size, or of another digest."""
    for name, row in outputs.items():
        path = run / name
        try:
            if not path.is_file():
                yield Difference(path, "no such file")
            elif (size := path.stat().st_size) != row["bytes"]:
                yield Difference(path, f"{size} bytes, not {row['bytes']}")
            elif (now := reading.digest(path, tick)) != row["sha256"]:
                yield Difference(path, f"sha256 {now[:16]}..., not {row['sha256'][:16]}...")
        except UserError as fault:
            yield Difference(path, fault.what)


def unknown_bytes(run: Path, outputs: Mapping[str, Mapping[str, Any]], unread: Collection[str] = ()) -> int:
    """How many bytes `verify` would have to read."""
    paths = [run / name for name in _read(outputs, unread)]
    return sum(path.stat().st_size for path in paths if path.is_file() and not reading.known(path))


def mebibytes(tick: progress.Tick | None) -> Callable[[int], object] | None:
    """A bar that counts MiB, told of bytes."""
    if tick is None:
        return None
    left = 0

    def more(count: int) -> None:
        nonlocal left
        whole, left = divmod(left + count, 1 << 20)
        if whole:
            tick(whole)

    return more


def _read(outputs: Mapping[str, Mapping[str, Any]], unread: Collection[str]) -> dict[str, Mapping[str, Any]]:
    return {name: row for name, row in outputs.items() if not name.startswith(tuple(unread))}
