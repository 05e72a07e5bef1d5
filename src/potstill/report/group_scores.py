"""Scores of recipes that were run with several seeds: runs that differ only in seeds are one group.

    >>> def run(loss, seed, right):
    ...     answers = {"greedy": {f"q{n}": ("sums", n in right) for n in range(4)}}
    ...     return RunAnswers(f"{loss}-{seed}", {"train.divergence": loss}, {"train.seed": seed}, answers)
    >>> runs = [run("forward", 1, {0, 1}), run("forward", 2, {0, 1, 2}), run("reverse", 1, {0})]
    >>> groups = group_runs(runs)
    >>> [(group.label, group.seeds) for group in groups]
    [('train.divergence=forward', (1, 2)), ('train.divergence=reverse', (1,))]
    >>> [(score.share, score.difference, score.interval_over) for score in score_groups(groups)]
    [(0.625, None, 'seeds and questions'), (0.25, -0.375, 'questions, one seed')]

`group_files` reads the answers of runs. Intervals of a group with several seeds hold for other seeds and other questions of
the same kind (`intervals.seeds_share`). Those of a group with one seed hold for other questions only, and
`interval_over` says so. Only questions that all compared runs answered count.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final, Literal

from potstill.errors import UserError, suggest
from potstill.evaluation import intervals
from potstill.report.model import SET_GROUPS, Interval, QuotedScore, SetGroup
from potstill.report.summary import mean_interval

SEED_KEYS: Final = ("seed", "train.seed", "teacher.seed", "evaluate.seed")
STEP_KEY: Final = "step"  # stands for the checkpoint in the keys of a run whose checkpoint was named
LONGEST_VALUE: Final = 40  # characters of a key's value in the name of a group
MOST_UNSET: Final = 3  # keys without a value that a label names
LONGEST_LABEL: Final = 80  # characters of a group's keys and values; if they are more, its first run names it
OWN_BASE: Final = "own base"

IntervalOver = Literal["seeds and questions", "questions, one seed", "questions"]
Table = Sequence[Sequence[float]]  # one row per seed with one value per question, as in `intervals.seeds_share`
Tables = Mapping[int, Table]  # by the index of the group


@dataclass(frozen=True, slots=True)
class RunAnswers:
    """Which questions the chosen or named checkpoint of a run answers right.

    name      the run as it was named
    keys      dotted recipe key -> plain value, without seeds, name and report
    seeds     `seed`, `train.seed`, `teacher.seed` and `evaluate.seed`, with the values that were used
    right     format and decoding -> question (`run_questions.question_key`) -> (set, whether the answer is right)
    groups    the group of every set
    training  digest of the training that made the weights; empty if it is unknown, or for a model that was not trained
    quoted    figures from the literature that the recipe quotes
    is_fixed  whether no seed decided the weights: a base student from a folder
    is_base   whether it is the base (step 0) of the run, beside the run itself
    """

    name: str
    keys: Mapping[str, Any]
    seeds: Mapping[str, int]
    right: Mapping[str, Mapping[str, tuple[str, bool]]]
    groups: Mapping[str, SetGroup] = field(default_factory=dict)
    training: str = ""
    quoted: tuple[QuotedScore, ...] = ()
    is_fixed: bool = False
    is_base: bool = False


@dataclass(frozen=True, slots=True)
class SeedGroup:
    """The runs of one recipe with different seeds; a single run has one seed.

    label  the keys in which the groups differ, with their values; the name of the first run if there is only one group, or
           if the keys would be too long
    keys   these keys and values
    """

    label: str
    keys: Mapping[str, Any]
    runs: tuple[RunAnswers, ...]

    @property
    def seeds(self) -> tuple[int, ...]:
        """The seed of each run's training."""
        return tuple(run.seeds["train.seed"] for run in self.runs)

    @property
    def interval_over(self) -> IntervalOver:
        """What the intervals of the group's scores hold for."""
        if len(self.runs) != 1:
            return "seeds and questions"
        return "questions" if self.runs[0].is_fixed else "questions, one seed"

    @property
    def is_base(self) -> bool:
        return self.runs[0].is_base


@dataclass(frozen=True, slots=True)
class GroupScore:
    """A group on one set, or the mean over all sets of a kind. Shares are in [0, 1], and intervals are 95 % intervals.

    answers          format and decoding
    of               `set`, or `mean over sets`
    set              name of the set, or for a mean in-distribution, out-of-distribution or generic
    sets             number of sets; 1 for a set
    n                number of questions that all compared runs answered
    share            mean over seeds of the share of right answers
    by_seed          the share of each run
    interval_over    what the interval of the share holds for
    difference       the share minus that of the baseline; None for the baseline itself, as are the values below
    difference_over  what the interval of the difference holds for
    baseline         label of the group that this one is compared with
    """

    answers: str
    of: Literal["set", "mean over sets"]
    set: str
    group: str
    sets: int
    n: int
    share: float
    low: float
    high: float
    by_seed: tuple[float, ...]
    interval_over: IntervalOver
    difference: float | None = None
    difference_low: float | None = None
    difference_high: float | None = None
    difference_over: IntervalOver | None = None
    baseline: str | None = None


def group_runs(runs: Sequence[RunAnswers], by: Sequence[str] | None = None) -> tuple[SeedGroup, ...]:
    """The groups of the runs, in the order of their first run; bases come first.

    by  dotted keys or sections whose values name the groups: all other keys must be equal or seeds. A seed that is named
        divides the groups, too. None: every key except seeds

    Raises UserError if a key of `by` does not exist, if the runs differ in further keys, or if a group has the same seeds
    or the same training twice.
    """
    bases, trained = [run for run in runs if run.is_base], [run for run in runs if not run.is_base]
    named = None if by is None else _expand_keys(by, runs)
    if named is not None:
        _refuse_unnamed(named, trained)
    groups = [
        (f"base, {label}" if keys else "base", keys, of_group)
        for label, keys, of_group in _divide(bases, None if named is None else [k for k in named if k not in SEED_KEYS])
    ]
    found = _divide(trained, named)
    if (len(found) == 1 and not found[0][1]) or (by is None and any(len(row[0]) > LONGEST_LABEL for row in found)):
        found = [(of_group[0].name, keys, of_group) for _, keys, of_group in found]
    groups += found
    labels = _number_equal([label for label, _, _ in groups])
    return tuple(SeedGroup(label, keys, row) for label, (_, keys, row) in zip(labels, groups, strict=True))


def score_groups(groups: Sequence[SeedGroup], baseline: int | Literal["own base"] | None = 0) -> tuple[GroupScore, ...]:
    """The scores of every group on every set, in every format and decoding that its runs have, and the means over sets.

    baseline  index of the group that the others are compared with; `own base`: each is compared with the base of its own
              student; None: no comparison

    Scores are in the order of format and decoding, set and group. In-distribution sets come first and generic ones last,
    each kind with its mean after its sets. A set with fewer than two common questions has no scores. A group that lacks
    a set has no mean over sets of its kind.
    """
    kinds = {name: kind for group in groups for run in group.runs for name, kind in run.groups.items()}
    scores: list[GroupScore] = []
    for answers in sorted({name for group in groups for run in group.runs for name in run.right}):
        tables = _collect_tables(answers, groups)
        for kind in (*SET_GROUPS, None):
            names = [name for name in tables if kinds.get(name) == kind]
            for name in names:
                scores += _score_sets(answers, "set", name, [tables[name]], groups, baseline)
            if kind and names:
                of_kind = [tables[name] for name in names]
                scores += _score_sets(answers, "mean over sets", kind, of_kind, groups, baseline)
    return tuple(scores)


def describe_keys(keys: Mapping[str, Any]) -> str:
    """The keys in which the groups differ, with a group's values; long values are cut.

    >>> describe_keys({"train.replay.share": 0.3, "train.lora": None})
    'train.replay.share=0.3'
    >>> describe_keys({"train.replay": None, "train.replay.share": None, "train.replay.sets": None})
    'without train.replay'
    """
    unset = [key for key in keys if not any(key.startswith(f"{section}.") for section in keys)]
    more = ", ..." if len(unset) > MOST_UNSET else ""
    without = f"without {', '.join(unset[:MOST_UNSET])}{more}" if unset else "default"
    return ", ".join(f"{key}={_shorten(value)}" for key, value in keys.items() if value is not None) or without


def label_groups(keys: Sequence[Mapping[str, Any]]) -> list[str]:
    """A name for each group: the keys whose values differ between groups, with the group's values."""
    return [describe_keys(row) for row in _differing_keys(keys)]


def _collect_tables(answers: str, groups: Sequence[SeedGroup]) -> dict[str, Tables]:
    """Set -> index of a group -> its table; only questions that all groups with this set answered."""
    found: dict[str, Tables] = {}
    having = {index: group for index, group in enumerate(groups) if all(answers in run.right for run in group.runs)}
    for set_name in sorted({name for group in having.values() for name, _ in group.runs[0].right[answers].values()}):
        asked = {
            index: set.intersection(*(_asked(run, answers, set_name) for run in group.runs))
            for index, group in having.items()
        }
        asked = {index: questions for index, questions in asked.items() if questions}
        questions = sorted(set.intersection(*asked.values())) if asked else []
        if len(questions) < 2:
            continue  # one question has no interval
        found[set_name] = {
            index: [[float(run.right[answers][question][1]) for question in questions] for run in groups[index].runs]
            for index in asked
        }
    return found


def _asked(run: RunAnswers, answers: str, set_name: str) -> set[str]:
    return {question for question, (name, _) in run.right[answers].items() if name == set_name}


def _score_sets(
    answers: str,
    of: Literal["set", "mean over sets"],
    name: str,
    sets: Sequence[Tables],
    groups: Sequence[SeedGroup],
    baseline: int | Literal["own base"] | None,
) -> Iterator[GroupScore]:
    """The scores of all groups that have all of the sets."""
    for index, group in enumerate(groups):
        if not all(index in tables for tables in sets):
            continue
        own, against = [tables[index] for tables in sets], _baseline_of(index, groups, baseline)
        score = GroupScore(
            answers,
            of,
            name,
            group.label,
            len(sets),
            sum(len(table[0]) for table in own),
            *_share(own),
            tuple(statistics.fmean(map(statistics.fmean, rows)) for rows in zip(*own, strict=True)),
            group.interval_over,
        )
        if against is not None and against != index and all(against in tables for tables in sets):
            difference, low, high = _difference(own, [tables[against] for tables in sets])
            score = replace(
                score,
                difference=difference,
                difference_low=low,
                difference_high=high,
                difference_over=_weaker(group, groups[against]),
                baseline=groups[against].label,
            )
        yield score


def _baseline_of(index: int, groups: Sequence[SeedGroup], baseline: int | Literal["own base"] | None) -> int | None:
    """The index of the group that a group is compared with."""
    if baseline != OWN_BASE:
        return baseline
    student = _student_keys(groups[index].runs[0])
    return next(
        (at for at, other in enumerate(groups) if other.is_base and _student_keys(other.runs[0]) == student), None
    )


def _share(sets: Sequence[Table]) -> tuple[float, float, float]:
    """The mean over sets and its interval."""
    if len(sets[0]) > 1:
        return intervals.seeds_mean_share(sets)
    rights = [(sum(row), len(row)) for [row] in sets]
    mean = mean_interval([Interval(right / n, *intervals.wilson_interval(right, n)) for right, n in rights])
    return mean.value, mean.low, mean.high


def _difference(first: Sequence[Table], second: Sequence[Table]) -> tuple[float, float, float]:
    """The difference of two means over the same questions, with its interval.

    It is over seeds and questions if a table has several rows. A single row is taken as it is: the interval is over the
    other table's seeds, and over questions.
    """
    if len(first[0]) > 1 or len(second[0]) > 1:
        difference, low, high = intervals.seeds_mean_difference(first, second)
        return difference, max(low, -1.0), min(high, 1.0)
    right = [[[value > 0 for value in row] for [row] in sets] for sets in (first, second)]
    mean = mean_interval([Interval(*intervals.paired_difference(a, b)) for a, b in zip(*right, strict=True)])
    return mean.value, mean.low, mean.high


def _weaker(*groups: SeedGroup) -> IntervalOver:
    """What the interval of a difference between groups holds for."""
    order: tuple[IntervalOver, ...] = ("questions, one seed", "seeds and questions", "questions")
    return order[min(order.index(group.interval_over) for group in groups)]


def _divide(
    runs: Sequence[RunAnswers], named: Sequence[str] | None
) -> list[tuple[str, dict[str, Any], tuple[RunAnswers, ...]]]:
    """The label, the keys and the runs of each group."""
    members: dict[str, list[RunAnswers]] = {}
    keys: list[dict[str, Any]] = []
    for run in runs:
        values = dict(run.keys) if named is None else {key: {**run.keys, **run.seeds}.get(key) for key in named}
        identity = json.dumps(values, sort_keys=True)
        if identity not in members:
            keys.append(values)
        members.setdefault(identity, []).append(run)
    for of_group in members.values():
        _refuse_same(of_group)
    differing = _differing_keys(keys)
    return [
        (describe_keys(values), values, tuple(of_group))
        for values, of_group in zip(differing, members.values(), strict=True)
    ]


def _differing_keys(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Each row's values of the keys that are not equal in all rows, and the sections of these keys that the row lacks.

    In a recipe with several teachers, the keys of `teacher` have their defaults and mean nothing, so they have no value.

    >>> _differing_keys([{"train.replay": None}, {"train.replay.share": 0.2, "train.replay.sets": ["bbh"]}])[0]
    {'train.replay': None, 'train.replay.share': None, 'train.replay.sets': None}
    """
    differing = [
        key
        for key in dict.fromkeys(key for row in rows for key in row)
        if len({json.dumps(row.get(key), sort_keys=True) for row in rows}) > 1
    ]
    several = [any(key.startswith("teachers.") for key in row) for row in rows]
    return [
        {
            section: None
            for section in row
            if row[section] is None and any(key.startswith(f"{section}.") for key in differing)
        }
        | {key: None if unused and key.startswith("teacher.") else row.get(key) for key in differing}
        for row, unused in zip(rows, several, strict=True)
    ]


def _number_equal(labels: Sequence[str]) -> list[str]:
    """The labels; those that are equal, because long values were cut, get a number."""
    return [
        f"{label} ({labels[: index + 1].count(label)})" if labels.count(label) > 1 else label
        for index, label in enumerate(labels)
    ]


def _shorten(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= LONGEST_VALUE else text[: LONGEST_VALUE - 3] + "..."


def _student_keys(run: RunAnswers) -> dict[str, Any]:
    return {key: value for key, value in run.keys.items() if key.startswith("student.")}


def _expand_keys(by: Sequence[str], runs: Sequence[RunAnswers]) -> list[str]:
    """The keys of the runs that `by` names, where a section stands for all its keys except seeds."""
    known = list(dict.fromkeys(key for run in runs for key in run.keys))
    expanded: list[str] = []
    for name in by:
        found = [key for key in known if key == name or key.startswith(f"{name}.")]
        if not found and name not in (*SEED_KEYS, STEP_KEY):
            what, hint = "no run has this key", f"{suggest(name, known)}name keys or sections of the recipe"
            raise UserError(what, code="E-report-unknown-key", where="by", found=name, hint=hint)
        expanded += found or [name]
    return list(dict.fromkeys(expanded))


def _refuse_unnamed(named: Sequence[str], runs: Sequence[RunAnswers]) -> None:
    """Raise a UserError if the runs differ in keys that are neither named nor seeds."""
    differing = _differing_keys([run.keys for run in runs])
    unnamed = [key for key in (differing[0] if differing else ()) if key not in named]
    if unnamed:
        what, hint = "the runs also differ in other keys", "name these keys, too, or leave out runs of other recipes"
        raise UserError(what, code="E-report-unnamed-keys", where=", ".join(named), found=", ".join(unnamed), hint=hint)


def _refuse_same(runs: Sequence[RunAnswers]) -> None:
    """Raise a UserError if two runs of a group are one training, or have the same seeds."""
    for number, run in enumerate(runs):
        for other in runs[:number]:
            if run.seeds == other.seeds or (run.training and run.training == other.training):
                what = "two runs of one recipe have the same seeds or the same training, and count as one"
                found = ", ".join(f"{row.name} (seed {row.seeds['train.seed']})" for row in (other, run))
                hint = "name one of them, or run the recipe again with --set train.seed=2 --set name=NAME-2"
                raise UserError(what, code="E-report-same-seeds", where=run.name, found=found, hint=hint)
