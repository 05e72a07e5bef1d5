"""Acceptance tests of the toy models' abilities, with intervals.

    >>> AcceptanceTest("facts", 600, 597, at_least=0.99).passed, AcceptanceTest("steps", 600, 150, at_most=0.20).passed
    (True, False)

The tests are `facts` (one sum), `equations` (a chain of sums), `clauses` (the same in words), `copying`, `lookup`,
`extraction` (all numbers of a problem), the generic tasks in both prompt formats, and the in-distribution family, in which
a base student must score low and a teacher high. Skills are graded by the whole reply, problems by the grader.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, Final

from potstill import inference, prompts
from potstill.evaluation import intervals
from potstill.grading import grade
from potstill.inference import Decode, Request
from potstill.models import Student
from potstill.prompts import PromptFormat
from potstill.records import Prompt, Question
from tools.toy_models import task_mix, world
from tools.toy_models.problem import Problem

VERSION: Final = 2  # of the questions and their grading; every card has it
SKILLS: Final = {"facts": 0.99, "equations": 0.95, "copying": 0.95, "extraction": 0.95, "lookup": 0.95, "clauses": 0.9}
GENERIC: Final = 0.5  # guessing gives about 0.28 over the six tasks: sorting and letters 0, the others 0.25 to 0.5
MAX_KNOWN: Final = 0.2  # of the in-distribution family, at most
N: Final = 600
BUDGET: Final = 16384
LONGEST: Final = 96  # tokens of a reply; a solution of three steps in single digits has about 75


@dataclass(frozen=True, slots=True)
class AcceptanceTest:
    """The result of a test: `right` of n, and the bounds of the share that passes; without bounds it always passes."""

    name: str
    n: int
    right: int
    at_least: float = 0.0
    at_most: float = 1.0

    @property
    def share(self) -> float:
        return self.right / self.n

    @property
    def interval(self) -> tuple[float, float]:
        return intervals.wilson_interval(self.right, self.n)

    @property
    def passed(self) -> bool:
        return self.at_least <= self.share <= self.at_most

    @property
    def row(self) -> dict[str, Any]:
        """The row of a card."""
        low, high = self.interval
        measured = {"name": self.name, "n": self.n, "right": self.right, "low": round(low, 4), "high": round(high, 4)}
        return {**measured, "at_least": self.at_least, "at_most": self.at_most, "passed": self.passed}


def curve(student: Student, source: task_mix.DataSource, n: int = 64) -> dict[str, float]:
    """One point of the curves: the share right of every skill, of one-step problems, of all problems, of generic tasks."""
    results = [*skill_tests(student, source, n, "curve")]
    results += [
        problem_test(student, source, name, fresh_questions(name, n, source)) for name in ("single", "steps", "generic")
    ]
    return {result.name: round(result.share, 4) for result in results}


def base_tests(
    student: Student, source: task_mix.DataSource, questions: Iterable[Question], n: int = N
) -> Iterator[AcceptanceTest]:
    """The acceptance tests of a base student, on the validation questions of `steps` and `generic`."""
    yield from skill_tests(student, source, n, "gates")
    validation = [question for question in questions if question.split == "validation"]
    by_set = {name: [question for question in validation if question.set == name] for name in ("steps", "generic")}
    yield problem_test(student, source, "single", fresh_questions("single", n, source))
    yield problem_test(student, source, "steps", by_set["steps"][:n], at_most=MAX_KNOWN)
    yield problem_test(student, source, "generic", by_set["generic"][:n], at_least=GENERIC)
    yield problem_test(student, source, "generic, bare answer", by_set["generic"][:n], rationale=False)
    for task in sorted({question.task or "" for question in by_set["generic"]}):
        chosen = [question for question in by_set["generic"] if question.task == task][: n // 3]
        yield problem_test(student, source, f"generic {task.partition('/')[0]}", chosen)


def skill_tests(student: Student, source: task_mix.DataSource, n: int, seed: str) -> Iterator[AcceptanceTest]:
    """Exercises from a seed that no training uses. Most facts still occur in training, because there are few of them."""
    for task, at_least in SKILLS.items():
        rows = list(task_mix.draw_examples(task, f"gates/{seed}", n, source))
        texts = write_answers(student, [row.prompt for row in rows])
        right = sum(text == _plain(row.reply) for text, row in zip(texts, rows, strict=True))
        yield AcceptanceTest(task, n, right, at_least=at_least)


def problem_test(
    student: Student,
    source: task_mix.DataSource,
    name: str,
    questions: Sequence[Question],
    *,
    rationale: bool = True,
    at_least: float = 0.0,
    at_most: float = 1.0,
) -> AcceptanceTest:
    """The share of questions with a right greedy answer."""
    texts = write_answers(student, [question_prompt(question, source, rationale) for question in questions])
    right = sum(
        grade(text, question.gold, question.task).grade == "right"
        for text, question in zip(texts, questions, strict=True)
    )
    return AcceptanceTest(name, len(questions), right, at_least, at_most)


def question_prompt(question: Question, source: task_mix.DataSource, rationale: bool = True) -> Prompt:
    return prompts.build_prompt(question.text, PromptFormat(few_shot=False, rationale=rationale), style=source.style)


def fresh_questions(name: str, n: int, source: task_mix.DataSource) -> list[Question]:
    """Questions that are in no set: `single` (one step), `steps` or `generic`."""
    ranges = task_mix.single_step_world(source.world) if name == "single" else source.world
    results = world.problem_stream("generic" if name == "generic" else "steps", "gates", ranges, source.without)
    return [_question(name, index, problem) for index, problem in enumerate(islice(results, n))]


def write_answers(student: Student, questions: Sequence[Prompt]) -> list[str]:
    """Greedy replies in the order of the prompts, white space collapsed."""
    engine = inference.open_engine(student)
    requests = [Request((str(index), 0), engine.encode(prompt)) for index, prompt in enumerate(questions)]
    texts = [""] * len(requests)
    for batch in inference.batch_requests(requests, BUDGET, max_tokens=LONGEST):
        answers = engine.generate([requests[index] for index in batch], Decode(max_tokens=LONGEST))
        for index, text in zip(batch, answers, strict=True):
            texts[index] = _plain(text.text)
    return texts


def _question(name: str, index: int, problem: Problem) -> Question:
    return Question(f"{name}/{index}", problem.text, problem.answer, name, "validation", problem.task)


def _plain(text: str) -> str:
    return " ".join(text.split())
