"""Booleans: one of a pair of words: yes or no, true or false, valid or invalid.

>>> boolean_after_mark(" not valid.", "valid"), boolean_unmarked("The argument isn't valid.", "valid")
('invalid', 'invalid')
>>> boolean_after_mark(" There is no evidence, so yes", "yes"), boolean_unmarked("I have no idea.", "no")
('yes', None)
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final

from potstill.answers import sentences

_PAIRS: Final = (("yes", "no"), ("true", "false"), ("valid", "invalid"))
_OPPOSITE: Final = {a: b for pair in _PAIRS for a, b in (pair, pair[::-1])}
_DENIAL: Final = (
    rf"(?:(?:\b(?:not|never|hardly)|n't|\b(?:cannot|can\snot)(?=\sbe\b)|\b{sentences.ALL_BUT})\s+(?:be\s+)?"
    r"(?:[a-z]+ly\s+)?(?:an?\s+)?[*_\"'`(]{0,4}\s?)"
)
# "cannot be called valid", "I would not say that it is true": some words may stand between, but no further clause.
_DENIAL_OF_ADJECTIVE: Final = (
    r"(?:(?:\b(?:not|never|hardly|scarcely|nor|cannot|fails?\sto|unable\sto|by\sno\smeans|in\sno\sway|under\sno"
    rf"\scircumstances|(?:wrong|incorrect)\sto)[*_]{{0,3}}|n't|\b{sentences.ALL_BUT})"
    r"(?:\s+(?!(?:only|just|merely|doubt|deny|denied|question|dispute|disputed|reason|so|because|but|and|since|as|if|when"
    r"|whether|therefore|thus|hence|then|which|who|true|false|valid|invalid|not|no)\b)[a-z]+){0,5}"
    r"|\bno(?:\s+[a-z]+ly)?)\s+[*_\"'`(]{0,4}\s?"
)
_UNSURE: Final = r"(?:neither|either|whether|both|possibly|perhaps|maybe|sometimes|might\sbe|may\sbe|could\sbe)"
_BOOLEAN: Final = {
    word: re.compile(
        rf"(?P<before>\b{_UNSURE}\s+(?:is\s+)?)?(?P<denied>{denial})?"
        rf"(?<![\w-])(?P<word>{pair[0]}|{pair[1]})\b(?!-)"
        rf"(?P<other>(?:\s+(?:or|and|nor)\s+|\s?/\s?)(?P<second>not|{pair[0]}|{pair[1]})\b"
        rf"|,\s(?:or|and)\s(?P<third>{pair[0]}|{pair[1]})\b)?",
        re.IGNORECASE,
    )
    for pair, denial in zip(_PAIRS, (_DENIAL, _DENIAL_OF_ADJECTIVE, _DENIAL_OF_ADJECTIVE), strict=True)
    for word in pair
}
# "no" is an answer only where it stands by itself: "no evidence", "no one" and "no longer" say something else.
_ALONE = re.compile(
    r"[\s*_\"'`)\]}$]*(?:[.,;:!?\u2014=(/-]|$|\n|(?:because|since|as|for|it|its|he|she|they|we|you|i|this|that|these|those|the"
    r"|an?|there|not|and|but|or|nor|so|if|unless|while|although|though|in|on|at|by|due|when|given|based|is|was|to|with|would"
    r"|does|do|did|can|cannot|will|yes|no|q|question|thus|therefore|hence|answer|after)\b)",
    re.IGNORECASE,
)
_CONDITION = re.compile(
    r"[\"'*`]{0,2},?\s(?:but\s)?(?:only\s)?(?:if|unless|depending|in\s(?:some|certain)\scases|sometimes)\b",
    re.IGNORECASE,
)


def gold_boolean(gold: str) -> str | None:
    word = gold.strip().rstrip(".").lower()
    return word if word in _OPPOSITE else None


def boolean_after_mark(text: str, target: str) -> str | None:
    own = sentences.sentence(text)
    if "=" in own:  # "(True and False) = False"
        own = own.rpartition("=")[2]
    return next((_word(match, own) for match in _said(own, target)), None)


def boolean_unmarked(text: str, target: str) -> str | None:
    text = text.strip(sentences.DRESSING)
    found = None
    for match in _said(text, target):
        found = _word(match, text)
        if match.start() == 0 and not match["other"]:  # but not "Yes or no? Yes"
            break
    return found


def _said(text: str, target: str) -> Iterator[re.Match[str]]:
    """The places where one of the pair is said as an answer."""
    for match in _BOOLEAN[target].finditer(text):
        if match["word"].lower() != "no" or _ALONE.match(text, match.end("word")):
            yield match


def _word(match: re.Match[str], text: str) -> str:
    """The word that is said. A hedge is shown as it stands and is neither of the two."""
    word = match["word"].lower()
    condition = _CONDITION.match(text, match.end()) if word in ("yes", "no") else None
    if (
        match["before"]
        or condition is not None
        or (match["other"] and (match["second"] or match["third"]).lower() != word)
    ):
        return " ".join(text[match.start() : match.end() if condition is None else condition.end()].lower().split())
    denied = bool(match["denied"]) != (sentences.REJECTED.match(text, match.end()) is not None)
    return _OPPOSITE[word] if denied else word
