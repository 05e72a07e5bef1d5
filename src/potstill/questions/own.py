"""Your own questions: a file with a question and its answer in each record, in any form that `files.rows` reads.

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
from pathlib import Path
from typing import Any, Final, get_args

from potstill import answers
from potstill.errors import UserError
from potstill.questions import checks, golds, reading
from potstill.questions.raw import Raw
from potstill.records import Question, Split

ABSENT: Final = "add it, or say in the recipe's sets.NAME.fields what your file calls it"
FIELDS: Final = ("question", "answer", "id", "rationale", "task", "split", "choices")

Fields = Mapping[str, str | Mapping[str, Any]]


def read(name: str, paths: Sequence[Path], fields: Fields | None, task: str | None) -> list[Raw]:
    """ids `<name>/<id>`, or `<name>/<line>` (from 1) where a record has none; of several files `<name>/<file>-<line>`.

    task  for every record that names none itself
    """
    columns = _columns(fields or {})
    many = len(paths) > 1
    return [
        _record(name, row, where, f"{file}-{number}" if many else str(number), columns, task)
        for file, path in enumerate(paths, 1)
        for number, where, row in reading.rows(path)
    ]


def _record(
    name: str,
    row: Mapping[str, Any],
    where: str,
    number: str,
    columns: Mapping[str, Mapping[str, Any]],
    task: str | None,
) -> Raw:
    names = {ours: str(column["column"]) for ours, column in columns.items()}
    stated = _task(row, names["task"], where)
    form = _form(stated or task)
    value = reading.required(row, names["answer"], where=where, do=ABSENT, null=form == "json")
    question = reading.field(row, names["question"], where=where, do=ABSENT).strip()
    after, values = columns["answer"].get("after"), columns["answer"].get("values") or {}
    gold = None
    choices = _choices(row, names["choices"], question, form, where, wanted=names["choices"] != "choices")
    if choices is not None:
        form, question = "choice", golds.offered(question, choices)
        if not isinstance(value, bool) and isinstance(value, int | float | str):
            value = value if after is None else golds.read(value, where, form=form, after=after).text
            gold = golds.Gold(golds.choice(values.get(str(value), value), choices, where))
    if gold is None:
        asked: dict[str, Any] = {"form": form, "question": question, "after": after, "values": values}
        gold = golds.read(value, where, name=names["answer"], **asked)
    graded = stated or task or ("choice" if choices is not None else answers.form(gold.text))
    _check_choice(question, gold.text, graded, where)
    together = names["rationale"] == names["answer"]
    return Raw(
        id=f"{name}/{_identity(row, names['id'], number, where)}",
        text=question,
        gold=gold.text,
        task=graded,
        where=where,
        rationale=gold.rationale if together else _optional(row, names["rationale"], where) or gold.rationale,
        split=_split(row, names["split"], where),
    )


def pairs(file: Path) -> list[Question]:
    """The rows of a file with `prompt` and `answer`, taught as they are and graded by nobody; ids `replay:<line>`."""
    do = 'a row to replay is {"prompt": ..., "answer": ...}'
    found = []
    for number, where, row in reading.rows(file):
        asked, answer = (
            checks.text(reading.field(row, name, where=where, do=do), name, where) for name in ("prompt", "answer")
        )
        found.append(Question(f"replay:{number}", asked, answer, set="replay", split="train", task="text"))
    if not found:
        raise UserError("no rows to replay", where=file, do=do)
    return found


def graders(tasks: Iterable[str | None]) -> dict[str, str]:
    """Digest of the file of every function that grades, by its name: what was graded by another is graded again."""
    names = {answers.functions.named(task) for task in tasks if task is not None}
    return {f"function {name}": answers.functions.digest(name) for name in sorted(filter(None, names))}


def _columns(fields: Fields) -> dict[str, Mapping[str, Any]]:
    """Our name -> `column`, and for an answer `after` and `values`."""
    for ours in fields:
        if ours not in FIELDS:
            raise UserError(f"no field of a question: {ours!r}", where="fields", do=f"one of {', '.join(FIELDS)}")
    named = {ours: fields.get(ours, ours) for ours in FIELDS}
    return {ours: {"column": column} if isinstance(column, str) else column for ours, column in named.items()}


def _form(task: str | None) -> str | None:
    """How a task says that it is graded: the last part of its name, `function`, or nothing."""
    if task is None:
        return None
    return "function" if answers.functions.named(task) is not None else task.rpartition("/")[2]


def _choices(
    row: Mapping[str, Any], name: str, question: str, form: str | None, where: str, *, wanted: bool
) -> list[tuple[str, str]] | None:
    """The options of a record, if it has some in a field of their own and its question does not offer them itself.

    wanted  whether the recipe names the field: then it must hold options
    """
    if name not in row or form not in (None, "choice"):
        if wanted:
            what = f"the field `{name}` is missing" if name not in row else f"options of a question graded as {form}"
            raise UserError(
                what, where=where, found=", ".join(row), do="correct `choices` in the recipe's sets.NAME.fields"
            )
        return None
    found = golds.options(row[name])
    if found is None and wanted:
        do = 'write {"choices": ["a bat", "an ant"]}, or {"choices": {"text": [...], "label": [...]}}; at most 26'
        shown = reading.short(json.dumps(row[name], default=str))
        raise UserError(f"`{name}` must be a list of options", where=where, found=shown, do=do)
    return None if found is None or _letters(question) else found


def _letters(question: str) -> list[str]:
    """The letters that a question offers in brackets: in order, each once, or none."""
    offered = re.findall(r"\(([A-Z])\)", question)
    return offered if len(offered) > 1 and offered == list(string.ascii_uppercase[: len(offered)]) else []


def _task(row: Mapping[str, Any], name: str, where: str) -> str | None:
    stated = _optional(row, name, where)
    if stated is not None and answers.functions.named(stated) is not None:
        do = "name the function in the recipe (sets.NAME.task), which is yours"
        raise UserError("a record cannot name a function to run", where=where, found=stated, do=do)
    return stated


def _check_choice(question: str, gold: str, task: str, where: str) -> None:
    """Raises UserError where the question offers (A), (B), ..., in order and each once, and not the answer."""
    offered = _letters(question)
    if offered and task.rpartition("/")[2] == "choice" and gold.strip("().") not in offered:
        found = f"{gold!r}; the question offers {', '.join(f'({letter})' for letter in offered)}"
        raise UserError("the answer is not among the choices", where=where, found=found, do="correct one of the two")


def _identity(row: Mapping[str, Any], name: str, number: str, where: str) -> str:
    value = row.get(name)
    if value is None:
        return number
    if isinstance(value, bool) or not isinstance(value, str | int) or not str(value).strip():
        raise UserError(f"`{name}` must be text or a whole number", where=where, found=json.dumps(value, default=str))
    return str(value).strip()


def _optional(row: Mapping[str, Any], name: str, where: str) -> str | None:
    return None if row.get(name) in (None, "") else reading.field(row, name, where=where).strip()


def _split(row: Mapping[str, Any], name: str, where: str) -> Split | None:
    value = row.get(name)
    if value in (None, ""):
        return None
    for part in get_args(Split):
        if value == part:
            return part
    raise UserError(
        f"`{name}` must be one of train, validation, test", where=where, found=json.dumps(value, default=str)
    )
