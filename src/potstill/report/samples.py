"""The questions that the page shows in full: some with the teacher's chains, some with the student's answers.

Within a set, those with the lowest digests are shown: nobody selects them by what they show.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path

from potstill import teachers
from potstill.data import run_questions, splits
from potstill.errors import UserError
from potstill.prompts import FORMATS
from potstill.records import Chain, Question, Verdict
from potstill.report.model import OUTCOMES, Outcome, ReportExample
from potstill.report.run_files import RunFiles
from potstill.report.summary import outcome_of
from potstill.storage import parquet

MAX_CHAINS = 6  # of one question
JudgedChain = tuple[Chain, Verdict]


def count_outcomes(files: RunFiles) -> dict[Outcome, int]:
    """How many validation questions have each outcome, in the format of the choice."""
    outcomes = [outcome_of(before, after) for before, after in files.validation_answers.values()]
    return {outcome: outcomes.count(outcome) for outcome in OUTCOMES}


def pick_examples(files: RunFiles) -> Iterator[ReportExample]:
    """`report.examples` training questions that have chains, and as many validation questions of each outcome, taken in
    turn from the sets."""
    yield from _pick_training(files)
    yield from _pick_validation(files)


def _pick_training(files: RunFiles) -> Iterator[ReportExample]:
    recipe = files.recipe
    with_chains = {question for by_question in files.verdict_counts.values() for question in by_question}
    questions = [q for q in _training_questions(files) if q.id in with_chains]
    picked = splits.sample_by_hash(questions, recipe.report.examples)
    chains = _read_chains(files.run_dir, {question.id for question in picked})
    prompt_of = teachers.from_recipe(recipe).prompt_builder()
    for question in picked:
        prompt = prompt_of(question).plain if prompt_of else ""
        yield ReportExample(question, tuple(chains[question.id][:MAX_CHAINS]), prompt=prompt)


def _pick_validation(files: RunFiles) -> Iterator[ReportExample]:
    answers, count = files.validation_answers, files.recipe.report.examples
    by_outcome: dict[Outcome | None, dict[str, list[Question]]] = {outcome: {} for outcome in OUTCOMES}
    for question in run_questions.read_questions(files.run_dir, files.groups, "validation"):
        by_outcome[outcome_of(*answers[question.id])].setdefault(question.set, []).append(question)
    format, task_prompts = FORMATS[files.choice.format], run_questions.read_task_prompts(files.run_dir)
    for outcome in OUTCOMES:
        for question in _take_in_turns(by_outcome[outcome], count):
            prompt = run_questions.evaluation_prompt(question, format, task_prompts).plain
            before, after = answers[question.id]
            yield ReportExample(question, (), before, after, prompt)


def pick_figure_chain(files: RunFiles, examples: Iterable[ReportExample]) -> ReportExample | None:
    """The chain that the figures show token by token: `report.chain`, else the first kept chain with candidates, first
    among the examples, then among all chains. None if no chain has candidates.

    Raises UserError if `report.chain` names no chain with candidates.
    """
    name = files.recipe.report.chain
    if name is None:
        shown = (pair for example in examples for pair in example.chains)
        pairs = itertools.chain(shown, _read_judged_chains(files.run_dir))
        picked = next((pair for pair in pairs if pair[0].candidates and pair[1].kept), None)
        if picked is None:
            return None
    else:
        chains = _read_chains(files.run_dir, {name.rpartition("#")[0]})
        pairs = [pair for some in chains.values() for pair in some if f"{pair[0].question}#{pair[0].index}" == name]
        picked = next((pair for pair in pairs if pair[0].candidates), None)
        if picked is None:
            raise UserError(
                "this chain has no candidates" if pairs else "no such chain",
                code="E-report-chain",
                where="report.chain",
                found=name,
                hint="name a chain as QUESTION#INDEX, such as gsm8k/train/12#0",
            )
    question = next(q for q in _training_questions(files) if q.id == picked[0].question)
    return ReportExample(question, (picked,))


def _training_questions(files: RunFiles) -> list[Question]:
    return run_questions.read_questions(files.run_dir, files.recipe.questions.train, "train")


def _read_judged_chains(run_dir: Path) -> Iterator[JudgedChain]:
    return parquet.chains_with_verdicts(run_dir / "sample" / "chains.parquet", run_dir / "filter" / "verdicts.parquet")


def _read_chains(run_dir: Path, questions: Collection[str]) -> dict[str, list[JudgedChain]]:
    """The chains of some questions with their verdicts."""
    verdicts = {
        key: verdict
        for key, verdict in parquet.read_verdicts(run_dir / "filter" / "verdicts.parquet")
        if key[0] in questions
    }
    chains: dict[str, list[JudgedChain]] = {question: [] for question in questions}
    for chain in parquet.read_chains(run_dir / "sample" / "chains.parquet", questions):
        chains[chain.question].append((chain, verdicts[chain.key]))
    return chains


def _take_in_turns(by_set: Mapping[str, list[Question]], count: int) -> list[Question]:
    """At most `count` questions, one from each set in turn."""
    rows = [splits.sample_by_hash(questions, count) for questions in by_set.values()]
    turns = [row[turn] for turn in range(count) for row in rows if turn < len(row)]
    return turns[:count]
