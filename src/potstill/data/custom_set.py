"""Golds: what a field of somebody's set says of the right answer, as the text that a solution ends with.

    >>> read_gold("48 / 2 = <<48/2=24>>24.\\n#### 24", "mine.jsonl line 1")
    Gold(text='24', rationale='48 / 2 = 24.')
    >>> read_gold(True, "mine.jsonl line 1", question="Do hamsters eat?").text
    'yes'
    >>> read_gold("Answer key: B", "mine.jsonl line 1", after="key:").text
    'B'

A whole solution is read by its end: `#### 24` (GSM8K), `\\\\boxed{24}` (MATH), "The answer is 24."; what stands before
it is the rationale of a set that names none. What an answer stands behind in other sets, the recipe says (`after`).

Your own questions: a file with a question and its answer in each record, in any form that `files.rows` reads.

    {"question": "How many?", "answer": 72}
    {"id": "b7", "question": "Which?", "answer": "(A)", "task": "choice", "split": "test", "rationale": "..."}
    {"question": "Which?", "choices": ["a bat", "an ant"], "answer": 1}

A choice is answered by its letter, "(A)" or "A", and has to be among those that the question offers. Options in a field
of their own (`choices`) are put below the question, and then the answer may be a letter, a label, an option's place
from 0, or its text.

`fields` says what your file calls them: {"question": "problem", "answer": "solution"}. A task names a way of grading
(`number`, `choice`, `text`, `regex`, `json`, ...) or a name of yours before it (`sorting/list`), which groups the
scores; without one the form of the answer decides. A function of yours (`function: module:name`) is named in the
recipe, never by a record, since it is run. With `json` the answer may be any value. What golds may look like, `golds`
says.
"""

from __future__ import annotations

import json
import re
import string
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, get_args

from potstill import grading
from potstill.data import set_files, validate
from potstill.data.set_files import RawQuestion
from potstill.errors import UserError
from potstill.grading import custom
from potstill.records import Question, Split
from potstill.storage import dataset_files

OPAQUE_TYPES: Final = ("exact", "json", "regex", "function")  # forms whose golds are never looked into
AFTER_HINT: Final = '`fields: {answer: {column: answer, after: "####"}}` says what it stands behind'
_CALCULATOR_MARK = re.compile(r"<<[^<>\n]*>>")
_ANSWER_SENTENCE = re.compile(
    r"(?:^|(?<=[.!?:;,]\s))(?:(?:so|thus|hence|therefore),?\s)?(?:the\s)?(?:final\s|correct\s)?answer\s?(?:is\s?:?|:)\s*(\S.*)$",
    re.IGNORECASE,
)
_MAX_ANSWER: Final = 300  # characters of an answer that is looked for at the end of a solution


@dataclass(frozen=True, slots=True)
class Gold:
    text: str
    rationale: str | None = None


def read_gold(
    value: Any,
    where: str,
    *,
    name: str = "answer",
    form: str | None = None,
    question: str = "",
    after: str | None = None,
    values: Mapping[str, str] | None = None,
) -> Gold:
    """The gold answer of a record, and the rationale that stood before it in the same field, if any.

    form      how it is graded, as far as the recipe or the record says; of some forms nothing is looked into
    question  decides whether true and false are answered yes and no
    after     what the answer stands behind; `\\boxed` for what stands in its braces
    values    other words for whole answers, such as {true: yes, 0: A}
    Raises UserError for a value that is no answer.
    """
    if isinstance(value, list) and len(value) == 1 and form != "json":
        value = value[0]
    renamed = (values or {}).get(value if isinstance(value, str) else json.dumps(value, default=str))
    if renamed is not None:
        return Gold(renamed)
    if form == "json" and not isinstance(value, str):
        return Gold(json.dumps(value, ensure_ascii=False))
    if isinstance(value, bool):
        asks = question.rstrip().endswith("?") and "true or false" not in question.lower()
        return Gold(("yes" if value else "no") if asks else json.dumps(value))
    if isinstance(value, int | float):
        return Gold(set_files.number_to_text(value, name, where=where))
    if not isinstance(value, str):
        hint = 'write one text, such as "72", or "5; 15" for numbers that all belong to it; other values need task json'
        found = dataset_files.shorten(json.dumps(value, default=str))
        raise UserError(f"`{name}` must be text, a number, true or false", where=where, found=found, hint=hint)
    text = value.strip()
    if not text:
        raise UserError(f"`{name}` is empty", where=where)
    if after is not None:
        return _text_after(text, after, name, where)
    return Gold(text) if form in OPAQUE_TYPES else _split_solution(text) or Gold(text)


def _text_after(text: str, after: str, name: str, where: str) -> Gold:
    before, mark, rest = text.rpartition(after)
    rest = _brace_content(rest) if after.startswith("\\boxed") else rest.strip()
    if not mark or not rest:
        hint = "correct the record, or `after` in the recipe's sets.NAME.fields.answer"
        found = f"... {text[-60:]}" if len(text) > 60 else text
        raise UserError(f"`{name}` has nothing behind {after!r}", where=where, found=found, hint=hint)
    return Gold(rest, _CALCULATOR_MARK.sub("", before).strip() or None)


def _split_solution(text: str) -> Gold | None:
    """A solution that ends with its answer; None for any other text."""
    before, mark, rest = text.rpartition("####")
    if mark and 0 < len(rest.strip()) < _MAX_ANSWER and "\n" not in rest.strip():
        return Gold(rest.strip(), _CALCULATOR_MARK.sub("", before).strip() or None)
    at = text.rfind("\\boxed{")
    inside = _brace_content(text[at + 6 :]) if at >= 0 else ""
    if inside and not text[at + 6 + len(inside) + 2 :].strip(" $.)\\]\n"):
        return Gold(inside)
    start = text.rfind("\n") + 1
    if len(text) - start < 4 * _MAX_ANSWER:
        match = _ANSWER_SENTENCE.search(text[start:])
        said = match[1].removesuffix(".").strip() if match is not None else ""
        if match is not None and said and len(said) < _MAX_ANSWER:
            return Gold(said, text[: start + match.start()].strip() or None)
    return None


def _brace_content(text: str) -> str:
    """What stands in the braces that a text begins with; nothing where it begins with none."""
    depth = 0
    for at, sign in enumerate(text[: 4 * _MAX_ANSWER]):
        depth += (sign == "{") - (sign == "}")
        if depth == 0:
            return text[1:at] if at else ""
    return ""


# A question whose options stand in a field of their own.


def read_options(value: Any) -> list[tuple[str, str]] | None:
    """Label and text of each option: of a list of texts, of `{"text": [...], "label": [...]}`, or of a list of objects
    with these two; None for anything else."""
    if isinstance(value, Mapping):
        texts, labels = value.get("text"), value.get("label")
    elif isinstance(value, list) and value and all(isinstance(each, Mapping) for each in value):
        texts, labels = [each.get("text") for each in value], [each.get("label") for each in value]
    else:
        texts, labels = value, None
    if not isinstance(texts, list) or not 2 <= len(texts) <= 26:
        return None
    texts = [set_files.format_number(each) if _is_number(each) else each for each in texts]
    if not all(isinstance(each, str) and each.strip() for each in texts):
        return None
    named = isinstance(labels, list) and len(labels) == len(texts) and all(isinstance(each, str) for each in labels)
    own = labels if named and labels is not None else list(string.ascii_uppercase[: len(texts)])
    return [(label.strip(), text.strip()) for label, text in zip(own, texts, strict=True)]


def append_options(question: str, found: list[tuple[str, str]]) -> str:
    """The question with its options, lettered as BBH letters them."""
    rows = [f"({letter}) {text}" for letter, (_, text) in zip(string.ascii_uppercase, found, strict=False)]
    return "\n".join([question, "Options:", *rows])


def find_gold_option(value: Any, found: list[tuple[str, str]], where: str) -> str:
    """The letter of the right option: the value is its label, its letter, its place from 0, or its text."""
    said = set_files.format_number(value) if _is_number(value) else value.strip() if isinstance(value, str) else ""
    bare = said.strip("().")
    places = {
        "label": [at for at, (label, _) in enumerate(found) if label.casefold() == bare.casefold()],
        "letter": [at for at, letter in zip(range(len(found)), string.ascii_uppercase, strict=False) if bare == letter],
        "place": [int(bare)] if bare.isascii() and bare.isdecimal() and int(bare[:3]) < len(found) else [],
        "text": [at for at, (_, text) in enumerate(found) if text.casefold() == said.casefold()],
    }
    if isinstance(value, str) and len(bare) > 1:  # "12" among options of numbers is the option, not the twelfth
        places = {"text": places["text"], **places}
    at = next((own[0] for own in places.values() if len(own) == 1), None)
    if at is None:
        shown = ", ".join(f"{label}: {dataset_files.shorten(text)}" for label, text in found[:5])
        what = "the answer is none of the choices"
        raise UserError(what, where=where, found=f"{value!r} among {shown}", hint="correct one of the two")
    return f"({string.ascii_uppercase[at]})"


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


MISSING_FIELD_HINT: Final = "add it, or say in the recipe's sets.NAME.fields what your file calls it"
FIELD_NAMES: Final = ("question", "answer", "id", "rationale", "task", "split", "choices")

FieldMap = Mapping[str, str | Mapping[str, Any]]


def read_custom(name: str, paths: Sequence[Path], fields: FieldMap | None, task: str | None) -> list[RawQuestion]:
    """ids `<name>/<id>`, or `<name>/<line>` (from 1) where a record has none; of several files `<name>/<file>-<line>`.

    task  for every record that names none itself
    """
    columns = _resolve_columns(fields or {})
    many = len(paths) > 1
    return [
        _parse_record(name, row, where, f"{file}-{number}" if many else str(number), columns, task)
        for file, path in enumerate(paths, 1)
        for number, where, row in set_files.read_rows(path)
    ]


def _parse_record(
    name: str,
    row: Mapping[str, Any],
    where: str,
    number: str,
    columns: Mapping[str, Mapping[str, Any]],
    task: str | None,
) -> RawQuestion:
    names = {ours: str(column["column"]) for ours, column in columns.items()}
    stated = _read_task(row, names["task"], where)
    form = _stated_type(stated or task)
    value = set_files.require_field(row, names["answer"], where=where, hint=MISSING_FIELD_HINT, null=form == "json")
    question = set_files.require_text(row, names["question"], where=where, hint=MISSING_FIELD_HINT).strip()
    after, values = columns["answer"].get("after"), columns["answer"].get("values") or {}
    gold = None
    choices = _read_choices(row, names["choices"], question, form, where, wanted=names["choices"] != "choices")
    if choices is not None:
        form, question = "choice", append_options(question, choices)
        if not isinstance(value, bool) and isinstance(value, int | float | str):
            value = value if after is None else read_gold(value, where, form=form, after=after).text
            gold = Gold(find_gold_option(values.get(str(value), value), choices, where))
    if gold is None:
        asked: dict[str, Any] = {"form": form, "question": question, "after": after, "values": values}
        gold = read_gold(value, where, name=names["answer"], **asked)
    graded = stated or task or ("choice" if choices is not None else grading.infer_answer_type(gold.text))
    _check_choice(question, gold.text, graded, where)
    together = names["rationale"] == names["answer"]
    return RawQuestion(
        id=f"{name}/{_record_id(row, names['id'], number, where)}",
        text=question,
        gold=gold.text,
        task=graded,
        where=where,
        rationale=gold.rationale if together else _optional_text(row, names["rationale"], where) or gold.rationale,
        split=_read_split(row, names["split"], where),
    )


def read_replay_rows(file: Path) -> list[Question]:
    """The rows of a file with `prompt` and `answer`, taught as they are and graded by nobody; ids `replay:<line>`."""
    hint = 'a row to replay is {"prompt": ..., "answer": ...}'
    found = []
    for number, where, row in set_files.read_rows(file):
        asked, answer = (
            validate.check_text(set_files.require_text(row, name, where=where, hint=hint), name, where)
            for name in ("prompt", "answer")
        )
        found.append(Question(f"replay:{number}", asked, answer, set="replay", split="train", task="text"))
    if not found:
        raise UserError("no rows to replay", where=file, hint=hint)
    return found


def grader_digests(tasks: Iterable[str | None]) -> dict[str, str]:
    """Digest of the file of every function that grades, by its name: what was graded by another is graded again."""
    names = {custom.parse_function_name(task) for task in tasks if task is not None}
    return {f"function {name}": custom.function_digest(name) for name in sorted(filter(None, names))}


def _resolve_columns(fields: FieldMap) -> dict[str, Mapping[str, Any]]:
    """Our name -> `column`, and for an answer `after` and `values`."""
    for ours in fields:
        if ours not in FIELD_NAMES:
            raise UserError(
                f"no field of a question: {ours!r}", where="fields", hint=f"one of {', '.join(FIELD_NAMES)}"
            )
    named = {ours: fields.get(ours, ours) for ours in FIELD_NAMES}
    return {ours: {"column": column} if isinstance(column, str) else column for ours, column in named.items()}


def _stated_type(task: str | None) -> str | None:
    """How a task says that it is graded: the last part of its name, `function`, or nothing."""
    if task is None:
        return None
    return "function" if custom.parse_function_name(task) is not None else task.rpartition("/")[2]


def _read_choices(
    row: Mapping[str, Any], name: str, question: str, form: str | None, where: str, *, wanted: bool
) -> list[tuple[str, str]] | None:
    """The options of a record, if it has some in a field of their own and its question does not offer them itself.

    wanted  whether the recipe names the field: then it must hold options
    """
    if name not in row or form not in (None, "choice"):
        if wanted:
            what = f"the field `{name}` is missing" if name not in row else f"options of a question graded as {form}"
            raise UserError(
                what, where=where, found=", ".join(row), hint="correct `choices` in the recipe's sets.NAME.fields"
            )
        return None
    found = read_options(row[name])
    if found is None and wanted:
        hint = 'write {"choices": ["a bat", "an ant"]}, or {"choices": {"text": [...], "label": [...]}}; at most 26'
        shown = dataset_files.shorten(json.dumps(row[name], default=str))
        raise UserError(f"`{name}` must be a list of options", where=where, found=shown, hint=hint)
    return None if found is None or _offered_letters(question) else found


def _offered_letters(question: str) -> list[str]:
    """The letters that a question offers in brackets: in order, each once, or none."""
    offered = re.findall(r"\(([A-Z])\)", question)
    return offered if len(offered) > 1 and offered == list(string.ascii_uppercase[: len(offered)]) else []


def _read_task(row: Mapping[str, Any], name: str, where: str) -> str | None:
    stated = _optional_text(row, name, where)
    if stated is not None and custom.parse_function_name(stated) is not None:
        hint = "name the function in the recipe (sets.NAME.task), which is yours"
        raise UserError("a record cannot name a function to run", where=where, found=stated, hint=hint)
    return stated


def _check_choice(question: str, gold: str, task: str, where: str) -> None:
    """Raises UserError where the question offers (A), (B), ..., in order and each once, and not the answer."""
    offered = _offered_letters(question)
    if offered and task.rpartition("/")[2] == "choice" and gold.strip("().") not in offered:
        found = f"{gold!r}; the question offers {', '.join(f'({letter})' for letter in offered)}"
        raise UserError("the answer is not among the choices", where=where, found=found, hint="correct one of the two")


def _record_id(row: Mapping[str, Any], name: str, number: str, where: str) -> str:
    value = row.get(name)
    if value is None:
        return number
    if isinstance(value, bool) or not isinstance(value, str | int) or not str(value).strip():
        raise UserError(f"`{name}` must be text or a whole number", where=where, found=json.dumps(value, default=str))
    return str(value).strip()


def _optional_text(row: Mapping[str, Any], name: str, where: str) -> str | None:
    return None if row.get(name) in (None, "") else set_files.require_text(row, name, where=where).strip()


def _read_split(row: Mapping[str, Any], name: str, where: str) -> Split | None:
    value = row.get(name)
    if value in (None, ""):
        return None
    for part in get_args(Split):
        if value == part:
            return part
    raise UserError(
        f"`{name}` must be one of train, validation, test", where=where, found=json.dumps(value, default=str)
    )
