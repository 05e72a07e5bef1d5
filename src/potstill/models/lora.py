"""LoRA (Hu et al. 2021): all linear layers except the head keep their weights, and learn products of two thin matrices.

    W x      becomes      W x + (alpha / rank) B A x        B starts at zero, so that the model does not change at first

    >>> adapter_name("model.layers.0.self_attn.q_proj.lora_A.default.weight")
    'base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight'

A student with adapters is saved as a plain model: `merge_adapters` adds the products to the weights, so any tool can load
the folder. `save_adapter` writes only the thin matrices, as a folder for peft. The layers are peft's (the extra `lora`).

QLoRA (Dettmers et al. 2023): `quantize_layers` first stores the kept weights in 4 bits (NF4, blocks of 64 with quantized
scales), 0.52 bytes for each weight instead of 4. The saved model has these rounded weights plus the products, so it
computes what was trained. The layers are those of bitsandbytes (the extra `qlora`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final, Literal

import safetensors.torch
import torch
from torch import Tensor

from potstill import storage
from potstill.errors import UserError

ALPHA_PER_RANK: Final = 2  # alpha = 2 rank, so that the product has the same scale at every rank
BASE_LAYER: Final = ".base_layer."
QUANTIZATION: Final = "nf4"
ADAPTER: Final = "default"  # peft's default name of an adapter
ADAPTER_CONFIG: Final = "adapter_config.json"
ADAPTER_FILE: Final = "adapter_model.safetensors"
ADAPTER_FOLDER: Final = "adapter"  # in a checkpoint and in the student's folder
TASK_TYPES: Final = {"causal": "CAUSAL_LM", "t5": "SEQ_2_SEQ_LM"}


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
    if find_spec("bitsandbytes") is None:
        what, hint = "weights in 4 bits need bitsandbytes", f"pip install 'potstill[qlora]', or remove {key}"
        raise UserError(what, code="E-train-missing-package", where=key, hint=hint)
    if not torch.cuda.is_available():
        # On a CPU, bitsandbytes packs weights in another order as soon as a layer is evaluated.
        what, hint = (
            "weights in 4 bits need a GPU",
            f"train on a machine with a GPU, or remove {key}: LoRA works without it",
        )
        raise UserError(what, code="E-train-4bit-needs-gpu", where=key, hint=hint)


def quantize_layers(model: Any, precision: Literal["float32", "bfloat16"]) -> None:
    """Store the weights of all linear layers except the head in 4 bits, in place. They can no longer be trained.

    precision  type in which the layers multiply

    The weights are rounded when the layers are moved to a device. It needs bitsandbytes (`check_quantization`).
    """
    from bitsandbytes import nn as quantized  # pyright: ignore[reportMissingImports]

    head, dtype = model.get_output_embeddings(), getattr(torch, precision)
    settings: dict[str, Any] = {"quant_type": QUANTIZATION, "compress_statistics": True}
    for name, layer in list(model.named_modules()):
        if type(layer) is not torch.nn.Linear or layer is head:
            continue
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


def _is_quantized(layer: Any) -> bool:
    return getattr(layer.weight, "quant_state", None) is not None


def _kept_weight(layer: Any, value: Tensor) -> Tensor:
    """The weight with which an adapted layer computes. value: as it is stored."""
    if not _is_quantized(layer):
        return value
    from bitsandbytes.functional import dequantize_4bit  # pyright: ignore[reportMissingImports]

    return dequantize_4bit(layer.weight.data, layer.weight.quant_state)


def has_adapters(model: Any) -> bool:
    """Whether a transformers model has adapters."""
    return any(BASE_LAYER in name for name, _ in model.named_parameters())


@torch.no_grad()
def merge_adapters(model: Any, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The plain model's state, detached and with adapters merged into its weights. state: the model's state_dict."""
    merged = {}
    for name, value in state.items():
        layer, is_adapted, parameter = name.partition(BASE_LAYER)
        if is_adapted and parameter == "weight":
            adapted = model.get_submodule(layer)
            value = _kept_weight(adapted.base_layer, value)
            value = value + _product(adapted, layer, state).to(value.dtype)
        elif is_adapted and parameter.startswith("weight."):  # of a weight in 4 bits: its scales
            continue
        if is_adapted or ".lora_" not in name:
            merged[f"{layer}.{parameter}" if is_adapted else name] = value.detach()
    return merged


def _product(module: Any, layer: str, state: Mapping[str, Tensor]) -> Tensor:
    """What an adapter adds to the weight of its layer. `state` may be whole where the module has only a part of it."""
    thin_in, thin_out = (state[f"{layer}.lora_{name}.{ADAPTER}.weight"] for name in "AB")
    product = thin_out @ thin_in
    return (product.T if module.fan_in_fan_out else product) * module.scaling[ADAPTER]


def adapter_name(name: str) -> str:
    """The name of a parameter in peft's files. name: its name in a model with adapters."""
    return "base_model.model." + name.replace(f".{ADAPTER}.", ".")


@dataclass(frozen=True, slots=True)
class AdapterBase:
    """The base model of an adapter. name: the name with which peft finds it; revision: for a model on the hub."""

    name: str
    revision: str | None = None


def save_adapter(state: Mapping[str, Tensor], folder: Path, family: str, base: AdapterBase) -> None:
    """Write the adapter of a model as a folder for `PeftModel.from_pretrained`. state: the model's state_dict."""
    import peft  # pyright: ignore[reportMissingImports]

    state = {adapter_name(name): value.detach() for name, value in state.items() if ".lora_" in name}
    [rank] = {value.shape[0] for name, value in state.items() if ".lora_A." in name}
    config = peft.LoraConfig(
        r=rank,
        lora_alpha=ALPHA_PER_RANK * rank,
        task_type=TASK_TYPES[family],
        base_model_name_or_path=base.name,
        revision=base.revision,
        inference_mode=True,
    ).to_dict()
    layers = sorted({name.partition(".lora_")[0].rpartition(".")[2] for name in state})
    config |= {"peft_type": "LORA", "target_modules": layers}  # instead of a value of an enumeration, and of a set
    storage.write_json(folder / ADAPTER_CONFIG, config)
    _write_adapter(folder, state)


def copy_adapter(source: Path, folder: Path, share: float) -> None:
    """Copy the folder of an adapter. share: share of an interpolation with the base, whose adapter is share * B A."""
    state = safetensors.torch.load(storage.read_bytes(source / ADAPTER_FILE))
    scaled = {name: value * share if ".lora_B." in name else value for name, value in state.items()}
    storage.write_file(folder / ADAPTER_CONFIG, storage.read_bytes(source / ADAPTER_CONFIG))
    _write_adapter(folder, scaled if share != 1 else state)


def _write_adapter(folder: Path, state: Mapping[str, Tensor]) -> None:
    contiguous = {name: value.cpu().contiguous() for name, value in state.items()}
    storage.write_file(folder / ADAPTER_FILE, safetensors.torch.save(contiguous, {"format": "pt"}))
