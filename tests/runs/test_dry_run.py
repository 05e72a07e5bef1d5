"""Everything that would stop a run later is in the dry run and stops the run before its first chain."""

from __future__ import annotations

import json
import shutil
from importlib import util
from pathlib import Path

import pytest
from typer.testing import CliRunner

import stub
import tiny
from potstill import cli, dry_run, models, preflight, run_cost, runner, stages
from potstill.errors import UserError
from potstill.inference import engine
from potstill.storage import ledger, segments
from potstill.training import estimates


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


def test_few_shot_formats_without_solved_questions_are_a_problem_of_the_plan(world: Path, tmp_path: Path) -> None:
    """The plan lists what would stop the run at its first stage: too few rationales, and a demonstration that is tested."""
    bare, solved = tmp_path / "bare.jsonl", tmp_path / "solved.txt"
    rows = tiny.rows("sums", 40)
    bare.write_text("".join(json.dumps({k: v for k, v in row.items() if k != "rationale"}) + "\n" for row in rows))
    solved.write_text("\n\n".join(f"Q: {row['question']}\nThe answer is 4" for row in rows))
    for changes, code in (
        ((), "E-data-no-demonstrations"),
        (("evaluate.formats=[zero-shot-rationale]",), ""),
        ((f"evaluate.demonstrations={solved}",), "E-data-leaking-demonstration"),
    ):
        answered = "teacher={kind: human, unsolved: answer}"
        recipe = tiny.recipe(world, f"sets.sums.file={bare}", answered, "train.formats={zero-shot-answer: 1}", *changes)
        plan = dry_run.plan_run(recipe, tmp_path / "none")
        assert [fault.code for fault in plan.faults] == ([code] if code else [])
        assert not code or "problem           at collect: evaluate." in plan.text
        if code:
            with pytest.raises(UserError, match=code):
                runner.run(recipe, run_dir=tmp_path / "run", until="collect")


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


def plan_of(recipe, run_dir: Path, **options: str) -> dict[str, str]:
    """The plan of a run: the first words of a line -> the rest of that line."""
    lines = dry_run.describe_run(recipe, run_dir, **options).splitlines()
    return {line[:18].strip(): line[18:] for line in reversed(lines) if line[:18].strip()}


def test_the_plan_of_a_finished_run_has_nothing_left(world: Path, tmp_path: Path, finished: Path) -> None:
    run_dir = Path(shutil.copytree(finished, tmp_path / "run"))
    before = tiny.contents(run_dir)
    plan = plan_of(tiny.recipe(world), run_dir)
    assert all(plan[stage].startswith("up to date") for stage in stages.STAGES if stage != "test")
    assert "nothing is left to sample" in plan["teacher"] and plan["time"] == "nothing is left to train or to evaluate"
    assert tiny.contents(run_dir) == before


def test_the_plan_estimates_the_time_of_a_local_teacher_only(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counted: list[float] = []

    def count(shape: models.Shape, *, reads: float, writes: float, rates: tuple[float, float]) -> float:
        counted.append(writes)
        return 90.0

    monkeypatch.setattr(estimates, "answering_seconds", count)
    plan = plan_of(tiny.recipe(world), tmp_path / "new")
    assert plan["time"] == "about 1.5 min on this machine, if all chains take all their tokens"
    assert counted[0] == 12 * 24  # chains, tokens of a chain
    plan = plan_of(tiny.recipe(world, tiny.SERVER, "teacher.server.urls=['http://127.0.0.1:9']"), tmp_path / "new")
    assert plan["time"] == "estimated after the first minute of sampling"
    plan = plan_of(tiny.recipe(world, "teacher.model=missing"), tmp_path / "new")
    assert "12 chains" in plan["requests"] and plan["time"].startswith("no estimate")


def test_the_plan_of_a_run_that_grows_counts_what_is_missing(world: Path, tmp_path: Path, finished: Path) -> None:
    run_dir = Path(shutil.copytree(finished, tmp_path / "run"))
    recipe = tiny.recipe(world, "train.steps=6")
    actions = {plan.stage: plan.action for plan in runner.plan_stages(recipe, run_dir)}
    assert actions == {
        **dict.fromkeys(("collect", "sample", "filter", "align"), "keep"), "train": "extend", "evaluate": "extend",
        **dict.fromkeys(("select", "test", "report"), "make"),
    }  # fmt: skip
    text = dry_run.describe_run(recipe, run_dir)
    assert "(2 steps are left)" in text and "1 x 11 x 2 = 22 (3 more checkpoints are evaluated already)" in text
    runner.run(recipe, run_dir)  # it does what the plan says
    assert {plan.action for plan in runner.plan_stages(recipe, run_dir)} == {"keep"}


def test_the_plan_says_where_the_run_would_stop_and_what_a_redo_removes(
    world: Path, tmp_path: Path, finished: Path
) -> None:
    run_dir = Path(shutil.copytree(finished, tmp_path / "run"))
    recipe = tiny.recipe(world, "train.learning_rate=2")
    plans = {plan.stage: plan for plan in runner.plan_stages(recipe, run_dir)}
    fault = plans["train"].fault
    assert fault is not None and fault.code == "E-run-stage-differs" and plans["evaluate"].action == "blocked"
    text = dry_run.describe_run(recipe, run_dir)
    assert "E-run-stage-differs" in text and "3 x 11 x 2 = 66\n" in text
    plan = plan_of(recipe, run_dir, redo="train")
    assert "removed by --redo" in plan["train"] and plan["align"].startswith("up to date")
    with pytest.raises(UserError) as caught:
        dry_run.describe_run(recipe, run_dir, redo="repair")
    assert caught.value.code == "E-run-unknown-stage"


def test_the_plan_of_a_run_that_was_copied_without_its_sets(tmp_path: Path, finished: Path) -> None:
    (tmp_path / "data").mkdir()
    text = dry_run.describe_run(tiny.recipe(tmp_path / "data"), finished)
    assert "12 chains" in text and "no estimate: sets.sums.file" in text


def test_the_plan_counts_the_chains_and_the_money_from_here(world: Path, tmp_path: Path) -> None:
    run_dir, one = tmp_path / "run", "teacher.server.samples_per_request=1"
    with stub.running() as server:
        urls = [tiny.SERVER, f"teacher.server.urls=['{server.url}']", "teacher.max_tokens=64", one]
        new = plan_of(tiny.recipe(world, *urls), tmp_path / "none")
        assert (
            new["cost"] == "unknown: no prices were given (teacher.budget.prices)" and " = 12 chains" in new["requests"]
        )
        prices = "teacher.budget={prices: {prompt: 1e6, completion: 1e6}, money: 600}"
        with pytest.raises(UserError, match="E-teacher-budget-spent"):
            runner.run(tiny.recipe(world, *urls, prices), run_dir, until="sample")
    stored = sum(segments.count_by_question(segments.segment_paths(run_dir / "sample")).values())
    assert 0 < stored < 12
    plan = plan_of(tiny.recipe(world, *urls, prices), run_dir)
    assert plan["sample"] == f"continues: {stored} of at most 12 chains ({stored / 12:.0%})"
    assert plan["requests"].startswith(
        f"{12 - stored} of 4 questions x 3 = 12 chains are missing: in {12 - stored} requests"
    )
    usage = ledger.total_usage(run_dir)
    assert (
        "requests, " in plan["spent"] and f"{usage['money'] * (12 - stored) / stored:.4f} in money" in plan["from here"]
    )


def test_an_error_of_potstill_is_a_line_of_the_plan(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise KeyError("no such size")

    monkeypatch.setattr(run_cost, "find_shape", broken)
    text = dry_run.describe_run(tiny.recipe(world), tmp_path / "none")
    assert "cost              no estimate: an error in potstill, please report it: KeyError: 'no such size'" in text
    assert "problems          none found" in text and "evaluation      3 x 11 x 2 = 66" in text


def test_a_plan_with_problems_exits_with_2_and_a_warning_does_not(
    world: Path, tmp_path: Path, finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A missing model, a stage that would be refused; not a control run that is still to be made, unless nothing else is."""
    monkeypatch.chdir(tmp_path)
    run_dir = Path(shutil.copytree(finished, tmp_path / "runs" / "tiny"))
    Path("recipe.yaml").write_text(tiny.RECIPE, "utf-8")

    def plan(*changes: str, name: str = "new") -> tuple[int, str, str]:
        options = [word for change in (f"data={world}", f"name={name}", *changes) for word in ("--set", change)]
        result = CliRunner().invoke(cli.app, ["run", "recipe.yaml", "--dry-run", *options])
        fault = result.exception
        if isinstance(fault, UserError):
            assert fault.code == "E-plan-problems"
            return 2, fault.found, result.stdout
        return result.exit_code, "", result.stdout

    assert plan()[:2] == (0, "")
    assert plan("teacher.model=nowhere", "student.tokenizer=none")[:2] == (2, "2 x E-recipe-missing-path")
    assert plan("train.learning_rate=2", name="tiny")[:2] == (2, "E-run-stage-differs")
    code, found, text = plan("report.controls=[other-run]")
    assert (code, found) == (0, "") and "later             at report: " in text
    assert plan(name="tiny")[:2] == (0, "")
    shutil.rmtree(run_dir / "report")
    code, found, text = plan("report.controls=[other-run]", name="tiny")
    assert code == 2 and "problem           at report: " in text


def test_an_error_of_potstill_in_a_check_exits_with_1(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(preflight, "find_problems", fail)
    (tmp_path / "recipe.yaml").write_text(tiny.RECIPE, "utf-8")
    command = ["run", str(tmp_path / "recipe.yaml"), "--dry-run", "--set", f"data={world}"]
    result = CliRunner().invoke(cli.app, command)
    assert result.exit_code == 1 and "ZeroDivisionError" in result.stdout
