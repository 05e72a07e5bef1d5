"""test: exactly the base and the chosen step on the test questions, once, and the chosen one repaired where the recipe
asks for that. Nothing else opens a test split.

Where nothing is trained (`teacher: {kind: none}`) the student is the base.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from potstill import exam
from potstill.recipe import Recipe

READS = ("evaluate", "questions", "seed")
AFTER = ("collect", "train", "select", "repair")
VERSIONS = exam.versions()


def free(plan: Recipe) -> tuple[str, ...]:
    return exam.free("test")


def inputs(plan: Recipe) -> dict[str, str]:
    return exam.graders(plan, "test")


def unread(run: Path, plan: Recipe) -> tuple[str, ...]:
    return exam.unread(run, plan)


def make(run: Path, plan: Recipe) -> tuple[list[Path], dict[str, Any]]:
    asked = exam.tested(run, plan)
    paths = [path for each in asked for path in exam.sit(run, plan, run / "test", each, "test")]
    return paths, {"steps": [each.written for each in asked]}
