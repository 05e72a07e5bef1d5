"""Scores: the log-probabilities of texts, each stored once under a key that its user computes.

    >>> import tempfile; from potstill.records import END
    >>> path = Path(tempfile.mkdtemp()) / "scores.jsonl"
    >>> scored = Chain.from_tokens("", 0, [b" 4"], [[(b" 4", -0.5)], [(END, -0.125), (b"\\n", -2.5)]], source="")
    >>> with ScoreStore(path) as store:
    ...     store.append("a" * 32, scored); store.sync()
    >>> store = ScoreStore(path)                            # in a later process
    >>> "a" * 32 in store, store.read("a" * 32) == scored, store.read("b" * 32)
    (True, True, None)

The file has one JSON line per text: `{"key": ..., "scores": ...}`. `scores` is base64 of zlib of msgpack, with the outcomes
in columns: a text of 100 tokens with 20 alternatives takes about 15 KB, as JSON 40 KB. An incomplete last line and lines
that a power loss damaged are ignored. Memory holds the place of each text in the file, but no scores.
"""

from __future__ import annotations

import base64
import os
import zlib
from collections.abc import Iterable, Sequence
from itertools import accumulate, chain, pairwise
from pathlib import Path
from typing import Any, Final, Self

import msgspec
import numpy as np

from potstill.errors import UserError
from potstill.records import END, Chain
from potstill.storage import atomic
from potstill.storage.read import LINE_HINT, NUL_BYTE, as_user_errors

KEY_CHARS: Final = 32  # hexadecimal digits of a key
HEAD, MIDDLE, TAIL = b'{"key":"', b'","scores":"', b'"}\n'
DATA_START: Final = len(HEAD) + KEY_CHARS + len(MIDDLE)
UNITS_PER_NAT: Final = 10**6  # log-probabilities have 6 decimals, and are stored as whole numbers


class ScoreStore:
    """A file of scored chains. Only one process may append to it at a time.

    The file is created by the first `append`.
    """

    def __init__(self, path: Path) -> None:
        """Raises UserError for a complete line that is not a stored score."""
        self.path = path
        self._places = dict(_iter_places(path)) if path.exists() else {}  # key -> first byte and length of the line
        self._appender: atomic.Appender | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *fault: object) -> None:
        if self._appender is not None:
            self._appender.__exit__(*fault)
            self._appender = None

    def __len__(self) -> int:
        return len(self._places)

    def __contains__(self, key: object) -> bool:
        return key in self._places

    def read(self, key: str) -> Chain | None:
        """The chain under a key, with the key fields and the stop reason of `Chain` empty; None if none is stored."""
        if key not in self._places:
            return None
        start, length = self._places[key]
        with as_user_errors(self.path), open(self.path, "rb") as file:
            line = os.pread(file.fileno(), length, start)
        try:
            return decode_scores(base64.b64decode(line[DATA_START : -len(TAIL)], validate=True))
        except (ValueError, TypeError, AssertionError, zlib.error, msgspec.MsgspecError) as fault:
            raise _line_error(f"{self.path} byte {start}", fault) from None

    def append(self, key: str, scored: Chain) -> None:
        """Store a chain. It is safe from a crash of the process when this returns, and from a power loss after `sync`."""
        assert len(key) == KEY_CHARS and key not in self._places, f"the key {key} is stored already"
        if self._appender is None:
            self._appender = atomic.Appender(self.path)
        line = HEAD + key.encode("ascii") + MIDDLE + base64.b64encode(encode_scores(scored)) + TAIL
        start = self.path.stat().st_size
        self._appender.append_lines([line])
        self._places[key] = start, len(line)

    def sync(self) -> None:
        """Flush all stored chains to the disk."""
        if self._appender is not None:
            self._appender.sync()


def encode_scores(scored: Chain) -> bytes:
    """The text, tokens, candidates and defects of a chain. Its log-probabilities must have at most 6 decimals."""
    pieces: dict[Any, int] = {}

    def numbers_of(outcomes: Iterable[Any]) -> bytes:
        return _pack(pieces.setdefault(piece, len(pieces)) for piece in outcomes)

    outcomes = list(chain.from_iterable(scored.candidates))
    units = [round(value * UNITS_PER_NAT) for _, value in outcomes]
    assert all(unit / UNITS_PER_NAT == value for unit, (_, value) in zip(units, outcomes, strict=True)), "6 decimals"
    columns = [
        numbers_of(scored.tokens),
        _pack(chain.from_iterable(scored.spans)),
        _pack(map(len, scored.candidates)),
        numbers_of(piece for piece, _ in outcomes),
        _pack(units),
    ]
    table = [None if piece is END else piece for piece in pieces]
    row = [scored.content, table, columns, scored.semantics, scored.defects]
    return zlib.compress(msgspec.msgpack.encode(row))


def decode_scores(data: bytes) -> Chain:
    """The inverse of `encode_scores`. The result has no key, and its stop reason is `end`."""
    content, table, columns, semantics, defects = msgspec.msgpack.decode(zlib.decompress(data))
    pieces: list[Any] = [END if piece is None else piece for piece in table]
    tokens, bounds, sizes, outcomes, units = map(_unpack, columns)
    candidates = [(pieces[number], unit / UNITS_PER_NAT) for number, unit in zip(outcomes, units, strict=True)]
    steps = pairwise(accumulate(sizes, initial=0))
    return Chain(
        question="",
        source="",
        index=0,
        content=content,
        tokens=tuple(pieces[number] for number in tokens),
        spans=tuple(zip(bounds[::2], bounds[1::2], strict=True)),
        candidates=tuple(tuple(candidates[start:end]) for start, end in steps),
        semantics=semantics,
        defects=tuple(defects),
    )


def _pack(numbers: Iterable[int]) -> bytes:
    """Whole numbers as 8 bytes each: first the lowest byte of all numbers, then the next; zlib needs half as much for it."""
    array = np.fromiter(numbers, np.dtype("<i8"))
    return array.view(np.uint8).reshape(-1, 8).T.tobytes()


def _unpack(data: bytes) -> Sequence[int]:
    return np.frombuffer(data, np.uint8).reshape(8, -1).T.copy().view(np.dtype("<i8")).ravel().tolist()


def _iter_places(path: Path) -> Iterable[tuple[str, tuple[int, int]]]:
    """Key, and first byte and length, of every complete line."""
    start = 0
    with as_user_errors(path), open(path, "rb") as file:
        for number, line in enumerate(file, 1):
            if not line.endswith(b"\n"):
                return
            if line.strip() and NUL_BYTE not in line:
                key = line[len(HEAD) : len(HEAD) + KEY_CHARS]
                if line[:DATA_START] != HEAD + key + MIDDLE or not line.endswith(TAIL) or not key.isalnum():
                    raise _line_error(f"{path} line {number}", line[:DATA_START].decode("utf-8", "replace"))
                yield key.decode("ascii", "replace"), (start, len(line))
            start += len(line)


def _line_error(where: str, found: object) -> UserError:
    what = "the line is not a stored score"
    return UserError(what, code="E-storage-invalid-record", where=where, found=found, hint=LINE_HINT)
