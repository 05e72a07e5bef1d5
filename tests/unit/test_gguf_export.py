"""A student becomes a GGUF file that reads back as the same student, and what readers would misread is refused."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

import tokenizer_kinds
from cache_models import random_model
from expect import user_error
from potstill import models, tokenization
from potstill.models import Student, gguf_writer
from potstill.models.causal import CausalStudent
from potstill.models.gguf import convert_into
from tools.toy_models.tokenizer_training import train_bpe

gguf = pytest.importorskip("gguf")
pytest.importorskip("accelerate")

# Architecture, kind of tokenizer, and the names of both in the file.
KINDS = [
    ("llama", "toy", "llama", "gpt2", "smollm"),
    ("llama", "gpt2", "llama", "gpt2", "gpt-2"),
    ("llama", "llama-3", "llama", "gpt2", "llama-bpe"),
    ("llama", "llama-2", "llama", "llama", "default"),
    ("qwen2", "qwen", "qwen2", "gpt2", "qwen2"),
    ("gemma3_text", "gemma", "gemma3", "llama", "default"),
]
TEXTS = [*tokenizer_kinds.TEXTS, "It is 12345, they'LL  say\n\n\n  x = 3.5\t½ ", "née 日本 🙂", "a"]


def gemma_tokenizer() -> tokenization.Tokenizer:
    """A tokenizer of Gemma's kind with Gemma's names of special tokens, and a run of spaces as an added token."""
    source = json.loads(tokenizer_kinds.opened("gemma").files["tokenizer.json"])
    names = {"<s>": "<bos>", "</s>": "<eos>"}
    vocabulary = source["model"]["vocab"] = {names.get(k, k): row for k, row in source["model"]["vocab"].items()}
    for token in source["added_tokens"]:
        token["content"] = names.get(token["content"], token["content"])
    size = len(vocabulary)
    plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    for row, (content, special) in enumerate([("<pad>", True), ("<mask>", True), ("▁▁▁", False)], size):
        source["added_tokens"].append({"id": row, "content": content, "special": special, **plain})
    bos = {"SpecialToken": {"id": "<bos>", "type_id": 0}}
    source["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [bos, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [bos, {"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {"<bos>": {"id": "<bos>", "ids": [vocabulary["<bos>"]], "tokens": ["<bos>"]}},
    }
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "tokenizer.json").write_text(json.dumps(source))
        return tokenization.load_tokenizer(folder, eos="<eos>")


def open_tokenizer(kind: str) -> tokenization.Tokenizer:
    if kind == "gemma":
        return gemma_tokenizer()
    return train_bpe(TEXTS, 300) if kind == "toy" else tokenizer_kinds.opened(kind)


def student_of(kind: str, tokenizer: str, **settings: Any) -> Student:
    """A random model, wide enough for blocks of 32 weights, with a tokenizer and two rows that no token has."""
    own = open_tokenizer(tokenizer)
    shape: dict[str, Any] = {
        "vocab_size": own.size + 2,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 6 if kind == "gemma3_text" else 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "eos_token_id": own.eos,
        "bos_token_id": next(iter(own.prefix), None),
        "pad_token_id": own.pad,
    }
    if kind == "gemma3_text":
        shape |= {"head_dim": 256, "sliding_window": 64}
    torch.manual_seed(4)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **(shape | settings)))
    with torch.no_grad():
        for value in model.parameters():
            torch.nn.init.normal_(value, std=0.3)
    return CausalStudent(model, own).eval()


def read_back(student: Student, folder: Path, kind: str) -> Student:
    gguf_writer.write_gguf(student, folder / "x.gguf", kind, [student.tokenizer.eos], name="tiny")
    (folder / "back").mkdir()
    convert_into(folder / "x.gguf", folder / "back", key="export")
    return models.open_student(folder / "back")


def metadata(file: Path) -> dict[str, Any]:
    return {name: field.contents() for name, field in gguf.GGUFReader(str(file)).fields.items()}


@pytest.mark.parametrize(("kind", "tokenizer", "architecture", "model", "pre"), KINDS)
def test_a_file_reads_back_as_the_student(
    kind: str, tokenizer: str, architecture: str, model: str, pre: str, tmp_path: Path
) -> None:
    student = student_of(kind, tokenizer, tie_word_embeddings=kind != "llama")
    read = read_back(student, tmp_path, "F32")
    fields = metadata(tmp_path / "x.gguf")
    assert fields["general.architecture"] == architecture
    assert (fields["tokenizer.ggml.model"], fields["tokenizer.ggml.pre"]) == (model, pre)
    assert fields["tokenizer.ggml.add_bos_token"] == bool(student.tokenizer.prefix)
    assert len(fields["tokenizer.ggml.tokens"]) == student.head.weight.shape[0]
    weights = gguf_writer.compare_weights(student, read, "F32")
    assert weights.different == [] and weights.tensors > 20
    # Gemma's norms are stored as weight + 1, which rounds; nothing else does.
    assert weights.largest == 0 if kind != "gemma3_text" else 0 < weights.largest < 1e-6
    for text in TEXTS:
        assert read.encode(text) == student.encode(text), text
    tokens = torch.tensor([student.encode(TEXTS[0])])
    with torch.no_grad():
        logits, expected = (one.model(input_ids=tokens).logits for one in (read, student))
    assert torch.allclose(logits, expected, atol=1e-4)
    assert read.tokenizer.eos == student.tokenizer.eos


@pytest.mark.parametrize("kind", ["F16", "BF16", "Q8_0"])
def test_weights_are_rounded_to_their_kind_and_no_further(kind: str, tmp_path: Path) -> None:
    student = student_of("llama", "toy", tie_word_embeddings=True)
    own = {name: value.clone() for name, value in student.weights().items()}
    read = read_back(student, tmp_path, kind)
    weights = gguf_writer.compare_weights(student, read, kind)
    assert weights.different == [] and 0 < weights.largest < 0.02
    matrix = "model.layers.1.self_attn.q_proj.weight"
    rounded = read.weights()[matrix]
    if kind == "Q8_0":  # a block of 32 numbers has one step, in float16; its largest number is 127 steps
        step = own[matrix].reshape(-1, 32).abs().amax(1, keepdim=True) / 127
        assert ((rounded - own[matrix]).reshape(-1, 32).abs() <= step * 0.57).all()
    else:
        assert torch.equal(rounded, own[matrix].to({"F16": torch.float16, "BF16": torch.bfloat16}[kind]).float())
    assert torch.equal(read.weights()["model.norm.weight"], own["model.norm.weight"])
    kinds = {tensor.tensor_type.name for tensor in gguf.GGUFReader(str(tmp_path / "x.gguf")).tensors}
    assert kinds == {"F32", kind}


def test_a_weight_that_was_not_read_as_written_is_found(tmp_path: Path) -> None:
    student = student_of("llama", "toy")
    read = read_back(student, tmp_path, "F32")
    with torch.no_grad():
        read.model.get_parameter("model.layers.0.mlp.up_proj.weight")[3, 5] += 1e-7
    assert gguf_writer.compare_weights(student, read, "F32").different == ["model.layers.0.mlp.up_proj.weight"]


def test_rows_that_are_no_blocks_of_32_become_f16(tmp_path: Path) -> None:
    read_back(student_of("llama", "toy", intermediate_size=40), tmp_path, "Q8_0")
    kinds = {tensor.name: tensor.tensor_type.name for tensor in gguf.GGUFReader(str(tmp_path / "x.gguf")).tensors}
    assert (kinds["blk.0.ffn_down.weight"], kinds["blk.0.ffn_up.weight"]) == ("F16", "Q8_0")


@pytest.mark.parametrize("kind", ["t5", "mistral", "gemma2", "qwen3"])
def test_other_architectures_are_refused(kind: str, tmp_path: Path) -> None:
    with user_error("E-export-gguf-model"):
        gguf_writer.write_gguf(random_model(kind), tmp_path / "x.gguf", "F32", [0], name="tiny")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        ("llama", {"attention_bias": True}),
        ("llama", {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}}),
        ("qwen2", {"head_dim": 24}),
        ("gemma3_text", {"query_pre_attn_scalar": 32}),
        ("gemma3_text", {"final_logit_softcapping": 30.0}),
        ("gemma3_text", {"layer_types": ["full_attention"] * 6}),
    ],
)
def test_settings_that_a_file_cannot_hold_are_refused(kind: str, settings: dict[str, Any], tmp_path: Path) -> None:
    student = student_of(kind, "toy", **settings)
    with user_error("E-export-gguf-setting"):
        gguf_writer.write_gguf(student, tmp_path / "x.gguf", "F32", [0], name="tiny")
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_tokenizer_is_refused(tmp_path: Path) -> None:
    unknown = json.loads(tokenizer_kinds.opened("qwen").files["tokenizer.json"])
    unknown["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"] = r"\p{N}{1,2}"
    (tmp_path / "tokenizer.json").write_text(json.dumps(unknown))
    students = [student_of("llama", "bert"), student_of("llama", "qwen")]
    students[1].tokenizer = tokenization.load_tokenizer(tmp_path, eos="<|im_end|>")
    for student in students:
        with user_error("E-export-gguf-tokenizer"):
            gguf_writer.convert_tokenizer(student)
