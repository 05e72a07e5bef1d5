"""Selection: which checkpoint to keep, by what it does on sets that it was not trained for.

    >>> before = {"svamp": [False, False], "asdiv": [True, False]}
    >>> table = {0: before, 100: {"svamp": [True, False], "asdiv": [True, True]}}
    >>> select_checkpoint(table, "mean-out-of-distribution")
    Selection(best=100, table=((0, 0.25), (100, 0.75)), tied=(0, 100))

The best checkpoint in distribution is not the best out of distribution (PAPER section 1, finding 7): the rule reads the
mean over the out-of-distribution validation sets of the accuracy in each. The best of many is best partly by
luck, so the steps that a paired bootstrap cannot tell from it are named. Pure.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Generic, Protocol, TypeVar, runtime_checkable

from potstill.errors import UserError
from potstill.evaluation import intervals

VERSION: Final = 1  # of the rules and their intervals; stored with the choice
RULES: Final = ("mean-out-of-distribution",)


@runtime_checkable
class _Ordered(Protocol):
    def __lt__(self, other: Any, /) -> bool: ...


CheckpointT = TypeVar("CheckpointT", bound=_Ordered)  # a contender, or whatever has an order


@dataclass(frozen=True, slots=True)
class Selection(Generic[CheckpointT]):
    """What `records.Choice` needs of it: the best contender, the value of each in their order, and which are tied with
    the best."""

    best: CheckpointT
    table: tuple[tuple[CheckpointT, float], ...]
    tied: tuple[CheckpointT, ...]


def select_checkpoint(
    table: Mapping[CheckpointT, Mapping[str, Sequence[bool]]],
    rule: str = "mean-out-of-distribution",
    *,
    seed: int = 0,
    level: float = 0.95,
    draws: int = 2000,
) -> Selection[CheckpointT]:
    """The best contender of `table`: contender -> set -> right or not for each question, in one order for all.

    The caller passes the out-of-distribution validation sets only. Of equal values the first contender wins.
    tied  contenders whose paired interval of the difference to the best holds 0, the best itself among them
    Raises UserError for an unknown rule, an empty table, and steps that answered different sets or counts of questions.
    """
    if rule not in RULES:
        raise UserError("unknown rule", where="select.rule", found=rule, hint=f"one of {', '.join(RULES)}")
    steps = sorted(table)
    _check_table(table, steps)
    values = {step: mean_set_accuracy(table[step]) for step in steps}
    best = max(steps, key=values.__getitem__)  # the first of equals
    tied = [step for step in steps if step == best or _is_tied(table[best], table[step], seed, level, draws)]
    return Selection(best, tuple(values.items()), tuple(tied))


def mean_set_accuracy(right: Mapping[str, Sequence[bool]]) -> float:
    """Mean over the sets of the accuracy in each: every set weighs the same, whatever its size."""
    return sum(sum(map(bool, answers)) / len(answers) for answers in right.values()) / len(right)


def count_since_best(values: Sequence[float]) -> int:
    """How many candidates came after the best of those so far, in their order; of equal values the first is the best.

    >>> count_since_best([0.1, 0.3, 0.2, 0.3]), count_since_best([0.1, 0.3, 0.4])
    (2, 0)
    """
    return len(values) - 1 - max(range(len(values)), key=values.__getitem__)


def _is_tied(
    best: Mapping[str, Sequence[bool]], other: Mapping[str, Sequence[bool]], seed: int, level: float, draws: int
) -> bool:
    pairs = [([float(x) for x in best[name]], [float(x) for x in other[name]]) for name in sorted(best)]
    _, low, high = intervals.stratified_bootstrap(pairs, seed=seed, level=level, draws=draws)
    return low <= 0 <= high


def _check_table(table: Mapping[CheckpointT, Mapping[str, Sequence[bool]]], steps: Sequence[CheckpointT]) -> None:
    if not steps:
        raise UserError("no checkpoint was evaluated", where="select", hint="run `evaluate` first")
    sizes = {name: len(right) for name, right in table[steps[0]].items()}
    if not sizes:
        hint = "name at least one set that is not trained on for validation"
        raise UserError("no out-of-distribution validation set", where="select", hint=hint)
    for name, size in sizes.items():
        if size == 0:
            raise UserError("a validation set without questions", where=f"select: step {steps[0]}, {name}")
    for step in steps[1:]:
        other = {name: len(right) for name, right in table[step].items()}
        if other != sizes:
            hint = "evaluate every step on the same questions (`--redo evaluate`)"
            what = f"step {step} answered other questions than step {steps[0]}"
            raise UserError(what, where="select", found=f"{other} against {sizes}", hint=hint)
