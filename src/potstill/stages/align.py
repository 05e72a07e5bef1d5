"""align: every kept chain in the student's vocabulary, once, whatever the formats.

Writes flat arrays into `align/<tokenizer>-<rule>/` and what they were made with; the manifest holds the coverage:
positions and kept mass by kind. Stops where less of the teacher arrived than `transfer.least_coverage`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from potstill import files, lessons, progress, recipe, rewriting, students, targets, tokenizers, transfer
from potstill.coverage import Coverage
from potstill.files import tables
from potstill.recipe import Recipe
from potstill.records import Chain, Target

READS = ("transfer", "student.model", "student.tokenizer", "teacher.kind", "teacher.model")
AFTER = ("sample", "filter")
VERSIONS = {"transfer": transfer.VERSION, "targets": targets.VERSION}


def inputs(plan: Recipe) -> dict[str, str]:
    teacher = _teacher(plan)
    own = {} if teacher is None else {"teacher.tokenizer": teacher.digest}
    return {"student.tokenizer": tokenizers.open(students.tokenizer_folder(plan)).digest, **own}


def make(run: Path, plan: Recipe) -> tuple[list[Path], dict[str, Any]]:
    tokenizer = tokenizers.open(students.tokenizer_folder(plan))
    verdicts = tables.read_verdicts(run / "filter" / "verdicts.parquet")
    kept = [c for c in tables.read_chains(run / "sample" / "chains.parquet") if verdicts[c.key].kept]
    rewritten = [rewriting.rewrite(chain, plan.transfer.rewrite) for chain in kept]
    aligned: list[tuple[Chain, Target]] = []
    coverage = Coverage(tokenizer)
    told: dict[str, Any] = {}
    if plan.transfer.rule == "text":
        told = {"completions": transfer.completions(rewritten, tokenizer), "teacher": _teacher(plan)}
    with progress.bar("align", len(kept), "chains") as tick:
        for chain, taught in zip(kept, rewritten, strict=True):
            target = transfer.transfer(taught, tokenizer, plan.transfer.rule, **told)
            aligned.append((chain, target))
            coverage.add(taught, target)
            tick()
    coverage.check(plan.transfer.least_coverage, plan.transfer.rule)
    out = lessons.targets_folder(run, plan)
    paths = [out / targets.ABOUT]
    files.write_json(paths[0], lessons.origin(run, plan, tokenizer).as_json())
    for name, array in targets.pack(aligned, plan.transfer.drop_below).items():
        paths.append(out / f"{name}.npy")
        tables.write_array(paths[-1], array)
    return paths, coverage.as_json()


def _teacher(plan: Recipe) -> tokenizers.Tokenizer | None:
    """The teacher's tokenizer, where the rule reads it and the teacher is a folder. Other teachers show only bytes,
    and of rewritten texts nobody knows how the teacher would have cut them."""
    if plan.transfer.rule != "text" or plan.teacher.kind != "local" or plan.transfer.rewrite:
        return None
    assert plan.teacher.model is not None, "a local teacher has a model"
    return tokenizers.open(recipe.find(plan, plan.teacher.model, "teacher.model"))
