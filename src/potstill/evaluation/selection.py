"""Selection: the best checkpoint by accuracy on validation questions.

    >>> before = {"svamp": [False, False], "asdiv": [True, False]}
    >>> after = {"svamp": [True, False], "asdiv": [True, True]}
    >>> selection = select_checkpoint({Checkpoint(0): before, Checkpoint(100): after})
    >>> selection.best.step, [value for _, value in selection.table], [checkpoint.step for checkpoint in selection.tied]
    (100, [0.25, 0.75], [0, 100])

The best checkpoint in distribution is not the best out of distribution (Fu et al. 2023), so the default rule,
`mean-out-of-distribution`, uses the mean accuracy over the out-of-distribution validation sets. With one task and one
data set there are no such sets; `in-distribution` uses the mean over the in-distribution validation sets, and says
nothing about other data. Chance favours the best of many checkpoints, so checkpoints that a paired bootstrap cannot
distinguish from the best are listed as tied.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from potstill.errors import UserError
from potstill.evaluation import intervals
from potstill.records import Checkpoint

VERSION: Final = 1  # version of the rules and their intervals; stored with the choice
SET_KEYS: Final = {  # rule -> key of its sets in the recipe's section `questions`
    "mean-out-of-distribution": "out_of_distribution",
    "in-distribution": "in_distribution",
}

Outcomes = Mapping[str, Sequence[bool]]  # set -> whether each answer is right


@dataclass(frozen=True, slots=True)
class Selection:
    """The result of a selection.

    best   the best checkpoint
    table  (checkpoint, value) of all checkpoints, in order
    tied   the checkpoints that cannot be distinguished from the best, including the best
    """

    best: Checkpoint
    table: tuple[tuple[Checkpoint, float], ...]
    tied: tuple[Checkpoint, ...]


def select_checkpoint(
    table: Mapping[Checkpoint, Outcomes],
    rule: str = "mean-out-of-distribution",
    *,
    seed: int = 0,
    level: float = 0.95,
    draws: int = 2000,
) -> Selection:
    """Select the best checkpoint of `table`; of equally good checkpoints, the first.

    table  checkpoint -> outcomes on the validation sets of the rule; all have the same order of questions

    A checkpoint is tied if the paired interval of its difference from the best contains 0.
    Raises UserError for an unknown rule, an empty table, or checkpoints with different sets or numbers of questions.
    """
    if rule not in SET_KEYS:
        hint = f"use one of {', '.join(SET_KEYS)}"
        raise UserError("unknown rule", code="E-select-unknown-rule", where="select.rule", found=rule, hint=hint)
    checkpoints = sorted(table)
    _check_table(table, checkpoints, rule)
    values = {checkpoint: mean_set_accuracy(table[checkpoint]) for checkpoint in checkpoints}
    best = max(checkpoints, key=values.__getitem__)  # the first, if several are equal
    tied = []
    for checkpoint in checkpoints:
        pairs = [
            ([float(right) for right in table[best][name]], [float(right) for right in table[checkpoint][name]])
            for name in sorted(table[best])
        ]
        _, low, high = intervals.stratified_bootstrap(pairs, seed=seed, level=level, draws=draws)
        if checkpoint == best or low <= 0 <= high:
            tied.append(checkpoint)
    return Selection(best, tuple(values.items()), tuple(tied))


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


def _check_table(table: Mapping[Checkpoint, Outcomes], checkpoints: Sequence[Checkpoint], rule: str) -> None:
    if not checkpoints:
        hint = "run `evaluate` first"
        raise UserError("no checkpoint was evaluated", code="E-select-no-checkpoint", where="select", hint=hint)
    first, *others = checkpoints
    sizes = {name: len(answers) for name, answers in table[first].items()}
    if not sizes:
        what, hint = f"the rule {rule} has no validation set", f"list at least one set under questions.{SET_KEYS[rule]}"
        raise UserError(what, code="E-select-no-validation-set", where="select", hint=hint)
    if empty := [name for name, size in sizes.items() if size == 0]:
        where = f"select: step {first.label}, {empty[0]}"
        raise UserError("a validation set has no questions", code="E-select-empty-set", where=where)
    for checkpoint in others:
        other = {name: len(answers) for name, answers in table[checkpoint].items()}
        if other != sizes:
            what = f"step {checkpoint.label} answered different questions from step {first.label}"
            found, hint = f"{other} against {sizes}", "evaluate every step on the same questions (`--redo evaluate`)"
            raise UserError(what, code="E-select-different-questions", where="select", found=found, hint=hint)
