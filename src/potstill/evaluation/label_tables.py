"""Confusion matrices: the answers of a checkpoint to a classification, by label.

    >>> asked = [Question(f"t/{i}", "", gold, "t", "test", "t/label") for i, gold in enumerate(["bug", "bug", "billing"])]
    >>> said = [Prediction(q.id, "t", q.task, "", "end", "wrong", a) for q, a in zip(asked, ["bug", "billing", "dunno"])]
    >>> count_answers(asked, said, ["billing", "bug"])
    ((0, 0, 1, 0), (1, 1, 0, 0))

The rows are the right labels, and the columns the answers: one for each label, then other answers, then no answer. The
majority baseline is a model that always gives the most frequent label of the training questions.

A set is a classification if the recipe lists its labels, or if all its questions are of one task, and all its answers yes
or no, or a few choices. The labels are then the answers that occur.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

from potstill import storage
from potstill.data import labels, run_questions
from potstill.grading import canonicalize_gold, infer_answer_type
from potstill.recipe import Recipe
from potstill.records import Checkpoint, LabelTable, Prediction, Question, Split
from potstill.serialization import to_json

LABELS_FILE: Final = "labels.json"
CLOSED_TYPES: Final = ("boolean", "choice")  # answer types that are classifications without labels in the recipe
MAX_CLOSED: Final = 10  # most different answers of such a set


def count_answers(
    questions: Iterable[Question], predictions: Iterable[Prediction], names: Sequence[str]
) -> tuple[tuple[int, ...], ...]:
    """The confusion matrix of the questions, which all have a prediction. names: the labels. See `LabelTable.counts`."""
    answers = {prediction.question: prediction for prediction in predictions}
    column = {name: index for index, name in enumerate(names)}
    counts = [[0] * (len(names) + 2) for _ in names]
    for question in questions:
        answer = answers[question.id].answer
        label = None if answer is None else labels.match_label(answer, names)
        index = len(names) + 1 if answer is None else len(names) if label is None else column[label]
        counts[column[question.gold]][index] += 1
    return tuple(map(tuple, counts))


def mean_recall(table: LabelTable) -> float:
    """The mean recall of the labels that have questions (balanced accuracy). A rare label counts like a frequent one."""
    recalls = [found for label in table.labels if (found := table.recall(label)) is not None]
    return sum(recalls) / len(recalls)


def find_labels(questions: Sequence[Question]) -> tuple[str, ...] | None:
    """The labels of a set without labels in the recipe: its answers in canonical form, sorted. None: it has no labels.

    >>> find_labels([Question(f"t/{i}", "", gold, "t", "test", "choice") for i, gold in enumerate(["B", "(A)", "(B)"])])
    ('(A)', '(B)')
    >>> find_labels([Question("t/1", "", "7", "t", "test", "number")])
    """
    if len({question.task for question in questions}) != 1:
        return None
    types = {infer_answer_type(question.gold, question.task) for question in questions}
    if len(types) != 1 or not types.issubset(CLOSED_TYPES):
        return None
    found = sorted({canonicalize_gold(question.gold, *types) for question in questions})
    return tuple(found) if 2 <= len(found) <= MAX_CLOSED else None


def write_tables(run_dir: Path, recipe: Recipe, folder: Path, checkpoint: Checkpoint, split: Split) -> list[Path]:
    """Write the tables of a checkpoint's answers in a stage's folder. Returns the file; nothing without classifications."""
    evaluated = [*recipe.questions.in_distribution, *recipe.questions.out_of_distribution, *recipe.questions.generic]
    sets = [found for name in dict.fromkeys(evaluated) if (found := _read_set(run_dir, recipe, name, split))]
    if not sets:
        return []
    tables = []
    for format in recipe.evaluate.formats:
        for decoding in (*recipe.evaluate.decodings, *(recipe.evaluate.test_decodings if split == "test" else ())):
            path = folder / checkpoint.name / f"{format}.{decoding}.jsonl"
            predictions = list(storage.iter_records(Prediction, path))
            for name, names, questions, taught in sets:
                frequency = Counter(question.gold for question in taught or questions)
                table = LabelTable(
                    checkpoint=checkpoint,
                    set=name,
                    split=split,
                    format=format,
                    decoding=decoding,
                    labels=names,
                    counts=count_answers(questions, predictions, names),
                    majority=max(names, key=lambda label: frequency[label]),
                    majority_from="train" if taught else split,
                )
                tables.append(table)
    path = folder / checkpoint.name / LABELS_FILE
    storage.write_json(path, [to_json(table) for table in tables])
    return [path]


_LabelledSet = tuple[str, tuple[str, ...], list[Question], list[Question]]


def _read_set(run_dir: Path, recipe: Recipe, name: str, split: Split) -> _LabelledSet | None:
    """The name of a set, its labels, its questions of the split, and those of training; None without labels.

    The gold answers are labels as in the second value.
    """
    questions = run_questions.read_questions(run_dir, [name], split)
    taught = run_questions.read_questions(run_dir, [name], "train") if name in recipe.questions.train else []
    if name in recipe.sets and (listed := recipe.sets[name].labels) is not None:
        return name, tuple(listed), questions, taught
    names = find_labels([*questions, *taught])
    if names is None or not questions:
        return None
    return name, names, _canonical(questions), _canonical(taught)


def _canonical(questions: Iterable[Question]) -> list[Question]:
    """The questions with their gold answers in canonical form."""
    types = ((question, infer_answer_type(question.gold, question.task)) for question in questions)
    return [replace(question, gold=canonicalize_gold(question.gold, type_name)) for question, type_name in types]


def read_tables(folder: Path, checkpoint: Checkpoint) -> list[LabelTable]:
    """The tables of a checkpoint in a stage's folder; empty without classifications."""
    path = folder / checkpoint.name / LABELS_FILE
    return storage.read_records(LabelTable, path) if path.exists() else []
