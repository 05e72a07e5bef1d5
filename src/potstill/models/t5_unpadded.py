"""The layers of a T5 over tokens without padding: the model's own modules, in another order of computing.

Equal to the model's own forward pass to the rounding of sums. What is left out is what padding costs: products of
places that hold no token, masks, and encodings of a prompt that several chains share.
"""

from __future__ import annotations

from functools import partial
from types import MethodType
from typing import Any, Final

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.distributed.fsdp import register_fsdp_forward_method
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from potstill.models.unpadded import Layout

FSDP_METHOD: Final = "over_tokens"  # of a block whose weights are spread over processes


def run_encoder(model: Any, ids: Tensor, own: Layout) -> Tensor:
    """Prompts' tokens [s] to the encoder's last hidden states [s, d]."""
    stack = model.encoder
    hidden = _dropout(stack, stack.embed_tokens(ids))
    biases = _position_biases(stack, own)
    for block in stack.block:
        hidden = _run_block(stack, _encoder_block, block, hidden, own, biases)
    return _dropout(stack, rms_norm(stack.final_layer_norm, hidden))


def run_decoder(model: Any, ids: Tensor, encoded: Tensor, own: Layout, across: Layout) -> Tensor:
    """Targets' tokens [n] to the decoder's last hidden states [n, d]; `across`: which of `encoded` each one reads."""
    stack = model.decoder
    hidden = _dropout(stack, stack.embed_tokens(ids))
    biases, masks = _position_biases(stack, own), _cross_attention_masks(across, encoded.dtype)
    for block in stack.block:
        hidden = _run_block(stack, _decoder_block, block, hidden, encoded, own, biases, across, masks)
    return _dropout(stack, rms_norm(stack.final_layer_norm, hidden))


def register_fsdp_methods(model: Any) -> None:
    """For a model whose blocks are FSDP modules: what is computed with a block here becomes a method of it that
    gathers its weights before and lets them go after, as calling the block would."""
    for stack, layer in ((model.encoder, _encoder_block), (model.decoder, _decoder_block)):
        for block in stack.block:
            setattr(block, FSDP_METHOD, MethodType(layer, block))
            register_fsdp_forward_method(block, FSDP_METHOD)


def _run_block(stack: Any, layer: Any, block: Any, *values: Any) -> Tensor:
    run = getattr(block, FSDP_METHOD, None) or partial(layer, block)
    if stack.gradient_checkpointing and stack.training:
        return checkpoint(run, *values, use_reentrant=False)
    return run(*values)


def _encoder_block(block: Any, hidden: Tensor, own: Layout, biases: list[Tensor]) -> Tensor:
    reading = block.layer[0]
    normed = rms_norm(reading.layer_norm, hidden)
    hidden = hidden + _dropout(reading, _attention(reading.SelfAttention, normed, normed, own, biases))
    return _feed_forward(block.layer[-1], hidden)


def _decoder_block(
    block: Any,
    hidden: Tensor,
    encoded: Tensor,
    own: Layout,
    biases: list[Tensor],
    across: Layout,
    masks: list[Tensor | None],
) -> Tensor:
    reading, crossing = block.layer[0], block.layer[1]
    normed = rms_norm(reading.layer_norm, hidden)
    hidden = hidden + _dropout(reading, _attention(reading.SelfAttention, normed, normed, own, biases))
    normed = rms_norm(crossing.layer_norm, hidden)
    hidden = hidden + _dropout(crossing, _attention(crossing.EncDecAttention, normed, encoded, across, masks))
    return _feed_forward(block.layer[-1], hidden)


def _feed_forward(layer: Any, hidden: Tensor) -> Tensor:
    inner, normed = layer.DenseReluDense, rms_norm(layer.layer_norm, hidden)
    gated = hasattr(inner, "wi_0")
    wide = inner.act(inner.wi_0(normed)) * inner.wi_1(normed) if gated else inner.act(inner.wi(normed))
    return hidden + _dropout(layer, inner.wo(_dropout(inner, wide)))


def _attention(module: Any, asking: Tensor, read: Tensor, layout: Layout, biases: list[Any]) -> Tensor:
    """[n, d], [s, d] -> [n, d]: attention of T5, whose scores are not scaled."""
    width = module.key_value_proj_dim
    asked = layout.queries.gather(module.q(asking).reshape(-1, width))
    keys = layout.keys.gather(module.k(read).reshape(-1, width))
    values = layout.keys.gather(module.v(read).reshape(-1, width))
    heads = module.n_heads
    many = [heads * square.rows * square.queries for square in layout.squares]
    more = [heads * square.rows * square.keys for square in layout.squares]
    found = []
    parts = zip(layout.squares, biases, asked.split(many), keys.split(more), values.split(more), strict=True)
    for square, bias, q, k, v in parts:
        shape = (square.rows, heads, -1, width)
        dropout = module.dropout if module.training else 0.0
        found.append(attend(q.view(shape), k.view(shape), v.view(shape), bias, dropout, fused=q.is_cuda))
    together = found[0] if len(found) == 1 else torch.cat(found)
    return module.o(layout.queries.scatter(together).reshape(len(asking), -1))


def attend(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, dropout: float, *, fused: bool) -> Tensor:
    """q [r, h, t, w], k and v [r, h, s, w], bias to be added to scores [r, h, t, s] -> [r * h * t, w].

    fused  torch's own kernel, which on a CPU is slower where the bias has a gradient
    """
    if fused:
        bias = None if bias is None else bias.to(q.dtype)
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=bias, dropout_p=dropout, scale=1.0)
        return mixed.reshape(-1, q.shape[-1])
    q, k, v = q.flatten(0, 1), k.flatten(0, 1), v.flatten(0, 1)
    if bias is None:
        scores = torch.bmm(q, k.mT)
    else:
        wide = bias.expand(-1, len(q) // len(bias), -1, -1)
        scores = torch.baddbmm(wide.flatten(0, 1), q, k.mT)
    weights = F.dropout(scores.softmax(-1), dropout) if dropout else scores.softmax(-1)
    return torch.bmm(weights.to(v.dtype), v).flatten(0, 1)


def _position_biases(stack: Any, own: Layout) -> list[Tensor]:
    """For each square what is added to the scores of self-attention [rows, heads, t, t]: all layers share it."""
    attention = stack.block[0].layer[0].SelfAttention
    longest = max(square.keys for square in own.squares)
    whole = attention.compute_bias(longest, longest)  # [1, heads, longest, longest]
    found = []
    for square in own.squares:
        bias = whole[:, :, : square.keys, : square.keys]
        if stack.is_decoder:  # its padding stands on the right, where nothing looks
            ahead = torch.ones(square.keys, square.keys, dtype=torch.bool, device=bias.device).triu_(1)
            bias = bias.masked_fill(ahead, -torch.inf)
        elif square.hidden is not None:
            bias = bias.expand(square.rows, -1, -1, -1).masked_fill(square.hidden[:, None, None], -torch.inf)
        found.append(bias.expand(square.rows, -1, -1, -1).contiguous())
    return found


def _cross_attention_masks(across: Layout, kind: torch.dtype) -> list[Tensor | None]:
    """For each square what is added to the scores of cross-attention, [rows, 1, 1, keys]; None for nothing."""
    found: list[Tensor | None] = []
    for square in across.squares:
        if square.hidden is None:
            found.append(None)
            continue
        mask = torch.zeros(square.hidden.shape, dtype=kind, device=square.hidden.device)
        found.append(mask.masked_fill_(square.hidden, -torch.inf)[:, None, None])
    return found


def _dropout(module: Any, values: Tensor) -> Tensor:
    rate = module.dropout.p
    return F.dropout(values, rate) if rate and module.training else values


def rms_norm(module: Any, values: Tensor) -> Tensor:
    """T5's norm: by the root of the mean square, without a bias. In float32 with few passes over memory."""
    if values.dtype != torch.float32 or module.weight.dtype != torch.float32 or not torch.is_grad_enabled():
        return module(values)
    return _RMSNorm.apply(values, module.weight, module.variance_epsilon)  # type: ignore[return-value]


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, weight: Tensor, epsilon: float) -> Tensor:  # type: ignore[override]
        rate = torch.linalg.vector_norm(values, dim=-1, keepdim=True)
        rate = rate.square_().div_(values.shape[-1]).add_(epsilon).rsqrt_()
        ctx.save_for_backward(values, weight, rate)
        return (values * rate).mul_(weight)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        values, weight, rate = ctx.saved_tensors
        unit = values * rate
        slope = grad * unit
        to_weight = slope.sum(0)
        along = slope.mul_(weight).mean(-1, keepdim=True)
        return (grad * weight).addcmul_(unit, along, value=-1).mul_(rate), to_weight, None
