"""Confusion matrices: the answers of a checkpoint to a classification, by label.

    >>> asked = [Question(f"t/{i}", "", gold, "t", "test", "t/label") for i, gold in enumerate(["bug", "bug", "billing"])]
    >>> said = [Prediction(q.id, "t", q.task, "", "end", "wrong", a) for q, a in zip(asked, ["bug", "billing", "dunno"])]
    >>> count_answers(asked, said, ["billing", "bug"])
    ((0, 0, 1, 0), (1, 1, 0, 0))

The rows are the right labels, and the columns the answers: one for each label, then other answers, then no answer. The
majority baseline is a model that always gives the most frequent label of the training questions.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final

from potstill import storage
from potstill.data import labels, run_questions
from potstill.recipe import Recipe
from potstill.records import Checkpoint, LabelTable, Prediction, Question, Split
from potstill.serialization import to_json

LABELS_FILE: Final = "labels.json"


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


def write_tables(run_dir: Path, recipe: Recipe, folder: Path, checkpoint: Checkpoint, split: Split) -> list[Path]:
    """Write the tables of a checkpoint's answers in a stage's folder. Returns the file; nothing without sets with labels."""
    sets = recipe.questions
    evaluated = [*sets.in_distribution, *sets.out_of_distribution, *sets.generic]
    names = {name: recipe.sets[name].labels for name in evaluated if name in recipe.sets}
    named = {name: found for name, found in names.items() if found is not None}
    if not named:
        return []
    tables = []
    for format in recipe.evaluate.formats:
        for decoding in (*recipe.evaluate.decodings, *(recipe.evaluate.test_decodings if split == "test" else ())):
            path = folder / checkpoint.name / f"{format}.{decoding}.jsonl"
            predictions = list(storage.iter_records(Prediction, path))
            for name, its_labels in named.items():
                questions = run_questions.read_questions(run_dir, [name], split)
                taught = run_questions.read_questions(run_dir, [name], "train") if name in sets.train else []
                frequency = Counter(question.gold for question in taught or questions)
                table = LabelTable(
                    checkpoint=checkpoint,
                    set=name,
                    split=split,
                    format=format,
                    decoding=decoding,
                    labels=tuple(its_labels),
                    counts=count_answers(questions, predictions, its_labels),
                    majority=max(its_labels, key=lambda label: frequency[label]),
                    majority_from="train" if taught else split,
                )
                tables.append(table)
    path = folder / checkpoint.name / LABELS_FILE
    storage.write_json(path, [to_json(table) for table in tables])
    return [path]


def read_tables(folder: Path, checkpoint: Checkpoint) -> list[LabelTable]:
    """The tables of a checkpoint in a stage's folder; empty without sets with labels."""
    path = folder / checkpoint.name / LABELS_FILE
    return storage.read_records(LabelTable, path) if path.exists() else []
