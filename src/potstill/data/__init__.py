"""The questions for training and evaluation, with their splits.

    >>> raws = [RawQuestion(f"m/{i}", f"What is {i} + 1?", f"{i + 1}", "number", where="") for i in range(9)]
    >>> [question.split for question in assign_splits(raws, "m", validation=3, test=3)]
    ['validation', 'train', 'train', 'test', 'test', 'test', 'train', 'validation', 'validation']

    gsm8k        gsm8k/train.jsonl, gsm8k/test.jsonl   the training file is train; the test file is divided
    multiarith   multiarith/MultiArith.json            divided into validation and test
    asdiv        asdiv/ASDiv.xml                       divided into validation and test
    svamp        svamp/SVAMP.json                      divided into validation and test
    bbh          bbh/tasks/*.json                      27 tasks, divided task by task; `bbh/navigate` is a single task
    custom sets  files of many formats (`custom_set`)  the field `split`; without it, train, validation and test

`splits="digest"` divides a set by the digests of its questions. `splits="paper"` gives the paper's sizes: 500 validation
questions per set, 200 for MultiArith, and the rest for test. The validation questions of MultiArith are those of the
paper's authors if the data folder has their file of indices (`golden/authors_validation_indices.json`). Otherwise, and
for the other sets, they are the questions with the lowest digests, because the authors published no other indices of
evaluation questions. With both values, a fifth of each BBH task is validation.

To add a built-in set (`docs/how-to/add-a-set.md`), write a module next to `word_problems.py`, whose loaders are examples,
and add a `BuiltinSet` to the table `SETS`. If no answer type fits, write a grading function in the set's module.
`BuiltinSet.grader` and the `task` of each question then name this function: `<set>/function: potstill.data.<set>:<name>`.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal

from potstill import grading, prompts
from potstill.data import bbh, custom_set, splits, word_problems
from potstill.data.labels import label_task
from potstill.data.set_files import BuiltinSet, RawQuestion, check_text, read_demonstrations
from potstill.data.splits import canonical_question
from potstill.errors import UserError, suggest
from potstill.grading import grade  # this module registers the graders of SETS with `grading`
from potstill.records import Question, Split, Verdict
from potstill.storage import file_digest
from potstill.storage.dataset_files import shorten

if TYPE_CHECKING:
    from potstill.recipe import Recipe

__all__ = [
    "SETS", "VERSION", "BuiltinSet", "RawQuestion", "assign_splits", "check_questions", "digest_set", "find_contradictions",
    "find_data_folder", "find_duplicates_across_splits", "grade", "grader_tasks", "load_set", "read_demonstrations",
]  # fmt: skip

VERSION: Final = 4  # version of the questions read from the sets; the stage `collect` stores it
DEFAULT_SHARE: Final = 0.2  # default share of a set's questions for validation, and for test
SETS: Final[dict[str, BuiltinSet]] = {
    builtin.name: builtin
    for builtin in (
        word_problems.GSM8K, word_problems.MULTIARITH, word_problems.ASDIV, word_problems.SVAMP, bbh.SET,
    )
}  # fmt: skip
grading.use_sets(SETS)


def load_set(
    name: str,
    data_dir: Path | None = None,
    *,
    file: Path | Sequence[Path] | None = None,
    fields: custom_set.FieldMap | None = None,
    task: str | None = None,
    labels: Sequence[str] | None = None,
    split: Split | None = None,
    splits: Literal["digest", "paper"] = "digest",
    validation: int | float | None = None,
    test: int | float | None = None,
    custom_names: Sequence[str] = (),
) -> list[Question]:
    """Every question of a set with its split, in the order of the set's files.

    name          a name in SETS, `bbh/<task>`, or, with `file`, a new name
    data_dir      folder of the built-in sets; None: the folder in POTSTILL_DATA
    file, fields, task   of a custom set (see `custom_set`); `task` is the task of records without one
    labels        for a custom set that is a classification: its labels
    split         for a custom set: split of records without a split; None: these records are divided
    splits        how to divide a set that has no splits; `paper` is only for built-in sets
    validation    fraction (float) or number (int) of validation questions, per set or per BBH task; None: 0.2
    test          fraction or number of test questions. None: for a built-in set, the rest; for a custom set, 0.2, or
                  `validation` if that is a number. Ignored for a built-in set whose files define the training split
    custom_names  names of the recipe's custom sets, for the message about an unknown name
    Raises UserError, with file and record, for a wrong name, file, record or size.
    """
    if file is None and (fields or task or labels or split):
        what, hint = "fields, task, labels and split need a file", "pass `file`, or remove these arguments"
        raise UserError(what, code="E-data-custom-options", where=name, hint=hint)
    if splits not in ("digest", "paper"):
        raise _splits_error(name, "unknown value of splits", "write digest or paper", splits)
    if splits == "paper" and file is not None:
        hint = "set `splits: digest`, or give each record a `split` field"
        raise _splits_error(name, "the paper has no splits of custom sets", hint)
    if splits == "paper" and validation is not None:
        hint = "remove `validation`, or set `splits: digest`"
        raise _splits_error(name, "the paper's split has a fixed size", hint, validation)
    if file is not None:
        return _load_custom(name, file, fields, task, labels, split, validation, test)
    builtin, data_dir = _builtin(name, custom_names), find_data_folder(data_dir, name)
    if not (data_dir / builtin.name).exists():
        what, where = f"the data folder does not contain the set {builtin.name}", "data"
        hint = (
            f"fetch it with `potstill data {builtin.name} --to {data_dir}`, or name other sets in questions (the defaults of"
            " in_distribution, out_of_distribution and generic are built-in sets; [] for none)"
        )
        raise UserError(what, code="E-data-no-set", where=where, found=data_dir, hint=hint)
    raws = builtin.read(data_dir)
    assert builtin.grader is None or {raw.task for raw in raws} == {builtin.grader}, "a question has another task"
    if validation is None:
        validation = builtin.paper_validation if splits == "paper" else DEFAULT_SHARE
    if splits == "paper" and builtin.apply_split_file is not None:
        raws = builtin.apply_split_file(raws, data_dir)
    if any(raw.split == "train" for raw in raws):
        test = None
    if not builtin.tasks:
        return assign_splits(raws, builtin.name, validation=validation, test=test)
    questions = []
    for task in builtin.tasks:
        if name in (builtin.name, f"{builtin.name}/{task}"):
            of_task = [raw for raw in raws if raw.task == f"{builtin.name}/{task}"]
            # An exact number of questions: with about 200 questions per task, the sizes from a share would vary.
            counts = [
                size if size is None or isinstance(size, int) else int(len(of_task) * size)
                for size in (validation, test)
            ]
            questions += assign_splits(of_task, builtin.name, validation=counts[0] or 0, test=counts[1])
    return questions


def _splits_error(name: str, what: str, hint: str, found: object = "") -> UserError:
    return UserError(what, code="E-data-splits", where=f"splits of {name}", found=found, hint=hint)


def _load_custom(
    name: str,
    file: Path | Sequence[Path],
    fields: custom_set.FieldMap | None,
    task: str | None,
    labels: Sequence[str] | None,
    split: Split | None,
    validation: int | float | None,
    test: int | float | None,
) -> list[Question]:
    paths = [file] if isinstance(file, Path) else list(file)
    if name.partition("/")[0] in SETS:
        what = f"{name!r} is the name of a built-in set"
        raise UserError(what, code="E-data-reserved-name", where=paths[0], hint="choose another name")
    if task is not None:
        grading.check_task(task)
    validation = DEFAULT_SHARE if validation is None else validation
    test = (validation if isinstance(validation, int) else DEFAULT_SHARE) if test is None else test
    raws = custom_set.read_custom(name, paths, fields, label_task(name) if labels else task, labels)
    if split is not None:
        raws = [raw if raw.split else replace(raw, split=split) for raw in raws]
    return assign_splits(raws, name, validation=validation, test=test)


def _builtin(name: str, custom_names: Sequence[str]) -> BuiltinSet:
    set_name, _, task = name.partition("/")
    builtin = SETS.get(set_name)
    if builtin is not None and (not task or task in builtin.tasks):
        return builtin
    known = [f"{set_name}/{task}" for task in builtin.tasks] if builtin else [*custom_names, *SETS]
    hint = f"{suggest(name, known)}use one of {', '.join(known)}, or name a file (sets.{name}.file)"
    raise UserError(f"no set is named {name!r}", code="E-data-unknown-set", hint=hint)


def find_data_folder(data_dir: Path | None, set_name: str = "") -> Path:
    """The folder of the built-in sets: `data_dir`, or the folder in POTSTILL_DATA. set_name: for messages.

    Raises UserError if no folder is set, or the folder does not exist.
    """
    path = data_dir if data_dir is not None else os.environ.get("POTSTILL_DATA")
    if not path:
        raise UserError(
            "no data folder is set",
            code="E-data-no-folder",
            where=set_name and f"set {set_name}",
            hint="set POTSTILL_DATA, or `data` in the recipe, to the folder of the built-in sets, and fetch the sets with "
            "`potstill data NAME`; without this folder, set questions.train, in_distribution, out_of_distribution and "
            "generic to custom sets or to [], because their defaults are built-in sets",
        )
    if not Path(path).is_dir():
        where = "data" if data_dir is not None else "POTSTILL_DATA"
        hint = "name the folder that contains gsm8k/, svamp/, ..."
        raise UserError("the data folder does not exist", code="E-data-no-folder", where=where, found=path, hint=hint)
    return Path(path)


def assign_splits(
    raws: Sequence[RawQuestion], name: str, *, validation: int | float, test: int | float | None
) -> list[Question]:
    """The questions with their splits. Questions without a split are divided by digest (see `splits.split_questions`).

    Raises UserError for a repeated id, an unreadable gold answer or an empty split.
    """
    if not raws:
        raise UserError("the set has no questions", code="E-data-empty-set", where=name, hint="check the file")
    check_questions(raws, name)
    undivided = [index for index, raw in enumerate(raws) if raw.split is None]
    try:
        parts = splits.split_questions([raws[i].text for i in undivided], validation, test) if undivided else []
    except UserError as error:
        raise error.at(f"splits of {name}") from None
    if undivided:
        for part, size in (("validation", validation), ("test", 1 if test is None else test)):
            if size and part not in parts and not any(raw.split == part for raw in raws):
                raise _empty_split_error(part, raws, name)
    assigned = dict(zip(undivided, parts, strict=True))
    return [
        Question(raw.id, raw.text, raw.gold, name, raw.split or assigned[i], raw.task, raw.rationale)
        for i, raw in enumerate(raws)
    ]


def _empty_split_error(part: str, raws: Sequence[RawQuestion], name: str) -> UserError:
    different = len({canonical_question(raw.text) for raw in raws})
    hint = "give more questions, a larger share, or a `split` field"
    if different < len(raws) / 2:
        hint = "give more different questions: equal questions are always in the same split"
    found = f"{len(raws)} questions, {different} different"
    return UserError(f"the {part} split is empty", code="E-data-empty-split", where=name, found=found, hint=hint)


# Checks of all questions of a set before a model is used. The student learns to end with "The answer is <gold>", and the
# teacher is prompted to do so. A gold answer that is not right in this sentence would therefore never have a right chain.

_MAX_FUNCTION_CALLS: Final = 3  # number of questions for which a grading function is called
_MAX_SHOWN: Final = 3  # number of faulty questions in a message
# Letters of several options. Graded as text, an "A" among them would be dropped as an article.
_LETTERS: Final = re.compile(
    r"\(?[A-Z]\)?(?:(?:\s?[,;/&]\s?(?:(?:and|or)\s)?|\s(?:and|or)\s|(?<=\))\s?(?=\())\(?[A-Z]\)?){1,25}"
)


def check_questions(raws: Sequence[RawQuestion], name: str) -> None:
    """Raise UserError, with the records, for a repeated id, a text that is not valid Unicode, or a wrong gold answer.

    A gold answer is wrong if it has the wrong form, or is not graded right in the answer sentence. Of a `regex` gold, only
    the syntax is checked. A grading function is called for the first questions and must not fail. It may grade the
    sentence as wrong, because its gold may be anything (for example, a test to run).
    """
    places: dict[str, str] = {}
    function_calls = 0
    verdicts: dict[tuple[str, str], Verdict | None] = {}  # of each different gold answer of a task
    failed: list[tuple[RawQuestion, Verdict]] = []
    for raw in raws:
        if raw.id in places:
            what, found = f"the id {raw.id!r} occurs twice", f"first in {places[raw.id]}"
            hint = "give every record another id, or none: without an id, the number of the record is its id"
            raise UserError(what, code="E-data-repeated-id", where=raw.where, found=found, hint=hint)
        places[raw.id] = raw.where
        fields = {"id": raw.id, "question": raw.text, "answer": raw.gold, "rationale": raw.rationale}
        for field, text in fields.items():
            check_text(text or "", field, raw.where)
        key = raw.gold, raw.task
        try:
            if grading.parse_function_name(raw.task) is not None:
                function_calls += 1
                if function_calls <= _MAX_FUNCTION_CALLS:
                    _grade_gold(raw)
                continue
            if key not in verdicts:
                verdicts[key] = _grade_gold(raw)
        except UserError as error:
            raise error.at(raw.where) from None
        if (verdict := verdicts[key]) is not None and verdict.grade != "right":
            failed.append((raw, verdict))
    if failed:
        raise _ungradable_error(failed, len(raws), name)


def _grade_gold(raw: RawQuestion) -> Verdict | None:
    """The verdict on the answer sentence with the gold answer; None for a `regex`. Raises UserError for a wrong form."""
    answer_type = grading.infer_answer_type(raw.gold, raw.task)
    grading.canonicalize_gold(raw.gold, answer_type)
    if answer_type == "regex":
        return None
    if answer_type == "text" and _LETTERS.fullmatch(raw.gold.strip()):
        hint = "give one letter, or set task: list in the recipe, which compares all letters in order"
        what = "several choices cannot be graded as text"
        raise UserError(what, code="E-data-several-choices", found=repr(raw.gold), hint=hint)
    return grading.grade(prompts.format_answer(raw.gold), raw.gold, raw.task)


def _ungradable_error(failed: Sequence[tuple[RawQuestion, Verdict]], count: int, name: str) -> UserError:
    shown = [
        f"{raw.where}: {shorten(raw.gold)!r} ({raw.task}) is {verdict.grade}"
        + (f", read as {shorten(verdict.answer)!r}" if verdict.answer is not None else "")
        for raw, verdict in failed[:_MAX_SHOWN]
    ]
    hint = "correct these answers, or set sets.NAME.task in the recipe to the right task"
    if any("\n" in raw.gold or len(raw.gold) > 120 for raw, _ in failed[:_MAX_SHOWN]):
        hint = "if these are whole solutions, give the text that precedes the answer: "
        hint += 'sets.NAME.fields: {answer: {column: answer, after: "####"}}'
    what = f'{len(failed)} of {count} gold answers are not right in the sentence "The answer is ..."'
    return UserError(what, code="E-data-ungradable-gold", where=name, found="\n         ".join(shown), hint=hint)


def find_contradictions(questions: Sequence[Question]) -> list[tuple[Question, Question]]:
    """Pairs of questions of the same set with the same canonical form but different answers.

    The first question of a pair is the first question of the set with that form.
    """
    firsts: dict[tuple[str, str], Question] = {}
    pairs = []
    for question in questions:
        first = firsts.setdefault((question.set, canonical_question(question.text)), question)
        if first is not question and not _have_same_gold(first, question):
            pairs.append((first, question))
    return pairs


def _have_same_gold(first: Question, other: Question) -> bool:
    """Whether two gold answers of a set are equal, in canonical form or according to the grading function of the task."""
    types = [grading.infer_answer_type(question.gold, question.task) for question in (first, other)]
    golds = [grading.canonicalize_gold(q.gold, kind) for q, kind in zip((first, other), types, strict=True)]
    if golds[0] == golds[1] or grading.FUNCTION_TYPE not in types:
        return golds[0] == golds[1]
    return grading.grade(prompts.format_answer(other.gold), first.gold, first.task).grade == "right"


def find_duplicates_across_splits(questions: Sequence[Question]) -> list[tuple[Question, Question]]:
    """Pairs of questions of different splits with the same canonical form. The question of the earlier split is first.

    A training question leaks if it equals a validation or test question of any set, a validation question if it equals
    a test question. Dropping the first question of every pair removes the leaks.
    """
    order = {"train": 0, "validation": 1, "test": 2}
    forms = [canonical_question(question.text) for question in questions]
    latest: dict[str, Question] = {}
    for form, question in zip(forms, questions, strict=True):
        if form not in latest or order[question.split] > order[latest[form].split]:
            latest[form] = question
    pairs = ((question, latest[form]) for form, question in zip(forms, questions, strict=True))
    return [(question, later) for question, later in pairs if order[question.split] < order[later.split]]


def digest_set(name: str, data_dir: Path) -> str | None:
    """SHA-256 of the names and contents of the files in a built-in set's folder; None if the folder does not exist."""
    folder, digest = data_dir / name.partition("/")[0], hashlib.sha256()
    files = [path for path in sorted(folder.rglob("*")) if path.is_file() and not path.name.startswith(".")]
    for path in files:
        digest.update(f"{path.relative_to(folder).as_posix()}\0{file_digest(path)}\0".encode())
    return digest.hexdigest() if files else None


def grader_tasks(recipe: Recipe) -> list[str]:
    """The tasks of a recipe's custom sets, and of its built-in sets with a grading function."""
    section = recipe.questions
    names = dict.fromkeys(section.train + section.in_distribution + section.out_of_distribution + section.generic)
    custom = [custom.task for custom in recipe.sets.values()]
    builtin = [SETS[name].grader for name in names if name in SETS]
    return [task for task in custom + builtin if task]
