"""Chains as Arrow columns and back, without a Python object for each number.

    >>> chain = Chain.from_tokens("q1", 0, [b"4", b"\\xff"], [[(b"4", -0.5), (END, -2.5)], [(b"\\xff", -0.25)]])
    >>> list(chains(table([chain, chain]))) == [chain, chain]
    True

Bytes are binary columns, END is a null among a step's candidates, log-probabilities are 32-bit floats.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING, Any, Final

from potstill.encoding import decode_bytes
from potstill.files.lines import Line, Odd
from potstill.records import END, Chain, End

if TYPE_CHECKING:
    import pyarrow

# Leaves of the schema by their names in Parquet: those whose values are few and come again, and the real numbers.
OUTCOME: Final = "candidates.list.element.list.element"
WORDS: Final = ["question", "source", "stop", "semantics", "tokens.list.element", f"{OUTCOME}.bytes"]
NUMBERS: Final = f"{OUTCOME}.log_probability"
CHUNK: Final = 128  # chains that exist as Python objects while a table is read


def schema() -> pyarrow.Schema:
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


def table(chains: Sequence[Chain | Line]) -> pyarrow.Table:
    """Chains, or lines of them, as columns: the same for both."""
    import pyarrow as pa

    steps = [step for chain in chains for step in chain.candidates]
    outcomes = [what if type(what) is str else _plain(what) for step in steps for what, _ in step]
    values = [value for step in steps for _, value in step]
    pairs = pa.StructArray.from_arrays(
        [pa.array(outcomes, pa.binary()), pa.array(values, pa.float32())], ["bytes", "log_probability"]
    )
    counts = [len(chain.tokens) for chain in chains]
    tokens = pa.array([_plain(token) for chain in chains for token in chain.tokens], pa.binary())
    names = ("question", "source", "index", "stop", "semantics", "defects")
    columns: dict[str, Any] = {
        **{name: [getattr(chain, name) for chain in chains] for name in names},
        "content": [_plain(chain.content) for chain in chains],
        "tokens": _lists(counts, tokens),
        "spans": _lists(counts, _spans(chains, counts, tokens)),
        "candidates": _lists([len(chain.candidates) for chain in chains], _lists([len(step) for step in steps], pairs)),
    }
    kind = schema()
    arrays = [_array(columns[field.name], field.type) for field in kind]
    return pa.Table.from_arrays(arrays, schema=kind)


def _plain(piece: str | bytes | Odd | End | None) -> str | bytes | None:
    """What Arrow takes for bytes; END is a null."""
    if type(piece) is Odd:
        return decode_bytes({"base64": piece.base64})
    return None if piece is END else piece  # type: ignore[return-value]


def _spans(chains: Sequence[Chain | Line], counts: Sequence[int], tokens: pyarrow.Array) -> pyarrow.Array:
    """The spans of all tokens; of chains that name none they run from token to token."""
    import numpy
    import pyarrow as pa
    import pyarrow.compute as pc

    lengths = pc.call_function("binary_length", [tokens]).to_numpy()
    edges = numpy.concatenate([[0], numpy.cumsum(lengths)])
    firsts = numpy.concatenate([[0], numpy.cumsum(counts, dtype=numpy.int64)])
    spans = numpy.stack([edges[:-1], edges[1:]], 1) - numpy.repeat(edges[firsts[:-1]], counts)[:, None]
    for chain, first, count in zip(chains, firsts, counts, strict=False):
        if chain.spans is not None and count:
            spans[first : first + count] = chain.spans
    return pa.FixedSizeListArray.from_arrays(pa.array(spans.ravel().astype(numpy.int32)), 2)


def _array(values: Any, kind: pyarrow.DataType) -> pyarrow.Array:
    import pyarrow as pa

    return pa.array(values, kind) if isinstance(values, list) else values.cast(kind)


def _lists(lengths: Sequence[int], values: pyarrow.Array) -> pyarrow.Array:
    import pyarrow as pa

    return pa.ListArray.from_arrays(pa.array([0, *accumulate(lengths)], pa.int32()), values)


def chains(whole: pyarrow.Table) -> Iterator[Chain]:
    """The chains of a table with the columns of `schema`, in its order; without `defects` they have none."""
    for start in range(0, whole.num_rows, CHUNK):
        part = whole.slice(start, CHUNK).combine_chunks()
        column: Callable[[str], Any] = lambda name, part=part: part[name].combine_chunks()  # noqa: E731
        tokens = _cut(column("tokens"), _objects)
        spans = _cut(
            column("spans"), lambda values: list(map(tuple, values.flatten().to_numpy().reshape(-1, 2).tolist()))
        )
        candidates = _cut(column("candidates"), _steps)
        names = ("question", "source", "index", "content", "stop", "semantics")
        marks = part["defects"].to_pylist() if "defects" in part.schema.names else [None] * part.num_rows
        for row in zip(*(part[name].to_pylist() for name in names), tokens, spans, candidates, marks, strict=True):
            question, source, index, content, stop, semantics, own, edges, shown, defects = row
            yield Chain(question, source, index, content, own, edges, shown, stop, semantics, tuple(defects or ()))


def _steps(values: Any) -> list[tuple[Any, ...]]:
    return _cut(values, _pairs)


def _pairs(values: Any) -> list[tuple[Any, float]]:
    outcomes, numbers = values.flatten()
    known = [END if what is None else what for what in _objects(outcomes)]
    return list(zip(known, numbers.to_numpy().tolist(), strict=True))


def _objects(values: Any) -> list[Any]:
    return values.to_numpy(zero_copy_only=False).tolist()


def _cut(lists: Any, read: Callable[[Any], list[Any]]) -> list[tuple[Any, ...]]:
    """The lists of a list column as tuples, their values read all at once."""
    import pyarrow.compute as pc

    lengths = pc.call_function("list_value_length", [lists]).to_pylist()
    flat, edges = read(lists.flatten()), [0, *accumulate(lengths)]
    return [tuple(flat[start:end]) for start, end in pairwise(edges)]
