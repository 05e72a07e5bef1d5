"""The numbers of a study's page: groups over seeds, and what its tables and figures show of them.

    experiment = view_experiment(Experiment("rules", "", ("transfer.rule",), rows), read_study([...]))
    [group.label for group in experiment.groups], experiment.tables[0].rows[0].cells[0].score.share
    experiment.tradeoff, experiment.scaling, experiment.matrices, experiment.costs

A group is the runs of one recipe with different seeds. Its name is that of its choices on the axes in which groups differ.
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from typing import Final

from potstill.evaluation import intervals
from potstill.evaluation.selection import pareto_front
from potstill.report.group_scores import (
    OWN_BASE,
    GroupScore,
    RunAnswers,
    SeedGroup,
    label_groups,
    score_groups,
)
from potstill.report.model import SET_GROUPS, SetGroup
from potstill.report.study_model import (
    Cell,
    Column,
    CostRow,
    Experiment,
    ExperimentView,
    FormatMatrix,
    FrontPoint,
    Group,
    LossPanel,
    Row,
    RuleRow,
    Scaling,
    StudyRun,
    Table,
    TradeoffPoint,
)
from potstill.report.summary import SPECIALIZED_GROUPS, changes_by_group

MIN_SIZES: Final = 3  # of a scaling curve


def view_experiment(experiment: Experiment, runs: Mapping[str, StudyRun]) -> ExperimentView:
    """Everything that the page shows of one experiment. runs: all runs of the study by name"""
    groups, faults = group_experiment(experiment, runs)
    bases = _group_bases(groups)
    scored = [*bases, *(_seed_group(group) for group in groups)]
    if not groups:
        return ExperimentView(experiment.name, experiment.title, tuple(experiment.axes), (), tuple(faults))
    to_base, to_first = score_groups(scored, OWN_BASE), score_groups(scored, len(bases))
    main = next(run.main for group in groups for run in group.runs)
    tables = _build_tables(scored, to_base, to_first, main)
    of_main = [score for score in to_base if score.answers == main]
    scaling, why_no_scaling = _build_scaling(groups, bases, of_main, main)
    matrices, why_no_matrix = _build_matrices(groups, to_base, main)
    tradeoff, front = _list_tradeoff(groups), _list_front(groups, bases, of_main)
    losses = _build_losses(groups)
    omitted = [
        (
            "the tradeoff during training",
            "" if tradeoff else "no run has validation scores of generic sets and of others",
        ),
        ("the price of each choice", "" if front else "there are no test scores of generic sets and of others"),
        ("the scaling curve", why_no_scaling),
        ("the matrix of formats", why_no_matrix),
        ("the loss during training", "" if losses else "no run has two finite training losses"),
    ]
    return ExperimentView(
        experiment.name,
        experiment.title,
        tuple(experiment.axes),
        tuple(groups),
        tuple(faults),
        tuple(tables),
        tuple(tradeoff),
        tuple(front),
        tuple(scaling),
        tuple(matrices),
        tuple(losses),
        tuple((what, why) for what, why in omitted if why),
        tuple(
            dict.fromkeys(row for group in groups for run in group.runs if run.answers for row in run.answers.quoted)
        ),
    )


# Groups


def group_experiment(
    experiment: Experiment, runs: Mapping[str, StudyRun]
) -> tuple[list[Group], list[tuple[str, str, str]]]:
    """The groups of an experiment in the order of its grid, and the runs that no number contains.

    A training that is there twice (runs that differ only in how they are reported or selected, or a copy) counts once.
    """
    faults: list[tuple[str, str, str]] = []
    members: dict[str, list[StudyRun]] = {}
    choices = {name: dict(chosen) for name, chosen, _ in experiment.runs}
    for name in choices:
        run = runs[name]
        if run.answers is None:
            faults.append((name, run.folder, run.fault))
            continue
        of_group = members.setdefault(json.dumps(dict(run.answers.keys), sort_keys=True), [])
        twin = next((other for other in of_group if _is_same(run.answers, other.answers)), None)
        if twin is None:
            of_group.append(run)
        else:
            faults.append((name, run.folder, f"it has the recipe and the seeds, or the training, of {twin.name}"))
    common = [
        {axis: choices[group[0].name].get(axis, "") for axis in experiment.axes if _is_equal(axis, group, choices)}
        for group in members.values()
    ]
    labels = _label(common, experiment, [group[0].answers.keys for group in members.values() if group[0].answers])
    rows = zip(labels, common, members.values(), strict=True)
    return [Group(label, chosen, tuple(group)) for label, chosen, group in rows], faults


def _is_same(run: RunAnswers, other: RunAnswers | None) -> bool:
    return other is not None and (run.seeds == other.seeds or (run.training != "" and run.training == other.training))


def _is_equal(axis: str, group: Sequence[StudyRun], choices: Mapping[str, Mapping[str, str]]) -> bool:
    return len({choices[run.name].get(axis) for run in group}) == 1


def _label(
    common: Sequence[Mapping[str, str]], experiment: Experiment, keys: Sequence[Mapping[str, object]]
) -> list[str]:
    """The names of the groups: their choices on the axes in which they differ; else the keys in which they differ."""
    axes = [axis for axis in experiment.axes if all(axis in chosen for chosen in common)]
    differing = [axis for axis in axes if len({chosen[axis] for chosen in common}) > 1]
    labels = [", ".join(chosen[axis] for axis in differing if chosen[axis]) for chosen in common]
    if len(labels) == 1:
        return [", ".join(filter(None, common[0].values())) or experiment.name]
    return labels if len(set(labels)) == len(labels) and all(labels) else label_groups(keys)


def _group_bases(groups: Sequence[Group]) -> list[SeedGroup]:
    """The bases of the students, each as one group; random weights with several seeds are several runs of one group."""
    members: dict[str, dict[int | None, RunAnswers]] = {}
    users: dict[str, list[Group]] = {}
    for group in groups:
        for base in (run.base for run in group.runs if run.base):
            key = json.dumps(dict(base.keys), sort_keys=True)
            members.setdefault(key, {}).setdefault(None if base.is_fixed else base.seeds["seed"], base)
            if group not in users.setdefault(key, []):
                users[key].append(group)
    names = [_name_users(users[key], groups) for key in members]
    labels = [f"base of {name}" if name else "base" for name in names]
    if len(set(labels)) < len(labels):
        labels = [f"base of {', '.join(group.label for group in users[key])}" for key in members]
    bases = [tuple(runs.values()) for runs in members.values()]
    return [SeedGroup(label, runs[0].keys, runs) for label, runs in zip(labels, bases, strict=True)]


def _name_users(users: Sequence[Group], groups: Sequence[Group]) -> str:
    """The choices that the users of a base have in common, on axes where other groups have another choice."""
    if len(users) == len(groups):
        return ""
    shared = [
        axis
        for axis in users[0].choices
        if len({group.choices.get(axis) for group in users}) == 1
        and len({group.choices.get(axis) for group in groups}) > 1
    ]
    return ", ".join(users[0].choices[axis] for axis in shared) or ", ".join(group.label for group in users)


def _seed_group(group: Group) -> SeedGroup:
    answers = tuple(run.answers for run in group.runs if run.answers)
    return SeedGroup(group.label, answers[0].keys, answers)


# Test


def _build_tables(
    groups: Sequence[SeedGroup], to_base: Sequence[GroupScore], to_first: Sequence[GroupScore], main: str
) -> Iterator[Table]:
    """A table for each format and decoding; that of the choice comes first."""
    first = {(score.answers, score.of, score.set, score.group): score for score in to_first}
    for answers in sorted({score.answers for score in to_base}, key=lambda name: (name != main, name)):
        scores = [score for score in to_base if score.answers == answers]
        by_place = {(score.of, score.set, score.group): score for score in scores}
        kinds: dict[str, SetGroup] = {
            name: kind for group in groups for run in group.runs for name, kind in run.groups.items()
        }
        columns = list(
            dict.fromkeys(
                Column(_kind_of(score, kinds), score.of, score.set, score.n)
                for score in scores
                if score.of == "set" or score.sets > 1
            )
        )
        rows = []
        for group in groups:
            places = [(column.of, column.name, group.label) for column in columns]
            cells = [Cell(by_place[place], first[answers, *place]) if place in by_place else None for place in places]
            if any(cells):
                rows.append(Row(group.label, _count_seeds(group), group.is_base, tuple(cells)))
        yield Table(answers, tuple(columns), tuple(rows))


def _count_seeds(group: SeedGroup) -> str:
    """How many seeds decided the weights; empty if none did."""
    if group.interval_over == "questions":
        return ""
    return f"{len(group.runs)} seeds" if len(group.runs) > 1 else "one seed"


def _kind_of(score: GroupScore, kinds: Mapping[str, SetGroup]) -> SetGroup | None:
    name = score.set if score.of != "set" else kinds.get(score.set)
    return next((kind for kind in SET_GROUPS if kind == name), None)


def _means(scores: Sequence[GroupScore], label: str) -> dict[SetGroup, GroupScore]:
    """The mean over the sets of each kind of a group, in one format."""
    found = {score.set: score for score in scores if score.of != "set" and score.group == label}
    return {kind: found[kind] for kind in SET_GROUPS if kind in found}


def _list_front(
    groups: Sequence[Group], bases: Sequence[SeedGroup], scores: Sequence[GroupScore]
) -> Iterator[FrontPoint]:
    """The groups and bases in the plane of generic and specialized test accuracy."""
    rows = [(None, base.label) for base in bases] + [(index, group.label) for index, group in enumerate(groups)]
    means = {label: _means(scores, label) for _, label in rows}
    for kind in SPECIALIZED_GROUPS:
        plane = {
            label: (of["generic"].share, of[kind].share) for label, of in means.items() if {"generic", kind} <= set(of)
        }
        front = set(pareto_front(plane))
        for index, label in rows:
            if label in plane:
                yield FrontPoint(index, label, kind, means[label]["generic"], means[label][kind], label in front)


# Validation, during training


def _list_tradeoff(groups: Sequence[Group]) -> Iterator[TradeoffPoint]:
    """Every checkpoint of every run in the plane of generic and specialized validation accuracy."""
    for kind in SPECIALIZED_GROUPS:
        plane = {
            (index, run.name, row.checkpoint): (row.groups["generic"].value, row.groups[kind].value)
            for index, group in enumerate(groups)
            for run in group.runs
            for row in run.curve
            if {"generic", kind} <= set(row.groups)
        }
        front = set(pareto_front(plane))
        runs = {run.name: run for group in groups for run in group.runs}
        for key, (generic, specialized) in plane.items():
            index, name, checkpoint = key
            run = runs[name]
            seed = run.answers.seeds["train.seed"] if run.answers else 0
            chosen = checkpoint == run.chosen
            yield TradeoffPoint(index, name, seed, checkpoint, kind, generic, specialized, chosen, key in front)


def mean_path(points: Sequence[TradeoffPoint]) -> list[tuple[float, float]]:
    """The mean over the runs of a group at each step that all of them have: (generic, specialized)."""
    by_step: dict[int, list[TradeoffPoint]] = {}
    for point in points:
        if point.checkpoint.is_plain:
            by_step.setdefault(point.checkpoint.step, []).append(point)
    runs = len({point.run for point in points})
    return [
        (statistics.fmean(p.generic for p in row), statistics.fmean(p.specialized for p in row))
        for _, row in sorted(by_step.items())
        if len(row) == runs
    ]


def _build_losses(groups: Sequence[Group]) -> list[LossPanel]:
    """A panel for each objective, with a line for each run."""
    rows = [(index, run) for index, group in enumerate(groups) for run in group.runs]
    named = [{key: value for key, value in run.objective.items() if key != "student.tokenizer"} for _, run in rows]
    panels: dict[str, list[tuple[int, str, tuple[tuple[int, float], ...]]]] = {}
    names: dict[str, str] = {}
    for (index, run), label in zip(rows, label_groups(named), strict=True):
        finite = tuple(row for row in run.losses if math.isfinite(row[1]))
        if len(finite) > 1:
            identity = json.dumps(dict(run.objective), sort_keys=True)
            panels.setdefault(identity, []).append((index, run.name, finite))
            names[identity] = label
    return [LossPanel(_name_objective(label, list(names.values())), tuple(panels[key])) for key, label in names.items()]


def _name_objective(label: str, labels: Sequence[str]) -> str:
    """The name of a panel: its keys, and whether they are those of several tokenizers. Empty for the only panel.

    >>> labels = ["train.divergence=forward_kl", "train.divergence=reverse_kl", "train.divergence=reverse_kl"]
    >>> [_name_objective(label, labels) for label in labels[:2]]
    ['train.divergence=forward_kl', 'train.divergence=reverse_kl, one tokenizer of several']
    """
    if len(labels) == 1:
        return ""
    parts = [label] if len(set(labels)) > 1 else []
    return ", ".join([*parts, *(["one tokenizer of several"] if labels.count(label) > 1 else [])])


# Scaling


def _build_scaling(
    groups: Sequence[Group], bases: Sequence[SeedGroup], scores: Sequence[GroupScore], main: str
) -> tuple[list[Scaling], str]:
    """The scaling curves, or why there is none."""
    sizes = {group.label: {run.parameters for run in group.runs} for group in groups}
    known = {label: min(row, key=lambda n: n or 0) for label, row in sizes.items() if len(row) == 1}
    parameters = {label: number for label, number in known.items() if number}
    different = sorted(set(parameters.values()))
    if len(different) < MIN_SIZES:
        found = f"{len(different)} sizes" if len(different) > 1 else "one size" if different else "no known size"
        return [], f"it needs students of at least {MIN_SIZES} sizes, and these have {found}"
    curves = []
    for label, members in _curves(groups, parameters).items():
        by_size = sorted(members, key=lambda group: parameters[group.label])
        if len({parameters[group.label] for group in by_size}) < MIN_SIZES:
            continue
        own_bases = [(group, base) for group in by_size for base in bases if _is_base_of(base, group)]
        for kind in SET_GROUPS:
            for who, rows in (
                ("specialized", [(group, _seed_group(group)) for group in by_size]),
                ("base", own_bases),
            ):
                points = [
                    (parameters[group.label], group.label, mean[kind])
                    for group, row in rows
                    if kind in (mean := _means(scores, row.label))
                ]
                tables = _size_tables([row for _, row in rows], kind, main)
                if len({number for number, _, _ in points}) >= MIN_SIZES and len(points) == len(rows) and tables:
                    logs = [math.log10(number) for number, _, _ in points]
                    curves.append(Scaling(label, kind, who, tuple(points), intervals.fit_line(logs, tables)))
    return curves, "" if curves else f"no choice of the other axes has students of at least {MIN_SIZES} sizes"


def _curves(groups: Sequence[Group], parameters: Mapping[str, int]) -> dict[str, list[Group]]:
    """The groups of each curve. They have equal choices on all axes that do not decide the size."""
    sized = [group for group in groups if group.label in parameters]
    axes = list(sized[0].choices)
    deciding = []
    for axis in axes:
        by_choice: dict[str, set[int]] = {}
        for group in sized:
            by_choice.setdefault(group.choices.get(axis, ""), set()).add(parameters[group.label])
        if all(len(numbers) == 1 for numbers in by_choice.values()) and len(by_choice) > 1:
            deciding.append(axis)
    others = [axis for axis in axes if axis not in deciding and len({group.choices.get(axis) for group in sized}) > 1]
    curves: dict[str, list[Group]] = {}
    for group in sized:
        curves.setdefault(", ".join(group.choices.get(axis, "") for axis in others), []).append(group)
    return curves


def _is_base_of(base: SeedGroup, group: Group) -> bool:
    return any(run.base is not None and run.base.keys == base.runs[0].keys for run in group.runs)


def _size_tables(groups: Sequence[SeedGroup], kind: SetGroup, answers: str) -> list[list[list[float]]]:
    """For each set of a kind, a row for each group with the share of its seeds that have a question right."""
    runs = [run for group in groups for run in group.runs]
    names = sorted({name for run in runs for name, of in run.groups.items() if of == kind})
    tables = []
    for name in names:
        asked = [{q for q, (of, _) in run.right.get(answers, {}).items() if of == name} for run in runs]
        questions = sorted(set.intersection(*asked)) if asked else []
        if len(questions) > 1:
            tables.append(
                [
                    [statistics.fmean(run.right[answers][question][1] for run in group.runs) for question in questions]
                    for group in groups
                ]
            )
    return tables


# Formats


def _build_matrices(groups: Sequence[Group], scores: Sequence[GroupScore], main: str) -> tuple[list[FormatMatrix], str]:
    """A matrix for each kind of sets, or why there is none."""
    decoding = main.partition(".")[2]
    formats = tuple(dict.fromkeys(name for group in groups for run in group.runs for name in run.formats))
    taught = {json.dumps(run.trained_on, sort_keys=True) for group in groups for run in group.runs}
    if len(taught) < 2 or len(formats) < 2:
        missing = "trained in two mixtures of formats" if len(taught) < 2 else "evaluated in two formats"
        return [], f"it needs runs that were {missing}"
    matrices = []
    for kind in SET_GROUPS:
        rows = []
        for group in groups:
            by_format = {
                name: _means([s for s in scores if s.answers == f"{name}.{decoding}"], group.label) for name in formats
            }
            rows.append((group.label, group.runs[0].trained_on, tuple(by_format[name].get(kind) for name in formats)))
        if any(cell for _, _, cells in rows for cell in cells):
            matrices.append(FormatMatrix(kind, formats, tuple(rows)))
    return matrices, ""


# Selection and cost


def list_rules(view: ExperimentView) -> Iterator[RuleRow]:
    """The choices of every rule in every run of an experiment. The rule of the run comes first."""
    for group in view.groups:
        for run in group.runs:
            kinds = run.answers.groups if run.answers else {}
            for row in run.rules:
                tested, price = (changes_by_group(part, kinds) for part in (row.tested, row.price))
                yield RuleRow(run, group.label, row, tested, price)


def list_costs(runs: Mapping[str, StudyRun]) -> list[CostRow]:
    """What each run took, unfinished ones included. A stage that several runs share is in the row of one of them."""
    return [
        CostRow(
            run.name,
            run.folder,
            run.seconds,
            run.tokens,
            run.money,
            tuple(stage for stage, source in run.copied.items() if not _made_by(stage, source, runs)),
        )
        for run in runs.values()
    ]


def _made_by(stage: str, source: str, runs: Mapping[str, StudyRun]) -> bool:
    """Whether a run of the study made a stage that others copied from `source`, perhaps through further runs."""
    by_folder = {run.folder: run for run in runs.values()}
    seen: set[str] = set()
    while source in by_folder and source not in seen:
        seen.add(source)
        if stage in by_folder[source].seconds:
            return True
        source = by_folder[source].copied.get(stage, "")
    return False
