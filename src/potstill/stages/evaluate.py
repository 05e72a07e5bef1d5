"""evaluate: the untrained student (step 0) and every checkpoint on the validation questions of every set.

With `evaluate.interpolate` also the weights of each checkpoint mixed with those of the base. Shares may be added to a finished
run: what is measured already stays.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from potstill.errors import UserError
from potstill.evaluation import checkpoint
from potstill.recipe import Recipe
from potstill.records import Checkpoint

READS = ("evaluate", "questions", "seed")
AFTER = ("collect", "train")
VERSIONS = checkpoint.versions()


def free(recipe: Recipe) -> tuple[str, ...]:
    return checkpoint.list_unused_keys("validation")


def inputs(recipe: Recipe) -> dict[str, str]:
    return checkpoint.collect_grader_digests(recipe, "validation")


def grown(counts: dict[str, Any], recipe: Recipe) -> bool:
    """Whether a finished evaluation has to go on, because the recipe now names more mixes. UserError: for fewer."""
    measured = {Checkpoint.parse(each).share for each in counts["steps"]} - {1.0}
    wanted = set(recipe.evaluate.interpolate or ())
    if measured - wanted:
        hint = (
            f"name {sorted(measured)} and more, or consent with --redo evaluate (makes it and all later stages again)"
        )
        raise UserError(
            "mixes were measured already", where="evaluate.interpolate", found=recipe.evaluate.interpolate, hint=hint
        )
    return measured != wanted


def make(run_dir: Path, recipe: Recipe) -> tuple[list[Path], dict[str, Any]]:
    wanted = checkpoint.list_checkpoints_to_evaluate(run_dir, recipe)
    paths = [
        path
        for each in wanted
        for path in checkpoint.evaluate_checkpoint(run_dir, recipe, run_dir / "evaluate", each, "validation")
    ]
    return paths, {"steps": [each.json_value for each in wanted]}
