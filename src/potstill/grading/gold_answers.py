"""Golds: the answer within a gold answer that is a whole solution, or has the dress of an answer.

>>> bare_gold("She has 3+2 = 5 pens.\\n#### 5"), bare_gold("$\\\\boxed{\\\\frac{1}{2}}$"), bare_gold("So it is 5.")
('5', '\\\\frac{1}{2}', 'So it is 5.')
"""

from __future__ import annotations

import re
from typing import Final

from potstill.grading import markers

# Of the others every sign counts, marks among them.
STRIPPED_TYPES: Final = (
    "number", "several", "time", "ratio", "choice", "boolean", "brackets", "list", "text", "math",
)  # fmt: skip
_MARKED = re.compile(r"####|\\boxed|\\fbox|</?(?:final[_ ]?)?answer>|\banswers?\b", re.IGNORECASE)
_WORDS = re.compile(
    r"(?:so|thus|therefore|hence)?,?\s*(?:the\s+)?(?:final\s+|correct\s+)?answer(?:\s+is|\s*:)\s*", re.IGNORECASE
)


def bare_gold(gold: str) -> str:
    """What stands behind the last mark of a gold answer; the gold answer itself where it has none.

    The words "the answer is" are a mark at its beginning or at the beginning of its last line or sentence only.
    """
    if _MARKED.search(gold) is None:
        return gold
    if "####" in gold or "\\boxed" in gold or "\\fbox" in gold or "answer>" in gold.lower():
        spans = markers.find_explicit_spans(gold)
        found = spans[-1].strip() if spans else ""
        return found.split("\n", 1)[0].strip() or gold
    last = re.split(r"\n+|(?<=[.!?])\s+(?=[A-Z])", gold.strip())
    for at in range(len(last) - 1, -1, -1):
        match = _WORDS.match(last[at])
        if match is not None and last[at][match.end() :].strip(" .*$"):
            return last[at][match.end() :].strip()
    return gold
