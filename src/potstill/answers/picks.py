"""Picks: one of the options that a question offers, by letter.

>>> choice_after_mark(" option (B), the red ball.", "A"), choice_after_mark(" most likely B, at home.", "A")
('B', 'B')
>>> choice_after_mark(" either C or B.", "B"), choice_unmarked("B\\n\\nExplanation: (C) is too small.", "B")
('C or B', 'B')
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final

from potstill.answers import sentences

_CHOICE_GOLD = re.compile(r"\(?([A-Z])\)?\.?")
_NOUN: Final = r"(?:(?:the )?(?:option|choice|letter|answer)s? )"
# Words that may stand between a mark and a bare letter. They say how sure the answer is, and name nothing.
_HOW: Final = (
    r"(?:(?:most|very|more|quite|almost|probably|likely|possibly|perhaps|maybe|presumably|certainly|definitely|clearly"
    r"|obviously|surely|undoubtedly|apparently|evidently|simply|just|only|indeed|actually|therefore|thus|then|hence|so|again"
    r"|still|also|really|best|closest to|close to|nearest to|either|both|between|i think|i believe|of course|in fact"
    r"|is|be|to be"
    r"|should be|would be|must be|could be|might be|can be|going to be|that of|given by|represented by|it is|it's|that"
    r"|in my opinion|without a doubt|logically|correctly|necessarily)[\s:,]+){0,5}"
)
_END: Final = (
    r"(?=[).:,;!?\]}*\"'`/&+]|\s*$|\n|\s+(?:because|since|as|which|that|is|or|and|but|not|due|for|\(|-|\u2014|=)(?!\w))"
)
_LEADING = re.compile(
    rf"(?P<how>{_HOW})(?:{_NOUN}?[(\[](?P<bracket>[A-Za-z])[)\]]"
    rf"|(?!I')(?:option |choice |letter )?(?P<bare>[A-Z]){_END}"
    r"|(?:option |choice |letter )?(?P<plain>[B-HJ-Z])\b(?!['-]\w)"  # A and I are words too
    r"|(?P<small>[a-z])(?=[).]|\s*$))",
)
_IN_BRACKETS = re.compile(r"\(([A-Za-z])\)")
_OTHER_CHOICE = re.compile(
    r"[).*\s\"'`]{0,3}(?:\s\([^()\n]{2,40}\))?(?:\s?,\s?(?:or\s|and\s)?|\s?[/&+;|]\s?"
    r"|\s\(?(?:or|and|and/or|as well as|nor)(?:,\s[a-z ]{1,20},)?\s)"
    r"(?:(?:the )?(?:option|choice) )?(?:\((?P<bracket>[A-Z])\)(?!\s(?:is|are|was|does|do|has|would|can|cannot|isn't"
    r"|doesn't|fails?|seems|looks|too)\b)|[*_\"'`]{0,3}(?P<bare>[A-Z])(?=[)\]}*\"'`\s]*(?:$|[.,;&/+!?]|\(|\b(?:and|or)\b))(?!\)\s\w))"
)
# "D) attic or E) cupboard": another letter behind the words of the first one.
_BEHIND_WORDS = re.compile(
    r"[).:]?\s(?:(?!\b(?:because|since|as|not|but|while|whereas|so)\b)[^.;()\n]){1,60}?\s(?:or|and)\s(?:option )?"
    r"[\"'`*]{0,2}(?:\(([A-Z])\)|([A-Z])\))(?!\s(?:is|are|was|does|do|has|would|can|cannot|isn't|doesn't|fails?|seems|looks)\b)"
)
_ADJOINING = re.compile(r"\s?\(([A-Z])\)()(?=\s?(?:$|[.,;(]))|()\s([B-HJ-Z])(?=[.)]?\s*$)")
# "B, possibly D", "A, though C could be right too"
_LETTER: Final = r"(?:option\s|choice\s)?(?:\(([A-Z])\)|\b([A-HJ-Z])\b(?!')(?:\s\([^()\n]{1,40}\))?)"
_ALSO: Final = r"(?:right|correct|possible|plausible|true|acceptable|the\s|an?\s)"
_SECOND_THOUGHT: Final = (
    re.compile(
        rf"\b(?:{sentences.POSSIBLY}|alternatively,?|or\s(?:else|even|rather)|if\snot|(?:could|might|may)\s(?:also\s|well\s"
        rf"|even\s)?be)\s(?!A\s[a-z]){_LETTER}"
    ),
    re.compile(
        rf"{_LETTER}\s(?:(?:(?:could|might|may)\s(?:also\s|well\s)?|would\salso\s)(?:be\s(?:also\s)?{_ALSO}|work|fit|apply)"
        rf"|is\salso\s{_ALSO})"
    ),
)
_CALLED_RIGHT = re.compile(r"\(?\b([A-Z])\)?\s(?:is|must be)\s(?:the\s)?(?:correct|right)\b")
_CLOSING = re.compile(r"\b([B-HJ-Z])[.)*]{0,3}\s*$")
_CALLED_WRONG = re.compile(
    r"\b(?:not|n't|neither|nor|cannot be|can't be|never|rule out|exclude|eliminate|discard|unlike|than"
    rf"|{sentences.ALL_BUT})\s(?:option |choice )?$",
    re.IGNORECASE,
)
_DISMISSED = re.compile(
    r"\s(?:(?:and|or|nor|,)\s\([A-Z]\)\s)?(?:does\snot|doesn't|do\snot|don't|did\snot|didn't|fails?\b|is\snot|isn't|are\snot"
    r"|aren't|cannot|can't|(?:is|are|seems?|looks?|would\sbe)\s(?:clearly\s|also\s)?(?:wrong|incorrect|false|out\b|too\b"
    r"|impossible|unlikely|implausible|irrelevant|nonsense|invalid|ruled)|has\sno|makes?\sno)",
)
# The letter alone: as the first line or the first sentence of an answer, reasons behind it.
_ALONE = re.compile(
    r"[\s*_#\"'`$>]{0,12}(?:(?:option|choice|answer):?\s)?(?:\(([A-Za-z])\)|([A-Z]))[*_\"'`$]{0,4}"
    r"(?:[.:)]?[*_\"'`$]{0,4}[ \t]*(?:\n|$)|\.[*_\"'`]{0,4}\s)",
    re.IGNORECASE,
)
_CONCLUSION = re.compile(
    r"\b(?:so|thus|therefore|hence|in conclusion|overall|finally)\b[^.\n()]{0,60}\(([A-Za-z])\)", re.IGNORECASE
)


def gold_choice(gold: str) -> str | None:
    match = _CHOICE_GOLD.fullmatch(gold.strip())
    return None if match is None else match[1]


def choice_after_mark(text: str, target: str) -> str | None:
    own = sentences.sentence(text)
    match = _LEADING.match(own[:1].lower() + own[1:] if own[1:2].islower() else own)
    if match is not None:
        letter, end = match["bracket"] or match["bare"] or match["plain"] or match["small"], match.end()
    else:
        inside = next(_offered(own), None)
        if inside is None:
            return None
        letter, end = inside[1], inside.end()
    if _rejected(own, end):
        return None
    others: list[str] = []
    while len(others) < 26:
        other = _OTHER_CHOICE.match(own, end)
        if other is None:
            break
        others.append(other["bracket"] or other["bare"])
        end = other.end()
    further = None if others else _ADJOINING.match(own, end) or _BEHIND_WORDS.match(own, end)
    further = further or next((found for found in (p.search(own, end) for p in _SECOND_THOUGHT) if found), None)
    others += [next(filter(None, further.groups()))] if further else []
    return " or ".join(dict.fromkeys([letter.upper(), *others]))


def choice_unmarked(text: str, target: str) -> str | None:
    start = text.strip()
    if not start:
        return None
    alone = _ALONE.match(start)
    if alone is not None and not _CONCLUSION.search(start, alone.end()):
        return (alone[1] or alone[2]).upper()
    if _NONE.search(start, max(0, len(start) - 100)):
        return None
    leading = choice_after_mark(start, target) if len(start) < 400 and "\n" not in start else None
    if leading is not None and len(_IN_BRACKETS.findall(text)) <= 1:
        return leading
    right = _CALLED_RIGHT.findall(text)
    if right:
        return right[-1]
    offered = list(_offered(text))
    found = [match for match in offered if not _DISMISSED.match(text, match.end())] or offered[-1:]
    if len(found) > 1 and _JOINED.fullmatch(text, found[-2].end(), found[-1].start()):
        return " or ".join(match[1].upper() for match in found[-2:])
    if found:
        return found[-1][1].upper()
    last = None if leading is not None else _CLOSING.search(text, max(0, len(text) - 20))
    if last is None:
        return leading
    return None if _HEDGED.search(text, max(0, last.start() - 20), last.start()) else last[1]


_NONE = re.compile(
    r"(?:^|[.!?]\s+|\n)(?:[a-z]+,?\s)?none of (?:these|them|the(?! other))\b[^.\n]*[.\s]*$", re.IGNORECASE
)
_JOINED = re.compile(r"\s?(?:[,/&]|,?\s?\b(?:or|and))\s?")  # "(A) or (B)"
_HEDGED = re.compile(r"\b(?:either|or|nor|neither|not|and)\s(?:option )?\(?$", re.IGNORECASE)


_AND_ANOTHER = re.compile(r"(?:(?:,\s\([A-Z]\)){0,4},?\s(?:and|or)\s\([A-Z]\))?")  # "(A) and (B) are wrong"


def _rejected(text: str, end: int) -> bool:
    further = _AND_ANOTHER.match(text, end)
    return sentences.REJECTED.match(text, end if further is None else further.end()) is not None


def _offered(text: str) -> Iterator[re.Match[str]]:
    """The letters in brackets that are not denied: not "not (A)"."""
    for match in _IN_BRACKETS.finditer(text):
        denied = _CALLED_WRONG.search(text, max(0, match.start() - 24), match.start())
        if denied is None and not _rejected(text, match.end()):
            yield match


def show_choice(letter: str) -> str:
    return f"({letter})" if len(letter) == 1 else letter
