"""Marks: where a text says that its answer comes.

    >>> spans("Half is 4. The answer is 8. Wait, the answer is 4. Question: How many? The answer is 9")
    [' 8. Wait, the ', ' 4. ']
    >>> spans("#### 72"), spans("so \\\\boxed{(A)}"), spans("I like answers")
    ([' 72'], ['(A)'], [])

Marks are "answer is", "answer:" and their like, `####`, `\\boxed{}`, and for a choice "option is" and "choice is". What
follows the next question after the first readable mark is not the model's answer to this one: T5 writes no newline,
so stop strings do not hold it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Final, TypeVar

from potstill.answers import numerals

REACH: Final = 2000  # signs read after a mark; a list of words may need them

_WORDS: Final = {"choice": ("answer", "option", "choice")}
_NUMERIC: Final = ("number", "several", "time", "ratio")

Value = TypeVar("Value")

_CONNECTION = re.compile(
    r"s?[*_\"')\]]{0,3}(?:\s?(?:[:=]|\b(?:is|are|was|were|be|equals|becomes)\b)"
    r"|\s(?P<words>[^.,\n?!:=]{1,60}?)(?:\s?[:=]|\s(?:is|are|was|were|be|equals|becomes)\b))(?:\s?[:=]){0,2}(?!\s+not\b)"
)
# After "answer:" and "####" a sentence may begin, and the first number of a solution is not its answer.
_SOLUTION = re.compile(
    rf"[\s*_\"']{{0,8}}(?!(?:about|approximately|around|exactly|only|negative|minus|{numerals.WORD})\b)"
    r"(?:[a-z']+[\s]+[a-z']{2}|[a-z]+\s[0-9]+\s?:)",
    re.IGNORECASE,
)
_ASKING = re.compile(r"\b(?:to|can|can't|cannot|we|you|could|must|will|please|not|no|who|that)\s+$", re.IGNORECASE)
_BRACE = re.compile(r"[{}]")
_NEXT_QUESTION = re.compile(
    r"\b(?:Q|Question|Problem|Exercise|Instruction|Human|User)\s?[0-9]{0,3}\s?:|Let's think step by step|</s>|<\|"
)


def spans(text: str, form: str = "number") -> list[str]:
    """What follows each mark of a text, as far as the next mark, the next question, or `REACH` signs."""
    found: list[str] = []
    last_readable(text, lambda span: found.append(span) or span, form)
    return found


def last_readable(text: str, read: Callable[[str], Value | None], form: str) -> Value | None:
    """What `read` makes of the last mark before the next question that it can read anything from."""
    answer: Value | None = None
    question = -1  # where the next question after the current mark begins; each part of the text is searched once
    for start, end in _marks(text, form):
        if question < start:
            if answer is not None:
                break
            match = _NEXT_QUESTION.search(text, start)
            question = len(text) if match is None else match.start()
        value = read(text[start : min(end, question)])
        answer = value if value is not None else answer
    return answer


def before_next_question(text: str) -> str:
    """The text up to the next question; all of it if nothing stands before that."""
    match = _NEXT_QUESTION.search(text)
    return text if match is None or not text[: match.start()].strip() else text[: match.start()]


def _marks(text: str, form: str) -> list[tuple[int, int]]:
    lower = text.lower()
    if len(lower) != len(text):  # a few letters have longer lower forms
        lower = "".join(sign.lower() if sign.isascii() else sign for sign in text)
    marks = [mark for word in _WORDS.get(form, ("answer",)) for mark in _said(lower, word)]
    if "####" in text:
        marks += [(at, at + 4, len(text)) for at in _places(text, "####")]
    if form in _NUMERIC:
        marks = [mark for mark in marks if text[mark[1] - 1] not in ":=#" or not _SOLUTION.match(text, mark[1])]
    if "\\boxed" in text:
        marks += [(at, *_braces(text, at + 6)) for at in _places(text, "\\boxed")]
    marks.sort()
    following = [*(begin for begin, _, _ in marks), len(text)][1:]
    return [(start, min(end, after, start + REACH)) for (_, start, end), after in zip(marks, following, strict=True)]


def _said(lower: str, word: str) -> Iterator[tuple[int, int, int]]:
    before = -1
    for at in _places(lower, word):
        if before >= 0 and at - before < 9 and not lower[before:at].strip():
            continue  # right after a mark the word is part of the answer
        match = _CONNECTION.match(lower, at + len(word))
        if match is None or (match["words"] is not None and _ASKING.search(lower, max(0, at - 12), at)):
            continue
        before = match.end()
        yield at, before, len(lower)


def _places(text: str, what: str) -> Iterator[int]:
    at = text.find(what)
    while at >= 0:
        yield at
        at = text.find(what, at + len(what))


def _braces(text: str, at: int) -> tuple[int, int]:
    """Start and end of what stands in braces from `at` on; nothing if no brace opens there."""
    opening = text.find("{", at, at + 3)
    if opening < 0:
        return at, at
    depth = 0
    for brace in _BRACE.finditer(text, opening, opening + REACH):
        depth += 1 if brace[0] == "{" else -1
        if depth == 0:
            return opening + 1, brace.start()
        if depth > 9:
            break
    return opening + 1, opening + REACH
