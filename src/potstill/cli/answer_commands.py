"""The commands `ask` and `grade`: answers of a student, and verdicts on answers.

    potstill ask runs/demo --file questions.csv --out answers.csv
    potstill grade answers.csv

Heavy libraries are imported only when a command runs.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Optional

import typer

from potstill.cli.stage_commands import PrintsJson


def add_ask_command(app: typer.Typer) -> None:
    """Add the command `ask` to an application."""
    example = 'Example: potstill ask runs/demo "Ann has 3 apples and buys 4 more. How many has she?"'
    app.command("ask", epilog=example)(_ask)


def add_grade_command(app: typer.Typer) -> None:
    """Add the command `grade` to an application."""
    app.command("grade", epilog="Example: potstill grade answers.jsonl --task gsm8k --out graded.jsonl")(_grade)


def _ask(
    target: Annotated[
        str,
        typer.Argument(
            metavar="MODEL", help="A run, a student's folder, or a name as in `student.model`.", show_default=False
        ),
    ],
    question: Annotated[
        Optional[str],  # noqa: UP045
        typer.Argument(
            metavar="QUESTION",
            help="The question; without it, questions are read from standard input, one per line.",
            show_default=False,
        ),
    ] = None,
    file: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(
            metavar="FILE",
            help="Questions: a text file with one per line, or JSONL, JSON, CSV or Parquet with the column `question`.",
            show_default=False,
        ),
    ] = None,
    column: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(metavar="COLUMN", help="Column of the questions in FILE.", show_default="question"),
    ] = None,
    gold: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(metavar="COLUMN", help="Column of the right answers in FILE.", show_default="gold"),
    ] = None,
    format: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(
            metavar="NAME",
            help="Prompt format, such as zero-shot-rationale; by default, the format that selected the student.",
            show_default=False,
        ),
    ] = None,
    task: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(
            help="Task of all questions, such as bbh/navigate, if the student has several.", show_default=False
        ),
    ] = None,
    calculator: Annotated[
        Optional[bool],  # noqa: UP045
        typer.Option(
            "--calculator/--no-calculator",
            help="Whether a calculator writes results; by default, as in the evaluation.",
            show_default=False,
        ),
    ] = None,
    vote: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option(
            metavar="N", min=0, max=9999, help="The most frequent of N sampled answers; 0: greedy.", show_default=False
        ),
    ] = None,
    out: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(
            metavar="ANSWERS",
            help="Output file (.jsonl or .csv): the columns of FILE and the answers, for `potstill grade`.",
            show_default=False,
        ),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON row per question, for `potstill grade`.")
    ] = False,
) -> None:
    """Ask a trained student, with the prompt of its evaluation."""
    from potstill.cli import ask

    ask.ask(
        target,
        question,
        file=file,
        columns={"question": column or "", "gold": gold or ""},
        format=format,
        task=task,
        calculator=calculator,
        vote=vote,
        as_json=as_json,
        out=out,
    )


def _grade(
    path: Annotated[
        Path,
        typer.Argument(
            metavar="FILE", help="Rows with `text` and `gold`, optionally `task`, `set` and `stop`.", show_default=False
        ),
    ],
    out: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(
            metavar="GRADED.jsonl", help="Output file: the rows with `verdict` and `found`.", show_default=False
        ),
    ] = None,
    task: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(help="Task of rows without a task: gsm8k, bbh/navigate, number, choice, ...", show_default=False),
    ] = None,
    text: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(metavar="FIELD", help="Field of the answers.", show_default="text"),
    ] = None,
    gold: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(metavar="FIELD", help="Field of the right answers.", show_default="gold"),
    ] = None,
    as_json: PrintsJson = False,
) -> None:
    """Grade answers in a file: prints the accuracy with its interval.

    The file may be JSONL, JSON, CSV or Parquet, or samples that lm-evaluation-harness logged. Several sets, or else
    tasks, have a line each. Rows keep their order.
    """
    from potstill.cli import grade_rows

    columns = {name: column for name, column in (("text", text), ("gold", gold)) if column is not None}
    graded = grade_rows.grade_file(path, out, task, columns)
    if as_json:
        typer.echo(json.dumps({**graded.to_json(), "out": None if out is None else str(out)}, ensure_ascii=False))
        return
    grade_rows.print_counts(graded, path)
    if out is not None:
        typer.echo(f"rows with verdicts: {out}")
