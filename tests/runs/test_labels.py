"""Classification: labels in the recipe, in every prompt, in the scores and on the page."""

from __future__ import annotations

import csv
import json
from collections import Counter
from pathlib import Path

import pytest

from potstill import data, runner, storage
from potstill.cli import export, results
from potstill.data import labels
from potstill.errors import UserError
from potstill.evaluation import label_tables
from potstill.evaluation.query_settings import SETTINGS_FILE
from potstill.recipe import load_recipe
from potstill.records import BASE, LabelTable, Question
from potstill.run_reader import open_run
from potstill.teachers import protocol

NAMES = ("how much", "how many", "who")
ASK = "The answer is one of these labels: how much, how many, who"
RECIPE = """
name: kinds
sets:
  kinds:
    file: kinds.csv
    fields: {question: text, answer: {column: kind, values: {2: who}}}
    labels: [how much, how many, who]
questions: {train: [kinds], validation: 0.3, test: 0.3}
select: {rule: in-distribution}
teacher: {kind: human}
student: {shape: {family: t5, d_model: 16, layers: 1, heads: 2, d_ff: 32}, tokenizer: student-tokenizer}
train:
  formats: {zero-shot-rationale: 1, zero-shot-answer: 1}
  steps: 4
  prompts_per_step: 4
  checkpoint_every: 2
  learning_rate: 1e-2
evaluate: {max_tokens: 6, formats: [zero-shot-rationale, zero-shot-answer]}
"""


def write_rows(path: Path, n: int = 30) -> None:
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["text", "kind", "rationale"])
        for i in range(n):
            kind = ("How Much", "how many", "2", "how many")[i % 4]
            writer.writerow([f"Tom has {i} pens and gets {i * i} more.", kind, "Tom has pens."])


@pytest.fixture(scope="module")
def folder(world: Path) -> Path:
    write_rows(world / "kinds.csv")
    (world / "kinds.yaml").write_text(f"data: {world}\n{RECIPE}")
    return world


@pytest.fixture(scope="module")
def run_dir(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return runner.run(load_recipe(folder / "kinds.yaml"), run_dir=tmp_path_factory.mktemp("kinds") / "run")


def load(folder: Path, names: tuple[str, ...] = NAMES) -> list[Question]:
    fields = {"question": "text", "answer": {"column": "kind", "values": {"2": "who"}}}
    return data.load_set("kinds", file=folder / "kinds.csv", fields=fields, labels=names, validation=0.3, test=0.3)


def test_answers_become_labels_and_the_text_is_untouched(folder: Path) -> None:
    questions = load(folder)
    assert Counter(q.gold for q in questions) == {"how many": 15, "how much": 8, "who": 7}
    assert {q.task for q in questions} == {"kinds/label"} and not [q for q in questions if "label" in q.text]
    more = load(folder, (*NAMES, "other"))
    assert [q.split for q in more] == [q.split for q in questions], "a new label moves no question"


def test_an_answer_that_is_no_label_is_refused_with_its_record(folder: Path) -> None:
    with pytest.raises(UserError) as fault:
        load(folder, ("how much", "how many"))
    assert fault.value.code == "E-data-unknown-label" and "7 of 30" in fault.value.what
    assert "kinds.csv" in fault.value.where


@pytest.mark.parametrize(
    ("keys", "code"),
    [
        ("labels: [one]", "E-recipe-labels"),
        ("labels: [one, ONE]", "E-recipe-labels"),
        ("labels: [one, two], task: text", "E-recipe-labels-task"),
    ],
)
def test_wrong_labels_are_refused(tmp_path: Path, keys: str, code: str) -> None:
    path = tmp_path / "r.yaml"
    path.write_text(f"name: x\nsets: {{m: {{file: m.csv, {keys}}}}}\nquestions: {{train: [m]}}\n")
    with pytest.raises(UserError) as fault:
        load_recipe(path)
    assert fault.value.code == code


def test_teacher_training_evaluation_export_and_card_list_the_labels(folder: Path, run_dir: Path) -> None:
    recipe, question = load_recipe(folder / "kinds.yaml"), load(folder)[0]
    teacher = protocol.load_prompt_builder(recipe)(question).plain
    assert teacher == f"{ASK}\n\nQuestion: {question.text}\nLet's think step by step"
    settings = json.loads((run_dir / "student" / SETTINGS_FILE).read_text())
    assert settings["prompts"]["zero-shot-answer"]["kinds/label"][0] == f"{ASK}\n\nQ: "
    rows = [json.loads(row) for row in export.export_rows(run_dir, "messages")]
    assert rows and all(row["messages"][0]["content"].startswith(f"{ASK}\n\nQ: Tom has") for row in rows)
    assert ASK in (run_dir / "student" / "README.md").read_text()


def test_training_sees_the_evaluated_prompt(folder: Path, run_dir: Path) -> None:
    from potstill.training import examples

    recipe, run = load_recipe(folder / "kinds.yaml"), open_run(run_dir)
    student = run.student(BASE)
    questions = {q.id: q for q in load(folder)}
    for row in examples.read_training_data(run_dir, recipe, student).examples(1):
        asks = "\nLet's think step by step" if row.format == "zero-shot-rationale" else " A:"
        expected = student.encode(f"{ASK}\n\nQ: {questions[row.question].text}{asks}")
        assert list(row.prompt) == list(expected)


def test_the_tables_count_every_answer(run_dir: Path) -> None:
    run = open_run(run_dir)
    for table in run.labels("test"):
        golds = {q.id: q.gold for q in run.questions("test")}
        rows = list(run.predictions("test", table.checkpoint, format=table.format))
        assert table.n == len(golds) == len(rows) and table.labels == NAMES
        for label, counts in zip(NAMES, table.counts, strict=True):
            of_label = [row for row in rows if golds[row.question] == label]
            right = sum(row.grade == "right" for row in of_label)
            assert (sum(counts), counts[NAMES.index(label)]) == (len(of_label), right)
            assert counts[-1] == sum(row.grade in ("no answer", "truncated") for row in of_label)
        assert (table.majority, table.majority_from) == ("how many", "train")
        assert table.majority_accuracy == sum(gold == "how many" for gold in golds.values()) / table.n
    assert {table.format for table in run.labels("validation")} == {"zero-shot-rationale", "zero-shot-answer"}


def test_page_tables_card_and_terminal_state_the_baseline(run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = open_run(run_dir).labels("test")[0]
    sentence = "Always answering “how many”, the most frequent label in training, would be right on "
    sentence += f"{100 * table.majority_accuracy:.1f}"
    results.print_summary(run_dir)
    card, page = (run_dir / "student/README.md").read_text(), (run_dir / "report/index.html").read_text()
    for text in (card, page, capsys.readouterr().out.replace("\n", " ")):
        assert sentence in text
    assert page.count('<section id="labels">') == 1 and "Confusion matrix" in page
    rows = list(csv.DictReader((run_dir / "report" / "confusion.csv").open()))
    assert sum(int(row["n"]) for row in rows) == sum(table.n for table in open_run(run_dir).labels("test"))


def test_a_model_that_is_only_evaluated_has_the_tables_too(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    groups = "questions={train: [], in_distribution: [kinds], out_of_distribution: [], generic: []}"
    recipe = load_recipe(folder / "kinds.yaml", ("teacher={kind: none}", groups, "select.rule=in-distribution"))
    run_dir = runner.run(recipe, run_dir=tmp_path / "run")
    [table, _] = open_run(run_dir).labels("test")
    assert (table.checkpoint, table.majority, table.majority_from) == (BASE, "how many", "test")
    results.print_scores(run_dir)
    page = (run_dir / "report" / "index.html").read_text()
    assert page.count('<section id="labels">') == 1 and 'href="#labels"' in page
    for text in (page, capsys.readouterr().out.replace("\n", " ")):
        assert "the most frequent label of these questions" in text


@pytest.mark.parametrize(
    "task, golds, names, letter",
    [
        ("boolean", ("yes", "No", "yes"), ("no", "yes"), "yes"),
        ("choice", ("B", "(A)", "(C)", "(B)"), ("(A)", "(B)", "(C)"), "(B)"),
    ],
)
def test_yes_or_no_and_choices_have_the_tables_without_labels(
    folder: Path, tmp_path: Path, task: str, golds: tuple[str, ...], names: tuple[str, ...], letter: str
) -> None:
    rows = [{"question": f"Has Tom {i} of {i * i} pens?", "answer": golds[i % len(golds)]} for i in range(24)]
    (folder / f"{task}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    sets = f"sets={{closed: {{file: {task}.jsonl, task: {task}, split: test}}}}"
    groups = "questions={train: [], in_distribution: [closed], out_of_distribution: [], generic: []}"
    changes = (sets, groups, "teacher={kind: none}", "evaluate.formats=[zero-shot-rationale]")
    run_dir = runner.run(load_recipe(folder / "kinds.yaml", changes), run_dir=tmp_path / "run")
    [table] = open_run(run_dir).labels("test")
    assert (table.labels, table.n, table.majority) == (names, 24, letter)
    assert sum(map(sum, table.counts)) == 24 and table.majority_accuracy >= 1 / len(names)
    assert "Confusion matrix" in (run_dir / "report" / "index.html").read_text()


def test_the_mean_recall_counts_every_label_once() -> None:
    table = LabelTable(
        BASE, "t", "test", "f", "greedy", ("a", "b", "c"), ((9, 0, 0, 0, 0), (1, 0, 0, 0, 0), (0,) * 5), "a", "test"
    )
    assert label_tables.mean_recall(table) == 0.5 and table.majority_accuracy == 0.9


def test_a_run_without_labels_is_as_before(finished: Path) -> None:
    assert not list(finished.rglob("labels.json")) and not (finished / "report" / "labels.csv").exists()
    row = json.loads((finished / "collect" / "manifest.json").read_text())
    assert not [key for key in row["recipe"] if key.endswith(".labels")]
    assert "Labels</a>" not in (finished / "report" / "index.html").read_text()
    assert set(storage.read_json(finished / "collect" / "demonstrations.json")) == {""}


def test_a_perfect_answer_of_every_label_is_right() -> None:
    for name in NAMES:
        assert data.grade(f"The answer is {name}", name, "kinds/label").grade == "right"
        assert labels.match_label(name.upper(), NAMES) == name
