"""Numerals: numbers as people and models write them, as exact fractions.

    >>> for text in ("$7,200.50", "1 1/2 cups", "-5", "3 x 10^4", "1.5 million", "eighteen", "20-12 = 8", "3,50"):
    ...     number = first(text)
    ...     print(text, "->", number and show(number))
    $7,200.50 -> 7200.5
    1 1/2 cups -> 1.5
    -5 -> -5
    3 x 10^4 -> 30000
    1.5 million -> 1500000
    eighteen -> 18
    20-12 = 8 -> 8
    3,50 -> 3.5

A number of more than 400 digits is not read: it is shown by its length and equals nothing. No text is evaluated.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction
from typing import Final

from potstill.answers import context, sentences, spelled

DIGITS: Final = 400

_NUMERAL = (
    r"0,[0-9]+(?![0-9]|,[0-9])"  # a decimal comma
    r"|[0-9]{1,3}(?:,[0-9]{3}(?![0-9]))+(?:\.[0-9]+)?"
    r"|[0-9]{1,2}(?:,[0-9]{2}(?![0-9]))+,[0-9]{3}(?![0-9])"  # as in India
    r"|[0-9]{1,3}(?:\.[0-9]{3}(?![0-9])){2,}(?:,[0-9]{1,2}(?![0-9]))?"  # 1.234.567
    r"|[0-9]{1,3}(?:\.[0-9]{3})+,[0-9]{1,2}(?![0-9]|,[0-9])"  # 1.234,56
    r"|[0-9]+,(?:[0-9]{1,2}|[0-9]{4,})(?![0-9]|,[0-9])"  # 2,5
    r"|[0-9]+(?:\.[0-9]+)?|(?<![0-9])\.[0-9]+"
)
ITEM: Final = re.compile(
    r"(?:(?P<minus>(?<![\w)\]}%])-(?!(?<=\n-)\s)|\b[Nn]egative |(?<![0-9)] )\b[Mm]inus )\(?\s?"
    r"(?:[$\u00a3\u20ac\u00a5\u20b9]\s?)?)?"
    rf"(?<![A-Za-z_0-9])(?<![0-9][,.])(?P<whole>{_NUMERAL})"
    r"(?:[eE](?P<exponent>[-+]?[0-9]{1,3})(?![0-9A-Za-z])"
    r"|\s?[x*]\s?10\s?\^\s?\{?(?P<power>[-+]?[0-9]{1,3})\}?(?![0-9])"
    r"|(?<=10)(?<![0-9.,]10)\^\s?\{?(?P<ten>[-+]?[0-9]{1,3})\}?(?![0-9])"
    r"|\s(?:and\s)?(?P<top>[0-9]{1,9})\s?/\s?(?P<bottom>[0-9]{1,9})(?![0-9/])"
    r"|\sand\s(?:a|one)\s(?P<part>half|third|quarter)\b"
    r"|\s?/\s?(?P<over>[0-9]{1,400}(?:\.[0-9]{1,400})?)(?![0-9/])"
    r"|\s(?P<scale>hundred|thousand|million|billion|trillion)\b)?"
    r"(?:st|nd|rd|th)?"
)
_OPERATION = re.compile(r"\s?(?:%\s?)?(?:\*\*|[-+*/^]|x|times|plus|minus|divided by)\s?[$(]{0,2}\s?-?[.0-9(]")
# A calculation with words in it: "20% of 50 = 10", "$18/hour x 2 hours = $36"; and an unknown: "2x = 18".
_WORDY = re.compile(r"[a-z]\s?=|(?:(?!\b(?:because|since|as|so)\b)[^=,;()\n0-9]){1,40}[0-9][^=,;()\n]{0,40}=")
# "18 or 20", "18 to 20", "18 and 20", "18 cups or 20 cups", and a bare list to the end of the
# sentence; "18, 6 for each" is no list.
_HEDGE = re.compile(
    rf"\s{{0,3}}(?:or|to|and|&)\s{{1,3}}[$]?[0-9]|(?:\s[a-z]+)?[,(]?\s?\(?(?:or\s|and\s)?{sentences.POSSIBLY}\s[$]?[0-9]"
    r"|\s?\(or\s[$]?[0-9][0-9,.]*+\)|,?\s(?:though|although|but|or)\s(?:it|this|that)\s(?:could|might|may)\s(?:also\s|well\s)?"
    r"be\s[$]?[0-9]|(?:[,;]?\s(?:and\s|or\s)?[$]?[0-9][0-9,.]*+)+[\s.!*$)\]}\\]*$"
    r"|\s(?P<unit>[a-z]+)\s(?:or|to)\s[$]?[0-9][0-9,.]*+\s(?P=unit)\b"
    r"|\s?(?:\u2014|--)\s?[$]?[0-9][0-9,.]*+(?:\s\w+)?[\s.!*$)\]}\\]*$"
)
_SPELLED_HEDGE = re.compile(r"\s?,?\s?(?:or|to|and|,)\s")
_COMES_TO = re.compile(r"=|\bwhich (?:is|makes|equals|gives)\b")


@dataclass(frozen=True, slots=True)
class Number:
    """value   exact; None where it is not one number (a calculation, a hedge, too many digits): `text` says what
    places  decimals as written
    """

    value: Fraction | None
    places: int = 0
    text: str = ""


def first(text: str) -> Number | None:
    """The number that an answer begins with or comes to; None if it holds none.

    "20-12 = 8" and "8 = 20-12" are 8; "20-12" alone and "18 or 20" are no number.
    """
    bare = text.lstrip(" $*\n").rstrip(" .$*\n")
    if bare.isdecimal() and bare.isascii() and len(bare) <= DIGITS:
        return Number(Fraction(int(bare)))
    match = ITEM.search(text)
    if match is None:
        return _in_words(text)
    hedge = _HEDGE.match(text, match.end())
    if hedge is not None and not _COMES_TO.search(text, match.end()):
        several = every(
            text[match.start() :] if hedge.end() > match.end() + 40 else text[match.start() : hedge.end() + 40]
        )
        if len(several) > 1 and several[0].value is not None and _one(several, text, match, hedge):
            return several[0]
        return _none(text, match)
    odd = context.odd(text, match.start(), match.end("whole"), match.end())
    if hedge is None and not odd and not _in_expression(text, match) and not _WORDY.match(text, match.end()):
        return read(match)
    for part in reversed(_COMES_TO.split(text, 9)[1:]):
        own = ITEM.search(part)
        if own is not None and not _in_expression(part, own):
            odd = context.odd(part, own.start(), own.end("whole"), own.end())
            return _none(part, own) if odd else read(own)
    return _none(text, match)


def _one(several: list[Number], text: str, match: re.Match[str], hedge: re.Match[str]) -> bool:
    """Whether all numbers of a hedge are one: "18 18 18", "0.6 or 3/5"."""
    if hedge.end() == len(text):
        return len({number.value for number in every(text[match.start() :])}) == 1
    return several[0].value == several[1].value and len(several) == 2


def _none(text: str, match: re.Match[str]) -> Number:
    return Number(None, text=text[match.start() : match.start() + 40].strip())


def _in_words(text: str) -> Number | None:
    said = spelled.found(text)
    own = next(said, None)
    if own is None:
        return None
    start, end, value = own
    further = next(said, None)
    hedged = further is not None and further[2] != value and _SPELLED_HEDGE.fullmatch(text, end, further[0])
    if hedged or context.odd(text, start, end, end):
        return Number(None, text=text[start : start + 40].strip())
    return Number(value)


def every(text: str) -> list[Number]:
    """All numbers of a text, in their order; those in words where it has no digits."""
    return [read(match) for match in ITEM.finditer(text)] or [Number(value) for value in spelled.every(text)]


def last(text: str) -> Number | None:
    """The last number of a text, whatever it stands for; not one that is denied, and no exponent."""
    tail = max(0, len(text) - 160)
    match = _last_match(text, tail)
    if tail and (match is None or match.start() < tail + 80):  # it may have begun before the tail
        match = _last_match(text, 0)
    if match is None:
        return None
    if context.odd(text, match.start(), match.end("whole"), match.end(), behind=True):
        return _none(text, match)
    return read(match)


def _last_match(text: str, start: int) -> re.Match[str] | None:
    last = None
    for match in ITEM.finditer(text, start):
        if not context.passed_over(text, match.start(), match.end()):
            last = match
    return last


def only_words(text: str) -> Number | None:
    """The number of a text that is nothing but a number in words."""
    value = spelled.alone(text)
    return None if value is None else Number(value)


def read(match: re.Match[str]) -> Number:
    """The number of a match of ITEM."""
    digits = _digits(match["whole"])
    if len(digits) > DIGITS:
        return Number(None, text=f"a number of {len(digits)} digits")
    value = Fraction(int(digits)) if digits.isdecimal() else Fraction(digits)
    places = len(digits.partition(".")[2])
    if match.lastgroup not in (None, "whole", "minus"):
        exponent = match["exponent"] or match["power"]
        if exponent:
            value *= Fraction(10) ** int(exponent)
            places = 0
        elif match["ten"]:
            value, places = Fraction(10) ** int(match["ten"]), 0
        elif match["top"]:
            if int(match["bottom"]) == 0:
                return Number(None, text=match[0].strip())
            value += Fraction(int(match["top"]), int(match["bottom"]))
        elif match["over"]:
            divisor = Fraction(match["over"])
            if divisor == 0:
                return Number(None, text=match[0].strip())
            value, places = value / divisor, 0
        elif match["scale"]:
            value, places = value * spelled.SCALES[match["scale"]], 0
        elif match["part"]:
            value += spelled.part(match["part"])
    return Number(-value if match["minus"] else value, places)


_POINTS = re.compile(r"[0-9]{1,3}(?:\.[0-9]{3}){2,}(?:,[0-9]+)?|[0-9]{1,3}(?:\.[0-9]{3})+,[0-9]{1,2}")
_COMMA = re.compile(r"0,[0-9]+|[0-9]+,(?:[0-9]{1,2}|[0-9]{4,})")


def _digits(whole: str) -> str:
    """The digits of a numeral with a decimal point and nothing else."""
    if "," not in whole and whole.count(".") < 2:
        return whole
    if _POINTS.fullmatch(whole):
        return whole.replace(".", "").replace(",", ".")
    return whole.replace(",", ".") if _COMMA.fullmatch(whole) else whole.replace(",", "")


def same(a: Number, b: Number) -> bool:
    """Equal, or the longer one is the shorter one before rounding, if the shorter one has two decimals or more.

    What a program's floating point adds (17.999999999999996) is no difference: nine decimals, one part in 10^9.
    """
    if a.value is None or b.value is None:
        return False
    if a.value == b.value:
        return True
    if max(a.places, b.places) >= 9 and abs(a.value - b.value) * 10**9 <= max(abs(a.value), abs(b.value)):
        return True
    places = min((n.places for n in (a, b) if n.places), default=0)
    if places < 2 or all(n.places == places for n in (a, b)):
        return False
    coarse, fine = (a, b) if a.places == places else (b, a)
    assert coarse.value is not None and fine.value is not None
    return abs(coarse.value - fine.value) * 2 * 10**places <= 1


def show(number: Number) -> str:
    """The one way a number is written: 18, -0.5, 1/3."""
    value = number.value
    if value is None:
        return number.text
    if value.denominator == 1:
        return str(value.numerator)
    rest, twos, fives = value.denominator, 0, 0
    while rest % 2 == 0:
        rest, twos = rest // 2, twos + 1
    while rest % 5 == 0:
        rest, fives = rest // 5, fives + 1
    places = max(twos, fives)
    if rest != 1 or places > 12:
        return f"{value.numerator}/{value.denominator}"
    digits = str(abs(value.numerator) * 10**places // value.denominator).rjust(places + 1, "0")
    return f"{'-' if value < 0 else ''}{digits[:-places]}.{digits[-places:]}"


def _in_expression(text: str, match: re.Match[str]) -> bool:
    if _OPERATION.match(text, match.end()):
        return True
    # "48/2 = 24" reads as a fraction; what it equals is the answer.
    return match["over"] is not None and text[match.end() : match.end() + 2].lstrip().startswith("=")
