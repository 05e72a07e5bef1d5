"""Finds the sources of a student and their licences: its base model and the data sets of its run.

    base = find_base(recipe)
    base.licence, base.told_by          # 'apache-2.0', 'the metadata of its GGUF file'

A licence comes from the recipe (`report.licences`). If the recipe does not state it, it comes from the model's card or
GGUF file, or from the table of built-in sets. Licences are not guessed: an unknown licence is None.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from potstill import data, hub, models, storage
from potstill.recipe import Recipe

GGUF_SOURCE_FILE = "gguf.json"


@dataclass(frozen=True, slots=True)
class BaseModel:
    """The base model of a student.

    name     the name in the recipe
    hub_id   its name on the hub; None if it is not from the hub
    commit   its commit on the hub; None if it is not from the hub
    licence  its licence; None if unknown
    told_by  the source of the licence, in words; empty if the licence is unknown
    link     address of the text of a licence that the hub does not list; None if there is none
    """

    name: str
    hub_id: str | None = None
    commit: str | None = None
    licence: str | None = None
    told_by: str = ""
    link: str | None = None


@dataclass(frozen=True, slots=True)
class SetSource:
    """A data set of a run.

    use       training, training (replay) or evaluation
    licence   its licence; None if unknown
    source    address of its source; empty if unknown
    hub_id    its name on the hub; None if it is not from the hub
    language  language code of its texts; None if unknown
    """

    name: str
    use: str
    licence: str | None = None
    source: str = ""
    hub_id: str | None = None
    language: str | None = None


def find_base(recipe: Recipe) -> BaseModel | None:
    """The base model of a recipe's student; None for random weights. Raises UserError if the model does not exist."""
    section = recipe.student
    if section.model is None:
        return None
    source = models.find_model(recipe, section.model, "student.model", section.revision)
    hub_id = section.model if source.commit is not None else None
    stated = recipe.report.licences.get(Path(section.model).name) or recipe.report.licences.get(section.model)
    if stated is not None:
        return BaseModel(section.model, hub_id, source.commit, stated, "the recipe")
    card = hub.read_model_card(source.folder / "README.md") if (source.folder / "README.md").is_file() else {}
    licence = card.get("license_name") if card.get("license") == "other" else card.get("license")
    if isinstance(licence, str):
        link = card.get("license_link")
        link = link if isinstance(link, str) and link.startswith("https://") else None
        return BaseModel(section.model, hub_id, source.commit, licence, "the model's card", link)
    licence = _read_gguf_source(source.folder).get("license")
    if isinstance(licence, str):
        return BaseModel(section.model, hub_id, source.commit, licence, "the metadata of its GGUF file")
    return BaseModel(section.model, hub_id, source.commit)


def _read_gguf_source(folder: Path) -> dict[str, Any]:
    path = folder / GGUF_SOURCE_FILE
    row = storage.read_json(path) if path.is_file() else None
    return row if isinstance(row, dict) else {}


def list_sets(recipe: Recipe) -> list[SetSource]:
    """The sets of a recipe, in the order of the recipe's groups. A set in several groups has the use of the first one."""
    sets, replay = recipe.questions, recipe.train.replay
    uses = dict.fromkeys(sets.train, "training")
    for section in (replay, recipe.train.on_policy, recipe.on_policy):
        for name in section.sets if section else ():
            uses.setdefault(name, "training (replay)")
    for name in (*sets.in_distribution, *sets.out_of_distribution, *sets.generic):
        uses.setdefault(name, "evaluation")
    return [_describe_set(recipe, name, use) for name, use in uses.items()]


def _describe_set(recipe: Recipe, name: str, use: str) -> SetSource:
    stated, custom = recipe.report.licences.get(name), recipe.sets.get(name)
    if custom is not None:
        source = custom.url or (f"https://huggingface.co/datasets/{custom.hub}" if custom.hub else "")
        return SetSource(name, use, stated, source, custom.hub)
    builtin = data.SETS[name.partition("/")[0]]
    return SetSource(name, use, stated or builtin.licence, builtin.source, builtin.hub_id, builtin.language)
