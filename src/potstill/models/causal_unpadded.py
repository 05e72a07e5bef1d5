"""Decoder-only rows without padding: all tokens of a batch in one row, and a prompt that several chains share once.

    prompt a b c, its chains d e and f; prompt g, its chain h i            (ends of targets are never read)
    tokens        a b c d e f g h i
    positions     0 1 2 3 4 3 0 1 2
    squares       [a b c] reads itself, [d e] reads a b c d e, [f] reads a b c f, [g h i] reads itself

Everything but attention works on tokens one by one, and positions are told, so attention alone must know the rows: the
model calls `attention` (below) where it would call torch's kernel, and gets the packing handed through as an argument.
Rows of like lengths make a *square*, as in `students.ragged`; a window (Gemma, Mistral) counts positions, not places.

    >>> packing = pack_rows([3, 1], [(0, 2), (0, 1), (1, 2)])
    >>> packing.positions.tolist(), packing.starts
    ([0, 1, 2, 3, 4, 3, 0, 1, 2], ((3, 2), (5, 2), (7, 6)))
    >>> [(square.rows, square.queries, square.keys) for square in packing.squares]
    [(2, 3, 3), (2, 2, 5)]
    >>> packing.squares[1].mask(None)[:, 0].int().tolist()
    [[[1, 1, 1, 1, 0], [1, 1, 1, 1, 1]], [[1, 1, 1, 1, 0], [1, 1, 1, 1, 0]]]
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final, Self

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from potstill.models.unpadded import group_rows_by_length

ATTENTION_NAME: Final = "potstill"  # of the attention, where transformers looks it up
PADDING_POSITION: Final = 2**62  # a position that nothing reads: padding


@dataclass(frozen=True, slots=True)
class AttentionBlock:
    """`rows` rows whose queries are padded to `queries` places and whose keys to `keys`.

    causal  whether each row reads itself, so that without a window the kernel's own causal mask is enough
    asked   [rows, queries] int64: positions of the queries; on padding that of the row's last query
    read    [rows, keys] int64: positions of the keys; on padding FAR
    """

    rows: int
    queries: int
    keys: int
    causal: bool
    asked: Tensor
    read: Tensor
    _masks: dict[int | None, Tensor] = field(default_factory=dict, compare=False)

    def mask(self, window: int | None) -> Tensor | None:
        """[rows, 1, queries, keys] bool: which keys a query reads. None where causal order says it all."""
        if window is not None and window >= self.keys:
            window = None
        if self.causal and window is None:
            return None
        if window not in self._masks:
            back = self.asked[:, :, None] - self.read[:, None, :]
            seen = back >= 0 if window is None else (back >= 0) & (back < window)
            self._masks[window] = seen[:, None]
        return self._masks[window]


@dataclass(frozen=True, slots=True)
class Packing:
    """Where the tokens of a batch stand.

    positions  [tokens] int64: of each token in its row
    squares    the rows of attention
    asking     the tokens that ask, square after square [sum of rows * queries]; `reading` those that are read
    back       [tokens]: the place of each token in `asking`
    starts     of each example: the place of its first token behind the prompt, and that of the prompt's last token
    """

    positions: Tensor
    squares: tuple[AttentionBlock, ...]
    asking: Tensor
    reading: Tensor
    back: Tensor
    starts: tuple[tuple[int, int], ...]

    def to(self, device: torch.device | str) -> Self:
        squares = tuple(replace(s, asked=s.asked.to(device), read=s.read.to(device), _masks={}) for s in self.squares)
        names = ("positions", "asking", "reading", "back")
        return replace(self, squares=squares, **{name: getattr(self, name).to(device) for name in names})


def pack_rows(prompts: Sequence[int], chains: Sequence[tuple[int, int]]) -> Packing:
    """The packing of prompts of so many tokens, and of chains under them: (prompt, tokens that are read).

    The tokens of a prompt are followed by those of its chains. A chain that is alone makes one row with its prompt;
    where there are more, each chain is a row that reads the prompt and itself.
    """
    under: list[list[int]] = [[] for _ in prompts]
    for chain, (prompt, _) in enumerate(chains):
        under[prompt].append(chain)
    place, starts = 0, [(0, 0)] * len(chains)
    positions: list[np.ndarray] = []
    whole: list[np.ndarray] = []  # rows that read themselves
    parts: list[tuple[np.ndarray, np.ndarray]] = []  # rows that read a prompt and themselves: queries, keys
    for length, own in zip(prompts, under, strict=True):
        first, place = place, place + length
        positions.append(np.arange(length))
        for chain in own:
            read = chains[chain][1]
            starts[chain] = (place, first + length - 1)
            positions.append(np.arange(length, length + read))
            if len(own) > 1 and read:
                tokens = np.arange(place, place + read)
                parts.append((tokens, np.concatenate([np.arange(first, first + length), tokens])))
            place += read
        whole.append(np.arange(first, first + length if len(own) > 1 else place))
    at = np.concatenate(positions)
    squares, asking, reading = [], [], []
    for causal, queries, keys in ((True, whole, whole), (False, [row for row, _ in parts], [row for _, row in parts])):
        for cut in group_rows_by_length(queries, keys):
            asked, read = (_pad_with_last_token([rows[row] for row in cut]) for rows in (queries, keys))
            padded = np.arange(read.shape[1]) >= np.array([[len(keys[row])] for row in cut])
            known = np.where(padded, PADDING_POSITION, at[read])
            tensors = (torch.from_numpy(at[asked]), torch.from_numpy(known))
            squares.append(AttentionBlock(len(cut), asked.shape[1], read.shape[1], causal, *tensors))
            asking.append(asked.ravel())
            reading.append(read.ravel())
    asks, reads = np.concatenate(asking), np.concatenate(reading)
    back = np.empty(len(at), np.int64)
    back[asks[::-1]] = np.arange(len(asks))[::-1]  # the first of those that stand twice, on padding
    places, asks, reads, back = (torch.from_numpy(found) for found in (at, asks, reads, back))
    return Packing(places, tuple(squares), asks, reads, back, tuple(starts))


def _pad_with_last_token(rows: Sequence[np.ndarray]) -> np.ndarray:
    """[rows, longest], each row's last token on its padding: some token must stand there, and this one may ask."""
    made = np.empty((len(rows), max(map(len, rows))), np.int64)
    for place, row in enumerate(rows):
        made[place, : len(row)], made[place, len(row) :] = row, row[-1]
    return made


def enable_packing(model: Any) -> None:
    """Let a model ask `attention`, which does what torch's kernel does wherever no packing is handed to it."""
    AttentionInterface.register(ATTENTION_NAME, packed_attention)
    AttentionMaskInterface.register(ATTENTION_NAME, sdpa_mask)
    model.config._attn_implementation = ATTENTION_NAME


def packed_attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    packing: Packing | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    scaling: float,
    dropout: float = 0.0,
    **others: Any,
) -> tuple[Tensor, None]:
    """What transformers asks of an attention: query [b, heads, t, w], key and value [b, some heads, s, w] to
    [b, t, heads, w]. With a packing b is 1, and `attention_mask` means nothing."""
    if packing is None:
        return _block_attention(module, query, key, value, attention_mask, softcap, scaling, dropout), None
    tokens = query.shape[2]
    asked, keys, values = (
        F.embedding(places, states[0].transpose(0, 1).reshape(tokens, -1))
        for places, states in ((packing.asking, query), (packing.reading, key), (packing.reading, value))
    )
    squares = packing.squares
    many, more = [s.rows * s.queries for s in squares], [s.rows * s.keys for s in squares]
    found = []
    for square, q, k, v in zip(squares, asked.split(many), keys.split(more), values.split(more), strict=True):
        q, k, v = (
            part.view(square.rows, -1, *_heads_and_width(states)).transpose(1, 2)
            for part, states in ((q, query), (k, key), (v, value))
        )
        mixed = _block_attention(module, q, k, v, square.mask(sliding_window), softcap, scaling, dropout)
        found.append(mixed.reshape(square.rows * square.queries, -1))
    together = F.embedding(packing.back, found[0] if len(found) == 1 else torch.cat(found))
    return together.view(1, tokens, query.shape[1], -1), None


def _heads_and_width(states: Tensor) -> tuple[int, int]:
    return states.shape[1], states.shape[3]


def _block_attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    softcap: float | None,
    scaling: float,
    dropout: float,
) -> Tensor:
    """[b, heads, t, w] to [b, t, heads, w]; without a mask in causal order. Scores that are capped have no kernel."""
    if softcap is None:
        return sdpa_attention_forward(module, query, key, value, mask, dropout=dropout, scaling=scaling)[0]
    groups = module.num_key_value_groups
    key, value = repeat_kv(key, groups), repeat_kv(value, groups)
    scores = softcap * torch.tanh(query @ key.mT * (scaling / softcap))
    if mask is None and query.shape[2] > 1:
        mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
    if mask is not None:
        scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min)  # finite: a row of padding reads nothing
    weights = F.dropout(scores.float().softmax(-1).to(value.dtype), dropout)
    return (weights @ value).transpose(1, 2)
