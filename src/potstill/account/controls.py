"""Controls: other runs beside this one, from the same base, asked the same test items.

    compare(base, chosen, "gsm8k")      # two `Answered` of one set, paired question by question

A control shows what else could have made the difference: the same steps on bare answers teach the format, on the set's
own rationales they teach without a teacher. Each answers in its own format, and is held against this run's base.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from potstill import exam, intervals, recipe, story
from potstill.contenders import BASE, Contender
from potstill.errors import UserError
from potstill.files import manifest
from potstill.prompts import FORMATS
from potstill.recipe import Recipe
from potstill.records import Choice, Score


@dataclass(frozen=True, slots=True)
class Answered:
    """What one step of a run did on test, in one format and decoding: set -> score, set -> question -> right or not."""

    scores: dict[str, Score]
    right: dict[str, dict[str, bool]]


def inputs(run: Path, plan: Recipe) -> dict[str, str]:
    """A digest for every control of a recipe. Raises UserError where one is not finished."""
    return {f"report.controls {name}": _finished(run, name, "test").digest for name in plan.report.controls}


def answered(run: Path, who: Contender, format: str, decoding: str) -> Answered:
    """The test answers of a contender in a format and decoding, with their scores."""
    right: dict[str, dict[str, bool]] = {}
    for prediction in exam.predictions(run / "test", who, format, decoding):
        right.setdefault(prediction.set, {})[prediction.question] = prediction.grade == "right"
    scores = [score for score in exam.scores(run / "test", who) if (score.format, score.decoding) == (format, decoding)]
    return Answered({score.set: score for score in scores}, right)


def compare(base: Answered, chosen: Answered, name: str) -> story.Comparison:
    """Two steps, of one run or of two, on the test questions of a set."""
    before, after = base.right[name], chosen.right[name]
    assert before.keys() == after.keys(), f"{name}: the two answered different questions"
    pairs = [(before[question], after[question]) for question in before]
    difference = intervals.paired_difference([now for _, now in pairs], [was for was, _ in pairs])
    won, lost = (sum(pair == kind for pair in pairs) for kind in ((False, True), (True, False)))
    return story.Comparison(base.scores[name], chosen.scores[name], story.Interval(*difference), won, lost)


def read(run: Path, plan: Recipe, choice: Choice, name: str) -> story.Control:
    """A control of this run, from its folder beside it.

    Raises UserError if it is not finished, started from another base, or answered other questions.
    """
    other = run.parent / name
    _same_base(run, name)
    _same_questions(run, name, plan)
    own = recipe.load(other / "recipe.yaml")
    theirs = exam.choice(other)
    base = answered(run, BASE, choice.format, choice.decoding)
    chosen = answered(other, theirs.contender, theirs.format, theirs.decoding)
    rows = tuple(compare(base, chosen, each) for each in base.scores)
    return story.Control(name, taught(own), _finished(run, name, "train").counts["steps"], rows)


def repaired(run: Path, plan: Recipe, choice: Choice) -> story.Control:
    """What became of the choice when it was repaired, as a further row on the same items."""
    asked, (*_, who) = plan.repair, exam.tested(run, plan)
    assert asked is not None and who.repaired
    base, after = (answered(run, each, choice.format, choice.decoding) for each in (BASE, who))
    rows = tuple(compare(base, after, each) for each in base.scores)
    scorer = asked.scorer or "the base"
    own = f"its own answers to {', '.join(asked.sets)}, scored by {scorer}, after step {choice.contender.label}"
    return story.Control("repaired", own, who.repaired, rows, repaired=True)


def taught(plan: Recipe) -> str:
    """What a recipe's student learns from, in a few words."""
    rationale = any(quota and FORMATS[name].rationale for name, quota in plan.train.formats.items())
    if not rationale:
        return "bare answers"
    if plan.teacher.kind == "human":
        return "the sets' own rationales"
    return f"chains of {plan.teacher.name or plan.teacher.kind}"


def _finished(run: Path, name: str, stage: str) -> manifest.Manifest:
    """The manifest of a stage of a control."""
    other = run.parent / name
    made = manifest.finished(other / stage)
    if made is None:
        raise UserError(
            f"the control run {name} has not finished {stage}",
            where="report.controls",
            found=f"{other} is {'a run without it' if (other / 'recipe.yaml').is_file() else 'not there'}",
            do=f"run its recipe first (`potstill run RECIPE`, with `name: {name}`), or take it out of report.controls",
        )
    return made


def _same_base(run: Path, name: str) -> None:
    """Whether both began with the same weights: those that answered as step 0."""
    mine, other = (_base(run, each) for each in (run.name, name))
    if mine != other:
        _unlike(name, "started from another student", "give both recipes the same `student` (and `seed`)")


def _base(run: Path, name: str) -> dict[str, object]:
    """What decides the weights of a run's step 0: the digest of a folder, or shape and seed of random ones."""
    read = _finished(run, name, "test/0").identity.inputs
    weights: dict[str, object] = {key: value for key, value in read.items() if key != "collect"}
    if "student.model" in weights:
        return weights
    asked = _finished(run, name, "train").identity.recipe
    shape = {key: value for key, value in asked.items() if key.startswith("student.shape") or key == "seed"}
    return {**weights, **shape}


def _same_questions(run: Path, name: str, plan: Recipe) -> None:
    """Whether the control was asked, in every set of this run, exactly the same test questions."""
    mine, other = manifest.finished(run / "collect"), _finished(run, name, "collect")
    assert mine is not None
    asked = [*plan.questions.in_distribution, *plan.questions.out_of_distribution, *plan.questions.generic]
    for each in dict.fromkeys(asked):
        key = f"collect/{each}.test.jsonl"
        if mine.outputs[key] != other.outputs.get(key):
            _unlike(name, f"answered other test questions of {each}", "give both recipes the same `questions` section")


def _unlike(name: str, found: str, do: str) -> NoReturn:
    raise UserError(
        f"the control run {name} cannot be compared",
        where="report.controls",
        found=found,
        do=f"{do}, and run that control under another name",
    )
