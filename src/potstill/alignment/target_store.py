"""Stores targets in flat arrays, which are memory-mapped and need no decoding.

    >>> import tempfile
    >>> chain = Chain.from_tokens("q1", 0, [b"7", b" 9"])
    >>> soft = Target((7, 9, 1), (0, 2, 3, 4), (7, 8, 9, 1), (0.75, 0.25, 1.0, 1.0), ("same", "hard", "end"))
    >>> arrays = pack_targets([(chain, soft)])
    >>> arrays["probabilities"], arrays["marks"]  # a certain position costs its id and one byte
    (array([49151, 16383], dtype=uint16), array([12,  4,  5], dtype=uint8))
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     for name, array in arrays.items():
    ...         np.save(Path(folder, f"{name}.npy"), array)
    ...     store = TargetStore(folder)
    ...     len(store), store.get(chain).ids, store[0].distribution(0), store[0].tail(0)
    (1, (7, 9, 1), {7: 0.75, 8: 0.25}, 0.0)

The unit of a stored probability is 1/65,536. A probability is 1 to 65,536 units, and the array has the number of units
minus 1. Sums of units are exact in 32 bits and in any order, so the kept mass and the tail add up to exactly 1, and the
probability of a certain token is exactly 1. The kept mass of a position is rounded once, so its error is at most half a
unit for any number of candidates.

    ids               [tokens]      uint16 if at most 65,536 different ids are used, else uint32
    used              [ids]         uint32, usually empty. If an id is too large for uint16, but at most 65,536 different
                                    ids are used, it has these ids, ascending, and the other arrays have indices in it
    marks             [tokens]      6 x number of candidates + index in POSITION_KINDS; uint8 up to 41 candidates, else
                                    uint16. A position without stored candidates is certain of its own id
    candidate_ids     [candidates]  dtype as ids
    probabilities     [candidates]  uint16, units minus 1
    starts            [targets + 1] uint32 or uint64, index of each target's first token
    candidate_starts  [targets + 1] uint32 or uint64, index of each target's first candidate
    texts             [targets]     uint64, digest of each chain's text, token spans and stop reason
    keys              [bytes]       uint8, JSON in UTF-8: a list with one [question, source, index] per target

The file `about.json` in the same folder has the `TargetOrigin`, which identifies the inputs of the targets. A reader that
expects another origin gets an error.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Final, get_args

import numpy as np

from potstill.errors import UserError
from potstill.records import Chain, Target, TargetKind

VERSION: Final = 2  # of the layout; stored in the manifest of the stage that aligns
UNITS_PER_ONE: Final = 65_536
POSITION_KINDS: Final[tuple[TargetKind, ...]] = get_args(TargetKind)
ARRAY_NAMES: Final = (
    *("ids", "marks", "candidate_ids", "probabilities", "used"),
    *("starts", "candidate_starts", "texts", "keys"),
)
ORIGIN_FILE: Final = "about.json"
BLOCK_TARGETS: Final = 1 << 14  # many small arrays would take more memory than one large array
# The columns of `pack_block` with their types.
BLOCK_COLUMNS: Final = {
    "ids": np.uint32,
    "marks": np.uint16,
    "candidate_ids": np.uint32,
    "units": np.uint16,
    "tokens": np.int64,
    "candidates": np.int64,
}
ChainKey = tuple[str, str, int]


@dataclass(frozen=True, slots=True)
class TargetOrigin:
    """Identifies what targets were made from, apart from the texts of the chains.

    tokenizer  digest of the student's tokenizer
    teacher    digest of the chains with their probabilities
    rule       transfer rule
    version    version of the transfer rules
    settings   digest of all other inputs: rewriting, threshold, the chains from which the completions were made
    """

    tokenizer: str
    teacher: str
    rule: str
    version: int
    settings: str = ""

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def pack_targets(targets: Iterable[tuple[Chain, Target]], threshold: float = 0.0) -> dict[str, np.ndarray]:
    """The arrays of the module's description, by name, for targets in the given order.

    targets    each target with the chain from which it was made
    threshold  a candidate with a smaller probability goes to the tail; every position keeps its most likely candidate

    Raises UserError for two targets with the same key, and for a position with more than 10,921 candidates.
    """
    rest = iter(targets)  # not a list: a target of 32,000 tokens takes about 10 MiB as Python objects
    blocks = (itertools.chain([first], itertools.islice(rest, BLOCK_TARGETS - 1)) for first in rest)
    return join_blocks(pack_block(block, threshold) for block in blocks)


def pack_block(targets: Iterable[tuple[Chain, Target]], threshold: float = 0.0) -> dict[str, np.ndarray]:
    """A part of the targets as arrays, which `join_blocks` joins. The arguments are those of `pack_targets`.

    ids [tokens] uint32, marks [tokens] uint16, candidate_ids [candidates] uint32, units [candidates] uint16, tokens and
    candidates [targets] int64 (their numbers), texts [targets] uint64, keys [bytes] uint8
    """
    keys: list[ChainKey] = []
    texts: list[int] = []
    columns: list[list[np.ndarray]] = [[np.zeros(0, dtype)] for dtype in BLOCK_COLUMNS.values()]
    for chain, target in targets:
        keys.append(chain.key)
        texts.append(chain_digest(chain))
        for column, array in zip(columns, _pack_target(chain.key, target, threshold), strict=True):
            column.append(array)
    return {
        **dict(zip(BLOCK_COLUMNS, map(np.concatenate, columns), strict=True)),
        "texts": np.array(texts, np.uint64),
        "keys": _encode_keys(keys),
    }


def join_blocks(blocks: Iterable[Mapping[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """The arrays of all targets, from the arrays of `pack_block` in the order of the targets.

    Raises UserError for two targets with the same key.
    """
    columns: dict[str, list[np.ndarray]] = {name: [np.zeros(0, dtype)] for name, dtype in BLOCK_COLUMNS.items()}
    texts = [np.zeros(0, np.uint64)]
    keys: dict[ChainKey, None] = {}
    for block in blocks:
        for question, source, index in json.loads(block["keys"].tobytes()):
            key = (question, source, index)
            if key in keys:
                hint = "drop one of the chains"
                raise UserError("two targets have the same key", code="E-align-duplicate-key", where=key, hint=hint)
            keys[key] = None
        texts.append(block["texts"])
        for name, column in columns.items():
            column.append(block[name])
    ids, marks, candidate_ids, units, tokens, candidates = map(np.concatenate, columns.values())
    id_dtype, used = np.uint16, np.zeros(0, np.uint32)
    if max(ids.max(initial=0), candidate_ids.max(initial=0)) >= 2**16:
        distinct = np.union1d(ids, candidate_ids)  # texts of one task use a small part of a large vocabulary
        if len(distinct) <= 2**16:
            used = distinct
            ids, candidate_ids = np.searchsorted(used, ids), np.searchsorted(used, candidate_ids)
        else:
            id_dtype = np.uint32
    return {
        "ids": ids.astype(id_dtype),
        "marks": marks.astype(np.uint8 if marks.max(initial=0) < 2**8 else np.uint16),
        "candidate_ids": candidate_ids.astype(id_dtype),
        "probabilities": units,
        "used": used,
        "starts": _start_offsets(tokens),
        "candidate_starts": _start_offsets(candidates),
        "texts": np.concatenate(texts),
        "keys": _encode_keys(list(keys)),
    }


def _encode_keys(keys: list[ChainKey]) -> np.ndarray:
    return np.frombuffer(json.dumps(keys, ensure_ascii=False, separators=(",", ":")).encode(), np.uint8)


def chain_digest(chain: Chain) -> int:
    """A digest of 64 bits of the chain's text, token spans and stop reason, on which its target depends."""
    state = hashlib.blake2b(chain.content, digest_size=8)
    state.update(np.asarray(chain.spans, np.int64).tobytes() + chain.stop.encode())
    return int.from_bytes(state.digest(), "big")


def _start_offsets(lengths: np.ndarray) -> np.ndarray:
    starts = np.concatenate([[0], np.cumsum(lengths, dtype=np.uint64)])
    return starts.astype(np.uint32 if starts[-1] < 2**32 else np.uint64)


def _pack_target(key: ChainKey, target: Target, threshold: float) -> tuple[np.ndarray, ...]:
    """The ids, marks, candidate ids and stored units of one target, its number of tokens, and its number of candidates."""
    ids = np.asarray(target.ids, np.uint32)
    widths = np.diff(np.asarray(target.offsets, np.int64))
    candidate_ids = np.asarray(target.candidate_ids, np.uint32)
    probabilities = np.asarray(target.probabilities, np.float64)
    assert (widths > 0).all(), f"{key}: a position without a candidate"
    assert ((probabilities > 0) & (probabilities <= 1)).all(), f"{key}: not a probability"
    row, starts = np.repeat(np.arange(len(ids)), widths), np.asarray(target.offsets, np.int64)[:-1]
    largest = np.lexsort((-probabilities, row))[starts]  # the sort is stable: the first of equal probabilities
    keep = probabilities >= threshold
    keep[largest] = True
    units = _to_units(np.where(keep, probabilities, 0.0), starts, widths)
    units[largest] = np.maximum(units[largest], 1)
    keep = (units > 0) & ~((units == UNITS_PER_ONE) & (candidate_ids == ids[row]))
    counts = np.bincount(row[keep], minlength=len(ids))
    if counts.max(initial=0) > 2**16 // len(POSITION_KINDS) - 1:
        raise UserError(
            "too many candidates at one position",
            code="E-align-too-many-candidates",
            where=key,
            found=int(counts.max()),
            hint="ask the teacher for fewer candidates, or raise transfer.min_probability",
        )
    kinds = np.array([POSITION_KINDS.index(kind) for kind in target.kinds], np.int64)
    marks = (len(POSITION_KINDS) * counts + kinds).astype(np.uint16)
    return (
        *(ids, marks, candidate_ids[keep], (units[keep] - 1).astype(np.uint16)),
        *(np.array([len(ids)], np.int64), np.array([keep.sum()], np.int64)),
    )


def _to_units(probabilities: np.ndarray, starts: np.ndarray, widths: np.ndarray) -> np.ndarray:
    """[candidates] int64, the probabilities in whole units.

    They are the differences between the rounded running sums of a position, so that rounding errors do not add up.

    probabilities   [candidates] float64, of all positions in order
    starts, widths  [positions] index of each position's first candidate, and its number of candidates
    """
    sums = np.cumsum(probabilities)
    before = np.repeat(sums[starts] - probabilities[starts], widths)
    steps = np.minimum(np.rint((sums - before) * UNITS_PER_ONE).astype(np.int64), UNITS_PER_ONE)
    units = np.diff(steps, prepend=0)
    units[starts] = steps[starts]
    return units


class TargetStore:
    """The targets in a folder of `.npy` files. The files are memory-mapped: only the parts in use are read from disk.

    origin  the origin that the reader expects; None accepts any

    Raises UserError if a file is missing or is not an array, if the lengths of the arrays do not match, or if the
    targets have another origin; the message names the difference.
    """

    def __init__(self, folder: Path | str, origin: TargetOrigin | None = None) -> None:
        self.folder = Path(folder)
        if origin is not None:
            self._check_origin(origin)
        arrays = {name: self._open(name) for name in ARRAY_NAMES}
        self._ids, self._marks, self._candidate_ids, self._units, self._used = (arrays[n] for n in ARRAY_NAMES[:5])
        self._starts, self._candidate_starts, self._texts, self._keys = (arrays[n] for n in ARRAY_NAMES[5:])
        if not (
            len(self._starts) == len(self._candidate_starts) == len(self._texts) + 1
            and self._starts[-1] == len(self._ids) == len(self._marks)
            and self._candidate_starts[-1] == len(self._candidate_ids) == len(self._units)
        ):
            lengths = ", ".join(f"{name} {len(array)}" for name, array in arrays.items())
            raise _redo_error("the lengths of the arrays do not match", "E-align-torn-store", self.folder, lengths)

    def _check_origin(self, origin: TargetOrigin) -> None:
        path = self.folder / ORIGIN_FILE
        try:
            stored = json.loads(path.read_bytes())
        except (OSError, ValueError) as error:
            raise _redo_error("the origin of the targets cannot be read", "E-align-no-origin", path, error) from None
        for name, value in origin.as_json().items():
            actual = stored.get(name) if isinstance(stored, dict) else stored
            if actual != value:
                subject = "version of the rules" if name == "version" else name
                found = f"{actual!r}, not {value!r}"
                raise _redo_error(f"the targets were made with another {subject}", "E-align-other-origin", path, found)

    def _open(self, name: str) -> np.ndarray:
        path = self.folder / f"{name}.npy"
        try:
            return np.load(path, mmap_mode="r", allow_pickle=False)
        except FileNotFoundError:
            raise _redo_error("an array of the targets is missing", "E-align-no-array", path) from None
        except (ValueError, EOFError, OSError) as error:
            raise _redo_error("the file is not a NumPy array", "E-align-not-an-array", path, error) from None

    def __len__(self) -> int:
        return len(self._texts)

    def __repr__(self) -> str:
        return f"TargetStore({str(self.folder)!r}: {len(self)} targets)"

    @property
    def lengths(self) -> np.ndarray:
        """[targets] int64, the number of tokens of each target."""
        return np.diff(self._starts).astype(np.int64)

    @cached_property
    def keys(self) -> tuple[ChainKey, ...]:
        return tuple((question, source, index) for question, source, index in json.loads(self._keys.tobytes()))

    @cached_property
    def _indices(self) -> dict[ChainKey, int]:
        return {key: index for index, key in enumerate(self.keys)}

    def find(self, key: ChainKey) -> int | None:
        """The index of the target with this key; None if no target has it."""
        return self._indices.get(key)

    def get(self, chain: Chain) -> Target:
        """The target of a chain. Raises UserError if the chain has no target, and if the target was made from another text,
        other token spans or another stop reason."""
        index = self.find(chain.key)
        if index is None:
            raise UserError(
                "the chain has no target",
                code="E-align-no-target",
                where=chain.key,
                hint="only chains that the filter kept have targets",
            )
        if int(self._texts[index]) != chain_digest(chain):
            raise _redo_error(
                "the target was made from another chain with the same key", "E-align-other-chain", where=chain.key
            )
        return self[index]

    def __getitem__(self, index: int) -> Target:
        if not 0 <= index < len(self):
            raise IndexError(f"target {index} of {len(self)}")
        tokens = slice(*self._starts[index : index + 2].tolist())
        candidates = slice(*self._candidate_starts[index : index + 2].tolist())
        ids, stored_ids = self._ids[tokens], self._candidate_ids[candidates]
        if len(self._used):
            ids, stored_ids = self._used[ids], self._used[stored_ids]
        counts, kinds = np.divmod(self._marks[tokens], len(POSITION_KINDS))
        widths = np.maximum(counts, 1)
        offsets = np.zeros(len(ids) + 1, np.int64)
        np.cumsum(widths, out=offsets[1:])
        # A position without stored candidates is certain of its own id.
        candidate_ids, units = np.repeat(ids, widths), np.full(offsets[-1], UNITS_PER_ONE, np.int64)
        stored = np.repeat(counts > 0, widths)
        candidate_ids[stored], units[stored] = stored_ids, self._units[candidates] + np.int64(1)
        return Target(
            ids=tuple(ids.tolist()),
            offsets=tuple(offsets.tolist()),
            candidate_ids=tuple(candidate_ids.tolist()),
            probabilities=tuple((units / UNITS_PER_ONE).tolist()),
            kinds=tuple(POSITION_KINDS[kind] for kind in kinds.tolist()),
        )


def _redo_error(what: str, code: str, where: object, found: object = "") -> UserError:
    return UserError(what, code=code, where=where, found=found, hint="make the targets again: --redo align")
