"""Segments: files of chains in the order of arrival, one JSON line per chain. `merge_segments` sorts them by key.

    >>> import tempfile; from dataclasses import replace
    >>> from potstill.records import END; from potstill.storage import atomic
    >>> folder = Path(tempfile.mkdtemp())
    >>> chain = Chain.from_tokens("q1", 0, [b"4"], [[(b"4", -0.5), (END, -2.5)]])
    >>> encode_chain(chain)[:56]
    b'{"question":"q1","source":"teacher","index":0,"text":"4"'
    >>> with atomic.Appender(folder / segment_name(Shard(2, 8))) as segment:
    ...     segment.append_lines(encode_chain(replace(chain, index=index)) for index in (1, 0))
    >>> stored = stored_keys(segment_paths(folder))
    >>> ("q1", "teacher", 1) in stored, ("q1", "teacher", 2) in stored, len(stored)
    (True, False, 2)
    >>> [row.as_chain() for row in merge_segments(folder)] == [chain, replace(chain, index=1)]
    True

Every process that samples has its own segment, so no process waits for another. A complete line is a stored chain. An
incomplete last line is ignored, and the next writer cuts it off. Lines that a power loss damaged are skipped. Memory
holds one bit per chain while sampling and 32 bytes per chain while merging, but never the chains.
"""

from __future__ import annotations

import json
import os
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeVar

from potstill.errors import UserError
from potstill.records import Chain
from potstill.storage.flat_chains import FlatChain, decode_row, encode_row, flatten
from potstill.storage.read import NUL_BYTE, as_user_errors

ChainKey = tuple[str, str, int]  # question, source, index
Item = TypeVar("Item")
SEGMENT_PATTERN: Final = "segment-*.jsonl"
TEXT_FIELD: Final = b',"text":'  # follows the key of a chain; unique, because quotation marks in a text are escaped
CHAIN_FAULTS: Final = (KeyError, TypeError, ValueError, AttributeError, AssertionError, RecursionError)


def encode_chain(chain: Chain) -> bytes:
    """A chain as one line. Raises ValueError for a log-probability that is not finite."""
    return encode_row(flatten(chain))


def decode_chain(data: bytes) -> Chain:
    """The inverse of `encode_chain`. Raises one of CHAIN_FAULTS if the line is not a chain."""
    return decode_row(data).as_chain()


@dataclass(frozen=True, slots=True)
class Shard:
    """Part `number` (from 1) of `count` of a stage's work.

    >>> list(Shard(2, 3).of(range(8)))
    [1, 4, 7]
    """

    number: int
    count: int

    def of(self, items: Sequence[Item]) -> Sequence[Item]:
        """The items of this shard: every `count`-th item, from item `number` on."""
        return items[self.number - 1 :: self.count]

    def __str__(self) -> str:
        return f"{self.number}/{self.count}"


UNSHARDED: Final = Shard(1, 1)


class ChainKeySet:
    """A set of chain keys, stored as one bit per chain and one entry per question and source."""

    def __init__(self) -> None:
        self._bits: dict[tuple[str, str], int] = {}
        self._count = 0

    def add(self, key: ChainKey) -> bool:
        """Add a key. Returns whether it is new."""
        question, source, index = key
        bits = self._bits.get((question, source), 0)
        if bits >> index & 1:
            return False
        self._bits[question, source] = bits | 1 << index
        self._count += 1
        return True

    def __contains__(self, key: object) -> bool:
        question, source, index = key  # type: ignore[misc]
        return bool(self._bits.get((question, source), 0) >> index & 1)

    def __len__(self) -> int:
        return self._count

    def count_source(self, source: str) -> int:
        """The number of chains of one source."""
        return sum(bits.bit_count() for (_, name), bits in self._bits.items() if name == source)


def segment_name(shard: Shard) -> str:
    return "segment-0000.jsonl" if shard == UNSHARDED else f"segment-{shard.number:04}-of-{shard.count:04}.jsonl"


def segment_paths(folder: Path) -> list[Path]:
    return sorted(folder.glob(SEGMENT_PATTERN))


def stored_keys(paths: Iterable[Path]) -> ChainKeySet:
    """The keys of all complete lines of the segments. Raises UserError for a line that is not a chain."""
    stored = ChainKeySet()
    for path in paths:
        for key, _, _ in _iter_lines(path):
            stored.add(key)
    return stored


def count_lines(paths: Iterable[Path]) -> int:
    """The number of complete lines in the segments, without parsing them.

    It is the number of stored chains, unless segments of several machines that contain the same chains were copied into
    one folder.
    """
    lines = 0
    for path in paths:
        with as_user_errors(path), open(path, "rb") as file:
            while block := file.read(1 << 20):
                lines += block.count(b"\n")
    return lines


def count_by_question(paths: Iterable[Path], source: str = "") -> dict[str, int]:
    """Question id -> number of stored chains. Raises UserError for a line that is not a chain.

    source  count only the chains of this source; empty: all chains
    """
    keys = {key for path in paths for key, _, _ in _iter_lines(path)}
    return dict(Counter(question for question, name, _ in keys if source in ("", name)))


def iter_chains(path: Path) -> Iterator[Chain]:
    """The chains of all complete lines of a segment. Raises UserError for a line that is not a chain."""
    for _, start, line in _complete_lines(path):
        try:
            chain = decode_chain(line)
        except CHAIN_FAULTS as fault:
            raise _chain_error(f"{path} byte {start}", fault) from None
        yield chain


def merge_segments(folder: Path) -> Iterator[FlatChain]:
    """Every chain of a folder's segments once, in the order of the keys. Raises UserError for a line that is not a chain.

    If several chains have the same key, the first chain of the first segment is yielded.
    """
    import numpy

    paths = segment_paths(folder)
    names: dict[str, int] = {}  # question or source -> number; the table contains only numbers
    columns = {column: array("q") for column in ("question", "source", "index", "file", "start", "length")}
    for file, path in enumerate(paths):
        for (question, source, index), start, length in _iter_lines(path):
            row = (names.setdefault(question, len(names)), names.setdefault(source, len(names)), index, file)
            for column, value in zip(columns.values(), (*row, start, length), strict=True):
                column.append(value)
    rank = numpy.empty(len(names), numpy.int64)
    rank[[names[name] for name in sorted(names)]] = numpy.arange(len(names))
    table = {column: numpy.frombuffer(values, numpy.int64) for column, values in columns.items() if values}
    if not table:
        return
    question, source, index = rank[table["question"]], rank[table["source"]], table["index"]
    order = numpy.lexsort((table["start"], table["file"], index, source, question))
    previous = None
    handles = [_open_segment(path) for path in paths]
    try:
        for row in order:
            key = (question[row], source[row], index[row])
            if key == previous:
                continue
            previous = key
            file, start, length = (int(table[column][row]) for column in ("file", "start", "length"))
            with as_user_errors(paths[file]):
                data = os.pread(handles[file], length, start)
            try:
                one = decode_row(data)
            except CHAIN_FAULTS as fault:
                raise _chain_error(f"{paths[file]} byte {start}", fault) from None
            yield one
    finally:
        for handle in handles:
            os.close(handle)


def _iter_lines(path: Path) -> Iterator[tuple[ChainKey, int, int]]:
    """Key, first byte and length of every complete line. Only the part of a line before the text is parsed."""
    for number, start, line in _complete_lines(path):
        head, text_field, _ = line.partition(TEXT_FIELD)
        try:
            row = json.loads(head + b"}" if text_field else line)
            key = (row["question"], row["source"], int(row["index"]))
        except (KeyError, TypeError, ValueError, RecursionError) as fault:
            raise _chain_error(f"{path} line {number}", fault) from None
        yield key, start, len(line)


def _complete_lines(path: Path) -> Iterator[tuple[int, int, bytes]]:
    """Number (from 1), first byte and content of every complete line, without those that a power loss damaged."""
    start = 0
    with as_user_errors(path), open(path, "rb") as file:
        for number, line in enumerate(file, 1):
            if not line.endswith(b"\n"):
                return
            if line.strip() and NUL_BYTE not in line:
                yield number, start, line
            start += len(line)


def _chain_error(where: str, fault: Exception) -> UserError:
    what, found = "the line is not a chain", f"no field {fault}" if isinstance(fault, KeyError) else fault
    hint = "restore this line from a copy, or move it to another file: then this chain is sampled again"
    return UserError(what, code="E-storage-invalid-chain", where=where, found=found, hint=hint)


def _open_segment(path: Path) -> int:
    with as_user_errors(path):
        return os.open(path, os.O_RDONLY)
