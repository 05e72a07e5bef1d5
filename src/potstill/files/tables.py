"""Tables at rest: chains and verdicts as Parquet, targets as flat arrays. Owns pyarrow, with `columns` and `arrow`.

    >>> import tempfile; from potstill.records import END; path = Path(tempfile.mkdtemp()) / "chains.parquet"
    >>> chain = Chain.from_tokens("q1", 0, [b"4", b"\\xff"], [[(b"4", -0.5), (END, -2.5)], [(b"\\xff", -0.25)]])
    >>> write_chains(path, [chain])
    >>> list(read_chains(path)) == [chain]
    True

Whoever writes or reads holds one row group at a time: however many chains there are, memory stays the same.
"""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

from potstill.errors import UserError
from potstill.files import columns, disk, reading, segments
from potstill.files.lines import Line
from potstill.files.reading import RESTORE, mine_to_mend
from potstill.records import Chain, Semantics, Verdict

if TYPE_CHECKING:
    import numpy
    import pyarrow

ROWS_A_GROUP: Final = 4096
CELLS_A_GROUP: Final = 1 << 17  # tokens and candidates: some 20 MiB as Python objects
LATER: Final = {"defects"}  # columns that files of older versions do not have
ABSENT: Final = "check the path; in a run, the stage that makes this file is not finished: run the recipe again"
Key = tuple[str, str, int]
Row = TypeVar("Row")


def write_chains(path: Path, chains: Iterable[Chain | Line]) -> None:
    """All chains, or lines of them, as one Parquet file (zstd), in the order given."""
    _write(path, _groups(chains), columns.table, columns.schema())


def read_chains(path: Path, questions: Collection[str] | None = None) -> Iterator[Chain]:
    """The chains of a Parquet file that `write_chains` made, row group by row group; those of some `questions` only, if
    any are named: then row groups that cannot hold them are not read."""
    for group in _read(path, columns.schema().names, questions):
        for chain in columns.chains(group):
            if questions is None or chain.question in questions:
                yield chain


def sources(path: Path) -> dict[str, Semantics]:
    """The sources in a file of chains, each with what the log-probabilities of its first chain mean."""
    found: dict[str, Semantics] = {}
    for group in _read(path, ["source", "semantics"]):
        for source, semantics in zip(group["source"].to_pylist(), group["semantics"].to_pylist(), strict=True):
            found.setdefault(source, semantics)
    return found


def any_stored(folder: Path) -> bool:
    """Whether a folder of the stage `sample` holds a table, or the beginning of a segment; neither is read."""
    return (folder / "chains.parquet").exists() or any(path.stat().st_size for path in segments.paths(folder))


def stored(folder: Path, questions: Collection[str] | None = None) -> Iterator[Chain]:
    """The chains that a folder of the stage `sample` holds: of its table, or while they are being sampled of the
    segments that processes are writing, in the order in which they came. Nothing where there is neither.

    questions  only chains of these, and maybe of others in the same row groups
    """
    if (folder / "chains.parquet").exists():
        yield from read_chains(folder / "chains.parquet", questions)
        return
    known = segments.Keys()
    for path in segments.paths(folder):
        for chain in reading.records(Chain, path, torn=True) if path.exists() else ():  # sealed meanwhile
            if known.add(chain.key) and (questions is None or chain.question in questions):
                yield chain


def rows(path: Path) -> int:
    """How many rows a Parquet file has."""
    return sum(group.num_rows for group in _read(path, ["index"]))


def chain_counts(path: Path) -> dict[str, Any]:
    """How many chains and tokens a file of chains has, and how often each `stop`, `semantics` and defect."""
    import pyarrow.compute as pc

    stops, semantics, defects, tokens, count = Counter[str](), Counter[str](), Counter[str](), 0, 0
    for group in _read(path, ["stop", "semantics", "tokens", "defects"]):
        count += group.num_rows
        stops.update(group["stop"].to_pylist())
        semantics.update(group["semantics"].to_pylist())
        tokens += pc.call_function("sum", [pc.call_function("list_value_length", [group["tokens"]])]).as_py() or 0
        if "defects" in group.schema.names:
            defects.update(mark for marks in group["defects"].to_pylist() for mark in marks or ())
    counts = {"chains": count, "tokens": tokens, "stop": dict(stops), "semantics": dict(semantics)}
    return counts | ({"defects": dict(defects)} if defects else {})


def holds_chains(path: Path) -> bool:
    """Whether a Parquet file has the columns that `write_chains` gives it. Raises UserError for any other file."""
    import pyarrow
    from pyarrow import parquet

    with mine_to_mend(path), open(path, "rb") as opened:
        try:
            names = set(parquet.read_schema(opened).names)
        except pyarrow.ArrowInvalid as fault:
            raise UserError("not a Parquet file", where=path, found=fault, do="get it again; it may be torn") from None
    return names.issuperset(set(columns.schema().names) - LATER)


def write_verdicts(path: Path, verdicts: Iterable[tuple[Key, Verdict]]) -> None:
    """One row for every chain: its key and its verdict."""
    _write(path, _batches(verdicts), _verdict_table, _verdict_schema())


def read_verdicts(path: Path) -> Iterator[tuple[Key, Verdict]]:
    """Key and verdict of every chain, in the order of the file: that of the chains."""
    for group in _read(path, _verdict_schema().names):
        for question, source, index, *verdict in zip(*(column.to_pylist() for column in group.columns), strict=True):
            yield (question, source, index), Verdict(*verdict)


def judged(chains: Path, verdicts: Path) -> Iterator[tuple[Chain, Verdict]]:
    """Every chain with its verdict. Raises UserError where the two files do not belong together."""
    told = read_verdicts(verdicts)
    for chain in read_chains(chains):
        key, verdict = next(told, (None, None))
        if key != chain.key or verdict is None:
            raise UserError(
                "the verdicts do not belong to the chains",
                where=verdicts,
                found=f"{key} beside {chain.key}",
                do="make them again with --redo filter",
            )
        yield chain, verdict


def write_array(path: Path, array: numpy.ndarray) -> None:
    """One array as a `.npy` file that can be memory-mapped."""
    import numpy

    buffer = io.BytesIO()
    numpy.save(buffer, array, allow_pickle=False)
    disk.write(path, buffer.getvalue())


def _groups(chains: Iterable[Chain | Line]) -> Iterator[list[Chain | Line]]:
    group: list[Chain | Line] = []
    cells = 0
    for chain in chains:
        group.append(chain)
        cells += len(chain.tokens) + sum(map(len, chain.candidates))
        if len(group) == ROWS_A_GROUP or cells >= CELLS_A_GROUP:
            yield group
            group, cells = [], 0
    if group:
        yield group


def _batches(rows: Iterable[Row]) -> Iterator[list[Row]]:
    rest = iter(rows)
    while batch := list(islice(rest, 16 * ROWS_A_GROUP)):
        yield batch


def _write(
    path: Path, groups: Iterable[list[Any]], table: Callable[[list[Any]], pyarrow.Table], schema: pyarrow.Schema
) -> None:
    from pyarrow import parquet

    # Log-probabilities hardly ever repeat: split into their bytes they take two thirds of the room.
    split = {columns.NUMBERS: "BYTE_STREAM_SPLIT"} if schema == columns.schema() else None
    words: Any = columns.WORDS if split else True
    with (
        disk.stream(path) as file,
        parquet.ParquetWriter(file, schema, compression="zstd", use_dictionary=words, column_encoding=split) as writer,
    ):
        for group in groups:
            writer.write_table(table(group))


def _read(path: Path, names: Sequence[str], questions: Collection[str] | None = None) -> Iterator[pyarrow.Table]:
    """Row group by row group; without those that hold none of some questions."""
    import pyarrow
    from pyarrow import parquet

    try:
        file = parquet.ParquetFile(path)
    except FileNotFoundError:
        raise UserError("no such file", where=path, do=ABSENT) from None
    except (pyarrow.ArrowException, OSError) as fault:
        raise UserError("not a Parquet file", where=path, found=fault, do=RESTORE) from None
    with file:
        names = [name for name in names if name not in LATER or name in file.schema_arrow.names]
        missing = [name for name in names if name not in file.schema_arrow.names]
        if missing:
            raise UserError(
                "a column is missing", where=path, found=f"no {missing[0]!r}", do="write it as potstill does"
            )
        for group in range(file.num_row_groups):
            if questions is not None and not _may_hold(file.metadata.row_group(group), questions):
                continue
            try:
                found = file.read_row_group(group, columns=list(names)).select(list(names))
            except (pyarrow.ArrowException, OSError) as fault:
                raise UserError("not a whole Parquet file", where=path, found=fault, do=RESTORE) from None
            yield found


def _may_hold(group: Any, questions: Collection[str]) -> bool:
    """Whether the least and the greatest question of a row group, where the file says them, leave room for one."""
    told = next(
        (
            column.statistics
            for column in map(group.column, range(group.num_columns))
            if column.path_in_schema == "question"
        ),
        None,
    )
    return not (told and told.has_min_max) or any(told.min <= question <= told.max for question in questions)


def _verdict_schema() -> pyarrow.Schema:
    import pyarrow as pa

    names: Sequence[str] = ("question", "source", "index", "grade", "found", "dropped")
    return pa.schema([(name, pa.int32() if name == "index" else pa.string()) for name in names])


def _verdict_table(verdicts: list[tuple[Key, Verdict]]) -> pyarrow.Table:
    import pyarrow as pa

    rows = [(*key, verdict.grade, verdict.found, verdict.dropped) for key, verdict in verdicts]
    kind = _verdict_schema()
    return pa.Table.from_arrays(
        [pa.array(column, field.type) for column, field in zip(zip(*rows, strict=True), kind, strict=True)], schema=kind
    )
