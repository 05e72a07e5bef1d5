"""LoRA (Hu et al. 2021): every linear layer but the head keeps its weights and learns a product of two thin matrices.

    W x      becomes      W x + (alpha / rank) B A x        B starts at zero, so that nothing changes at first

A student with adapters is saved as one without: `merge_adapters` adds the products to the weights under their own
names, so any tool can load the folder. The layers are peft's (the extra `lora`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import torch
from torch import Tensor

from potstill.errors import UserError

ALPHA_PER_RANK: Final = 2  # alpha = 2 rank, so that the product has the same scale at every rank
BASE_LAYER: Final = ".base_layer."


def add_adapters(model: Any, rank: int, seed: int) -> None:
    """Add adapters to a transformers model, in place; only they are trained from then on.

    Their initial values are a function of rank and seed. Raises UserError if peft is not installed.
    """
    assert rank > 0 and not has_adapters(model), "rank is at least 1, and adapters are added once"
    try:
        import peft  # pyright: ignore[reportMissingImports]
    except ImportError:
        hint = "pip install 'potstill[lora]', or leave train.lora out"
        raise UserError("LoRA needs peft", code="E-train-missing-package", where="train.lora", hint=hint) from None
    config = peft.LoraConfig(r=rank, lora_alpha=ALPHA_PER_RANK * rank, target_modules="all-linear")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        peft.inject_adapter_in_model(config, model)


def has_adapters(model: Any) -> bool:
    """Whether a transformers model has adapters."""
    return any(BASE_LAYER in name for name, _ in model.named_parameters())


@torch.no_grad()
def merge_adapters(model: Any, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state of a model, detached and with its adapters merged into the plain model's weights, if it has any."""
    merged = {}
    for name, value in state.items():
        layer, is_adapted, parameter = name.partition(BASE_LAYER)
        if is_adapted and parameter == "weight":
            value = value + model.get_submodule(layer).get_delta_weight("default").to(value.dtype)
        if is_adapted or ".lora_" not in name:
            merged[f"{layer}.{parameter}" if is_adapted else name] = value.detach()
    return merged
