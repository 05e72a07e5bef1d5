"""Means of a story: what its tables and figures show, computed from its pieces.

>>> thirds = mean_interval([Interval(0.2, 0.1, 0.3), Interval(0.4, 0.3, 0.5)])
>>> f"{thirds.value:.3f} ({thirds.low:.3f} to {thirds.high:.3f})"
'0.300 (0.229 to 0.371)'
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from potstill.records import BASE, Checkpoint, Prediction, Score
from potstill.report.model import SET_GROUPS, Comparison, Interval, Outcome, ReportData, SetGroup


@dataclass(frozen=True, slots=True)
class GroupChange:
    """A group of sets on the test split, base against chosen: unweighted means over its sets. `n` items in all."""

    group: SetGroup
    sets: tuple[str, ...]
    n: int
    base: Interval
    chosen: Interval
    difference: Interval


@dataclass(frozen=True, slots=True)
class CheckpointScores:
    """One checkpoint on validation: the unweighted mean over the sets of each group, and every set alone."""

    checkpoint: Checkpoint
    groups: Mapping[SetGroup, Interval] = field(default_factory=dict)
    sets: Mapping[str, Interval] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ScoreCell:
    """An accuracy on the test items of a set or of a group, and its paired difference from the base (None for it)."""

    n: int
    accuracy: Interval
    difference: Interval | None = None


@dataclass(frozen=True, slots=True)
class SummaryRow:
    """One student of the table that sums a run up: the base, the specialized one, what was repaired, or a control.

    name    base, specialized, repaired, or the run of a control; `taught` is what the student learnt from
    shown   what a table calls it
    sets    in the order of the groups; groups are unweighted means over their sets
    """

    name: str
    taught: str
    checkpoint: Checkpoint
    format: str
    sets: Mapping[str, ScoreCell]
    groups: Mapping[SetGroup, ScoreCell]
    shown: str


def accuracy_interval(score: Score) -> Interval:
    """The accuracy of a score."""
    return Interval(score.accuracy, score.low, score.high)


def mean_interval(intervals: Sequence[Interval]) -> Interval:
    """The unweighted mean of independent estimates; its bounds from the distances of theirs.

    Each side is the root of the summed squares of the distances on that side, divided by the number (the method of
    variance estimates recovery, Zou and Donner 2008); it keeps the bounds of skewed intervals near 0 and 1 in range.
    """
    assert intervals, "the mean of nothing"
    n, value = len(intervals), sum(each.value for each in intervals) / len(intervals)
    below = math.sqrt(sum((each.value - each.low) ** 2 for each in intervals)) / n
    above = math.sqrt(sum((each.high - each.value) ** 2 for each in intervals)) / n
    return Interval(value, value - below, value + above)


def has_trained_choice(story: ReportData) -> bool:
    """Whether a checkpoint after step 0 was chosen, so that there is a before and an after."""
    return story.choice is not None and story.choice.checkpoint != BASE


def main_format(story: ReportData) -> tuple[str, str] | None:
    """The format and decoding that the page shows first: the choice's, without a choice those of the first score."""
    scores = [each.chosen for each in story.comparisons] + list(story.validation)
    first = story.choice or (scores[0] if scores else None)
    return (first.format, first.decoding) if first else None


def main_comparisons(story: ReportData) -> tuple[Comparison, ...]:
    """The comparisons in the main format and decoding, in the order of the groups."""
    mine = [each for each in story.comparisons if (each.chosen.format, each.chosen.decoding) == main_format(story)]
    return tuple(each for group in SET_GROUPS for each in mine if story.groups[each.chosen.set] == group)


def group_changes(story: ReportData) -> tuple[GroupChange, ...]:
    """Each group that has a test set, in the main format and decoding."""
    return tuple(changes_by_group(main_comparisons(story), story.groups).values())


def changes_by_group(comparisons: Sequence[Comparison], groups: Mapping[str, SetGroup]) -> dict[SetGroup, GroupChange]:
    """Comparisons as means over the sets of each group."""
    found: dict[SetGroup, GroupChange] = {}
    for group in SET_GROUPS:
        rows = [each for each in comparisons if groups[each.chosen.set] == group]
        if rows:
            found[group] = GroupChange(
                group,
                tuple(each.chosen.set for each in rows),
                sum(each.chosen.n for each in rows),
                mean_interval([accuracy_interval(each.base) for each in rows]),
                mean_interval([accuracy_interval(each.chosen) for each in rows]),
                mean_interval([each.difference for each in rows]),
            )
    return found


def summary_rows(story: ReportData) -> tuple[SummaryRow, ...]:
    """The run in one table: the base, the specialized student, and the controls on the same test items.

    Empty where nothing was compared; the base alone where the rule chose step 0.
    """
    own = main_comparisons(story)
    if not own:
        return ()
    base = [replace(each, chosen=each.base) for each in own]
    found = [_summary_row("base", "", "base", story, base, against=False)]
    if has_trained_choice(story):
        found.append(_summary_row("specialized", story.taught, "specialized", story, own))
        for each in story.controls:
            shown = each.name if each.repaired else f"control: {each.taught}"
            found.append(_summary_row(each.name, each.taught, shown, story, each.comparisons))
    return tuple(found)


def _summary_row(
    name: str, taught: str, shown: str, story: ReportData, rows: Sequence[Comparison], against: bool = True
) -> SummaryRow:
    rows = [each for group in SET_GROUPS for each in rows if story.groups[each.chosen.set] == group]
    sets = {
        each.chosen.set: ScoreCell(each.chosen.n, accuracy_interval(each.chosen), each.difference if against else None)
        for each in rows
    }
    groups: dict[SetGroup, ScoreCell] = {
        group: ScoreCell(each.n, each.chosen, each.difference if against else None)
        for group, each in changes_by_group(rows, story.groups).items()
    }
    return SummaryRow(name, taught, rows[0].chosen.checkpoint, rows[0].chosen.format, sets, groups, shown)


def scores_by_checkpoint(story: ReportData) -> tuple[CheckpointScores, ...]:
    """Validation by checkpoint, in the main format and decoding."""
    mine = [each for each in story.validation if (each.format, each.decoding) == main_format(story)]
    found = []
    for checkpoint in sorted({each.checkpoint for each in mine}):
        sets = {each.set: accuracy_interval(each) for each in mine if each.checkpoint == checkpoint}
        sets = {name: sets[name] for name in story.groups if name in sets}
        means: dict[SetGroup, Interval] = {}
        for group in SET_GROUPS:
            if rows := [value for name, value in sets.items() if story.groups[name] == group]:
                means[group] = mean_interval(rows)
        found.append(CheckpointScores(checkpoint, means, sets))
    return tuple(found)


def outcome_of(before: Prediction | None, after: Prediction | None) -> Outcome | None:
    """What training changed about one question; None without two answers."""
    if before is None or after is None:
        return None
    was, now = before.grade == "right", after.grade == "right"
    return ("still right" if now else "lost") if was else ("won" if now else "still wrong")
