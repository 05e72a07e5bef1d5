"""Estimates of time and memory: the counted operations and bytes, against models that exist."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from torch import nn

import tiny
from potstill import demo, dry_run, models, tokenization
from potstill.models import SHAPES, Example, Shape
from potstill.records import Target
from potstill.training import estimates

CAUSAL = Shape("causal", d_model=32, layers=2, heads=4, d_ff=48, d_kv=8, vocabulary=600, kv_heads=2, tied=True)
T5 = Shape("t5", d_model=32, layers=2, heads=4, d_ff=48, d_kv=8, vocabulary=600, encoder_layers=3)
SHAPES_UNDER_TEST = (CAUSAL, T5, dataclasses.replace(CAUSAL, tied=False, kv_heads=None))


def student(shape: Shape) -> models.Student:
    tokenizer = tokenization.load_tokenizer(demo.DATA / "models" / "student")
    return models.random_student(dataclasses.replace(shape, vocabulary=max(600, tokenizer.size)), tokenizer, 1)


@pytest.mark.parametrize("shape", SHAPES_UNDER_TEST)
def test_the_counted_matrices_are_those_of_the_model(shape: Shape) -> None:
    model = student(shape)
    head = model.head.weight
    linear = [m.weight for m in model.model.modules() if isinstance(m, nn.Linear) and m.weight.shape != head.shape]
    assert models.count_matrix_elements(shape) == sum(weight.numel() for weight in linear)


@pytest.mark.parametrize("shape", SHAPES_UNDER_TEST)
def test_the_shape_of_a_saved_model_is_read_from_its_folder(shape: Shape, tmp_path: Path) -> None:
    model = student(shape)
    (tmp_path / "model").mkdir()
    model.save(tmp_path / "model")
    read = models.read_shape(tmp_path / "model")
    assert read is not None
    assert models.count_parameters(read) == models.count_stored_parameters(tmp_path / "model")
    sizes = ("family", "d_model", "layers", "heads", "d_ff", "d_kv", "tied")
    assert [getattr(read, name) for name in sizes] == [getattr(shape, name) for name in sizes]
    assert (read.kv_heads or read.heads) == (shape.kv_heads or shape.heads)


def test_a_model_of_another_architecture_has_no_shape(tmp_path: Path) -> None:
    """A mixture of experts has many times the matrices that its config seems to say."""
    from transformers import MambaConfig, MambaForCausalLM, Qwen3MoeConfig, Qwen3MoeForCausalLM

    moe = Qwen3MoeConfig(
        vocab_size=64, hidden_size=16, intermediate_size=32, moe_intermediate_size=32, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=1, num_experts=8, num_experts_per_tok=2,
    )  # fmt: skip
    Qwen3MoeForCausalLM(moe).save_pretrained(tmp_path / "moe")
    mamba = MambaConfig(vocab_size=64, hidden_size=16, state_size=4, num_hidden_layers=2)
    MambaForCausalLM(mamba).save_pretrained(tmp_path / "mamba")
    assert models.read_shape(tmp_path / "moe") is None
    assert models.read_shape(tmp_path / "mamba") is None


def test_training_takes_six_operations_per_weight_and_token() -> None:
    body, head = models.count_matrix_elements(CAUSAL), CAUSAL.vocabulary * CAUSAL.d_model
    assert estimates.training_operations(CAUSAL, tokens=10, supervised=4) == 6 * (10 * body + 4 * head)
    assert estimates.training_operations(CAUSAL, tokens=10, supervised=4, adapters=True) == 4 * (10 * body + 4 * head)


def test_memory_follows_from_the_settings() -> None:
    def total(**settings: object) -> float:
        return sum(estimates.training_memory(SHAPES["flan-t5-base"], tokens=2048, **settings).values())  # type: ignore[arg-type]

    parameters = models.count_parameters(SHAPES["flan-t5-base"])
    assert total(copies=True) - total() == 12 * parameters
    assert total() - total(adafactor=True) == 8 * parameters
    assert total() - total(adapters=True) > 12 * parameters
    assert total(checkpointing=True) < total()
    assert total(precision="bfloat16") - total() < 2 * parameters  # copies of the weights, but smaller activations


@pytest.mark.slow
def test_activations_are_estimated_within_a_third() -> None:
    """Against the tensors that autograd keeps for the backward pass of one layer more."""
    few, many = 2, 6

    def kept(layers: int) -> int:
        shape = Shape("causal", d_model=192, layers=layers, heads=3, d_ff=512, d_kv=64, vocabulary=600, kv_heads=1)
        model = student(shape)
        model.train()
        target = Target(range(20), range(21), range(20), [1.0] * 20, ("hard",) * 20)
        batch = model.batch([Example((start, *range(3, 62)), target) for start in range(8)])
        storages: dict[int, int] = {}

        def pack(tensor: torch.Tensor) -> torch.Tensor:
            storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            model.hidden(batch)
        return sum(size for pointer, size in storages.items() if pointer not in weights)

    shape = Shape("causal", d_model=192, layers=1, heads=3, d_ff=512, d_kv=64, vocabulary=600, kv_heads=1)
    tokens = 8 * 79
    estimated = 4 * tokens * estimates._layer_activations(shape)
    measured = (kept(many) - kept(few)) / (many - few)
    assert 0.67 < estimated / measured < 1.5, (estimated, measured)


def test_the_plan_has_time_and_memory_of_training_and_evaluation(world: Path) -> None:
    plan = dry_run.describe_run(tiny.recipe(world))
    memory, time = (next(line for line in plan.splitlines() if line.startswith(name)) for name in ("memory ", "time "))
    assert memory.endswith(" in training:") and "in evaluation" in plan
    assert " for training and " in time and " for answers, on this machine:" in time


def test_the_plan_uses_the_precision_of_the_run(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []

    def rate(rows: int, width: int, columns: int, dtype: str) -> float:
        seen.append(dtype)
        return 1e12

    monkeypatch.setattr(estimates, "measure_product_rate", rate)
    plan = dry_run.describe_run(tiny.recipe(world, "train.precision=bfloat16", "evaluate.dtype=float32"))
    assert seen[-2:] == ["bfloat16", "float32"] and "16-bit copies of the weights" in plan


def test_a_training_step_takes_the_time_of_its_products_and_of_its_other_work(monkeypatch: pytest.MonkeyPatch) -> None:
    tokens, stored = 1000, estimates._stored_layers(CAUSAL) * estimates._layer_activations(CAUSAL)
    operations = estimates.training_operations(CAUSAL, tokens=tokens, supervised=0)
    monkeypatch.setattr(estimates, "measure_product_rate", lambda *_: 1e9)
    for seconds in (0.0, 1e-9, 1e-6):
        monkeypatch.setattr(estimates, "measure_elementwise_seconds", lambda *_, seconds=seconds: seconds)
        rate = estimates.measure_training_rate(CAUSAL, tokens=tokens, precision="bfloat16")
        other = tokens * stored * seconds * estimates.ELEMENTWISE_PASSES
        assert operations / rate == pytest.approx(operations / 1e9 + other)


def test_reading_and_writing_are_counted_apart() -> None:
    rates = (1e9, 1e8)
    reading = estimates.answering_seconds(CAUSAL, reads=100, writes=0, rates=rates)
    assert reading == pytest.approx(estimates.READING_FACTOR * 2 * 100 * models.count_matrix_elements(CAUSAL) / 1e9)
    both = estimates.answering_seconds(CAUSAL, reads=100, writes=7, rates=rates)
    assert both - reading == pytest.approx(estimates.decoding_operations(CAUSAL, tokens=7) / 1e8)


def test_the_plan_counts_the_tokens_of_the_base_separately(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[float] = []
    counted = estimates.decoding_operations

    def count(shape: Shape, *, tokens: float) -> float:
        written.append(tokens)
        return counted(shape, tokens=tokens)

    monkeypatch.setattr(estimates, "decoding_operations", count)
    dry_run.describe_run(tiny.recipe(world, "evaluate.max_tokens=40"))
    few = sum(written)
    written.clear()
    dry_run.describe_run(tiny.recipe(world, "evaluate.max_tokens=40", "evaluate.base_max_tokens=80"))
    assert sum(written) > few
