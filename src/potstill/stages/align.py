"""align: transfers every kept chain to the student's vocabulary, once for all prompt formats.

The stage writes flat arrays and a record of their inputs into `align/<tokenizer>-<rule>/`. The manifest has the coverage:
positions and kept probability by kind. The stage fails if too few positions have the teacher's distribution
(`transfer.min_coverage`). It warns if too little of the teacher's probability was transferred
(`transfer.min_transferred_probability`).
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from itertools import groupby
from pathlib import Path
from typing import Any, Final

import numpy as np

from potstill import alignment, models, progress, storage, teachers, tokenization
from potstill.alignment import cross_tokenizer, rewrite, target_store, text_rule_completions
from potstill.alignment.coverage import Coverage, low_mass_warning
from potstill.calculator import equations
from potstill.errors import UserError
from potstill.recipe import Recipe
from potstill.records import Chain, Target
from potstill.stages import Stage, StageResult
from potstill.storage import parquet
from potstill.storage.segments import Shard
from potstill.training import examples

BLOCK_QUESTIONS: Final = 32  # the questions of a block, the unit that a shard stores
KeptChain = tuple[Chain, Chain, rewrite.Spans]  # a chain, the same as it is taught, and its certain spans
WARNING_KEY = "transfer.min_transferred_probability"  # changes no target


class Align(Stage):
    reads = ("transfer", "student.model", "student.tokenizer", "teacher.kind", "teacher.model")
    after = ("sample", "filter")
    shared = True
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
        folder, coverage = examples.targets_folder(run_dir, recipe), Coverage(tokenizer)
        arrays = target_store.join_blocks(_all_blocks(run_dir, recipe, tokenizer, coverage))
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

    def make_shard(self, run_dir: Path, recipe: Recipe, shard: Shard) -> None:
        tokenizer, blocks = models.tokenizer_from_recipe(recipe), _list_blocks(run_dir)
        missing = [number for number in shard.of(range(len(blocks))) if not _block_path(run_dir, number).exists()]
        own = {number: blocks[number] for number in missing}
        for number, block in _make_blocks(run_dir, recipe, tokenizer, own):
            parquet.write_arrays(_block_path(run_dir, number), block)


def _block_path(run_dir: Path, number: int) -> Path:
    first = number * BLOCK_QUESTIONS
    return run_dir / "align" / "shards" / f"questions-{first:07}-{first + BLOCK_QUESTIONS - 1:07}.npz"


def _list_blocks(run_dir: Path) -> list[dict[str, int]]:
    """The questions with kept chains, and their numbers of kept chains, in blocks in the order of the chains."""
    kept = Counter(key[0] for key, verdict in parquet.read_verdicts(_verdicts(run_dir)) if verdict.kept)
    rows = list(kept.items())
    return [dict(rows[start : start + BLOCK_QUESTIONS]) for start in range(0, len(rows), BLOCK_QUESTIONS)]


def _all_blocks(
    run_dir: Path, recipe: Recipe, tokenizer: tokenization.Tokenizer, coverage: Coverage
) -> Iterator[dict[str, np.ndarray]]:
    """The targets of all blocks, in their order. Those that no shard has stored are made. `coverage` counts all targets."""
    blocks = _list_blocks(run_dir)
    stored = {number for number in range(len(blocks)) if _block_path(run_dir, number).exists()}
    missing = {number: block for number, block in enumerate(blocks) if number not in stored}
    made = _make_blocks(run_dir, recipe, tokenizer, missing)
    for number in range(len(blocks)):
        block = parquet.read_arrays(_block_path(run_dir, number)) if number in stored else next(made)[1]
        coverage.add_counts(json.loads(block["coverage"].tobytes()))
        yield block


def _make_blocks(
    run_dir: Path, recipe: Recipe, tokenizer: tokenization.Tokenizer, blocks: Mapping[int, Mapping[str, int]]
) -> Iterator[tuple[int, dict[str, np.ndarray]]]:
    """The numbers of some blocks, ascending, with the targets of their chains.

    The rule `text` also reads the texts of all other chains, because it completes words of one chain with words of others.
    """
    section = recipe.transfer
    if section.calculator_marks == "insert":
        _check_calculator_marks(tokenizer)
    if not blocks:
        return
    block_of = {question: number for number, block in blocks.items() for question in block}
    options = _text_rule_options(run_dir, recipe, tokenizer) if section.rule == "text" else {}
    kept = _read_kept(run_dir, recipe, block_of)
    if options:
        kept = _set_questions(kept, options)
    total = sum(chains for block in blocks.values() for chains in block.values())
    with progress.bar("align", total, "chains") as tick:
        for number, chains in groupby(kept, key=lambda row: block_of[row[0].question]):
            coverage = Coverage(tokenizer)
            targets = _transfer_chains(chains, recipe, tokenizer, options, coverage, tick)
            block = target_store.pack_block(targets, section.min_probability)
            counts = np.frombuffer(json.dumps(coverage.counts()).encode(), np.uint8)
            yield number, {**block, "coverage": counts}


def _transfer_chains(
    kept: Iterable[KeptChain],
    recipe: Recipe,
    tokenizer: tokenization.Tokenizer,
    options: Mapping[str, Mapping[str, Any]],
    coverage: Coverage,
    tick: Callable[[], object],
) -> Iterator[tuple[Chain, Target]]:
    """The targets of chains, one at a time, because a long one takes 10 MiB. options: those of the rule, by source."""
    section = recipe.transfer
    for chain, taught, certain in kept:
        own_options = options.get(chain.source if recipe.teachers else "", {})
        target = cross_tokenizer.transfer(taught, tokenizer, section.rule, certain=certain, **own_options)
        coverage.add(taught, target, certain)
        yield chain, target
        tick()


def _read_kept(
    run_dir: Path, recipe: Recipe, questions: Collection[str] | None, *, candidates: bool = True
) -> Iterator[KeptChain]:
    """The kept chains of some questions, in their order. questions: None for all; candidates: whether to read them."""
    section, chains = recipe.transfer, run_dir / "sample" / "chains.parquet"
    graded = parquet.chains_with_verdicts(chains, _verdicts(run_dir), questions, candidates=candidates)
    for chain, verdict in graded:
        if verdict.kept:
            yield chain, *rewrite.prepare_chain(chain, section.rewrite, section.calculator_marks)


def _text_rule_options(run_dir: Path, recipe: Recipe, tokenizer: tokenization.Tokenizer) -> dict[str, dict[str, Any]]:
    """Source -> the options of the rule `text`, which read the texts of all kept chains of the source."""
    options, tokenizers = {}, _teacher_tokenizers(recipe)
    for source in recipe.sources:  # the chains of one teacher say nothing about the words of another
        texts = _read_kept(run_dir, recipe, None, candidates=False)
        of_source = (taught for chain, taught, _ in texts if source in ("", chain.source))
        completions = text_rule_completions.completions(of_source, tokenizer, keep=False)
        options[source] = {"completions": completions, "teacher": tokenizers.get(source)}
    return options


def _set_questions(kept: Iterable[KeptChain], options: Mapping[str, Mapping[str, Any]]) -> Iterator[KeptChain]:
    """The same chains. Before the first one of a question, the completions of each source get all of its chains of the
    question."""
    for question, group in groupby(kept, key=lambda row: row[0].question):
        rows = list(group)
        for source, own in options.items():
            of_source = [taught for chain, taught, _ in rows if source in ("", chain.source)]
            own["completions"].set_question(question, of_source)
        yield from rows


def _verdicts(run_dir: Path) -> Path:
    return run_dir / "filter" / "verdicts.parquet"


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
