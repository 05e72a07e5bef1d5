"""Checks of a model's files before the model is built: whether all tensors exist, match config.json, can be trained, and
are finite.

    >>> find_quantization({"quantization_config": {"quant_method": "gptq"}}, {})
    'gptq, in config.json'
    >>> find_quantization({}, {"model.layers.0.q_proj.weight": TensorHeader("I8", (4, 4))})
    'model.layers.0.q_proj.weight is of type I8'
    >>> find_quantization({}, {"model.embed_tokens.weight": TensorHeader("BF16", (4, 4))})

Only safetensors are read. An index may name only files of its own folder.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Final, Literal

import torch
from safetensors import SafetensorError, safe_open

from potstill.errors import UserError

SINGLE_FILE: Final = "model.safetensors"
INDEX_FILE: Final = "model.safetensors.index.json"
ADAPTER_CONFIG: Final = "adapter_config.json"  # of peft
ADAPTER_BASE: Final = "base.json"  # in a checkpoint of potstill
TOKENIZER_NAMES: Final = ("tokenizer.json", "tokenizer.model", "spiece.model")
FLOAT_DTYPES: Final = ("F64", "F32", "F16", "BF16")
StoredDType = Literal["float32", "bfloat16", "float16"]
SHORT_DTYPES: Final[dict[str, StoredDType]] = {"F16": "float16", "BF16": "bfloat16"}
# Prefixes of the last part of a tensor's name, for tensors that a model multiplies with, plain or quantized.
WEIGHT_PARTS: Final = ("weight", "qweight", "weight_packed", "qzeros", "packed", "blocks", "scb", "absmax", "quant_map")
QUANTIZATION_FILES: Final = ("quantize_config.json", "quant_config.json", "hf_quant_config.json")  # by older tools
# Settings for which transformers allocates memory or builds modules before it reads the weights.
LAYER_COUNT_KEYS: Final = re.compile(r"num_(hidden_|encoder_|decoder_)?layers|n_layers?")
LAYER_NAME: Final = re.compile(r"^(?:model\.|(?P<side>encoder|decoder)\.)?(?:layers|block)\.(?P<number>\d{1,9})\.")
MAX_LABELS: Final = 100_000
MAX_CONFIG_INTEGER: Final = 2**40
DOWNLOAD_AGAIN: Final = "download the folder again"
FIX_CONFIG: Final = "correct config.json, or download the folder again"
GIVE_MODEL_FOLDER: Final = "give the folder of a Hugging Face model"
LFS_POINTER: Final = b"version https://git-lfs"


@dataclass(frozen=True, slots=True)
class TensorHeader:
    """A tensor as described in the header of its file. dtype: safetensors' name of the type, such as F32."""

    dtype: str
    shape: tuple[int, ...]


def read_config(folder: Path) -> dict[str, Any]:
    """config.json. Raises UserError also for an unreadable generation_config.json: transformers would skip it, and with
    it the tokens that end a text."""
    if not folder.is_dir():
        raise UserError("the folder does not exist", code="E-model-no-folder", where=folder, hint=GIVE_MODEL_FOLDER)
    path, generation = folder / "config.json", folder / "generation_config.json"
    refuse_other_folders(folder)
    if not path.is_file():
        raise UserError("the folder has no config.json", code="E-model-no-config", where=folder, hint=GIVE_MODEL_FOLDER)
    if generation.is_file():
        _read_json_object(generation)
    return _read_json_object(path)


def refuse_other_folders(folder: Path) -> None:
    """Raise UserError, with a hint, for a folder that contains only a part of a model, or a model in another format.

    That is an adapter, GGUF files, pickled weights, or a tokenizer. Checks only names, and reads only adapter_config.json.
    """
    adapter = folder / ADAPTER_CONFIG
    if adapter.is_file():
        base = _read_json_object(adapter).get("base_model_name_or_path")
        merged = f"peft: PeftModel.from_pretrained(BASE, {str(folder)!r}).merge_and_unload().save_pretrained(OUT)"
        by_peft = f"name the base model, or merge the adapter into it ({merged}) and copy its tokenizer"
        of_run = f"potstill export RUN --as merged --checkpoint {folder.name} --to FOLDER writes it as a whole model"
        raise UserError(
            "the folder contains an adapter (LoRA), not a whole model",
            code="E-model-adapters",
            where=adapter,
            found=f"an adapter of {base}" if isinstance(base, str) and base else "an adapter that names no base model",
            hint=of_run if (folder / ADAPTER_BASE).is_file() else by_peft,
        )
    weights = [path for pattern in ("*.safetensors", INDEX_FILE) for path in folder.glob(pattern)]
    if weights:
        return
    if files := sorted(path.name for path in folder.glob("*") if path.suffix.lower() == ".gguf"):
        raise UserError(
            "the folder contains a GGUF file, not a model in Hugging Face format",
            code="E-model-only-gguf",
            where=folder,
            found=", ".join(files[:5]),
            hint=f"give the path of the file: {folder / files[0]}",
        )
    if pickles := [path for pattern in ("*.bin", "*.pt*") for path in sorted(folder.glob(pattern))]:
        convert = f"AutoModelForCausalLM.from_pretrained({str(folder)!r}).save_pretrained(OUT)"
        raise UserError(
            "the weights are a pickle, which can run code when potstill reads it",
            code="E-model-pickled-weights",
            where=pickles[0],
            hint=f"use a copy as safetensors; if you trust the file, convert it with transformers: {convert}, and "
            "copy the tokenizer",
        )
    if not (folder / "config.json").is_file() and any((folder / name).is_file() for name in TOKENIZER_NAMES):
        raise UserError(
            "the folder contains only a tokenizer",
            code="E-model-only-tokenizer",
            where=folder,
            hint="a model also needs config.json and *.safetensors. For random weights, remove student.model, and set "
            "student.shape and student.tokenizer",
        )


def list_tensors(folder: Path) -> dict[str, TensorHeader]:
    """Name -> header of every tensor of the model in a folder. Reads no values.

    Raises UserError if the folder has no safetensors, if a file is truncated or has another format, or if the index names
    a file that it may not name.
    """
    tensors: dict[str, TensorHeader] = {}
    for path in _list_weight_files(folder):
        with _open_weights(path) as file:
            for name in file.keys():  # noqa: SIM118
                part = file.get_slice(name)
                tensors[name] = TensorHeader(part.get_dtype(), tuple(part.get_shape()))
    missing = sorted(set(_read_index(folder)) - tensors.keys())
    if missing or not tensors:
        raise UserError(
            "the weight files lack tensors that the index names" if missing else "the weight files contain no tensors",
            code="E-model-weights-incomplete",
            where=folder / INDEX_FILE if missing else folder,
            found=f"{len(missing)}, first {missing[0]}" if missing else "",
            hint=DOWNLOAD_AGAIN,
        )
    return tensors


def read_stored_dtype(folder: Path) -> StoredDType:
    """The dtype of a model's floating-point tensors, if all have the same 16-bit type; otherwise float32."""
    dtypes = {tensor.dtype for tensor in list_tensors(folder).values() if tensor.dtype in FLOAT_DTYPES}
    return SHORT_DTYPES.get(dtypes.pop(), "float32") if len(dtypes) == 1 else "float32"


def list_checked_tensors(
    folder: Path, settings: Mapping[str, Any], untied: Iterable[tuple[str, ...]]
) -> dict[str, TensorHeader]:
    """The headers of the tensors in a folder, after all checks that need only config.json and the headers.

    untied  possible names of the head's tensor, and of the embedding's tensor, if they are untied. If one of these
            tensors is missing, transformers 5 silently uses the other tensor in its place
    """
    tensors = list_tensors(folder)
    for section in (settings, *(value for value in settings.values() if isinstance(value, dict))):
        for key, value in section.items():
            limit = MAX_LABELS if key == "num_labels" else MAX_CONFIG_INTEGER
            if LAYER_COUNT_KEYS.fullmatch(key):  # a layer has several tensors
                limit = len(tensors)
            if type(value) is int and value > limit:
                found = f"{key[:40]}: {str(value)[:20]}, the weights have {len(tensors)} tensors"
                raise config_error("E-model-bad-config", "config.json belongs to another model", found, folder)
    for names in untied:
        if not tensors.keys() & names:
            raise missing_tensors_error(folder, [names[0]])
    return tensors


def check_layer_count(config: Any, folder: Path, tensors: Iterable[str]) -> None:
    """Raise UserError if the files have more layers than config.json, because transformers would ignore the rest."""
    for name in tensors:
        if layer := LAYER_NAME.search(name):
            layers = getattr(config, "num_decoder_layers" if layer["side"] == "decoder" else "num_hidden_layers")
            if int(layer["number"]) >= layers:
                found = f"{name}, by config.json {layers} layers"
                raise config_error("E-model-bad-config", "the model has fewer layers than its weights", found, folder)


def check_all_tensors_stored(model: Any, folder: Path, tensors: Mapping[str, TensorHeader]) -> None:
    """Raise UserError unless the files contain every parameter of the model, in its shape. The model may lack values."""
    prefix = f"{model.base_model_prefix}."
    aliases: dict[int, list[str]] = {}  # names of tied parameters, which are one object
    missing = []
    parameters = dict(model.named_parameters(remove_duplicate=False))
    for name, value in parameters.items():
        aliases.setdefault(id(value), []).append(name)
    for names in aliases.values():
        stored = {name: tensors.get(name) or tensors.get(name.removeprefix(prefix)) for name in names}
        if not any(stored.values()):
            missing.append(names[0])
        for name, tensor in stored.items():
            if tensor is not None and tensor.shape != tuple(parameters[name].shape):
                found = f"{name} of {list(tensor.shape)}, by config.json {list(parameters[name].shape)}"
                raise config_error("E-model-bad-config", "the weights do not fit config.json", found, folder)
    if missing:
        raise missing_tensors_error(folder, missing)


def refuse_quantized(folder: Path, config: Mapping[str, Any], tensors: Mapping[str, TensorHeader]) -> None:
    """Raise UserError for quantized weights, which cannot be trained, and which transformers may load wrongly."""
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
            hint="use the unquantized model; a quantized teacher can run on a server (teacher.kind: openai)",
        )


def find_quantization(config: Mapping[str, Any], tensors: Mapping[str, TensorHeader]) -> str | None:
    """The quantization of the weights, according to config.json or to the tensors; None without quantization."""
    for section in (config, *(value for value in config.values() if isinstance(value, dict))):
        for key in ("quantization_config", "compression_config"):
            settings = section.get(key)
            if settings is not None:
                method = settings.get("quant_method") if isinstance(settings, dict) else None
                return f"{str(method or key)[:40]}, in config.json"
    for name, tensor in tensors.items():
        last_part = name.rpartition(".")[2].lower()
        # Other integer tensors are positions and masks, which training does not change.
        if tensor.dtype not in FLOAT_DTYPES and (tensor.dtype[0] in "FC" or last_part.startswith(WEIGHT_PARTS)):
            return f"{name} is of type {tensor.dtype}"
    return None


def check_finite(folder: Path) -> None:
    """Read every value once. Raises UserError with the first tensor that contains NaN or an infinity."""
    for path in _list_weight_files(folder):
        with _open_weights(path) as file:
            refuse_non_finite(folder, ((name, file.get_tensor(name)) for name in file.keys()))  # noqa: SIM118


def refuse_non_finite(folder: Path, named: Iterator[tuple[str, torch.Tensor]]) -> None:
    """Raise UserError with the first of the tensors that contains NaN or an infinity."""
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


def config_error(code: str, what: str, found: str, where: object = "config.json") -> UserError:
    """The error for a value in config.json that contradicts the model or its weights."""
    return UserError(what, code=code, where=where, found=found[:300], hint=FIX_CONFIG)


def missing_tensors_error(folder: Path, names: Iterable[str]) -> UserError:
    first, *others = sorted(names)
    found = f"{len(others) + 1} missing, first {first}"
    return config_error("E-model-weights-incomplete", "the weights lack parameters of the model", found, folder)


@contextmanager
def _open_weights(path: Path) -> Iterator[Any]:
    """An open safetensors file. Raises UserError if the file, or a tensor in it, cannot be read."""
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except (SafetensorError, OSError, ValueError) as error:
        with path.open("rb") as stream:
            is_pointer = stream.read(len(LFS_POINTER)) == LFS_POINTER
        if is_pointer:
            what, hint = "the file is a Git LFS pointer, not the weights", "run git lfs pull, or download again"
            raise UserError(what, code="E-model-lfs-pointer", where=path, hint=hint) from None
        what = "the weights are truncated or damaged"
        raise UserError(what, code="E-model-weights-damaged", where=path, found=error, hint=DOWNLOAD_AGAIN) from None


def _list_weight_files(folder: Path) -> list[Path]:
    """The weight files of a folder, the same as transformers chooses."""
    refuse_other_folders(folder)
    if (folder / SINGLE_FILE).is_file():
        return [folder / SINGLE_FILE]
    names = sorted(set(_read_index(folder).values()))
    for name in names:
        _check_index_entry(folder, name)
    if names:
        return [folder / name for name in names]
    what = "the folder has no model.safetensors"
    raise UserError(what, code="E-model-no-weights", where=folder, hint=GIVE_MODEL_FOLDER)


def _read_index(folder: Path) -> dict[str, str]:
    """Tensor name -> file name, for weights in several files; empty without an index."""
    path = folder / INDEX_FILE
    if (folder / SINGLE_FILE).is_file() or not path.is_file():
        return {}
    files = _read_json_object(path).get("weight_map")
    if not isinstance(files, dict) or not files or not all(isinstance(name, str) for name in files.values()):
        what = "the file is not an index of weights"
        raise UserError(what, code="E-model-bad-index", where=path, hint=DOWNLOAD_AGAIN)
    return files


def _read_json_object(path: Path) -> dict[str, Any]:
    hint = "download the file again"
    try:
        value = json.loads(path.read_text("utf-8"))
    except (ValueError, RecursionError) as error:
        what = "the file is not valid JSON"
        raise UserError(what, code="E-model-bad-json", where=path, found=error, hint=hint) from None
    if not isinstance(value, dict):
        raise UserError("the file is not a JSON object", code="E-model-bad-json", where=path, hint=hint)
    return value


def _check_index_entry(folder: Path, name: str) -> None:
    """Raise UserError unless a name in the index is a safetensors file of this folder."""

    def error(what: str, hint: str = DOWNLOAD_AGAIN) -> UserError:
        return UserError(what, code="E-model-bad-index", where=folder / INDEX_FILE, found=name[:200], hint=hint)

    if not name.endswith(".safetensors"):
        raise error("the index names a file that is not safetensors", "convert the weights to safetensors")
    if PurePosixPath(name).name != name or "\\" in name or "\0" in name:
        raise error("the index names a file outside its folder")
    path = folder / name
    if not path.is_file():
        raise error("the index names a file that does not exist")
    # The hub's cache keeps a model's files in `blobs`, and links to them from `snapshots/REVISION`.
    home, real = folder.resolve(), path.resolve()
    allowed = [home, home.parent.parent / "blobs"] if home.parent.name == "snapshots" else [home]
    if not any(real.is_relative_to(parent) for parent in allowed):
        raise error("the index names a link to a file outside its folder", "copy the file into the folder")
