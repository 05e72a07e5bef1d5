"""The recipe that a run's folder holds: for commands that need nothing heavier."""

from __future__ import annotations

from pathlib import Path

from potstill import recipe
from potstill.errors import UserError
from potstill.files import manifest
from potstill.recipe import Recipe


def recipe_of(folder: Path) -> Recipe:
    """The recipe that a run folder holds. Raises UserError where there is none."""
    path = folder / "recipe.yaml"
    if not path.is_file():
        raise UserError(
            "not a run's folder", where=folder, found="no recipe.yaml", do="name a folder such as runs/demo"
        )
    return recipe.load(path)


def check_sizes(folder: Path) -> None:
    """Raises UserError where a file of a finished stage is gone or has another size: who reads a run's records takes
    them for what was written. `potstill check` reads every byte."""
    for path in sorted(folder.glob(f"*/{manifest.MANIFEST}")):
        manifest.finished(path.parent)
