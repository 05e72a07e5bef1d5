"""LaTeX: what models write in it, in the few signs that the readers know.

>>> read(r"is \\frac{3}{4} cups"), read(r"1\\frac12"), read(r"\\frac{\\frac{1}{2}}{3}"), read(r"0.\\overline{3}")
('is 3/4 cups', '1 1/2', '1/6', '1/3')
>>> read(r"3\\sqrt{2}"), read(r"1 \\text{ or } 2"), read(r"\\frac{\\pi}{4}")
('3\u221a(2)', '1 or 2', '(\u03c0)/(4)')
"""

from __future__ import annotations

import re
from fractions import Fraction
from typing import Final

_PASSES: Final = 4  # fractions, roots and wrappers within each other
_WRAPPER = re.compile(
    r"\\(?:text(?:bf|it|rm|sf|tt)?|math(?:rm|bf|it|sf|tt)|mbox|emph|operatorname|underline|hbox)\s?\{([^{}]*)\}"
)
_ARGUMENT: Final = r"(?:\{([^{}]*)\}|([0-9a-zA-Z]))"
_FRACTION = re.compile(rf"((?<![0-9.,])[0-9]{{1,9}})?(\s?)\\[dtc]?frac\s?{_ARGUMENT}\s?{_ARGUMENT}")
_RATIONAL = re.compile(r"\s*(-?)\s*([0-9]{1,3}(?:,[0-9]{3})+|[0-9]{1,60})(\.[0-9]{1,60})?(?:/([0-9]{1,60}))?\s*")
_ROOT = re.compile(r"\\sqrt\s?(?:\[[^\[\]]{0,9}\])?\s?(?:\{([^{}]*)\}|([0-9a-zA-Z]))")
_REPEATING = re.compile(
    r"(?<![0-9.,])([0-9]{1,9})\.([0-9]{0,9})(?:\\(?:overline|bar|dot)\s?(?:\{([0-9]{1,9})\}|([0-9]))|\(([0-9]{1,9})\))"
)
_COMMANDS = re.compile(
    r"\\(?:left|right|displaystyle|boldsymbol|quad|qquad|bigl?|bigr?|Bigl?|Bigr?|large|Large|,|!|;|:|\[|\]|\(|\))"
    r"(?![a-z])|\^\{?\\circ\}?|\\degree\b"
)
_SIGNS: Final = (
    ("\\$", "$"), ("\\%", "%"), ("\\#", "#"), ("\\&", "&"), ("\\times", "*"), ("\\cdot", "*"), ("\\div", "/"),
    ("\\pm", "\u00b1"), ("\\geqslant", "\u2265"), ("\\leqslant", "\u2264"), ("\\geq", "\u2265"), ("\\leq", "\u2264"),
    ("\\neq", "\u2260"), ("\\approx", " "), ("\\infty", "\u221e"), ("\\rightarrow", "\u2192"), ("\\to ", "\u2192 "),
    ("\\ldots", "..."), ("\\dots", "..."), ("\\ ", " "),
)  # fmt: skip
_LETTERS = re.compile(r"\\(pi|theta|alpha|beta|phi|lambda|mu|sigma|omega|log|ln|sin|cos|tan|exp)(?![a-zA-Z])")
_COMPARED = re.compile(r"\\(ge|le|ne|gt|lt)(?![a-zA-Z])")
_COMPARISONS: Final = {"ge": "\u2265", "le": "\u2264", "ne": "\u2260", "gt": ">", "lt": "<"}
_GREEK: Final = {"pi": "\u03c0", "theta": "\u03b8"}
_SPACES = re.compile(r"(?<=\S) {2,}")


def read(text: str) -> str:
    """The text with LaTeX's fractions, roots, wrappers and signs in plain ones. Linear: a few passes over it.

    A fraction of numbers becomes a number, one of anything else stays an expression.
    """
    for tex, sign in _SIGNS:
        text = text.replace(tex, sign)
    text = _COMPARED.sub(lambda m: _COMPARISONS[m[1]], text)
    text = _LETTERS.sub(lambda m: _GREEK.get(m[1], f"{m[1]} " if len(m[1]) < 4 else "\u03b8"), text)
    text = _REPEATING.sub(_repeating, text)
    for _ in range(_PASSES):
        before = text
        text = _ROOT.sub(lambda m: f"\u221a({m[1] or m[2]})", _WRAPPER.sub(r"\1", text))
        text = _FRACTION.sub(_fraction, text)
        if text == before:
            break
    return _SPACES.sub(" ", _COMMANDS.sub(" ", text))


def repeating(text: str) -> str:
    """0.(3) as a fraction."""
    return _REPEATING.sub(_repeating, text)


def _repeating(match: re.Match[str]) -> str:
    whole, start = match[1], match[2]
    period = match[3] or match[4] or match[5]
    below = 10 ** len(start) * (10 ** len(period) - 1)
    value = Fraction(int(whole + start + period) - int(whole + start), below)
    return f"{value.numerator}/{value.denominator}"


def _fraction(match: re.Match[str]) -> str:
    whole, space = match[1], match[2]
    top, bottom = (match[3] or match[4] or ""), (match[5] or match[6] or "")
    above, below = _rational(top), _rational(bottom)
    if above is None or below is None or not below[0]:
        return f"{whole or ''}{space}({top})/({bottom})"
    if above[1] and below[1]:
        share = f"{above[2]}/{below[2]}"
    else:
        value = above[0] / below[0]
        share = f"{value.numerator}/{value.denominator}"
    return f"{whole} {share}" if whole else f"{space}{share}"


def _rational(text: str) -> tuple[Fraction, bool, str] | None:
    """Value, whether it is written without a fraction, and the writing. None where it is no plain number."""
    match = _RATIONAL.fullmatch(text)
    if match is None or (match[4] and not int(match[4])):
        return None
    digits = match[1] + match[2].replace(",", "") + (match[3] or "")
    value = Fraction(digits)
    return (value / int(match[4]) if match[4] else value), not match[4], digits
