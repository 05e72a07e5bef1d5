"""Spelled: numbers in words, as exact fractions.

>>> for text in ("twenty-one apples", "negative five", "two and a half", "three quarters of it", "the one that left"):
...     print(value(text))
21
-5
5/2
3/4
None
"""

from __future__ import annotations

import re
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
    "tenth": 10,
}  # fmt: skip
WORD: Final = "|".join([*_ONES, *_TENS, *SCALES])
_PLURAL: Final = "halves|" + "|".join(f"{part}s" for part in _PARTS if part != "half")
_NUMBER = re.compile(
    r"\b(?P<minus>(?:negative|minus)\s)?(?:"
    rf"(?P<whole>(?:{WORD})\b(?:[\s-](?:and\s)?(?:{WORD})\b)*)"
    rf"(?:\sand\s(?:a|one)\s(?P<rest>{'|'.join(_PARTS)})\b|[\s-](?P<parts>{_PLURAL})\b|(?P<one>[\s-](?:{'|'.join(_PARTS)})\b))?"
    rf"|(?:a\s)(?P<part>{'|'.join(_PARTS)})\b|(?P<half>half)\b)",
    re.IGNORECASE,
)


def value(text: str) -> Fraction | None:
    """The first number in words, None if there is none; "the one that left" is none."""
    for match in _NUMBER.finditer(text):
        words = [word for word in re.split(r"[\s-]+", (match["whole"] or "").lower()) if word not in ("and", "")]
        bare = not (match["rest"] or match["one"] or match["minus"])
        if words == ["one"] and bare and text[: match.start()].strip(" *\"'$"):
            continue
        number = _value(match, words)
        return -number if match["minus"] else number
    return None


def alone(text: str) -> Fraction | None:
    """The number of a text that is nothing but one."""
    match = _NUMBER.fullmatch(text.strip(" .!*\n")) if len(text) < 300 else None
    return None if match is None else value(match[0])


def part(word: str) -> Fraction:
    """The share that a half, a third, a quarter is."""
    return Fraction(1, _PARTS[word.lower()])


def _value(match: re.Match[str], words: list[str]) -> Fraction:
    if not words:
        return part(match["part"] or match["half"])
    whole = Fraction(_spell(words))
    if match["rest"]:
        return whole + part(match["rest"])
    if match["parts"]:
        single = match["parts"].lower()
        return whole * part("half" if single == "halves" else single.removesuffix("s"))
    return part(match["one"].strip(" -\n\t")) if match["one"] and words == ["one"] else whole


def _spell(words: list[str]) -> int:
    total = current = 0
    for word in words[:40]:
        if word == "hundred":
            current = max(current, 1) * 100
        elif word in SCALES:
            total, current = total + max(current, 1) * SCALES[word], 0
        else:
            current += _ONES.get(word, 0) + _TENS.get(word, 0)
    return total + current
