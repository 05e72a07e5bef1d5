"""select: the checkpoint with the best mean accuracy on the out-of-distribution validation sets (PAPER section 7).

Step 0 stands in the evaluation for comparison and cannot be chosen.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from potstill import exam, files, intervals, selection
from potstill.encoding import to_json
from potstill.recipe import Recipe
from potstill.records import Choice

READS = ("select", "seed", "questions.out_of_distribution", "evaluate.decodings")
AFTER = ("evaluate",)
VERSIONS = {"exam": exam.VERSION, "intervals": intervals.VERSION, "selection": selection.VERSION}


def make(run: Path, plan: Recipe) -> tuple[list[Path], dict[str, Any]]:
    decoding = plan.evaluate.decodings[0]
    table = {each: exam.right(run, plan, each) for each in exam.contenders(run)}
    best = selection.select(table, plan.select.rule, seed=plan.seed)
    choice = Choice(best.best, plan.select.rule, plan.select.format, decoding, best.table, best.tied)
    path = run / "select" / "choice.json"
    files.write_json(path, to_json(choice))
    return [path], {"step": choice.contender.written}
