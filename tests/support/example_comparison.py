"""Comparisons of models and of recipes, for the tests of their pages."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from potstill.records import Grade, Prediction, Question
from potstill.report.group_scores import RunAnswers, group_runs, score_groups
from potstill.report.model import QuotedScore
from potstill.report.model_comparison import ComparedQuestion, ModelComparison, compare_sets

GRADES: tuple[Grade, ...] = ("right", "wrong", "no answer")


def answer(question: str, grade: Grade, text: str = "text") -> Prediction:
    return Prediction(question, question.split("/")[0], "number", text, "end", grade, "7")


def rows(grades: Mapping[str, Grade]) -> dict[str, Prediction]:
    return {question: answer(question, grade) for question, grade in grades.items()}


def comparison(text: str = "text", name: str = "sums") -> ModelComparison:
    first = rows({f"sums/{at}": "wrong" for at in range(60)} | {f"more/{at}": "right" for at in range(60)})
    second = rows({f"sums/{at}": "right" for at in range(60)} | {f"more/{at}": "wrong" for at in range(60)})
    asked = Question(f"{name}/1", text, text, name, "test", "number")
    return ModelComparison(
        models=("base", text, "third"),
        split="test",
        groups={"sums": "in-distribution", "more": "generic"},
        sets=tuple(compare_sets("zero-shot-rationale.greedy", [first, second, first])),
        questions=(ComparedQuestion(asked, tuple(answer(asked.id, grade, text) for grade in GRADES)),),
        differing={"sums": 60, "more": 60},
        omitted=3,
        command="potstill compare a b c --page page.html",
        note="A note.",
    )


def recipes(text: str = "text") -> ModelComparison:
    """Two seeds of a recipe that is always wrong, and two of one that is always right, named `text`."""
    runs = [
        RunAnswers(f"{value}-{seed}", {"k": value}, {"train.seed": seed}, {"greedy": dict(answers)}, quoted=quoted)
        for value, right in (("first", False), (text, True))
        for answers in [{f"q{n}": ("sums", right) for n in range(60)}]
        for seed, quoted in ((1, (QuotedScore(text, text, "sums", 0.5),)), (2, ()))
    ]
    groups = group_runs(runs)
    return replace(comparison(text), recipes=groups, recipe_scores=score_groups(groups))
