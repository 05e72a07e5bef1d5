"""Conversion of a GGUF file to a Hugging Face folder, once, in the cache.

    >>> sorted(PRE_TOKENIZERS)
    ['gpt-2', 'llama-bpe', 'qwen2', 'smollm']

transformers reads the weights. Each tensor equals gguf's dequantization bit by bit, in float32 (an unquantized file keeps
its precision). transformers also builds the tokenizer, but ignores `tokenizer.ggml.pre` for many names. SmolLM2, for
example, splits numbers into digits; without that, some numbers would silently get other tokens. Therefore, the
pre-tokenizer of a byte-level vocabulary comes from `PRE_TOKENIZERS`, whose entries tests compare with an independent
encoder. All other names are refused.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from potstill import progress, storage
from potstill.errors import UserError
from potstill.storage import manifest

FOLDER_FORMAT: Final = 2  # part of the folder's name, so that another converter version does not reuse it
LOCK_SECONDS: Final = 3600.0
SOURCE_FILE: Final = "gguf.json"

# Regular expressions by `tokenizer.ggml.pre`, with which a text is split in turn (llama.cpp, src/llama-vocab.cpp).
GPT2_SPLIT: Final = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
LLAMA3_SPLIT: Final = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
PRE_TOKENIZERS: Final[dict[str, Sequence[str]]] = {
    "gpt-2": [GPT2_SPLIT],
    "smollm": [r"\p{N}", GPT2_SPLIT],
    "llama-bpe": [LLAMA3_SPLIT],
    "qwen2": [LLAMA3_SPLIT.replace("{1,3}", "")],
}
# Architectures whose sentencepiece vocabulary transformers rebuilds; the result is compared with the file's tokens.
SENTENCEPIECE: Final = ("llama", "mistral", "gemma", "gemma2", "gemma3")


def convert_gguf(file: Path, *, key: str = "student.model") -> Path:
    """The folder with the converted model of a GGUF file. The first call makes it in the cache.

    It contains config.json, model.safetensors, the tokenizer's files, the chat template, and `gguf.json` with the file's
    name, digest, licence and types of weights. Raises UserError if the file is not a GGUF file, or if its architecture or
    its pre-tokenizer (see `PRE_TOKENIZERS`) is not supported.
    """
    with progress.bar(f"read {file.name}", max(1, file.stat().st_size >> 20), "MiB") as tick:
        digest = storage.file_digest(file, manifest.mebibyte_counter(tick))
    folder = storage.cache_folder() / "gguf" / f"{digest[:32]}-v{FOLDER_FORMAT}"
    if (folder / SOURCE_FILE).is_file():
        return folder
    with _gguf_errors(file, key):
        metadata = _read_metadata(file)
    pre_tokenizer = _choose_pre_tokenizer(metadata, file, key)
    with storage.hold_lock(folder.parent, f".{folder.name}.lock", LOCK_SECONDS, "another process converts this file"):
        if not (folder / SOURCE_FILE).is_file():
            progress.print_line(f"convert {file.name} into {folder}", "dim")
            with storage.write_folder(folder) as partial, _gguf_errors(file, key):
                _convert_weights(file, partial)
                _convert_tokenizer(file, partial, metadata, pre_tokenizer)
                source = {
                    "file": file.name,
                    "sha256": digest,
                    "name": metadata.get("general.name"),
                    "license": metadata.get("general.license"),
                    "architecture": metadata["general.architecture"],
                    "weights": metadata["weights"],
                }
                storage.write_json(partial / SOURCE_FILE, source)
    return folder


def convert_into(file: Path, folder: Path, *, key: str) -> None:
    """Convert a GGUF file to an existing folder instead of the cache, in float32 and without `gguf.json`.

    Raises UserError as `convert_gguf` does.
    """
    with _gguf_errors(file, key):
        metadata = _read_metadata(file)
    pre_tokenizer = _choose_pre_tokenizer(metadata, file, key)
    with _gguf_errors(file, key):
        _convert_weights(file, folder, as_float32=True)
        _convert_tokenizer(file, folder, metadata, pre_tokenizer)


def _read_metadata(file: Path) -> dict[str, Any]:
    """The metadata of a file, by key. The additional key `weights` has the number of tensors per type."""
    import gguf

    reader = gguf.GGUFReader(str(file))
    metadata: dict[str, Any] = {name: field.contents() for name, field in reader.fields.items()}
    kinds = [tensor.tensor_type.name for tensor in reader.tensors]
    return metadata | {"weights": {kind: kinds.count(kind) for kind in sorted(set(kinds))}}


def _choose_pre_tokenizer(metadata: dict[str, Any], file: Path, key: str) -> Sequence[str] | None:
    """The regular expressions of a byte-level vocabulary; None for sentencepiece, which has no pre-tokenizer."""
    kind, name = metadata.get("tokenizer.ggml.model"), metadata.get("tokenizer.ggml.pre", "none")
    architecture = metadata.get("general.architecture")
    if kind == "gpt2" and name in PRE_TOKENIZERS:
        return PRE_TOKENIZERS[name]
    if kind == "llama" and architecture in SENTENCEPIECE:
        return None
    raise UserError(
        "potstill does not know how this GGUF file splits a text into tokens",
        code="E-model-gguf-tokenizer",
        where=key,
        found=f"{file}: architecture {architecture}, tokenizer.ggml.model {kind}, tokenizer.ggml.pre {name}",
        hint="use the model's safetensors folder; supported are " + ", ".join(PRE_TOKENIZERS) + ", and sentencepiece",
    )


def _convert_weights(file: Path, folder: Path, *, as_float32: bool = False) -> None:
    """Write the weights in float32, or in float16 or bfloat16 if the file has that type and no value is rounded.

    as_float32  never in a type of 16 bits
    """
    import torch
    import transformers

    from potstill.models.student import quiet_transformers

    half = {"F16": torch.float16, "BF16": torch.bfloat16}
    kinds = set(_read_metadata(file)["weights"]) - {"F32"}
    # Recent releases keep the weights quantized if they have kernels for them, unless an argument turns this off.
    dequantize = (
        {"quantization_config": transformers.GgufConfig(dequantize=True)} if hasattr(transformers, "GgufConfig") else {}
    )
    with quiet_transformers():
        model: Any = transformers.AutoModelForCausalLM.from_pretrained(
            file.parent, gguf_file=file.name, dtype=torch.float32, local_files_only=True, **dequantize
        )
        for setting in ("quantization_config", "_name_or_path"):
            if hasattr(model.config, setting):
                delattr(model.config, setting)
        dtype = half.get(kinds.pop()) if len(kinds) == 1 and not as_float32 else None
        if dtype is not None and all(torch.equal(w, w.to(dtype).float()) for w in model.state_dict().values()):
            model.to(dtype)  # files of 16-bit matrices have their norms in float32
        model.save_pretrained(folder)


def _convert_tokenizer(file: Path, folder: Path, metadata: dict[str, Any], pre_tokenizer: Sequence[str] | None) -> None:
    import transformers
    from tokenizers import Regex, pre_tokenizers

    from potstill.models.student import quiet_transformers

    with quiet_transformers():
        tokenizer = transformers.AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name, local_files_only=True)
        if pre_tokenizer is not None:
            tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
                [
                    *(pre_tokenizers.Split(Regex(split), behavior="isolated") for split in pre_tokenizer),
                    pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
                ]
            )
            # llama.cpp and the original tokenizer of Llama 3 do not apply merges to a piece that is a token.
            tokenizer.backend_tokenizer.model.ignore_merges = metadata["tokenizer.ggml.pre"] == "llama-bpe"
        tokenizer.save_pretrained(folder)
    # transformers appends special tokens of the model type that the file does not have.
    path, size = folder / "tokenizer.json", len(metadata["tokenizer.ggml.tokens"])
    content = storage.read_json(path)
    if any(token["id"] >= size for token in content["added_tokens"]):
        content["added_tokens"] = [token for token in content["added_tokens"] if token["id"] < size]
        storage.write_json(path, content)


@contextmanager
def _gguf_errors(file: Path, key: str) -> Iterator[None]:
    """Convert errors of the libraries about a GGUF file to UserError."""
    try:
        yield
    except UserError:
        raise
    except ImportError as error:
        raise UserError(
            "GGUF files need the packages gguf and accelerate",
            code="E-model-no-gguf-library",
            where=key,
            found=error,
            hint="pip install 'potstill[gguf]'",
        ) from None
    except Exception as error:  # the libraries raise errors of many types for a faulty file
        first_line = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise UserError(
            "the GGUF file cannot be read",
            code="E-model-gguf-unreadable",
            where=file,
            found=first_line[:300],
            hint="download the file again, or use the model's safetensors folder",
        ) from error
