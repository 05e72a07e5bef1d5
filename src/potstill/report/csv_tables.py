"""Every table of the page as CSV text that a spreadsheet can open without running anything.

    >>> print(to_csv(["text", "number"], [["=1+1", -2], ["a, b", None]]), end="")
    "text","number"
    "'=1+1",-2
    "a, b",""

Numbers are bare and texts are quoted; a text that a spreadsheet would take for a formula begins with an apostrophe.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Final

from potstill.errors import escape_hidden
from potstill.records import END, Prediction, Score
from potstill.report.formatting import readable_token
from potstill.report.model import Comparison, ReportData, StageTime
from potstill.report.summary import ScoreCell, scores_by_checkpoint, summary_rows

CellValue = str | int | float | None
CellRow = tuple[CellValue, ...]
Table = tuple[tuple[str, ...], list[CellRow]]
# The characters that begin a formula in some spreadsheet, with their full-width forms.
FORMULA_PREFIXES: Final = ("=", "+", "-", "@", "\t", "\r", "\n", "＝", "＋", "－", "＠")
INTERVAL_OVER: Final = "questions, one seed"  # intervals of differences leave out how seeds of a training vary
SCORE_COLUMNS: Final = ("n", "right", "no_answer", "truncated", "accuracy", "low", "high")
# Of sets with several tasks: field of a score -> column.
TASK_COLUMNS: Final = {
    "macro": "mean_over_tasks",
    "macro_low": "mean_over_tasks_low",
    "macro_high": "mean_over_tasks_high",
    "tasks_low": "low_by_task",
    "tasks_high": "high_by_task",
}


def build_tables(data: ReportData) -> dict[str, str]:
    """Every table and every figure's data as CSV text, by name; empty ones are left out. Shares are in [0, 1]."""
    builders: dict[str, Callable[[ReportData], Table]] = {
        "summary": _summary_table,
        "before-after": _before_after_table,
        "tries": _pass_curve_table,
        "tradeoff": _tradeoff_table,
        "validation": _validation_table,
        "loss": lambda data: (("step", "loss"), list(data.losses)),
        "selection": _selection_table,
        "teacher": _teacher_table,
        "chain": _chain_table,
        "alignment": _alignment_table,
        "cost": lambda data: (("stage", "what", "number"), [(c.stage, c.label, c.number) for c in data.costs]),
        "samples": _examples_table,
    }
    tables = {name: build(data) for name, build in builders.items()}
    return {name: to_csv(columns, rows) for name, (columns, rows) in tables.items() if rows}


def to_csv(columns: Sequence[str], rows: Iterable[Sequence[CellValue]]) -> str:
    r"""CSV text (RFC 4180, but lines end in \n); floats are rounded to six places."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, quoting=csv.QUOTE_NONNUMERIC, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows([_to_cell(value) for value in row] for row in rows)
    return buffer.getvalue()


def _to_cell(value: CellValue) -> CellValue:
    if isinstance(value, float):
        return round(value, 6)
    if not isinstance(value, str):
        return value
    text = escape_hidden(value)
    return "'" + text if text.lstrip(" \u00a0").startswith(FORMULA_PREFIXES) else text


def times_csv(times: Iterable[StageTime]) -> str:
    """Seconds and memory by stage."""
    return to_csv(("stage", "seconds", "memory_mib"), [(time.stage, time.seconds, time.memory_mib) for time in times])


def _summary_table(data: ReportData) -> Table:
    """A row per student and set, and one per student and group."""
    rows: list[CellRow] = []
    for row in summary_rows(data):
        student = (row.name, row.training, row.checkpoint.json_value, row.format)
        rows += [(*student, "set", name, data.groups[name], *_cell_values(cell)) for name, cell in row.sets.items()]
        rows += [(*student, "mean over sets", group, group, *_cell_values(cell)) for group, cell in row.groups.items()]
    names = ("student", "taught", "step", "format", "of", "name", "group", "n", "accuracy", "low", "high")
    return (*names, "difference", "difference_low", "difference_high", "interval_over"), rows


def _cell_values(cell: ScoreCell) -> CellRow:
    accuracy, change = cell.accuracy, cell.difference
    differences = (None,) * 4 if change is None else (change.value, change.low, change.high, INTERVAL_OVER)
    return (cell.n, accuracy.value, accuracy.low, accuracy.high, *differences)


def _before_after_table(data: ReportData) -> Table:
    rows: list[CellRow] = []
    for row in data.comparisons:
        rows.append(_score_values(data, "base", row.base, None))
        rows.append(_score_values(data, "chosen", row.chosen, row))
    for control in data.controls:
        role = control.name if control.on_policy else f"control {control.name}"
        rows += [_score_values(data, role, row.chosen, row) for row in control.comparisons]
    names = ("set", "group", "format", "decoding", "checkpoint", "step", *SCORE_COLUMNS, *TASK_COLUMNS.values())
    return (*names, "difference", "difference_low", "difference_high", "won", "lost", "interval_over"), rows


def _score_values(data: ReportData, role: str, score: Score, comparison: Comparison | None) -> CellRow:
    keys = (score.set, data.groups[score.set], score.format, score.decoding, role, score.checkpoint.json_value)
    numbers = tuple(getattr(score, name) for name in (*SCORE_COLUMNS, *TASK_COLUMNS))
    if comparison is None:
        return (*keys, *numbers, *(None,) * 6)
    change = comparison.difference
    differences = (change.value, change.low, change.high, comparison.won, comparison.lost, INTERVAL_OVER)
    return (*keys, *numbers, *differences)


def _pass_curve_table(data: ReportData) -> Table:
    names = ("step", "set", "format", "drawing", "how", "k", "n", "accuracy", "low", "high")
    rows: list[CellRow] = [
        (curve.checkpoint.json_value, *(getattr(curve, name) for name in names[1:])) for curve in data.pass_curves
    ]
    return names, rows


def _tradeoff_table(data: ReportData) -> Table:
    chosen = data.choice.checkpoint if data.choice else None
    rows: list[CellRow] = [
        (
            row.checkpoint.json_value,
            group,
            mean.value,
            mean.low,
            mean.high,
            "chosen" if row.checkpoint == chosen else "",
        )
        for row in scores_by_checkpoint(data)
        for group, mean in row.groups.items()
    ]
    return ("step", "group", "mean_accuracy", "low", "high", "mark"), rows


def _validation_table(data: ReportData) -> Table:
    names = ("step", "set", "format", "decoding", *SCORE_COLUMNS)
    rows: list[CellRow] = [
        (score.checkpoint.json_value, *(getattr(score, name) for name in (*names[1:], *TASK_COLUMNS)))
        for score in data.validation
    ]
    return (*names, *TASK_COLUMNS.values()), rows


def _selection_table(data: ReportData) -> Table:
    if data.choice is None:
        return (), []
    choice = data.choice
    rows: list[CellRow] = [
        (
            checkpoint.json_value,
            value,
            "chosen" if checkpoint == choice.checkpoint else "",
            "tied" if checkpoint in choice.tied else "",
        )
        for checkpoint, value in choice.table
    ]
    return ("step", "value", "chosen", "tied"), rows


def _teacher_table(data: ReportData) -> Table:
    rows: list[CellRow] = []
    for source in data.sources:
        name = source.name
        rows += [(name, "asked", "questions", source.questions), (name, "asked", "chains", source.chains)]
        rows += [(name, "verdict", grade, number) for grade, number in source.grades.items()]
        rows += [(name, "dropped", reason, number) for reason, number in source.dropped.items()]
        rows += [(name, "kept", "chains", source.kept), (name, "kept", "questions", source.kept_questions)]
        rows += [(name, "questions with so many right", right, number) for right, number in source.right_counts.items()]
        if single := source.single_sample:
            shares = (("right", single.value), ("right_low", single.low), ("right_high", single.high))
            rows += [(name, "single sample", column, share) for column, share in shares]
    return ("source", "what", "of", "number"), rows


def _chain_table(data: ReportData) -> Table:
    """The steps of the figures' chain: every candidate with its probability, and whether it was drawn."""
    if data.figure_chain is None:
        return (), []
    [(chain, _)] = data.figure_chain.chains
    rows: list[CellRow] = []
    for number, step in enumerate(chain.candidates):
        drawn = chain.tokens[number] if number < len(chain.tokens) else END
        ranked = sorted(step, key=lambda candidate: -candidate[1])
        rows += [
            (number, readable_token(token), math.exp(log), "drawn" if token == drawn else "") for token, log in ranked
        ]
    return ("token", "candidate", "probability", "drawn"), rows


def _alignment_table(data: ReportData) -> Table:
    if data.alignment is None:
        return (), []
    rows: list[CellRow] = [
        (part, row.kind, row.positions, row.mass) for part, kinds in data.alignment.parts.items() for row in kinds
    ]
    rows += [("unknown characters", character, number, None) for character, number in data.alignment.unknown.items()]
    return ("part", "kind", "positions", "mass_kept"), rows


def _examples_table(data: ReportData) -> Table:
    rows: list[CellRow] = []
    for example in data.examples:
        question = example.question
        keys = (question.id, question.set, question.split, question.text, question.gold)
        for chain, verdict in example.chains:
            rows.append((*keys, chain.source, chain.index, chain.text, verdict.grade, verdict.answer, verdict.dropped))
        answers: list[tuple[str, Prediction | None]] = [("base", example.before), ("chosen", example.after)]
        rows += [
            (*keys, name, answer.index, answer.text, answer.grade, answer.answer, None)
            for name, answer in answers
            if answer
        ]
    columns = ("question", "set", "split", "text", "gold", "from", "index", "answer", "verdict", "found", "dropped")
    return columns, rows
