"""Picks: one of the options that a question offers, by letter, or one of a pair of words.

>>> choice_after_mark(" option (B), the red ball.", "A"), boolean_after_mark(" not valid.", "valid")
('B', 'invalid')
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final

from potstill.answers import sentences

# choice

_CHOICE_GOLD = re.compile(r"\(?([A-Z])\)?\.?")
_LEADING = re.compile(
    r"(?:(?:the )?(?:option|choice|letter|answer) )?[(\[]([A-Za-z])[)\]]"
    r"|(?!I')(?:option |choice |letter )?([A-Z])"
    r"(?=[).:,;\]}*\"'`]|\s*$|\n|\s+(?:because|since|as|which|that|is|or|and)\b)"
    r"|(?:option |choice |letter )?([B-HJ-Z])\b"  # A and I are words too
    r"|([a-z])(?=[).]|\s*$)",
)
_IN_BRACKETS = re.compile(r"\(([A-Za-z])\)")
_OTHER_CHOICE = re.compile(r"[)*\s]{0,3}(?:\s(?:or|and)\s(?:option )?\(?([A-Z])(?:\)|\b)|[,/]\s?\(([A-Z])\))")
_CALLED_RIGHT = re.compile(r"\(?\b([A-Z])\)?\s(?:is|must be)\s(?:the\s)?(?:correct|right)\b")
_CLOSING = re.compile(r"\b([B-HJ-Z])[.)*]{0,3}\s*$")
_CALLED_WRONG = re.compile(r"\b(?:not|n't|neither|nor)\s(?:option )?$")


def gold_choice(gold: str) -> str | None:
    match = _CHOICE_GOLD.fullmatch(gold.strip())
    return None if match is None else match[1]


def choice_after_mark(text: str, target: str) -> str | None:
    own = sentences.sentence(text)
    match = _LEADING.match(own[:1].lower() + own[1:] if own[1:2].islower() else own)
    letter = None if match is None else (match[1] or match[2] or match[3] or match[4])
    end = 0 if match is None else match.end()
    if letter is None:
        inside = next(_offered(own), None)
        if inside is None:
            return None
        letter, end = inside[1], inside.end()
    other = _OTHER_CHOICE.match(own, end)
    return letter.upper() + (f" or {other[1] or other[2]}" if other else "")


def choice_unmarked(text: str, target: str) -> str | None:
    start = text.strip()
    leading = choice_after_mark(start, target) if len(start) < 400 and "\n" not in start else None
    if leading is not None and len(_IN_BRACKETS.findall(text)) <= 1:
        return leading
    right = _CALLED_RIGHT.findall(text)
    if right:
        return right[-1]
    found = [match[1].upper() for match in _offered(text)]
    last = None if found or leading is not None else _CLOSING.search(text, max(0, len(text) - 20))
    return found[-1] if found else last[1] if last else leading


def _offered(text: str) -> Iterator[re.Match[str]]:
    """The letters in brackets that are not denied: not "not (A)"."""
    for match in _IN_BRACKETS.finditer(text):
        if not _CALLED_WRONG.search(text, max(0, match.start() - 20), match.start()):
            yield match


def show_choice(letter: str) -> str:
    return f"({letter})" if len(letter) == 1 else letter


# boolean: one of a pair of words

_PAIRS: Final = (("yes", "no"), ("true", "false"), ("valid", "invalid"))
_OPPOSITE: Final = {a: b for pair in _PAIRS for a, b in (pair, pair[::-1])}
_BOOLEAN: Final = {
    word: re.compile(
        rf"\b(not\s+(?:[a-z]+ly\s+)?|n't\s+)?({pair[0]}|{pair[1]})\b"
        rf"((?:\s+(?:or|and)\s+|/)(?:not\b|{pair[0]}\b|{pair[1]}\b))?",
        re.IGNORECASE,
    )
    for pair in _PAIRS
    for word in pair
}


def gold_boolean(gold: str) -> str | None:
    word = gold.strip().rstrip(".").lower()
    return word if word in _OPPOSITE else None


def boolean_after_mark(text: str, target: str) -> str | None:
    own = sentences.sentence(text)
    if "=" in own:  # "(True and False) = False"
        own = own.rpartition("=")[2]
    return _boolean(_BOOLEAN[target].search(own))


def _boolean(match: re.Match[str] | None) -> str | None:
    if match is None:
        return None
    word = match[2].lower()
    return match[0].lower() if match[3] else _OPPOSITE[word] if match[1] else word


def boolean_unmarked(text: str, target: str) -> str | None:
    text = text.strip(sentences.DRESSING)
    match = _BOOLEAN[target].match(text)
    if match is None or match[3]:  # "Yes or no? Yes"
        for match in _BOOLEAN[target].finditer(text):  # noqa: B007
            pass
    return _boolean(match)
