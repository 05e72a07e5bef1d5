"""The paper's own rules, with their faults, so that its tables can be recomputed next to ours.

>>> target = parse_gold_number("-5 (degrees)")
>>> is_same_number(target, extract_last_number("It is 5")), extract_last_number("It is 7,200").text
(True, '200')
>>> find_in_answer("So the answer is invalid.", "valid"), find_in_answer("valid", "valid")
('valid', None)

Source: the repository FranxYao/FlanT5-CoT-Specialization, `notebooks/utils.py` (`test_answer`) and `test_bbh.py`
(`parse_ans_general`). Known faults, kept: no commas and no signs; a gold answer without a number counts as right for
every text that has one; on BBH the gold answer may stand anywhere in the text, as part of a word too ("valid" in
"invalid"). These rules know no marks, no thoughts and no end of a text.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

_NUMBER: Final = re.compile(r"\d*\.?\d+")
_ANSWER_IS: Final = "the answer is"


@dataclass(frozen=True, slots=True)
class LastNumber:
    """The last number of a text as it is written, and its value; None where a gold answer has none."""

    value: float | None
    text: str


def parse_gold_number(gold: str) -> LastNumber | None:
    """The last number of a gold answer. A gold answer without one is kept as it is."""
    return extract_last_number(gold) or (LastNumber(None, " ".join(gold.split())) if gold.strip() else None)


def extract_last_number(text: str, target: LastNumber | None = None) -> LastNumber | None:
    found = _NUMBER.findall(text)
    return LastNumber(float(found[-1]), found[-1]) if found else None


def is_same_number(gold: LastNumber, found: LastNumber) -> bool:
    return gold.value is None or gold.value == found.value


def format_number(number: LastNumber) -> str:
    return number.text[:200]


def parse_gold_text(gold: str) -> str | None:
    return gold or None


def find_in_answer(text: str, target: str) -> str | None:
    """The gold answer if it stands between the first "the answer is" and the next; else what stands there."""
    parts = text.split(_ANSWER_IS, 2)
    return None if len(parts) < 2 else find_in_text(parts[1], target)


def find_in_text(text: str, target: str) -> str | None:
    """The gold answer if it stands anywhere in the text, else the text; None for no text."""
    return target if target in text else (text.strip()[:200] or None)
