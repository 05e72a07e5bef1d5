"""Samples: the questions that the page lets a person read."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Container, Iterable, Iterator, Mapping
from pathlib import Path

from potstill import exam, splits, story
from potstill.contenders import BASE, Contender
from potstill.errors import UserError
from potstill.files import tables
from potstill.prompts import FORMATS
from potstill.questions import collected
from potstill.recipe import Recipe
from potstill.records import Chain, Choice, Prediction, Question, Verdict
from potstill.teachers import local

CHAINS_SHOWN = 6  # of one question
Answers = dict[str, tuple[Prediction, Prediction]]


def outcomes(run: Path, choice: Choice) -> dict[story.Outcome, int]:
    """How many validation questions had each outcome, in the format of the choice."""
    kinds = [story.outcome(before, after) for before, after in _answers(run, choice).values()]
    return {kind: kinds.count(kind) for kind in story.OUTCOMES}


def pick(
    run: Path,
    plan: Recipe,
    choice: Choice,
    groups: Mapping[str, story.Group],
    solved: Container[str],
) -> Iterator[story.Sample]:
    """`report.read` of the training questions that have chains (`solved`), and as many validation questions of each
    outcome, spread over the sets.

    Within a set those with the lowest digests: nobody chose them by what they show.
    """
    train = [q for q in collected.questions(run, plan.questions.train, "train") if q.id in solved]
    asked = local.asked(plan) if plan.teacher.kind in ("local", "vllm", "openai") else None
    chosen = splits.take(train, plan.report.read)
    chains = _chains(run, {question.id for question in chosen})
    for question in chosen:
        prompt = asked(question).plain if asked else ""
        yield story.Sample(question, tuple(chains[question.id][:CHAINS_SHOWN]), prompt=prompt)
    table, answers = collected.shots(run), _answers(run, choice)
    by_kind: dict[str | None, dict[str, list[Question]]] = {kind: {} for kind in story.OUTCOMES}
    for question in collected.questions(run, groups, "validation"):
        by_kind[story.outcome(*answers[question.id])].setdefault(question.set, []).append(question)
    for kind in story.OUTCOMES:
        for question in _spread(by_kind[kind], plan.report.read):
            prompt = collected.prompt_of(question, FORMATS[choice.format], table).plain
            yield story.Sample(question, (), *answers[question.id], prompt=prompt)


def pictured(run: Path, plan: Recipe, read: Iterable[story.Sample]) -> story.Sample | None:
    """The chain that the recipe names, else the first kept one with candidates among those to read, else among all.

    Raises UserError if the recipe names none with candidates.
    """
    named, found = plan.report.chain, None
    if named is None:
        shown = (pair for sample in read for pair in sample.chains)
        found = next(
            (pair for pair in itertools.chain(shown, _judged(run)) if pair[0].candidates and pair[1].kept), None
        )
        if found is None:
            return None
    else:
        own = _chains(run, {named.rpartition("#")[0]})
        pairs = [pair for some in own.values() for pair in some if f"{pair[0].question}#{pair[0].index}" == named]
        found = next((pair for pair in pairs if pair[0].candidates), None)
        if found is None:
            what = "this chain has no candidates" if pairs else "no such chain"
            do = "name a chain as QUESTION#INDEX, such as gsm8k/train/12#0"
            raise UserError(what, where="report.chain", found=named, do=do)
    asked = collected.questions(run, plan.questions.train, "train")
    return story.Sample(next(q for q in asked if q.id == found[0].question), (found,))


def _judged(run: Path) -> Iterator[tuple[Chain, Verdict]]:
    return tables.judged(run / "sample" / "chains.parquet", run / "filter" / "verdicts.parquet")


def _chains(run: Path, chosen: Collection[str]) -> dict[str, list[tuple[Chain, Verdict]]]:
    """The chains of some questions with their verdicts."""
    told = tables.read_verdicts(run / "filter" / "verdicts.parquet")
    verdicts = {key: verdict for key, verdict in told if key[0] in chosen}
    found: dict[str, list[tuple[Chain, Verdict]]] = {name: [] for name in chosen}
    for chain in tables.read_chains(run / "sample" / "chains.parquet", chosen):
        found[chain.question].append((chain, verdicts[chain.key]))
    return found


def _answers(run: Path, choice: Choice) -> Answers:
    """Validation question -> the answers of the base and of the chosen step."""
    before = {each.question: each for each in _predictions(run, BASE, choice)}
    after = {each.question: each for each in _predictions(run, choice.contender, choice)}
    return {name: (before[name], after[name]) for name in before}


def _predictions(run: Path, who: Contender, choice: Choice) -> Iterator[Prediction]:
    return exam.predictions(run / "evaluate", who, choice.format, choice.decoding)


def _spread(by_set: Mapping[str, list[Question]], most: int) -> list[Question]:
    """At most so many, taken in turn from the sets."""
    rows = [splits.take(questions, most) for questions in by_set.values()]
    turns = [row[turn] for turn in range(most) for row in rows if turn < len(row)]
    return turns[:most]
