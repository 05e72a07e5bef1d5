"""Grading of GSM-Plus (Li et al. 2024). An eighth of its questions lack a condition and have the gold answer "None".

    >>> grade_gsm_plus("5 - 2 = 3. The answer is 3.", "3"), grade_gsm_plus("I assume 4 cars. The answer is 4.", "None")
    ((True, '3'), (False, '4'))
    >>> grade_gsm_plus("We are not told how many cars there are. The answer is None.", "None")
    (True, 'None')
    >>> grade_gsm_plus("She has some cars.", "None") is None
    True

For these questions, a number is wrong; "None" is right, and so is a last statement that the question cannot be answered.
The other gold answers are numbers, and are graded as such.
"""

from __future__ import annotations

import re
from typing import Final

from potstill.grading import grade, markers

UNANSWERABLE: Final = "None"
_MAX_CHARS: Final = 300  # the statement must be within this number of characters at the end of a text
_NOT: Final = r"(?:(?:do|does|can|could|is|are|was|were)(?:\s?not|n?['\u2019]t)|unable\sto|impossible\sto|no\sway\sto)"
# A last sentence with such a statement may contain numbers of the question: "We don't know how old she is in 10 years."
_NOT_KNOWN: Final = re.compile(
    rf"\b{_NOT}\s(?:be\s|been\s)?(?:know|determin|say|tell|told|find|found|calculat|comput|answer|solv|figur|given|stated"
    r"|specified|provided|mentioned|enough|sufficient|possible)",
    re.IGNORECASE,
)
_STATEMENT: Final = re.compile(
    rf"{_NOT_KNOWN.pattern}|\bnone\b|\bunable\b|\bimpossible\b|\bun(?:known|clear|determined|answerable|specified)\b"
    r"|\bin(?:sufficient|complete|determinate)\b|\bmissing\b|\bnot\s(?:given|known|enough|stated|specified|provided)\b"
    r"|\b(?:no|without)\s(?:\w+\s)?information\b|\bno\s(?:unique\s|definite\s)?(?:answer|solution)\b",
    re.IGNORECASE,
)
_SENTENCE_END: Final = re.compile(r"(?<=[.!?])\s+|\n")


def grade_gsm_plus(text: str, gold: str) -> tuple[bool, str] | None:
    """Whether a text has the right answer to a question of GSM-Plus, and its answer; None without an answer."""
    if gold.strip() != UNANSWERABLE:
        verdict = grade(text, gold)
        return None if verdict.answer is None else (verdict.grade == "right", verdict.answer)
    text = markers.cut_at_next_turn(markers.cut_at_next_question(text)).strip()
    end = text[-_MAX_CHARS:]
    if _NOT_KNOWN.search(_SENTENCE_END.split(end)[-1]):
        return True, UNANSWERABLE
    verdict = grade(text, "0", "number")
    if verdict.answer is not None:
        return False, verdict.answer
    return (True, UNANSWERABLE) if _STATEMENT.search(end) else None
