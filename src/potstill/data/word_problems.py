"""Sets of arithmetic word problems: GSM8K, MultiArith, ASDiv and SVAMP.

>>> parse_solution("Half of 48 is 48/2 = <<48/2=24>>24.\\n#### 24", where="train.jsonl line 1")
('Half of 48 is 48/2 = 24.', '24')
>>> parse_problem({"sQuestion": " How many? ", "lSolutions": [39.0]}, where="record 0")
('How many?', '39')
>>> join_sentences("He has 3 apples.", "How many?"), join_sentences("If he has 3 apples", "How many?")
('He has 3 apples. How many?', 'If he has 3 apples. How many?')
>>> from potstill import grading
>>> golds = ["9 (apples)", "5:6", "3:30 p.m.", "8; 40", "Mrs. Hilt", "Yes", "1/6"]
>>> [grading.infer_answer_type(gold, "asdiv") for gold in golds]
['number', 'ratio', 'time', 'several', 'text', 'boolean', 'number']
"""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any, Final
from xml.etree import ElementTree

from potstill.data.formulas import solution_from_formula
from potstill.data.set_files import (
    BuiltinSet,
    RawQuestion,
    number_to_text,
    read_json,
    read_json_records,
    read_rows,
    read_text,
    require_field,
    require_list,
    require_number,
    require_text,
)
from potstill.errors import UserError

CALCULATOR_MARK: Final = re.compile(r"<<[^<>\n]*>>")


# GSM8K (Cobbe et al. 2021): 7,473 training and 1,319 test problems with solutions in words. The official training file
# is `train`; the official test file is divided into validation and test.


def read_gsm8k(data_dir: Path) -> list[RawQuestion]:
    """The questions of GSM8K. Ids such as `gsm8k/train/0` and `gsm8k/test/0` count the lines of each file from 0."""
    questions = []
    for part in ("train", "test"):
        for index, (_, where, row) in enumerate(read_rows(data_dir / "gsm8k" / f"{part}.jsonl")):
            rationale, gold = parse_solution(require_text(row, "answer", where=where), where=where)
            text, split = require_text(row, "question", where=where).strip(), "train" if part == "train" else None
            questions.append(RawQuestion(f"gsm8k/{part}/{index}", text, gold, "gsm8k", where, rationale, split))
    return questions


def parse_solution(answer: str, *, where: object) -> tuple[str, str]:
    """The solution without its calculator marks, and the gold answer after `#### `."""
    rationale, mark, gold = answer.rpartition("#### ")
    if not mark or not gold.strip():
        raise UserError("the answer has no `#### `", code="E-data-missing-gold", where=where, found=answer[-60:])
    return CALCULATOR_MARK.sub("", rationale).strip(), gold.strip()


# MultiArith (Roy and Roth 2015), as distributed with zero_shot_cot: 600 problems with several steps.

INDEX_FILE: Final = "golden/authors_validation_indices.json"


def read_multiarith(data_dir: Path) -> list[RawQuestion]:
    """The questions of MultiArith. Ids such as `multiarith/0` count the records of the file from 0."""
    records = read_json_records(data_dir / "multiarith" / "MultiArith.json")
    return [
        RawQuestion(f"multiarith/{index}", *parse_problem(row, where=where), task="multiarith", where=where)
        for index, (where, row) in enumerate(records)
    ]


def parse_problem(row: Any, *, where: object) -> tuple[str, str]:
    """The text and gold answer of a record."""
    solutions = require_list(require_field(row, "lSolutions", where=where), where=f"{where}, lSolutions")
    if len(solutions) != 1:
        raise UserError(
            "`lSolutions` must contain one number", code="E-data-missing-gold", where=where, found=solutions
        )
    gold = number_to_text(solutions[0], "lSolutions", where=where)
    return require_text(row, "sQuestion", where=where).strip(), gold


def assign_authors_splits(questions: list[RawQuestion], data_dir: Path) -> list[RawQuestion]:
    """The questions with the splits of the paper's authors; unchanged if the data folder has no file of their indices.

    Raises UserError if the file does not contain such indices.
    """
    path = data_dir / INDEX_FILE
    if not path.exists():
        return questions
    values = require_field(read_json(path), "multiarith_dev200", where=path)
    indices = require_list(values, where=f"{path}, multiarith_dev200")
    valid = all(type(index) is int and 0 <= index < len(questions) for index in indices)
    if not valid or len(set(indices)) != len(indices):
        hint = f"write different whole numbers from 0 to {len(questions) - 1}"
        what = "the file does not contain indices of MultiArith"
        raise UserError(what, code="E-data-split-file", where=path, found=indices[:5], hint=hint)
    validation = set(indices)
    return [replace(raw, split="validation" if i in validation else "test") for i, raw in enumerate(questions)]


# ASDiv (Miao et al. 2020): 2,305 problems of elementary school, with answers of many types.


def read_asdiv(data_dir: Path) -> list[RawQuestion]:
    """The questions of ASDiv. Ids such as `asdiv/nluds-0001` contain the ids in the file."""
    path = data_dir / "asdiv" / "ASDiv.xml"
    try:
        problems = list(ElementTree.fromstring(read_text(path)).iter("Problem"))
    except ElementTree.ParseError as error:
        hint = "get the file again; it may be incomplete"
        raise UserError(f"the file is not XML: {error}", code="E-data-xml", where=path, hint=hint) from None
    return [_parse_asdiv(problem, f"{path} record {index}") for index, problem in enumerate(problems)]


def _parse_asdiv(problem: ElementTree.Element, where: str) -> RawQuestion:
    name = problem.get("ID")
    where = f"{where} ({name})" if name else where
    fields = {tag: (problem.findtext(tag) or "").strip() for tag in ("Body", "Question", "Answer")}
    missing = next((tag for tag, value in {"ID": name, **fields}.items() if not value), None)
    if missing:
        raise UserError(f"the problem has no {missing}", code="E-data-missing-field", where=where)
    text, rationale = f"{fields['Body']} {fields['Question']}", solution_from_formula(problem.findtext("Formula") or "")
    return RawQuestion(f"asdiv/{name}", text, fields["Answer"], "asdiv", where, rationale=rationale)


# SVAMP (Patel et al. 2021): 1,000 problems made by varying the words of simpler problems.


def read_svamp(data_dir: Path) -> list[RawQuestion]:
    """The questions of SVAMP. Ids such as `svamp/chal-1` contain the ids in the file."""
    questions = []
    for where, row in read_json_records(data_dir / "svamp" / "SVAMP.json"):
        name, body, question = (require_text(row, key, where=where) for key in ("ID", "Body", "Question"))
        gold = require_number(row, "Answer", where=where)
        questions.append(
            RawQuestion(f"svamp/{name}", join_sentences(body, question), gold, "svamp", f"{where} ({name})")
        )
    return questions


def join_sentences(body: str, question: str) -> str:
    """Body and question as one text, with one period between them.

    642 of the 1,000 bodies already end with a period, and one ends with "..".
    """
    body, question = body.strip().rstrip("."), question.strip()
    return f"{body}{'' if body.endswith(('?', '!')) else '.'} {question}"


GSM8K: Final = BuiltinSet(
    "gsm8k",
    read_gsm8k,
    paper_validation=500,
    source="https://github.com/openai/grade-school-math",
    licence="mit",
    hub_id="openai/gsm8k",
)
MULTIARITH: Final = BuiltinSet(
    "multiarith",
    read_multiarith,
    paper_validation=200,
    split_file=INDEX_FILE,
    apply_split_file=assign_authors_splits,
    source="https://github.com/kojima-takeshi188/zero_shot_cot",
)
ASDIV: Final = BuiltinSet(
    "asdiv",
    read_asdiv,
    paper_validation=500,
    source="https://github.com/chaochun/nlu-asdiv-dataset",
    licence="cc-by-nc-4.0",
)
SVAMP: Final = BuiltinSet(
    "svamp", read_svamp, paper_validation=500, source="https://github.com/arkilpatel/SVAMP", licence="mit"
)
