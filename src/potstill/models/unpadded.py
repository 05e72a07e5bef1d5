"""Rows of different lengths without padding: matrix products get only tokens, attention gets rows of similar lengths.

All tokens of a batch form one matrix [n, width], row after row. Only attention needs separate rows. For attention, rows
are sorted by length and grouped into *blocks*. The shortest row of a block has at least three quarters of the length of
its longest row:

    lengths 9 9 8 3 3      ->      blocks [9 9 8] of 9, [3 3] of 3: 33 slots for 32 tokens; one block would have 45

    >>> layout = build_layout([np.arange(2), np.arange(2, 3)], [np.arange(2), np.arange(2, 3)], heads=1)
    >>> [(block.rows, block.queries, block.keys) for block in layout.blocks]
    [(1, 2, 2), (1, 1, 1)]

A query row may read a key row of another length (cross-attention). It may contain several chains under the same prompt,
whose keys and values are then computed once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

MIN_LENGTH_RATIO = 0.75  # minimum ratio of the shortest to the longest row in a block


@dataclass(frozen=True, slots=True)
class Block:
    """`rows` rows whose queries are padded to `queries` slots and whose keys are padded to `keys` slots.

    key_padding  [rows, keys] bool: True on padding; None without padding
    """

    rows: int
    queries: int
    keys: int
    key_padding: Tensor | None


@dataclass(frozen=True, slots=True)
class BlockIndices:
    """The positions of the tokens of all heads in the blocks. The blocks [rows, heads, slots] have m slots in total.

    flat_of_slot    [m] int64: row of each slot in [tokens * heads, width]; for padding, one after the last row
    slot_of_flat    [tokens * heads] int64: the inverse of `flat_of_slot`
    filled_of_slot  [m] int64: `flat_of_slot` with the last row instead of padding
    """

    flat_of_slot: Tensor
    slot_of_flat: Tensor
    filled_of_slot: Tensor

    def gather(self, flat: Tensor) -> Tensor:
        """[tokens * heads, width] -> [m, width]. Padding contains an arbitrary token, which must not affect results."""
        return _Gather.apply(flat, self.filled_of_slot, self.slot_of_flat)  # type: ignore[return-value]

    def scatter(self, padded: Tensor) -> Tensor:
        """[m, width] -> [tokens * heads, width]: the inverse of `gather`."""
        return _Scatter.apply(padded, self.slot_of_flat, self.flat_of_slot)  # type: ignore[return-value]


@dataclass(frozen=True, slots=True)
class Layout:
    """The blocks of an attention over the rows of a batch, and the positions of queries and keys in the blocks."""

    blocks: tuple[Block, ...]
    queries: BlockIndices
    keys: BlockIndices

    def to(self, device: torch.device | str) -> Self:
        def move(value: Any) -> Any:
            tensors = {name: getattr(value, name) for name in value.__slots__}
            return replace(value, **{name: t.to(device) for name, t in tensors.items() if isinstance(t, Tensor)})

        queries = move(self.queries)
        keys = queries if self.keys is self.queries else move(self.keys)
        return type(self)(tuple(map(move, self.blocks)), queries, keys)


def build_layout(queries: Sequence[np.ndarray], keys: Sequence[np.ndarray], heads: int) -> Layout:
    """The layout of rows of tokens.

    queries, keys  [rows] of [length] int64: token numbers of each row; every number occurs once. The same object for
                   self-attention
    """
    groups = group_rows_by_length(queries, keys)
    query_indices = _block_indices(queries, groups, heads)
    key_indices = query_indices if keys is queries else _block_indices(keys, groups, heads)
    blocks = []
    for rows in groups:
        lengths = np.array([len(keys[row]) for row in rows])
        longest = int(lengths[0])
        padding = torch.from_numpy(np.arange(longest) >= lengths[:, None]) if lengths[-1] < longest else None
        blocks.append(Block(len(rows), max(len(queries[row]) for row in rows), longest, padding))
    return Layout(tuple(blocks), query_indices, key_indices)


def group_rows_by_length(queries: Sequence[np.ndarray], keys: Sequence[np.ndarray]) -> list[list[int]]:
    """The row numbers of each block, longest keys first. queries, keys: as for `build_layout`."""
    groups: list[list[int]] = []
    for row in sorted(range(len(keys)), key=lambda row: (-len(keys[row]), -len(queries[row]), row)):
        if groups and len(keys[row]) >= MIN_LENGTH_RATIO * len(keys[groups[-1][0]]):
            groups[-1].append(row)
        else:
            groups.append([row])
    return groups


def _block_indices(rows: Sequence[np.ndarray], groups: Sequence[Sequence[int]], heads: int) -> BlockIndices:
    total = sum(map(len, rows)) * heads
    head = np.arange(heads)[:, None]
    parts = []
    for group in groups:
        longest = max(len(rows[row]) for row in group)
        part = np.full((len(group), heads, longest), total, np.int64)
        for index, row in enumerate(group):
            part[index, :, : len(rows[row])] = rows[row] * heads + head
        parts.append(part.ravel())
    flat_of_slot = np.concatenate(parts)
    slot_of_flat = np.empty(total, np.int64)
    tokens = np.flatnonzero(flat_of_slot < total)
    slot_of_flat[flat_of_slot[tokens]] = tokens
    arrays = (flat_of_slot, slot_of_flat, np.minimum(flat_of_slot, total - 1))
    return BlockIndices(*(torch.from_numpy(array) for array in arrays))


# The usual backward pass of a lookup adds the gradients of all slots to zeros. Here every row has exactly one slot, so the
# backward pass is also a lookup, which is faster, and no sum depends on the order of its terms.


class _Gather(torch.autograd.Function):
    """`BlockIndices.gather` with a backward pass. Padding has the gradient 0, so a row's gradient is that of its slot."""

    @staticmethod
    def forward(ctx: Any, flat: Tensor, filled_of_slot: Tensor, slot_of_flat: Tensor) -> Tensor:  # type: ignore[override]
        ctx.save_for_backward(slot_of_flat)
        return torch.embedding(flat, filled_of_slot)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        (slot_of_flat,) = ctx.saved_tensors
        return torch.embedding(grad.contiguous(), slot_of_flat), None, None


class _Scatter(torch.autograd.Function):
    """`BlockIndices.scatter` with a backward pass. Padding gets the gradient 0, from a row of zeros after the last row."""

    @staticmethod
    def forward(ctx: Any, padded: Tensor, slot_of_flat: Tensor, flat_of_slot: Tensor) -> Tensor:  # type: ignore[override]
        ctx.save_for_backward(flat_of_slot)
        return torch.embedding(padded, slot_of_flat)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        (flat_of_slot,) = ctx.saved_tensors
        return torch.embedding(torch.cat([grad, grad.new_zeros(1, grad.shape[1])]), flat_of_slot), None, None
