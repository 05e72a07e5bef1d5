"""Runs of studies with planted answers, as `report.study_files` would read them: every number of the page is known."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from potstill.records import BASE, Checkpoint
from potstill.report.group_scores import RunAnswers
from potstill.report.model import Interval, RuleChoice, SetGroup
from potstill.report.study_model import Experiment, StudyRun
from potstill.report.summary import CheckpointScores

SETS: dict[str, SetGroup] = {
    "sums": "in-distribution",
    "other": "out-of-distribution",
    "far": "out-of-distribution",
    "more": "generic",
}
N = 40  # questions of each set
ANSWERS = "zero-shot-rationale.greedy"
Rights = Mapping[str, int]  # set -> number of right answers, from the first question on


def answers(
    name: str, keys: Mapping[str, object], seed: int, rights: Mapping[str, Rights], base: bool = False
) -> RunAnswers:
    """rights: format and decoding -> the right answers of each set."""
    right = {
        of: {f"{name}/{at}": (name, at < number) for name, number in sets.items() for at in range(N)}
        for of, sets in rights.items()
    }
    seeds = dict.fromkeys(("seed", "teacher.seed", "evaluate.seed"), 1) | {"train.seed": seed}
    training = "" if base else f"{name} {seed}"
    return RunAnswers(name, keys, seeds, right, SETS, training=training, is_fixed=base, is_base=base)


def curve(points: Sequence[tuple[int, float, float, float]]) -> tuple[CheckpointScores, ...]:
    """points: (step, in-distribution, out-of-distribution, generic)."""

    def around(value: float) -> Interval:
        return Interval(value, max(0.0, value - 0.1), min(1.0, value + 0.1))

    names: tuple[SetGroup, ...] = ("in-distribution", "out-of-distribution", "generic")
    return tuple(
        CheckpointScores(Checkpoint(step), {name: around(value) for name, value in zip(names, values, strict=True)}, {})
        for step, *values in points
    )


def run(
    name: str,
    keys: Mapping[str, object],
    seed: int,
    rights: Rights | Mapping[str, Rights],
    base: Rights,
    **more: Any,
) -> StudyRun:
    """A finished run with its base, whose chosen checkpoint is step 200."""
    by_answers: Mapping[str, Rights] = (
        rights if all(isinstance(v, Mapping) for v in rights.values()) else {ANSWERS: rights}
    )  # type: ignore[assignment]
    student = {key: value for key, value in keys.items() if key.startswith("student.")}
    made = StudyRun(
        name,
        name,
        answers=answers(name, keys, seed, by_answers),
        base=answers(name, student, seed, dict.fromkeys(by_answers, base), base=True),
        main=ANSWERS,
        formats=tuple(dict.fromkeys(of.partition(".")[0] for of in by_answers)),
        trained_on={"zero-shot-rationale": 1},
        chosen=Checkpoint(200),
        curve=curve([(0, 0.1, 0.1, 0.8), (100, 0.3, 0.2, 0.6 - seed / 100), (200, 0.5, 0.3 + seed / 100, 0.4)]),
        losses=tuple((step, 3 / step**0.5 + 0.05 * seed) for step in range(1, 201)),
        objective={"transfer.rule": "span"},
        parameters=1_000_000,
        rules=(RuleChoice("mean-out-of-distribution", Checkpoint(200), 0.3), RuleChoice("in-distribution", BASE, 0.5)),
        seconds={"train": 60.0 * seed, "evaluate": 30.0, "test": 6.0},
        copied={"sample": "one-hot.seed-1", "filter": "one-hot.seed-1"},
    )
    return replace(made, **more)


Study = tuple[list[Experiment], dict[str, StudyRun]]


def rules() -> Study:
    """Two rules with three seeds, of which the second is better out of distribution, and a run that failed."""
    base = {"sums": 4, "other": 4, "far": 2, "more": 32}
    runs: dict[str, StudyRun] = {}
    grid = []
    for rule, gain in (("one-hot", 0), ("span", 10)):
        for seed in (1, 2, 3):
            name = f"{rule}.seed-{seed}"
            rights = {"sums": 20, "other": 10 + gain + seed, "far": 8 + gain + seed, "more": 20 - 2 * seed}
            keys = {"transfer.rule": rule, "student.model": "tiny"}
            runs[name] = run(name, keys, seed, rights, base, objective={"transfer.rule": rule})
            grid.append((name, {"transfer.rule": rule, "train.seed": f"seed-{seed}"}, Path(name)))
    first = runs["one-hot.seed-1"]
    runs["one-hot.seed-1"] = replace(
        first, copied={}, seconds={**first.seconds, "sample": 120.0, "filter": 1.0}, tokens=12345, money=1.25
    )
    runs["text.seed-1"] = StudyRun("text.seed-1", "text.seed-1", "this run has not been evaluated on test")
    grid.append(("text.seed-1", {"transfer.rule": "text", "train.seed": "seed-1"}, Path("text.seed-1")))
    return [Experiment("rules", "Does the distribution help?", ("transfer.rule", "train.seed"), grid)], runs


def sizes() -> Study:
    """Four sizes with two seeds. Specialized accuracy rises by 20 points for ten times the parameters, and does not fit a
    line exactly; that of the base is flat."""
    runs: dict[str, StudyRun] = {}
    grid = []
    for index, (size, parameters) in enumerate({"tiny": 10**6, "small": 10**7, "large": 10**8, "huge": 10**9}.items()):
        for seed in (1, 2):
            name = f"{size}.seed-{seed}"
            bend = (0, 1, -1, 0)[index]
            rights = {"sums": 8 + 8 * index + bend, "other": 6 + 8 * index + bend, "far": 4 + 8 * index, "more": 20}
            keys = {"student.model": size, "train.batch_tokens": 4096 * (index + 1)}
            base = {"sums": 4, "other": 4, "far": 4, "more": 30}
            made = run(name, keys, seed, {s: n + seed - 1 for s, n in rights.items()}, base, parameters=parameters)
            runs[name] = replace(made, objective={"student.tokenizer": "one"}, copied={})
            grid.append((name, {"size": size, "train.seed": f"seed-{seed}"}, Path(name)))
    return [Experiment("sizes", "Does it scale?", ("size", "train.seed"), grid)], runs


def formats() -> Study:
    """Two mixtures of formats in training, both asked in two formats: each is better in its own."""
    runs: dict[str, StudyRun] = {}
    grid = []
    base = dict.fromkeys(SETS, 4)
    for taught in ("zero-shot-rationale", "zero-shot-answer"):
        rights = {
            f"{asked}.greedy": dict.fromkeys(SETS, 24 if asked == taught else 8)
            for asked in ("zero-shot-rationale", "zero-shot-answer")
        }
        keys = {f"train.formats.{taught}": 1, "student.model": "tiny"}
        runs[taught] = run(
            taught, keys, 1, rights, base, trained_on={taught: 1}, copied={}, objective={"train.formats": taught}
        )
        grid.append((taught, {"format": taught}, Path(taught)))
    return [Experiment("formats", "", ("format",), grid)], runs


def everything(text: str = "") -> Study:
    """All of them in one study. text: in every name and title that a user may write"""
    experiments: list[Experiment] = []
    runs: dict[str, StudyRun] = {}
    for more, read in (rules(), sizes(), formats()):
        experiments += [each._replace(title=each.title + text) for each in more]
        runs |= {name: replace(run, fault=run.fault + text if run.fault else "") for name, run in read.items()}
    return experiments, runs
