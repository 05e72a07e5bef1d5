"""LoRA (Hu et al. 2021): every linear layer but the head keeps its weights and learns a product of two thin matrices.

    W x      becomes      W x + (alpha / rank) B A x        B starts at zero, so that nothing changes at first

A student with adapters is saved as one without: `merged` adds the products to the weights, under their own names, so
that any tool loads the folder. Layers are those of peft (the extra `lora`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import torch
from torch import Tensor

from potstill.errors import UserError
from potstill.models.student import Student

ALPHA_PER_RANK: Final = 2  # times the rank: what is added weighs the same whatever the rank
BASE_LAYER: Final = ".base_layer."


def add_adapters(student: Student, rank: int, seed: int) -> None:
    """Put adapters into a student, in place; they alone learn from then on. A function of rank and seed.

    Raises UserError where peft is not installed.
    """
    assert rank > 0 and not student.adapted, "adapters of at least one row, once"
    try:
        import peft  # pyright: ignore[reportMissingImports]
    except ImportError:
        hint = "pip install 'potstill[lora]', or leave train.lora out"
        raise UserError("LoRA needs peft", where="train.lora", hint=hint) from None
    config = peft.LoraConfig(r=rank, lora_alpha=ALPHA_PER_RANK * rank, target_modules="all-linear")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        peft.inject_adapter_in_model(config, student.model)
    student.adapted = True


def merge_adapters(model: Any, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state of a model with adapters as that of the plain model."""
    plain = {}
    for name, value in state.items():
        if BASE_LAYER in name:
            own, _, last = name.partition(BASE_LAYER)
            if last == "weight":
                value = value + model.get_submodule(own).get_delta_weight("default").to(value.dtype)
            plain[f"{own}.{last}"] = value
        elif ".lora_" not in name:
            plain[name] = value
    return plain
