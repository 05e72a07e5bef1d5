"""The tables of the page as CSV text, which a spreadsheet can open without running a formula.

    >>> print(to_csv(["text", "number"], [["=1+1", -2], ["a, b", None]]), end="")
    "text","number"
    "'=1+1",-2
    "a, b",""

Numbers are bare and texts are quoted. A text that a spreadsheet would interpret as a formula gets an apostrophe in front.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Final

from potstill.errors import escape_hidden
from potstill.records import END, Score
from potstill.report import label_views
from potstill.report.model import Comparison, Interval, OwnTextSummary, ReportData, StageTime
from potstill.report.summary import (
    changes_by_group,
    checkpoint_marks,
    readable_token,
    scores_by_checkpoint,
    summary_rows,
    tradeoff_points,
)

CellValue = str | int | float | None
Rows = Iterator[tuple[CellValue, ...]]
# Characters that begin a formula in a spreadsheet, with their full-width forms.
FORMULA_PREFIXES: Final = ("=", "+", "-", "@", "\t", "\r", "\n", "＝", "＋", "－", "＠")
INTERVAL_OVER: Final = "questions, one seed"  # intervals of differences do not include the variation between seeds
SCORE_COLUMNS: Final = ("n", "right", "no_answer", "truncated", "repeated", "accuracy", "low", "high")
# The columns for sets of several tasks, by field of a score.
TASK_COLUMNS: Final = {
    "macro": "mean_over_tasks",
    "macro_low": "mean_over_tasks_low",
    "macro_high": "mean_over_tasks_high",
    "tasks_low": "low_by_task",
    "tasks_high": "high_by_task",
}
CURVE_COLUMNS: Final = ("set", "format", "drawing", "how", "k", "n", "accuracy", "low", "high")


def build_tables(data: ReportData) -> dict[str, str]:
    """The data of every table and figure as CSV text, by name. Empty tables are left out. Shares are in [0, 1]."""
    tables: dict[str, tuple[str, Callable[[ReportData], Iterable[Sequence[CellValue]]]]] = {
        "summary": (
            "student taught step format of name group n accuracy low high difference difference_low difference_high"
            " interval_over",
            _summary_rows,
        ),
        "before-after": (
            f"set group format decoding checkpoint step {' '.join((*SCORE_COLUMNS, *TASK_COLUMNS.values()))} difference"
            " difference_low difference_high won lost interval_over",
            _before_after_rows,
        ),
        "texts": (
            "name checkpoint step texts bytes bits_per_byte difference difference_low difference_high",
            _text_rows,
        ),
        "labels": (
            "set format decoding step what label n answered precision recall",
            label_views.label_csv_rows,
        ),
        "confusion": ("set format decoding step label answer n", label_views.confusion_csv_rows),
        "tries": (f"step {' '.join(CURVE_COLUMNS)}", _pass_curve_rows),
        "tradeoff": ("step group mean_accuracy low high mark", _tradeoff_rows),
        "validation": (
            f"step set format decoding {' '.join((*SCORE_COLUMNS, *TASK_COLUMNS.values()))}",
            _validation_rows,
        ),
        "loss": ("step loss", lambda data: data.losses),
        "loss-kinds": (
            "step kind loss",
            lambda data: [(step, *pair) for step, by_kind in data.kind_losses for pair in by_kind.items()],
        ),
        "own-texts": ("step measure scorer value", lambda data: _own_text_rows(data.own_texts)),
        "repair-texts": ("step measure scorer value", lambda data: _own_text_rows(data.repair_texts)),
        "tasks": (
            "set task format n base_right chosen_right",
            lambda data: [(row.set, row.task, row.format, row.n, row.base, row.chosen) for row in data.tasks],
        ),
        "calibration": (
            "who of agree_above agree_up_to questions confidence right calibration_error bits_per_byte entropy",
            _calibration_rows,
        ),
        "pareto": (
            "step group specialized_accuracy generic_accuracy front",
            lambda data: [
                (row.checkpoint.json_value, row.group, row.specialized, row.generic, "front" if row.is_optimal else "")
                for row in tradeoff_points(scores_by_checkpoint(data))
            ],
        ),
        "selection": ("step value chosen tied equal optimism excluded", _selection_rows),
        "retain": ("step bound points_allowed points_lost excluded", _retention_rows),
        "rules": (
            "rule step value split group mean_accuracy low high price price_low price_high",
            _rule_rows,
        ),
        "teacher": ("source what of number", _teacher_rows),
        "chain": ("token candidate probability drawn", _chain_rows),
        "alignment": ("part kind positions mass_kept", _alignment_rows),
        "cost": ("stage what number", lambda data: [(cost.stage, cost.label, cost.number) for cost in data.costs]),
        "outcomes": ("set outcome number", _outcome_rows),
        "samples": ("question set split text gold from index answer verdict found dropped", _example_rows),
    }
    rows = {name: (columns.split(), list(build(data))) for name, (columns, build) in tables.items()}
    return {name: to_csv(columns, lines) for name, (columns, lines) in rows.items() if lines}


def to_csv(columns: Sequence[str], rows: Iterable[Sequence[CellValue]]) -> str:
    r"""CSV text (RFC 4180, but lines end in \n). Floats are rounded to six decimals."""
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
    """The CSV text of seconds and memory by stage."""
    return to_csv(("stage", "seconds", "memory_mib"), [(time.stage, time.seconds, time.memory_mib) for time in times])


def _bounds(interval: Interval) -> tuple[float, float, float]:
    return interval.value, interval.low, interval.high


def _summary_rows(data: ReportData) -> Rows:
    """One row for each student and set, one for each student and group, and one for each quoted figure."""
    for row in summary_rows(data):
        of_sets = [("set", name, data.groups[name], cell) for name, cell in row.sets.items()]
        of_groups = [("mean over sets", group, group, cell) for group, cell in row.groups.items()]
        for *labels, cell in of_sets + of_groups:
            change = (None,) * 4 if cell.difference is None else (*_bounds(cell.difference), INTERVAL_OVER)
            student = (row.name, row.training, row.checkpoint.json_value, row.format)
            yield (*student, *labels, cell.n, *_bounds(cell.accuracy), *change)
    for quoted in (row for row in data.quoted if row.set in data.groups):
        labels = (f"quoted: {quoted.source}", None, None, "quoted", quoted.set, data.groups[quoted.set])
        yield (quoted.name, *labels, quoted.n, quoted.share, *((None,) * 6))


def _before_after_rows(data: ReportData) -> Rows:
    def row(role: str, score: Score, against: Comparison | None) -> tuple[CellValue, ...]:
        keys = (score.set, data.groups[score.set], score.format, score.decoding, role, score.checkpoint.json_value)
        change = (*_bounds(against.difference), against.won, against.lost, INTERVAL_OVER) if against else (None,) * 6
        return (*keys, *_score_values(score), *change)

    for comparison in data.comparisons:
        yield row("base", comparison.base, None)
        yield row("chosen", comparison.chosen, comparison)
    for control in data.controls:
        role = control.name if control.on_policy else f"control {control.name}"
        yield from (row(role, comparison.chosen, comparison) for comparison in control.comparisons)


def _score_values(score: Score) -> tuple[CellValue, ...]:
    return tuple(getattr(score, name) for name in (*SCORE_COLUMNS, *TASK_COLUMNS))


def _text_rows(data: ReportData) -> Rows:
    for row in data.texts:
        for role, score in (("base", row.base), ("chosen", row.chosen)):
            change = _bounds(row.difference) if role == "chosen" else (None,) * 3
            bounds = [None if value is None or math.isnan(value) else value for value in change]
            counts = (len(score.bytes), sum(score.bytes), score.bits_per_byte)
            yield (score.name, role, score.checkpoint.json_value, *counts, *bounds)


def _own_text_rows(texts: OwnTextSummary | None) -> Rows:
    for row in texts.steps if texts else ():
        yield from ((row.step, "divergence", name, value) for name, value in row.divergences.items())
        yield from ((row.step, name, "", value) for name, value in row.measures.items())


def _pass_curve_rows(data: ReportData) -> Rows:
    for curve in data.pass_curves:
        yield (curve.checkpoint.json_value, *(getattr(curve, name) for name in CURVE_COLUMNS))


def _tradeoff_rows(data: ReportData) -> Rows:
    chosen = data.choice.checkpoint if data.choice else None
    for row in scores_by_checkpoint(data):
        for group, mean in row.groups.items():
            yield (row.checkpoint.json_value, group, *_bounds(mean), "chosen" if row.checkpoint == chosen else "")


def _validation_rows(data: ReportData) -> Rows:
    for score in data.validation:
        yield (score.checkpoint.json_value, score.set, score.format, score.decoding, *_score_values(score))


def _selection_rows(data: ReportData) -> Rows:
    if choice := data.choice:
        for checkpoint, value in choice.table:
            marks = checkpoint_marks(choice, checkpoint)
            found = [name if name in marks else "" for name in ("chosen", "tied", "equal", "excluded")]
            optimism = choice.optimism if checkpoint == choice.checkpoint else None
            yield checkpoint.json_value, value, *found[:3], optimism, found[3]


def _retention_rows(data: ReportData) -> Rows:
    for bound in data.choice.bounds if data.choice else ():
        for checkpoint, lost in bound.lost:
            excluded = "" if bound.keeps(checkpoint) else "excluded"
            yield checkpoint.json_value, bound.name, bound.points, lost, excluded


def _rule_rows(data: ReportData) -> Rows:
    """One row for each rule, split and group; on test, only for choices that were tested."""
    validation = {row.checkpoint: row for row in scores_by_checkpoint(data)}
    for rule in data.rules:
        keys = (rule.name, rule.checkpoint.json_value, rule.value)
        for group, mean in validation[rule.checkpoint].groups.items() if rule.checkpoint in validation else ():
            yield (*keys, "validation", group, *_bounds(mean), *(None,) * 3)
        prices = changes_by_group(rule.price, data.groups)
        for group, change in changes_by_group(rule.tested, data.groups).items():
            price = _bounds(prices[group].difference) if group in prices else (None,) * 3
            yield (*keys, "test", group, *_bounds(change.chosen), *price)


def _teacher_rows(data: ReportData) -> Rows:
    for source in data.sources:
        name = source.name
        yield name, "asked", "questions", source.questions
        yield name, "asked", "chains", source.chains
        yield from ((name, "verdict", grade, number) for grade, number in source.grades.items())
        yield from ((name, "dropped", reason, number) for reason, number in source.dropped.items())
        yield name, "kept", "chains", source.kept
        yield name, "kept", "questions", source.kept_questions
        if len(data.sources) > 1:
            yield name, "covered", "questions", source.covered
            yield name, "covered", "questions of no other source", source.covered_alone
            yield name, "written", "tokens", source.tokens
            if source.money is not None:
                yield name, "spent", "money", source.money
        for right, number in source.right_counts.items():
            yield name, "questions by number of right chains", right, number
        if source.single_sample:
            for column, share in zip(("right", "right_low", "right_high"), _bounds(source.single_sample), strict=True):
                yield name, "single sample", column, share


def _chain_rows(data: ReportData) -> Rows:
    """The steps of the chain in the figures: every candidate with its probability, and whether it was sampled."""
    if data.figure_chain:
        [(chain, _)] = data.figure_chain.chains
        for number, step in enumerate(chain.candidates):
            drawn = chain.tokens[number] if number < len(chain.tokens) else END
            for token, log in sorted(step, key=lambda candidate: -candidate[1]):
                yield number, readable_token(token), math.exp(log), "drawn" if token == drawn else ""


def _alignment_rows(data: ReportData) -> Rows:
    if data.alignment:
        for part, kinds in data.alignment.parts.items():
            yield from ((part, row.kind, row.positions, row.mass) for row in kinds)
        for character, number in data.alignment.unknown.items():
            yield "unknown characters", character, number, None


def _calibration_rows(data: ReportData) -> Rows:
    for row in data.calibrations:
        for part in row.bins:
            counts = (part.low, part.high, part.n, part.confidence, part.right)
            yield (row.who, row.of, *counts, row.error, row.bits_per_byte, row.entropy)


def _outcome_rows(data: ReportData) -> Rows:
    for name, counts in data.outcomes.items():
        yield from ((name, outcome, number) for outcome, number in counts.items())


def _example_rows(data: ReportData) -> Rows:
    for example in data.examples:
        question = example.question
        keys = (question.id, question.set, question.split, question.text, question.gold)
        for chain, verdict in example.chains:
            yield (*keys, chain.source, chain.index, chain.text, verdict.grade, verdict.answer, verdict.dropped)
        for name, answer in (("base", example.before), ("chosen", example.after)):
            if answer:
                yield (*keys, name, answer.index, answer.text, answer.grade, answer.answer, None)
