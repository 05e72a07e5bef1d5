"""Your own questions: a JSONL (or Parquet) file with a question and its answer on each line.

    {"question": "How many?", "answer": 72}
    {"id": "b7", "question": "Which?", "answer": "(A)", "task": "choice", "split": "test", "rationale": "..."}

A choice is answered by its letter, "(A)" or "A", and has to be among those that the question offers.

`fields` says what your file calls them: {"question": "problem", "answer": "solution"}. A task names a way of grading
(`number`, `choice`, `text`, `regex`, `json`, ...) or a name of yours before it (`sorting/list`), which groups the
scores; without one the form of the answer decides. A function of yours (`function: module:name`) is named in the
recipe, never by a record, since it is run. With `json` the answer may be any value.
"""

from __future__ import annotations

import json
import re
import string
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final, get_args

from potstill import answers
from potstill.errors import UserError
from potstill.questions import reading
from potstill.questions.raw import Raw
from potstill.records import Question, Split

ABSENT: Final = "add it, or say in the recipe's sets.NAME.fields what your file calls it"
FIELDS: Final = ("question", "answer", "id", "rationale", "task", "split")


def read(name: str, file: Path, fields: Mapping[str, str] | None, task: str | None) -> list[Raw]:
    """ids `<name>/<id>`, or `<name>/<line number>` (from 1) where a record has none.

    task  for every record that names none itself
    """
    names = _names(fields or {})
    questions = []
    for number, row in reading.rows(file):
        where = f"{file} line {number}"
        stated = _task(row, names["task"], where)
        gold = _gold(row, names["answer"], where, as_json=(stated or task or "").rpartition("/")[2] == "json")
        question = reading.field(row, names["question"], where=where, do=ABSENT).strip()
        graded = stated or task or answers.form(gold)
        _check_choice(question, gold, graded, where)
        questions.append(
            Raw(
                id=f"{name}/{_identity(row, names['id'], number, where)}",
                text=question,
                gold=gold,
                task=graded,
                where=where,
                rationale=_optional(row, names["rationale"], where),
                split=_split(row, names["split"], where),
            )
        )
    return questions


def pairs(file: Path) -> list[Question]:
    """The rows of a file with `prompt` and `answer`, taught as they are and graded by nobody; ids `replay:<line>`."""
    do = 'a row to replay is {"prompt": ..., "answer": ...}'
    found = []
    for number, row in reading.rows(file):
        asked, answer = (
            reading.field(row, name, where=f"{file} line {number}", do=do) for name in ("prompt", "answer")
        )
        found.append(Question(f"replay:{number}", asked, answer, set="replay", split="train", task="text"))
    if not found:
        raise UserError("no rows to replay", where=file, do=do)
    return found


def graders(tasks: Iterable[str | None]) -> dict[str, str]:
    """Digest of the file of every function that grades, by its name: what was graded by another is graded again."""
    names = {answers.functions.named(task) for task in tasks if task is not None}
    return {f"function {name}": answers.functions.digest(name) for name in sorted(filter(None, names))}


def _names(fields: Mapping[str, str]) -> dict[str, str]:
    for ours in fields:
        if ours not in FIELDS:
            raise UserError(f"no field of a question: {ours!r}", where="fields", do=f"one of {', '.join(FIELDS)}")
    return {ours: fields.get(ours, ours) for ours in FIELDS}


def _task(row: Mapping[str, Any], name: str, where: str) -> str | None:
    stated = _optional(row, name, where)
    if stated is not None and answers.functions.named(stated) is not None:
        do = "name the function in the recipe (sets.NAME.task), which is yours"
        raise UserError("a record cannot name a function to run", where=where, found=stated, do=do)
    return stated


def _gold(row: Mapping[str, Any], name: str, where: str, as_json: bool) -> str:
    if as_json and name in row and not isinstance(row[name], str):
        return json.dumps(row[name], ensure_ascii=False)
    if isinstance(reading.required(row, name, where=where, do=ABSENT), str):
        return reading.field(row, name, where=where).strip()
    return reading.number(row, name, where=where)


def _check_choice(question: str, gold: str, task: str, where: str) -> None:
    """Raises UserError where the question offers (A), (B), ..., in order and each once, and not the answer."""
    offered = re.findall(r"\(([A-Z])\)", question)
    if len(offered) < 2 or offered != list(string.ascii_uppercase[: len(offered)]):
        return
    if task.rpartition("/")[2] == "choice" and gold.strip("().") not in offered:
        found = f"{gold!r}; the question offers {', '.join(f'({letter})' for letter in offered)}"
        raise UserError("the answer is not among the choices", where=where, found=found, do="correct one of the two")


def _identity(row: Mapping[str, Any], name: str, number: int, where: str) -> str:
    value = row.get(name)
    if value is None:
        return str(number)
    if isinstance(value, bool) or not isinstance(value, str | int) or not str(value).strip():
        raise UserError(f"`{name}` must be text or a whole number", where=where, found=json.dumps(value))
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
    raise UserError(f"`{name}` must be one of train, validation, test", where=where, found=json.dumps(value))
