"""ASDiv (Miao et al. 2020): 2,305 problems of elementary school, with answers of many kinds.

>>> from potstill import grading
>>> golds = ["9 (apples)", "5:6", "3:30 p.m.", "8; 40", "Mrs. Hilt", "Yes", "1/6"]
>>> [grading.infer_answer_type(gold, "asdiv") for gold in golds]
['number', 'ratio', 'time', 'several', 'text', 'boolean', 'number']
"""

from __future__ import annotations

from pathlib import Path
from typing import Final
from xml.etree import ElementTree

from potstill.data import set_files
from potstill.data.set_files import RawQuestion
from potstill.errors import UserError

FILE: Final = "asdiv/ASDiv.xml"


def read_asdiv(data: Path) -> list[RawQuestion]:
    """ids `asdiv/nluds-0001`: the set's own."""
    path = data / FILE
    try:
        problems = list(ElementTree.fromstring(set_files.read_text(path)).iter("Problem"))
    except ElementTree.ParseError as error:
        raise UserError(f"not XML: {error}", where=path, hint="get the file anew, it may be torn") from None
    return [_parse_problem(problem, f"{path} record {index}") for index, problem in enumerate(problems)]


def _parse_problem(problem: ElementTree.Element, where: str) -> RawQuestion:
    name = problem.get("ID")
    if not name:
        raise UserError("a problem without ID", where=where)
    where = f"{where} ({name})"
    body, question, gold = (_child_text(problem, tag, where) for tag in ("Body", "Question", "Answer"))
    return RawQuestion(id=f"asdiv/{name}", text=f"{body} {question}", gold=gold, task="asdiv", where=where)


def _child_text(problem: ElementTree.Element, tag: str, where: str) -> str:
    value = (problem.findtext(tag) or "").strip()
    if not value:
        raise UserError(f"a problem without {tag}", where=where)
    return value
