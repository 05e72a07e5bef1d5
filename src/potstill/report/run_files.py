"""The files of a finished run as values, each file read when it is first needed and only once.

    files = RunFiles(Path("runs/demo"), recipe)
    files.choice.checkpoint, files.counts("train")["steps"]
    files.test_answers(BASE, "zero-shot-rationale", "greedy").correct["gsm8k"]    # question id -> bool

No test split is opened: only the answers that `test` wrote are read.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any

from potstill import storage
from potstill.evaluation import checkpoint as checkpoints
from potstill.recipe import Recipe
from potstill.records import BASE, Checkpoint, Choice, Grade, Prediction, Score
from potstill.report.model import SetGroup
from potstill.storage import manifest, parquet
from potstill.storage.manifest import Manifest

VerdictCounts = Counter[tuple[Grade, str | None]]  # (grade, reason for dropping) -> chains


@dataclass(frozen=True, slots=True)
class TestAnswers:
    """The test answers of one checkpoint in one format and decoding: set -> score, set -> question id -> is it right."""

    scores: dict[str, Score]
    correct: dict[str, dict[str, bool]]


class RunFiles:
    """A run directory, read lazily."""

    def __init__(self, run_dir: Path, recipe: Recipe) -> None:
        self.run_dir, self.recipe = run_dir, recipe
        self.manifest = cache(self._read_manifest)
        self.test_answers = cache(self._read_test_answers)

    def _read_manifest(self, stage: str) -> Manifest:
        """The manifest of a finished stage."""
        finished = manifest.read_finished(self.run_dir / stage)
        assert finished is not None, f"{stage} comes before the report"
        return finished

    def counts(self, stage: str) -> Mapping[str, Any]:
        """What a stage counted, as in its manifest."""
        return self.manifest(stage).counts

    @cached_property
    def choice(self) -> Choice:
        return checkpoints.read_choice(self.run_dir)

    @cached_property
    def groups(self) -> dict[str, SetGroup]:
        """The group of every evaluation set."""
        questions = self.recipe.questions
        sets_by_group: tuple[tuple[SetGroup, list[str]], ...] = (
            ("in-distribution", questions.in_distribution),
            ("out-of-distribution", questions.out_of_distribution),
            ("generic", questions.generic),
        )
        groups: dict[str, SetGroup] = {}
        for group, sets in sets_by_group:
            for name in sets:
                groups.setdefault(name, group)
        return groups

    @cached_property
    def metrics(self) -> list[dict[str, Any]]:
        """The rows of train/metrics.jsonl, one per step."""
        return [row for _, row in storage.read_jsonl(self.run_dir / "train" / "metrics.jsonl")]

    @cached_property
    def verdict_counts(self) -> dict[str, dict[str, VerdictCounts]]:
        """Source -> question id -> verdicts of its chains."""
        counts: dict[str, dict[str, VerdictCounts]] = {}
        for (question, source, _), verdict in parquet.read_verdicts(self.run_dir / "filter" / "verdicts.parquet"):
            by_question = counts.setdefault(source, {})
            by_question.setdefault(question, Counter())[verdict.grade, verdict.dropped] += 1
        return counts

    @cached_property
    def validation_scores(self) -> tuple[Score, ...]:
        """Every score of `evaluate`, and those of the checkpoint after on-policy distillation."""
        evaluated = [BASE, *checkpoints.read_evaluated_checkpoints(self.run_dir)]
        scores = [score for each in evaluated for score in checkpoints.read_scores(self.run_dir / "evaluate", each)]
        if self.recipe.on_policy:
            last = checkpoints.list_checkpoints_to_test(self.run_dir, self.recipe)[-1]
            scores += checkpoints.read_scores(self.run_dir / "repair", last)
        return tuple(scores)

    @cached_property
    def validation_answers(self) -> dict[str, tuple[Prediction, Prediction]]:
        """Validation question -> the answers of the base and of the chosen checkpoint, in the format of the choice."""
        before, after = (
            {answer.question: answer for answer in self._read_validation(checkpoint)}
            for checkpoint in (BASE, self.choice.checkpoint)
        )
        return {question: (before[question], after[question]) for question in before}

    def _read_validation(self, checkpoint: Checkpoint) -> Iterator[Prediction]:
        folder = self.run_dir / "evaluate"
        return checkpoints.read_predictions(folder, checkpoint, self.choice.format, self.choice.decoding)

    def _read_test_answers(self, checkpoint: Checkpoint, format: str, decoding: str) -> TestAnswers:
        """The test answers of a checkpoint in a format and decoding, with their scores."""
        folder = self.run_dir / "test"
        correct: dict[str, dict[str, bool]] = {}
        for answer in checkpoints.read_predictions(folder, checkpoint, format, decoding):
            correct.setdefault(answer.set, {})[answer.question] = answer.grade == "right"
        scores = checkpoints.read_scores(folder, checkpoint)
        wanted = (format, decoding)
        return TestAnswers({score.set: score for score in scores if (score.format, score.decoding) == wanted}, correct)
