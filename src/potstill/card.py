"""The model card: what a student is, what it was taught, what it gained and lost, as Markdown for its folder.

>>> story = Story("demo", student="tiny", teacher="local", groups={}, recipe="name: demo")
>>> text(story).splitlines()[0]
'# demo'
"""

from __future__ import annotations

from collections.abc import Iterable

from potstill.page import controls_sentence, label, percent, sentence
from potstill.story import ONE_SEED, Story, points, visible


def text(told: Story) -> str:
    """The card as Markdown. Texts of others (the recipe, notes) stand in code or as plain sentences."""
    parts = [f"# {told.name}", sentence(told)]
    if told.choice:
        chosen = f"Step {label(told.choice.contender)} of a training run"
        parts.append(
            f"{chosen}, chosen by {told.choice.rule} on validation questions. "
            f"Student: {told.student}. Teacher: {told.teacher}."
        )
    parts += told.notes
    if told.comparisons:
        parts += ["## Test", _table(told), "Intervals are 95 %, over the questions of one seed."]
        parts += [f"{controls_sentence(told)} {ONE_SEED}"] if told.controls else []
    parts += ["## Recipe", _fenced(told.recipe)]
    return visible("\n\n".join(parts)) + "\n"


def _table(told: Story) -> str:
    rows = ["| set | group | format | n | before | after | difference |", "|---|---|---|---|---|---|---|"]
    for row in told.comparisons:
        interval = f"{points(row.difference.low)} to {points(row.difference.high)}"
        rows.append(
            _row(
                (
                    row.chosen.set,
                    told.groups[row.chosen.set],
                    f"{row.chosen.format}, {row.chosen.decoding}",
                    str(row.chosen.n),
                    percent(row.base.accuracy),
                    percent(row.chosen.accuracy),
                    f"{points(row.difference.value)} ({interval})",
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
