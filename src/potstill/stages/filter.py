"""filter: one verdict for every chain; nothing vanishes.

A chain is kept if its answer is right and no rule of `sifting` drops it. A wrong one keeps its verdict.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import Any

from potstill import grading, progress
from potstill.calculator import equations
from potstill.data import chain_filter, custom_set, run_questions, splits
from potstill.errors import UserError
from potstill.recipe import Recipe
from potstill.records import Verdict
from potstill.storage import parquet

ChainKey = tuple[str, str, int]
READS = ("filter",)
AFTER = ("collect", "sample")
VERSIONS = {"answers": grading.VERSION, "sifting": chain_filter.VERSION, "splits": splits.VERSION}


def inputs(recipe: Recipe) -> dict[str, str]:
    found = custom_set.grader_digests(each.task for each in recipe.sets.values())
    if recipe.filter.wrong_sums:
        found["calculator sums"] = str(equations.VERSION)
    return found


def make(run_dir: Path, recipe: Recipe) -> tuple[list[Path], dict[str, Any]]:
    sampled, path = run_dir / "sample" / "chains.parquet", run_dir / "filter" / "verdicts.parquet"
    tally = _VerdictCounts()
    parquet.write_verdicts(path, _iter_verdicts(run_dir, recipe, sampled, tally))
    return [path], tally.as_json()


def _iter_verdicts(
    run_dir: Path, recipe: Recipe, sampled: Path, tally: _VerdictCounts
) -> Iterator[tuple[ChainKey, Verdict]]:
    """One for every chain, in the order of the chains: memory holds those of one question."""
    asked = {
        question.id: question for question in run_questions.read_questions(run_dir, recipe.questions.train, "train")
    }
    near = run_questions.read_overlaps(run_dir)
    with progress.bar("filter", parquet.count_rows(sampled), "chains") as tick:
        for name, chains in groupby(parquet.read_chains(sampled), key=lambda chain: chain.question):
            sieve = chain_filter.ChainFilter(
                filter_rules(recipe), contaminated=near.get(name, 0.0) >= recipe.filter.contamination_threshold
            )
            for chain in chains:
                graded = grading.grade(chain.text, asked[name].gold, asked[name].task, chain.stop)
                verdict = Verdict(graded.grade, graded.answer, sieve.drop_reason(chain.text, graded.grade == "right"))
                tally.add(verdict)
                yield chain.key, verdict
                tick()
            tally.questions += sieve.kept > 0
    if not tally.kept:
        raise UserError(
            "no chain survived the filter: there is nothing to learn from",
            where=sampled,
            found=f"{sum(tally.grades.values())} chains, {tally.grades['right']} of them right",
            hint="look at some with `potstill show RUN --chain`, then change the teacher or its prompt",
        )


def filter_rules(recipe: Recipe) -> chain_filter.FilterRules:
    asked = recipe.filter
    return chain_filter.FilterRules(
        duplicates=asked.duplicates == "drop",
        near_duplicate_threshold=asked.near_duplicate_threshold,
        max_per_question=asked.max_per_question,
        min_chars=asked.min_chars,
        max_chars=asked.max_chars,
        script=asked.script,
        drop_wrong_equations=asked.wrong_sums == "drop",
    )


class _VerdictCounts:
    """What the manifest says of the verdicts."""

    def __init__(self) -> None:
        self.grades, self.dropped = Counter[str](), Counter[str]()
        self.kept = self.questions = 0

    def add(self, verdict: Verdict) -> None:
        self.grades[verdict.grade] += 1
        if verdict.dropped:
            self.dropped[verdict.dropped] += 1
        self.kept += verdict.kept

    def as_json(self) -> dict[str, Any]:
        return {
            "verdicts": dict(self.grades),
            "dropped": dict(self.dropped),
            "kept": self.kept,
            "questions with a kept chain": self.questions,
        }
