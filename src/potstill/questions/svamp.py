"""SVAMP (Patel et al. 2021): 1,000 problems made by varying the words of simpler ones.

    >>> join("He has 3 apples.", "How many are left?"), join("If he has 3 apples", "How many are left?")
    ('He has 3 apples. How many are left?', 'If he has 3 apples. How many are left?')

642 of the 1,000 bodies end in a period already: a second one would make ".." of it (and one body ends in ".." itself).
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from potstill.questions import reading
from potstill.questions.raw import Raw

FILE: Final = "svamp/SVAMP.json"


def read(data: Path) -> list[Raw]:
    """ids `svamp/chal-1`: the set's own."""
    path = data / FILE
    questions = []
    for index, row in enumerate(reading.listed(reading.document(path), where=path)):
        where = f"{path} record {index}"
        name = reading.field(row, "ID", where=where)
        text = join(reading.field(row, "Body", where=where), reading.field(row, "Question", where=where))
        gold = reading.number(row, "Answer", where=where)
        questions.append(Raw(id=f"svamp/{name}", text=text, gold=gold, task="svamp", where=f"{where} ({name})"))
    return questions


def join(body: str, question: str) -> str:
    """Body and question as one text, with one period between them."""
    body, question = body.strip().rstrip("."), question.strip()
    return f"{body}{'' if body.endswith(('?', '!')) else '.'} {question}"
