"""Incomplete runs: interrupted redos, interrupted growth, shrinking, moved files, leaks.

Each ends in the right result or in one message that says how to reach it; finished stages stay.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

import tiny
from potstill import calculator, models, runner
from potstill.data import run_questions, splits
from potstill.errors import UserError
from potstill.models import Shape
from potstill.report import collect
from potstill.stages import open_stage
from potstill.storage import atomic, manifest, parquet
from potstill.training import examples
from tools.toy_models.tokenizer_training import train_unigram


class Crash(BaseException):
    """What stops a run where a machine would."""


@pytest.fixture
def run_dir(finished: Path, tmp_path: Path) -> Path:
    """A copy of a finished run."""
    return Path(shutil.copytree(finished, tmp_path / "run"))


@pytest.fixture(autouse=True)
def _no_crash_is_left() -> Iterator[None]:
    yield
    atomic.crash = atomic._no_crash


def crash_at(operation: str, moment: str, end: str) -> None:
    def stop(now: str, then: str, path: Path) -> None:
        if (now, then) == (operation, moment) and path.as_posix().endswith(end):
            raise Crash

    atomic.crash = stop


def moments(world: Path, run_dir: Path, *changes: str, redo: str | None = None) -> list[tuple[str, str, str]]:
    """Every moment of removing and of beginning again, when a run is changed."""
    seen = []

    def note(operation: str, moment: str, path: Path) -> None:
        if operation == "remove" or path.name in (manifest.BEGUN_FILE, manifest.MANIFEST_FILE):
            seen.append((operation, moment, path.relative_to(run_dir).as_posix()))

    atomic.crash = note
    runner.run(tiny.recipe(world, *changes), run_dir=run_dir, redo=redo)
    atomic.crash = atomic._no_crash
    return seen


def test_growth_that_stops_anywhere_comes_to_the_same_bytes(world: Path, finished: Path, tmp_path: Path) -> None:
    grown = Path(shutil.copytree(finished, tmp_path / "grown"))
    points = [p for p in moments(world, grown, "train.steps=6") if p[1] != "middle"]
    wanted = tiny.contents(grown)
    for number, point in enumerate(points[:: max(1, len(points) // 5)]):
        run_dir = Path(shutil.copytree(finished, tmp_path / str(number)))
        crash_at(*point)
        with pytest.raises(Crash):
            tiny.make(world, run_dir, "train.steps=6")
        atomic.crash = atomic._no_crash
        assert tiny.contents(tiny.make(world, run_dir, "train.steps=6")) == wanted, point
        shutil.rmtree(run_dir)


def test_growth_that_stopped_does_not_go_on_with_another_recipe(world: Path, run_dir: Path) -> None:
    crash_at("remove", "after", "train/manifest.json")
    with pytest.raises(Crash):
        tiny.make(world, run_dir, "train.steps=6")
    atomic.crash = atomic._no_crash
    with pytest.raises(UserError, match=r"train\.learning_rate: 0\.01 -> 0\.5"):
        tiny.make(world, run_dir, "train.steps=6", "train.learning_rate=0.5")


def test_a_training_is_not_shortened(world: Path, run_dir: Path) -> None:
    before = (run_dir / "recipe.yaml").read_bytes(), tiny.contents(run_dir)
    with pytest.raises(UserError, match="E-run-shrinks"):
        tiny.make(world, run_dir, "train.steps=2")
    assert ((run_dir / "recipe.yaml").read_bytes(), tiny.contents(run_dir)) == before
    crash_at("write", "before", "train/manifest.json")
    with pytest.raises(Crash):
        tiny.make(world, run_dir, "train.steps=6")
    atomic.crash = atomic._no_crash
    with pytest.raises(UserError, match="E-run-shrinks"):
        tiny.make(world, run_dir, "train.steps=4")


def test_a_redo_that_stops_half_way_is_done_by_the_next(world: Path, finished: Path, run_dir: Path) -> None:
    crash_at("remove", "middle", "/train")
    with pytest.raises(Crash):
        runner.run(tiny.recipe(world), run_dir=run_dir, redo="filter")
    atomic.crash = atomic._no_crash
    assert (run_dir / "align").exists() and (run_dir / f".train{atomic.PARTIAL_SUFFIX}").exists()
    runner.run(tiny.recipe(world), run_dir=run_dir, redo="filter")
    assert tiny.contents(run_dir) == tiny.contents(finished)


def test_what_a_redo_would_stumble_over_is_said_before_anything_is_removed(world: Path, run_dir: Path) -> None:
    before = tiny.contents(run_dir)
    for changes, redo, message in (
        (["questions.validation=0.2"], "train", "E-run-stage-differs"),
        (["teacher.model=absent"], "sample", r"teacher\.model: (.|\n)*E-recipe-missing-path"),
        (["student.tokenizer=absent"], "filter", r"student\.tokenizer: (.|\n)*E-recipe-missing-path"),
    ):
        with pytest.raises(UserError, match=message):
            runner.run(tiny.recipe(world, *changes), run_dir=run_dir, redo=redo)
        assert tiny.contents(run_dir) == before


def test_a_stage_on_another_disk_behind_a_link_can_be_redone(
    world: Path, finished: Path, run_dir: Path, tmp_path: Path
) -> None:
    shutil.move(run_dir / "train", tmp_path / "elsewhere")
    (run_dir / "train").symlink_to(tmp_path / "elsewhere")
    runner.run(tiny.recipe(world), run_dir=run_dir, redo="train")
    assert tiny.contents(run_dir) == tiny.contents(finished)
    assert (tmp_path / "elsewhere" / manifest.MANIFEST_FILE).exists()


def test_lost_engine_state_costs_time_only(world: Path, finished: Path, run_dir: Path) -> None:
    for stage in ("report", "test", "select", "evaluate"):
        shutil.rmtree(run_dir / stage)
    (run_dir / "train" / manifest.MANIFEST_FILE).unlink()
    (run_dir / "train" / "checkpoints" / "4" / "engine.safetensors").unlink()
    assert tiny.contents(tiny.make(world, run_dir)) == tiny.contents(finished)


def test_a_part_of_evaluate_names_the_stage_to_redo(world: Path, run_dir: Path) -> None:
    for stage in ("report", "test", "select"):
        shutil.rmtree(run_dir / stage)
    (run_dir / "evaluate" / manifest.MANIFEST_FILE).unlink()
    (run_dir / "evaluate" / manifest.BEGUN_FILE).unlink()
    with pytest.raises(UserError, match=r"evaluate\.max_tokens: 6 -> 7(.|\n)*--redo evaluate"):
        tiny.make(world, run_dir, "evaluate.max_tokens=7", until="evaluate")


def test_answers_that_another_calculator_gave_are_noticed_before_a_training_goes_on(
    world: Path, run_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = "evaluate.decodings=[greedy+calculator]"
    runner.run(tiny.recipe(world, asked), run_dir=run_dir, redo="evaluate", until="evaluate")
    before = tiny.contents(run_dir)
    monkeypatch.setattr(calculator, "MARKS_VERSION", calculator.MARKS_VERSION + 1)
    for more in (), ("train.steps=6",):
        with pytest.raises(UserError, match=r"content of calculator marks\n.*--redo evaluate "):
            tiny.make(world, run_dir, asked, *more)
    assert tiny.contents(run_dir) == before


def test_every_stage_that_holds_answers_of_a_calculator_names_it(world: Path) -> None:
    final, both = "evaluate.test_decodings=[vote-2+calculator]", "evaluate.decodings=[greedy+calculator]"
    more = ("on_policy={sets: [more]}", "train.early_stopping_patience=1", "train.evaluate=true")
    for change, named in (("seed=3", set()), (final, {"test"}), (both, {"evaluate", "repair", "test", "train"})):
        recipe = tiny.recipe(world, change, *more)
        stages = {
            name
            for name in ("evaluate", "repair", "test", "train")
            if "calculator marks" in open_stage(name).inputs(recipe)
        }
        assert stages == named


def test_formats_may_change_without_sampling_again(world: Path, run_dir: Path) -> None:
    for change, stage in (("train.formats={zero-shot-rationale: 1}", "train"), ("evaluate.max_tokens=7", "evaluate")):
        with pytest.raises(UserError, match=f"--redo {stage} "):
            tiny.make(world, run_dir, change)
    with pytest.raises(UserError, match="--redo evaluate "):
        tiny.make(world, run_dir, "evaluate.formats=[zero-shot-rationale]")


def test_a_demonstration_is_no_measured_question_and_its_file_is_watched(world: Path, tmp_path: Path) -> None:
    plain = tiny.make(world, tmp_path / "plain", until="collect")
    measured = run_questions.read_questions(plain, ["other"], "validation")[0]
    path = tmp_path / "shown.txt"
    shot = "Q: {}\nLet's think step by step\nIt is so.\nThe answer is {}\n"
    path.write_text(shot.format(measured.text.upper(), measured.gold))
    change = f"evaluate.demonstrations={path}"
    with pytest.raises(UserError, match=rf"demonstration 1 is a validation question\n  found: {measured.id}: "):
        tiny.make(world, tmp_path / "run", change, until="collect")
    path.write_text(shot.format("What is 90 and 8?", 98))
    run_dir = tiny.make(world, tmp_path / "run", change, until="collect")
    path.write_text(shot.format("What is 90 and 9?", 99))
    with pytest.raises(UserError, match=r"content of evaluate\.demonstrations"):
        tiny.make(world, run_dir, change, until="collect")


def test_few_shot_answers_without_anything_to_show_are_refused_at_once(world: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="the format few-shot-answer has no demonstrations"):
        tiny.make(world, tmp_path / "run", "train.demonstrations=100", until="collect")


def test_a_question_is_not_shown_to_its_twin(tmp_path: Path) -> None:
    """Two ids, one question: neither is a demonstration for the other."""
    world = tiny.world(tmp_path)
    rows = tiny.rows("sums", 12)
    twins = [{**row, "id": row["id"] + letter, "split": "train"} for row in rows[:4] for letter in "ab"]
    held = [{**row, "split": split} for row, split in zip(rows[6:], ["validation", "test"] * 3, strict=True)]
    (world / "sets" / "sums.jsonl").write_text("".join(json.dumps(row) + "\n" for row in twins + held))
    recipe = tiny.recipe(world, "teacher={kind: human}", "train.formats={few-shot-rationale: 1}")
    run_dir = runner.run(recipe, run_dir=tmp_path / "run", until="align")
    student = models.from_recipe(recipe)
    asked = 0
    for step in range(1, 12):
        for example in examples.read_training_data(run_dir, recipe, student).examples(step):
            shown = [part.split(" Let's")[0] for part in student.tokenizer.decode(example.prompt).split("Q: ")[1:]]
            forms = [splits.canonical_question(text) for text in shown]
            assert len(set(forms)) == len(forms) == 3
            asked += 1
    assert asked == 55


def test_a_tokenizer_that_is_not_the_models_is_refused(world: Path, tmp_path: Path) -> None:
    other = train_unigram(["one two three four", "The answer is 5"] * 3, 60)
    (tmp_path / "model").mkdir()
    models.random_student(Shape("t5", 16, 1, 2, 32, 8, 150), other, 0).save(tmp_path / "model")
    change = f"student={{model: {tmp_path / 'model'}, tokenizer: student-tokenizer}}"
    with pytest.raises(UserError, match="E-model-other-tokenizer"):
        tiny.make(world, tmp_path / "run", change, until="train")


def test_only_right_chains_count_as_dropped() -> None:
    verdicts = Counter({("right", None): 1, ("right", "duplicate"): 1, ("wrong", "duplicate"): 1})
    source = collect.summarize_source("t", "none", {"q": verdicts})
    assert (source.dropped, source.kept, source.grades) == ({"duplicate": 1}, 1, {"right": 2, "wrong": 1})


def test_a_broken_segment_names_its_line(world: Path, tmp_path: Path) -> None:
    run_dir = tiny.make(world, tmp_path / "run", until="collect")
    crash_at("append", "after", "segment-0000.jsonl")
    with pytest.raises(Crash):
        tiny.make(world, run_dir, until="sample")
    atomic.crash = atomic._no_crash
    segment = run_dir / "sample" / "segment-0000.jsonl"
    segment.write_text('{"question": "sums/1"}\n' + segment.read_text())
    with pytest.raises(
        UserError, match=r"segment-0000\.jsonl line 1: .*\n  found: no field 'source'(.|\n)*E-storage-invalid-chain"
    ):
        tiny.make(world, run_dir, until="sample")
    segment.write_text(segment.read_text().split("\n", 1)[1])
    assert (
        sum(1 for _ in parquet.read_chains(tiny.make(world, run_dir, until="sample") / "sample" / "chains.parquet"))
        == 12
    )


def test_a_disk_that_is_full_while_weights_are_written_is_one_message(world: Path, tmp_path: Path) -> None:
    program = f"""
import resource, signal
from pathlib import Path
from potstill import models, storage, tokenization
from potstill.errors import UserError
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
tokenizer = tokenization.load_tokenizer(Path({str(world / "student-tokenizer")!r}))
student = models.random_student(models.Shape("t5", 64, 1, 2, 128, 32, tokenizer.size), tokenizer, 0)
resource.setrlimit(resource.RLIMIT_FSIZE, (30000, 30000))
try:
    with storage.write_folder(Path({str(tmp_path / "checkpoint")!r})) as inside:
        student.save(inside)
except UserError as fault:
    print(fault.hint)
"""
    completed = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert completed.stdout.startswith("raise the limit on file sizes"), completed.stderr
    assert list(tmp_path.iterdir()) == []
