"""Quantities: a number, or several numbers in any order.

>>> target = gold_several("5 (years old); 15 (years old)")
>>> same_several(target, several_after_mark(" 15 and 5.", target)), show_several(target)
(True, '5; 15')
"""

from __future__ import annotations

import re
from fractions import Fraction

from potstill.answers import numerals, sentences
from potstill.answers.numerals import Number

# number

_UNIT = re.compile(r"\s*(?:%|\([^()]*\)|[^0-9;:]{0,60})\.?\s*")


# What makes a gold answer algebra: $12\pi$, $3-i$, $7 x$. Letters and signs there are no unit.
_ALGEBRA = re.compile(
    r"[\\^{}=+*_\u221a\u03c0\u221e\u03b8\u00b1<>\u2264\u2265\u2070\u00b9\u00b2\u00b3\u2074-\u2079]"
    r"|-\s?[a-z](?![A-Za-z])|(?<![A-Za-z])[xyzn](?![A-Za-z'])|^[iabnuvwjqe](?![A-Za-z'])|\b(?:pi|sqrt)\b"
)
_RAISED_UNIT = re.compile(r"(?<=[a-z])\^\{?[23]\}?|(?<=[a-z])[\u00b2\u00b3]", re.IGNORECASE)  # m^2
_LONE_LETTER = re.compile(r"(?<![A-Za-z])[A-Za-z](?![A-Za-z])")


def gold_number(gold: str) -> Number | None:
    """The number of a gold answer, with its unit; None for algebra, which only begins with a number."""
    number = _gold_number(gold)
    if number is None or gold.strip().isdecimal():
        return number
    rest = _RAISED_UNIT.sub("", re.sub(r"\([^()]*\)\s*$", "", numerals.ITEM.sub("", gold, 1).strip(" $.")))
    maths = gold.strip().startswith("$") and gold.strip().endswith("$") and len(gold.strip()) > 1
    return None if _ALGEBRA.search(rest) or (maths and _LONE_LETTER.search(rest)) else number


def _gold_number(gold: str) -> Number | None:
    gold = _RAISED_UNIT.sub("", gold)
    text = gold.strip().lstrip("$\u00a3\u20ac").removesuffix("$").strip()
    match = numerals.ITEM.match(text) or numerals.ITEM.match(gold.strip())
    if match is None:
        return numerals.only_words(gold)
    rest = text[match.end() :] if match.string is text else gold.strip()[match.end() :]
    rest = rest.removeprefix(")") if match["minus"] and "(" in match[0] else rest
    number = numerals.read(match)
    return number if number.value is not None and _UNIT.fullmatch(rest) else None


_STEP = re.compile(r"\(?1[.)]\s")  # the first step of a solution, or of a list of answers
_NUMERAL_LINE = re.compile(r"[\s*_$]*-?[$]?[0-9][0-9.,]*+(?:\s[a-z]+)?[*_$.\s]*", re.IGNORECASE)
_SPACED_MINUS = re.compile(r"-\s+(?=[$]?[.0-9])")


def number_after_mark(text: str, target: Number) -> Number | None:
    bare = text.lstrip(" $*\n").rstrip(" .$*\n")
    if bare.isdecimal() and bare.isascii() and len(bare) < 100:
        return Number(Fraction(int(bare)))
    bulleted = "\n" in text[:8]  # "The answer is - 5" is no list
    listed = sentences.items(text) if "\n" in text else []
    text = text.lstrip(" \t\n:=*_\"'`")
    if len(listed) > 1 and _STEP.match(text):
        return None if any(_NUMERAL_LINE.fullmatch(item) is None for item in listed) else Number(None, text=text[:40])
    text = listed[0] if len(listed) == 1 and bulleted else text
    match = _SPACED_MINUS.match(text)
    if match is not None:
        text = "-" + text[match.end() :]
    return numerals.first(sentences.first(text))


# "So 5 * 4 =", "She sells 9 *", "The total is": what would follow is not there, and nothing earlier stands in for it.
_UNFINISHED = re.compile(
    r"(?:=\s?[$]?|[0-9)]\s?(?:[-+/^\u00f7]|\*{1,2}|x|plus|minus|divided by)|[0-9a-z)]\s\*{1,2}"
    r"|\b(?:is|are|equals?|makes|gives|becomes|totals))[\s?_.]*$",
    re.IGNORECASE,
)
_BOLD = re.compile(r"\*\*[^*\n]{1,80}\*\*[\s.]*$")


def number_unmarked(text: str, target: Number) -> Number | None:
    end = text[-60:].rstrip()
    if _UNFINISHED.search(end) and not _BOLD.search(text[-120:]):
        return None
    return numerals.last(text) or numerals.only_words(text)


# several numbers, in any order

_LISTED = re.compile(r";|,\s+")


def gold_several(gold: str) -> tuple[Number, ...] | None:
    parts = [gold_number(part) for part in _LISTED.split(gold)]
    numbers = [part for part in parts if part is not None]
    return _sorted(numbers) if len(numbers) == len(parts) > 1 else None


def several_after_mark(text: str, target: tuple[Number, ...]) -> tuple[Number, ...] | None:
    listed = _listed(text, target)
    if listed is not None:
        return listed
    own = sentences.first(text.lstrip(sentences.DRESSING))
    found = numerals.every(own)
    if len(found) != len(target):
        apart = numerals.every(own.replace(",", ", "))  # "500,700" are two numbers where two are asked for
        found = apart if len(apart) == len(target) else found
    if len(found) != len(target):
        found = numerals.every(_NUMBERED.sub(" ", own)) or found  # "(1) 5 and (2) 15"
    return _sorted(found) if found else None


def several_unmarked(text: str, target: tuple[Number, ...]) -> tuple[Number, ...] | None:
    listed = _listed(text, target, last=True)
    if listed is not None:
        return listed
    found = numerals.every(sentences.last_line(text)) or numerals.every(text)
    return _sorted(found[-len(target) :]) if found else None


_NUMBERED = re.compile(r"(?<![^\s:])\(?[1-9][.)]\s(?=\s?[$]?-?[A-Za-z0-9])")


def _listed(text: str, target: tuple[Number, ...], last: bool = False) -> tuple[Number, ...] | None:
    """The numbers of a list over several lines, with bullets or of one number each; None where there is no list."""
    items = sentences.items(text[-2000:] if last else text, last)
    if len(items) < 2:
        lines = [line for line in text[:2000].split("\n") if line.strip(sentences.DRESSING)][: len(target)]
        items = lines if not last and all(map(_NUMERAL_LINE.fullmatch, lines)) else []
    found = [number for item in items for number in numerals.every(item)]
    return _sorted(found) if len(items) > 1 and found else None


def _sorted(numbers: list[Number]) -> tuple[Number, ...]:
    return tuple(sorted(numbers, key=lambda n: (n.value is None, n.value or 0)))


def same_several(a: tuple[Number, ...], b: tuple[Number, ...]) -> bool:
    return len(a) == len(b) and all(numerals.same(x, y) for x, y in zip(a, b, strict=True))


def show_several(numbers: tuple[Number, ...]) -> str:
    return "; ".join(map(numerals.show, numbers))[:200]
