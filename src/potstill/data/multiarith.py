"""MultiArith (Roy and Roth 2015), as distributed with zero_shot_cot: 600 problems of several steps.

>>> parse_problem({"sQuestion": " How many? ", "lSolutions": [39.0]}, where="record 0")
('How many?', '39')
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from potstill.data import set_files
from potstill.data.set_files import RawQuestion
from potstill.errors import UserError

FILE: Final = "multiarith/MultiArith.json"
INDEX_FILE: Final = "golden/authors_validation_indices.json"


def read_multiarith(data: Path) -> list[RawQuestion]:
    """ids `multiarith/0`: the place in the file."""
    path = data / FILE
    questions = []
    for index, row in enumerate(set_files.require_list(set_files.read_json(path), where=path)):
        where = f"{path} record {index}"
        text, gold = parse_problem(row, where=where)
        questions.append(RawQuestion(id=f"multiarith/{index}", text=text, gold=gold, task="multiarith", where=where))
    return questions


def assign_authors_splits(raws: Sequence[RawQuestion], data: Path) -> list[RawQuestion]:
    """The questions with the split of the paper's authors, where the folder has their file of indices; else as they
    are. Raises UserError for a file that is none."""
    path = data / INDEX_FILE
    if not path.exists():
        return list(raws)
    row = set_files.read_json(path)
    indices = set_files.require_list(
        set_files.require_field(row, "multiarith_dev200", where=path), where=f"{path}, multiarith_dev200"
    )
    if not all(type(index) is int and 0 <= index < len(raws) for index in indices) or len(set(indices)) != len(indices):
        hint = f"each index must be a whole number from 0 to {len(raws) - 1} and stand once"
        raise UserError("not indices of MultiArith", where=path, found=indices[:5], hint=hint)
    held = set(indices)
    return [replace(raw, split="validation" if index in held else "test") for index, raw in enumerate(raws)]


def parse_problem(row: Any, *, where: object) -> tuple[str, str]:
    """Text and gold answer of a record."""
    solutions = set_files.require_list(
        set_files.require_field(row, "lSolutions", where=where), where=f"{where}, lSolutions"
    )
    if len(solutions) != 1:
        raise UserError("`lSolutions` must hold one number", where=where, found=solutions)
    gold = set_files.number_to_text(solutions[0], "lSolutions", where=where)
    return set_files.require_text(row, "sQuestion", where=where).strip(), gold
