"""Every command keeps to a terminal of 80 columns, except for paths and JSON rows."""

from __future__ import annotations

import os
import pty
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from potstill import cli
from potstill.cli.tables import wrap_line
from potstill.run_reader import open_run

COLUMNS = 80
# Beginning of a line -> the column in which its text continues.
LABELS = {"": 0, "memory            ": 18, " " * 18: 18, "  templates       ": 18, "  hint: ": 2, f"{'x' * 30}  ": 2}


def wide_lines(*arguments: object) -> list[str]:
    """The lines of a command's standard output that are too wide, without those that hold a path."""
    result = CliRunner().invoke(cli.app, [*map(str, arguments)], env={"COLUMNS": str(COLUMNS), "NO_COLOR": "1"})
    assert result.exit_code == 0, result.output
    assert result.stdout, arguments
    return [line for line in result.stdout.splitlines() if len(line) > COLUMNS and "/" not in line]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_plans_of_the_demo(here: Path) -> None:
    assert not wide_lines("recipes", "demo")
    assert not wide_lines("run", "recipes/demo.yaml", "--dry-run")
    Path("study.yaml").write_text("{name: two, recipe: demo, grid: {transfer.rule: [text, one-hot]}}", "utf-8")
    assert not wide_lines("study", "study.yaml", "--dry-run")


def test_what_a_run_is_asked(here: Path, finished: Path) -> None:
    shutil.copytree(finished, "run")
    for command in ("status", "show", "check"):
        assert not wide_lines(command, "run")
    for command in (("status", "run"), ("compare", "run@0", "run@4"), ("show", "run", "--batch", "1")):
        result = CliRunner().invoke(cli.app, list(command), env={"COLUMNS": str(COLUMNS)})
        table = result.stdout.partition("\n\n")[0]
        assert len(table.splitlines()) > 3 and not [line for line in table.splitlines() if line.endswith(" ")]
    run = open_run(Path("run"))
    (chain, _), question = next(iter(run.chains())), next(iter(run.questions("validation")))
    options = {"--chain": f"{chain.question}#{chain.index}", "--batch": 1, "--prediction": question.id}
    for option, value in options.items():
        assert not wide_lines("show", "run", option, value)
    assert not wide_lines("compare", "run@0", "run@4")
    assert not wide_lines("ask", "run", "What is 1 + 1?")


def test_errors_are_wrapped_on_a_terminal_only(here: Path) -> None:
    """A program finds each part of the message in one line."""
    command = [sys.executable, "-m", "potstill", "run", "recipes/evaluate.yaml"]
    plain = subprocess.run(command, capture_output=True, text=True)
    leader, terminal = pty.openpty()
    shown = subprocess.run(command, stdout=subprocess.PIPE, stderr=terminal, env=os.environ | {"COLUMNS": str(COLUMNS)})
    os.close(terminal)
    text = os.read(leader, 100_000).decode().replace("\r\n", "\n")
    os.close(leader)
    assert plain.returncode == shown.returncode == 2 and len(plain.stderr.splitlines()) == 4
    assert max(map(len, plain.stderr.splitlines())) > COLUMNS >= max(map(len, text.splitlines()))
    assert text.split() == plain.stderr.split()


def test_lists_and_proposals(here: Path) -> None:
    rows = "".join(
        f"{n};what is {n} plus {n}, and how do you know it? Say why in a long sentence.;{2 * n}\n" for n in range(60)
    )
    Path("sums.csv").write_text("id;question;answer\n" + rows, "utf-8")
    assert not wide_lines("init", "--yes", "--file", "sums.csv")
    for command in ("env", "data", "recipes"):
        assert not wide_lines(command)


@pytest.mark.parametrize("width", [80, 120])
def test_a_wrapped_line_keeps_its_words_and_its_label(width: int) -> None:
    text = " ".join(f"word{n}" for n in range(60))
    for label, indent in LABELS.items():
        lines = wrap_line(label + text, width).splitlines()
        assert " ".join(lines).split() == (label + text).split()
        assert all(len(line) <= width for line in lines)
        assert all(line.startswith(" " * indent + "word") for line in lines[1:])
    long = "/".join(["folder"] * 40)
    assert wrap_line(f"memory  {long} {long}", width).splitlines() == [f"memory  {long}", f"        {long}"]
