"""A student is shipped in the dtype of its base, and what was measured is what is shipped."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import tiny
from chat_model import save_chat_model
from expect import user_error
from potstill import models
from potstill.evaluation import checkpoint
from potstill.models import Student
from potstill.records import BASE, Checkpoint
from potstill.stages import open_stage
from potstill.storage import manifest

SHORT = ["bfloat16", "float16"]


def stored(folder: Path, dtype: str) -> Path:
    """A tiny base whose weights are stored in a dtype."""
    save_chat_model(folder, template=None)
    student = models.open_student(folder)
    student.save(folder, dtype=dtype)  # pyright: ignore[reportArgumentType]
    return folder


def changes(folder: Path) -> tuple[str, ...]:
    return (f"student={{model: {folder}}}", "train.steps=2", "train.checkpoint_every=2", "evaluate.max_tokens=8")


def dtypes(folder: Path) -> set[torch.dtype]:
    return {value.dtype for value in load_file(folder / "model.safetensors").values()}


@pytest.mark.parametrize("dtype", SHORT)
def test_what_is_measured_is_what_is_shipped(
    dtype: str, world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, target = stored(tmp_path / "base", dtype), getattr(torch, dtype)
    assert dtypes(folder) == {target} and models.open_student(folder).model.dtype == torch.float32
    measured: list[dict[str, torch.Tensor]] = []
    open_engine = checkpoint.inference.open_engine

    def spy(student: Student, *args: object, **options: object) -> object:
        measured.append({name: value.clone() for name, value in student.weights().items()})
        return open_engine(student, *args, **options)  # pyright: ignore

    tiny.make(world, tmp_path / "run", *changes(folder), until="align")  # the teacher is opened here
    monkeypatch.setattr(checkpoint.inference, "open_engine", spy)
    run_dir = tiny.make(world, tmp_path / "run", *changes(folder))
    shipped, kept = load_file(run_dir / "student" / "model.safetensors"), run_dir / "train" / "checkpoints" / "2"
    assert {value.dtype for value in shipped.values()} == {target}
    assert json.loads((run_dir / "student" / "config.json").read_text())["dtype"] == dtype
    assert dtypes(kept) == {torch.float32}, "training resumes from weights that are not rounded"
    *_, tested = measured
    for name, value in shipped.items():
        assert torch.equal(value.float(), tested[name]), name
    unrounded = load_file(kept / "model.safetensors")
    assert any(not torch.equal(unrounded[name], value.float()) for name, value in shipped.items())
    # Opened again, it is the same to the bit, and the card says it.
    again = models.open_student(run_dir / "student").weights()
    assert all(torch.equal(again[name], tested[name]) for name in shipped)
    assert f"weights are stored in {dtype}" in (run_dir / "student" / "README.md").read_text()
    # The identities of trained checkpoints have it, that of the base does not: it is what it was.
    key = checkpoint.ROUNDING_KEY
    for step, value in ((Checkpoint(2).name, dtype), (BASE.name, None)):
        done = manifest.read_finished(run_dir / "test" / step)
        assert done is not None and done.identity.inputs.get(key) == value


def test_a_base_in_float32_or_of_several_dtypes_gives_float32(world: Path, tmp_path: Path) -> None:
    plain, mixed = stored(tmp_path / "plain", "float32"), stored(tmp_path / "mixed", "bfloat16")
    weights = load_file(mixed / "model.safetensors")
    first = sorted(weights)[0]
    save_file({**weights, first: weights[first].float()}, mixed / "model.safetensors", {"format": "pt"})
    for folder in (plain, mixed):
        recipe = tiny.recipe(world, *changes(folder))
        assert models.base_dtype(recipe) == "float32" and checkpoint.rounding_identity(recipe) == {}
    run_dir = tiny.make(world, tmp_path / "run", *changes(plain))
    assert dtypes(run_dir / "student") == {torch.float32}
    kept = load_file(run_dir / "train" / "checkpoints" / "2" / "model.safetensors")
    shipped = load_file(run_dir / "student" / "model.safetensors")
    assert all(torch.equal(kept[name], shipped[name]) for name in shipped)
    assert "weights are stored" not in (run_dir / "student" / "README.md").read_text()
    assert models.base_dtype(tiny.recipe(world)) == "float32", "random weights"


def test_the_dtype_of_the_student_is_that_of_the_test(world: Path, tmp_path: Path) -> None:
    """The test of an earlier version measured float32, and its manifest names no rounding."""
    folder = stored(tmp_path / "base", "bfloat16")
    run_dir = tiny.make(world, tmp_path / "run", *changes(folder), until="test")
    path = run_dir / "test" / "2" / manifest.MANIFEST_FILE
    row = json.loads(path.read_text())
    del row["inputs"][checkpoint.ROUNDING_KEY]
    path.write_text(json.dumps(row))
    assert checkpoint.read_measured_dtype(run_dir, Checkpoint(2)) == "float32"


def test_early_stopping_depends_on_the_rounding(world: Path, tmp_path: Path) -> None:
    folder = stored(tmp_path / "base", "bfloat16")
    plain = tiny.recipe(world, *changes(folder))
    stopping = tiny.recipe(world, *changes(folder), "train.early_stopping_patience=1")
    assert checkpoint.ROUNDING_KEY not in open_stage("train").inputs(plain)
    assert open_stage("train").inputs(stopping)[checkpoint.ROUNDING_KEY] == "bfloat16"


def test_a_weight_that_overflows_is_refused(tmp_path: Path) -> None:
    student = models.open_student(stored(tmp_path / "base", "float16"))
    with torch.no_grad():
        student.model.get_input_embeddings().weight[0, 0] = 1e6
    with user_error("E-model-dtype-overflow", found="embed_tokens"):
        models.round_weights(student, "float16")
