"""Marks: where a text says that its answer comes.

    >>> spans("Half is 4. The answer is 8. Wait, the answer is 4. Question: How many? The answer is 9")
    [' 8. Wait, the ', ' 4. ']
    >>> spans("#### 72"), spans("so \\\\boxed{(A)}"), spans("I like answers")
    ([' 72'], ['(A)'], [])

Marks are "answer is", "answer:" and their like, `<answer>`, `####`, `\\boxed{}`, "18 is the answer", and for a choice
"option is" and "choice is". What follows the next question after the first readable mark is not the model's answer to
this one: T5 writes no newline, so stop strings do not hold it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Final, TypeVar

from potstill.answers import spelled

REACH: Final = 2000  # signs read after a mark; a list of words may need them

_WORDS: Final = {"choice": ("answer", "option", "choice")}
_NUMERIC: Final = ("number", "several", "time", "ratio")
_TURNED: Final = (*_NUMERIC, "choice")

Value = TypeVar("Value")

_CONNECTION = re.compile(
    r"s?[*_\"')\]]{0,3}(?:\s?(?:[:=]|\b(?:is|are|was|were|be|equals|becomes)\b)"
    r"|\s(?P<words>[^.,\n?!:=]{1,60}?)(?:\s?[:=]|\s(?:is|are|was|were|be|equals|becomes)\b))(?:\s?[:=]){0,2}(?!\s+not\b)"
)
# After "answer:" and "####" a sentence may begin, and the first number of a solution is not its answer.
_SOLUTION = re.compile(
    rf"[\s*_\"']{{0,8}}(?!(?:about|approximately|around|exactly|only|negative|minus|{spelled.WORD})\b)"
    r"(?:[a-z']+[\s]+[a-z']{2}|[a-z]+\s[0-9]+\s?:)",
    re.IGNORECASE,
)
_ASKING = re.compile(r"\b(?:to|can|can't|cannot|we|you|could|must|will|please|not|no|who|that)\s+$", re.IGNORECASE)
# "18 is the correct answer": some signs before the word are looked at, and up to three words are the answer.
_BEFORE: Final = 60
_REVERSED = re.compile(
    r"(?P<what>\S+(?:\s[^\s.,;]+){0,2})\s(?:is|was)\s(?:the|my|our)\s(?:(?:final|correct|right|best)\s)?$"
)
_READABLE = re.compile(r"[0-9]|\([a-z]\)|^(?:so |thus |option |choice )?[b-hj-z]$")
_BRACE = re.compile(r"[{}]")
_NEXT_QUESTION = re.compile(
    r"\b(?:Q|Question|Problem|Exercise|Instruction|Human|User)\s?[0-9]{0,3}\s?:|Let's think step by step|</s>|<\|"
)
_ASKED = re.compile(r"\b(?:Q|Question|Problem|Exercise)\s?[0-9]{0,3}\s?:")
_THOUGHT: Final = "</think>"


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


def head(text: str) -> str:
    """The text up to a question that it asks itself after having said something; all of it if it asks none."""
    if "Q" not in text and "Problem" not in text and "Exercise" not in text:
        return text
    match = _ASKED.search(text)
    return text if match is None or not text[: match.start()].strip() else text[: match.start()]


def after_thought(text: str) -> str:
    """What a reasoning model says when it has thought; the text itself if nothing stands behind its thoughts."""
    at = text.rfind(_THOUGHT)
    return text if at < 0 or not text[at + len(_THOUGHT) :].strip() else text[at + len(_THOUGHT) :]


def _marks(text: str, form: str) -> list[tuple[int, int]]:
    reach = REACH if form != "json" else len(text)
    lower = text.lower()
    if len(lower) != len(text):  # a few letters have longer lower forms
        lower = "".join(sign.lower() if sign.isascii() else sign for sign in text)
    marks = [mark for word in _WORDS.get(form, ("answer",)) for mark in _said(lower, word, form)]
    if "<answer>" in lower:
        ends = [(at, lower.find("</answer>", at)) for at in _places(lower, "<answer>")]
        marks += [(at, at + len("<answer>"), len(text) if end < 0 else end) for at, end in ends]
    if "####" in text:
        marks += [(at, at + 4, len(text)) for at in _places(text, "####")]
    if form in _NUMERIC:
        marks = [mark for mark in marks if text[mark[1] - 1] not in ":=#" or not _SOLUTION.match(text, mark[1])]
    if "\\boxed" in text:
        marks += [(at, *_braces(text, at + 6, reach)) for at in _places(text, "\\boxed")]
    marks.sort()
    following = [*(begin for begin, _, _ in marks), len(text)][1:]
    return [(start, min(end, after, start + reach)) for (_, start, end), after in zip(marks, following, strict=True)]


def _said(lower: str, word: str, form: str) -> Iterator[tuple[int, int, int]]:
    """Begin of each mark, start and end of what it marks."""
    before = -1
    for at in _places(lower, word):
        if before >= 0 and at - before < 9 and not lower[before:at].strip():
            continue  # right after a mark the word is part of the answer
        if form == "json" and (lower[at - 1 : at] == '"' or lower[at + len(word) : at + len(word) + 1] == '"'):
            continue  # the name of a field
        match = _CONNECTION.match(lower, at + len(word))
        direct = match is not None and match["words"] is None
        turned = None if direct or form not in _TURNED else _REVERSED.search(lower[max(0, at - _BEFORE) : at])
        if turned is not None and _READABLE.search(turned["what"]):
            start = max(0, at - _BEFORE)
            yield start + turned.start(), start + turned.start(), start + turned.end("what")
            continue
        if word != "answer" and match is not None and len(match["words"] or "") == 1:
            continue  # "option B: ..." is the answer, not a mark
        if match is None or (match["words"] is not None and _ASKING.search(lower, max(0, at - 12), at)):
            continue
        before = match.end()
        yield at, before, len(lower)


def _places(text: str, what: str) -> Iterator[int]:
    at = text.find(what)
    while at >= 0:
        yield at
        at = text.find(what, at + len(what))


def _braces(text: str, at: int, reach: int) -> tuple[int, int]:
    """Start and end of what stands in braces from `at` on; nothing if no brace opens there."""
    opening = text.find("{", at, at + 3)
    if opening < 0:
        return at, at
    depth = 0
    for brace in _BRACE.finditer(text, opening, opening + reach):
        depth += 1 if brace[0] == "{" else -1
        if depth == 0:
            return opening + 1, brace.start()
        if depth > 9:
            break
    return opening + 1, opening + reach
