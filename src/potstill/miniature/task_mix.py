"""What a base model is fed: prompts and replies from the small world, never a question that will be asked of it later.

    >>> meals = mixed_examples("facts", "seed", 2, DataSource(World(largest=20), frozenset(), prompts.PAPER_STYLE))
    >>> [(meal.prompt.plain, meal.reply) for meal in meals]
    [('7 - 3 =', '7 - 3 = 4'), ('15 + 2 =', '15 + 2 = 17')]

A dish is a kind of row: `steps` in-distribution problems with their rationale, `answers` the same asked for the bare
answer, `single` those of one step, `extraction` nothing but their numbers, `generic` the generic tasks in both ways,
`plain` sentences cut in two, and each of the skills.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import count, islice
from typing import Final

from potstill import prompts
from potstill.miniature import sentences, skills, world
from potstill.miniature.problem import OutOfRange, Problem, World
from potstill.prompts import PromptFormat, PromptStyle
from potstill.records import Prompt, Turn

TASK_BUILDERS: Final = ("steps", "answers", "single", "extraction", "generic", "plain", *skills.SKILLS)


@dataclass(frozen=True, slots=True)
class TaskExample:
    prompt: Prompt
    reply: str


@dataclass(frozen=True, slots=True)
class DataSource:
    """world    how wide the in-distribution problems are
    without  canonical forms of all questions that are asked later
    style    how word problems are asked
    """

    world: World
    without: frozenset[str]
    style: PromptStyle


def mixed_examples(dish: str, seed: str, n: int, kitchen: DataSource) -> Iterator[TaskExample]:
    """n rows of one dish, a function of the arguments alone."""
    if dish in skills.SKILLS:
        return islice(_exercises(dish, seed, kitchen.world), n)
    if dish == "plain":
        return (_halves(sentence, seed) for sentence in sentences.plain_sentences(seed, n))
    own = one_task_examples(kitchen.world) if dish == "single" else kitchen.world
    family = "generic" if dish == "generic" else "steps"
    problems = islice(world.problem_stream(family, f"{dish}/{seed}", own, kitchen.without), n)
    if dish == "answers":
        return (question_prompt(problem, kitchen.style, rationale=False) for problem in problems)
    if dish == "generic":
        return (question_prompt(problem, kitchen.style, number % 2 == 0) for number, problem in enumerate(problems))
    if dish == "extraction":
        return (_task_example(f"find the numbers: {problem.text}", _numbers(problem)) for problem in problems)
    assert dish in ("steps", "single"), f"no dish {dish}"
    return (question_prompt(problem, kitchen.style, rationale=True) for problem in problems)


def one_task_examples(own: World) -> World:
    """The same world with problems of one step alone."""
    return replace(own, shares=(1.0,))


def question_prompt(problem: Problem, style: PromptStyle, rationale: bool) -> TaskExample:
    """A problem with its solution, or with its bare answer."""
    prompt = prompts.build_prompt(problem.text, PromptFormat(few_shot=False, rationale=rationale), style=style)
    if rationale:
        return TaskExample(prompt, prompts.format_solution(problem.rationale, problem.answer))
    return TaskExample(prompt, prompts.format_answer(problem.answer))


def _exercises(skill: str, seed: str, own: World) -> Iterator[TaskExample]:
    for number in count():
        try:
            exercise = skills.draw_exercise(skill, random.Random(f"{skill}/{seed}/{number}"), own)
        except OutOfRange:
            continue
        yield _task_example(exercise.prompt, exercise.reply)


def _halves(sentence: str, seed: str) -> TaskExample:
    words = sentence.split()
    at = random.Random(f"halves/{seed}/{sentence}").randint(1, max(1, len(words) - 2))
    return _task_example(" ".join(words[:at]), " ".join(words[at:]))


def _numbers(problem: Problem) -> str:
    return " ".join(word for word in problem.text.split() if word.isdigit())


def _task_example(prompt: str, reply: str) -> TaskExample:
    return TaskExample(Prompt((Turn("user", prompt),), lead=" "), reply)
