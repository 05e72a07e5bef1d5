"""A recipe without a teacher only evaluates a model, and cached answers are not generated again."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import tiny
from potstill import grading, inference, progress, runner, stages, storage
from potstill.cli import compare, show
from potstill.errors import UserError
from potstill.evaluation import checkpoint
from potstill.export import lm_eval
from potstill.export.source import open_exported_run
from potstill.inference import Decode, Generation, Request, cache
from potstill.inference.transformers import TransformersEngine
from potstill.recipe import parse_recipe
from potstill.records import BASE, Question, Verdict

MEASURED = (
    "teacher={kind: none}",
    "student=teacher",
    "questions.train=[]",
    "evaluate.formats=[zero-shot-rationale]",
)


def silent(*_: object, **__: object) -> list[Generation]:
    raise AssertionError("a text is written again")


def test_a_model_is_measured_without_teacher_or_training(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    changes = (*MEASURED, f"evaluate.cache={tmp_path / 'answers'}")
    recipe = tiny.recipe(world, *changes)
    first = runner.run(recipe, run_dir=tmp_path / "first")
    assert sorted(path.name for path in first.iterdir() if path.is_dir()) == ["collect", "report", "test"]
    scores = checkpoint.read_scores(first / "test", BASE)
    assert {score.set for score in scores} == set(tiny.SETS) and all(score.n > 0 for score in scores)
    page = (first / "report" / "index.html").read_text("utf-8")
    assert "The model was evaluated, and not trained." in page and "<h2>Accuracy</h2>" in page
    assert (
        page.count('class="card ') == 3
        and "points</small>" not in page
        and "Omitted: the run has no chains" not in page
    )
    keys = re.findall(r"--prediction (\S+)</bdi>", page)
    assert keys and not (first / "student").exists()
    capsys.readouterr()
    show.print_wrong_answers(first, as_json=True)
    shown, by_question = json.loads(capsys.readouterr().out), {}
    for answer in checkpoint.read_predictions(first / "test", BASE, "zero-shot-rationale", "greedy"):
        by_question[answer.question] = answer.grade
    assert shown["questions"] == len(by_question)
    assert {row["answer"]["question"] for row in shown["wrong"]} == {
        question for question, grade in by_question.items() if grade != "right"
    }
    show.print_wrong_answers(first)
    listed = capsys.readouterr().out
    assert all(row["answer"]["question"] in listed for row in shown["wrong"]) and "were not answered right" in listed
    show.print_predictions(first, keys[0])  # the command that the page names
    assert all(word not in page for word in (">base<", ">won<", "trained student")), "one model, and no training"
    with pytest.raises(UserError, match=r"train: (.|\n)*E-run-unknown-stage"):
        runner.run(recipe, run_dir=tmp_path / "first", redo="train")

    lm_eval.export_tasks(open_exported_run(first), tmp_path / "tasks")
    rows = [row for _, row in storage.read_jsonl(tmp_path / "tasks" / "potstill_other_zero_shot_rationale.jsonl")]
    questions = list(storage.iter_records(Question, first / "collect" / "other.test.jsonl"))
    assert [(row["id"], row["potstill_gold"], row["potstill_task"]) for row in rows] == [
        (question.id, question.gold, question.task) for question in questions
    ]
    assert rows[0]["prompt"] == f"Q: {questions[0].text}\nLet's think step by step\n"  # a causal model: with its lead
    described = (tmp_path / "tasks" / "potstill_other_zero_shot_rationale.yaml").read_text()
    assert "task: potstill_other_zero_shot_rationale\n" in described and "max_gen_toks: 6\n" in described
    monkeypatch.setattr(TransformersEngine, "generate", silent)
    again = runner.run(recipe, run_dir=tmp_path / "again")
    assert tiny.contents(again) == tiny.contents(first)
    capsys.readouterr()
    compare.compare_runs(str(first), str(again))
    assert "first: first; second: again" in capsys.readouterr().out, "a model has no steps"
    # another version of the grader: the run says so, and with consent it rescores what is there
    monkeypatch.setattr(grading, "VERSION", 99)
    with pytest.raises(UserError, match=r"version of answers: \d -> 99"):
        runner.run(recipe, run_dir=first)
    monkeypatch.setattr("potstill.evaluation.grade", lambda *_, **__: Verdict("right", "graded anew"))
    rescored = runner.run(recipe, run_dir=first, redo="test")
    rows = list(checkpoint.read_predictions(rescored / "test", BASE, "zero-shot-rationale", "greedy"))
    before = list(checkpoint.read_predictions(again / "test", BASE, "zero-shot-rationale", "greedy"))
    assert [row.text for row in rows] == [row.text for row in before]
    assert {row.answer for row in rows} == {"graded anew"} and all(
        s.accuracy == 1 for s in checkpoint.read_scores(rescored / "test", BASE)
    )


def test_without_memory_the_answers_are_the_same(world: Path, tmp_path: Path) -> None:
    plain = runner.run(tiny.recipe(world, *MEASURED), run_dir=tmp_path / "plain")
    kept = runner.run(tiny.recipe(world, *MEASURED, f"evaluate.cache={tmp_path / 'a'}"), run_dir=tmp_path / "kept")
    pages = ("report/index.html", "report/manifest.json")  # the page shows the recipe, which names the cache
    first, second = ({n: c for n, c in tiny.contents(run).items() if n not in pages} for run in (plain, kept))
    assert first == second and "report/summary.csv" in first


def test_a_run_waits_for_the_answers_that_another_run_generates(
    world: Path, tmp_path: Path, monkeypatch, capsys
) -> None:
    """Without the wait, the second of two seeds in parallel would stop at the base's answers."""
    changes = (*MEASURED, f"evaluate.cache={tmp_path / 'answers'}")
    first = runner.run(tiny.recipe(world, *changes), run_dir=tmp_path / "first")
    [cache_dir] = (path.parent for path in (tmp_path / "answers").rglob("answers.jsonl"))
    code = "import sys\nfrom pathlib import Path\nfrom potstill import storage\n"
    code += "with storage.hold_lock(Path(sys.argv[1]), '.lock', 0, ''):\n"
    code += "    print('locked', flush=True)\n    sys.stdin.read()"
    command = [sys.executable, "-c", code, str(cache_dir)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdin is not None and other.stdout is not None
        assert other.stdout.readline() == b"locked\n"
        monkeypatch.setattr(TransformersEngine, "generate", silent)
        printed = progress.print_line

        def release(text: str, *rest: Any) -> None:
            printed(text, *rest)
            if text.startswith("waiting for the cache"):
                other.stdin.close()

        monkeypatch.setattr(progress, "print_line", release)
        again = runner.run(tiny.recipe(world, *changes), run_dir=tmp_path / "again")
    assert "waiting for the cache" in capsys.readouterr().err
    assert tiny.contents(again) == tiny.contents(first)


class Counting:
    """An engine that says its prompt, and counts what it is asked."""

    opens_thought = False

    def __init__(self) -> None:
        self.asked = 0

    def encode(self, prompt) -> tuple[int, ...]:
        return tuple(prompt.plain.encode())

    def generate(self, requests, decode, on_tokens=None) -> list[Generation]:
        self.asked += len(requests)
        sign = b"!" if decode.temperature else b""
        return [Generation(r.key, (), (), bytes(r.prompt) + sign + bytes([r.key[1]]), (), "end") for r in requests]


def test_what_is_remembered_depends_on_prompt_decoding_and_draw(tmp_path: Path) -> None:
    inner = Counting()
    one, same, other = Request(("a", 0), (65,)), Request(("b", 0), (65,)), Request(("c", 1), (255, 66))
    with cache.CachingEngine(inner, tmp_path / "answers.jsonl") as memory:
        assert [g.content for g in memory.generate([one, other], Decode(max_tokens=5))] == [b"A\0", b"\xffB\1"]
        assert [g.key for g in memory.generate([same], Decode(max_tokens=5, seed=7))] == [("b", 0)]
        assert inner.asked == 2  # one prompt, one greedy text
        memory.generate([one], Decode(max_tokens=6))
        memory.generate([one], Decode(max_tokens=5, temperature=1.0))
        memory.generate([one], Decode(max_tokens=5, temperature=1.0, seed=1))
        memory.generate([same], Decode(max_tokens=5, temperature=1.0))
        assert inner.asked == 6
    with (tmp_path / "answers.jsonl").open("ab") as file:
        file.write(b'{"key": "torn')
    with cache.CachingEngine(inner, tmp_path / "answers.jsonl") as memory:
        assert [g.content for g in memory.generate([other, same], Decode(max_tokens=5))] == [b"\xffB\1", b"A\0"]
        assert (inner.asked, memory.reused, memory.generated) == (6, 2, 0)
    assert len(list(storage.read_jsonl(tmp_path / "answers.jsonl"))) == 6
    assert cache.build_cache_key({"a": "1"}) != cache.build_cache_key({"a": "2"})
    assert inference.VERSION >= 1


def test_a_recipe_without_teacher_says_what_it_measures() -> None:
    recipe = parse_recipe("name: m\nteacher: {kind: none}\nstudent: folder\nquestions: {train: []}\n", "m.yaml")
    assert recipe.student.model == "folder" and stages.recipe_stages(recipe) == ("collect", "test", "report")
    nothing = "questions: {in_distribution: [], out_of_distribution: [], generic: []}"
    text = f"name: m\nteacher: {{kind: none}}\nstudent: f\n{nothing}\n"
    with pytest.raises(UserError, match="E-recipe-no-evaluation-set"):
        parse_recipe(text, "m.yaml")
    with pytest.raises(UserError, match="E-recipe-no-training-set"):
        parse_recipe("name: m\nquestions: {train: []}\n", "m.yaml")
