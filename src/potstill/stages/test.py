"""test: the base, the chosen checkpoint and, with `on_policy`, its result answer the test questions, once.

This is the only module that opens a test split. Without a teacher (`teacher: {kind: none}`), only the base answers.
"""

from __future__ import annotations

from pathlib import Path

from potstill.evaluation import checkpoint, texts
from potstill.recipe import Recipe
from potstill.stages import Stage, StageResult


class Test(Stage):
    reads = ("evaluate", "questions", "seed")
    after = ("collect", "train", "select", "repair")

    def versions(self) -> dict[str, int]:
        return checkpoint.versions()

    def free(self, recipe: Recipe) -> tuple[str, ...]:
        return checkpoint.list_unused_keys(recipe, "test")

    def inputs(self, recipe: Recipe, run_dir: Path | None = None) -> dict[str, str]:
        return {**checkpoint.collect_grader_digests(recipe, "test"), **texts.text_digests(recipe)}

    def unread(self, run_dir: Path, recipe: Recipe) -> tuple[str, ...]:
        return checkpoint.list_unused_checkpoints(run_dir, recipe)

    def make(self, run_dir: Path, recipe: Recipe) -> StageResult:
        steps = checkpoint.list_checkpoints_to_test(run_dir, recipe)
        folder, paths = run_dir / "test", []
        for step in steps:
            paths += checkpoint.evaluate_checkpoint(run_dir, recipe, folder, step, "test")
        return StageResult(paths, {"steps": [step.json_value for step in steps]})
