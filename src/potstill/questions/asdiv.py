"""ASDiv (Miao et al. 2020): 2,305 problems of elementary school, with answers of many kinds.

>>> from potstill import answers
>>> golds = ["9 (apples)", "5:6", "3:30 p.m.", "8; 40", "Mrs. Hilt", "Yes", "1/6"]
>>> [answers.form(gold, "asdiv") for gold in golds]
['number', 'ratio', 'time', 'several', 'text', 'boolean', 'number']
"""

from __future__ import annotations

from pathlib import Path
from typing import Final
from xml.etree import ElementTree

from potstill.errors import UserError
from potstill.questions import reading
from potstill.questions.raw import Raw

FILE: Final = "asdiv/ASDiv.xml"


def read(data: Path) -> list[Raw]:
    """ids `asdiv/nluds-0001`: the set's own."""
    path = data / FILE
    try:
        problems = list(ElementTree.fromstring(reading.text(path)).iter("Problem"))
    except ElementTree.ParseError as error:
        raise UserError(f"not XML: {error}", where=path, do="get the file anew, it may be torn") from None
    return [_question(problem, f"{path} record {index}") for index, problem in enumerate(problems)]


def _question(problem: ElementTree.Element, where: str) -> Raw:
    name = problem.get("ID")
    if not name:
        raise UserError("a problem without ID", where=where)
    where = f"{where} ({name})"
    body, question, gold = (_child(problem, tag, where) for tag in ("Body", "Question", "Answer"))
    return Raw(id=f"asdiv/{name}", text=f"{body} {question}", gold=gold, task="asdiv", where=where)


def _child(problem: ElementTree.Element, tag: str, where: str) -> str:
    value = (problem.findtext(tag) or "").strip()
    if not value:
        raise UserError(f"a problem without {tag}", where=where)
    return value
