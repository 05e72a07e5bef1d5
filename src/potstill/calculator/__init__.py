"""What the equals sign of an arithmetic expression asks for: exact, or nothing.

    >>> texts = ("They hold 2 * 5 =", "That is $1.50 x 4 =", "He has 48/2 = <<48/2=", "Then x =")
    >>> [complete_after_equals(text) for text in texts]
    [' 10', ' $6', '24>>', None]
    >>> evaluate_expression("(3 + 4) * 1/2"), evaluate_expression("9 ** 9"), evaluate_expression("1 / 0")
    (Fraction(7, 2), None, None)

The trigger is the text itself, so a student whose vocabulary has no marks (T5 reads `<<` as unknown) can use it. Only
+ - * / and parentheses over decimal numbers; digits and operations are bounded, so nothing takes long, and nothing is
ever evaluated as a program. Pure.
"""

from __future__ import annotations

import re
from fractions import Fraction
from typing import Final

VERSION: Final = 1  # of which texts are completed, and how
MARKS_VERSION: Final = (
    3  # of how a student is dealt with that opens marks itself; only answers with a calculator depend on it
)

MAX_DIGITS: Final = 15  # most of one number
MAX_TOKENS: Final = 40  # most numbers, operators and parentheses of one expression
MAX_DECIMALS: Final = 6  # most of a result; a longer one is left to the model

OPERATORS: Final = {"×": "*", "x": "*", "X": "*", "÷": "/", "−": "-", "–": "-"}
EXPRESSION_TOKEN: Final = re.compile(r"\s*(?:\$?(\d[\d,]*(?:\.\d+)?|\.\d+)|(//|[-+*/()×xX÷−–]))")
NUMBER_PATTERN: Final = re.compile(r"\d+(?:\.\d+)?|\.\d+|\d{1,3}(?:,\d{3})+(?:\.\d+)?")
EXPRESSION_TAIL: Final = re.compile(r"[-\d.,+*/()$×xX÷−– \t]*\Z")
LOOKBACK_CHARS: Final = 200  # characters before the equals sign that are looked at


def complete_after_equals(text: str) -> str | None:
    """What belongs behind a text that ends in an expression and `=`, with the space and the currency sign that it calls
    for; inside of an open `<<` the result and `>>`. None where there is nothing to calculate."""
    if not text.endswith("="):
        return None
    before = text[:-1]
    opened = before.rfind("<<", max(0, len(before) - LOOKBACK_CHARS))
    if opened >= 0 and ">>" not in before[opened:]:
        written = _evaluate_and_format(before[opened + 2 :])
        return None if written is None else written + ">>"
    expression = find_trailing_expression(before)
    written = None if expression is None else _evaluate_and_format(expression)
    if written is None or expression is None:
        return None
    currency = "$" if expression.lstrip("( ").startswith("$") else ""
    if currency and written.startswith("-"):
        currency, written = "", f"-${written[1:]}"
    return (" " if before.endswith(" ") else "") + currency + written


def find_trailing_expression(text: str) -> str | None:
    """The longest end of the text that is an expression of at least one operation; None if there is none.

    >>> find_trailing_expression("Of 3, 4 + 5"), find_trailing_expression("box 3"), find_trailing_expression("2 + 2 = 4 - 1")
    ('4 + 5', None, '4 - 1')
    """
    found = EXPRESSION_TAIL.search(text[-LOOKBACK_CHARS:])
    assert found is not None
    rest = found[0]
    starts = [at for at in range(len(rest)) if rest[at] in "($" or _is_number_start(rest, at)]
    for at in starts:
        part = rest[at:]
        if _has_operation(part) and evaluate_expression(part) is not None:
            return part.rstrip()
    return None


def evaluate_expression(expression: str) -> Fraction | None:
    """The exact value of an expression; None where it is none, divides by zero, or is larger than the bounds."""
    parts = _tokenize_expression(expression)
    if parts is None or not parts or len(parts) > MAX_TOKENS:
        return None
    try:
        found, rest = _parse_sum(parts, 0)
    except (ValueError, ZeroDivisionError):
        return None
    return found if rest == len(parts) else None


def format_result(number: Fraction) -> str | None:
    """A number as a solution writes it: 24, 1.5; None if that takes more than `DECIMALS` decimals.

    >>> [format_result(value) for value in (Fraction(7, 2), Fraction(-1, 3), Fraction(4, 2), Fraction(1, 8))]
    ['3.5', None, '2', '0.125']
    """
    scaled = number * 10**MAX_DECIMALS
    if scaled.denominator != 1 or abs(number) >= 10**MAX_DIGITS:
        return None
    whole, part = divmod(abs(scaled.numerator), 10**MAX_DECIMALS)
    decimals = f"{part:0{MAX_DECIMALS}d}".rstrip("0")
    sign = "-" if number < 0 else ""
    return f"{sign}{whole}.{decimals}" if decimals else f"{sign}{whole}"


def _evaluate_and_format(expression: str) -> str | None:
    found = evaluate_expression(expression)
    return None if found is None else format_result(found)


def _is_number_start(text: str, at: int) -> bool:
    """Whether a number, with its sign if it has one, begins here and not inside of one."""
    before = text[at - 1] if at else " "
    if text[at].isdigit() or text[at] == ".":
        return not (before.isdigit() or before in ".,")
    # a sign of its own: at the start, or behind another operator or a space and right before a digit
    return text[at] in "-−–" and before in " (" and at + 1 < len(text) and text[at + 1].isdigit()


def _has_operation(expression: str) -> bool:
    parts = _tokenize_expression(expression)
    return parts is not None and sum(isinstance(part, Fraction) for part in parts) > 1


def _tokenize_expression(expression: str) -> list[Fraction | str] | None:
    found: list[Fraction | str] = []
    at, end = 0, len(expression.rstrip())
    while at < end:
        part = EXPRESSION_TOKEN.match(expression, at, end)
        if part is None or len(found) > MAX_TOKENS:
            return None
        number, sign = part.groups()
        if sign is not None:
            found.append(OPERATORS.get(sign, sign))
        else:
            if not NUMBER_PATTERN.fullmatch(number) or len(number) > MAX_DIGITS:
                return None
            found.append(Fraction(number.replace(",", "")))
        at = part.end()
    return found


def _parse_sum(parts: list[Fraction | str], at: int) -> tuple[Fraction, int]:
    found, at = _parse_product(parts, at)
    while at < len(parts) and parts[at] in ("+", "-"):
        other, after = _parse_product(parts, at + 1)
        found, at = (found + other if parts[at] == "+" else found - other), after
    return found, at


def _parse_product(parts: list[Fraction | str], at: int) -> tuple[Fraction, int]:
    found, at = _parse_operand(parts, at)
    while at < len(parts) and (sign := parts[at]) in ("*", "/", "//"):
        other, at = _parse_operand(parts, at + 1)
        found = found * other if sign == "*" else found / other if sign == "/" else Fraction(found // other)
    return found, at


def _parse_operand(parts: list[Fraction | str], at: int) -> tuple[Fraction, int]:
    part = parts[at] if at < len(parts) else ")"
    if isinstance(part, Fraction):
        return part, at + 1
    if part in ("-", "+"):
        found, at = _parse_operand(parts, at + 1)
        return (-found if part == "-" else found), at
    if part == "(":
        found, at = _parse_sum(parts, at + 1)
        if at < len(parts) and parts[at] == ")":
            return found, at + 1
    raise ValueError("not an expression")
