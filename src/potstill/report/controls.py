"""Controls: other runs beside this one, from the same base, asked the same test items.

    compare(base, chosen, "gsm8k")      # two `Answered` of one set, paired question by question

A control shows what else could have made the difference: the same steps on bare answers teach the format, on the set's
own rationales they teach without a teacher. Each answers in its own format, and is held against this run's base.

Templates: how many test questions a student learnt with other numbers and names, and how it did on the rest.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from potstill import teachers
from potstill.data import run_questions
from potstill.errors import UserError
from potstill.evaluation import checkpoint, intervals
from potstill.prompts import FORMATS
from potstill.recipe import Recipe, load_recipe
from potstill.records import BASE, Checkpoint, Choice, Prediction, Score
from potstill.report import model
from potstill.storage import manifest


@dataclass(frozen=True, slots=True)
class TestAnswers:
    """What one step of a run did on test, in one format and decoding: set -> score, set -> question -> right or not."""

    scores: dict[str, Score]
    right: dict[str, dict[str, bool]]


def control_digests(run_dir: Path, recipe: Recipe) -> dict[str, str]:
    """A digest for every control of a recipe. Raises UserError where one is not finished."""
    return {
        f"report.controls {name}": _finished_manifest(run_dir, name, "test").digest for name in recipe.report.controls
    }


def read_test_answers(run_dir: Path, who: Checkpoint, format: str, decoding: str) -> TestAnswers:
    """The test answers of a checkpoint in a format and decoding, with their scores."""
    right: dict[str, dict[str, bool]] = {}
    for prediction in checkpoint.read_predictions(run_dir / "test", who, format, decoding):
        right.setdefault(prediction.set, {})[prediction.question] = prediction.grade == "right"
    scores = [
        score
        for score in checkpoint.read_scores(run_dir / "test", who)
        if (score.format, score.decoding) == (format, decoding)
    ]
    return TestAnswers({score.set: score for score in scores}, right)


def compare_answers(base: TestAnswers, chosen: TestAnswers, name: str) -> model.Comparison:
    """Two steps, of one run or of two, on the test questions of a set."""
    before, after = base.right[name], chosen.right[name]
    assert before.keys() == after.keys(), f"{name}: the two answered different questions"
    pairs = [(before[question], after[question]) for question in before]
    difference = intervals.paired_difference([now for _, now in pairs], [was for was, _ in pairs])
    won, lost = (sum(pair == kind for pair in pairs) for kind in ((False, True), (True, False)))
    return model.Comparison(base.scores[name], chosen.scores[name], model.Interval(*difference), won, lost)


def read_control(run_dir: Path, recipe: Recipe, choice: Choice, name: str) -> model.ControlRun:
    """A control of this run, from its folder beside it.

    Raises UserError if it is not finished, started from another base, or answered other questions.
    """
    other = run_dir.parent / name
    _require_same_base(run_dir, name)
    _require_same_questions(run_dir, name, recipe)
    own = load_recipe(other / "recipe.yaml")
    theirs = checkpoint.read_choice(other)
    base = read_test_answers(run_dir, BASE, choice.format, choice.decoding)
    chosen = read_test_answers(other, theirs.checkpoint, theirs.format, theirs.decoding)
    rows = tuple(compare_answers(base, chosen, each) for each in base.scores)
    return model.ControlRun(
        name, describe_training(own), _finished_manifest(run_dir, name, "train").counts["steps"], rows
    )


def read_on_policy_control(run_dir: Path, recipe: Recipe, choice: Choice) -> model.ControlRun:
    """What became of the choice when it was repaired, as a further row on the same items."""
    asked, (*_, who) = recipe.on_policy, checkpoint.list_checkpoints_to_test(run_dir, recipe)
    assert asked is not None and who.on_policy_steps
    base, after = (read_test_answers(run_dir, each, choice.format, choice.decoding) for each in (BASE, who))
    rows = tuple(compare_answers(base, after, each) for each in base.scores)
    scorer = asked.scorer or "the base"
    own = f"its own answers to {', '.join(asked.sets)}, scored by {scorer}, after step {choice.checkpoint.label}"
    return model.ControlRun("repaired", own, who.on_policy_steps, rows, repaired=True)


def describe_training(recipe: Recipe) -> str:
    """What a recipe's student learns from, in a few words."""
    rationale = any(quota and FORMATS[name].rationale for name, quota in recipe.train.formats.items())
    if not rationale:
        return "bare answers"
    return teachers.from_recipe(recipe).describe_chains()


def _finished_manifest(run_dir: Path, name: str, stage: str) -> manifest.Manifest:
    """The manifest of a stage of a control."""
    other = run_dir.parent / name
    made = manifest.read_finished(other / stage)
    if made is None:
        raise UserError(
            f"the control run {name} has not finished {stage}",
            where="report.controls",
            found=f"{other} is {'a run without it' if (other / 'recipe.yaml').is_file() else 'not there'}",
            hint=f"run its recipe first (`potstill run RECIPE`, with `name: {name}`), or take it out of report.controls",
        )
    return made


def _require_same_base(run_dir: Path, name: str) -> None:
    """Whether both began with the same weights: those that answered as step 0."""
    mine, other = (_base_weights(run_dir, each) for each in (run_dir.name, name))
    if mine != other:
        _raise_incomparable(name, "started from another student", "give both recipes the same `student` (and `seed`)")


def _base_weights(run_dir: Path, name: str) -> dict[str, object]:
    """What decides the weights of a run's step 0: the digest of a folder, or shape and seed of random ones."""
    read = _finished_manifest(run_dir, name, "test/0").identity.inputs
    weights: dict[str, object] = {key: value for key, value in read.items() if key != "collect"}
    if "student.model" in weights:
        return weights
    asked = _finished_manifest(run_dir, name, "train").identity.recipe
    shape = {key: value for key, value in asked.items() if key.startswith("student.shape") or key == "seed"}
    return {**weights, **shape}


def _require_same_questions(run_dir: Path, name: str, recipe: Recipe) -> None:
    """Whether the control was asked, in every set of this run, exactly the same test questions."""
    mine, other = manifest.read_finished(run_dir / "collect"), _finished_manifest(run_dir, name, "collect")
    assert mine is not None
    asked = [*recipe.questions.in_distribution, *recipe.questions.out_of_distribution, *recipe.questions.generic]
    for each in dict.fromkeys(asked):
        key = f"collect/{each}.test.jsonl"
        if mine.outputs[key] != other.outputs.get(key):
            _raise_incomparable(
                name, f"answered other test questions of {each}", "give both recipes the same `questions` section"
            )


def _raise_incomparable(name: str, found: str, hint: str) -> NoReturn:
    raise UserError(
        f"the control run {name} cannot be compared",
        where="report.controls",
        found=found,
        hint=f"{hint}, and run that control under another name",
    )


def template_notes(run_dir: Path, choice: Choice) -> Iterator[str]:
    """A sentence for each test set that shares templates with the training questions, with the accuracy on those that
    do and on those that do not, in the format and decoding of the choice."""
    shared = run_questions.read_templates(run_dir, "test")
    if not shared:
        return
    answers = {who: _predictions_by_set(run_dir, choice, who) for who in (choice.checkpoint, BASE)}
    for name, ids in shared.items():
        shares = []
        for own in (answers[choice.checkpoint][name], answers[BASE][name]):
            parts = [[each for each in own if (each.question in ids) is same] for same in (True, False)]
            shares.append([_format_accuracy(part) for part in parts])
        count = len(answers[BASE][name])
        rest = count - len(ids)
        apart = f" and {shares[0][1]} of the other {rest} (the base: {shares[1][0]} and {shares[1][1]})" if rest else ""
        apart = apart or f" (the base: {shares[1][0]})"
        yield (
            f"Of the {count} test questions of {name}, {len(ids)} are training questions but for numbers and names:"
            f" the chosen step is right on {shares[0][0]} of these{apart}."
        )


def _predictions_by_set(run_dir: Path, choice: Choice, who: Checkpoint) -> dict[str, list[Prediction]]:
    found: dict[str, list[Prediction]] = {}
    for each in checkpoint.read_predictions(run_dir / "test", who, choice.format, choice.decoding):
        found.setdefault(each.set, []).append(each)
    return found


def _format_accuracy(part: list[Prediction]) -> str:
    return f"{model.percent_number(sum(each.grade == 'right' for each in part) / len(part))} %" if part else "none"
