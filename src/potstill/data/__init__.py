"""Questions: the sets a student learns from and is measured on, each question with its split.

    >>> mine = [RawQuestion(id=f"m/{i}", text=f"What is {i} + 1?", gold=f"{i + 1}", task="number", where="") for i in range(9)]
    >>> [question.split for question in assign_splits(mine, "m", validation=3, test=3)]
    ['validation', 'train', 'train', 'test', 'test', 'test', 'train', 'validation', 'validation']

    gsm8k        gsm8k/train.jsonl, gsm8k/test.jsonl   its training file is train; its test file is divided
    multiarith   multiarith/MultiArith.json            divided into validation and test
    asdiv        asdiv/ASDiv.xml                       divided into validation and test
    svamp        svamp/SVAMP.json                      divided into validation and test
    bbh          bbh/tasks/*.json                      each of its 27 tasks divided; `bbh/navigate` is one task alone
    your own     files of many forms (`own`)           its `split` field, else divided into train, validation and test

`splits="digest"` divides by the digests of the questions' canonical forms. `splits="paper"` has the paper's sizes: 500
validation questions of a set, of MultiArith 200, the rest test. MultiArith's are the authors' own where the folder has
their file of indices (`golden/authors_validation_indices.json`); else, and of the other sets, they are those of lowest
digest, since no other index file of questions outside of training was released. Of each BBH task a fifth is validation,
in both.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Final, Literal

from potstill import grading
from potstill.data import asdiv, bbh, custom_set, gsm8k, multiarith, splits, svamp, validate
from potstill.data.set_files import RawQuestion, read_demonstrations
from potstill.data.validate import find_contradictions
from potstill.errors import UserError
from potstill.records import Question

__all__ = [
    "SETS",
    "VERSION",
    "RawQuestion",
    "assign_splits",
    "find_contradictions",
    "find_data_folder",
    "find_duplicates_across_splits",
    "load_set",
    "read_demonstrations",
    "validation_index_file",
]

VERSION: Final = 4  # of the questions that this room reads out of the sets; stored by the stage that collects them
SETS: Final = ("gsm8k", "multiarith", "asdiv", "svamp", "bbh")
PAPER_VALIDATION: Final = {"gsm8k": 500, "multiarith": 200, "asdiv": 500, "svamp": 500}
DEFAULT_SHARE: Final = 0.2


def load_set(
    name: str,
    data: Path | None = None,
    *,
    file: Path | Sequence[Path] | None = None,
    fields: custom_set.FieldMap | None = None,
    task: str | None = None,
    splits: Literal["digest", "paper"] = "digest",
    validation: int | float | None = None,
    test: int | float | None = None,
    others: Sequence[str] = (),
) -> list[Question]:
    """Every question of a set, in the order of its files, with its split.

    name        one of SETS, `bbh/<task>`, or with `file` a name of your own
    data        the folder of the five sets; None: the folder that POTSTILL_DATA names
    file, fields, task   of your own file or files (see `own`); task grades the records that name none
    splits      how a set without splits of its own is divided; `paper` is for the five sets only
    validation  a share (float) or a count (int) of each set, of each task of BBH; 0.2 if None
    test        the same, for your own file only; 0.2 if None, and a count where validation is one
    others      names of one's own sets, for the message about a name that is nobody's
    Raises UserError, with file and record, for whatever is wrong with a name, a file, a record or a size.
    """
    if file is None and (fields or task or test is not None):
        raise UserError(
            "fields, task and test belong to a file of your own", where=name, hint="give `file`, or drop them"
        )
    _check_splits(name, file, splits, validation)
    if file is not None:
        return _load_custom(name, file, fields, task, validation, test)
    if name.startswith("bbh/"):
        name = _check_set_name(name, tuple(f"bbh/{task}" for task in bbh.TASKS))
        tasks: tuple[str, ...] = (name.removeprefix("bbh/"),)
    else:
        name = _check_set_name(name, (*others, *SETS))
        tasks = bbh.TASKS if name == "bbh" else ()
    root = find_data_folder(data, name)
    if tasks:
        share = DEFAULT_SHARE if validation is None else validation
        return [question for task in tasks for question in _split_bbh(bbh.read_bbh(root, task), task, share)]
    readers = {
        "gsm8k": gsm8k.read_gsm8k,
        "multiarith": multiarith.read_multiarith,
        "asdiv": asdiv.read_asdiv,
        "svamp": svamp.read_svamp,
    }
    if validation is None:
        validation = PAPER_VALIDATION[name] if splits == "paper" else DEFAULT_SHARE
    raws = readers[name](root)
    if name == "multiarith" and splits == "paper":
        raws = multiarith.assign_authors_splits(raws, root)
    return assign_splits(raws, name, validation=validation, test=None)


def validation_index_file(data: Path | None) -> Path:
    """Where the authors' file of indices lies, if it is there. Raises UserError where there is no data folder."""
    return find_data_folder(data) / multiarith.INDEX_FILE


def assign_splits(
    raws: Sequence[RawQuestion], name: str, *, validation: int | float, test: int | float | None
) -> list[Question]:
    """Raw questions with their splits: those that say none are divided by digest (see `splits.divide`).

    Raises UserError where ids are double, a gold answer cannot be read, or a wanted split is empty.
    """
    if not raws:
        raise UserError("no questions", where=name, hint="look whether the file is empty")
    validate.check_questions(raws, name)
    open_ones = [i for i, raw in enumerate(raws) if raw.split is None]
    try:
        parts = splits.split_questions([raws[i].text for i in open_ones], validation, test) if open_ones else []
    except UserError as error:
        raise UserError(error.what, where=f"splits of {name}", found=error.found, hint=error.hint) from None
    if open_ones:
        for part, size in (("validation", validation), ("test", 1 if test is None else test)):
            if size and part not in parts and not any(raw.split == part for raw in raws):
                raise _empty_split_error(part, raws, name)
    place_of = dict(zip(open_ones, parts, strict=True))
    return [
        Question(
            raw.id, raw.text, raw.gold, set=name, split=raw.split or place_of[i], task=raw.task, rationale=raw.rationale
        )
        for i, raw in enumerate(raws)
    ]


def find_duplicates_across_splits(questions: Sequence[Question]) -> list[tuple[Question, Question]]:
    """Questions that stand on two sides: each leaking one with the later one that it equals in canonical form.

    A training question leaks if it equals any validation or test question of any set, a validation question if it
    equals a test question. Dropping the first of every pair mends it.
    """
    order = {"train": 0, "validation": 1, "test": 2}
    forms = [splits.canonical_question(question.text) for question in questions]
    latest: dict[str, Question] = {}
    for form, question in zip(forms, questions, strict=True):
        if form not in latest or order[question.split] > order[latest[form].split]:
            latest[form] = question
    pairs = ((question, latest[form]) for form, question in zip(forms, questions, strict=True))
    return [(question, later) for question, later in pairs if order[question.split] < order[later.split]]


def find_data_folder(data: Path | None, wanted: str = "") -> Path:
    """The folder of the sets: the one given, or the one that POTSTILL_DATA names. `wanted` names a set in messages."""
    named = data if data is not None else os.environ.get("POTSTILL_DATA")
    if not named:
        hint = (
            "set POTSTILL_DATA, or `data:` in the recipe, to the folder that holds gsm8k/, svamp/, ...; without it, "
            "name sets of your own in questions.train, in_distribution, out_of_distribution and generic, or none ([]): "
            "each that is left out means the real sets"
        )
        raise UserError("no data folder", where=wanted and f"set {wanted}", hint=hint)
    path = Path(named)
    if not path.is_dir():
        where = "data" if data is not None else "POTSTILL_DATA"
        raise UserError(
            "no such folder", where=where, found=path, hint="name the folder that holds gsm8k/, svamp/, ..."
        )
    return path


def _empty_split_error(part: str, raws: Sequence[RawQuestion], name: str) -> UserError:
    """The error for a split without questions, told apart by why there are none."""
    different = len({splits.canonical_question(raw.text) for raw in raws})
    hint = "give more questions, a larger share, or a `split` field"
    if different < len(raws) / 2:
        hint = "give more different questions: equal ones stay together in one split, so that none is in two"
    found = f"{len(raws)} questions, {different} of them different"
    return UserError(f"the {part} split is empty", where=name, found=found, hint=hint)


def _check_splits(name: str, file: Path | Sequence[Path] | None, splits: str, validation: int | float | None) -> None:
    if splits not in ("digest", "paper"):
        raise UserError("unknown way to split", where=f"splits of {name}", found=splits, hint="digest or paper")
    if splits == "paper" and file is not None:
        hint = "set `splits: digest`, or give each record a `split` field"
        raise UserError("the paper knows no split of your own file", where=f"splits of {name}", hint=hint)
    if splits == "paper" and validation is not None:
        hint = "drop `validation`, or set `splits: digest`"
        raise UserError("the paper's split has its own size", where=f"splits of {name}", found=validation, hint=hint)


def _load_custom(
    name: str,
    file: Path | Sequence[Path],
    fields: custom_set.FieldMap | None,
    task: str | None,
    validation: int | float | None,
    test: int | float | None,
) -> list[Question]:
    paths = [file] if isinstance(file, Path) else list(file)
    if name in SETS or name.startswith("bbh/"):
        raise UserError(f"{name!r} is the name of a known set", where=paths[0], hint="give your file a name of its own")
    if task is not None:
        grading.check_task(task)
    validation = DEFAULT_SHARE if validation is None else validation
    test = (validation if isinstance(validation, int) else DEFAULT_SHARE) if test is None else test
    return assign_splits(custom_set.read_custom(name, paths, fields, task), name, validation=validation, test=test)


def _split_bbh(raws: Sequence[RawQuestion], task: str, share: int | float) -> list[Question]:
    # Exactly the share, lowest digests first: with some 200 questions a task, chance would make the parts uneven.
    count = share if isinstance(share, int) else int(len(raws) * share)
    questions = assign_splits(raws, f"bbh/{task}", validation=count, test=None)
    return [Question(q.id, q.text, q.gold, set="bbh", split=q.split, task=q.task) for q in questions]


def _check_set_name(name: str, names: Sequence[str]) -> str:
    if name in names:
        return name
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]!r}? " if near else ""
    raise UserError(
        f"no set named {name!r}", hint=f"{hint}one of {', '.join(names)}, or give `file` (sets.{name}.file)"
    )
