"""The layers of a T5 without padding: the model's modules, computed in another order.

The results equal those of the model's forward pass, up to the rounding of sums. Without padding there are no products for
empty slots and fewer masks, and a prompt that several chains share is encoded once.

    encoded = run_encoder(model, prompt_tokens, prompt_layout)                               # [s, d]
    hidden = run_decoder(model, target_tokens, encoded, target_layout, cross_layout)         # [n, d]

T5 adds a bias to every score, so no kernel of torch computes its attention without scores [heads, t, t]: 32 GiB for one
layer of 8 heads and 32,000 tokens. Rows with more than MAX_SCORE_CELLS scores per head are computed in chunks of queries.
The scores of one chunk exist at a time, and are computed again in the backward pass.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from types import MethodType
from typing import Any, Final

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.distributed.fsdp import register_fsdp_forward_method
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from potstill.models.unpadded import Block, Layout

MAX_SCORE_CELLS: Final = 1 << 22  # scores of a row and head (queries x keys) that may exist in all layers at once
CHUNK_CELLS: Final = 1 << 24  # scores of a chunk, over all rows and heads: 64 MiB
FSDP_METHOD: Final = "over_tokens"  # name of the method that computes a block whose weights are sharded


def run_encoder(model: Any, ids: Tensor, layout: Layout) -> Tensor:
    """Token ids of the prompts [s] int64 -> last hidden states of the encoder [s, d]."""
    stack = model.encoder
    hidden = _dropout(stack, stack.embed_tokens(ids))
    biases = _position_biases(stack, layout)
    for block in stack.block:
        hidden = _run_block(stack, _encoder_block, block, hidden, layout, biases)
    return _dropout(stack, rms_norm(stack.final_layer_norm, hidden))


def run_decoder(model: Any, ids: Tensor, encoded: Tensor, layout: Layout, cross_layout: Layout) -> Tensor:
    """Token ids of the targets [n] int64 -> last hidden states of the decoder [n, d].

    encoded       [s, d]: result of `run_encoder`
    cross_layout  which encoded tokens each target token reads
    """
    stack = model.decoder
    hidden = _dropout(stack, stack.embed_tokens(ids))
    biases, masks = _position_biases(stack, layout), _cross_attention_masks(cross_layout, encoded.dtype)
    for block in stack.block:
        hidden = _run_block(stack, _decoder_block, block, hidden, encoded, layout, biases, cross_layout, masks)
    return _dropout(stack, rms_norm(stack.final_layer_norm, hidden))


def register_fsdp_methods(model: Any) -> None:
    """Prepare a model whose blocks are FSDP modules.

    The function that computes a block here becomes a method of the block. FSDP gathers the block's weights before the
    method and releases them after it, as for a call of the block.
    """
    for stack, layer in ((model.encoder, _encoder_block), (model.decoder, _decoder_block)):
        for block in stack.block:
            setattr(block, FSDP_METHOD, MethodType(layer, block))
            register_fsdp_forward_method(block, FSDP_METHOD)


def _run_block(stack: Any, layer: Any, block: Any, *values: Any) -> Tensor:
    run = getattr(block, FSDP_METHOD, None) or partial(layer, block)
    if stack.gradient_checkpointing and stack.training:
        return checkpoint(run, *values, use_reentrant=False)
    return run(*values)


def _encoder_block(block: Any, hidden: Tensor, layout: Layout, biases: list[Any]) -> Tensor:
    return _feed_forward(block.layer[-1], _self_attention(block.layer[0], hidden, layout, biases))


def _decoder_block(
    block: Any, hidden: Tensor, encoded: Tensor, layout: Layout, biases: list[Any], cross_layout: Layout, masks: Any
) -> Tensor:
    hidden, cross = _self_attention(block.layer[0], hidden, layout, biases), block.layer[1]
    normed = rms_norm(cross.layer_norm, hidden)
    hidden = hidden + _dropout(cross, _attention(cross.EncDecAttention, normed, encoded, cross_layout, masks))
    return _feed_forward(block.layer[-1], hidden)


def _self_attention(layer: Any, hidden: Tensor, layout: Layout, biases: list[Any]) -> Tensor:
    normed = rms_norm(layer.layer_norm, hidden)
    return hidden + _dropout(layer, _attention(layer.SelfAttention, normed, normed, layout, biases))


def _feed_forward(layer: Any, hidden: Tensor) -> Tensor:
    dense, normed = layer.DenseReluDense, rms_norm(layer.layer_norm, hidden)
    is_gated = hasattr(dense, "wi_0")  # T5 v1.1
    wide = dense.act(dense.wi_0(normed)) * dense.wi_1(normed) if is_gated else dense.act(dense.wi(normed))
    return hidden + _dropout(layer, dense.wo(_dropout(dense, wide)))


def _attention(module: Any, query_states: Tensor, key_states: Tensor, layout: Layout, biases: list[Any]) -> Tensor:
    """Attention of queries [n, d] to keys [s, d] -> [n, d]. T5 does not scale the scores."""
    width, heads = module.key_value_proj_dim, module.n_heads
    # A token of one head is a row of [tokens * heads, width]. One lookup then gives each block in the order
    # [rows, heads, slots] that attention needs, without a transpose that copies.
    queries = layout.queries.gather(module.q(query_states).reshape(-1, width))
    keys = layout.keys.gather(module.k(key_states).reshape(-1, width))
    values = layout.keys.gather(module.v(key_states).reshape(-1, width))
    query_sizes = [heads * block.rows * block.queries for block in layout.blocks]
    key_sizes = [heads * block.rows * block.keys for block in layout.blocks]
    split = (queries.split(query_sizes), keys.split(key_sizes), values.split(key_sizes))
    dropout = module.dropout if module.training else 0.0
    outputs = []
    for block, bias, *parts in zip(layout.blocks, biases, *split, strict=True):
        q, k, v = (part.view(block.rows, heads, -1, width) for part in parts)
        is_long = block.queries * block.keys > MAX_SCORE_CELLS
        outputs.append((_attend_in_chunks if is_long else attend)(q, k, v, bias, dropout, fused=q.is_cuda))
    output = outputs[0] if len(outputs) == 1 else torch.cat(outputs)
    return module.o(layout.queries.scatter(output).reshape(len(query_states), -1))


def attend(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, dropout: float, *, fused: bool) -> Tensor:
    """Attention of one block: q [r, h, t, w], k and v [r, h, s, w] -> [r * h * t, w].

    bias   added to the scores [r, h, t, s]: [r or 1, h or 1, t or 1, s]
    fused  use torch's kernel, which is slower on a CPU if the bias has a gradient
    """
    if fused:
        bias = None if bias is None else bias.to(q.dtype)
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=bias, dropout_p=dropout, scale=1.0)
        return mixed.reshape(-1, q.shape[-1])
    q, k, v = q.flatten(0, 1), k.flatten(0, 1), v.flatten(0, 1)
    if bias is None:
        scores = torch.bmm(q, k.mT)
    else:  # baddbmm adds the bias within the product, which saves a pass over the scores
        wide = bias.expand(-1, len(q) // len(bias), -1, -1)
        scores = torch.baddbmm(wide.flatten(0, 1), q, k.mT)
    weights = F.dropout(scores.softmax(-1), dropout) if dropout else scores.softmax(-1)
    return torch.bmm(weights.to(v.dtype), v).flatten(0, 1)


@dataclass(frozen=True, slots=True)
class _LongBias:
    """The biases of a block's scores, from which those of some queries are made.

    by_distance  [heads, 2 keys - 1]: bias of the distances from -(keys - 1) to keys - 1; None without a bias
    padding      [rows, 1, 1, keys]: added to the scores; None without padding
    causal       whether a query reads only the keys up to its own
    """

    by_distance: Tensor | None
    padding: Tensor | None
    causal: bool

    def of_queries(self, start: int, end: int, keys: int) -> Tensor | None:
        """The biases of the queries from `start` to `end` to the first `keys` keys: [rows or 1, heads or 1, queries or 1,
        keys]; None without biases."""
        if self.by_distance is None:
            return self.padding
        zero = self.by_distance.shape[1] // 2  # the index of the distance 0
        # Query i has the distances from -i on, so that its biases are a part of the vector. All of them are one view of it.
        windows = self.by_distance[:, zero - end + 1 : zero - start + keys].unfold(1, keys, 1)
        bias = windows.flip(1)[None]
        return bias if self.padding is None else bias + self.padding[..., :keys]


def _attend_in_chunks(
    q: Tensor, k: Tensor, v: Tensor, bias: _LongBias | Tensor | None, dropout: float, *, fused: bool
) -> Tensor:
    """`attend` for long rows: the scores of a chunk of queries exist at a time, also in the backward pass."""
    long = bias if isinstance(bias, _LongBias) else _LongBias(None, bias, causal=False)

    def attend_queries(q: Tensor, k: Tensor, v: Tensor, start: int) -> Tensor:
        part = long.of_queries(start, start + q.shape[2], k.shape[2])
        part = None if part is None else part.expand(len(q), -1, -1, -1)
        return attend(q, k, v, part, dropout, fused=fused).view(q.shape)

    (rows, heads, queries, _), keys = q.shape, k.shape[2]
    outputs, start = list[Tensor](), 0
    while start < queries:
        if long.causal:
            end = start + _causal_chunk(start, CHUNK_CELLS // (rows * heads))
            keys = min(end, queries)
        else:
            end = start + max(1, CHUNK_CELLS // (rows * heads * keys))
        values = (q[:, :, start:end], k[:, :, :keys], v[:, :, :keys], start)
        with_gradient = torch.is_grad_enabled()
        run = partial(checkpoint, attend_queries, use_reentrant=False) if with_gradient else attend_queries
        outputs.append(run(*values))
        start = end
    return torch.cat(outputs, 2).reshape(-1, q.shape[-1])


def _causal_chunk(start: int, cells: int) -> int:
    """The number of queries n from `start` on so that n * (start + n), the number of their scores, is about `cells`.

    All chunks then need buffers of about the same size, above the size that the allocator of C keeps in its heap. Buffers
    that grow from chunk to chunk would not fit into the holes of earlier ones, and leave memory of the size of all scores.
    """
    return max(1, (math.isqrt(start * start + 4 * cells) - start) // 2)


def _long_bias(stack: Any, block: Block) -> _LongBias:
    attention = stack.block[0].layer[0].SelfAttention
    before = attention.compute_bias(1, block.keys, past_seen_tokens=block.keys - 1)[0, :, 0]  # up to the distance 0
    after = before.new_full((len(before), block.keys - 1), -torch.inf)
    padding = None
    if not stack.is_decoder:
        after = attention.compute_bias(1, block.keys)[0, :, 0, 1:]
        padding = None if block.key_padding is None else _mask(block.key_padding, before.dtype)[:, None, None]
    return _LongBias(torch.cat([before, after], 1), padding, causal=stack.is_decoder)


def _position_biases(stack: Any, layout: Layout) -> list[Tensor | _LongBias]:
    """Per block, the biases that self-attention adds to its scores [rows, heads, t, t]. All layers use the first layer's.

    A relative bias depends only on the distance, so a block uses the upper left corner of the longest block's biases.
    """
    attention = stack.block[0].layer[0].SelfAttention
    longest = max((block.keys for block in layout.blocks if block.keys**2 <= MAX_SCORE_CELLS), default=1)
    full = attention.compute_bias(longest, longest)  # [1, heads, longest, longest]
    biases: list[Tensor | _LongBias] = []
    for block in layout.blocks:
        if block.queries * block.keys > MAX_SCORE_CELLS:
            biases.append(_long_bias(stack, block))
            continue
        bias = full[:, :, : block.keys, : block.keys]
        if stack.is_decoder:  # padding is on the right, so causal order also excludes it
            ahead = torch.ones(block.keys, block.keys, dtype=torch.bool, device=bias.device).triu_(1)
            bias = bias.masked_fill(ahead, -torch.inf)
        elif block.key_padding is not None:
            bias = bias.expand(block.rows, -1, -1, -1).masked_fill(block.key_padding[:, None, None], -torch.inf)
        biases.append(bias.expand(block.rows, -1, -1, -1).contiguous())
    return biases


def _cross_attention_masks(layout: Layout, dtype: torch.dtype) -> list[Tensor | None]:
    """Per block, the mask that cross-attention adds to its scores, [rows, 1, 1, keys]; None if no key is padding."""
    return [None if b.key_padding is None else _mask(b.key_padding, dtype)[:, None, None] for b in layout.blocks]


def _mask(padding: Tensor, dtype: torch.dtype) -> Tensor:
    return torch.zeros(padding.shape, dtype=dtype, device=padding.device).masked_fill_(padding, -torch.inf)


def _dropout(module: Any, values: Tensor) -> Tensor:
    rate = module.dropout.p
    return F.dropout(values, rate) if rate and module.training else values


def rms_norm(module: Any, values: Tensor) -> Tensor:
    """T5's norm [n, d] -> [n, d]: values divided by their root mean square, times the weight; no bias.

    Training in float32 uses an implementation with fewer passes over memory.
    """
    if values.dtype != torch.float32 or module.weight.dtype != torch.float32 or not torch.is_grad_enabled():
        return module(values)
    return _RMSNorm.apply(values, module.weight, module.variance_epsilon)  # type: ignore[return-value]


class _RMSNorm(torch.autograd.Function):
    """The norm as one autograd node instead of six, with fewer passes over memory and fewer stored tensors."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, weight: Tensor, epsilon: float) -> Tensor:  # type: ignore[override]
        inverse_rms = torch.linalg.vector_norm(values, dim=-1, keepdim=True)
        inverse_rms = inverse_rms.square_().div_(values.shape[-1]).add_(epsilon).rsqrt_()
        ctx.save_for_backward(values, weight, inverse_rms)
        return (values * inverse_rms).mul_(weight)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        # With u = values / rms and g = grad * weight: d values = (g - u mean(g u)) / rms, d weight = sum(grad * u).
        values, weight, inverse_rms = ctx.saved_tensors
        unit = values * inverse_rms
        product = grad * unit
        weight_grad = product.sum(0)
        projection = product.mul_(weight).mean(-1, keepdim=True)
        return (grad * weight).addcmul_(unit, projection, value=-1).mul_(inverse_rms), weight_grad, None
