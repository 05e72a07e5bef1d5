"""Manifests: what a stage folder was made from, and whether it still fits.

    >>> made = Identity("filter", {"answers": 1}, {"filter.cap": None}, {"sample": "ab12"})
    >>> now = Identity("filter", {"answers": 2}, {"filter.cap": 4}, {"sample": "ab12"})
    >>> differences(made, now)
    ['filter.cap: null -> 4', 'version of answers: 1 -> 2']

A stage folder holds `begun.json` from its first moment and `manifest.json` from its last: present means done. Both hold
the identity: the versions of the rooms whose output it holds, the recipe keys that it read with their values, and one
digest for each stage or outside folder that it read from.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from potstill.errors import UserError
from potstill.files import disk, reading

FORMAT: Final = 1  # of the files in a run folder
FIRST: Final = 1  # the version of what an older manifest does not name: packages count from 1
VERSION_OF: Final = "version of "  # what inputs that are versions begin with: of packages that only some recipes need
BEGUN, MANIFEST = "begun.json", "manifest.json"


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
            "format": FORMAT,
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


def begun(folder: Path) -> Identity | None:
    """The identity that a stage began with here, None if none did."""
    path = folder / BEGUN
    return _identity(path, reading.read_json(path)) if path.exists() else None


def finished(folder: Path) -> Manifest | None:
    """The manifest of a finished stage, None if it is not finished.

    Raises UserError if a file that it names is gone or has another size.
    """
    path = folder / MANIFEST
    if not path.exists():
        return None
    manifest = read(path)
    for name, output in manifest.outputs.items():
        file = folder.parent / name
        size = file.stat().st_size if file.is_file() else None
        if size != output["bytes"]:
            raise UserError(
                "changed since its stage was finished",
                where=file,
                found="no such file" if size is None else f"{size} bytes, not {output['bytes']}",
                do=remedy(manifest.identity.stage, manifest.identity),
            )
    return manifest


def read(path: Path) -> Manifest:
    """A manifest, without a look at the files that it names. Raises UserError where it is none."""
    row = reading.read_json(path)
    identity = _identity(path, row)
    outputs, counts = row.get("outputs"), row.get("counts")
    if not isinstance(outputs, dict) or not isinstance(counts, dict):
        raise _no_manifest(path, "no outputs or no counts")
    for name, output in outputs.items():
        whole = isinstance(output, dict) and isinstance(output.get("sha256"), str) and type(output.get("bytes")) is int
        if not whole or name.startswith("/") or ".." in name.split("/") or "\0" in name:
            raise _no_manifest(path, f"an output {name[:80]!r} that potstill did not write")
    return Manifest(identity, outputs, counts)


def remedy(stage: str, identity: Identity | None = None) -> str:
    """What to do about a damaged file of a stage. Never to make paid chains again."""
    name = _redo(stage)
    known = "restore it from a copy; `potstill check RUN` lists everything that differs"
    if name == "collect":
        return f"{known}. `potstill collect` makes the same bytes again from a copy of the recipe with another name"
    kinds = {} if identity is None else identity.recipe
    if name == "sample" and (not kinds or "openai" in (kinds.get("teacher.kind"), kinds.get("teacher.score.kind"))):
        return known
    return f"{known}. Or make the stage and all later ones again with --redo {name}"


def begin(folder: Path, identity: Identity, redone: Iterable[str] = ()) -> Manifest | None:
    """Start or go on with a stage in its folder. Returns the manifest if it is finished already.

    redone  the stages that would have to be made again, for the message
    Raises UserError, naming the keys, if the folder was begun with another identity.
    """
    disk.sweep(folder)
    before = begun(folder)
    if before is None or (is_bare(folder) and differences(before, identity)):
        disk.write_json(folder / BEGUN, identity.as_json())
        return None
    check(folder, before, identity, redone)
    return finished(folder)


def is_bare(folder: Path) -> bool:
    """Whether a stage was begun here and has made nothing yet, so that nothing is lost by beginning anew."""
    return all(path.name == BEGUN or path.name.endswith(disk.PARTIAL) for path in folder.iterdir())


def check(folder: Path, before: Identity, now: Identity, redone: Iterable[str] = ()) -> None:
    changed = differences(before, now)
    if changed:
        stages = ", ".join(redone)
        raise UserError(
            f"{folder.name} was made from something else",
            where=folder,
            found="; ".join(changed),
            do=_otherwise(folder, _redo(now.stage), stages),
        )


def finish(folder: Path, identity: Identity, outputs: Iterable[Path], counts: Mapping[str, Any]) -> Manifest:
    """Write the manifest: the last thing that a stage does. `outputs` lie under the folder that `folder` lies in."""
    rows = {
        path.relative_to(folder.parent).as_posix(): {"sha256": reading.digest(path), "bytes": path.stat().st_size}
        for path in sorted(outputs)
    }
    disk.write_json(folder / MANIFEST, {**identity.as_json(), "outputs": rows, "counts": dict(counts)})
    return Manifest(identity, rows, counts)


def differences(before: Identity, now: Identity) -> list[str]:
    """What differs between two identities, one line each: key: old -> new."""
    lines = []
    for key in sorted(set(before.recipe) | set(now.recipe)):
        old, new = before.recipe.get(key), now.recipe.get(key)
        if old != new:
            lines.append(f"{key}: {json.dumps(old, ensure_ascii=False)} -> {json.dumps(new, ensure_ascii=False)}")
    for name in sorted(set(before.versions) | set(now.versions)):
        old, new = before.versions.get(name, FIRST), now.versions.get(name, FIRST)
        if old != new:
            lines.append(f"version of {name}: {old} -> {new}")
    for name in sorted(set(before.inputs) | set(now.inputs)):
        first = str(FIRST) if name.startswith(VERSION_OF) else None
        old, new = before.inputs.get(name, first), now.inputs.get(name, first)
        if old != new and first:
            lines.append(f"{name}: {old} -> {new}")
        elif old != new:
            lack = " (none before)" if old is None else " (none now)" if new is None else ""
            lines.append(f"content of {name}{lack}")
    return lines


def _identity(path: Path, row: Any) -> Identity:
    if not isinstance(row, dict) or row.get("format") != FORMAT:
        found = row.get("format") if isinstance(row, dict) else type(row).__name__
        raise UserError(
            f"this potstill reads file format {FORMAT}",
            where=path,
            found=found,
            do="use the version that made this run",
        )
    kinds = {"stage": str, "versions": dict, "recipe": dict, "inputs": dict}
    for name, kind in kinds.items():
        if not isinstance(row.get(name), kind):
            raise _no_manifest(path, f"no field {name!r}" if name not in row else f"{name} is no {kind.__name__}")
    return Identity(row["stage"], row["versions"], row["recipe"], row["inputs"])


def _no_manifest(path: Path, found: str) -> UserError:
    stage = path.parent.name if path.parent.name.isalpha() else path.parent.parent.name
    return UserError("not a whole manifest", where=path, found=found, do=remedy(stage))


def _otherwise(folder: Path, stage: str, redone: str) -> str:
    """What to do about a stage that was made from something else. Chains of a server were paid for: nothing advises to
    remove them."""
    if stage in ("collect", "sample") and from_server(folder.parent):
        return "put the old values back, or give the recipe another name: this run keeps its chains as they are"
    return f"put the old values back, or consent with --redo {stage}" + (f" (makes {redone} again)" if redone else "")


def from_server(run: Path) -> bool:
    """Whether the chains of a run, if it has any, came from a server, or were scored by one."""
    before = begun(run / "sample")
    known = {} if before is None else before.recipe
    return "openai" in (known.get("teacher.kind"), known.get("teacher.score.kind"))


def _redo(stage: str) -> str:
    """The stage to name with --redo: `evaluate/250` is a part of `evaluate`."""
    return stage.partition("/")[0]
