"""Selection: the best checkpoint by accuracy on validation questions.

    >>> before = {"svamp": [False, False], "asdiv": [True, False]}
    >>> after = {"svamp": [True, False], "asdiv": [True, True]}
    >>> selection = select_checkpoint({Checkpoint(0): before, Checkpoint(100): after})
    >>> selection.best.step, [value for _, value in selection.table], [checkpoint.step for checkpoint in selection.tied]
    (100, [0.25, 0.75], [0, 100])

The best checkpoint in distribution is not the best out of distribution (Fu et al. 2023), so the default rule,
`mean-out-of-distribution`, uses the mean accuracy over the out-of-distribution validation sets. With one task and one
data set there are no such sets; `in-distribution` uses the mean over the in-distribution validation sets, and says
nothing about other data. `weighted` uses a weighted mean of any sets.

A `Retention` bounds what a checkpoint may lose on other sets. Here, the better checkpoint loses 50 points:

    >>> kept = {Checkpoint(0): {"bbh": [True, True]}, Checkpoint(100): {"bbh": [True, False]}}
    >>> bound = Retention("generic", 20.0, {"bbh": [True, True]}, kept)
    >>> select_checkpoint({Checkpoint(0): before, Checkpoint(100): after}, retain=[bound]).best.step
    0

Two notions of a draw have different names. `equal`: the checkpoints whose value is exactly the best; the earliest of them
is chosen. `tied`: the checkpoints that a paired bootstrap cannot distinguish from the best, because chance favours the
best of many checkpoints. `optimism` is the part of the best value that chance explains.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Final, TypeVar

from potstill.errors import UserError
from potstill.evaluation import intervals
from potstill.evaluation.optimism import estimate_optimism
from potstill.records import Checkpoint, RetentionBound

VERSION: Final = 1  # version of the rules and their intervals; stored with the choice
SET_KEYS: Final = {  # rule -> key of its sets in the recipe's section `questions`
    "mean-out-of-distribution": "out_of_distribution",
    "in-distribution": "in_distribution",
}
RULES: Final = (*SET_KEYS, "weighted")

Outcomes = Mapping[str, Sequence[bool]]  # set -> whether each answer is right
Key = TypeVar("Key", bound=Hashable)


@dataclass(frozen=True, slots=True)
class Retention:
    """A bound on the accuracy that a checkpoint may lose against the base, as the mean over sets.

    name    what is kept: `generic`, or the name of a set
    points  number of points (hundredths) that may be lost at most
    base    the outcomes of the base on the validation questions of these sets
    table   the outcomes of every checkpoint on the same questions
    """

    name: str
    points: float
    base: Outcomes
    table: Mapping[Checkpoint, Outcomes]


@dataclass(frozen=True, slots=True)
class Selection:
    """The result of a selection.

    best      the best checkpoint
    table     (checkpoint, value) of all checkpoints, in order
    tied      the checkpoints that cannot be distinguished from the best, including the best
    equal     the checkpoints whose value is exactly the best value, including the best, which is the first of them
    optimism  the expected loss of the best value on new questions; None if there are too few questions to estimate it
    bounds    for every bound, the points that each checkpoint loses. `tied`, `equal` and `optimism` are about the
              checkpoints that keep all bounds
    """

    best: Checkpoint
    table: tuple[tuple[Checkpoint, float], ...]
    tied: tuple[Checkpoint, ...]
    equal: tuple[Checkpoint, ...]
    optimism: float | None
    bounds: tuple[RetentionBound, ...] = ()


def select_checkpoint(
    table: Mapping[Checkpoint, Outcomes],
    rule: str = "mean-out-of-distribution",
    *,
    weights: Mapping[str, float] | None = None,
    retain: Sequence[Retention] = (),
    seed: int = 0,
    level: float = 0.95,
    draws: int = 2000,
) -> Selection:
    """Select the best checkpoint of `table`; of equally good checkpoints, the first.

    table    checkpoint -> outcomes on the validation sets of the rule; all have the same order of questions
    weights  set -> weight, for the rule `weighted`
    retain   bounds; a checkpoint that loses more is not chosen

    A checkpoint is tied if the paired interval of its difference from the best contains 0.
    Raises UserError for an unknown rule, an empty table, checkpoints with different sets or numbers of questions, and if
    every checkpoint loses more than a bound allows.
    """
    if rule not in RULES:
        hint = f"use one of {', '.join(RULES)}"
        raise UserError("unknown rule", code="E-select-unknown-rule", where="select.rule", found=rule, hint=hint)
    assert (weights is not None) == (rule == "weighted"), "the rule `weighted`, and no other, needs weights"
    checkpoints = sorted(table)
    _check_table(table, checkpoints, rule)
    bounds = tuple(_measure_losses(bound, checkpoints) for bound in retain)
    fitting = _list_fitting(checkpoints, bounds)
    exact = {checkpoint: _exact_value(table[checkpoint], weights) for checkpoint in fitting}
    best = max(fitting, key=exact.__getitem__)  # the first, if several are equal
    tied = []
    for checkpoint in fitting:
        pairs = [
            ([scale * right for right in table[best][name]], [scale * right for right in table[checkpoint][name]])
            for name, scale in _scales(table[best], weights).items()
        ]
        _, low, high = intervals.stratified_bootstrap(pairs, seed=seed, level=level, draws=draws)
        if checkpoint == best or low <= 0 <= high:
            tied.append(checkpoint)
    return Selection(
        best,
        tuple((checkpoint, rule_value(table[checkpoint], weights)) for checkpoint in checkpoints),
        tuple(tied),
        tuple(checkpoint for checkpoint in fitting if exact[checkpoint] == exact[best]),
        estimate_optimism({checkpoint: table[checkpoint] for checkpoint in fitting}, weights, seed=seed),
        bounds,
    )


def rule_value(outcomes: Outcomes, weights: Mapping[str, float] | None = None) -> float:
    """The mean over the sets of the accuracy on each set, in [0, 1].

    weights  set -> weight; None: all sets have the same weight, independent of their size
    """
    if weights is None:
        return mean_set_accuracy(outcomes)
    return float(_exact_value(outcomes, weights))


def mean_set_accuracy(outcomes: Outcomes) -> float:
    """The mean over the sets of the accuracy on each set. All sets have the same weight, independent of their size."""
    return sum(sum(map(bool, answers)) / len(answers) for answers in outcomes.values()) / len(outcomes)


def count_since_best(values: Sequence[float], counted: Sequence[bool]) -> tuple[int, int]:
    """The index of the best value, and how many counted values follow it. If several values are best, the first of them
    counts.

    >>> count_since_best([0.1, 0.3, 0.2, 0.3], [True] * 4), count_since_best([0.1, 0.3, 0.2, 0.3], [True, True, False, True])
    ((1, 2), (1, 1))
    """
    best = max(range(len(values)), key=values.__getitem__)
    return best, sum(counted[best + 1 :])


def pareto_front(points: Mapping[Key, tuple[float, float]]) -> tuple[Key, ...]:
    """The points that no other point dominates, in the order of their first value, then of `points`.

    points  anything, such as a checkpoint or a run and a checkpoint -> its two accuracies, such as generic and specialized

    A point dominates another if it is at least as good in both values, and better in one. Points with equal values do not
    dominate each other, so all of them are on the front.

    >>> pareto_front({"base": (0.8, 0.1), "100": (0.5, 0.3), "200": (0.4, 0.3), "300": (0.2, 0.4)})
    ('300', '100', 'base')
    """
    front = [
        key
        for key, (x, y) in points.items()
        if not any(a >= x and b >= y and (a, b) != (x, y) for a, b in points.values())
    ]
    return tuple(sorted(front, key=lambda key: points[key][0]))


def _exact_value(outcomes: Outcomes, weights: Mapping[str, float] | None = None) -> Fraction:
    """`rule_value` as an exact number, so that rounding does not decide between equal checkpoints."""
    parts = {name: Fraction(sum(map(bool, answers)), len(answers)) for name, answers in outcomes.items()}
    shares = {name: Fraction(repr(weights[name])) if weights else Fraction(1) for name in parts}
    return sum((shares[name] * parts[name] for name in parts), Fraction()) / sum(shares.values())


def _scales(outcomes: Outcomes, weights: Mapping[str, float] | None) -> dict[str, float]:
    """Set -> factor with which the unweighted mean over the sets becomes the weighted mean; 1 without weights."""
    if weights is None:
        return dict.fromkeys(sorted(outcomes), 1.0)
    total = sum(weights[name] for name in outcomes)
    return {name: weights[name] * len(outcomes) / total for name in sorted(outcomes)}


def _measure_losses(bound: Retention, checkpoints: Sequence[Checkpoint]) -> RetentionBound:
    """The points that each checkpoint loses. Raises UserError if the questions differ from the base's."""
    sizes = {name: len(answers) for name, answers in bound.base.items()}
    where = f"select.retain.{bound.name}"
    if not sizes or not all(sizes.values()):
        hint = "name sets with validation questions"
        raise UserError("a bound has no validation questions", code="E-select-empty-set", where=where, hint=hint)
    before, lost = _exact_value(bound.base), list[tuple[Checkpoint, float]]()
    for checkpoint in checkpoints:
        outcomes = bound.table[checkpoint]
        if (found := {name: len(answers) for name, answers in outcomes.items()}) != sizes:
            _refuse_different_questions(checkpoint, "the base", where, found, sizes)
        lost.append((checkpoint, float(100 * (before - _exact_value(outcomes)))))
    return RetentionBound(bound.name, bound.points, tuple(lost))


def _list_fitting(checkpoints: Sequence[Checkpoint], bounds: Sequence[RetentionBound]) -> list[Checkpoint]:
    """The checkpoints that keep all bounds. Raises UserError if there are none."""
    fitting = [checkpoint for checkpoint in checkpoints if all(bound.keeps(checkpoint) for bound in bounds)]
    if fitting:
        return fitting
    lost = {checkpoint: [dict(bound.lost)[checkpoint] for bound in bounds] for checkpoint in checkpoints}
    excess = {
        checkpoint: max(points - bound.points for points, bound in zip(lost[checkpoint], bounds, strict=True))
        for checkpoint in checkpoints
    }
    nearest = min(checkpoints, key=excess.__getitem__)
    parts = [
        f"{points:.1f} points of {bound.name} (at most {bound.points:g})"
        for points, bound in zip(lost[nearest], bounds, strict=True)
    ]
    raise UserError(
        "every checkpoint loses more accuracy than select.retain allows, so none is chosen",
        code="E-select-retain",
        where="select.retain",
        found=f"the nearest is step {nearest.label}, which loses {' and '.join(parts)}",
        hint="raise the bound, add shares to evaluate.interpolate (the run only evaluates them), or train again with"
        " train.checkpoints: log or with train.replay",
    )


def _check_table(table: Mapping[Checkpoint, Outcomes], checkpoints: Sequence[Checkpoint], rule: str) -> None:
    if not checkpoints:
        hint = "run `evaluate` first"
        raise UserError("no checkpoint was evaluated", code="E-select-no-checkpoint", where="select", hint=hint)
    first, *others = checkpoints
    sizes = {name: len(answers) for name, answers in table[first].items()}
    if not sizes:
        key = f"list at least one set under questions.{SET_KEYS[rule]}" if rule in SET_KEYS else "give a set a weight"
        what = f"the rule {rule} has no validation set"
        raise UserError(what, code="E-select-no-validation-set", where="select", hint=key)
    if empty := [name for name, size in sizes.items() if size == 0]:
        where = f"select: step {first.label}, {empty[0]}"
        raise UserError("a validation set has no questions", code="E-select-empty-set", where=where)
    for checkpoint in others:
        other = {name: len(answers) for name, answers in table[checkpoint].items()}
        if other != sizes:
            _refuse_different_questions(checkpoint, f"step {first.label}", "select", other, sizes)


def _refuse_different_questions(
    checkpoint: Checkpoint, other: str, where: str, found: Mapping[str, int], expected: Mapping[str, int]
) -> None:
    raise UserError(
        f"step {checkpoint.label} answered different questions from {other}",
        code="E-select-different-questions",
        where=where,
        found=f"{dict(found)} against {dict(expected)}",
        hint="evaluate every step on the same questions (`--redo evaluate`)",
    )
