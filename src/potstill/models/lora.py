"""LoRA (Hu et al. 2021): all linear layers except the head keep their weights, and learn products of two thin matrices.

    W x      becomes      W x + (alpha / rank) B A x        B starts at zero, so that the model does not change at first

    add_adapters(student.model, rank=16, seed=1)

The layers are peft's (the extra `lora`). A checkpoint contains only the thin matrices (`potstill.models.adapter_files`).

QLoRA (Dettmers et al. 2023): `quantize_layers` first stores the kept weights in 4 bits (NF4, blocks of 64 with quantized
scales), 0.52 bytes for each weight instead of 4. The layers are those of bitsandbytes (the extra `qlora`). Such an adapter
belongs to the rounded weights, which `round_layers` makes again from the base.
"""

from __future__ import annotations

from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from typing import Any, Final, Literal

import torch

from potstill.errors import UserError

ALPHA_PER_RANK: Final = 2  # alpha = 2 rank, so that the product has the same scale at every rank
QUANTIZATION: Final = "nf4"


def add_adapters(model: Any, rank: int, seed: int) -> None:
    """Add adapters to a transformers model, in place. From then on, only the adapters are trained.

    Their initial values are a function of rank and seed. Raises UserError if peft is not installed.
    """
    assert rank > 0 and not has_adapters(model), "rank is at least 1, and adapters are added once"
    try:
        import peft  # pyright: ignore[reportMissingImports]
    except ImportError:
        hint = "pip install 'potstill[lora]', or remove train.lora"
        raise UserError("LoRA needs peft", code="E-train-missing-package", where="train.lora", hint=hint) from None
    config = peft.LoraConfig(r=rank, lora_alpha=ALPHA_PER_RANK * rank, target_modules="all-linear")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        peft.inject_adapter_in_model(config, model)


def check_quantization() -> None:
    """Raise UserError if this machine cannot train with weights in 4 bits."""
    key = "train.load_in_4bit"
    _check_bitsandbytes()
    if not torch.cuda.is_available():
        # On a CPU, bitsandbytes packs weights in another order as soon as a layer is evaluated.
        what, hint = (
            "weights in 4 bits need a GPU",
            f"train on a machine with a GPU, or remove {key}: LoRA works without it",
        )
        raise UserError(what, code="E-train-4bit-needs-gpu", where=key, hint=hint)


def bitsandbytes_version() -> str | None:
    """The version of the library that rounds weights to 4 bits; None if it is not installed."""
    try:
        return version("bitsandbytes")
    except PackageNotFoundError:
        return None


def _check_bitsandbytes() -> None:
    if find_spec("bitsandbytes") is None:
        what, key = "weights in 4 bits need bitsandbytes", "train.load_in_4bit"
        hint = f"pip install 'potstill[qlora]', or remove {key}"
        raise UserError(what, code="E-train-missing-package", where=key, hint=hint)


def quantize_layers(model: Any, precision: Literal["float32", "bfloat16"]) -> None:
    """Store the weights of all linear layers except the head in 4 bits, in place. They can no longer be trained.

    precision  type in which the layers multiply

    The weights are rounded when the layers are moved to a device. It needs bitsandbytes (`check_quantization`).
    """
    from bitsandbytes import nn as quantized  # pyright: ignore[reportMissingImports]

    dtype = getattr(torch, precision)
    settings: dict[str, Any] = {"quant_type": QUANTIZATION, "compress_statistics": True}
    for name, layer in _quantized_layers(model):
        with torch.device("meta"):
            small = quantized.Linear4bit(
                layer.in_features, layer.out_features, layer.bias is not None, dtype, **settings
            )
        small.weight = quantized.Params4bit(layer.weight.data, requires_grad=False, module=small, **settings)
        if layer.bias is not None:
            small.bias = layer.bias
        parent, _, attribute = name.rpartition(".")
        setattr(model.get_submodule(parent), attribute, small)
    model.to(model.device)


def round_layers(model: Any) -> None:
    """Round the weights that `quantize_layers` would store in 4 bits to the values with which its layers compute, in place.

    Raises UserError if bitsandbytes is not installed.
    """
    _check_bitsandbytes()
    from bitsandbytes import functional  # pyright: ignore[reportMissingImports]

    for _, layer in _quantized_layers(model):
        small, state = functional.quantize_4bit(layer.weight.data, quant_type=QUANTIZATION, compress_statistics=True)
        layer.weight.data = functional.dequantize_4bit(small, state)


def _quantized_layers(model: Any) -> Iterator[tuple[str, torch.nn.Linear]]:
    """The linear layers except the head, with their names."""
    head = model.get_output_embeddings()
    for name, layer in list(model.named_modules()):
        if type(layer) is torch.nn.Linear and layer is not head:
            yield name, layer


def has_adapters(model: Any) -> bool:
    """Whether a transformers model has adapters."""
    return any(map(is_thin_matrix, (name for name, _ in model.named_parameters())))


def is_thin_matrix(name: str) -> bool:
    """Whether the parameter of a model with adapters belongs to the adapters."""
    return ".lora_" in name
