"""The sizes of a model, named, and how many parameters they make without allocating one.

    >>> base = SHAPES["flan-t5-base"]
    >>> base.layers, base.d_model, count_parameters(base)
    (12, 768, 247577856)

FlanT5 has the shapes of T5 v1.1 (Raffel et al. 2020; Chung et al. 2022): a gated GELU and a head of its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal

Family = Literal["t5", "causal"]


@dataclass(frozen=True, slots=True)
class Shape:
    """What a model is made of. `t5`: encoder and decoder; `causal`: a decoder of the Llama kind.

    layers          of the decoder, and of the encoder too unless `encoder_layers` says otherwise
    d_kv            width of one attention head
    vocabulary      rows of the embedding; at least the tokenizer's size
    kv_heads        causal only: heads that keys and values have (grouped attention); None for as many as `heads`
    gated           t5 only: the feed-forward of v1.1 (gated GELU, three matrices) or of v1.0 (ReLU, two)
    tied            the head is the input embedding. A tied t5 is a v1.0: its logits are scaled by d_model^-0.5
    buckets, reach  t5 only: relative position buckets, and the distance from which all share the last
    length          causal only: the longest row that the rotary positions are made for
    """

    family: Family
    d_model: int
    layers: int
    heads: int
    d_ff: int
    d_kv: int
    vocabulary: int
    encoder_layers: int | None = None
    kv_heads: int | None = None
    gated: bool = True
    tied: bool = False
    buckets: int = 32
    reach: int = 128
    length: int = 2048


def _flan_t5(d_model: int, d_ff: int, layers: int, heads: int) -> Shape:
    return Shape("t5", d_model, layers, heads, d_ff, d_kv=64, vocabulary=32128)


SHAPES: Final[Mapping[str, Shape]] = {
    "flan-t5-small": _flan_t5(512, 1024, 8, 6),
    "flan-t5-base": _flan_t5(768, 2048, 12, 12),
    "flan-t5-large": _flan_t5(1024, 2816, 24, 16),
    "flan-t5-xl": _flan_t5(2048, 5120, 24, 32),
    "flan-t5-xxl": _flan_t5(4096, 10240, 24, 64),
}


def count_parameters(shape: Shape) -> int:
    """The number of parameters, each counted once where it is tied."""
    width = shape.heads * shape.d_kv
    embedding = shape.vocabulary * shape.d_model * (1 if shape.tied else 2)
    if shape.family == "causal":
        narrow = (shape.kv_heads or shape.heads) * shape.d_kv
        layer = shape.d_model * (2 * width + 2 * narrow + 3 * shape.d_ff + 2)
        return embedding + shape.layers * layer + shape.d_model
    attention = 4 * shape.d_model * width
    forward = (3 if shape.gated else 2) * shape.d_model * shape.d_ff
    encoder = (shape.encoder_layers or shape.layers) * (attention + forward + 2 * shape.d_model)
    decoder = shape.layers * (2 * attention + forward + 3 * shape.d_model)
    return embedding + encoder + decoder + 2 * (shape.buckets * shape.heads + shape.d_model)
