"""The page of a study and the files of its figures, as texts and bytes by file name.

    rows = [("span.seed-1", {"transfer.rule": "span", "train.seed": "seed-1"}, Path("runs/rules/span.seed-1")), ...]
    files = build_study_page("rules", "", [Experiment("rules", "Which rule?", ("transfer.rule", "train.seed"), rows)])
    sorted(files)    # ['figures/cost.csv', 'figures/rules-loss.csv', 'figures/rules-loss.png', ..., 'index.html']

The names are relative to the study's folder, in which every run has a folder. The page links the runs' own pages, and
`tables/<experiment>.csv`. Reads the answers of finished runs, and opens no split.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Final

from potstill.report import study_figures, study_numbers
from potstill.report.csv_tables import CellValue, to_csv
from potstill.report.html import render_study
from potstill.report.model import SET_GROUPS
from potstill.report.study_files import read_study
from potstill.report.study_model import Experiment, ExperimentView, RuleRow, StudyReport, StudyRun

Rows = Iterator[tuple[CellValue, ...]]
PAGE: Final = "index.html"
FIGURES: Final = "figures"


def build_study_page(
    name: str, title: str, experiments: Sequence[Experiment], unfinished: Mapping[str, str] = MappingProxyType({})
) -> dict[str, str | bytes]:
    """The page `index.html`, and every figure as SVG, PNG and CSV in `figures/`.

    name, title  of the study
    experiments  in the order of the page, with the runs of each in the order of its grid
    unfinished   the runs that are not finished with the recipe that they have now -> why, if it is known

    A run that has not finished, or cannot be read, is named on the page with its fault, and is in no number.
    """
    return render_study_page(name, title, experiments, read_study(experiments, unfinished))


def render_study_page(
    name: str, title: str, experiments: Sequence[Experiment], runs: Mapping[str, StudyRun]
) -> dict[str, str | bytes]:
    """As `build_study_page`, from runs that were read."""
    views = [study_numbers.view_experiment(experiment, runs) for experiment in experiments]
    rules = {view.name: tuple(study_numbers.list_rules(view)) for view in views}
    costs = tuple(study_numbers.list_costs(runs))
    texts = {view.name: tuple(describe_experiment(view)) for view in views}
    data = StudyReport(name, title, tuple(views), runs, costs, texts, rules)
    drawn = {view.name: study_figures.draw_experiment(view, f"{view.name}-") for view in views}
    files: dict[str, str | bytes] = {
        PAGE: render_study(data, {view: figures.inline for view, figures in drawn.items()})
    }
    for figures in drawn.values():
        files |= {f"{FIGURES}/{file}": content for file, content in figures.files.items()}
    for view in views:
        for table, text in _build_tables(view, rules[view.name]).items():
            files[f"{FIGURES}/{view.name}-{table}.csv"] = text
    files[f"{FIGURES}/cost.csv"] = to_csv(["run", "what", "number"], _cost_rows(data))
    return files


# Sentences


def describe_experiment(view: ExperimentView) -> Iterator[str]:
    """What was compared, with how many questions and seeds, and what a reader must know before the numbers."""
    if not view.groups:
        yield "No run of this experiment has finished, so there is nothing to compare."
        return
    labels, runs = [group.label for group in view.groups], sum(len(group.runs) for group in view.groups)
    what = f"{len(labels)} groups of runs ({_join(labels)})" if len(labels) > 1 else f"one group of runs ({labels[0]})"
    seeds = sorted({seed for group in view.groups for seed in group.seeds})
    counts = sorted({len(group.runs) for group in view.groups})
    if counts == [1]:
        each = f"each from one training seed ({_join(seeds)})" if len(labels) > 1 else f"one training seed ({seeds[0]})"
    else:
        number = f"{counts[0]} to {counts[-1]}" if len(counts) > 1 else f"{counts[0]}"
        each = f"{'each ' if len(labels) > 1 else ''}with {number} training seeds ({_join(seeds)})"
    yield f"Compared: {what}, {each}; {runs} finished runs."
    if view.tables:
        columns = [column for column in view.tables[0].columns if column.of == "set"]
        n = sum(column.n for column in columns)
        format, _, decoding = view.tables[0].answers.partition(".")
        sets = f"{len(columns)} sets" if len(columns) > 1 else "one set"
        yield (
            f"Tested on {n} questions of {sets} that all of them answered, in format {format} with decoding {decoding},"
            " with the checkpoint"
            " that each run chose on validation. Every group is compared with its own base, which is the student before"
            " the training, and with the first group."
        )
    else:
        yield "No set has two test questions that all groups answered, so there is no table."
    if counts[0] == 1 and len(labels) > 1:
        yield "Groups with one seed: a difference between them can be one between seeds. Further seeds would tell."
    if view.omitted:
        yield f"Not shown: {'; '.join(f'{what} ({why})' for what, why in view.omitted)}."


def _join(values: Sequence[object], most: int = 12) -> str:
    shown = [str(value) for value in values[:most]]
    return ", ".join([*shown, f"and {len(values) - most} more"] if len(values) > most else shown)


# Tables


def _build_tables(view: ExperimentView, rules: Sequence[RuleRow]) -> dict[str, str]:
    """The data of every figure and of the table of rules, as CSV by name. Shares are in [0, 1]."""
    tables: dict[str, tuple[str, Callable[[], Rows]]] = {
        "tradeoff": ("group run seed step of specialized generic chosen front", lambda: _tradeoff_rows(view)),
        "retention": (
            "group of specialized specialized_low specialized_high generic generic_low generic_high front",
            lambda: _retention_rows(view),
        ),
        "scaling": (
            "curve students of parameters group share low high line line_low line_high",
            lambda: _scaling_rows(view),
        ),
        "formats": ("group of format quota_in_training n share low high", lambda: _format_rows(view)),
        "loss": ("objective group run step loss", lambda: _loss_rows(view)),
        "rules": ("run group rule step value of test test_low test_high change price", lambda: _rule_rows(rules)),
    }
    rows = {name: (columns.split(), list(build())) for name, (columns, build) in tables.items()}
    return {name: to_csv(columns, lines) for name, (columns, lines) in rows.items() if lines}


def _tradeoff_rows(view: ExperimentView) -> Rows:
    for point in view.tradeoff:
        marks = ("chosen" if point.is_chosen else "", "front" if point.is_front else "")
        place = (view.groups[point.group].label, point.run, point.seed, point.checkpoint.json_value, point.kind)
        yield (*place, point.specialized, point.generic, *marks)


def _retention_rows(view: ExperimentView) -> Rows:
    for point in view.front:
        own, generic = point.specialized, point.generic
        values = (own.share, own.low, own.high, generic.share, generic.low, generic.high)
        yield (point.label, point.kind, *values, "front" if point.is_front else "")


def _scaling_rows(view: ExperimentView) -> Rows:
    for curve in view.scaling:
        place = (curve.label, curve.who, curve.kind)
        for number, group, score in curve.points:
            yield (*place, number, group, score.share, score.low, score.high, None, None, None)
        for at, mean, low, high in curve.fit.points:
            yield (*place, 10**at, "", None, None, None, mean, low, high)


def _format_rows(view: ExperimentView) -> Rows:
    for matrix in view.matrices:
        for label, trained_on, cells in matrix.rows:
            for name, score in zip(matrix.formats, cells, strict=True):
                if score:
                    values = (score.n, score.share, score.low, score.high)
                    yield (label, matrix.kind, name, trained_on.get(name, 0), *values)


def _loss_rows(view: ExperimentView) -> Rows:
    for panel in view.losses:
        for index, run, losses in panel.lines:
            for step, loss in losses:
                yield (panel.objective, view.groups[index].label, run, step, loss)


def _rule_rows(rules: Sequence[RuleRow]) -> Rows:
    for row in rules:
        place = (row.run.name, row.group, row.choice.name, row.choice.checkpoint.json_value, row.choice.value)
        if not row.tested:
            yield (*place, None, None, None, None, None, None)
        for kind in SET_GROUPS:
            if kind in row.tested:
                test, price = row.tested[kind], row.price.get(kind)
                values = (test.chosen.value, test.chosen.low, test.chosen.high, test.difference.value)
                yield (*place, kind, *values, price.difference.value if price else None)


def _cost_rows(data: StudyReport) -> Rows:
    for row in (*data.costs, data.total):
        for stage, seconds in row.seconds.items():
            yield (row.run, f"seconds of {stage}", round(seconds, 3))
        yield (row.run, "tokens sampled", row.tokens)
        yield (row.run, "money", row.money)
