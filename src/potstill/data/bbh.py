"""BIG-Bench Hard (Suzgun et al. 2022): 27 tasks, 6,511 questions, and three official demonstrations per task.

    >>> block = "Q: 1 + 1\\nA: Let's think step by step.\\nIt is 2. So the answer is 2."
    >>> parse_bbh_prompt("not for training\\n-----\\nAdd.\\n\\n" + block, where="add.txt")
    ('Add.', (Demonstration(question='1 + 1', answer='2', rationale='It is 2.'),))

Each prompt file begins with a canary line, which is removed. An answer-only prompt has the same demonstrations without
their rationales.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Final

from potstill import grading, prompts
from potstill.data import set_files
from potstill.data.run_questions import TaskPrompt
from potstill.data.set_files import BuiltinSet, RawQuestion
from potstill.errors import UserError
from potstill.prompts import Demonstration

TASKS: Final = tuple(sorted(task.removeprefix("bbh/") for task in grading.TASK_ANSWER_TYPES if task.startswith("bbh/")))
_HEADER: Final = "\n-----\n"
_THINK: Final = "A: Let's think step by step."
_ANSWER: Final = " So the answer is "


def read_bbh(data_dir: Path) -> list[RawQuestion]:
    """The questions of all tasks. Ids such as `bbh/navigate/3` count the records of the task's file from 0."""
    return [question for task in TASKS for question in _read_task(data_dir, task)]


def _read_task(data_dir: Path, task: str) -> list[RawQuestion]:
    path = data_dir / "bbh" / "tasks" / f"{task}.json"
    examples = set_files.require_field(set_files.read_json(path), "examples", where=path)
    questions = []
    for index, row in enumerate(set_files.require_list(examples, where=path)):
        where = f"{path} record {index}"
        text, gold = (set_files.require_text(row, key, where=where).strip() for key in ("input", "target"))
        questions.append(RawQuestion(f"bbh/{task}/{index}", text, gold, f"bbh/{task}", where))
    return questions


def read_task_prompts(data_dir: Path) -> dict[str, TaskPrompt]:
    """`bbh/<task>` -> the official prompt of the task."""
    return {
        f"bbh/{task}": TaskPrompt(bbh_prompt_style(task), *read_bbh_demonstrations(data_dir, task)) for task in TASKS
    }


SET: Final = BuiltinSet(
    "bbh",
    read_bbh,
    paper_validation=0.2,
    tasks=TASKS,
    task_prompts=read_task_prompts,
    source="https://github.com/suzgunmirac/BIG-Bench-Hard",
    licence="mit",
)


def read_bbh_demonstrations(data_dir: Path, task: str) -> tuple[str, tuple[Demonstration, ...]]:
    """The instruction of a task and its official demonstrations, for `prompts.build_prompt` with `bbh_prompt_style(task)`.

    Raises UserError for an unknown task, or if its file is not such a prompt.
    """
    task = task.removeprefix("bbh/")
    if task not in TASKS:
        raise UserError(f"BBH has no task {task!r}", code="E-data-unknown-set", hint=f"use one of {', '.join(TASKS)}")
    path = data_dir / "bbh" / "cot-prompts" / f"{task}.txt"
    return parse_bbh_prompt(set_files.read_text(path), where=path)


def bbh_prompt_style(task: str) -> prompts.PromptStyle:
    """The wording of a task's official prompt. In sports_understanding, the rationale follows on the same line."""
    if task.removeprefix("bbh/") == "sports_understanding":
        return dataclasses.replace(prompts.BBH_STYLE, lead_rationale=" ")
    return prompts.BBH_STYLE


def parse_bbh_prompt(text: str, *, where: object) -> tuple[str, tuple[Demonstration, ...]]:
    """The instruction and demonstrations of a prompt file, without its canary line."""
    _, header, body = text.partition(_HEADER)
    instruction, *blocks = body.rstrip("\n").split("\n\nQ: ")
    if not header or not blocks:
        hint = "get the file again: a canary line, `-----`, an instruction, then blocks that begin with `Q: `"
        raise UserError("the file is not a prompt of BBH", code="E-data-demonstration", where=where, hint=hint)
    return instruction, tuple(_parse_demonstration(block, where) for block in blocks)


def _parse_demonstration(block: str, where: object) -> Demonstration:
    question, think, reply = block.partition(f"\n{_THINK}")
    rationale, sentence, answer = reply.rpartition(_ANSWER)
    if not think or not sentence or not answer.rstrip().endswith("."):
        what, found = f"a demonstration has no `{_THINK}` or no `{_ANSWER.strip()}`", f"{block[:40]} ... {block[-40:]}"
        raise UserError(what, code="E-data-demonstration", where=where, found=found)
    return Demonstration(question, answer.rstrip()[:-1], rationale.strip())
