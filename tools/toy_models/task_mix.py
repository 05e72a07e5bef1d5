"""The training data of a toy model: prompts and replies, but no question on which it is evaluated.

    >>> rows = draw_examples("facts", "seed", 2, DataSource(World(largest=20), frozenset(), prompts.PAPER_STYLE))
    >>> [(row.prompt.plain, row.reply) for row in rows]
    [('7 - 3 =', '7 - 3 = 4'), ('15 + 2 =', '15 + 2 = 17')]

A task is a kind of row. `steps`: in-distribution problems with their rationale. `answers`: the same with the bare answer.
`single`: those of one step. `extraction`: only their numbers. `generic`: the generic tasks in both formats. `plain`:
sentences cut in two. And each of the skills.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import count, islice
from typing import Final

from potstill import prompts
from potstill.prompts import PromptFormat, PromptStyle
from potstill.records import Prompt, Turn
from tools.toy_models import sentences, skills, world
from tools.toy_models.problem import OutOfRange, Problem, World

TASKS: Final = ("steps", "answers", "single", "extraction", "generic", "plain", *skills.SKILLS)


@dataclass(frozen=True, slots=True)
class TaskExample:
    prompt: Prompt
    reply: str


@dataclass(frozen=True, slots=True)
class DataSource:
    """Where the rows come from.

    world    ranges and wordings of the in-distribution problems
    without  canonical forms of all evaluation questions
    style    prompt style of the word problems
    """

    world: World
    without: frozenset[str]
    style: PromptStyle


def draw_examples(task: str, seed: str, n: int, source: DataSource) -> Iterator[TaskExample]:
    """n rows of one task, a function of the arguments alone."""
    if task in skills.SKILLS:
        return islice(_exercises(task, seed, source.world), n)
    if task == "plain":
        return (_halves(sentence, seed) for sentence in sentences.plain_sentences(seed, n))
    ranges = single_step_world(source.world) if task == "single" else source.world
    family = "generic" if task == "generic" else "steps"
    problems = islice(world.problem_stream(family, f"{task}/{seed}", ranges, source.without), n)
    if task == "answers":
        return (build_example(problem, source.style, rationale=False) for problem in problems)
    if task == "generic":
        return (build_example(problem, source.style, number % 2 == 0) for number, problem in enumerate(problems))
    if task == "extraction":
        return (_task_example(f"find the numbers: {problem.text}", _numbers(problem)) for problem in problems)
    assert task in ("steps", "single"), f"no task {task}"
    return (build_example(problem, source.style, rationale=True) for problem in problems)


def single_step_world(ranges: World) -> World:
    """The same world with problems of one step only."""
    return replace(ranges, shares=(1.0,))


def build_example(problem: Problem, style: PromptStyle, rationale: bool) -> TaskExample:
    """A problem with its solution, or with its bare answer."""
    prompt = prompts.build_prompt(problem.text, PromptFormat(few_shot=False, rationale=rationale), style=style)
    if rationale:
        return TaskExample(prompt, prompts.format_solution(problem.rationale, problem.answer))
    return TaskExample(prompt, prompts.format_answer(problem.answer))


def _exercises(skill: str, seed: str, ranges: World) -> Iterator[TaskExample]:
    for number in count():
        try:
            exercise = skills.draw_exercise(skill, random.Random(f"{skill}/{seed}/{number}"), ranges)
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
