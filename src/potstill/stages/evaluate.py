"""evaluate, select: every checkpoint answers the validation questions, then a checkpoint is chosen (paper, section 7).

With `evaluate.interpolate`, interpolations between the weights of the base and of each checkpoint are also evaluated.
More shares may be added to a finished run; existing scores stay. Step 0, the base, is evaluated for comparison and cannot
be chosen.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from potstill import storage
from potstill.errors import UserError
from potstill.evaluation import checkpoint, choice, intervals, selection
from potstill.recipe import Recipe
from potstill.records import Checkpoint, Choice
from potstill.serialization import to_json
from potstill.stages import Stage, StageResult
from potstill.storage.segments import Shard


class Evaluate(Stage):
    reads = ("evaluate", "questions", "seed")
    after = ("collect", "train")
    shared = True
    growing = ("evaluate.interpolate",)

    def versions(self) -> dict[str, int]:
        return checkpoint.versions()

    def free(self, recipe: Recipe) -> tuple[str, ...]:
        return checkpoint.list_unused_keys(recipe, "validation")

    def inputs(self, recipe: Recipe, run_dir: Path | None = None) -> dict[str, str]:
        return checkpoint.collect_grader_digests(recipe, "validation")

    def grown(self, recipe: Recipe, counts: Mapping[str, Any]) -> bool:
        """Whether the recipe names shares that were not evaluated. Raises UserError if an evaluated share is missing."""
        measured = {Checkpoint.parse(written).share for written in counts["steps"]} - {1.0}
        wanted = set(recipe.evaluate.interpolate or ())
        if measured - wanted:
            what, where = "the run has evaluated shares that the recipe does not name", "evaluate.interpolate"
            redo = "allow the change with --redo evaluate (makes evaluate and all later stages again)"
            hint, found = f"name at least {sorted(measured)}, or {redo}", recipe.evaluate.interpolate
            raise UserError(what, code="E-run-shrinks", where=where, found=found, hint=hint)
        return measured != wanted

    def make(self, run_dir: Path, recipe: Recipe) -> StageResult:
        steps = checkpoint.list_checkpoints_to_evaluate(run_dir, recipe)
        folder, paths = run_dir / "evaluate", []
        for step in steps:
            paths += checkpoint.evaluate_checkpoint(run_dir, recipe, folder, step, "validation")
        return StageResult(paths, {"steps": [step.json_value for step in steps]})

    def begin_shards(self, run_dir: Path, recipe: Recipe, shard: Shard) -> None:
        for step in checkpoint.list_checkpoints_to_evaluate(run_dir, recipe):
            checkpoint.begin_checkpoint(run_dir, recipe, run_dir / "evaluate", step, "validation")

    def make_shard(self, run_dir: Path, recipe: Recipe, shard: Shard) -> None:
        steps = checkpoint.list_checkpoints_to_evaluate(run_dir, recipe)
        checkpoint.answer_shard(run_dir, recipe, run_dir / "evaluate", steps, "validation", shard)

    def launcher_conflict(self, recipe: Recipe) -> str:
        return checkpoint.launcher_conflict(recipe)


class Select(Stage):
    reads = (
        *("select", "seed", "evaluate.decodings"),
        *("questions.in_distribution", "questions.out_of_distribution", "questions.generic"),
    )
    after = ("evaluate",)

    def free(self, recipe: Recipe) -> tuple[str, ...]:
        """The groups of sets and the keys that neither the rule nor a bound uses. The stage `test` reads `select.also`."""
        bounds = recipe.select.retain or {}
        used = {selection.SET_KEYS.get(recipe.select.rule), "generic" if "generic" in bounds else None}
        groups = [key for key in ("in_distribution", "out_of_distribution", "generic") if key not in used]
        keys = [key for key in choice.list_unused_keys(recipe) if not key.startswith("select.retain.")]
        return (*keys, *(f"questions.{key}" for key in groups))

    def versions(self) -> dict[str, int]:
        return {"exam": checkpoint.VERSION, "intervals": intervals.VERSION, "selection": selection.VERSION}

    def make(self, run_dir: Path, recipe: Recipe) -> StageResult:
        """Choose the best checkpoint by the rule, among those that keep the bounds of `select.retain`."""
        decoding = recipe.evaluate.decodings[0]
        rule, selected = recipe.select.rule, choice.choose_checkpoint(run_dir, recipe)
        weights = tuple((choice.rule_weights(recipe, rule) or {}).items())
        chosen = Choice(
            checkpoint=selected.best,
            rule=rule,
            format=recipe.select.format,
            decoding=decoding,
            table=selected.table,
            tied=selected.tied,
            equal=selected.equal,
            optimism=selected.optimism,
            weights=weights,
            bounds=selected.bounds,
        )
        path = run_dir / "select" / checkpoint.CHOICE_FILE
        storage.write_json(path, to_json(chosen))
        counts = {"step": chosen.checkpoint.json_value}
        if chosen.bounds:
            excluded = [step for step, _ in chosen.table if not all(bound.keeps(step) for bound in chosen.bounds)]
            counts["excluded"] = len(excluded)
        return StageResult([path], counts)
