"""Marks: where a text says that its answer comes, and which of these places decides.

    >>> spans("Half is 4. The answer is 8. Wait, the answer is 4. Question: How many? The answer is 9")
    [' 8. Wait, the ', ' 4. ']
    >>> spans("#### 72"), spans("so \\\\boxed{(A)}"), spans("I like answers")
    ([' 72'], ['(A)'], [])

Marks are "answer is", "answer:" and their like, a heading "Final answer", `<answer>`, `####`, `\\boxed{}`, "18 is the
answer", and for a choice "option is" and "choice is". The last one before the next question decides, also if nothing
usable follows it. A few of these words are also used in prose ("the answer is correct"): there they are a mark only if
an answer stands in their sentence. What follows the next question is not the model's answer to this one: T5 writes no
newline, so stop strings do not hold it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Final

from potstill.answers import sentences, spelled

REACH: Final = 2000  # signs read after a mark; a list of words may need them

_WORDS: Final = {"choice": ("answer", "option", "choice")}
_NUMERIC: Final = ("number", "several", "time", "ratio")
_TURNED: Final = (*_NUMERIC, "choice")
_PICKED: Final = (*_NUMERIC, "choice", "boolean", "math")  # forms whose answers are looked for in a sentence

_VERBS: Final = r"(?:is|are|was|were|be|equals?|becomes|comes\s(?:out\s)?to)\b"
_CONNECTION = re.compile(
    rf"s?[*_\"')\]]{{0,3}}(?:\s?(?:(?P<sign>[:=])|\b{_VERBS}|\b(?P<never>(?:is|are|was)n't)\b)"
    rf"|\s(?P<words>[^.,\n?!:=]{{1,60}}?)(?:\s?[:=]|\s{_VERBS}))(?:\s?[:=]){{0,2}}"
)
_NOT = re.compile(
    r"\s+(?:[a-z]+ly\s+|just\s+|simply\s+|still\s+)?(?:(?:not|never|no longer|hardly|by no means|in no way)\b"
    r"(?!\s(?:only|just)\b)"
    rf"|{sentences.ALL_BUT}\b)"
)
# "answer can't be": the words before the verb deny what follows it.
_DENYING = re.compile(
    r"(?:[a-z]+ly\s)?(?:cannot|(?:can|could|wo|would|should|must|do|does|did|is)n't|can't"
    r"|(?:can|could|will|would|should|must|may|might|do|does|did)\s(?:not|never))\b"
)
_SENTENCE_END = re.compile(r"[.;!?](?=\s|$)|\n")
_CONTRAST = re.compile(r"\s(?:but|rather|instead)\b")  # "not 5, 6 or 7, but 18"
_CLAUSE = re.compile(r"[.;:!?](?=\s|$)|,(?=\s)|\n|\s(?:but|so|hence|rather|instead)\b|\u2014")
# Words between "answer" and its verb that leave no doubt that the answer follows.
_TO_THE_POINT = re.compile(
    r"(?:\([^()]*\)|to (?:the|this|your|our|that|problem|question|part)\b.*|of (?:the|this) (?:question|problem)"
    r"|(?:should|would|must|will|could|can|may|might)(?: (?:only|also|then|thus|therefore|[a-z]+ly))?"
    r"|(?:we|i) (?:get|got|find|found|have|seek|obtain)|in (?:words|numbers|[a-z]+s)|choice|option|key|letter"
    r"|then|thus|therefore|hence|here|now|[a-z]+ly|" + _DENYING.pattern + r".*)"
)
_PROSE = re.compile(
    r"\s+(?:also\s|indeed\s|in fact\s|really\s|still\s|now\s|clearly\s|not\s)?(?:correct|right|wrong|incorrect|false"
    r"|reasonable|consistent|accurate|plausible|sensible|verified|confirmed|checked|found|obtained|given|based|derived"
    r"|calculated|computed|rounded|expressed|written|simplified|required|asked|needed|expected|supposed|always|easy"
    r"|simple|obvious|straightforward|helpful|useful|shown|stated|explained|provided|as follows|below|above|here|in"
    r"|to be|what|how|why|when|where|because|if|wanted|clear|the following|different|close|good|complete|ready|logical"
    r"|possible|positive|negative\b(?!\s(?:[0-9]|" + spelled.WORD + r"))|even|odd)\b"
)
# The marked answer is that there is none.
_REFUSED = re.compile(
    r"[\W_]{0,12}(?:(?:that|this|it|there|we|you|i|one|the|answer|is|are|be|really|simply|just|still|currently|am|can"
    r"|could|do|does|to|has|have|most|likely|probably|therefore|an?)\s+){0,6}"
    r"(?:un(?:known|clear|determined|sure|certain|decided|defined|answerable|knowable|available|specified)|ambiguous"
    r"|in(?:determinate|conclusive|sufficient)|depend(?:s|ent|ing)?\b|none\s(?:of|is|are)|neither\b|n/a\b|moot\b"
    r"|not\s(?:sure|known|clear|enough|possible|certain|determin|provided|stated|specified|among|listed|here|any|available"
    r"|applicable|in\sthe|one\sof)|no\s(?:idea|answer|one\sknows|way\sto|option|correct|such)|nobody\sknows|impossible"
    r"|(?:not|cannot|can't|couldn't|don't|doesn't|unable\sto)\s(?:be\s)?"
    r"(?:determin|sa(?:y|id)|tell|told|know|answer|decide|found|find|comput|calculat|give|conclude|infer))",
    re.IGNORECASE,
)
# After "answer:" and "####" a sentence may begin, and the first number of a solution is not its answer.
_SOLUTION = re.compile(
    r"[\s*_\"']{0,8}(?!(?:about|approximately|around|exactly|only|just|negative|minus|at|more|less|fewer|greater|over"
    rf"|under|between|either|plus|most|likely|probably|possibly|perhaps|maybe|{spelled.WORD})\b)(?:[a-z']+[\s]+[a-z']{{2}}|[a-z]+\s[0-9]+\s?:)",
    re.IGNORECASE,
)
_ASKING = re.compile(r"\b(?:to|can|can't|cannot|we|you|could|must|will|please|not|no|who|that)\s+$", re.IGNORECASE)
# "another answer: ..." speaks of answers in general.
_SOME = re.compile(r"\b(?:another|any|an|no|other|such|each|every|wrong|incorrect|different)\s+$")
_HEADING = re.compile(
    r"(?:(?:^|\n)[#*_> \t]{0,12}|#[*_ ]{0,4}|\*\*)(?:(?:the|my|our)\s)?(?:(?:final|correct|short)\s)?$"
)
_HEADING_END = re.compile(r"s?[*_#]{0,4}[ \t]{0,9}\n\s{0,40}")
# "18 is the correct answer": some signs before the word are looked at, and up to three words are the answer.
_BEFORE: Final = 60
_REVERSED = re.compile(
    r"(?P<what>\S*[^\s.,;:!?](?:\s[^\s.,;]+){0,2})\s(?:is|was)\s(?:the|my|our)\s(?:(?:final|correct|right|best)\s)?$"
)
_READABLE = re.compile(r"[0-9]|\([a-z]\)|^(?:so |thus |option |choice )?[b-hj-z]$")
_TAG = re.compile(r"<(?:final[_ ]?)?answer>|\[answer\]|(?P<end></(?:final[_ ]?)?answer>|\[/answer\])")
_BOXED = re.compile(r"\\(?:boxed|fbox)(?![a-z])")
_BRACE = re.compile(r"(?<!\\)[{}]")
_NEXT_QUESTION = re.compile(
    r"\b(?:Q|Question|Problem|Exercise|Instruction|Human|User)\s?[0-9]{0,3}\s?:|Let's think step by step|</s>|<\|"
)
_ASKED = re.compile(r"\b(?:Q|Question|Problem|Exercise)\s?[0-9]{0,3}\s?:")


@dataclass(frozen=True, slots=True, order=True)
class Mark:
    """begin, start, end  where the mark begins, and what it marks
    certain   it decides, whether or not an answer follows
    solution  a whole solution follows, not an answer
    """

    begin: int
    start: int
    end: int
    certain: bool = True
    solution: bool = False


@dataclass(frozen=True, slots=True)
class Decision:
    """What the mark that decides says: a value; or none, and the text behind it that may still hold one."""

    value: Any
    rest: str = ""


def spans(text: str, form: str = "number") -> list[str]:
    """What follows each mark of a text, as far as the next mark, the next question, or `REACH` signs."""
    found: list[str] = []
    decide(text, lambda span: found.append(span) or span, form)
    return found


def strong_spans(text: str) -> list[str]:
    """What `####`, `\\boxed{}` and `<answer>` mark in a text, in their order."""
    found = [Mark(at, at + 4, len(text)) for at in _places(text, "####")]
    found += _tagged(text.lower()) if len(text.lower()) == len(text) else []
    found += [Mark(box.start(), *_braces(text, box.end(), REACH)) for box in _BOXED.finditer(text)]
    return [text[mark.start : mark.end] for mark in sorted(found)]


def decide(text: str, read: Callable[[str], Any], form: str) -> Decision | None:
    """What the last mark before the next question says, None where a text has no mark.

    read  a marked span -> its value, None if it holds none
    """
    decision: Decision | None = None
    rest = (0, 0)
    question = -1  # where the next question after the current mark begins; each part of the text is searched once
    for mark in _marks(text, form):
        if question < mark.start:
            if decision is not None:
                break
            match = _NEXT_QUESTION.search(text, mark.start)
            question = len(text) if match is None else match.start()
        span = text[mark.start : min(mark.end, question)]
        if form in _PICKED and _REFUSED.match(span):
            decision, rest = Decision(None), (0, 0)
            continue
        value = None if mark.solution else read(span)
        if value is not None:
            decision = Decision(value)
        elif mark.certain:
            decision, rest = Decision(None), (mark.start, question)
            continue
        rest = (0, 0) if value is not None else rest
    return decision if rest == (0, 0) or decision is None else Decision(None, text[rest[0] : rest[1]])


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


def _marks(text: str, form: str) -> list[Mark]:
    reach = REACH if form != "json" else len(text)
    lower = text.lower()
    if len(lower) != len(text):  # a few letters have longer lower forms
        lower = "".join(sign.lower() if sign.isascii() else sign for sign in text)
    marks = [mark for word in _WORDS.get(form, ("answer",)) for mark in _said(lower, word, form)]
    if "answer>" in lower or "[answer]" in lower:
        marks += _tagged(lower)
    if "####" in text:
        marks += [Mark(at, at + 4, len(text)) for at in _places(text, "####")]
    marks = [own for mark in marks for own in _as_solution(mark, text, form)]
    if "\\boxed" in text or "\\fbox" in text:
        marks += [Mark(box.start(), *_braces(text, box.end(), reach)) for box in _BOXED.finditer(text)]
    marks.sort()
    following = [*(mark.begin for mark in marks), len(text)][1:]
    return [
        Mark(m.begin, m.start, min(m.end, after, m.start + reach), m.certain, m.solution)
        for m, after in zip(marks, following, strict=True)
    ]


def _tagged(lower: str) -> Iterator[Mark]:
    """What stands between the tags of an answer, or behind the opening one if nothing closes it."""
    opening: re.Match[str] | None = None
    for tag in _TAG.finditer(lower):
        if opening is not None:
            yield Mark(opening.start(), opening.end(), tag.start())
        opening = None if tag["end"] else tag
    if opening is not None:
        yield Mark(opening.start(), opening.end(), len(lower))


def _as_solution(mark: Mark, text: str, form: str) -> Iterator[Mark]:
    """The mark, told whether a solution begins behind it. "#### Step 1" is a heading."""
    sign = text[mark.start - 1]
    if sign not in ":=#\n" or not _SOLUTION.match(text, mark.start) or _REFUSED.match(text, mark.start):
        yield mark
    elif sign != "#":
        yield Mark(mark.begin, mark.start, mark.end, mark.certain, form in _NUMERIC)
    elif form not in _NUMERIC:
        yield Mark(mark.begin, mark.start, mark.end, certain=False)


def _said(lower: str, word: str, form: str) -> Iterator[Mark]:
    """The marks that the word "answer" is part of."""
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
            yield Mark(start + turned.start(), start + turned.start(), start + turned.end("what"))
            continue
        heading = _HEADING_END.match(lower, at + len(word)) if word == "answer" else None
        if heading is not None and _HEADING.search(lower[max(0, at - 40) : at]):
            before = heading.end()
            yield Mark(at, before, len(lower))
            continue
        if word != "answer" and match is not None and len(match["words"] or "") == 1:
            continue  # "option B: ..." is the answer, not a mark
        if match is None or (match["words"] is not None and _ASKING.search(lower, max(0, at - 12), at)):
            continue
        before, certain = _behind(lower, match, form)
        yield Mark(
            at, before, len(lower), certain and word == "answer" and not _SOME.search(lower, max(0, at - 12), at)
        )


def _behind(lower: str, match: re.Match[str], form: str) -> tuple[int, bool]:
    """Where that begins which a mark marks, behind what it denies; and whether the mark is one for certain."""
    words = match["words"]
    denied = _NOT.match(lower, match.end())
    if denied is None and not match["never"] and not (words and _DENYING.match(words)):
        certain = match["sign"] is not None or not _PROSE.match(lower, match.end())
        return match.end(), certain and (words is None or _TO_THE_POINT.fullmatch(words) is not None)
    if form not in _TURNED and form != "math":  # of a text, "not" is a part
        start = match.end() if denied is not None else match.start("words" if words else "never")
        return start, True
    end = match.end() if denied is None else denied.end()
    stop = _SENTENCE_END.search(lower, end, end + REACH)
    clause = _CONTRAST.search(lower, end, end + REACH if stop is None else stop.start())
    clause = _CLAUSE.search(lower, end, end + REACH) if clause is None else clause
    return (min(len(lower), end + REACH) if clause is None else clause.end()), True


def _places(text: str, what: str) -> Iterator[int]:
    at = text.find(what)
    while at >= 0:
        yield at
        at = text.find(what, at + len(what))


def _braces(text: str, at: int, reach: int) -> tuple[int, int]:
    """Start and end of what stands in braces from `at` on; the next word if no brace opens there."""
    opening = text.find("{", at, at + 3)
    if opening < 0:
        word = sentences.WORD.match(text, at)
        return (at, at) if word is None else word.span()
    depth = 0
    for brace in _BRACE.finditer(text, opening, opening + reach):
        depth += 1 if brace[0] == "{" else -1
        if depth == 0:
            return opening + 1, brace.start()
        if depth > 9:
            break
    return opening + 1, opening + reach
