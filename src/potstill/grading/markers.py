"""Thoughts: what a reasoning model writes for itself, which is not its answer.

>>> remove_reasoning("<think>20?</think> It is 18.", False), remove_reasoning("[THINK]20[/THINK]18", False)
(' It is 18.', '18')
>>> remove_reasoning("<think>The answer is 18. But wait", True) is None
True

Marks: where a text says that its answer comes, and which of these places decides.

    >>> find_marked_spans("Half is 4. The answer is 8. Wait, the answer is 4. Question: How many? The answer is 9")
    [' 8. Wait, the ', ' 4. ']
    >>> find_marked_spans("#### 72"), find_marked_spans("so \\\\boxed{(A)}"), find_marked_spans("I like answers")
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

from potstill.grading import normalize, numbers

_REASONING_NAMES: Final = (
    r"(?:seed:)?(?:think(?:ing)?|thoughts?|reason(?:ing)?|reflection|scratchpad|analysis|inner_monologue)"
)
_REASONING_TAG = re.compile(
    rf"(?P<open><{_REASONING_NAMES}>|\[THINK(?:ING)?\]|\u25c1think\u25b7|<\|(?:START_THINKING|begin_of_thought|inner_prefix)\|>)"
    rf"|</{_REASONING_NAMES}>|\[/THINK(?:ING)?\]|\u25c1/think\u25b7|<\|(?:END_THINKING|end_of_thought|inner_suffix)\|>",
    re.IGNORECASE,
)
# gpt-oss writes channels: analysis and commentary are thoughts, final is the answer. Where a server drops the special
# tokens, their names run into the text: "analysisThe user asks ...assistantfinal18".
_CHANNEL = re.compile(r"<\|channel\|>\s?(analysis|commentary|final)\b[^<\n]{0,80}<\|message\|>")
_BARE_CHANNEL = re.compile(r"\s?analysis(?=[A-Z0-9\"'])")
_BARE_FINAL: Final = "assistantfinal"


def remove_reasoning(text: str, cut: bool) -> str | None:
    """The text without thoughts; the text itself where nothing else stands in it.

    cut  the text was cut off. Then a thought without an answer behind it is nothing: None.
    A closing tag without an opening one ends a thought that began in the prompt.
    """
    bare = text[:12].lstrip().startswith("analysis")
    if not bare and "<" not in text and "[" not in text and "\u25c1" not in text:
        return text
    if "<|channel|>" in text or bare:
        channels = _final_channel(text)
        if channels is not None:
            return channels if channels.strip() or not cut else None
        if _CHANNEL.search(text) or _BARE_CHANNEL.match(text):
            return None if cut else text
    kept: list[str] = []
    at, opened = 0, -1
    seen = False
    for tag in _REASONING_TAG.finditer(text):
        seen = True
        if tag["open"]:
            if opened < 0:
                kept.append(text[at : tag.start()])
                opened = tag.start()
            continue
        if opened < 0:
            kept.clear()  # it began before the text, or before what seemed to be its end
        at, opened = tag.end(), -1
    if not seen:
        return text
    if opened < 0:
        kept.append(text[at:])
    outside = "".join(kept)
    if opened >= 0 and not cut:
        return text
    if outside.strip():
        return outside
    return None if cut else text


def _final_channel(text: str) -> str | None:
    """What stands in the last final channel, None where there is none."""
    last = None
    for match in _CHANNEL.finditer(text):
        last = match if match[1] == "final" else last
    if last is not None:
        return text[last.end() :]
    at = text.rfind(_BARE_FINAL) if _BARE_CHANNEL.match(text) else -1
    return None if at < 0 else text[at + len(_BARE_FINAL) :]


MAX_SPAN_CHARS: Final = 2000  # signs read after a mark; a list of words may need them

_MARK_WORDS: Final = {"choice": ("answer", "option", "choice")}
_NUMERIC: Final = ("number", "several", "time", "ratio")
_REVERSIBLE: Final = (*_NUMERIC, "choice")
_REFUSABLE: Final = (*_NUMERIC, "choice", "boolean", "math")  # forms whose answers are looked for in a sentence

_VERBS: Final = r"(?:is|are|was|were|be|equals?|becomes|comes\s(?:out\s)?to)\b"
_CONNECTION = re.compile(
    rf"s?[*_\"')\]]{{0,3}}(?:\s?(?:(?P<sign>[:=])|\b{_VERBS}|\b(?P<never>(?:is|are|was)n't)\b)"
    rf"|\s(?P<words>[^.,\n?!:=]{{1,60}}?)(?:\s?[:=]|\s{_VERBS}))(?:\s?[:=]){{0,2}}"
)
_DENIAL = re.compile(
    r"\s+(?:[a-z]+ly\s+|just\s+|simply\s+|still\s+)?(?:(?:not|never|no longer|hardly|by no means|in no way)\b"
    r"(?!\s(?:only|just)\b)"
    rf"|{normalize.ALL_BUT}\b)"
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
    r"|possible|positive|negative\b(?!\s(?:[0-9]|" + numbers.NUMBER_WORD + r"))|even|odd)\b"
)
# The marked answer is that there is none.
_REFUSAL = re.compile(
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
    rf"|under|between|either|plus|most|likely|probably|possibly|perhaps|maybe|{numbers.NUMBER_WORD})\b)(?:[a-z']+[\s]+[a-z']{{2}}|[a-z]+\s[0-9]+\s?:)",
    re.IGNORECASE,
)
_ANSWER_AS_VERB = re.compile(
    r"\b(?:to|can|can't|cannot|we|you|could|must|will|please|not|no|who|that)\s+$", re.IGNORECASE
)
# "another answer: ..." speaks of answers in general.
_GENERIC_ANSWER = re.compile(r"\b(?:another|any|an|no|other|such|each|every|wrong|incorrect|different)\s+$")
_HEADING = re.compile(
    r"(?:(?:^|\n)[#*_> \t]{0,12}|#[*_ ]{0,4}|\*\*)(?:(?:the|my|our)\s)?(?:(?:final|correct|short)\s)?$"
)
_HEADING_END = re.compile(r"s?[*_#]{0,4}[ \t]{0,9}\n\s{0,40}")
# "18 is the correct answer": some signs before the word are looked at, and up to three words are the answer.
_REVERSED_CHARS: Final = 60
_REVERSED = re.compile(
    r"(?P<what>\S*[^\s.,;:!?](?:\s[^\s.,;]+){0,2})\s(?:is|was)\s(?:the|my|our)\s(?:(?:final|correct|right|best)\s)?$"
)
_READABLE = re.compile(r"[0-9]|\([a-z]\)|^(?:so |thus |option |choice )?[b-hj-z]$")
_TAG = re.compile(r"<(?:final[_ ]?)?answer>|\[answer\]|(?P<end></(?:final[_ ]?)?answer>|\[/answer\])")
_BOXED = re.compile(r"\\(?:boxed|fbox)(?![a-z])")
_BRACE = re.compile(r"(?<!\\)[{}]")
_NEXT_TURN = re.compile(
    r"\b(?:Q|Question|Problem|Exercise|Instruction|Human|User)\s?[0-9]{0,3}\s?:|Let's think step by step|</s>|<\|"
)
_QUESTION = re.compile(r"\b(?:Q|Question|Problem|Exercise)\s?[0-9]{0,3}\s?:")


@dataclass(frozen=True, slots=True, order=True)
class AnswerMark:
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
class MarkedAnswer:
    """What the mark that decides says: a value; or none, and the text behind it that may still hold one."""

    value: Any
    rest: str = ""


def find_marked_spans(text: str, form: str = "number") -> list[str]:
    """What follows each mark of a text, as far as the next mark, the next question, or `REACH` signs."""
    found: list[str] = []
    read_last_mark(text, lambda span: found.append(span) or span, form)
    return found


def find_explicit_spans(text: str) -> list[str]:
    """What `####`, `\\boxed{}` and `<answer>` mark in a text, in their order."""
    found = [AnswerMark(at, at + 4, len(text)) for at in _find_all(text, "####")]
    found += _tag_marks(text.lower()) if len(text.lower()) == len(text) else []
    found += [AnswerMark(box.start(), *_brace_span(text, box.end(), MAX_SPAN_CHARS)) for box in _BOXED.finditer(text)]
    return [text[mark.start : mark.end] for mark in sorted(found)]


def read_last_mark(text: str, read: Callable[[str], Any], form: str) -> MarkedAnswer | None:
    """What the last mark before the next question says, None where a text has no mark.

    read  a marked span -> its value, None if it holds none
    """
    decision: MarkedAnswer | None = None
    rest = (0, 0)
    question = -1  # where the next question after the current mark begins; each part of the text is searched once
    for mark in _find_marks(text, form):
        if question < mark.start:
            if decision is not None:
                break
            match = _NEXT_TURN.search(text, mark.start)
            question = len(text) if match is None else match.start()
        span = text[mark.start : min(mark.end, question)]
        if form in _REFUSABLE and _REFUSAL.match(span):
            decision, rest = MarkedAnswer(None), (0, 0)
            continue
        value = None if mark.solution else read(span)
        if value is not None:
            decision = MarkedAnswer(value)
        elif mark.certain:
            decision, rest = MarkedAnswer(None), (mark.start, question)
            continue
        rest = (0, 0) if value is not None else rest
    return decision if rest == (0, 0) or decision is None else MarkedAnswer(None, text[rest[0] : rest[1]])


def cut_at_next_turn(text: str) -> str:
    """The text up to the next question; all of it if nothing stands before that."""
    match = _NEXT_TURN.search(text)
    return text if match is None or not text[: match.start()].strip() else text[: match.start()]


def cut_at_next_question(text: str) -> str:
    """The text up to a question that it asks itself after having said something; all of it if it asks none."""
    if "Q" not in text and "Problem" not in text and "Exercise" not in text:
        return text
    match = _QUESTION.search(text)
    return text if match is None or not text[: match.start()].strip() else text[: match.start()]


def _find_marks(text: str, form: str) -> list[AnswerMark]:
    reach = MAX_SPAN_CHARS if form != "json" else len(text)
    lower = text.lower()
    if len(lower) != len(text):  # a few letters have longer lower forms
        lower = "".join(sign.lower() if sign.isascii() else sign for sign in text)
    marks = [mark for word in _MARK_WORDS.get(form, ("answer",)) for mark in _word_marks(lower, word, form)]
    if "answer>" in lower or "[answer]" in lower:
        marks += _tag_marks(lower)
    if "####" in text:
        marks += [AnswerMark(at, at + 4, len(text)) for at in _find_all(text, "####")]
    marks = [own for mark in marks for own in _as_solution(mark, text, form)]
    if "\\boxed" in text or "\\fbox" in text:
        marks += [AnswerMark(box.start(), *_brace_span(text, box.end(), reach)) for box in _BOXED.finditer(text)]
    marks.sort()
    following = [*(mark.begin for mark in marks), len(text)][1:]
    return [
        AnswerMark(m.begin, m.start, min(m.end, after, m.start + reach), m.certain, m.solution)
        for m, after in zip(marks, following, strict=True)
    ]


def _tag_marks(lower: str) -> Iterator[AnswerMark]:
    """What stands between the tags of an answer, or behind the opening one if nothing closes it."""
    opening: re.Match[str] | None = None
    for tag in _TAG.finditer(lower):
        if opening is not None:
            yield AnswerMark(opening.start(), opening.end(), tag.start())
        opening = None if tag["end"] else tag
    if opening is not None:
        yield AnswerMark(opening.start(), opening.end(), len(lower))


def _as_solution(mark: AnswerMark, text: str, form: str) -> Iterator[AnswerMark]:
    """The mark, told whether a solution begins behind it. "#### Step 1" is a heading."""
    sign = text[mark.start - 1]
    if sign not in ":=#\n" or not _SOLUTION.match(text, mark.start) or _REFUSAL.match(text, mark.start):
        yield mark
    elif sign != "#":
        yield AnswerMark(mark.begin, mark.start, mark.end, mark.certain, form in _NUMERIC)
    elif form not in _NUMERIC:
        yield AnswerMark(mark.begin, mark.start, mark.end, certain=False)


def _word_marks(lower: str, word: str, form: str) -> Iterator[AnswerMark]:
    """The marks that the word "answer" is part of."""
    before = -1
    for at in _find_all(lower, word):
        if before >= 0 and at - before < 9 and not lower[before:at].strip():
            continue  # right after a mark the word is part of the answer
        if form == "json" and (lower[at - 1 : at] == '"' or lower[at + len(word) : at + len(word) + 1] == '"'):
            continue  # the name of a field
        match = _CONNECTION.match(lower, at + len(word))
        direct = match is not None and match["words"] is None
        turned = (
            None if direct or form not in _REVERSIBLE else _REVERSED.search(lower[max(0, at - _REVERSED_CHARS) : at])
        )
        if turned is not None and _READABLE.search(turned["what"]):
            start = max(0, at - _REVERSED_CHARS)
            yield AnswerMark(start + turned.start(), start + turned.start(), start + turned.end("what"))
            continue
        heading = _HEADING_END.match(lower, at + len(word)) if word == "answer" else None
        if heading is not None and _HEADING.search(lower[max(0, at - 40) : at]):
            before = heading.end()
            yield AnswerMark(at, before, len(lower))
            continue
        if word != "answer" and match is not None and len(match["words"] or "") == 1:
            continue  # "option B: ..." is the answer, not a mark
        if match is None or (match["words"] is not None and _ANSWER_AS_VERB.search(lower, max(0, at - 12), at)):
            continue
        before, certain = _span_start(lower, match, form)
        yield AnswerMark(
            at,
            before,
            len(lower),
            certain and word == "answer" and not _GENERIC_ANSWER.search(lower, max(0, at - 12), at),
        )


def _span_start(lower: str, match: re.Match[str], form: str) -> tuple[int, bool]:
    """Where that begins which a mark marks, behind what it denies; and whether the mark is one for certain."""
    words = match["words"]
    denied = _DENIAL.match(lower, match.end())
    if denied is None and not match["never"] and not (words and _DENYING.match(words)):
        certain = match["sign"] is not None or not _PROSE.match(lower, match.end())
        return match.end(), certain and (words is None or _TO_THE_POINT.fullmatch(words) is not None)
    if form not in _REVERSIBLE and form != "math":  # of a text, "not" is a part
        start = match.end() if denied is not None else match.start("words" if words else "never")
        return start, True
    end = match.end() if denied is None else denied.end()
    stop = _SENTENCE_END.search(lower, end, end + MAX_SPAN_CHARS)
    clause = _CONTRAST.search(lower, end, end + MAX_SPAN_CHARS if stop is None else stop.start())
    clause = _CLAUSE.search(lower, end, end + MAX_SPAN_CHARS) if clause is None else clause
    return (min(len(lower), end + MAX_SPAN_CHARS) if clause is None else clause.end()), True


def _find_all(text: str, what: str) -> Iterator[int]:
    at = text.find(what)
    while at >= 0:
        yield at
        at = text.find(what, at + len(what))


def _brace_span(text: str, at: int, reach: int) -> tuple[int, int]:
    """Start and end of what stands in braces from `at` on; the next word if no brace opens there."""
    opening = text.find("{", at, at + 3)
    if opening < 0:
        word = normalize.WORD_PATTERN.match(text, at)
        return (at, at) if word is None else word.span()
    depth = 0
    for brace in _BRACE.finditer(text, opening, opening + reach):
        depth += 1 if brace[0] == "{" else -1
        if depth == 0:
            return opening + 1, brace.start()
        if depth > 9:
            break
    return opening + 1, opening + reach
