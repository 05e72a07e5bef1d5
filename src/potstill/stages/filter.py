"""filter: one verdict for every chain; nothing vanishes.

A chain is kept if its answer is right and no rule of `sifting` drops it. A wrong one keeps its verdict.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import Any

from potstill import answers, progress, sifting, splits
from potstill.calculator import sums
from potstill.errors import UserError
from potstill.files import tables
from potstill.questions import collected, own
from potstill.recipe import Recipe
from potstill.records import Verdict

Key = tuple[str, str, int]
READS = ("filter",)
AFTER = ("collect", "sample")
VERSIONS = {"answers": answers.VERSION, "sifting": sifting.VERSION, "splits": splits.VERSION}


def inputs(plan: Recipe) -> dict[str, str]:
    found = own.graders(each.task for each in plan.sets.values())
    if plan.filter.wrong_sums:
        found["calculator sums"] = str(sums.VERSION)
    return found


def make(run: Path, plan: Recipe) -> tuple[list[Path], dict[str, Any]]:
    sampled, path = run / "sample" / "chains.parquet", run / "filter" / "verdicts.parquet"
    tally = _Tally()
    tables.write_verdicts(path, _verdicts(run, plan, sampled, tally))
    return [path], tally.as_json()


def _verdicts(run: Path, plan: Recipe, sampled: Path, tally: _Tally) -> Iterator[tuple[Key, Verdict]]:
    """One for every chain, in the order of the chains: memory holds those of one question."""
    asked = {question.id: question for question in collected.questions(run, plan.questions.train, "train")}
    near = collected.overlaps(run)
    with progress.bar("filter", tables.rows(sampled), "chains") as tick:
        for name, chains in groupby(tables.read_chains(sampled), key=lambda chain: chain.question):
            sieve = sifting.Sieve(rules(plan), contaminated=near.get(name, 0.0) >= plan.filter.contamination)
            for chain in chains:
                graded = answers.grade(chain.text, asked[name].gold, asked[name].task, chain.stop)
                verdict = Verdict(graded.grade, graded.found, sieve.dropped(chain.text, graded.grade == "right"))
                tally.add(verdict)
                yield chain.key, verdict
                tick()
            tally.questions += sieve.kept > 0
    if not tally.kept:
        raise UserError(
            "no chain survived the filter: there is nothing to learn from",
            where=sampled,
            found=f"{sum(tally.grades.values())} chains, {tally.grades['right']} of them right",
            do="look at some with `potstill show RUN --chain`, then change the teacher or its prompt",
        )


def rules(plan: Recipe) -> sifting.Rules:
    asked = plan.filter
    return sifting.Rules(
        duplicates=asked.duplicates == "drop",
        near=asked.near,
        cap=asked.cap,
        shortest=asked.shortest,
        longest=asked.longest,
        script=asked.script,
        sums=asked.wrong_sums == "drop",
    )


class _Tally:
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
