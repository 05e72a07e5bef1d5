"""Checking a run: is every file that its stages made still what their manifests say?"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path

import typer

from potstill import progress, run
from potstill.cli.recipes import recipe_of
from potstill.errors import UserError
from potstill.files import integrity, manifest
from potstill.files.integrity import Difference
from potstill.files.manifest import Manifest
from potstill.story import visible


def check(folder: Path) -> bool:
    """Print everything of a run that differs from what was written; whether nothing does.

    Raises UserError where the folder is no run's.
    """
    found = [fault for fault in [_recipe(folder)] if fault is not None]
    finished: list[tuple[Path, Manifest]] = []
    for at in _stages(folder):
        try:
            manifest.begun(at)
            if (at / manifest.MANIFEST).exists():
                finished.append((at, manifest.read(at / manifest.MANIFEST)))
            elif at.parent == folder:
                typer.echo(f"{at.name}: begun and not finished, there is nothing to check yet")
        except UserError as fault:
            found.append(Difference(Path(fault.where), _line(fault)))
    found += _links(folder, {done.identity.stage: done for _, done in finished})
    total = sum(integrity.unknown_bytes(at.parent, done.outputs) for at, done in finished)
    with progress.bar("check", total >> 20, "MiB") if total > run.SLOW else nullcontext() as tick:
        for at, done in finished:
            found += integrity.differences(at.parent, done.outputs, integrity.mebibytes(tick))
    for each in dict.fromkeys(found):
        typer.echo(visible(f"{each.path}: {each.what}"))
    files = {at.parent / name for at, done in finished for name in done.outputs}
    stages = sum(at.parent == folder for at, _ in finished)
    typer.echo(f"{len(files)} files of {stages} finished stages: " + (_differ(set(found)) if found else "none differs"))
    return not found


def _recipe(folder: Path) -> Difference | None:
    if not folder.is_dir() or not (folder / "recipe.yaml").is_file():
        recipe_of(folder)  # raises: this is not a run's folder
    try:
        recipe_of(folder)
    except UserError as fault:
        return Difference(folder / "recipe.yaml", _line(fault))
    return None


def _stages(folder: Path) -> Iterator[Path]:
    """Every stage's folder, and those of what answered in it, which have manifests of their own."""
    for stage in run.REPAIRED:
        for at in (folder / stage, *sorted((folder / stage).glob("[0-9]*"))):
            if any((at / name).exists() for name in (manifest.BEGUN, manifest.MANIFEST)):
                yield at


def _links(folder: Path, finished: dict[str, Manifest]) -> Iterator[Difference]:
    """Whether each stage was made from what the stages before it hold now."""
    for stage, done in finished.items():
        for before, digest in done.identity.inputs.items():
            if before in finished and "/" not in stage and finished[before].digest != digest:
                what = f"was made from other files than those that {before} holds now"
                yield Difference(folder / stage / manifest.MANIFEST, what)


def _line(fault: UserError) -> str:
    return fault.what + (f" ({fault.found})" if fault.found else "")


def _differ(found: set[Difference]) -> str:
    return f"{len(found)} {'differs' if len(found) == 1 else 'differ'}"
