"""Divided: the questions of a run, each in one split of one set.

Training questions whose canonical form also stands in a validation or test set are left out. Those that are such a
question but for numbers and names are counted, or left out too, as the recipe says.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from potstill import data
from potstill.data import download, splits
from potstill.errors import UserError
from potstill.recipe import Column, Recipe, find_paths, recipe_data_folder
from potstill.records import Question, Split

EVALUATION_SPLITS: Final[tuple[Split, ...]] = ("validation", "test")
Templates = dict[str, dict[Split, list[str]]]


@dataclass(frozen=True, slots=True)
class AssembledQuestions:
    """What a run would have.

    questions  set -> split -> its questions
    held       questions of the training sets that are not taught: held out, left out, or over a limit
    unused     set -> how many are neither taught nor asked
    leaks      how many were left out because they stand in a later split too
    templates  set -> split -> ids of its questions that are training questions but for numbers and names
    dropped    training questions that were left out for that
    """

    questions: dict[str, dict[str, list[Question]]]
    held: list[Question]
    unused: dict[str, int]
    leaks: int
    templates: Templates
    dropped: int


def assemble_questions(recipe: Recipe) -> AssembledQuestions:
    """Load, check and divide every set that a recipe names; nothing is written. Raises UserError for whatever is wrong
    with one of them."""
    asked = recipe.questions
    wanted: dict[str, tuple[Split, ...]] = dict.fromkeys(asked.train, ("train",))
    for name in asked.in_distribution + asked.out_of_distribution + asked.generic:
        wanted[name] = (*[split for split in wanted.get(name, ()) if split == "train"], "validation", "test")
    for name in replayed_sets(recipe):
        wanted[name] = ("train", *(split for split in wanted.get(name, ()) if split != "train"))
    loaded = {name: _load_set(recipe, name) for name in wanted}
    used = [question for name, found in loaded.items() for question in found if question.split in wanted[name]]
    leaked = {first.id for first, _ in data.find_duplicates_across_splits(used)}
    kept: dict[str, dict[str, list[Question]]] = {}
    for name, found in loaded.items():
        kept[name] = {}
        for split in wanted[name]:
            rows = [question for question in found if question.split == split and question.id not in leaked]
            limit = getattr(asked.limit, split)
            kept[name][split] = rows if limit is None else _limit_questions(rows, limit)
            if not kept[name][split]:
                raise _empty_set_error(name, split, found, leaked)
    templates, dropped = _find_templates(recipe, kept)
    taught = {question.id for name in asked.train for question in kept[name]["train"]}
    held = [question for name in asked.train for question in loaded[name] if question.id not in taught]
    unused = {name: len(found) - sum(map(len, kept[name].values())) for name, found in loaded.items()}
    return AssembledQuestions(kept, held, unused, len(leaked), templates, dropped)


def _empty_set_error(name: str, split: Split, found: list[Question], leaked: set[str]) -> UserError:
    """The error for a set without a question in a split, told apart by why there is none."""
    different = len({splits.canonical_question(question.text) for question in found})
    left_out = sum(question.id in leaked for question in found)
    hint = "give the set more questions, change questions.validation and questions.test, or correct its `split` field"
    if different < len(found) / 2:
        hint = "give more different questions: equal ones stay together in one split, so that none is in two"
    elif left_out > len(found) / 2:
        hint = "give it questions that do not stand in a validation or test set too"
    return UserError(
        f"no question of {name} is in {split}",
        where=f"questions ({name})",
        found=f"{len(found)} questions in all, {different} different, {left_out} left out as leaks",
        hint=hint,
    )


def _find_templates(recipe: Recipe, kept: dict[str, dict[str, list[Question]]]) -> tuple[Templates, int]:
    """Which measured questions are training questions but for numbers and names. Where the recipe drops such training
    questions, they are taken out of `kept`, and how many there were is returned beside what is left: nothing."""
    train = {q.id: q.text for by_split in kept.values() for q in by_split.get("train", ())}
    measured = {
        q.id: q.text for by_split in kept.values() for part in EVALUATION_SPLITS for q in by_split.get(part, ())
    }
    taking, found = splits.find_same_templates(train, measured)
    if recipe.questions.templates == "keep":
        templates: Templates = {}
        for name, by_split in kept.items():
            own: dict[Split, list[str]] = {
                part: [q.id for q in by_split.get(part, ()) if q.id in found] for part in EVALUATION_SPLITS
            }
            if any(own.values()):
                templates[name] = own
        return templates, 0
    for name, by_split in kept.items():
        rows = by_split.get("train")
        if rows is not None:
            by_split["train"] = [question for question in rows if question.id not in taking]
            if not by_split["train"]:
                raise UserError(
                    f"no training question of {name} is left",
                    where="questions.templates",
                    found=f"{len(rows)} are validation or test questions but for numbers and names",
                    hint="give the set other questions, or set questions.templates: keep",
                )
    return {}, len(taking)


def replayed_sets(recipe: Recipe) -> list[str]:
    """The sets whose training questions are replayed, or answered by the student that is repaired."""
    sections = (recipe.train.replay, recipe.repair)
    return list(dict.fromkeys(name for asked in sections if asked for name in asked.sets))


def _load_set(recipe: Recipe, name: str) -> list[Question]:
    own = recipe.sets.get(name)
    asked = recipe.questions
    taught = name in asked.train or name in replayed_sets(recipe)
    test = asked.test if taught else 1.0 - asked.validation  # what is not taught needs no training part
    return data.load_set(
        name,
        recipe_data_folder(recipe),
        file=set_paths(recipe, name) if own else None,
        fields={ours: _column_dict(named) for ours, named in own.fields.items()} if own else None,
        task=own.task if own else None,
        splits=asked.splits,
        validation=None if asked.splits == "paper" else asked.validation,
        test=test if own else None,
        others=tuple(recipe.sets),
    )


def set_paths(recipe: Recipe, name: str) -> list[Path]:
    """The files of a set of one's own: where the recipe says, or the verified copies of what it says to fetch."""
    own, key = recipe.sets[name], f"sets.{name}"
    if own.url is not None:
        return [download.fetch_file(download.remote_file_from_url(key, own.url, own.sha256 or ""))]
    if own.hub is not None:
        commit = own.revision or ""
        return [
            download.fetch_file(download.remote_file_from_hub(key, own.hub, path, commit, own.sha256))
            for path in own.paths
        ]
    return [found for path in own.paths for found in find_paths(recipe, path, f"{key}.file")]


def _column_dict(named: str | Column) -> str | dict[str, Any]:
    return named if isinstance(named, str) else named.model_dump()


def _limit_questions(rows: list[Question], limit: int) -> list[Question]:
    """At most `limit` questions, as many of each task as possible."""
    tasks = sorted({question.task for question in rows})
    share = {task: limit // len(tasks) + (rank < limit % len(tasks)) for rank, task in enumerate(tasks)}
    taken = [splits.sample_by_hash([q for q in rows if q.task == task], share[task]) for task in tasks]
    chosen = {question.id for group in taken for question in group}
    return [question for question in rows if question.id in chosen]
