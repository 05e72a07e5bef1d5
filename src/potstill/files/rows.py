"""Rows: the records of a file that somebody else wrote, in whatever form people keep them.

    >>> import tempfile; path = Path(tempfile.mkdtemp()) / "mine.csv"
    >>> _ = path.write_text("question,answer\\nHow many?,5\\n")
    >>> list(rows(path))
    [(2, 'line 2', {'question': 'How many?', 'answer': '5'})]

JSON lines, a JSON array (alone, or the `examples`, `data`, ... of one object), CSV and TSV with a header, Parquet,
Arrow, and the folder that `datasets` saves; each but the folder also compressed with gzip, bzip2, xz or zstd. What a
file is decides its content, and its name only where the content does not: a table of text. Each row comes with its
number (from 1; of lines the number of the line) and with its place for messages.
"""

from __future__ import annotations

import csv
import io
import json
import lzma
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from potstill.errors import UserError
from potstill.files import arrow
from potstill.files.reading import mine_to_mend, read_bytes

Row = tuple[int, str, dict[str, Any]]
LARGEST: Final = 1 << 31  # bytes of a file's content, which is held in memory
WRAPPERS: Final = ("examples", "data", "rows", "records", "questions", "problems", "instances", "items", "samples")
COMPRESSED: Final = {b"\x1f\x8b": "gzip", b"\x28\xb5\x2f\xfd": "zstd", b"BZh": "bz2", b"\xfd7zXZ\x00": "xz"}
PARQUET: Final = b"PAR1"
TABLES: Final = {".csv": ",", ".tsv": "\t"}
CLIPPED: Final = "a line holds one JSON object; mend or drop it (the last line may have been cut off)"
BOM: Final = "\ufeff"


def rows(path: Path) -> Iterator[Row]:
    """Every record of a file or of a saved folder. Raises UserError, with the file and the place in it, for what is
    no record."""
    if path.is_dir():
        yield from ((number, f"record {number}", row) for number, row in enumerate(arrow.saved(path), 1))
        return
    data = content(path)
    if data.startswith(PARQUET):
        yield from _numbered(arrow.parquet_rows(data, path))
    elif data.startswith(arrow.MAGIC):
        yield from _numbered(arrow.ipc_rows(data, path))
    else:
        yield from _text_rows(decoded(data, path), path)


def is_plain(path: Path) -> bool:
    """Whether a file begins as JSON lines do: with an object, not compressed."""
    with mine_to_mend(path), open(path, "rb") as file:
        return file.read(1 << 12).removeprefix(BOM.encode()).lstrip()[:1] in (b"{", b"")


def content(path: Path) -> bytes:
    """The bytes of a file, decompressed where they are compressed."""
    data = read_bytes(path)
    for _ in range(3):  # a compressed file is now and then compressed again
        form = next((form for magic, form in COMPRESSED.items() if data.startswith(magic)), None)
        if form is None:
            break
        data = _xz(data, path) if form == "xz" else arrow.decompressed(data, form, path, LARGEST)
    return data


def decoded(data: bytes, path: Path) -> str:
    """UTF-8 as text with plain line ends, without byte order marks. Raises UserError, naming line and byte."""
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as fault:
        line = data.count(b"\n", 0, fault.start) + 1
        what = f"not UTF-8 at byte {fault.start}"
        do = "save it as UTF-8"
        if data[fault.start : fault.start + 1] == b"\xed":
            do = "half of a surrogate pair is no character: write the whole one, or put U+FFFD in its place"
        elif data[:2] in (b"\xff\xfe", b"\xfe\xff"):
            do = "it looks like UTF-16: save it as UTF-8"
        raise UserError(what, where=f"{path} line {line}" if line > 1 else path, do=do) from None
    text = text.replace("\r\n", "\n").removeprefix(BOM)
    return text.replace(f"\n{BOM}", "\n") if BOM in text else text  # files put one after the other, each with its own


def short(text: str) -> str:
    return text if len(text) <= 80 else f"{text[:60]} ... {text[-15:]}"


def _numbered(found: Iterator[dict[str, Any]]) -> Iterator[Row]:
    return ((number, f"record {number}", row) for number, row in enumerate(found, 1))


def _xz(data: bytes, path: Path) -> bytes:
    try:
        reader = lzma.LZMADecompressor()
        found = reader.decompress(data, LARGEST)
    except lzma.LZMAError as fault:
        raise UserError("not a whole xz file", where=path, found=fault, do="get it again; it may be torn") from None
    if not reader.eof:
        do = "get it again, it may be torn; or unpack it and name its parts"
        raise UserError("not a whole xz file, or too large to hold in memory", where=path, do=do)
    return found


def _text_rows(text: str, path: Path) -> Iterator[Row]:
    name = path.name.lower()
    ends = [f".{part}" for part in name.split(".")[1:]]
    for end, sign in TABLES.items():
        if end in ends:
            yield from _table(text, sign, path)
            return
    start = text.lstrip()[:1]
    if start == "[" or (start == "{" and not _is_json(text.lstrip().partition("\n")[0])):
        whole = _document(text)
        if isinstance(whole, list):
            yield from _listed(whole, path)
            return
        if isinstance(whole, dict):
            yield from _wrapped(whole, path)
            return
        if start == "[" and not _is_json(text.lstrip().partition("\n")[0]):
            raise UserError("not JSON", where=path, found=_why(text), do="it looks like a JSON array that is not whole")
    yield from _lines(text, path)


def _lines(text: str, path: Path) -> Iterator[Row]:
    """JSON lines; one line alone may hold an object with a list of records."""
    lines = text.split("\n")
    alone = sum(1 for line in lines if line.strip()) == 1
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        where = f"{path} line {number}"
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            raise UserError("not JSON", where=where, found=short(line), do=_looks_like(line, number)) from None
        if not isinstance(row, dict):
            raise UserError("a line holds one JSON object", where=where, found=short(line), do='{"question": ...}')
        if alone and _list_of(row) is not None:
            yield from _wrapped(row, path)
            return
        yield number, f"line {number}", row


def _looks_like(line: str, number: int) -> str:
    """What to do about a line that is no JSON."""
    if number > 1 or line.lstrip()[:1] in "{[":
        return CLIPPED if line.strip() not in ("{", "[") else "write one object a line (jq -c does that)"
    if line.count("\t") or line.count(","):
        return f"it looks like a table: name it {'.tsv' if line.count(chr(9)) else '.csv'}, or write JSON lines"
    return "write one JSON object a line, or name a .csv, .tsv, .json, .parquet or .arrow file"


def _is_json(line: str) -> bool:
    try:
        json.loads(line)
    except (ValueError, RecursionError):
        return False
    return True


def _document(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _why(text: str) -> str:
    try:
        json.loads(text)
    except (ValueError, RecursionError) as fault:
        return str(fault)
    return ""


def _listed(found: list[Any], path: Path) -> Iterator[Row]:
    for number, row in enumerate(found, 1):
        if not isinstance(row, dict):
            where = f"{path} record {number}"
            raise UserError("a record is an object with fields", where=where, found=short(json.dumps(row)))
        yield number, f"record {number}", row


def _list_of(row: dict[str, Any]) -> list[Any] | None:
    """The records of an object that wraps them."""
    lists = [row[name] for name in WRAPPERS if isinstance(row.get(name), list) and row[name]]
    return lists[0] if len(lists) == 1 and all(isinstance(each, dict) for each in lists[0]) else None


def _wrapped(row: dict[str, Any], path: Path) -> Iterator[Row]:
    found = _list_of(row)
    if found is None:
        do = f"write a list of records, or one object a line; a list may stand under one of {', '.join(WRAPPERS)}"
        raise UserError("one JSON object, and no list of records in it", where=path, found=short(", ".join(row)), do=do)
    yield from _listed(found, path)


def _table(text: str, sign: str, path: Path) -> Iterator[Row]:
    """A table with a header; every cell is text. A comma may be a semicolon or a tab, whichever the header has."""
    if sign == ",":
        header = text.partition("\n")[0]
        sign = max(",;\t", key=lambda each: (header.count(each), each == ","))
    names: list[str] = []
    for number, cells in _cells(text, sign, path):
        where = f"{path} line {number}"
        if not names:
            names = _header(cells, where)
        elif len(cells) != len(names):
            do = "put a cell that holds the separator or a line break into quotation marks"
            raise UserError(f"{len(cells)} cells under a header of {len(names)}", where=where, found=cells[:3], do=do)
        else:
            yield number, f"line {number}", dict(zip(names, cells, strict=True))


def _cells(text: str, sign: str, path: Path) -> list[tuple[int, list[str]]]:
    """The first line and the cells of every row that has any."""
    before = csv.field_size_limit(LARGEST)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=sign, strict=True)
    found, first = [], 1
    try:
        for cells in reader:
            if any(cell.strip() for cell in cells):
                found.append((first, cells))
            first = reader.line_num + 1
    except csv.Error as fault:
        do = "close its quotation marks, and double those inside of a cell"
        raise UserError(f"not a table: {fault}", where=f"{path} line {first}", do=do) from None
    finally:
        csv.field_size_limit(before)
    return found


def _header(cells: list[str], where: str) -> list[str]:
    names = [cell.strip() for cell in cells]
    if len(set(names)) < len(names) or "" in names:
        do = "the first line of a table names its columns, each once"
        raise UserError("not a header", where=where, found=short(", ".join(names)), do=do)
    return names
