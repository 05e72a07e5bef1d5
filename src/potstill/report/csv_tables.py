"""Every table of the page as CSV text that a spreadsheet can open without running anything.

    >>> print(to_csv(["text", "number"], [["=1+1", -2], ["a, b", None]]), end="")
    "text","number"
    "'=1+1",-2
    "a, b",""

Numbers are bare and texts in quotes; a text that a spreadsheet would take for a formula begins with an apostrophe.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Final

from potstill.errors import escape_hidden
from potstill.records import END, Prediction, Score
from potstill.report.model import Comparison, ReportData, StageTime, readable_token
from potstill.report.summary import ScoreCell as Measured
from potstill.report.summary import scores_by_checkpoint, summary_rows

CellValue = str | int | float | None
Table = tuple[tuple[str, ...], list[tuple[CellValue, ...]]]
# What begins a formula in some spreadsheet; the full-width forms count too.
FORMULA_PREFIXES: Final = ("=", "+", "-", "@", "\t", "\r", "\n", "＝", "＋", "－", "＠")
INTERVAL_OVER: Final = (
    "questions, one seed"  # what the intervals of differences do not say: how seeds of a training vary
)
SCORE_COLUMNS: Final = ("n", "right", "no_answer", "truncated", "accuracy", "low", "high")
# Of sets with several tasks: our name -> the column's.
TASK_COLUMNS: Final = {
    "macro": "mean_over_tasks",
    "macro_low": "mean_over_tasks_low",
    "macro_high": "mean_over_tasks_high",
    "tasks_low": "low_by_task",
    "tasks_high": "high_by_task",
}


def build_tables(story: ReportData) -> dict[str, str]:
    """Every table and every figure's data as CSV text, by name; the empty ones are left out.

    Shares are in 0 to 1.
    """
    makers: dict[str, Callable[[ReportData], Table]] = {
        "summary": _summary_table,
        "before-after": _before_after_table,
        "tries": _pass_curve_table,
        "tradeoff": _tradeoff_table,
        "validation": _validation_table,
        "loss": lambda story: (("step", "loss"), list(story.losses)),
        "selection": _selection_table,
        "teacher": _teacher_table,
        "chain": _chain_table,
        "alignment": _alignment_table,
        "cost": lambda story: (("stage", "what", "number"), [(c.stage, c.what, c.number) for c in story.costs]),
        "samples": _examples_table,
    }
    made = {name: make(story) for name, make in makers.items()}
    return {name: to_csv(columns, rows) for name, (columns, rows) in made.items() if rows}


def to_csv(columns: Sequence[str], rows: Iterable[Sequence[CellValue]]) -> str:
    r"""CSV text (RFC 4180, but lines end in \n); floats are rounded to six places."""
    out = io.StringIO()
    writer = csv.writer(out, quoting=csv.QUOTE_NONNUMERIC, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows([_escape_formula(cell) for cell in row] for row in rows)
    return out.getvalue()


def _escape_formula(cell: CellValue) -> CellValue:
    if isinstance(cell, float):
        return round(cell, 6)
    if not isinstance(cell, str):
        return cell
    text = escape_hidden(cell)
    return "'" + text if text.lstrip(" \u00a0").startswith(FORMULA_PREFIXES) else text


def times_csv(times: Iterable[StageTime]) -> str:
    """Seconds and memory by stage."""
    return to_csv(("stage", "seconds", "memory_mib"), [(each.stage, each.seconds, each.memory_mib) for each in times])


def _summary_table(story: ReportData) -> Table:
    """One row a student and set, and one a student and group: the table that sums the run up."""
    rows: list[tuple[CellValue, ...]] = []
    for line in summary_rows(story):
        who = (line.name, line.taught, line.checkpoint.json_value, line.format)
        rows += [(*who, "set", name, story.groups[name], *_cell_values(cell)) for name, cell in line.sets.items()]
        rows += [(*who, "mean over sets", group, group, *_cell_values(cell)) for group, cell in line.groups.items()]
    names = ("student", "taught", "step", "format", "of", "name", "group", "n", "accuracy", "low", "high")
    return (*names, "difference", "difference_low", "difference_high", "interval_over"), rows


def _cell_values(cell: Measured) -> tuple[CellValue, ...]:
    own, change = cell.accuracy, cell.difference
    differences = (None, None, None, None) if change is None else (change.value, change.low, change.high, INTERVAL_OVER)
    return (cell.n, own.value, own.low, own.high, *differences)


def _before_after_table(story: ReportData) -> Table:
    rows: list[tuple[CellValue, ...]] = []
    for each in story.comparisons:
        rows.append(_score_values(story, "base", each.base, None))
        rows.append(_score_values(story, "chosen", each.chosen, each))
    for control in story.controls:
        role = control.name if control.repaired else f"control {control.name}"
        rows += [_score_values(story, role, each.chosen, each) for each in control.comparisons]
    names = ("set", "group", "format", "decoding", "checkpoint", "step", *SCORE_COLUMNS, *TASK_COLUMNS.values())
    return (*names, "difference", "difference_low", "difference_high", "won", "lost", "interval_over"), rows


def _score_values(story: ReportData, role: str, score: Score, against: Comparison | None) -> tuple[CellValue, ...]:
    where = (score.set, story.groups[score.set], score.format, score.decoding, role, score.checkpoint.json_value)
    numbers = tuple(getattr(score, name) for name in (*SCORE_COLUMNS, *TASK_COLUMNS))
    if against is None:
        return (*where, *numbers, None, None, None, None, None, None)
    change = against.difference
    return (*where, *numbers, change.value, change.low, change.high, against.won, against.lost, INTERVAL_OVER)


def _pass_curve_table(story: ReportData) -> Table:
    names = ("step", "set", "format", "drawing", "how", "k", "n", "accuracy", "low", "high")
    return names, [(each.checkpoint.json_value, *(getattr(each, name) for name in names[1:])) for each in story.tries]


def _tradeoff_table(story: ReportData) -> Table:
    chosen = story.choice.checkpoint if story.choice else None
    rows: list[tuple[CellValue, ...]] = [
        (
            row.checkpoint.json_value,
            group,
            mean.value,
            mean.low,
            mean.high,
            "chosen" if row.checkpoint == chosen else "",
        )
        for row in scores_by_checkpoint(story)
        for group, mean in row.groups.items()
    ]
    return ("step", "group", "mean_accuracy", "low", "high", "mark"), rows


def _validation_table(story: ReportData) -> Table:
    where = ("step", "set", "format", "decoding", *SCORE_COLUMNS)
    rows: list[tuple[CellValue, ...]] = [
        (score.checkpoint.json_value, *(getattr(score, name) for name in (*where[1:], *TASK_COLUMNS)))
        for score in story.validation
    ]
    return (*where, *TASK_COLUMNS.values()), rows


def _selection_table(story: ReportData) -> Table:
    if story.choice is None:
        return (), []
    choice = story.choice
    rows = [
        (each.json_value, value, "chosen" if each == choice.checkpoint else "", "tied" if each in choice.tied else "")
        for each, value in choice.table
    ]
    return ("step", "value", "chosen", "tied"), list(rows)


def _teacher_table(story: ReportData) -> Table:
    rows: list[tuple[CellValue, ...]] = []
    for source in story.sources:
        rows += [(source.name, "asked", "questions", source.questions), (source.name, "asked", "chains", source.chains)]
        rows += [(source.name, "verdict", grade, number) for grade, number in source.grades.items()]
        rows += [(source.name, "dropped", reason, number) for reason, number in source.dropped.items()]
        rows += [(source.name, "kept", "chains", source.kept), (source.name, "kept", "questions", source.taught)]
        rows += [
            (source.name, "questions with so many right", right, number) for right, number in source.solved.items()
        ]
        if single := source.single:
            shares = (("", single.value), ("_low", single.low), ("_high", single.high))
            rows += [(source.name, "single sample", f"right{end}", share) for end, share in shares]
    return ("source", "what", "of", "number"), rows


def _chain_table(story: ReportData) -> Table:
    """The steps of the pictured chain: every candidate with its probability, and whether it was drawn."""
    if story.pictured is None:
        return (), []
    [(chain, _)] = story.pictured.chains
    rows: list[tuple[CellValue, ...]] = []
    for number, step in enumerate(chain.candidates):
        own = chain.tokens[number] if number < len(chain.tokens) else END
        ordered = sorted(step, key=lambda candidate: -candidate[1])
        rows += [
            (number, readable_token(what), math.exp(value), "drawn" if what == own else "") for what, value in ordered
        ]
    return ("token", "candidate", "probability", "drawn"), rows


def _alignment_table(story: ReportData) -> Table:
    if story.alignment is None:
        return (), []
    rows: list[tuple[CellValue, ...]] = [
        (part, row.kind, row.positions, row.mass) for part, own in story.alignment.parts.items() for row in own
    ]
    rows += [("unknown characters", character, number, None) for character, number in story.alignment.unknown.items()]
    return ("part", "kind", "positions", "mass_kept"), rows


def _examples_table(story: ReportData) -> Table:
    rows: list[tuple[CellValue, ...]] = []
    for sample in story.samples:
        asked = (
            sample.question.id,
            sample.question.set,
            sample.question.split,
            sample.question.text,
            sample.question.gold,
        )
        for chain, verdict in sample.chains:
            rows.append((*asked, chain.source, chain.index, chain.text, verdict.grade, verdict.answer, verdict.dropped))
        answers: list[tuple[str, Prediction | None]] = [("base", sample.before), ("chosen", sample.after)]
        rows += [(*asked, who, each.index, each.text, each.grade, each.answer, None) for who, each in answers if each]
    return ("question", "set", "split", "text", "gold", "from", "index", "answer", "verdict", "found", "dropped"), rows
