"""Parsing of numbers that people and models write in digits or words, as exact fractions.

    >>> texts = ("$7,200.50", "1 1/2 cups", "-5", "3 x 10^4", "two and three quarters", "20-12 = 8", "3,50", "5+x")
    >>> [format_number(number) for text in texts if (number := extract_first_number(text))]
    ['7200.5', '1.5', '-5', '30000', '2.75', '8', '3.5', '5+x']

The context may show that a number is only part of an expression (2π, "3 or more", "2 hours and 30 minutes"), or deny it
("not 20"). A number of more than 400 digits is not parsed: its text names its length, and it equals no number. No text
is evaluated as code.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import Final

from potstill.grading import normalize

# Numbers in words

SCALE_VALUES: Final = {"hundred": 100, "thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12}
_ONES: Final = {
    "zero": 0, "one": 1, "two": 2, "three": 3, "four": 4, "five": 5, "six": 6, "seven": 7, "eight": 8, "nine": 9,
    "ten": 10, "eleven": 11, "twelve": 12, "thirteen": 13, "fourteen": 14, "fifteen": 15, "sixteen": 16,
    "seventeen": 17, "eighteen": 18, "nineteen": 19,
}  # fmt: skip
_TENS: Final = {
    "twenty": 20, "thirty": 30, "forty": 40, "fifty": 50, "sixty": 60, "seventy": 70, "eighty": 80, "ninety": 90,
}  # fmt: skip
# "one third" is a fraction and so is "two thirds"; "twenty fifth" is an ordinal.
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
    rf"|\sand\s(?:(?P<numerator>{_BELOW_HUNDRED})[\s-](?P<denominator>{_FRACTION_PLURAL}|{_FRACTION_SINGULAR})|(?:an?\s)(?P<addend>{_FRACTION_SINGULAR}))\b"
    rf"|[\s-](?P<plural>{_FRACTION_PLURAL})\b|(?P<one>[\s-](?:{_FRACTION_SINGULAR})\b))?"
    rf"|(?:a\s)(?P<a_part>{_FRACTION_SINGULAR})\b|(?P<half>half)\b)",
    re.IGNORECASE,
)
# "one" is not always a number ("the one that left"). It is a number only after these words.
_BEFORE_ONE = re.compile(
    r"(?:[\W_]*(?:only|just|exactly|about|around|approximately|roughly|simply|therefore|thus|so|is|are|that|there))*[\W_]*",
    re.IGNORECASE,
)


def iter_spelled_numbers(text: str) -> Iterator[tuple[int, int, Fraction]]:
    """Start, end and value of every number in words."""
    for match in _SPELLED_NUMBER.finditer(text):
        if match[0].lower() == "one" and (match.start() > 200 or not _BEFORE_ONE.fullmatch(text, 0, match.start())):
            continue
        value = _spelled_value(match)
        yield match.start(), match.end(), -value if match["minus"] else value


def parse_fraction_word(word: str) -> Fraction:
    """The value of "half", "third", "quarters" and other fraction words."""
    word = word.lower()
    return Fraction(1, 2 if word == "halves" else _FRACTION_WORDS[word.removesuffix("s")])


def _spelled_value(match: re.Match[str]) -> Fraction:
    if match["whole"] is None:
        return parse_fraction_word(match["a_part"] or match["half"])
    words = [word for word in re.split(r"[\s,-]+", match["whole"].lower()) if word not in ("and", "")]
    whole = Fraction(_sum_words(words))
    if match["places"]:
        groups = re.findall(rf"(?:{'|'.join(_TENS)})[\s-](?:{_ONES_WORD})|\w+", match["places"].lower())
        digits = "".join(map(_spelled_digits, groups))  # "point five", "point twenty-five", "point oh five"
        return whole + Fraction(int(digits), 10 ** len(digits))
    if match["addend"]:
        return whole + parse_fraction_word(match["addend"])
    if match["numerator"]:
        numerator = [word for word in re.split(r"[\s-]+", match["numerator"].lower()) if word]
        return whole + _sum_words(numerator) * parse_fraction_word(match["denominator"])
    if match["plural"]:
        return whole * parse_fraction_word(match["plural"])
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


# The context of a number

_CONTEXT_CHARS: Final = 40  # characters examined before a number
_LETTER: Final = r"[xyzniajuvwqe]"  # unknowns and constants; m, g, l, s, h, k and others are units
# Directly after the digits: more digits that do not form a numeral, a power, a letter.
_CONTINUED_NUMERAL = re.compile(
    r"[.,:;/'_~][0-9]|[\u2070\u00b9\u00b2\u00b3\u2074-\u2079\u207b\u0305]|\^|\*\*(?=\s?[-0-9(])"
)
# After a number: "2π", "3 sqrt(2)", "5x", "2(x + 1)".
_FACTOR = re.compile(
    r"\s?[*]?\s?(?:\u221a|\u03c0|\u221e|\u03b8|pi\b|sqrt\b|(?:log|ln|sin|cos|tan|exp)\b)"
    rf"|{_LETTER}(?![\w'.])|{_LETTER}\.?(?=\s?[.$)}}\]]*$)|\s[xyz](?![\w'])(?!\s?[-$(]{{0,2}}[0-9])"
    r"|\([a-z]\s?[-+]"
)
# After a number: "2 + x", "3 - √2".
_TERM = re.compile(r"\s?[-+*/^]\s?\(?(?:[xyzni](?![\w'])|\u221a|\u03c0|\\|[0-9]{0,9}(?:[xyzn](?![\w'])|\u221a|\u03c0))")
# After a number: "18 ± 2", "18 or more", "20% of 50", "5 squared", "18+".
_BOUND_AFTER = re.compile(
    r"\s?(?:[^\W\d]+\s?)?[,(]?\s?\(?(?:\u00b1|\+/?-(?=\s?[0-9])|-/?\+(?=\s?[0-9])|%\sof\s[$]?[0-9]|(?:plus\sor\sminus|give\sor\stake\s[a-z0-9]+|at\s(?:most|least)"
    r"|squared|cubed|to\sthe\spower)\b)|\s?(?:[^\W\d]+\s)?(?:or|and)\s(?:more|less|fewer|greater|higher|lower|above|below|over|under|so|up)\b|\+(?![\s]?[0-9(])"
)
# Before a number: "more than 18", "at least 18", "x >= 18", "twice 9", "x + 18", "√(2) * 18".
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
# Before a number: "not 18", "anything but 18".
_DENIED = re.compile(
    r"\b(?:not|never|cannot be|isn't|wasn't|aren't|can't be|couldn't be|instead of|rather than|no longer"
    rf"|\b{normalize.ALL_BUT})(?:\s(?:be|just|only|a|the|exactly|equal to))?\s?[$\u00a3\u20ac(]{{0,2}}$",
    re.IGNORECASE,
)
_EXPONENT = re.compile(r"[\^_][{(]?-?$")
# Before a number: "2 hours and", which may begin a quantity in two units.
_NUMBER_BEFORE = re.compile(r"[0-9](?:\s?-?[a-z]+)?[.,]?\s?(?:,|\band|&)?\s?[$]?$", re.IGNORECASE)
_PLAIN_DIGITS = re.compile(r"[0-9]+(?:\.[0-9]+)?")


def _is_part_of_expression(text: str, start: int, digits_end: int, end: int, check_before: bool = False) -> bool:
    """Whether the number at text[start:end] is part of an expression with another value: 2π, "at least 5", 2h30.

    digits_end    where the digits end; an exponent or fraction may follow up to `end`
    check_before  also check whether the number is the second part of a quantity: "2 hours and 30 minutes"
    """
    before = text[max(0, start - _CONTEXT_CHARS) : start]
    return bool(
        (digits_end == end and _CONTINUED_NUMERAL.match(text, end))
        or any(pattern.match(text, end) for pattern in (_FACTOR, _TERM, _BOUND_AFTER))
        or _BOUND_OR_OPERATION.search(before)
        or (text[start] == "-" and _MINUS_LETTER.search(before))
        or _match_second_unit(text, end)
        or (check_before and _is_second_unit(text, before, start, end))
    )


def _is_second_unit(text: str, before: str, start: int, end: int) -> bool:
    if not _NUMBER_BEFORE.search(before):
        return False
    first_ends = (start - len(before) + number.end() for number in _PLAIN_DIGITS.finditer(before))
    seconds = (_match_second_unit(text, first_end) for first_end in first_ends)
    return any(second is not None and second.end() >= end for second in seconds)


def _is_denied_or_index(text: str, start: int, end: int) -> bool:
    """Whether the text denies the number at text[start:end] ("not 20", "20 is wrong"), or it is an exponent or index."""
    before = text[max(0, start - _CONTEXT_CHARS) : start]
    return bool(normalize.REJECTION.match(text, end) or _EXPONENT.search(before) or _DENIED.search(before))


# Units that one quantity may combine: "2 hours and 30 minutes", "5 feet 6 inches".
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


def _match_second_unit(text: str, end: int) -> re.Match[str] | None:
    """A second quantity of the same kind ("30 minutes") after the number that ends at `end`, if it is not zero."""
    if match := _HOURS_MINUTES.match(text, end):
        return match
    for pattern in _COMPOUND_UNITS:
        match = pattern.match(text, end)
        if match is None or _ZERO.fullmatch(match["number"]):
            continue
        if match["first"].lower().rstrip("s") != (match["second"] or "").lower().rstrip("s"):
            return match
    return None


# Numbers in digits

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
# A calculation with words in it ("20% of 50 = 10", "$18/hour x 2 hours = $36"), or with an unknown ("2x = 18").
_CALCULATION_WITH_WORDS = re.compile(
    r"[a-z]\s?=|(?:(?!\b(?:because|since|as|so)\b)[^=,;()\n0-9]){1,40}[0-9][^=,;()\n]{0,40}="
)
# "18 or 20", "18 to 20", "18 and 20", "18 cups or 20 cups", and a list of numbers up to the end of the sentence.
# "18, 6 for each" is not a list.
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
    """value   the exact value; None if the text is not a single number (a calculation, a hedge, too many digits)
    places  decimal places as written
    text    without a value: the text in place of the number
    """

    value: Fraction | None
    places: int = 0
    text: str = ""


def extract_first_number(text: str) -> Number | None:
    """The first number of an answer, or the result of its calculation; None if it has no number.

    "20-12 = 8" and "8 = 20-12" give 8; "20-12" alone and "18 or 20" give a Number without a value.
    """
    digits = text.lstrip(" $*\n").rstrip(" .$*\n")
    if digits.isdecimal() and digits.isascii() and len(digits) <= MAX_DIGITS:
        return Number(Fraction(int(digits)))
    match = NUMBER_PATTERN.search(text)
    if match is None:
        return _first_spelled_number(text)
    hedge = _HEDGE.match(text, match.end())
    if hedge is not None and not _EQUALS.search(text, match.end()):
        return _same_alternative(text, match, hedge) or _unreadable_number(text, match.start())
    if hedge is None and not _is_calculation(text, match) and not _CALCULATION_WITH_WORDS.match(text, match.end()):
        return parse_number_match(match)
    for part in reversed(_EQUALS.split(text, 9)[1:]):
        result = NUMBER_PATTERN.search(part)
        if result is not None and not _is_in_expression(part, result):
            is_calculation = _is_calculation(part, result)
            return _unreadable_number(part, result.start()) if is_calculation else parse_number_match(result)
    return _unreadable_number(text, match.start())


def _is_in_expression(text: str, match: re.Match[str]) -> bool:
    if _OPERATION.match(text, match.end()):
        return True
    # "48/2 = 24" looks like a fraction, but its result is the answer.
    return match["over"] is not None and text[match.end() : match.end() + 2].lstrip().startswith("=")


def _is_calculation(text: str, match: re.Match[str]) -> bool:
    return _is_in_expression(text, match) or _is_part_of_expression(
        text, match.start(), match.end("whole"), match.end()
    )


def _same_alternative(text: str, match: re.Match[str], hedge: re.Match[str]) -> Number | None:
    """The number of a hedge if all of its numbers are equal ("18 18 18", "0.6 or 3/5"); otherwise None."""
    if hedge.end() == len(text):
        numbers = extract_all_numbers(text[match.start() :])
    else:  # the unit of a hedge may be long, so its second number may come late
        numbers = extract_all_numbers(
            text[match.start() : None if hedge.end() > match.end() + 40 else hedge.end() + 40]
        )
        if len(numbers) > 2:
            return None
    values = {number.value for number in numbers}
    return numbers[0] if len(numbers) > 1 and len(values) == 1 and None not in values else None


def _unreadable_number(text: str, start: int) -> Number:
    return Number(None, text=text[start : start + 40].strip())


def _first_spelled_number(text: str) -> Number | None:
    spelled = iter_spelled_numbers(text)
    first = next(spelled, None)
    if first is None:
        return None
    start, end, value = first
    second = next(spelled, None)
    hedged = second is not None and second[2] != value and _SPELLED_HEDGE.fullmatch(text, end, second[0])
    if hedged or _is_part_of_expression(text, start, end, end):
        return _unreadable_number(text, start)
    return Number(value)


def extract_all_numbers(text: str) -> list[Number]:
    """All numbers in digits, in order; if the text has no numbers in digits, those in words."""
    in_digits = [parse_number_match(match) for match in NUMBER_PATTERN.finditer(text)]
    return in_digits or [Number(value) for _, _, value in iter_spelled_numbers(text)]


def extract_last_number(text: str) -> Number | None:
    """The last number that is neither denied nor an exponent or index; None if the text has no such number."""
    tail = max(0, len(text) - 160)
    match = _last_match(text, tail)
    if tail and (match is None or match.start() < tail + 80):  # the number may have begun before the tail
        match = _last_match(text, 0)
    if match is None:
        return None
    if _is_part_of_expression(text, match.start(), match.end("whole"), match.end(), check_before=True):
        return _unreadable_number(text, match.start())
    return parse_number_match(match)


def _last_match(text: str, start: int) -> re.Match[str] | None:
    last = None
    for match in NUMBER_PATTERN.finditer(text, start):
        if not _is_denied_or_index(text, match.start(), match.end()):
            last = match
    return last


def parse_spelled_number(text: str) -> Number | None:
    """The value of a text that is a number in words; None for any other text."""
    match = _SPELLED_NUMBER.fullmatch(text.strip(" .!*\n")) if len(text) < 300 else None
    return None if match is None else next((Number(value) for _, _, value in iter_spelled_numbers(match[0])), None)


def parse_number_match(match: re.Match[str]) -> Number:
    """The number that a match of NUMBER_PATTERN denotes."""
    digits = _plain_numeral(match["whole"])
    if len(digits) > MAX_DIGITS:
        return Number(None, text=f"a number of {len(digits)} digits")
    value = Fraction(int(digits)) if digits.isdecimal() else Fraction(digits)
    places = len(digits.partition(".")[2])
    if exponent := match["exponent"] or match["power"]:
        value, places = value * Fraction(10) ** int(exponent), 0
    elif match["ten"]:
        value, places = Fraction(10) ** int(match["ten"]), 0
    elif match["scale"]:
        value, places = value * SCALE_VALUES[match["scale"]], 0
    elif match["part"]:
        value += parse_fraction_word(match["part"])
    elif divisor := match["bottom"] or match["over"]:
        if Fraction(divisor) == 0:
            return Number(None, text=match[0].strip())
        if match["over"]:
            value, places = value / Fraction(divisor), 0
        else:
            value += Fraction(int(match["top"]), int(divisor))
    return Number(-value if match["minus"] else value, places)


_POINT_GROUPED = re.compile(r"[0-9]{1,3}(?:\.[0-9]{3}){2,}(?:,[0-9]+)?|[0-9]{1,3}(?:\.[0-9]{3})+,[0-9]{1,2}")
_DECIMAL_COMMA = re.compile(r"0,[0-9]+|[0-9]+,(?:[0-9]{1,2}|[0-9]{4,})")


def _plain_numeral(whole: str) -> str:
    """The numeral without separators, with a decimal point."""
    if "," not in whole and whole.count(".") < 2:
        return whole
    if _POINT_GROUPED.fullmatch(whole):
        return whole.replace(".", "").replace(",", ".")
    return whole.replace(",", ".") if _DECIMAL_COMMA.fullmatch(whole) else whole.replace(",", "")


def is_same_number(a: Number, b: Number) -> bool:
    """Whether two numbers are equal, or one is the other rounded to at least two decimals.

    Floating-point noise (17.999999999999996) is allowed: with nine or more decimals, the numbers may differ by one part
    in 10^9.
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
    """The canonical form: 18, -0.5, 1/3."""
    value = number.value
    if value is None:
        return number.text
    if value.denominator == 1:
        return str(value.numerator)
    for places in range(1, 13):
        scaled = value * 10**places
        if scaled.denominator == 1:
            digits = str(abs(scaled.numerator)).rjust(places + 1, "0")
            return f"{'-' if value < 0 else ''}{digits[:-places]}.{digits[-places:]}"
    return f"{value.numerator}/{value.denominator}"
