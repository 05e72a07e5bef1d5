"""A LoRA adapter on disk: a folder of peft, and the base to which the adapter belongs.

    adapter_config.json          the rank, the layers and the base's name, for peft and transformers
    adapter_model.safetensors    the thin matrices, in float32
    base.json                    digests of the base with which the adapter was trained, and what rounded it to 4 bits

    >>> stored_name("model.layers.0.self_attn.q_proj.lora_A.default.weight")
    'base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight'

`PeftModel.from_pretrained(base, folder)` opens such a folder. potstill adds the products of the matrices to the base's
weights in memory (`merge_adapter`); this needs no peft. It compares the base with `base.json` first (`check_base`), because
an adapter makes sense only on the weights with which it was trained.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import safetensors.torch
import torch
from torch import Tensor
from transformers.pytorch_utils import Conv1D

from potstill import progress, storage
from potstill.errors import UserError
from potstill.models import lora, weight_files
from potstill.models.lora import ALPHA_PER_RANK, is_thin_matrix

ADAPTER: Final = "default"  # peft's default name of an adapter
ADAPTER_CONFIG: Final = weight_files.ADAPTER_CONFIG
ADAPTER_FILE: Final = "adapter_model.safetensors"
ADAPTER_FOLDER: Final = "adapter"  # in the student's folder
BASE_FILE: Final = weight_files.ADAPTER_BASE
COMMIT_SUFFIX: Final = " (commit)"  # of the digest that is a commit on the hub
TASK_TYPES: Final = {"causal": "CAUSAL_LM", "t5": "SEQ_2_SEQ_LM"}


@dataclass(frozen=True, slots=True)
class AdapterBase:
    """The base of an adapter.

    name      the name with which peft finds it; None for random weights
    revision  the commit or branch of a model on the hub
    digests   recipe key -> digest of the base (`ModelSource.identity`), or of its random weights
    rounding  4-bit type to which the weights of its layers were rounded (`lora.round_layers`); None without rounding
    rounded_by  version of bitsandbytes, which rounded them; None if it is unknown
    """

    name: str | None = None
    revision: str | None = None
    digests: Mapping[str, str] = field(default_factory=dict)
    rounding: str | None = None
    rounded_by: str | None = None


def stored_name(name: str) -> str:
    """The name of a matrix in peft's files. name: its name in a model with adapters."""
    return "base_model.model." + name.replace(f".{ADAPTER}.", ".")


def is_adapter(folder: Path) -> bool:
    """Whether a folder contains an adapter instead of a whole model."""
    return (folder / ADAPTER_CONFIG).is_file()


def find_adapter(checkpoint: Path) -> Path:
    """The folder of peft of a checkpoint. Raises UserError if the checkpoint has no adapter.

    It is the checkpoint itself. Earlier versions saved merged weights, and with `train.save_adapter` a folder beside them.
    """
    for folder in (checkpoint, checkpoint / ADAPTER_FOLDER):
        if is_adapter(folder):
            return folder
    what, hint = "the checkpoint has whole weights and no adapter", "train with train.lora"
    raise UserError(what, code="E-model-no-adapter", where=checkpoint, hint=hint)


def save_adapter(state: Mapping[str, Tensor], folder: Path, family: str, base: AdapterBase) -> None:
    """Write the adapter of a model as a folder for peft. state: the model's state_dict, or its thin matrices alone."""
    import peft  # pyright: ignore[reportMissingImports]

    state = {stored_name(name): value.detach() for name, value in state.items() if is_thin_matrix(name)}
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
    _write_matrices(folder, state)
    rounding = {} if base.rounding is None else {"rounding": base.rounding, "bitsandbytes": base.rounded_by}
    storage.write_json(folder / BASE_FILE, {"digests": dict(base.digests), **rounding})


def copy_adapter(source: Path, folder: Path, share: float = 1.0) -> None:
    """Copy a folder of peft. share: share of an interpolation with the base, whose adapter is share * B A.

    Raises UserError for an interpolation with a base that was rounded, because it also moves the rounded weights.
    """
    if share != 1 and (source / BASE_FILE).is_file() and read_base(source).rounding is not None:
        what = "an interpolation after training with weights in 4 bits has no adapter"
        hint = "use its merged weights (--as merged; train.save_adapter: false)"
        raise UserError(what, code="E-model-no-adapter", where=source, hint=hint)
    state = _read_matrices(source)
    scaled = {name: value * share if ".lora_B." in name else value for name, value in state.items()}
    storage.write_file(folder / ADAPTER_CONFIG, storage.read_bytes(source / ADAPTER_CONFIG))
    _write_matrices(folder, scaled if share != 1 else state)


def check_base(folder: Path, base: AdapterBase) -> None:
    """Raise UserError unless `base` is the base with which the adapter in a folder was trained.

    A model of the hub is the same if its commit is; every other one if the digest of its files is. Prints a line if another
    version of bitsandbytes rounds the base than in training, because the weights may differ.
    """
    stored = read_base(folder)
    if stored.rounded_by and base.rounded_by and stored.rounded_by != base.rounded_by:
        versions = f"bitsandbytes {stored.rounded_by} rounded the base in training, {base.rounded_by} rounds it now"
        progress.print_line(f"{folder}: {versions}; its weights may differ", "yellow")
    trained = stored.digests
    commits = {key for key in trained if key.endswith(COMMIT_SUFFIX)}
    changed = sorted(key for key in (commits or trained.keys()) if trained[key] != base.digests.get(key))
    if changed:
        key, commit = changed[0], next((trained[key] for key in commits), None)
        now = base.digests.get(key, "none")
        hint = "restore the base" if commit is None else f"set student.revision: {commit}"
        raise UserError(
            "the base is not the one with which the adapter was trained",
            code="E-model-adapter-base",
            where=folder,
            found=f"{key}: {trained[key][:16]} in training, {now[:16]} now",
            hint=f"{hint}, or train again (--redo train)",
        )


def read_base(folder: Path) -> AdapterBase:
    """The digests and the rounding of an adapter's base, as `save_adapter` stored them."""
    path = folder / BASE_FILE
    row = storage.read_json(path)
    with storage.as_format_errors(path):
        digests = {str(key): str(value) for key, value in row["digests"].items()}
        if (rounding := row.get("rounding")) not in (None, lora.QUANTIZATION):
            raise ValueError(f"the rounding {rounding!r}")
        if not isinstance(rounded_by := row.get("bitsandbytes"), str | None):
            raise TypeError(f"the version {rounded_by!r} of bitsandbytes")
        return AdapterBase(digests=digests, rounding=rounding, rounded_by=rounded_by)


def load_adapter(model: Any, folder: Path) -> None:
    """Set the adapters of a model (`lora.add_adapters`) to the values in a folder, in place."""
    state = _read_matrices(folder)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if is_thin_matrix(name):
                stored = state.get(stored_name(name))
                if stored is None or stored.shape != parameter.shape:
                    raise _mismatch(folder, name)
                parameter.copy_(stored)


@torch.no_grad()
def merge_adapter(model: Any, folder: Path) -> None:
    """Add the products of an adapter to the weights of its base, in place.

    Raises UserError if the files are damaged, if they do not fit the model, or if a weight is not finite afterwards.
    """
    config, state = storage.read_json(folder / ADAPTER_CONFIG), _read_matrices(folder)
    with storage.as_format_errors(folder / ADAPTER_CONFIG):
        scaling = config["lora_alpha"] / config["r"]
    names = {name.partition(".lora_")[0] for name in state}
    modules = dict(model.named_modules())
    buffer = torch.empty(0)  # one buffer for all products: new memory is slow to write
    for name in sorted(names):
        thin_in, thin_out = (state.get(f"{name}.lora_{part}.weight") for part in "AB")
        layer = modules.get(name.removeprefix("base_model.model."))
        if thin_in is None or thin_out is None or layer is None or thin_in.shape[0] != thin_out.shape[1]:
            raise _mismatch(folder, name)
        rows, columns = thin_out.shape[0], thin_in.shape[1]
        if buffer.numel() < rows * columns or buffer.dtype != thin_out.dtype:
            buffer = thin_out.new_empty(rows * columns)
        product = torch.mm(thin_out, thin_in, out=buffer[: rows * columns].view(rows, columns))
        product = product.T if isinstance(layer, Conv1D) else product
        if product.shape != layer.weight.shape:
            raise _mismatch(folder, name)
        layer.weight.add_(product.mul_(scaling).to(layer.weight.dtype))
        weight_files.refuse_non_finite(folder, iter([(name, layer.weight)]))


def compare_weights(weights: Mapping[str, Tensor], others: Mapping[str, Tensor]) -> float:
    """The largest difference between weights, in units of the largest value of its tensor; 0 if all are equal."""
    assert weights.keys() == others.keys(), "both models have one architecture"
    moved = 0.0
    for name, value in weights.items():
        if not torch.equal(value, others[name]):
            moved = max(moved, float((value - others[name]).abs().max() / value.abs().max()))
    return moved


def digest_weights(model: Any) -> str:
    """SHA-256 over the names, types, shapes and values of a model's weights; for weights that are in no file."""
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        digest.update(f"{name}\0{value.dtype}\0{tuple(value.shape)}\0".encode())
        digest.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def _write_matrices(folder: Path, state: Mapping[str, Tensor]) -> None:
    contiguous = {name: value.cpu().contiguous() for name, value in state.items()}
    storage.write_file(folder / ADAPTER_FILE, safetensors.torch.save(contiguous, {"format": "pt"}))


def _read_matrices(folder: Path) -> dict[str, Tensor]:
    try:
        return safetensors.torch.load(storage.read_bytes(folder / ADAPTER_FILE))
    except safetensors.SafetensorError as error:
        raise UserError(
            "the adapter is truncated or damaged",
            code="E-model-adapter-damaged",
            where=folder / ADAPTER_FILE,
            found=error,
            hint="restore the file from a copy, or train again (--redo train)",
        ) from None


def _mismatch(folder: Path, name: str) -> UserError:
    return UserError(
        "the adapter does not fit its base",
        code="E-model-adapter-damaged",
        where=folder,
        found=name,
        hint="restore the folder from a copy, or train again (--redo train)",
    )
