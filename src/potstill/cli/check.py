"""Checking a run: is every file that its stages made still what their manifests say?"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path

import typer

from potstill import progress, runner
from potstill.cli.run_folder import read_run_recipe
from potstill.errors import UserError, escape_hidden
from potstill.stages import ALL_STAGES
from potstill.storage import manifest
from potstill.storage.manifest import DamagedFile, Manifest


def check_run(folder: Path) -> bool:
    """Print everything of a run that differs from what was written; whether nothing does.

    Raises UserError where the folder is no run's.
    """
    found = [fault for fault in [_check_recipe(folder)] if fault is not None]
    finished: list[tuple[Path, Manifest]] = []
    for at in _stage_dirs(folder):
        try:
            manifest.read_begun(at)
            if (at / manifest.MANIFEST_FILE).exists():
                finished.append((at, manifest.read_manifest(at / manifest.MANIFEST_FILE)))
            elif at.parent == folder:
                typer.echo(f"{at.name}: begun and not finished, there is nothing to check yet")
        except UserError as fault:
            found.append(DamagedFile(Path(fault.where), _error_line(fault)))
    found += _check_inputs(folder, {done.identity.stage: done for _, done in finished})
    total = sum(manifest.unverified_bytes(at.parent, done.outputs) for at, done in finished)
    with progress.bar("check", total >> 20, "MiB") if total > runner.SLOW_VERIFY_BYTES else nullcontext() as tick:
        for at, done in finished:
            found += manifest.find_damaged_files(at.parent, done.outputs, manifest.mebibyte_counter(tick))
    for each in dict.fromkeys(found):
        typer.echo(escape_hidden(f"{each.path}: {each.problem}"))
    files = {at.parent / name for at, done in finished for name in done.outputs}
    stages = sum(at.parent == folder for at, _ in finished)
    typer.echo(
        f"{len(files)} files of {stages} finished stages: "
        + (_count_differences(set(found)) if found else "none differs")
    )
    return not found


def _check_recipe(folder: Path) -> DamagedFile | None:
    if not folder.is_dir() or not (folder / "recipe.yaml").is_file():
        read_run_recipe(folder)  # raises: this is not a run's folder
    try:
        read_run_recipe(folder)
    except UserError as fault:
        return DamagedFile(folder / "recipe.yaml", _error_line(fault))
    return None


def _stage_dirs(folder: Path) -> Iterator[Path]:
    """Every stage's folder, and those of what answered in it, which have manifests of their own."""
    for stage in ALL_STAGES:
        for at in (folder / stage, *sorted((folder / stage).glob("[0-9]*"))):
            if any((at / name).exists() for name in (manifest.BEGUN_FILE, manifest.MANIFEST_FILE)):
                yield at


def _check_inputs(folder: Path, finished: dict[str, Manifest]) -> Iterator[DamagedFile]:
    """Whether each stage was made from what the stages before it hold now."""
    for stage, done in finished.items():
        for before, digest in done.identity.inputs.items():
            if before in finished and "/" not in stage and finished[before].digest != digest:
                what = f"was made from other files than those that {before} holds now"
                yield DamagedFile(folder / stage / manifest.MANIFEST_FILE, what)


def _error_line(fault: UserError) -> str:
    return fault.what + (f" ({fault.found})" if fault.found else "")


def _count_differences(found: set[DamagedFile]) -> str:
    return f"{len(found)} {'differs' if len(found) == 1 else 'differ'}"
