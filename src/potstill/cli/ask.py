"""`potstill ask`: query a trained student with the prompt and the decoding of its evaluation.

>>> [row.question for row in read_lines(["What is 1 + 1?", "", '{"question": "What is 2 + 2?"}'])]
['What is 1 + 1?', 'What is 2 + 2?']

A row of a file is a question of a data set (`question`, optionally `id`, `task` and `gold` or `answer`), or a record of a
run's folder `collect`, whose question is in `text`. `potstill grade` reads the output of `--json` and of `--out`, which keep
all columns of the file.
"""

from __future__ import annotations

import itertools
import json
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

from potstill import models, progress
from potstill.cli.answer_file import UnfinishedAnswers, write_answers
from potstill.cli.grade_rows import STOP_FIELDS
from potstill.errors import UserError, escape_hidden
from potstill.evaluation import decoding, query, query_settings
from potstill.evaluation.query import Answer, AskedQuestion
from potstill.evaluation.query_settings import SETTINGS_FILE, QuerySettings
from potstill.models import Student
from potstill.prompts import FORMATS
from potstill.records import Checkpoint
from potstill.run_reader import open_run
from potstill.storage import dataset_files

CHUNK: Final = 64  # number of questions of a file that are answered together, before their answers are printed
TEXT_SUFFIXES: Final = ("", ".txt", ".md")
OUT_SUFFIXES: Final = (".jsonl", ".csv")
# Fields of an answer, and fields that `potstill grade` reads; a column of the file with such a name gets a prefix.
ANSWER_FIELDS: Final = ("text", "rationale", "found", "stop", "votes", "verdict")
READ_FIELDS: Final = (*STOP_FIELDS, "truncated", "id", "question", "task", "gold")
PROMPT: Final = "question> "


@dataclass(frozen=True, slots=True)
class AskedRow:
    """A question as read from a file.

    gold     its right answer, which is only copied to the output
    columns  all columns of its row, which are copied, too
    """

    question: str
    id: str | None = None
    task: str | None = None
    gold: Any = None
    columns: Mapping[str, Any] = field(default_factory=dict)


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
    out: Path | None = None,
) -> None:
    """Answer a question, or the questions of a file, of standard input or of a terminal, and print the answers.

    target   a run, a student's folder, a checkpoint of a run with LoRA, or another name of a model (see
             `models.locate_model`)
    columns  `question` and `gold` -> the column of the file, if it has another name
    task     the task of all questions; None: that of their rows, or else the default of the student
    out      file for the answers, JSONL or CSV by its name; then they are printed only as JSON. Answers to a file are
             stored as they arrive, and the same command continues after an interruption

    Raises UserError as `query.answer_questions` and `models.open_student` do, and if the format is missing for a folder
    that potstill did not make.
    """
    if out is not None:
        _check_out(out, file)
    if question is not None and file is not None:
        what, hint = "both a question and a file are given", "give only a question or only a file"
        raise UserError(what, code="E-cli-ask-question", where="--file", found=file, hint=hint)
    rows = [AskedRow(question)] if question is not None else None if file is None else list(read_file(file, columns))
    student, settings = open_target(target, format)
    chosen = query.with_decoding(settings, calculator=calculator, vote=vote)
    if settings.decodings and chosen not in settings.decodings:
        measured = ", ".join(settings.decodings)
        progress.print_line(f"{chosen} was not evaluated for this student; evaluated decodings: {measured}", "yellow")
    sampled = decoding.parse_decoding(chosen).spec.sampled  # only then does an answer depend on the id

    def task_of(row: AskedRow) -> str:
        return task or row.task or settings.task

    def answer(rows: list[AskedRow]) -> list[Answer]:
        asked = [AskedQuestion(row.question, task_of(row), row.id if sampled else None) for row in rows]
        return query.answer_questions(student, settings, asked, format=format, decoding_name=chosen)

    def show(row: AskedRow, answer: Answer) -> dict[str, Any]:
        """Print an answer, unless only the file gets it; returns its row."""
        made = answer_row(row, answer, task_of(row))
        if as_json:
            print(json.dumps(made, ensure_ascii=False), flush=True)
        elif out is None:
            print_answer(row, answer)
        return made

    if rows is None and sys.stdin.isatty():
        for line in _type_questions():
            try:
                show(row := AskedRow(line), answer([row])[0])
            except UserError as error:  # the next question may have no error
                print(error, file=sys.stderr)
        return
    titled, written = question is None and not as_json and out is None, list[dict[str, Any]]()
    waiting = read_lines(sys.stdin) if rows is None else iter(rows)
    quiet = rows is None or question is not None or (out is None and sys.stdout.isatty())
    with ExitStack() as stack:
        unfinished = None
        if out is not None and rows is not None:
            asked = [[row.question, task_of(row), row.id, str(row.columns)] for row in rows]
            of_student = [models.digest_weights(student.model), asdict(settings), format, chosen]
            unfinished = stack.enter_context(UnfinishedAnswers(out, [*of_student, *asked]))
            written = unfinished.stored
            if as_json:
                for made in written:
                    print(json.dumps(made, ensure_ascii=False))
            waiting = iter(rows[len(written) :])
        advance = None
        if not quiet and rows is not None:
            advance = stack.enter_context(progress.bar("ask", len(rows), "questions", done=len(written)))
        while chunk := list(itertools.islice(waiting, CHUNK)):
            answered = []
            for row, given in zip(chunk, answer(chunk), strict=True):
                if titled:
                    print(f"Question: {escape_hidden(row.question)}")
                answered.append(show(row, given))
                if titled:
                    print()
            if unfinished is not None:
                unfinished.append(answered)
            elif out is not None:
                written += answered
            if advance is not None:
                advance(len(chunk))
    if unfinished is not None:
        unfinished.finish()
    elif out is not None:
        write_answers(out, written)
    if out is not None:
        progress.print_line(f"{len(written)} answers: {out}", "green")


def _check_out(out: Path, file: Path | None) -> None:
    """Raise UserError for an output file of another format, or if it is the file with the questions."""
    if out.suffix not in OUT_SUFFIXES:
        what, hint = "not a format for answers", f"name a file that ends in {' or '.join(OUT_SUFFIXES)}"
        raise UserError(what, code="E-cli-ask-out", where="--out", found=out, hint=hint)
    if file is not None and out.resolve() == file.resolve():
        what, hint = "the file with the questions would be replaced", "name another file"
        raise UserError(what, code="E-cli-ask-out", where="--out", found=out, hint=hint)


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
    return AskedRow(text, None if given_id is None else str(given_id), task, gold, row)


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


def answer_row(row: AskedRow, answer: Answer, task: str) -> dict[str, Any]:
    """A row of the output: the question, all other columns of its row, and the answer. task: the task that was used

    >>> asked = AskedRow("2 + 2?", columns={"question": "2 + 2?", "stop": "Rome", "team": 7})
    >>> answer_row(asked, Answer("The answer is 4", "", "4", "end", {}), "number")  # doctest: +NORMALIZE_WHITESPACE
    {'question': '2 + 2?', 'task': 'number', 'input_stop': 'Rome', 'team': 7,
     'text': 'The answer is 4', 'rationale': '', 'found': '4', 'stop': 'end'}
    """
    given = {"id": row.columns.get("id", row.id), "question": row.question, "task": task or None, "gold": row.gold}
    given = {name: value for name, value in given.items() if value is not None}
    made = {"text": answer.text, "rationale": answer.rationale, "found": answer.answer, "stop": answer.stop}
    kept = dict[str, Any]()
    for name, value in row.columns.items():
        is_there = name in given and given[name] == value
        is_question = name in ANSWER_FIELDS and value == row.question
        if not is_there and not is_question:
            kept[f"input_{name}" if name in (*ANSWER_FIELDS, *READ_FIELDS) else name] = value
    return given | kept | made | ({"votes": dict(answer.votes)} if answer.votes else {})
