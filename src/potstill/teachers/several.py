"""Several teachers in one run, such as a model and the sets' own solutions.

    >>> recipe = Recipe(name="mine", teachers={"model": {"kind": "local", "model": "m"}, "human": {"kind": "human"}})
    >>> from potstill.teachers import from_recipe
    >>> from_recipe(recipe).describe_chains()
    "chains of model, and the sets' own rationales"

The stage `sample` asks each teacher alone. This class answers the questions of the other stages, of the plan and of the
report about all of them together. Keys and errors name the teacher: `teachers.human.unsolved`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from potstill.errors import UserError
from potstill.recipe import Recipe
from potstill.records import Chain, Question
from potstill.teachers.protocol import PromptBuilder, SamplingState, Teacher

__all__ = ["Recipe", "SeveralTeachers", "name_source"]


def key_of_source(key: str, source: str) -> str:
    """The recipe key of a source: `teacher.model` becomes `teachers.NAME.model`. Other keys, and all keys of a run with
    one teacher (`source` is empty), do not change.

    >>> key_of_source("teacher.model", "big"), key_of_source("teacher.model", ""), key_of_source("seed", "big")
    ('teachers.big.model', 'teacher.model', 'seed')
    """
    return f"teachers.{source}.{key.removeprefix('teacher.')}" if source and key.startswith("teacher.") else key


@contextmanager
def name_source(source: str) -> Iterator[None]:
    """Errors inside the block name the keys of this source, if it has a name."""
    try:
        yield
    except UserError as error:
        if not source:
            raise
        where = f"teachers.{source}" if error.where == "teacher" else key_of_source(error.where, source)
        hint = re.sub(r"\bteacher\.(?=[a-z])", f"teachers.{source}.", error.hint)
        raise UserError(error.what, code=error.code, where=where, found=error.found, hint=hint) from error


class SeveralTeachers(Teacher):
    """The teachers of a recipe by name, as one. Their chains have their names as sources."""

    def __init__(self, recipe: Recipe, members: Mapping[str, Teacher]) -> None:
        super().__init__(recipe)
        self.members = members
        self.right_by_definition = all(member.right_by_definition for member in members.values())
        for member in members.values():
            member.is_one_of_several = True

    def sample(self, questions: Sequence[Question], state: SamplingState | None = None) -> Iterator[list[Chain]]:
        for source, member in self.members.items():
            with name_source(source):
                yield from member.sample(questions, state)

    def input_files(self) -> dict[str, str]:
        return {
            key_of_source(key, source): path
            for source, member in self.members.items()
            for key, path in member.input_files().items()
        }

    def inputs(self) -> dict[str, str]:
        digests = {}
        for source, member in self.members.items():
            with name_source(source):
                digests |= {key_of_source(key, source): digest for key, digest in member.inputs().items()}
        return digests

    def free_keys(self) -> set[str]:
        return {key_of_source(key, source) for source, member in self.members.items() for key in member.free_keys()}

    def checks(self, *, weights: bool = True) -> Iterator[Callable[[], object]]:
        for source, member in self.members.items():
            for check in member.checks(weights=weights):
                yield lambda source=source, check=check: _check(source, check)

    def check_questions(self, questions: Sequence[Question]) -> None:
        for source, member in self.members.items():
            with name_source(source):
                member.check_questions(questions)

    def count_chains(self, questions: Sequence[Question]) -> int | None:
        counts = [member.count_chains(questions) for member in self.members.values()]
        known = [count for count in counts if count is not None]
        return sum(known) if len(known) == len(counts) else None

    def prompt_builder(self) -> PromptBuilder | None:
        """That of the first teacher with prompts."""
        builders = (member.prompt_builder() for member in self.members.values())
        return next((builder for builder in builders if builder is not None), None)

    def describe_chains(self) -> str:
        return ", and ".join(member.describe_chains() for member in self.members.values())

    def open_batch(self, *_: Any, **__: Any) -> Any:
        raise AssertionError("batch files need a recipe with one teacher")

    def report_notes(self) -> list[str]:
        return [f"{source}: {note}" for source, member in self.members.items() for note in member.report_notes()]


def _check(source: str, check: Callable[[], object]) -> None:
    with name_source(source):
        check()
