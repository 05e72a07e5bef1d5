"""Reads the files of a finished run and of its controls.

    files = RunFiles(Path("runs/demo"), recipe)
    files.choice.checkpoint, files.counts("train")["steps"]
    files.test_answers(BASE, "zero-shot-rationale", "greedy").correct["gsm8k"]    # question id -> bool
    read_control(files, "demo-answers").comparisons

This module reads the answers that the stage `test` wrote. It does not open a test split.

A control is another run from the same base, evaluated on the same test questions. It shows what else could have caused
the difference: training on bare answers shows the effect of the format alone, and training on the set's own rationales
shows what is possible without a teacher. A control is evaluated in its own format, and compared with this run's base.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any

from potstill import storage, teachers
from potstill.data import run_questions
from potstill.errors import UserError
from potstill.evaluation import checkpoint as checkpoints
from potstill.evaluation import choice as choices
from potstill.evaluation import intervals
from potstill.prompts import FORMATS
from potstill.recipe import Recipe, load_recipe
from potstill.records import BASE, Checkpoint, Choice, Grade, Prediction, Question, Score
from potstill.report.model import Comparison, ControlRun, Interval, SetGroup, set_groups
from potstill.storage import manifest, parquet
from potstill.storage.manifest import Manifest

VerdictCounts = Counter[tuple[Grade, str | None]]  # number of chains by (grade, reason for dropping)


@dataclass(frozen=True, slots=True)
class TestAnswers:
    """The test answers of a checkpoint in one format and decoding.

    scores   score of each set
    correct  for each set, whether the answer is right, by question id
    tasks    the task of each question
    """

    scores: dict[str, Score]
    correct: dict[str, dict[str, bool]]
    tasks: dict[str, str]


class RunFiles:
    """The folder of a run. A file is read when it is first needed, and only once."""

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
        """The counts in the manifest of a stage."""
        return self.manifest(stage).counts

    @cached_property
    def choice(self) -> Choice:
        return checkpoints.read_choice(self.run_dir)

    @property
    def both(self) -> tuple[Checkpoint, Checkpoint]:
        """The base and the chosen checkpoint; twice the base in a run that only evaluates."""
        return BASE, self.choice.checkpoint if self.recipe.has_teacher else BASE

    @property
    def main_format(self) -> str:
        """The format of the choice; in a run that only evaluates, the first format."""
        return self.choice.format if self.recipe.has_teacher else self.recipe.evaluate.formats[0]

    @property
    def main_decoding(self) -> str:
        """The decoding of the choice; in a run that only evaluates, the first decoding."""
        return self.choice.decoding if self.recipe.has_teacher else self.recipe.evaluate.decodings[0]

    @property
    def main_answers(self) -> TestAnswers:
        """The test answers of the base in the main format and decoding."""
        return self.test_answers(BASE, self.main_format, self.main_decoding)

    @cached_property
    def groups(self) -> dict[str, SetGroup]:
        """The group of every evaluation set; the first group for a set in several groups."""
        sets = self.recipe.questions
        return set_groups(sets.in_distribution, sets.out_of_distribution, sets.generic)

    @cached_property
    def training_questions(self) -> list[Question]:
        return run_questions.read_questions(self.run_dir, self.recipe.questions.train, "train")

    @cached_property
    def metrics(self) -> list[dict[str, Any]]:
        """The rows of train/metrics.jsonl, one per step."""
        return [row for _, row in storage.read_jsonl(self.run_dir / "train" / "metrics.jsonl")]

    @cached_property
    def verdict_counts(self) -> dict[str, dict[str, VerdictCounts]]:
        """The verdicts of the chains by source and question id."""
        counts: dict[str, dict[str, VerdictCounts]] = {}
        for (question, source, _), verdict in parquet.read_verdicts(self.run_dir / "filter" / "verdicts.parquet"):
            by_question = counts.setdefault(source, {})
            by_question.setdefault(question, Counter())[verdict.grade, verdict.dropped] += 1
        return counts

    @cached_property
    def validation_scores(self) -> tuple[Score, ...]:
        """All scores of `evaluate`, and the scores of the checkpoint after on-policy distillation."""
        rows = [
            ("evaluate", checkpoint) for checkpoint in (BASE, *checkpoints.read_evaluated_checkpoints(self.run_dir))
        ]
        if self.recipe.on_policy:
            rows.append(("repair", choices.on_policy_result(self.run_dir, self.recipe)))
        return tuple(score for stage, row in rows for score in checkpoints.read_scores(self.run_dir / stage, row))

    @cached_property
    def validation_answers(self) -> dict[str, tuple[Prediction, Prediction]]:
        """The answers of the base and of the chosen checkpoint to each validation question, in the format of the choice."""

        def read(checkpoint: Checkpoint) -> Iterator[Prediction]:
            folder = self.run_dir / "evaluate"
            return checkpoints.read_predictions(folder, checkpoint, self.choice.format, self.choice.decoding)

        after = {answer.question: answer for answer in read(self.choice.checkpoint)}
        return {answer.question: (answer, after[answer.question]) for answer in read(BASE)}

    def _read_test_answers(self, checkpoint: Checkpoint, format: str, decoding: str) -> TestAnswers:
        """The test answers of a checkpoint in a format and decoding, with their scores."""
        folder = self.run_dir / "test"
        correct: dict[str, dict[str, bool]] = {}
        tasks: dict[str, str] = {}
        for answer in checkpoints.read_predictions(folder, checkpoint, format, decoding):
            tasks[answer.question] = answer.task
            correct.setdefault(answer.set, {})[answer.question] = answer.grade == "right"
        scores = checkpoints.read_scores(folder, checkpoint)
        wanted = (format, decoding)
        return TestAnswers(
            {score.set: score for score in scores if (score.format, score.decoding) == wanted}, correct, tasks
        )


def compare_answers(base: TestAnswers, chosen: TestAnswers, name: str) -> Comparison:
    """Compare two checkpoints, of the same run or of two runs, on the test questions of the set `name`."""
    before, after = base.correct[name], chosen.correct[name]
    assert before.keys() == after.keys(), f"{name}: the checkpoints answered different questions"
    pairs = [(before[question], after[question]) for question in before]
    difference = intervals.paired_difference([now for _, now in pairs], [was for was, _ in pairs])
    won, lost = pairs.count((False, True)), pairs.count((True, False))
    return Comparison(base.scores[name], chosen.scores[name], Interval(*difference), won, lost)


def describe_training(recipe: Recipe) -> str:
    """A short description of the training data of a recipe's student."""
    has_rationales = any(quota and FORMATS[name].rationale for name, quota in recipe.train.formats.items())
    stored = teachers.from_recipe(recipe).describe_chains() if has_rationales else "bare answers"
    section, size, steps = recipe.train.on_policy, recipe.train.prompts_per_step, recipe.train.steps
    if section is None:
        return stored
    return (
        "its own texts" if section.count_own_prompts(size, steps)[-1] == size * steps else f"{stored} and its own texts"
    )


# Control runs


def control_digests(run_dir: Path, recipe: Recipe) -> dict[str, str]:
    """The digest of the test answers of each control. Raises UserError if a control has not finished."""
    names = recipe.report.controls
    return {f"report.controls {name}": _read_control_manifest(run_dir, name, "test").digest for name in names}


def read_control(files: RunFiles, name: str) -> ControlRun:
    """A control of a run, from its folder next to the folder of the run.

    Raises UserError if the control has not finished, started from another base, or answered other questions.
    """
    run_dir, choice = files.run_dir, files.choice
    _check_comparable(run_dir, name, list(files.groups))
    control = RunFiles(run_dir.parent / name, load_recipe(run_dir.parent / name / "recipe.yaml"))
    base = files.test_answers(BASE, choice.format, choice.decoding)
    chosen = control.test_answers(control.choice.checkpoint, control.choice.format, control.choice.decoding)
    comparisons = tuple(compare_answers(base, chosen, set_name) for set_name in base.scores)
    steps = _read_control_manifest(run_dir, name, "train").counts["steps"]
    return ControlRun(name, describe_training(control.recipe), steps, comparisons)


def _read_control_manifest(run_dir: Path, name: str, stage: str) -> Manifest:
    """The manifest of a stage of the run `name` next to `run_dir`."""
    control_dir = run_dir.parent / name
    finished = manifest.read_finished(control_dir / stage)
    if finished is None:
        state = f"has no finished stage {stage}" if (control_dir / "recipe.yaml").is_file() else "does not exist"
        raise UserError(
            f"the control run {name} has not finished the stage {stage}",
            code="E-report-control-unfinished",
            where="report.controls",
            found=f"{control_dir} {state}",
            hint=f"run its recipe first (`potstill run RECIPE`, with `name: {name}`),"
            f" or remove {name} from report.controls",
        )
    return finished


def _check_comparable(run_dir: Path, name: str, sets: list[str]) -> None:
    """Raises UserError unless a control has the same base weights and the same test questions in every set."""
    own, other = (_read_control_manifest(run_dir, run, "collect").outputs for run in (run_dir.name, name))
    files = {set_name: f"collect/{set_name}.test.jsonl" for set_name in sets}
    if _base_weights(run_dir, run_dir.name) != _base_weights(run_dir, name):
        found, hint = "the control started from another student", "give both recipes the same `student` and `seed`"
    elif different := [set_name for set_name, file in files.items() if own[file] != other.get(file)]:
        found, hint = (
            f"the control answered other test questions of {different[0]}",
            "give both recipes the same `questions`",
        )
    else:
        return
    raise UserError(
        f"the control run {name} cannot be compared with this run",
        code="E-report-control-incomparable",
        where="report.controls",
        found=found,
        hint=f"{hint}, and run the control under another name",
    )


def _base_weights(run_dir: Path, name: str) -> dict[str, object]:
    """The inputs that determine the weights of a run's base: the digest of a model, or the shape and seed of random
    weights. Other inputs of the evaluation, such as its texts and its calculator, may differ."""
    inputs = _read_control_manifest(run_dir, name, "test/0").identity.inputs
    weights: dict[str, object] = {key: value for key, value in inputs.items() if key.startswith("student.")}
    if "student.model" in weights:
        return weights
    keys = _read_control_manifest(run_dir, name, "train").identity.recipe
    return {**weights, **{key: keys[key] for key in keys if key.startswith("student.shape") or key == "seed"}}
