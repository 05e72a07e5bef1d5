"""test: exactly the base and the chosen step on the test questions, once. Nothing else opens a test split.

Where nothing is trained (`teacher: {kind: none}`) the student is the base.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from potstill import exam
from potstill.recipe import Recipe

READS = ("evaluate", "questions", "seed")
AFTER = ("collect", "train", "select")
VERSIONS = exam.VERSIONS


def free(plan: Recipe) -> tuple[str, ...]:
    return exam.free("test")


def inputs(plan: Recipe) -> dict[str, str]:
    return exam.graders(plan)


def make(run: Path, plan: Recipe) -> tuple[list[Path], dict[str, Any]]:
    steps = [0] if plan.teacher.kind == "none" else [0, exam.choice(run).step]
    paths = [path for step in steps for path in exam.sit(run, plan, run / "test", step, "test")]
    return paths, {"steps": steps}
