"""align: every kept chain in the student's vocabulary, once, whatever the formats.

Writes flat arrays into `align/<tokenizer>-<rule>/` and what they were made with; the manifest holds the coverage:
positions and kept mass by kind. Stops where fewer positions than `transfer.least_coverage` have the teacher's
distribution, and warns where less of its probability than `transfer.least_mass` reached them.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from potstill import alignment, files, lessons, progress, recipe, rewriting, students, targets, tokenizers, transfer
from potstill.calculator import sums
from potstill.coverage import Coverage, thin
from potstill.errors import UserError
from potstill.files import manifest, tables
from potstill.recipe import Recipe
from potstill.records import Chain, Target

READS = ("transfer", "student.model", "student.tokenizer", "teacher.kind", "teacher.model")
WARNS = "transfer.least_mass"  # when align warns changes no target
AFTER = ("sample", "filter")
VERSIONS = {
    "alignment": alignment.VERSION,
    "rewriting": rewriting.VERSION,
    "targets": targets.VERSION,
    "tokenizers": tokenizers.VERSION,
    "transfer": transfer.VERSION,
}


def inputs(plan: Recipe) -> dict[str, str]:
    found, teacher = {"student.tokenizer": tokenizers.open(students.tokenizer_folder(plan)).digest}, _teacher(plan)
    if teacher is not None:
        found["teacher.tokenizer"] = teacher.digest
    if plan.transfer.marks:
        found["calculator sums"] = str(sums.VERSION)
    return found


def free(plan: Recipe) -> set[str]:
    """Keys that may change while a run goes on."""
    return {WARNS}


def make(run: Path, plan: Recipe) -> tuple[list[Path], dict[str, Any]]:
    tokenizer = tokenizers.open(students.tokenizer_folder(plan))
    if plan.transfer.marks == "insert":
        _check_marks(tokenizer)
    coverage = Coverage(tokenizer)
    out = lessons.targets_folder(run, plan)
    arrays = targets.pack(_aligned(run, plan, tokenizer, coverage), plan.transfer.drop_below)
    coverage.check(plan.transfer.least_coverage, plan.transfer.rule)
    paths = [out / targets.ABOUT]
    files.write_json(paths[0], lessons.origin(run, plan, tokenizer).as_json())
    for name, array in arrays.items():
        paths.append(out / f"{name}.npy")
        tables.write_array(paths[-1], array)
    counts = coverage.as_json()
    if (warning := thin(counts, plan.transfer.least_mass)) is not None:
        progress.say(f"align: {warning}", "yellow")
    return paths, counts


def _aligned(
    run: Path, plan: Recipe, tokenizer: tokenizers.Tokenizer, coverage: Coverage
) -> Iterator[tuple[Chain, Target]]:
    """The kept chains with their targets, one after the other. The rule `text` holds all chains: their words complete
    one another."""
    filtered = manifest.finished(run / "filter")
    assert filtered is not None, "filter is finished before its verdicts are read"
    judged = tables.judged(run / "sample" / "chains.parquet", run / "filter" / "verdicts.parquet")
    asked = plan.transfer
    right = (chain for chain, verdict in judged if verdict.kept)
    kept = ((chain, *rewriting.prepared(chain, asked.rewrite, asked.marks)) for chain in right)
    told: dict[str, Any] = {}
    if asked.rule == "text":
        kept = list(kept)
        rewritten = [taught for _, taught, _ in kept]
        told = {"completions": transfer.completions(rewritten, tokenizer), "teacher": _teacher(plan)}
    with progress.bar("align", filtered.counts["kept"], "chains") as tick:
        for chain, taught, certain in kept:
            target = transfer.transfer(taught, tokenizer, plan.transfer.rule, certain=certain, **told)
            coverage.add(taught, target, certain)
            yield chain, target
            tick()


def _check_marks(tokenizer: tokenizers.Tokenizer) -> None:
    """A student that would be taught its unknown token for every mark learns nothing from them."""
    example = "48/2 = <<48/2=24>>24"
    ids = tokenizer.encode(example).ids
    if tokenizer.vocabulary.unk in ids or tokenizer.decode(ids).strip() != example:
        raise UserError(
            "the student's vocabulary cannot write calculator marks",
            where="transfer.marks",
            found=f"{example!r} comes back as {tokenizer.decode(ids)!r}",
            do="leave the key out: the calculator needs no marks, an expression and `=` are enough",
        )


def _teacher(plan: Recipe) -> tokenizers.Tokenizer | None:
    """The tokenizer of the model that gave the probabilities, where the rule reads it and the model is a folder: of a
    teacher in this process, or of the scorer of chains that exist. Others show only bytes, and of rewritten texts
    nobody knows how the teacher would have cut them."""
    asked, teacher = plan.transfer, plan.teacher
    if asked.rule != "text" or asked.rewrite or asked.marks:
        return None
    if teacher.kind in ("local", "vllm"):
        assert teacher.model is not None, "such a teacher has a model"
        return tokenizers.open(recipe.find(plan, teacher.model, "teacher.model"))
    if teacher.score is not None and teacher.score.kind == "local":
        return tokenizers.open(recipe.find(plan, teacher.score.model, "teacher.score.model"))
    return None
