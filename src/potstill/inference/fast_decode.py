"""Decoding steps for plain Llama and T5 models, written out, which are faster if attention reads a large cache.

    >>> compact_rows([0, 2, 3])      # of four rows, row 1 ended: the last row takes its slot, the others stay
    ([0, 3, 2], [1], [3])

At each step, attention reads the keys and values of all rows, so their size determines the time of a step. Three measures
make them smaller than in the library's modules (`kv_cache`), which all other models use:
- The keys and values of a prompt exist once, and are read once for all texts that continue the prompt.
- The keys and values of generated tokens are stored separately and grow in place.
- The last row moves to the slot of a row that has ended, so removing rows copies few rows.

With bfloat16 weights, a beginning that all prompts share (a system message, demonstrations) is computed once.

Measured on one core (docs/log.md): 600 sampled chains of the toy teacher take 4.7 s instead of 7.7 s, 600 greedy
answers of the toy student take 1.6 s instead of 2.2 s. Sums have another order than in the library, so results differ by
float32 rounding.

With bfloat16 weights, matrix products and the states between layers are bfloat16. Norms, attention (on bfloat16 keys and
values) and the logits that determine a token are float32.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any, Final

import torch
from torch import Tensor, nn
from transformers import DynamicCache, LlamaForCausalLM, T5ForConditionalGeneration

from potstill.inference.kv_cache import (
    CACHE_BLOCK,
    DecodeState,
    cache_config,
    copy_to_capacity,
    next_token_logits,
    prefill,
    read_prompts,
    run_with_cache,
)
from potstill.models import Student

SUPPORTED_ROPE_TYPES: Final = ("default", "linear", "llama3")  # rotary embeddings that do not depend on the length
MIN_SHARED: Final = 8  # minimum length in tokens of a common beginning that gets a separate forward pass
ATTENTION_LAYERS: Final = ("q_proj", "k_proj", "v_proj", "o_proj", "q", "k", "v", "o")


def fast_prefill(student: Student, prompts: Sequence[tuple[int, ...]]) -> DecodeState:
    """The state after the prompts, one row per prompt, in order. Equal prompts are read once."""
    indices: dict[tuple[int, ...], int] = {}
    owners = [indices.setdefault(prompt, len(indices)) for prompt in prompts]
    if not supports_fast_decode(student):
        return prefill(student, list(indices), owners)
    return (_FastLlama if student.family == "causal" else _FastT5)(student, list(indices), owners)


def supports_fast_decode(student: Student) -> bool:
    """Whether this module computes the model exactly. False with adapters, because they replace linear layers."""
    model = student.model
    supported = all(
        type(layer) is nn.Linear for name, layer in model.named_modules() if name.rpartition(".")[2] in ATTENTION_LAYERS
    )
    if type(model) is LlamaForCausalLM:
        rope_type = (model.config.rope_parameters or {}).get("rope_type", "default")
        supported = supported and rope_type in SUPPORTED_ROPE_TYPES
    dtypes = {parameter.dtype for parameter in model.parameters()}
    return (
        supported
        and type(model) in (LlamaForCausalLM, T5ForConditionalGeneration)
        and dtypes in ({torch.float32}, {torch.bfloat16})
    )


class _PromptCache:
    """Keys and values [p, h, s, d] of p prompts, a pair per layer. `owners` [n]: the prompt that each row continues.

    Attention of n rows to p prompts is a batched matrix product over prompts. Its operands need the same number of rows
    per prompt. Each prompt therefore gets `slots` rows, as many as the prompt with the most rows needs. `slot_of_row` has
    the slot of each row; unused slots contain zeros, and their results are never read. A query [n, h, g, d] has g query
    heads per key head. Queries, weights and products are float32, independent of the dtype of keys and values.
    """

    def __init__(self, pairs: Sequence[Sequence[Tensor]], mask: Tensor, owners: list[int]) -> None:
        self.pairs = [(keys.contiguous(), values.contiguous()) for keys, values in pairs]
        bias = torch.zeros(mask.shape, device=mask.device).masked_fill_(mask == 0, -torch.inf)
        self.bias = None if bool(mask.all()) else bias
        self.count = len(mask)
        self._assign_slots(owners)

    def _assign_slots(self, owners: list[int]) -> None:
        self.owners = owners
        self.one_to_one = owners == list(range(self.count))  # row i continues prompt i, so no rows must be rearranged
        self.slots = max(Counter(owners).values())
        used = [owner * self.slots for owner in range(self.count)]
        slot_of_row = []
        for owner in owners:
            slot_of_row.append(used[owner])
            used[owner] += 1
        self.slot_of_row = torch.tensor(slot_of_row, device=self.pairs[0][0].device)

    def keep(self, rows: list[int]) -> None:
        """Keep only these rows, in this order, and drop prompts that no row continues."""
        owners = [self.owners[row] for row in rows]
        prompts, holes, moved = compact_rows(sorted(set(owners)))
        if len(prompts) < self.count:
            buffers = [buffer for pair in self.pairs for buffer in pair]
            for buffer in buffers if self.bias is None else [*buffers, self.bias]:
                buffer[holes] = buffer[moved]
            self.count = len(prompts)
        new_index = {old: new for new, old in enumerate(prompts)}
        self._assign_slots([new_index[owner] for owner in owners])

    def scores(self, query: Tensor, layer: int) -> Tensor:
        """Queries [n, h, g, d] -> scores [n * h, g, s] of each query against the keys of its prompt."""
        keys = self.pairs[layer][0][: self.count].flatten(0, 1).float()
        scores = torch.bmm(self._to_slots(query), keys.transpose(1, 2))
        if self.bias is not None:
            scores.view(self.count, query.shape[1], -1, scores.shape[-1]).add_(self.bias[: self.count, None, None])
        return self._from_slots(scores, query.shape[1], query.shape[2])

    def mix(self, weights: Tensor, layer: int) -> Tensor:
        """Attention weights [n * h, g, s] -> [n * h, g, d]: weighted means of the values of each row's prompt."""
        values = self.pairs[layer][1][: self.count].flatten(0, 1).float()
        heads = self.pairs[layer][1].shape[1]
        slotted = self._to_slots(weights.view(-1, heads, *weights.shape[1:]))
        return self._from_slots(torch.bmm(slotted, values), heads, weights.shape[1])

    def _to_slots(self, rows: Tensor) -> Tensor:
        """Rows [n, h, g, e] -> slots [p * h, slots * g, e]."""
        if self.one_to_one:
            return rows.reshape(-1, *rows.shape[2:])
        _, heads, group, width = rows.shape
        slotted = rows.new_zeros(self.count * self.slots, heads, group, width)
        slotted[self.slot_of_row] = rows
        slotted = slotted.view(self.count, self.slots, heads, group, width).transpose(1, 2)
        return slotted.reshape(self.count * heads, self.slots * group, width)

    def _from_slots(self, slotted: Tensor, heads: int, group: int) -> Tensor:
        """Slots [p * h, slots * g, e] -> rows [n * h, g, e]."""
        if self.one_to_one:
            return slotted
        width = slotted.shape[-1]
        rows = slotted.view(self.count, heads, self.slots, group, width).transpose(1, 2)
        return rows.reshape(-1, heads, group, width)[self.slot_of_row].view(-1, group, width)


class _TextCache:
    """Keys and values [rows, h, capacity, d] of the generated tokens, one pair per layer; `length` positions are used."""

    def __init__(self, layers: int, rows: int, like: Tensor) -> None:
        """like: keys [_, h, _, d] of a prompt, which give h, d, the dtype and the device."""
        self.rows, self.length = rows, 0
        shape = (rows, like.shape[1], CACHE_BLOCK, like.shape[3])
        self.pairs = [[like.new_empty(shape) for _ in range(2)] for _ in range(layers)]

    def grow(self) -> None:
        """Make space for one more position, which the next call of `add` fills in every layer."""
        self.length += 1
        if self.length <= self.pairs[0][0].shape[2]:
            return
        for pair in self.pairs:
            pair[:] = [copy_to_capacity(buffer, buffer.shape[2] + CACHE_BLOCK) for buffer in pair]

    def add(self, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Append key and value [n, h, d]. Returns all keys and all values so far, both [n * h, length, d] float32."""
        buffers = [buffer[: self.rows, :, : self.length] for buffer in self.pairs[layer]]
        buffers[0][:, :, -1], buffers[1][:, :, -1] = key, value
        return buffers[0].flatten(0, 1).float(), buffers[1].flatten(0, 1).float()

    def keep(self, holes: list[int], moved: list[int], rows: int) -> None:
        for pair in self.pairs:
            for buffer in pair:
                used = buffer[:, :, : self.length]
                used[holes] = used[moved]
        self.rows = rows


class FastState(DecodeState):
    keep_share = 0.95  # removing rows costs less here
    prompt_cache: _PromptCache
    text_cache: _TextCache

    def keep(self, rows: list[int]) -> list[int]:
        order, holes, moved = compact_rows(rows)
        self.prompt_cache.keep(order)
        self.text_cache.keep(holes, moved, len(order))
        self.logits = self.logits[order]
        return order


def shared_length(student: Student, prompts: Sequence[tuple[int, ...]]) -> int:
    """The number of first tokens that all prompts share and that are read once.

    0 for a float32 model, so that its texts equal those of earlier versions to the last bit.
    """
    if student.model.dtype != torch.bfloat16 or len(prompts) < 2:
        return 0
    first, last = min(prompts), max(prompts)
    length = next(
        (place for place, pair in enumerate(zip(first, last, strict=False)) if pair[0] != pair[1]), len(first)
    )
    length = min(length, *(len(prompt) - 1 for prompt in prompts))  # the last token of each prompt is read separately
    return length if length >= MIN_SHARED else 0


class _FastLlama(FastState):
    def __init__(self, student: Student, prompts: Sequence[tuple[int, ...]], owners: list[int]) -> None:
        model: Any = student.model.get_decoder()
        self.head, self.model = student.head, model
        cache, shared = DynamicCache(config=cache_config(student.model.config)), shared_length(student, prompts)
        if shared:
            beginning, _ = read_prompts(student, [prompts[0][:shared]], left=True)
            run_with_cache(model, cache, shared, input_ids=beginning)
            cache.batch_repeat_interleave(len(prompts))
        # Padded between the shared beginning and the rest, so that the last position of every row is the end of its prompt.
        ids, mask = read_prompts(student, [prompt[shared:] for prompt in prompts], left=True)
        mask = torch.cat([mask.new_ones(len(mask), shared), mask], 1)
        positions = (mask.cumsum(1) - 1).clamp_min(0)
        inputs = {"input_ids": ids, "attention_mask": mask, "position_ids": positions[:, shared:]}
        states = run_with_cache(model, cache, mask.shape[1], **inputs)
        rows = torch.tensor(owners, device=student.device)
        self.logits = next_token_logits(self.head, states[:, -1])[rows]
        self.next_position = positions[rows, -1] + 1
        pairs: list[Any] = [(layer.keys, layer.values) for layer in cache.layers]  # type: ignore[attr-defined]
        self.prompt_cache = _PromptCache(pairs, mask, owners)
        self.text_cache = _TextCache(len(pairs), len(owners), like=pairs[0][0])

    def step(self, ids: Tensor) -> None:
        states = self.model.embed_tokens(ids)
        rotary = self.model.rotary_emb(states, self.next_position[None])
        self.text_cache.grow()
        for index, layer in enumerate(self.model.layers):
            states = states + self._attention(layer.self_attn, _rms_norm(layer.input_layernorm, states), rotary, index)
            states = states + layer.mlp(_rms_norm(layer.post_attention_layernorm, states))
        self.logits = next_token_logits(self.head, _rms_norm(self.model.norm, states))
        self.next_position = self.next_position + 1

    def _attention(self, layer: Any, states: Tensor, rotary: tuple[Tensor, Tensor], index: int) -> Tensor:
        n, width = len(states), layer.head_dim
        query = _rotate(layer.q_proj(states).view(n, -1, width), rotary).float() * layer.scaling
        key = _rotate(layer.k_proj(states).view(n, -1, width), rotary)
        heads = key.shape[1]
        keys, values = self.text_cache.add(index, key, layer.v_proj(states).view(n, heads, width))
        query = query.view(n, heads, -1, width)
        # One softmax over the positions of prompt and text; the weighted mean of the values is computed in two parts.
        prompt_scores = self.prompt_cache.scores(query, index)
        text_scores = torch.bmm(query.flatten(0, 1), keys.transpose(1, 2))
        weights = torch.cat([prompt_scores, text_scores], -1).softmax(-1)
        split = prompt_scores.shape[-1]
        mixed = self.prompt_cache.mix(weights[..., :split], index) + torch.bmm(weights[..., split:], values)
        return layer.o_proj(mixed.reshape(n, -1).to(states.dtype))

    def keep(self, rows: list[int]) -> list[int]:
        order = super().keep(rows)
        self.next_position = self.next_position[order]
        return order


class _FastT5(FastState):
    def __init__(self, student: Student, prompts: Sequence[tuple[int, ...]], owners: list[int]) -> None:
        self.head, self.model = student.head, student.model.get_submodule("decoder")
        ids, mask = read_prompts(student, prompts, left=False)
        encoded = student.model.get_submodule("encoder")(input_ids=ids, attention_mask=mask).last_hidden_state
        blocks: Any = self.model.block
        layers = [block.layer[1].EncDecAttention for block in blocks]
        shape = (*encoded.shape[:2], layers[0].n_heads, -1)
        pairs = [[linear(encoded).view(shape).transpose(1, 2) for linear in (layer.k, layer.v)] for layer in layers]
        self.prompt_cache = _PromptCache(pairs, mask, owners)
        self.text_cache = _TextCache(len(pairs), len(owners), like=pairs[0][0])
        start: Any = student.model.config.decoder_start_token_id
        self.step(torch.full((len(owners),), start, device=student.device))

    def step(self, ids: Tensor) -> None:
        model: Any = self.model
        states = model.embed_tokens(ids)
        self.text_cache.grow()
        blocks = model.block
        length = self.text_cache.length
        # T5 adds the relative position bias of the first block in every block: [h, 1, length].
        bias = blocks[0].layer[0].SelfAttention.compute_bias(1, length, past_seen_tokens=length - 1)[0]
        for index, block in enumerate(blocks):
            attention, cross, mlp = block.layer
            normed = _rms_norm(attention.layer_norm, states)
            states = states + self._attend_text(attention.SelfAttention, normed, bias, index)
            states = states + self._attend_prompt(cross.EncDecAttention, _rms_norm(cross.layer_norm, states), index)
            states = states + mlp.DenseReluDense(_rms_norm(mlp.layer_norm, states))
        self.logits = next_token_logits(self.head, _rms_norm(model.final_layer_norm, states))

    def _attend_text(self, layer: Any, states: Tensor, bias: Tensor, index: int) -> Tensor:
        n, heads = len(states), layer.n_heads
        query, key, value = (linear(states).view(n, heads, -1) for linear in (layer.q, layer.k, layer.v))
        keys, values = self.text_cache.add(index, key, value)
        scores = torch.bmm(query.flatten(0, 1)[:, None].float(), keys.transpose(1, 2))
        scores.view(n, heads, 1, -1).add_(bias)
        return layer.o(torch.bmm(scores.softmax(-1), values).view(n, -1).to(states.dtype))

    def _attend_prompt(self, layer: Any, states: Tensor, index: int) -> Tensor:
        n = len(states)
        scores = self.prompt_cache.scores(layer.q(states).view(n, layer.n_heads, 1, -1).float(), index)
        return layer.o(self.prompt_cache.mix(scores.softmax(-1), index).reshape(n, -1).to(states.dtype))


def compact_rows(rows: list[int]) -> tuple[list[int], list[int], list[int]]:
    """How to close the gaps if only `rows` (ascending) are kept: old row of each slot, freed slots, rows moved there.

    Rows before the new end keep their slots; the rows after it fill the freed slots.
    """
    count, kept = len(rows), set(rows)
    holes = [slot for slot in range(count) if slot not in kept]
    moved = [row for row in rows if row >= count]
    order = list(range(count))
    for hole, row in zip(holes, moved, strict=True):
        order[hole] = row
    return order, holes, moved


def _rms_norm(layer: Any, states: Tensor) -> Tensor:
    return nn.functional.rms_norm(states, states.shape[-1:], layer.weight, layer.variance_epsilon)


def _rotate(heads: Tensor, rotary: tuple[Tensor, Tensor]) -> Tensor:
    """Rotary position embedding: heads [n, h, d], rotary (cosine, sine) [1, n, d]."""
    cosine, sine = (table[0][:, None] for table in rotary)
    half = heads.shape[-1] // 2
    return heads * cosine + torch.cat([-heads[..., half:], heads[..., :half]], -1) * sine
