"""Reading: the files of a set as records, each fault named with its file and record.

    >>> field({"question": "Why?"}, "question", where="mine.jsonl line 1")
    'Why?'
    >>> plain_number(51.0), plain_number(0.5)
    ('51', '0.5')

Nothing is guessed: a torn line, a missing field or a value of another type is the user's to correct.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from potstill.errors import UserError
from potstill.files import rows as files_rows
from potstill.files.rows import short


def text(path: Path) -> str:
    """The whole file as text. Raises UserError where it is missing, unreadable or not UTF-8."""
    return files_rows.decoded(_bytes(path), path)


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        do = "look at the name, or at the data folder (POTSTILL_DATA, or `data:` in the recipe)"
        raise UserError("no such file", where=path, do=do) from None
    except OSError as error:
        raise UserError(error.strerror or "cannot be read", where=path) from None


def document(path: Path) -> Any:
    """A JSON file as plain values."""
    try:
        return json.loads(text(path))
    except (ValueError, RecursionError) as error:
        raise UserError(f"not JSON: {error}", where=path, do="get the file anew, it may be torn") from None


def rows(path: Path) -> Iterator[tuple[int, str, dict[str, Any]]]:
    """The records of a file in any form that `files.rows` reads: number, place for messages, and the record."""
    if not path.exists():
        _bytes(path)  # says why
    for number, place, row in files_rows.rows(path):
        yield number, f"{path} {place}", row


def field(row: Any, name: str, *, where: object, do: str = "") -> str:
    """A field that must hold text. `do` says what to do where there is none."""
    value = required(row, name, where=where, do=do)
    if isinstance(value, bytes):
        do = "save the column as text, in UTF-8"
        raise UserError(f"`{name}` is bytes that are not UTF-8", where=where, found=repr(value[:40]), do=do)
    if not isinstance(value, str):
        raise UserError(f"`{name}` must be text", where=where, found=short(json.dumps(value, default=str)))
    if not value.strip():
        raise UserError(f"`{name}` is empty", where=where)
    return value


def whole(text: str, name: str, where: object) -> str:
    """A text of whole characters. Raises UserError for one with half of a surrogate pair, which no file, tokenizer or
    server can be given.

    >>> whole("How many? \\U0001f600", "question", "mine.jsonl line 1")[-1]
    '😀'
    """
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as fault:
        shown = ascii(text[max(0, fault.start - 30) : fault.start + 10])
        do = "write the whole character, or put U+FFFD in its place"
        raise UserError(f"`{name}` holds half of a surrogate pair", where=where, found=shown, do=do) from None
    return text


def required(row: Any, name: str, *, where: object, do: str = "", null: bool = False) -> Any:
    """A field that must be there, and hold a value; with `null` that may be null."""
    if not isinstance(row, Mapping):
        raise UserError("a record is an object with fields", where=where, found=short(json.dumps(row, default=str)))
    if name in row and row[name] is None and not null:
        do = f"give every record a value for `{name}`, or take out those that have none"
        raise UserError(f"the field `{name}` is null", where=where, do=do)
    if name not in row:
        found = ", ".join(str(key) for key in row) or "no field at all"
        raise UserError(f"the field `{name}` is missing", where=where, found=found, do=do)
    return row[name]


def listed(value: Any, *, where: object) -> list[Any]:
    """A value that must be a list of records."""
    if not isinstance(value, list):
        raise UserError("a list of records belongs here", where=where, found=type(value).__name__)
    return value


def plain_number(value: int | float) -> str:
    """A number as it is written by hand: 51.0 is "51"."""
    return str(int(value)) if float(value).is_integer() else repr(value)


def number(row: Any, name: str, *, where: object) -> str:
    """A field that must hold a number, as text."""
    return to_number(required(row, name, where=where), name, where=where)


def to_number(value: Any, name: str, *, where: object) -> str:
    """A value that must be a finite number, as text."""
    if isinstance(value, bool) or not isinstance(value, int | float) or value != value or abs(value) == float("inf"):
        raise UserError(f"`{name}` must be a number", where=where, found=short(json.dumps(value, default=str)))
    return plain_number(value)
