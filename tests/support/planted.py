"""A run whose checkpoints have planted accuracies: every stage is real, except that no model generates an answer."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest

import tiny
from potstill import evaluation
from potstill.evaluation import checkpoint
from potstill.records import Checkpoint, Prediction

N = 40  # questions of each set
# set -> checkpoint -> share of right answers, on validation and on test; other checkpoints have 0
Accuracies = Mapping[str, Mapping[int | str, float]]


def world(data: Path) -> Path:
    """Make the sets of the tiny run larger."""
    for name in tiny.SETS:
        rows = tiny.rows(name, N)
        (data / "sets" / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return data


def plant(monkeypatch: pytest.MonkeyPatch, validation: Accuracies, test: Accuracies) -> None:
    """The first questions of a set are answered correctly, as many as a checkpoint's share says."""

    @contextmanager
    def no_engine(run_dir: Path, recipe: object, current: Checkpoint) -> Iterator[Checkpoint]:
        yield current

    def predict(
        engine: Checkpoint, questions, prompt_of, decode, *, done=(), **_: object
    ) -> Iterator[list[Prediction]]:
        seen: dict[str, int] = {}
        totals: dict[str, int] = {}
        for question in questions:
            totals[question.set] = totals.get(question.set, 0) + 1
        for question in sorted(questions, key=lambda question: question.id):
            shares = (test if question.split == "test" else validation)[question.set]
            at = seen[question.set] = seen.get(question.set, -1) + 1
            right = at < shares.get(engine.json_value, 0.0) * totals[question.set] - 1e-9
            grade, answer = ("right", question.gold) if right else ("wrong", "-1")
            yield [
                Prediction(question.id, question.set, question.task, f"The answer is {answer}", "end", grade, answer)
            ]

    monkeypatch.setattr(checkpoint, "open_checkpoint_engine", no_engine)
    monkeypatch.setattr(evaluation, "predict_answers", predict)
