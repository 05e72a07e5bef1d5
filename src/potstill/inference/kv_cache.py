"""The cache of keys and values that a library's decoder is given, and whether it was used.

transformers renames the argument that takes it (`past_key_values` goes in 5.40, `cache` takes its place), and a forward
pass takes any argument that it does not know without a word: each step would then see its own token alone. So the name
is looked up in the signature, and after every pass the cache must hold as many positions as were read.

    >>> find_cache_argument(lambda input_ids, cache=None, **others: None)
    'cache'
    >>> find_cache_argument(lambda input_ids, past_key_values=None, **others: None)
    'past_key_values'

What a model remembers while it writes: prompts are read once each, however many texts are written behind them.

    >>> ids, mask = pad_prompts([(5, 6, 7), (8,)], 0, left=True, device=torch.device("cpu"))
    >>> ids.tolist(), mask.tolist()
    ([[5, 6, 7], [0, 0, 8]], [[1, 1, 1], [0, 0, 1]])

The n samples of a question have one prompt. It goes through the model once (a causal model's prefill, an encoder and
the decoder's first step); then its row of the cache is repeated n times, and rows that have ended are taken out.
"""

from __future__ import annotations

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
from potstill.models import Student

CACHE_ARGUMENTS: Final = ("cache", "past_key_values")  # newest first


def find_cache_argument(forward: Callable[..., Any]) -> str:
    """The argument of a decoder's forward pass that takes its cache. Raises UserError where there is none."""
    known = inspect.signature(forward).parameters
    for name in CACHE_ARGUMENTS:
        if name in known:
            return name
    raise _unsupported_cache(
        f"none of {', '.join(CACHE_ARGUMENTS)} among the arguments of {getattr(forward, '__qualname__', forward)}"
    )


def run_with_cache(decoder: Any, cache: Cache, length: int, **inputs: Any) -> Tensor:
    """Read some tokens behind those that the cache holds; returns the last hidden states [rows, tokens, d].

    length  positions that the cache holds afterwards
    Raises UserError where it holds others: the states would be those of another text.
    """
    states = decoder(**inputs, **{find_cache_argument(decoder.forward): cache}, use_cache=True).last_hidden_state
    crossed = inputs.get("encoder_hidden_states")
    if isinstance(cache, EncoderDecoderCache):
        assert crossed is not None, "a decoder that reads an encoder's states"
        check_cache_length(cache.self_attention_cache, length)
        check_cache_length(cache.cross_attention_cache, crossed.shape[1])
    else:
        check_cache_length(cache, length)
    return states


def check_cache_length(cache: Cache, length: int) -> None:
    """Raises UserError unless the layers that keep keys hold `length` positions. Layers may share those of another, so
    some may hold none."""
    layers = [layer for layer in cache.layers if isinstance(layer, DynamicLayer)]
    held = {layer.get_seq_length() for layer in layers if layer.is_initialized}
    if layers and held != {length}:
        raise _unsupported_cache(
            f"{', '.join(map(str, sorted(held))) or 'no'} positions in the cache, {length} were read"
        )


def _unsupported_cache(found: str) -> UserError:
    return UserError(
        "the model does not use its cache of keys and values as potstill knows it; its numbers would be wrong",
        where=f"transformers {transformers.__version__}",
        found=found,
        hint="install a version of transformers that potstill was tested with (see its pyproject.toml)",
    )


CACHE_BLOCK: Final = 64  # positions that a row's cache grows by


class DecodeState(ABC):
    """The state of a batch of rows. `logits` [rows, v] say what follows in each; raw, in the model's dtype."""

    logits: Tensor
    share: float = 0.85  # rows that ended are worth taking out once no more than this share still goes on

    @abstractmethod
    def step(self, ids: Tensor) -> None:
        """Read one more token a row, ids [rows], and set `logits`."""

    @abstractmethod
    def keep(self, places: list[int]) -> list[int]:
        """Let only the rows at `places` (ascending) go on; returns which of them now stands where."""


def prefill(student: Student, prompts: Sequence[tuple[int, ...]], rows: Sequence[int]) -> DecodeState:
    """The state behind some prompts, read through the library's modules: a row for each of `rows`, which say whose."""
    memory = (_CausalState if student.family == "causal" else _EncoderDecoderState)(student, prompts)
    if list(rows) != list(range(len(prompts))):
        memory.select(torch.tensor(rows, device=student.device))
    return memory


class _FullCacheState(DecodeState):
    """Every row has a copy of its prompt's keys and values."""

    @abstractmethod
    def select(self, rows: Tensor) -> None:
        """Make `rows` (indices, any number of them, in any order) the rows of this state."""

    def keep(self, places: list[int]) -> list[int]:
        self.select(torch.tensor(places, device=self.logits.device))
        return places


class _CausalState(_FullCacheState):
    def __init__(self, student: Student, prompts: Sequence[tuple[int, ...]]) -> None:
        self.head, self.decoder = student.head, _get_decoder(student)
        ids, self.mask = pad_prompts(prompts, student.tokenizer.pad, left=True, device=student.device)
        self.cache = _build_cache(student.model.config)
        positions = (self.mask.cumsum(1) - 1).clamp_min(0)
        self.next = positions[:, -1:] + 1
        self._run(ids, positions)

    def step(self, ids: Tensor) -> None:
        self.mask = torch.cat([self.mask, torch.ones_like(self.mask[:, :1])], 1)
        self._run(ids[:, None], self.next)
        self.next = self.next + 1

    def _run(self, ids: Tensor, positions: Tensor) -> None:
        states = run_with_cache(
            self.decoder,
            self.cache,
            self.mask.shape[1],
            input_ids=ids,
            attention_mask=self.mask,
            position_ids=positions,
        )
        self.logits = self.head.logits(states[:, -1])

    def select(self, rows: Tensor) -> None:
        self.cache.reorder_cache(rows)  # type: ignore[arg-type]
        self.mask, self.next, self.logits = self.mask[rows], self.next[rows], self.logits[rows]


class _EncoderDecoderState(_FullCacheState):
    """An encoder's states, and the decoder's memory of them and of what it wrote."""

    def __init__(self, student: Student, prompts: Sequence[tuple[int, ...]]) -> None:
        self.head, self.decoder = student.head, _get_decoder(student)
        ids, self.mask = pad_prompts(prompts, student.tokenizer.pad, left=False, device=student.device)
        encoder = student.model.get_submodule("encoder")
        self.encoded = encoder(input_ids=ids, attention_mask=self.mask).last_hidden_state
        self.cache = EncoderDecoderCache(_build_cache(self.decoder.config), DynamicCache(config=self.decoder.config))
        self.length = 0
        start: Any = student.model.config.decoder_start_token_id
        self.step(torch.full_like(ids[:, 0], start))

    def step(self, ids: Tensor) -> None:
        self.length += 1
        states = run_with_cache(
            self.decoder,
            self.cache,
            self.length,
            input_ids=ids[:, None],
            encoder_hidden_states=self.encoded,
            encoder_attention_mask=self.mask,
        )
        self.logits = self.head.logits(states[:, -1])

    def select(self, rows: Tensor) -> None:
        self.cache.reorder_cache(rows)  # type: ignore[arg-type]
        self.mask, self.encoded, self.logits = self.mask[rows], self.encoded[rows], self.logits[rows]


class _GrowingLayer(DynamicLayer):
    """Keys and values [rows, heads, length, d], written in place into room that grows by blocks: the plain layer copies
    all that it holds at every step."""

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
            self.keys = _copy_to_capacity(self.keys, start, self.length + CACHE_BLOCK)
            self.values = _copy_to_capacity(self.values, start, self.length + CACHE_BLOCK)
        self.keys[:, :, start : self.length] = key_states
        self.values[:, :, start : self.length] = value_states
        return self.keys[:, :, : self.length], self.values[:, :, : self.length]

    def get_seq_length(self) -> int:
        return self.length

    def reorder_cache(self, beam_idx: Tensor) -> None:
        if self.length:
            assert self.keys is not None and self.values is not None
            room, rows = self.keys.shape[2], beam_idx.to(self.keys.device)
            self.keys, self.values = (
                _copy_to_capacity(held[:, :, : self.length].index_select(0, rows), self.length, room)
                for held in (self.keys, self.values)
            )


def _copy_to_capacity(held: Tensor, length: int, room: int) -> Tensor:
    """The first `length` positions of [rows, heads, _, d] in room for `room`."""
    rows, heads, _, width = held.shape
    grown = held.new_empty(rows, heads, room, width)
    grown[:, :, :length] = held[:, :, :length]
    return grown


def _build_cache(config: Any) -> DynamicCache:
    """config: of the decoder, which may have more layers than the encoder."""
    # Layers with a window, or with a state instead of keys, stay as the library makes them.
    cache = DynamicCache(config=config)
    cache.layers = [_GrowingLayer() if type(layer) is DynamicLayer else layer for layer in cache.layers]
    return cache


def _get_decoder(student: Student) -> Any:
    return student.model.get_submodule("decoder") if student.family == "t5" else student.model.get_decoder()


def pad_prompts(
    prompts: Sequence[Sequence[int]], pad: int, *, left: bool, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Ids and mask [rows, longest], both int64."""
    width = max(len(prompt) for prompt in prompts)
    ids = torch.full((len(prompts), width), pad, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for row, prompt in enumerate(prompts):
        place = slice(width - len(prompt), width) if left else slice(0, len(prompt))
        ids[row, place] = torch.tensor(prompt, dtype=torch.long)
        mask[row, place] = 1
    return ids.to(device), mask.to(device)
