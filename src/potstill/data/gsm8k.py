"""GSM8K (Cobbe et al. 2021): 7,473 training and 1,319 test problems with solutions in words.

    >>> parse_solution("Half of 48 is 48/2 = <<48/2=24>>24.\\n#### 24", where="train.jsonl line 1")
    ('Half of 48 is 48/2 = 24.', '24')

The official training file is `train`; the official test file is divided into validation and test.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

from potstill.data import set_files
from potstill.data.set_files import BuiltinSet, RawQuestion
from potstill.errors import UserError

FOLDER: Final = "gsm8k"
_CALCULATOR_MARK = re.compile(r"<<[^<>\n]*>>")


def read_gsm8k(data_dir: Path) -> list[RawQuestion]:
    """The questions; ids `gsm8k/train/0` and `gsm8k/test/0` count the lines of each file from 0."""
    return [
        question for part in ("train", "test") for question in _read_file(data_dir / FOLDER / f"{part}.jsonl", part)
    ]


SET: Final = BuiltinSet("gsm8k", read_gsm8k, paper_validation=500)


def parse_solution(answer: str, *, where: object) -> tuple[str, str]:
    """The solution without its calculator marks, and the gold answer after `#### `."""
    rationale, mark, gold = answer.rpartition("#### ")
    if not mark or not gold.strip():
        raise UserError("the answer has no `#### `", code="E-data-missing-gold", where=where, found=answer[-60:])
    return _CALCULATOR_MARK.sub("", rationale).strip(), gold.strip()


def _read_file(path: Path, part: str) -> list[RawQuestion]:
    questions = []
    for index, (_, where, row) in enumerate(set_files.read_rows(path)):
        rationale, gold = parse_solution(set_files.require_text(row, "answer", where=where), where=where)
        questions.append(
            RawQuestion(
                id=f"gsm8k/{part}/{index}",
                text=set_files.require_text(row, "question", where=where).strip(),
                gold=gold,
                task="gsm8k",
                where=where,
                rationale=rationale,
                split="train" if part == "train" else None,
            )
        )
    return questions
