"""Progress bars and messages for the user, on standard error. Standard output is for results.

    >>> with bar("train", total=2, unit="step") as tick:
    ...     tick(1, "loss 0.5")
    ...     tick(1, "loss 0.4")

On a terminal, `bar` draws a bar with the rate and the remaining time. Elsewhere it prints a plain line every
`LINE_INTERVAL` seconds, so that a log file stays short. If a terminal cannot show a character, a similar one is printed:

    >>> "−0.5 × “a” → é ␣ 猫".encode("ascii", NEAREST_HANDLER)
    b'-0.5 x "a" -> e _ ?'
"""

from __future__ import annotations

import codecs
import contextlib
import io
import sys
import time
import unicodedata
from collections.abc import Iterator
from typing import Final, Protocol

from potstill.errors import escape_hidden

LINE_INTERVAL = 15.0  # seconds between plain lines

_muted = False  # with several processes, all but the main process are muted


class Advance(Protocol):
    def __call__(self, more: int = 1, note: str = "") -> None: ...


@contextlib.contextmanager
def bar(label: str, total: int, unit: str = "", *, done: int = 0) -> Iterator[Advance]:
    """Show the progress of work that may take more than two seconds. Call the yielded function with the amount done since
    the last call, and a short note.

    total  amount of work
    done   amount that an earlier process has done; it does not count for the rate

    If the first call has the amount 0, it prints at once how much is to do. This is for work whose first unit takes long.
    """
    if _muted:
        yield lambda more=1, note="": None
    elif sys.stderr.isatty():
        with _rich_bar(label, total, unit, done) as tick:
            yield tick
    else:
        yield _plain_bar(label, total, unit, done)


def print_line(text: str, style: str = "") -> None:
    """Print a line. On a terminal it has a style of `rich` (`bold`, `green`, ...). Control characters are escaped, because
    the text may come from a server."""
    if _muted:
        return
    from rich.console import Console
    from rich.text import Text

    # In a notebook, too, this is standard error, like the plain lines of `bar`.
    Console(stderr=True, soft_wrap=True, force_jupyter=False).print(Text(escape_hidden(text), style=style))


@contextlib.contextmanager
def muted() -> Iterator[None]:
    """Show nothing during the block."""
    global _muted
    before, _muted = _muted, True
    try:
        yield
    finally:
        _muted = before


@contextlib.contextmanager
def _rich_bar(label: str, total: int, unit: str, done: int) -> Iterator[Advance]:
    from rich import progress as rich_progress
    from rich.console import Console

    columns = (
        rich_progress.TextColumn("{task.description:<10}"),
        rich_progress.BarColumn(bar_width=28),
        rich_progress.MofNCompleteColumn(),
        rich_progress.TextColumn(unit),
        rich_progress.TextColumn("{task.fields[rate]}"),
        rich_progress.TimeRemainingColumn(compact=True),
        rich_progress.TextColumn("[dim]{task.fields[note]}"),
    )
    with rich_progress.Progress(*columns, console=Console(stderr=True, force_jupyter=False)) as progress_bar:
        task = progress_bar.add_task(label, total=total, completed=done, rate="", note="")
        completed, start = done, time.monotonic()

        def tick(more: int = 1, note: str = "") -> None:
            nonlocal completed
            completed += more
            rate = _format_rate(_speed(completed - done, start))
            progress_bar.update(task, completed=completed, rate=rate, note=escape_hidden(note).replace("[", "\\["))

        yield tick


def _plain_bar(label: str, total: int, unit: str, done: int) -> Advance:
    completed, start, is_first = done, time.monotonic(), True
    printed = start

    def tick(more: int = 1, note: str = "") -> None:
        nonlocal completed, printed, is_first
        completed += more
        if is_first and not more:
            printed = time.monotonic()
            begins = f"{done}/{total} {unit}, continues" if done else f"{total} {unit} to come"
            print(escape_hidden(", ".join(filter(None, (f"{label}: {begins}", note)))), file=sys.stderr, flush=True)
        elif time.monotonic() - printed >= LINE_INTERVAL:
            printed, speed = time.monotonic(), _speed(completed - done, start)
            left = f"{round((total - completed) / speed)} s left" if speed > 0 and total >= completed else ""
            count = f"{completed}/{total}" + (f" {unit}" if unit else "")
            parts = (f"{label}: {count}", _format_rate(speed), left, note)
            print(escape_hidden(", ".join(part for part in parts if part)), file=sys.stderr, flush=True)
        is_first = False

    return tick


def _speed(amount: int, start: float) -> float:
    return amount / max(time.monotonic() - start, 1e-9)


def _format_rate(speed: float) -> str:
    return f"{speed:.1f}/s" if speed >= 1 else f"{1 / speed:.1f} s each" if speed > 0 else ""


# For terminals that cannot show every character (the C locale, PYTHONIOENCODING=ascii). Files and the output of `export`
# are always UTF-8.

NEAREST_HANDLER: Final = "potstill.nearest"  # the name of the error handler
_SIMILAR: Final = {
    "\N{MINUS SIGN}": "-",
    "\N{EN DASH}": "-",
    "\N{EM DASH}": "-",
    "\N{MULTIPLICATION SIGN}": "x",
    "\N{DIVISION SIGN}": "/",
    "\N{PLUS-MINUS SIGN}": "+-",
    "\N{LEFT DOUBLE QUOTATION MARK}": '"',
    "\N{RIGHT DOUBLE QUOTATION MARK}": '"',
    "\N{LEFT SINGLE QUOTATION MARK}": "'",
    "\N{RIGHT SINGLE QUOTATION MARK}": "'",
    "\N{MATHEMATICAL LEFT ANGLE BRACKET}": "<",
    "\N{MATHEMATICAL RIGHT ANGLE BRACKET}": ">",
    "\N{RIGHTWARDS ARROW}": "->",
    "\N{LEFTWARDS ARROW}": "<-",
    "\N{RETURN SYMBOL}": "\\n",
    "\N{RIGHTWARDS ARROW TO BAR}": "\\t",
    "\N{OPEN BOX}": "_",
    "\N{EMPTY SET}": "(empty)",
    "\N{BULLET}": "*",
    "\N{MIDDLE DOT}": ".",
}


def replace_unencodable() -> None:
    """Make standard output and error replace characters that they cannot encode."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=NEAREST_HANDLER)


def _nearest(error: UnicodeError) -> tuple[str, int]:
    assert isinstance(error, UnicodeEncodeError), "only encoding"
    return "".join(map(_similar_character, error.object[error.start : error.end])), error.end


def _similar_character(character: str) -> str:
    if character in _SIMILAR:
        return _SIMILAR[character]
    plain = unicodedata.normalize("NFKD", character).encode("ascii", "ignore").decode()
    if plain:
        return plain
    if 0x2500 <= ord(character) < 0x2580:  # box-drawing characters
        return "-" if ord(character) % 4 < 2 else "|"
    return "" if unicodedata.category(character) in ("Mn", "Me", "Cf") else "?"


codecs.register_error(NEAREST_HANDLER, _nearest)
