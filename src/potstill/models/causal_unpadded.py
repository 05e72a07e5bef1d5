"""Decoder-only rows without padding: all tokens of a batch form one row, and chains share prompts.

    prompt a b c with the chains d e and f; prompt g with the chain h i        (the model never reads a target's end)
    tokens        a b c d e f g h i
    positions     0 1 2 3 4 3 0 1 2
    attention     [a b c] reads itself, [d e] reads a b c d e, [f] reads a b c f, [g h i] reads itself

All prompts may begin with the same tokens, such as a chat template's system message. These are also computed once:

    prompts s t a and s t b c with the chains d and e, prefix s t
    tokens        s t a d b c e
    attention     [s t] reads itself, [a d] reads s t a d, [b c e] reads s t b c e

All layers except attention work on single tokens, and positions are explicit, so only attention must know the rows. The
model calls `packed_attention` instead of torch's kernel, and passes the packing on as an argument. Rows of similar lengths
form a block, as in `potstill.models.unpadded`. A sliding window (Gemma, Mistral) counts positions.

A mask of [queries, keys] would need a GiB for a chain of 32,000 tokens. So a row whose mask would be larger than
MAX_MASK_CELLS also has the tokens before it as queries, whose results are not used: causal order is then enough, and
torch's kernel needs no mask and stores no scores. Long rows with a window or a softcap are computed in chunks of queries.

    >>> packing = pack_rows([3, 1], [(0, 2), (0, 1), (1, 2)])
    >>> packing.positions.tolist(), packing.starts
    ([0, 1, 2, 3, 4, 3, 0, 1, 2], ((3, 2), (5, 2), (7, 6)))
    >>> [(block.rows, block.queries, block.keys) for block in packing.blocks]
    [(2, 3, 3), (2, 2, 5)]
    >>> packing.blocks[1].mask(None)[:, 0].int().tolist()
    [[[1, 1, 1, 1, 0], [1, 1, 1, 1, 1]], [[1, 1, 1, 1, 0], [1, 1, 1, 1, 0]]]
    >>> packing = pack_rows([3, 4], [(0, 1), (1, 1)], prefix=2)
    >>> packing.positions.tolist(), packing.starts
    ([0, 1, 2, 3, 2, 3, 4], ((3, 2), (6, 5)))
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final, Self

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from potstill.models.unpadded import group_rows_by_length

ATTENTION_NAME: Final = "potstill"  # name under which transformers finds `packed_attention`
PADDING_POSITION: Final = 2**62  # larger than every query's position, so that causal order excludes padding
# With a shared prefix, attention needs masks instead of causal order alone, so it must save this share of the tokens.
MIN_SAVED_TOKENS: Final = 0.05


MAX_MASK_CELLS: Final = 1 << 22  # queries x keys of a row for which masks and scores may exist


@dataclass(frozen=True, slots=True)
class AttentionBlock:
    """`rows` rows whose queries are padded to `queries` slots and whose keys are padded to `keys` slots.

    causal           whether each row reads only itself, so that without a window the kernel's causal mask is enough
    query_positions  [rows, queries] int64; for padding, the position of the row's last query
    key_positions    [rows, keys] int64; for padding, PADDING_POSITION
    """

    rows: int
    queries: int
    keys: int
    causal: bool
    query_positions: Tensor
    key_positions: Tensor
    _masks: dict[int | None, Tensor] = field(default_factory=dict, compare=False)  # by window; shared by all layers

    @property
    def is_long(self) -> bool:
        """Whether a mask of a row would be larger than MAX_MASK_CELLS. Such a row reads only itself."""
        return self.causal and self.queries * self.keys > MAX_MASK_CELLS

    def mask(self, window: int | None) -> Tensor | None:
        """[rows, 1, queries, keys] bool: the keys that each query reads. None if causal order is enough."""
        if window is not None and window >= self.keys:
            window = None
        if self.causal and window is None:
            return None
        if window not in self._masks:
            distance = self.query_positions[:, :, None] - self.key_positions[:, None, :]
            visible = distance >= 0 if window is None else (distance >= 0) & (distance < window)
            self._masks[window] = visible[:, None]
        return self._masks[window]


@dataclass(frozen=True, slots=True)
class Packing:
    """The positions of a batch's tokens.

    positions        [tokens] int64: position of each token in its row
    blocks           the rows for attention
    query_tokens     [sum of rows * queries] int64: token of each query slot, block after block
    key_tokens       [sum of rows * keys] int64: token of each key slot, block after block
    slot_of_token    [tokens] int64: query slot of each token
    starts           per example: index of its first token after the prompt, and index of the prompt's last token
    """

    positions: Tensor
    blocks: tuple[AttentionBlock, ...]
    query_tokens: Tensor
    key_tokens: Tensor
    slot_of_token: Tensor
    starts: tuple[tuple[int, int], ...]

    def to(self, device: torch.device | str) -> Self:
        def move(value: Any, names: Sequence[str], **changes: Any) -> Any:
            return replace(value, **{name: getattr(value, name).to(device) for name in names}, **changes)

        blocks = tuple(move(block, ("query_positions", "key_positions"), _masks={}) for block in self.blocks)
        return move(self, ("positions", "query_tokens", "key_tokens", "slot_of_token"), blocks=blocks)


def find_shared_prefix(prompts: Sequence[tuple[int, ...]], tokens: int) -> int:
    """The number of first tokens that all prompts share, for `pack_rows` to store once; 0 if sharing saves little.

    prompts  token ids of the different prompts of a batch
    tokens   number of tokens of the batch without sharing

    >>> find_shared_prefix([(1, 2, 3), (1, 2, 4, 5)], tokens=12), find_shared_prefix([(1, 2, 3), (1, 2)], tokens=100)
    (2, 0)
    """
    first, last = min(prompts), max(prompts)  # all prompts share the tokens that these two share
    limit = min(map(len, prompts)) - 1  # the last token of a prompt is supervised, so it is not shared
    length = next((index for index in range(limit) if first[index] != last[index]), limit)
    return length if length * (len(prompts) - 1) >= MIN_SAVED_TOKENS * tokens else 0


def pack_rows(prompts: Sequence[int], chains: Sequence[tuple[int, int]], prefix: int = 0) -> Packing:
    """The packing of prompts and of their chains.

    prompts  number of tokens of each prompt
    chains   per chain: index of its prompt, and number of tokens that the model reads
    prefix   number of first tokens that all prompts share, less than the length of the shortest prompt

    The prefix comes first. The other tokens of each prompt follow, each time with the tokens of the prompt's chains. A
    prompt with one chain forms a single row with it. A prompt with several chains is a row, and each chain is a row that
    reads the prompt and itself. Every row except the prefix also reads the prefix. A long row that reads other tokens
    contains them instead.
    """
    chains_of: list[list[int]] = [[] for _ in prompts]
    for chain, (prompt, _) in enumerate(chains):
        chains_of[prompt].append(chain)
    end, starts, common = prefix, [(0, 0)] * len(chains), np.arange(prefix)
    positions: list[np.ndarray] = [common]
    whole_rows: list[np.ndarray] = [common] if prefix else []  # rows that read themselves
    continued_rows: list[np.ndarray] = []  # rows that read earlier tokens and themselves
    continued_keys: list[np.ndarray] = []

    def add_row(tokens: np.ndarray, *before: np.ndarray) -> None:
        keys = np.concatenate([*before, tokens])
        if len(keys) == len(tokens) or len(keys) * len(tokens) > MAX_MASK_CELLS:
            whole_rows.append(keys)
        else:
            continued_rows.append(tokens)
            continued_keys.append(keys)

    for length, prompt_chains in zip(prompts, chains_of, strict=True):
        first, end, is_shared = end, end + length - prefix, len(prompt_chains) > 1
        prompt_tokens = np.arange(first, end)
        positions.append(np.arange(prefix, length))
        for chain in prompt_chains:
            read = chains[chain][1]
            starts[chain] = (end, int(prompt_tokens[-1]))
            positions.append(np.arange(length, length + read))
            if is_shared and read:
                add_row(np.arange(end, end + read), common, prompt_tokens)
            end += read
        add_row(prompt_tokens if is_shared else np.arange(first, end), common)
    position_of = np.concatenate(positions)
    blocks, query_parts, key_parts = [], [], []
    for causal, queries, keys in ((True, whole_rows, whole_rows), (False, continued_rows, continued_keys)):
        for group in group_rows_by_length(queries, keys):
            query_tokens, key_tokens = (_pad_with_last_token([rows[row] for row in group]) for rows in (queries, keys))
            padding = np.arange(key_tokens.shape[1]) >= np.array([[len(keys[row])] for row in group])
            key_positions = torch.from_numpy(np.where(padding, PADDING_POSITION, position_of[key_tokens]))
            query_positions = torch.from_numpy(position_of[query_tokens])
            sizes = len(group), query_tokens.shape[1], key_tokens.shape[1]
            blocks.append(AttentionBlock(*sizes, causal, query_positions, key_positions))
            query_parts.append(query_tokens.ravel())
            key_parts.append(key_tokens.ravel())
    all_queries, all_keys = np.concatenate(query_parts), np.concatenate(key_parts)
    slot_of_token = np.empty(len(position_of), np.int64)
    # A row's last token also fills its padding. Writing backwards keeps the token's first slot, which is the real one.
    slot_of_token[all_queries[::-1]] = np.arange(len(all_queries))[::-1]
    token_positions, query_tokens, key_tokens, slots = (
        torch.from_numpy(array) for array in (position_of, all_queries, all_keys, slot_of_token)
    )
    return Packing(token_positions, tuple(blocks), query_tokens, key_tokens, slots, tuple(starts))


def _pad_with_last_token(rows: Sequence[np.ndarray]) -> np.ndarray:
    """[rows, longest], padded with the last token of each row, because every slot needs a valid token."""
    padded = np.empty((len(rows), max(map(len, rows))), np.int64)
    for index, row in enumerate(rows):
        padded[index, : len(row)], padded[index, len(row) :] = row, row[-1]
    return padded


def enable_packing(model: Any) -> None:
    """Make a model call `packed_attention`, which equals torch's kernel if it gets no packing."""
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
    """Attention in the interface of transformers: query [b, heads, t, w], key, value [b, kv heads, s, w] -> [b, t, heads, w].

    With a packing, b is 1, and `attention_mask` is ignored.
    """
    settings = (softcap, scaling, dropout)
    if packing is None:
        return _block_attention(module, query, key, value, attention_mask, *settings), None
    tokens, blocks = query.shape[2], packing.blocks
    lookups = (
        (query, packing.query_tokens, [block.rows * block.queries for block in blocks]),
        (key, packing.key_tokens, [block.rows * block.keys for block in blocks]),
        (value, packing.key_tokens, [block.rows * block.keys for block in blocks]),
    )
    # Tokens become the first dimension, so that one lookup per block copies whole rows of [heads * width].
    split = [
        F.embedding(token_of_slot, states[0].transpose(0, 1).reshape(tokens, -1)).split(sizes)
        for states, token_of_slot, sizes in lookups
    ]
    outputs = []
    for block, *parts in zip(blocks, *split, strict=True):
        q, k, v = (
            part.view(block.rows, -1, states.shape[1], states.shape[3]).transpose(1, 2)
            for part, (states, _, _) in zip(parts, lookups, strict=True)
        )
        if (
            query.device.type == "cpu"
        ):  # in bfloat16, torch's CPU kernels take twice as long, mainly in the backward pass
            q, k, v = q.float(), k.float(), v.float()
        window = sliding_window if sliding_window is not None and sliding_window < block.keys else None
        if block.is_long and (window is not None or softcap is not None):
            mixed = _long_row_attention(module, q, k, v, window, *settings)
        else:
            mixed = _block_attention(module, q, k, v, block.mask(window), *settings)
        outputs.append(mixed.reshape(block.rows * block.queries, -1).to(query.dtype))
    output = F.embedding(packing.slot_of_token, outputs[0] if len(outputs) == 1 else torch.cat(outputs))
    return output.view(1, tokens, query.shape[1], -1), None


def _long_row_attention(
    module: Any, query: Tensor, key: Tensor, value: Tensor, window: int | None, softcap: float | None, *settings: float
) -> Tensor:
    """Causal attention of whole rows [b, heads, t, w] -> [b, t, heads, w], with a window or a softcap, chunk by chunk.

    A chunk reads only the keys in its window. With a softcap, the scores of a chunk are computed again in the backward pass.
    """
    length = query.shape[2]
    reach = length if window is None else window
    step = max(1, min(reach, MAX_MASK_CELLS // min(length, 2 * reach)))
    outputs = []
    for start in range(0, length, step):
        end, first = min(start + step, length), max(0, start - reach + 1)
        places = torch.arange(first, end, device=query.device)
        distance = places[start - first :, None] - places
        mask = ((distance >= 0) & (distance < reach))[None, None]
        inputs = (
            module,
            query[:, :, start:end],
            key[:, :, first:end],
            value[:, :, first:end],
            mask,
            softcap,
            *settings,
        )
        is_stored = softcap is None or not torch.is_grad_enabled()
        mixed = _block_attention(*inputs) if is_stored else checkpoint(_block_attention, *inputs, use_reentrant=False)
        outputs.append(mixed)
    return torch.cat(outputs, 1)


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
    """Attention [b, heads, t, w] -> [b, t, heads, w]; causal without a mask.

    With a softcap it is computed step by step, because no torch kernel computes a softcap.
    """
    if softcap is None:
        return sdpa_attention_forward(module, query, key, value, mask, dropout=dropout, scaling=scaling)[0]
    groups = module.num_key_value_groups
    key, value = repeat_kv(key, groups), repeat_kv(value, groups)
    scores = softcap * torch.tanh(query @ key.mT * (scaling / softcap))
    if mask is None and query.shape[2] > 1:
        mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
    if mask is not None:
        # Not -inf: a padded query may see no key, and a softmax over only -inf is NaN.
        scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
    weights = F.dropout(scores.float().softmax(-1).to(value.dtype), dropout)
    return (weights @ value).transpose(1, 2)
