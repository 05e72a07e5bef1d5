"""Targets at rest: flat arrays that are mapped into memory and read without decoding.

    >>> import tempfile
    >>> soft = Target((7, 9, 1), (0, 2, 3, 4), (7, 8, 9, 1), (0.75, 0.2, 1.0, 1.0), ("same", "hard", "end"))
    >>> arrays = pack([(("q1", "teacher", 0), soft)])
    >>> arrays["probabilities"], arrays["counts"]  # a certain position costs its id alone
    (array([49151, 13107], dtype=uint16), array([2, 0, 0], dtype=uint8))
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     for name, array in arrays.items():
    ...         np.save(Path(folder, f"{name}.npy"), array)
    ...     read = Targets(folder)
    ...     len(read), read.find(("q1", "teacher", 0)), read[0].ids, read[0].distribution(1)
    (1, 0, (7, 9, 1), {9: 1.0})

A probability is a whole number of 65,535ths: kept mass and tail add up to exactly 1, and a certain token is exactly 1.

    ids               [tokens]      uint16 where the vocabulary allows, else uint32
    kinds             [tokens]      uint8, place in KINDS
    counts            [tokens]      uint8, candidates of the position; 0: certain of its own id, nothing stored
    candidate_ids     [candidates]  as ids
    probabilities     [candidates]  uint16, 65,535ths
    starts            [targets + 1] int64, first token of each target
    candidate_starts  [targets + 1] int64, first candidate of each target
    keys              [bytes]       uint8, JSON in UTF-8: one [question, source, index] a target
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path
from typing import Final, get_args

import numpy as np

from potstill.errors import UserError
from potstill.records import Kind, Target

ONE: Final = 65_535
KINDS: Final[tuple[Kind, ...]] = get_args(Kind)
NAMES: Final = ("ids", "kinds", "counts", "candidate_ids", "probabilities", "starts", "candidate_starts", "keys")
# Of a target's parts while many are packed: ids, kinds, counts, candidate ids, units, tokens, candidates.
KEPT: Final = (np.uint32, np.uint8, np.uint8, np.uint32, np.uint16, np.int64, np.int64)
TOGETHER: Final = 1 << 14  # targets after which the parts are put together, so that no array stands alone for long
Key = tuple[str, str, int]


def pack(targets: Iterable[tuple[Key, Target]], threshold: float = 0.0) -> dict[str, np.ndarray]:
    """The arrays of many targets, in their order. Keys must be distinct.

    threshold  a candidate below this probability goes to the tail; a position keeps its largest whatever it is
    Raises UserError for a key that comes twice and for a position with more than 255 candidates.
    """
    keys: dict[Key, None] = {}
    parts: list[list[np.ndarray]] = [[] for _ in KEPT]
    for key, target in targets:
        if key in keys:
            raise UserError("two targets with one key", where=key, do="drop one of the two chains")
        keys[key] = None
        for column, kind, part in zip(parts, KEPT, _pack(key, target, threshold), strict=True):
            column.append(part.astype(kind))
        if len(keys) % TOGETHER == 0:
            parts = [[np.concatenate(column)] for column in parts]
    columns = [np.concatenate(column or [np.zeros(0, kind)]) for column, kind in zip(parts, KEPT, strict=True)]
    ids, kinds, counts, candidate_ids, units, lengths, stored = columns
    small = max((int(array.max()) for array in (ids, candidate_ids) if len(array)), default=0) < 2**16
    return {
        "ids": ids.astype(np.uint16 if small else np.uint32),
        "kinds": kinds.astype(np.uint8),
        "counts": counts.astype(np.uint8),
        "candidate_ids": candidate_ids.astype(np.uint16 if small else np.uint32),
        "probabilities": units.astype(np.uint16),
        "starts": np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        "candidate_starts": np.concatenate([[0], np.cumsum(stored)]).astype(np.int64),
        "keys": np.frombuffer(json.dumps(list(keys), ensure_ascii=False).encode(), np.uint8),
    }


def _pack(key: Key, target: Target, threshold: float) -> tuple[np.ndarray, ...]:
    ids = np.asarray(target.ids, np.int64)
    offered = np.diff(np.asarray(target.offsets, np.int64))
    candidate_ids = np.asarray(target.candidate_ids, np.int64)
    probabilities = np.asarray(target.probabilities, np.float64)
    assert (offered > 0).all(), f"{key}: a position without a candidate"
    assert ((probabilities > 0) & (probabilities <= 1)).all(), f"{key}: not a probability"
    units = np.rint(probabilities * ONE).astype(np.int64)
    row = np.repeat(np.arange(len(ids)), offered)
    if len(row):
        first = np.cumsum(offered) - offered
        largest = _largest(probabilities, row, len(ids))
        units[largest] = np.maximum(units[largest], 1)
        keep = (units > 0) & (probabilities >= threshold)
        keep[largest] = True
        units[~keep] = 0
        # Each part is rounded to the nearest, so together they may exceed 1 by some units: the largest gives them back.
        excess = np.add.reduceat(units, first) - ONE
        units[largest] -= np.maximum(excess, 0)
        keep &= ~((units == ONE) & (candidate_ids == ids[row]))
        row, candidate_ids, units = row[keep], candidate_ids[keep], units[keep]
    counts = np.bincount(row, minlength=len(ids))
    if len(ids) and counts.max() > np.iinfo(np.uint8).max:
        do = "ask the teacher for fewer, or raise the threshold"
        raise UserError("more than 255 candidates at one position", where=key, do=do)
    kinds = np.array([KINDS.index(kind) for kind in target.kinds], np.uint8)
    return ids, kinds, counts, candidate_ids, units, np.array([len(ids)]), np.array([len(row)])


def _largest(probabilities: np.ndarray, row: np.ndarray, rows: int) -> np.ndarray:
    """[rows] place of the first largest candidate of each row."""
    order = np.lexsort((np.arange(len(row)), -probabilities, row))
    return order[np.searchsorted(row, np.arange(rows))]


class Targets:
    """The targets of a folder of `.npy` files, mapped into memory: opening and picking cost nothing but what is read.

    Raises UserError where a file is missing or is no array, or where the arrays do not belong together.
    """

    def __init__(self, folder: Path | str) -> None:
        self.folder = Path(folder)
        ids, kinds, counts, candidate_ids, probabilities, starts, candidate_starts, keys = map(self._open, NAMES)
        self._ids, self._kinds, self._counts = ids, kinds, counts
        self._candidate_ids, self._probabilities = candidate_ids, probabilities
        self._starts, self._candidate_starts, self._keys = starts, candidate_starts, keys
        whole = (
            len(starts) == len(candidate_starts) > 0
            and starts[-1] == len(ids) == len(kinds) == len(counts)
            and candidate_starts[-1] == len(candidate_ids) == len(probabilities)
        )
        if not whole:
            found = ", ".join(f"{name} {len(self._open(name))}" for name in NAMES)
            raise UserError("the arrays do not belong together", where=self.folder, found=found, do="make them again")

    def _open(self, name: str) -> np.ndarray:
        path = self.folder / f"{name}.npy"
        try:
            return np.load(path, mmap_mode="r", allow_pickle=False)
        except FileNotFoundError:
            raise UserError("no such array", where=path, do="make the targets again") from None
        except (ValueError, EOFError, OSError) as error:
            raise UserError("not an array", where=path, found=error, do="make the targets again") from None

    def __len__(self) -> int:
        return len(self._starts) - 1

    @property
    def lengths(self) -> np.ndarray:
        """[targets] int64, tokens of each."""
        return np.diff(self._starts)

    @cached_property
    def keys(self) -> tuple[Key, ...]:
        return tuple((question, source, index) for question, source, index in json.loads(self._keys.tobytes()))

    @cached_property
    def _places(self) -> dict[Key, int]:
        return {key: place for place, key in enumerate(self.keys)}

    def key(self, place: int) -> Key:
        return self.keys[place]

    def find(self, key: Key) -> int | None:
        """The place of a key, None if no target has it."""
        return self._places.get(key)

    def __getitem__(self, place: int) -> Target:
        if not 0 <= place < len(self):
            raise IndexError(f"target {place} of {len(self)}")
        own = slice(*self._starts[place : place + 2].tolist())
        theirs = slice(*self._candidate_starts[place : place + 2].tolist())
        ids, counts = self._ids[own], self._counts[own]
        offsets = np.concatenate([[0], np.cumsum(np.maximum(counts, 1), dtype=np.int64)])
        candidate_ids, units = np.empty(offsets[-1], ids.dtype), np.full(offsets[-1], ONE, np.uint16)
        stored = np.repeat(counts > 0, np.maximum(counts, 1))
        candidate_ids[~stored] = ids[counts == 0]
        candidate_ids[stored], units[stored] = self._candidate_ids[theirs], self._probabilities[theirs]
        return Target(
            ids=tuple(ids.tolist()),
            offsets=tuple(offsets.tolist()),
            candidate_ids=tuple(candidate_ids.tolist()),
            probabilities=tuple((units / ONE).tolist()),
            kinds=tuple(KINDS[kind] for kind in self._kinds[own].tolist()),
        )
