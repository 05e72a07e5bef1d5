"""Where a text calculates: its sums, GSM8K's marks around their results, and which sums are wrong.

    >>> text = "He has 48/2 = 24 pens, at $1.50 x 4 = $6."
    >>> marked = apply_edits(text, find_mark_insertions(text))
    >>> marked
    'He has 48/2 = <<48/2=24>>24 pens, at $1.50 x 4 = $<<1.50*4=6>>6.'
    >>> apply_edits(marked, find_mark_removals(marked)) == text, find_wrong_equations("So 3 * 4 = 13 and 10 / 3 = 3.33")
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

from potstill.calculator import (
    EXPRESSION_TAIL,
    EXPRESSION_TOKEN,
    LOOKBACK_CHARS,
    NUMBER_PATTERN,
    OPERATORS,
    evaluate_expression,
    find_trailing_expression,
    format_result,
)

VERSION: Final = 1  # of where marks stand, what they hold, and which sums count as wrong

MARK_PATTERN: Final = re.compile(r"<<[^<>=\n]*=[^<>\n]*>>")
STATED_RESULT: Final = re.compile(r"[ \t]*(-?\$?-?)(\d(?:[\d,]*\d)?(?:\.\d+)?|\.\d+)")
CONTINUATION: Final = re.compile(r"\s*[-+*/×÷−–xX(]\s*[\d$(.]|[:^]|[.,]\d|\s+\d+/")  # what is said is no number alone
# What else makes a number another one, where only a plain sum may be called wrong.
UNIT_PATTERN: Final = re.compile(
    r"\s*(?:%|°|k\b|m\b|hundred|thousand|million|billion|dozen|cent|per ?cent|and a )", re.I
)
TIMES_SIGN: Final = re.compile(r"(?<=[\d)]) ?[xX] ?(?=[\d($.])")
# Signs in a row, and two divisions in a row: 2 / 1/5 is read in two ways.
AMBIGUOUS_EXPRESSION: Final = re.compile(r"[-+*/×÷−–xX]\s*[-+*×÷−–xX]|[/÷]\s*[\d,.]+\s*[/÷]")


@dataclass(frozen=True, slots=True)
class Equation:
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
        result = format_result(self.value)
        if self.said != self.value or self.goes_on or result is None:
            return None
        return f"<<{compact_expression(self.expression)}={result}>>"


@dataclass(frozen=True, slots=True)
class Edit:
    """The characters from `start` to `end` become `text`; `until` is where the number behind them ends."""

    start: int
    end: int
    text: str
    until: int


def find_equations(text: str) -> Iterator[Equation]:
    """The sums of a text in their order; those inside of marks, finished or open, are left out."""
    marks = [found.span() for found in MARK_PATTERN.finditer(text)]
    equals = -1
    while (equals := text.find("=", equals + 1)) >= 0:
        low = max(0, equals - LOOKBACK_CHARS)
        opened = text.rfind("<<", low, equals)
        if any(start < equals < end for start, end in marks) or (opened >= 0 and ">>" not in text[opened:equals]):
            continue
        expression, said = find_trailing_expression(text[low:equals]), STATED_RESULT.match(text, equals + 1)
        if expression is None or said is None or not NUMBER_PATTERN.fullmatch(said[2]):
            continue
        found = evaluate_expression(expression)
        assert found is not None, "a tail has a value"
        number = Fraction(said[2].replace(",", "")) * (-1 if "-" in said[1] else 1)
        at = said.start(1) if said[1].startswith("-") else said.end(1)
        start = text.rindex(expression, low, equals)
        yield Equation(
            start, at, said.end(), expression, found, number, CONTINUATION.match(text, said.end()) is not None
        )


def find_mark_insertions(text: str) -> list[Edit]:
    """A mark before every number that is the calculator's result of the expression before it, where none stands yet."""
    return [Edit(each.at, each.at, each.mark, each.end) for each in find_equations(text) if each.mark is not None]


def find_mark_removals(text: str) -> list[Edit]:
    """Every mark taken away. Where one stands inside of another, the outer one is left to the next call."""
    found = []
    for mark in MARK_PATTERN.finditer(text):
        behind = STATED_RESULT.match(text, mark.end())
        found.append(Edit(*mark.span(), "", mark.end() if behind is None else behind.end()))
    return found


def apply_edits(text: str, edits: Sequence[Edit]) -> str:
    """The text with edits made that do not overlap, in their order."""
    parts, place = [], 0
    for edit in edits:
        parts += [text[place : edit.start], edit.text]
        place = edit.end
    return "".join([*parts, text[place:]])


def find_wrong_equations(text: str) -> tuple[str, ...]:
    """The sums that say another number than they come to, as they stand there. A rounded or cut number is not wrong;
    what may be read in two ways (a part of a longer expression, algebra, times, units) is not judged."""
    return tuple(
        text[each.start : each.end]
        for each in find_equations(text)
        if _is_judgeable(text, each) and not _is_rounded(text, each)
    )


def compact_expression(expression: str) -> str:
    """An expression as marks have it: no spaces, no currency, no commas in numbers, `*` and `/` for other signs.

    >>> compact_expression("$1,200 × (3 − 1)")
    '1200*(3-1)'
    """
    parts, place = [], 0
    while found := EXPRESSION_TOKEN.match(expression, place):
        number, sign = found.groups()
        parts.append(OPERATORS.get(sign, sign) if sign else number.replace(",", ""))
        place = found.end()
    return "".join(parts)


def _is_judgeable(text: str, each: Equation) -> bool:
    """Whether a sum is a plain one: nothing before it that it might belong to, nothing in it that is a letter."""
    found = EXPRESSION_TAIL.search(text[max(0, each.start - LOOKBACK_CHARS) : each.start])
    assert found is not None
    before = text[each.start - 1 : each.start]
    apart = not found[0].strip(" \t.,$") and not before.isalnum() and before not in tuple(":%^_#\\'\"°|")
    last = text[: each.start].rstrip()[-1:]
    plain = not re.search("[xX]", TIMES_SIGN.sub("*", each.expression)) and not AMBIGUOUS_EXPRESSION.search(
        each.expression
    )
    return apart and last not in tuple("%^/") and plain and not each.goes_on and not UNIT_PATTERN.match(text, each.end)


def _is_rounded(text: str, each: Equation) -> bool:
    decimals = len(text[each.at : each.end].partition(".")[2])
    return each.said == each.value or abs(each.said - each.value) < Fraction(1, 10**decimals)
