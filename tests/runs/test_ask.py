"""`potstill ask`: the measured answers from a run, from a copy of its student's folder and from unfinished runs.

Also wrong input.
"""

from __future__ import annotations

import io
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import tiny
from chat_model import save_chat_model
from expect import user_error
from potstill.cli import ask as command
from potstill.cli import grade_rows
from potstill.data import run_questions
from potstill.errors import UserError
from potstill.evaluation import query, query_settings
from potstill.evaluation.query import AskedQuestion
from potstill.run_reader import open_run
from potstill.storage.dataset_files import read_dataset_rows

TRAINED = ("train.steps=60", "train.checkpoint_every=60", "evaluate.max_tokens=20", "train.learning_rate=2e-2")
DECODINGS = "evaluate.test_decodings=[greedy+calculator, vote-3, best-2]"
SETS = ("sums", "other", "more")
ONE = "Tom has 1 pens and gets 3 more. How many has he?"
Ask = Callable[..., Any]


@pytest.fixture(scope="module")
def run_dir(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.make(world, tmp_path_factory.mktemp("ask") / "run", *TRAINED, DECODINGS)


@pytest.fixture(scope="module")
def chat_run(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ask")
    tuned = save_chat_model(folder / "tuned")
    return tiny.make(world, folder / "run", f"student={{model: {tuned}}}", *TRAINED)


@pytest.fixture
def ask(capsys: pytest.CaptureFixture[str]) -> Ask:
    """The command; returns what it printed, with --json the rows."""

    def call(target: Path | str, question: str | None = None, **options: Any) -> Any:
        given = {
            "file": None,
            "format": None,
            "task": None,
            "calculator": None,
            "vote": None,
            "as_json": False,
        } | options
        capsys.readouterr()
        command.ask(str(target), question, **given)
        out = capsys.readouterr().out
        return [json.loads(line) for line in out.splitlines()] if given["as_json"] else out

    return call


def stored(run_dir: Path, decoding: str, name: str) -> dict[str, str]:
    """Id of a test question of a set -> the text that the stage `test` stored."""
    predictions = open_run(run_dir).predictions("test", decoding=decoding)
    return {prediction.question: prediction.text for prediction in predictions if prediction.set == name}


@pytest.mark.parametrize("decoding", ["greedy", "greedy+calculator", "vote-3"])
def test_the_questions_of_the_test_get_their_measured_answers(run_dir: Path, ask: Ask, decoding: str) -> None:
    options = {"greedy+calculator": {"calculator": True}, "vote-3": {"vote": 3}}.get(decoding, {})
    for name in SETS:
        rows = ask(run_dir, file=run_dir / "collect" / f"{name}.test.jsonl", as_json=True, **options)
        assert {row["id"]: row["text"] for row in rows} == stored(run_dir, decoding, name)
        assert all(sum(row["votes"].values()) <= 3 for row in rows) if decoding == "vote-3" else True


def test_the_answers_are_graded_as_they_were_measured(run_dir: Path, ask: Ask, tmp_path: Path) -> None:
    rows = ask(run_dir, file=run_dir / "collect" / "sums.test.jsonl", as_json=True)
    (tmp_path / "answers.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    grade_rows.grade_file(tmp_path / "answers.jsonl", tmp_path / "graded.jsonl")
    graded = [json.loads(line) for line in (tmp_path / "graded.jsonl").read_text().splitlines()]
    run = open_run(run_dir)
    [score] = [s for s in run.scores("test") if (s.checkpoint, s.set, s.format, s.decoding) == (
        run.choice, "sums", "zero-shot-rationale", "greedy")]  # fmt: skip
    assert (len(graded), sum(row["verdict"] == "right" for row in graded)) == (score.n, score.right)
    measured = {p.question: p.answer for p in run.predictions("test") if p.set == "sums"}
    assert {row["id"]: row["found"] for row in rows} == measured


@pytest.mark.parametrize("kind", ["run_dir", "chat_run"])
def test_a_copied_folder_and_a_run_without_its_report_answer_as_the_run(
    kind: str, ask: Ask, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    run_dir = request.getfixturevalue(kind)
    file = run_dir / "collect" / "other.test.jsonl"
    expected = stored(run_dir, "greedy", "other")
    copied = shutil.copytree(run_dir / "student", tmp_path / "copied")
    unfinished = shutil.copytree(run_dir, tmp_path / "run", ignore=shutil.ignore_patterns("student", "report"))
    for target in (copied, unfinished):
        rows = ask(target, file=file, as_json=True)
        assert {row["id"]: row["text"] for row in rows} == expected
    shutil.rmtree(unfinished / "select")
    with user_error("E-run-stage-not-finished"):
        ask(unfinished, ONE)


def test_a_question_is_answered_in_every_measured_format(run_dir: Path, ask: Ask) -> None:
    texts = {q.text: q.id for q in run_questions.read_questions(run_dir, ["sums"], "test")}
    measured = {p.question: p.text for p in open_run(run_dir).predictions("test", format="few-shot-answer")}
    for text, question in texts.items():
        [row] = ask(run_dir, text, format="few-shot-answer", as_json=True)
        assert row["text"] == measured[question] and row["stop"] in ("end", "length")


def test_what_a_person_reads(run_dir: Path, ask: Ask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    [row] = ask(run_dir, ONE, as_json=True)
    printed = ask(run_dir, ONE)
    assert f"Answer: {row['found'] or 'none'}" in printed and "Question:" not in printed
    (tmp_path / "questions.txt").write_text(f"{ONE}\n\n What do 3 and 1 make?\n")
    printed = ask(run_dir, file=tmp_path / "questions.txt")
    assert printed.count("Question: ") == printed.count("Answer: ") == 2
    monkeypatch.setattr(sys, "stdin", io.StringIO(f'{ONE}\n{{"question": {json.dumps(ONE)}, "id": 7}}\n'))
    rows = ask(run_dir, as_json=True)
    assert [row["text"] for row in rows] == [row["text"]] * 2 and rows[1]["id"] == 7


def test_a_person_types_questions_until_an_empty_line(
    chat_run: Path, ask: Ask, monkeypatch: pytest.MonkeyPatch
) -> None:
    typed = io.StringIO("Is <|stop|> a word?\nWhat do 3 and 1 make?\n\nno more\n")
    monkeypatch.setattr(typed, "isatty", lambda: True)
    monkeypatch.setattr(sys, "stdin", typed)
    assert ask(chat_run).count("Answer: ") == 1  # the first one is refused, and the next one is answered


def test_a_file_may_have_other_columns(tmp_path: Path) -> None:
    path = tmp_path / "tickets.csv"
    path.write_text('ticket,body,team\n7,"Where is it?\nRegards, Kim",shipping\n')
    [row] = command.read_file(path, {"question": "body", "gold": "team"})
    assert (row.question, row.gold) == ("Where is it?\nRegards, Kim", "shipping")
    [row] = command.read_file(path, {"question": "body", "gold": ""})
    assert row.gold is None
    for columns, code in (({}, "E-cli-ask-row"), ({"question": "text"}, "E-cli-ask-column")):
        with pytest.raises(UserError) as caught:
            list(command.read_file(path, columns))
        assert caught.value.code == code and caught.value.found == "ticket, body, team"


@pytest.mark.parametrize("suffix", [".jsonl", ".csv"])
def test_answers_keep_the_columns_of_their_table(run_dir: Path, ask: Ask, tmp_path: Path, suffix: str) -> None:
    """Also columns with the names of an answer's fields, and ids that are not unique; `potstill grade` reads the file."""
    table, out = tmp_path / "tickets.csv", tmp_path / f"answers{suffix}"
    rows = [
        {"id": n // 2, "body": f"What do {n} and 1 make?", "sum": n + 1, "stop": "Rome", "truncated": "x;y"}
        for n in range(6)
    ]
    text = ";".join(rows[0]) + "\n" + "\n".join(";".join(f'"{value}"' for value in row.values()) for row in rows)
    table.write_text(text, "utf-8")
    options = {"file": table, "columns": {"question": "body", "gold": "sum"}}
    assert ask(run_dir, out=out, **options) == ""
    read = [row for _, _, row in read_dataset_rows(out)]
    for row, given in zip(read, rows, strict=True):
        kept = {"id": row["id"], "body": row["body"], "sum": row["sum"], "stop": row["input_stop"]}
        assert kept | {"truncated": row["input_truncated"]} == {name: str(value) for name, value in given.items()}
        assert row["task"] == "number" and row["gold"] == str(given["sum"]) and row["stop"] in ("end", "length", "cut")
    printed = ask(run_dir, as_json=True, **options)
    assert [row["text"] for row in printed] == [row["text"] for row in read]
    graded = grade_rows.grade_file(out)
    assert graded.total.n == 6 and [row["found"] for row in graded.rows] == [row["found"] or None for row in read]
    with user_error("E-ask-repeated-id"):  # samples depend on the id
        ask(run_dir, vote=2, **options)
    for wrong in (table, tmp_path / "answers.xlsx"):
        with user_error("E-cli-ask-out"):
            ask(run_dir, out=wrong, **options)


@pytest.mark.parametrize("suffix", [".jsonl", ".csv"])
@pytest.mark.parametrize("torn", [b"", b'{"question": "What'])
def test_an_interrupted_command_asks_only_for_what_is_missing(
    run_dir: Path, ask: Ask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str, torn: bytes
) -> None:
    """Also if the last row was half written. The file is that of a command without an interruption."""
    monkeypatch.setattr(command, "CHUNK", 4)
    file, out, whole = tmp_path / "q.jsonl", tmp_path / f"a{suffix}", tmp_path / f"whole{suffix}"
    file.write_text("".join(json.dumps({"question": f"What do {n} and 2 make?", "n": n}) + "\n" for n in range(10)))
    ask(run_dir, file=file, out=whole)
    batches, answer = list[int](), query.answer_questions

    def answer_twice(student: Any, settings: Any, questions: Any, **options: Any) -> Any:
        if len(batches) == 2:
            raise KeyboardInterrupt
        batches.append(len(questions))
        return answer(student, settings, questions, **options)

    monkeypatch.setattr(query, "answer_questions", answer_twice)
    with pytest.raises(KeyboardInterrupt):
        ask(run_dir, file=file, out=out)
    unfinished = tmp_path / f"a{suffix}.unfinished"
    assert not out.exists() and len(unfinished.read_bytes().splitlines()) == 9
    unfinished.write_bytes(unfinished.read_bytes() + torn)
    with user_error("E-cli-ask-unfinished", where=str(unfinished)):
        ask(run_dir, file=file, out=out, vote=2)
    batches.clear()
    shown = ask(run_dir, file=file, out=out, as_json=True)
    assert batches == [2] and [row["n"] for row in shown] == list(range(10))
    assert out.read_bytes() == whole.read_bytes() and not unfinished.exists()


def test_a_decoding_that_was_not_measured_is_said(run_dir: Path, capsys: pytest.CaptureFixture[str], ask: Ask) -> None:
    settings = query_settings.read_settings(run_dir / "student")
    assert query.with_decoding(settings, calculator=None, vote=None) == "greedy"
    assert query.with_decoding(settings, calculator=True, vote=8) == "vote-8+calculator"
    command.ask(str(run_dir), ONE, file=None, format=None, task=None, calculator=True, vote=2, as_json=True)
    said = capsys.readouterr()
    assert "vote-2+calculator" in said.err and json.loads(said.out)["votes"] is not None


def test_best_of_two_is_the_likelier_sample(run_dir: Path) -> None:
    student, settings = query.open_run_student(run_dir, open_run(run_dir).recipe)
    questions = run_questions.read_questions(run_dir, ["other"], "test")
    asked = [AskedQuestion(q.text, q.task, q.id) for q in questions]
    answers = query.answer_questions(student, settings, asked, decoding_name="best-2")
    expected = stored(run_dir, "best-2", "other")
    assert [answer.text for answer in answers] == [expected[q.id] for q in questions]


@pytest.mark.parametrize(
    ("text", "task", "example", "answer", "rationale"),
    [
        ("2 + 3 = 5. The answer is 5", "number", "7", "5", "2 + 3 = 5."),
        ("So 5.\nSo the answer is (B).", "bbh/snarks", "(A)", "(B)", "So 5."),
        ("Yes. The answer is yes.", "bbh/navigate", "No", "yes", "Yes."),
        ("No answer at all", "number", "7", None, "No answer at all"),
        ("I think. The answer is the red hat.\nQ: no", "text", "a bag", "the red hat", "I think."),
        ("It is 4. The answer is 4 apples", "number", None, "4", "It is 4."),
        ("It is 4. The answer is 4 apples", "", None, "4 apples", "It is 4."),
    ],
)
def test_rationale_and_answer(text: str, task: str, example: str | None, answer: str | None, rationale: str) -> None:
    assert query.read_answer(text, task, example, "end") == answer
    assert query.split_answer(text)[0] == rationale


def test_a_folder_of_another_program_needs_a_format(ask: Ask, tmp_path: Path) -> None:
    folder = save_chat_model(tmp_path / "tuned")
    with user_error("E-ask-no-settings", hint="--format"):
        ask(folder, ONE)
    with user_error("E-ask-nothing"):
        ask(tmp_path / "absent", ONE)
    with user_error("E-ask-format"):
        ask(folder, ONE, format="few-shot-answer")
    assert "Answer: " in ask(folder, ONE, format="zero-shot-answer")


def test_wrong_questions_and_settings_are_one_message(run_dir: Path, chat_run: Path, ask: Ask, tmp_path: Path) -> None:
    with user_error("E-cli-ask-question"):
        ask(run_dir, ONE, file=tmp_path / "x.txt")
    with user_error("E-ask-empty-question"):
        ask(run_dir, "  ")
    with user_error("E-ask-format", hint="few-shot-answer"):
        ask(run_dir, ONE, format="few-shot-rationale")
    with user_error("E-model-special-token-in-prompt"):
        ask(chat_run, "Is <|stop|> a word?")
    for row in ('{"id": 1}', '{"question": 3}', '{"question": "x", "task": 1}'):
        (tmp_path / "rows.jsonl").write_text(row + "\n")
        with user_error("E-cli-ask-row", where="rows.jsonl"):
            ask(run_dir, file=tmp_path / "rows.jsonl")
    with user_error("E-cli-ask-row", where="line 1"):
        list(command.read_lines(['{"question": "torn']))


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"version": 2}, "E-ask-settings"),
        ({"family": "bert"}, "E-storage-invalid-format"),
        ({"decodings": ["beam-4"]}, "E-storage-invalid-format"),
        ({"max_tokens": 0}, "E-storage-invalid-format"),
        ({"max_tokens": "many"}, "E-storage-invalid-format"),
        ({"prompts": {"zero-shot-rationale": {"": ["only one"]}}}, "E-storage-invalid-format"),
        ({"prompts": {}}, "E-storage-invalid-format"),
        ({"seed": None}, "E-storage-invalid-format"),
    ],
)
def test_changed_settings_are_refused(run_dir: Path, tmp_path: Path, change: dict[str, Any], code: str) -> None:
    row = json.loads((run_dir / "student" / "potstill.json").read_text()) | change
    (tmp_path / "potstill.json").write_text(json.dumps(row))
    with user_error(code, where="potstill.json"):
        query_settings.read_settings(tmp_path)


def test_a_task_with_its_own_prompt_is_named() -> None:
    prompts = {"zero-shot-answer": {"bbh/navigate": ("Q: ", " A:"), "bbh/snarks": ("S: ", " A:")}}
    settings = query_settings.QuerySettings(
        name="", family="t5", is_chat=False, prompts=prompts, answers={}, format="zero-shot-answer", task="bbh/snarks",
        decoding="greedy", decodings=("greedy",), max_tokens=8, stop_at_answer=False, temperature=0.7, seed=1,
        batch_tokens=400,
    )  # fmt: skip
    assert settings.prompt("zero-shot-answer", "bbh/navigate") == ("Q: ", " A:")
    with user_error("E-ask-task", hint="bbh/snarks"):
        settings.prompt("zero-shot-answer", "bbh/other")


def test_the_exit_codes(run_dir: Path) -> None:
    for target, code in ((run_dir / "student", 0), (run_dir / "collect", 2)):
        told = subprocess.run(
            [sys.executable, "-m", "potstill", "ask", str(target), ONE], capture_output=True, text=True, check=False
        )
        assert told.returncode == code and "Traceback" not in told.stderr
        assert ("Answer: " in told.stdout) == (code == 0)
