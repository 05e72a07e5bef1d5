"""Custom sets: files with a question and its answer in each record, in any format that `storage.dataset_files` reads.

    {"question": "How many?", "answer": 72}
    {"id": "b7", "question": "Which?", "answer": "(A)", "task": "choice", "split": "test", "rationale": "..."}
    {"question": "Which?", "choices": ["a bat", "an ant"], "answer": 1}

    >>> read_gold("48 / 2 = <<48/2=24>>24.\\n#### 24", "mine.jsonl line 1")
    Gold(text='24', rationale='48 / 2 = 24.')
    >>> read_gold(True, "mine.jsonl line 1", question="Do hamsters eat?").text
    'yes'
    >>> read_gold("Answer key: B", "mine.jsonl line 1", after="key:").text
    'B'

`fields` in the recipe maps the names above to the file's own: {"question": "problem", "answer": "solution"}.

A task is an answer type (`number`, `choice`, `text`, `regex`, `json`, ...), alone or after a name that groups the scores
(`sorting/list`). Without a task, the form of the answer determines its type. Only the recipe may name a grading function
(`function: module:name`), never a record, because potstill runs it. With `json`, an answer may be any value.

The answer of a choice is a letter, "(A)" or "A", which the question must offer. Options in the field `choices` are
appended to the question; the answer may then be a letter, a label, an index from 0, or the text of an option.

An answer may be a whole solution that ends with `#### 24` (GSM8K), `\\\\boxed{24}` (MATH) or "The answer is 24."; the text
before that is the rationale, if no field has one. For other solutions, the recipe gives the text before the answer
(`after`).
"""

from __future__ import annotations

import json
import re
import string
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple, get_args

from potstill import grading
from potstill.data import labels, set_files
from potstill.data.set_files import RawQuestion
from potstill.data.word_problems import CALCULATOR_MARK
from potstill.errors import UserError
from potstill.records import Question, Split
from potstill.storage.dataset_files import shorten

SPLIT_SYNONYMS: Final = {
    "dev": "validation",
    "val": "validation",
    "valid": "validation",
    "eval": "test",
    "training": "train",
}
FIELD_NAMES: Final = ("question", "answer", "id", "rationale", "task", "split", "choices")
MISSING_FIELD_HINT: Final = "add the field, or map its name in the recipe (sets.NAME.fields)"
# Answer types whose gold answer is never a whole solution.
OPAQUE_TYPES: Final = ("exact", "json", "regex", "function", "label")
_ANSWER_SENTENCE = re.compile(
    r"(?:^|(?<=[.!?:;,]\s))(?:(?:so|thus|hence|therefore),?\s)?(?:the\s)?(?:final\s|correct\s)?answer\s?(?:is\s?:?|:)\s*(\S.*)$",
    re.IGNORECASE,
)
_MAX_ANSWER: Final = 300  # maximum number of characters of an answer at the end of a solution

FieldMap = Mapping[str, str | Mapping[str, Any]]
Options = list[tuple[str, str]]  # label and text of each option


def read_custom(
    name: str,
    paths: Sequence[Path],
    fields: FieldMap | None,
    task: str | None,
    names: Sequence[str] | None = None,
) -> list[RawQuestion]:
    """The questions of a custom set.

    Their ids are `<name>/<id>`; for records without an id, `<name>/<line>` (from 1), or `<name>/<file>-<line>` if there
    are several files.

    task   the task of records without one
    names  the labels, if the set is a classification; its task is then `<name>/label`
    Raises UserError, with file and record, for a wrong file or record.
    """
    columns = _resolve_columns(fields or {})
    several = len(paths) > 1
    raws = [
        _parse_record(name, row, where, f"{file}-{number}" if several else str(number), columns, task)
        for file, path in enumerate(paths, 1)
        for number, where, row in set_files.read_rows(path)
    ]
    return raws if names is None else labels.check_labels(raws, names)


def _resolve_columns(fields: FieldMap) -> dict[str, Mapping[str, Any]]:
    """Field -> its `column`; for the answer, also `after` and `values`."""
    for field in fields:
        if field not in FIELD_NAMES:
            hint = f"use one of {', '.join(FIELD_NAMES)}"
            raise UserError(
                f"a question has no field {field!r}", code="E-data-unknown-field", where="fields", hint=hint
            )
    columns = {field: fields.get(field, field) for field in FIELD_NAMES}
    return {field: {"column": column} if isinstance(column, str) else column for field, column in columns.items()}


def _parse_record(
    name: str,
    row: Mapping[str, Any],
    where: str,
    number: str,
    columns: Mapping[str, Mapping[str, Any]],
    task: str | None,
) -> RawQuestion:
    names = {field: str(column["column"]) for field, column in columns.items()}
    stated = _read_task(row, names["task"], where)
    answer_type = _stated_type(stated or task)
    hint, null = MISSING_FIELD_HINT, answer_type == "json"
    value = set_files.require_field(row, names["answer"], where=where, hint=hint, null=null)
    question = set_files.require_text(row, names["question"], where=where, hint=hint).strip()
    after, values = columns["answer"].get("after"), columns["answer"].get("values") or {}
    gold = None
    mapped = names["choices"] != "choices"  # if the recipe names the field, it must contain options
    options = _read_choices(row, names["choices"], question, answer_type, where, required=mapped)
    if options is not None:
        answer_type, question = "choice", append_options(question, options)
        if set_files.is_number(value) or isinstance(value, str):
            value = value if after is None else read_gold(value, where, answer_type=answer_type, after=after).text
            gold = Gold(find_gold_option(values.get(str(value), value), options, where))
    if gold is None:
        gold = read_gold(
            value, where, name=names["answer"], answer_type=answer_type, question=question, after=after, values=values
        )
    task = stated or task or ("choice" if options is not None else grading.infer_answer_type(gold.text))
    _check_choice(question, gold.text, task, where)
    rationale = None if names["rationale"] == names["answer"] else _optional_text(row, names["rationale"], where)
    return RawQuestion(
        id=f"{name}/{_record_id(row, names['id'], number, where)}",
        text=question,
        gold=gold.text,
        task=task,
        where=where,
        rationale=rationale or gold.rationale,
        split=_read_split(row, names["split"], where),
    )


def read_replay_rows(file: Path) -> list[Question]:
    """The rows of a file with `prompt` and `answer`. They are learnt unchanged and not graded. Ids: `replay:<line>`."""
    hint = 'write rows {"prompt": ..., "answer": ...}'
    questions = []
    for number, where, row in set_files.read_rows(file):
        prompt, answer = (
            set_files.check_text(set_files.require_text(row, name, where=where, hint=hint), name, where)
            for name in ("prompt", "answer")
        )
        questions.append(Question(f"replay:{number}", prompt, answer, set="replay", split="train", task="text"))
    if not questions:
        raise UserError("the file has no rows to replay", code="E-data-empty-set", where=file, hint=hint)
    return questions


def grader_digests(tasks: Iterable[str | None]) -> dict[str, str]:
    """`function <name>` -> digest of the function's file, for the grading functions among the tasks.

    A change of the file invalidates the grades.
    """
    names = {grading.parse_function_name(task) for task in tasks if task is not None}
    return {f"function {name}": grading.function_digest(name) for name in sorted(filter(None, names))}


# Single fields of a record


def _stated_type(task: str | None) -> str | None:
    """The answer type in a task: the last part of its name, or `function`."""
    if task is None:
        return None
    return "function" if grading.parse_function_name(task) is not None else task.rpartition("/")[2]


def _read_task(row: Mapping[str, Any], name: str, where: str) -> str | None:
    task = _optional_text(row, name, where)
    if task is not None and grading.parse_function_name(task) is not None and not grading.is_task_of_set(task):
        what, hint = "a record may not name a grading function", "name the function in the recipe (sets.NAME.task)"
        raise UserError(what, code="E-data-function-in-record", where=where, found=task, hint=hint)
    return task


def _record_id(row: Mapping[str, Any], name: str, number: str, where: str) -> str:
    value = row.get(name)
    if value is None:
        return number
    if isinstance(value, bool) or not isinstance(value, str | int) or not str(value).strip():
        raise set_files.field_type_error(f"`{name}` must be a string or a whole number", value, where)
    return str(value).strip()


def _optional_text(row: Mapping[str, Any], name: str, where: str) -> str | None:
    return None if row.get(name) in (None, "") else set_files.require_text(row, name, where=where).strip()


def _read_split(row: Mapping[str, Any], name: str, where: str) -> Split | None:
    value = row.get(name)
    if value in (None, ""):
        return None
    if value not in get_args(Split):
        what, found = f"`{name}` must be one of train, validation, test", json.dumps(value, default=str)
        meant = SPLIT_SYNONYMS.get(str(value).lower())
        hint = f"write {meant} for {value}" if meant else "correct the value, or leave the field out"
        raise UserError(what, code="E-data-split-name", where=where, found=found, hint=hint)
    return value


# The gold answer


class Gold(NamedTuple):
    text: str
    rationale: str | None = None


def read_gold(
    value: Any,
    where: str,
    *,
    name: str = "answer",
    answer_type: str | None = None,
    question: str = "",
    after: str | None = None,
    values: Mapping[str, str] | None = None,
) -> Gold:
    """The gold answer in a field, and the rationale before it in the same field, if any.

    answer_type  answer type of the recipe or the record; golds of OPAQUE_TYPES are not changed. None: not known
    question     text of the question, which determines whether true and false become yes and no
    after        text that precedes the answer; `\\boxed` means the text in its braces
    values       replacements for whole answers, such as {true: yes, 0: A}
    Raises UserError for a value that cannot be an answer.
    """
    if isinstance(value, list) and len(value) == 1 and answer_type != "json":
        value = value[0]
    replacement = (values or {}).get(value if isinstance(value, str) else json.dumps(value, default=str))
    if replacement is not None:
        return Gold(replacement)
    if answer_type == "json" and not isinstance(value, str):
        return Gold(json.dumps(value, ensure_ascii=False))
    if isinstance(value, bool):
        yes_no = question.rstrip().endswith("?") and "true or false" not in question.lower()
        return Gold(("yes" if value else "no") if yes_no else json.dumps(value))
    if isinstance(value, int | float):
        return Gold(set_files.number_to_text(value, name, where=where))
    if not isinstance(value, str):
        hint = 'write one string, such as "72", or "5; 15" for several numbers; other values need the task json'
        raise set_files.field_type_error(f"`{name}` must be a string, a number, true or false", value, where, hint)
    text = value.strip()
    if not text:
        raise set_files.empty_field_error(name, where)
    if after is not None:
        return _text_after(text, after, name, where)
    return Gold(text) if answer_type in OPAQUE_TYPES else _split_solution(text) or Gold(text)


def _text_after(text: str, after: str, name: str, where: str) -> Gold:
    before, mark, rest = text.rpartition(after)
    rest = _brace_content(rest) if after.startswith("\\boxed") else rest.strip()
    if not mark or not rest:
        what, found = f"`{name}` has no text after {after!r}", f"... {text[-60:]}" if len(text) > 60 else text
        hint = "correct the record, or `after` in the recipe's sets.NAME.fields.answer"
        raise UserError(what, code="E-data-missing-gold", where=where, found=found, hint=hint)
    return Gold(rest, CALCULATOR_MARK.sub("", before).strip() or None)


def _split_solution(text: str) -> Gold | None:
    """The answer and rationale of a solution that ends with its answer; None for any other text."""
    before, mark, rest = text.rpartition("####")
    if mark and 0 < len(rest.strip()) < _MAX_ANSWER and "\n" not in rest.strip():
        return Gold(rest.strip(), CALCULATOR_MARK.sub("", before).strip() or None)
    start = text.rfind("\\boxed{")
    boxed = _brace_content(text[start + 6 :]) if start >= 0 else ""
    if boxed and not text[start + 6 + len(boxed) + 2 :].strip(" $.)\\]\n"):
        return Gold(boxed)
    start = text.rfind("\n") + 1
    if len(text) - start < 4 * _MAX_ANSWER:
        match = _ANSWER_SENTENCE.search(text[start:])
        answer = match[1].removesuffix(".").strip() if match is not None else ""
        if match is not None and answer and len(answer) < _MAX_ANSWER:
            return Gold(answer, text[: start + match.start()].strip() or None)
    return None


def _brace_content(text: str) -> str:
    """The content of the braces at the beginning of a text; empty if the text does not begin with a brace."""
    depth = 0
    for index, character in enumerate(text[: 4 * _MAX_ANSWER]):
        depth += (character == "{") - (character == "}")
        if depth == 0:
            return text[1:index] if index else ""
    return ""


# Options in a separate field


def _read_choices(
    row: Mapping[str, Any], name: str, question: str, answer_type: str | None, where: str, *, required: bool
) -> Options | None:
    """The options of a record; None without the field, or if the question already offers the options.

    required  whether to raise UserError if the field has no options
    """
    if name not in row or answer_type not in (None, "choice"):
        if required:
            missing = f"the field `{name}` is missing"
            what = missing if name not in row else f"a question graded as {answer_type} has options"
            hint = "correct `choices` in the recipe's sets.NAME.fields"
            raise UserError(what, code="E-data-choices", where=where, found=", ".join(row), hint=hint)
        return None
    options = read_options(row[name])
    if options is None and required:
        what, found = f"`{name}` must be a list of options", shorten(json.dumps(row[name], default=str))
        hint = 'write {"choices": ["a bat", "an ant"]}, or {"choices": {"text": [...], "label": [...]}}; at most 26'
        raise UserError(what, code="E-data-choices", where=where, found=found, hint=hint)
    return None if options is None or _offered_letters(question) else options


def read_options(value: Any) -> Options | None:
    """The label and text of each option; None for a value without options.

    The value is a list of texts, `{"text": [...], "label": [...]}`, or a list of objects with the fields text and label.
    """
    if isinstance(value, Mapping):
        texts, labels = value.get("text"), value.get("label")
    elif isinstance(value, list) and value and all(isinstance(option, Mapping) for option in value):
        texts, labels = [option.get("text") for option in value], [option.get("label") for option in value]
    else:
        texts, labels = value, None
    if not isinstance(texts, list) or not 2 <= len(texts) <= 26:
        return None
    texts = [set_files.format_number(text) if set_files.is_number(text) else text for text in texts]
    if not all(isinstance(text, str) and text.strip() for text in texts):
        return None
    if not isinstance(labels, list) or len(labels) != len(texts) or not all(isinstance(label, str) for label in labels):
        labels = string.ascii_uppercase[: len(texts)]
    return [(label.strip(), text.strip()) for label, text in zip(labels, texts, strict=True)]


def append_options(question: str, options: Options) -> str:
    """The question followed by its options, with letters, in the format of BBH."""
    rows = [f"({letter}) {text}" for letter, (_, text) in zip(string.ascii_uppercase, options, strict=False)]
    return "\n".join([question, "Options:", *rows])


def find_gold_option(value: Any, options: Options, where: str) -> str:
    """The letter of the right option. value: its label, letter, index from 0, or text. Raises UserError if it is unknown."""
    answer = (
        set_files.format_number(value)
        if set_files.is_number(value)
        else value.strip()
        if isinstance(value, str)
        else ""
    )
    bare = answer.strip("().")
    letters = string.ascii_uppercase[: len(options)]
    matches = {
        "label": [index for index, (label, _) in enumerate(options) if label.casefold() == bare.casefold()],
        "letter": [index for index, letter in enumerate(letters) if bare == letter],
        "index": [int(bare)] if bare.isascii() and bare.isdecimal() and int(bare[:3]) < len(options) else [],
        "text": [index for index, (_, text) in enumerate(options) if text.casefold() == answer.casefold()],
    }
    if (
        isinstance(value, str) and len(bare) > 1
    ):  # "12" among numeric options means the option 12, not the option at index 12
        matches = {"text": matches["text"], **matches}
    index = next((indices[0] for indices in matches.values() if len(indices) == 1), None)
    if index is None:
        shown = ", ".join(f"{label}: {shorten(text)}" for label, text in options[:5])
        raise _gold_choice_error(where, f"{value!r} among {shown}")
    return f"({string.ascii_uppercase[index]})"


def _offered_letters(question: str) -> list[str]:
    """The letters in brackets that a question offers; empty unless they are A, B, ... in order and unique."""
    offered = re.findall(r"\(([A-Z])\)", question)
    return offered if len(offered) > 1 and offered == list(string.ascii_uppercase[: len(offered)]) else []


def _check_choice(question: str, gold: str, task: str, where: str) -> None:
    """Raise UserError if the question offers letters and the answer is not one of them."""
    offered = _offered_letters(question)
    if offered and task.rpartition("/")[2] == "choice" and gold.strip("().") not in offered:
        letters = ", ".join(f"({letter})" for letter in offered)
        raise _gold_choice_error(where, f"{gold!r}; the question offers {letters}")


def _gold_choice_error(where: str, found: str) -> UserError:
    what, hint = "the answer is not among the choices", "correct the answer or the choices"
    return UserError(what, code="E-data-gold-choice", where=where, found=found, hint=hint)
