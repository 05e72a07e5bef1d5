"""Tables at rest: chains and verdicts as Parquet, targets as flat arrays. The only owner of pyarrow.

    >>> import tempfile; path = Path(tempfile.mkdtemp()) / "chains.parquet"
    >>> chain = Chain.from_tokens("q1", 0, [b"4", b"\\xff"], [[(b"4", -0.5), (END, -2.5)], [(b"\\xff", -0.25)]])
    >>> write_chains(path, [chain])
    >>> list(read_chains(path)) == [chain]
    True

Bytes are binary columns, END is a null among a step's candidates, log-probabilities are 32-bit floats.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from potstill.errors import UserError
from potstill.files import disk
from potstill.records import END, Chain, Verdict

if TYPE_CHECKING:
    import numpy
    import pyarrow

LATER = {"defects"}  # columns that files of older versions do not have
ROWS_A_GROUP = 4096  # one row group is what a reader holds at a time


def write_chains(path: Path, chains: Iterable[Chain]) -> None:
    """All chains as one Parquet file (zstd), in the order given."""
    _write(path, (_chain_row(chain) for chain in chains), _chain_schema())


def read_chains(path: Path) -> Iterator[Chain]:
    """The chains of a Parquet file that `write_chains` made, row group by row group."""
    for row in _read(path, _chain_schema()):
        yield _chain(row)


def write_verdicts(path: Path, verdicts: Iterable[tuple[tuple[str, str, int], Verdict]]) -> None:
    """One row for every chain: its key and its verdict."""
    rows = (
        {"question": q, "source": s, "index": i, "grade": v.grade, "found": v.found, "dropped": v.dropped}
        for (q, s, i), v in verdicts
    )
    _write(path, rows, _verdict_schema())


def read_verdicts(path: Path) -> dict[tuple[str, str, int], Verdict]:
    rows = _read(path, _verdict_schema())
    return {
        (row["question"], row["source"], row["index"]): Verdict(row["grade"], row["found"], row["dropped"])
        for row in rows
    }


def write_array(path: Path, array: numpy.ndarray) -> None:
    """One array as a `.npy` file that can be memory-mapped."""
    import numpy

    buffer = io.BytesIO()
    numpy.save(buffer, array, allow_pickle=False)
    disk.write(path, buffer.getvalue())


def _write(path: Path, rows: Iterable[Mapping[str, Any]], schema: pyarrow.Schema) -> None:
    import pyarrow
    from pyarrow import parquet

    buffer = io.BytesIO()
    with parquet.ParquetWriter(buffer, schema, compression="zstd") as writer:
        group: list[Mapping[str, Any]] = []
        for row in rows:
            group.append(row)
            if len(group) == ROWS_A_GROUP:
                writer.write_table(pyarrow.Table.from_pylist(group, schema))
                group = []
        if group:
            writer.write_table(pyarrow.Table.from_pylist(group, schema))
    disk.write(path, buffer.getvalue())


def _read(path: Path, schema: pyarrow.Schema) -> Iterator[dict[str, Any]]:
    import pyarrow
    from pyarrow import parquet

    try:
        file = parquet.ParquetFile(path)
    except FileNotFoundError:
        raise UserError("no such file", where=path, do="check the path, or redo the stage that makes it") from None
    except pyarrow.ArrowInvalid as fault:
        raise UserError("not a Parquet file", where=path, found=fault, do="redo the stage that makes it") from None
    with file:
        names = [name for name in schema.names if name not in LATER or name in file.schema_arrow.names]
        missing = [name for name in names if name not in file.schema_arrow.names]
        if missing:
            raise UserError(
                "a column is missing", where=path, found=f"no {missing[0]!r}", do="write it as potstill does"
            )
        for group in range(file.num_row_groups):
            yield from file.read_row_group(group, columns=names).to_pylist()


def _chain_schema() -> pyarrow.Schema:
    import pyarrow as pa

    step = pa.list_(pa.struct([("bytes", pa.binary()), ("log_probability", pa.float32())]))
    return pa.schema(
        [
            ("question", pa.string()),
            ("source", pa.string()),
            ("index", pa.int32()),
            ("content", pa.binary()),
            ("tokens", pa.list_(pa.binary())),
            ("spans", pa.list_(pa.list_(pa.int32(), 2))),
            ("candidates", pa.list_(step)),
            ("stop", pa.string()),
            ("semantics", pa.string()),
            ("defects", pa.list_(pa.string())),
        ]
    )


def _verdict_schema() -> pyarrow.Schema:
    import pyarrow as pa

    names: Sequence[str] = ("question", "source", "index", "grade", "found", "dropped")
    return pa.schema([(name, pa.int32() if name == "index" else pa.string()) for name in names])


def _chain_row(chain: Chain) -> dict[str, Any]:
    return {
        "question": chain.question,
        "source": chain.source,
        "index": chain.index,
        "content": chain.content,
        "tokens": list(chain.tokens),
        "spans": [list(span) for span in chain.spans],
        "candidates": [
            [{"bytes": None if what is END else what, "log_probability": value} for what, value in step]
            for step in chain.candidates
        ],
        "stop": chain.stop,
        "semantics": chain.semantics,
        "defects": list(chain.defects),
    }


def _chain(row: Mapping[str, Any]) -> Chain:
    return Chain(
        question=row["question"],
        source=row["source"],
        index=row["index"],
        content=row["content"],
        tokens=tuple(row["tokens"]),
        spans=tuple((start, end) for start, end in row["spans"]),
        candidates=tuple(
            tuple((END if c["bytes"] is None else c["bytes"], c["log_probability"]) for c in step)
            for step in row["candidates"]
        ),
        stop=row["stop"],
        semantics=row["semantics"],
        defects=tuple(row.get("defects") or ()),
    )
