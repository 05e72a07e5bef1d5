"""Plain text and tables on the terminal, for `status`, `compare`, the plans and the results of a run.

>>> plain_text("[bold]\x1b[31m").plain
'[bold]⟨U+001B⟩[31m'
>>> print(wrap_line("memory     about 0.78 GiB in training, and 0.59 GiB in evaluation", 40))
memory     about 0.78 GiB in training,
           and 0.59 GiB in evaluation
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterable
from typing import Final

from rich.console import Console
from rich.table import Table
from rich.text import Text

from potstill.errors import escape_hidden

NARROWEST_NAME: Final = 12  # characters of the first column, which continues on the next line if the terminal is narrow

LINE_WIDTHS: Final = (80, 120)  # a line of a plan is at least and at most so wide, if the terminal is
WIDEST_LABEL: Final = 24  # characters before the text of a line, under which the text continues


def plain_text(value: object, style: str = "") -> Text:
    """A text for the terminal. Markup is not interpreted, and control characters are escaped."""
    return Text(escape_hidden(str(value)), style)


def numbers_table(*columns: str, title: object) -> Table:
    """A table in which all columns except the first contain numbers."""
    table = Table(*columns[:1], title=plain_text(title), title_justify="left", box=None, pad_edge=False)
    for column in columns[1:]:
        table.add_column(column, justify="right", no_wrap=True)
    return table


def print_warnings(warnings: Iterable[str]) -> None:
    """Print warnings that a reader must know before the scores."""
    for warning in warnings:
        print_note(warning, "yellow")


def print_note(text: object, style: str = "") -> None:
    """Print sentences. Their lines break at spaces only, so that a path stays whole."""
    for line in str(text).split("\n"):
        Console().print(plain_text(wrap_line(line, line_width()), style), soft_wrap=True)


def print_table(table: Table) -> None:
    """Print a table whose lines do not end with spaces."""
    console = Console()
    for segments in console.render_lines(table, pad=False):
        line = Text()
        for segment in segments:
            line.append(segment.text, segment.style)
        line.rstrip()
        console.print(line, soft_wrap=True)


def line_width() -> int:
    """The number of columns for plain lines of text, from the terminal or COLUMNS."""
    narrowest, widest = LINE_WIDTHS
    return max(narrowest, min(widest, Console().width))


def wrap_line(line: str, width: int) -> str:
    """A line broken at its spaces. It continues under its text, which begins after its label.

    A word that is longer than the line, such as a path, is not broken.
    """
    if len(line) <= width:
        return line
    label = re.match(r"( *)(?:\S(?: ?\S)* {2,})?", line)
    assert label is not None, "the pattern also matches no character"
    begin, start = (label.end(),) * 2 if label.end() <= WIDEST_LABEL else (len(label[1]), len(label[1]) + 2)
    parts = textwrap.wrap(line[begin:], width - start, break_long_words=False, break_on_hyphens=False)
    return line[:begin] + f"\n{' ' * start}".join(parts)


def print_wrapped(lines: Iterable[str]) -> None:
    """Print lines of plain text, each wrapped to the terminal."""
    width = line_width()
    for line in lines:
        print(wrap_line(line, width), flush=True)
