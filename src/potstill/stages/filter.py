"""filter: one verdict for every chain; nothing vanishes.

A chain is kept if its answer is right and no rule drops it: a text that the same question already has, or more right
chains than the cap.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from potstill import answers, progress
from potstill.errors import UserError
from potstill.files import tables
from potstill.questions import collected
from potstill.recipe import Recipe
from potstill.records import Chain, Question, Verdict

READS = ("filter",)
AFTER = ("collect", "sample")
VERSIONS = {"answers": answers.VERSION}


def make(run: Path, plan: Recipe) -> tuple[list[Path], dict[str, Any]]:
    asked = {question.id: question for question in collected.questions(run, plan.questions.train, "train")}
    chains = list(tables.read_chains(run / "sample" / "chains.parquet"))
    verdicts: list[tuple[tuple[str, str, int], Verdict]] = []
    texts: set[tuple[str, bytes]] = set()
    right: dict[str, int] = {}
    with progress.bar("filter", len(chains), "chains") as tick:
        for chain in chains:
            verdict = _verdict(chain, asked[chain.question])
            verdict = Verdict(verdict.grade, verdict.found, _dropped(plan, chain, verdict, texts, right))
            if verdict.kept:
                right[chain.question] = right.get(chain.question, 0) + 1
            texts.add((chain.question, chain.content))
            verdicts.append((chain.key, verdict))
            tick()
    if not right:
        raise UserError(
            "no chain survived the filter: there is nothing to learn from",
            where=run / "sample" / "chains.parquet",
            found=f"{len(chains)} chains, {sum(v.grade == 'right' for _, v in verdicts)} of them right",
            do="look at some with `potstill show RUN --chain`, then change the teacher or its prompt",
        )
    path = run / "filter" / "verdicts.parquet"
    tables.write_verdicts(path, verdicts)
    return [path], _counts(verdicts, right)


def _verdict(chain: Chain, question: Question) -> Verdict:
    return answers.grade(chain.text, question.gold, question.task, chain.stop)


def _dropped(
    plan: Recipe, chain: Chain, verdict: Verdict, texts: set[tuple[str, bytes]], right: dict[str, int]
) -> str | None:
    if plan.filter.duplicates == "drop" and (chain.question, chain.content) in texts:
        return "duplicate"
    if verdict.grade == "right" and plan.filter.cap is not None and right.get(chain.question, 0) >= plan.filter.cap:
        return "cap"
    return None


def _counts(verdicts: list[tuple[tuple[str, str, int], Verdict]], right: dict[str, int]) -> dict[str, Any]:
    grades: dict[str, int] = {}
    dropped: dict[str, int] = {}
    for _, verdict in verdicts:
        grades[verdict.grade] = grades.get(verdict.grade, 0) + 1
        if verdict.dropped:
            dropped[verdict.dropped] = dropped.get(verdict.dropped, 0) + 1
    kept = sum(right.values())
    return {"verdicts": grades, "dropped": dropped, "kept": kept, "questions with a kept chain": len(right)}
