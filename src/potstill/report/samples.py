"""Samples: the questions that the page lets a person read."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Container, Iterable, Iterator, Mapping
from pathlib import Path

from potstill import teachers
from potstill.data import run_questions, splits
from potstill.errors import UserError
from potstill.evaluation import checkpoint
from potstill.prompts import FORMATS
from potstill.recipe import Recipe
from potstill.records import BASE, Chain, Checkpoint, Choice, Prediction, Question, Verdict
from potstill.report import model, summary
from potstill.storage import parquet

MAX_CHAINS = 6  # of one question
AnswerPairs = dict[str, tuple[Prediction, Prediction]]


def count_outcomes(run_dir: Path, choice: Choice) -> dict[model.Outcome, int]:
    """How many validation questions had each outcome, in the format of the choice."""
    kinds = [summary.outcome_of(before, after) for before, after in _read_answer_pairs(run_dir, choice).values()]
    return {kind: kinds.count(kind) for kind in model.OUTCOMES}


def pick_examples(
    run_dir: Path,
    recipe: Recipe,
    choice: Choice,
    groups: Mapping[str, model.SetGroup],
    solved: Container[str],
) -> Iterator[model.ReportExample]:
    """`report.examples` of the training questions that have chains (`solved`), and as many validation questions of each
    outcome, spread over the sets.

    Within a set those with the lowest digests: nobody chose them by what they show.
    """
    train = [q for q in run_questions.read_questions(run_dir, recipe.questions.train, "train") if q.id in solved]
    build_prompt = teachers.from_recipe(recipe).prompt_builder()
    chosen = splits.sample_by_hash(train, recipe.report.examples)
    chains = _read_chains(run_dir, {question.id for question in chosen})
    for question in chosen:
        prompt = build_prompt(question).plain if build_prompt else ""
        yield model.ReportExample(question, tuple(chains[question.id][:MAX_CHAINS]), prompt=prompt)
    table, answers = run_questions.read_task_prompts(run_dir), _read_answer_pairs(run_dir, choice)
    by_kind: dict[str | None, dict[str, list[Question]]] = {kind: {} for kind in model.OUTCOMES}
    for question in run_questions.read_questions(run_dir, groups, "validation"):
        by_kind[summary.outcome_of(*answers[question.id])].setdefault(question.set, []).append(question)
    for kind in model.OUTCOMES:
        for question in _take_in_turns(by_kind[kind], recipe.report.examples):
            prompt = run_questions.evaluation_prompt(question, FORMATS[choice.format], table).plain
            yield model.ReportExample(question, (), *answers[question.id], prompt=prompt)


def pick_figure_chain(run_dir: Path, recipe: Recipe, read: Iterable[model.ReportExample]) -> model.ReportExample | None:
    """The chain that the recipe names, else the first kept one with candidates among those to read, else among all.

    Raises UserError if the recipe names none with candidates.
    """
    named, found = recipe.report.chain, None
    if named is None:
        shown = (pair for sample in read for pair in sample.chains)
        found = next(
            (
                pair
                for pair in itertools.chain(shown, _read_judged_chains(run_dir))
                if pair[0].candidates and pair[1].kept
            ),
            None,
        )
        if found is None:
            return None
    else:
        own = _read_chains(run_dir, {named.rpartition("#")[0]})
        pairs = [pair for some in own.values() for pair in some if f"{pair[0].question}#{pair[0].index}" == named]
        found = next((pair for pair in pairs if pair[0].candidates), None)
        if found is None:
            what = "this chain has no candidates" if pairs else "no such chain"
            hint = "name a chain as QUESTION#INDEX, such as gsm8k/train/12#0"
            raise UserError(what, where="report.chain", found=named, hint=hint)
    asked = run_questions.read_questions(run_dir, recipe.questions.train, "train")
    return model.ReportExample(next(q for q in asked if q.id == found[0].question), (found,))


def _read_judged_chains(run_dir: Path) -> Iterator[tuple[Chain, Verdict]]:
    return parquet.chains_with_verdicts(run_dir / "sample" / "chains.parquet", run_dir / "filter" / "verdicts.parquet")


def _read_chains(run_dir: Path, chosen: Collection[str]) -> dict[str, list[tuple[Chain, Verdict]]]:
    """The chains of some questions with their verdicts."""
    told = parquet.read_verdicts(run_dir / "filter" / "verdicts.parquet")
    verdicts = {key: verdict for key, verdict in told if key[0] in chosen}
    found: dict[str, list[tuple[Chain, Verdict]]] = {name: [] for name in chosen}
    for chain in parquet.read_chains(run_dir / "sample" / "chains.parquet", chosen):
        found[chain.question].append((chain, verdicts[chain.key]))
    return found


def _read_answer_pairs(run_dir: Path, choice: Choice) -> AnswerPairs:
    """Validation question -> the answers of the base and of the chosen step."""
    before = {each.question: each for each in _read_predictions(run_dir, BASE, choice)}
    after = {each.question: each for each in _read_predictions(run_dir, choice.checkpoint, choice)}
    return {name: (before[name], after[name]) for name in before}


def _read_predictions(run_dir: Path, who: Checkpoint, choice: Choice) -> Iterator[Prediction]:
    return checkpoint.read_predictions(run_dir / "evaluate", who, choice.format, choice.decoding)


def _take_in_turns(by_set: Mapping[str, list[Question]], most: int) -> list[Question]:
    """At most so many, taken in turn from the sets."""
    rows = [splits.sample_by_hash(questions, most) for questions in by_set.values()]
    turns = [row[turn] for turn in range(most) for row in rows if turn < len(row)]
    return turns[:most]
