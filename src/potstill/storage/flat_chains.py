"""Chains with their candidates in flat lists: the rows of segments, and of Arrow tables.

    >>> chain = Chain.from_tokens("q1", 0, [b"4", b"\\xff"], [[(b"4", -0.5), (END, -2.5)], [(b"\\xff", -0.25)]])
    >>> row = flatten(chain)
    >>> row.outcomes, row.log_probabilities, row.step_sizes
    (['4', None, {'base64': '/w=='}], [-0.5, -2.5, -0.25], [2, 1])
    >>> decode_row(encode_row(row)) == row and row.as_chain() == chain
    True
    >>> build_table([row])["candidates"].to_pylist()[0][0]
    [{'bytes': b'4', 'log_probability': -0.5}, {'bytes': None, 'log_probability': -2.5}]

A row becomes a line of JSON, and many rows become the columns of a table, without a Python object for each candidate. That
takes a third of the time of the nested tuples of `Chain`. Bytes are strings, or `{"base64": ...}` if they are not UTF-8;
END is null.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from itertools import accumulate, chain, pairwise
from typing import TYPE_CHECKING, Any, Final

import msgspec

from potstill.records import END, Chain, Semantics, StopReason, token_spans
from potstill.serialization import BoundedMemo, decode_bytes, encode_bytes, from_json
from potstill.storage import atomic

if TYPE_CHECKING:
    import numpy
    import pyarrow

Piece = str | dict[str, str]  # bytes as JSON
_pieces: Final = BoundedMemo(lambda piece: None if piece is END else encode_bytes(piece), 1 << 16)


class FlatChain(msgspec.Struct, omit_defaults=True, forbid_unknown_fields=True, gc=False):
    """A chain whose steps stand one after another in flat lists; see `Chain`.

    spans                        None: the tokens follow one another
    outcomes, log_probabilities  of all steps
    step_sizes                   the number of outcomes of each step
    """

    question: str
    source: str
    index: int
    text: Piece
    tokens: list[Piece] = []
    spans: list[tuple[int, int]] | None = None
    outcomes: list[Piece | None] = []
    log_probabilities: list[float] = []
    step_sizes: list[int] = []
    stop: StopReason = "end"
    semantics: Semantics = "none"
    defects: list[str] = []

    def __post_init__(self) -> None:
        tokens, steps, outcomes = len(self.tokens), len(self.step_sizes), len(self.outcomes)
        if not len(self.log_probabilities) == outcomes == sum(self.step_sizes):
            raise ValueError(f"{len(self.log_probabilities)} log-probabilities of {outcomes} outcomes")
        if steps not in (0, tokens, tokens + 1):
            raise ValueError(f"{steps} steps for {tokens} tokens")
        if self.spans is not None and len(self.spans) != tokens:
            raise ValueError(f"{len(self.spans)} spans of {tokens} tokens")

    @property
    def key(self) -> tuple[str, str, int]:
        return (self.question, self.source, self.index)

    @property
    def content(self) -> bytes:
        return decode_bytes(self.text)

    def as_chain(self) -> Chain:
        """Raises ValueError if a piece is not bytes as JSON."""
        tokens = tuple(map(decode_bytes, self.tokens))
        outcomes = [END if piece is None else decode_bytes(piece) for piece in self.outcomes]
        pairs = list(zip(outcomes, self.log_probabilities, strict=True))
        return Chain(
            self.question,
            self.source,
            self.index,
            decode_bytes(self.text),
            tokens,
            token_spans(tokens) if self.spans is None else tuple(self.spans),
            tuple(tuple(pairs[a:b]) for a, b in pairwise(accumulate(self.step_sizes, initial=0))),
            self.stop,
            self.semantics,
            tuple(self.defects),
        )


_encode: Final = msgspec.json.Encoder().encode
_decode: Final = msgspec.json.Decoder(FlatChain).decode


def flatten(one: Chain) -> FlatChain:
    steps = one.candidates
    return FlatChain(
        one.question,
        one.source,
        one.index,
        encode_bytes(one.content),
        [_pieces[token] for token in one.tokens],
        None if one.spans == token_spans(one.tokens) else list(one.spans),
        [_pieces[piece] for step in steps for piece, _ in step],
        [value for step in steps for _, value in step],
        list(map(len, steps)),
        one.stop,
        one.semantics,
        list(one.defects),
    )


def encode_row(row: FlatChain) -> bytes:
    """A row as one line. Raises ValueError for a log-probability that is not finite."""
    if not math.isfinite(sum(row.log_probabilities)):
        raise ValueError(f"a log-probability of {(row.question, row.source, row.index)} is not finite")
    try:
        return _encode(row) + b"\n"
    except UnicodeEncodeError:  # half of a surrogate pair
        return atomic.encode_json_line({name: getattr(row, name) for name in row.__struct_fields__})


def decode_row(data: bytes) -> FlatChain:
    """The inverse of `encode_row`, also for a line of nested candidates, as `to_json` makes it of a chain.

    Raises an exception of `segments.CHAIN_FAULTS` if the line is not a chain.
    """
    try:
        one = _decode(data)
        if data.find(b"{", 1) > 0:  # perhaps a piece that is not text, or a damaged one
            one.as_chain()
        return one
    except msgspec.DecodeError:  # msgspec refuses half of a surrogate pair, and its errors say less
        row = json.loads(data)
    if isinstance(row, dict) and ("candidates" in row or "step_sizes" not in row):
        return flatten(from_json(Chain, row))
    try:
        return msgspec.convert(row, FlatChain)
    except msgspec.ValidationError as error:
        raise ValueError(str(error)) from None


def chain_schema() -> pyarrow.Schema:
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


def build_table(rows: Sequence[FlatChain]) -> pyarrow.Table:
    """A table with the columns of `chain_schema`. Raises ValueError if a piece is not bytes as JSON."""
    import numpy as np
    import pyarrow as pa

    def joined(name: str) -> list[Any]:
        return list(chain.from_iterable(getattr(row, name) for row in rows))

    def lists(sizes: Any, values: pyarrow.Array) -> pyarrow.Array:
        edges = np.concatenate(([0], np.cumsum(np.asarray(sizes, np.int64)))).astype(np.int32)
        return pa.ListArray.from_arrays(pa.array(edges), values)

    token_counts = [len(row.tokens) for row in rows]
    tokens = _binary_array(joined("tokens"))
    values = pa.array(np.array(joined("log_probabilities"), np.float32))
    pairs = pa.StructArray.from_arrays([_binary_array(joined("outcomes")), values], ["bytes", "log_probability"])
    spans = pa.FixedSizeListArray.from_arrays(pa.array(_spans(rows, token_counts, tokens).ravel()), 2)
    columns: dict[str, Any] = {
        **{name: [getattr(row, name) for row in rows] for name in ("question", "source", "index", "stop", "semantics")},
        "content": _binary_array([row.text for row in rows]),
        "tokens": lists(token_counts, tokens),
        "spans": lists(token_counts, spans),
        "candidates": lists([len(row.step_sizes) for row in rows], lists(joined("step_sizes"), pairs)),
        "defects": [row.defects for row in rows],
    }
    schema = chain_schema()
    arrays = [
        pa.array(column, field.type) if isinstance(column, list) else column.cast(field.type)
        for field, column in ((field, columns[field.name]) for field in schema)
    ]
    return pa.Table.from_arrays(arrays, schema=schema)


def _binary_array(pieces: Sequence[Piece | None]) -> pyarrow.Array:
    import pyarrow as pa

    try:
        return pa.array(pieces, pa.string()).cast(pa.binary())
    except (pa.ArrowInvalid, pa.ArrowTypeError):  # some are not UTF-8
        return pa.array([None if piece is None else decode_bytes(piece) for piece in pieces], pa.binary())


def _spans(rows: Sequence[FlatChain], token_counts: Sequence[int], tokens: pyarrow.Array) -> numpy.ndarray:
    """[tokens, 2] int32 start and end of every token in its chain, in bytes."""
    import numpy as np
    import pyarrow.compute as pc

    counts = np.asarray(token_counts, np.int64)
    first = np.cumsum(counts) - counts  # the index of the first token of each chain
    edges = np.concatenate(([0], np.cumsum(pc.call_function("binary_length", [tokens]).to_numpy()))).astype(np.int64)
    spans = np.stack([edges[:-1], edges[1:]], axis=1) - edges[first].repeat(counts)[:, None]
    for row, start, count in zip(rows, first.tolist(), token_counts, strict=True):
        if row.spans is not None:
            spans[start : start + count] = np.reshape(row.spans, (-1, 2))
    return spans.astype(np.int32)
