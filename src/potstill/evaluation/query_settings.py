"""The settings with which a student was evaluated, which are needed to query it: the file `potstill.json` in its folder.

    settings = describe_run(Path("runs/demo"), recipe, student)
    before, after = settings.prompt("zero-shot-rationale", "number")
    student.encode(before + question + after)              # what the evaluation gave the student

A prompt is stored as the two texts around the question, in the form that the model reads (including its chat template), so
a copy of the folder is complete.

    >>> settings = QuerySettings(
    ...     name="demo", family="t5", is_chat=False, prompts={"zero-shot-answer": {"": ("Q: ", " A:")}}, answers={},
    ...     format="zero-shot-answer", task="", decoding="greedy", decodings=("greedy",), max_tokens=8,
    ...     stop_at_answer=False, temperature=0.7, seed=1, batch_tokens=400,
    ... )
    >>> settings.prompt("zero-shot-answer", "number")
    ('Q: ', ' A:')
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Final

from potstill import prompts, storage
from potstill.data import run_questions
from potstill.errors import UserError
from potstill.evaluation import checkpoint
from potstill.evaluation.decoding import DECODING_PATTERN
from potstill.recipe import EvaluateSection, Recipe
from potstill.records import Question

if TYPE_CHECKING:
    from potstill.models import Student

SETTINGS_FILE: Final = "potstill.json"
FORMAT_VERSION: Final = 1  # version of the file's format
CHECKED_QUESTIONS: Final = 50  # questions per format whose stored and evaluated prompts are compared
# Stands for the question in a rendered prompt: a character of the private use area, which no question contains.
QUESTION_MARK: Final = "\ue000"


@dataclass(frozen=True, slots=True)
class QuerySettings:
    """The settings with which a student was evaluated.

    is_chat     whether `prompts` contain the model's chat template; otherwise the tokenizer adds its special tokens
    prompts     format -> task -> the texts before and after the question; the task "" stands for all other tasks
    answers     task -> a right answer to one of its questions, whose form determines how an answer is extracted
    format, task, decoding   the defaults: format and decoding of the selection, and the task of the first set
    decodings   all decodings that were evaluated
    max_tokens, stop_at_answer, stop_repeats, temperature, batch_tokens   as in the recipe's section `evaluate`
    seed        seed of sampled answers
    """

    name: str
    family: str
    is_chat: bool
    prompts: Mapping[str, Mapping[str, tuple[str, str]]]
    answers: Mapping[str, str]
    format: str
    task: str
    decoding: str
    decodings: tuple[str, ...]
    max_tokens: int
    stop_at_answer: bool
    temperature: float
    seed: int
    batch_tokens: int
    dtype: str = "float32"
    stop_repeats: bool = False

    def prompt(self, format: str, task: str) -> tuple[str, str]:
        """The texts around a question. Raises UserError for a format that was not evaluated."""
        if format not in self.prompts:
            what, hint = "this student was not evaluated with this prompt format", f"use {', '.join(self.prompts)}"
            raise UserError(what, code="E-ask-format", where="--format", found=format, hint=hint)
        by_task = self.prompts[format]
        if task not in by_task and "" not in by_task:
            what, hint = "the student has no prompt for this task", f"use {', '.join(by_task)}"
            raise UserError(what, code="E-ask-task", where="--task", found=task, hint=hint)
        return by_task.get(task) or by_task[""]


# The settings of a run


def describe_run(run_dir: Path, recipe: Recipe, student: Student) -> QuerySettings | None:
    """The settings with which the student of a run was evaluated.

    None if its chat template changes the questions, so that a prompt does not consist of two texts around the question.
    """
    section, table = recipe.evaluate, run_questions.read_task_prompts(run_dir)
    sets = recipe.questions
    names = [*sets.in_distribution, *sets.out_of_distribution, *sets.generic]
    questions = run_questions.read_questions(run_dir, names, "validation")
    answers: dict[str, str] = {}
    for question in questions:
        answers.setdefault(question.task, question.gold)
    tasks = dict.fromkeys(task if task in table else "" for task in answers) or {"": None}
    by_format: dict[str, dict[str, tuple[str, str]]] = {}
    for format in section.formats:
        for task in tasks:
            parts = _split_prompt(student, _question(QUESTION_MARK, task), format, table)
            if parts is None:
                return None
            by_format.setdefault(format, {})[task] = parts
        for question in questions[:CHECKED_QUESTIONS]:
            before, after = by_format[format].get(question.task) or by_format[format][""]
            prompt = run_questions.evaluation_prompt(question, prompts.FORMATS[format], table)
            if student.render(prompt) != before + question.text + after:
                return None
    return QuerySettings(
        name=recipe.name,
        family=student.family,
        is_chat=student.chat is not None,
        prompts=by_format,
        answers=answers,
        format=recipe.select.format,
        task=next(iter(answers), ""),
        decoding=section.decodings[0],
        decodings=tuple(checkpoint.list_decodings(recipe, "test")),
        max_tokens=section.max_tokens,
        stop_at_answer=section.stop_at_answer,
        temperature=section.temperature,
        seed=recipe.evaluation_seed,
        batch_tokens=section.batch_tokens,
        dtype=measured_dtype(recipe),
        stop_repeats=section.stop_repeats,
    )


def measured_dtype(recipe: Recipe) -> str:
    """The dtype in which another program comes closest to the measured answers: bfloat16 or float32."""
    section = recipe.evaluate
    dtype = section.vllm.dtype if section.engine == "vllm" else section.dtype
    return "bfloat16" if dtype == "bfloat16" else "float32"  # vLLM may have used float16


def _question(text: str, task: str) -> Question:
    return Question("", text, "", "", "test", task)


def _split_prompt(
    student: Student, question: Question, format: str, table: Mapping[str, run_questions.TaskPrompt]
) -> tuple[str, str] | None:
    prompt = run_questions.evaluation_prompt(question, prompts.FORMATS[format], table)
    parts = student.render(prompt).split(QUESTION_MARK)
    return (parts[0], parts[1]) if len(parts) == 2 else None


def default_settings(student: Student, format: str) -> QuerySettings:
    """The settings for a folder that potstill did not make: the paper's prompt, and the defaults of `evaluate`.

    Raises UserError for a few-shot format, because only a run has demonstrations.
    """
    if format not in prompts.FORMATS or prompts.FORMATS[format].few_shot:
        zero_shot = [name for name, value in prompts.FORMATS.items() if not value.few_shot]
        what = "a folder without potstill.json can be queried only in a zero-shot format"
        raise UserError(what, code="E-ask-format", where="--format", found=format, hint=f"use {', '.join(zero_shot)}")
    section = EvaluateSection()
    table = {"": run_questions.TaskPrompt(prompts.PAPER_STYLE, "", ())}
    parts = _split_prompt(student, _question(QUESTION_MARK, ""), format, table)
    if parts is None:
        what, hint = "the chat template of the model changes the text of the question", "use another model"
        raise UserError(what, code="E-ask-template", where=student.folder or "the model", hint=hint)
    return QuerySettings(
        name="",
        family=student.family,
        is_chat=student.chat is not None,
        prompts={format: {"": parts}},
        answers={},
        format=format,
        task="",
        decoding="greedy",
        decodings=(),
        max_tokens=section.max_tokens,
        stop_at_answer=section.stop_at_answer,
        temperature=section.temperature,
        seed=0,
        batch_tokens=section.batch_tokens,
    )


def write_settings(folder: Path, settings: QuerySettings) -> None:
    storage.write_json(folder / SETTINGS_FILE, {"version": FORMAT_VERSION, **asdict(settings)})


def read_settings(folder: Path) -> QuerySettings:
    """The settings in a student's folder. Raises UserError if the file is damaged or has another version."""
    path = folder / SETTINGS_FILE
    row = storage.read_json(path)
    with storage.as_format_errors(path):
        if row["version"] != FORMAT_VERSION:
            what, hint = "another version of potstill wrote the settings", "install the newest version of potstill"
            raise UserError(what, code="E-ask-settings", where=path, found=row["version"], hint=hint)
        values = {field.name: row[field.name] for field in fields(QuerySettings) if field.name in row}
        values["decodings"] = tuple(values["decodings"])
        values["prompts"] = {
            format: {task: (str(before), str(after)) for task, (before, after) in by_task.items()}
            for format, by_task in values["prompts"].items()
        }
        settings = QuerySettings(**values)
        _check_settings(settings)
        return settings


def _check_settings(settings: QuerySettings) -> None:
    """Raise ValueError for a value that no evaluation has."""
    checks = {
        "family": settings.family in ("t5", "causal"),
        "format": settings.format in settings.prompts,
        "decoding": all(re.match(DECODING_PATTERN, name) for name in (settings.decoding, *settings.decodings)),
        "dtype": settings.dtype in ("float32", "bfloat16"),
        "max_tokens": type(settings.max_tokens) is int and settings.max_tokens > 0,
        "batch_tokens": type(settings.batch_tokens) is int and settings.batch_tokens > 0,
        "seed": type(settings.seed) is int,
        "temperature": type(settings.temperature) in (int, float) and settings.temperature > 0,
    }
    if wrong := [name for name, passed in checks.items() if not passed]:
        raise ValueError(f"the value of {', '.join(wrong)}")
