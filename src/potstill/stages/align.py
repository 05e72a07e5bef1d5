"""align: transfers every kept chain to the student's vocabulary, once for all prompt formats.

The stage writes flat arrays and a record of their inputs into `align/<tokenizer>-<rule>/`. The manifest has the coverage:
positions and kept probability by kind. The stage fails if too few positions have the teacher's distribution
(`transfer.min_coverage`). It warns if too little of the teacher's probability was transferred
(`transfer.min_transferred_probability`).
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from potstill import alignment, models, progress, storage, teachers, tokenization
from potstill.alignment import cross_tokenizer, rewrite, target_store, text_rule_completions
from potstill.alignment.coverage import Coverage, low_mass_warning
from potstill.calculator import equations
from potstill.errors import UserError
from potstill.recipe import Recipe
from potstill.records import Chain, Target
from potstill.stages import Stage, StageResult
from potstill.storage import manifest, parquet
from potstill.training import examples

WARNING_KEY = "transfer.min_transferred_probability"  # changes no target


class Align(Stage):
    reads = ("transfer", "student.model", "student.tokenizer", "teacher.kind", "teacher.model")
    after = ("sample", "filter")
    digested = ("student.model", "student.tokenizer")

    def versions(self) -> dict[str, int]:
        return {
            "alignment": alignment.VERSION,
            "rewriting": rewrite.VERSION,
            "targets": target_store.VERSION,
            "tokenizers": tokenization.VERSION,
            "transfer": cross_tokenizer.VERSION,
        }

    def free(self, recipe: Recipe) -> set[str]:
        return {WARNING_KEY}

    def inputs(self, recipe: Recipe, run_dir: Path | None = None) -> dict[str, str]:
        digests = {"student.tokenizer": tokenization.load_tokenizer(models.tokenizer_folder(recipe)).digest}
        if recipe.student.model is not None:
            settings = models.ChatSettings.from_section(recipe.student, "student")
            digests |= models.end_of_turn_identity(models.model_folder(recipe), settings)
        for source, teacher in _teacher_tokenizers(recipe).items():
            digests[teachers.key_of_source("teacher.tokenizer", source)] = teacher.digest
        if recipe.transfer.calculator_marks:
            digests["calculator sums"] = str(equations.VERSION)
        return digests

    def subfolder(self, recipe: Recipe) -> str:
        return examples.targets_folder(Path(), recipe).name

    def make(self, run_dir: Path, recipe: Recipe) -> StageResult:
        tokenizer = models.tokenizer_from_recipe(recipe)
        if recipe.transfer.calculator_marks == "insert":
            _check_calculator_marks(tokenizer)
        coverage = Coverage(tokenizer)
        folder = examples.targets_folder(run_dir, recipe)
        arrays = target_store.pack_targets(
            _iter_targets(run_dir, recipe, tokenizer, coverage), recipe.transfer.min_probability
        )
        coverage.check(recipe.transfer.min_coverage, recipe.transfer.rule)
        paths = [folder / target_store.ORIGIN_FILE]
        storage.write_json(paths[0], examples.target_origin(run_dir, recipe, tokenizer).as_json())
        for name, array in arrays.items():
            paths.append(folder / f"{name}.npy")
            parquet.write_array(paths[-1], array)
        counts = coverage.as_json()
        if (warning := low_mass_warning(counts, recipe.transfer.min_transferred_probability)) is not None:
            progress.print_line(f"align: {warning}", "yellow")
        return StageResult(paths, counts)


def _iter_targets(
    run_dir: Path, recipe: Recipe, tokenizer: tokenization.Tokenizer, coverage: Coverage
) -> Iterator[tuple[Chain, Target]]:
    """The kept chains with their targets.

    The rule `text` holds all chains in memory, because it completes words of one chain with words of other chains.
    """
    filtered = manifest.read_finished(run_dir / "filter")
    assert filtered is not None, "filter is finished before its verdicts are read"
    graded = parquet.chains_with_verdicts(
        run_dir / "sample" / "chains.parquet", run_dir / "filter" / "verdicts.parquet"
    )
    section = recipe.transfer
    right = (chain for chain, verdict in graded if verdict.kept)
    kept = ((chain, *rewrite.prepare_chain(chain, section.rewrite, section.calculator_marks)) for chain in right)
    options: dict[str, dict[str, Any]] = {}
    if section.rule == "text":
        kept, tokenizers = list(kept), _teacher_tokenizers(recipe)
        for source in recipe.sources:  # the chains of one teacher say nothing about the words of another
            own = [taught for chain, taught, _ in kept if source in ("", chain.source)]
            completions = text_rule_completions.completions(own, tokenizer)
            options[source] = {"completions": completions, "teacher": tokenizers.get(source)}
    with progress.bar("align", filtered.counts["kept"], "chains") as tick:
        for chain, taught, certain in kept:
            own_options = options.get(chain.source if recipe.teachers else "", {})
            target = cross_tokenizer.transfer(taught, tokenizer, recipe.transfer.rule, certain=certain, **own_options)
            coverage.add(taught, target, certain)
            yield chain, target
            tick()


def _check_calculator_marks(tokenizer: tokenization.Tokenizer) -> None:
    """Raise UserError if the student has no tokens for calculator marks, because it would learn its unknown token."""
    example = "48/2 = <<48/2=24>>24"
    ids = tokenizer.encode(example).ids
    decoded = tokenizer.decode(ids)
    if tokenizer.vocabulary.unk in ids or decoded.strip() != example:
        what, found = "the student's vocabulary cannot write calculator marks", f"{example!r} is decoded as {decoded!r}"
        hint = "remove the key: the calculator needs only an expression and `=`"
        where = "transfer.calculator_marks"
        raise UserError(what, code="E-align-calculator-marks", where=where, found=found, hint=hint)


def _teacher_tokenizers(recipe: Recipe) -> dict[str, tokenization.Tokenizer]:
    """Source -> the tokenizer of the model that gave the probabilities: the teacher or the scorer.

    Empty if the rule does not use it, and for rewritten texts, for which the teacher's tokens are unknown. A server is left
    out, because it returns only bytes.
    """
    section = recipe.transfer
    if section.rule != "text" or section.rewrite or section.calculator_marks:
        return {}
    folders = {name: teachers.from_recipe(source).tokenizer_folder() for name, source in recipe.sources.items()}
    return {name: tokenization.load_tokenizer(folder) for name, folder in folders.items() if folder is not None}
