"""The part of the report on classifications: a table of the labels, a confusion matrix, and the majority baseline.

>>> from potstill.records import Checkpoint
>>> counts = ((3, 1, 0, 0), (0, 1, 0, 0))
>>> table = LabelTable(Checkpoint(0), "t", "test", "f", "greedy", ("a", "b"), counts, "a", "train")
>>> [(row.label, row.n, row.precision, row.recall) for row in label_rows(table)]
[('a', 4, 1.0, 0.75), ('b', 1, 0.5, 1.0)]
>>> baseline_sentence(table)
'Always answering “a”, the most frequent label in training, would be right on 80.0\xa0% of t.'
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from potstill.evaluation import label_tables
from potstill.records import LabelTable
from potstill.report import summary
from potstill.report.model import ReportData

MAX_MATRIX = 20  # with more labels, the page has no confusion matrix; its CSV has it


@dataclass(frozen=True, slots=True)
class LabelRow:
    """A label: its number of questions, and the precision and recall of the answers; None if they are undefined."""

    label: str
    n: int
    answered: int
    precision: float | None
    recall: float | None


@dataclass(frozen=True, slots=True)
class LabelView:
    """A classification on the page: the chosen checkpoint, and the base for comparison (None if it is the same)."""

    table: LabelTable
    baseline: str
    rows: tuple[LabelRow, ...]
    base_rows: tuple[LabelRow, ...] | None
    mean_recall: float
    base_mean_recall: float | None
    matrix: bool


def label_rows(table: LabelTable) -> tuple[LabelRow, ...]:
    return tuple(
        LabelRow(
            label,
            sum(table.counts[index]),
            sum(row[index] for row in table.counts),
            table.precision(label),
            table.recall(label),
        )
        for index, label in enumerate(table.labels)
    )


def baseline_sentence(table: LabelTable) -> str:
    """The majority baseline of a set, in a sentence."""
    where = "in training" if table.majority_from == "train" else "of these questions"
    right = f"{summary.format_percent(table.majority_accuracy)} of {table.set}"
    return f"Always answering “{table.majority}”, the most frequent label {where}, would be right on {right}."


def main_tables(data: ReportData) -> Iterator[tuple[LabelTable, LabelTable | None]]:
    """The table of the last checkpoint for each set, in the main format and decoding; and that of the base, if it is not
    the same."""
    main = summary.main_format(data)
    by_set: dict[str, list[LabelTable]] = {}
    for table in data.labels:
        if (table.format, table.decoding) == main:
            by_set.setdefault(table.set, []).append(table)
    for base, *others in by_set.values():
        yield (others[-1], base) if others else (base, None)


def view_labels(data: ReportData) -> list[LabelView]:
    return [
        LabelView(
            table,
            baseline_sentence(table),
            label_rows(table),
            None if base is None else label_rows(base),
            label_tables.mean_recall(table),
            None if base is None else label_tables.mean_recall(base),
            len(table.labels) <= MAX_MATRIX,
        )
        for table, base in main_tables(data)
    ]


def label_csv_rows(data: ReportData) -> Iterator[Sequence[str | int | float | None]]:
    """One row for each label of each table, one for the mean recall, and one for the majority baseline."""
    for table in data.labels:
        keys = (table.set, table.format, table.decoding, table.checkpoint.json_value)
        for row in label_rows(table):
            yield (*keys, "label", row.label, row.n, row.answered, row.precision, row.recall)
        yield (*keys, "mean of labels", "", table.n, None, None, label_tables.mean_recall(table))
        yield (*keys, "majority baseline", table.majority, table.n, table.n, table.majority_accuracy, None)


def confusion_csv_rows(data: ReportData) -> Iterator[Sequence[str | int]]:
    """One row for each pair of a label and an answer that occurs."""
    for table in data.labels:
        keys = (table.set, table.format, table.decoding, table.checkpoint.json_value)
        for label, counts in zip(table.labels, table.counts, strict=True):
            for answer, number in zip((*table.labels, "(other)", "(none)"), counts, strict=True):
                if number:
                    yield (*keys, label, answer, number)
