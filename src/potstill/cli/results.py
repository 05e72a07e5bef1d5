"""The output of `run` and `demo` at the end of a run: its scores, with paired intervals."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.table import Table
from rich.text import Text

from potstill import cut_thoughts
from potstill.cli.tables import numbers_table, plain_text, print_note, print_table, print_warnings
from potstill.evaluation import checkpoint as checkpoints
from potstill.evaluation import label_tables
from potstill.records import BASE
from potstill.report import collect, label_views, sentences, summary
from potstill.report.model import SET_GROUPS
from potstill.report.summary import ScoreCell, SummaryRow, format_bits, format_points, percent_number
from potstill.run_reader import open_run


def print_summary(run_dir: Path) -> None:
    """Print a table of the base, the specialized student and the controls on every test set, with paired intervals.

    The path of the report page follows the table.
    """
    data = collect.collect_report(run_dir, open_run(run_dir).recipe)
    title = f"{data.name}: right answers on test, in percent"
    table = numbers_table("", "right", "against base", "95 % interval", title=title)
    students = summary.summary_rows(data)
    for group in SET_GROUPS:
        sets = [name for name in (students[0].sets if students else ()) if data.groups[name] == group]
        if sets:
            table.add_row(Text(group, "bold"))
        for name in sets:
            _add_students(table, name, [(row, row.sets[name]) for row in students])
        if len(sets) > 1:
            _add_students(table, f"mean of {len(sets)} sets", [(row, row.groups[group]) for row in students])
    print_table(table)
    formats = dict.fromkeys((row.chosen.format, row.chosen.decoding) for row in data.comparisons)
    if others := [" ".join(pair) for pair in formats if pair != summary.main_format(data)]:
        print_note(f"also evaluated (see the page): {', '.join(others)}", "dim")
    for row in data.texts:
        change = f"{format_bits(row.difference.value, signed=True)}"
        if len(row.base.bytes) > 1:
            change += (
                f" ({format_bits(row.difference.low, signed=True)} to {format_bits(row.difference.high, signed=True)})"
            )
        text = f"bits per byte of {row.base.name}: {format_bits(row.base.bits_per_byte)} before,"
        print_note(f"{text} {format_bits(row.chosen.bits_per_byte)} after, {change}")
    for counted, _ in label_views.main_tables(data):
        print_note(label_views.baseline_sentence(counted))
    assert data.choice is not None, "the report comes after select"
    rule = sentences.describe_rule(data.choice)
    print_note(f"chosen: step {data.choice.checkpoint.label} ({rule})", "dim")
    note = "intervals are over the questions of one seed; they do not include the variation between seeds"
    print_note(note, "dim")
    print_warnings(cut_thoughts.read_warnings(run_dir))
    print_note(f"page: {run_dir / 'report' / 'index.html'}")


def _add_students(table: Table, name: str, cells: Sequence[tuple[SummaryRow, ScoreCell]]) -> None:
    """Add one row per student for a set, or for the mean of several sets."""
    table.add_row(plain_text(f"  {name}, {cells[0][1].n} questions"))
    for row, cell in cells:
        title = plain_text(f"    {row.title}", "bold" if row.name == "specialized" else "")
        texts, style = ("", ""), ""
        if change := cell.difference:
            style = "green" if change.low > 0 else "red" if change.high < 0 else ""
            texts = (format_points(change.value), f"{format_points(change.low)} to {format_points(change.high)}")
        table.add_row(title, percent_number(cell.accuracy.value), *(Text(text, style) for text in texts))


def print_scores(run_dir: Path) -> None:
    """Print the scores of a run that only evaluates, in percent, by set and format; and the path of the answers."""
    columns = ("set", "n", "right", "95 % interval", "wrong", "no answer", "truncated")
    table = numbers_table(*columns, title=f"{run_dir.name}: answers on test, in percent")
    heading = None
    for score in checkpoints.read_scores(run_dir / "test", BASE):
        if (score.format, score.decoding) != heading:
            heading = score.format, score.decoding
            table.add_row(Text(" ".join(heading), "bold"))
        wrong = score.n - score.right - score.no_answer - score.truncated
        shares = [percent_number(count / score.n) for count in (wrong, score.no_answer, score.truncated)]
        if score.repeated:
            shares[-1] += f" ({percent_number(score.repeated / score.n)} repeating)"
        table.add_row(f"  {score.set}", str(score.n), *_format_accuracy(score.accuracy, score.low, score.high), *shares)
        if score.macro is not None:  # a set of several tasks: both means, with intervals over tasks
            assert score.tasks_low is not None and score.tasks_high is not None
            assert score.macro_low is not None and score.macro_high is not None
            micro = _format_accuracy(score.accuracy, score.tasks_low, score.tasks_high)
            macro = _format_accuracy(score.macro, score.macro_low, score.macro_high)
            table.add_row("    over tasks", "", *micro, "", "", "")
            table.add_row("    mean over tasks", "", *macro, "", "", "")
    print_table(table)
    print_warnings(cut_thoughts.read_warnings(run_dir))
    for labels in label_tables.read_tables(run_dir / "test", BASE):
        print_note(label_views.baseline_sentence(labels))
    for row in checkpoints.read_text_scores(run_dir / "test", BASE):
        print_note(f"bits per byte of {row.name}: {format_bits(row.bits_per_byte)}")
    print_note(f"answers: {run_dir / 'test' / '0'}")
    print_note(f"page: {run_dir / 'report' / 'index.html'}")


def _format_accuracy(value: float, low: float, high: float) -> tuple[str, str]:
    return percent_number(value), f"{percent_number(low)} to {percent_number(high)}"
