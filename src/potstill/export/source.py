"""The source and target of an export: the student of a finished run, its trained prompt, and the written folder.

>>> fill_prompt("Q: 1 + 1?\\n", "1 + 1?", "{question}")
'Q: {question}\\n'
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from potstill import models, prompts, storage
from potstill.data import run_questions
from potstill.errors import UserError
from potstill.records import Prompt, Question
from potstill.run_reader import open_run

if TYPE_CHECKING:
    from potstill.models import Student
    from potstill.recipe import Recipe

EXPORT_FILE: Final = "export.json"
# A question that no other part of a prompt contains, and that no template changes.
PLACE_HOLDER: Final = "potstill-place-of-the-question"


@dataclass(frozen=True)
class ExportedRun:
    """A run whose student is exported. task_prompts: task -> its prompt, as stored by the stage `collect`."""

    run_dir: Path
    recipe: Recipe
    task_prompts: Mapping[str, run_questions.TaskPrompt]

    @property
    def student_folder(self) -> Path:
        return self.run_dir / "student"

    def open_student(self) -> Student:
        """The student that the run ships, in float32. Raises UserError if the stage `report` has not written it."""
        if not (self.student_folder / "config.json").is_file():
            raise UserError(
                "the run has no student yet",
                code="E-export-no-student",
                where=self.student_folder,
                hint=f"finish the run: potstill report {self.run_dir}",
            )
        return models.from_checkpoint(self.recipe, self.student_folder)

    def prompt_of(self, question: Question) -> Prompt:
        """The prompt in the format that selected the student."""
        format = prompts.FORMATS[self.recipe.select.format]
        return run_questions.evaluation_prompt(question, format, self.task_prompts)

    def prompt_text(self, student: Student, inserted: str) -> str:
        """The text that the student reads, with `inserted` in place of the question."""
        question = Question("", PLACE_HOLDER, "", "", "test", "")
        return fill_prompt(student.render(self.prompt_of(question)), PLACE_HOLDER, inserted)

    def validation_questions(self, number: int) -> list[Question]:
        """At most `number` validation questions, evenly spaced over the questions of the target sets."""
        section = self.recipe.questions
        sets = [*section.in_distribution, *section.out_of_distribution]
        questions = run_questions.read_questions(self.run_dir, sets, "validation")
        number = min(number, len(questions))
        return [questions[index * len(questions) // number] for index in range(number)]


def open_exported_run(run_dir: Path) -> ExportedRun:
    """The run in a folder. Raises UserError if the folder is not a run, or if its questions are not collected yet."""
    recipe = open_run(run_dir).recipe
    return ExportedRun(run_dir, recipe, run_questions.read_task_prompts(run_dir))


def fill_prompt(text: str, placed: str, inserted: str) -> str:
    assert text.count(placed) == 1, f"{placed!r} occurs {text.count(placed)} times in {text!r}"
    return text.replace(placed, inserted)


@contextmanager
def new_folder(folder: Path, form: str, run_dir: Path) -> Iterator[tuple[Path, dict[str, Any]]]:
    """Yield a folder, which appears at `folder` if the block succeeds, and a dict for the content of its `export.json`.

    It replaces an earlier export. Raises UserError if `folder` contains anything else.
    """
    if folder.exists() and not (folder / EXPORT_FILE).is_file() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(
            "the folder contains other files than an export",
            code="E-export-folder",
            where="--to",
            found=folder,
            hint="name a new folder",
        )
    about: dict[str, Any] = {"form": form, "run": run_dir.resolve().name}
    with storage.write_folder(folder) as partial:
        yield partial, about
        storage.write_json(partial / EXPORT_FILE, about)
