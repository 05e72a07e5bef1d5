"""The questions to learn from and to evaluate on, each with its split.

    >>> raws = [RawQuestion(f"m/{i}", f"What is {i} + 1?", f"{i + 1}", "number", where="") for i in range(9)]
    >>> [question.split for question in assign_splits(raws, "m", validation=3, test=3)]
    ['validation', 'train', 'train', 'test', 'test', 'test', 'train', 'validation', 'validation']

    gsm8k        gsm8k/train.jsonl, gsm8k/test.jsonl   the training file is train, the test file is divided
    multiarith   multiarith/MultiArith.json            divided into validation and test
    asdiv        asdiv/ASDiv.xml                       divided into validation and test
    svamp        svamp/SVAMP.json                      divided into validation and test
    bbh          bbh/tasks/*.json                      each of 27 tasks is divided; `bbh/navigate` is one task alone
    custom sets  files of many formats (`custom_set`)  the `split` field, else train, validation and test

`splits="digest"` divides a set by the digests of its questions. `splits="paper"` gives the paper's sizes: 500
validation questions per set, 200 for MultiArith, and the rest test. MultiArith's validation questions are the authors'
own if the data folder has their file of indices (`golden/authors_validation_indices.json`); otherwise, and for the
other sets, they are those of lowest digest, because the authors released no other index file of evaluation questions.
A fifth of each BBH task is validation, in both.

To add a built-in set, write its file next to `svamp.py` and add its `SET` to the table `SETS`. If no answer
type fits, write a grading function in the file of the set, and give its name to `BuiltinSet.grader` and to the `task` of each
question: `<set>/function: potstill.data.<set>:<name>`.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal

from potstill import grading
from potstill.data import asdiv, bbh, custom_set, gsm8k, multiarith, splits, svamp, validate
from potstill.data.set_files import BuiltinSet, RawQuestion, read_demonstrations
from potstill.data.validate import find_contradictions
from potstill.errors import UserError
from potstill.records import Question

if TYPE_CHECKING:
    from potstill.recipe import Recipe

__all__ = [
    "SETS",
    "VERSION",
    "BuiltinSet",
    "RawQuestion",
    "assign_splits",
    "find_contradictions",
    "find_data_folder",
    "find_duplicates_across_splits",
    "grader_tasks",
    "load_set",
    "read_demonstrations",
]

VERSION: Final = 4  # of the questions read from the sets; the stage `collect` stores it
DEFAULT_SHARE: Final = 0.2  # of a set's questions in validation, and in test
SETS: Final[dict[str, BuiltinSet]] = {
    builtin.name: builtin for builtin in (gsm8k.SET, multiarith.SET, asdiv.SET, svamp.SET, bbh.SET)
}


def load_set(
    name: str,
    data_dir: Path | None = None,
    *,
    file: Path | Sequence[Path] | None = None,
    fields: custom_set.FieldMap | None = None,
    task: str | None = None,
    splits: Literal["digest", "paper"] = "digest",
    validation: int | float | None = None,
    test: int | float | None = None,
    custom_names: Sequence[str] = (),
) -> list[Question]:
    """Every question of a set with its split, in the order of the set's files.

    name          a name in SETS, `bbh/<task>`, or with `file` a new name
    data_dir      folder of the built-in sets; None: the folder in POTSTILL_DATA
    file, fields, task   of a custom set (see `custom_set`); task grades the records that name none
    splits        how to divide a set that has no splits; `paper` is for built-in sets only
    validation    fraction (float) or number (int) of questions of each set, or of each BBH task; 0.2 if None
    test          the same, for a custom set only; 0.2 if None, or `validation` if that is a number
    custom_names  names of the recipe's custom sets, for the message about an unknown name
    Raises UserError, with file and record, for a wrong name, file, record or size.
    """
    if file is None and (fields or task or test is not None):
        raise UserError(
            "fields, task and test need a file",
            code="E-data-custom-options",
            where=name,
            hint="pass `file`, or remove these arguments",
        )
    _check_splits(name, file, splits, validation)
    if file is not None:
        return _load_custom(name, file, fields, task, validation, test)
    builtin, data_dir = _builtin(name, custom_names), find_data_folder(data_dir, name)
    raws = builtin.read(data_dir)
    if validation is None:
        validation = builtin.paper_validation if splits == "paper" else DEFAULT_SHARE
    if builtin.grader is not None:
        assert all(raw.task == builtin.grader for raw in raws), (
            f"every question of {name} has the task {builtin.grader}"
        )
    if splits == "paper" and builtin.apply_split_file is not None:
        raws = builtin.apply_split_file(raws, data_dir)
    if not builtin.tasks:
        return assign_splits(raws, builtin.name, validation=validation, test=None)
    questions = []
    for task in builtin.tasks:
        if name in (builtin.name, f"{builtin.name}/{task}"):
            of_task = [raw for raw in raws if raw.task == f"{builtin.name}/{task}"]
            # An exact number of lowest digests: with some 200 questions per task, a share would vary by chance.
            count = validation if isinstance(validation, int) else int(len(of_task) * validation)
            questions += assign_splits(of_task, builtin.name, validation=count, test=None)
    return questions


def assign_splits(
    raws: Sequence[RawQuestion], name: str, *, validation: int | float, test: int | float | None
) -> list[Question]:
    """The questions with their splits: those without one are divided by digest (see `splits.split_questions`).

    Raises UserError for a repeated id, an unreadable gold answer or an empty split.
    """
    if not raws:
        raise UserError("the set has no questions", code="E-data-empty-set", where=name, hint="check the file")
    validate.check_questions(raws, name)
    undivided = [index for index, raw in enumerate(raws) if raw.split is None]
    try:
        parts = splits.split_questions([raws[i].text for i in undivided], validation, test) if undivided else []
    except UserError as error:
        raise UserError(
            error.what, code=error.code, where=f"splits of {name}", found=error.found, hint=error.hint
        ) from None
    if undivided:
        for part, size in (("validation", validation), ("test", 1 if test is None else test)):
            if size and part not in parts and not any(raw.split == part for raw in raws):
                raise _empty_split_error(part, raws, name)
    assigned = dict(zip(undivided, parts, strict=True))
    return [
        Question(
            raw.id, raw.text, raw.gold, set=name, split=raw.split or assigned[i], task=raw.task, rationale=raw.rationale
        )
        for i, raw in enumerate(raws)
    ]


def find_duplicates_across_splits(questions: Sequence[Question]) -> list[tuple[Question, Question]]:
    """Pairs of an earlier-split question and the later-split question that equals it in canonical form.

    A training question leaks if it equals a validation or test question of any set, a validation question if it equals
    a test question. Dropping the first question of every pair removes the leaks.
    """
    order = {"train": 0, "validation": 1, "test": 2}
    forms = [splits.canonical_question(question.text) for question in questions]
    latest: dict[str, Question] = {}
    for form, question in zip(forms, questions, strict=True):
        if form not in latest or order[question.split] > order[latest[form].split]:
            latest[form] = question
    pairs = ((question, latest[form]) for form, question in zip(forms, questions, strict=True))
    return [(question, later) for question, later in pairs if order[question.split] < order[later.split]]


def grader_tasks(recipe: Recipe) -> list[str]:
    """The tasks of a recipe's custom sets, and of its built-in sets with a grading function."""
    section = recipe.questions
    names = dict.fromkeys(section.train + section.in_distribution + section.out_of_distribution + section.generic)
    custom = [custom.task for custom in recipe.sets.values()]
    builtin = [SETS[name].grader for name in names if name in SETS]
    return [task for task in custom + builtin if task]


def find_data_folder(data_dir: Path | None, set_name: str = "") -> Path:
    """The folder of the built-in sets: the given one, or the one in POTSTILL_DATA. Messages name `set_name`."""
    path = data_dir if data_dir is not None else os.environ.get("POTSTILL_DATA")
    if not path:
        raise UserError(
            "no data folder is set",
            code="E-data-no-folder",
            where=set_name and f"set {set_name}",
            hint="set POTSTILL_DATA, or `data` in the recipe, to the folder that contains gsm8k/, svamp/, ...; without "
            "it, name custom sets in questions.train, in_distribution, out_of_distribution and generic, or none ([]): "
            "their defaults are built-in sets",
        )
    if not Path(path).is_dir():
        raise UserError(
            "the data folder does not exist",
            code="E-data-no-folder",
            where="data" if data_dir is not None else "POTSTILL_DATA",
            found=path,
            hint="name the folder that contains gsm8k/, svamp/, ...",
        )
    return Path(path)


def _empty_split_error(part: str, raws: Sequence[RawQuestion], name: str) -> UserError:
    different = len({splits.canonical_question(raw.text) for raw in raws})
    hint = "give more questions, a larger share, or a `split` field"
    if different < len(raws) / 2:
        hint = "give more different questions: equal questions stay together in one split"
    found = f"{len(raws)} questions, {different} of them different"
    return UserError(f"the {part} split is empty", code="E-data-empty-split", where=name, found=found, hint=hint)


def _check_splits(name: str, file: Path | Sequence[Path] | None, splits: str, validation: int | float | None) -> None:
    where = f"splits of {name}"
    if splits not in ("digest", "paper"):
        raise UserError(
            "unknown value of splits", code="E-data-splits", where=where, found=splits, hint="write digest or paper"
        )
    if splits == "paper" and file is not None:
        raise UserError(
            "the paper has no split of a custom set",
            code="E-data-splits",
            where=where,
            hint="set `splits: digest`, or give each record a `split` field",
        )
    if splits == "paper" and validation is not None:
        raise UserError(
            "the paper's split has a fixed size",
            code="E-data-splits",
            where=where,
            found=validation,
            hint="remove `validation`, or set `splits: digest`",
        )


def _load_custom(
    name: str,
    file: Path | Sequence[Path],
    fields: custom_set.FieldMap | None,
    task: str | None,
    validation: int | float | None,
    test: int | float | None,
) -> list[Question]:
    paths = [file] if isinstance(file, Path) else list(file)
    if name.partition("/")[0] in SETS:
        raise UserError(
            f"{name!r} is the name of a built-in set",
            code="E-data-reserved-name",
            where=paths[0],
            hint="choose another name",
        )
    if task is not None:
        grading.check_task(task)
    validation = DEFAULT_SHARE if validation is None else validation
    test = (validation if isinstance(validation, int) else DEFAULT_SHARE) if test is None else test
    return assign_splits(custom_set.read_custom(name, paths, fields, task), name, validation=validation, test=test)


def _builtin(name: str, custom_names: Sequence[str]) -> BuiltinSet:
    set_name, _, task = name.partition("/")
    builtin = SETS.get(set_name)
    if builtin is not None and (not task or task in builtin.tasks):
        return builtin
    known = [f"{set_name}/{task}" for task in builtin.tasks] if builtin else [*custom_names, *SETS]
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    suggestion = f"did you mean {near[0]!r}? " if near else ""
    raise UserError(
        f"no set is named {name!r}",
        code="E-data-unknown-set",
        hint=f"{suggestion}use one of {', '.join(known)}, or name a file (sets.{name}.file)",
    )
