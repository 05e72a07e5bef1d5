"""The step of a decoder written out: what reading one token a row costs where nearly all of it is attention's memory.

    >>> compact_rows([0, 2, 3])      # of four rows the second ended: the last one moves into its place, the others stay
    ([0, 3, 2], [1], [3])

Attention reads what a row remembers at every step, so a step takes as long as that memory is large. Here the keys and
values of a prompt exist once, however many texts are written behind it, and are read once for all of them; those of
the texts stand apart and grow in place; a row that ended gives its place to the last one, so that taking rows out
copies few of them.

For the plain Llama and T5 kinds in float32; `read` leaves every other model to the library's own modules (`memory`).
Sums are made in another order than there, so numbers differ as float32 does (`tests/test_memory.py`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import torch
from torch import Tensor, nn
from transformers import DynamicCache, LlamaForCausalLM, T5ForConditionalGeneration

from potstill.inference import kv_cache
from potstill.inference.kv_cache import CACHE_BLOCK, DecodeState, pad_prompts, prefill
from potstill.models import Student

SUPPORTED_ROPE_TYPES: Final = (
    "default",
    "linear",
    "llama3",
)  # kinds of rotary positions that do not change with the length


def fast_prefill(student: Student, prompts: Sequence[tuple[int, ...]]) -> DecodeState:
    """The state behind some prompts, one row each, in their order; equal ones are read once."""
    places: dict[tuple[int, ...], int] = {}
    rows = [places.setdefault(prompt, len(places)) for prompt in prompts]
    if not supports_fast_decode(student):
        return prefill(student, list(places), rows)
    return (_FastLlama if student.family == "causal" else _FastT5)(student, list(places), rows)


def supports_fast_decode(student: Student) -> bool:
    """Whether the model is exactly one of those that this module writes out: adapters, too, change a linear layer."""
    model = student.model
    plain = all(
        type(part) is nn.Linear
        for name, part in model.named_modules()
        if name.rpartition(".")[2] in ("q_proj", "k_proj", "v_proj", "o_proj", "q", "k", "v", "o")
    )
    if type(model) is LlamaForCausalLM:
        rotation = (model.config.rope_parameters or {}).get("rope_type", "default")
        plain = plain and rotation in SUPPORTED_ROPE_TYPES
    return plain and type(model) in (LlamaForCausalLM, T5ForConditionalGeneration) and model.dtype == torch.float32


class _PromptCache:
    """Keys and values [p, h, s, d] of p prompts, a pair a layer, and which rows read which prompt.

    A query [n, h, g, d] has g heads to each of h heads of keys. `owners` [n] says whose prompt a row reads.
    """

    def __init__(self, pairs: Sequence[tuple[Tensor, Tensor]], mask: Tensor, owners: list[int]) -> None:
        self.pairs = [(keys.contiguous(), values.contiguous()) for keys, values in pairs]
        self.bias = None if bool(mask.all()) else torch.zeros(mask.shape, device=mask.device)
        if self.bias is not None:
            self.bias.masked_fill_(mask == 0, -torch.inf)
        self.count = len(mask)
        self._seat(owners)

    def _seat(self, owners: list[int]) -> None:
        """Give every row a seat at its prompt: as many seats at each as the fullest has rows."""
        self.owners = owners
        taken = [0] * self.count
        seats = []
        for owner in owners:
            seats.append(taken[owner])
            taken[owner] += 1
        self.width = max(taken)
        self.alone = owners == list(range(self.count))
        places = [owner * self.width + seat for owner, seat in zip(owners, seats, strict=True)]
        self.places = torch.tensor(places, device=self.pairs[0][0].device)

    def keep(self, order: list[int]) -> None:
        """Rows `order` stay, in that order; prompts that nobody reads any more leave."""
        owners = [self.owners[row] for row in order]
        seats, holes, moved = compact_rows(sorted(set(owners)))
        if len(seats) < self.count:
            for tensor in (
                *(held for pair in self.pairs for held in pair),
                *([] if self.bias is None else [self.bias]),
            ):
                tensor[holes] = tensor[moved]
            self.count = len(seats)
        now = {before: after for after, before in enumerate(seats)}
        self._seat([now[owner] for owner in owners])

    def scores(self, query: Tensor, layer: int) -> Tensor:
        """[n, h, g, d] -> [n * h, g, s]: every query against its prompt's keys."""
        keys = self.pairs[layer][0][: self.count].flatten(0, 1)
        found = torch.bmm(self._spread(query), keys.transpose(1, 2))
        if self.bias is not None:
            found.view(self.count, query.shape[1], -1, found.shape[-1]).add_(self.bias[: self.count, None, None])
        return self._gather(found, query.shape[1], query.shape[2])

    def mix(self, shares: Tensor, layer: int) -> Tensor:
        """[n * h, g, s] -> [n * h, g, d]: the prompt's values in these shares."""
        values = self.pairs[layer][1][: self.count].flatten(0, 1)
        heads = self.pairs[layer][1].shape[1]
        spread = self._spread(shares.view(-1, heads, *shares.shape[1:]))
        return self._gather(torch.bmm(spread, values), heads, shares.shape[1])

    def _spread(self, rows: Tensor) -> Tensor:
        """[n, h, g, e] -> [p * h, seats * g, e]"""
        if self.alone:
            return rows.reshape(-1, *rows.shape[2:])
        _, heads, group, width = rows.shape
        seated = rows.new_zeros(self.count * self.width, heads, group, width)
        seated[self.places] = rows
        seated = seated.view(self.count, self.width, heads, group, width).transpose(1, 2)
        return seated.reshape(self.count * heads, self.width * group, width)

    def _gather(self, seated: Tensor, heads: int, group: int) -> Tensor:
        """[p * h, seats * g, e] -> [n * h, g, e]"""
        if self.alone:
            return seated
        width = seated.shape[-1]
        rows = seated.view(self.count, heads, self.width, group, width).transpose(1, 2)
        return rows.reshape(-1, heads, group, width)[self.places].view(-1, group, width)


class _TextCache:
    """Keys and values [rows, h, room, d] of what each row wrote, a pair a layer; `length` positions are filled."""

    def __init__(self, layers: int, rows: int, heads: int, width: int, like: Tensor) -> None:
        self.rows, self.length = rows, 0
        self.pairs = [[like.new_empty(rows, heads, CACHE_BLOCK, width) for _ in range(2)] for _ in range(layers)]

    def grow(self) -> None:
        """Room for one more position; the next `add` of every layer fills it."""
        self.length += 1
        if self.length <= self.pairs[0][0].shape[2]:
            return
        for pair in self.pairs:
            for which, held in enumerate(pair):
                rows, heads, room, width = held.shape
                pair[which] = held.new_empty(rows, heads, room + CACHE_BLOCK, width)
                pair[which][:, :, :room] = held

    def add(self, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """key, value [n, h, d] -> all keys and values so far, each [n * h, length, d]."""
        for held, new in zip(self.pairs[layer], (key, value), strict=True):
            held[: self.rows, :, self.length - 1] = new
        keys, values = (held[: self.rows, :, : self.length].flatten(0, 1) for held in self.pairs[layer])
        return keys, values

    def keep(self, holes: list[int], moved: list[int], rows: int) -> None:
        for pair in self.pairs:
            for held in pair:
                filled = held[:, :, : self.length]
                filled[holes] = filled[moved]
        self.rows = rows


class FastState(DecodeState):
    share = 0.95
    shared: _PromptCache
    own: _TextCache

    def keep(self, places: list[int]) -> list[int]:
        order, holes, moved = compact_rows(places)
        self.shared.keep(order)
        self.own.keep(holes, moved, len(order))
        self.logits = self.logits[order]
        self._keep(order)
        return order

    def _keep(self, order: list[int]) -> None:
        pass


class _FastLlama(FastState):
    def __init__(self, student: Student, prompts: Sequence[tuple[int, ...]], owners: list[int]) -> None:
        model: Any = student.model.get_decoder()
        self.head, self.model = student.head, model
        ids, mask = pad_prompts(prompts, student.tokenizer.pad, left=True, device=student.device)
        positions = (mask.cumsum(1) - 1).clamp_min(0)
        cache = DynamicCache(config=student.model.config)
        given = {"input_ids": ids, "attention_mask": mask, "position_ids": positions}
        states = kv_cache.run_with_cache(model, cache, ids.shape[1], **given)
        rows = torch.tensor(owners, device=student.device)
        self.logits = self.head.logits(states[:, -1])[rows]
        self.next = positions[rows, -1] + 1
        pairs: list[Any] = [(layer.keys, layer.values) for layer in cache.layers]  # type: ignore[attr-defined]
        self.shared = _PromptCache(pairs, mask, owners)
        self.own = _TextCache(len(pairs), len(owners), pairs[0][0].shape[1], pairs[0][0].shape[3], pairs[0][0])

    def step(self, ids: Tensor) -> None:
        states = self.model.embed_tokens(ids)
        turns = self.model.rotary_emb(states, self.next[None])
        self.own.grow()
        for number, layer in enumerate(self.model.layers):
            states = states + self._attention(layer.self_attn, _rms_norm(layer.input_layernorm, states), turns, number)
            states = states + layer.mlp(_rms_norm(layer.post_attention_layernorm, states))
        self.logits = self.head.logits(_rms_norm(self.model.norm, states))
        self.next = self.next + 1

    def _attention(self, layer: Any, states: Tensor, turns: tuple[Tensor, Tensor], number: int) -> Tensor:
        n, width = len(states), layer.head_dim
        query = _rotate(layer.q_proj(states).view(n, -1, width), turns) * layer.scaling
        key = _rotate(layer.k_proj(states).view(n, -1, width), turns)
        heads = key.shape[1]
        keys, values = self.own.add(number, key, layer.v_proj(states).view(n, heads, width))
        query = query.view(n, heads, -1, width)
        before = self.shared.scores(query, number)
        after = torch.bmm(query.flatten(0, 1), keys.transpose(1, 2))
        shares = torch.cat([before, after], -1).softmax(-1)
        split = before.shape[-1]
        mixed = self.shared.mix(shares[..., :split], number) + torch.bmm(shares[..., split:], values)
        return layer.o_proj(mixed.reshape(n, -1))

    def _keep(self, order: list[int]) -> None:
        self.next = self.next[order]


class _FastT5(FastState):
    def __init__(self, student: Student, prompts: Sequence[tuple[int, ...]], owners: list[int]) -> None:
        self.head, self.model = student.head, student.model.get_submodule("decoder")
        ids, mask = pad_prompts(prompts, student.tokenizer.pad, left=False, device=student.device)
        encoded = student.model.get_submodule("encoder")(input_ids=ids, attention_mask=mask).last_hidden_state
        blocks: Any = self.model.block
        pairs = [self._pair(block.layer[1].EncDecAttention, encoded) for block in blocks]
        self.shared = _PromptCache(pairs, mask, owners)
        self.own = _TextCache(len(pairs), len(owners), pairs[0][0].shape[1], pairs[0][0].shape[3], pairs[0][0])
        start: Any = student.model.config.decoder_start_token_id
        self.step(torch.full((len(owners),), start, device=student.device))

    @staticmethod
    def _pair(layer: Any, encoded: Tensor) -> tuple[Tensor, Tensor]:
        shape = (*encoded.shape[:2], layer.n_heads, -1)
        keys, values = (linear(encoded).view(shape).transpose(1, 2) for linear in (layer.k, layer.v))
        return keys, values

    def step(self, ids: Tensor) -> None:
        model: Any = self.model
        states = model.embed_tokens(ids)
        self.own.grow()
        blocks = model.block
        length = self.own.length
        bias = blocks[0].layer[0].SelfAttention.compute_bias(1, length, past_seen_tokens=length - 1)[0]  # [h, 1, t]
        for number, block in enumerate(blocks):
            own, cross, mixing = block.layer
            states = states + self._own(own.SelfAttention, _rms_norm(own.layer_norm, states), bias, number)
            states = states + self._cross(cross.EncDecAttention, _rms_norm(cross.layer_norm, states), number)
            states = states + mixing.DenseReluDense(_rms_norm(mixing.layer_norm, states))
        self.logits = self.head.logits(_rms_norm(model.final_layer_norm, states))

    def _own(self, layer: Any, states: Tensor, bias: Tensor, number: int) -> Tensor:
        n, heads = len(states), layer.n_heads
        query, key, value = (linear(states).view(n, heads, -1) for linear in (layer.q, layer.k, layer.v))
        keys, values = self.own.add(number, key, value)
        scores = torch.bmm(query.flatten(0, 1)[:, None], keys.transpose(1, 2))
        scores.view(n, heads, 1, -1).add_(bias)
        return layer.o(torch.bmm(scores.softmax(-1), values).view(n, -1))

    def _cross(self, layer: Any, states: Tensor, number: int) -> Tensor:
        n = len(states)
        scores = self.shared.scores(layer.q(states).view(n, layer.n_heads, 1, -1), number)
        return layer.o(self.shared.mix(scores.softmax(-1), number).reshape(n, -1))


def compact_rows(places: list[int]) -> tuple[list[int], list[int], list[int]]:
    """How rows close up: which row now stands where, the places that were freed, and the rows that move into them.

    places  rows that stay, ascending
    """
    count, stay = len(places), set(places)
    holes = [place for place in range(count) if place not in stay]
    moved = [place for place in places if place >= count]
    order = list(range(count))
    for hole, row in zip(holes, moved, strict=True):
        order[hole] = row
    return order, holes, moved


def _rms_norm(layer: Any, states: Tensor) -> Tensor:
    return nn.functional.rms_norm(states, states.shape[-1:], layer.weight, layer.variance_epsilon)


def _rotate(heads: Tensor, turns: tuple[Tensor, Tensor]) -> Tensor:
    """Rotary positions: heads [n, h, d], turns (cosine, sine) [1, n, d]."""
    cosine, sine = (turn[0][:, None] for turn in turns)
    half = heads.shape[-1] // 2
    return heads * cosine + torch.cat([-heads[..., half:], heads[..., :half]], -1) * sine
