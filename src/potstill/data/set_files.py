"""Readers of a data set's files and records. Every error names the file and the record.

    >>> require_text({"question": "Why?"}, "question", where="mine.jsonl line 1")
    'Why?'
    >>> format_number(51.0), format_number(0.5)
    ('51', '0.5')
    >>> block = "Q: 1 + 1?\\nLet's think step by step\\nOne and one.\\nThe answer is 2\\n"
    >>> parse_demonstrations(block, where="two.txt")
    (Demonstration(question='1 + 1?', answer='2', rationale='One and one.'),)

potstill never guesses: a torn line, a missing field or a value of another type is an error.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from potstill.data.run_questions import TaskPrompt
from potstill.errors import UserError
from potstill.prompts import Demonstration
from potstill.records import Split
from potstill.storage import dataset_files
from potstill.storage.dataset_files import shorten

MAX_CHARACTERS: Final = (
    100_000  # maximum length of a text, about 25,000 tokens; attention over more needs too much memory
)


@dataclass(frozen=True, slots=True)
class RawQuestion:
    """A question as read from its file, before its split is known.

    where  file and record, for messages
    split  the split in the file; None if the file has no splits
    """

    id: str
    text: str
    gold: str
    task: str
    where: str
    rationale: str | None = None
    split: Split | None = None


@dataclass(frozen=True, slots=True)
class BuiltinSet:
    """A built-in set: an entry of the table `potstill.data.SETS`.

    read              data folder -> the questions of the set. The `task` of a question determines its grading: a task of
                      `potstill.grading`, or `<set>/<answer type>`. A question with a split keeps it
    paper_validation  number or fraction of validation questions with `splits: paper`; 0.2 for a set that is not in the paper
    grader            task of all questions if a function grades them: `<set>/function: <module>:<name>`
    tasks             names of the tasks of a set that is divided task by task; `<set>/<task>` is then also a set
    split_file        path in the data folder of the file that lists the paper's validation questions
    apply_split_file  questions and data folder -> the questions with the splits of that file, if it exists
    task_prompts      data folder -> official prompt of each task, for the few-shot formats
    source            address of the authors' files
    licence           the authors' licence, as an identifier of the Hugging Face hub; None: the authors state no licence
    hub_id            name of the set on the hub, if its authors publish it there
    language          language of the questions
    """

    name: str
    read: Callable[[Path], list[RawQuestion]]
    paper_validation: int | float
    grader: str | None = None
    tasks: tuple[str, ...] = ()
    split_file: str | None = None
    apply_split_file: Callable[[list[RawQuestion], Path], list[RawQuestion]] | None = None
    task_prompts: Callable[[Path], dict[str, TaskPrompt]] | None = None
    source: str = ""
    licence: str | None = None
    hub_id: str | None = None
    language: str = "en"


# Whole files


def read_text(path: Path) -> str:
    """The content of a file as text. Raises UserError if it is missing, unreadable or not UTF-8."""
    return dataset_files.decode_text(_read_bytes(path), path)


def _read_bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        hint = (
            "check the path and the data folder (POTSTILL_DATA, or `data` in the recipe); `potstill data NAME` fetches"
        )
        hint += " a built-in set"
        raise UserError("the file does not exist", code="E-data-missing-file", where=path, hint=hint) from None
    except OSError as error:
        what = error.strerror or "the file cannot be read"
        raise UserError(what, code="E-data-unreadable-file", where=path) from None


def read_json(path: Path) -> Any:
    """The value of a JSON file. Raises UserError if it is missing, unreadable or not JSON."""
    try:
        return json.loads(read_text(path))
    except (ValueError, RecursionError) as error:
        hint = "get the file again; it may be incomplete"
        raise UserError(f"the file is not JSON: {error}", code="E-data-json", where=path, hint=hint) from None


def read_json_records(path: Path) -> Iterator[tuple[str, Any]]:
    """The place (file and record, for messages) and the content of each record of a JSON list."""
    for index, row in enumerate(require_list(read_json(path), where=path)):
        yield f"{path} record {index}", row


def read_rows(path: Path) -> Iterator[tuple[int, str, dict[str, Any]]]:
    """Number, place for messages, and content of each record of a file in any format of `storage.dataset_files`."""
    if not path.exists():
        _read_bytes(path)  # raises the specific error
    for number, place, row in dataset_files.read_dataset_rows(path):
        yield number, f"{path} {place}", row


# Fields of a record


def require_field(row: Any, name: str, *, where: object, hint: str = "", null: bool = False) -> Any:
    """The value of a field. Raises UserError if the field is missing, or is null unless `null` is True.

    hint  shown if the field is missing
    """
    if not isinstance(row, Mapping):
        raise UserError("a record must be an object with fields", code="E-data-record", where=where, found=_shown(row))
    if name not in row:
        found = ", ".join(map(str, row)) or "no fields"
        what = f"the field `{name}` is missing"
        raise UserError(what, code="E-data-missing-field", where=where, found=found, hint=hint)
    if row[name] is None and not null:
        hint = f"give every record a value for `{name}`, or remove the records without one"
        raise UserError(f"the field `{name}` is null", code="E-data-null-field", where=where, hint=hint)
    return row[name]


def require_text(row: Any, name: str, *, where: object, hint: str = "") -> str:
    """The text of a field. Raises UserError if it is missing or not text. hint: shown if the field is missing."""
    value = require_field(row, name, where=where, hint=hint)
    if isinstance(value, bytes):
        what, hint = f"`{name}` contains bytes that are not UTF-8", "save the column as UTF-8 text"
        raise UserError(what, code="E-data-utf8", where=where, found=repr(value[:40]), hint=hint)
    if not isinstance(value, str):
        raise field_type_error(f"`{name}` must be a string", value, where)
    if not value.strip():
        raise empty_field_error(name, where)
    return value


def require_number(row: Any, name: str, *, where: object) -> str:
    """The number in a field, as text. Raises UserError if it is missing or not a finite number."""
    return number_to_text(require_field(row, name, where=where), name, where=where)


def require_list(value: Any, *, where: object) -> list[Any]:
    """The value. Raises UserError if it is not a list of records."""
    if not isinstance(value, list):
        found = type(value).__name__
        raise UserError("the value must be a list of records", code="E-data-list", where=where, found=found)
    return value


def check_text(text: str, name: str, where: str) -> str:
    """The text. Raises UserError if it is too long, or contains half of a surrogate pair.

    No file, tokenizer or server accepts half of a surrogate pair.
    """
    if len(text) > MAX_CHARACTERS:
        found, hint = (
            f"{len(text)} characters; the maximum is {MAX_CHARACTERS}",
            "shorten the text, or remove the record",
        )
        raise UserError(f"the {name} is too long", code="E-data-too-long", where=where, found=found, hint=hint)
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as fault:
        what = f"`{name}` contains half of a surrogate pair"
        found = ascii(text[max(0, fault.start - 30) : fault.start + 10])
        hint = "write the whole character, or replace it with U+FFFD"
        raise UserError(what, code="E-data-surrogate", where=where, found=found, hint=hint) from None
    return text


def format_number(value: int | float) -> str:
    """A number in plain digits: 51.0 is "51". A whole number may have more digits than a float can represent."""
    return str(int(value)) if isinstance(value, int) or value.is_integer() else repr(value)


def is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def number_to_text(value: Any, name: str, *, where: object) -> str:
    """A number as text. Raises UserError if the value is not a finite number."""
    if not is_number(value) or (isinstance(value, float) and not math.isfinite(value)):
        raise field_type_error(f"`{name}` must be a number", value, where)
    return format_number(value)


def field_type_error(what: str, value: Any, where: object, hint: str = "") -> UserError:
    return UserError(what, code="E-data-field-type", where=where, found=_shown(value), hint=hint)


def empty_field_error(name: str, where: object) -> UserError:
    hint = f"write a value for `{name}`, or remove the record"
    return UserError(f"`{name}` is empty", code="E-data-empty-field", where=where, hint=hint)


def _shown(value: Any) -> str:
    return shorten(json.dumps(value, default=str))


# Demonstrations: solved examples in a prompt file, one per block, with blank lines between the blocks. An answer is kept
# unchanged, so that `prompts.build_prompt` reproduces the bytes of the file.

_QUESTION_PREFIXES: Final = ("Question: ", "Q: ")
_THINK: Final = "\nLet's think step by step\n"
_ANSWER: Final = "The answer is "


def read_demonstrations(file: Path) -> tuple[Demonstration, ...]:
    """The solved examples in a prompt file. Raises UserError for a block that is not a solved example."""
    return parse_demonstrations(read_text(file), where=file)


def parse_demonstrations(text: str, *, where: object) -> tuple[Demonstration, ...]:
    """The solved examples in a text. Raises UserError for any other block, or without a block.

    A block begins with `Question: ` or `Q: `, may have a rationale, and ends with `The answer is ...`.
    """
    blocks = [block for block in text.strip("\n").split("\n\n") if block.strip()]
    if not blocks:
        raise UserError("the file has no demonstrations", code="E-data-no-demonstrations", where=where)
    return tuple(_parse_demonstration(block, f"{where} block {number}") for number, block in enumerate(blocks, start=1))


def _parse_demonstration(block: str, where: str) -> Demonstration:
    prefix = next(filter(block.startswith, _QUESTION_PREFIXES), None)
    body, sentence, answer = block.rpartition(_ANSWER)
    if prefix is None or not sentence or not answer.strip():
        what = "the block is not a demonstration"
        hint = "begin a block with `Q: ` or `Question: ` and end it with `The answer is ...`"
        raise UserError(what, code="E-data-demonstration", where=where, found=block[:60], hint=hint)
    question, _, rationale = body.removeprefix(prefix).partition(_THINK)
    return Demonstration(question.strip(), answer.strip(), rationale.strip())
