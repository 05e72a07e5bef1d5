"""Rows of different lengths without padding: matrix products see tokens only, attention sees rows of like lengths.

All tokens of a batch stand in one matrix [n, width], row after row. Only attention needs them by rows; there, rows are
sorted by length and cut into *squares*, in each of which the shortest has at least three quarters of the longest:

    lengths 9 9 8 3 3      ->      squares [9 9 8] of 9, [3 3] of 3: 33 places for 32 tokens, one square has 45

    >>> layout = build_layout([np.arange(2), np.arange(2, 3)], [np.arange(2), np.arange(2, 3)], heads=1)
    >>> [(square.rows, square.queries, square.keys) for square in layout.squares]
    [(1, 2, 2), (1, 1, 1)]
    >>> tokens = torch.tensor([[1.0], [2.0], [3.0]])
    >>> layout.queries.gather(tokens).tolist(), layout.queries.scatter(layout.queries.gather(tokens)).tolist()
    ([[1.0], [2.0], [3.0]], [[1.0], [2.0], [3.0]])

A query row may read a key row of another length (cross-attention), and may hold several chains under one prompt: keys
and values of the prompt are then computed once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

MIN_LENGTH_RATIO = 0.75  # the shortest row of a square against its longest


@dataclass(frozen=True, slots=True)
class Block:
    """`rows` rows whose queries are padded to `queries` places and whose keys to `keys`.

    hidden  [rows, keys] bool: True on the padding of the keys; None where there is none
    """

    rows: int
    queries: int
    keys: int
    hidden: Tensor | None


@dataclass(frozen=True, slots=True)
class BlockIndices:
    """Where each token of each head lies in the squares, one after another as [rows, heads, places].

    into  [m] int64: for each place its row in [tokens * heads, width]; on padding a row beyond the last
    back  [tokens * heads] int64: for each such row its place
    fill  [m]: `into` with a token in place of padding
    """

    into: Tensor
    back: Tensor
    fill: Tensor

    def gather(self, flat: Tensor) -> Tensor:
        """[tokens * heads, width] -> [m, width]; on padding stands a token, which nothing may depend on."""
        return _Gather.apply(flat, self.fill, self.back)  # type: ignore[return-value]

    def scatter(self, padded: Tensor) -> Tensor:
        """[m, width] -> [tokens * heads, width], the reverse of `gather`."""
        return _Scatter.apply(padded, self.back, self.into)  # type: ignore[return-value]


@dataclass(frozen=True, slots=True)
class Layout:
    """One attention over the rows of a batch."""

    squares: tuple[Block, ...]
    queries: BlockIndices
    keys: BlockIndices

    def to(self, device: torch.device | str) -> Self:
        squares = tuple(
            Block(s.rows, s.queries, s.keys, None if s.hidden is None else s.hidden.to(device)) for s in self.squares
        )
        moved = [
            BlockIndices(*(getattr(own, name).to(device) for name in BlockIndices.__slots__)) for own in self._both()
        ]
        return type(self)(squares, moved[0], moved[-1])

    def _both(self) -> list[BlockIndices]:
        return [self.queries] if self.keys is self.queries else [self.queries, self.keys]


def build_layout(queries: Sequence[np.ndarray], keys: Sequence[np.ndarray], heads: int) -> Layout:
    """The layout of rows whose tokens have these numbers, each number once; `keys` is `queries` for self-attention.

    queries, keys  [rows] of [length] int64: the tokens of each row
    """
    squares, cuts = [], group_rows_by_length(queries, keys)
    asked = _block_indices(queries, cuts, heads)
    read = asked if keys is queries else _block_indices(keys, cuts, heads)
    for cut in cuts:
        lengths = np.array([len(keys[row]) for row in cut])
        longest = int(lengths[0])
        hidden = torch.from_numpy(np.arange(longest) >= lengths[:, None]) if lengths[-1] < longest else None
        squares.append(Block(len(cut), max(len(queries[row]) for row in cut), longest, hidden))
    return Layout(tuple(squares), asked, read)


def group_rows_by_length(queries: Sequence[np.ndarray], keys: Sequence[np.ndarray]) -> list[list[int]]:
    """The rows of each square, longest first; `queries` and `keys` as `lay` takes them."""
    cuts: list[list[int]] = []
    for row in sorted(range(len(keys)), key=lambda row: (-len(keys[row]), -len(queries[row]), row)):
        if cuts and len(keys[row]) >= MIN_LENGTH_RATIO * len(keys[cuts[-1][0]]):
            cuts[-1].append(row)
        else:
            cuts.append([row])
    return cuts


def _block_indices(rows: Sequence[np.ndarray], cuts: Sequence[Sequence[int]], heads: int) -> BlockIndices:
    total = sum(map(len, rows)) * heads
    head = np.arange(heads)[:, None]
    parts = []
    for cut in cuts:
        longest = max(len(rows[row]) for row in cut)
        part = np.full((len(cut), heads, longest), total, np.int64)
        for place, row in enumerate(cut):
            part[place, :, : len(rows[row])] = rows[row] * heads + head
        parts.append(part.ravel())
    into = np.concatenate(parts)
    back = np.empty(total, np.int64)
    real = np.flatnonzero(into < total)
    back[into[real]] = real
    return BlockIndices(*(torch.from_numpy(found) for found in (into, back, np.minimum(into, total - 1))))


class _Gather(torch.autograd.Function):
    """Padding is read by nothing, so its gradient is 0 and need not be added: every sum keeps its order."""

    @staticmethod
    def forward(ctx: Any, flat: Tensor, fill: Tensor, back: Tensor) -> Tensor:  # type: ignore[override]
        ctx.save_for_backward(back)
        return torch.embedding(flat, fill)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        (back,) = ctx.saved_tensors
        return torch.embedding(grad.contiguous(), back), None, None


class _Scatter(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, padded: Tensor, back: Tensor, into: Tensor) -> Tensor:  # type: ignore[override]
        ctx.save_for_backward(into)
        return torch.embedding(padded, back)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        (into,) = ctx.saved_tensors
        return torch.embedding(torch.cat([grad, grad.new_zeros(1, grad.shape[1])]), into), None, None
