"""ASDiv (Miao et al. 2020): 2,305 problems of elementary school, with answers of many types.

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
from potstill.data.set_files import BuiltinSet, RawQuestion
from potstill.errors import UserError

FILE: Final = "asdiv/ASDiv.xml"


def read_asdiv(data_dir: Path) -> list[RawQuestion]:
    """The questions; ids `asdiv/nluds-0001` are the set's own."""
    path = data_dir / FILE
    try:
        problems = list(ElementTree.fromstring(set_files.read_text(path)).iter("Problem"))
    except ElementTree.ParseError as error:
        raise UserError(
            f"the file is not XML: {error}",
            code="E-data-xml",
            where=path,
            hint="get the file again; it may be incomplete",
        ) from None
    return [_parse_problem(problem, f"{path} record {index}") for index, problem in enumerate(problems)]


SET: Final = BuiltinSet("asdiv", read_asdiv, paper_validation=500)


def _parse_problem(problem: ElementTree.Element, where: str) -> RawQuestion:
    name = problem.get("ID")
    if not name:
        raise UserError("the problem has no ID", code="E-data-missing-field", where=where)
    where = f"{where} ({name})"
    body, question, gold = (_child_text(problem, tag, where) for tag in ("Body", "Question", "Answer"))
    return RawQuestion(id=f"asdiv/{name}", text=f"{body} {question}", gold=gold, task="asdiv", where=where)


def _child_text(problem: ElementTree.Element, tag: str, where: str) -> str:
    value = (problem.findtext(tag) or "").strip()
    if not value:
        raise UserError(f"the problem has no {tag}", code="E-data-missing-field", where=where)
    return value
