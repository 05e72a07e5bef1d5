"""Context: what stands around a number and makes it another one, or none: a power, a root, a letter, a bound, a unit.

>>> odd("2\u03c0", 0, 1, 1), odd("x+5", 2, 3, 3), odd("more than 18", 10, 12, 12), odd("18 apples", 0, 2, 2)
(True, True, True, False)
>>> passed_over("18, not 20", 8, 10), passed_over("18 m^2", 5, 6), passed_over("18 m", 0, 2)
(True, True, False)
"""

from __future__ import annotations

import re
from typing import Final

from potstill.answers import sentences, units

_NEAR: Final = 40  # signs looked at before a number
_LETTER: Final = r"[xyzniajuvwqe]"  # unknowns and constants; m, g, l, s, h, k and their like are units
# Right behind the digits: more digits in a way that is no numeral, a power, a root, a letter.
_GOES_ON = re.compile(r"[.,:;/'_~][0-9]|[\u2070\u00b9\u00b2\u00b3\u2074-\u2079\u207b\u0305]|\^|\*\*(?=\s?[-0-9(])")
_FACTOR = re.compile(
    r"\s?[*]?\s?(?:\u221a|\u03c0|\u221e|\u03b8|pi\b|sqrt\b|(?:log|ln|sin|cos|tan|exp)\b)"
    rf"|{_LETTER}(?![\w'.])|{_LETTER}\.?(?=\s?[.$)}}\]]*$)|\s[xyz](?![\w'])(?!\s?[-$(]{{0,2}}[0-9])"
    r"|\([a-z]\s?[-+]"
)
_TERM = re.compile(r"\s?[-+*/^]\s?\(?(?:[xyzni](?![\w'])|\u221a|\u03c0|\\|[0-9]{0,9}(?:[xyzn](?![\w'])|\u221a|\u03c0))")
_OR_MORE = re.compile(
    r"\s?(?:[^\W\d]+\s?)?[,(]?\s?\(?(?:\u00b1|\+/?-(?=\s?[0-9])|-/?\+(?=\s?[0-9])|%\sof\s[$]?[0-9]|(?:plus\sor\sminus|give\sor\stake\s[a-z0-9]+|at\s(?:most|least)"
    r"|squared|cubed|to\sthe\spower)\b)|\s?(?:[^\W\d]+\s)?(?:or|and)\s(?:more|less|fewer|greater|higher|lower|above|below|over|under|so|up)\b|\+(?![\s]?[0-9(])"
)
_BEFORE = re.compile(
    r"(?:\u00b1|\+/-|\+-|-\+|plus or minus|(?<![0-9<>])(?<![0-9] )[<>]=?|[\u2264\u2265\u2260]|!=|\u221a\(?"
    r"|\b(?:sqrt|log|ln|sin|cos|tan|exp)\s?\(?"
    r"|\b(?:more|less|fewer|greater|higher|lower|larger|smaller|bigger|other|rather)\s(?:than|then)(?:\sor\sequal\sto)?"
    r"|\b(?:over|under|above|below|beyond|exceeds?|at\s(?:least|most)|no\smore\sthan|(?:minimum|maximum)(?:\sof)?|twice|\btimes|double|triple|half\sof"
    r"|(?:square|cube)(?:\sroot)?\sof|(?:^|\b(?:is|are|be)\s)up\sto)"
    rf"|(?<![A-Za-z]){_LETTER}\s?[-+*/^]|\u03c0\s?[-+*/^]|\u221a\([^()]{{0,20}}\)\s?[-+*/^]|\)\s?/\(?)"
    r"\s?(?:about\s|around\s)?[$\u00a3\u20ac(]{0,2}\s?$",
    re.IGNORECASE,
)
_MINUS_LETTER = re.compile(rf"(?<![A-Za-z]){_LETTER}\s$")
_DENIED = re.compile(
    r"\b(?:not|never|cannot be|isn't|wasn't|aren't|can't be|couldn't be|instead of|rather than|no longer"
    rf"|\b{sentences.ALL_BUT})(?:\s(?:be|just|only|a|the|exactly|equal to))?\s?[$\u00a3\u20ac(]{{0,2}}$",
    re.IGNORECASE,
)
_EXPONENT = re.compile(r"[\^_][{(]?-?$")
_NUMBER_BEFORE = re.compile(r"[0-9](?:\s?-?[a-z]+)?[.,]?\s?(?:,|\band|&)?\s?[$]?$", re.IGNORECASE)
_DIGITS = re.compile(r"[0-9]+(?:\.[0-9]+)?")


def odd(text: str, start: int, end: int, stop: int, behind: bool = False) -> bool:
    """Whether the number at text[start:stop], whose digits end at `end`, is part of something that it is not equal to.

    behind  also look whether it is the second part of a compound: "2 hours and 30 minutes"
    """
    before = text[max(0, start - _NEAR) : start]
    if _GOES_ON.match(text, end) and end == stop:
        return True
    if _FACTOR.match(text, stop) or _TERM.match(text, stop) or _OR_MORE.match(text, stop):
        return True
    if _BEFORE.search(before) or (text[start] == "-" and _MINUS_LETTER.search(before)):
        return True
    if units.compound(text, stop) is not None:
        return True
    return behind and _second(text, start, stop)


def passed_over(text: str, start: int, stop: int) -> bool:
    """Whether the number at text[start:stop] is denied ("not 20", "20 is wrong"), or an exponent or index (m^2)."""
    if sentences.REJECTED.match(text, stop):
        return True
    before = text[max(0, start - _NEAR) : start]
    return _EXPONENT.search(before) is not None or _DENIED.search(before) is not None


def _second(text: str, start: int, stop: int) -> bool:
    before = text[max(0, start - _NEAR) : start]
    if _NUMBER_BEFORE.search(before) is None:
        return False
    offset = max(0, start - _NEAR)
    for number in _DIGITS.finditer(before):
        found = units.compound(text, offset + number.end())
        if found is not None and found.end() >= stop:
            return True
    return False
