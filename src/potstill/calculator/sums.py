"""Where a text calculates: its sums, GSM8K's marks around their results, and which sums are wrong.

    >>> text = "He has 48/2 = 24 pens, at $1.50 x 4 = $6."
    >>> marked = changed(text, insertions(text))
    >>> marked
    'He has 48/2 = <<48/2=24>>24 pens, at $1.50 x 4 = $<<1.50*4=6>>6.'
    >>> changed(marked, removals(marked)) == text, wrong("So 3 * 4 = 13 and 10 / 3 = 3.33")
    (True, ('3 * 4 = 13',))

A mark is what the authors of GSM8K wrote into its solutions for a calculator to complete. It is inserted only where the
text has the calculator's own result, so it never says anything that the calculator would not. Pure.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Final

from potstill.calculator import NUMBER, REACH, SIGNS, TAIL, TOKEN, shown, tail, value

VERSION: Final = 1  # of where marks stand, what they hold, and which sums count as wrong

MARK: Final = re.compile(r"<<[^<>=\n]*=[^<>\n]*>>")
SAID: Final = re.compile(r"[ \t]*(-?\$?-?)(\d(?:[\d,]*\d)?(?:\.\d+)?|\.\d+)")
GOES_ON: Final = re.compile(r"\s*[-+*/×÷−–xX(]\s*[\d$(.]|[:^]|[.,]\d|\s+\d+/")  # what is said is no number alone
# What else makes a number another one, where only a plain sum may be called wrong.
UNIT: Final = re.compile(r"\s*(?:%|°|k\b|m\b|hundred|thousand|million|billion|dozen|cent|per ?cent|and a )", re.I)
TIMES: Final = re.compile(r"(?<=[\d)]) ?[xX] ?(?=[\d($.])")
# Signs in a row, and two divisions in a row: 2 / 1/5 is read in two ways.
DOUBTFUL: Final = re.compile(r"[-+*/×÷−–xX]\s*[-+*×÷−–xX]|[/÷]\s*[\d,.]+\s*[/÷]")


@dataclass(frozen=True, slots=True)
class Sum:
    """An expression of the text, its equals sign and the number behind it.

    start, end  of the whole in the text
    at          where the number begins, behind a space and a currency sign
    expression  as the text writes it; `value` is what it comes to
    said        the number that stands there
    goes_on     whether something stands behind the number that makes it a part of another expression
    """

    start: int
    at: int
    end: int
    expression: str
    value: Fraction
    said: Fraction
    goes_on: bool

    @property
    def mark(self) -> str | None:
        """What belongs before the number; None where the text does not have the calculator's own result."""
        result = shown(self.value)
        if self.said != self.value or self.goes_on or result is None:
            return None
        return f"<<{compact(self.expression)}={result}>>"


@dataclass(frozen=True, slots=True)
class Edit:
    """The characters from `start` to `end` become `text`; `until` is where the number behind them ends."""

    start: int
    end: int
    text: str
    until: int


def sums(text: str) -> Iterator[Sum]:
    """The sums of a text in their order; those inside of marks, finished or open, are left out."""
    marks = [found.span() for found in MARK.finditer(text)]
    equals = -1
    while (equals := text.find("=", equals + 1)) >= 0:
        low = max(0, equals - REACH)
        opened = text.rfind("<<", low, equals)
        if any(start < equals < end for start, end in marks) or (opened >= 0 and ">>" not in text[opened:equals]):
            continue
        expression, said = tail(text[low:equals]), SAID.match(text, equals + 1)
        if expression is None or said is None or not NUMBER.fullmatch(said[2]):
            continue
        found = value(expression)
        assert found is not None, "a tail has a value"
        number = Fraction(said[2].replace(",", "")) * (-1 if "-" in said[1] else 1)
        at = said.start(1) if said[1].startswith("-") else said.end(1)
        start = text.rindex(expression, low, equals)
        yield Sum(start, at, said.end(), expression, found, number, GOES_ON.match(text, said.end()) is not None)


def insertions(text: str) -> list[Edit]:
    """A mark before every number that is the calculator's result of the expression before it, where none stands yet."""
    return [Edit(each.at, each.at, each.mark, each.end) for each in sums(text) if each.mark is not None]


def removals(text: str) -> list[Edit]:
    """Every mark taken away. Where one stands inside of another, the outer one is left to the next call."""
    found = []
    for mark in MARK.finditer(text):
        behind = SAID.match(text, mark.end())
        found.append(Edit(*mark.span(), "", mark.end() if behind is None else behind.end()))
    return found


def changed(text: str, edits: Sequence[Edit]) -> str:
    """The text with edits made that do not overlap, in their order."""
    parts, place = [], 0
    for edit in edits:
        parts += [text[place : edit.start], edit.text]
        place = edit.end
    return "".join([*parts, text[place:]])


def wrong(text: str) -> tuple[str, ...]:
    """The sums that say another number than they come to, as they stand there. A rounded or cut number is not wrong;
    what may be read in two ways (a part of a longer expression, algebra, times, units) is not judged."""
    return tuple(text[each.start : each.end] for each in sums(text) if _judged(text, each) and not _rounded(text, each))


def compact(expression: str) -> str:
    """An expression as marks have it: no spaces, no currency, no commas in numbers, `*` and `/` for other signs.

    >>> compact("$1,200 × (3 − 1)")
    '1200*(3-1)'
    """
    parts, place = [], 0
    while found := TOKEN.match(expression, place):
        number, sign = found.groups()
        parts.append(SIGNS.get(sign, sign) if sign else number.replace(",", ""))
        place = found.end()
    return "".join(parts)


def _judged(text: str, each: Sum) -> bool:
    """Whether a sum is a plain one: nothing before it that it might belong to, nothing in it that is a letter."""
    found = TAIL.search(text[max(0, each.start - REACH) : each.start])
    assert found is not None
    before = text[each.start - 1 : each.start]
    apart = not found[0].strip(" \t.,$") and not before.isalnum() and before not in tuple(":%^_#\\'\"°|")
    last = text[: each.start].rstrip()[-1:]
    plain = not re.search("[xX]", TIMES.sub("*", each.expression)) and not DOUBTFUL.search(each.expression)
    return apart and last not in tuple("%^/") and plain and not each.goes_on and not UNIT.match(text, each.end)


def _rounded(text: str, each: Sum) -> bool:
    decimals = len(text[each.at : each.end].partition(".")[2])
    return each.said == each.value or abs(each.said - each.value) < Fraction(1, 10**decimals)
