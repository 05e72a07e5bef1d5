"""The recipe that a run's folder holds: for commands that need nothing heavier."""

from __future__ import annotations

from pathlib import Path

from potstill.errors import UserError
from potstill.recipe import Recipe, load_recipe
from potstill.storage import manifest


def read_run_recipe(folder: Path) -> Recipe:
    """The recipe that a run folder holds. Raises UserError where there is none."""
    path = folder / "recipe.yaml"
    if not path.is_file():
        raise UserError(
            "not a run's folder", where=folder, found="no recipe.yaml", hint="name a folder such as runs/demo"
        )
    return load_recipe(path)


def check_file_sizes(folder: Path) -> None:
    """Raises UserError where a file of a finished stage is gone or has another size: who reads a run's records takes
    them for what was written. `potstill check` reads every byte."""
    for path in sorted(folder.glob(f"*/{manifest.MANIFEST_FILE}")):
        manifest.read_finished(path.parent)
