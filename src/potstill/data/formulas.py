"""A short solution in words of arithmetic from the formula that a set states: one operation a sentence.

    >>> solution_from_formula("(40+23)-29=34")
    '40 + 23 = 63. 63 - 29 = 34.'
    >>> solution_from_formula("2*60 (min/hour) + 34 (min) = 154 (min); 154 (min) + 75 (min) = 229 (min)")
    '2 * 60 = 120. 120 + 34 = 154. 154 + 75 = 229.'
    >>> solution_from_formula("61/6=10 r1") is None
    True

Operations are written in the order of calculation: left to right, inner brackets first. Values are exact. A formula has no
solution in words if it contains names, comparisons, ratios or remainders, or a value with more than four decimal places.
"""

from __future__ import annotations

import ast
import re
from fractions import Fraction
from typing import Final

OPERATORS: Final = {ast.Add: "+", ast.Sub: "-", ast.Mult: "*", ast.Div: "/"}
UNIT: Final = re.compile(r"\(\s*[A-Za-z][A-Za-z ./]*\)")  # (min/hour), (mL)
ARITHMETIC: Final = re.compile(r"[\d.+\-*/() ]+")
MAX_DECIMALS: Final = 4


def solution_from_formula(formula: str) -> str | None:
    """The sentences of a formula such as `7+2=9` or `3*4=12; 12-2=10`.

    None if the formula is not plain arithmetic, has a wrong result, or has no operation.
    """
    sentences: list[str] = []
    for equation in UNIT.sub(" ", formula).split(";"):
        expression, equals, stated = equation.partition("=")
        try:
            if not equals or not ARITHMETIC.fullmatch(expression.strip()):
                return None
            value = _write_steps(ast.parse(expression.strip(), mode="eval").body, sentences)
            if value != Fraction(stated.strip().replace(",", "")):
                return None
        except (SyntaxError, ValueError, ZeroDivisionError):
            return None
    return " ".join(sentences) or None


def _write_steps(node: ast.expr, sentences: list[str]) -> Fraction:
    """The value of an expression. Appends one sentence per operation. Raises ValueError if it is not arithmetic."""
    if isinstance(node, ast.Constant) and type(node.value) in (int, float):
        return Fraction(str(node.value))
    if not isinstance(node, ast.BinOp) or type(node.op) not in OPERATORS:
        raise ValueError("not an arithmetic operation")
    left, right = _write_steps(node.left, sentences), _write_steps(node.right, sentences)
    sign = OPERATORS[type(node.op)]
    value = (
        left + right if sign == "+" else left - right if sign == "-" else left * right if sign == "*" else left / right
    )
    sentences.append(f"{_write_number(left)} {sign} {_write_number(right)} = {_write_number(value)}.")
    return value


def _write_number(value: Fraction) -> str:
    """A number in digits. Raises ValueError if it needs more than `MAX_DECIMALS` decimal places."""
    scaled = value * 10**MAX_DECIMALS
    if scaled.denominator != 1:
        raise ValueError("too many decimal places")
    whole, decimals = divmod(abs(scaled.numerator), 10**MAX_DECIMALS)
    digits = f"{whole}.{decimals:0{MAX_DECIMALS}}".rstrip("0").rstrip(".")
    return f"-{digits}" if value < 0 else digits
