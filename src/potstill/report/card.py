"""The model card: what a student is, what it was trained on, what it gained and lost, as Markdown for its folder.

>>> data = ReportData("demo", student="tiny", teacher="local", groups={}, recipe="name: demo")
>>> render_card(data).splitlines()[0]
'# demo'
"""

from __future__ import annotations

from collections.abc import Iterable

from potstill.errors import escape_hidden
from potstill.report.formatting import checkpoint_label, format_percent, format_points
from potstill.report.html import controls_sentence, summary_sentence
from potstill.report.model import ONE_SEED_NOTE, ReportData


def render_card(data: ReportData) -> str:
    """The card as Markdown. Foreign texts (the recipe, notes) are in code blocks or plain sentences."""
    parts = [f"# {data.name}", summary_sentence(data)]
    if data.choice:
        parts.append(
            f"Step {checkpoint_label(data.choice.checkpoint)} of a training run, chosen by {data.choice.rule} on"
            f" validation questions. Student: {data.student}. Teacher: {data.teacher}."
        )
    parts += data.notes
    if data.comparisons:
        parts += ["## Test", _table(data), "Intervals are 95 %, over the questions of one seed."]
        parts += [f"{controls_sentence(data)} {ONE_SEED_NOTE}"] if data.controls else []
    parts += ["## Recipe", _fenced(data.recipe)]
    return escape_hidden("\n\n".join(parts)) + "\n"


def _table(data: ReportData) -> str:
    lines = ["| set | group | format | n | before | after | difference |", "|---|---|---|---|---|---|---|"]
    for row in data.comparisons:
        score, change = row.chosen, row.difference
        cells = (
            score.set,
            data.groups[score.set],
            f"{score.format}, {score.decoding}",
            str(score.n),
            format_percent(row.base.accuracy),
            format_percent(score.accuracy),
            f"{format_points(change.value)} ({format_points(change.low)} to {format_points(change.high)})",
        )
        lines.append(_table_line(cells))
    return "\n".join(lines)


def _table_line(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _fenced(content: str) -> str:
    fence = "```"
    while fence in content:
        fence += "`"
    return f"{fence}yaml\n{content.rstrip()}\n{fence}"
