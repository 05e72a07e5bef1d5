"""Picks the questions that the page shows in full: those with the lowest digests, so that their content has no influence.

    >>> share_out(6, [115, 15]), share_out(3, [1, 1, 0])
    ([5, 1], [1, 1, 0])

A set has as many places as its share of an outcome: if most lost questions are generic, most of those shown are.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterable, Iterator, Sequence
from pathlib import Path

from potstill import teachers
from potstill.data import run_questions, splits
from potstill.errors import UserError
from potstill.evaluation import checkpoint as checkpoints
from potstill.prompts import FORMATS
from potstill.records import BASE, Chain, Question, Verdict
from potstill.report.model import OUTCOMES, Outcome, ReportExample
from potstill.report.run_files import RunFiles
from potstill.report.summary import outcome_of
from potstill.storage import parquet

MAX_CHAINS = 6  # number of chains that the page shows for a question
JudgedChain = tuple[Chain, Verdict]


def pick_training_examples(files: RunFiles) -> Iterator[ReportExample]:
    """Up to `report.examples` training questions that have chains."""
    recipe = files.recipe
    with_chains = {question for by_question in files.verdict_counts.values() for question in by_question}
    questions = [question for question in files.training_questions if question.id in with_chains]
    picked = splits.sample_by_hash(questions, recipe.report.examples)
    chains = _read_chains(files.run_dir, {question.id for question in picked})
    prompt_of = teachers.from_recipe(recipe).prompt_builder()
    for question in picked:
        prompt = prompt_of(question).plain if prompt_of else ""
        own = chains[question.id]
        if recipe.teachers is not None:
            own = sorted(own, key=lambda judged: judged[0].index)  # so that chains of every source are among the first
        yield ReportExample(question, tuple(own[:MAX_CHAINS]), prompt=prompt)


def pick_validation_examples(files: RunFiles) -> Iterator[ReportExample]:
    """Up to `report.examples` validation questions of each outcome, from the sets in proportion to their questions."""
    answers, count = files.validation_answers, files.recipe.report.examples
    by_outcome: dict[Outcome | None, dict[str, list[Question]]] = {outcome: {} for outcome in OUTCOMES}
    for question in run_questions.read_questions(files.run_dir, files.groups, "validation"):
        by_outcome[outcome_of(*answers[question.id])].setdefault(question.set, []).append(question)
    format, task_prompts = FORMATS[files.choice.format], run_questions.read_task_prompts(files.run_dir)
    for outcome in OUTCOMES:
        by_set = by_outcome[outcome]
        shares = share_out(count, [len(questions) for questions in by_set.values()])
        for questions, share in zip(by_set.values(), shares, strict=True):
            for question in splits.sample_by_hash(questions, share):
                prompt = run_questions.evaluation_prompt(question, format, task_prompts).plain
                before, after = answers[question.id]
                yield ReportExample(question, (), before, after, prompt)


def pick_test_examples(files: RunFiles) -> Iterator[ReportExample]:
    """Up to `report.examples` test questions that are right, and as many that are not, of a run that only evaluates."""
    assert not files.recipe.has_teacher, "the page of a run that trains shows no test questions"
    predictions = checkpoints.read_predictions(files.run_dir / "test", BASE, files.main_format, files.main_decoding)
    answers = {answer.question: answer for answer in predictions}
    format, task_prompts = FORMATS[files.main_format], run_questions.read_task_prompts(files.run_dir)
    questions = run_questions.read_questions(files.run_dir, files.groups, "test")
    for is_right in (True, False):
        by_set: dict[str, list[Question]] = {}
        for question in questions:
            if (answers[question.id].grade == "right") == is_right:
                by_set.setdefault(question.set, []).append(question)
        shares = share_out(files.recipe.report.examples, [len(asked) for asked in by_set.values()])
        for asked, share in zip(by_set.values(), shares, strict=True):
            for question in splits.sample_by_hash(asked, share):
                prompt = run_questions.evaluation_prompt(question, format, task_prompts).plain
                yield ReportExample(question, (), answers[question.id], None, prompt)


def share_out(count: int, sizes: Sequence[int]) -> list[int]:
    """Share `count` places out among groups in proportion to their sizes (Sainte-Laguë). No group gets more than its size."""
    shares = [0] * len(sizes)
    for _ in range(min(count, sum(sizes))):
        free = [index for index, size in enumerate(sizes) if shares[index] < size]
        shares[max(free, key=lambda index: sizes[index] / (2 * shares[index] + 1))] += 1
    return shares


def pick_figure_chain(files: RunFiles, examples: Iterable[ReportExample]) -> ReportExample | None:
    """The chain that the figures show token by token; None if no chain has candidates.

    It is `report.chain` if the recipe names one. Otherwise it is the first kept chain with candidates among the examples,
    or else among all chains. Raises UserError if `report.chain` is not a chain with candidates.
    """
    name, folder = files.recipe.report.chain, files.run_dir
    if name is None:
        every = parquet.chains_with_verdicts(folder / "sample/chains.parquet", folder / "filter/verdicts.parquet")
        shown = (judged for example in examples for judged in example.chains)
        eligible = (judged for judged in itertools.chain(shown, every) if judged[1].kept)
    else:
        chains = _read_chains(folder, {name.rpartition("#")[0]})
        eligible = [pair for row in chains.values() for pair in row if f"{pair[0].question}#{pair[0].index}" == name]
    picked = next((judged for judged in eligible if judged[0].candidates), None)
    if picked is not None:
        question = next(question for question in files.training_questions if question.id == picked[0].question)
        return ReportExample(question, (picked,))
    if name is None:
        return None
    what = "the chain has no candidates" if eligible else "the run does not have this chain"
    hint = "name a chain with candidates as QUESTION#INDEX, such as gsm8k/train/12#0"
    raise UserError(what, code="E-report-chain", where="report.chain", found=name, hint=hint)


def _read_chains(run_dir: Path, questions: Collection[str]) -> dict[str, list[JudgedChain]]:
    """The chains of the given questions, with their verdicts, by question id."""
    rows = parquet.read_verdicts(run_dir / "filter" / "verdicts.parquet")
    verdicts = {key: verdict for key, verdict in rows if key[0] in questions}
    chains: dict[str, list[JudgedChain]] = {question: [] for question in questions}
    for chain in parquet.read_chains(run_dir / "sample" / "chains.parquet", questions):
        chains[chain.question].append((chain, verdicts[chain.key]))
    return chains
