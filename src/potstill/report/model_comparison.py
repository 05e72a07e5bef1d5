"""Compares two or more models on the questions that all of them answered, for the page of `potstill compare`.

    >>> def answer(question, grade): return Prediction(question, "s", "number", "text", "end", grade, None)
    >>> first = {"q1": answer("q1", "right"), "q2": answer("q2", "wrong")}
    >>> second = {"q1": answer("q1", "right"), "q2": answer("q2", "right"), "q3": answer("q3", "right")}
    >>> [row] = compare_sets("greedy", [first, second])
    >>> row.n, [score.value for score in row.scores], row.changes[1].value, row.won[1], row.lost[1]
    (2, [0.5, 1.0], 0.5, 1, 0)

A change is the accuracy of a model minus that of the first model, with Newcombe's interval for paired proportions.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from potstill.evaluation import intervals
from potstill.records import Prediction, Question
from potstill.report.group_scores import GroupScore, SeedGroup
from potstill.report.model import Interval, QuotedScore, SetGroup

Answers = Mapping[str, Prediction]  # by question (`run_questions.question_key`)


@dataclass(frozen=True, slots=True)
class ComparedSet:
    """The models on the questions of one set that all of them answered. Lists have one entry per model, in order.

    answers  format and decoding
    changes  accuracy minus that of the first model; None for the first
    won      number of questions that the model has right and the first has not; 0 for the first
    lost     number of questions that only the first of the two has right; 0 for the first
    """

    answers: str
    set: str
    n: int
    scores: tuple[Interval, ...]
    changes: tuple[Interval | None, ...]
    won: tuple[int, ...]
    lost: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class ComparedQuestion:
    """A question on which the models' grades differ, with the answer of each model."""

    question: Question
    answers: tuple[Prediction, ...]


@dataclass(frozen=True, slots=True)
class ModelComparison:
    """What the page of `potstill compare` shows.

    models      names of the models; the first is the one that the others are compared with
    split       test or validation
    groups      the group of each set, as in the recipe of the first model
    questions   up to so many questions with different grades as the page shows
    differing   number of questions with different grades, by set, in the first format that all models have
    omitted     number of answers to questions that not all models answered
    command     the command that writes the page
    note        what the intervals do not include
    quoted      figures from the literature that the runs' recipes quote
    recipes     groups of the models that differ only in seeds, with their scores `recipe_scores`; empty if the models are
                not grouped
    """

    models: tuple[str, ...]
    split: str
    groups: Mapping[str, SetGroup]
    sets: tuple[ComparedSet, ...]
    questions: tuple[ComparedQuestion, ...]
    differing: Mapping[str, int]
    omitted: int
    command: str
    note: str
    quoted: tuple[QuotedScore, ...] = ()
    recipes: tuple[SeedGroup, ...] = ()
    recipe_scores: tuple[GroupScore, ...] = ()


def common_questions(answers: Sequence[Answers]) -> list[str]:
    """The questions that all models answered, sorted."""
    return sorted(set(answers[0]).intersection(*answers[1:]))


def compare_sets(name: str, answers: Sequence[Answers]) -> Iterator[ComparedSet]:
    """The comparison on every set.

    name     format and decoding
    answers  the answers of each model
    """
    by_set: dict[str, list[str]] = {}
    for question in common_questions(answers):
        by_set.setdefault(answers[0][question].set, []).append(question)
    for set_name, asked in sorted(by_set.items()):
        right = [[rows[question].grade == "right" for question in asked] for rows in answers]
        scores = [Interval(sum(row) / len(row), *intervals.wilson_interval(sum(row), len(row))) for row in right]
        changes = [Interval(*intervals.paired_difference(row, right[0])) for row in right[1:]]
        pairs = [list(zip(right[0], row, strict=True)) for row in right]
        won, lost = ([row.count(pair) for row in pairs] for pair in ((False, True), (True, False)))
        yield ComparedSet(name, set_name, len(asked), tuple(scores), (None, *changes), tuple(won), tuple(lost))


def differing_questions(answers: Sequence[Answers]) -> dict[str, list[str]]:
    """The questions that some models have right and others have not, by set."""
    by_set: dict[str, list[str]] = {}
    for question in common_questions(answers):
        if len({rows[question].grade == "right" for rows in answers}) > 1:
            by_set.setdefault(answers[0][question].set, []).append(question)
    return by_set
