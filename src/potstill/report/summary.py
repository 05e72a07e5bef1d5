r"""Computes the numbers in the tables and figures of a report, and formats numbers and tokens as text.

>>> mean = mean_interval([Interval(0.2, 0.1, 0.3), Interval(0.4, 0.3, 0.5)])
>>> f"{mean.value:.3f} ({mean.low:.3f} to {mean.high:.3f})"
'0.300 (0.229 to 0.371)'
>>> percent_number(0.125), format_percent(0.125), format_points(-0.125), format_count(12345), format_duration(272)
('12.5', '12.5\xa0%', '−12.5', '12\u202f345', '4 min 32 s')
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final, Literal

from potstill.evaluation.selection import pareto_front
from potstill.records import BASE, Checkpoint, Choice, End, Prediction, Score
from potstill.report.model import SET_GROUPS, Comparison, Interval, Outcome, ReportData, SetGroup

Judgement = Literal["gained", "lost", "unclear"]
SPECIALIZED_GROUPS: Final[tuple[SetGroup, ...]] = ("in-distribution", "out-of-distribution")


@dataclass(frozen=True, slots=True)
class GroupChange:
    """The base and the chosen checkpoint on the test sets of a group, as unweighted means over the sets. `n` is the total
    number of questions."""

    group: SetGroup
    sets: tuple[str, ...]
    n: int
    base: Interval
    chosen: Interval
    difference: Interval


@dataclass(frozen=True, slots=True)
class CheckpointScores:
    """The validation accuracies of a checkpoint: by group, as the unweighted mean over its sets, and by set."""

    checkpoint: Checkpoint
    groups: Mapping[SetGroup, Interval] = field(default_factory=dict)
    sets: Mapping[str, Interval] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ScoreCell:
    """The accuracy on the `n` test questions of a set or a group.

    difference  paired difference from the base; None for the base itself
    truncated   share of the texts that were cut off without an answer; for a group, the unweighted mean over its sets
    """

    n: int
    accuracy: Interval
    difference: Interval | None
    truncated: float


@dataclass(frozen=True, slots=True)
class SummaryRow:
    """A student in the summary.

    name      base, specialized, repaired (after on-policy distillation), or the name of a control run
    training  a short description of its training data
    title     its name in a table
    sets      accuracies by set, in the order of the groups
    groups    accuracies by group, as the unweighted mean over its sets
    """

    name: str
    training: str
    title: str
    checkpoint: Checkpoint
    format: str
    sets: Mapping[str, ScoreCell]
    groups: Mapping[SetGroup, ScoreCell]


def accuracy_interval(score: Score) -> Interval:
    return Interval(score.accuracy, score.low, score.high)


def mean_interval(intervals: Sequence[Interval]) -> Interval:
    """The unweighted mean of independent estimates.

    The distance of each bound from the mean is the square root of the sum of the squared distances of the intervals'
    bounds, divided by their number (variance estimates recovery, Zou and Donner 2008). So the skewed intervals near 0 and
    1 stay within [0, 1].
    """
    assert intervals, "no intervals to average"
    n, value = len(intervals), sum(part.value for part in intervals) / len(intervals)
    below = math.sqrt(sum((part.value - part.low) ** 2 for part in intervals)) / n
    above = math.sqrt(sum((part.high - part.value) ** 2 for part in intervals)) / n
    return Interval(value, value - below, value + above)


def has_trained_choice(data: ReportData) -> bool:
    """Whether the chosen checkpoint is not the base, so that there is a before and an after."""
    return data.choice is not None and data.choice.checkpoint != BASE


def judge_change(change: Interval) -> Judgement:
    """What a change is called: gained or lost if its whole interval is on one side of zero, otherwise unclear.

    >>> judge_change(Interval(-0.2, -0.3, -0.1)), judge_change(Interval(0.01, -0.1, 0.12))
    ('lost', 'unclear')
    """
    return "gained" if change.low > 0 else "lost" if change.high < 0 else "unclear"


def main_format(data: ReportData) -> tuple[str, str] | None:
    """The format and decoding that the page shows first: those of the choice, or those of the first score if there is no
    choice."""
    scores = [row.chosen for row in data.comparisons] + list(data.validation)
    first = data.choice or (scores[0] if scores else None)
    return (first.format, first.decoding) if first else None


def main_comparisons(data: ReportData) -> tuple[Comparison, ...]:
    """The comparisons in the main format and decoding, in the order of the groups."""
    main = main_format(data)
    rows = [row for row in data.comparisons if (row.chosen.format, row.chosen.decoding) == main]
    return tuple(sorted(rows, key=lambda row: SET_GROUPS.index(data.groups[row.chosen.set])))


def changes_by_group(comparisons: Sequence[Comparison], groups: Mapping[str, SetGroup]) -> dict[SetGroup, GroupChange]:
    """The means of the comparisons over the sets of each group, for groups with a test set."""
    changes: dict[SetGroup, GroupChange] = {}
    for group in SET_GROUPS:
        rows = [row for row in comparisons if groups[row.chosen.set] == group]
        if rows:
            changes[group] = GroupChange(
                group,
                tuple(row.chosen.set for row in rows),
                sum(row.chosen.n for row in rows),
                mean_interval([accuracy_interval(row.base) for row in rows]),
                mean_interval([accuracy_interval(row.chosen) for row in rows]),
                mean_interval([row.difference for row in rows]),
            )
    return changes


def group_changes(data: ReportData) -> list[GroupChange]:
    """The change in every group that has a test set, in the main format and decoding."""
    return list(changes_by_group(main_comparisons(data), data.groups).values())


def summary_rows(data: ReportData) -> tuple[SummaryRow, ...]:
    """The rows of the summary: the base, the specialized student, and the controls, on the same test questions.

    Empty if the run has no comparisons; only the base if the rule chose step 0.
    """
    comparisons = main_comparisons(data)
    if not comparisons:
        return ()
    base = [replace(row, chosen=row.base) for row in comparisons]
    rows = [_summary_row("base", "", "base", data, base)]
    if has_trained_choice(data):
        rows.append(_summary_row("specialized", data.training, "specialized", data, comparisons))
        for control in data.controls:
            title = control.name if control.on_policy else f"control: {control.training}"
            rows.append(_summary_row(control.name, control.training, title, data, control.comparisons))
    return tuple(rows)


def _summary_row(
    name: str, training: str, title: str, data: ReportData, comparisons: Sequence[Comparison]
) -> SummaryRow:
    rows = sorted(comparisons, key=lambda row: SET_GROUPS.index(data.groups[row.chosen.set]))

    def cell(n: int, accuracy: Interval, difference: Interval, sets: Sequence[str]) -> ScoreCell:
        share = sum(truncated[set_name] for set_name in sets) / len(sets)
        return ScoreCell(n, accuracy, None if name == "base" else difference, share)

    truncated = {row.chosen.set: row.chosen.truncated / row.chosen.n for row in rows}
    sets = {
        row.chosen.set: cell(row.chosen.n, accuracy_interval(row.chosen), row.difference, [row.chosen.set])
        for row in rows
    }
    groups: dict[SetGroup, ScoreCell] = {
        group: cell(change.n, change.chosen, change.difference, change.sets)
        for group, change in changes_by_group(rows, data.groups).items()
    }
    return SummaryRow(name, training, title, rows[0].chosen.checkpoint, rows[0].chosen.format, sets, groups)


def scores_by_checkpoint(data: ReportData) -> tuple[CheckpointScores, ...]:
    """Validation scores by checkpoint, in the main format and decoding."""
    main, by_checkpoint = main_format(data), dict[Checkpoint, dict[str, Interval]]()
    for score in data.validation:
        if (score.format, score.decoding) == main:
            by_checkpoint.setdefault(score.checkpoint, {})[score.set] = accuracy_interval(score)
    rows = []
    for checkpoint, by_set in sorted(by_checkpoint.items()):
        sets = {name: by_set[name] for name in data.groups if name in by_set}
        groups: dict[SetGroup, Interval] = {}
        for group in SET_GROUPS:
            if intervals := [value for name, value in sets.items() if data.groups[name] == group]:
                groups[group] = mean_interval(intervals)
        rows.append(CheckpointScores(checkpoint, groups, sets))
    return tuple(rows)


@dataclass(frozen=True, slots=True)
class TradeoffPoint:
    """A checkpoint in the plane of generic and specialized accuracy on validation.

    group       the specialized group: in-distribution or out-of-distribution
    is_optimal  whether it is on the Pareto front: no other checkpoint is at least as good in both, and better in one
    """

    checkpoint: Checkpoint
    group: SetGroup
    specialized: float
    generic: float
    is_optimal: bool


def tradeoff_points(rows: Sequence[CheckpointScores]) -> tuple[TradeoffPoint, ...]:
    """The checkpoints that have a specialized and a generic accuracy, by specialized group: the base, checkpoints,
    interpolations, and the result of on-policy distillation."""
    points = list[TradeoffPoint]()
    for group in SPECIALIZED_GROUPS:
        plane = {
            row.checkpoint: (row.groups["generic"].value, row.groups[group].value)
            for row in rows
            if {"generic", group} <= set(row.groups)
        }
        front = set(pareto_front(plane))
        points += [TradeoffPoint(key, group, y, x, key in front) for key, (x, y) in plane.items()]
    return tuple(points)


def checkpoint_marks(choice: Choice, checkpoint: Checkpoint) -> list[str]:
    """The marks of a checkpoint in the table of the selection.

    chosen    it was chosen
    equal     its value is exactly the best value, which another checkpoint has, too
    tied      it cannot be distinguished from the best
    excluded  it loses more than a bound allows
    """
    marks = {
        "chosen": checkpoint == choice.checkpoint,
        "equal": len(choice.equal) > 1 and checkpoint in choice.equal,
        "tied": checkpoint in choice.tied,
        "excluded": not all(bound.keeps(checkpoint) for bound in choice.bounds),
    }
    return [name for name, holds in marks.items() if holds]


def outcome_of(before: Prediction | None, after: Prediction | None) -> Outcome | None:
    """The outcome of a question from the grades of both answers; right or not right if there is only one answer, and None
    without an answer."""
    if before is None:
        return None
    if after is None:
        return "right" if before.grade == "right" else "not right"
    if before.grade == "right":
        return "still right" if after.grade == "right" else "lost"
    return "won" if after.grade == "right" else "still wrong"


# Numbers, checkpoints and tokens as text, for the page, the card and the terminal


def format_points(difference: float) -> str:
    """A difference of shares in percentage points, with its sign unless it is zero.

    >>> format_points(0.125), format_points(-0.0004)
    ('+12.5', '0.0')
    """
    text = f"{100 * difference:+.1f}".replace("-", "\N{MINUS SIGN}")
    return text[1:] if text[1:] == "0.0" else text


def format_change(change: Interval) -> str:
    """A difference of shares in percentage points, with its bounds."""
    return f"{format_points(change.value)} ({format_points(change.low)} to {format_points(change.high)})"


def format_bits(bits: float, signed: bool = False) -> str:
    """Bits per byte as text, or their change with its sign.

    >>> format_bits(1.5068), format_bits(-0.0312, signed=True)
    ('1.507', '−0.031')
    """
    return f"{bits:{'+' if signed else ''}.3f}".replace("-", "\N{MINUS SIGN}")


def percent_number(share: float) -> str:
    """A share as a number in percent, without the sign "%"."""
    return f"{100 * share:.1f}"


def format_percent(share: float | Interval) -> str:
    """A share, or the value of an interval, as a percentage."""
    return f"{percent_number(share.value if isinstance(share, Interval) else share)}\N{NO-BREAK SPACE}%"


def format_count(number: int) -> str:
    """An integer. From 10 000 on, its thousands are separated by a narrow space."""
    return f"{number:,}".replace(",", "\N{NARROW NO-BREAK SPACE}") if abs(number) > 9999 else str(number)


def format_duration(seconds: float) -> str:
    """A duration in hours, minutes and seconds."""
    whole = round(seconds)
    if whole < 60:
        return f"{seconds:.1f} s"
    return f"{whole // 60} min {whole % 60} s" if whole < 3600 else f"{whole // 3600} h {whole % 3600 // 60} min"


def checkpoint_label(checkpoint: Checkpoint) -> str:
    """A checkpoint in a table: its step, the share of an interpolation (`350 × 0.3`), and its on-policy steps."""
    return f"{format_count(checkpoint.step)}{checkpoint.suffix}"


def readable_token(token: bytes | End) -> str:
    r"""A token as one short word. Whitespace is shown as symbols, and bytes that are not UTF-8 as hexadecimal numbers.

    >>> readable_token(b" 12"), readable_token(b"\n"), readable_token(b"\xe2\x82"), readable_token(b"")
    ('␣12', '⏎', 'E2 82', '∅')
    """
    if isinstance(token, End):
        return "end"
    try:
        text = token.decode("utf-8")
    except UnicodeDecodeError:
        return " ".join(f"{byte:02X}" for byte in token)
    return text.replace(" ", "␣").replace("\n", "⏎").replace("\t", "⇥") or "∅"
