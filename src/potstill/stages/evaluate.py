"""evaluate: the untrained student (step 0) and every checkpoint on the validation questions of every set.

With `evaluate.mix` also the weights of each checkpoint mixed with those of the base. Shares may be added to a finished
run: what is measured already stays.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from potstill import exam
from potstill.contenders import Contender
from potstill.errors import UserError
from potstill.recipe import Recipe

READS = ("evaluate", "questions", "seed")
AFTER = ("collect", "train")
VERSIONS = exam.versions()


def free(plan: Recipe) -> tuple[str, ...]:
    return exam.free("validation")


def inputs(plan: Recipe) -> dict[str, str]:
    return exam.graders(plan, "validation")


def grown(counts: dict[str, Any], plan: Recipe) -> bool:
    """Whether a finished evaluation has to go on, because the recipe now names more mixes. UserError: for fewer."""
    measured = {Contender.read(each).share for each in counts["steps"]} - {1.0}
    wanted = set(plan.evaluate.mix or ())
    if measured - wanted:
        do = f"name {sorted(measured)} and more, or consent with --redo evaluate (makes it and all later stages again)"
        raise UserError("mixes were measured already", where="evaluate.mix", found=plan.evaluate.mix, do=do)
    return measured != wanted


def make(run: Path, plan: Recipe) -> tuple[list[Path], dict[str, Any]]:
    wanted = exam.wanted(run, plan)
    paths = [path for each in wanted for path in exam.sit(run, plan, run / "evaluate", each, "validation")]
    return paths, {"steps": [each.written for each in wanted]}
