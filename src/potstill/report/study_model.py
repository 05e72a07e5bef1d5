"""What the page of a study shows, as frozen values. `study_files` and `study_numbers` make them from runs.

    >>> cost = CostRow("span.1", "span.1", {"train": 90.0}, tokens=1000, money=0.5)
    >>> StudyReport("rules", "", (), {}, (cost, cost)).total.seconds
    {'train': 180.0}

Shares are in [0, 1]. Intervals are 95 % intervals.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from potstill.evaluation.intervals import LineFit
from potstill.records import Checkpoint
from potstill.report.group_scores import GroupScore, RunAnswers
from potstill.report.model import SET_GROUPS, QuotedScore, RuleChoice, SetGroup
from potstill.report.summary import CheckpointScores, GroupChange


class Experiment(NamedTuple):
    """One grid of a study.

    axes  the keys or names whose choices are combined
    runs  (name, axis -> name of its choice, folder) of every run
    """

    name: str
    title: str
    axes: Sequence[str]
    runs: Sequence[tuple[str, Mapping[str, str], Path]]


@dataclass(frozen=True, slots=True)
class StudyRun:
    """What the page of a study shows of a run. Without a finished run, only `name`, `folder`, `fault` and the costs.

    folder      name of its folder, beside the page
    fault       why its results cannot be shown; empty if they can
    answers     test answers of the chosen checkpoint; `base` of the base
    main        format and decoding of the choice, as in the names of files of answers
    formats     formats of the evaluation, in the order of the recipe
    trained_on  format -> quota in training
    chosen      the chosen checkpoint
    curve       validation accuracies of the base and of every checkpoint, in the main format
    losses      (step, training loss in nats per supervised position)
    objective   key -> value, for everything that decides what the loss compares
    parameters  number of parameters of the student
    rules       what each rule chooses
    seconds     stage -> seconds of the processes that finished it here; without stages that were copied
    copied      stage -> name of the run from which it was copied
    tokens      tokens that the teacher wrote for this run's own stage `sample`; 0 if it was copied
    money       the cost of this run's own stage `sample`
    """

    name: str
    folder: str
    fault: str = ""
    answers: RunAnswers | None = None
    base: RunAnswers | None = None
    main: str = ""
    formats: tuple[str, ...] = ()
    trained_on: Mapping[str, int] = field(default_factory=dict)
    chosen: Checkpoint | None = None
    curve: tuple[CheckpointScores, ...] = ()
    losses: tuple[tuple[int, float], ...] = ()
    objective: Mapping[str, Any] = field(default_factory=dict)
    parameters: int | None = None
    rules: tuple[RuleChoice, ...] = ()
    seconds: Mapping[str, float] = field(default_factory=dict)
    copied: Mapping[str, str] = field(default_factory=dict)
    tokens: int = 0
    money: float = 0.0


@dataclass(frozen=True, slots=True)
class Group:
    """The finished runs of one recipe with different seeds.

    choices  axis -> name of its choice, for the axes on which all runs of the group have the same choice
    """

    label: str
    choices: Mapping[str, str]
    runs: tuple[StudyRun, ...]

    @property
    def seeds(self) -> tuple[int, ...]:
        return tuple(run.answers.seeds["train.seed"] for run in self.runs if run.answers)


@dataclass(frozen=True, slots=True)
class Cell:
    """A group on a set, or on the mean over the sets of a kind: compared with its base, and with the first group."""

    score: GroupScore
    first: GroupScore


@dataclass(frozen=True, slots=True)
class Column:
    """A set, or the mean over the sets of a kind. n: number of questions that all runs answered"""

    kind: SetGroup | None
    of: str
    name: str
    n: int


@dataclass(frozen=True, slots=True)
class Row:
    """A group in the main table.

    seeds  their number as a phrase; empty if no seed decided the weights
    cells  one for each column; None if the group lacks the set
    """

    label: str
    seeds: str
    is_base: bool
    cells: tuple[Cell | None, ...]


@dataclass(frozen=True, slots=True)
class Table:
    """The main table in one format and decoding, with a column for each set, and for the mean over the sets of a kind."""

    answers: str
    columns: tuple[Column, ...]
    rows: tuple[Row, ...]

    @property
    def summary(self) -> dict[SetGroup, int]:
        """Kind -> place of its column: of the mean over its sets, or of its only set."""
        last = {column.kind: place for place, column in enumerate(self.columns) if column.kind is not None}
        return {kind: last[kind] for kind in SET_GROUPS if kind in last}


@dataclass(frozen=True, slots=True)
class TradeoffPoint:
    """A checkpoint of a run on validation.

    group      index of its group
    is_front   whether no other checkpoint of any run is at least as good on both, and better on one
    """

    group: int
    run: str
    seed: int
    checkpoint: Checkpoint
    kind: SetGroup
    generic: float
    specialized: float
    is_chosen: bool
    is_front: bool


@dataclass(frozen=True, slots=True)
class FrontPoint:
    """A group, or a base, on test: the mean over generic sets and the mean over the sets of a specialized kind.

    group  index of the group; None for a base
    """

    group: int | None
    label: str
    kind: SetGroup
    generic: GroupScore
    specialized: GroupScore
    is_front: bool


@dataclass(frozen=True, slots=True)
class Scaling:
    """Test accuracy by number of parameters, for one kind of sets: the specialized students, or their bases.

    label   the choices that all of its groups have; empty if only the size differs
    points  (parameters, group, score), sorted by the parameters
    fit     the line over the decadic logarithm of the parameters
    """

    label: str
    kind: SetGroup
    who: str
    points: tuple[tuple[int, str, GroupScore], ...]
    fit: LineFit


@dataclass(frozen=True, slots=True)
class FormatMatrix:
    """Test accuracy for one kind of sets: a row for each group, a column for each format that it answers in."""

    kind: SetGroup
    formats: tuple[str, ...]
    rows: tuple[tuple[str, Mapping[str, int], tuple[GroupScore | None, ...]], ...]


@dataclass(frozen=True, slots=True)
class LossPanel:
    """The losses of the groups that have one objective. objective: the keys in which the panels differ"""

    objective: str
    lines: tuple[tuple[int, str, tuple[tuple[int, float], ...]], ...]  # index of the group, run, (step, loss)


@dataclass(frozen=True, slots=True)
class CostRow:
    """What a run took. Stages that it copied cost nothing here, and are in the row of the run that made them.

    seconds  of the stage -> number
    outside  stages that were copied from a run that is not in the table: their cost is in no row
    """

    run: str
    folder: str
    seconds: Mapping[str, float]
    tokens: int
    money: float
    outside: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class ExperimentView:
    """One experiment as its page shows it.

    faults   (name, folder, what is wrong) of runs that are not in any number
    omitted  (what is not shown, why)
    quoted   figures from the literature that the recipes quote
    """

    name: str
    title: str
    axes: tuple[str, ...]
    groups: tuple[Group, ...]
    faults: tuple[tuple[str, str, str], ...]
    tables: tuple[Table, ...] = ()
    tradeoff: tuple[TradeoffPoint, ...] = ()
    front: tuple[FrontPoint, ...] = ()
    scaling: tuple[Scaling, ...] = ()
    matrices: tuple[FormatMatrix, ...] = ()
    losses: tuple[LossPanel, ...] = ()
    omitted: tuple[tuple[str, str], ...] = ()
    quoted: tuple[QuotedScore, ...] = ()


@dataclass(frozen=True, slots=True)
class StudyReport:
    """What the page of a study shows.

    runs    all runs by name
    texts   experiment -> the sentences on top of it
    rules   experiment -> lines of the table of selection rules
    """

    name: str
    title: str
    experiments: tuple[ExperimentView, ...]
    runs: Mapping[str, StudyRun]
    costs: tuple[CostRow, ...]
    texts: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    rules: Mapping[str, tuple[RuleRow, ...]] = field(default_factory=dict)

    @property
    def total(self) -> CostRow:
        """All costs of the table."""
        seconds: dict[str, float] = {}
        for row in self.costs:
            for stage, number in row.seconds.items():
                seconds[stage] = seconds.get(stage, 0.0) + number
        return CostRow("all runs", "", seconds, sum(r.tokens for r in self.costs), sum(r.money for r in self.costs))


@dataclass(frozen=True, slots=True)
class RuleRow:
    """What a rule chooses among the checkpoints of a run. tested: by kind of sets; empty if the choice was not tested"""

    run: StudyRun
    group: str
    choice: RuleChoice
    tested: Mapping[SetGroup, GroupChange]
    price: Mapping[SetGroup, GroupChange]
