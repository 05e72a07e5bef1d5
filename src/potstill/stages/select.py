"""select: the checkpoint with the best mean accuracy on the out-of-distribution validation sets (PAPER section 7).

Step 0 stands in the evaluation for comparison and cannot be chosen.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from potstill import storage
from potstill.evaluation import checkpoint, intervals, selection
from potstill.recipe import Recipe
from potstill.records import Choice
from potstill.serialization import to_json

READS = ("select", "seed", "questions.out_of_distribution", "evaluate.decodings")
AFTER = ("evaluate",)
VERSIONS = {"exam": checkpoint.VERSION, "intervals": intervals.VERSION, "selection": selection.VERSION}


def make(run_dir: Path, recipe: Recipe) -> tuple[list[Path], dict[str, Any]]:
    decoding = recipe.evaluate.decodings[0]
    table = {
        each: checkpoint.read_selection_outcomes(run_dir, recipe, each)
        for each in checkpoint.read_evaluated_checkpoints(run_dir)
    }
    best = selection.select_checkpoint(table, recipe.select.rule, seed=recipe.seed)
    choice = Choice(best.best, recipe.select.rule, recipe.select.format, decoding, best.table, best.tied)
    path = run_dir / "select" / "choice.json"
    storage.write_json(path, to_json(choice))
    return [path], {"step": choice.checkpoint.json_value}
