"""test: the base, the chosen checkpoint and, with `on_policy`, its result answer the test questions, once.

With `select.also`, the choices of other rules answer them, too, for a comparison. They may be added to a finished run;
existing answers stay. No other checkpoint answers a test question.

This is the only module that opens a test split. Without a teacher (`teacher: {kind: none}`), only the base answers.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from potstill.errors import UserError
from potstill.evaluation import checkpoint, choice, selection, texts
from potstill.recipe import Recipe
from potstill.stages import Stage, StageResult
from potstill.storage import manifest
from potstill.storage.manifest import VERSION_PREFIX
from potstill.storage.segments import Shard


class Test(Stage):
    reads = ("evaluate", "questions", "seed")
    after = ("collect", "train", "select", "repair")
    shared = True
    growing = ("select.also", "select.weights")  # weights: of the other choice `weighted`

    def versions(self) -> dict[str, int]:
        return checkpoint.versions()

    def free(self, recipe: Recipe) -> tuple[str, ...]:
        return checkpoint.list_unused_keys(recipe, "test")

    def inputs(self, recipe: Recipe, run_dir: Path | None = None) -> dict[str, str]:
        digests = {**checkpoint.collect_grader_digests(recipe, "test"), **texts.text_digests(recipe)}
        return digests | ({f"{VERSION_PREFIX}selection": str(selection.VERSION)} if recipe.select.also else {})

    def unread(self, run_dir: Path, recipe: Recipe) -> tuple[str, ...]:
        return choice.list_unused_checkpoints(run_dir, recipe)

    def grown(self, recipe: Recipe, counts: Mapping[str, Any]) -> bool:
        """Whether the recipe names other choices that were not tested. Raises UserError if a tested choice is missing."""
        tested, wanted = set(counts.get("also", ())), set(choice.describe_others(recipe))
        if tested - wanted:
            what = "the run has tested choices that the recipe does not name"
            redo = "allow the change with --redo test (makes test and report again)"
            hint, found = f"name at least {', '.join(sorted(tested))}, or {redo}", recipe.select.also
            raise UserError(what, code="E-run-shrinks", where="select.also", found=found, hint=hint)
        return tested != wanted

    def make(self, run_dir: Path, recipe: Recipe) -> StageResult:
        _verify_answers(run_dir, recipe)
        steps = choice.list_checkpoints_to_test(run_dir, recipe)
        folder, paths = run_dir / "test", []
        for step in steps:
            paths += checkpoint.evaluate_checkpoint(run_dir, recipe, folder, step, "test")
        also = {"also": described} if (described := choice.describe_others(recipe)) else {}
        return StageResult(paths, {"steps": [step.json_value for step in steps], **also})

    def begin_shards(self, run_dir: Path, recipe: Recipe, shard: Shard) -> None:
        _verify_answers(run_dir, recipe)
        for step in choice.list_checkpoints_to_test(run_dir, recipe):
            checkpoint.begin_checkpoint(run_dir, recipe, run_dir / "test", step, "test")

    def make_shard(self, run_dir: Path, recipe: Recipe, shard: Shard) -> None:
        steps = choice.list_checkpoints_to_test(run_dir, recipe)
        checkpoint.answer_shard(run_dir, recipe, run_dir / "test", steps, "test", shard)

    def launcher_conflict(self, recipe: Recipe) -> str:
        return checkpoint.launcher_conflict(recipe)


def _verify_answers(run_dir: Path, recipe: Recipe) -> None:
    """Raise UserError if the validation answers, from which other choices are made, have changed."""
    if recipe.select.also:
        evaluated = manifest.read_finished(run_dir / "evaluate")
        assert evaluated is not None, "evaluate comes before test"
        manifest.verify_files(run_dir, evaluated)
