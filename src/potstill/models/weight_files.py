"""The weights in a model's folder: which files and tensors exist, whether they can be trained, and whether they are
finite. All of that is checked before a model is built.

    >>> find_quantization({"quantization_config": {"quant_method": "gptq"}}, {})
    'gptq, in config.json'
    >>> find_quantization({}, {"model.layers.0.q_proj.weight": TensorHeader("I8", (4, 4))})
    'model.layers.0.q_proj.weight is of type I8'
    >>> find_quantization({}, {"model.embed_tokens.weight": TensorHeader("BF16", (4, 4))})

Only safetensors are read. An index may name files of its own folder and no others.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Final

import torch
from safetensors import SafetensorError, safe_open

from potstill.errors import UserError

SINGLE_FILE: Final = "model.safetensors"
INDEX_FILE: Final = "model.safetensors.index.json"
FLOAT_DTYPES: Final = ("F64", "F32", "F16", "BF16")
# Last parts of the names of tensors that a model multiplies with, in plain and in quantized form.
WEIGHT_PARTS: Final = ["weight", "qweight", "weight_packed", "qzeros", "packed", "blocks", "scb", "absmax", "quant_map"]
QUANTIZATION_FILES: Final = ("quantize_config.json", "quant_config.json", "hf_quant_config.json")  # of older tools
DOWNLOAD_AGAIN: Final = "download the folder again"
FIX_CONFIG: Final = "correct config.json, or download the folder again"
GIVE_MODEL_FOLDER: Final = "give the folder of a Hugging Face model"
LFS_POINTER: Final = b"version https://git-lfs"


@dataclass(frozen=True, slots=True)
class TensorHeader:
    """A tensor as its file's header describes it. dtype: safetensors' name, such as F32."""

    dtype: str
    shape: tuple[int, ...]


def list_tensors(folder: Path) -> dict[str, TensorHeader]:
    """Every tensor of the model in a folder, by name; reads no values.

    Raises UserError if the folder has no safetensors, if a file is truncated or has another format, and if an index
    names a file that it may not.
    """
    tensors: dict[str, TensorHeader] = {}
    for path in list_weight_files(folder):
        try:
            with safe_open(path, framework="pt") as file:
                for name in file.keys():  # noqa: SIM118
                    part = file.get_slice(name)
                    tensors[name] = TensorHeader(part.get_dtype(), tuple(part.get_shape()))
        except (SafetensorError, OSError, ValueError) as error:
            raise _unreadable_error(path, error) from None
    missing = sorted(set(_read_index(folder)) - tensors.keys())
    if missing:
        raise UserError(
            "the index names tensors that its files do not hold",
            code="E-model-weights-incomplete",
            where=folder / INDEX_FILE,
            found=f"{len(missing)}, first {missing[0]}",
            hint=DOWNLOAD_AGAIN,
        )
    if not tensors:
        raise UserError(
            "the weight files hold no tensors", code="E-model-weights-incomplete", where=folder, hint=DOWNLOAD_AGAIN
        )
    return tensors


def list_weight_files(folder: Path) -> list[Path]:
    """The files that hold the weights, as transformers chooses them. Raises UserError as `list_tensors` does."""
    if (folder / "adapter_config.json").is_file():
        raise UserError(
            "the folder holds adapters (LoRA), not a whole model",
            code="E-model-adapters",
            where=folder / "adapter_config.json",
            hint="merge them into their base model (peft: merge_and_unload, then save_pretrained)",
        )
    if (folder / SINGLE_FILE).is_file():
        return [folder / SINGLE_FILE]
    names = sorted(set(_read_index(folder).values()))
    for name in names:
        _check_index_entry(folder, name)
    if names:
        return [folder / name for name in names]
    pickles = sorted(path.name for path in folder.glob("*.bin")) + sorted(path.name for path in folder.glob("*.pt*"))
    if pickles:
        raise UserError(
            "the weights are a pickle, which can run code when it is read",
            code="E-model-pickled-weights",
            where=folder / pickles[0],
            hint="convert them to safetensors on a machine where that is acceptable",
        )
    raise UserError(
        "the folder has no model.safetensors", code="E-model-no-weights", where=folder, hint=GIVE_MODEL_FOLDER
    )


def refuse_quantized(folder: Path, config: Mapping[str, Any], tensors: Mapping[str, TensorHeader]) -> None:
    """Raises UserError for weights that cannot be trained and that transformers may load as something else."""
    evidence = find_quantization(config, tensors)
    files = [name for name in QUANTIZATION_FILES if (folder / name).is_file()]
    if evidence is None and files:
        evidence = f"the folder has {files[0]}"
    if evidence is not None:
        raise UserError(
            "the weights are quantized; only weights of 16, 32 or 64 bits can be trained or computed here",
            code="E-model-quantized",
            where=folder,
            found=evidence,
            hint="use the folder of the unquantized model; a quantized teacher can run on a server"
            " (teacher.kind: openai)",
        )


def find_quantization(config: Mapping[str, Any], tensors: Mapping[str, TensorHeader]) -> str | None:
    """How the weights are quantized, by config.json or by the tensors themselves; None if they are not."""
    for section in (config, *(value for value in config.values() if isinstance(value, dict))):
        for key in ("quantization_config", "compression_config"):
            settings = section.get(key)
            if settings is not None:
                method = settings.get("quant_method") if isinstance(settings, dict) else None
                return f"{str(method or key)[:40]}, in config.json"
    for name, tensor in tensors.items():
        last_part = name.rpartition(".")[2].lower()
        # Other integers are positions and masks, which training does not change.
        if tensor.dtype not in FLOAT_DTYPES and (tensor.dtype[0] in "FC" or last_part.startswith(tuple(WEIGHT_PARTS))):
            return f"{name} is of type {tensor.dtype}"
    return None


def check_finite(folder: Path) -> None:
    """Read every value once. Raises UserError with the first tensor that holds NaN or an infinity."""
    for path in list_weight_files(folder):
        try:
            with safe_open(path, framework="pt") as file:
                refuse_non_finite(folder, ((name, file.get_tensor(name)) for name in file.keys()))  # noqa: SIM118
        except (SafetensorError, OSError, ValueError) as error:
            raise _unreadable_error(path, error) from None


def refuse_non_finite(folder: Path, named: Iterator[tuple[str, torch.Tensor]]) -> None:
    """Raises UserError with the first of these tensors that holds NaN or an infinity."""
    for name, value in named:
        if not value.is_floating_point() or not value.numel():
            continue
        least, most = (float(end) for end in torch.aminmax(value.detach()))  # NaN if any value is NaN
        if not (-torch.inf < least and most < torch.inf):
            raise UserError(
                "the weights are not finite numbers",
                code="E-model-weights-not-finite",
                where=folder,
                found=f"{'NaN' if least != least else 'an infinity'} in {name}",
                hint=f"{DOWNLOAD_AGAIN}; if training wrote it, training diverged: lower train.learning_rate",
            )


def _read_index(folder: Path) -> dict[str, str]:
    """Tensor name -> file name, of weights in several files; empty if there is one file or none."""
    path = folder / INDEX_FILE
    if (folder / SINGLE_FILE).is_file() or not path.is_file():
        return {}
    try:
        index = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise UserError(
            "the file is not valid JSON", code="E-model-bad-json", where=path, found=error, hint=DOWNLOAD_AGAIN
        ) from None
    files = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(files, dict) or not files or not all(isinstance(name, str) for name in files.values()):
        raise UserError(
            "the file is not an index of weights", code="E-model-bad-index", where=path, hint=DOWNLOAD_AGAIN
        )
    return files


def _check_index_entry(folder: Path, name: str) -> None:
    """Raises UserError unless a name in the index is a safetensors file of this folder."""

    def error(what: str, hint: str = DOWNLOAD_AGAIN) -> UserError:
        return UserError(what, code="E-model-bad-index", where=folder / INDEX_FILE, found=name[:200], hint=hint)

    if not name.endswith(".safetensors"):
        raise error("the index names a file that is not safetensors", "convert the weights to safetensors")
    if PurePosixPath(name).name != name or "\\" in name or "\0" in name:
        raise error("the index names a file outside of its folder")
    path = folder / name
    if not path.is_file():
        raise error("the index names a file that does not exist")
    # The hub's cache keeps a model's files in `blobs`, and links to them from `snapshots/REVISION`.
    home, real = folder.resolve(), path.resolve()
    allowed = [home, home.parent.parent / "blobs"] if home.parent.name == "snapshots" else [home]
    if not any(real.is_relative_to(parent) for parent in allowed):
        raise error("the index names a link to a file outside of its folder", "copy the file into the folder")


def _unreadable_error(path: Path, error: Exception) -> UserError:
    with path.open("rb") as file:
        is_pointer = file.read(len(LFS_POINTER)) == LFS_POINTER
    if is_pointer:
        return UserError(
            "the weights are a Git LFS pointer, not the file itself",
            code="E-model-lfs-pointer",
            where=path,
            hint="run git lfs pull, or download the folder again",
        )
    return UserError(
        "the weights are truncated or damaged",
        code="E-model-weights-damaged",
        where=path,
        found=error,
        hint=DOWNLOAD_AGAIN,
    )
