"""Chains, verdicts and arrays in the files of a finished stage: Parquet tables and `.npy` arrays.

    >>> import tempfile; path = Path(tempfile.mkdtemp()) / "chains.parquet"
    >>> chain = Chain.from_tokens("q1", 0, [b"4", b"\\xff"], [[(b"4", -0.5), (END, -2.5)], [(b"\\xff", -0.25)]])
    >>> list(chains_from_table(build_chain_table([chain, chain]))) == [chain, chain]
    True
    >>> write_chains(path, [chain])
    >>> list(read_chains(path)) == [chain]
    True

Bytes are binary columns, END is a null among the candidates of a position, and log-probabilities are 32-bit floats.
Columns are built without a Python object per number. Readers and writers hold one row group at a time, so memory does
not grow with the number of chains.
"""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from itertools import accumulate, islice, pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from potstill.errors import UserError
from potstill.records import END, Chain, Semantics, Verdict
from potstill.storage import atomic, read, segments
from potstill.storage.flat_chains import FlatChain, build_table, chain_schema, flatten
from potstill.storage.read import RESTORE_HINT, as_user_errors

if TYPE_CHECKING:
    import numpy
    import pyarrow


# Names of columns in Parquet: columns with few distinct values, and the column of log-probabilities.
CANDIDATE_COLUMN: Final = "candidates.list.element.list.element"
DICTIONARY_COLUMNS: Final = [
    "question",
    "source",
    "stop",
    "semantics",
    "tokens.list.element",
    f"{CANDIDATE_COLUMN}.bytes",
]
LOG_PROBABILITY_COLUMN: Final = f"{CANDIDATE_COLUMN}.log_probability"
CHUNK_CHAINS: Final = 128  # maximum number of chains that are Python objects at the same time while a table is read
ROW_GROUP_ROWS: Final = 4096
ROW_GROUP_CELLS: Final = 1 << 17  # tokens plus candidates of a row group: about 20 MiB as Python objects
PLAIN_FIELDS: Final = ("question", "source", "index", "content", "stop", "semantics", "defects")
VERDICT_FIELDS: Final = ("question", "source", "index", "grade", "found", "dropped")
ChainKey = tuple[str, str, int]


def build_chain_table(chains: Sequence[Chain]) -> pyarrow.Table:
    """A table of chains, with the columns of `chain_schema`."""
    return build_table(list(map(flatten, chains)))


def chains_from_table(table: pyarrow.Table) -> Iterator[Chain]:
    """The chains of a table with the columns of `chain_schema`, in the order of the table.

    If the table lacks the column of candidates, the chains have none.
    """
    for start in range(0, table.num_rows, CHUNK_CHAINS):
        part = table.slice(start, CHUNK_CHAINS).combine_chunks()
        column: Callable[[str], Any] = lambda name, part=part: part[name].combine_chunks()  # noqa: E731
        tokens = _read_lists(column("tokens"), _to_objects)
        spans = _read_lists(
            column("spans"), lambda values: list(map(tuple, values.flatten().to_numpy().reshape(-1, 2).tolist()))
        )
        candidates: list[tuple[Any, ...]] = [()] * part.num_rows
        if "candidates" in part.column_names:
            candidates = _read_lists(column("candidates"), lambda steps: _read_lists(steps, _read_candidates))
        for fields in zip(*(part[name].to_pylist() for name in PLAIN_FIELDS), tokens, spans, candidates, strict=True):
            question, source, index, content, stop, semantics, defects, token, span, steps = fields
            yield Chain(question, source, index, content, token, span, steps, stop, semantics, tuple(defects or ()))


def _read_candidates(values: Any) -> list[tuple[Any, float]]:
    outcomes, numbers = values.flatten()
    bytes_or_end = [END if outcome is None else outcome for outcome in _to_objects(outcomes)]
    return list(zip(bytes_or_end, numbers.to_numpy().tolist(), strict=True))


def _to_objects(values: Any) -> list[Any]:
    return values.to_numpy(zero_copy_only=False).tolist()


def _read_lists(lists: Any, read: Callable[[Any], list[Any]]) -> list[tuple[Any, ...]]:
    """The lists of a list column, as tuples. read: converts the values of all lists at once."""
    import pyarrow.compute as pc

    lengths = pc.call_function("list_value_length", [lists]).to_pylist()
    flat, edges = read(lists.flatten()), [0, *accumulate(lengths)]
    return [tuple(flat[start:end]) for start, end in pairwise(edges)]


def write_chains(path: Path, chains: Iterable[Chain | FlatChain]) -> None:
    """Write chains as one Parquet file (zstd), in the given order."""
    rows = (flatten(one) if isinstance(one, Chain) else one for one in chains)
    _write_groups(path, _chain_groups(rows), build_table, chain_schema())


def read_chains(path: Path, questions: Collection[str] | None = None, *, candidates: bool = True) -> Iterator[Chain]:
    """The chains of a file that `write_chains` wrote.

    questions   yield only chains of these questions; what cannot contain them is not read
    candidates  whether to read the candidates, which take most of the time
    """
    import pyarrow

    names = [name for name in chain_schema().names if candidates or name != "candidates"]
    for group in _read_groups(path, names, questions):
        if questions is not None:
            wanted = [name in questions for name in group["question"].to_pylist()]
            group = group if all(wanted) else group.filter(pyarrow.array(wanted, pyarrow.bool_()))
        yield from chains_from_table(group)


def read_chain_sources(path: Path) -> dict[str, Semantics]:
    """Source -> semantics of the log-probabilities of its first chain, for the sources in a file of chains."""
    sources: dict[str, Semantics] = {}
    for group in _read_groups(path, ["source", "semantics"]):
        for source, semantics in zip(group["source"].to_pylist(), group["semantics"].to_pylist(), strict=True):
            sources.setdefault(source, semantics)
    return sources


def count_source_tokens(path: Path) -> dict[str, int]:
    """Source -> the number of tokens of its chains, for the sources in a file of chains."""
    import pyarrow.compute as pc

    tokens = Counter[str]()
    for group in _read_groups(path, ["source", "tokens"]):
        lengths = pc.call_function("list_value_length", [group["tokens"]]).to_pylist()
        for source, length in zip(group["source"].to_pylist(), lengths, strict=True):
            tokens[source] += length
    return dict(tokens)


def count_question_chains(path: Path) -> dict[str, int]:
    """Question -> its number of chains, in the order of a file of chains."""
    counts = Counter[str]()
    for group in _read_groups(path, ["question"]):
        counts.update(group["question"].to_pylist())
    return dict(counts)


def has_stored_chains(folder: Path) -> bool:
    """Whether a folder of the stage `sample` has a table, or a segment that is not empty. No file is read."""
    return (folder / "chains.parquet").exists() or any(path.stat().st_size for path in segments.segment_paths(folder))


def read_stored_chains(folder: Path, questions: Collection[str] | None = None) -> Iterator[Chain]:
    """The chains in a folder of the stage `sample`.

    They come from the table, or, if the stage is not finished, from the segments, in the order in which they arrived.

    questions  yield only chains of these questions
    """
    if (folder / "chains.parquet").exists():
        yield from read_chains(folder / "chains.parquet", questions)
        return
    seen = segments.ChainKeySet()
    for path in segments.segment_paths(folder):
        for chain in segments.iter_chains(path) if path.exists() else ():  # else merged meanwhile
            if seen.add(chain.key) and (questions is None or chain.question in questions):
                yield chain


def count_rows(path: Path) -> int:
    """The number of rows of a Parquet file."""
    return sum(group.num_rows for group in _read_groups(path, ["index"]))


def count_chains(path: Path) -> dict[str, Any]:
    """The number of chains and tokens in a file, and the number of chains with each `stop`, `semantics` and defect."""
    import pyarrow.compute as pc

    stops, semantics, defects, tokens, count = Counter[str](), Counter[str](), Counter[str](), 0, 0
    for group in _read_groups(path, ["stop", "semantics", "tokens", "defects"]):
        count += group.num_rows
        stops.update(group["stop"].to_pylist())
        semantics.update(group["semantics"].to_pylist())
        tokens += pc.call_function("sum", [pc.call_function("list_value_length", [group["tokens"]])]).as_py() or 0
        defects.update(defect for row in group["defects"].to_pylist() for defect in row or ())
    counts = {"chains": count, "tokens": tokens, "stop": dict(stops), "semantics": dict(semantics)}
    return counts | ({"defects": dict(defects)} if defects else {})


def is_chain_file(path: Path) -> bool:
    """Whether a Parquet file has the columns of `write_chains`. Raises UserError if it is not a Parquet file."""
    import pyarrow
    from pyarrow import parquet

    with as_user_errors(path), open(path, "rb") as opened:
        try:
            names = set(parquet.read_schema(opened).names)
        except pyarrow.ArrowInvalid as fault:
            hint = "download the file again; it may be incomplete"
            raise _parquet_error("not a Parquet file", path, fault, hint) from None
    return names.issuperset(chain_schema().names)


def _parquet_error(what: str, path: Path, fault: Exception, hint: str = RESTORE_HINT) -> UserError:
    return UserError(what, code="E-storage-invalid-parquet", where=path, found=fault, hint=hint)


def write_verdicts(path: Path, verdicts: Iterable[tuple[ChainKey, Verdict]]) -> None:
    """Write one row per chain: the chain's key and its verdict."""
    import pyarrow as pa

    schema = pa.schema([(name, pa.int32() if name == "index" else pa.string()) for name in VERDICT_FIELDS])

    def table(batch: Sequence[tuple[ChainKey, Verdict]]) -> pyarrow.Table:
        rows = [(*key, verdict.grade, verdict.answer, verdict.dropped) for key, verdict in batch]
        arrays = [pa.array(column, field.type) for column, field in zip(zip(*rows, strict=True), schema, strict=True)]
        return pa.Table.from_arrays(arrays, schema=schema)

    rest = iter(verdicts)
    _write_groups(path, iter(lambda: list(islice(rest, 16 * ROW_GROUP_ROWS)), []), table, schema)


def read_verdicts(path: Path) -> Iterator[tuple[ChainKey, Verdict]]:
    """The key and verdict of every chain, in the order of the file, which is the order of the chains."""
    for group in _read_groups(path, VERDICT_FIELDS):
        for question, source, index, *verdict in zip(*(column.to_pylist() for column in group.columns), strict=True):
            yield (question, source, index), Verdict(*verdict)


def chains_with_verdicts(
    chains: Path, verdicts: Path, questions: Collection[str] | None = None, *, candidates: bool = True
) -> Iterator[tuple[Chain, Verdict]]:
    """Every chain with its verdict. Raises UserError if the files do not belong together.

    questions, candidates  see `read_chains`
    """
    rows = (row for row in read_verdicts(verdicts) if questions is None or row[0][0] in questions)
    for chain in read_chains(chains, questions, candidates=candidates):
        key, verdict = next(rows, (None, None))
        if key != chain.key or verdict is None:
            what, found = "the verdicts do not belong to the chains", f"verdict of {key}, chain {chain.key}"
            hint = "make the verdicts again with --redo filter"
            raise UserError(what, code="E-run-verdicts-differ", where=verdicts, found=found, hint=hint)
        yield chain, verdict


def write_array(path: Path, array: numpy.ndarray) -> None:
    """Write an array as a `.npy` file, which can be memory-mapped."""
    import numpy

    buffer = io.BytesIO()
    numpy.save(buffer, array, allow_pickle=False)
    atomic.write_file(path, buffer.getvalue())


def write_arrays(path: Path, arrays: Mapping[str, numpy.ndarray]) -> None:
    """Write several arrays as one `.npz` file."""
    import numpy

    buffer, named = io.BytesIO(), dict[str, Any](arrays)
    numpy.savez(buffer, **named)
    atomic.write_file(path, buffer.getvalue())


def read_arrays(path: Path) -> dict[str, numpy.ndarray]:
    """The arrays of a file that `write_arrays` wrote."""
    import zipfile

    import numpy

    try:
        with numpy.load(io.BytesIO(read.read_bytes(path)), allow_pickle=False) as arrays:
            return dict(arrays)
    except (ValueError, EOFError, zipfile.BadZipFile) as fault:
        what, hint = "not a file of NumPy arrays", "remove the file: the same command makes it again"
        raise UserError(what, code="E-storage-invalid-arrays", where=path, found=fault, hint=hint) from None


def _chain_groups(rows: Iterable[FlatChain]) -> Iterator[list[FlatChain]]:
    group: list[FlatChain] = []
    cells = 0
    for row in rows:
        group.append(row)
        cells += len(row.tokens) + len(row.outcomes)
        if len(group) == ROW_GROUP_ROWS or cells >= ROW_GROUP_CELLS:
            yield group
            group, cells = [], 0
    if group:
        yield group


def _write_groups(
    path: Path, groups: Iterable[list[Any]], table: Callable[[list[Any]], pyarrow.Table], schema: pyarrow.Schema
) -> None:
    from pyarrow import parquet

    # Log-probabilities hardly ever repeat. BYTE_STREAM_SPLIT reduces their size by a third.
    encoding = {LOG_PROBABILITY_COLUMN: "BYTE_STREAM_SPLIT"} if schema == chain_schema() else None
    dictionary: Any = DICTIONARY_COLUMNS if encoding else True
    with (
        atomic.write_stream(path) as file,
        parquet.ParquetWriter(
            file, schema, compression="zstd", use_dictionary=dictionary, column_encoding=encoding
        ) as writer,
    ):
        for group in groups:
            writer.write_table(table(group))


def _read_groups(path: Path, names: Sequence[str], questions: Collection[str] | None = None) -> Iterator[pyarrow.Table]:
    """The row groups of a file, without row groups that cannot contain any of the questions."""
    import pyarrow
    from pyarrow import parquet

    try:
        file = parquet.ParquetFile(path)
    except FileNotFoundError:
        hint = "check the path; if the file belongs to a run, a stage is not finished: run the recipe again"
        raise UserError("no such file", code="E-storage-os-error", where=path, hint=hint) from None
    except (pyarrow.ArrowException, OSError) as fault:
        raise _parquet_error("not a Parquet file", path, fault) from None
    with file:
        for name in names:
            if name not in file.schema_arrow.names:
                what, hint = "a column is missing", "use the columns of the files that potstill writes"
                raise UserError(what, code="E-storage-missing-column", where=path, found=f"no {name!r}", hint=hint)
        for group in range(file.num_row_groups):
            if questions is not None and not _may_contain(file.metadata.row_group(group), questions):
                continue
            try:
                table = file.read_row_group(group, columns=list(names)).select(list(names))
            except (pyarrow.ArrowException, OSError) as fault:
                raise _parquet_error("the Parquet file is damaged", path, fault) from None
            yield table


def _may_contain(group: Any, questions: Collection[str]) -> bool:
    """Whether a row group may contain one of the questions, according to the minimum and maximum in its statistics."""
    columns = map(group.column, range(group.num_columns))
    stats = next((column.statistics for column in columns if column.path_in_schema == "question"), None)
    return not (stats and stats.has_min_max) or any(stats.min <= question <= stats.max for question in questions)
