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

# What makes a second answer behind a first one, and what says that the answer is another than the one that follows.
POSSIBLY: Final = r"(?:maybe|perhaps|possibly|potentially|conceivably)"
ALL_BUT: Final = (
    r"(?:(?:any|every|all)[a-z]*(?:\s[a-z]+){0,3}?\s(?:but|except(?:\sfor)?|besides)|other\sthan|different\sfrom"
    r"|far\sfrom|nowhere\snear|nothing\slike)"
)
_RIGHT: Final = (
    r"(?:[a-z]+ly\s|quite\s|even\s)?(?:right|correct|possible|it\b|(?:the|my|our|an?)\s(?:final\s|correct\s|right\s|best\s)?"
    r"(?:answer|solution|result|option|choice|one)\b)"
)
# Behind an answer: "5 is not right", "(C) is wrong", "yes isn't the answer".
REJECTED = re.compile(
    rf"[*_\"'`)$.]{{0,4}}(?:\s[a-z]{{2,20}})?\s(?:(?:is|was|are|were)\s(?:[a-z]+ly\s)?(?:wrong\b|incorrect\b|not\s{_RIGHT})"
    rf"|(?:isn't|wasn't|aren't|cannot\sbe|can\snot\sbe|can't\sbe|couldn't\sbe|could\snot\sbe|won't\sbe)\s{_RIGHT}|(?:doesn't|does\snot)\swork\b|must\sbe\s(?:wrong|incorrect)\b)"
)
BULLET: Final = r"(?:[-*\u2022]|\(?(?:[0-9]{1,3}|[a-z])[.)])"
_ITEM = re.compile(rf"\s*{BULLET}\s+(?=\S)")


def sentence(text: str) -> str:
    """The first sentence of what follows a mark, its dressing taken off."""
    return first(text.lstrip(DRESSING + ".")).rstrip(DRESSING)


def first(text: str) -> str:
    """The text up to the end of its first sentence or line. The period of Mrs. or sq. ends none."""
    match = _END.search(text)
    return text if match is None else text[: match.start()]


def items(text: str, last: bool = False) -> list[str]:
    """The lines of the list with which a text begins, or ends, without their bullets; none if it has no list."""
    found: list[str] = []
    lines = [line for line in text.split("\n") if line.strip(DRESSING)]
    for line in reversed(lines) if last else lines:
        match = _ITEM.match(line)
        if match is None:
            break
        found.append(line[match.end() :])
    return found[::-1] if last else found


def last_line(text: str) -> str:
    """The last line that holds anything."""
    lines = [line for line in text.strip().split("\n") if line.strip()]
    return lines[-1] if lines else ""
