"""Finds the equations of a text, inserts and removes GSM8K's calculator marks, and finds wrong equations.

    >>> text = "He has 48/2 = 24 pens, at $1.50 x 4 = $6."
    >>> marked = apply_edits(text, find_mark_insertions(text))
    >>> marked
    'He has 48/2 = <<48/2=24>>24 pens, at $1.50 x 4 = $<<1.50*4=6>>6.'
    >>> apply_edits(marked, find_mark_removals(marked)) == text, find_wrong_equations("3 * 4 = 13 and 10 / 3 = 3.33")
    (True, ('3 * 4 = 13',))

The authors of GSM8K wrote marks into its solutions so that a calculator can complete them. A mark is inserted only before
a result that equals the calculator's, so marks never contradict the calculator. All functions are pure.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Final

from potstill import calculator

VERSION: Final = 1  # of the marks (their places and contents) and of the choice of wrong equations

MARK_PATTERN: Final = re.compile(r"<<[^<>=\n]*=[^<>\n]*>>")
STATED_RESULT: Final = re.compile(r"[ \t]*(-?\$?-?)(\d(?:[\d,]*\d)?(?:\.\d+)?|\.\d+)")
# Text after a stated result that makes it part of another expression or number.
CONTINUATION: Final = re.compile(r"\s*[-+*/×÷−–xX(]\s*[\d$(.]|[:^]|[.,]\d|\s+\d+/")
# Words after a stated result that change its value.
UNIT_PATTERN: Final = re.compile(
    r"\s*(?:%|°|k\b|m\b|hundred|thousand|million|billion|dozen|cent|per ?cent|and a )", re.I
)
TIMES_SIGN: Final = re.compile(r"(?<=[\d)]) ?[xX] ?(?=[\d($.])")
# Two operators in a row, or two divisions in a row: 2 / 1/5 can be read in two ways.
AMBIGUOUS_EXPRESSION: Final = re.compile(r"[-+*/×÷−–xX]\s*[-+*×÷−–xX]|[/÷]\s*[\d,.]+\s*[/÷]")


@dataclass(frozen=True, slots=True)
class Equation:
    """An expression in a text, its equals sign and the number after it. Offsets count characters.

    start, end    start and end of the whole equation in the text
    number_start  the start of the stated number, after a space and a currency sign
    expression    the expression as written
    value         the value of the expression
    stated        the number that the text states
    continues     whether the text after the number makes it part of another expression
    """

    start: int
    number_start: int
    end: int
    expression: str
    value: Fraction
    stated: Fraction
    continues: bool

    @property
    def mark(self) -> str | None:
        """The mark to insert before the number; None if the text does not state the calculator's result."""
        result = calculator.format_result(self.value)
        if self.stated != self.value or self.continues or result is None:
            return None
        return f"<<{compact_expression(self.expression)}={result}>>"


@dataclass(frozen=True, slots=True)
class Edit:
    """Replaces the characters from `start` to `end` by `text`. The number after these characters ends at `number_end`."""

    start: int
    end: int
    text: str
    number_end: int


def find_equations(text: str) -> Iterator[Equation]:
    """The equations of a text in order, without those inside a mark, which may be closed or still open."""
    marks = [match.span() for match in MARK_PATTERN.finditer(text)]
    equals, mark = -1, 0
    while (equals := text.find("=", equals + 1)) >= 0:
        while mark < len(marks) and marks[mark][1] <= equals:
            mark += 1
        low = max(0, equals - calculator.LOOKBACK_CHARS)
        opened = text.rfind("<<", low, equals)
        if (mark < len(marks) and marks[mark][0] < equals) or (opened >= 0 and ">>" not in text[opened:equals]):
            continue
        expression, result = (
            calculator.find_trailing_expression(text[low:equals]),
            STATED_RESULT.match(text, equals + 1),
        )
        if expression is None or result is None or not calculator.NUMBER_PATTERN.fullmatch(result[2]):
            continue
        value = calculator.evaluate_expression(expression)
        assert value is not None, "a trailing expression has a value"
        yield Equation(
            start=text.rindex(expression, low, equals),
            number_start=result.start(1) if result[1].startswith("-") else result.end(1),
            end=result.end(),
            expression=expression,
            value=value,
            stated=Fraction(result[2].replace(",", "")) * (-1 if "-" in result[1] else 1),
            continues=CONTINUATION.match(text, result.end()) is not None,
        )


def find_mark_insertions(text: str) -> list[Edit]:
    """The edits that insert a mark before every stated number that equals the calculator's result and has no mark yet."""
    return [
        Edit(equation.number_start, equation.number_start, equation.mark, equation.end)
        for equation in find_equations(text)
        if equation.mark is not None
    ]


def find_mark_removals(text: str) -> list[Edit]:
    """The edits that remove every mark. If a mark is inside another one, the next call removes the outer mark."""
    marks = [(mark, STATED_RESULT.match(text, mark.end())) for mark in MARK_PATTERN.finditer(text)]
    return [Edit(*mark.span(), "", (number or mark).end()) for mark, number in marks]


def apply_edits(text: str, edits: Sequence[Edit]) -> str:
    """The text with the edits applied. The edits are in order and do not overlap."""
    parts, position = [], 0
    for edit in edits:
        parts += [text[position : edit.start], edit.text]
        position = edit.end
    return "".join([*parts, text[position:]])


def find_wrong_equations(text: str) -> tuple[str, ...]:
    """The equations, as written, whose stated number is wrong. A rounded or truncated number is right.

    Ambiguous equations are not judged: parts of a longer expression, algebra, times of day, numbers with units.
    """
    return tuple(
        text[equation.start : equation.end]
        for equation in find_equations(text)
        if _is_judgeable(text, equation) and not _is_rounded(text, equation)
    )


def compact_expression(expression: str) -> str:
    """An expression as marks write it: without spaces, currency signs and commas, and with `*`, `/` and `-` for other
    signs of these operations."""
    parts, position = [], 0
    while match := calculator.EXPRESSION_TOKEN.match(expression, position):
        number, operator = match.groups()
        parts.append(calculator.OPERATORS.get(operator, operator) if operator else number.replace(",", ""))
        position = match.end()
    return "".join(parts)


def _is_judgeable(text: str, equation: Equation) -> bool:
    """Whether an equation can be read in only one way. Its expression must not begin earlier in the text, and it must have
    no letters and no unit."""
    start = equation.start
    tail = calculator.EXPRESSION_TAIL.search(text[max(0, start - calculator.LOOKBACK_CHARS) : start])
    assert tail is not None
    before = text[start - 1 : start]
    separate = not tail[0].strip(" \t.,$") and not before.isalnum() and before not in tuple(":%^_#\\'\"°|")
    separate = separate and _last_visible(text, start) not in tuple("%^/")
    has_letters = re.search("[xX]", TIMES_SIGN.sub("*", equation.expression))
    plain = not has_letters and not AMBIGUOUS_EXPRESSION.search(equation.expression)
    return separate and plain and not equation.continues and not UNIT_PATTERN.match(text, equation.end)


def _last_visible(text: str, end: int) -> str:
    """The last character before `end` that is not white space; empty if there is none."""
    while end and text[end - 1].isspace():
        end -= 1
    return text[max(0, end - 1) : end]


def _is_rounded(text: str, equation: Equation) -> bool:
    """Whether the stated number equals the value, or differs by less than its last decimal."""
    decimals = len(text[equation.number_start : equation.end].partition(".")[2])
    return abs(equation.stated - equation.value) < Fraction(1, 10**decimals)
