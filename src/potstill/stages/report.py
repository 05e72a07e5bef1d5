"""report: the page with its tables, and the chosen student as a folder that any Hugging Face tool loads.

It shows only what the run's files and those of its controls hold. `time.html` and `time.csv` are not outputs: they show
what the machine measured, which no digest covers.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from potstill import grading, storage
from potstill.data import splits
from potstill.evaluation import checkpoint, intervals
from potstill.recipe import Recipe
from potstill.report import collect, csv_tables, figures, html, run_files
from potstill.stages import Stage, StageResult


class Report(Stage):
    reads = ("report", "name", "seed", "questions", "transfer.min_transferred_probability")
    after = (*collect.REPORTED_STAGES, "repair")

    def versions(self) -> dict[str, int]:
        return {
            "answers": grading.VERSION,
            "exam": checkpoint.VERSION,
            "intervals": intervals.VERSION,
            "page": html.VERSION,
            "splits": splits.VERSION,
        }

    def free(self, recipe: Recipe) -> tuple[str, ...]:
        """A renamed run needs only a new page and card; see `grown`."""
        return ("name",)

    def inputs(self, recipe: Recipe, run_dir: Path | None = None) -> dict[str, str]:
        return {} if run_dir is None else run_files.control_digests(run_dir, recipe)

    def keeps_inputs(self, run_dir: Path, recipe: Recipe) -> bool:
        """A control that is there, but not finished, will be another one."""
        return not any((run_dir.parent / name).exists() for name in recipe.report.controls)

    def grown(self, recipe: Recipe, counts: Mapping[str, Any]) -> bool:
        return counts["name"] != recipe.name

    def unread(self, run_dir: Path, recipe: Recipe) -> tuple[str, ...]:
        return checkpoint.list_unused_checkpoints(run_dir, recipe)

    def make(self, run_dir: Path, recipe: Recipe) -> StageResult:
        folder = run_dir / "report"
        data = collect.collect_report(run_dir, recipe)
        paths = [folder / "index.html"]
        storage.write_file(paths[0], html.render_report(data, figures.draw_figures(data)).encode("utf-8"))
        for name, text in csv_tables.build_tables(data).items():
            paths.append(folder / f"{name}.csv")
            storage.write_file(paths[-1], text.encode("utf-8"))
        for name, text in html.render_times(data, collect.read_times(run_dir), collect.read_speed(run_dir)).items():
            storage.write_file(folder / name, text.encode("utf-8"))
        assert data.choice is not None, "report comes after select"
        with storage.write_folder(run_dir / "student") as student_folder:
            checkpoint.open_checkpoint(run_dir, recipe, data.choice.checkpoint).save(student_folder)
            storage.write_file(student_folder / "README.md", html.render_card(data).encode("utf-8"))
        paths += [path for path in (run_dir / "student").iterdir() if path.is_file()]
        return StageResult(paths, {"step": data.choice.checkpoint.json_value, "files": len(paths), "name": recipe.name})
