"""Named sizes of models, and how many parameters a size has, without allocating a model.

    >>> base = SHAPES["flan-t5-base"]
    >>> base.layers, base.d_model, count_parameters(base)
    (12, 768, 247577856)

FlanT5 has the shapes of T5 v1.1 (Raffel et al. 2020; Chung et al. 2022): a gated GELU and an untied head.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal

Family = Literal["t5", "causal"]


@dataclass(frozen=True, slots=True)
class Shape:
    """The size of a model. `t5`: encoder and decoder; `causal`: a decoder like Llama.

    layers          of the decoder, and of the encoder unless `encoder_layers` is given
    d_kv            width of one attention head
    vocabulary      rows of the embedding; at least the tokenizer's size
    kv_heads        causal only: heads of keys and values (grouped-query attention); None for as many as `heads`
    gated           t5 only: the feed-forward layer of v1.1 (gated GELU, three matrices) or of v1.0 (ReLU, two)
    tied            the head is the input embedding. A tied t5 is a v1.0: its logits are scaled by d_model^-0.5
    buckets, reach  t5 only: the number of relative position buckets, and the distance from which all share the last one
    length          causal only: the longest row that the rotary positions support
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
    """The number of parameters; tied ones count once."""
    width = shape.heads * shape.d_kv
    embeddings = shape.vocabulary * shape.d_model * (1 if shape.tied else 2)
    if shape.family == "causal":
        kv_width = (shape.kv_heads or shape.heads) * shape.d_kv
        layer = shape.d_model * (2 * width + 2 * kv_width + 3 * shape.d_ff + 2)
        return embeddings + shape.layers * layer + shape.d_model
    attention = 4 * shape.d_model * width
    feed_forward = (3 if shape.gated else 2) * shape.d_model * shape.d_ff
    encoder = (shape.encoder_layers or shape.layers) * (attention + feed_forward + 2 * shape.d_model)
    decoder = shape.layers * (2 * attention + feed_forward + 3 * shape.d_model)
    return embeddings + encoder + decoder + 2 * (shape.buckets * shape.heads + shape.d_model)
