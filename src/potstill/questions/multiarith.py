"""MultiArith (Roy and Roth 2015), as distributed with zero_shot_cot: 600 problems of several steps.

>>> question({"sQuestion": " How many? ", "lSolutions": [39.0]}, where="record 0")
('How many?', '39')
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from potstill.errors import UserError
from potstill.questions import reading
from potstill.questions.raw import Raw

FILE: Final = "multiarith/MultiArith.json"
INDICES: Final = "golden/authors_validation_indices.json"


def read(data: Path) -> list[Raw]:
    """ids `multiarith/0`: the place in the file."""
    path = data / FILE
    questions = []
    for index, row in enumerate(reading.listed(reading.document(path), where=path)):
        where = f"{path} record {index}"
        text, gold = question(row, where=where)
        questions.append(Raw(id=f"multiarith/{index}", text=text, gold=gold, task="multiarith", where=where))
    return questions


def placed(raws: Sequence[Raw], data: Path) -> list[Raw]:
    """The questions with the split of the paper's authors, where the folder has their file of indices; else as they
    are. Raises UserError for a file that is none."""
    path = data / INDICES
    if not path.exists():
        return list(raws)
    row = reading.document(path)
    indices = reading.listed(reading.required(row, "multiarith_dev200", where=path), where=f"{path}, multiarith_dev200")
    if not all(type(index) is int and 0 <= index < len(raws) for index in indices) or len(set(indices)) != len(indices):
        do = f"each index must be a whole number from 0 to {len(raws) - 1} and stand once"
        raise UserError("not indices of MultiArith", where=path, found=indices[:5], do=do)
    held = set(indices)
    return [replace(raw, split="validation" if index in held else "test") for index, raw in enumerate(raws)]


def question(row: Any, *, where: object) -> tuple[str, str]:
    """Text and gold answer of a record."""
    solutions = reading.listed(reading.required(row, "lSolutions", where=where), where=f"{where}, lSolutions")
    if len(solutions) != 1:
        raise UserError("`lSolutions` must hold one number", where=where, found=solutions)
    gold = reading.to_number(solutions[0], "lSolutions", where=where)
    return reading.field(row, "sQuestion", where=where).strip(), gold
