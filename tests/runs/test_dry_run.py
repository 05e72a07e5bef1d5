"""Everything that would stop a run later is in the dry run and stops the run before its first chain."""

from __future__ import annotations

import shutil
from importlib import util
from pathlib import Path

import pytest

import stub
import tiny
from potstill import dry_run, preflight, runner, stages
from potstill.errors import UserError
from potstill.inference import engine
from potstill.storage import segments


@pytest.fixture
def without(monkeypatch: pytest.MonkeyPatch):
    """No optional library is installed."""
    found = util.find_spec
    monkeypatch.setattr(engine, "find_spec", lambda name: None if name in engine.EXTRAS else found(name))


@pytest.fixture(scope="module")
def cut(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose weights were not fetched to their end."""
    folder = Path(shutil.copytree(world / "teacher", tmp_path_factory.mktemp("cut") / "model"))
    whole = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    return folder


@pytest.fixture(scope="module")
def infinite(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with one weight that is no number."""
    import torch
    from safetensors.torch import load_file, save_file

    folder = Path(shutil.copytree(world / "teacher", tmp_path_factory.mktemp("nan") / "model"))
    weights = load_file(folder / "model.safetensors")
    name = sorted(weights)[0]
    weights[name].view(-1)[0] = torch.nan
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.fixture(scope="module")
def encoder_decoder(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from potstill import models, tokenization

    tokenizer = tokenization.load_tokenizer(world / "student-tokenizer")
    folder = tmp_path_factory.mktemp("t5") / "model"
    folder.mkdir()
    models.random_student(models.Shape("t5", 16, 1, 2, 32, 8, tokenizer.size), tokenizer, 0).save(folder)
    return folder


MISSING = (
    (("train.lora=2",), "train", "peft"),
    (("evaluate.engine=ctranslate2",), "evaluate", "ctranslate2"),
    (("evaluate.engine=vllm",), "evaluate", "vllm"),
    (("teacher.kind=vllm",), "sample", "vllm"),
    (("teacher.temperature=0",), "sample", "E-recipe-equal-samples"),
    (("teacher.model=nowhere",), "sample", "E-recipe-missing-path"),
    (("teacher.prompt=nowhere.txt",), "sample", "E-recipe-missing-path"),
    (("teacher={kind: replay, chains: nowhere.jsonl}",), "sample", "E-recipe-missing-path"),
    (("teacher={kind: human, score: {kind: local, model: nowhere}}",), "sample", "E-recipe-missing-path"),
    (("student={shape: flan-t5-base, tokenizer: nowhere}",), "align", "E-recipe-missing-path"),
    (("student={shape: flan-t5-tiny, tokenizer: student-tokenizer}",), "align", "no such shape"),
    (("student={model: nowhere}",), "align", "E-recipe-missing-path"),
    (("on_policy={scorer: nowhere, sets: [sums], steps: 1}",), "repair", "E-recipe-missing-path"),
)


@pytest.mark.parametrize(("changes", "stage", "said"), MISSING)
def test_what_is_missing_is_in_the_plan_and_stops_the_run_before_its_first_chain(
    world: Path, tmp_path: Path, without: None, changes: tuple[str, ...], stage: str, said: str
) -> None:
    recipe = tiny.recipe(world, *changes)
    text = dry_run.describe_run(recipe)
    assert f"problem           at {stage}: " in text and said in text.partition("problem  ")[2]
    with pytest.raises(UserError, match=said):
        runner.run(recipe, run_dir=tmp_path / "run")
    assert not segments.segment_paths(tmp_path / "run" / "sample")


@pytest.mark.parametrize("key", ["teacher.model", "student.model", "teacher.score.model"])
@pytest.mark.parametrize("fault", ["cut", "infinite"])
def test_weights_that_cannot_be_used_are_found_before_anything_is_paid_for(
    world: Path, tmp_path: Path, request: pytest.FixtureRequest, key: str, fault: str
) -> None:
    """Also by the plan, which ends in no traceback; and no server is asked."""
    folder = request.getfixturevalue(fault)
    with stub.running() as server:
        paid = f"teacher={{kind: openai, model: m, server: {{urls: ['{server.url}']}}}}"
        changes = {
            "teacher.model": (f"teacher.model={folder}",),
            "student.model": (paid, f"student={{model: {folder}}}"),
            "teacher.score.model": (f"teacher={{kind: human, score: {{kind: local, model: {folder}}}}}",),
        }[key]
        recipe = tiny.recipe(world, *changes)
        stage = "train" if key == "student.model" else "sample"
        assert f"problem           at {stage}: {folder}" in dry_run.describe_run(recipe)
        with pytest.raises(UserError, match=r"(safetensors|finite)"):
            runner.run(recipe, run_dir=tmp_path / "run")
        assert server.seen == []


def test_a_stage_that_is_not_asked_for_may_lack_something(
    world: Path, tmp_path: Path, without: None, capsys: pytest.CaptureFixture[str]
) -> None:
    """A user who samples here and trains elsewhere gets a warning, and the run continues."""
    run_dir = tiny.make(world, tmp_path / "run", "train.lora=2", until="sample")
    assert "later, at train: train.lora: peft is not installed" in capsys.readouterr().err
    with pytest.raises(UserError, match="peft is not installed"):
        tiny.make(world, run_dir, "train.lora=2", until="train")


def test_a_control_that_is_still_to_be_made_stops_nothing_before_the_report(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = tiny.recipe(world, "report.controls=[other-run]")
    runner.run(recipe, run_dir=tmp_path / "run", until="sample")
    assert "later, at report: report.controls: the control run other-run" in capsys.readouterr().err


def test_what_is_finished_is_not_checked_again(world: Path, tmp_path: Path) -> None:
    data = Path(shutil.copytree(world, tmp_path / "data"))
    run_dir = tiny.make(data, tmp_path / "run", until="train")
    assert preflight.find_problems(tiny.recipe(data), stages.STAGES, run_dir) == []
    more = "evaluate.engine=vllm"
    assert {problem.stage for problem in preflight.find_problems(tiny.recipe(data, more), stages.STAGES, run_dir)} <= {
        "evaluate",
        "test",
    }


def test_samples_without_chance_go_on_where_they_were_begun(world: Path, tmp_path: Path) -> None:
    """A run that an older version began: what it asks for was decided then."""
    recipe = tiny.recipe(world, "teacher.temperature=0")
    folder = tmp_path / "run" / "sample"
    folder.mkdir(parents=True)
    assert [problem.stage for problem in preflight.find_problems(recipe, ("sample",), tmp_path / "run")] == ["sample"]
    (folder / "segment-0000.jsonl").write_text("")
    assert preflight.find_problems(recipe, ("sample",), tmp_path / "run") == []
    assert preflight.find_problems(tiny.recipe(world, "teacher.temperature=0", "teacher.samples=1"), ("sample",)) == []


def test_an_encoder_decoder_is_no_model_for_vllm(
    world: Path, encoder_decoder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "find_spec", lambda name: name)  # as if all were installed
    for changes in (("teacher.kind=vllm", f"teacher.model={encoder_decoder}"),
                    (f"student={{model: {encoder_decoder}}}", "evaluate.engine=vllm")):  # fmt: skip
        found = preflight.find_problems(tiny.recipe(world, *changes), stages.STAGES)
        assert any("does not run encoder-decoder" in each.fault.what for each in found)


def test_a_key_that_is_not_set_is_in_the_plan(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_SUCH_KEY", raising=False)
    keyed = "teacher={kind: openai, model: m, server: {key: NO_SUCH_KEY}}"
    assert "NO_SUCH_KEY is not set" in dry_run.describe_run(tiny.recipe(world, keyed))
