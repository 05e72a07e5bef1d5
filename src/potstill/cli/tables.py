"""Plain text and tables on the terminal, for `status`, `compare` and the results of a run.

>>> plain_text("[bold]\x1b[31m").plain
'[bold]⟨U+001B⟩[31m'
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from rich.console import Console
from rich.table import Table
from rich.text import Text

from potstill.errors import escape_hidden

NARROWEST_NAME: Final = 12  # characters of the first column, which continues on the next line if the terminal is narrow


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
        Console().print(plain_text(warning, "yellow"), soft_wrap=True)
