"""A question as its file has it, before it is known which split it belongs to.

>>> RawQuestion(id="svamp/chal-1", text="How much?", gold="51", task="svamp", where="SVAMP.json record 0").split is None
True

Reading: the files of a set as records, each fault named with its file and record.

    >>> require_text({"question": "Why?"}, "question", where="mine.jsonl line 1")
    'Why?'
    >>> format_number(51.0), format_number(0.5)
    ('51', '0.5')

Nothing is guessed: a torn line, a missing field or a value of another type is the user's to correct.

Demonstrations from a prompt file: solved examples, one block each, set off by blank lines.

    >>> block = "Q: 1 + 1?\\nLet's think step by step\\nOne and one.\\nThe answer is 2\\n"
    >>> parse_demonstrations(block, where="two.txt")
    (Demonstration(question='1 + 1?', answer='2', rationale='One and one.'),)

The answer is kept as the file writes it, so that `prompts.build` gives the file's own bytes again.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from potstill.errors import UserError
from potstill.prompts import Demonstration
from potstill.records import Split
from potstill.storage import dataset_files
from potstill.storage.dataset_files import shorten


@dataclass(frozen=True, slots=True)
class RawQuestion:
    """where: file and record, for messages. split: only where the file itself says it."""

    id: str
    text: str
    gold: str
    task: str
    where: str
    rationale: str | None = None
    split: Split | None = None


def read_text(path: Path) -> str:
    """The whole file as text. Raises UserError where it is missing, unreadable or not UTF-8."""
    return dataset_files.decode_text(_read_bytes(path), path)


def _read_bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        hint = "look at the name, or at the data folder (POTSTILL_DATA, or `data:` in the recipe)"
        raise UserError("no such file", where=path, hint=hint) from None
    except OSError as error:
        raise UserError(error.strerror or "cannot be read", where=path) from None


def read_json(path: Path) -> Any:
    """A JSON file as plain values."""
    try:
        return json.loads(read_text(path))
    except (ValueError, RecursionError) as error:
        raise UserError(f"not JSON: {error}", where=path, hint="get the file anew, it may be torn") from None


def read_rows(path: Path) -> Iterator[tuple[int, str, dict[str, Any]]]:
    """The records of a file in any form that `files.rows` reads: number, place for messages, and the record."""
    if not path.exists():
        _read_bytes(path)  # says why
    for number, place, row in dataset_files.read_dataset_rows(path):
        yield number, f"{path} {place}", row


def require_text(row: Any, name: str, *, where: object, hint: str = "") -> str:
    """A field that must hold text. `do` says what to do where there is none."""
    value = require_field(row, name, where=where, hint=hint)
    if isinstance(value, bytes):
        hint = "save the column as text, in UTF-8"
        raise UserError(f"`{name}` is bytes that are not UTF-8", where=where, found=repr(value[:40]), hint=hint)
    if not isinstance(value, str):
        raise UserError(f"`{name}` must be text", where=where, found=shorten(json.dumps(value, default=str)))
    if not value.strip():
        raise UserError(f"`{name}` is empty", where=where)
    return value


def check_unicode(text: str, name: str, where: object) -> str:
    """A text of whole characters. Raises UserError for one with half of a surrogate pair, which no file, tokenizer or
    server can be given.

    >>> check_unicode("How many? \\U0001f600", "question", "mine.jsonl line 1")[-1]
    '😀'
    """
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as fault:
        shown = ascii(text[max(0, fault.start - 30) : fault.start + 10])
        hint = "write the whole character, or put U+FFFD in its place"
        raise UserError(f"`{name}` holds half of a surrogate pair", where=where, found=shown, hint=hint) from None
    return text


def require_field(row: Any, name: str, *, where: object, hint: str = "", null: bool = False) -> Any:
    """A field that must be there, and hold a value; with `null` that may be null."""
    if not isinstance(row, Mapping):
        raise UserError("a record is an object with fields", where=where, found=shorten(json.dumps(row, default=str)))
    if name in row and row[name] is None and not null:
        hint = f"give every record a value for `{name}`, or take out those that have none"
        raise UserError(f"the field `{name}` is null", where=where, hint=hint)
    if name not in row:
        found = ", ".join(str(key) for key in row) or "no field at all"
        raise UserError(f"the field `{name}` is missing", where=where, found=found, hint=hint)
    return row[name]


def require_list(value: Any, *, where: object) -> list[Any]:
    """A value that must be a list of records."""
    if not isinstance(value, list):
        raise UserError("a list of records belongs here", where=where, found=type(value).__name__)
    return value


def format_number(value: int | float) -> str:
    """A number as it is written by hand: 51.0 is "51"."""
    return str(int(value)) if float(value).is_integer() else repr(value)


def require_number(row: Any, name: str, *, where: object) -> str:
    """A field that must hold a number, as text."""
    return number_to_text(require_field(row, name, where=where), name, where=where)


def number_to_text(value: Any, name: str, *, where: object) -> str:
    """A value that must be a finite number, as text."""
    if isinstance(value, bool) or not isinstance(value, int | float) or value != value or abs(value) == float("inf"):
        raise UserError(f"`{name}` must be a number", where=where, found=shorten(json.dumps(value, default=str)))
    return format_number(value)


_QUESTION_PREFIXES: Final = ("Question: ", "Q: ")
_THINK: Final = "\nLet's think step by step\n"
_ANSWER: Final = "The answer is "


def read_demonstrations(file: Path) -> tuple[Demonstration, ...]:
    """The solved examples of a prompt file. Raises UserError where a block is not one."""
    return parse_demonstrations(read_text(file), where=file)


def parse_demonstrations(text: str, *, where: object) -> tuple[Demonstration, ...]:
    """The blocks `Question: ...` or `Q: ...`, with or without a rationale, each closed by `The answer is ...`."""
    blocks = [block for block in text.strip("\n").split("\n\n") if block.strip()]
    if not blocks:
        raise UserError("no demonstrations", where=where)
    return tuple(_parse_demonstration(block, f"{where} block {number}") for number, block in enumerate(blocks, start=1))


def _parse_demonstration(block: str, where: str) -> Demonstration:
    opening = next((ask for ask in _QUESTION_PREFIXES if block.startswith(ask)), None)
    body, sentence, answer = block.rpartition(_ANSWER)
    if opening is None or not sentence or not answer.strip():
        hint = "a block begins with `Q: ` or `Question: ` and ends with `The answer is ...`"
        raise UserError("not a demonstration", where=where, found=block[:60], hint=hint)
    question, _, rationale = body.removeprefix(opening).partition(_THINK)
    return Demonstration(question.strip(), answer.strip(), rationale.strip())
