"""Plain text: what models write in Unicode, Markdown and LaTeX, in the few signs that the readers know.

    >>> plain("It is \\\\boxed{\\\\frac{1}{2}}"), plain("\u2212\uff15"), plain("2 \u00bd cups"), plain("7\u202f200")
    ('It is \\\\boxed{1/2}', '-5', '2 1/2 cups', '7,200')
    >>> plain("1'000'000"), plain("10\\\\,000"), plain("~~20~~ 18"), plain("x\\n```text\\n18\\n```")
    ('1,000,000', '10,000', ' 18', 'x\\n18\\n')

Every rule takes time linear in the text. Case, words and lines stay as they are.
"""

from __future__ import annotations

import re
import unicodedata
from typing import Final

from potstill.answers import latex

_SPECIAL: Final = {
    "\u2212": "-",  # minus sign
    "\u2013": "-",  # en dash, written for a minus between numbers
    "\u2010": "-",
    "\u2011": "-",
    "\ufe63": "-",
    "\uff0d": "-",
    "\u2796": "-",
    "\u2795": "+",
    "\u2797": "/",
    "\u2716": "*",
    "\u00d7": "*",
    "\u22c5": "*",
    "\u00f7": "/",
    "\u2044": "/",
    "\u2236": ":",
    "\u2018": "'",
    "\u2019": "'",
    "\u201c": '"',
    "\u201d": '"',
    "\u2026": "...",
    "\u2a7e": "\u2265",
    "\u2a7d": "\u2264",
    # These may stand between thousands: kept until numbers are joined.
    "\u2009": "\u2009",
    "\u202f": "\u2009",
    "\u00a0": "\u2009",
    "\u2007": "\u2009",
    "\ufe0f": "",  # how a sign is drawn, and the frame of a keycap
    "\ufe0e": "",
    "\u20e3": "",
    "\u066c": ",",
    "\u066b": ".",
}
_GAP: Final = r"(?:\u2009|~|'|_|\\[,;:! ]|,\\!|\{\\?,\}(?:\\!)?)"
_GROUPED = re.compile(rf"(?<![\w.,'])[0-9]{{1,3}}(?:{_GAP}[0-9]{{3}}(?![0-9]))+")
_GAPS = re.compile(_GAP)
_RAISED = str.maketrans("\u2070\u00b9\u00b2\u00b3\u2074\u2075\u2076\u2077\u2078\u2079\u207b", "0123456789-")
_POWER_OF_TEN = re.compile(r"(?<=10)[\u2070\u00b9\u00b2\u00b3\u2074-\u2079\u207b]+")
_WIDE = re.compile(r"(?<=[0-9]) {2,}(?=[0-9]{1,9}/[0-9])")

_STRUCK = re.compile(r"~~[^~\n]{1,200}~~|<(del|strike)>[^<>]{0,200}</\1>")
_HTML = re.compile(
    r"</?(?:b|i|u|em|strong|span|font|p|div|mark|big|small|code|pre|sub|center|h[1-6]|li|ul|ol)(?:\s[^<>]{0,200})?/?>",
    re.IGNORECASE,
)
_BREAK = re.compile(r"<br\s?/?>", re.IGNORECASE)
_EMPHASIS = re.compile(r"(?<![\w\\])(_{1,3})(?=[^\s_])([^_\n]{1,200})(?<!\s)\1(?!\w)")
_FENCE = re.compile(r"^[ \t]*(?:`{3,}|~{3,})[ \t]*[\w+#.-]*[ \t]*(?:\n|\Z)", re.MULTILINE)
# GLM's box is a box.
_TOKENS: Final = (("<|begin_of_box|>", "\\boxed{"), ("<|end_of_box|>", "}"))
_PERIOD = re.compile(r"\.[0-9]+\([0-9]")
_SURROGATE = re.compile("[\ud800-\udfff]")
_PIECE = re.compile(r"[\s\S]{1,1000}(?=[\x00-\x7f])|[\s\S]{1,1000}")


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
    made = unicodedata.decomposition(sign)
    if made.startswith("<fraction>"):
        return " " + unicodedata.normalize("NFKC", sign).replace("\u2044", "/")
    if made.startswith("<circle>") and kind == "No":
        return f" {unicodedata.normalize('NFKC', sign)} "
    return sign


_TABLE: Final = _Signs()


def whole(text: str) -> str:
    """The text without halves of surrogate pairs: two halves become their sign, one alone U+FFFD."""
    if text.isascii() or _SURROGATE.search(text) is None:
        return text
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


def composed(text: str) -> str:
    """The text in Unicode's composed form (NFC).

    In pieces, which begin with ASCII signs where there are any: a long run of combining signs would take the square of
    its length.
    """
    if text.isascii() or unicodedata.is_normalized("NFC", text):
        return text
    return "".join(unicodedata.normalize("NFC", piece) for piece in _PIECE.findall(text))


def exactly(text: str) -> str:
    """The text as it is, but for its Unicode form and the lines of a code fence."""
    return unfenced(composed(text))


def unfenced(text: str) -> str:
    """The text without the lines that open and close a block of code."""
    return _FENCE.sub("", text) if "```" in text or "~~~" in text else text


def plain(text: str) -> str:
    """The text with Unicode digits, signs and spaces as ASCII, and without the dress of Markdown, HTML and LaTeX."""
    if "<" in text:
        for token, sign in _TOKENS:
            text = text.replace(token, sign)
        text = _BREAK.sub("\n", text.replace("<sup>", "^").replace("</sup>", ""))
        text = _HTML.sub("", _STRUCK.sub("", text))
    elif "~~" in text:
        text = _STRUCK.sub("", text)
    text = unfenced(text)
    if "_" in text:
        text = _EMPHASIS.sub(r"\2", text)
    if not text.isascii():
        text = composed(text).translate(_TABLE)
        text = _POWER_OF_TEN.sub(lambda m: "^" + m[0].translate(_RAISED), text)
        text = _WIDE.sub(" ", text)
    if "\\" in text or "'" in text or "_" in text or "~" in text or "\u2009" in text:
        text = _GROUPED.sub(lambda m: _GAPS.sub(",", m[0]), text).replace("\u2009", " ")
    if "{,}" in text:
        text = text.replace("{,}", ",")
    if "\\" in text:
        return latex.read(text)
    return latex.repeating(text) if ".(" in text or ("(" in text and _PERIOD.search(text)) else text
