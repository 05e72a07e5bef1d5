"""The runs of a study: every combination of a grid's choices, as changes of the base recipe.

>>> from potstill.recipe.study import parse_study
>>> text = "{name: rules, recipe: demo, grid: {transfer.rule: [one-hot, span], train.seed: [1, 2]}}"
>>> plan = expand_study(parse_study(text, "rules.yaml"))
>>> [run.name for run in plan.runs]
['one-hot.seed-1', 'one-hot.seed-2', 'span.seed-1', 'span.seed-2']
>>> plan.runs[2].recipe.transfer.rule, plan.runs[2].run_dir.as_posix()
('span', 'runs/rules/span.seed-1')
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from potstill import demo
from potstill.errors import UserError
from potstill.recipe import Recipe, parse_recipe, write_value
from potstill.recipe.study import ExperimentFile, StudyFile, load_study

DEMO: Final = "demo"  # the recipe of `potstill demo`
LONGEST_NAME: Final = 100  # characters
OWN_FILES: Final = ("answers", "figures", "index.html", "logs", "study.json", "tables")  # in the study's folder


@dataclass(frozen=True, slots=True)
class StudyRun:
    """A run of a study.

    name     its name, and the name of its folder
    changes  its changes of the base recipe, in the form of `--set`
    """

    name: str
    run_dir: Path
    changes: tuple[str, ...]
    recipe: Recipe


@dataclass(frozen=True, slots=True)
class Experiment:
    """One grid of a study.

    choices  name of a run -> axis -> name of its choice, in the order of the grid. Another experiment may share the run
    """

    name: str
    title: str
    axes: tuple[str, ...]
    choices: Mapping[str, Mapping[str, str]]

    @property
    def runs(self) -> tuple[str, ...]:
        """The names of its runs."""
        return tuple(self.choices)


@dataclass(frozen=True, slots=True)
class Study:
    """A study, whose folder has the folders of its runs.

    path    the study file
    recipe  path of the base recipe, or `demo`
    runs    all different runs, in the order of the experiments
    words   the command that makes the study, without the program's name
    """

    path: Path
    recipe: str
    name: str
    title: str
    folder: Path
    experiments: tuple[Experiment, ...]
    runs: tuple[StudyRun, ...]
    words: tuple[str, ...]

    def find(self, name: str) -> StudyRun:
        """The run with a name. Raises UserError if the study has no such run."""
        for run in self.runs:
            if run.name == name:
                return run
        hint = f"the runs are {', '.join(run.name for run in self.runs)}"
        raise UserError("the study has no such run", code="E-study-unknown-run", where=self.path, found=name, hint=hint)


def open_study(path: Path, changes: Sequence[str] = (), *, quick: bool = False) -> Study:
    """Read a study file and its base recipe, and check every run's recipe.

    changes  further changes of all runs, in the form of `--set`
    quick    the small version of the study
    Raises UserError for the first fault.
    """
    study = expand_study(load_study(path, quick=quick), changes)
    return replace(study, words=(*study.words, *(["--quick"] if quick else [])))


def expand_study(file: StudyFile, changes: Sequence[str] = ()) -> Study:
    """The runs of a study file. Two experiments with equal recipes share one run, which has the name of the first."""
    base, where, before = _read_base(file)
    folder = Path("runs") / file.name
    if (folder / "recipe.yaml").exists():
        what, hint = "the folder of the study is the folder of a run", "give the study another name"
        raise UserError(what, code="E-study-folder", where=file.where, found=folder, hint=hint)
    if parse_recipe(base, where, before).evaluate.cache is None:  # the base model answers once for all runs
        before = (*before, f"evaluate.cache={write_value(folder / 'answers', 'evaluate.cache')}")
    last = (*_write_changes(file.last), *changes)
    runs: dict[str, StudyRun] = {}  # recipe without its name -> run
    experiments = []
    for experiment in file.experiments:
        _check_axes(file, experiment)
        of_run: dict[str, Mapping[str, str]] = {}
        for choices, chosen in _combine(experiment):
            written = (*before, *_write_changes(file.changes), *_write_changes(experiment.changes), *chosen, *last)
            if any(change.startswith("name=") for change in written):
                what, hint = "a study names its runs itself", "remove the key `name`"
                raise UserError(what, code="E-study-name-key", where=file.where, hint=hint)
            prefix = [experiment.name] if len(file.experiments) > 1 or not choices else []
            name = ".".join([*prefix, *choices.values()])
            if len(name) > LONGEST_NAME:
                what, hint = "the name of a run is too long", "name the choices: `AXIS: {NAME: {KEY: VALUE}}`"
                raise UserError(what, code="E-study-long-name", where=file.where, found=name, hint=hint)
            changed_by = f"{file.where}, run {name}:"
            recipe = parse_recipe(base, where, (*written, f"name={write_value(name, 'name')}"), changed_by)
            identity = recipe.model_dump_json(exclude={"name"})
            runs.setdefault(identity, StudyRun(name, folder / name, written, recipe))
            of_run.setdefault(runs[identity].name, choices)
        experiments.append(
            Experiment(experiment.name, experiment.title, tuple(axis.key for axis in experiment.axes), of_run)
        )
    _check_names(file, [run.name for run in runs.values()])
    made = tuple(runs.values())
    words = ("study", file.where, *(word for change in changes for word in ("--set", change)))
    return Study(Path(file.where), file.recipe, file.name, file.title, folder, tuple(experiments), made, words)


def _combine(experiment: ExperimentFile) -> Iterator[tuple[dict[str, str], tuple[str, ...]]]:
    """Every combination of the choices: axis -> name of the choice, and all changes. The last axis varies fastest."""
    for combination in itertools.product(*(axis.choices for axis in experiment.axes)):
        named = {axis.key: choice.name for axis, choice in zip(experiment.axes, combination, strict=True)}
        yield named, tuple(change for choice in combination for change in _write_changes(choice.changes))


def _check_axes(file: StudyFile, experiment: ExperimentFile) -> None:
    """Raise UserError if two axes change the same key, because the name of a run would then name a value that it lacks."""
    changed: dict[str, str] = {}
    for axis in experiment.axes:
        own = {key for choice in axis.choices for key in choice.changes}
        for key in own:
            for other, by in changed.items():
                if key == other or key.startswith(f"{other}.") or other.startswith(f"{key}."):
                    what, hint = "two axes change the same key", "change it in one axis, or make two experiments"
                    found = f"{by} and {axis.key} change {key}"
                    raise UserError(what, code="E-study-axis", where=file.where, found=found, hint=hint)
        changed |= dict.fromkeys(own, axis.key)


def _read_base(file: StudyFile) -> tuple[str, str, tuple[str, ...]]:
    """The text of the base recipe, its name for messages, and changes that it needs."""
    if file.recipe == DEMO:
        changes = (f"data={demo.DATA_FOLDER.parent}", "report.controls=[]")
        return demo.RECIPE.read_text("utf-8"), demo.RECIPE.name, changes
    try:
        return Path(file.recipe).read_text("utf-8"), file.recipe, ()
    except (OSError, UnicodeDecodeError) as fault:
        what = "the base recipe cannot be read"
        hint = "write its path from the folder in which you run the command; `potstill recipes` copies recipes"
        raise UserError(what, code="E-study-recipe", where=f"{file.where}: recipe", found=fault, hint=hint) from None


def _write_changes(changes: Mapping[str, Any]) -> tuple[str, ...]:
    return tuple(f"{key}={write_value(value, key)}" for key, value in changes.items())


def _check_names(file: StudyFile, names: Sequence[str]) -> None:
    """Raise UserError if two runs have names that some disks do not distinguish, or the name of a file of the study."""
    hint = "give the choices other names: `AXIS: {NAME: {KEY: VALUE}}`"
    seen: dict[str, str] = {}
    for name in names:
        if name.lower() in OWN_FILES:
            what = "the study has a file of its own with the name of a run"
            raise UserError(what, code="E-study-same-name", where=file.where, found=name, hint=hint)
        if name.lower() in seen:
            what, found = "two runs have the same name", f"{seen[name.lower()]} and {name}"
            raise UserError(what, code="E-study-same-name", where=file.where, found=found, hint=hint)
        seen[name.lower()] = name
