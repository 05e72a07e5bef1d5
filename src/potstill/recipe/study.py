"""Study files: a base recipe, changes, and grids of changes. `potstill.study` makes runs of them.

    >>> text = "{name: rules, recipe: demo, grid: {transfer.rule: [one-hot, span], train.seed: [1, 2]}}"
    >>> file = parse_study(text, "rules.yaml")
    >>> axes = file.experiments[0].axes
    >>> [axis.key for axis in axes], [choice.name for choice in axes[0].choices]
    (['transfer.rule', 'train.seed'], ['one-hot', 'span'])

An axis of a grid is a recipe key with a list of values, or any name with named choices, each of which changes several keys:

    grid:
      transfer.rule: [one-hot, span]
      size:
        small: {student.shape: flan-t5-base, train.batch_tokens: 8192}
        large: {student.shape: flan-t5-large, train.batch_tokens: 4096}
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from pydantic import Field, ValidationError

from potstill.errors import UserError, suggest
from potstill.recipe.fields import NAME_PATTERN, Name, Section, write_name
from potstill.recipe.load import error_of_validation, read_mapping, write_value

NAMES_HINT: Final = "give each choice a name: `AXIS: {NAME: {KEY: VALUE}, OTHER: {KEY: VALUE}}`"


class ExperimentSection(Section):
    """One grid of a study. Its axes come before the axes of the study's own grid."""

    title: str | None = Field(default=None, description="What the experiment asks, for tables and the study's page.")
    set: dict[str, Any] = Field(default={}, description="Recipe keys, dotted, with the values of all its runs.")
    grid: dict[str, Any] = Field(
        default={}, description="Axes of the grid; an axis of the study's grid with the same name is replaced."
    )


class QuickSection(Section):
    """Changes for `--quick`: a small version of the study that shows whether all of it works."""

    set: dict[str, Any] = Field(default={}, description="Recipe keys, dotted, with the values of all runs.")
    grid: dict[str, Any] = Field(default={}, description="Axes that replace the axes with the same name everywhere.")


class StudySection(Section):
    """A study: all combinations of a grid's choices are runs of one base recipe."""

    name: Name = Field(description="Name of the study; its folder is runs/NAME, and its runs are runs/NAME/RUN.")
    title: str | None = Field(default=None, description="What the study asks, for its page.")
    recipe: str = Field(description="Path of the base recipe, or `demo` for the recipe of `potstill demo`.")
    set: dict[str, Any] = Field(default={}, description="Recipe keys, dotted, with the values of all runs.")
    grid: dict[str, Any] = Field(
        default={}, description="Axes of the grid: a recipe key with a list of values, or a name with named choices."
    )
    experiments: dict[Name, ExperimentSection] = Field(
        default={},
        description="Several grids by name, each with the axes of `grid` added. Equal runs of two experiments are one run.",
    )
    quick: QuickSection = Field(default=QuickSection(), description="Changes for `potstill study --quick`.")


@dataclass(frozen=True, slots=True)
class Choice:
    """A choice of an axis.

    name     its name, a part of the names of its runs
    changes  dotted recipe key -> value
    """

    name: str
    changes: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Axis:
    """An axis of a grid. key: a recipe key, or the name of named choices."""

    key: str
    choices: tuple[Choice, ...]


@dataclass(frozen=True, slots=True)
class ExperimentFile:
    """An experiment, with the study's own axes after its own."""

    name: str
    title: str
    changes: Mapping[str, Any]
    axes: tuple[Axis, ...]


@dataclass(frozen=True, slots=True)
class StudyFile:
    """The content of a study file. For a study without `experiments`, its grid is the only experiment.

    recipe       path of the base recipe, or `demo`
    changes      keys that all runs change; they come before those of an experiment, and those before the axes
    last         keys that `--quick` changes, after all others
    """

    where: str
    name: str
    title: str
    recipe: str
    changes: Mapping[str, Any]
    experiments: tuple[ExperimentFile, ...]
    last: Mapping[str, Any]


def load_study(path: Path, *, quick: bool = False) -> StudyFile:
    """Read a study file. Raises UserError with the file and line, the faulty value, and a hint.

    quick  whether to apply the section `quick`; the study's name then ends in `-quick`
    """
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as fault:
        what, hint = "the study cannot be read", "name a study file (YAML), such as studies/findings.yaml"
        raise UserError(what, code="E-study-unreadable", where=path, found=fault.strerror, hint=hint) from None
    except UnicodeDecodeError as fault:
        what, hint = "the study is not UTF-8 text", "save the file as UTF-8"
        raise UserError(what, code="E-study-utf8", where=path, found=fault.reason, hint=hint) from None
    return parse_study(text, str(path), quick=quick)


def parse_study(text: str, where: str, *, quick: bool = False) -> StudyFile:
    """The study in a YAML text. where: name of the text, for messages."""
    values, lines = read_mapping(text, where, "study")
    try:
        section = StudySection.model_validate(values, strict=True)
    except ValidationError as fault:
        raise error_of_validation(fault, where, lines, {}, StudySection) from None

    def place(*keys: str) -> str:
        return f"{where} line {lines[keys]}" if keys in lines else where

    common = list(_read_axes(section.grid, ("grid",), place))
    named = section.experiments or {section.name: ExperimentSection()}
    experiments = []
    for name, part in named.items():
        own = list(_read_axes(part.grid, ("experiments", name, "grid"), place))
        axes = (*own, *(axis for axis in common if axis.key not in part.grid))
        experiments.append(ExperimentFile(name, part.title or "", part.set, axes))
    last: Mapping[str, Any] = {}
    if quick:
        if not section.quick.set and not section.quick.grid:
            what, hint = "the study has no small version", "write the section `quick`, with `set` or `grid`"
            raise UserError(what, code="E-study-no-quick", where=where, hint=hint)
        last = section.quick.set
        smaller = {axis.key: axis for axis in _read_axes(section.quick.grid, ("quick", "grid"), place)}
        known = [axis.key for experiment in experiments for axis in experiment.axes]
        for key in smaller:
            if key not in known:
                what, hint = (
                    "no grid has this axis",
                    f"{suggest(key, known)}the axes are {', '.join(dict.fromkeys(known))}",
                )
                raise UserError(what, code="E-study-axis", where=place("quick", "grid", key), found=key, hint=hint)
        experiments = [
            replace(one, axes=tuple(smaller.get(axis.key) or axis for axis in one.axes)) for one in experiments
        ]
    return StudyFile(
        where,
        f"{section.name}-quick" if quick else section.name,
        section.title or "",
        section.recipe,
        section.set,
        tuple(experiments),
        last,
    )


def _read_axes(grid: Mapping[str, Any], keys: tuple[str, ...], place: Callable[..., str]) -> Iterator[Axis]:
    for key, written in grid.items():
        where = place(*keys, key)
        if isinstance(written, Mapping):
            choices = [_named_choice(name, changes, where) for name, changes in written.items()]
        elif isinstance(written, list):
            choices = [Choice(_name_value(key, value, where), {key: value}) for value in written]
        else:
            what, hint = "an axis needs a list of values", f"write [{written}, OTHER], or put the key under `set`"
            raise UserError(what, code="E-study-axis", where=where, found=f"{key}: {written}", hint=hint)
        if not choices:
            hint = "name at least one value, or remove the axis"
            raise UserError("the axis has no value", code="E-study-axis", where=where, found=key, hint=hint)
        names = [choice.name for choice in choices]
        if twice := [name for name in names if names.count(name) > 1]:
            what, hint = "two choices of an axis have the same name", NAMES_HINT
            raise UserError(what, code="E-study-axis", where=where, found=twice[0], hint=hint)
        yield Axis(key, tuple(choices))


def _named_choice(name: str, changes: Any, where: str) -> Choice:
    if not re.fullmatch(NAME_PATTERN, name) or not isinstance(changes, Mapping):
        what = "a named choice must be a mapping of recipe keys, and its name of letters, digits, dots and hyphens"
        raise UserError(what, code="E-study-axis", where=where, found=f"{name}: {changes}"[:80], hint=NAMES_HINT)
    return Choice(name, changes)


def _name_value(key: str, value: Any, where: str) -> str:
    """A name for a value of an axis: a text's last part, or the last part of the key and the value."""
    if isinstance(value, Mapping | list):
        what = "a list or a mapping has no short name"
        raise UserError(
            what, code="E-study-axis", where=where, found=f"{key}: {write_value(value, key)}"[:80], hint=NAMES_HINT
        )
    if isinstance(value, str):
        text = value.rstrip("/").rpartition("/")[2].rpartition(":")[2]
    else:
        text = f"{key.rpartition('.')[2]}-{write_value(value, key)}"
    name = write_name(text, "")
    if not re.fullmatch(NAME_PATTERN, name):
        what = "the value gives no name for a folder"
        raise UserError(what, code="E-study-axis", where=where, found=f"{key}: {value}", hint=NAMES_HINT)
    return name
