"""Markers: where a text announces its answer, and which marker counts.

    >>> read_last_marker("The answer is 8. Wait, the answer is 4. Question: How many? The answer is 9", str.strip)
    MarkedAnswer(value='4.', rest='')
    >>> [read_last_marker(text, str.strip) for text in ("#### 72", "so \\\\boxed{72}", "I like answers")]
    [MarkedAnswer(value='72', rest=''), MarkedAnswer(value='72', rest=''), None]

`docs/explanation/grading-rules.md` lists the rules. A model may go on with a next question and its answer, because T5
writes no newline at which a stop string could stop it. Text after the next question is therefore ignored. Reasoning
between tags is not the answer:

    >>> remove_reasoning("<think>20?</think> It is 18.", False), remove_reasoning("[THINK]20[/THINK]18", False)
    (' It is 18.', '18')
    >>> remove_reasoning("<think>The answer is 18. But wait", True) is None
    True

A gold answer may also be a whole solution, or have markers:

    >>> [unwrap_gold(gold) for gold in ("3+2 = 5 pens.\\n#### 5", "$\\\\boxed{\\\\frac{1}{2}}$", "So the answer is 5.")]
    ['5', '\\\\frac{1}{2}', '5.']
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Final

from potstill.grading import normalize, numbers
from potstill.thoughts import TAG_NAMES, TAG_PAIRS

MAX_SPAN_CHARS: Final = 2000  # characters read after a marker; a list of words may need them

_REASONING_NAMES: Final = rf"(?:seed:)?(?:{TAG_NAMES}|reason|reflection|scratchpad|analysis|inner_monologue)"
_STARTS, _ENDS = ("|".join(tags) for tags in zip(*TAG_PAIRS, strict=True))
_REASONING_TAG = re.compile(
    rf"(?P<open><{_REASONING_NAMES}>|\[THINK(?:ING)?\]|{_STARTS})|</{_REASONING_NAMES}>|\[/THINK(?:ING)?\]|{_ENDS}",
    re.IGNORECASE,
)
# gpt-oss writes channels: "analysis" and "commentary" are reasoning, "final" is the answer. If a server drops the
# special tokens, the channel names run into the text: "analysisThe user asks ...assistantfinal18".
_CHANNEL = re.compile(r"<\|channel\|>\s?(analysis|commentary|final)\b[^<\n]{0,80}<\|message\|>")
_BARE_CHANNEL = re.compile(r"\s?analysis(?=[A-Z0-9\"'])")
_BARE_FINAL: Final = "assistantfinal"

_VERBS: Final = r"(?:is|are|was|were|be|equals?|becomes|comes\s(?:out\s)?to)\b"
# After the word "answer": "is", "=", ":", "to the question is"; `words` are the words before the verb or sign.
_CONNECTION = re.compile(
    rf"s?[*_\"')\]]{{0,3}}(?:\s?(?:(?P<sign>[:=])|\b{_VERBS}|\b(?P<never>(?:is|are|was)n't)\b)"
    rf"|\s(?P<words>[^.,\n?!:=]{{1,60}}?)(?:\s?[:=]|\s{_VERBS}))(?:\s?[:=]){{0,2}}"
)
_DENIAL = re.compile(
    r"\s+(?:[a-z]+ly\s+|just\s+|simply\s+|still\s+)?(?:(?:not|never|no longer|hardly|by no means|in no way)\b"
    r"(?!\s(?:only|just)\b)"
    rf"|{normalize.ALL_BUT}\b)"
)
# "answer can't be": the words before the verb deny what follows.
_DENYING = re.compile(
    r"(?:[a-z]+ly\s)?(?:cannot|(?:can|could|wo|would|should|must|do|does|did|is)n't|can't"
    r"|(?:can|could|will|would|should|must|may|might|do|does|did)\s(?:not|never))\b"
)
_SENTENCE_END = re.compile(r"[.;!?](?=\s|$)|\n")
_CONTRAST = re.compile(r"\s(?:but|rather|instead)\b")  # "not 5, 6 or 7, but 18"
_CLAUSE = re.compile(r"[.;:!?](?=\s|$)|,(?=\s)|\n|\s(?:but|so|hence|rather|instead)\b|\u2014")
# Words between "answer" and its verb after which the answer certainly follows.
_CERTAIN_WORDS = re.compile(
    r"(?:\([^()]*\)|to (?:the|this|your|our|that|problem|question|part)\b.*|of (?:the|this) (?:question|problem)"
    r"|(?:should|would|must|will|could|can|may|might)(?: (?:only|also|then|thus|therefore|[a-z]+ly))?"
    r"|(?:we|i) (?:get|got|find|found|have|seek|obtain)|in (?:words|numbers|[a-z]+s)|choice|option|key|letter"
    r"|then|thus|therefore|hence|here|now|[a-z]+ly|" + _DENYING.pattern + r".*)"
)
# "the answer is correct", "... is obtained by", "... is as follows": prose, unless the rest of the sentence has an answer.
_PROSE = re.compile(
    r"\s+(?:also\s|indeed\s|in fact\s|really\s|still\s|now\s|clearly\s|not\s)?(?:correct|right|wrong|incorrect|false"
    r"|reasonable|consistent|accurate|plausible|sensible|verified|confirmed|checked|found|obtained|given|based|derived"
    r"|calculated|computed|rounded|expressed|written|simplified|required|asked|needed|expected|supposed|always|easy"
    r"|simple|obvious|straightforward|helpful|useful|shown|stated|explained|provided|as follows|below|above|here|in"
    r"|to be|what|how|why|when|where|because|if|wanted|clear|the following|different|close|good|complete|ready|logical"
    r"|possible|positive|negative\b(?!\s(?:[0-9]|" + numbers.NUMBER_WORD + r"))|even|odd)\b"
)
# The text says that it has no answer.
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
# A whole solution may follow "answer:" or "####"; the first number of a solution is not its answer.
_SOLUTION = re.compile(
    r"[\s*_\"']{0,8}(?!(?:about|approximately|around|exactly|only|just|negative|minus|at|more|less|fewer|greater|over"
    rf"|under|between|either|plus|most|likely|probably|possibly|perhaps|maybe|{numbers.NUMBER_WORD})\b)(?:[a-z']+[\s]+[a-z']{{2}}|[a-z]+\s[0-9]+\s?:)",
    re.IGNORECASE,
)
# "to answer this", "we can answer".
_ANSWER_AS_VERB = re.compile(
    r"\b(?:to|can|can't|cannot|we|you|could|must|will|please|not|no|who|that)\s+$", re.IGNORECASE
)
# "another answer: ..." is about answers in general.
_GENERIC_ANSWER = re.compile(r"\b(?:another|any|an|no|other|such|each|every|wrong|incorrect|different)\s+$")
# A line or an emphasis that contains nothing but "Final answer".
_HEADING = re.compile(
    r"(?:(?:^|\n)[#*_> \t]{0,12}|#[*_ ]{0,4}|\*\*)(?:(?:the|my|our)\s)?(?:(?:final|correct|short)\s)?$"
)
_HEADING_END = re.compile(r"s?[*_#]{0,4}[ \t]{0,9}\n\s{0,40}")
# "18 is the correct answer": up to three words, within `_REVERSED_CHARS` before "answer", are the answer.
_REVERSED_CHARS: Final = 60
_REVERSED = re.compile(
    r"(?P<answer>\S*[^\s.,;:!?](?:\s[^\s.,;]+){0,2})\s(?:is|was)\s(?:the|my|our)\s(?:(?:final|correct|right|best)\s)?$"
)
_REVERSED_ANSWER = re.compile(r"[0-9]|\([a-z]\)|^(?:so |thus |option |choice )?[b-hj-z]$")
_TAG = re.compile(r"<(?:final[_ ]?)?answer>|\[answer\]|(?P<end></(?:final[_ ]?)?answer>|\[/answer\])")
_BOXED = re.compile(r"\\(?:boxed|fbox)(?![a-z])")
_BRACE = re.compile(r"(?<!\\)[{}]")
_NEXT_TURN = re.compile(
    r"\b(?:Q|Question|Problem|Exercise|Instruction|Human|User)\s?[0-9]{0,3}\s?:|Let's think step by step|</s>|<\|"
)
_QUESTION = re.compile(r"\b(?:Q|Question|Problem|Exercise)\s?[0-9]{0,3}\s?:")
_GOLD_MARKER = re.compile(r"####|\\boxed|\\fbox|</?(?:final[_ ]?)?answer>|\banswers?\b", re.IGNORECASE)
_ANSWER_IS = re.compile(
    r"(?:so|thus|therefore|hence)?,?\s*(?:the\s+)?(?:final\s+|correct\s+)?answer(?:\s+is|\s*:)\s*", re.IGNORECASE
)


@dataclass(frozen=True, slots=True)
class MarkerRules:
    """Which markers announce an answer of a type, and how its marked text is read.

    words            the words that form a marker with a verb or colon: "answer is", "option:"
    before_solution  "Answer:" before a sentence starts a whole solution, which is read as text without markers
    before_json      a value of any length may follow a marker, and a quoted "answer" is the name of a field
    reversed         "18 is the answer" is also a marker
    denial           "the answer is not 5, but 6" denies 5; otherwise "not" belongs to the answer
    refusal          "the answer is unknown" is no answer
    """

    words: tuple[str, ...] = ("answer",)
    before_solution: bool = False
    before_json: bool = False
    reversed: bool = False
    denial: bool = False
    refusal: bool = False


WORD_MARKERS: Final = MarkerRules()


@dataclass(frozen=True, slots=True, order=True)
class AnswerMarker:
    """begin       position where the marker begins
    start, end  the marked span
    certain     whether the marker counts even if no answer follows
    solution    whether the marked span is a whole solution instead of an answer
    """

    begin: int
    start: int
    end: int
    certain: bool = True
    solution: bool = False


@dataclass(frozen=True, slots=True)
class MarkedAnswer:
    """The answer at the last marker.

    value  the extracted value; None if the marked span has none
    rest   without a value: the text after the marker, which may still contain an answer
    """

    value: Any
    rest: str = ""


def remove_reasoning(text: str, truncated: bool, opened: bool = False) -> str | None:
    """The text without its reasoning; the whole text if it consists of reasoning alone.

    truncated  whether the text was truncated. A truncated text that consists of reasoning alone gives None.
    opened     whether the prompt opened the reasoning in which the text begins
    A closing tag without an opening tag ends reasoning that began in the prompt.
    """
    bare = text[:12].lstrip().startswith("analysis")
    opened = opened and truncated
    if not bare and not opened and "<" not in text and "[" not in text and "\u25c1" not in text:
        return text
    if "<|channel|>" in text or bare:
        final = _final_channel(text)
        if final is not None:
            return final if final.strip() or not truncated else None
        if _CHANNEL.search(text) or _BARE_CHANNEL.match(text):
            return None if truncated else text
    kept: list[str] = []  # the text outside of the tags
    end, is_open = 0, opened
    for tag in _REASONING_TAG.finditer(text):
        if not is_open:  # a closing tag ends reasoning that began before the text, or before an earlier closing tag
            kept = [*kept, text[end : tag.start()]] if tag["open"] else []
        end, is_open = tag.end(), tag["open"] is not None
    if is_open and not truncated:
        return text
    outside = "".join(kept) + ("" if is_open else text[end:])
    return outside if outside.strip() else (None if truncated else text)


def _final_channel(text: str) -> str | None:
    """The content of the last channel "final"; None if the text has no such channel."""
    last = None
    for match in _CHANNEL.finditer(text):
        last = match if match[1] == "final" else last
    if last is not None:
        return text[last.end() :]
    start = text.rfind(_BARE_FINAL) if _BARE_CHANNEL.match(text) else -1
    return None if start < 0 else text[start + len(_BARE_FINAL) :]


def unwrap_gold(gold: str) -> str:
    """The text after the last marker of a gold answer; the whole gold answer if it has no marker.

    The words "the answer is" are a marker only at the beginning of the gold answer, of a line or of a sentence.
    """
    if _GOLD_MARKER.search(gold) is None:
        return gold
    if "####" in gold or "\\boxed" in gold or "\\fbox" in gold or "answer>" in gold.lower():
        lower = gold.lower()
        explicit = _explicit_markers(gold, lower if len(lower) == len(gold) else "", MAX_SPAN_CHARS)
        last = max(explicit, default=AnswerMarker(0, 0, 0))
        return gold[last.start : last.end].strip().split("\n", 1)[0].strip() or gold
    for sentence in reversed(re.split(r"\n+|(?<=[.!?])\s+(?=[A-Z])", gold.strip())):
        match = _ANSWER_IS.match(sentence)
        if match is not None and sentence[match.end() :].strip(" .*$"):
            return sentence[match.end() :].strip()
    return gold


def read_last_marker(
    text: str, extract: Callable[[str], Any], rules: MarkerRules = WORD_MARKERS
) -> MarkedAnswer | None:
    """The answer at the last marker before the next question; None if the text has no marker.

    extract  marked span -> its value; None if the span has no value
    """
    answer: tuple[Any, int, int] | None = None  # value; start and end of the text that may still contain an answer
    question = -1  # start of the next question after the current marker; each part of the text is searched only once
    for marker in _find_markers(text, rules):
        if question < marker.start:
            if answer is not None:
                break
            match = _NEXT_TURN.search(text, marker.start)
            question = len(text) if match is None else match.start()
        span = text[marker.start : min(marker.end, question)]
        if rules.refusal and _REFUSAL.match(span):
            answer = (None, 0, 0)
        elif not marker.solution and (value := extract(span)) is not None:
            answer = (value, 0, 0)
        elif marker.certain:
            answer = (None, marker.start, question)
    return None if answer is None else MarkedAnswer(answer[0], text[answer[1] : answer[2]])


def cut_at_next_turn(text: str) -> str:
    """The text before the next question, instruction or special token; the whole text if it begins with one."""
    return _cut_before(text, _NEXT_TURN)


def cut_at_next_question(text: str) -> str:
    """The text before the next question that the model writes; the same object if it writes none or begins with one."""
    may_ask = "Q" in text or "Problem" in text or "Exercise" in text
    return _cut_before(text, _QUESTION) if may_ask else text


def _cut_before(text: str, pattern: re.Pattern[str]) -> str:
    match = pattern.search(text)
    return text if match is None or not text[: match.start()].strip() else text[: match.start()]


def _find_markers(text: str, rules: MarkerRules) -> list[AnswerMarker]:
    max_chars = len(text) if rules.before_json else MAX_SPAN_CHARS
    lower = text.lower()
    if len(lower) != len(text):  # a few letters have a longer lower-case form
        lower = "".join(character.lower() if character.isascii() else character for character in text)
    markers = [marker for word in rules.words for marker in _word_markers(lower, word, rules)]
    markers += _explicit_markers(text, lower, max_chars)
    markers = sorted(checked for marker in markers for checked in _check_solution(marker, text, rules))
    next_begins = [*(marker.begin for marker in markers), len(text)][1:]
    return [
        replace(marker, end=min(marker.end, next_begin, marker.start + max_chars))
        for marker, next_begin in zip(markers, next_begins, strict=True)
    ]


def _explicit_markers(text: str, lower: str, max_chars: int) -> list[AnswerMarker]:
    """The markers `####`, `\\boxed{}` and `<answer>`."""
    markers = [AnswerMarker(position, position + 4, len(text)) for position in _find_all(text, "####")]
    if "answer>" in lower or "[answer]" in lower:
        markers += _tag_markers(lower)
    if "\\boxed" in text or "\\fbox" in text:
        markers += [
            AnswerMarker(box.start(), *_brace_span(text, box.end(), max_chars)) for box in _BOXED.finditer(text)
        ]
    return markers


def _tag_markers(lower: str) -> Iterator[AnswerMarker]:
    """The markers `<answer>...</answer>`. Without a closing tag, all text after the opening tag is marked."""
    opening: re.Match[str] | None = None
    for tag in _TAG.finditer(lower):
        if opening is not None:
            yield AnswerMarker(opening.start(), opening.end(), tag.start())
        opening = None if tag["end"] else tag
    if opening is not None:
        yield AnswerMarker(opening.start(), opening.end(), len(lower))


def _check_solution(marker: AnswerMarker, text: str, rules: MarkerRules) -> Iterator[AnswerMarker]:
    """The marker, with `solution` set if a solution follows. No marker for the heading "#### Step 1"."""
    sign = text[marker.start - 1]
    if sign not in ":=#\n" or not _SOLUTION.match(text, marker.start) or _REFUSAL.match(text, marker.start):
        yield marker
    elif sign != "#":
        yield replace(marker, solution=rules.before_solution)
    elif not rules.before_solution:
        yield replace(marker, certain=False)


def _word_markers(lower: str, word: str, rules: MarkerRules) -> Iterator[AnswerMarker]:
    """The markers that contain `word` ("answer")."""
    previous_end = -1
    for position in _find_all(lower, word):
        word_end = position + len(word)
        if previous_end >= 0 and position - previous_end < 9 and not lower[previous_end:position].strip():
            continue  # a word directly after a marker belongs to the answer
        if rules.before_json and (lower[position - 1 : position] == '"' or lower[word_end : word_end + 1] == '"'):
            continue  # the name of a field
        match = _CONNECTION.match(lower, word_end)
        direct = match is not None and match["words"] is None
        low = max(0, position - _REVERSED_CHARS)
        reversed_ = _REVERSED.search(lower[low:position]) if rules.reversed and not direct else None
        if reversed_ is not None and _REVERSED_ANSWER.search(reversed_["answer"]):
            yield AnswerMarker(low + reversed_.start(), low + reversed_.start(), low + reversed_.end("answer"))
            continue
        heading = _HEADING_END.match(lower, word_end) if word == "answer" else None
        if heading is not None and _HEADING.search(lower[max(0, position - 40) : position]):
            previous_end = heading.end()
            yield AnswerMarker(position, previous_end, len(lower))
            continue
        if word != "answer" and match is not None and len(match["words"] or "") == 1:
            continue  # "option B: ..." is the answer, not a marker
        low = max(0, position - 12)
        if match is None or (match["words"] is not None and _ANSWER_AS_VERB.search(lower, low, position)):
            continue
        previous_end, certain = _span_start(lower, match, rules)
        certain = certain and word == "answer" and not _GENERIC_ANSWER.search(lower, low, position)
        yield AnswerMarker(position, previous_end, len(lower), certain)


def _span_start(lower: str, match: re.Match[str], rules: MarkerRules) -> tuple[int, bool]:
    """The position where the marked span begins, after any denied answer; and whether the marker is certain."""
    words = match["words"]
    denied = _DENIAL.match(lower, match.end())
    if denied is None and not match["never"] and not (words and _DENYING.match(words)):
        certain = match["sign"] is not None or not _PROSE.match(lower, match.end())
        return match.end(), certain and (words is None or _CERTAIN_WORDS.fullmatch(words) is not None)
    if not rules.denial:
        return match.end() if denied is not None else match.start("words" if words else "never"), True
    end = match.end() if denied is None else denied.end()
    limit = end + MAX_SPAN_CHARS
    sentence_end = _SENTENCE_END.search(lower, end, limit)
    clause = _CONTRAST.search(lower, end, limit if sentence_end is None else sentence_end.start())
    clause = clause or _CLAUSE.search(lower, end, limit)
    return (min(len(lower), limit) if clause is None else clause.end()), True


def _find_all(text: str, part: str) -> Iterator[int]:
    position = text.find(part)
    while position >= 0:
        yield position
        position = text.find(part, position + len(part))


def _brace_span(text: str, position: int, max_chars: int) -> tuple[int, int]:
    """Start and end of the content of the braces at `position`; of the next word if `position` has no brace."""
    opening = text.find("{", position, position + 3)
    if opening < 0:
        word = normalize.WORD_PATTERN.match(text, position)
        return (position, position) if word is None else word.span()
    depth = 0
    for brace in _BRACE.finditer(text, opening, opening + max_chars):
        depth += 1 if brace[0] == "{" else -1
        if depth == 0:
            return opening + 1, brace.start()
        if depth > 9:
            break
    return opening + 1, opening + max_chars
