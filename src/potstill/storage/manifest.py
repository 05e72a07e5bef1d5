"""Manifests: what a stage folder was made from, and whether it still fits.

    >>> made = Identity("filter", {"answers": 1}, {"filter.max_per_question": None}, {"sample": "ab12"})
    >>> now = Identity("filter", {"answers": 2}, {"filter.max_per_question": 4}, {"sample": "ab12"})
    >>> identity_differences(made, now)
    ['filter.max_per_question: null -> 4', 'version of answers: 1 -> 2']

A stage folder holds `begun.json` from its first moment and `manifest.json` from its last: present means done. Both hold
the identity: the versions of the rooms whose output it holds, the recipe keys that it read with their values, and one
digest for each stage or outside folder that it read from.

Integrity: whether the files of a finished stage still are what its manifest says, to the byte.

    >>> import tempfile; run = Path(tempfile.mkdtemp()); (run / "filter").mkdir()
    >>> _ = (run / "filter" / "a").write_bytes(b"a")
    >>> done = finish_stage(run / "filter", Identity("filter", {}, {}, {}), [run / "filter" / "a"], {})
    >>> verify_files(run, done)
    >>> _ = (run / "filter" / "a").write_bytes(b"b")
    >>> try: verify_files(run, done)
    ... except UserError as fault: print(fault.what)
    changed since its stage was finished

`manifest.finished` looks at sizes, which costs nothing. These read every byte: SHA-256 of a GB takes about a second.
A file that this process has read already is not read again, as long as its size and times stay.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from potstill import progress
from potstill.errors import UserError
from potstill.storage import atomic, read

FORMAT_VERSION: Final = 1  # of the files in a run folder
FIRST_VERSION: Final = 1  # the version of what an older manifest does not name: packages count from 1
VERSION_PREFIX: Final = (
    "version of "  # what inputs that are versions begin with: of packages that only some recipes need
)
BEGUN_FILE, MANIFEST_FILE = "begun.json", "manifest.json"


@dataclass(frozen=True, slots=True)
class Identity:
    """All that decides the bytes of a stage's output.

    recipe  dotted key -> value as plain JSON
    inputs  name of a stage or of an outside folder -> digest
    """

    stage: str
    versions: Mapping[str, int]
    recipe: Mapping[str, Any]
    inputs: Mapping[str, str]

    def as_json(self) -> dict[str, Any]:
        return {
            "format": FORMAT_VERSION,
            "stage": self.stage,
            "versions": dict(sorted(self.versions.items())),
            "recipe": dict(sorted(self.recipe.items())),
            "inputs": dict(sorted(self.inputs.items())),
        }


@dataclass(frozen=True, slots=True)
class Manifest:
    """A finished stage: its identity, the digest and size of every file that it made, and what it counted."""

    identity: Identity
    outputs: Mapping[str, Mapping[str, Any]]  # path from the folder above the stage's -> sha256, bytes
    counts: Mapping[str, Any]

    @property
    def digest(self) -> str:
        """One digest for all outputs: what a later stage names as its input."""
        listing = json.dumps({name: row["sha256"] for name, row in sorted(self.outputs.items())})
        return hashlib.sha256(listing.encode()).hexdigest()


def read_begun(folder: Path) -> Identity | None:
    """The identity that a stage began with here, None if none did."""
    path = folder / BEGUN_FILE
    return _parse_identity(path, read.read_json(path)) if path.exists() else None


def read_finished(folder: Path) -> Manifest | None:
    """The manifest of a finished stage, None if it is not finished.

    Raises UserError if a file that it names is gone or has another size.
    """
    path = folder / MANIFEST_FILE
    if not path.exists():
        return None
    manifest = read_manifest(path)
    for name, output in manifest.outputs.items():
        file = folder.parent / name
        size = file.stat().st_size if file.is_file() else None
        if size != output["bytes"]:
            raise UserError(
                "changed since its stage was finished",
                where=file,
                found="no such file" if size is None else f"{size} bytes, not {output['bytes']}",
                hint=damage_hint(manifest.identity.stage, manifest.identity),
            )
    return manifest


def read_manifest(path: Path) -> Manifest:
    """A manifest, without a look at the files that it names. Raises UserError where it is none."""
    row = read.read_json(path)
    identity = _parse_identity(path, row)
    outputs, counts = row.get("outputs"), row.get("counts")
    if not isinstance(outputs, dict) or not isinstance(counts, dict):
        raise _manifest_error(path, "no outputs or no counts")
    for name, output in outputs.items():
        whole = isinstance(output, dict) and isinstance(output.get("sha256"), str) and type(output.get("bytes")) is int
        if not whole or name.startswith("/") or ".." in name.split("/") or "\0" in name:
            raise _manifest_error(path, f"an output {name[:80]!r} that potstill did not write")
    return Manifest(identity, outputs, counts)


def damage_hint(stage: str, identity: Identity | None = None) -> str:
    """What to do about a damaged file of a stage. Never to make paid chains again."""
    name = _redo_stage(stage)
    known = "restore it from a copy; `potstill check RUN` lists everything that differs"
    if name == "collect":
        return f"{known}. `potstill collect` makes the same bytes again from a copy of the recipe with another name"
    kinds = {} if identity is None else identity.recipe
    if name == "sample" and (not kinds or "openai" in (kinds.get("teacher.kind"), kinds.get("teacher.score.kind"))):
        return known
    return f"{known}. Or make the stage and all later ones again with --redo {name}"


def begin_stage(folder: Path, identity: Identity, redone: Iterable[str] = ()) -> Manifest | None:
    """Start or go on with a stage in its folder. Returns the manifest if it is finished already.

    redone  the stages that would have to be made again, for the message
    Raises UserError, naming the keys, if the folder was begun with another identity.
    """
    atomic.delete_partial_files(folder)
    before = read_begun(folder)
    if before is None or (is_stage_empty(folder) and identity_differences(before, identity)):
        atomic.write_json(folder / BEGUN_FILE, identity.as_json())
        return None
    check_identity(folder, before, identity, redone)
    return read_finished(folder)


def is_stage_empty(folder: Path) -> bool:
    """Whether a stage was begun here and has made nothing yet, so that nothing is lost by beginning anew."""
    return all(path.name == BEGUN_FILE or path.name.endswith(atomic.PARTIAL_SUFFIX) for path in folder.iterdir())


def check_identity(folder: Path, before: Identity, now: Identity, redone: Iterable[str] = ()) -> None:
    changed = identity_differences(before, now)
    if changed:
        stages = ", ".join(redone)
        raise UserError(
            f"{folder.name} was made from something else",
            where=folder,
            found="; ".join(changed),
            hint=_identity_hint(folder, _redo_stage(now.stage), stages),
        )


def finish_stage(folder: Path, identity: Identity, outputs: Iterable[Path], counts: Mapping[str, Any]) -> Manifest:
    """Write the manifest: the last thing that a stage does. `outputs` lie under the folder that `folder` lies in."""
    rows = {
        path.relative_to(folder.parent).as_posix(): {"sha256": read.file_digest(path), "bytes": path.stat().st_size}
        for path in sorted(outputs)
    }
    atomic.write_json(folder / MANIFEST_FILE, {**identity.as_json(), "outputs": rows, "counts": dict(counts)})
    return Manifest(identity, rows, counts)


def identity_differences(before: Identity, now: Identity) -> list[str]:
    """What differs between two identities, one line each: key: old -> new."""
    lines = []
    for key in sorted(set(before.recipe) | set(now.recipe)):
        old, new = before.recipe.get(key), now.recipe.get(key)
        if old != new:
            lines.append(f"{key}: {json.dumps(old, ensure_ascii=False)} -> {json.dumps(new, ensure_ascii=False)}")
    for name in sorted(set(before.versions) | set(now.versions)):
        old, new = before.versions.get(name, FIRST_VERSION), now.versions.get(name, FIRST_VERSION)
        if old != new:
            lines.append(f"version of {name}: {old} -> {new}")
    for name in sorted(set(before.inputs) | set(now.inputs)):
        first = str(FIRST_VERSION) if name.startswith(VERSION_PREFIX) else None
        old, new = before.inputs.get(name, first), now.inputs.get(name, first)
        if old != new and first:
            lines.append(f"{name}: {old} -> {new}")
        elif old != new:
            lack = " (none before)" if old is None else " (none now)" if new is None else ""
            lines.append(f"content of {name}{lack}")
    return lines


def _parse_identity(path: Path, row: Any) -> Identity:
    if not isinstance(row, dict) or row.get("format") != FORMAT_VERSION:
        found = row.get("format") if isinstance(row, dict) else type(row).__name__
        raise UserError(
            f"this potstill reads file format {FORMAT_VERSION}",
            where=path,
            found=found,
            hint="use the version that made this run",
        )
    kinds = {"stage": str, "versions": dict, "recipe": dict, "inputs": dict}
    for name, kind in kinds.items():
        if not isinstance(row.get(name), kind):
            raise _manifest_error(path, f"no field {name!r}" if name not in row else f"{name} is no {kind.__name__}")
    return Identity(row["stage"], row["versions"], row["recipe"], row["inputs"])


def _manifest_error(path: Path, found: str) -> UserError:
    stage = path.parent.name if path.parent.name.isalpha() else path.parent.parent.name
    return UserError("not a whole manifest", where=path, found=found, hint=damage_hint(stage))


def _identity_hint(folder: Path, stage: str, redone: str) -> str:
    """What to do about a stage that was made from something else. Chains of a server were paid for: nothing advises to
    remove them."""
    if stage in ("collect", "sample") and has_server_chains(folder.parent):
        return "put the old values back, or give the recipe another name: this run keeps its chains as they are"
    return f"put the old values back, or consent with --redo {stage}" + (f" (makes {redone} again)" if redone else "")


def has_server_chains(run_dir: Path) -> bool:
    """Whether the chains of a run, if it has any, came from a server, or were scored by one."""
    before = read_begun(run_dir / "sample")
    known = {} if before is None else before.recipe
    return "openai" in (known.get("teacher.kind"), known.get("teacher.score.kind"))


def _redo_stage(stage: str) -> str:
    """The stage to name with --redo: `evaluate/250` is a part of `evaluate`."""
    return stage.partition("/")[0]


@dataclass(frozen=True, slots=True)
class DamagedFile:
    """A file that is not as it was written: what is wrong with it, in one line."""

    path: Path
    what: str


def verify_files(
    run_dir: Path, done: Manifest, unread: Collection[str] = (), tick: Callable[[int], object] | None = None
) -> None:
    """Raise UserError for the first output of a finished stage whose bytes have changed.

    unread  beginnings of the names of outputs that nobody is going to read
    tick    is called with how many bytes more were read
    """
    for found in find_damaged_files(run_dir, _select_outputs(done.outputs, unread), tick):
        raise UserError(
            "changed since its stage was finished",
            where=found.path,
            found=found.what,
            hint=damage_hint(done.identity.stage, done.identity),
        )


def find_damaged_files(
    run_dir: Path, outputs: Mapping[str, Mapping[str, Any]], tick: Callable[[int], object] | None = None
) -> Iterator[DamagedFile]:
    """Every output that is gone, unreadable, of another size, or of another digest."""
    for name, row in outputs.items():
        path = run_dir / name
        try:
            if not path.is_file():
                yield DamagedFile(path, "no such file")
            elif (size := path.stat().st_size) != row["bytes"]:
                yield DamagedFile(path, f"{size} bytes, not {row['bytes']}")
            elif (now := read.file_digest(path, tick)) != row["sha256"]:
                yield DamagedFile(path, f"sha256 {now[:16]}..., not {row['sha256'][:16]}...")
        except UserError as fault:
            yield DamagedFile(path, fault.what)


def unverified_bytes(run_dir: Path, outputs: Mapping[str, Mapping[str, Any]], unread: Collection[str] = ()) -> int:
    """How many bytes `verify` would have to read."""
    paths = [run_dir / name for name in _select_outputs(outputs, unread)]
    return sum(path.stat().st_size for path in paths if path.is_file() and not read.is_digest_cached(path))


def mebibyte_counter(tick: progress.Advance | None) -> Callable[[int], object] | None:
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


def _select_outputs(outputs: Mapping[str, Mapping[str, Any]], unread: Collection[str]) -> dict[str, Mapping[str, Any]]:
    return {name: row for name, row in outputs.items() if not name.startswith(tuple(unread))}
