"""The paper's own rules, with their faults, so that its tables can be recomputed next to ours.

>>> target = gold_number("-5 (degrees)")
>>> same_number(target, last_number("It is 5")), last_number("It is 7,200").text
(True, '200')
>>> answer_contains("So the answer is invalid.", "valid"), answer_contains("valid", "valid")
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
_MARK: Final = "the answer is"


@dataclass(frozen=True, slots=True)
class Last:
    """The last number of a text as it is written, and its value; None where a gold answer has none."""

    value: float | None
    text: str


def gold_number(gold: str) -> Last | None:
    """The last number of a gold answer. A gold answer without one is kept as it is."""
    return last_number(gold) or (Last(None, " ".join(gold.split())) if gold.strip() else None)


def last_number(text: str, target: Last | None = None) -> Last | None:
    found = _NUMBER.findall(text)
    return Last(float(found[-1]), found[-1]) if found else None


def same_number(gold: Last, found: Last) -> bool:
    return gold.value is None or gold.value == found.value


def show_number(number: Last) -> str:
    return number.text[:200]


def gold_text(gold: str) -> str | None:
    return gold or None


def answer_contains(text: str, target: str) -> str | None:
    """The gold answer if it stands between the first "the answer is" and the next; else what stands there."""
    parts = text.split(_MARK, 2)
    return None if len(parts) < 2 else text_contains(parts[1], target)


def text_contains(text: str, target: str) -> str | None:
    """The gold answer if it stands anywhere in the text, else the text; None for no text."""
    return target if target in text else (text.strip()[:200] or None)
