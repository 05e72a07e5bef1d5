"""Spelled: numbers in words, as exact fractions.

>>> for text in ("twenty-one apples", "negative five", "two and a half", "two and three quarters", "two point five"):
...     print(value(text))
21
-5
5/2
11/4
5/2
>>> value("one thousand, two hundred"), value("the one that left"), every("two and three")
(Fraction(1200, 1), None, [Fraction(2, 1), Fraction(3, 1)])
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from fractions import Fraction
from typing import Final

SCALES: Final = {"hundred": 100, "thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12}
_ONES: Final = {
    "zero": 0, "one": 1, "two": 2, "three": 3, "four": 4, "five": 5, "six": 6, "seven": 7, "eight": 8, "nine": 9,
    "ten": 10, "eleven": 11, "twelve": 12, "thirteen": 13, "fourteen": 14, "fifteen": 15, "sixteen": 16,
    "seventeen": 17, "eighteen": 18, "nineteen": 19,
}  # fmt: skip
_TENS: Final = {
    "twenty": 20, "thirty": 30, "forty": 40, "fifty": 50, "sixty": 60, "seventy": 70, "eighty": 80, "ninety": 90,
}  # fmt: skip
# One third, but two thirds: "twenty fifth" is an ordinal.
_PARTS: Final = {
    "half": 2, "third": 3, "quarter": 4, "fourth": 4, "fifth": 5, "sixth": 6, "seventh": 7, "eighth": 8, "ninth": 9,
    "tenth": 10, "twelfth": 12,
}  # fmt: skip
WORD: Final = "|".join([*_ONES, *_TENS, *SCALES])
_UNIT: Final = "|".join(_ONES)
_BELOW: Final = rf"(?:(?:{'|'.join(_TENS)})(?:[\s-](?:{_UNIT}))?|{_UNIT})\b"
_GROUP: Final = rf"(?:(?:{_BELOW}|\ba)\shundred\b(?:\s(?:and\s)?{_BELOW})?|{_BELOW})"
_SCALE: Final = r"(?:hundred|thousand|million|billion|trillion)\b"
_WHOLE: Final = (
    rf"(?:(?:(?:{_GROUP}|\ba)(?:\s{_SCALE}){{1,3}}(?:,?\s(?:and\s)?(?={_BELOW}))?){{1,9}}(?:{_GROUP})?"
    rf"|{_GROUP}|{_SCALE})"
)
_SINGLE: Final = "|".join(_PARTS)
_PLURAL: Final = "halves|" + "|".join(f"{part}s" for part in _PARTS if part != "half")
_NUMBER = re.compile(
    rf"\b(?P<minus>(?:negative|minus)\s)?(?:(?P<whole>{_WHOLE})"
    rf"(?:\spoint(?P<places>(?:[\s-](?:oh|{'|'.join(_TENS)}|{_UNIT})\b){{1,12}})"
    rf"|\sand\s(?:(?P<many>{_BELOW})[\s-](?P<shares>{_PLURAL}|{_SINGLE})|(?:an?\s)(?P<rest>{_SINGLE}))\b"
    rf"|[\s-](?P<parts>{_PLURAL})\b|(?P<one>[\s-](?:{_SINGLE})\b))?"
    rf"|(?:a\s)(?P<part>{_SINGLE})\b|(?P<half>half)\b)",
    re.IGNORECASE,
)
# "one" is also a word of another sense: "the one that left". These may stand before it.
_BEFORE_ONE = re.compile(
    r"(?:[\W_]*(?:only|just|exactly|about|around|approximately|roughly|simply|therefore|thus|so|is|are|that|there))*[\W_]*",
    re.IGNORECASE,
)


def value(text: str) -> Fraction | None:
    """The first number in words, None if there is none; "the one that left" is none."""
    return next((own for _, _, own in found(text)), None)


def every(text: str) -> list[Fraction]:
    """All numbers in words, in their order."""
    return [own for _, _, own in found(text)]


def found(text: str) -> Iterator[tuple[int, int, Fraction]]:
    """Start, end and value of every number in words."""
    for match in _NUMBER.finditer(text):
        alone = (match["whole"] or "").lower() == "one" and match[0].lower() == "one"
        if alone and (match.start() > 200 or not _BEFORE_ONE.fullmatch(text, 0, match.start())):
            continue
        number = _value(match)
        yield match.start(), match.end(), -number if match["minus"] else number


def alone(text: str) -> Fraction | None:
    """The number of a text that is nothing but one."""
    match = _NUMBER.fullmatch(text.strip(" .!*\n")) if len(text) < 300 else None
    return None if match is None else value(match[0])


def part(word: str) -> Fraction:
    """The share that a half, a third, a quarter is."""
    single = word.lower()
    return Fraction(1, 2 if single == "halves" else _PARTS[single.removesuffix("s")])


def _value(match: re.Match[str]) -> Fraction:
    if match["whole"] is None:
        return part(match["part"] or match["half"])
    words = [word for word in re.split(r"[\s,-]+", match["whole"].lower()) if word not in ("and", "")]
    whole = Fraction(_spell(words))
    if match["places"]:
        digits = "".join(
            map(_digits, re.findall(rf"(?:{'|'.join(_TENS)})[\s-](?:{_UNIT})|\w+", match["places"].lower()))
        )
        return whole + Fraction(int(digits), 10 ** len(digits))
    if match["rest"]:
        return whole + part(match["rest"])
    if match["many"]:
        many = [word for word in re.split(r"[\s-]+", match["many"].lower()) if word]
        return whole + _spell(many) * part(match["shares"])
    if match["parts"]:
        return whole * part(match["parts"])
    return part(match["one"].strip(" -\n\t")) if match["one"] and words == ["one"] else whole


def _digits(words: str) -> str:
    return str(sum(_ONES.get(word, 0) + _TENS.get(word, 0) for word in re.split(r"[\s-]", words)))


def _spell(words: list[str]) -> int:
    total = current = 0
    for word in words[:40]:
        if word == "hundred":
            current = max(current, 1) * 100
        elif word in SCALES:
            total, current = total + max(current, 1) * SCALES[word], 0
        else:
            current += 1 if word == "a" else _ONES.get(word, 0) + _TENS.get(word, 0)
    return total + current
