"""The scores of a run that only evaluates: one table, every set and format, with intervals."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from potstill import exam, story
from potstill.contenders import BASE
from potstill.records import Score


def summary(folder: Path) -> None:
    """Right, no answer and truncated of every set in percent, and where each answer stands."""
    title = Text(f"{folder.name}: answers on test, in percent")
    columns = ("set", "n", "right", "95 % interval", "wrong", "no answer", "truncated")
    table = Table(*columns, title=title, title_justify="left", box=None, pad_edge=False)
    for column in table.columns[1:]:
        column.justify = "right"
    format = ""
    for score in exam.scores(folder / "test", BASE):
        if (score.format, score.decoding) != format:
            format = score.format, score.decoding
            table.add_row(Text(" ".join(format), "bold"))
        wrong = score.n - score.right - score.no_answer - score.truncated
        shares = [story.percent(count / score.n) for count in (wrong, score.no_answer, score.truncated)]
        bounds = f"{story.percent(score.low)} to {story.percent(score.high)}"
        table.add_row(f"  {score.set}", str(score.n), story.percent(score.accuracy), bounds, *shares)
        _tasks(table, score)
    console = Console()
    console.print(table)
    console.print(Text(f"answers: {folder / 'test' / '0'}"), soft_wrap=True)


def _tasks(table: Table, score: Score) -> None:
    """A set of several tasks: both means, with intervals that take the tasks as drawn."""
    if score.macro is None:
        return
    rows = (
        ("if the tasks were drawn", score.accuracy, score.tasks_low, score.tasks_high),
        ("mean over tasks", score.macro, score.macro_low, score.macro_high),
    )
    for label, value, low, high in rows:
        assert low is not None and high is not None, "a set of several tasks has these bounds"
        table.add_row(
            f"    {label}", "", story.percent(value), f"{story.percent(low)} to {story.percent(high)}", "", "", ""
        )
