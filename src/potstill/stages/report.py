"""report: the page with its tables, and the chosen student as a folder that any Hugging Face tool loads.

Everything that it shows is what `account` reads from the run's files, and from those of its controls beside it.
`time.html` and `time.csv` are not among the outputs: they hold what the machine measured, which no digest covers.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from potstill import grading, storage
from potstill.data import splits
from potstill.evaluation import checkpoint, intervals
from potstill.recipe import Recipe
from potstill.report import card, collect, controls, csv_tables, figures, html

READS = ("report", "name", "seed", "questions", "transfer.min_transferred_probability")
AFTER = (*collect.REPORTED_STAGES, "repair")
VERSIONS = {
    "answers": grading.VERSION,
    "exam": checkpoint.VERSION,
    "intervals": intervals.VERSION,
    "page": html.VERSION,
    "splits": splits.VERSION,
}


def beside(run_dir: Path, recipe: Recipe) -> dict[str, str]:
    return controls.control_digests(run_dir, recipe)


def free(recipe: Recipe) -> tuple[str, ...]:
    """A run that was renamed: its page and its card are written again (see `grown`), nothing else is."""
    return ("name",)


def grown(counts: dict[str, Any], recipe: Recipe) -> bool:
    return counts["name"] != recipe.name


def unread(run_dir: Path, recipe: Recipe) -> tuple[str, ...]:
    return checkpoint.list_unused_checkpoints(run_dir, recipe)


def make(run_dir: Path, recipe: Recipe) -> tuple[list[Path], dict[str, Any]]:
    told = collect.collect_report(run_dir, recipe)
    paths = [run_dir / "report" / "index.html"]
    storage.write_file(paths[0], html.render_report(told, figures.draw_figures(told)).encode("utf-8"))
    for name, text in csv_tables.build_tables(told).items():
        paths.append(run_dir / "report" / f"{name}.csv")
        storage.write_file(paths[-1], text.encode("utf-8"))
    for name, text in html.render_times(told, collect.read_times(run_dir), collect.read_speed(run_dir)).items():
        storage.write_file(run_dir / "report" / name, text.encode("utf-8"))
    assert told.choice is not None, "report comes after select"
    with storage.write_folder(run_dir / "student") as inside:
        checkpoint.open_checkpoint(run_dir, recipe, told.choice.checkpoint).save(inside)
        storage.write_file(inside / "README.md", card.render_card(told).encode("utf-8"))
    paths += [path for path in (run_dir / "student").iterdir() if path.is_file()]
    return paths, {"step": told.choice.checkpoint.json_value, "files": len(paths), "name": recipe.name}
