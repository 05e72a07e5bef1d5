"""evaluate: the untrained student (step 0) and every checkpoint on the validation questions of every set."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from potstill import exam
from potstill.recipe import Recipe

READS = ("evaluate", "questions", "seed")
AFTER = ("collect", "train")
VERSIONS = exam.VERSIONS


def free(plan: Recipe) -> tuple[str, ...]:
    return exam.free("validation")


def inputs(plan: Recipe) -> dict[str, str]:
    return exam.graders(plan)


def make(run: Path, plan: Recipe) -> tuple[list[Path], dict[str, Any]]:
    steps = [0, *exam.checkpoints(run)]
    paths = [path for step in steps for path in exam.sit(run, plan, run / "evaluate", step, "validation")]
    return paths, {"steps": steps}
