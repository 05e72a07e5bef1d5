"""`potstill check`: is every file of a run's finished stages still what its manifest says?"""

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


def check_run(run_dir: Path) -> bool:
    """Prints every difference between a run's files and its manifests; returns whether there is none.

    Raises UserError if the directory is no run's.
    """
    damaged = list(_check_recipe(run_dir))
    finished: list[tuple[Path, Manifest]] = []
    for folder in _stage_dirs(run_dir):
        try:
            manifest.read_begun(folder)
            if (folder / manifest.MANIFEST_FILE).exists():
                finished.append((folder, manifest.read_manifest(folder / manifest.MANIFEST_FILE)))
            elif folder.parent == run_dir:
                typer.echo(f"{folder.name}: not finished, nothing to check yet")
        except UserError as error:
            damaged.append(DamagedFile(Path(error.where), _error_line(error)))
    damaged += _check_inputs(run_dir, {done.identity.stage: done for _, done in finished})
    total = sum(manifest.unverified_bytes(folder.parent, done.outputs) for folder, done in finished)
    with progress.bar("check", total >> 20, "MiB") if total > runner.SLOW_VERIFY_BYTES else nullcontext() as advance:
        for folder, done in finished:
            counter = manifest.mebibyte_counter(advance)
            damaged += manifest.find_damaged_files(folder.parent, done.outputs, counter)
    differences = list(dict.fromkeys(damaged))
    for difference in differences:
        typer.echo(escape_hidden(f"{difference.path}: {difference.problem}"))
    files = {folder.parent / name for folder, done in finished for name in done.outputs}
    stages = sum(folder.parent == run_dir for folder, _ in finished)
    result = (
        f"{len(differences)} differences"
        if len(differences) > 1
        else "1 difference"
        if differences
        else "no difference"
    )
    typer.echo(f"{len(files)} files of {stages} finished stages: {result}")
    return not differences


def _check_recipe(run_dir: Path) -> Iterator[DamagedFile]:
    try:
        read_run_recipe(run_dir)
    except UserError as error:
        if not (run_dir / "recipe.yaml").is_file():
            raise  # not a run directory
        yield DamagedFile(run_dir / "recipe.yaml", _error_line(error))


def _stage_dirs(run_dir: Path) -> Iterator[Path]:
    """The directory of every stage, and of every checkpoint in it, which has a manifest of its own."""
    for stage in ALL_STAGES:
        for folder in (run_dir / stage, *sorted((run_dir / stage).glob("[0-9]*"))):
            if any((folder / name).exists() for name in (manifest.BEGUN_FILE, manifest.MANIFEST_FILE)):
                yield folder


def _check_inputs(run_dir: Path, finished: dict[str, Manifest]) -> Iterator[DamagedFile]:
    """The stages that were made from other files than those that their inputs hold now."""
    for stage, done in finished.items():
        for source, digest in done.identity.inputs.items():
            if source in finished and "/" not in stage and finished[source].digest != digest:
                yield DamagedFile(run_dir / stage / manifest.MANIFEST_FILE, f"was made from other files of {source}")


def _error_line(error: UserError) -> str:
    return error.what + (f" ({error.found})" if error.found else "")
