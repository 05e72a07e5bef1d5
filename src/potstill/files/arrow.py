"""Arrow: the rows of somebody else's Parquet and Arrow files as values that JSON knows. One of pyarrow's owners.

Bytes are decoded as UTF-8 where they are that, 32-bit numbers are the shortest decimal that they stand for (0.1, not
0.10000000149011612), dates and times are text.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from potstill.errors import UserError
from potstill.files.reading import mine_to_mend, read_json

if TYPE_CHECKING:
    import pyarrow

ROWS_A_BATCH: Final = 4096
MAGIC: Final = (b"ARROW1", b"\xff\xff\xff\xff")  # of an Arrow file, and of a stream
TORN: Final = "get it again; it may be torn"
Convert = Callable[[Any], Any]


def decompressed(data: bytes, form: str, path: Path, most: int) -> bytes:
    """What a compressed file holds. Raises UserError where it is torn, or holds more than `most` bytes."""
    import pyarrow as pa

    try:
        with pa.CompressedInputStream(pa.BufferReader(data), form) as stream:
            found = stream.read(most + 1)
    except (OSError, pa.ArrowException) as fault:
        raise UserError(f"not a whole {form} file", where=path, found=fault, do=TORN) from None
    if len(found) > most:
        do = "unpack it, and name several smaller files"
        raise UserError("too large to hold in memory", where=path, found=f"more than {most} bytes unpacked", do=do)
    return found


def parquet_rows(data: bytes, path: Path) -> Iterator[dict[str, Any]]:
    """The rows of a Parquet file that is held in memory."""
    import pyarrow as pa
    from pyarrow import parquet

    try:
        with parquet.ParquetFile(pa.BufferReader(data)) as file:
            for batch in file.iter_batches(ROWS_A_BATCH):
                yield from _rows(batch)
    except (pa.ArrowException, OSError) as fault:
        raise UserError("not a Parquet file", where=path, found=fault, do=TORN) from None


def ipc_rows(data: bytes, path: Path) -> Iterator[dict[str, Any]]:
    """The rows of an Arrow file or stream."""
    import pyarrow as pa

    opening = pa.ipc.open_file if data.startswith(MAGIC[0]) else pa.ipc.open_stream
    try:
        with opening(data) as reader:
            whole = reader.read_all()
        for batch in whole.to_batches(ROWS_A_BATCH):
            yield from _rows(batch)
    except (pa.ArrowException, OSError) as fault:
        raise UserError("not an Arrow file", where=path, found=fault, do=TORN) from None


def saved(folder: Path) -> Iterator[dict[str, Any]]:
    """The rows of a folder that `datasets` saved; of one with several parts each row has its part as `split`, unless
    it has such a field. Raises UserError for any other folder."""
    parts = folder / "dataset_dict.json"
    if parts.is_file():
        for part in _field(parts, "splits"):
            for row in _saved(folder / str(part)):
                yield {"split": part, **row}
        return
    yield from _saved(folder)


def _saved(folder: Path) -> Iterator[dict[str, Any]]:
    state = folder / "state.json"
    if not state.is_file():
        do = "name its files: file: [a.jsonl, b.jsonl], or file: FOLDER/*.parquet"
        raise UserError("a folder, and not one that `datasets` saved", where=folder, do=do)
    told = read_json(state)
    if isinstance(told, dict) and told.get("_indices_data_files"):
        do = "save it again with flatten_indices()"
        raise UserError("a saved selection of rows", where=folder, do=do)
    for each in _field(state, "_data_files"):
        path = folder / Path(str(each.get("filename") if isinstance(each, dict) else each)).name
        with mine_to_mend(path):
            data = path.read_bytes()
        yield from ipc_rows(data, path)


def _field(path: Path, name: str) -> list[Any]:
    told = read_json(path)
    found = told.get(name) if isinstance(told, dict) else None
    if not isinstance(found, list):
        raise UserError("not as `datasets` saves it", where=path, found=f"no list {name!r}", do="save the set again")
    return found


def _rows(batch: pyarrow.RecordBatch) -> Iterator[dict[str, Any]]:
    converts = {field.name: _converter(field.type) for field in batch.schema}
    columns = {name: _values(batch.column(at)) for at, name in enumerate(batch.schema.names)}
    for at in range(batch.num_rows):
        row = {name: values[at] for name, values in columns.items()}
        yield {name: _plain(value, converts[name]) for name, value in row.items()}


def _values(column: pyarrow.Array) -> list[Any]:
    """The values of a column; text that is not UTF-8 stays bytes, for whoever reads that field to refuse."""
    import pyarrow as pa

    try:
        return column.to_pylist()
    except UnicodeDecodeError:
        pass
    try:
        return [_tried(value) for value in column.cast(pa.binary()).to_pylist()]
    except pa.ArrowException:  # inside a list or a structure
        return [_tried(value) for value in column]


def _tried(value: Any) -> Any:
    try:
        return value.decode() if isinstance(value, bytes) else value.as_py() if hasattr(value, "as_py") else value
    except UnicodeDecodeError:
        return value if isinstance(value, bytes) else b"\xff"


def _plain(value: Any, convert: Convert | None) -> Any:
    return value if value is None or convert is None else convert(value)


def _converter(kind: pyarrow.DataType) -> Convert | None:
    """How a value of a type becomes one that JSON knows; None where it is one."""
    import pyarrow.types as t

    if t.is_floating(kind):
        return None if t.is_float64(kind) else _half if t.is_float16(kind) else _shortest
    if t.is_binary(kind) or t.is_large_binary(kind) or t.is_fixed_size_binary(kind):
        return _tried
    if t.is_dictionary(kind):
        return _converter(kind.value_type)
    if t.is_list(kind) or t.is_large_list(kind) or t.is_fixed_size_list(kind):
        inner = _converter(kind.value_type)
        return None if inner is None else lambda value: [_plain(each, inner) for each in value]
    if t.is_struct(kind):
        own = {kind.field(at).name: _converter(kind.field(at).type) for at in range(kind.num_fields)}
        return lambda value: {name: _plain(each, own[name]) for name, each in value.items()}
    if t.is_string(kind) or t.is_large_string(kind) or t.is_integer(kind) or t.is_boolean(kind) or t.is_null(kind):
        return None
    return lambda value: value if isinstance(value, bytes) else json.loads(json.dumps(value, default=str))


def _shortest(value: float) -> float:
    """A 32-bit number as the shortest decimal that it stands for."""
    import numpy

    return float(str(numpy.float32(value)))


def _half(value: float) -> float:
    import numpy

    return float(str(numpy.float16(value)))
