"""Progress bars and messages for the person who watches, on standard error. Standard output is for results.

    >>> with bar("train", total=2, unit="step") as tick:
    ...     tick(1, "loss 0.5")
    ...     tick(1, "loss 0.4")

On a terminal it draws a bar with rate and remaining time. Elsewhere it prints a plain line every `LINE_INTERVAL`
seconds, so that a log file stays short.
"""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterator
from typing import Protocol

from potstill.errors import escape_hidden

LINE_INTERVAL = 15.0  # seconds between plain lines

_muted = False  # of several processes, only the main one prints


class Advance(Protocol):
    def __call__(self, more: int = 1, note: str = "") -> None: ...


@contextlib.contextmanager
def bar(label: str, total: int, unit: str = "", *, done: int = 0) -> Iterator[Advance]:
    """Show the progress of something that may take more than two seconds. Call the yielded function with the amount done
    since the last call, and a short note.

    total  amount to do
    done   part of it that an earlier run did, which does not count for the rate
    """
    if _muted:
        yield lambda more=1, note="": None
    elif sys.stderr.isatty():
        with _rich_bar(label, total, unit, done) as tick:
            yield tick
    else:
        yield _plain_bar(label, total, unit, done)


def print_line(text: str, style: str = "") -> None:
    """Print one line, on a terminal in a style of `rich` (`bold`, `green`, ...). Control characters are escaped, because
    the text may come from a server."""
    if _muted:
        return
    from rich.console import Console
    from rich.text import Text

    Console(stderr=True, soft_wrap=True).print(Text(escape_hidden(text), style=style))


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

    columns = (
        rich_progress.TextColumn("{task.description:<10}"),
        rich_progress.BarColumn(bar_width=28),
        rich_progress.MofNCompleteColumn(),
        rich_progress.TextColumn(unit),
        rich_progress.TextColumn("{task.fields[rate]}"),
        rich_progress.TimeRemainingColumn(compact=True),
        rich_progress.TextColumn("[dim]{task.fields[note]}"),
    )
    from rich.console import Console

    with rich_progress.Progress(*columns, console=Console(stderr=True)) as progress_bar:
        task = progress_bar.add_task(label, total=total, completed=done, rate="", note="")
        state = _BarState(label, total, unit, done)

        def tick(more: int = 1, note: str = "") -> None:
            state.done += more
            progress_bar.update(
                task, completed=state.done, rate=state.rate(), note=escape_hidden(note).replace("[", "\\[")
            )

        yield tick


def _plain_bar(label: str, total: int, unit: str, done: int) -> Advance:
    state = _BarState(label, total, unit, done)

    def tick(more: int = 1, note: str = "") -> None:
        state.done += more
        now = time.monotonic()
        if now - state.printed >= LINE_INTERVAL:
            state.printed = now
            print(escape_hidden(state.line(note)), file=sys.stderr, flush=True)

    return tick


class _BarState:
    """The progress of a bar, and when it started."""

    def __init__(self, label: str, total: int, unit: str, done: int) -> None:
        self.label, self.total, self.unit = label, total, unit
        self.done = self.done_before = done
        self.start = self.printed = time.monotonic()

    def speed(self) -> float:
        return (self.done - self.done_before) / max(time.monotonic() - self.start, 1e-9)

    def rate(self) -> str:
        speed = self.speed()
        return f"{speed:.1f}/s" if speed >= 1 else f"{1 / speed:.1f} s each" if speed > 0 else ""

    def line(self, note: str) -> str:
        speed = self.speed()
        left = f", {round((self.total - self.done) / speed)} s left" if speed > 0 and self.total >= self.done else ""
        unit = f" {self.unit}" if self.unit else ""
        return f"{self.label}: {self.done}/{self.total}{unit}, {self.rate()}{left}" + (f", {note}" if note else "")
