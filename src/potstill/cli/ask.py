"""`potstill ask`: query a trained student with the prompt and the decoding of its evaluation.

>>> [row.question for row in read_lines(["What is 1 + 1?", "", '{"question": "What is 2 + 2?"}'])]
['What is 1 + 1?', 'What is 2 + 2?']

A row of a file is a question of a data set (`question`, optionally `id`, `task` and `gold` or `answer`), or a record of a
run's folder `collect`, whose question is in `text`. `potstill grade` reads the output of `--json`.
"""

from __future__ import annotations

import itertools
import json
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

from potstill import models, progress
from potstill.errors import UserError, escape_hidden
from potstill.evaluation import query, query_settings
from potstill.evaluation.query import Answer, AskedQuestion
from potstill.evaluation.query_settings import SETTINGS_FILE, QuerySettings
from potstill.models import Student
from potstill.prompts import FORMATS
from potstill.records import Checkpoint
from potstill.run_reader import open_run
from potstill.storage import dataset_files

CHUNK: Final = 64  # number of questions of a file that are answered together, before their answers are printed
TEXT_SUFFIXES: Final = ("", ".txt", ".md")
PROMPT: Final = "question> "


@dataclass(frozen=True, slots=True)
class AskedRow:
    """A question as read from a file. gold: its right answer, which is only copied to the output."""

    question: str
    id: str | None = None
    task: str | None = None
    gold: Any = None


def ask(
    target: str,
    question: str | None,
    *,
    file: Path | None,
    columns: Mapping[str, str] = MappingProxyType({}),
    format: str | None,
    task: str | None,
    calculator: bool | None,
    vote: int | None,
    as_json: bool,
) -> None:
    """Answer a question, or the questions of a file, of standard input or of a terminal, and print the answers.

    target   a run, a student's folder, a checkpoint of a run with LoRA, or another name of a model (see
             `models.locate_model`)
    columns  `question` and `gold` -> the column of the file, if it has another name

    Raises UserError as `query.answer_questions` and `models.open_student` do, and if the format is missing for a folder
    that potstill did not make.
    """
    if question is not None and file is not None:
        what, hint = "both a question and a file are given", "give only a question or only a file"
        raise UserError(what, code="E-cli-ask-question", where="--file", found=file, hint=hint)
    rows = [AskedRow(question)] if question is not None else None if file is None else list(read_file(file, columns))
    student, settings = open_target(target, format)
    decoding = query.with_decoding(settings, calculator=calculator, vote=vote)
    if settings.decodings and decoding not in settings.decodings:
        measured = ", ".join(settings.decodings)
        progress.print_line(f"{decoding} was not evaluated for this student; evaluated decodings: {measured}", "yellow")

    def answer(rows: list[AskedRow]) -> list[Answer]:
        asked = [AskedQuestion(row.question, row.task or task, row.id) for row in rows]
        return query.answer_questions(student, settings, asked, format=format, decoding_name=decoding)

    show = print_json if as_json else print_answer
    if rows is None and sys.stdin.isatty():
        for line in _type_questions():
            try:
                show(row := AskedRow(line), answer([row])[0])
            except UserError as error:  # the next question may have no error
                print(error, file=sys.stderr)
        return
    several = question is None
    waiting = read_lines(sys.stdin) if rows is None else iter(rows)
    while chunk := list(itertools.islice(waiting, CHUNK)):
        for row, given in zip(chunk, answer(chunk), strict=True):
            if several and not as_json:
                print(f"Question: {escape_hidden(row.question)}")
            show(row, given)
            if several and not as_json:
                print()


def open_target(target: str, format: str | None) -> tuple[Student, QuerySettings]:
    """The student of a run, in a folder or with a name; and the settings with which it is queried."""
    path = Path(target)
    if (path / "recipe.yaml").is_file():
        return query.open_run_student(path, open_run(path).recipe)
    step = path.resolve()
    run_dir = step.parent.parent.parent
    if models.is_adapter(path) and step.name.isdigit() and (run_dir / "recipe.yaml").is_file():
        return query.open_run_student(run_dir, open_run(run_dir).recipe, Checkpoint(int(step.name)))
    folder = models.locate_model(target, key="MODEL").folder
    if (folder / SETTINGS_FILE).is_file():
        settings = query_settings.read_settings(folder)
        return query.open_student(folder, settings), settings
    if not folder.is_dir():
        if path.suffix in (".yaml", ".yml") and path.is_file():
            open_run(path)  # refuses a recipe, and says where its run is
        what, hint = "there is no such run, folder or model", "check the path; a name on the hub is owner/name"
        raise UserError(what, code="E-ask-nothing", where=target, hint=hint)
    if format is None:
        raise UserError(
            "this is neither a run nor a student of potstill, so the prompt is not known",
            code="E-ask-no-settings",
            where=folder,
            found=f"no recipe.yaml and no {SETTINGS_FILE}",
            hint=f"give a run such as runs/demo, or choose a prompt: --format {' or '.join(list(FORMATS)[:2])}",
        )
    student = models.open_student(folder, chat_template="auto").to(models.default_device())
    return student, query_settings.default_settings(student, format)


# Questions


def read_file(path: Path, columns: Mapping[str, str] = MappingProxyType({})) -> Iterator[AskedRow]:
    """The questions of a text file (one per line) or of a file of rows.

    columns  `question` and `gold` -> another name of the column; an empty value is no other name

    Raises UserError, with file and place, for a row without a question.
    """
    if path.suffix in TEXT_SUFFIXES and not path.is_dir():
        text = dataset_files.decode_text(dataset_files.read_decompressed(path), path)
        yield from (AskedRow(line.strip()) for line in text.splitlines() if line.strip())
        return
    for _, place, row in dataset_files.read_dataset_rows(path):
        yield _parse_row(row, f"{path} {place}", columns)


def read_lines(lines: Iterable[str]) -> Iterator[AskedRow]:
    """The questions in lines of text. A line that begins with `{` is a JSON row. Empty lines are skipped."""
    for number, line in enumerate(lines, 1):
        if not (text := line.strip()):
            continue
        if not text.startswith("{"):
            yield AskedRow(text)
            continue
        where = f"standard input line {number}"
        try:
            row = json.loads(text)
        except ValueError as error:
            what, hint = "the line begins with {, but is not JSON", "write one JSON object per line, or plain questions"
            raise UserError(what, code="E-cli-ask-row", where=where, found=error, hint=hint) from None
        yield _parse_row(row, where)


def _parse_row(row: Mapping[str, Any], where: str, columns: Mapping[str, str] = MappingProxyType({})) -> AskedRow:
    for column in filter(None, columns.values()):
        if column not in row:
            hint = "name a column of the file"
            raise UserError(
                f"the row has no column {column}", code="E-cli-ask-column", where=where, found=_names(row), hint=hint
            )
    text = row[columns["question"]] if columns.get("question") else row.get("question", row.get("text"))
    gold = row[columns["gold"]] if columns.get("gold") else row.get("gold", row.get("answer"))
    given_id, task = row.get("id"), row.get("task")
    if not isinstance(text, str) or not isinstance(task, str | None):
        what = "the row has no question"
        hint = 'name the column of the questions: --column NAME; or write {"question": "..."}, optionally with id, task, gold'
        raise UserError(what, code="E-cli-ask-row", where=where, found=_names(row), hint=hint)
    return AskedRow(text, None if given_id is None else str(given_id), task, gold)


def _names(row: Mapping[str, Any]) -> str:
    return ", ".join(map(str, row))


def _type_questions() -> Iterator[str]:
    """The lines that a person types, up to an empty line or the end of the input."""
    print("One question per line; an empty line ends.", file=sys.stderr)
    while True:
        print(PROMPT, end="", file=sys.stderr, flush=True)
        line = sys.stdin.readline()
        if not line.strip():
            return
        yield line.strip()


# Answers


def print_answer(row: AskedRow, answer: Answer) -> None:
    """Print the rationale and the answer; the whole text if it has no answer sentence."""
    if answer.rationale:
        print(escape_hidden(answer.rationale))
    votes = ", ".join(f"{value}: {count}" for value, count in answer.votes.items())
    limit = " (the text reached its limit)" if answer.stop == "length" else ""
    print(
        escape_hidden(f"Answer: {answer.answer or 'none'}{limit}{f'  (votes: {votes})' if votes else ''}"), flush=True
    )


def print_json(row: AskedRow, answer: Answer) -> None:
    given = {"id": row.id, "question": row.question, "task": row.task, "gold": row.gold}
    made = {"text": answer.text, "rationale": answer.rationale, "found": answer.answer, "stop": answer.stop}
    shown = {name: value for name, value in given.items() if value is not None} | made
    print(json.dumps(shown | ({"votes": dict(answer.votes)} if answer.votes else {}), ensure_ascii=False), flush=True)
