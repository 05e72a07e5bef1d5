"""SVAMP (Patel et al. 2021): 1,000 problems made by varying the words of simpler ones.

    >>> join_sentences("He has 3 apples.", "How many are left?")
    'He has 3 apples. How many are left?'
    >>> join_sentences("If he has 3 apples", "How many are left?")
    'If he has 3 apples. How many are left?'

642 of the 1,000 bodies end with a period already, and one ends with "..".
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from potstill.data import set_files
from potstill.data.set_files import BuiltinSet, RawQuestion

FILE: Final = "svamp/SVAMP.json"


def read_svamp(data_dir: Path) -> list[RawQuestion]:
    """The questions; ids `svamp/chal-1` are the set's own."""
    path = data_dir / FILE
    questions = []
    for index, row in enumerate(set_files.require_list(set_files.read_json(path), where=path)):
        where = f"{path} record {index}"
        name, body, question = (set_files.require_text(row, key, where=where) for key in ("ID", "Body", "Question"))
        gold = set_files.require_number(row, "Answer", where=where)
        text = join_sentences(body, question)
        questions.append(RawQuestion(f"svamp/{name}", text, gold, task="svamp", where=f"{where} ({name})"))
    return questions


SET: Final = BuiltinSet("svamp", read_svamp, paper_validation=500)


def join_sentences(body: str, question: str) -> str:
    """Body and question as one text, with one period between them."""
    body, question = body.strip().rstrip("."), question.strip()
    return f"{body}{'' if body.endswith(('?', '!')) else '.'} {question}"
