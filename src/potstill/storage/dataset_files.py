"""Readers of data files in all common formats. A row is a dictionary of JSON values.

    >>> import tempfile; path = Path(tempfile.mkdtemp()) / "mine.csv"
    >>> _ = path.write_text("question,answer\\nHow many?,5\\n")
    >>> list(read_dataset_rows(path))
    [(2, 'line 2', {'question': 'How many?', 'answer': '5'})]

The formats are JSON lines, a JSON array (alone, or in the field `examples`, `data`, ... of an object), CSV and TSV with a
header, Parquet, Arrow, and a folder saved by `datasets`. Files may be compressed with gzip, bzip2, xz or zstd. The
content of a file determines its format; the name matters only for CSV and TSV.

Values of Parquet and Arrow files are converted: bytes that are valid UTF-8 become text, 32-bit floats become the shortest
decimal with the same value (0.1, not 0.10000000149011612), and dates and times become text.
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

DatasetRow = tuple[int, str, dict[str, Any]]  # number from 1 (in a text file: of the line), place for messages, values
Converter = Callable[[Any], Any]
BATCH_ROWS: Final = 4096
MAX_CONTENT_BYTES: Final = 1 << 31  # maximum size of a file's decompressed content, which is held in memory
ARROW_MAGIC: Final = (b"ARROW1", b"\xff\xff\xff\xff")  # first bytes of an Arrow file, and of an Arrow stream
PARQUET_MAGIC: Final = b"PAR1"
COMPRESSION_MAGIC: Final = {b"\x1f\x8b": "gzip", b"\x28\xb5\x2f\xfd": "zstd", b"BZh": "bz2", b"\xfd7zXZ\x00": "xz"}
TABLE_SEPARATORS: Final = {".csv": ",", ".tsv": "\t"}
LIST_FIELDS: Final = ("examples", "data", "rows", "records", "questions", "problems", "instances", "items", "samples")
DOWNLOAD_HINT: Final = "download it again; it may be incomplete"
JSON_LINE_HINT: Final = "write one JSON object per line; correct or delete this line (the last line may be incomplete)"
BOM: Final = "\ufeff"


def read_dataset_rows(path: Path) -> Iterator[DatasetRow]:
    """Every row of a file or of a folder saved by `datasets`.

    Raises UserError, with the file and the place in the file, for invalid content.
    """
    if path.is_dir():
        yield from _number_rows(read_saved_dataset(path))
        return
    data = read_decompressed(path)
    if data.startswith(PARQUET_MAGIC):
        yield from _number_rows(read_parquet_rows(data, path))
    elif data.startswith(ARROW_MAGIC):
        yield from _number_rows(read_arrow_rows(data, path))
    else:
        yield from _read_text_rows(decode_text(data, path), path)


def is_plain_jsonl(path: Path) -> bool:
    """Whether an uncompressed file begins with a JSON object, as JSON lines do."""
    with as_user_errors(path), open(path, "rb") as file:
        return file.read(1 << 12).removeprefix(BOM.encode()).lstrip()[:1] in (b"{", b"")


def read_decompressed(path: Path) -> bytes:
    """The bytes of a file, decompressed if it is compressed."""
    data = read_bytes(path)
    for _ in range(3):  # some compressed files are compressed again
        method = next((method for magic, method in COMPRESSION_MAGIC.items() if data.startswith(magic)), None)
        if method is None:
            break
        data = _decompress_xz(data, path) if method == "xz" else decompress(data, method, path, MAX_CONTENT_BYTES)
    return data


def decompress(data: bytes, method: str, path: Path, max_bytes: int) -> bytes:
    """The content of compressed data. Raises UserError if it is incomplete or larger than `max_bytes`."""
    import pyarrow as pa

    try:
        with pa.CompressedInputStream(pa.BufferReader(data), method) as stream:
            content = stream.read(max_bytes + 1)
    except (OSError, pa.ArrowException) as fault:
        raise _compression_error(method, path, fault) from None
    if len(content) > max_bytes:
        what, found = "the file is too large to hold in memory", f"more than {max_bytes} bytes decompressed"
        hint = "decompress it and name several smaller files"
        raise UserError(what, code="E-storage-too-large", where=path, found=found, hint=hint)
    return content


def _decompress_xz(data: bytes, path: Path) -> bytes:
    decompressor = lzma.LZMADecompressor()
    try:
        content = decompressor.decompress(data, MAX_CONTENT_BYTES)
    except lzma.LZMAError as fault:
        raise _compression_error("xz", path, fault) from None
    if not decompressor.eof:
        what, hint = "the xz file is incomplete, or too large to hold in memory", "or decompress it and name its parts"
        raise UserError(what, code="E-storage-too-large", where=path, hint=f"{DOWNLOAD_HINT}; {hint}")
    return content


def _compression_error(method: str, path: Path, fault: Exception) -> UserError:
    what = f"not a complete {method} file"
    return UserError(what, code="E-storage-invalid-compression", where=path, found=fault, hint=DOWNLOAD_HINT)


def decode_text(data: bytes, path: Path) -> str:
    """UTF-8 bytes as text, with `\\n` line ends and without byte order marks.

    Raises UserError, with the line and the byte, if the bytes are not UTF-8.
    """
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as fault:
        line = data.count(b"\n", 0, fault.start) + 1
        hint = "save the file as UTF-8"
        if data[fault.start : fault.start + 1] == b"\xed":
            hint = "the byte begins half of a surrogate pair: write the whole pair, or U+FFFD instead"
        elif data[:2] in (b"\xff\xfe", b"\xfe\xff"):
            hint = "the file looks like UTF-16: save it as UTF-8"
        what, where = f"not UTF-8 at byte {fault.start}", f"{path} line {line}" if line > 1 else path
        raise UserError(what, code="E-storage-not-utf8", where=where, hint=hint) from None
    text = text.replace("\r\n", "\n").removeprefix(BOM)
    return text.replace(f"\n{BOM}", "\n") if BOM in text else text  # concatenated files, each with a byte order mark


def shorten(text: str) -> str:
    return text if len(text) <= 80 else f"{text[:60]} ... {text[-15:]}"


# Parquet and Arrow


def read_parquet_rows(data: bytes, path: Path) -> Iterator[dict[str, Any]]:
    """The rows of a Parquet file. data: the content of the file."""
    import pyarrow as pa
    from pyarrow import parquet

    try:
        with parquet.ParquetFile(pa.BufferReader(data)) as file:
            for batch in file.iter_batches(BATCH_ROWS):
                yield from _batch_rows(batch)
    except (pa.ArrowException, OSError) as fault:
        what, code = "not a Parquet file", "E-storage-invalid-parquet"
        raise UserError(what, code=code, where=path, found=fault, hint=DOWNLOAD_HINT) from None


def read_arrow_rows(data: bytes, path: Path) -> Iterator[dict[str, Any]]:
    """The rows of an Arrow file or stream. data: the content of the file."""
    import pyarrow as pa

    open_reader = pa.ipc.open_file if data.startswith(ARROW_MAGIC[0]) else pa.ipc.open_stream
    try:
        with open_reader(data) as reader:
            table = reader.read_all()
        for batch in table.to_batches(BATCH_ROWS):
            yield from _batch_rows(batch)
    except (pa.ArrowException, OSError) as fault:
        what, code = "not an Arrow file", "E-storage-invalid-arrow"
        raise UserError(what, code=code, where=path, found=fault, hint=DOWNLOAD_HINT) from None


def read_saved_dataset(folder: Path) -> Iterator[dict[str, Any]]:
    """The rows of a folder saved by `datasets`. Raises UserError for any other folder.

    If the folder has several splits, the name of the split is added to each row as the field `split`, unless the row has
    that field.
    """
    splits = folder / "dataset_dict.json"
    if not splits.is_file():
        yield from _read_saved_split(folder)
        return
    for split in _read_list_field(splits, "splits"):
        for row in _read_saved_split(folder / str(split)):
            yield {"split": split, **row}


def _read_saved_split(folder: Path) -> Iterator[dict[str, Any]]:
    state = folder / "state.json"
    if not state.is_file():
        what = "the folder was not saved by `datasets`"
        hint = "name its files: file: [a.jsonl, b.jsonl], or file: FOLDER/*.parquet"
        raise UserError(what, code="E-storage-not-a-dataset", where=folder, hint=hint)
    files = _read_list_field(state, "_data_files")
    if read_json(state).get("_indices_data_files"):
        what, hint = "a saved selection of rows cannot be read", "save the set again after flatten_indices()"
        raise UserError(what, code="E-storage-not-a-dataset", where=folder, hint=hint)
    for entry in files:
        path = folder / Path(str(entry.get("filename") if isinstance(entry, dict) else entry)).name
        yield from read_arrow_rows(read_bytes(path), path)


def _read_list_field(path: Path, name: str) -> list[Any]:
    content = read_json(path)
    values = content.get(name) if isinstance(content, dict) else None
    if not isinstance(values, list):
        what, found, hint = "the file was not saved by `datasets`", f"no list {name!r}", "save the set again"
        raise UserError(what, code="E-storage-not-a-dataset", where=path, found=found, hint=hint)
    return values


def _batch_rows(batch: pyarrow.RecordBatch) -> Iterator[dict[str, Any]]:
    converters = [_build_converter(field.type) for field in batch.schema]
    columns = [
        values if convert is None else [convert(value) for value in values]
        for values, convert in zip(map(_column_values, batch.columns), converters, strict=True)
    ]
    names = batch.schema.names
    for index in range(batch.num_rows):
        yield {name: values[index] for name, values in zip(names, columns, strict=True)}


def _column_values(column: pyarrow.Array) -> list[Any]:
    """The values of a column. Text that is not UTF-8 stays bytes, which the reader of that field refuses."""
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


def _build_converter(kind: pyarrow.DataType) -> Converter | None:
    """A function from a value of an Arrow type (or None) to a JSON value; None if no conversion is needed."""
    convert = _build_value_converter(kind)
    return None if convert is None else lambda value: None if value is None else convert(value)


def _build_value_converter(kind: pyarrow.DataType) -> Converter | None:
    import numpy
    import pyarrow.types as t

    if t.is_floating(kind):
        dtype = numpy.float16 if t.is_float16(kind) else numpy.float32
        return None if t.is_float64(kind) else lambda value: float(str(dtype(value)))  # the shortest decimal
    if t.is_binary(kind) or t.is_large_binary(kind) or t.is_fixed_size_binary(kind):
        return _decode_or_bytes
    if t.is_dictionary(kind):
        return _build_converter(kind.value_type)
    if t.is_list(kind) or t.is_large_list(kind) or t.is_fixed_size_list(kind):
        inner = _build_converter(kind.value_type)
        return None if inner is None else lambda values: [inner(value) for value in values]
    if t.is_struct(kind):
        fields = {kind.field(i).name: _build_converter(kind.field(i).type) for i in range(kind.num_fields)}
        return lambda struct: {
            name: value if (convert := fields[name]) is None else convert(value) for name, value in struct.items()
        }
    if t.is_string(kind) or t.is_large_string(kind) or t.is_integer(kind) or t.is_boolean(kind) or t.is_null(kind):
        return None
    return lambda value: value if isinstance(value, bytes) else json.loads(json.dumps(value, default=str))


# Text: JSON lines, a JSON document, or a table


def _number_rows(rows: Iterator[dict[str, Any]]) -> Iterator[DatasetRow]:
    return ((number, f"record {number}", row) for number, row in enumerate(rows, 1))


def _read_text_rows(text: str, path: Path) -> Iterator[DatasetRow]:
    suffixes = [f".{part}" for part in path.name.lower().split(".")[1:]]
    for suffix, separator in TABLE_SEPARATORS.items():
        if suffix in suffixes:
            yield from _read_table(text, separator, path)
            return
    stripped = text.lstrip()
    first_line = stripped.partition("\n")[0]
    # A document starts with a bracket, or with a brace whose line is not a complete object.
    if stripped.startswith("[") or (stripped.startswith("{") and _parse_json(first_line)[1]):
        document, error = _parse_json(text)
        if isinstance(document, list):
            yield from _iter_list_rows(document, path)
            return
        if isinstance(document, dict):
            yield from _read_wrapped_list(document, path)
            return
        if stripped.startswith("[") and _parse_json(first_line)[1]:
            hint = "the file looks like an incomplete JSON array"
            raise UserError("not valid JSON", code="E-storage-invalid-json", where=path, found=error, hint=hint)
    yield from _read_json_lines(text, path)


def _read_json_lines(text: str, path: Path) -> Iterator[DatasetRow]:
    """The rows of JSON lines. A file with a single line may also have an object with a list of records."""
    lines = text.split("\n")
    single = sum(1 for line in lines if line.strip()) == 1
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        where = f"{path} line {number}"
        row, error = _parse_json(line)
        if error:
            what, hint = "the line is not valid JSON", _line_hint(line, number)
            raise UserError(what, code="E-storage-invalid-json", where=where, found=shorten(line), hint=hint)
        if not isinstance(row, dict):
            raise _record_error(
                "the line is not a JSON object", where, line, hint='write one {"question": ...} per line'
            )
        if single and _wrapped_list(row) is not None:
            yield from _read_wrapped_list(row, path)
            return
        yield number, f"line {number}", row


def _record_error(what: str, where: object, found: str, hint: str) -> UserError:
    return UserError(what, code="E-storage-invalid-record", where=where, found=shorten(found), hint=hint)


def _line_hint(line: str, number: int) -> str:
    """A hint for a line that is not JSON."""
    if number > 1 or line.lstrip()[:1] in "{[":
        return JSON_LINE_HINT if line.strip() not in ("{", "[") else "write one object per line (jq -c does that)"
    if line.count("\t") or line.count(","):
        return f"the file looks like a table: name it {'.tsv' if line.count(chr(9)) else '.csv'}, or write JSON lines"
    return "write one JSON object per line, or name a .csv, .tsv, .json, .parquet or .arrow file"


def _parse_json(text: str) -> tuple[Any, str]:
    """The value of a JSON text and an empty string; or None and the reason why the text is not valid JSON."""
    try:
        return json.loads(text), ""
    except (ValueError, RecursionError) as fault:
        return None, str(fault)


def _iter_list_rows(rows: list[Any], path: Path) -> Iterator[DatasetRow]:
    for number, row in enumerate(rows, 1):
        where = f"record {number}"
        if not isinstance(row, dict):
            hint = 'write one {"question": ...} per record'
            raise _record_error("the record is not a JSON object", f"{path} {where}", json.dumps(row), hint)
        yield number, where, row


def _wrapped_list(document: dict[str, Any]) -> list[Any] | None:
    """The list of records in an object; None if the object has no list of records, or several."""
    lists = [document[name] for name in LIST_FIELDS if isinstance(document.get(name), list) and document[name]]
    return lists[0] if len(lists) == 1 and all(isinstance(row, dict) for row in lists[0]) else None


def _read_wrapped_list(document: dict[str, Any], path: Path) -> Iterator[DatasetRow]:
    rows = _wrapped_list(document)
    if rows is None:
        hint = f"write a list of records, one object per line, or a list in one of {', '.join(LIST_FIELDS)}"
        raise _record_error("the JSON object has no list of records", path, ", ".join(document), hint)
    yield from _iter_list_rows(rows, path)


def _read_table(text: str, separator: str, path: Path) -> Iterator[DatasetRow]:
    """The rows of a table with a header. Every cell is text.

    In a .csv file the separator is a comma, a semicolon or a tab: the most frequent of them in the header.
    """
    if separator == ",":
        header = text.partition("\n")[0]
        separator = max(",;\t", key=lambda sign: (header.count(sign), sign == ","))
    names: list[str] = []
    for number, cells in _read_cells(text, separator, path):
        where = f"{path} line {number}"
        if not names:
            names = _parse_header(cells, where)
        elif len(cells) != len(names):
            what = f"the row has {len(cells)} cells, the header has {len(names)}"
            raise _table_error(what, where, cells[:3], "quote a cell that contains the separator or a line break")
        else:
            yield number, f"line {number}", dict(zip(names, cells, strict=True))


def _read_cells(text: str, separator: str, path: Path) -> list[tuple[int, list[str]]]:
    """The number of the first line, and the cells, of every row that is not empty."""
    limit = csv.field_size_limit(MAX_CONTENT_BYTES)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
    rows, first_line = [], 1
    try:
        for cells in reader:
            if any(cell.strip() for cell in cells):
                rows.append((first_line, cells))
            first_line = reader.line_num + 1
    except csv.Error as fault:
        hint = "close the quotation marks, and double quotation marks inside a cell"
        raise _table_error(f"not a table: {fault}", f"{path} line {first_line}", "", hint) from None
    finally:
        csv.field_size_limit(limit)
    return rows


def _parse_header(cells: list[str], where: str) -> list[str]:
    names = [cell.strip() for cell in cells]
    if len(set(names)) < len(names) or "" in names:
        hint = "give every column a different name in the first line"
        raise _table_error("not a valid header", where, shorten(", ".join(names)), hint)
    return names


def _table_error(what: str, where: str, found: object, hint: str) -> UserError:
    return UserError(what, code="E-storage-invalid-table", where=where, found=found, hint=hint)
