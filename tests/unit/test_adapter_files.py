"""Adapters on disk: merged as the formula says, on their own base only, and refused if they are damaged."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given
from safetensors.torch import load_file, save_file
from torch import nn
from transformers.pytorch_utils import Conv1D

import tiny
from expect import user_error
from potstill import models
from potstill.models import AdapterBase, Shape, adapter_files
from potstill.models.adapter_files import ADAPTER_CONFIG, ADAPTER_FILE, check_base, copy_adapter, merge_adapter
from training_steps import make_student

needs_peft = pytest.mark.skipif(importlib.util.find_spec("peft") is None, reason="needs peft (the extra lora)")
BASE = AdapterBase("base", digests={"student.model": "a" * 64})


def adapted(family: str = "causal", rank: int = 4) -> models.Student:
    """A student with adapters whose products are not zero."""
    student = make_student(family)
    models.add_adapters(student.model, rank, seed=1)
    with torch.no_grad(), torch.random.fork_rng():
        torch.manual_seed(2)
        for name, value in student.model.named_parameters():
            if ".lora_B." in name:
                value.normal_(std=0.1)
    student.adapter_base = BASE
    return student


def former_merge(student: models.Student) -> dict[str, torch.Tensor]:
    """The weights that a checkpoint had when adapters were merged before they were saved."""
    state, merged = student.model.state_dict(), {}
    for name, value in state.items():
        layer, is_adapted, parameter = name.partition(".base_layer.")
        if is_adapted and parameter == "weight":
            module: Any = student.model.get_submodule(layer)
            product = state[f"{layer}.lora_B.default.weight"] @ state[f"{layer}.lora_A.default.weight"]
            value = value + ((product.T if module.fan_in_fan_out else product) * module.scaling["default"])
        if is_adapted or ".lora_" not in name:
            merged[f"{layer}.{parameter}" if is_adapted else name] = value
    return merged


@needs_peft
@pytest.mark.parametrize("family", ["t5", "causal", "causal-tied", "t5-tied"])
@pytest.mark.parametrize("rank", [1, 4, 16])
def test_merged_weights_are_to_the_bit_those_that_checkpoints_had_before(
    family: str, rank: int, tmp_path: Path
) -> None:
    student = adapted(family, rank)
    student.save_checkpoint(tmp_path)
    merge_adapter((plain := make_student(family)).model, tmp_path)
    wanted, merged = former_merge(student), plain.model.state_dict()
    assert wanted.keys() == merged.keys() and all(torch.equal(merged[name], wanted[name]) for name in wanted)


@st.composite
def layers(draw: st.DrawFn) -> tuple[nn.Module, torch.Tensor, torch.Tensor]:
    """A linear layer or a Conv1D of any shape, and the matrices of an adapter."""
    inputs, outputs, rank = (draw(st.integers(1, 8)) for _ in range(3))
    values = torch.Generator().manual_seed(draw(st.integers(0, 1000)))
    layer = draw(st.sampled_from([lambda: nn.Linear(inputs, outputs), lambda: Conv1D(outputs, inputs)]))()
    return layer, torch.randn(rank, inputs, generator=values), torch.randn(outputs, rank, generator=values)


@given(layers(), st.integers(1, 32), st.sampled_from([1.0, 0.5, 0.25]))
def test_a_merged_layer_computes_the_formula(
    tmp_path_factory: pytest.TempPathFactory, made: Any, alpha: int, share: float
) -> None:
    """W x + share * alpha / rank * B A x, for any shapes, and for layers that store the transposed weight."""
    layer, thin_in, thin_out = made
    model = nn.ModuleDict({"layer": layer})
    x = torch.randn(3, thin_in.shape[1], generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        wanted = layer(x) + share * alpha / len(thin_in) * (x @ thin_in.T) @ thin_out.T
    folder = tmp_path_factory.mktemp("adapter")
    names = [f"base_model.model.layer.lora_{part}.weight" for part in "AB"]
    save_file(dict(zip(names, (thin_in, thin_out), strict=True)), folder / ADAPTER_FILE)
    (folder / ADAPTER_CONFIG).write_text(json.dumps({"r": len(thin_in), "lora_alpha": alpha}))
    copy_adapter(folder, folder / "copy", share)
    merge_adapter(model, folder / "copy")
    with torch.no_grad():
        assert torch.allclose(layer(x), wanted, atol=1e-4, rtol=1e-4)


@needs_peft
@pytest.mark.parametrize("family", ["t5", "causal"])
def test_the_number_of_parameters_follows_from_the_shape(family: str) -> None:
    for gated, kv_heads, encoder_layers in ((True, None, None), (False, 1, 3)):
        more: Any = {"gated": gated, "encoder_layers": encoder_layers} if family == "t5" else {"kv_heads": kv_heads}
        tokenizer = make_student(family).tokenizer
        shape = Shape(family, 16, 2, 2, 24, 8, tokenizer.size, **more)  # pyright: ignore[reportArgumentType]
        student = models.random_student(shape, tokenizer, 1)
        models.add_adapters(student.model, 3, seed=1)
        counted = sum(value.numel() for value in student.parameters() if value.requires_grad)
        assert counted == models.count_adapter_parameters(shape, 3)


@pytest.mark.parametrize(
    "trained, now, same",
    [
        ({"student.model": "a"}, {"student.model": "a"}, True),
        ({"student.model": "a"}, {"student.model": "b"}, False),
        ({"student.model": "a"}, {"student.shape": "a"}, False),
        # Of a model of the hub the commit counts: its folder in the cache may have more files elsewhere.
        ({"student.model": "a", "student.model (commit)": "c"}, {"student.model": "b", "student.model (commit)": "c"}, True),
        ({"student.model": "a", "student.model (commit)": "c"}, {"student.model": "a", "student.model (commit)": "d"}, False),
        ({"student.model": "a", "student.model (commit)": "c"}, {"student.model": "a"}, False),
    ],
)  # fmt: skip
def test_an_adapter_belongs_to_one_base(trained: Any, now: Any, same: bool, tmp_path: Path) -> None:
    (tmp_path / adapter_files.BASE_FILE).write_text(json.dumps({"digests": trained}))
    if same:
        check_base(tmp_path, AdapterBase(digests=now))
    else:
        with user_error("E-model-adapter-base", where=str(tmp_path)):
            check_base(tmp_path, AdapterBase(digests=now))


@pytest.mark.parametrize("now, told", [("0.50.2", False), ("0.51.0", True), (None, False)])
def test_another_version_of_bitsandbytes_is_told(
    now: str | None, told: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    row = {"digests": {"student.model": "a"}, "rounding": "nf4", "bitsandbytes": "0.50.2"}
    (tmp_path / adapter_files.BASE_FILE).write_text(json.dumps(row))
    base = AdapterBase(digests=row["digests"], rounding="nf4", rounded_by=now)
    check_base(tmp_path, base)
    printed = "".join(capsys.readouterr())
    assert ("0.50.2" in printed and "0.51.0" in printed) == told == bool(printed)


@needs_peft
def test_another_base_is_refused_however_it_came_there(world: Path, tmp_path: Path) -> None:
    (base := tmp_path / "base").mkdir()
    make_student("causal").save(base)
    changes = (f"student={{model: {base}}}", "train.lora=4")
    student, recipe = adapted(), tiny.recipe(world, *changes)
    student.adapter_base = models.adapter_base(recipe, make_student("causal"))
    (saved := tmp_path / "saved").mkdir()
    student.save_checkpoint(saved)
    models.from_checkpoint(recipe, saved)
    weights = load_file(base / "model.safetensors")
    save_file({name: value + 1e-3 for name, value in weights.items()}, base / "model.safetensors", {"format": "pt"})
    with user_error("E-model-adapter-base", where=str(saved), found="student.model"):
        models.from_checkpoint(recipe, saved)
    base.rename(tmp_path / "elsewhere")
    with user_error("E-recipe-missing-path", where="student.model", found=str(base)):
        models.from_checkpoint(recipe, saved)


@needs_peft
def test_an_adapter_of_random_weights_needs_the_same_random_weights(world: Path, tmp_path: Path) -> None:
    recipe = tiny.recipe(world, "train.lora=4")
    student = models.from_recipe(recipe)
    student.adapter_base = models.adapter_base(recipe, student)
    models.add_adapters(student.model, 4, seed=1)
    student.save_checkpoint(tmp_path)
    models.from_checkpoint(recipe, tmp_path)
    with user_error("E-model-adapter-base", found="student.shape"):
        models.from_checkpoint(tiny.recipe(world, "train.lora=4", "seed=4"), tmp_path)


@needs_peft
@pytest.mark.parametrize(
    "fault", ["cut", "missing matrix", "other layer", "other shape", "no rank", "not finite", "no base"]
)
def test_a_damaged_adapter_is_one_message(fault: str, world: Path, tmp_path: Path) -> None:
    recipe = tiny.recipe(world, "train.lora=4")
    student = models.from_recipe(recipe)
    student.adapter_base = models.adapter_base(recipe, student)
    models.add_adapters(student.model, 4, seed=1)
    student.save_checkpoint(tmp_path)
    path, code = tmp_path / ADAPTER_FILE, "E-model-adapter-damaged"
    state = load_file(path)
    name = next(name for name in sorted(state) if ".lora_B." in name)
    if fault == "cut":
        path.write_bytes(path.read_bytes()[:-1])
    elif fault == "no rank":
        (tmp_path / ADAPTER_CONFIG).write_text("{}")
        code = "E-storage-invalid-format"
    elif fault == "no base":
        (tmp_path / adapter_files.BASE_FILE).unlink()
        code = "E-storage-os-error"
    else:
        value = state.pop(name)
        if fault == "other layer":
            state[name.replace("lora_B", "other.lora_B")] = value
        elif fault == "other shape":
            state[name] = value[:-1].clone()
        elif fault == "not finite":
            state[name], code = value + torch.inf, "E-model-weights-not-finite"
        save_file(state, path, {"format": "pt"})
    with user_error(code, where=str(tmp_path)):
        models.from_checkpoint(recipe, tmp_path)


@needs_peft
def test_an_interpolation_with_a_rounded_base_has_no_adapter(tmp_path: Path) -> None:
    student = adapted()
    student.adapter_base = AdapterBase("base", digests=BASE.digests, rounding="nf4")
    student.save_checkpoint(tmp_path)
    copy_adapter(tmp_path, tmp_path / "whole")
    assert (tmp_path / "whole" / ADAPTER_FILE).read_bytes() == (tmp_path / ADAPTER_FILE).read_bytes()
    with user_error("E-model-no-adapter"):
        copy_adapter(tmp_path, tmp_path / "half", 0.5)
