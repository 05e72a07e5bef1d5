"""The cache of keys and values that a library's decoder is given, and whether it was used.

transformers renames the argument that takes it (`past_key_values` goes in 5.40, `cache` takes its place), and a forward
pass takes any argument that it does not know without a word: each step would then see its own token alone. So the name
is looked up in the signature, and after every pass the cache must hold as many positions as were read.

    >>> keyword(lambda input_ids, cache=None, **others: None)
    'cache'
    >>> keyword(lambda input_ids, past_key_values=None, **others: None)
    'past_key_values'
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, Final

import transformers
from torch import Tensor
from transformers import Cache, EncoderDecoderCache
from transformers.cache_utils import DynamicLayer

from potstill.errors import UserError

NAMES: Final = ("cache", "past_key_values")  # newest first


def keyword(forward: Callable[..., Any]) -> str:
    """The argument of a decoder's forward pass that takes its cache. Raises UserError where there is none."""
    known = inspect.signature(forward).parameters
    for name in NAMES:
        if name in known:
            return name
    raise _untested(f"none of {', '.join(NAMES)} among the arguments of {getattr(forward, '__qualname__', forward)}")


def run(decoder: Any, cache: Cache, length: int, **inputs: Any) -> Tensor:
    """Read some tokens behind those that the cache holds; returns the last hidden states [rows, tokens, d].

    length  positions that the cache holds afterwards
    Raises UserError where it holds others: the states would be those of another text.
    """
    states = decoder(**inputs, **{keyword(decoder.forward): cache}, use_cache=True).last_hidden_state
    crossed = inputs.get("encoder_hidden_states")
    if isinstance(cache, EncoderDecoderCache):
        assert crossed is not None, "a decoder that reads an encoder's states"
        check(cache.self_attention_cache, length)
        check(cache.cross_attention_cache, crossed.shape[1])
    else:
        check(cache, length)
    return states


def check(cache: Cache, length: int) -> None:
    """Raises UserError unless the layers that keep keys hold `length` positions. Layers may share those of another, so
    some may hold none."""
    layers = [layer for layer in cache.layers if isinstance(layer, DynamicLayer)]
    held = {layer.get_seq_length() for layer in layers if layer.is_initialized}
    if layers and held != {length}:
        raise _untested(f"{', '.join(map(str, sorted(held))) or 'no'} positions in the cache, {length} were read")


def _untested(found: str) -> UserError:
    return UserError(
        "the model does not use its cache of keys and values as potstill knows it; its numbers would be wrong",
        where=f"transformers {transformers.__version__}",
        found=found,
        do="install a version of transformers that potstill was tested with (see its pyproject.toml)",
    )
