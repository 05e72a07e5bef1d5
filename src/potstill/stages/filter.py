"""filter: a verdict on every chain. A chain is kept if its answer is right and no rule of the recipe drops it.

No chain is deleted. Wrong and dropped chains also have a verdict.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import groupby
from pathlib import Path
from typing import Any, Final

from potstill import grading, progress
from potstill.calculator import equations
from potstill.data import chain_filter, custom_set, grader_tasks, run_questions, splits
from potstill.errors import UserError
from potstill.recipe import Recipe
from potstill.records import Chain, Question, Verdict
from potstill.stages import Stage, StageResult
from potstill.storage import parquet
from potstill.storage.segments import ChainKey, Shard

BLOCK_QUESTIONS: Final = 64  # the questions of a block, the unit that a shard stores
KeyedVerdict = tuple[ChainKey, Verdict]


class Filter(Stage):
    reads = ("filter",)
    after = ("collect", "sample")
    shared = True

    def versions(self) -> dict[str, int]:
        return {"answers": grading.VERSION, "sifting": chain_filter.VERSION, "splits": splits.VERSION}

    def free(self, recipe: Recipe) -> set[str]:
        """Optional keys that are not set, so that the manifest does not name them."""
        return {f"filter.{name}" for name in ("min_tokens", "max_tokens") if not getattr(recipe.filter, name)}

    def inputs(self, recipe: Recipe, run_dir: Path | None = None) -> dict[str, str]:
        digests = custom_set.grader_digests(grader_tasks(recipe))
        if filter_rules(recipe).counts_tokens:
            from potstill import models, tokenization

            digests["student.tokenizer"] = tokenization.load_tokenizer(models.tokenizer_folder(recipe)).digest
        if recipe.filter.wrong_sums:
            digests["calculator sums"] = str(equations.VERSION)
        if recipe.teachers is not None:  # equal texts and `max_per_question` then depend on the sources
            digests["sources"] = "several"
        return digests

    def make(self, run_dir: Path, recipe: Recipe) -> StageResult:
        path, counts = run_dir / "filter" / "verdicts.parquet", _VerdictCounts()
        parquet.write_verdicts(path, counts.count(_all_verdicts(run_dir, recipe)))
        if not counts.kept:
            what = "the filter kept no chain, so there is nothing to learn from"
            found = f"{sum(counts.grades.values())} chains, of which {counts.grades['right']} are right"
            hint = "look at some chains with `potstill show RUN --chain`, then change the teacher or its prompt"
            raise UserError(what, code="E-filter-nothing-kept", where=_chains(run_dir), found=found, hint=hint)
        return StageResult([path], counts.as_json())

    def make_shard(self, run_dir: Path, recipe: Recipe, shard: Shard) -> None:
        blocks = _list_blocks(run_dir)
        missing = [number for number in shard.of(range(len(blocks))) if not _block_path(run_dir, number).exists()]
        for number, verdicts in _judge_blocks(run_dir, recipe, {number: blocks[number] for number in missing}):
            parquet.write_verdicts(_block_path(run_dir, number), verdicts)


def _chains(run_dir: Path) -> Path:
    return run_dir / "sample" / "chains.parquet"


def _block_path(run_dir: Path, number: int) -> Path:
    first = number * BLOCK_QUESTIONS
    return run_dir / "filter" / "shards" / f"questions-{first:07}-{first + BLOCK_QUESTIONS - 1:07}.parquet"


def _list_blocks(run_dir: Path) -> list[dict[str, int]]:
    """The questions with their numbers of chains, in blocks in the order of the chains."""
    rows = list(parquet.count_question_chains(_chains(run_dir)).items())
    return [dict(rows[start : start + BLOCK_QUESTIONS]) for start in range(0, len(rows), BLOCK_QUESTIONS)]


def _all_verdicts(run_dir: Path, recipe: Recipe) -> Iterator[KeyedVerdict]:
    """The key and verdict of every chain, in the order of the chains. Blocks that no shard has stored are judged."""
    blocks = _list_blocks(run_dir)
    stored = {number for number in range(len(blocks)) if _block_path(run_dir, number).exists()}
    judged = _judge_blocks(
        run_dir, recipe, {number: block for number, block in enumerate(blocks) if number not in stored}
    )
    for number in range(len(blocks)):
        yield from parquet.read_verdicts(_block_path(run_dir, number)) if number in stored else next(judged)[1]


def _judge_blocks(
    run_dir: Path, recipe: Recipe, blocks: Mapping[int, Mapping[str, int]]
) -> Iterator[tuple[int, Iterator[KeyedVerdict]]]:
    """The numbers of some blocks, ascending, with the verdicts of their chains, which are read before the next block.

    Memory holds the chains of one question: no rule compares the chains of different questions.
    """
    train = run_questions.read_questions(run_dir, recipe.questions.train, "train")
    questions = {question.id: question for question in train}
    overlaps = run_questions.read_overlaps(run_dir)
    block_of = {question: number for number, block in blocks.items() for question in block}
    rules = filter_rules(recipe)
    count_tokens = _token_counter(recipe) if rules.counts_tokens else None

    def judge(chains: Iterable[Chain]) -> Iterator[KeyedVerdict]:
        for name, own in groupby(chains, key=lambda chain: chain.question):
            question, contaminated = questions[name], overlaps.get(name, 0.0) >= recipe.filter.contamination_threshold
            chain_rules = chain_filter.ChainFilter(rules, contaminated=contaminated, count_tokens=count_tokens)
            for chain, verdict in _judge_chains(own, question, chain_rules, several=recipe.teachers is not None):
                yield chain.key, verdict
                tick()

    with progress.bar("filter", sum(sum(block.values()) for block in blocks.values()), "chains") as tick:
        chains = parquet.read_chains(_chains(run_dir), block_of)
        for number, own in groupby(chains, key=lambda chain: block_of[chain.question]):
            yield number, judge(own)


def _token_counter(recipe: Recipe) -> Callable[[str], int]:
    """The function from a text to its number of the student's tokens."""
    from potstill import models

    tokenizer = models.tokenizer_from_recipe(recipe)
    return lambda text: len(tokenizer.encode(text).ids)


def _judge_chains(
    chains: Iterable[Chain], question: Question, chain_rules: chain_filter.ChainFilter, *, several: bool
) -> Iterator[tuple[Chain, Verdict]]:
    """The chains of a question with their verdicts, in their order.

    several  whether the run has several sources. Then chains with log-probabilities are judged first, so that of equal
             texts the one with the teacher's distribution is kept
    """
    if not several:
        for chain in chains:
            yield chain, _judge(chain, question, chain_rules, "")
        return
    all_chains = list(chains)
    order = sorted(range(len(all_chains)), key=lambda index: not all_chains[index].candidates)
    verdicts = {index: _judge(all_chains[index], question, chain_rules, all_chains[index].source) for index in order}
    yield from ((chain, verdicts[index]) for index, chain in enumerate(all_chains))


def _judge(chain: Chain, question: Question, chain_rules: chain_filter.ChainFilter, source: str) -> Verdict:
    graded = grading.grade_chain(chain.text, question, chain.stop, chain.defects)
    return Verdict(graded.grade, graded.answer, chain_rules.drop_reason(chain.text, graded.grade == "right", source))


def filter_rules(recipe: Recipe) -> chain_filter.FilterRules:
    section = recipe.filter
    return chain_filter.FilterRules(
        duplicates=section.duplicates == "drop",
        near_duplicate_threshold=section.near_duplicate_threshold,
        max_per_question=section.max_per_question,
        min_chars=section.min_chars,
        max_chars=section.max_chars,
        min_tokens=section.min_tokens,
        max_tokens=section.max_tokens,
        script=section.script,
        drop_wrong_equations=section.wrong_sums == "drop",
    )


class _VerdictCounts:
    """The counts of the verdicts, for the manifest."""

    def __init__(self) -> None:
        self.grades, self.dropped = Counter[str](), Counter[str]()
        self.kept = self.questions = 0

    def count(self, verdicts: Iterable[KeyedVerdict]) -> Iterator[KeyedVerdict]:
        """Count the verdicts, which are in the order of the questions, and yield them."""
        for _, of_question in groupby(verdicts, key=lambda row: row[0][0]):
            before = self.kept
            for key, verdict in of_question:
                self.grades[verdict.grade] += 1
                if verdict.dropped:
                    self.dropped[verdict.dropped] += 1
                self.kept += verdict.kept
                yield key, verdict
            self.questions += self.kept > before

    def as_json(self) -> dict[str, Any]:
        return {
            "verdicts": dict(self.grades),
            "dropped": dict(self.dropped),
            "kept": self.kept,
            "questions with a kept chain": self.questions,
        }
