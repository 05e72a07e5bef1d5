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


def gold_number(gold: str) -> Number | None:
    text = gold.strip().lstrip("$\u00a3\u20ac").strip()
    match = numerals.ITEM.match(text) or numerals.ITEM.match(gold.strip())
    if match is None:
        return numerals.only_words(gold)
    rest = text[match.end() :] if match.string is text else gold.strip()[match.end() :]
    rest = rest.removeprefix(")") if match["minus"] and "(" in match[0] else rest
    number = numerals.read(match)
    return number if number.value is not None and _UNIT.fullmatch(rest) else None


_SPACED_MINUS = re.compile(r"-\s+(?=[$]?[.0-9])")


def number_after_mark(text: str, target: Number) -> Number | None:
    bare = text.lstrip(" $*\n").rstrip(" .$*\n")
    if bare.isdecimal() and bare.isascii() and len(bare) < 100:
        return Number(Fraction(int(bare)))
    text = text.lstrip(" \t\n:=*_\"'`")
    match = _SPACED_MINUS.match(text)
    if match is not None:
        text = "-" + text[match.end() :]
    return numerals.first(sentences.first(text))


def number_unmarked(text: str, target: Number) -> Number | None:
    return numerals.last(text) or numerals.only_words(text)


# several numbers, in any order

_LISTED = re.compile(r";|,\s+")


def gold_several(gold: str) -> tuple[Number, ...] | None:
    parts = [gold_number(part) for part in _LISTED.split(gold)]
    numbers = [part for part in parts if part is not None]
    return _sorted(numbers) if len(numbers) == len(parts) > 1 else None


def several_after_mark(text: str, target: tuple[Number, ...]) -> tuple[Number, ...] | None:
    own = sentences.first(text.lstrip(sentences.DRESSING))
    found = numerals.every(own)
    if len(found) != len(target):
        apart = numerals.every(own.replace(",", ", "))  # "500,700" are two numbers where two are asked for
        found = apart if len(apart) == len(target) else found
    return _sorted(found) if found else None


def several_unmarked(text: str, target: tuple[Number, ...]) -> tuple[Number, ...] | None:
    found = numerals.every(sentences.last_line(text)) or numerals.every(text)
    return _sorted(found[-len(target) :]) if found else None


def _sorted(numbers: list[Number]) -> tuple[Number, ...]:
    return tuple(sorted(numbers, key=lambda n: (n.value is None, n.value or 0)))


def same_several(a: tuple[Number, ...], b: tuple[Number, ...]) -> bool:
    return len(a) == len(b) and all(numerals.same(x, y) for x, y in zip(a, b, strict=True))


def show_several(numbers: tuple[Number, ...]) -> str:
    return "; ".join(map(numerals.show, numbers))[:200]
