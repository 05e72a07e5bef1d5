"""`potstill init`: what it writes is accepted by `--dry-run`, and runs to the end."""

from __future__ import annotations

import csv
import io
import json
import re
import unicodedata
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import potstill
from potstill import dry_run, runner
from potstill.cli import init
from potstill.data import assemble
from potstill.errors import UserError
from potstill.recipe import load_recipe
from potstill.recipe.fields import NAME_PATTERN, write_name
from potstill.run_reader import open_run

STUDENT = str(Path(potstill.__file__).parent / "demo" / "models" / "student")
TICKETS = {
    "billing": "The bill number {} is wrong.",
    "bug": "Page {} is blank.",
    "account": "Close account {}, please.",
}
SMALL = ("train.steps=4", "train.checkpoint_every=2", "train.prompts_per_step=4", "evaluate.max_tokens=8")


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write_tickets(path: Path, n: int = 60) -> None:
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["id", "text", "department"])
        for i in range(n):
            name = list(TICKETS)[i % 3]
            writer.writerow([i, TICKETS[name].format(i), name])


def write(folder: Path = Path(), asks: bool = False, **options: Any) -> Path:
    given = {
        "file": None,
        "name": "",
        "chosen": {},
        "task": "",
        "teacher": "",
        "url": "http://x/v1",
        "student": STUDENT,
    }
    return init.write_recipe(folder, **{**given, **options}, asks=asks)


def test_tickets_become_a_recipe_that_runs_to_the_end(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_tickets(here / "tickets.csv")
    path = write()
    shown = capsys.readouterr().out
    assert shown.count("--- question ") == 5 and "Q: Page " in shown and "The answer is bug" in shown
    lines = {line.split()[0]: line.split(maxsplit=1)[1] for line in shown.splitlines() if line[:1].strip()}
    assert lines["columns"] == "question: text, answer: department, id: id" and "not" not in lines
    assert lines["answers"] == "3 labels: billing (20), bug (20), account (20)"
    recipe = load_recipe(path, SMALL)
    assert recipe.sets["tickets"].labels == ["account", "billing", "bug"]
    assert "problems          none found" in dry_run.describe_run(load_recipe(path))
    run = open_run(runner.run(recipe))
    assert {table.majority_from for table in run.labels("test")} == {"train"}
    assert (run.run_dir / "report" / "index.html").is_file()


def test_solutions_with_a_marked_answer_are_numbers_and_chains(here: Path) -> None:
    rows = [{"problem": f"What is {i} + 1?", "solution": f"{i} + 1 = {i + 1}\n#### {i + 1}"} for i in range(40)]
    (here / "sums.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    recipe = load_recipe(write())
    assert (recipe.sets["sums"].task, recipe.teacher.kind, recipe.teacher.unsolved) == ("number", "human", "stop")
    assert recipe.evaluate.formats == ["zero-shot-rationale"] == [recipe.select.format]
    assert assemble.assemble_questions(recipe).questions["sums"]["train"][0].rationale


def test_parquet_with_options_splits_and_a_teacher(here: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    splits = ["train"] * 10 + ["validation"] * 5 + ["test"] * 5
    rows = [{"query": f"Which? {i}", "options": ["yes", "no"], "gold": i % 2, "split": s} for i, s in enumerate(splits)]
    pq.write_table(pa.Table.from_pylist(rows), here / "which.parquet")
    path = write(Path("new") / "folder", file=Path("which.parquet"), teacher="m: 1", name="of-two")
    recipe = load_recipe(path)
    assert (recipe.name, recipe.teacher.model, recipe.teacher.server.urls) == ("of-two", "m: 1", ["http://x/v1"])
    questions = assemble.assemble_questions(recipe).questions["of-two"]
    assert {split: len(rows) for split, rows in questions.items()} == {"train": 10, "validation": 5, "test": 5}
    assert questions["test"][0].task == "choice" and "(A) yes" in questions["test"][0].text


def test_questions_are_asked_in_a_terminal(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_tickets(here / "a.csv")
    write_tickets(here / "b.csv")
    answers = ["b.csv", "no such column", "text", "", "text", "", "small"]  # file, question (twice), answer, type, ...
    monkeypatch.setattr("sys.stdin", io.StringIO("\n".join(answers) + "\n"))
    recipe = load_recipe(write(asks=True))
    assert (recipe.name, recipe.student.model) == ("b", "small")
    assert (recipe.sets["b"].task, recipe.sets["b"].labels) == ("text", None)


@pytest.mark.parametrize(
    ("files", "options", "code"),
    [
        ([], {}, "E-init-no-file"),
        (["a.csv", "b.csv"], {}, "E-init-several-files"),
        (["a.csv"], {"chosen": {"question": "body"}}, "E-init-no-column"),
        (["a.csv"], {"name": "taken"}, "E-init-exists"),
        (["a.csv"], {"task": "numbr"}, "E-grade-unknown-task"),
        (["a.csv"], {"task": "number"}, "E-grade-gold-type"),
    ],
)
def test_what_is_refused_writes_nothing(here: Path, files: list[str], options: dict[str, Any], code: str) -> None:
    for name in files:
        write_tickets(here / name)
    (here / "taken.yaml").write_text("mine")
    before = {path: path.read_bytes() for path in here.iterdir()}
    with pytest.raises(UserError) as fault:
        write(**options)
    assert fault.value.code == code
    assert {path: path.read_bytes() for path in here.iterdir()} == before


@pytest.mark.parametrize(
    ("stem", "name"),
    [
        ("Täglich", "Taglich"), ("Straße", "Strasse"), ("Ångström data", "Angstrom-data"), ("Łódź", "Lodz"),
        ("smørrebrød", "smorrebrod"), ("вопросы", "mine"), ("質問", "mine"), ("أسئلة", "mine"), ("问题-7", "7"),
        ("ερωτήσεις v2", "v2"),
        ("2024", "2024"), ("no", "no"), ("ﬁle①", "file1"), ("_x_", "x"), ("e\u0301te\u0301", "ete"), ("q" * 180, "q" * 100),
    ],
)  # fmt: skip
def test_a_file_of_any_alphabet_has_a_name(here: Path, stem: str, name: str) -> None:
    write_tickets(here / f"{stem}.csv")
    path = write()
    recipe = load_recipe(path)
    assert (path.name, recipe.name, list(recipe.sets)) == (f"{name}.yaml", name, [name])


@given(st.text(max_size=300))
def test_every_text_has_a_name_that_the_rule_allows(text: str) -> None:
    name = write_name(text, "mine")
    assert re.fullmatch(NAME_PATTERN, name) and write_name(name, "mine") == name
    assert write_name(unicodedata.normalize("NFD", text), "mine") == write_name(
        unicodedata.normalize("NFC", text), "mine"
    )
