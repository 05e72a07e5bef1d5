"""Teachers: sources of chains. Each backend is one class; the recipe's `teacher.kind` chooses it.

    >>> recipe = Recipe(name="mine", teacher={"kind": "human"})
    >>> teacher = from_recipe(recipe)
    >>> question = Question("mine/1", "What is 1 + 1?", "2", "mine", "train", "number", rationale="1 + 1 = 2.")
    >>> [[chain.text for chain in batch] for batch in teacher.sample([question])]
    [['1 + 1 = 2.\\nThe answer is 2']]

`local` (a model in this process) and `openai` (a model behind a server) build a teacher without a recipe.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any, Final

from potstill.recipe import Recipe, parse_recipe, write_value
from potstill.recipe.teacher import KINDS
from potstill.records import Question
from potstill.teachers.protocol import SamplingState, Scorer, Teacher, UsageMeter
from potstill.teachers.several import SeveralTeachers, key_of_source, name_source
from potstill.teachers.text_teacher import TextTeacher

__all__ = [
    "Question",
    "SamplingState",
    "Scorer",
    "SeveralTeachers",
    "Teacher",
    "TextTeacher",
    "UsageMeter",
    "from_recipe",
    "key_of_source",
    "local",
    "name_source",
    "openai",
]

VERSION: Final = 2  # version of the code that reads and truncates the chains of servers and files


def from_recipe(recipe: Recipe) -> Teacher:
    """The teacher of a recipe; for `teachers`, all of them as one. No model is loaded until it samples."""
    if recipe.teachers is not None:
        return SeveralTeachers(recipe, {name: from_recipe(source) for name, source in recipe.sources.items()})
    cls, score = _backend(recipe.teacher.kind), recipe.teacher.score
    if score is None:
        return cls(recipe)
    return cls(recipe, _backend(score.kind)(recipe, as_scorer=True))


def _backend(kind: str) -> Any:
    module, _, name = KINDS[kind].backend.partition(":")
    return getattr(importlib.import_module(f"potstill.teachers.{module}"), name)


def local(model: str | Path, **keys: Any) -> Teacher:
    """A teacher that runs a model folder in this process.

    keys  keys of the recipe's section `teacher`, such as `samples` and `top_logprobs`, and `seed`
    Raises UserError for an unknown key or a wrong value.

        teacher = local("models/qwen", samples=8, top_logprobs=5)
        for batch in teacher.sample(questions): ...
    """
    return _from_keys({"kind": "local", "model": model, **keys})


def openai(model: str, **keys: Any) -> Teacher:
    """A teacher that asks a model behind an OpenAI-compatible server.

    keys  as for `local`; `server` has the keys of the section `teacher.server`
    Raises UserError for an unknown key or a wrong value.

        teacher = openai("gpt-4o", samples=8, server={"urls": ["https://api.openai.com/v1"], "key": "OPENAI_API_KEY"})
    """
    return _from_keys({"kind": "openai", "model": model, **keys})


def _from_keys(keys: dict[str, Any]) -> Teacher:
    seed = keys.pop("seed", 0)
    text = write_value({"name": "teacher", "seed": seed, "teacher": keys}, "teacher")
    return from_recipe(parse_recipe(text, "teacher"))
