"""The weights of a model's folder: which files and tensors there are, whether they can be trained, and whether they are
finite, all before a model is built.

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
# Last parts of the names of tensors whose values the model multiplies with, in plain and in packed form.
WEIGHT_SUFFIXES: Final = (
    "weight",
    "qweight",
    "weight_packed",
    "qzeros",
    "packed",
    "blocks",
    "scb",
    "absmax",
    "quant_map",
)
QUANTIZATION_FILES: Final = (
    "quantize_config.json",
    "quant_config.json",
    "hf_quant_config.json",
)  # beside older quantized weights
DOWNLOAD_AGAIN: Final = "get the folder again"
LFS_POINTER: Final = b"version https://git-lfs"


@dataclass(frozen=True, slots=True)
class TensorHeader:
    """A tensor as its file's header describes it. dtype: safetensors' name, such as F32."""

    dtype: str
    shape: tuple[int, ...]


def list_tensors(folder: Path) -> dict[str, TensorHeader]:
    """Every tensor of the model in a folder, by name; no values are read.

    Raises UserError where there are no safetensors, where a file is cut off or is none, and where an index names what
    it may not.
    """
    found: dict[str, TensorHeader] = {}
    for file in list_weight_files(folder):
        try:
            with safe_open(file, framework="pt") as opened:
                for name in opened.keys():  # noqa: SIM118
                    part = opened.get_slice(name)
                    found[name] = TensorHeader(part.get_dtype(), tuple(part.get_shape()))
        except (SafetensorError, OSError, ValueError) as error:
            raise _unreadable_error(file, error) from None
    lost = sorted(set(_read_index(folder)) - found.keys())
    if lost:
        what = "the index names tensors that its files do not hold"
        raise UserError(what, where=folder / INDEX_FILE, found=f"{len(lost)}, first {lost[0]}", hint=DOWNLOAD_AGAIN)
    if not found:
        raise UserError("the weights hold no tensors", where=folder, hint=DOWNLOAD_AGAIN)
    return found


def list_weight_files(folder: Path) -> list[Path]:
    """The files that hold the weights, as transformers chooses them. Raises UserError as `tensors` does."""
    if (folder / "adapter_config.json").is_file():
        raise UserError(
            "the folder holds adapters (LoRA), not a whole model",
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
    pickled = sorted(path.name for path in folder.glob("*.bin")) + sorted(path.name for path in folder.glob("*.pt*"))
    if pickled:
        raise UserError(
            "the weights are a pickle, which runs code when it is read",
            where=folder / pickled[0],
            hint="convert them to safetensors in a place where that may happen",
        )
    raise UserError("the folder has no model.safetensors", where=folder, hint="give the folder of a Hugging Face model")


def refuse_quantized(folder: Path, settings: Mapping[str, Any], found: Mapping[str, TensorHeader]) -> None:
    """Raises UserError for weights that cannot be trained, and that transformers may load as something else."""
    said = find_quantization(settings, found)
    notes = [name for name in QUANTIZATION_FILES if (folder / name).is_file()]
    if said is None and notes:
        said = f"the folder has {notes[0]}"
    if said is not None:
        raise UserError(
            "the weights are quantized, and only weights in 16, 32 or 64 bits can be trained or computed here",
            where=folder,
            found=said,
            hint="get the folder of the unquantized model; a quantized teacher can answer through a server"
            " (teacher.kind: openai)",
        )


def find_quantization(settings: Mapping[str, Any], found: Mapping[str, TensorHeader]) -> str | None:
    """How the weights are quantized, as config.json or the tensors themselves say; None if they are not."""
    for section in (settings, *(value for value in settings.values() if isinstance(value, dict))):
        for key in ("quantization_config", "compression_config"):
            stated = section.get(key)
            if stated is not None:
                method = stated.get("quant_method") if isinstance(stated, dict) else None
                return f"{str(method or key)[:40]}, in config.json"
    for name, tensor in found.items():
        last = name.rpartition(".")[2].lower()
        # Integers are also positions and masks, which no training touches.
        if tensor.dtype not in FLOAT_DTYPES and (tensor.dtype[0] in "FC" or last.startswith(WEIGHT_SUFFIXES)):
            return f"{name} is of type {tensor.dtype}"
    return None


def check_finite(folder: Path) -> None:
    """Read every value once. Raises UserError with the first tensor that holds NaN or an infinity."""
    for file in list_weight_files(folder):
        try:
            with safe_open(file, framework="pt") as opened:
                refuse_non_finite(folder, ((name, opened.get_tensor(name)) for name in opened.keys()))  # noqa: SIM118
        except (SafetensorError, OSError, ValueError) as error:
            raise _unreadable_error(file, error) from None


def refuse_non_finite(folder: Path, named: Iterator[tuple[str, torch.Tensor]]) -> None:
    """Raises UserError with the first of these tensors that holds NaN or an infinity."""
    for name, value in named:
        if not value.is_floating_point() or not value.numel():
            continue
        least, most = (float(end) for end in torch.aminmax(value.detach()))  # NaN if any value is
        if not (-torch.inf < least and most < torch.inf):
            raise UserError(
                "the weights are not finite numbers",
                where=folder,
                found=f"{'NaN' if least != least else 'an infinity'} in {name}",
                hint=f"{DOWNLOAD_AGAIN}; if training wrote it, it diverged: lower train.learning_rate",
            )


def _read_index(folder: Path) -> dict[str, str]:
    """Tensor to file, of weights in several files; empty where they are one file or are missing."""
    path = folder / INDEX_FILE
    if (folder / SINGLE_FILE).is_file() or not path.is_file():
        return {}
    try:
        read = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise UserError("not JSON", where=path, found=error, hint=DOWNLOAD_AGAIN) from None
    named = read.get("weight_map") if isinstance(read, dict) else None
    if not isinstance(named, dict) or not named or not all(isinstance(name, str) for name in named.values()):
        raise UserError("not an index of weights", where=path, hint=DOWNLOAD_AGAIN)
    return named


def _check_index_entry(folder: Path, name: str) -> None:
    """Raises UserError unless a name in the index is a safetensors file of this folder."""

    def refused(what: str, hint: str = DOWNLOAD_AGAIN) -> UserError:
        return UserError(what, where=folder / INDEX_FILE, found=name[:200], hint=hint)

    if not name.endswith(".safetensors"):
        raise refused("the index names a file that is not safetensors", "convert the weights to safetensors")
    if PurePosixPath(name).name != name or "\\" in name or "\0" in name:
        raise refused("the index names a file outside of its folder")
    path = folder / name
    if not path.is_file():
        raise refused("the index names a file that does not exist")
    # The hub's cache keeps a model's files in `blobs`, and links to them from `snapshots/REVISION`.
    home, real = folder.resolve(), path.resolve()
    allowed = [home, home.parent.parent / "blobs"] if home.parent.name == "snapshots" else [home]
    if not any(real.is_relative_to(place) for place in allowed):
        raise refused("the index names a link to a file outside of its folder", "copy the file into the folder")


def _unreadable_error(file: Path, error: Exception) -> UserError:
    with file.open("rb") as opened:
        pointer = opened.read(len(LFS_POINTER)) == LFS_POINTER
    if pointer:
        hint = "git lfs pull, or get the folder again"
        return UserError("the weights are a Git LFS pointer, not the file itself", where=file, hint=hint)
    return UserError("the weights are cut off or damaged", where=file, found=error, hint=DOWNLOAD_AGAIN)
