"""Limits per set, precision, budgets and the stop for repeats: what they change, and that the page says so."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import tiny
from potstill import progress, runner, storage, tokenization
from potstill.errors import UserError
from potstill.evaluation import checkpoint
from potstill.export import lm_eval
from potstill.export.source import open_exported_run
from potstill.recipe import parse_recipe
from potstill.records import BASE, Checkpoint, Question

SETTINGS = (
    "questions.limit={test: {sums: 2, more: 1}, validation: 2}",
    "evaluate.formats=[zero-shot-rationale]",
    "evaluate.dtype=bfloat16",
    "evaluate.max_tokens=60",
    "evaluate.base_max_tokens=40",
    "evaluate.stop_repeats=true",
)


@pytest.fixture(scope="module")
def run_dir(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.make(world, tmp_path_factory.mktemp("settings") / "run", *SETTINGS)


def questions(run_dir: Path, name: str) -> list[Question]:
    return list(storage.iter_records(Question, run_dir / "collect" / f"{name}.jsonl"))


def keys(run_dir: Path, stage: str) -> dict[str, object]:
    return json.loads((run_dir / stage / "manifest.json").read_text())["recipe"]


def test_a_limit_of_one_set_leaves_the_others_whole(run_dir: Path, world: Path, tmp_path: Path) -> None:
    plain = tiny.make(world, tmp_path / "plain", until="collect")
    for name, limit in (("sums", 2), ("more", 1), ("other", None)):
        whole, kept = questions(plain, f"{name}.test"), questions(run_dir, f"{name}.test")
        assert len(whole) > 2 and len(kept) == (limit or len(whole)) and set(kept) <= set(whole)
        assert len(questions(run_dir, f"{name}.validation")) == 2
    counts = json.loads((run_dir / "collect" / "manifest.json").read_text())["counts"]["without questions.limit"]
    assert counts["sums.test"] == len(questions(plain, "sums.test")) and "other.test" not in counts


def test_the_limit_of_a_set_is_that_of_one_number(world: Path, tmp_path: Path) -> None:
    one = tiny.make(world, tmp_path / "one", "questions.limit.test=2", until="collect")
    each = tiny.make(world, tmp_path / "each", "questions.limit.test={sums: 2, other: 2, more: 2}", until="collect")
    assert tiny.contents(one).keys() == tiny.contents(each).keys()
    for name in tiny.SETS:
        assert questions(one, f"{name}.test") == questions(each, f"{name}.test")


def test_a_limit_of_a_set_that_is_not_used_is_refused() -> None:
    for split, name in (("test", "bhb"), ("train", "bbh"), ("validation", "gsm-8k")):
        with pytest.raises(UserError, match="E-recipe-limit-set"):
            parse_recipe(f"name: m\nquestions: {{limit: {{{split}: {{{name}: 3}}}}}}\n", "m.yaml")


@pytest.mark.parametrize("engine", ["vllm", "ctranslate2"])
@pytest.mark.parametrize("setting, code", [("dtype: bfloat16", "dtype-engine"), ("stop_repeats: true", "stop-repeats")])
def test_an_engine_that_has_no_such_setting_refuses_it(engine: str, setting: str, code: str) -> None:
    with pytest.raises(UserError, match=f"E-recipe-{code}"):
        parse_recipe(f"name: m\nevaluate: {{engine: {engine}, {setting}}}\n", "m.yaml")


def test_the_base_and_the_student_have_their_own_budgets(run_dir: Path, world: Path) -> None:
    tokenizer = tokenization.load_tokenizer(world / "student-tokenizer")
    lengths = {}
    for step in (BASE, checkpoint.read_choice(run_dir).checkpoint):
        rows = list(checkpoint.read_predictions(run_dir / "test", step, "zero-shot-rationale", "greedy"))
        assert len(rows) == 2 + 1 + len(questions(run_dir, "other.test"))
        lengths[step] = max(len(tokenizer.encode(row.text).ids) for row in rows if row.stop == "length")
        scores = checkpoint.read_scores(run_dir / "test", step)
        stops = [row.stop for row in rows if row.grade == "truncated"]
        assert sum(score.repeated or 0 for score in scores) == stops.count("repeat")
        assert all(score.repeated is not None for score in scores)
    assert lengths[BASE] <= 40 < max(lengths.values()) <= 60


def test_the_page_and_the_card_say_it(run_dir: Path) -> None:
    page, card = (run_dir / "report" / "index.html").read_text(), (run_dir / "student" / "README.md").read_text()
    n = len(questions(run_dir, "sums.test"))
    for text in (page, card):
        assert f"{n} of " in text and "of sums" in text and "questions.limit" in text
        assert "at most 40 tokens" in text and "at most 60 tokens" in text
        assert "matrix products in bfloat16" in text
    assert "truncated</small>" in page


def test_the_exported_tasks_are_run_in_the_measured_dtype(run_dir: Path, tmp_path: Path) -> None:
    *figures, command = lm_eval.export_tasks(open_exported_run(run_dir), tmp_path / "tasks")
    assert "dtype=bfloat16" in command
    assert figures and all("acc must be close to" in figure for figure in figures)


def test_settings_are_part_of_the_identity_and_defaults_are_not_named(
    run_dir: Path, world: Path, tmp_path: Path
) -> None:
    names = {"evaluate.dtype", "evaluate.base_max_tokens", "evaluate.stop_repeats"}
    assert all(names <= keys(run_dir, stage).keys() for stage in ("evaluate", "test", "test/0"))
    plain = tiny.make(world, tmp_path / "plain")
    assert not any(names & keys(plain, stage).keys() for stage in ("evaluate", "test", "test/0"))
    assert "matrix products in" not in (plain / "report" / "index.html").read_text()
    with pytest.raises(UserError, match=r"evaluate\.dtype: null -> "):
        tiny.make(world, plain, "evaluate.dtype=bfloat16")
    with pytest.raises(UserError, match=r'evaluate\.dtype: "bfloat16" -> null'):
        tiny.make(world, run_dir, *SETTINGS, "evaluate.dtype=float32")


def test_cached_answers_in_bfloat16_are_kept_apart(world: Path, tmp_path: Path) -> None:
    measured = (
        "teacher={kind: none}",
        "student=teacher",
        "questions.train=[]",
        "evaluate.formats=[zero-shot-rationale]",
    )
    cached = (*measured, f"evaluate.cache={tmp_path / 'answers'}")
    for name, change in (("a", "evaluate.dtype=float32"), ("b", "evaluate.dtype=bfloat16")):
        runner.run(tiny.recipe(world, *cached, change), run_dir=tmp_path / name)
    assert len(list((tmp_path / "answers").iterdir())) == 2


def test_a_bar_prints_its_start_at_once_and_then_every_interval(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 0.0
    monkeypatch.setattr(progress.time, "monotonic", lambda: now)
    with progress.bar("step 0", 40, "answers") as tick:
        tick(0, "greedy")
        assert capsys.readouterr().err == "step 0: 40 answers to come, greedy\n"
        for now in (1.0, 5.0, 14.0):
            tick(0, f"greedy, {now:.0f} tokens")
        assert capsys.readouterr().err == ""
        now = 15.0
        tick(0, "greedy, 99 tokens")
        assert capsys.readouterr().err == "step 0: 0/40 answers, greedy, 99 tokens\n"
    with progress.bar("train", 2, "step") as tick:
        tick(1, "loss 0.5")
    assert capsys.readouterr().err == ""


def test_tokens_are_reported_while_a_batch_is_written(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "LINE_INTERVAL", 0.0)
    measured = ("teacher={kind: none}", "student=teacher", "questions.train=[]", "evaluate.batch_tokens=100000")
    runner.run(tiny.recipe(world, *measured, "evaluate.formats=[zero-shot-rationale]"), run_dir=tmp_path / "run")
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("step 0: ")]
    scores = checkpoint.read_scores(tmp_path / "run" / "test", Checkpoint(0))
    total = sum(score.n for score in scores)
    assert lines[0] == f"step 0: {total} answers to come, zero-shot-rationale greedy"
    assert len(lines) > 4 and all(f"0/{total} answers" in line for line in lines[1:-1])
    assert f"{total} tokens" in lines[1] and f"{2 * total} tokens" in lines[2]
    assert f"{total}/{total} answers" in lines[-1]
