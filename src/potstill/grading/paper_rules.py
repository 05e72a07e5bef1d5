"""The grading rules of Fu et al. 2023 with their faults, so that the tables of the paper can be recomputed beside ours.

    >>> gold = parse_gold_number("-5 (degrees)")
    >>> is_same_number(gold, extract_last_number("It is 5")), extract_last_number("It is 7,200").text
    (True, '200')
    >>> find_in_answer("So the answer is invalid.", "valid"), find_in_answer("valid", "valid")
    ('valid', None)

Source: the repository FranxYao/FlanT5-CoT-Specialization, `notebooks/utils.py` (`test_answer`) and `test_bbh.py`
(`parse_ans_general`). Their faults are kept: numbers have no commas and no signs; a gold answer without a number makes
every text with a number right; on BBH the gold answer may be anywhere in the text, even inside a word ("valid" in
"invalid"). These rules know no other markers, no reasoning and no truncation.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

_NUMBER: Final = re.compile(r"\d*\.?\d+")
_ANSWER_IS: Final = "the answer is"


@dataclass(frozen=True, slots=True)
class LastNumber:
    """The last number of a text as written, and its value; None if a gold answer has none."""

    value: float | None
    text: str


def parse_gold_number(gold: str) -> LastNumber | None:
    """The last number of a gold answer; the whole gold answer if it has none."""
    return extract_last_number(gold) or (LastNumber(None, " ".join(gold.split())) if gold.strip() else None)


def extract_last_number(text: str, gold: LastNumber | None = None) -> LastNumber | None:
    numbers = _NUMBER.findall(text)
    return LastNumber(float(numbers[-1]), numbers[-1]) if numbers else None


def is_same_number(gold: LastNumber, number: LastNumber) -> bool:
    return gold.value is None or gold.value == number.value


def format_number(number: LastNumber) -> str:
    return number.text[:200]


def parse_gold_text(gold: str) -> str | None:
    return gold or None


def find_in_answer(text: str, gold: str) -> str | None:
    """The gold answer if it is between the first "the answer is" and the next; otherwise the text between them."""
    parts = text.split(_ANSWER_IS, 2)
    return None if len(parts) < 2 else find_in_text(parts[1], gold)


def find_in_text(text: str, gold: str) -> str | None:
    """The gold answer if the text contains it; otherwise the text, or None if it is empty."""
    return gold if gold in text else (text.strip()[:200] or None)
