"""test: exactly the base and the chosen step on the test questions, once, and the chosen one repaired where the recipe
asks for that. Nothing else opens a test split.

Where nothing is trained (`teacher: {kind: none}`) the student is the base.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from potstill.evaluation import checkpoint
from potstill.recipe import Recipe

READS = ("evaluate", "questions", "seed")
AFTER = ("collect", "train", "select", "repair")
VERSIONS = checkpoint.versions()


def free(recipe: Recipe) -> tuple[str, ...]:
    return checkpoint.list_unused_keys("test")


def inputs(recipe: Recipe) -> dict[str, str]:
    return checkpoint.collect_grader_digests(recipe, "test")


def unread(run_dir: Path, recipe: Recipe) -> tuple[str, ...]:
    return checkpoint.list_unused_checkpoints(run_dir, recipe)


def make(run_dir: Path, recipe: Recipe) -> tuple[list[Path], dict[str, Any]]:
    asked = checkpoint.list_checkpoints_to_test(run_dir, recipe)
    paths = [
        path
        for each in asked
        for path in checkpoint.evaluate_checkpoint(run_dir, recipe, run_dir / "test", each, "test")
    ]
    return paths, {"steps": [each.json_value for each in asked]}
