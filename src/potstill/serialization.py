"""Converts records to JSON and back. The JSON object has plain values in the order of the record's fields.

    >>> chain = Chain.from_tokens("q1", 0, [b"4", b"\\xff"], [[(b"4", -0.1), (END, -2.5)], [(b"\\xff", -0.3)]])
    >>> to_json(chain)["tokens"], to_json(chain)["candidates"][0]
    (['4', {'base64': '/w=='}], [['4', -0.1], [None, -2.5]])
    >>> from_json(Chain, to_json(chain)) == chain
    True

Bytes become text if they are UTF-8, and otherwise `{"base64": ...}`. END becomes null.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Mapping
from dataclasses import fields
from functools import cache
from types import UnionType
from typing import Any, Final, Literal, TypeVar, get_args, get_origin, get_type_hints

from potstill.records import (
    END,
    Chain,
    Checkpoint,
    Choice,
    LabelTable,
    PassCurve,
    Prediction,
    Question,
    RetentionBound,
    Score,
    TextScore,
    Verdict,
    token_spans,
)


def encode_bytes(value: bytes) -> str | dict[str, str]:
    """Bytes as a JSON value: text if they are UTF-8, else `{"base64": ...}`."""
    try:
        return value.decode("utf-8")
    except UnicodeDecodeError:
        return {"base64": base64.b64encode(value).decode("ascii")}


class BoundedMemo(dict[Any, Any]):
    """A cache of `make` with about `most` keys. A full cache is emptied. Lookups are twice as fast as those of lru_cache.

    The tokens of a vocabulary occur in many chains, so this cache halves the time for encoding a chain.
    """

    def __init__(self, make: Callable[[Any], Any], most: int) -> None:
        self._make, self._most = make, most

    def __missing__(self, key: Any) -> Any:
        if len(self) > self._most:
            self.clear()
        value = self[key] = self._make(key)
        return value


_encoded_pieces: Final = BoundedMemo(lambda piece: None if piece is END else encode_bytes(piece), 1 << 16)
OPTIONAL_FIELDS: Final = ("repeated", "equal", "optimism", "weights", "bounds")  # left out if they are None or ()
FILE_NAMES: Final = {"checkpoint": "step", "answer": "found"}  # fields that have another name in JSON


def decode_bytes(value: str | Mapping[str, str]) -> bytes:
    """The inverse of `encode_bytes`. Raises ValueError for any other value."""
    if isinstance(value, str):
        return value.encode("utf-8")
    if isinstance(value, Mapping) and set(value) == {"base64"}:
        return base64.b64decode(value["base64"], validate=True)
    raise ValueError(f"neither text nor base64: {value!r}")


Record = TypeVar("Record", Question, Chain, Verdict, Prediction, Score, LabelTable, TextScore, PassCurve, Choice)


def to_json(
    record: Question | Chain | Verdict | Prediction | Score | LabelTable | TextScore | PassCurve | Choice,
) -> dict[str, Any]:
    """A record as a dict of plain JSON values, in the order of its fields. Empty fields of a chain are left out, and so are
    OPTIONAL_FIELDS without a value."""
    if not isinstance(record, Chain):
        values = {field.name: getattr(record, field.name) for field in fields(record)}
        return {
            FILE_NAMES.get(name, name): _to_plain(value)
            for name, value in values.items()
            if value not in (None, ()) or name not in OPTIONAL_FIELDS
        }
    row: dict[str, Any] = {"question": record.question, "source": record.source, "index": record.index}
    row["text"] = encode_bytes(record.content)
    if record.tokens:
        row["tokens"] = [_encoded_pieces[token] for token in record.tokens]
        if record.spans != token_spans(record.tokens):
            row["spans"] = [list(span) for span in record.spans]
    if record.candidates:
        row["candidates"] = [[[_encoded_pieces[piece], value] for piece, value in step] for step in record.candidates]
    row["stop"] = record.stop
    row["semantics"] = record.semantics
    if record.defects:
        row["defects"] = list(record.defects)
    return row


def from_json(kind: type[Record], row: Mapping[str, Any]) -> Record:
    """The inverse of `to_json`. Raises KeyError, TypeError or ValueError if the row is not such a record."""
    if not isinstance(row, Mapping):
        raise TypeError(f"{type(row).__name__} instead of an object")
    if kind is Chain:
        return _chain_from_json(row)  # type: ignore[return-value]
    names = {FILE_NAMES.get(field.name, field.name): field.name for field in fields(kind)}
    unknown = set(row) - set(names)
    if unknown:
        raise ValueError(f"unknown field {sorted(unknown)[0]!r}")
    values = {names[key]: _lists_to_tuples(value) for key, value in row.items()}
    for name, value in values.items():
        if type(value) not in _field_types(kind).get(name, (type(value),)):
            raise TypeError(f"{name} is {type(value).__name__}")
    if "checkpoint" in values:
        values["checkpoint"] = Checkpoint.parse(values["checkpoint"])
    if kind is Choice:
        values["table"] = tuple((Checkpoint.parse(name), value) for name, value in values["table"])
        for name in ("tied", "equal"):
            values[name] = tuple(map(Checkpoint.parse, values.get(name, ())))
        values["bounds"] = tuple(
            RetentionBound(row["name"], row["points"], tuple((Checkpoint.parse(c), lost) for c, lost in row["lost"]))
            for row in values.get("bounds", ())
        )
    return kind(**values)


@cache
def _field_types(kind: type[Any]) -> dict[str, tuple[type, ...]]:
    """The types of the JSON values of each field, without the fields that contain checkpoints."""
    types = {name: _json_types(hint) for name, hint in get_type_hints(kind).items()}
    return {name: allowed for name, allowed in types.items() if Checkpoint not in allowed}


def _json_types(hint: Any) -> tuple[type, ...]:
    if isinstance(hint, UnionType):
        return tuple(allowed for part in get_args(hint) for allowed in _json_types(part))
    if get_origin(hint) is Literal:
        return (str,)
    if get_origin(hint) is tuple:
        return (tuple,)
    return (float, int) if hint is float else (hint,)


def _chain_from_json(row: Mapping[str, Any]) -> Chain:
    tokens = tuple(decode_bytes(token) for token in row.get("tokens", ()))
    spans = row.get("spans")
    return Chain(
        question=row["question"],
        source=row["source"],
        index=row["index"],
        content=decode_bytes(row["text"]),
        tokens=tokens,
        spans=token_spans(tokens) if spans is None else tuple((start, end) for start, end in spans),
        candidates=tuple(
            tuple(
                [
                    (
                        piece.encode() if type(piece) is str else END if piece is None else decode_bytes(piece),
                        float(value),
                    )
                    for piece, value in step
                ]
            )
            for step in row.get("candidates", ())
        ),
        stop=row.get("stop", "end"),
        semantics=row.get("semantics", "none"),
        defects=tuple(row.get("defects", ())),
    )


def _to_plain(value: Any) -> Any:
    if isinstance(value, tuple):
        return [_to_plain(item) for item in value]
    if isinstance(value, RetentionBound):
        return {field.name: _to_plain(getattr(value, field.name)) for field in fields(value)}
    return value.json_value if isinstance(value, Checkpoint) else value


def _lists_to_tuples(value: Any) -> Any:
    return tuple(_lists_to_tuples(item) for item in value) if isinstance(value, list) else value
