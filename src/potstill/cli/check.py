"""The output of `potstill check`: every file of a run that differs from what its stage wrote."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path

import typer

from potstill import progress
from potstill.errors import UserError, escape_hidden
from potstill.run_reader import open_run
from potstill.stages import ALL_STAGES
from potstill.storage import manifest
from potstill.storage.manifest import SLOW_VERIFY_BYTES, DamagedFile, Manifest


def check_file_sizes(run_dir: Path) -> None:
    """Raise UserError if a file of a finished stage is missing, or does not have the size in the manifest."""
    for path in sorted(run_dir.glob(f"*/{manifest.MANIFEST_FILE}")):
        manifest.read_finished(path.parent)


def check_run(run_dir: Path) -> bool:
    """Read every file of a run's finished stages, and print every difference from the manifests.

    Returns whether all files are unchanged. Raises UserError if the directory is not a run.
    """
    damaged = []
    try:
        run = open_run(run_dir)
        _ = run.recipe
    except UserError as error:
        if error.code == "E-run-not-a-run":
            raise
        damaged.append(DamagedFile(run_dir / "recipe.yaml", _describe_error(error)))
    finished: list[tuple[Path, Manifest]] = []
    for folder in _stage_dirs(run_dir):
        try:
            manifest.read_begun(folder)
            if (folder / manifest.MANIFEST_FILE).exists():
                finished.append((folder, manifest.read_manifest(folder / manifest.MANIFEST_FILE)))
            elif folder.parent == run_dir:
                typer.echo(f"{folder.name}: not finished, nothing to check yet")
        except UserError as error:
            damaged.append(DamagedFile(Path(error.where), _describe_error(error)))
    by_stage = {done.identity.stage: done for _, done in finished}
    for stage, done in by_stage.items():
        for source, digest in done.identity.inputs.items():
            if source in by_stage and "/" not in stage and by_stage[source].digest != digest:
                path = run_dir / stage / manifest.MANIFEST_FILE
                damaged.append(DamagedFile(path, f"was made from other files of {source}"))
    total = sum(manifest.unverified_bytes(folder.parent, done.outputs) for folder, done in finished)
    with progress.bar("check", total >> 20, "MiB") if total > SLOW_VERIFY_BYTES else nullcontext() as advance:
        for folder, done in finished:
            counter = manifest.mebibyte_counter(advance)
            damaged += manifest.find_damaged_files(folder.parent, done.outputs, counter)
    differences = list(dict.fromkeys(damaged))
    for difference in differences:
        typer.echo(escape_hidden(f"{difference.path}: {difference.problem}"))
    files = {folder.parent / name for folder, done in finished for name in done.outputs}
    stages = sum(folder.parent == run_dir for folder, _ in finished)
    number = len(differences)
    result = f"{number or 'no'} difference{'s' if number > 1 else ''}"
    typer.echo(f"{len(files)} files of {stages} finished stages: {result}")
    return not differences


def _stage_dirs(run_dir: Path) -> Iterator[Path]:
    """The directories of all stages, and of their checkpoints with a manifest."""
    for stage in ALL_STAGES:
        for folder in (run_dir / stage, *sorted((run_dir / stage).glob("[0-9]*"))):
            if any((folder / name).exists() for name in (manifest.BEGUN_FILE, manifest.MANIFEST_FILE)):
                yield folder


def _describe_error(error: UserError) -> str:
    return error.what + (f" ({error.found})" if error.found else "")
