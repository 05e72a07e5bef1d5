"""LoRA: what learns, what is saved, and resume to the bit. Skipped where peft is not installed."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.distributed.tensor import DTensor
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM

import tiny
from expect import user_error
from potstill import models, runner, training
from potstill.evaluation import checkpoint
from potstill.models import Example, Shape, adapter_files, lora
from potstill.models.adapter_files import stored_name
from potstill.records import Checkpoint, Target
from potstill.storage import manifest
from potstill.training.checkpoints import OPTIMIZER_FILE, CheckpointWriter
from potstill.training.distributed import restore_optimizer_shards, save_optimizer_shards
from process_group import gloo, together
from tools.toy_models.tokenizer_training import train_bpe, train_unigram
from training_steps import make_student, train

TEXTS = ["Q: Tom has 2 apples and buys 3. How many? A: 2 + 3 = 5. The answer is 5"]
PEFT_FILES = ("adapter_config.json", "adapter_model.safetensors")
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
def test_adapters_alone_learn_and_a_checkpoint_on_its_base_is_the_adapted_model(family: str, tmp_path: Path):
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
    student.adapter_base = models.AdapterBase()
    student.save_checkpoint(tmp_path)
    taught = student(student.batch(rows)).detach()
    adapter_files.merge_adapter((plain := make(family)).model, tmp_path)
    assert torch.allclose(plain(plain.batch(rows)).detach(), taught, atol=1e-5) and taught.sum() < untaught.sum()
    saved = plain.weights()
    assert set(saved) == set(first)
    changed = {name for name, value in saved.items() if not torch.equal(value, first[name])}
    assert changed and not any(
        "embed" in name or "shared" in name or "head" in name or "norm" in name for name in changed
    )
    assert {path.name for path in tmp_path.iterdir()} == {adapter_files.BASE_FILE, *PEFT_FILES}


@needs_peft
def test_a_run_with_adapters_resumes_to_the_bit(world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    whole = tiny.make(world, tmp_path / "whole", "train.lora=4", until="evaluate")
    states = load_file(whole / "train" / "checkpoints" / "4" / OPTIMIZER_FILE)
    assert states and all(".lora_" in name for name in states)
    assert not any(name.endswith("/itself") for name in states), "the adapter is stored once, in its own file"

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
    for step, more in ((2, set()), (4, {OPTIMIZER_FILE})):
        files = {path.name for path in (cut / "train" / "checkpoints" / str(step)).iterdir()}
        assert files == {adapter_files.BASE_FILE, *PEFT_FILES} | more


def test_without_peft_there_is_one_message(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "peft", None)
    with user_error("E-train-missing-package"):
        models.add_adapters(make("t5").model, 4, seed=1)


@needs_peft
@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")  # peft's own call
@pytest.mark.parametrize("family", ["t5", "causal"])
def test_an_adapter_is_opened_by_peft_on_its_base(family: str, world: Path, tmp_path: Path) -> None:
    """A checkpoint, the adapter of an interpolation, and that beside the student give the logits of the merged student."""
    import peft  # pyright: ignore[reportMissingImports]

    (base := tmp_path / "base").mkdir()
    make(family).save(base)
    steps = ("train.steps=2", "train.checkpoint_every=2", "train.learning_rate=0.05", "evaluate.interpolate=[0.5]")
    changes = (f"student={{model: {base}}}", "train.lora=4", "train.save_adapter=true", *steps)
    recipe, run_dir = tiny.recipe(world, *changes), tiny.make(world, tmp_path / "run", *changes)
    auto = AutoModelForCausalLM if family == "causal" else AutoModelForSeq2SeqLM
    inputs = {"input_ids": torch.tensor([[5, 6, 7, 8]])} | (
        {} if family == "causal" else {"decoder_input_ids": torch.tensor([[0, 5, 6]])}
    )

    def logits(model: Any) -> torch.Tensor:
        with torch.no_grad():
            return model.eval()(**inputs).logits

    plain = logits(auto.from_pretrained(base))
    for share in (1.0, 0.5):
        folder = run_dir / "train" / "checkpoints" / "2"
        if share != 1:
            checkpoint.copy_adapter(run_dir, Checkpoint(2, share), folder := tmp_path / f"adapter-{share}")
        adapted = peft.PeftModel.from_pretrained(auto.from_pretrained(base), folder)
        merged = checkpoint.open_checkpoint(run_dir, recipe, Checkpoint(2, share)).model
        assert torch.allclose(logits(adapted), logits(merged), atol=1e-5)
        assert not torch.allclose(logits(adapted), plain, atol=1e-3)
    chosen = checkpoint.read_choice(run_dir).checkpoint
    shipped, merged = run_dir / "student", auto.from_pretrained(run_dir / "student")
    adapted = peft.PeftModel.from_pretrained(auto.from_pretrained(base), shipped, subfolder="adapter")
    assert torch.allclose(logits(adapted), logits(merged), atol=1e-5), chosen
    config = json.loads((shipped / "adapter" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(base) and config["r"] == 4
    assert 'subfolder="adapter"' in (shipped / "README.md").read_text()
    # An adapter folder alone is refused, with the name of its base.
    with user_error("E-model-adapters", found=str(base)):
        models.open_student(shipped / "adapter")
    outputs = manifest.read_manifest(run_dir / "report" / manifest.MANIFEST_FILE).outputs
    assert "student/adapter/adapter_model.safetensors" in outputs


@needs_peft
def test_the_adapter_beside_the_student_changes_nothing_else(world: Path, tmp_path: Path) -> None:
    (base := tmp_path / "base").mkdir()
    make("causal").save(base)
    changes = (f"student={{model: {base}}}", "train.lora=4")
    run_dir = tiny.make(world, tmp_path / "run", *changes)
    alone = tiny.contents(run_dir)
    with user_error("E-run-stage-differs", found="train.save_adapter"):
        tiny.make(world, run_dir, *changes, "train.save_adapter=true")
    recipe = tiny.recipe(world, *changes, "train.save_adapter=true")
    both = tiny.contents(runner.run(recipe, run_dir=run_dir, redo="report"))  # and no training
    assert both.keys() - alone.keys() == {f"student/adapter/{name}" for name in PEFT_FILES}
    changed = {name for name in alone if alone[name] != both[name]}
    assert changed == {"report/manifest.json", "report/begun.json", "report/index.html", "student/README.md"}


def test_an_adapter_needs_a_rank_and_a_base(world: Path) -> None:
    with user_error("E-recipe-save-adapter"):
        tiny.recipe(world, "train.save_adapter=true")
    with user_error("E-recipe-save-adapter"):
        tiny.recipe(world, "train.save_adapter=true", "train.lora=4")


BASE = models.AdapterBase("base", digests={"student.model": "0" * 64})


def train_sharded(rank: int, folder: Path) -> None:
    """Two steps of sharded adapters, saved by the first process; the state of the optimizer by both."""
    gloo(folder, rank)
    for family in ("t5", "causal"):
        student = make_student(family)
        models.add_adapters(student.model, 4, seed=1)
        model = training.distribute_student(student, "full")
        assert all(isinstance(value, DTensor) for value in student.parameters())
        adam = training.build_optimizer(model, 1e-2)
        train(student, 1, 2, adam, model=model)
        weights = training.full_state_dict(student)
        if rank == 0:
            assert weights and all(".lora_" in name for name in weights), "the frozen weights are not gathered"
            student.adapter_base = BASE
            (folder / family).mkdir()
            student.save_checkpoint(folder / family, weights=weights)
        save_optimizer_shards(adam, folder / f"{family}-engine")
    # One process's state continues in two.
    student = make_student("causal")
    models.add_adapters(student.model, 4, seed=2)
    models.load_adapter(student.model, folder / "alone")
    adam = training.build_optimizer(training.distribute_student(student, "full"))
    training.restore_optimizer_bytes(adam, (folder / "whole").read_bytes())
    own = {name: value.full_tensor().detach() for name, value in student.named_parameters() if value.requires_grad}  # type: ignore[attr-defined]
    save_file(own, folder / f"continued-{rank}")


@needs_peft
def test_sharded_adapters_learn_and_are_saved_as_in_one_process(tmp_path: Path) -> None:
    plain: dict[str, models.Student] = {}
    for family in ("t5", "causal"):
        student = plain[family] = make_student(family)
        models.add_adapters(student.model, 4, seed=1)
        adam = training.build_optimizer(student, 1e-2)
        train(student, 1, 2, adam)
        student.adapter_base = BASE
        if family == "causal":
            (tmp_path / "whole").write_bytes(training.optimizer_state_bytes(adam))
            (tmp_path / "alone").mkdir()
            student.save_checkpoint(tmp_path / "alone")
    assert together(2, train_sharded, tmp_path) == [0, 0]
    for family, student in plain.items():
        (alone := tmp_path / f"{family}-alone").mkdir()
        student.save_checkpoint(alone)
        names = {path.relative_to(alone) for path in alone.rglob("*") if path.is_file()}
        assert names == {
            path.relative_to(tmp_path / family) for path in (tmp_path / family).rglob("*") if path.is_file()
        }
        name = "adapter_model.safetensors"
        one, both = load_file(alone / name), load_file(tmp_path / family / name)
        assert one.keys() == both.keys()
        for key, value in one.items():  # Adam divides by gradients close to 0
            assert float((value - both[key]).norm()) <= 1e-3 * float(value.norm()) + 1e-6, (family, key)
        for name in ("adapter_config.json", "base.json"):
            assert (alone / name).read_bytes() == (tmp_path / family / name).read_bytes()
        # Two processes' state continues in one.
        again = make_student(family)
        models.add_adapters(again.model, 4, seed=2)
        models.load_adapter(again.model, tmp_path / family)
        adam = training.build_optimizer(again)
        restore_optimizer_shards(adam, tmp_path / f"{family}-engine")
        adapter = load_file(tmp_path / family / "adapter_model.safetensors")
        own = {name: value for name, value in again.model.state_dict().items() if ".lora_" in name}
        assert own and all(torch.equal(value, adapter[stored_name(name)]) for name, value in own.items())
    trained = {name: value.detach() for name, value in plain["causal"].named_parameters() if value.requires_grad}
    for rank in range(2):
        continued = load_file(tmp_path / f"continued-{rank}")
        assert trained.keys() == continued.keys()
        assert all(torch.equal(continued[name], value) for name, value in trained.items())


needs_bitsandbytes = pytest.mark.skipif(
    importlib.util.find_spec("bitsandbytes") is None, reason="needs bitsandbytes (the extra qlora)"
)


@needs_peft
@needs_bitsandbytes
@pytest.mark.parametrize("family", ["t5", "causal"])
def test_with_weights_in_4_bits_a_checkpoint_on_its_rounded_base_is_the_model_that_was_trained(
    family: str, world: Path, tmp_path: Path
) -> None:
    from bitsandbytes import functional  # pyright: ignore[reportMissingImports]

    # Rows of less than 64 weights are rounded wrongly by bitsandbytes 0.50 on a CPU.
    tokenizer = train_unigram(TEXTS, 60) if family == "t5" else train_bpe(TEXTS, 290)
    shape = Shape(family, 64, 2, 8, 64, 8, tokenizer.size)  # pyright: ignore[reportArgumentType]
    student = models.random_student(shape, tokenizer, seed=1)
    (base := tmp_path / "base").mkdir()
    student.save(base)
    recipe = tiny.recipe(world, f"student={{model: {base}}}", "train.lora=4", "train.load_in_4bit=true")
    adapter_base = models.adapter_base(recipe, student)
    whole = {name: value.clone() for name, value in student.weights().items()}
    models.quantize_layers(student.model, "float32")
    models.add_adapters(student.model, 4, seed=1)
    state, head = student.model.state_dict(), student.head.weight
    layers = [name for name in state if name.endswith(".base_layer.weight")]
    assert layers and head.dtype == torch.float32
    for name in layers:  # two weights in a byte
        value = whole[name.replace(".base_layer", "")]
        assert state[name].dtype == torch.uint8 and state[name].numel() == -(-value.numel() // 2)
    # Half of the widest gap of NF4 is 0.152 of the largest weight of a block.
    lora.round_layers((plain := models.from_recipe(recipe)).model)
    rounded = plain.weights()
    moved = max(float((rounded[name] - value).abs().max() / value.abs().max()) for name, value in whole.items())
    assert rounded.keys() == whole.keys() and 0 < moved < 0.16
    for name in layers:  # to the bit the weights with which the layers compute
        stored = student.model.get_parameter(name)
        kept = functional.dequantize_4bit(stored.data, getattr(stored, "quant_state"))  # noqa: B009
        assert torch.equal(rounded[name.replace(".base_layer", "")], kept)
    student.train()  # on a CPU, bitsandbytes packs the weights in another order when a layer is evaluated
    rows = [example(student)]
    untaught = student(student.batch(rows)).detach()
    adam = training.build_optimizer(student, 1e-2)
    assert all(".lora_" in name for group in adam.param_groups for name in group["param_names"])
    schedule = training.Schedule("constant", 1e-2)
    for _ in training.train_steps(student, adam, lambda _: [rows], first=1, last=5, schedule=schedule, seed=1):
        pass
    assert all(torch.equal(state[name], student.model.state_dict()[name]) for name in layers)
    student.train()
    taught = student(student.batch(rows)).detach()
    student.adapter_base = adapter_base
    (saved := tmp_path / "saved").mkdir()
    student.save_checkpoint(saved)
    assert json.loads((saved / "base.json").read_text())["rounding"] == "nf4"
    stored = json.loads((saved / "base.json").read_text())
    assert stored["bitsandbytes"] == importlib.metadata.version("bitsandbytes")
    plain = models.from_checkpoint(recipe, saved)
    assert plain.weights().keys() == whole.keys()
    assert torch.allclose(plain(plain.batch(rows)).detach(), taught, atol=1e-4) and taught.sum() < untaught.sum()


def test_weights_in_4_bits_need_bitsandbytes_a_gpu_adapters_and_whole_weights(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lora, "find_spec", lambda name: None)
    with user_error("E-train-missing-package"):
        models.check_quantization()
    monkeypatch.setattr(lora, "find_spec", lambda name: object())
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with user_error("E-train-4bit-needs-gpu"):
        models.check_quantization()
    with user_error("E-train-4bit-needs-gpu"):
        tiny.make(world, tmp_path / "run", "train.lora=4", "train.load_in_4bit=true", until="train")
    for changes in (("train.load_in_4bit=true",), ("train.load_in_4bit=true", "train.lora=4", "train.sharding=full")):
        with user_error("E-recipe-4bit"):
            tiny.recipe(world, *changes)
