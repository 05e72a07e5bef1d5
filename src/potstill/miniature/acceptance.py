"""Gates: what a model must be able to do before it is shipped, measured with intervals.

    >>> AcceptanceTest("facts", 600, 597, at_least=0.99).passed, AcceptanceTest("steps", 600, 150, at_most=0.20).passed
    (True, False)

`facts` one sum; `equations` a chain of sums written by the decoder; `clauses` the same told in words; `copying`;
`extraction` of all numbers of a problem; `lookup`; the generic tasks in both ways of asking; and the in-distribution
family itself, of which a base student must know little and a teacher much. Skills are graded by the whole reply,
problems by the grader.
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
from potstill.miniature import task_mix, world
from potstill.miniature.problem import Problem
from potstill.models import Student
from potstill.prompts import PromptFormat
from potstill.records import Prompt, Question

VERSION: Final = 2  # of what is asked and how it is graded; stands in every card
SKILLS: Final = {"facts": 0.99, "equations": 0.95, "copying": 0.95, "extraction": 0.95, "lookup": 0.95, "clauses": 0.9}
GENERIC: Final = 0.5  # guessing gets about 0.28 of the six tasks: sorting and letters 0, the others 0.25 to 0.5
KNOWN_BOUNDS: Final = 0.2  # of the in-distribution family, at most
N: Final = 600
BUDGET: Final = 16384
LONGEST: Final = 96  # tokens of a reply; a solution of three steps in single digits has about 75


@dataclass(frozen=True, slots=True)
class AcceptanceTest:
    """How many of n were right, and what share is wanted; no bound for what is only shown."""

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
        """As it stands in a card."""
        low, high = self.interval
        measured = {"name": self.name, "n": self.n, "right": self.right, "low": round(low, 4), "high": round(high, 4)}
        return {**measured, "at_least": self.at_least, "at_most": self.at_most, "passed": self.passed}


def curve(student: Student, kitchen: task_mix.DataSource, n: int = 64) -> dict[str, float]:
    """One point of the curves: the share right of every skill, of problems of one step, of all, of generic tasks."""
    found = [*skill_tests(student, kitchen, n, "curve")]
    found += [
        problem_test(student, kitchen, name, fresh_questions(name, n, kitchen))
        for name in ("single", "steps", "generic")
    ]
    return {gate.name: round(gate.share, 4) for gate in found}


def base_tests(
    student: Student, kitchen: task_mix.DataSource, asked: Iterable[Question], n: int = N
) -> Iterator[AcceptanceTest]:
    """The gates of a base student.

    asked  the questions of the sets; of the in-distribution and the generic ones validation is looked at, nothing else
    """
    yield from skill_tests(student, kitchen, n, "gates")
    held = [question for question in asked if question.split == "validation"]
    of = {name: [question for question in held if question.set == name] for name in ("steps", "generic")}
    yield problem_test(student, kitchen, "single", fresh_questions("single", n, kitchen))
    yield problem_test(student, kitchen, "steps", of["steps"][:n], at_most=KNOWN_BOUNDS)
    yield problem_test(student, kitchen, "generic", of["generic"][:n], at_least=GENERIC)
    yield problem_test(student, kitchen, "generic, bare answer", of["generic"][:n], rationale=False)
    for task in sorted({question.task or "" for question in of["generic"]}):
        own = [question for question in of["generic"] if question.task == task][: n // 3]
        yield problem_test(student, kitchen, f"generic {task.partition('/')[0]}", own)


def skill_tests(student: Student, kitchen: task_mix.DataSource, n: int, seed: str) -> Iterator[AcceptanceTest]:
    """Exercises of a seed that no diet uses. There are only some thousand single facts: most were seen in training."""
    for dish, wanted in SKILLS.items():
        meals = list(task_mix.mixed_examples(dish, f"gates/{seed}", n, kitchen))
        texts = write_answers(student, [meal.prompt for meal in meals])
        right = sum(text == _plain(meal.reply) for text, meal in zip(texts, meals, strict=True))
        yield AcceptanceTest(dish, n, right, at_least=wanted)


def problem_test(
    student: Student,
    kitchen: task_mix.DataSource,
    name: str,
    asked: Sequence[Question],
    *,
    rationale: bool = True,
    at_least: float = 0.0,
    at_most: float = 1.0,
) -> AcceptanceTest:
    """The share of questions answered right, greedily."""
    texts = write_answers(student, [build_prompt(question, kitchen, rationale) for question in asked])
    right = sum(
        grade(text, question.gold, question.task).grade == "right" for text, question in zip(texts, asked, strict=True)
    )
    return AcceptanceTest(name, len(asked), right, at_least, at_most)


def build_prompt(question: Question, kitchen: task_mix.DataSource, rationale: bool = True) -> Prompt:
    return prompts.build_prompt(question.text, PromptFormat(few_shot=False, rationale=rationale), style=kitchen.style)


def fresh_questions(name: str, n: int, kitchen: task_mix.DataSource) -> list[Question]:
    """Questions that are in no set: `single` (one step), `steps` or `generic`."""
    own = task_mix.one_task_examples(kitchen.world) if name == "single" else kitchen.world
    found = world.problem_stream("generic" if name == "generic" else "steps", "gates", own, kitchen.without)
    return [_question(name, place, problem) for place, problem in enumerate(islice(found, n))]


def write_answers(student: Student, asked: Sequence[Prompt]) -> list[str]:
    """Greedy replies in the order of the prompts, white space collapsed."""
    engine = inference.open_engine(student)
    requests = [Request((str(place), 0), engine.encode(prompt)) for place, prompt in enumerate(asked)]
    texts = [""] * len(requests)
    for batch in inference.batch_requests(requests, BUDGET, max_tokens=LONGEST):
        made = engine.generate([requests[place] for place in batch], Decode(max_tokens=LONGEST))
        for place, text in zip(batch, made, strict=True):
            texts[place] = _plain(text.text)
    return texts


def _question(name: str, place: int, problem: Problem) -> Question:
    return Question(f"{name}/{place}", problem.text, problem.answer, name, "validation", problem.task)


def _plain(text: str) -> str:
    return " ".join(text.split())
