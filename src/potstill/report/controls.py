"""Control runs: other runs from the same base, evaluated on the same test questions.

    compare_answers(base, chosen, "gsm8k")      # two `TestAnswers` on one set, paired by question

A control shows what else could have caused the difference. Training on bare answers teaches the format; training on the
set's own rationales teaches without a teacher. Each control is evaluated in its own format and compared with this run's
base.
"""

from __future__ import annotations

from pathlib import Path
from typing import NoReturn

from potstill import teachers
from potstill.errors import UserError
from potstill.evaluation import intervals
from potstill.prompts import FORMATS
from potstill.recipe import Recipe, load_recipe
from potstill.records import BASE
from potstill.report.model import Comparison, ControlRun, Interval
from potstill.report.run_files import RunFiles, TestAnswers
from potstill.storage import manifest


def control_digests(run_dir: Path, recipe: Recipe) -> dict[str, str]:
    """A digest of the test answers of each control of a recipe. Raises UserError if a control is not finished."""
    names = recipe.report.controls
    return {f"report.controls {name}": _finished_manifest(run_dir, name, "test").digest for name in names}


def compare_answers(base: TestAnswers, chosen: TestAnswers, name: str) -> Comparison:
    """Two checkpoints, of one run or of two, on the test questions of the set `name`."""
    before, after = base.correct[name], chosen.correct[name]
    assert before.keys() == after.keys(), f"{name}: the two answered different questions"
    pairs = [(before[question], after[question]) for question in before]
    difference = intervals.paired_difference([now for _, now in pairs], [was for was, _ in pairs])
    won, lost = pairs.count((False, True)), pairs.count((True, False))
    return Comparison(base.scores[name], chosen.scores[name], Interval(*difference), won, lost)


def read_control(files: RunFiles, name: str) -> ControlRun:
    """A control of a run, from its folder next to the run's.

    Raises UserError if it is not finished, has another base, or answered other questions.
    """
    run_dir, choice = files.run_dir, files.choice
    _require_same_base(run_dir, name)
    _require_same_questions(run_dir, name, files.recipe)
    control = RunFiles(run_dir.parent / name, load_recipe(run_dir.parent / name / "recipe.yaml"))
    base = files.test_answers(BASE, choice.format, choice.decoding)
    chosen = control.test_answers(control.choice.checkpoint, control.choice.format, control.choice.decoding)
    comparisons = tuple(compare_answers(base, chosen, each) for each in base.scores)
    steps = _finished_manifest(run_dir, name, "train").counts["steps"]
    return ControlRun(name, describe_training(control.recipe), steps, comparisons)


def describe_training(recipe: Recipe) -> str:
    """What a recipe's student is trained on, in a few words."""
    if not any(quota and FORMATS[name].rationale for name, quota in recipe.train.formats.items()):
        return "bare answers"
    return teachers.from_recipe(recipe).describe_chains()


def _finished_manifest(run_dir: Path, name: str, stage: str) -> manifest.Manifest:
    """The manifest of a stage of the run `name` next to `run_dir`."""
    control_dir = run_dir.parent / name
    finished = manifest.read_finished(control_dir / stage)
    if finished is None:
        state = f"a run without {stage}" if (control_dir / "recipe.yaml").is_file() else "missing"
        raise UserError(
            f"the control run {name} has not finished {stage}",
            code="E-report-control-unfinished",
            where="report.controls",
            found=f"{control_dir} is {state}",
            hint=f"run its recipe first (`potstill run RECIPE`, with `name: {name}`),"
            " or remove it from report.controls",
        )
    return finished


def _require_same_base(run_dir: Path, name: str) -> None:
    """Raises UserError unless the base checkpoints of both runs have the same weights."""
    if _base_weights(run_dir, run_dir.name) != _base_weights(run_dir, name):
        _raise_incomparable(name, "it started from another student", "give both recipes the same `student` and `seed`")


def _base_weights(run_dir: Path, name: str) -> dict[str, object]:
    """What determines the weights of a run's base: the digest of a folder, or the shape and seed of random weights."""
    inputs = _finished_manifest(run_dir, name, "test/0").identity.inputs
    weights: dict[str, object] = {key: value for key, value in inputs.items() if key != "collect"}
    if "student.model" in weights:
        return weights
    keys = _finished_manifest(run_dir, name, "train").identity.recipe
    return {**weights, **{key: keys[key] for key in keys if key.startswith("student.shape") or key == "seed"}}


def _require_same_questions(run_dir: Path, name: str, recipe: Recipe) -> None:
    """Raises UserError unless the control has exactly the same test questions in every set of this run."""
    own, other = (_finished_manifest(run_dir, each, "collect").outputs for each in (run_dir.name, name))
    questions = recipe.questions
    for each in (*questions.in_distribution, *questions.out_of_distribution, *questions.generic):
        key = f"collect/{each}.test.jsonl"
        if own[key] != other.get(key):
            hint = "give both recipes the same `questions` section"
            _raise_incomparable(name, f"it answered other test questions of {each}", hint)


def _raise_incomparable(name: str, found: str, hint: str) -> NoReturn:
    raise UserError(
        f"the control run {name} cannot be compared",
        code="E-report-control-incomparable",
        where="report.controls",
        found=found,
        hint=f"{hint}, and run the control under another name",
    )
