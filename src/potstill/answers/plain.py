"""Plain text: what models write in Unicode and LaTeX, in the few signs that the readers know.

    >>> plain("It is \\\\boxed{\\\\frac{1}{2}}"), plain("\u2212\uff15"), plain("2\u00bd cups"), plain("7\u202f200")
    ('It is \\\\boxed{1/2}', '-5', '2 1/2 cups', '7,200')

Every rule takes time linear in the text. Case, words and lines stay as they are.
"""

from __future__ import annotations

import re
import unicodedata
from typing import Final

_SPECIAL: Final = {
    "\u2212": "-",  # minus sign
    "\u2013": "-",  # en dash, written for a minus between numbers
    "\u2010": "-",
    "\u2011": "-",
    "\ufe63": "-",
    "\uff0d": "-",
    "\u00d7": "*",
    "\u22c5": "*",
    "\u00f7": "/",
    "\u2044": "/",
    "\u2018": "'",
    "\u2019": "'",
    "\u201c": '"',
    "\u201d": '"',
    "\u2026": "...",
    "\u2009": "\u2009",  # thin spaces may stand between thousands: kept until numbers are joined
    "\u202f": "\u2009",
    "\u066c": ",",
    "\u066b": ".",
}
_THIN = re.compile(r"(?<=[0-9])\u2009(?=[0-9]{3}(?![0-9]))")
_RAISED = str.maketrans("\u2070\u00b9\u00b2\u00b3\u2074\u2075\u2076\u2077\u2078\u2079\u207b", "0123456789-")
_POWER_OF_TEN = re.compile(r"(?<=10)[\u2070\u00b9\u00b2\u00b3\u2074-\u2079\u207b]+")

_WRAPPER = re.compile(r"\\(?:text|textbf|textit|mathrm|mathbf|mbox|emph|operatorname)\s?\{([^{}]*)\}")
_FRACTION = re.compile(r"([0-9])?\s?\\[dt]?frac\s?(?:\{([^{}]*)\}\s?\{([^{}]*)\}|([0-9])\s?([0-9]))")
_COMMANDS = re.compile(r"\\(?:left|right|displaystyle|quad|,|!|;|:|\[|\]|\(|\))|\^\{?\\circ\}?")
_SIGNS: Final = (("\\$", "$"), ("\\%", "%"), ("\\times", "*"), ("\\cdot", "*"), ("\\div", "/"), ("\\ ", " "))


class _Signs(dict[int, str]):
    """What each code point becomes, found out when it is first met."""

    def __missing__(self, code: int) -> str:
        sign = chr(code)
        self[code] = result = _replacement(sign)
        return result


def _replacement(sign: str) -> str:
    if sign in _SPECIAL or ord(sign) < 128:
        return _SPECIAL.get(sign, sign)
    kind = unicodedata.category(sign)
    if kind == "Nd":
        return str(unicodedata.decimal(sign))
    if kind == "Zs":
        return " "
    if kind == "Cf":  # zero-width signs
        return ""
    if 0xFF01 <= ord(sign) <= 0xFF5E:  # full-width forms of ASCII
        return chr(ord(sign) - 0xFEE0)
    if unicodedata.decomposition(sign).startswith("<fraction>"):
        return " " + unicodedata.normalize("NFKC", sign).replace("\u2044", "/")
    return sign


_TABLE: Final = _Signs()


def plain(text: str) -> str:
    """The text with Unicode digits, signs and spaces as ASCII, and LaTeX fractions and wrappers taken off."""
    if not text.isascii():
        text = _THIN.sub(",", text.translate(_TABLE)).replace("\u2009", " ")
        text = _POWER_OF_TEN.sub(lambda m: "^" + m[0].translate(_RAISED), text)
    if "{,}" in text:
        text = text.replace("{,}", ",")
    if "\\" in text:
        for tex, sign in _SIGNS:
            text = text.replace(tex, sign)
        text = _COMMANDS.sub(" ", _FRACTION.sub(_fraction, _WRAPPER.sub(r"\1", text)))
    return text


def _fraction(match: re.Match[str]) -> str:
    whole, top, bottom, short_top, short_bottom = match.groups()
    return f"{whole + ' ' if whole else ''}{top or short_top}/{bottom or short_bottom}"
