"""Checkpoints of a run with LoRA have the adapter alone. Every stage and command opens them on their base; runs of earlier
versions, whose checkpoints have merged weights, are read as before."""

from __future__ import annotations

import importlib.util
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

import tiny
from crashing import Crash
from expect import user_error
from potstill import dry_run, models, runner, storage
from potstill.cli.ask import open_target
from potstill.cli.export import export_folder
from potstill.evaluation import checkpoint, query
from potstill.export.source import open_exported_run
from potstill.models import Shape, Student
from potstill.models.adapter_files import ADAPTER_FILE, merge_adapter
from potstill.models.lora import is_thin_matrix
from potstill.records import Checkpoint
from potstill.run_reader import open_run
from potstill.storage import atomic
from potstill.training import checkpoints
from potstill.training.checkpoints import CheckpointWriter
from potstill.training.optimizer import named_parameters

pytestmark = pytest.mark.skipif(importlib.util.find_spec("peft") is None, reason="needs peft (the extra lora)")

ON_POLICY = (
    "on_policy={sets: [more], steps: 2, prompts_per_step: 3, max_tokens: 6, checkpoint_every: 2, top_logprobs: 4, samples: 2,"
    " learning_rate: 1e-2, warmup_steps: 1}"
)
CHANGES = ("train.lora=4", "train.learning_rate=0.05", "evaluate.interpolate=[0.5]", ON_POLICY)


@pytest.fixture(scope="module")
def lora_world(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny world with a decoder-only base, whose weights are stored in bfloat16."""
    data = Path(shutil.copytree(world, tmp_path_factory.mktemp("world") / "data"))
    tokenizer = models.open_student(data / "teacher").tokenizer
    base = models.random_student(Shape("causal", 16, 2, 2, 24, 8, tokenizer.size), tokenizer, seed=5)
    (data / "base").mkdir()
    base.save(data / "base", dtype="bfloat16")
    return data


@pytest.fixture(scope="module")
def run_dir(lora_world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(lora_world, tmp_path_factory.mktemp("run") / "run")


@pytest.fixture(scope="module")
def merged_run(lora_world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same run with the checkpoints of an earlier version."""
    with merged_checkpoints():
        return make(lora_world, tmp_path_factory.mktemp("merged") / "run")


def make(data: Path, run_dir: Path, *changes: str, until: str = "report") -> Path:
    return tiny.make(data, run_dir, "student={model: base}", *CHANGES, *changes, until=until)


@contextmanager
def merged_checkpoints() -> Iterator[None]:
    """Save checkpoints as earlier versions did: the whole model with merged weights, and the adapter with the optimizer."""

    def save_merged(self: Student, folder: Path, *, weights: Mapping[str, Tensor] | None = None) -> None:
        if not self.has_adapters:
            return self.save(folder, weights=weights)
        save_checkpoint(self, folder, weights=weights)
        plain = models.open_student(base_of[0])
        merge_adapter(plain.model, folder)
        for path in folder.iterdir():
            path.unlink()
        return plain.save(folder)

    def adapter_base(recipe: Any, student: Student) -> models.AdapterBase:
        base_of.append(models.model_folder(recipe))
        return named(recipe, student)

    def state_with_adapters(optimizer: Any) -> dict[str, Tensor]:
        adapters = {f"{name}/itself": value for name, value in named_parameters(optimizer) if is_thin_matrix(name)}
        return state(optimizer) | adapters

    base_of, state = list[Path](), checkpoints.optimizer_state
    save_checkpoint, named = Student.save_checkpoint, models.adapter_base
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Student, "save_checkpoint", save_merged)
        patch.setattr(models, "adapter_base", adapter_base)
        patch.setattr(checkpoints, "optimizer_state", state_with_adapters)
        yield


def result_files(run_dir: Path) -> dict[str, bytes]:
    """Everything that a run made of its checkpoints: answers, scores, the choice, weights, page and student."""
    return {
        name: content
        for name, content in tiny.contents(run_dir).items()
        if not name.startswith("train/checkpoints") and not name.endswith(("manifest.json", "begun.json"))
    }


def test_what_a_run_makes_of_adapters_is_what_it_made_of_merged_weights(run_dir: Path, merged_run: Path) -> None:
    """Evaluation, interpolation, selection, on-policy distillation, test, and the shipped student: the same bytes."""
    adapters, merged = result_files(run_dir), result_files(merged_run)
    assert any(name.startswith("repair/checkpoints/2/model") for name in adapters)
    assert any(name.startswith("evaluate/2-0.5/") for name in adapters)
    assert adapters == merged
    step = run_dir / "train" / "checkpoints" / "2"
    assert {path.name for path in step.iterdir()} == {"adapter_config.json", ADAPTER_FILE, "base.json"}


def test_a_run_of_an_earlier_version_is_read_as_before(lora_world: Path, merged_run: Path, tmp_path: Path) -> None:
    run_dir = Path(shutil.copytree(merged_run, tmp_path / "run"))
    before = tiny.contents(run_dir)
    make(lora_world, run_dir)
    assert tiny.contents(run_dir) == before, "up to date"
    storage.remove(run_dir / "evaluate")
    for name in ("select", "repair", "test", "report", "student"):
        storage.remove(run_dir / name)
    make(lora_world, run_dir)
    assert tiny.contents(run_dir) == before, "made again"
    with user_error("E-model-no-adapter"):
        checkpoint.copy_adapter(run_dir, Checkpoint(2), tmp_path / "adapter")


def test_a_training_of_an_earlier_version_continues(
    lora_world: Path, run_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its first checkpoint keeps its merged weights, and the next one has the adapter."""
    save = CheckpointWriter.save

    def stop(self: CheckpointWriter, step: int) -> None:
        save(self, step)
        raise KeyboardInterrupt

    with merged_checkpoints(), monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(CheckpointWriter, "save", stop)
        make(lora_world, tmp_path / "run")
    mixed = make(lora_world, tmp_path / "run")
    saved = mixed / "train" / "checkpoints"
    assert (saved / "2" / "model.safetensors").is_file() and (saved / "4" / ADAPTER_FILE).is_file()
    assert result_files(mixed) == result_files(run_dir)


def test_every_reader_opens_the_adapter_on_its_base(run_dir: Path, merged_run: Path, lora_world: Path, tmp_path: Path):
    """The library, `ask` before the student is written, exports, and an identity before training is finished."""
    for step in (2, 4):
        own, merged = (open_run(folder).student(step).weights() for folder in (run_dir, merged_run))
        base = open_run(run_dir).student(0).weights()
        assert own.keys() == merged.keys() and all(torch.equal(own[name], merged[name]) for name in own)
        assert not all(torch.equal(own[name], base[name]) for name in own)
    part = Path(shutil.copytree(run_dir, tmp_path / "part"))
    for name in ("report", "student"):
        storage.remove(part / name)
    student, settings = query.open_run_student(part, open_run(part).recipe)
    shipped, _ = query.open_run_student(run_dir, open_run(run_dir).recipe)
    assert settings.is_chat is False
    assert all(torch.equal(value, shipped.weights()[name]) for name, value in student.weights().items())
    for target in (run_dir / "train" / "checkpoints" / "4", merged_run / "train" / "checkpoints" / "4"):
        asked, _ = open_target(str(target), "zero-shot-rationale")
        own = open_run(run_dir).student(4).weights()
        assert all(torch.equal(value.bfloat16(), own[name].bfloat16()) for name, value in asked.weights().items())
    exported = open_exported_run(run_dir).open_student().weights()
    assert all(torch.equal(value, shipped.weights()[name]) for name, value in exported.items())


def test_a_run_is_refused_on_another_base(run_dir: Path, lora_world: Path, tmp_path: Path) -> None:
    data = Path(shutil.copytree(lora_world, tmp_path / "data"))
    other = Path(shutil.copytree(run_dir, tmp_path / "run"))
    (data / "base" / "notes.txt").write_text("another folder")
    recipe = tiny.recipe(data, "student={model: base}", *CHANGES)
    with user_error("E-model-adapter-base", hint="--redo train"):
        checkpoint.open_checkpoint(other, recipe, Checkpoint(2))
    with user_error("E-run-stage-differs", found="student.model"):
        runner.run(recipe, run_dir=other)


def test_a_changed_adapter_is_found(run_dir: Path, lora_world: Path, tmp_path: Path) -> None:
    changed = Path(shutil.copytree(run_dir, tmp_path / "run"))
    for name in ("evaluate", "select", "repair", "test", "report", "student"):
        storage.remove(changed / name)
    path = changed / "train" / "checkpoints" / "2" / ADAPTER_FILE
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(bytes(content))
    with user_error("E-run-file-changed", where=str(path)):
        make(lora_world, changed)


@contextmanager
def crash_in_checkpoint(number: int) -> Iterator[None]:
    """Crash at one operation on the files of a checkpoint. Nothing is written afterwards, as where a machine stops."""
    left, crashed = number, False

    def stop(operation: atomic.Operation, moment: atomic.Moment, path: Path) -> None:
        nonlocal left, crashed
        if "checkpoints" in str(path) or crashed:
            crashed, left = crashed or left == 0, left - 1
            if crashed:
                raise Crash

    atomic.crash = stop
    try:
        yield
    finally:
        atomic.crash = atomic._no_crash


def operations(train: Callable[[], object]) -> int:
    """The number of operations on files of checkpoints."""
    count = 0

    def note(operation: atomic.Operation, moment: atomic.Moment, path: Path) -> None:
        nonlocal count
        count += "checkpoints" in str(path)

    atomic.crash = note
    try:
        train()
    finally:
        atomic.crash = atomic._no_crash
    return count


@pytest.mark.slow
@pytest.mark.parametrize("background", [True, False])
def test_a_crash_in_the_middle_of_a_checkpoint(
    run_dir: Path, lora_world: Path, tmp_path: Path, background: bool
) -> None:
    """At every operation: the folder of a checkpoint is whole or absent, and training continues to the same bytes."""
    setting = f"train.async_checkpoints={str(background).lower()}"
    aligned = tmp_path / "aligned"
    make(lora_world, aligned, setting, until="align")
    wanted = tiny.contents(make(lora_world, Path(shutil.copytree(aligned, tmp_path / "whole")), setting, until="train"))
    whole = {name: content for name, content in tiny.contents(run_dir).items() if name.startswith("train/checkpoints")}
    assert whole and all(wanted[name] == content for name, content in whole.items()), "waiting changes no byte"
    copy = Path(shutil.copytree(aligned, tmp_path / "count"))
    count = operations(lambda: make(lora_world, copy, setting, until="train"))
    assert count >= 2 * 3
    for number in range(count):
        crashed = Path(shutil.copytree(aligned, tmp_path / str(number)))
        with pytest.raises(Crash), crash_in_checkpoint(number):
            make(lora_world, crashed, setting, until="train")
        for step in (crashed / "train" / "checkpoints").glob("[0-9]"):
            assert {path.name for path in step.iterdir()} >= {"adapter_config.json", ADAPTER_FILE, "base.json"}
        make(lora_world, crashed, setting, until="train")
        assert tiny.contents(crashed) == wanted, number
        shutil.rmtree(crashed)


def test_the_dry_run_knows_the_size_of_a_checkpoint(run_dir: Path, lora_world: Path) -> None:
    text = dry_run.describe_run(tiny.recipe(lora_world, "student={model: base}", *CHANGES))
    size = (run_dir / "train" / "checkpoints" / "2" / ADAPTER_FILE).stat().st_size / 2**20
    assert f"2 adapters of {size:.1f} MiB" in text


@pytest.mark.parametrize("name", ["2", "4", "4-0.5"])
def test_a_checkpoint_is_merged_on_request(run_dir: Path, merged_run: Path, tmp_path: Path, name: str) -> None:
    """As a model that transformers opens, with the weights of the checkpoint in the dtype of the base or as wanted."""
    recipe = open_run(merged_run).recipe
    wanted = checkpoint.open_checkpoint(merged_run, recipe, Checkpoint.parse(name), rounded=False).weights()
    for weights, dtype in ((None, torch.bfloat16), ("float32", torch.float32)):
        lines = export_folder(run_dir, "merged", tmp_path / "model", weights, 1, 1, name)
        assert f"weights: {len(wanted)} of {len(wanted)} " in lines[0]
        model: Any = AutoModelForCausalLM.from_pretrained(tmp_path / "model", dtype="auto")
        assert all(torch.equal(value, wanted[key].to(dtype)) for key, value in model.state_dict().items())
    if name == "4":
        expected = merged_run / "train" / "checkpoints" / "4" / "model.safetensors"
        assert (tmp_path / "model" / "model.safetensors").read_bytes() == expected.read_bytes()
    lines = export_folder(run_dir, "adapter", tmp_path / "adapter", None, 1, 1, name)
    assert f"weights: {len(wanted)} of {len(wanted)} " in lines[0]
    assert {path.name for path in (tmp_path / "adapter").iterdir()} == {
        "adapter_config.json",
        ADAPTER_FILE,
        "export.json",
    }


def test_an_export_of_an_unfinished_training(lora_world: Path, run_dir: Path, tmp_path: Path) -> None:
    part = Path(shutil.copytree(run_dir, tmp_path / "part"))
    for name in ("evaluate", "select", "repair", "test", "report", "student"):
        storage.remove(part / name)
    (part / "train" / "manifest.json").unlink()
    export_folder(part, "merged", tmp_path / "model", None, 1, 1, "2")
    with user_error("E-run-stage-not-finished"):
        export_folder(part, "merged", tmp_path / "selected", None, 1, 1)
    with user_error("E-evaluate-no-checkpoint", hint="[2, 4]"):
        export_folder(part, "merged", tmp_path / "other", None, 1, 1, "3")
    for form, name in (("merged", "last"), ("gguf", "2")):
        with user_error("E-export-checkpoint", found=name):
            export_folder(run_dir, form, tmp_path / "other", None, 1, 1, name)
    with user_error("E-cli-export-weights"):
        export_folder(run_dir, "merged", tmp_path / "other", "int8", 1, 1, "2")
    assert not (tmp_path / "other").exists()


def test_an_earlier_run_is_exported_merged_but_has_no_adapter(merged_run: Path, tmp_path: Path) -> None:
    export_folder(merged_run, "merged", tmp_path / "model", None, 1, 1, "2")
    with user_error("E-model-no-adapter"):
        export_folder(merged_run, "adapter", tmp_path / "adapter", None, 1, 1, "2")
    assert not (tmp_path / "adapter").exists()


def test_a_recipe_that_names_a_checkpoint_learns_how_to_merge_it(run_dir: Path) -> None:
    with user_error("E-model-adapters", hint="--as merged --checkpoint 2"):
        models.open_student(run_dir / "train" / "checkpoints" / "2")
