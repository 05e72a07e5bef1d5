"""MultiArith (Roy and Roth 2015), as distributed with zero_shot_cot: 600 problems of several steps.

>>> parse_problem({"sQuestion": " How many? ", "lSolutions": [39.0]}, where="record 0")
('How many?', '39')
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from potstill.data import set_files
from potstill.data.set_files import BuiltinSet, RawQuestion
from potstill.errors import UserError

FILE: Final = "multiarith/MultiArith.json"
INDEX_FILE: Final = "golden/authors_validation_indices.json"


def read_multiarith(data_dir: Path) -> list[RawQuestion]:
    """The questions; ids `multiarith/0` count the records of the file from 0."""
    path = data_dir / FILE
    questions = []
    for index, row in enumerate(set_files.require_list(set_files.read_json(path), where=path)):
        where = f"{path} record {index}"
        text, gold = parse_problem(row, where=where)
        questions.append(RawQuestion(id=f"multiarith/{index}", text=text, gold=gold, task="multiarith", where=where))
    return questions


def assign_authors_splits(questions: list[RawQuestion], data_dir: Path) -> list[RawQuestion]:
    """The questions with the splits of the paper's authors; unchanged if the data folder lacks their file of indices.

    Raises UserError for a file that does not hold such indices.
    """
    path = data_dir / INDEX_FILE
    if not path.exists():
        return questions
    values = set_files.require_field(set_files.read_json(path), "multiarith_dev200", where=path)
    indices = set_files.require_list(values, where=f"{path}, multiarith_dev200")
    valid = all(type(index) is int and 0 <= index < len(questions) for index in indices)
    if not valid or len(set(indices)) != len(indices):
        raise UserError(
            "the file does not hold indices of MultiArith",
            code="E-data-split-file",
            where=path,
            found=indices[:5],
            hint=f"write different whole numbers from 0 to {len(questions) - 1}",
        )
    validation = set(indices)
    return [
        replace(question, split="validation" if index in validation else "test")
        for index, question in enumerate(questions)
    ]


SET: Final = BuiltinSet(
    "multiarith",
    read_multiarith,
    paper_validation=200,
    split_file=INDEX_FILE,
    apply_split_file=assign_authors_splits,
)


def parse_problem(row: Any, *, where: object) -> tuple[str, str]:
    """Text and gold answer of a record."""
    values = set_files.require_field(row, "lSolutions", where=where)
    solutions = set_files.require_list(values, where=f"{where}, lSolutions")
    if len(solutions) != 1:
        raise UserError("`lSolutions` must hold one number", code="E-data-missing-gold", where=where, found=solutions)
    gold = set_files.number_to_text(solutions[0], "lSolutions", where=where)
    return set_files.require_text(row, "sQuestion", where=where).strip(), gold
