"""Reading: the files of a set as records, each fault named with its file and record.

    >>> field({"question": "Why?"}, "question", where="mine.jsonl line 1")
    'Why?'
    >>> plain_number(51.0), plain_number(0.5)
    ('51', '0.5')

Nothing is guessed: a torn line, a missing field or a value of another type is the user's to mend.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from potstill.errors import UserError
from potstill.files import tables


def text(path: Path) -> str:
    """The whole file as text. Raises UserError where it is missing, unreadable or not UTF-8."""
    try:
        return path.read_bytes().decode("utf-8-sig").replace("\r\n", "\n")
    except FileNotFoundError:
        do = "look at the name, or at the data folder (POTSTILL_DATA, or `data:` in the recipe)"
        raise UserError("no such file", where=path, do=do) from None
    except UnicodeDecodeError as error:
        raise UserError(f"not UTF-8 at byte {error.start}", where=path, do="save it as UTF-8") from None
    except OSError as error:
        raise UserError(error.strerror or "cannot be read", where=path) from None


def document(path: Path) -> Any:
    """A JSON file as plain values."""
    try:
        return json.loads(text(path))
    except (json.JSONDecodeError, RecursionError) as error:
        raise UserError(f"not JSON: {error}", where=path, do="get the file anew, it may be torn") from None


def rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """The records of a JSONL or Parquet file, each with its line number from 1. Empty lines are passed over."""
    if path.suffix == ".parquet":
        yield from enumerate(tables.plain_rows(path), start=1)
        return
    for number, line in enumerate(text(path).split("\n"), start=1):
        if not line.strip():
            continue
        where = f"{path} line {number}"
        try:
            row = json.loads(line)
        except (json.JSONDecodeError, RecursionError):
            do = "a line holds one JSON object; mend or drop it (the last line may have been cut off)"
            raise UserError("not JSON", where=where, found=_short(line), do=do) from None
        if not isinstance(row, dict):
            raise UserError("a line holds one JSON object", where=where, found=_short(line))
        yield number, row


def field(row: Any, name: str, *, where: object, do: str = "") -> str:
    """A field that must hold text. `do` says what to do where there is none."""
    value = required(row, name, where=where, do=do)
    if not isinstance(value, str):
        raise UserError(f"`{name}` must be text", where=where, found=_short(json.dumps(value)))
    if not value.strip():
        raise UserError(f"`{name}` is empty", where=where)
    return value


def required(row: Any, name: str, *, where: object, do: str = "") -> Any:
    """A field that must be there."""
    if not isinstance(row, Mapping):
        raise UserError("a record is an object with fields", where=where, found=_short(json.dumps(row)))
    if row.get(name) is None:
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
        raise UserError(f"`{name}` must be a number", where=where, found=_short(json.dumps(value)))
    return plain_number(value)


def _short(line: str) -> str:
    return line if len(line) <= 80 else f"{line[:60]} ... {line[-15:]}"
