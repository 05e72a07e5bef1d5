"""Opens a run directory for a command: its recipe, and a check that its files have the right sizes."""

from __future__ import annotations

from pathlib import Path

from potstill.recipe import Recipe, load_recipe
from potstill.run_reader import open_run
from potstill.storage import manifest


def read_run_recipe(run_dir: Path) -> Recipe:
    """The recipe of a run directory. Raises UserError if it has none."""
    return open_run(run_dir).recipe


def open_run_or_recipe(path: Path) -> tuple[Recipe, Path]:
    """The recipe and the directory of a run, given by its directory or by its recipe file."""
    if path.is_file():
        from potstill import runner

        recipe = load_recipe(path)
        return recipe, runner.default_run_dir(recipe)
    return read_run_recipe(path), path


def check_file_sizes(run_dir: Path) -> None:
    """Raises UserError if a file of a finished stage is missing or has another size than its manifest says.

    `potstill check` reads every byte.
    """
    for path in sorted(run_dir.glob(f"*/{manifest.MANIFEST_FILE}")):
        manifest.read_finished(path.parent)
