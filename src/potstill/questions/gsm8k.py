"""GSM8K (Cobbe et al. 2021): 7,473 training and 1,319 test problems with their solutions in words.

    >>> rationale_and_gold("Half of 48 is 48/2 = <<48/2=24>>24.\\n#### 24", where="train.jsonl line 1")
    ('Half of 48 is 48/2 = 24.', '24')

The official training file is `train`, the official test file is divided into validation and test.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

from potstill.errors import UserError
from potstill.questions import reading
from potstill.questions.raw import Raw

FOLDER: Final = "gsm8k"
_MARK = re.compile(r"<<[^<>\n]*>>")


def read(data: Path) -> list[Raw]:
    """ids `gsm8k/train/0`, `gsm8k/test/0`: counted from 0 in the order of the file."""
    return [raw for part in ("train", "test") for raw in _read(data / FOLDER / f"{part}.jsonl", part)]


def rationale_and_gold(answer: str, *, where: object) -> tuple[str, str]:
    """The solution without its calculator marks, and what stands after `#### `."""
    rationale, mark, gold = answer.rpartition("#### ")
    if not mark or not gold.strip():
        raise UserError("the answer has no `#### `", where=where, found=answer[-60:])
    return _MARK.sub("", rationale).strip(), gold.strip()


def _read(path: Path, part: str) -> list[Raw]:
    questions = []
    for index, (_, where, row) in enumerate(reading.rows(path)):
        rationale, gold = rationale_and_gold(reading.field(row, "answer", where=where), where=where)
        text = reading.field(row, "question", where=where).strip()
        questions.append(
            Raw(
                id=f"gsm8k/{part}/{index}",
                text=text,
                gold=gold,
                task="gsm8k",
                where=where,
                rationale=rationale,
                split="train" if part == "train" else None,
            )
        )
    return questions
