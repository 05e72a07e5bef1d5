"""SVAMP (Patel et al. 2021): 1,000 problems made by varying the words of simpler ones.

    >>> join_sentences("He has 3 apples.", "How many are left?"), join_sentences("If he has 3 apples", "How many are left?")
    ('He has 3 apples. How many are left?', 'If he has 3 apples. How many are left?')

642 of the 1,000 bodies end in a period already: a second one would make ".." of it (and one body ends in ".." itself).
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from potstill.data import set_files
from potstill.data.set_files import RawQuestion

FILE: Final = "svamp/SVAMP.json"


def read_svamp(data: Path) -> list[RawQuestion]:
    """ids `svamp/chal-1`: the set's own."""
    path = data / FILE
    questions = []
    for index, row in enumerate(set_files.require_list(set_files.read_json(path), where=path)):
        where = f"{path} record {index}"
        name = set_files.require_text(row, "ID", where=where)
        text = join_sentences(
            set_files.require_text(row, "Body", where=where), set_files.require_text(row, "Question", where=where)
        )
        gold = set_files.require_number(row, "Answer", where=where)
        questions.append(RawQuestion(id=f"svamp/{name}", text=text, gold=gold, task="svamp", where=f"{where} ({name})"))
    return questions


def join_sentences(body: str, question: str) -> str:
    """Body and question as one text, with one period between them."""
    body, question = body.strip().rstrip("."), question.strip()
    return f"{body}{'' if body.endswith(('?', '!')) else '.'} {question}"
