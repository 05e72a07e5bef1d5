"""The parity of two engines: the number of equal greedy answers to the same questions, and of right answers.

>>> AnswerParity(40, 38, 20, 21).sentence
'38 of 40 greedy answers equal; right: 20 in potstill, 21 after the export'
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from potstill import evaluation, progress
from potstill.errors import UserError
from potstill.export.source import ExportedRun
from potstill.inference import Decode, Engine
from potstill.records import Prediction, Question


@dataclass(frozen=True, slots=True)
class AnswerParity:
    """Counts over the same questions. right, right_exported: right answers in potstill, and after the export."""

    questions: int
    equal: int
    right: int
    right_exported: int

    @property
    def sentence(self) -> str:
        return (
            f"{self.equal} of {self.questions} greedy answers equal; right: {self.right} in potstill,"
            f" {self.right_exported} after the export"
        )

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def compare_answers(run: ExportedRun, own: Engine, exported: Engine, questions: Sequence[Question]) -> AnswerParity:
    """Answer the questions with both engines, greedily, with the run's token limit, and count equal and right answers."""
    first, second = (
        _answer(run, engine, questions, label) for engine, label in ((own, "potstill"), (exported, "export"))
    )
    equal = sum(first[key].text == second[key].text for key in first)
    right, right_exported = (sum(row.grade == "right" for row in rows.values()) for rows in (first, second))
    return AnswerParity(len(questions), equal, right, right_exported)


def _answer(run: ExportedRun, engine: Engine, questions: Sequence[Question], label: str) -> dict[str, Prediction]:
    section = run.recipe.evaluate
    decode = Decode(section.max_tokens, stop_at_answer="sentence" if section.stop_at_answer else None)
    answers = {}
    with progress.bar(f"answers of {label}", len(questions), "answers") as advance:
        for batch in evaluation.predict_answers(engine, questions, run.prompt_of, decode, budget=section.batch_tokens):
            answers |= {prediction.question: prediction for prediction in batch}
            advance(len(batch))
    return answers


def not_equal(what: str, found: object) -> UserError:
    """The error for an export that differs from the run."""
    hint = "nothing was written; please report this with the model's config.json and tokenizer.json"
    return UserError(what, code="E-export-parity", where="export", found=found, hint=hint)
