"""Golds: the answer within a gold answer that is a whole solution, or has the dress of an answer.

>>> bare("She has 3+2 = 5 pens.\\n#### 5"), bare("$\\\\boxed{\\\\frac{1}{2}}$"), bare("So the answer is 5.")
('5', '\\\\frac{1}{2}', '5.')
"""

from __future__ import annotations

import re
from typing import Final

from potstill.answers import marks

# Of the others every sign counts, marks among them.
FORMS: Final = (
    "number", "several", "time", "ratio", "choice", "boolean", "brackets", "list", "text", "math",
)  # fmt: skip
_MARKED = re.compile(r"####|\\boxed|\\fbox|</?(?:final[_ ]?)?answer>|\banswers?\b", re.IGNORECASE)
_WORDS = re.compile(
    r"(?:so|thus|therefore|hence)?,?\s*(?:the\s+)?(?:final\s+|correct\s+)?answer(?:\s+is|\s*:)\s*", re.IGNORECASE
)


def bare(gold: str) -> str:
    """What stands behind the last mark of a gold answer; the gold answer itself where it has none.

    The words "the answer is" are a mark at its beginning or at the beginning of its last line or sentence only.
    """
    if _MARKED.search(gold) is None:
        return gold
    if "####" in gold or "\\boxed" in gold or "\\fbox" in gold or "answer>" in gold.lower():
        spans = marks.strong_spans(gold)
        found = spans[-1].strip() if spans else ""
        return found.split("\n", 1)[0].strip() or gold
    last = re.split(r"\n+|(?<=[.!?])\s+(?=[A-Z])", gold.strip())
    for at in range(len(last) - 1, -1, -1):
        match = _WORDS.match(last[at])
        if match is not None and last[at][match.end() :].strip(" .*$"):
            return last[at][match.end() :].strip()
    return gold
