"""align: every kept chain in the student's vocabulary, once, whatever the formats.

Writes flat arrays into `align/<tokenizer>-<rule>/` and what they were made with; the manifest holds the coverage:
positions and kept mass by kind. Stops where fewer positions than `transfer.min_coverage` have the teacher's
distribution, and warns where less of its probability than `transfer.min_transferred_probability` reached them.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from potstill import alignment, models, progress, storage, tokenization
from potstill.alignment import cross_tokenizer, rewrite, target_store, text_rule_completions
from potstill.alignment.coverage import Coverage, low_mass_warning
from potstill.calculator import equations
from potstill.errors import UserError
from potstill.recipe import Recipe, find_path
from potstill.records import Chain, Target
from potstill.storage import manifest, parquet
from potstill.training import examples

READS = ("transfer", "student.model", "student.tokenizer", "teacher.kind", "teacher.model")
WARNING_KEY = "transfer.min_transferred_probability"  # when align warns changes no target
AFTER = ("sample", "filter")
VERSIONS = {
    "alignment": alignment.VERSION,
    "rewriting": rewrite.VERSION,
    "targets": target_store.VERSION,
    "tokenizers": tokenization.VERSION,
    "transfer": cross_tokenizer.VERSION,
}


def inputs(recipe: Recipe) -> dict[str, str]:
    found, teacher = (
        {"student.tokenizer": tokenization.load_tokenizer(models.tokenizer_folder(recipe)).digest},
        _teacher_tokenizer(recipe),
    )
    if teacher is not None:
        found["teacher.tokenizer"] = teacher.digest
    if recipe.transfer.calculator_marks:
        found["calculator sums"] = str(equations.VERSION)
    return found


def free(recipe: Recipe) -> set[str]:
    """Keys that may change while a run goes on."""
    return {WARNING_KEY}


def make(run_dir: Path, recipe: Recipe) -> tuple[list[Path], dict[str, Any]]:
    tokenizer = tokenization.load_tokenizer(models.tokenizer_folder(recipe))
    if recipe.transfer.calculator_marks == "insert":
        _check_calculator_marks(tokenizer)
    coverage = Coverage(tokenizer)
    out = examples.targets_folder(run_dir, recipe)
    arrays = target_store.pack_targets(
        _iter_targets(run_dir, recipe, tokenizer, coverage), recipe.transfer.min_probability
    )
    coverage.check(recipe.transfer.min_coverage, recipe.transfer.rule)
    paths = [out / target_store.ORIGIN_FILE]
    storage.write_json(paths[0], examples.target_origin(run_dir, recipe, tokenizer).as_json())
    for name, array in arrays.items():
        paths.append(out / f"{name}.npy")
        parquet.write_array(paths[-1], array)
    counts = coverage.as_json()
    if (warning := low_mass_warning(counts, recipe.transfer.min_transferred_probability)) is not None:
        progress.print_line(f"align: {warning}", "yellow")
    return paths, counts


def _iter_targets(
    run_dir: Path, recipe: Recipe, tokenizer: tokenization.Tokenizer, coverage: Coverage
) -> Iterator[tuple[Chain, Target]]:
    """The kept chains with their targets, one after the other. The rule `text` holds all chains: their words complete
    one another."""
    filtered = manifest.read_finished(run_dir / "filter")
    assert filtered is not None, "filter is finished before its verdicts are read"
    judged = parquet.chains_with_verdicts(
        run_dir / "sample" / "chains.parquet", run_dir / "filter" / "verdicts.parquet"
    )
    asked = recipe.transfer
    right = (chain for chain, verdict in judged if verdict.kept)
    kept = ((chain, *rewrite.prepare_chain(chain, asked.rewrite, asked.calculator_marks)) for chain in right)
    told: dict[str, Any] = {}
    if asked.rule == "text":
        kept = list(kept)
        rewritten = [taught for _, taught, _ in kept]
        told = {
            "completions": text_rule_completions.completions(rewritten, tokenizer),
            "teacher": _teacher_tokenizer(recipe),
        }
    with progress.bar("align", filtered.counts["kept"], "chains") as tick:
        for chain, taught, certain in kept:
            target = cross_tokenizer.transfer(taught, tokenizer, recipe.transfer.rule, certain=certain, **told)
            coverage.add(taught, target, certain)
            yield chain, target
            tick()


def _check_calculator_marks(tokenizer: tokenization.Tokenizer) -> None:
    """A student that would be taught its unknown token for every mark learns nothing from them."""
    example = "48/2 = <<48/2=24>>24"
    ids = tokenizer.encode(example).ids
    if tokenizer.vocabulary.unk in ids or tokenizer.decode(ids).strip() != example:
        raise UserError(
            "the student's vocabulary cannot write calculator marks",
            where="transfer.calculator_marks",
            found=f"{example!r} comes back as {tokenizer.decode(ids)!r}",
            hint="leave the key out: the calculator needs no marks, an expression and `=` are enough",
        )


def _teacher_tokenizer(recipe: Recipe) -> tokenization.Tokenizer | None:
    """The tokenizer of the model that gave the probabilities, where the rule reads it and the model is a folder: of a
    teacher in this process, or of the scorer of chains that exist. Others show only bytes, and of rewritten texts
    nobody knows how the teacher would have cut them."""
    asked, teacher = recipe.transfer, recipe.teacher
    if asked.rule != "text" or asked.rewrite or asked.calculator_marks:
        return None
    if teacher.kind in ("local", "vllm"):
        assert teacher.model is not None, "such a teacher has a model"
        return tokenization.load_tokenizer(find_path(recipe, teacher.model, "teacher.model"))
    if teacher.score is not None and teacher.score.kind == "local":
        return tokenization.load_tokenizer(find_path(recipe, teacher.score.model, "teacher.score.model"))
    return None
