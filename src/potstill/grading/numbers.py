"""Spelled: numbers in words, as exact fractions.

>>> texts = ("twenty-one apples", "negative five", "two and a half", "two and three quarters", "two point five")
>>> [str(extract_spelled_number(text)) for text in texts]
['21', '-5', '5/2', '11/4', '5/2']
>>> extract_spelled_number("one thousand, two hundred"), extract_spelled_number("the one that left"), extract_spelled_numbers("two and three")
(Fraction(1200, 1), None, [Fraction(2, 1), Fraction(3, 1)])

Context: what stands around a number and makes it another one, or none: a power, a root, a letter, a bound, a unit.

>>> is_part_of_expression("2\u03c0", 0, 1, 1), is_part_of_expression("x+5", 2, 3, 3), is_part_of_expression("more than 18", 10, 12, 12), is_part_of_expression("18 apples", 0, 2, 2)
(True, True, True, False)
>>> is_denied_or_index("18, not 20", 8, 10), is_denied_or_index("18 m^2", 5, 6), is_denied_or_index("18 m", 0, 2)
(True, True, False)

>>> [bool(match_second_unit(text, 1)) for text in ("2 hours and 30 minutes", "5 miles in 2 hours", "2h30")]
[True, False, True]

Numerals: numbers as people and models write them, as exact fractions.

    >>> for text in ("$7,200.50", "1 1/2 cups", "-5", "3 x 10^4", "1.5 million", "eighteen", "20-12 = 8", "3,50"):
    ...     number = extract_first_number(text)
    ...     print(text, "->", number and format_number(number))
    $7,200.50 -> 7200.5
    1 1/2 cups -> 1.5
    -5 -> -5
    3 x 10^4 -> 30000
    1.5 million -> 1500000
    eighteen -> 18
    20-12 = 8 -> 8
    3,50 -> 3.5

A number of more than 400 digits is not read: it is shown by its length and equals nothing. No text is evaluated.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import Final

from potstill.grading import normalize

SCALE_VALUES: Final = {"hundred": 100, "thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12}
_ONES: Final = {
    "zero": 0, "one": 1, "two": 2, "three": 3, "four": 4, "five": 5, "six": 6, "seven": 7, "eight": 8, "nine": 9,
    "ten": 10, "eleven": 11, "twelve": 12, "thirteen": 13, "fourteen": 14, "fifteen": 15, "sixteen": 16,
    "seventeen": 17, "eighteen": 18, "nineteen": 19,
}  # fmt: skip
_TENS: Final = {
    "twenty": 20, "thirty": 30, "forty": 40, "fifty": 50, "sixty": 60, "seventy": 70, "eighty": 80, "ninety": 90,
}  # fmt: skip
# One third, but two thirds: "twenty fifth" is an ordinal.
_FRACTION_WORDS: Final = {
    "half": 2, "third": 3, "quarter": 4, "fourth": 4, "fifth": 5, "sixth": 6, "seventh": 7, "eighth": 8, "ninth": 9,
    "tenth": 10, "twelfth": 12,
}  # fmt: skip
NUMBER_WORD: Final = "|".join([*_ONES, *_TENS, *SCALE_VALUES])
_ONES_WORD: Final = "|".join(_ONES)
_BELOW_HUNDRED: Final = rf"(?:(?:{'|'.join(_TENS)})(?:[\s-](?:{_ONES_WORD}))?|{_ONES_WORD})\b"
_BELOW_THOUSAND: Final = rf"(?:(?:{_BELOW_HUNDRED}|\ba)\shundred\b(?:\s(?:and\s)?{_BELOW_HUNDRED})?|{_BELOW_HUNDRED})"
_SCALE_WORD: Final = r"(?:hundred|thousand|million|billion|trillion)\b"
_SPELLED_WHOLE: Final = (
    rf"(?:(?:(?:{_BELOW_THOUSAND}|\ba)(?:\s{_SCALE_WORD}){{1,3}}(?:,?\s(?:and\s)?(?={_BELOW_HUNDRED}))?){{1,9}}(?:{_BELOW_THOUSAND})?"
    rf"|{_BELOW_THOUSAND}|{_SCALE_WORD})"
)
_FRACTION_SINGULAR: Final = "|".join(_FRACTION_WORDS)
_FRACTION_PLURAL: Final = "halves|" + "|".join(f"{part}s" for part in _FRACTION_WORDS if part != "half")
_SPELLED_NUMBER = re.compile(
    rf"\b(?P<minus>(?:negative|minus)\s)?(?:(?P<whole>{_SPELLED_WHOLE})"
    rf"(?:\spoint(?P<places>(?:[\s-](?:oh|{'|'.join(_TENS)}|{_ONES_WORD})\b){{1,12}})"
    rf"|\sand\s(?:(?P<many>{_BELOW_HUNDRED})[\s-](?P<shares>{_FRACTION_PLURAL}|{_FRACTION_SINGULAR})|(?:an?\s)(?P<rest>{_FRACTION_SINGULAR}))\b"
    rf"|[\s-](?P<parts>{_FRACTION_PLURAL})\b|(?P<one>[\s-](?:{_FRACTION_SINGULAR})\b))?"
    rf"|(?:a\s)(?P<part>{_FRACTION_SINGULAR})\b|(?P<half>half)\b)",
    re.IGNORECASE,
)
# "one" is also a word of another sense: "the one that left". These may stand before it.
_BEFORE_ONE = re.compile(
    r"(?:[\W_]*(?:only|just|exactly|about|around|approximately|roughly|simply|therefore|thus|so|is|are|that|there))*[\W_]*",
    re.IGNORECASE,
)


def extract_spelled_number(text: str) -> Fraction | None:
    """The first number in words, None if there is none; "the one that left" is none."""
    return next((own for _, _, own in iter_spelled_numbers(text)), None)


def extract_spelled_numbers(text: str) -> list[Fraction]:
    """All numbers in words, in their order."""
    return [own for _, _, own in iter_spelled_numbers(text)]


def iter_spelled_numbers(text: str) -> Iterator[tuple[int, int, Fraction]]:
    """Start, end and value of every number in words."""
    for match in _SPELLED_NUMBER.finditer(text):
        alone = (match["whole"] or "").lower() == "one" and match[0].lower() == "one"
        if alone and (match.start() > 200 or not _BEFORE_ONE.fullmatch(text, 0, match.start())):
            continue
        number = _spelled_value(match)
        yield match.start(), match.end(), -number if match["minus"] else number


def parse_spelled_fraction(text: str) -> Fraction | None:
    """The number of a text that is nothing but one."""
    match = _SPELLED_NUMBER.fullmatch(text.strip(" .!*\n")) if len(text) < 300 else None
    return None if match is None else extract_spelled_number(match[0])


def parse_fraction_word(word: str) -> Fraction:
    """The share that a half, a third, a quarter is."""
    single = word.lower()
    return Fraction(1, 2 if single == "halves" else _FRACTION_WORDS[single.removesuffix("s")])


def _spelled_value(match: re.Match[str]) -> Fraction:
    if match["whole"] is None:
        return parse_fraction_word(match["part"] or match["half"])
    words = [word for word in re.split(r"[\s,-]+", match["whole"].lower()) if word not in ("and", "")]
    whole = Fraction(_sum_words(words))
    if match["places"]:
        digits = "".join(
            map(
                _spelled_digits, re.findall(rf"(?:{'|'.join(_TENS)})[\s-](?:{_ONES_WORD})|\w+", match["places"].lower())
            )
        )
        return whole + Fraction(int(digits), 10 ** len(digits))
    if match["rest"]:
        return whole + parse_fraction_word(match["rest"])
    if match["many"]:
        many = [word for word in re.split(r"[\s-]+", match["many"].lower()) if word]
        return whole + _sum_words(many) * parse_fraction_word(match["shares"])
    if match["parts"]:
        return whole * parse_fraction_word(match["parts"])
    return parse_fraction_word(match["one"].strip(" -\n\t")) if match["one"] and words == ["one"] else whole


def _spelled_digits(words: str) -> str:
    return str(sum(_ONES.get(word, 0) + _TENS.get(word, 0) for word in re.split(r"[\s-]", words)))


def _sum_words(words: list[str]) -> int:
    total = current = 0
    for word in words[:40]:
        if word == "hundred":
            current = max(current, 1) * 100
        elif word in SCALE_VALUES:
            total, current = total + max(current, 1) * SCALE_VALUES[word], 0
        else:
            current += 1 if word == "a" else _ONES.get(word, 0) + _TENS.get(word, 0)
    return total + current


_CONTEXT_CHARS: Final = 40  # signs looked at before a number
_LETTER: Final = r"[xyzniajuvwqe]"  # unknowns and constants; m, g, l, s, h, k and their like are units
# Right behind the digits: more digits in a way that is no numeral, a power, a root, a letter.
_CONTINUED_NUMERAL = re.compile(
    r"[.,:;/'_~][0-9]|[\u2070\u00b9\u00b2\u00b3\u2074-\u2079\u207b\u0305]|\^|\*\*(?=\s?[-0-9(])"
)
_FACTOR = re.compile(
    r"\s?[*]?\s?(?:\u221a|\u03c0|\u221e|\u03b8|pi\b|sqrt\b|(?:log|ln|sin|cos|tan|exp)\b)"
    rf"|{_LETTER}(?![\w'.])|{_LETTER}\.?(?=\s?[.$)}}\]]*$)|\s[xyz](?![\w'])(?!\s?[-$(]{{0,2}}[0-9])"
    r"|\([a-z]\s?[-+]"
)
_TERM = re.compile(r"\s?[-+*/^]\s?\(?(?:[xyzni](?![\w'])|\u221a|\u03c0|\\|[0-9]{0,9}(?:[xyzn](?![\w'])|\u221a|\u03c0))")
_BOUND_BEHIND = re.compile(
    r"\s?(?:[^\W\d]+\s?)?[,(]?\s?\(?(?:\u00b1|\+/?-(?=\s?[0-9])|-/?\+(?=\s?[0-9])|%\sof\s[$]?[0-9]|(?:plus\sor\sminus|give\sor\stake\s[a-z0-9]+|at\s(?:most|least)"
    r"|squared|cubed|to\sthe\spower)\b)|\s?(?:[^\W\d]+\s)?(?:or|and)\s(?:more|less|fewer|greater|higher|lower|above|below|over|under|so|up)\b|\+(?![\s]?[0-9(])"
)
_BOUND_OR_OPERATION = re.compile(
    r"(?:\u00b1|\+/-|\+-|-\+|plus or minus|(?<![0-9<>])(?<![0-9] )[<>]=?|[\u2264\u2265\u2260]|!=|\u221a\(?"
    r"|\b(?:sqrt|log|ln|sin|cos|tan|exp)\s?\(?"
    r"|\b(?:more|less|fewer|greater|higher|lower|larger|smaller|bigger|other|rather)\s(?:than|then)(?:\sor\sequal\sto)?"
    r"|\b(?:over|under|above|below|beyond|exceeds?|at\s(?:least|most)|no\smore\sthan|(?:minimum|maximum)(?:\sof)?|twice|\btimes|double|triple|half\sof"
    r"|(?:square|cube)(?:\sroot)?\sof|(?:^|\b(?:is|are|be)\s)up\sto)"
    rf"|(?<![A-Za-z]){_LETTER}\s?[-+*/^]|\u03c0\s?[-+*/^]|\u221a\([^()]{{0,20}}\)\s?[-+*/^]|\)\s?/\(?)"
    r"\s?(?:about\s|around\s)?[$\u00a3\u20ac(]{0,2}\s?$",
    re.IGNORECASE,
)
_MINUS_LETTER = re.compile(rf"(?<![A-Za-z]){_LETTER}\s$")
_DENIED = re.compile(
    r"\b(?:not|never|cannot be|isn't|wasn't|aren't|can't be|couldn't be|instead of|rather than|no longer"
    rf"|\b{normalize.ALL_BUT})(?:\s(?:be|just|only|a|the|exactly|equal to))?\s?[$\u00a3\u20ac(]{{0,2}}$",
    re.IGNORECASE,
)
_EXPONENT = re.compile(r"[\^_][{(]?-?$")
_NUMBER_BEFORE = re.compile(r"[0-9](?:\s?-?[a-z]+)?[.,]?\s?(?:,|\band|&)?\s?[$]?$", re.IGNORECASE)
_PLAIN_DIGITS = re.compile(r"[0-9]+(?:\.[0-9]+)?")


def is_part_of_expression(text: str, start: int, end: int, stop: int, behind: bool = False) -> bool:
    """Whether the number at text[start:stop], whose digits end at `end`, is part of something that it is not equal to.

    behind  also look whether it is the second part of a compound: "2 hours and 30 minutes"
    """
    before = text[max(0, start - _CONTEXT_CHARS) : start]
    if _CONTINUED_NUMERAL.match(text, end) and end == stop:
        return True
    if _FACTOR.match(text, stop) or _TERM.match(text, stop) or _BOUND_BEHIND.match(text, stop):
        return True
    if _BOUND_OR_OPERATION.search(before) or (text[start] == "-" and _MINUS_LETTER.search(before)):
        return True
    if match_second_unit(text, stop) is not None:
        return True
    return behind and _is_second_unit(text, start, stop)


def is_denied_or_index(text: str, start: int, stop: int) -> bool:
    """Whether the number at text[start:stop] is denied ("not 20", "20 is wrong"), or an exponent or index (m^2)."""
    if normalize.REJECTION.match(text, stop):
        return True
    before = text[max(0, start - _CONTEXT_CHARS) : start]
    return _EXPONENT.search(before) is not None or _DENIED.search(before) is not None


def _is_second_unit(text: str, start: int, stop: int) -> bool:
    before = text[max(0, start - _CONTEXT_CHARS) : start]
    if _NUMBER_BEFORE.search(before) is None:
        return False
    offset = max(0, start - _CONTEXT_CHARS)
    for number in _PLAIN_DIGITS.finditer(before):
        found = match_second_unit(text, offset + number.end())
        if found is not None and found.end() >= stop:
            return True
    return False


_UNIT_FAMILIES: Final = (
    r"hours?|hrs?|h|minutes?|mins?|m|seconds?|secs?|s|days?|d|weeks?|wks?|months?|mos?|years?|yrs?|decades?|centur(?:y|ies)",
    r"feet|foot|ft|inch(?:es)?|in|yards?|yds?|miles?|mi|met(?:er|re)s?|m|centimet(?:er|re)s?|cm|kilomet(?:er|re)s?|km"
    r"|millimet(?:er|re)s?|mm",
    r"pounds?|lbs?|ounces?|oz|kilograms?|kilos?|kg|grams?|g|tons?|tonnes?|stones?|milligrams?|mg",
    r"dollars?|bucks?|cents?|euros?|pounds?|pence|p|quarters?|dimes?|nickels?|penn(?:y|ies)|rupees?|paise|pesos?|centavos?",
    r"gallons?|gal|quarts?|qts?|pints?|pts?|cups?|lit(?:er|re)s?|l|millilit(?:er|re)s?|ml|tablespoons?|tbsp|teaspoons?"
    r"|tsp|fluid\sounces?|fl\.?\soz",
    r"degrees?|\u00b0|minutes?|seconds?",
    r"dozens?|gross|scores?",
)
_UNIT_JOIN: Final = r"\.?(?:\s?,\s?(?:and\s)?|\s(?:and|&|plus)\s|\s?)"
_COMPOUND_UNITS: Final = [
    re.compile(
        rf"\s?-?(?P<first>{family})\b{_UNIT_JOIN}(?P<number>[$]?[0-9]+(?:\.[0-9]+)?|(?:{NUMBER_WORD})(?:-(?:{NUMBER_WORD}))?)"
        rf"(?:\s?-?(?P<second>{family})\b|[\s.!*$)\\]*$)",
        re.IGNORECASE,
    )
    for family in _UNIT_FAMILIES
]
_HOURS_MINUTES: Final = re.compile(r"\s?h\s?[0-5]?[0-9]\b")  # 2h30
_ZERO = re.compile(r"[$]?0+(?:\.0+)?|zero", re.IGNORECASE)


def match_second_unit(text: str, at: int) -> re.Match[str] | None:
    """A second quantity of the same kind right behind the number that ends at `at`; none if it is zero."""
    if _HOURS_MINUTES.match(text, at):
        return _HOURS_MINUTES.match(text, at)
    for pattern in _COMPOUND_UNITS:
        match = pattern.match(text, at)
        if match is None:
            continue
        first, second = match["first"].lower().rstrip("s"), (match["second"] or "").lower().rstrip("s")
        if first != second and not _ZERO.fullmatch(match["number"]):
            return match
    return None


MAX_DIGITS: Final = 400

_NUMERAL = (
    r"0,[0-9]+(?![0-9]|,[0-9])"  # a decimal comma
    r"|[0-9]{1,3}(?:,[0-9]{3}(?![0-9]))+(?:\.[0-9]+)?"
    r"|[0-9]{1,2}(?:,[0-9]{2}(?![0-9]))+,[0-9]{3}(?![0-9])"  # as in India
    r"|[0-9]{1,3}(?:\.[0-9]{3}(?![0-9])){2,}(?:,[0-9]{1,2}(?![0-9]))?"  # 1.234.567
    r"|[0-9]{1,3}(?:\.[0-9]{3})+,[0-9]{1,2}(?![0-9]|,[0-9])"  # 1.234,56
    r"|[0-9]+,(?:[0-9]{1,2}|[0-9]{4,})(?![0-9]|,[0-9])"  # 2,5
    r"|[0-9]+(?:\.[0-9]+)?|(?<![0-9])\.[0-9]+"
)
NUMBER_PATTERN: Final = re.compile(
    r"(?:(?P<minus>(?<![\w)\]}%])-(?!(?<=\n-)\s)|\b[Nn]egative |(?<![0-9)] )\b[Mm]inus )\(?\s?"
    r"(?:[$\u00a3\u20ac\u00a5\u20b9]\s?)?)?"
    rf"(?<![A-Za-z_0-9])(?<![0-9][,.])(?P<whole>{_NUMERAL})"
    r"(?:[eE](?P<exponent>[-+]?[0-9]{1,3})(?![0-9A-Za-z])"
    r"|\s?[x*]\s?10\s?\^\s?\{?(?P<power>[-+]?[0-9]{1,3})\}?(?![0-9])"
    r"|(?<=10)(?<![0-9.,]10)\^\s?\{?(?P<ten>[-+]?[0-9]{1,3})\}?(?![0-9])"
    r"|\s(?:and\s)?(?P<top>[0-9]{1,9})\s?/\s?(?P<bottom>[0-9]{1,9})(?![0-9/])"
    r"|\sand\s(?:a|one)\s(?P<part>half|third|quarter)\b"
    r"|\s?/\s?(?P<over>[0-9]{1,400}(?:\.[0-9]{1,400})?)(?![0-9/])"
    r"|\s(?P<scale>hundred|thousand|million|billion|trillion)\b)?"
    r"(?:st|nd|rd|th)?"
)
_OPERATION = re.compile(r"\s?(?:%\s?)?(?:\*\*|[-+*/^]|x|times|plus|minus|divided by)\s?[$(]{0,2}\s?-?[.0-9(]")
# A calculation with words in it: "20% of 50 = 10", "$18/hour x 2 hours = $36"; and an unknown: "2x = 18".
_CALCULATION_WITH_WORDS = re.compile(
    r"[a-z]\s?=|(?:(?!\b(?:because|since|as|so)\b)[^=,;()\n0-9]){1,40}[0-9][^=,;()\n]{0,40}="
)
# "18 or 20", "18 to 20", "18 and 20", "18 cups or 20 cups", and a bare list to the end of the
# sentence; "18, 6 for each" is no list.
_HEDGE = re.compile(
    rf"\s{{0,3}}(?:or|to|and|&)\s{{1,3}}[$]?[0-9]|(?:\s[a-z]+)?[,(]?\s?\(?(?:or\s|and\s)?{normalize.HEDGE_WORDS}\s[$]?[0-9]"
    r"|\s?\(or\s[$]?[0-9][0-9,.]*+\)|,?\s(?:though|although|but|or)\s(?:it|this|that)\s(?:could|might|may)\s(?:also\s|well\s)?"
    r"be\s[$]?[0-9]|(?:[,;]?\s(?:and\s|or\s)?[$]?[0-9][0-9,.]*+)+[\s.!*$)\]}\\]*$"
    r"|\s(?P<unit>[a-z]+)\s(?:or|to)\s[$]?[0-9][0-9,.]*+\s(?P=unit)\b"
    r"|\s?(?:\u2014|--)\s?[$]?[0-9][0-9,.]*+(?:\s\w+)?[\s.!*$)\]}\\]*$"
)
_SPELLED_HEDGE = re.compile(r"\s?,?\s?(?:or|to|and|,)\s")
_EQUALS = re.compile(r"=|\bwhich (?:is|makes|equals|gives)\b")


@dataclass(frozen=True, slots=True)
class Number:
    """value   exact; None where it is not one number (a calculation, a hedge, too many digits): `text` says what
    places  decimals as written
    """

    value: Fraction | None
    places: int = 0
    text: str = ""


def extract_first_number(text: str) -> Number | None:
    """The number that an answer begins with or comes to; None if it holds none.

    "20-12 = 8" and "8 = 20-12" are 8; "20-12" alone and "18 or 20" are no number.
    """
    bare = text.lstrip(" $*\n").rstrip(" .$*\n")
    if bare.isdecimal() and bare.isascii() and len(bare) <= MAX_DIGITS:
        return Number(Fraction(int(bare)))
    match = NUMBER_PATTERN.search(text)
    if match is None:
        return _first_spelled_number(text)
    hedge = _HEDGE.match(text, match.end())
    if hedge is not None and not _EQUALS.search(text, match.end()):
        several = extract_all_numbers(
            text[match.start() :] if hedge.end() > match.end() + 40 else text[match.start() : hedge.end() + 40]
        )
        if len(several) > 1 and several[0].value is not None and _is_repetition(several, text, match, hedge):
            return several[0]
        return _unreadable_number(text, match)
    odd = is_part_of_expression(text, match.start(), match.end("whole"), match.end())
    if (
        hedge is None
        and not odd
        and not _is_in_expression(text, match)
        and not _CALCULATION_WITH_WORDS.match(text, match.end())
    ):
        return parse_number_match(match)
    for part in reversed(_EQUALS.split(text, 9)[1:]):
        own = NUMBER_PATTERN.search(part)
        if own is not None and not _is_in_expression(part, own):
            odd = is_part_of_expression(part, own.start(), own.end("whole"), own.end())
            return _unreadable_number(part, own) if odd else parse_number_match(own)
    return _unreadable_number(text, match)


def _is_repetition(several: list[Number], text: str, match: re.Match[str], hedge: re.Match[str]) -> bool:
    """Whether all numbers of a hedge are one: "18 18 18", "0.6 or 3/5"."""
    if hedge.end() == len(text):
        return len({number.value for number in extract_all_numbers(text[match.start() :])}) == 1
    return several[0].value == several[1].value and len(several) == 2


def _unreadable_number(text: str, match: re.Match[str]) -> Number:
    return Number(None, text=text[match.start() : match.start() + 40].strip())


def _first_spelled_number(text: str) -> Number | None:
    said = iter_spelled_numbers(text)
    own = next(said, None)
    if own is None:
        return None
    start, end, value = own
    further = next(said, None)
    hedged = further is not None and further[2] != value and _SPELLED_HEDGE.fullmatch(text, end, further[0])
    if hedged or is_part_of_expression(text, start, end, end):
        return Number(None, text=text[start : start + 40].strip())
    return Number(value)


def extract_all_numbers(text: str) -> list[Number]:
    """All numbers of a text, in their order; those in words where it has no digits."""
    return [parse_number_match(match) for match in NUMBER_PATTERN.finditer(text)] or [
        Number(value) for value in extract_spelled_numbers(text)
    ]


def extract_last_number(text: str) -> Number | None:
    """The last number of a text, whatever it stands for; not one that is denied, and no exponent."""
    tail = max(0, len(text) - 160)
    match = _last_match(text, tail)
    if tail and (match is None or match.start() < tail + 80):  # it may have begun before the tail
        match = _last_match(text, 0)
    if match is None:
        return None
    if is_part_of_expression(text, match.start(), match.end("whole"), match.end(), behind=True):
        return _unreadable_number(text, match)
    return parse_number_match(match)


def _last_match(text: str, start: int) -> re.Match[str] | None:
    last = None
    for match in NUMBER_PATTERN.finditer(text, start):
        if not is_denied_or_index(text, match.start(), match.end()):
            last = match
    return last


def parse_spelled_number(text: str) -> Number | None:
    """The number of a text that is nothing but a number in words."""
    value = parse_spelled_fraction(text)
    return None if value is None else Number(value)


def parse_number_match(match: re.Match[str]) -> Number:
    """The number of a match of ITEM."""
    digits = _plain_numeral(match["whole"])
    if len(digits) > MAX_DIGITS:
        return Number(None, text=f"a number of {len(digits)} digits")
    value = Fraction(int(digits)) if digits.isdecimal() else Fraction(digits)
    places = len(digits.partition(".")[2])
    if match.lastgroup not in (None, "whole", "minus"):
        exponent = match["exponent"] or match["power"]
        if exponent:
            value *= Fraction(10) ** int(exponent)
            places = 0
        elif match["ten"]:
            value, places = Fraction(10) ** int(match["ten"]), 0
        elif match["top"]:
            if int(match["bottom"]) == 0:
                return Number(None, text=match[0].strip())
            value += Fraction(int(match["top"]), int(match["bottom"]))
        elif match["over"]:
            divisor = Fraction(match["over"])
            if divisor == 0:
                return Number(None, text=match[0].strip())
            value, places = value / divisor, 0
        elif match["scale"]:
            value, places = value * SCALE_VALUES[match["scale"]], 0
        elif match["part"]:
            value += parse_fraction_word(match["part"])
    return Number(-value if match["minus"] else value, places)


_POINT_GROUPED = re.compile(r"[0-9]{1,3}(?:\.[0-9]{3}){2,}(?:,[0-9]+)?|[0-9]{1,3}(?:\.[0-9]{3})+,[0-9]{1,2}")
_DECIMAL_COMMA = re.compile(r"0,[0-9]+|[0-9]+,(?:[0-9]{1,2}|[0-9]{4,})")


def _plain_numeral(whole: str) -> str:
    """The digits of a numeral with a decimal point and nothing else."""
    if "," not in whole and whole.count(".") < 2:
        return whole
    if _POINT_GROUPED.fullmatch(whole):
        return whole.replace(".", "").replace(",", ".")
    return whole.replace(",", ".") if _DECIMAL_COMMA.fullmatch(whole) else whole.replace(",", "")


def is_same_number(a: Number, b: Number) -> bool:
    """Equal, or the longer one is the shorter one before rounding, if the shorter one has two decimals or more.

    What a program's floating point adds (17.999999999999996) is no difference: nine decimals, one part in 10^9.
    """
    if a.value is None or b.value is None:
        return False
    if a.value == b.value:
        return True
    if max(a.places, b.places) >= 9 and abs(a.value - b.value) * 10**9 <= max(abs(a.value), abs(b.value)):
        return True
    places = min((n.places for n in (a, b) if n.places), default=0)
    if places < 2 or all(n.places == places for n in (a, b)):
        return False
    coarse, fine = (a, b) if a.places == places else (b, a)
    assert coarse.value is not None and fine.value is not None
    return abs(coarse.value - fine.value) * 2 * 10**places <= 1


def format_number(number: Number) -> str:
    """The one way a number is written: 18, -0.5, 1/3."""
    value = number.value
    if value is None:
        return number.text
    if value.denominator == 1:
        return str(value.numerator)
    rest, twos, fives = value.denominator, 0, 0
    while rest % 2 == 0:
        rest, twos = rest // 2, twos + 1
    while rest % 5 == 0:
        rest, fives = rest // 5, fives + 1
    places = max(twos, fives)
    if rest != 1 or places > 12:
        return f"{value.numerator}/{value.denominator}"
    digits = str(abs(value.numerator) * 10**places // value.denominator).rjust(places + 1, "0")
    return f"{'-' if value < 0 else ''}{digits[:-places]}.{digits[-places:]}"


def _is_in_expression(text: str, match: re.Match[str]) -> bool:
    if _OPERATION.match(text, match.end()):
        return True
    # "48/2 = 24" reads as a fraction; what it equals is the answer.
    return match["over"] is not None and text[match.end() : match.end() + 2].lstrip().startswith("=")
