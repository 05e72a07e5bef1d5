"""LoRA: what learns, what is saved, and resume to the bit. Skipped where peft is not installed."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

import tiny
from expect import user_error
from potstill import models, training
from potstill.evaluation import checkpoint
from potstill.models import Example, Shape
from potstill.records import Target
from potstill.training.checkpoints import OPTIMIZER_FILE, CheckpointWriter
from tools.toy_models.tokenizer_training import train_bpe, train_unigram

TEXTS = ["Q: Tom has 2 apples and buys 3. How many? A: 2 + 3 = 5. The answer is 5"]
needs_peft = pytest.mark.skipif(importlib.util.find_spec("peft") is None, reason="needs peft (the extra lora)")


def make(family: str) -> models.Student:
    tokenizer = train_unigram(TEXTS, 60) if family == "t5" else train_bpe(TEXTS, 290)
    return models.random_student(Shape(family, 16, 2, 2, 24, 8, tokenizer.size), tokenizer, seed=1)  # pyright: ignore


def example(student: models.Student) -> Example:
    end = student.tokenizer.eos
    ids = [*student.tokenizer.encode("5").ids, end]
    target = Target(ids, range(len(ids) + 1), ids, [1.0] * len(ids), ["hard"] * (len(ids) - 1) + ["end"])  # pyright: ignore
    return Example(tuple(student.encode("Q: Tom has 2")), target)


@needs_peft
@pytest.mark.parametrize("family", ["t5", "causal"])
def test_adapters_alone_learn_and_the_saved_folder_is_the_adapted_model(family: str, tmp_path: Path):
    student = make(family)
    rows = [example(student)]
    first = {name: value.clone() for name, value in student.weights().items()}
    untaught = student(student.batch(rows)).detach()
    models.add_adapters(student.model, 4, seed=1)
    assert torch.equal(student(student.batch(rows)).detach(), untaught)
    names = {name for name, value in student.named_parameters() if value.requires_grad}
    assert names and all(".lora_" in name for name in names)
    adam = training.build_optimizer(student, 1e-2)
    schedule = training.Schedule("constant", 1e-2)
    for _ in training.train_steps(student, adam, lambda _: [rows], first=1, last=5, schedule=schedule, seed=1):
        pass
    student.save(tmp_path)
    taught = student(student.batch(rows)).detach()
    plain = models.open_student(tmp_path)
    assert torch.allclose(plain(plain.batch(rows)).detach(), taught, atol=1e-5) and taught.sum() < untaught.sum()
    saved = plain.weights()
    assert set(saved) == set(first)
    changed = {name for name, value in saved.items() if not torch.equal(value, first[name])}
    assert changed and not any(
        "embed" in name or "shared" in name or "head" in name or "norm" in name for name in changed
    )
    assert not any("lora" in path.read_text("utf-8") for path in tmp_path.glob("*.json"))
    if family == "causal":
        _, found = AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)  # pyright: ignore
        assert not found["missing_keys"] and not found["unexpected_keys"]


@needs_peft
def test_a_run_with_adapters_resumes_to_the_bit(world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    whole = tiny.make(world, tmp_path / "whole", "train.lora=4", until="evaluate")
    states = load_file(whole / "train" / "checkpoints" / "4" / OPTIMIZER_FILE)
    assert any(name.endswith("/itself") for name in states) and all(".lora_" in name for name in states)

    save = CheckpointWriter.save

    def stop(self: CheckpointWriter, step: int) -> None:
        save(self, step)
        raise KeyboardInterrupt

    monkeypatch.setattr(CheckpointWriter, "save", stop)
    with pytest.raises(KeyboardInterrupt):
        tiny.make(world, tmp_path / "cut", "train.lora=4", until="train")
    monkeypatch.setattr(CheckpointWriter, "save", save)
    cut = tiny.make(world, tmp_path / "cut", "train.lora=4", until="evaluate")
    assert tiny.contents(cut) == tiny.contents(whole)
    assert checkpoint.read_saved_steps(cut) == [2, 4]
    assert json.loads((cut / "train" / "checkpoints" / "4" / "config.json").read_text())["model_type"] == "t5"


def test_without_peft_there_is_one_message(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "peft", None)
    with user_error("E-train-missing-package"):
        models.add_adapters(make("t5").model, 4, seed=1)
