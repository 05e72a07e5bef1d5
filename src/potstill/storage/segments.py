"""Segments: chains as they arrive, one JSON line each, and how they are put in the order of their keys.

    >>> import tempfile; folder = Path(tempfile.mkdtemp())
    >>> from potstill.serialization import to_json; from potstill.storage import Appender
    >>> with Appender(folder / segment_name(Shard(2, 8))) as lines:
    ...     lines.append(to_json(Chain.from_text("q1", index, "4", source="old")) for index in (1, 0))
    >>> stored = stored_keys(segment_paths(folder))
    >>> ("q1", "old", 1) in stored, ("q1", "old", 2) in stored, len(stored)
    (True, False, 2)
    >>> [chain.index for chain in merge_segments(folder)]
    [0, 1]
    >>> chain = Chain.from_text("q1", 0, "4", source="old")
    >>> encode_chain(chain)[:52]
    b'{"question":"q1","source":"old","index":0,"text":"4"'
    >>> decode_chain(encode_chain(chain)) == chain
    True

Every process that samples has a segment of its own, so that none waits for another. A whole line is a stored chain; a
torn last one is nobody's, and whoever writes the segment cuts it off. A line that a power loss has torn is skipped.
Memory holds a bit a chain while sampling and 32 bytes a chain while sealing, never the chains.
"""

from __future__ import annotations

import json
import os
from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeVar

import msgspec

from potstill.errors import UserError
from potstill.records import Chain
from potstill.serialization import from_json, to_json
from potstill.storage import atomic
from potstill.storage.read import NUL_BYTE, as_user_errors

_encode: Final = msgspec.json.Encoder().encode  # five times json's speed
_decode: Final = msgspec.json.Decoder().decode


def encode_chain(chain: Chain) -> bytes:
    """A chain as one line. Raises ValueError for a log-probability that is no finite number."""
    row = to_json(chain)
    try:
        data = _encode(row)
    except UnicodeEncodeError:  # half of a surrogate pair in a name
        return atomic.encode_json_line(row)
    if b",null]" in data:  # what the encoder writes for such a number, if it is not part of a text
        return atomic.encode_json_line(row)
    return data + b"\n"


def decode_chain(data: bytes) -> Chain:
    """The inverse of `encode_chain`. Raises KeyError, TypeError, ValueError, AttributeError, AssertionError or
    RecursionError if the line is not a chain."""
    try:
        row = _decode(data)
    except msgspec.DecodeError:  # it refuses half of a surrogate pair, and says less about a fault
        row = json.loads(data)
    return from_json(Chain, row)


ChainKey = tuple[str, str, int]
Item = TypeVar("Item")
SEGMENT_PATTERN: Final = "segment-*.jsonl"
TEXT_FIELD: Final = b',"text":'  # what follows a chain's key; inside a text its quotation marks would be escaped


@dataclass(frozen=True, slots=True)
class Shard:
    """Part `number` of `count` of a stage's work, counted from 1.

    >>> list(Shard(2, 3).of(range(8)))
    [1, 4, 7]
    """

    number: int
    count: int

    def of(self, items: Sequence[Item]) -> Sequence[Item]:
        """This part of the items: every `count`-th."""
        return items[self.number - 1 :: self.count]

    def __str__(self) -> str:
        return f"{self.number}/{self.count}"


UNSHARDED: Final = Shard(1, 1)


class ChainKeySet:
    """Which chains are stored: a set of keys that costs a bit a chain, and one entry a question and source."""

    def __init__(self) -> None:
        self._indices: dict[tuple[str, str], int] = {}
        self._count = 0

    def add(self, key: ChainKey) -> bool:
        """Whether the key is new."""
        question, source, index = key
        held = self._indices.get((question, source), 0)
        if held >> index & 1:
            return False
        self._indices[question, source] = held | 1 << index
        self._count += 1
        return True

    def __contains__(self, key: object) -> bool:
        question, source, index = key  # type: ignore[misc]
        return bool(self._indices.get((question, source), 0) >> index & 1)

    def __len__(self) -> int:
        return self._count


def segment_name(shard: Shard) -> str:
    return "segment-0000.jsonl" if shard == UNSHARDED else f"segment-{shard.number:04}-of-{shard.count:04}.jsonl"


def segment_paths(folder: Path) -> list[Path]:
    return sorted(folder.glob(SEGMENT_PATTERN))


def stored_keys(files: Iterable[Path]) -> ChainKeySet:
    """The keys of all whole lines of some segments. Raises UserError for a line that is no chain."""
    stored = ChainKeySet()
    for path in files:
        for key, _, _ in _iter_lines(path):
            stored.add(key)
    return stored


def merge_segments(folder: Path) -> Iterator[Chain]:
    """Every chain of a folder's segments once, in the order of the keys; of two with one key the one stored first in
    the first segment. Raises UserError for a line that is no chain."""
    import numpy

    files = segment_paths(folder)
    names: dict[str, int] = {}
    columns = {column: array("q") for column in ("question", "source", "index", "file", "start", "length")}
    for place, path in enumerate(files):
        for (question, source, index), start, length in _iter_lines(path):
            row = (names.setdefault(question, len(names)), names.setdefault(source, len(names)), index, place)
            for column, value in zip(columns.values(), (*row, start, length), strict=True):
                column.append(value)
    rank = numpy.empty(len(names), numpy.int64)
    rank[[names[each] for each in sorted(names)]] = numpy.arange(len(names))
    table = {column: numpy.frombuffer(values, numpy.int64) for column, values in columns.items() if values}
    if not table:
        return
    question, source, index = rank[table["question"]], rank[table["source"]], table["index"]
    order = numpy.lexsort((table["start"], table["file"], index, source, question))
    before = None
    handles = [_open_segment(path) for path in files]
    try:
        for row in order:
            key = (question[row], source[row], index[row])
            if key == before:
                continue
            before = key
            place, start, length = (int(table[column][row]) for column in ("file", "start", "length"))
            with as_user_errors(files[place]):
                data = os.pread(handles[place], length, start)
            yield _parse_line(data, files[place], start)
    finally:
        for handle in handles:
            os.close(handle)


def _iter_lines(path: Path) -> Iterator[tuple[ChainKey, int, int]]:
    """Key, first byte and length of every whole line."""
    start = 0
    with as_user_errors(path), open(path, "rb") as file:
        for number, line in enumerate(file, 1):
            if not line.endswith(b"\n"):
                return
            if line.strip() and NUL_BYTE not in line:
                head, body, _ = line.partition(TEXT_FIELD)
                try:
                    row = json.loads(head + b"}" if body else line)
                    key = (row["question"], row["source"], int(row["index"]))
                except (KeyError, TypeError, ValueError, RecursionError) as fault:
                    raise _chain_error(f"{path} line {number}", fault) from None
                yield key, start, len(line)
            start += len(line)


def _parse_line(data: bytes, path: Path, start: int) -> Chain:
    try:
        return decode_chain(data)
    except (KeyError, TypeError, ValueError, AttributeError, AssertionError, RecursionError) as fault:
        raise _chain_error(f"{path} byte {start}", fault) from None


def _chain_error(where: str, fault: Any) -> UserError:
    found = f"no field {fault}" if isinstance(fault, KeyError) else fault
    return UserError(
        "not a chain",
        where=where,
        found=found,
        hint="restore this line from a copy, or move it to another file: then this one chain is made again",
    )


def _open_segment(path: Path) -> int:
    with as_user_errors(path):
        return os.open(path, os.O_RDONLY)
