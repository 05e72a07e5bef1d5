"""The calculator: the exact result of the arithmetic expression at the end of a text, or None.

    >>> texts = ("They hold 2 * 5 =", "That is $1.50 x 4 =", "He has 48/2 = <<48/2=", "Then x =")
    >>> [complete_after_equals(text) for text in texts]
    [' 10', ' $6', '24>>', None]
    >>> evaluate_expression("(3 + 4) * 1/2"), evaluate_expression("9 ** 9"), evaluate_expression("1 / 0")
    (Fraction(7, 2), None, None)

An equals sign triggers the calculator, so a student whose vocabulary has no `<<` (as T5's) can use it. It supports
+ - * / // and parentheses over decimal numbers. The lengths of numbers and expressions are bounded, so every call is
fast. No text is executed as a program. All functions are pure.
"""

from __future__ import annotations

import math
import re
from fractions import Fraction
from typing import Final

VERSION: Final = 1  # of the completions: which texts get one, and its text
MARKS_VERSION: Final = 3  # of decoding with the calculator for students that write `<<`

MAX_DIGITS: Final = 15  # of a number
MAX_TOKENS: Final = 40  # numbers, operators and parentheses of an expression
MAX_DECIMALS: Final = 6  # of a result; the model itself writes a result with more decimals

OPERATORS: Final = {"×": "*", "x": "*", "X": "*", "÷": "/", "−": "-", "–": "-"}
EXPRESSION_TOKEN: Final = re.compile(r"\s*(?:\$?(\d[\d,]*(?:\.\d+)?|\.\d+)|(//|[-+*/()×xX÷−–]))")
NUMBER_PATTERN: Final = re.compile(r"\d+(?:\.\d+)?|\.\d+|\d{1,3}(?:,\d{3})+(?:\.\d+)?")
EXPRESSION_TAIL: Final = re.compile(r"[-\d.,+*/()$×xX÷−– \t]*\Z")
LOOKBACK_CHARS: Final = 200  # characters before the equals sign that are read


def complete_after_equals(text: str) -> str | None:
    """The completion of a text that ends in an expression and `=`; None if there is nothing to calculate.

    It is the result, with a space and a currency sign if the expression has them. After an open `<<` it is the result
    and `>>`.
    """
    if not text.endswith("="):
        return None
    before = text[:-1]
    opened = before.rfind("<<", max(0, len(before) - LOOKBACK_CHARS))
    if opened >= 0 and ">>" not in before[opened:]:
        result = _evaluate_and_format(before[opened + 2 :])
        return None if result is None else result + ">>"
    expression = find_trailing_expression(before) or ""
    result = _evaluate_and_format(expression)
    if result is None:
        return None
    currency = "$" if expression.lstrip("( ").startswith("$") else ""
    if currency and result.startswith("-"):
        currency, result = "", f"-${result[1:]}"
    return (" " if before.endswith(" ") else "") + currency + result


def find_trailing_expression(text: str) -> str | None:
    """The longest expression with at least one operation at the end of a text: "4 + 5" for "Of 3, 4 + 5". None if there
    is none."""
    match = EXPRESSION_TAIL.search(text[-LOOKBACK_CHARS:])
    assert match is not None
    tail = match[0]
    for start in range(len(tail)):
        if tail[start] in "($" or _is_number_start(tail, start):
            expression = tail[start:]
            if _has_operation(expression) and evaluate_expression(expression) is not None:
                return expression.rstrip()
    return None


def evaluate_expression(expression: str) -> Fraction | None:
    """The exact value of an expression; None if the text is not an expression, divides by zero, or is too long."""
    tokens = _tokenize_expression(expression)
    if not tokens or len(tokens) > MAX_TOKENS:
        return None
    try:
        value, end = _parse_sum(tokens, 0)
    except (ValueError, ZeroDivisionError):
        return None
    return value if end == len(tokens) else None


def format_result(number: Fraction) -> str | None:
    """A number as a solution writes it, such as 24 or 1.5; None if it has more than `MAX_DECIMALS` decimals or more than
    `MAX_DIGITS` digits before the decimal point."""
    scaled = number * 10**MAX_DECIMALS
    if scaled.denominator != 1 or abs(number) >= 10**MAX_DIGITS:
        return None
    whole, part = divmod(abs(scaled.numerator), 10**MAX_DECIMALS)
    decimals = f"{part:0{MAX_DECIMALS}d}".rstrip("0")
    sign = "-" if number < 0 else ""
    return f"{sign}{whole}.{decimals}" if decimals else f"{sign}{whole}"


def _evaluate_and_format(expression: str) -> str | None:
    value = evaluate_expression(expression)
    return None if value is None else format_result(value)


def _is_number_start(text: str, position: int) -> bool:
    """Whether a number begins exactly at a position. The number may have a sign."""
    before = text[position - 1] if position else " "
    if text[position].isdigit() or text[position] == ".":
        return not (before.isdigit() or before in ".,")
    # A minus is a sign, not an operator, directly before a digit and at the start or after a parenthesis or a space.
    return text[position] in "-−–" and before in " (" and text[position + 1 : position + 2].isdigit()


def _has_operation(expression: str) -> bool:
    tokens = _tokenize_expression(expression)
    return tokens is not None and sum(isinstance(token, Fraction) for token in tokens) > 1


def _tokenize_expression(expression: str) -> list[Fraction | str] | None:
    tokens: list[Fraction | str] = []
    position, end = 0, len(expression.rstrip())
    while position < end:
        match = EXPRESSION_TOKEN.match(expression, position, end)
        if match is None or len(tokens) > MAX_TOKENS:
            return None
        number, operator = match.groups()
        if operator is not None:
            tokens.append(OPERATORS.get(operator, operator))
        elif NUMBER_PATTERN.fullmatch(number) and len(number) <= MAX_DIGITS:
            tokens.append(Fraction(number.replace(",", "")))
        else:
            return None
        position = match.end()
    return tokens


# A recursive descent parser. Its functions return the value of the parsed part and the index after it.


def _parse_sum(tokens: list[Fraction | str], index: int) -> tuple[Fraction, int]:
    value, index = _parse_product(tokens, index)
    while index < len(tokens) and (operator := tokens[index]) in ("+", "-"):
        operand, index = _parse_product(tokens, index + 1)
        value = value + operand if operator == "+" else value - operand
    return value, index


def _parse_product(tokens: list[Fraction | str], index: int) -> tuple[Fraction, int]:
    value, index = _parse_operand(tokens, index)
    while index < len(tokens) and (operator := tokens[index]) in ("*", "/", "//"):
        operand, index = _parse_operand(tokens, index + 1)
        value = value * operand if operator == "*" else value / operand
        value = Fraction(math.floor(value)) if operator == "//" else value
    return value, index


def _parse_operand(tokens: list[Fraction | str], index: int) -> tuple[Fraction, int]:
    token = tokens[index] if index < len(tokens) else ")"
    if isinstance(token, Fraction):
        return token, index + 1
    if token in ("-", "+"):
        value, index = _parse_operand(tokens, index + 1)
        return (-value if token == "-" else value), index
    if token == "(":
        value, index = _parse_sum(tokens, index + 1)
        if index < len(tokens) and tokens[index] == ")":
            return value, index + 1
    raise ValueError("not an expression")
