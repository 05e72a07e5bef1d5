"""The sentences of the page and of the model card.

>>> from potstill.report.model import Interval
>>> data = ReportData("demo", student="tiny", teacher="local", groups={}, recipe="seed: 1")
>>> summary_sentence(data)
'Nothing was compared: the run has no scores on the test split.'
>>> headline_sentence(data), controls_sentence(data)
('', '')
>>> summary.judge_change(Interval(-0.2, -0.3, -0.1)), summary.judge_change(Interval(0.01, -0.1, 0.12))
('lost', 'unclear')
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from potstill.records import BASE
from potstill.report import summary
from potstill.report.model import ReportData, SetGroup
from potstill.report.model_comparison import ModelComparison
from potstill.report.summary import GroupChange, Judgement

GROUP_MEANINGS: Final[Mapping[SetGroup, str]] = {
    "in-distribution": "new questions of the sets it was taught",
    "out-of-distribution": "other sets of the same kind of task",
    "generic": "other tasks, which it was not taught",
}
EVALUATED_MEANINGS: Final[Mapping[SetGroup, str]] = {
    "in-distribution": "the sets of the task itself",
    "out-of-distribution": "other sets of the same kind of task",
    "generic": "other tasks",
}


def headline_sentence(data: ReportData) -> str:
    """What was taught, and what the student gained and lost by it. Empty without a change to report.

    A change whose interval includes zero is neither gained nor lost.
    """
    changes = summary.group_changes(data)
    if not changes or not summary.has_trained_choice(data):
        return ""
    parts = [f"Taught: {data.training}." if data.training else ""]
    words: tuple[tuple[Judgement, str], ...] = (("gained", "Gained"), ("lost", "Lost"))
    for judgement, word in words:
        found = [change for change in changes if summary.judge_change(change.difference) == judgement]
        if found:
            points = [
                f"{summary.percent_number(abs(change.difference.value))}{' points' if not number else ''}"
                f" {_group_phrase(change.group)}"
                for number, change in enumerate(found)
            ]
            parts.append(f"{word}: {', '.join(points)}.")
    unclear = [change for change in changes if summary.judge_change(change.difference) == "unclear"]
    if unclear:
        parts.append(f"No clear change: {', '.join(_group_phrase(change.group) for change in unclear)}.")
    return " ".join(part for part in parts if part)


def summary_sentence(data: ReportData) -> str:
    """One sentence that compares the base and the chosen checkpoint on the test split, by group, with paired 95 %
    intervals."""
    changes = summary.group_changes(data)
    if not changes:
        return "Nothing was compared: the run has no scores on the test split."
    if not data.is_trained or (data.choice and data.choice.checkpoint == BASE):
        scores = ", ".join(
            f"{summary.format_percent(change.base)} {_group_phrase(change.group)} ({_describe_sets(change)}; 95\xa0% interval"
            f" {summary.format_percent(change.base.low)} to {summary.format_percent(change.base.high)})"
            for change in changes
        )
        start = "The rule chose step 0, the student before training."
        if not data.is_trained:
            start = "The model was evaluated, and not trained."
        return f"{start} Its accuracy on the test split is {scores}."
    parts = [
        f"from {summary.format_percent(change.base)} to {summary.format_percent(change.chosen)} {_group_phrase(change.group)}"
        f" ({_describe_sets(change)}; {summary.format_points(change.difference.value)} points, 95\xa0% interval"
        f" {summary.format_points(change.difference.low)} to {summary.format_points(change.difference.high)})"
        for change in changes
    ]
    start = "After training"
    if data.choice:
        share = data.choice.checkpoint.share
        start = f"After {summary.format_count(data.choice.checkpoint.step)} training steps"
        start += "" if share == 1 else f", with {summary.format_percent(share)} of the change in the weights"
    return f"{start}, accuracy on the test split went {_join_words(parts)}."


def controls_sentence(data: ReportData) -> str:
    """A sentence with the accuracies of the controls, from the same base on the same questions; empty without controls."""
    steps = {control.name: control.steps for control in data.controls}
    parts = []
    for row in summary.summary_rows(data)[2:]:
        reached = [
            f"{summary.format_percent(cell.accuracy)} {_group_phrase(group)}" for group, cell in row.groups.items()
        ]
        parts.append(f"{summary.format_count(steps[row.name])} steps on {row.training} reached {_join_words(reached)}")
    return f"For comparison, from the same base, each with one seed: {'; '.join(parts)}." if parts else ""


def describe_judgements(comparison: ModelComparison) -> list[tuple[str, str]]:
    """(model, what changed against the first model), for every model but the first, by the first format."""
    first = comparison.sets[0].answers
    rows = [row for row in comparison.sets if row.answers == first]
    described = []
    for index, model in enumerate(comparison.models[1:], 1):
        parts = []
        for word, judgement in (("better on", "gained"), ("worse on", "lost"), ("no clear difference on", "unclear")):
            names = [
                row.set for row in rows if (change := row.changes[index]) and summary.judge_change(change) == judgement
            ]
            if names:
                parts.append(f"{word} {', '.join(names)}")
        described.append((model, "; ".join(parts)))
    return described


def _group_phrase(group: SetGroup) -> str:
    return "on generic tasks" if group == "generic" else group


def _join_words(parts: Sequence[str]) -> str:
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])}, and {parts[-1]}"


def _describe_sets(change: GroupChange) -> str:
    return change.sets[0] if len(change.sets) == 1 else f"mean of {len(change.sets)} sets"
