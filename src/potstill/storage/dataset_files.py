"""Arrow: the rows of somebody else's Parquet and Arrow files as values that JSON knows. One of pyarrow's owners.

Bytes are decoded as UTF-8 where they are that, 32-bit numbers are the shortest decimal that they stand for (0.1, not
0.10000000149011612), dates and times are text.

Rows: the records of a file that somebody else wrote, in whatever form people keep them.

    >>> import tempfile; path = Path(tempfile.mkdtemp()) / "mine.csv"
    >>> _ = path.write_text("question,answer\\nHow many?,5\\n")
    >>> list(read_dataset_rows(path))
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
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from potstill.errors import UserError
from potstill.storage.read import as_user_errors, read_bytes, read_json

if TYPE_CHECKING:
    import pyarrow


BATCH_ROWS: Final = 4096
ARROW_MAGIC: Final = (b"ARROW1", b"\xff\xff\xff\xff")  # of an Arrow file, and of a stream
DOWNLOAD_HINT: Final = "get it again; it may be torn"
Converter = Callable[[Any], Any]


def decompress(data: bytes, form: str, path: Path, most: int) -> bytes:
    """What a compressed file holds. Raises UserError where it is torn, or holds more than `most` bytes."""
    import pyarrow as pa

    try:
        with pa.CompressedInputStream(pa.BufferReader(data), form) as stream:
            found = stream.read(most + 1)
    except (OSError, pa.ArrowException) as fault:
        raise UserError(f"not a whole {form} file", where=path, found=fault, hint=DOWNLOAD_HINT) from None
    if len(found) > most:
        hint = "unpack it, and name several smaller files"
        raise UserError("too large to hold in memory", where=path, found=f"more than {most} bytes unpacked", hint=hint)
    return found


def read_parquet_rows(data: bytes, path: Path) -> Iterator[dict[str, Any]]:
    """The rows of a Parquet file that is held in memory."""
    import pyarrow as pa
    from pyarrow import parquet

    try:
        with parquet.ParquetFile(pa.BufferReader(data)) as file:
            for batch in file.iter_batches(BATCH_ROWS):
                yield from _batch_rows(batch)
    except (pa.ArrowException, OSError) as fault:
        raise UserError("not a Parquet file", where=path, found=fault, hint=DOWNLOAD_HINT) from None


def read_arrow_rows(data: bytes, path: Path) -> Iterator[dict[str, Any]]:
    """The rows of an Arrow file or stream."""
    import pyarrow as pa

    opening = pa.ipc.open_file if data.startswith(ARROW_MAGIC[0]) else pa.ipc.open_stream
    try:
        with opening(data) as reader:
            whole = reader.read_all()
        for batch in whole.to_batches(BATCH_ROWS):
            yield from _batch_rows(batch)
    except (pa.ArrowException, OSError) as fault:
        raise UserError("not an Arrow file", where=path, found=fault, hint=DOWNLOAD_HINT) from None


def read_saved_dataset(folder: Path) -> Iterator[dict[str, Any]]:
    """The rows of a folder that `datasets` saved; of one with several parts each row has its part as `split`, unless
    it has such a field. Raises UserError for any other folder."""
    parts = folder / "dataset_dict.json"
    if parts.is_file():
        for part in _read_list_field(parts, "splits"):
            for row in _read_saved_split(folder / str(part)):
                yield {"split": part, **row}
        return
    yield from _read_saved_split(folder)


def _read_saved_split(folder: Path) -> Iterator[dict[str, Any]]:
    state = folder / "state.json"
    if not state.is_file():
        hint = "name its files: file: [a.jsonl, b.jsonl], or file: FOLDER/*.parquet"
        raise UserError("a folder, and not one that `datasets` saved", where=folder, hint=hint)
    told = read_json(state)
    if isinstance(told, dict) and told.get("_indices_data_files"):
        hint = "save it again with flatten_indices()"
        raise UserError("a saved selection of rows", where=folder, hint=hint)
    for each in _read_list_field(state, "_data_files"):
        path = folder / Path(str(each.get("filename") if isinstance(each, dict) else each)).name
        with as_user_errors(path):
            data = path.read_bytes()
        yield from read_arrow_rows(data, path)


def _read_list_field(path: Path, name: str) -> list[Any]:
    told = read_json(path)
    found = told.get(name) if isinstance(told, dict) else None
    if not isinstance(found, list):
        raise UserError("not as `datasets` saves it", where=path, found=f"no list {name!r}", hint="save the set again")
    return found


def _batch_rows(batch: pyarrow.RecordBatch) -> Iterator[dict[str, Any]]:
    converts = {field.name: _build_converter(field.type) for field in batch.schema}
    columns = {name: _column_values(batch.column(at)) for at, name in enumerate(batch.schema.names)}
    for at in range(batch.num_rows):
        row = {name: values[at] for name, values in columns.items()}
        yield {name: _convert(value, converts[name]) for name, value in row.items()}


def _column_values(column: pyarrow.Array) -> list[Any]:
    """The values of a column; text that is not UTF-8 stays bytes, for whoever reads that field to refuse."""
    import pyarrow as pa

    try:
        return column.to_pylist()
    except UnicodeDecodeError:
        pass
    try:
        return [_decode_or_bytes(value) for value in column.cast(pa.binary()).to_pylist()]
    except pa.ArrowException:  # inside a list or a structure
        return [_decode_or_bytes(value) for value in column]


def _decode_or_bytes(value: Any) -> Any:
    try:
        return value.decode() if isinstance(value, bytes) else value.as_py() if hasattr(value, "as_py") else value
    except UnicodeDecodeError:
        return value if isinstance(value, bytes) else b"\xff"


def _convert(value: Any, convert: Converter | None) -> Any:
    return value if value is None or convert is None else convert(value)


def _build_converter(kind: pyarrow.DataType) -> Converter | None:
    """How a value of a type becomes one that JSON knows; None where it is one."""
    import pyarrow.types as t

    if t.is_floating(kind):
        return None if t.is_float64(kind) else _shortest_float16 if t.is_float16(kind) else _shortest_float32
    if t.is_binary(kind) or t.is_large_binary(kind) or t.is_fixed_size_binary(kind):
        return _decode_or_bytes
    if t.is_dictionary(kind):
        return _build_converter(kind.value_type)
    if t.is_list(kind) or t.is_large_list(kind) or t.is_fixed_size_list(kind):
        inner = _build_converter(kind.value_type)
        return None if inner is None else lambda value: [_convert(each, inner) for each in value]
    if t.is_struct(kind):
        own = {kind.field(at).name: _build_converter(kind.field(at).type) for at in range(kind.num_fields)}
        return lambda value: {name: _convert(each, own[name]) for name, each in value.items()}
    if t.is_string(kind) or t.is_large_string(kind) or t.is_integer(kind) or t.is_boolean(kind) or t.is_null(kind):
        return None
    return lambda value: value if isinstance(value, bytes) else json.loads(json.dumps(value, default=str))


def _shortest_float32(value: float) -> float:
    """A 32-bit number as the shortest decimal that it stands for."""
    import numpy

    return float(str(numpy.float32(value)))


def _shortest_float16(value: float) -> float:
    import numpy

    return float(str(numpy.float16(value)))


DatasetRow = tuple[int, str, dict[str, Any]]
MAX_CONTENT_BYTES: Final = 1 << 31  # bytes of a file's content, which is held in memory
LIST_FIELDS: Final = ("examples", "data", "rows", "records", "questions", "problems", "instances", "items", "samples")
COMPRESSION_MAGIC: Final = {b"\x1f\x8b": "gzip", b"\x28\xb5\x2f\xfd": "zstd", b"BZh": "bz2", b"\xfd7zXZ\x00": "xz"}
PARQUET_MAGIC: Final = b"PAR1"
TABLE_SEPARATORS: Final = {".csv": ",", ".tsv": "\t"}
JSON_LINE_HINT: Final = "a line holds one JSON object; mend or drop it (the last line may have been cut off)"
BOM: Final = "\ufeff"


def read_dataset_rows(path: Path) -> Iterator[DatasetRow]:
    """Every record of a file or of a saved folder. Raises UserError, with the file and the place in it, for what is
    no record."""
    if path.is_dir():
        yield from ((number, f"record {number}", row) for number, row in enumerate(read_saved_dataset(path), 1))
        return
    data = read_decompressed(path)
    if data.startswith(PARQUET_MAGIC):
        yield from _number_rows(read_parquet_rows(data, path))
    elif data.startswith(ARROW_MAGIC):
        yield from _number_rows(read_arrow_rows(data, path))
    else:
        yield from _read_text_rows(decode_text(data, path), path)


def is_plain_jsonl(path: Path) -> bool:
    """Whether a file begins as JSON lines do: with an object, not compressed."""
    with as_user_errors(path), open(path, "rb") as file:
        return file.read(1 << 12).removeprefix(BOM.encode()).lstrip()[:1] in (b"{", b"")


def read_decompressed(path: Path) -> bytes:
    """The bytes of a file, decompressed where they are compressed."""
    data = read_bytes(path)
    for _ in range(3):  # a compressed file is now and then compressed again
        form = next((form for magic, form in COMPRESSION_MAGIC.items() if data.startswith(magic)), None)
        if form is None:
            break
        data = _decompress_xz(data, path) if form == "xz" else decompress(data, form, path, MAX_CONTENT_BYTES)
    return data


def decode_text(data: bytes, path: Path) -> str:
    """UTF-8 as text with plain line ends, without byte order marks. Raises UserError, naming line and byte."""
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as fault:
        line = data.count(b"\n", 0, fault.start) + 1
        what = f"not UTF-8 at byte {fault.start}"
        hint = "save it as UTF-8"
        if data[fault.start : fault.start + 1] == b"\xed":
            hint = "half of a surrogate pair is no character: write the whole one, or put U+FFFD in its place"
        elif data[:2] in (b"\xff\xfe", b"\xfe\xff"):
            hint = "it looks like UTF-16: save it as UTF-8"
        raise UserError(what, where=f"{path} line {line}" if line > 1 else path, hint=hint) from None
    text = text.replace("\r\n", "\n").removeprefix(BOM)
    return text.replace(f"\n{BOM}", "\n") if BOM in text else text  # files put one after the other, each with its own


def shorten(text: str) -> str:
    return text if len(text) <= 80 else f"{text[:60]} ... {text[-15:]}"


def _number_rows(found: Iterator[dict[str, Any]]) -> Iterator[DatasetRow]:
    return ((number, f"record {number}", row) for number, row in enumerate(found, 1))


def _decompress_xz(data: bytes, path: Path) -> bytes:
    try:
        reader = lzma.LZMADecompressor()
        found = reader.decompress(data, MAX_CONTENT_BYTES)
    except lzma.LZMAError as fault:
        raise UserError("not a whole xz file", where=path, found=fault, hint="get it again; it may be torn") from None
    if not reader.eof:
        hint = "get it again, it may be torn; or unpack it and name its parts"
        raise UserError("not a whole xz file, or too large to hold in memory", where=path, hint=hint)
    return found


def _read_text_rows(text: str, path: Path) -> Iterator[DatasetRow]:
    name = path.name.lower()
    ends = [f".{part}" for part in name.split(".")[1:]]
    for end, sign in TABLE_SEPARATORS.items():
        if end in ends:
            yield from _read_table(text, sign, path)
            return
    start = text.lstrip()[:1]
    if start == "[" or (start == "{" and not _is_json(text.lstrip().partition("\n")[0])):
        whole = _parse_json_or_none(text)
        if isinstance(whole, list):
            yield from _iter_list_rows(whole, path)
            return
        if isinstance(whole, dict):
            yield from _read_wrapped_list(whole, path)
            return
        if start == "[" and not _is_json(text.lstrip().partition("\n")[0]):
            raise UserError(
                "not JSON", where=path, found=_json_error(text), hint="it looks like a JSON array that is not whole"
            )
    yield from _read_json_lines(text, path)


def _read_json_lines(text: str, path: Path) -> Iterator[DatasetRow]:
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
            raise UserError("not JSON", where=where, found=shorten(line), hint=_line_hint(line, number)) from None
        if not isinstance(row, dict):
            raise UserError("a line holds one JSON object", where=where, found=shorten(line), hint='{"question": ...}')
        if alone and _wrapped_list(row) is not None:
            yield from _read_wrapped_list(row, path)
            return
        yield number, f"line {number}", row


def _line_hint(line: str, number: int) -> str:
    """What to do about a line that is no JSON."""
    if number > 1 or line.lstrip()[:1] in "{[":
        return JSON_LINE_HINT if line.strip() not in ("{", "[") else "write one object a line (jq -c does that)"
    if line.count("\t") or line.count(","):
        return f"it looks like a table: name it {'.tsv' if line.count(chr(9)) else '.csv'}, or write JSON lines"
    return "write one JSON object a line, or name a .csv, .tsv, .json, .parquet or .arrow file"


def _is_json(line: str) -> bool:
    try:
        json.loads(line)
    except (ValueError, RecursionError):
        return False
    return True


def _parse_json_or_none(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _json_error(text: str) -> str:
    try:
        json.loads(text)
    except (ValueError, RecursionError) as fault:
        return str(fault)
    return ""


def _iter_list_rows(found: list[Any], path: Path) -> Iterator[DatasetRow]:
    for number, row in enumerate(found, 1):
        if not isinstance(row, dict):
            where = f"{path} record {number}"
            raise UserError("a record is an object with fields", where=where, found=shorten(json.dumps(row)))
        yield number, f"record {number}", row


def _wrapped_list(row: dict[str, Any]) -> list[Any] | None:
    """The records of an object that wraps them."""
    lists = [row[name] for name in LIST_FIELDS if isinstance(row.get(name), list) and row[name]]
    return lists[0] if len(lists) == 1 and all(isinstance(each, dict) for each in lists[0]) else None


def _read_wrapped_list(row: dict[str, Any], path: Path) -> Iterator[DatasetRow]:
    found = _wrapped_list(row)
    if found is None:
        hint = f"write a list of records, or one object a line; a list may stand under one of {', '.join(LIST_FIELDS)}"
        raise UserError(
            "one JSON object, and no list of records in it", where=path, found=shorten(", ".join(row)), hint=hint
        )
    yield from _iter_list_rows(found, path)


def _read_table(text: str, sign: str, path: Path) -> Iterator[DatasetRow]:
    """A table with a header; every cell is text. A comma may be a semicolon or a tab, whichever the header has."""
    if sign == ",":
        header = text.partition("\n")[0]
        sign = max(",;\t", key=lambda each: (header.count(each), each == ","))
    names: list[str] = []
    for number, cells in _read_cells(text, sign, path):
        where = f"{path} line {number}"
        if not names:
            names = _parse_header(cells, where)
        elif len(cells) != len(names):
            hint = "put a cell that holds the separator or a line break into quotation marks"
            raise UserError(
                f"{len(cells)} cells under a header of {len(names)}", where=where, found=cells[:3], hint=hint
            )
        else:
            yield number, f"line {number}", dict(zip(names, cells, strict=True))


def _read_cells(text: str, sign: str, path: Path) -> list[tuple[int, list[str]]]:
    """The first line and the cells of every row that has any."""
    before = csv.field_size_limit(MAX_CONTENT_BYTES)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=sign, strict=True)
    found, first = [], 1
    try:
        for cells in reader:
            if any(cell.strip() for cell in cells):
                found.append((first, cells))
            first = reader.line_num + 1
    except csv.Error as fault:
        hint = "close its quotation marks, and double those inside of a cell"
        raise UserError(f"not a table: {fault}", where=f"{path} line {first}", hint=hint) from None
    finally:
        csv.field_size_limit(before)
    return found


def _parse_header(cells: list[str], where: str) -> list[str]:
    names = [cell.strip() for cell in cells]
    if len(set(names)) < len(names) or "" in names:
        hint = "the first line of a table names its columns, each once"
        raise UserError("not a header", where=where, found=shorten(", ".join(names)), hint=hint)
    return names
