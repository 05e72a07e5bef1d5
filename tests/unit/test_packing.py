"""Packing of decoder-only rows: the values that transformers computes for each row alone, with shared prompts and
shared beginnings of prompts too."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoConfig, AutoModelForCausalLM

from potstill import models
from potstill.models import Example, Student, causal, causal_unpadded
from potstill.models.batch import Batch
from potstill.models.causal_unpadded import find_shared_prefix, pack_rows, packed_attention
from potstill.models.unpadded import MIN_LENGTH_RATIO
from potstill.records import Target, TargetKind
from tools.toy_models.tokenizer_training import train_bpe

TOKENIZER = train_bpe(["Q: Tom has 2 apples and buys 3. A: 2 + 3 = 5. The answer is 5"], 270)
TINY: dict[str, int | None] = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "head_dim": 4,
}
SIZE = TOKENIZER.size + 7  # a padded vocabulary
TINY |= {"num_key_value_heads": 2, "vocab_size": SIZE, "pad_token_id": TOKENIZER.pad}
TINY |= {"eos_token_id": TOKENIZER.eos, "bos_token_id": None}
BOTH = {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": 5}
KINDS = {
    "llama": ("llama", {"tie_word_embeddings": False}),
    "llama, tied": ("llama", {"tie_word_embeddings": True}),
    "mistral, window": ("mistral", {"sliding_window": 5}),
    "qwen2": ("qwen2", {}),
    "qwen2, windows": ("qwen2", {"use_sliding_window": True, **BOTH}),
    "qwen3, tied": ("qwen3", {"tie_word_embeddings": True}),
    "gemma": ("gemma", {}),
    "gemma2, windows and caps": ("gemma2", {"attn_logit_softcapping": 1.5, "final_logit_softcapping": 2.0, **BOTH}),
    "gemma3, windows": ("gemma3_text", BOTH),
}


def folder(kind: str, into: Path) -> Path:
    """A tiny random model of a kind, written by transformers alone."""
    name, more = KINDS[kind]
    torch.manual_seed(3)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(name, **TINY, **more))
    for value in model.parameters():  # norms and embeddings of some kinds start at constants, which would hide faults
        torch.nn.init.normal_(value, std=0.3)
    model.save_pretrained(into)
    for file, content in TOKENIZER.files.items():
        (into / file).write_bytes(content)
    return into


def target(draw: np.random.Generator, length: int) -> Target:
    """Soft candidates at every position but the last, which is the end; kept mass under 1."""
    kinds: list[TargetKind] = ["mixed" for _ in range(length - 1)]
    ids = [*draw.integers(0, TOKENIZER.size, length - 1).tolist(), TOKENIZER.eos]
    others = draw.integers(0, TOKENIZER.size, length - 1).tolist()
    candidates = [one for pair in zip(ids, others, strict=False) for one in pair if pair[0] != pair[1]]
    if len(candidates) != 2 * (length - 1):
        return target(draw, length)
    offsets = [*range(0, 2 * length - 1, 2), 2 * length - 1]
    return Target(ids, offsets, [*candidates, ids[-1]], [0.75, 0.125] * (length - 1) + [1.0], [*kinds, "end"])


def examples() -> list[Example]:
    """Three chains under a prompt, not side by side, one of which is the end alone; one chain; two chains."""
    draw = np.random.default_rng(1)
    prompts = [tuple(draw.integers(0, TOKENIZER.size, length).tolist()) for length in (11, 3, 8)]
    made = [(0, 6), (1, 4), (0, 1), (2, 3), (0, 9), (2, 7)]
    return [Example(prompts[p], target(draw, n), 1 + i / 4) for i, (p, n) in enumerate(made)]


def dense(model: torch.nn.Module, example: Example, size: int) -> torch.Tensor:
    """weight * sum of the target's entropy against the model, from all its logits: the definition."""
    read = torch.tensor([[*example.prompt, *example.target.ids[:-1]]])
    logits = model(input_ids=read).logits[0, len(example.prompt) - 1 :]
    assert logits.shape == (len(example.target), size)
    target = example.target
    teacher = torch.zeros_like(logits)
    for position in range(len(target)):
        for at in range(target.offsets[position], target.offsets[position + 1]):
            teacher[position, target.candidate_ids[at]] += float(target.probabilities[at])
    values = torch.special.xlogy(teacher, teacher) - teacher * logits.log_softmax(-1)
    return example.weight * values.sum()


def gradients(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.grad.clone() for name, value in model.named_parameters() if value.grad is not None}


def assert_close(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    """Each tensor within 1e-5 of its own norm."""
    assert one.keys() == other.keys() and one
    for name in one:
        assert float((one[name] - other[name]).norm()) <= 1e-5 * float(other[name].norm()) + 1e-9, name


def backward(student: Student, made: list[Example]) -> float:
    batch = student.batch(made)
    summed, _ = student(batch, summed=True)
    summed.backward()
    return float(summed.detach())


def check_dense_gradient(kind: str, into: Path, made: list[Example]) -> Batch:
    """Assert that a batch has the loss and the gradient of the dense formula, which sees each row alone."""
    student = models.open_student(folder(kind, into))
    plain = AutoModelForCausalLM.from_pretrained(into, attn_implementation="eager")
    expected = sum((dense(plain, example, SIZE) for example in made), torch.zeros(()))
    expected.backward()
    assert backward(student, made) == pytest.approx(float(expected.detach()), rel=1e-5)
    assert_close(gradients(student.model), gradients(plain))
    return student.batch(made)


@pytest.mark.parametrize("kind", KINDS)
def test_shared_and_packed_has_the_gradient_of_rows_alone_by_the_dense_formula(kind, tmp_path):
    made = examples()
    batch = check_dense_gradient(kind, tmp_path, made)
    assert batch.slots == batch.tokens == 11 + 3 + 8 + sum(len(example.target) - 1 for example in made)


@pytest.mark.parametrize("kind", KINDS)
def test_prompts_that_begin_alike_share_their_beginning_and_keep_the_gradient(kind, tmp_path):
    """The beginning is longer than the sliding windows."""
    beginning = tuple(np.random.default_rng(4).integers(0, TOKENIZER.size, 7).tolist())
    made = [replace(example, prompt=beginning + example.prompt) for example in examples()]
    batch = check_dense_gradient(kind, tmp_path, made)
    assert batch.tokens == 7 + 11 + 3 + 8 + sum(len(example.target) - 1 for example in made)


@pytest.mark.parametrize("cells", [1, 40])
@pytest.mark.parametrize("kind", KINDS)
def test_long_rows_have_the_same_gradient(kind, cells, tmp_path, monkeypatch: pytest.MonkeyPatch):
    """Rows that need a mask of more cells have no mask: alone, with a shared prompt, and after a shared beginning."""
    monkeypatch.setattr(causal_unpadded, "MAX_MASK_CELLS", cells)
    beginning = tuple(np.random.default_rng(4).integers(0, TOKENIZER.size, 7).tolist())
    for number, made in enumerate((examples(), [replace(e, prompt=beginning + e.prompt) for e in examples()])):
        (into := tmp_path / str(number)).mkdir()
        batch = check_dense_gradient(kind, into, made)
        assert batch.packing is not None
        assert all(block.causal or block.queries * block.keys <= cells for block in batch.packing.blocks)


def test_a_long_chain_needs_no_mask_and_a_window_needs_one_of_its_own_size(monkeypatch: pytest.MonkeyPatch):
    """The number of cells of all masks grows with the length of a chain, not with its square."""
    monkeypatch.setattr(causal_unpadded, "MAX_MASK_CELLS", 1 << 12)
    module = torch.nn.Module()
    module.num_key_value_groups = 1  # type: ignore[assignment]
    cells: list[int] = []
    attend = causal_unpadded._block_attention

    def counted(module: Any, q: Any, k: Any, v: Any, mask: Any, *settings: Any) -> torch.Tensor:
        cells.append(0 if mask is None else mask.numel())
        return attend(module, q, k, v, mask, *settings)

    monkeypatch.setattr(causal_unpadded, "_block_attention", counted)
    counts = {}
    for length in (256, 1024):
        packing = pack_rows([8], [(0, length), (0, length)])
        states = [torch.zeros(1, 1, len(packing.positions), 4) for _ in range(3)]
        for window in (None, 16):
            cells.clear()
            packed_attention(module, *states, None, packing=packing, sliding_window=window, scaling=1.0)
            counts[length, window] = sum(cells)
    assert counts[256, None] == counts[1024, None] == 0
    assert counts[1024, 16] < 5 * counts[256, 16]


def test_a_beginning_that_saves_few_tokens_is_not_shared():
    assert find_shared_prefix([(1, 2, 3), (1, 4, 5)], tokens=20) == 1
    assert find_shared_prefix([(1, 2, 3), (1, 4, 5)], tokens=21) == 0
    assert find_shared_prefix([(1, 2, 3)], tokens=3) == 0
    assert find_shared_prefix([(1, 2), (1, 2, 3), (1, 2, 4)], tokens=8) == 1, "a prompt keeps its last token"


def test_attention_in_bfloat16_on_a_cpu_is_computed_in_float32():
    """Only its inputs and outputs are rounded."""
    draw = torch.Generator().manual_seed(1)
    packing = pack_rows([9, 4], [(0, 5), (0, 3), (1, 6)])
    states = [torch.randn(1, 2, len(packing.positions), 8, generator=draw) for _ in range(3)]
    rounded = [state.bfloat16() for state in states]
    module = torch.nn.Module()
    module.num_key_value_groups = 1  # type: ignore[assignment]
    whole, _ = packed_attention(module, *(state.float() for state in rounded), None, packing=packing, scaling=0.3)
    ours, _ = packed_attention(module, *rounded, None, packing=packing, scaling=0.3)
    assert ours.dtype is torch.bfloat16 and torch.equal(ours, whole.bfloat16())


@pytest.mark.parametrize("kind", KINDS)
def test_saved_and_opened_again_it_is_the_same_student(kind, tmp_path):
    student = models.open_student(folder(kind, tmp_path))
    (tmp_path / "again").mkdir()
    student.save(tmp_path / "again")
    config = json.loads((tmp_path / "again" / "config.json").read_text())
    assert "potstill" not in json.dumps(config)
    again = models.open_student(tmp_path / "again")
    batch = student.batch(examples())
    assert torch.equal(student(batch), again(batch))
    tied = again.head.weight is again.model.get_input_embeddings().weight
    assert tied == config["tie_word_embeddings"] == (kind.startswith("gemma") or "tied" in kind)


@pytest.mark.parametrize("kind", KINDS)
def test_a_padded_batch_and_a_cache_see_the_attention_that_transformers_has(kind, tmp_path):
    """Who writes texts asks the model without a packing."""
    student = models.open_student(folder(kind, tmp_path))
    plain = AutoModelForCausalLM.from_pretrained(tmp_path, attn_implementation="eager")
    ids = torch.tensor(np.random.default_rng(2).integers(0, TOKENIZER.size, (2, 12)))
    mask = torch.ones_like(ids)
    mask[0, :4] = 0
    positions = (mask.cumsum(1) - 1).clamp_min(0)
    with torch.no_grad():
        told = [
            model(input_ids=ids, attention_mask=mask, position_ids=positions).logits[mask.bool()]
            for model in (student.model, plain)
        ]
        torch.testing.assert_close(*told, rtol=1e-4, atol=1e-5)
        texts = [
            model.generate(ids, attention_mask=mask, max_new_tokens=8, do_sample=False)  # type: ignore[attr-defined]
            for model in (student.model, plain)
        ]
    assert torch.equal(*texts)


@pytest.mark.parametrize("kind", ["llama", "gemma2, windows and caps"])
def test_recomputing_the_layers_and_dropout(kind, tmp_path):
    student = models.open_student(folder(kind, tmp_path), dropout=0.3)
    student.train()
    found = []
    for recompute in (False, True):
        if recompute:
            student.enable_gradient_checkpointing()
        student.zero_grad()
        torch.manual_seed(5)
        backward(student, examples())
        found.append(gradients(student))
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])
    student.eval().zero_grad()
    backward(student, examples())
    assert not torch.allclose(found[0]["model.model.norm.weight"], student.model.model.norm.weight.grad)


def test_a_kind_without_a_test_of_its_own_is_padded():
    """Its attention may know of things that only its own mask says."""
    config = AutoConfig.for_model("granite", **{key: value for key, value in TINY.items() if key != "head_dim"})
    assert config.model_type not in causal.MODEL_TYPES
    student = causal.CausalStudent(AutoModelForCausalLM.from_config(config), TOKENIZER)
    assert student.padded and student.batch(examples()).packing is None
    assert student.model.config._attn_implementation == "sdpa"


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(1, 12), st.lists(st.integers(0, 9), min_size=1, max_size=4)), min_size=1, max_size=6
    ),
    st.integers(0, 7),
)
def test_each_token_asks_once_and_reads_its_prompt_and_its_chain(groups, prefix):
    groups = [(prefix + length, reads) for length, reads in groups]
    chains = [(prompt, read) for prompt, (_, reads) in enumerate(groups) for read in reads]
    chains = [chains[i] for i in np.random.default_rng(len(chains)).permutation(len(chains))]
    packing = pack_rows([length for length, _ in groups], chains, prefix)
    expected: dict[int, list[int]] = {}
    for (prompt, read), (start, last) in zip(chains, packing.starts, strict=True):
        first = last + 1 - (groups[prompt][0] - prefix)
        shown = [*range(prefix), *range(first, last + 1), *range(start, start + read)]
        expected |= {token: shown[: position + 1] for position, token in enumerate(shown)}
        assert packing.positions[shown].tolist() == list(range(len(shown)))
    assert sorted(expected) == list(range(len(packing.positions)))
    assert packing.query_tokens[packing.slot_of_token].tolist() == sorted(expected)
    for window in (None, 3, 50):
        seen: dict[int, list[int]] = {}
        asked = read = 0
        for block in packing.blocks:
            rows, keys = block.rows * block.queries, block.rows * block.keys
            asks = packing.query_tokens[asked : asked + rows].view(block.rows, -1).tolist()
            reads = packing.key_tokens[read : read + keys].view(block.rows, -1)
            asked, read = asked + rows, read + keys
            mask = block.mask(window)
            if mask is None:
                mask = torch.ones(block.rows, 1, block.queries, block.keys, dtype=torch.bool).tril()
                assert block.causal
            assert mask.any(-1).all()  # a row of a softmax without anything is not a number
            for row, tokens in enumerate(asks):
                for position, token in enumerate(tokens):
                    seen.setdefault(token, reads[row][mask[row, 0, position]].tolist())
            lengths = (block.key_positions < 2**62).sum(1)
            assert int(lengths.min()) >= MIN_LENGTH_RATIO * block.keys
        assert seen == {token: shown[-window:] if window else shown for token, shown in expected.items()}
