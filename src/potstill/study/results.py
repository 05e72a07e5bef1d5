"""The tables and the page of a study. A table has the scores of groups, where the runs of a group differ only in seeds.

    finished = find_finished(study)
    for table in read_tables(study, finished):
        files = write_table(study, table)        # runs/STUDY/tables/EXPERIMENT.csv, .md and .tex
    page, *figures = write_page(study, finished) # runs/STUDY/index.html, and every figure in runs/STUDY/figures

The base of every student is a group, too. The first choice of the grid is the one that the others are compared with.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from potstill import storage
from potstill.errors import UserError
from potstill.report.group_files import read_groups
from potstill.report.group_scores import SEED_KEYS, GroupScore, SeedGroup, score_groups
from potstill.report.score_tables import WRITERS
from potstill.study.grid import Experiment, Study, StudyRun
from potstill.study.processes import find_failures

TABLE_FOLDER: Final = "tables"
SPLIT: Final = "test"


@dataclass(frozen=True, slots=True)
class ExperimentTable:
    """The scores of an experiment on test questions.

    groups   the base of every student, then the groups in the order of the grid
    missing  the names of runs that are not finished, and are not in the table
    fault    why there is no table; empty if there is one
    """

    experiment: Experiment
    groups: tuple[SeedGroup, ...]
    scores: tuple[GroupScore, ...]
    missing: tuple[str, ...]
    fault: str = ""


def read_tables(study: Study, finished: Collection[str]) -> Iterator[ExperimentTable]:
    """The table of every experiment that has a finished run. finished: the names of the finished runs"""
    by_name = {run.name: run for run in study.runs}
    for experiment in study.experiments:
        runs = [by_name[name] for name in experiment.runs if name in finished]
        if not runs:
            continue
        missing = tuple(name for name in experiment.runs if name not in finished)
        try:
            groups = name_groups(read_groups([run.run_dir for run in runs], base=True), experiment, runs)
        except UserError as fault:  # such as runs that differ only in `evaluate.seed`: one training counts once
            yield ExperimentTable(experiment, (), (), missing, str(fault))
            continue
        first = next(index for index, group in enumerate(groups) if not group.is_base)
        yield ExperimentTable(experiment, groups, score_groups(groups, baseline=first), missing)


def name_groups(groups: Sequence[SeedGroup], experiment: Experiment, runs: Sequence[StudyRun]) -> tuple[SeedGroup, ...]:
    """The groups, named by the choices of the grid without the seeds; `a, b` for the choices a and b of two axes."""
    names = {str(run.run_dir): run.name for run in runs}
    axes = [axis for axis in experiment.axes if axis not in SEED_KEYS]
    labels = []
    for group in groups:
        choices = experiment.choices[names[group.runs[0].name]]
        named = ", ".join(choices[axis] for axis in axes) or experiment.name
        labels.append(group.label if group.is_base else named)
    if len(set(labels)) < len(labels):
        return tuple(groups)
    return tuple(replace(group, label=label) for group, label in zip(groups, labels, strict=True))


def write_table(study: Study, table: ExperimentTable) -> list[Path]:
    """Write a table as CSV, Markdown and LaTeX. Returns the paths of the files."""
    paths = []
    for suffix, write in WRITERS.items():
        path = study.folder / TABLE_FOLDER / f"{table.experiment.name}{suffix}"
        storage.write_file(path, write(table.groups, table.scores, SPLIT).encode("utf-8"))
        paths.append(path)
    return paths


def write_page(study: Study, finished: Collection[str]) -> list[Path]:
    """Write the page and the files of its figures. Returns their paths, that of the page first.

    finished  the names of the finished runs
    """
    from potstill.report import study_page  # loads the libraries of the figures

    folders = {run.name: run.run_dir for run in study.runs}
    experiments = [
        study_page.Experiment(
            one.name, one.title, one.axes, [(name, choices, folders[name]) for name, choices in one.choices.items()]
        )
        for one in study.experiments
    ]
    unfinished = find_failures(study, [run.name for run in study.runs if run.name not in finished])
    paths = []
    for name, content in study_page.build_study_page(study.name, study.title, experiments, unfinished).items():
        paths.append(study.folder / name)
        storage.write_file(paths[-1], content.encode("utf-8") if isinstance(content, str) else content)
    return sorted(paths, key=lambda path: path.name != study_page.PAGE)


def remove_stale_files(study: Study, written: Collection[Path]) -> None:
    """Remove tables and figures of an earlier grid: all files in these folders that were not written now."""
    from potstill.report import study_page

    for folder in (TABLE_FOLDER, study_page.FIGURES):
        for path in sorted((study.folder / folder).glob("*")):
            if path not in written:
                storage.remove(path)
