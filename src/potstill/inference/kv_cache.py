"""The state of a batch between two steps: keys and values, computed with the modules of the transformers library.

The n samples of a question share one prompt. The model reads it once (a causal model in the prefill; T5 in the encoder and
the first decoder step); the prompt's row of the cache is then repeated n times. Rows that have ended are removed.

transformers renames the argument for the cache (`cache` replaces `past_key_values`, which 5.40 removes), and a forward
pass silently ignores unknown arguments: every step would then see only its own token. Therefore, the name is taken from
the signature, and after each pass, the number of positions in the cache is checked.

    >>> find_cache_argument(lambda input_ids, cache=None, **others: None)
    'cache'
    >>> find_cache_argument(lambda input_ids, past_key_values=None, **others: None)
    'past_key_values'
"""

from __future__ import annotations

import copy
import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, Final

import torch
import transformers
from torch import Tensor
from transformers import Cache, DynamicCache, EncoderDecoderCache
from transformers.cache_utils import DynamicLayer

from potstill.errors import UserError
from potstill.models import Head, Student
from potstill.models.batch import pad_rows

CACHE_ARGUMENTS: Final = ("cache", "past_key_values")  # newest first
# Model types without windows in attention. If config.json names a window, transformers would still drop older positions.
WINDOWLESS_TYPES: Final = ("llama", "gemma")
CACHE_BLOCK: Final = 64  # number of positions by which the cache of a row grows
EXACT_LOGITS: Final = 16  # number of logits per row of a bfloat16 model that are computed again in float32


def find_cache_argument(forward: Callable[..., Any]) -> str:
    """The name of the argument for the cache in a decoder's forward pass. Raises UserError if there is no such argument."""
    arguments = inspect.signature(forward).parameters
    for name in CACHE_ARGUMENTS:
        if name in arguments:
            return name
    forward_name = getattr(forward, "__qualname__", forward)
    raise _unsupported_cache(f"{forward_name} has no argument named {', '.join(CACHE_ARGUMENTS)}")


def run_with_cache(decoder: Any, cache: Cache, length: int, **inputs: Any) -> Tensor:
    """Read tokens that follow the positions in the cache. Returns the last hidden states [rows, tokens, d].

    length  expected number of positions in the cache afterwards

    Raises UserError if the cache has another number of positions, because the states would belong to another text.
    """
    states = decoder(**inputs, **{find_cache_argument(decoder.forward): cache}, use_cache=True).last_hidden_state
    lengths = [(cache, length)]
    if isinstance(cache, EncoderDecoderCache):
        encoded = inputs["encoder_hidden_states"]
        lengths = [(cache.self_attention_cache, length), (cache.cross_attention_cache, encoded.shape[1])]
    for part, expected in lengths:
        # A layer may use the keys of another layer, and then stores none.
        layers = [layer for layer in part.layers if isinstance(layer, DynamicLayer)]
        stored = {layer.get_seq_length() for layer in layers if layer.is_initialized}
        if layers and stored != {expected}:
            numbers = ", ".join(map(str, sorted(stored))) or "no"
            raise _unsupported_cache(f"{numbers} positions in the cache, but {expected} were read")
    return states


def _unsupported_cache(found: str) -> UserError:
    return UserError(
        "the model does not use its key-value cache as potstill expects, so its results would be wrong",
        code="E-inference-unsupported-cache",
        where=f"transformers {transformers.__version__}",
        found=found,
        hint="install a version of transformers that potstill is tested with (see its pyproject.toml)",
    )


def next_token_logits(head: Head, hidden: Tensor) -> Tensor:
    """Hidden states [n, d] -> raw logits [n, v] float32.

    A bfloat16 matrix product rounds logits to 8 bits. Near 20, they are multiples of 0.125, and the largest logits are
    often equal. Therefore, the EXACT_LOGITS largest logits of each row are computed again in float32. If they may not
    include the largest logit, all logits of the row are.

    >>> weight = torch.tensor([[1.0, 0.0], [1.0, 1 / 256], [0.5, 0.5]], dtype=torch.bfloat16)
    >>> hidden = torch.tensor([[16.0, 1.0]], dtype=torch.bfloat16)
    >>> Head(weight).logits(hidden).tolist(), next_token_logits(Head(weight), hidden).tolist()
    ([[16.0, 16.0, 8.5]], [[16.0, 16.00390625, 8.5]])
    """
    if hidden.dtype != torch.bfloat16:
        return head.logits(hidden)
    states, products = hidden.float(), torch.nn.functional.linear(hidden, head.weight).float()
    bias = 0.0 if head.bias is None else head.bias.float()
    logits = products * head.scale + bias
    values, top = logits.topk(min(EXACT_LOGITS, logits.shape[-1]), dim=-1)
    # A product is wrong by at most half a unit in its last place, so the largest logit may seem to be one unit smaller.
    place = products.gather(-1, top).abs().amax(-1) * head.scale * 2.0**-7
    products.scatter_(-1, top, torch.bmm(head.weight[top].float(), states[:, :, None])[:, :, 0])
    unsure = (values[:, -1] >= values[:, 0] - place).nonzero()[:, 0]
    if len(unsure) and values.shape[-1] < logits.shape[-1]:
        products[unsure] = states[unsure] @ head.weight.float().T
    return head.cap(products * head.scale + bias)


class DecodeState(ABC):
    """The state of a batch of rows. `logits` [rows, v] float32: raw logits of the next token.

    keep_share  removing ended rows copies the cache, so it pays once at most this share of the rows is unfinished
    """

    logits: Tensor
    keep_share: float = 0.85

    @abstractmethod
    def step(self, ids: Tensor) -> None:
        """Read one more token per row, ids [rows], and set `logits`."""

    @abstractmethod
    def keep(self, rows: list[int]) -> list[int]:
        """Keep only these rows (ascending). Returns the old row of each new row, because the order may change."""


def prefill(student: Student, prompts: Sequence[tuple[int, ...]], owners: Sequence[int]) -> DecodeState:
    """The state after the prompts, computed with the library's modules. Row i continues the prompt `owners[i]`."""
    state = (_CausalState if student.family == "causal" else _EncoderDecoderState)(student, prompts)
    if list(owners) != list(range(len(prompts))):
        state.keep(list(owners))
    return state


def read_prompts(student: Student, prompts: Sequence[Sequence[int]], *, left: bool) -> tuple[Tensor, Tensor]:
    """Padded ids and mask [rows, longest], both int64, on the student's device."""
    ids, mask = pad_rows(prompts, student.tokenizer.pad, left=left)
    return ids.to(student.device), mask.long().to(student.device)


class _FullCacheState(DecodeState):
    """A state in which every row has a copy of the keys and values of its prompt.

    per_row  names of the attributes whose first dimension is the row
    """

    cache: Cache
    per_row: tuple[str, ...]

    def keep(self, rows: list[int]) -> list[int]:
        """Keep only these rows, here in any order and with repetitions. Returns `rows`."""
        indices = torch.tensor(rows, device=self.logits.device)
        self.cache.reorder_cache(indices)  # type: ignore[attr-defined]
        for name in ("logits", *self.per_row):
            setattr(self, name, getattr(self, name)[indices])
        return rows


class _CausalState(_FullCacheState):
    per_row = ("mask", "next_position")

    def __init__(self, student: Student, prompts: Sequence[tuple[int, ...]]) -> None:
        self.head, self.decoder = student.head, student.model.get_decoder()
        # Padded on the left, so that the last position of every row is the end of its prompt.
        ids, self.mask = read_prompts(student, prompts, left=True)
        self.cache = _build_cache(student.model.config)
        positions = (self.mask.cumsum(1) - 1).clamp_min(0)
        self.next_position = positions[:, -1:] + 1
        self._run(ids, positions)

    def step(self, ids: Tensor) -> None:
        self.mask = torch.cat([self.mask, torch.ones_like(self.mask[:, :1])], 1)
        self._run(ids[:, None], self.next_position)
        self.next_position = self.next_position + 1

    def _run(self, ids: Tensor, positions: Tensor) -> None:
        inputs = {"input_ids": ids, "attention_mask": self.mask, "position_ids": positions}
        states = run_with_cache(self.decoder, self.cache, self.mask.shape[1], **inputs)
        self.logits = next_token_logits(self.head, states[:, -1])


class _EncoderDecoderState(_FullCacheState):
    per_row = ("mask", "encoded")

    def __init__(self, student: Student, prompts: Sequence[tuple[int, ...]]) -> None:
        self.head, self.decoder = student.head, student.model.get_submodule("decoder")
        ids, self.mask = read_prompts(student, prompts, left=False)
        encoder = student.model.get_submodule("encoder")
        self.encoded = encoder(input_ids=ids, attention_mask=self.mask).last_hidden_state
        config: Any = self.decoder.config  # the decoder may have more layers than the encoder
        self.cache = EncoderDecoderCache(_build_cache(config), DynamicCache(config=config))
        self.length = 0
        start: Any = student.model.config.decoder_start_token_id
        self.step(torch.full_like(ids[:, 0], start))

    def step(self, ids: Tensor) -> None:
        self.length += 1
        inputs = {"encoder_hidden_states": self.encoded, "encoder_attention_mask": self.mask}
        states = run_with_cache(self.decoder, self.cache, self.length, input_ids=ids[:, None], **inputs)
        self.logits = next_token_logits(self.head, states[:, -1])


class _GrowingLayer(DynamicLayer):
    """Keys and values [rows, heads, length, d], written in place into a buffer that grows by CACHE_BLOCK positions.

    The library's layer would copy all keys and values at every step.
    """

    def __init__(self) -> None:
        super().__init__()
        self.length = 0

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
            self.keys, self.values = key_states[:, :, :0], value_states[:, :, :0]
        assert self.keys is not None and self.values is not None
        start, self.length = self.length, self.length + key_states.shape[2]
        if self.length > self.keys.shape[2]:
            self.keys, self.values = (
                copy_to_capacity(buffer[:, :, :start], self.length + CACHE_BLOCK) for buffer in (self.keys, self.values)
            )
        self.keys[:, :, start : self.length] = key_states
        self.values[:, :, start : self.length] = value_states
        return self.keys[:, :, : self.length], self.values[:, :, : self.length]

    def get_seq_length(self) -> int:
        return self.length

    def reorder_cache(self, beam_idx: Tensor) -> None:
        if self.length:
            assert self.keys is not None and self.values is not None
            capacity, rows = self.keys.shape[2], beam_idx.to(self.keys.device)
            self.keys, self.values = (
                copy_to_capacity(buffer[:, :, : self.length].index_select(0, rows), capacity)
                for buffer in (self.keys, self.values)
            )


def copy_to_capacity(used: Tensor, capacity: int) -> Tensor:
    """A new buffer [rows, heads, capacity, d] that begins with the positions of `used` [rows, heads, length, d]."""
    rows, heads, length, width = used.shape
    grown = used.new_empty(rows, heads, capacity, width)
    grown[:, :, :length] = used
    return grown


def cache_config(config: Any) -> Any:
    """The configuration from which transformers builds the cache of a model."""
    if config.model_type in WINDOWLESS_TYPES and getattr(config, "sliding_window", None) is not None:
        config = copy.copy(config)
        config.sliding_window = None
    return config


def _build_cache(config: Any) -> DynamicCache:
    # Layers with a window, or with a state instead of keys, remain the library's layers.
    cache = DynamicCache(config=cache_config(config))
    cache.layers = [_GrowingLayer() if type(layer) is DynamicLayer else layer for layer in cache.layers]
    return cache
