"""Selection: the best checkpoint by accuracy on sets that it was not trained on.

    >>> before = {"svamp": [False, False], "asdiv": [True, False]}
    >>> table = {0: before, 100: {"svamp": [True, False], "asdiv": [True, True]}}
    >>> select_checkpoint(table, "mean-out-of-distribution")
    Selection(best=100, table=((0, 0.25), (100, 0.75)), tied=(0, 100))

The best checkpoint in distribution is not the best out of distribution (PAPER section 1, finding 7), so the rule takes
the mean accuracy over the out-of-distribution validation sets. The best of many is partly the luckiest, so checkpoints
that a paired bootstrap cannot distinguish from it are listed as tied.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Generic, Protocol, TypeVar, runtime_checkable

from potstill.errors import UserError
from potstill.evaluation import intervals

VERSION: Final = 1  # of the rules and their intervals; stored with the choice
RULES: Final = ("mean-out-of-distribution",)

Outcomes = Mapping[str, Sequence[bool]]  # set -> whether each answer is right


@runtime_checkable
class _Ordered(Protocol):
    def __lt__(self, other: Any, /) -> bool: ...


CheckpointT = TypeVar("CheckpointT", bound=_Ordered)  # a checkpoint, or anything else with an order


@dataclass(frozen=True, slots=True)
class Selection(Generic[CheckpointT]):
    """The best checkpoint, the value of each one in their order, and those tied with the best (itself included)."""

    best: CheckpointT
    table: tuple[tuple[CheckpointT, float], ...]
    tied: tuple[CheckpointT, ...]


def select_checkpoint(
    table: Mapping[CheckpointT, Outcomes],
    rule: str = "mean-out-of-distribution",
    *,
    seed: int = 0,
    level: float = 0.95,
    draws: int = 2000,
) -> Selection[CheckpointT]:
    """The best checkpoint of `table`, the first of equal ones.

    table  checkpoint -> outcomes on the out-of-distribution validation sets, questions in the same order for all

    A checkpoint is tied if the paired interval of its difference to the best contains 0.
    Raises UserError for an unknown rule, an empty table, and checkpoints with different sets or numbers of questions.
    """
    if rule not in RULES:
        raise UserError(
            "unknown rule",
            code="E-select-unknown-rule",
            where="select.rule",
            found=rule,
            hint=f"one of {', '.join(RULES)}",
        )
    checkpoints = sorted(table)
    _check_table(table, checkpoints)
    values = {checkpoint: mean_set_accuracy(table[checkpoint]) for checkpoint in checkpoints}
    best = max(checkpoints, key=values.__getitem__)  # the first of equal ones
    tied = [
        checkpoint
        for checkpoint in checkpoints
        if checkpoint == best or _is_tied(table[best], table[checkpoint], seed, level, draws)
    ]
    return Selection(best, tuple(values.items()), tuple(tied))


def mean_set_accuracy(outcomes: Outcomes) -> float:
    """Mean over the sets of the accuracy on each: every set has the same weight, whatever its size."""
    return sum(sum(map(bool, answers)) / len(answers) for answers in outcomes.values()) / len(outcomes)


def count_since_best(values: Sequence[float]) -> int:
    """How many values follow the best one, the first of equal ones.

    >>> count_since_best([0.1, 0.3, 0.2, 0.3]), count_since_best([0.1, 0.3, 0.4])
    (2, 0)
    """
    return len(values) - 1 - max(range(len(values)), key=values.__getitem__)


def _is_tied(best: Outcomes, other: Outcomes, seed: int, level: float, draws: int) -> bool:
    pairs = [([float(x) for x in best[name]], [float(x) for x in other[name]]) for name in sorted(best)]
    _, low, high = intervals.stratified_bootstrap(pairs, seed=seed, level=level, draws=draws)
    return low <= 0 <= high


def _check_table(table: Mapping[CheckpointT, Outcomes], checkpoints: Sequence[CheckpointT]) -> None:
    if not checkpoints:
        raise UserError(
            "no checkpoint was evaluated",
            code="E-select-no-checkpoint",
            where="select",
            hint="run `evaluate` first",
        )
    first = checkpoints[0]
    sizes = {name: len(answers) for name, answers in table[first].items()}
    if not sizes:
        raise UserError(
            "there is no out-of-distribution validation set",
            code="E-select-no-validation-set",
            where="select",
            hint="list at least one set that is not trained on under questions.out_of_distribution",
        )
    for name, size in sizes.items():
        if size == 0:
            raise UserError(
                "a validation set has no questions",
                code="E-select-empty-set",
                where=f"select: step {first}, {name}",
            )
    for checkpoint in checkpoints[1:]:
        other = {name: len(answers) for name, answers in table[checkpoint].items()}
        if other != sizes:
            raise UserError(
                f"step {checkpoint} answered different questions from step {first}",
                code="E-select-different-questions",
                where="select",
                found=f"{other} against {sizes}",
                hint="evaluate every step on the same questions (`--redo evaluate`)",
            )
