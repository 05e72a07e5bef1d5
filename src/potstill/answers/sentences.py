"""Sentences: the piece of a text that holds an answer.

>>> sentence(": **Mrs. Hilt**. She has 5 apples."), last_line("First.\\nLast.\\n")
('Mrs. Hilt', 'Last.')
"""

from __future__ import annotations

import re
from typing import Final

_END = re.compile(
    r"\n|(?<!\bMr)(?<!\bMrs)(?<!\bMs)(?<!\bDr)(?<!\bSt)(?<!\bRs)(?<!\bsq)[.!?][\"'*)]{0,3}(?=\s+[A-Z\"'(*#\\$]|\s*$)"
)
WORD = re.compile(r"[ \t]?[^\s{}$.,;]+(?:[.,][0-9]+)*")
DRESSING: Final = " \t\n:=*_\"'`$"


def sentence(text: str) -> str:
    """The first sentence of what follows a mark, its dressing taken off."""
    return first(text.lstrip(DRESSING + ".")).rstrip(DRESSING)


def first(text: str) -> str:
    """The text up to the end of its first sentence or line. The period of Mrs. or sq. ends none."""
    match = _END.search(text)
    return text if match is None else text[: match.start()]


def last_line(text: str) -> str:
    """The last line that holds anything."""
    lines = [line for line in text.strip().split("\n") if line.strip()]
    return lines[-1] if lines else ""
