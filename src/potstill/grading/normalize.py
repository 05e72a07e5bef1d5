"""Normalization of model texts and gold answers; extraction of the sentence, line or list that contains the answer.

    >>> to_plain_text("It is \\\\boxed{\\\\frac{1}{2}}"), to_plain_text("\u2212\uff15"), to_plain_text("2 \u00bd cups")
    ('It is \\\\boxed{1/2}', '-5', '2 1/2 cups')
    >>> convert_latex(r"is 1\\frac{3}{4} cups"), convert_latex(r"\\frac{\\frac{1}{2}}{3}")
    ('is 1 3/4 cups', '1/6')
    >>> read_answer_sentence(": **Mrs. Hilt**. She has 5 apples."), read_last_line("First.\\nLast.\\n")
    ('Mrs. Hilt', 'Last.')

Every rule takes time linear in the text. No rule changes letter case, words or lines.
"""

from __future__ import annotations

import re
import unicodedata
from fractions import Fraction
from typing import Final

_PASSES: Final = 4  # levels of nested fractions, roots and wrappers
_LATEX_WRAPPER = re.compile(
    r"\\(?:text(?:bf|it|rm|sf|tt)?|math(?:rm|bf|it|sf|tt)|mbox|emph|operatorname|underline|hbox)\s?\{([^{}]*)\}"
)
_ARGUMENT: Final = r"(?:\{([^{}]*)\}|([0-9a-zA-Z]))"
_LATEX_FRACTION = re.compile(rf"((?<![0-9.,])[0-9]{{1,9}})?(\s?)\\[dtc]?frac\s?{_ARGUMENT}\s?{_ARGUMENT}")
_RATIONAL = re.compile(r"\s*(-?)\s*([0-9]{1,3}(?:,[0-9]{3})+|[0-9]{1,60})(\.[0-9]{1,60})?(?:/([0-9]{1,60}))?\s*")
_LATEX_ROOT = re.compile(r"\\sqrt\s?(?:\[[^\[\]]{0,9}\])?\s?(?:\{([^{}]*)\}|([0-9a-zA-Z]))")
_REPEATING = re.compile(
    r"(?<![0-9.,])([0-9]{1,9})\.([0-9]{0,9})(?:\\(?:overline|bar|dot)\s?(?:\{([0-9]{1,9})\}|([0-9]))|\(([0-9]{1,9})\))"
)
_LATEX_COMMANDS = re.compile(
    r"\\(?:left|right|displaystyle|boldsymbol|quad|qquad|bigl?|bigr?|Bigl?|Bigr?|large|Large|,|!|;|:|\[|\]|\(|\))"
    r"(?![a-z])|\^\{?\\circ\}?|\\degree\b"
)
_LATEX_SIGNS: Final = (
    ("\\$", "$"), ("\\%", "%"), ("\\#", "#"), ("\\&", "&"), ("\\times", "*"), ("\\cdot", "*"), ("\\div", "/"),
    ("\\pm", "\u00b1"), ("\\geqslant", "\u2265"), ("\\leqslant", "\u2264"), ("\\geq", "\u2265"), ("\\leq", "\u2264"),
    ("\\neq", "\u2260"), ("\\approx", " "), ("\\infty", "\u221e"), ("\\rightarrow", "\u2192"), ("\\to ", "\u2192 "),
    ("\\ldots", "..."), ("\\dots", "..."), ("\\ ", " "),
)  # fmt: skip
_LATEX_LETTERS = re.compile(r"\\(pi|theta|alpha|beta|phi|lambda|mu|sigma|omega|log|ln|sin|cos|tan|exp)(?![a-zA-Z])")
_LATEX_COMPARISON = re.compile(r"\\(ge|le|ne|gt|lt)(?![a-zA-Z])")
_COMPARISONS: Final = {"ge": "\u2265", "le": "\u2264", "ne": "\u2260", "gt": ">", "lt": "<"}
_GREEK: Final = {"pi": "\u03c0", "theta": "\u03b8"}
_SPACES = re.compile(r"(?<=\S) {2,}")


def convert_latex(text: str) -> str:
    """The text with plain fractions, roots and signs instead of LaTeX, and without wrappers such as `\\text`.

    A fraction of numbers becomes a number; any other fraction stays an expression.
    """
    for tex, sign in _LATEX_SIGNS:
        text = text.replace(tex, sign)
    text = _LATEX_COMPARISON.sub(lambda m: _COMPARISONS[m[1]], text)
    text = _LATEX_LETTERS.sub(lambda m: _GREEK.get(m[1], f"{m[1]} " if len(m[1]) < 4 else "\u03b8"), text)
    text = _REPEATING.sub(_expand_repeating, text)
    for _ in range(_PASSES):
        before = text
        text = _LATEX_ROOT.sub(lambda m: f"\u221a({m[1] or m[2]})", _LATEX_WRAPPER.sub(r"\1", text))
        text = _LATEX_FRACTION.sub(_convert_fraction, text)
        if text == before:
            break
    return _SPACES.sub(" ", _LATEX_COMMANDS.sub(" ", text))


def _expand_repeating(match: re.Match[str]) -> str:
    whole, start = match[1], match[2]
    period = match[3] or match[4] or match[5]
    denominator = 10 ** len(start) * (10 ** len(period) - 1)
    value = Fraction(int(whole + start + period) - int(whole + start), denominator)
    return f"{value.numerator}/{value.denominator}"


def _convert_fraction(match: re.Match[str]) -> str:
    whole, space = match[1], match[2]
    top, bottom = (match[3] or match[4] or ""), (match[5] or match[6] or "")
    numerator, denominator = _parse_rational(top), _parse_rational(bottom)
    if numerator is None or denominator is None or not denominator[0]:
        return f"{whole or ''}{space}({top})/({bottom})"
    if numerator[1] and denominator[1]:
        fraction = f"{numerator[1]}/{denominator[1]}"
    else:
        value = numerator[0] / denominator[0]
        fraction = f"{value.numerator}/{value.denominator}"
    return f"{whole} {fraction}" if whole else f"{space}{fraction}"


def _parse_rational(text: str) -> tuple[Fraction, str] | None:
    """The value of a number, and its digits as written ("" for a fraction). None if the text is not a number."""
    match = _RATIONAL.fullmatch(text)
    if match is None or (match[4] and not int(match[4])):
        return None
    digits = match[1] + match[2].replace(",", "") + (match[3] or "")
    return (Fraction(digits) / int(match[4]), "") if match[4] else (Fraction(digits), digits)


_SPECIAL_CHARACTERS: Final = {
    **dict.fromkeys("\u2212\u2013\u2010\u2011\ufe63\uff0d\u2796", "-"),  # minus signs, hyphens, the en dash
    **dict.fromkeys("\u2716\u00d7\u22c5", "*"),
    **dict.fromkeys("\u00f7\u2044\u2797", "/"),
    **dict.fromkeys("\u2018\u2019", "'"),
    **dict.fromkeys("\u201c\u201d", '"'),
    **dict.fromkeys("\u2009\u202f\u00a0\u2007", "\u2009"),  # these may separate thousands until the digits are joined
    **dict.fromkeys("\ufe0f\ufe0e\u20e3", ""),  # variation selectors and the keycap frame
    "\u2795": "+", "\u2236": ":", "\u2026": "...", "\u2a7e": "\u2265", "\u2a7d": "\u2264", "\u066c": ",", "\u066b": ".",
}  # fmt: skip
# Separators between thousands: "1 000" with a thin space, "1'000", "1_000", "10\,000", "10{,}000".
_GAP: Final = r"(?:\u2009|~|'|_|\\[,;:! ]|,\\!|\{\\?,\}(?:\\!)?)"
_GROUPED = re.compile(rf"(?<![\w.,'])[0-9]{{1,3}}(?:{_GAP}[0-9]{{3}}(?![0-9]))+")
_GAPS = re.compile(_GAP)
_RAISED = str.maketrans("\u2070\u00b9\u00b2\u00b3\u2074\u2075\u2076\u2077\u2078\u2079\u207b", "0123456789-")
# "10³" is a way to write 1000; other powers stay as they are.
_POWER_OF_TEN = re.compile(r"(?<=10)[\u2070\u00b9\u00b2\u00b3\u2074-\u2079\u207b]+")
# "2  1/2", from "2 ½", becomes a mixed number.
_WIDE = re.compile(r"(?<=[0-9]) {2,}(?=[0-9]{1,9}/[0-9])")

# Struck-out text is not part of an answer.
_STRUCK = re.compile(r"~~[^~\n]{1,200}~~|<(del|strike)>[^<>]{0,200}</\1>")
_HTML = re.compile(
    r"</?(?:b|i|u|em|strong|span|font|p|div|mark|big|small|code|pre|sub|center|h[1-6]|li|ul|ol)(?:\s[^<>]{0,200})?/?>",
    re.IGNORECASE,
)
_BREAK = re.compile(r"<br\s?/?>", re.IGNORECASE)
# "_18_" and "__18__", but not "a_b" and "1_000".
_EMPHASIS = re.compile(r"(?<![\w\\])(_{1,3})(?=[^\s_])([^_\n]{1,200})(?<!\s)\1(?!\w)")
_FENCE = re.compile(r"^[ \t]*(?:`{3,}|~{3,})[ \t]*[\w+#.-]*[ \t]*(?:\n|\Z)", re.MULTILINE)
_PERIOD = re.compile(r"\.[0-9]+\([0-9]")
_SURROGATE = re.compile("[\ud800-\udfff]")
_PIECE = re.compile(r"[\s\S]{1,1000}(?=[\x00-\x7f])|[\s\S]{1,1000}")


class _CharacterTable(dict[int, str]):
    """Code point -> its replacement, computed at the first occurrence of the code point."""

    def __missing__(self, code: int) -> str:
        self[code] = replacement = _replace_character(chr(code))
        return replacement


_CHARACTER_TABLE: Final = _CharacterTable()


def _replace_character(character: str) -> str:
    if character in _SPECIAL_CHARACTERS or character.isascii():
        return _SPECIAL_CHARACTERS.get(character, character)
    category, decomposition = unicodedata.category(character), unicodedata.decomposition(character)
    if category == "Nd":
        return str(unicodedata.decimal(character))
    if category in ("Zs", "Cf"):  # spaces, and zero-width characters
        return " " if category == "Zs" else ""
    if "\uff01" <= character <= "\uff5e":  # full-width forms of ASCII
        return chr(ord(character) - 0xFEE0)
    if decomposition.startswith("<fraction>"):
        return " " + unicodedata.normalize("NFKC", character).replace("\u2044", "/")
    if decomposition.startswith("<circle>") and category == "No":
        return f" {unicodedata.normalize('NFKC', character)} "
    return character


def replace_lone_surrogates(text: str) -> str:
    """The text without surrogates: a pair becomes its character, a lone surrogate becomes U+FFFD."""
    if text.isascii() or _SURROGATE.search(text) is None:
        return text
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


def to_nfc(text: str) -> str:
    """The text in Unicode's composed form (NFC).

    The text is composed in pieces that begin with an ASCII character if possible, because a long run of combining
    characters would take quadratic time.
    """
    if text.isascii() or unicodedata.is_normalized("NFC", text):
        return text
    return "".join(unicodedata.normalize("NFC", piece) for piece in _PIECE.findall(text))


def to_exact_text(text: str) -> str:
    """The text in composed form (NFC), without the lines of code fences; nothing else changes."""
    return remove_code_fences(to_nfc(text))


def remove_code_fences(text: str) -> str:
    return _FENCE.sub("", text) if "```" in text or "~~~" in text else text


def to_plain_text(text: str) -> str:
    """The text with ASCII digits, signs and spaces, and without the markup of Markdown, HTML and LaTeX."""
    if "<" in text:
        text = text.replace("<|begin_of_box|>", "\\boxed{").replace("<|end_of_box|>", "}")  # GLM's boxes
        text = _BREAK.sub("\n", text.replace("<sup>", "^").replace("</sup>", ""))
        text = _HTML.sub("", _STRUCK.sub("", text))
    elif "~~" in text:
        text = _STRUCK.sub("", text)
    text = remove_code_fences(text)
    if "_" in text:
        text = _EMPHASIS.sub(r"\2", text)
    if not text.isascii():
        text = to_nfc(text).translate(_CHARACTER_TABLE)
        text = _POWER_OF_TEN.sub(lambda m: "^" + m[0].translate(_RAISED), text)
        text = _WIDE.sub(" ", text)
    if "\\" in text or "'" in text or "_" in text or "~" in text or "\u2009" in text:
        text = _GROUPED.sub(lambda m: _GAPS.sub(",", m[0]), text).replace("\u2009", " ")
    if "{,}" in text:
        text = text.replace("{,}", ",")
    if "\\" in text:
        return convert_latex(text)
    return _REPEATING.sub(_expand_repeating, text) if ".(" in text or ("(" in text and _PERIOD.search(text)) else text


_SENTENCE_END = re.compile(
    r"\n|(?<!\bMr)(?<!\bMrs)(?<!\bMs)(?<!\bDr)(?<!\bSt)(?<!\bRs)(?<!\bsq)[.!?][\"'*)]{0,3}(?=\s+[A-Z\"'(*#\\$]|\s*$)"
)
WORD_PATTERN = re.compile(r"[ \t]?[^\s{}$.,;]+(?:[.,][0-9]+)*")
STRIP_CHARS: Final = " \t\n:=*_\"'`$"

# Words before a second answer ("maybe 20"), and words that deny the answer after them ("all but 20").
HEDGE_WORDS: Final = r"(?:maybe|perhaps|possibly|potentially|conceivably)"
ALL_BUT: Final = (
    r"(?:(?:any|every|all)[a-z]*(?:\s[a-z]+){0,3}?\s(?:but|except(?:\sfor)?|besides)|other\sthan|different\sfrom"
    r"|far\sfrom|nowhere\snear|nothing\slike)"
)
_RIGHT_ANSWER: Final = (
    r"(?:[a-z]+ly\s|quite\s|even\s)?(?:right|correct|possible|it\b|(?:the|my|our|an?)\s(?:final\s|correct\s|right\s|best\s)?"
    r"(?:answer|solution|result|option|choice|one)\b)"
)
# Words after an answer that reject it: "5 is not right", "(C) is wrong", "yes isn't the answer".
REJECTION = re.compile(
    rf"[*_\"'`)$.]{{0,4}}(?:\s[a-z]{{2,20}})?\s(?:(?:is|was|are|were)\s(?:[a-z]+ly\s)?(?:wrong\b|incorrect\b|not\s{_RIGHT_ANSWER})"
    rf"|(?:isn't|wasn't|aren't|cannot\sbe|can\snot\sbe|can't\sbe|couldn't\sbe|could\snot\sbe|won't\sbe)\s{_RIGHT_ANSWER}|(?:doesn't|does\snot)\swork\b|must\sbe\s(?:wrong|incorrect)\b)"
)
BULLET_PATTERN: Final = r"(?:[-*\u2022]|\(?(?:[0-9]{1,3}|[a-z])[.)])"
_LIST_ITEM = re.compile(rf"\s*{BULLET_PATTERN}\s+(?=\S)")


def read_answer_sentence(text: str) -> str:
    """The first sentence of the text after a marker, without surrounding markup and quotes."""
    return read_first_sentence(text.lstrip(STRIP_CHARS + ".")).rstrip(STRIP_CHARS)


def read_first_sentence(text: str) -> str:
    """The text up to the end of its first sentence or line. The period of "Mrs." or "sq." does not end a sentence."""
    match = _SENTENCE_END.search(text)
    return text if match is None else text[: match.start()]


def read_list_items(text: str, last: bool = False) -> list[str]:
    """The items of the list at the start (`last`: at the end) of the text, without bullets; empty without a list."""
    items: list[str] = []
    lines = [line for line in text.split("\n") if line.strip(STRIP_CHARS)]
    for line in reversed(lines) if last else lines:
        match = _LIST_ITEM.match(line)
        if match is None:
            break
        items.append(line[match.end() :])
    return items[::-1] if last else items


def read_last_line(text: str) -> str:
    """The last line that is not empty; "" if all lines are."""
    return next((line for line in reversed(text.strip().split("\n")) if line.strip()), "")
