"""Writing a student as a GGUF file, for llama.cpp, Ollama and other programs.

    >>> ARCHITECTURES["gemma3_text"], WEIGHT_KINDS
    ('gemma3', ('F32', 'F16', 'BF16', 'Q8_0'))

Tensors have the names in gguf's table. As in llama.cpp's converter, three things differ from the folder in Hugging Face
format: the rows of Llama's queries and keys have another order, Gemma's norms are stored as weight + 1, and vectors are
always F32.

Only models that GGUF's readers compute in the same way are written: three architectures with the usual rotary positions,
byte-level tokenizers whose splits are in `potstill.models.gguf`, and the sentencepiece tokenizers of Llama and Gemma. All
others are refused, because readers would silently compute something else.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor

from potstill.errors import UserError
from potstill.models.chat_template import FIXED_DATE_MACRO, TEMPLATE_FILE, TEMPLATE_MARK
from potstill.models.gguf import GPT2_SPLIT, PRE_TOKENIZERS
from potstill.models.student import Student

ARCHITECTURES: Final = {"llama": "llama", "qwen2": "qwen2", "gemma3_text": "gemma3"}
WEIGHT_KINDS: Final = ("F32", "F16", "BF16", "Q8_0")
GEMMA_PATTERN: Final = 6  # llama.cpp: every sixth layer of Gemma 3 has full attention
GEMMA_HEAD_WIDTH: Final = 256
GEMMA_LOCAL_THETA: Final = 10_000.0
SPACE: Final = "▁"  # sentencepiece's character for a space
BYTE_TOKENS: Final = {f"<0x{byte:02X}>" for byte in range(256)}
UNMERGED_SCORE: Final = -1e6  # score of a token that results from no merge


@dataclass(frozen=True, slots=True)
class GgufTokenizer:
    """The tokenizer in a GGUF file.

    model   `gpt2` for byte-level tokens, `llama` for sentencepiece tokens
    pre     name of the pre-tokenizer: a key of PRE_TOKENIZERS, or `default` for sentencepiece
    tokens  one token per row of the embedding
    kinds   a name of gguf.TokenType per token
    merges  merges of byte-level tokens
    scores  scores of sentencepiece tokens
    """

    model: str
    pre: str
    tokens: list[str]
    kinds: list[str]
    merges: list[str]
    scores: list[float]


def write_gguf(
    student: Student, file: Path, kind: str, end_tokens: Sequence[int], *, name: str, license: str | None = None
) -> None:
    """Write the student to a new file.

    kind        type of the matrices: F32, F16, BF16 or Q8_0 (F16 for matrices whose row length is no multiple of 32)
    end_tokens  ids of the tokens that end an answer, the tokenizer's end token first
    name        `general.name`
    license     `general.license`, such as `apache-2.0`

    Raises UserError for a model or a tokenizer that GGUF's readers would compute differently, or if the library gguf is
    not installed.
    """
    assert kind in WEIGHT_KINDS, kind
    config = student.model.config
    architecture = _check_config(student)
    tokenizer = convert_tokenizer(student)
    try:
        import gguf
    except ImportError as error:
        raise UserError(
            "GGUF files need the package gguf",
            code="E-model-no-gguf-library",
            where="--as gguf",
            found=error,
            hint="pip install 'potstill[gguf]'",
        ) from None
    out = gguf.GGUFWriter(file, architecture)
    out.add_type("model")
    out.add_name(name)
    if license:
        out.add_license(license)
    file_type = {"F32": "ALL_F32"}.get(kind, f"MOSTLY_{kind}")
    out.add_file_type(gguf.LlamaFileType[file_type])
    out.add_quantization_version(gguf.GGML_QUANT_VERSION)
    _add_shape(out, config)
    _add_tokenizer(out, gguf, student, tokenizer, end_tokens)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH[architecture.upper()], config.num_hidden_layers)
    for key, value in stored_tensors(student):
        tensor_name = names.get_name(key, try_suffixes=(".weight", ".bias"))
        if tensor_name is None:
            raise _unsupported("GGUF has no name for this tensor", key)
        dtype = gguf.GGMLQuantizationType[_choose_kind(value, kind)]
        out.add_tensor(tensor_name, gguf.quants.quantize(value.contiguous().numpy(), dtype), raw_dtype=dtype)
    out.write_header_to_file()
    out.write_kv_data_to_file()
    out.write_tensors_to_file()
    out.close()


@dataclass(frozen=True, slots=True)
class WeightParity:
    """tensors    number of tensors
    different  names of tensors that were not read back as written
    largest    largest difference between a weight and the student's weight, from rounding to the type
    """

    tensors: int
    different: list[str]
    largest: float


def compare_weights(student: Student, read: Student, kind: str) -> WeightParity:
    """Compare the weights that were read back from a file with the written weights, bit by bit."""
    own, found = dict(_weights(student)), dict(_weights(read))
    different, largest = sorted(own.keys() ^ found.keys()), 0.0
    for key, expected in expected_weights(student, kind):
        if key not in found or not torch.equal(found[key], expected):
            different.append(key)
        largest = max(largest, float((expected - own[key]).abs().max()))
    return WeightParity(len(own), different, largest)


def expected_weights(student: Student, kind: str) -> Iterator[tuple[str, Tensor]]:
    """Hugging Face name and float32 value of each tensor that a reader must get: rounded to the type."""
    import gguf

    is_gemma = student.model.config.model_type == "gemma3_text"
    for key, value in _weights(student):
        dtype = gguf.GGMLQuantizationType[_choose_kind(value, kind)]
        rounded = gguf.quants.dequantize(gguf.quants.quantize(value.contiguous().numpy(), dtype), dtype)
        expected = torch.from_numpy(np.array(rounded, np.float32))
        yield key, (expected + 1) - 1 if is_gemma and key.endswith("norm.weight") else expected


def _choose_kind(value: Tensor, kind: str) -> str:
    if value.ndim == 1:
        return "F32"
    return "F16" if kind == "Q8_0" and value.shape[-1] % 32 else kind


def _weights(student: Student) -> Iterator[tuple[str, Tensor]]:
    """Hugging Face name and value of each weight, float32 on the CPU. A tied head and embedding come once."""
    embedding: Any = student.model.get_input_embeddings()
    for key, value in student.copy_weights().items():
        if key == "lm_head.weight" and student.head.weight is embedding.weight:
            continue
        yield key, value.float()


def stored_tensors(student: Student) -> Iterator[tuple[str, Tensor]]:
    """The weights in GGUF's order of rows, with Gemma's norms raised by 1."""
    config = student.model.config
    for key, value in _weights(student):
        if config.model_type == "llama" and key.endswith(("q_proj.weight", "k_proj.weight")):
            is_query = key.endswith("q_proj.weight")
            heads = config.num_attention_heads if is_query else config.num_key_value_heads
            # llama.cpp rotates neighbouring rows, transformers rotates the two halves of a head.
            halves = value.reshape(heads, 2, value.shape[0] // heads // 2, value.shape[1])
            value = halves.swapaxes(1, 2).reshape(value.shape)
        elif config.model_type == "gemma3_text" and key.endswith("norm.weight"):
            value = value + 1
        yield key, value


def _check_config(student: Student) -> str:
    """The name of the architecture in GGUF. Raises UserError for settings that GGUF's readers do not support."""
    config = student.model.config
    architecture = ARCHITECTURES.get(config.model_type)
    if architecture is None:
        raise UserError(
            "this kind of model is not exported as GGUF",
            code="E-export-gguf-model",
            where="--as gguf",
            found=config.model_type,
            hint=f"supported are {', '.join(ARCHITECTURES)}; export others with llama.cpp's convert_hf_to_gguf.py and the"
            " folder student/, or with --as ctranslate2",
        )
    rope = getattr(config, "rope_parameters", None) or {}
    for part in (rope.get("full_attention", rope), rope.get("sliding_attention", {})):
        if part.get("rope_type", "default") != "default":
            raise _unsupported("these rotary positions are not supported", part["rope_type"])
    for setting in ("attention_bias", "mlp_bias"):
        if getattr(config, setting, False):
            raise _unsupported("this setting is not supported", f"{setting}: true")
    if getattr(config, "use_sliding_window", False):
        raise _unsupported("this setting is not supported", "use_sliding_window: true")
    if config.model_type != "gemma3_text":
        width = config.hidden_size // config.num_attention_heads
        # transformers' GGUF reader computes the head width of a Qwen2 from the hidden size and the number of heads.
        if config.model_type == "qwen2" and getattr(config, "head_dim", None) not in (None, width):
            raise _unsupported("this width of a head is not supported", f"head_dim: {config.head_dim}")
        return architecture
    kinds = [
        "sliding_attention" if (i + 1) % GEMMA_PATTERN else "full_attention" for i in range(config.num_hidden_layers)
    ]
    fixed = {  # values that llama.cpp or transformers assumes, because no key of the file has them
        "layer_types": kinds,
        "head_dim": GEMMA_HEAD_WIDTH,
        "query_pre_attn_scalar": GEMMA_HEAD_WIDTH,
        "attn_logit_softcapping": None,
        "final_logit_softcapping": None,
    }
    for setting, value in fixed.items():
        if getattr(config, setting, value) != value:
            raise _unsupported("this setting of Gemma 3 is not supported", f"{setting}: {getattr(config, setting)}")
    if rope.get("sliding_attention", {}).get("rope_theta", GEMMA_LOCAL_THETA) != GEMMA_LOCAL_THETA:
        raise _unsupported("this setting of Gemma 3 is not supported", f"rope_parameters: {rope}")
    return architecture


def _unsupported(what: str, found: object) -> UserError:
    hint = "export with llama.cpp's convert_hf_to_gguf.py and the folder student/, or with --as ctranslate2"
    return UserError(what, code="E-export-gguf-setting", where="--as gguf", found=found, hint=hint)


def _add_shape(out: Any, config: Any) -> None:
    rope = config.rope_parameters
    heads = config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // heads
    out.add_block_count(config.num_hidden_layers)
    out.add_context_length(config.max_position_embeddings)
    out.add_embedding_length(config.hidden_size)
    out.add_feed_forward_length(config.intermediate_size)
    out.add_head_count(heads)
    out.add_head_count_kv(config.num_key_value_heads)
    out.add_layer_norm_rms_eps(config.rms_norm_eps)
    out.add_rope_freq_base(rope.get("full_attention", rope)["rope_theta"])
    out.add_vocab_size(config.vocab_size)
    if config.model_type == "gemma3_text":
        out.add_sliding_window(config.sliding_window)
    else:
        out.add_rope_dimension_count(width)
    if config.model_type != "qwen2":
        out.add_key_length(width)
        out.add_value_length(width)


# Tokenizer


def _add_tokenizer(out: Any, gguf: Any, student: Student, tokenizer: GgufTokenizer, end_tokens: Sequence[int]) -> None:
    own = student.tokenizer
    out.add_tokenizer_model(tokenizer.model)
    out.add_tokenizer_pre(tokenizer.pre)
    out.add_token_list(tokenizer.tokens)
    out.add_token_types([gguf.TokenType[kind] for kind in tokenizer.kinds])
    if tokenizer.merges:
        out.add_token_merges(tokenizer.merges)
    if tokenizer.scores:
        out.add_token_scores(tokenizer.scores)
        out.add_add_space_prefix(_has_space_prefix(json.loads(own.files["tokenizer.json"])))
    first = next(iter(own.prefix), _named_token(student, "bos_token"))
    if first is not None:
        out.add_bos_token_id(first)
    if (unknown := _named_token(student, "unk_token")) is not None:
        out.add_unk_token_id(unknown)
    out.add_pad_token_id(own.pad)
    # llama.cpp ends a text at any of these tokens. There is no fourth name.
    for token, add in zip(end_tokens, (out.add_eos_token_id, out.add_eot_token_id, out.add_eom_token_id), strict=False):
        add(token)
    out.add_add_bos_token(bool(own.prefix))
    out.add_add_eos_token(False)
    if (template := exported_template(student)) is not None:
        out.add_chat_template(template)


def exported_template(student: Student) -> str | None:
    """The chat template of the file, which gives the student's prompts without settings.

    It begins with the recipe's arguments, and with the fixed date of training if it asks for a date. For a student with
    plain prompts, it is the template that puts the prompt around one question, if the run wrote one (`query_files`).
    """
    if student.chat is None:
        own = student.tokenizer.files.get(TEMPLATE_FILE, b"").decode("utf-8")
        return own if own.startswith(TEMPLATE_MARK) else None
    plain = student.chat.source.removeprefix(FIXED_DATE_MACRO)
    template = student.chat.source if "strftime_now" in plain else plain
    for name, value in reversed(list(student.chat.settings.kwargs.items())):
        template = f"{{%- set {name} = {json.dumps(value)} -%}}{template}"
    return template


def convert_tokenizer(student: Student) -> GgufTokenizer:
    """The tokenizer of tokenizer.json in GGUF's form. Raises UserError if GGUF's readers do not support it."""
    content = student.tokenizer.files.get("tokenizer.json")
    parsed: dict[str, Any] = json.loads(content) if content is not None else {}
    model = parsed.get("model") or {}
    if model.get("type") != "BPE":
        raise _unknown_tokenizer(model.get("type") or "no tokenizer.json")
    byte_level = _split_expressions(parsed.get("pre_tokenizer"))
    rows = student.head.weight.shape[0]
    tokens, kinds = [f"[PAD{row}]" for row in range(rows)], ["UNUSED"] * rows
    for token, row in model["vocab"].items():
        tokens[row], kinds[row] = token, "NORMAL"
    if byte_level is None:
        for row, token in enumerate(tokens):
            kinds[row] = (
                "BYTE" if token in BYTE_TOKENS else "UNKNOWN" if token == model.get("unk_token") else kinds[row]
            )
    for added in parsed.get("added_tokens", ()):
        token, row = added["content"], added["id"]
        if kinds[row] == "UNKNOWN":
            continue
        # llama.cpp searches these tokens in the text, in which a space is not replaced.
        tokens[row] = token if added["special"] else token.replace(SPACE, " ")
        kinds[row] = "CONTROL" if added["special"] else "USER_DEFINED"
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]]
    if byte_level is None:
        if not model.get("byte_fallback") or not _is_sentencepiece(parsed):
            raise _unknown_tokenizer(f"pre_tokenizer {parsed.get('pre_tokenizer')}")
        return GgufTokenizer("llama", "default", tokens, kinds, [], _scores(tokens, model["merges"]))
    return GgufTokenizer("gpt2", _name_split(byte_level, model), tokens, kinds, merges, [])


def _split_expressions(pre_tokenizer: Mapping[str, Any] | None) -> list[str] | None:
    """The regular expressions that split a text in turn, before bytes are merged.

    None if the tokenizer is not byte-level, or splits in another way.
    """
    if pre_tokenizer is None:
        return None
    *splits, last = pre_tokenizer.get("pretokenizers") or [pre_tokenizer]
    if last.get("type") != "ByteLevel" or last.get("add_prefix_space"):
        return None
    found = []
    for split in splits:
        if split["type"] == "Digits" and split["individual_digits"]:
            found.append(r"\p{N}")
        elif split["type"] == "Split" and split["behavior"] == "Isolated" and "Regex" in split["pattern"]:
            found.append(split["pattern"]["Regex"])
        else:
            return None
    return [*found, GPT2_SPLIT] if last.get("use_regex", True) else found


def _name_split(expressions: Sequence[str], model: Mapping[str, Any]) -> str:
    """The value of `tokenizer.ggml.pre`."""
    for name, known in PRE_TOKENIZERS.items():
        # Only for this name, llama.cpp does not apply merges to a piece that is a token.
        if list(known) == list(expressions) and bool(model.get("ignore_merges")) == (name == "llama-bpe"):
            return name
    raise _unknown_tokenizer(f"splits {list(expressions)}, ignore_merges {bool(model.get('ignore_merges'))}")


def _is_sentencepiece(parsed: Mapping[str, Any]) -> bool:
    """Whether the only normalization is that spaces become `▁`, with or without a space before the text."""
    pre = parsed.get("pre_tokenizer")
    normalizers = _normalizers(parsed)
    if pre is not None and pre.get("type") == "Metaspace":
        return not pre.get("split", True) and not normalizers
    only_repeats = pre is None or (pre.get("type") == "Split" and pre["pattern"].get("String") == " ")
    return only_repeats and all(part.get("type") in ("Replace", "Prepend") for part in normalizers)


def _has_space_prefix(parsed: Mapping[str, Any]) -> bool:
    """Whether a sentencepiece tokenizer puts a space before a text."""
    pre = parsed.get("pre_tokenizer") or {}
    prepends = pre.get("type") == "Metaspace" and pre.get("prepend_scheme") != "never"
    return prepends or any(part.get("type") == "Prepend" for part in _normalizers(parsed))


def _normalizers(parsed: Mapping[str, Any]) -> list[dict[str, Any]]:
    normalizer = parsed.get("normalizer")
    return [] if normalizer is None else normalizer.get("normalizers") or [normalizer]


def _scores(tokens: Sequence[str], merges: Sequence[Any]) -> list[float]:
    """The score of each token: minus the rank of the first merge that gives it, so that readers merge in this order."""
    ranks: dict[str, int] = {}
    for rank, merge in enumerate(merges):
        left, right = merge if not isinstance(merge, str) else merge.split(" ")
        ranks.setdefault(left + right, rank)
    return [-float(ranks[token]) if token in ranks else UNMERGED_SCORE for token in tokens]


def _named_token(student: Student, role: str) -> int | None:
    """The id of `bos_token` or `unk_token` in tokenizer_config.json; None if the file does not name the token."""
    config = json.loads(student.tokenizer.files.get("tokenizer_config.json", b"{}"))
    token = config.get(role)
    token = token.get("content") if isinstance(token, dict) else token
    return student.tokenizer.vocabulary.specials.get(token) if isinstance(token, str) else None


def _unknown_tokenizer(found: object) -> UserError:
    return UserError(
        "potstill cannot write this tokenizer as GGUF",
        code="E-export-gguf-tokenizer",
        where="--as gguf",
        found=f"{found}"[:300],
        hint="supported are sentencepiece and the splits of " + ", ".join(PRE_TOKENIZERS) + "; convert others with"
        " llama.cpp's convert_hf_to_gguf.py and the folder student/",
    )
