"""The teacher `human`: the solutions of a data set as chains, one text per question, without log-probabilities.

    >>> question = Question("gsm8k/1", "What is 1 + 1?", "2", "gsm8k", "train", "gsm8k", rationale="1 + 1 = 2.")
    >>> [chains] = ReferenceSolutions(Recipe(name="mine")).sample([question])
    >>> chains[0].text, chains[0].semantics
    ('1 + 1 = 2.\\nThe answer is 2', 'none')

The student learns these chains with hard targets, unless `teacher.score` adds log-probabilities.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from potstill import prompts
from potstill.errors import UserError
from potstill.recipe import Recipe
from potstill.records import Chain, Question
from potstill.teachers.text_teacher import TextTeacher

__all__ = ["Recipe", "ReferenceSolutions"]
BATCH_SIZE = 256


class ReferenceSolutions(TextTeacher):
    """The teacher `human`, whose chains are the solutions of the sets."""

    right_by_definition = True

    def read_chains(
        self, questions: Sequence[Question], other_questions: Iterable[Question] = ()
    ) -> Iterator[list[Chain]]:
        """One chain per question, with index 0, in the order of the questions.

        Raises UserError before the first batch, as `check_questions` does.
        """
        self.check_questions(questions)
        solved = self._select_questions(questions)
        return (
            [self._build_chain(question) for question in solved[start : start + BATCH_SIZE]]
            for start in range(0, len(solved), BATCH_SIZE)
        )

    def check_questions(self, questions: Sequence[Question]) -> None:
        """Raise UserError if a question has no solution and `teacher.unsolved` is `stop`; or with `skip`, if none has one."""
        if self.recipe.teacher.unsolved == "answer":
            return
        missing = [question.id for question in questions if not question.rationale]
        if missing and (self.recipe.teacher.unsolved == "stop" or len(missing) == len(questions)):
            skip = ", set teacher.unsolved: skip" if len(missing) < len(questions) else ""
            raise UserError(
                f"{len(missing)} of {len(questions)} questions have no solution for the teacher `human`",
                code="E-teacher-no-solutions",
                where="teacher",
                found=f"the first one is {missing[0]}",
                hint="give every training question a rationale (sets.NAME.fields names its field)"
                f"{skip}, use another teacher, or train on bare answers with teacher.unsolved: answer",
            )

    def _build_chain(self, question: Question) -> Chain:
        text = prompts.format_solution(question.rationale or "", question.gold)
        return Chain.from_text(question.id, 0, text, source=self.source)

    def _select_questions(self, questions: Sequence[Question]) -> list[Question]:
        """The questions that have a chain."""
        bare = self.recipe.teacher.unsolved == "answer"
        return [question for question in questions if bare or question.rationale]

    def count_chains(self, questions: Sequence[Question]) -> int | None:
        return len(self._select_questions(questions)) or None

    def read_texts(self, questions: Sequence[Question]) -> Iterator[tuple[Question, str]]:
        return ((question, self._build_chain(question).text) for question in self._select_questions(questions))

    def forecast(
        self, questions: Sequence[Question], stored: Mapping[str, int] | None = None, scores: Path | None = None
    ) -> list[str]:
        missing = [question.id for question in questions if not question.rationale]
        count = len(questions) - len(missing)
        lines = [f"teacher           human: {count} solutions of the sets, {self.describe_scores()}"]
        if missing:
            done = {"stop": "", "skip": " and are skipped", "answer": ": the student learns their bare answers"}
            skipped = done[self.recipe.teacher.unsolved]
            title = "bare answers" if self.recipe.teacher.unsolved == "answer" else "missing"
            lines.append(f"  {title:<15} {len(missing)} of {len(questions)} questions have no solution{skipped}")
        return lines + self.forecast_scores(questions, stored, scores)

    def describe_chains(self) -> str:
        return "the sets' own rationales"
