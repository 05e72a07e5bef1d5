"""The weights of a model's folder: which files and tensors there are, whether they can be trained, and whether they are
finite, all before a model is built.

    >>> quantized({"quantization_config": {"quant_method": "gptq"}}, {})
    'gptq, in config.json'
    >>> quantized({}, {"model.layers.0.q_proj.weight": Tensor("I8", (4, 4))})
    'model.layers.0.q_proj.weight is of type I8'
    >>> quantized({}, {"model.embed_tokens.weight": Tensor("BF16", (4, 4))})

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

WHOLE: Final = "model.safetensors"
INDEX: Final = "model.safetensors.index.json"
FLOATS: Final = ("F64", "F32", "F16", "BF16")
# Last parts of the names of tensors whose values the model multiplies with, in plain and in packed form.
PACKED: Final = ("weight", "qweight", "weight_packed", "qzeros", "packed", "blocks", "scb", "absmax", "quant_map")
NOTES: Final = ("quantize_config.json", "quant_config.json", "hf_quant_config.json")  # beside older quantized weights
AGAIN: Final = "get the folder again"
POINTER: Final = b"version https://git-lfs"


@dataclass(frozen=True, slots=True)
class Tensor:
    """A tensor as its file's header describes it. dtype: safetensors' name, such as F32."""

    dtype: str
    shape: tuple[int, ...]


def tensors(folder: Path) -> dict[str, Tensor]:
    """Every tensor of the model in a folder, by name; no values are read.

    Raises UserError where there are no safetensors, where a file is cut off or is none, and where an index names what
    it may not.
    """
    found: dict[str, Tensor] = {}
    for file in files(folder):
        try:
            with safe_open(file, framework="pt") as opened:
                for name in opened.keys():  # noqa: SIM118
                    part = opened.get_slice(name)
                    found[name] = Tensor(part.get_dtype(), tuple(part.get_shape()))
        except (SafetensorError, OSError, ValueError) as error:
            raise _unreadable(file, error) from None
    lost = sorted(set(_index(folder)) - found.keys())
    if lost:
        what = "the index names tensors that its files do not hold"
        raise UserError(what, where=folder / INDEX, found=f"{len(lost)}, first {lost[0]}", do=AGAIN)
    if not found:
        raise UserError("the weights hold no tensors", where=folder, do=AGAIN)
    return found


def files(folder: Path) -> list[Path]:
    """The files that hold the weights, as transformers chooses them. Raises UserError as `tensors` does."""
    if (folder / "adapter_config.json").is_file():
        raise UserError(
            "the folder holds adapters (LoRA), not a whole model",
            where=folder / "adapter_config.json",
            do="merge them into their base model (peft: merge_and_unload, then save_pretrained)",
        )
    if (folder / WHOLE).is_file():
        return [folder / WHOLE]
    names = sorted(set(_index(folder).values()))
    for name in names:
        _inside(folder, name)
    if names:
        return [folder / name for name in names]
    pickled = sorted(path.name for path in folder.glob("*.bin")) + sorted(path.name for path in folder.glob("*.pt*"))
    if pickled:
        raise UserError(
            "the weights are a pickle, which runs code when it is read",
            where=folder / pickled[0],
            do="convert them to safetensors in a place where that may happen",
        )
    raise UserError("the folder has no model.safetensors", where=folder, do="give the folder of a Hugging Face model")


def refuse_quantized(folder: Path, settings: Mapping[str, Any], found: Mapping[str, Tensor]) -> None:
    """Raises UserError for weights that cannot be trained, and that transformers may load as something else."""
    said = quantized(settings, found)
    notes = [name for name in NOTES if (folder / name).is_file()]
    if said is None and notes:
        said = f"the folder has {notes[0]}"
    if said is not None:
        raise UserError(
            "the weights are quantized, and only weights in 16, 32 or 64 bits can be trained or computed here",
            where=folder,
            found=said,
            do="get the folder of the unquantized model; a quantized teacher can answer through a server"
            " (teacher.kind: openai)",
        )


def quantized(settings: Mapping[str, Any], found: Mapping[str, Tensor]) -> str | None:
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
        if tensor.dtype not in FLOATS and (tensor.dtype[0] in "FC" or last.startswith(PACKED)):
            return f"{name} is of type {tensor.dtype}"
    return None


def check_finite(folder: Path) -> None:
    """Read every value once. Raises UserError with the first tensor that holds NaN or an infinity."""
    for file in files(folder):
        try:
            with safe_open(file, framework="pt") as opened:
                refuse_infinite(folder, ((name, opened.get_tensor(name)) for name in opened.keys()))  # noqa: SIM118
        except (SafetensorError, OSError, ValueError) as error:
            raise _unreadable(file, error) from None


def refuse_infinite(folder: Path, named: Iterator[tuple[str, torch.Tensor]]) -> None:
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
                do=f"{AGAIN}; if training wrote it, it diverged: lower train.learning_rate",
            )


def _index(folder: Path) -> dict[str, str]:
    """Tensor to file, of weights in several files; empty where they are one file or are missing."""
    path = folder / INDEX
    if (folder / WHOLE).is_file() or not path.is_file():
        return {}
    try:
        read = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise UserError("not JSON", where=path, found=error, do=AGAIN) from None
    named = read.get("weight_map") if isinstance(read, dict) else None
    if not isinstance(named, dict) or not named or not all(isinstance(name, str) for name in named.values()):
        raise UserError("not an index of weights", where=path, do=AGAIN)
    return named


def _inside(folder: Path, name: str) -> None:
    """Raises UserError unless a name in the index is a safetensors file of this folder."""

    def refused(what: str, do: str = AGAIN) -> UserError:
        return UserError(what, where=folder / INDEX, found=name[:200], do=do)

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


def _unreadable(file: Path, error: Exception) -> UserError:
    with file.open("rb") as opened:
        pointer = opened.read(len(POINTER)) == POINTER
    if pointer:
        do = "git lfs pull, or get the folder again"
        return UserError("the weights are a Git LFS pointer, not the file itself", where=file, do=do)
    return UserError("the weights are cut off or damaged", where=file, found=error, do=AGAIN)
