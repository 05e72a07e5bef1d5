"""Assembly of a run's questions: every question is in one split of one set.

Training questions with the same canonical form as a validation or test question are dropped. Training questions that
differ from a validation or test question only in numbers and names are counted or, if the recipe says so, dropped.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from potstill import data, hub, storage
from potstill.data import contamination, download, splits
from potstill.errors import UserError
from potstill.recipe import Column, Recipe, find_paths, recipe_data_folder
from potstill.records import Question, Split

EVALUATION_SPLITS: Final[tuple[Split, ...]] = ("validation", "test")
Templates = dict[str, dict[Split, list[str]]]
Sets = Mapping[str, Mapping[str, list[Question]]]  # set -> split -> questions


@dataclass(frozen=True, slots=True)
class AssembledQuestions:
    """The questions of a run.

    questions  set -> split -> questions
    held_out   questions of the training sets that are not trained on: other splits, leaks, questions over a limit
    unused     set -> number of questions that the run does not use
    leaks      number of questions dropped because a later split also has them
    templates  set -> split -> ids of questions that differ from a training question only in numbers and names
    dropped    number of training questions dropped because they differ from an evaluated question only in this way
    limited    `set.split` -> number of questions without `questions.limit`, for splits from which it left out questions
    """

    questions: dict[str, dict[str, list[Question]]]
    held_out: list[Question]
    unused: dict[str, int]
    leaks: int
    templates: Templates
    dropped: int
    limited: dict[str, int]


def training_questions(names: Sequence[str], sets: Sets) -> list[Question]:
    """The training questions of the named sets."""
    return [question for name in names for question in sets[name].get("train", [])]


def evaluated_questions(sets: Sets) -> list[Question]:
    """The validation and test questions of all sets."""
    by_split = [(split, questions) for name in sets for split, questions in sets[name].items()]
    return [question for split, questions in by_split if split != "train" for question in questions]


def assemble_questions(recipe: Recipe) -> AssembledQuestions:
    """Load, check and split every set that a recipe names, without writing a file. Raises UserError for any error."""
    section = recipe.questions
    wanted: dict[str, tuple[Split, ...]] = dict.fromkeys(section.train, ("train",))
    for name in section.in_distribution + section.out_of_distribution + section.generic:
        wanted[name] = (*[split for split in wanted.get(name, ()) if split == "train"], "validation", "test")
    for name in replayed_sets(recipe):
        wanted[name] = ("train", *(split for split in wanted.get(name, ()) if split != "train"))
    loaded = {name: _load_set(recipe, name) for name in wanted}
    used = [question for name, rows in loaded.items() for question in rows if question.split in wanted[name]]
    leaked = {earlier.id: later for earlier, later in data.find_duplicates_across_splits(used)}
    kept: dict[str, dict[str, list[Question]]] = {}
    limited: dict[str, int] = {}
    for name, questions in loaded.items():
        kept[name] = {}
        for split in wanted[name]:
            rows = [question for question in questions if question.split == split and question.id not in leaked]
            limit = section.limit.of_set(split, name)
            kept[name][split] = rows if limit is None else _limit_questions(rows, limit)
            if len(kept[name][split]) < len(rows):
                limited[f"{name}.{split}"] = len(rows)
            if not kept[name][split] and not _is_all_test(recipe, name, split):
                raise _empty_set_error(recipe, name, split, questions, leaked)
    templates, dropped = _find_templates(recipe, kept)
    trained = {question.id for name in section.train for question in kept[name]["train"]}
    held_out = [question for name in section.train for question in loaded[name] if question.id not in trained]
    unused = {name: len(questions) - sum(map(len, kept[name].values())) for name, questions in loaded.items()}
    return AssembledQuestions(kept, held_out, unused, len(leaked), templates, dropped, limited)


def _is_all_test(recipe: Recipe, name: str, split: Split) -> bool:
    """Whether a set may be without validation questions.

    The recipe puts the whole set into the test split, and selects no checkpoint, which would need validation questions.
    """
    return (
        split == "validation" and not recipe.has_teacher and name in recipe.sets and recipe.sets[name].split == "test"
    )


def _empty_set_error(
    recipe: Recipe, name: str, split: Split, questions: list[Question], leaked: Mapping[str, Question]
) -> UserError:
    """The error for a split without questions. leaked: id of a dropped question -> the equal question that is kept."""
    different = len({splits.canonical_question(question.text) for question in questions})
    leaks = sum(question.id in leaked for question in questions)
    dropped = [question.id for question in questions if question.split == split and question.id in leaked]
    hint = "give the set more questions, change questions.validation and questions.test, or correct its `split` field"
    if different < len(questions) / 2:
        hint = "give more different questions: equal questions are always in the same split"
    elif dropped:
        others = Counter(f"{leaked[key].set} ({leaked[key].split})" for key in dropped)
        elsewhere = ", ".join(f"{count} are also in {place}" for place, count in others.most_common(3))
        what, where = f"{name} has no question in {split}", f"questions ({name})"
        hint = "add questions that no validation or test set contains"
        if shared := _sets_with_same_file(recipe, name, {leaked[key].set for key in dropped}):
            hint = f"{name} and {shared} read the same file: give {shared} a file with other questions"
        found = f"of {len(dropped)} questions, {elsewhere}; a question is in one split only"
        return UserError(what, code="E-data-leaked-split", where=where, found=found, hint=hint)
    elif name.partition("/")[0] in data.SETS:
        hint = "set questions.splits: digest and change questions.validation and questions.test, or name another set"
    what, where = f"{name} has no question in {split}", f"questions ({name})"
    found = f"{len(questions)} questions in total, {different} different, {leaks} dropped as leaks"
    return UserError(what, code="E-data-empty-split", where=where, found=found, hint=hint)


def _sets_with_same_file(recipe: Recipe, name: str, others: set[str]) -> str:
    """The first of the other custom sets that reads a file with the same bytes; empty without such a set."""
    names = sorted(others & recipe.sets.keys() - {name}) if name in recipe.sets else []
    digests = {other: {storage.file_digest(path) for path in set_paths(recipe, other)} for other in names}
    own = {storage.file_digest(path) for path in set_paths(recipe, name)} if names else set[str]()
    return next((other for other in names if own & digests[other]), "")


def _find_templates(recipe: Recipe, kept: dict[str, dict[str, list[Question]]]) -> tuple[Templates, int]:
    """Set -> split -> ids of questions that differ from a training question only in numbers and names; and a count.

    If the recipe drops such training questions, they are removed from `kept`; the ids are then empty, and the count is
    the number of removed questions.
    """
    train = {q.id: q.text for by_split in kept.values() for q in by_split.get("train", ())}
    evaluated = {
        q.id: q.text for by_split in kept.values() for split in EVALUATION_SPLITS for q in by_split.get(split, ())
    }
    same_train, same_evaluated = contamination.find_same_templates(train, evaluated)
    if recipe.questions.templates == "keep":
        templates: Templates = {
            name: {
                split: [q.id for q in by_split.get(split, ()) if q.id in same_evaluated] for split in EVALUATION_SPLITS
            }
            for name, by_split in kept.items()
        }
        return {name: by_split for name, by_split in templates.items() if any(by_split.values())}, 0
    for name, by_split in kept.items():
        if rows := by_split.get("train"):
            by_split["train"] = [question for question in rows if question.id not in same_train]
            if not by_split["train"]:
                what = f"no training question of {name} is left"
                hint = "give the set other questions, or set questions.templates: keep"
                found = f"{len(rows)} questions differ from a validation or test question only in numbers and names"
                raise UserError(what, code="E-data-templates", where="questions.templates", found=found, hint=hint)
    return {}, len(same_train)


def replayed_sets(recipe: Recipe) -> list[str]:
    """The sets whose training questions are replayed, or answered in on-policy distillation."""
    sections = (recipe.train.replay, recipe.train.on_policy, recipe.on_policy)
    return list(dict.fromkeys(name for section in sections if section for name in section.sets))


def _load_set(recipe: Recipe, name: str) -> list[Question]:
    custom, section = recipe.sets.get(name), recipe.questions
    trained = name in section.train or name in replayed_sets(recipe)
    test = section.test if trained else 1.0 - section.validation  # a set that is only evaluated has no training split
    return data.load_set(
        name,
        recipe_data_folder(recipe),
        file=set_paths(recipe, name) if custom else None,
        fields={field: _column_dict(column) for field, column in custom.fields.items()} if custom else None,
        task=custom.task if custom else None,
        labels=custom.labels if custom else None,
        split=custom.split if custom else None,
        splits=section.splits,
        validation=None if section.splits == "paper" else section.validation,
        test=test if custom or (trained and section.splits == "digest") else None,
        custom_names=tuple(recipe.sets),
    )


def set_paths(recipe: Recipe, name: str) -> list[Path]:
    """The files of a custom set: local files, or verified copies of remote files."""
    custom, key = recipe.sets[name], f"sets.{name}"
    if custom.url is not None:
        return [download.fetch_url(key, custom.url, custom.sha256 or "")]
    if custom.hub is not None:
        assert custom.revision is not None, "the recipe's schema requires a commit"
        paths = [hub.download_dataset_file(custom.hub, path, custom.revision, key=key) for path in custom.paths]
        for path in paths if custom.sha256 else ():
            download.check_digest(key, storage.file_digest(path), custom.sha256 or "", f"{path}")
        return paths
    return [found for path in custom.paths for found in find_paths(recipe, path, f"{key}.file")]


def _column_dict(column: str | Column) -> str | dict[str, Any]:
    return column if isinstance(column, str) else column.model_dump()


def _limit_questions(rows: list[Question], limit: int) -> list[Question]:
    """At most `limit` of the questions. Every task has the same number of questions, if possible."""
    tasks = sorted({question.task for question in rows})
    share = {task: limit // len(tasks) + (rank < limit % len(tasks)) for rank, task in enumerate(tasks)}
    samples = [splits.sample_by_hash([q for q in rows if q.task == task], share[task]) for task in tasks]
    chosen = {question.id for sample in samples for question in sample}
    return [question for question in rows if question.id in chosen]
