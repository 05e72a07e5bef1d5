"""`potstill grade` prints accuracies with intervals, by set, and writes the rows only if it is asked to."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from potstill import cli
from potstill.cli import grade_rows
from potstill.errors import UserError
from potstill.evaluation import intervals

TEXTS = {"right": "The answer is 18.", "wrong": "The answer is 17.", "no answer": "No.", "truncated": "He has"}


def row(verdict: str, **more: object) -> dict[str, object]:
    end = {"stop": "length"} if verdict == "truncated" else {}
    return {"text": TEXTS[verdict], "gold": "18", **end, **more}


def write(path: Path, rows: list[dict[str, object]]) -> Path:
    path.write_text("".join(json.dumps(one) + "\n" for one in rows), "utf-8")
    return path


def grade(*arguments: object) -> Result:
    return CliRunner().invoke(cli.app, ["grade", *map(str, arguments)], env={"COLUMNS": "80", "NO_COLOR": "1"})


def columns(line: str) -> list[str]:
    return line.split()


def test_the_accuracy_is_printed_in_percent_with_its_interval_and_no_file_is_needed(tmp_path: Path) -> None:
    rows = [row("right")] * 5 + [row("wrong")] * 3 + [row("no answer"), row("truncated")]
    path = write(tmp_path / "answers.jsonl", rows)
    result = grade(path)
    assert result.exit_code == 0, result.output
    assert columns(result.stdout.splitlines()[-1]) == [
        "all",
        "10",
        "50.0",
        "23.7",
        "to",
        "76.3",
        "30.0",
        "10.0",
        "10.0",
    ]
    assert [file.name for file in tmp_path.iterdir()] == ["answers.jsonl"]
    out = tmp_path / "graded.jsonl"
    assert str(out) in grade(path, "--out", out).stdout
    assert Counter(json.loads(line)["verdict"] for line in out.read_text("utf-8").splitlines())["right"] == 5


@pytest.mark.parametrize("field", ["set", "task"])
def test_several_sets_have_a_line_each(tmp_path: Path, field: str) -> None:
    other = {"task": "gsm8k"} if field == "set" else {}
    rows = [
        row("right", **{field: "number"}, **other),
        row("wrong", **{field: "gsm8k"}, **other),
        row("right", **other),
    ]
    if field == "set":
        rows[2]["set"] = "number"
    lines = [columns(line)[:3] for line in grade(write(tmp_path / "rows.jsonl", rows)).stdout.splitlines()]
    assert ["all", "3", "66.7"] in lines and ["gsm8k", "1", "0.0"] in lines
    assert (["number", "2", "100.0"] if field == "set" else ["(none)", "1", "100.0"]) in lines
    one = grade(write(tmp_path / "rows.jsonl", [row("right", task="gsm8k")])).stdout.splitlines()
    assert [columns(line)[0] for line in one[2:]] == ["all"], "one set is all"


@given(st.lists(st.tuples(st.sampled_from(sorted(TEXTS)), st.sampled_from(["a", "b"])), max_size=12))
def test_one_object_has_the_counts_of_all_rows_and_of_each_set(
    tmp_path_factory: pytest.TempPathFactory, chosen: list[tuple[str, str]]
) -> None:
    path = write(tmp_path_factory.mktemp("rows") / "rows.jsonl", [row(verdict, set=name) for verdict, name in chosen])
    printed: dict[str, Any] = json.loads(grade(path, "--json").stdout)
    verdicts = Counter(verdict for verdict, _ in chosen)
    assert printed["rows"] == printed["n"] == len(chosen) and printed["verdicts"] == verdicts and printed["out"] is None
    names = {name for _, name in chosen}
    assert {one["set"] for one in printed["sets"]} == (names if len(names) > 1 else set())
    for one in (printed, *printed["sets"]):
        assert one["n"] == one["right"] + one["wrong"] + one["no_answer"] + one["truncated"]
        assert (one["low"], one["high"]) == intervals.wilson_interval(one["right"], one["n"])
        assert one["accuracy"] == (one["right"] / one["n"] if one["n"] else None)
    for count in ("right", "wrong", "no_answer", "truncated"):
        assert not printed["sets"] or printed[count] == sum(one[count] for one in printed["sets"])


def test_other_fields_may_hold_the_answers(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text("id;output;solution\n1;It is 18.;18\n2;It is 17.;18\n", "utf-8")
    graded = grade_rows.grade_file(path, columns={"text": "output", "gold": "solution"})
    assert [one["verdict"] for one in graded.rows] == ["right", "wrong"]
    assert list(graded.rows[0]) == ["id", "output", "solution", "verdict", "found"]
    with pytest.raises(UserError) as caught:
        grade_rows.grade_file(path, columns={"text": "answer"})
    assert caught.value.code == "E-grade-field"
