"""The model card: what a student is, what it was taught, what it gained and lost, as Markdown for its folder.

>>> story = ReportData("demo", student="tiny", teacher="local", groups={}, recipe="name: demo")
>>> render_card(story).splitlines()[0]
'# demo'
"""

from __future__ import annotations

from collections.abc import Iterable

from potstill.errors import escape_hidden
from potstill.report.html import checkpoint_label, controls_sentence, format_percent, summary_sentence
from potstill.report.model import ONE_SEED_NOTE, ReportData, format_points


def render_card(told: ReportData) -> str:
    """The card as Markdown. Texts of others (the recipe, notes) stand in code or as plain sentences."""
    parts = [f"# {told.name}", summary_sentence(told)]
    if told.choice:
        chosen = f"Step {checkpoint_label(told.choice.checkpoint)} of a training run"
        parts.append(
            f"{chosen}, chosen by {told.choice.rule} on validation questions. "
            f"Student: {told.student}. Teacher: {told.teacher}."
        )
    parts += told.notes
    if told.comparisons:
        parts += ["## Test", _table(told), "Intervals are 95 %, over the questions of one seed."]
        parts += [f"{controls_sentence(told)} {ONE_SEED_NOTE}"] if told.controls else []
    parts += ["## Recipe", _fenced(told.recipe)]
    return escape_hidden("\n\n".join(parts)) + "\n"


def _table(told: ReportData) -> str:
    rows = ["| set | group | format | n | before | after | difference |", "|---|---|---|---|---|---|---|"]
    for row in told.comparisons:
        interval = f"{format_points(row.difference.low)} to {format_points(row.difference.high)}"
        rows.append(
            _row(
                (
                    row.chosen.set,
                    told.groups[row.chosen.set],
                    f"{row.chosen.format}, {row.chosen.decoding}",
                    str(row.chosen.n),
                    format_percent(row.base.accuracy),
                    format_percent(row.chosen.accuracy),
                    f"{format_points(row.difference.value)} ({interval})",
                )
            )
        )
    return "\n".join(rows)


def _row(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _fenced(content: str) -> str:
    fence = "```"
    while fence in content:
        fence += "`"
    return f"{fence}yaml\n{content.rstrip()}\n{fence}"
