"""filter: one verdict for every chain; nothing vanishes.

A chain is kept if its answer is right and no rule drops it: a text that the same question already has, or more right
chains than the cap.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import Any

from potstill import answers, progress
from potstill.errors import UserError
from potstill.files import tables
from potstill.questions import collected
from potstill.recipe import Recipe
from potstill.records import Chain, Question, Verdict

Key = tuple[str, str, int]
READS = ("filter",)
AFTER = ("collect", "sample")
VERSIONS = {"answers": answers.VERSION}


def make(run: Path, plan: Recipe) -> tuple[list[Path], dict[str, Any]]:
    sampled, path = run / "sample" / "chains.parquet", run / "filter" / "verdicts.parquet"
    tally = _Tally()
    tables.write_verdicts(path, _verdicts(run, plan, sampled, tally))
    return [path], tally.as_json()


def _verdicts(run: Path, plan: Recipe, sampled: Path, tally: _Tally) -> Iterator[tuple[Key, Verdict]]:
    """One for every chain, in the order of the chains: memory holds those of one question."""
    asked = {question.id: question for question in collected.questions(run, plan.questions.train, "train")}
    with progress.bar("filter", tables.rows(sampled), "chains") as tick:
        for name, chains in groupby(tables.read_chains(sampled), key=lambda chain: chain.question):
            texts: set[bytes] = set()
            right = 0
            for chain in chains:
                verdict = _verdict(chain, asked[name])
                verdict = Verdict(verdict.grade, verdict.found, _dropped(plan, chain, verdict, texts, right))
                right += verdict.kept
                texts.add(chain.content)
                tally.add(verdict)
                yield chain.key, verdict
                tick()
            tally.questions += right > 0
    if not tally.kept:
        raise UserError(
            "no chain survived the filter: there is nothing to learn from",
            where=sampled,
            found=f"{sum(tally.grades.values())} chains, {tally.grades['right']} of them right",
            do="look at some with `potstill show RUN --chain`, then change the teacher or its prompt",
        )


def _verdict(chain: Chain, question: Question) -> Verdict:
    return answers.grade(chain.text, question.gold, question.task, chain.stop)


def _dropped(plan: Recipe, chain: Chain, verdict: Verdict, texts: set[bytes], right: int) -> str | None:
    if plan.filter.duplicates == "drop" and chain.content in texts:
        return "duplicate"
    if verdict.grade == "right" and plan.filter.cap is not None and right >= plan.filter.cap:
        return "cap"
    return None


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
