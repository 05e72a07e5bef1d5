"""Manifests: the inputs of a stage, whether they still match the recipe, and whether the stage's files are unchanged.

    >>> before = Identity("filter", {"answers": 1}, {"filter.max_per_question": None}, {"sample": "ab12"})
    >>> now = Identity("filter", {"answers": 2}, {"filter.max_per_question": 4}, {"sample": "ab12"})
    >>> identity_differences(before, now)
    ['filter.max_per_question: null -> 4', 'version of answers: 1 -> 2']

A stage writes `begun.json` first and `manifest.json` last, so a stage with a manifest is finished. Both files contain the
identity of the stage: the versions of the packages that determine its output, the recipe keys that it reads with their
values, and a digest of each stage or external folder that it reads. The manifest also contains the size and SHA-256 of
every file that the stage made.

    >>> import tempfile; run_dir = Path(tempfile.mkdtemp()); (run_dir / "filter").mkdir()
    >>> _ = (run_dir / "filter" / "a").write_bytes(b"a")
    >>> manifest = finish_stage(run_dir / "filter", before, [run_dir / "filter" / "a"], {"kept": 1})
    >>> verify_files(run_dir, manifest)
    >>> _ = (run_dir / "filter" / "a").write_bytes(b"b")
    >>> try: verify_files(run_dir, manifest)
    ... except UserError as fault: print(fault.code)
    E-run-file-changed

`read_finished` compares only sizes, which takes no time. `verify_files` reads every byte, about one GB per second. It
skips a file that this process has already digested if the file's size and time stamps are unchanged.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple

from potstill import progress
from potstill.errors import UserError
from potstill.storage import atomic, read

FORMAT_VERSION: Final = 1  # version of the format of a run folder's files
FIRST_VERSION: Final = 1  # the assumed version of a package that an older manifest does not name
BUILTIN_PREFIX: Final = "built-in set "  # prefix of inputs that older runs did not record, and that a machine may lack
FREED_KEYS: Final = (("train", "train.save_adapter"),)  # a stage, and a key in older identities that it no longer reads
VERSION_PREFIX: Final = "version of "  # prefix of inputs that are the versions of packages that only some recipes use
SLOW_VERIFY_BYTES: Final = 1 << 30  # above this, reading takes over two seconds, and a progress bar is shown
BEGUN_FILE, MANIFEST_FILE = "begun.json", "manifest.json"

Outputs = Mapping[str, Mapping[str, Any]]  # path relative to the run's folder -> {"sha256": ..., "bytes": ...}


@dataclass(frozen=True, slots=True)
class Identity:
    """Everything that determines the bytes of a stage's output.

    recipe  dotted key -> value as plain JSON
    inputs  name of a stage or of an external folder -> digest
    """

    stage: str
    versions: Mapping[str, int]
    recipe: Mapping[str, Any]
    inputs: Mapping[str, str]

    def as_json(self) -> dict[str, Any]:
        parts = {"versions": self.versions, "recipe": self.recipe, "inputs": self.inputs}
        sorted_parts = {name: dict(sorted(part.items())) for name, part in parts.items()}
        return {"format": FORMAT_VERSION, "stage": self.stage, **sorted_parts}


@dataclass(frozen=True, slots=True)
class Manifest:
    """A finished stage: its identity, the digest and size of every file that it made, and its counts."""

    identity: Identity
    outputs: Outputs
    counts: Mapping[str, Any]

    @property
    def digest(self) -> str:
        """The digest of all outputs together. The identity of a later stage contains it."""
        rows = json.dumps({name: row["sha256"] for name, row in sorted(self.outputs.items())})
        return hashlib.sha256(rows.encode()).hexdigest()


class StageState(NamedTuple):
    """The state of a stage's folder.

    begun     the identity with which the stage started; None if it never started
    manifest  the manifest; None if the stage is not finished
    is_empty  whether the stage has made no file yet, so that starting again loses nothing
    """

    begun: Identity | None
    manifest: Manifest | None
    is_empty: bool


class DamagedFile(NamedTuple):
    """A file that differs from what its stage wrote, and the difference in one line."""

    path: Path
    problem: str


def read_state(folder: Path) -> StageState:
    """The state of a stage, without a check of the outputs (see `check_sizes`)."""
    path = folder / MANIFEST_FILE
    names = [path.name for path in folder.iterdir()] if folder.is_dir() else []
    is_empty = all(name == BEGUN_FILE or name.endswith(atomic.PARTIAL_SUFFIX) for name in names)
    return StageState(read_begun(folder), read_manifest(path) if path.exists() else None, is_empty)


def read_begun(folder: Path) -> Identity | None:
    """The identity with which a stage started; None if it never started."""
    path = folder / BEGUN_FILE
    return _parse_identity(path, read.read_json(path)) if path.exists() else None


def read_finished(folder: Path) -> Manifest | None:
    """The manifest of a stage; None if the stage is not finished.

    Raises UserError if a file in the manifest is missing or has another size.
    """
    path = folder / MANIFEST_FILE
    if not path.exists():
        return None
    manifest = read_manifest(path)
    check_sizes(folder.parent, manifest)
    return manifest


def read_manifest(path: Path) -> Manifest:
    """A manifest, without a check of its files. Raises UserError if the manifest is malformed."""
    row = read.read_json(path)
    identity = _parse_identity(path, row)
    outputs, counts = row.get("outputs"), row.get("counts")
    if not isinstance(outputs, dict) or not isinstance(counts, dict):
        raise _manifest_error(path, "no outputs or no counts")
    for name, output in outputs.items():
        valid = isinstance(output, dict) and isinstance(output.get("sha256"), str) and type(output.get("bytes")) is int
        if not valid or name.startswith("/") or ".." in name.split("/") or "\0" in name:
            raise _manifest_error(path, f"the output {name[:80]!r}, which potstill does not write")
    return Manifest(identity, outputs, counts)


def begin_stage(
    folder: Path, identity: Identity, redone: Iterable[str] = (), state: StageState | None = None
) -> Manifest | None:
    """Start or resume a stage in its folder. Returns the manifest if it is already finished.

    redone  the stages that would have to be made again, for the message
    state   the state of the stage, if the caller has already read it

    Raises UserError if the stage was started with another identity (with the differences), or if an output is missing or
    has another size.
    """
    atomic.delete_partial_files(folder)
    state = read_state(folder) if state is None else state
    if state.begun is None or (state.is_empty and identity_differences(state.begun, identity)):
        atomic.write_json(folder / BEGUN_FILE, identity.as_json())
        return None
    check_identity(folder, state.begun, identity, redone)
    if state.manifest is not None:
        check_sizes(folder.parent, state.manifest)
    return state.manifest


def finish_stage(folder: Path, identity: Identity, outputs: Iterable[Path], counts: Mapping[str, Any]) -> Manifest:
    """Write the manifest, the last step of a stage. The outputs are in the run's folder, the parent of `folder`."""
    rows = {
        path.relative_to(folder.parent).as_posix(): {"sha256": read.file_digest(path), "bytes": path.stat().st_size}
        for path in sorted(outputs)
    }
    atomic.write_json(folder / MANIFEST_FILE, {**identity.as_json(), "outputs": rows, "counts": dict(counts)})
    return Manifest(identity, rows, counts)


def copy_stage(source: Path, folder: Path, identity: Identity, folders: tuple[str, str] = ("", "")) -> None:
    """Make a finished stage from the finished stage of another run. Files that never change become links.

    source    the other stage's folder, whose content is what `identity` would make
    folders   name of a folder within `source`, and its new name
    """
    done = read_manifest(source / MANIFEST_FILE)

    def rename(path: str) -> str:
        first, slash, rest = path.partition("/")
        return folders[1] + slash + rest if slash and first == folders[0] else path

    outputs = {
        f"{folder.name}/{rename(name.removeprefix(f'{source.name}/'))}": row for name, row in done.outputs.items()
    }
    with atomic.write_folder(folder) as partial:
        for path in sorted(source.rglob("*")):
            name = path.relative_to(source).as_posix()
            if path.is_file() and name not in (BEGUN_FILE, MANIFEST_FILE) and not path.name.startswith("."):
                atomic.link_or_copy(path, partial / rename(name))
        atomic.write_json(partial / BEGUN_FILE, identity.as_json())
        row = {**identity.as_json(), "outputs": dict(sorted(outputs.items())), "counts": done.counts}
        atomic.write_json(partial / MANIFEST_FILE, row)


def check_identity(folder: Path, before: Identity, now: Identity, redone: Iterable[str] = ()) -> None:
    """Raise UserError, with the differences, if a stage was started with another identity."""
    if differences := identity_differences(before, now):
        stage = _redo_stage(now.stage)
        makes = f" (makes {', '.join(redone)} again)" if redone else ""
        hint = f"restore the old values, or allow it with --redo {stage}{makes}"
        if stage in ("collect", "sample") and has_server_chains(
            folder.parent
        ):  # the hint never suggests removing paid chains
            hint = "restore the old values, or give the recipe another name: this run keeps its paid chains"
        what, found = f"the stage {now.stage} was made from other inputs", "; ".join(differences)
        raise UserError(what, code="E-run-stage-differs", where=folder, found=found, hint=hint)


def identity_differences(before: Identity, now: Identity) -> list[str]:
    """The differences between two identities, one line per difference, such as `key: old -> new`."""
    lines = []
    for key, old, new in _changes(before.recipe, now.recipe):
        if new is None and (before.stage, key) in FREED_KEYS:
            continue
        lines.append(f"{key}: {json.dumps(old, ensure_ascii=False)} -> {json.dumps(new, ensure_ascii=False)}")
    for name, old, new in _changes(before.versions, now.versions, FIRST_VERSION):
        lines.append(f"version of {name}: {old} -> {new}")
    for name, old, new in _changes(before.inputs, now.inputs):
        if name.startswith(VERSION_PREFIX):
            old, new = old or str(FIRST_VERSION), new or str(FIRST_VERSION)
            lines += [f"{name}: {old} -> {new}"] if old != new else []
        elif not name.startswith(BUILTIN_PREFIX) or (old is not None and new is not None):
            missing = " (none before)" if old is None else " (none now)" if new is None else ""
            lines.append(f"content of {name}{missing}")
    return lines


def _changes(
    before: Mapping[str, Any], now: Mapping[str, Any], default: object = None
) -> Iterator[tuple[str, Any, Any]]:
    """Key, old value and new value of every entry that differs, sorted by key."""
    for key in sorted(set(before) | set(now)):
        old, new = before.get(key, default), now.get(key, default)
        if old != new:
            yield key, old, new


def check_sizes(run_dir: Path, manifest: Manifest) -> None:
    """Raise UserError if an output of a finished stage is missing or has another size."""
    for name, output in manifest.outputs.items():
        if problem := _size_problem(run_dir / name, output):
            raise _changed_error(run_dir / name, problem, manifest.identity)


def _size_problem(path: Path, output: Mapping[str, Any]) -> str:
    size = path.stat().st_size if path.is_file() else None
    if size is None:
        return "no such file"
    return "" if size == output["bytes"] else f"{size} bytes, not {output['bytes']}"


def verify_files(
    run_dir: Path, manifest: Manifest, unread: Collection[str] = (), tick: Callable[[int], object] | None = None
) -> None:
    """Raise UserError for the first output of a finished stage whose bytes have changed.

    unread  prefixes of the names of outputs that are not checked, because no stage will read them
    tick    function that is called with the number of bytes of each read
    """
    for file in find_damaged_files(run_dir, _select_outputs(manifest.outputs, unread), tick):
        raise _changed_error(file.path, file.problem, manifest.identity)


def find_damaged_files(
    run_dir: Path, outputs: Outputs, tick: Callable[[int], object] | None = None
) -> Iterator[DamagedFile]:
    """Every output that is missing or unreadable, or has another size or digest."""
    for name, row in outputs.items():
        path = run_dir / name
        try:
            problem = _size_problem(path, row)
            if not problem and (digest := read.file_digest(path, tick)) != row["sha256"]:
                problem = f"sha256 {digest[:16]}..., not {row['sha256'][:16]}..."
        except UserError as fault:
            problem = fault.what
        if problem:
            yield DamagedFile(path, problem)


def unverified_bytes(run_dir: Path, outputs: Outputs, unread: Collection[str] = ()) -> int:
    """The number of bytes that `verify_files` would read."""
    paths = [run_dir / name for name in _select_outputs(outputs, unread)]
    return sum(path.stat().st_size for path in paths if path.is_file() and not read.is_digest_cached(path))


def mebibyte_counter(tick: progress.Advance | None) -> Callable[[int], object] | None:
    """A function that takes a number of bytes and advances a progress bar in MiB; None without a bar."""
    if tick is None:
        return None
    remainder = 0

    def advance(count: int) -> None:
        nonlocal remainder
        whole, remainder = divmod(remainder + count, 1 << 20)
        if whole:
            tick(whole)

    return advance


def damage_hint(stage: str, identity: Identity | None = None) -> str:
    """A hint for a damaged file of a stage. It never suggests paying for chains again."""
    stage = _redo_stage(stage)
    restore = "restore the file from a copy; `potstill check RUN` lists every changed file"
    if stage == "collect":
        return f"{restore}. `potstill collect` with a copy of the recipe under another name makes the same bytes again"
    if stage == "sample" and (identity is None or not identity.recipe or _is_server_identity(identity)):
        return restore
    return f"{restore}. Or make this stage and all later stages again with --redo {stage}"


def has_server_chains(run_dir: Path) -> bool:
    """Whether a run has chains that a server generated or scored."""
    begun = read_begun(run_dir / "sample")
    return begun is not None and _is_server_identity(begun)


def _is_server_identity(identity: Identity) -> bool:
    kinds = [value for key, value in identity.recipe.items() if key.startswith("teacher") and key.endswith(".kind")]
    return "openai" in kinds


def _select_outputs(outputs: Outputs, unread: Collection[str]) -> Outputs:
    return {name: row for name, row in outputs.items() if not name.startswith(tuple(unread))}


def _parse_identity(path: Path, row: Any) -> Identity:
    if not isinstance(row, dict) or row.get("format") != FORMAT_VERSION:
        what = f"this version of potstill reads file format {FORMAT_VERSION}"
        found = row.get("format") if isinstance(row, dict) else type(row).__name__
        hint = "use the version that made this run"
        raise UserError(what, code="E-run-file-format", where=path, found=found, hint=hint)
    for name, kind in {"stage": str, "versions": dict, "recipe": dict, "inputs": dict}.items():
        if not isinstance(row.get(name), kind):
            raise _manifest_error(path, f"no field {name!r}" if name not in row else f"{name} is not a {kind.__name__}")
    return Identity(row["stage"], row["versions"], row["recipe"], row["inputs"])


def _manifest_error(path: Path, found: str) -> UserError:
    stage = path.parent.name if path.parent.name.isalpha() else path.parent.parent.name
    what, code = "the manifest is malformed", "E-run-invalid-manifest"
    return UserError(what, code=code, where=path, found=found, hint=damage_hint(stage))


def _changed_error(path: Path, problem: str, identity: Identity) -> UserError:
    what, hint = "the file has changed since its stage was finished", damage_hint(identity.stage, identity)
    return UserError(what, code="E-run-file-changed", where=path, found=problem, hint=hint)


def _redo_stage(stage: str) -> str:
    """The name of a stage for --redo: `evaluate` for its part `evaluate/250`."""
    return stage.partition("/")[0]
