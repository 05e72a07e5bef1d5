"""Quantities: a number, or several numbers in any order.

>>> target = parse_gold_several("5 (years old); 15 (years old)")
>>> is_same_several(target, extract_marked_several(" 15 and 5.", target)), format_several(target)
(True, '5; 15')

Clock: ratios, and times of day, which may look alike (9:10).

>>> is_same_time(parse_gold_time("3:30 p.m."), extract_marked_time("at 15:30 sharp", parse_gold_time("3:30 p.m.")))
True
>>> parse_gold_ratio("4:6") == extract_marked_ratio("2 to 3", parse_gold_ratio("4:6"))
True
"""

from __future__ import annotations

import itertools
import re
from fractions import Fraction

from potstill.grading import normalize, numbers
from potstill.grading.numbers import Number, format_number

# number

_UNIT = re.compile(r"\s*(?:%|\([^()]*\)|[^0-9;:]{0,60})\.?\s*")


# What makes a gold answer algebra: $12\pi$, $3-i$, $7 x$. Letters and signs there are no unit.
_ALGEBRA = re.compile(
    r"[\\^{}=+*_\u221a\u03c0\u221e\u03b8\u00b1<>\u2264\u2265\u2070\u00b9\u00b2\u00b3\u2074-\u2079]"
    r"|-\s?[a-z](?![A-Za-z])|(?<![A-Za-z])[xyzn](?![A-Za-z'])|^[iabnuvwjqe](?![A-Za-z'])|\b(?:pi|sqrt)\b"
)
_RAISED_UNIT = re.compile(r"(?<=[a-z])\^\{?[23]\}?|(?<=[a-z])[\u00b2\u00b3]", re.IGNORECASE)  # m^2
_LONE_LETTER = re.compile(r"(?<![A-Za-z])[A-Za-z](?![A-Za-z])")


def parse_gold_number(gold: str) -> Number | None:
    """The number of a gold answer, with its unit; None for algebra, which only begins with a number."""
    number = _parse_number_with_unit(gold)
    if number is None or gold.strip().isdecimal():
        return number
    rest = _RAISED_UNIT.sub("", re.sub(r"\([^()]*\)\s*$", "", numbers.NUMBER_PATTERN.sub("", gold, 1).strip(" $.")))
    maths = gold.strip().startswith("$") and gold.strip().endswith("$") and len(gold.strip()) > 1
    return None if _ALGEBRA.search(rest) or (maths and _LONE_LETTER.search(rest)) else number


def _parse_number_with_unit(gold: str) -> Number | None:
    gold = _RAISED_UNIT.sub("", gold)
    text = gold.strip().lstrip("$\u00a3\u20ac").removesuffix("$").strip()
    match = numbers.NUMBER_PATTERN.match(text) or numbers.NUMBER_PATTERN.match(gold.strip())
    if match is None:
        return numbers.parse_spelled_number(gold)
    rest = text[match.end() :] if match.string is text else gold.strip()[match.end() :]
    rest = rest.removeprefix(")") if match["minus"] and "(" in match[0] else rest
    number = numbers.parse_number_match(match)
    return number if number.value is not None and _UNIT.fullmatch(rest) else None


_FIRST_STEP = re.compile(r"\(?1[.)]\s")  # the first step of a solution, or of a list of answers
_NUMERAL_LINE = re.compile(r"[\s*_$]*-?[$]?[0-9][0-9.,]*+(?:\s[a-z]+)?[*_$.\s]*", re.IGNORECASE)
_SPACED_MINUS = re.compile(r"-\s+(?=[$]?[.0-9])")


def extract_marked_number(text: str, target: Number) -> Number | None:
    bare = text.lstrip(" $*\n").rstrip(" .$*\n")
    if bare.isdecimal() and bare.isascii() and len(bare) < 100:
        return Number(Fraction(int(bare)))
    bulleted = "\n" in text[:8]  # "The answer is - 5" is no list
    listed = normalize.read_list_items(text) if "\n" in text else []
    text = text.lstrip(" \t\n:=*_\"'`")
    if len(listed) > 1 and _FIRST_STEP.match(text):
        return None if any(_NUMERAL_LINE.fullmatch(item) is None for item in listed) else Number(None, text=text[:40])
    text = listed[0] if len(listed) == 1 and bulleted else text
    match = _SPACED_MINUS.match(text)
    if match is not None:
        text = "-" + text[match.end() :]
    return numbers.extract_first_number(normalize.read_first_sentence(text))


# "So 5 * 4 =", "She sells 9 *", "The total is": what would follow is not there, and nothing earlier stands in for it.
_UNFINISHED = re.compile(
    r"(?:=\s?[$]?|[0-9)]\s?(?:[-+/^\u00f7]|\*{1,2}|x|plus|minus|divided by)|[0-9a-z)]\s\*{1,2}"
    r"|\b(?:is|are|equals?|makes|gives|becomes|totals))[\s?_.]*$",
    re.IGNORECASE,
)
_BOLD = re.compile(r"\*\*[^*\n]{1,80}\*\*[\s.]*$")


def extract_unmarked_number(text: str, target: Number) -> Number | None:
    end = text[-60:].rstrip()
    if _UNFINISHED.search(end) and not _BOLD.search(text[-120:]):
        return None
    return numbers.extract_last_number(text) or numbers.parse_spelled_number(text)


# several numbers, in any order

_SEVERAL_SEPARATOR = re.compile(r";|,\s+")


def parse_gold_several(gold: str) -> tuple[Number, ...] | None:
    parts = [parse_gold_number(part) for part in _SEVERAL_SEPARATOR.split(gold)]
    numbers = [part for part in parts if part is not None]
    return _sort_numbers(numbers) if len(numbers) == len(parts) > 1 else None


def extract_marked_several(text: str, target: tuple[Number, ...]) -> tuple[Number, ...] | None:
    listed = _numbers_of_list(text, target)
    if listed is not None:
        return listed
    own = normalize.read_first_sentence(text.lstrip(normalize.STRIP_CHARS))
    found = numbers.extract_all_numbers(own)
    if len(found) != len(target):
        apart = numbers.extract_all_numbers(own.replace(",", ", "))  # "500,700" are two numbers where two are asked for
        found = apart if len(apart) == len(target) else found
    if len(found) != len(target):
        found = numbers.extract_all_numbers(_ITEM_NUMBER.sub(" ", own)) or found  # "(1) 5 and (2) 15"
    return _sort_numbers(found) if found else None


def extract_unmarked_several(text: str, target: tuple[Number, ...]) -> tuple[Number, ...] | None:
    listed = _numbers_of_list(text, target, last=True)
    if listed is not None:
        return listed
    found = numbers.extract_all_numbers(normalize.read_last_line(text)) or numbers.extract_all_numbers(text)
    return _sort_numbers(found[-len(target) :]) if found else None


_ITEM_NUMBER = re.compile(r"(?<![^\s:])\(?[1-9][.)]\s(?=\s?[$]?-?[A-Za-z0-9])")


def _numbers_of_list(text: str, target: tuple[Number, ...], last: bool = False) -> tuple[Number, ...] | None:
    """The numbers of a list over several lines, with bullets or of one number each; None where there is no list."""
    items = normalize.read_list_items(text[-2000:] if last else text, last)
    if len(items) < 2:
        lines = [line for line in text[:2000].split("\n") if line.strip(normalize.STRIP_CHARS)][: len(target)]
        items = lines if not last and all(map(_NUMERAL_LINE.fullmatch, lines)) else []
    found = [number for item in items for number in numbers.extract_all_numbers(item)]
    return _sort_numbers(found) if len(items) > 1 and found else None


def _sort_numbers(numbers: list[Number]) -> tuple[Number, ...]:
    return tuple(sorted(numbers, key=lambda n: (n.value is None, n.value or 0)))


def is_same_several(a: tuple[Number, ...], b: tuple[Number, ...]) -> bool:
    return len(a) == len(b) and all(numbers.is_same_number(x, y) for x, y in zip(a, b, strict=True))


def format_several(numbers: tuple[Number, ...]) -> str:
    return "; ".join(map(format_number, numbers))[:200]


# ratio, and time, which may be a ratio (9:10)

_RATIO_PART = r"(?:[0-9]{1,3}(?:,[0-9]{3})+|[0-9]{1,9})(?:\.[0-9]{1,9})?"
_RATIO = re.compile(
    rf"(?<![0-9.:,])({_RATIO_PART})(?:\s[A-Za-z]{{1,20}}){{0,2}}?\s?(?::|\bto\b|-to-|\bout of\b|\bfor every\b|\bper\b|/)"
    rf"\s?({_RATIO_PART})(?![0-9:]|,[0-9])"
)
_GOLD_RATIO = re.compile(rf"({_RATIO_PART})\s?:\s?({_RATIO_PART})")
_TIME = re.compile(
    r"(?<![0-9:.])([0-9]{1,2})(?::([0-5][0-9])(?::([0-5][0-9]))?(?![0-9:])(?:\s?([aApP])\.?\s?[mM]\b\.?)?|\s?([aApP])\.?\s?[mM]\b\.?"
    r"|\so'clock)"
)
_TIME_WITH_POINT = re.compile(r"(?<![0-9.])([0-9]{1,2})\.([0-5][0-9])(?=\s?[aApP]\.?\s?[mM]\b)")  # 3.30 p.m.
_JOINED_ANSWERS = re.compile(r"\s?(?:,?\s?(?:or|and|to|till|until)\s|-)\s?")  # between two times or ratios
TimeOfDay = tuple[int, int, int, str]


def parse_gold_ratio(gold: str) -> Fraction | None:
    match = _GOLD_RATIO.fullmatch(gold.strip())
    return None if match is None else _parse_ratio(match)


def _parse_ratio(match: re.Match[str]) -> Fraction | None:
    below = Fraction(match[2].replace(",", ""))
    return Fraction(match[1].replace(",", "")) / below if below else None


def extract_marked_ratio(text: str, target: Fraction) -> Fraction | str | None:
    """The first ratio; two of them joined ("2:3 or 3:2") are neither, and are shown as they stand."""
    matches = list(itertools.islice(_RATIO.finditer(text), 2))
    if not matches:
        return None
    values = [_parse_ratio(match) for match in matches]
    return _open_alternatives(text, matches, values[0] == values[-1]) or values[0]


def _open_alternatives(text: str, matches: list[re.Match[str]], agree: bool) -> str | None:
    """Two values that a text leaves open, as it has them; None where it names one."""
    if len(matches) < 2 or agree or not _JOINED_ANSWERS.fullmatch(text, matches[0].end(), matches[1].start()):
        return None
    return text[matches[0].start() : matches[1].end()]


def extract_unmarked_ratio(text: str, target: Fraction) -> Fraction | None:
    matches = list(_RATIO.finditer(text))
    return _parse_ratio(matches[-1]) if matches else None


def parse_gold_time(gold: str) -> TimeOfDay | None:
    match = _TIME.fullmatch(gold.strip())
    return None if match is None else _parse_time(match)


def _parse_time(match: re.Match[str]) -> TimeOfDay:
    return int(match[1]), int(match[2] or 0), int(match[3] or 0), (match[4] or match[5] or "").lower()


def extract_marked_time(text: str, target: TimeOfDay, which: int = 0) -> TimeOfDay | str | None:
    """The first time (-1: the last one); two of them joined ("3:30 or 4:30") are neither."""
    text = _TIME_WITH_POINT.sub(r"\1:\2", text)
    matches = list(_TIME.finditer(text))
    found = [_parse_time(match) for match in matches]
    if not found and not target[3]:
        found = [(int(m[1]), int(m[2]), 0, "") for m in _RATIO.finditer(text) if m[1].isdecimal() and m[2].isdecimal()]
    either = _open_alternatives(text, matches, is_same_time(*found[:2])) if len(matches) > 1 and which == 0 else None
    return either or (found[which] if found else None)


def extract_unmarked_time(text: str, target: TimeOfDay) -> TimeOfDay | str | None:
    return extract_marked_time(text, target, -1)


def is_same_time(a: TimeOfDay, b: TimeOfDay | str) -> bool:
    if isinstance(b, str):
        return False
    if a[1:3] != b[1:3]:
        return False
    if a[0] == b[0] and a[3] == b[3]:
        return True
    vague = any(not time[3] and 1 <= time[0] <= 12 for time in (a, b))  # 5:45 may be morning or evening
    if vague:
        return a[0] % 12 == b[0] % 12 and max(a[0], b[0]) < 24
    return _hour_of_day(a) == _hour_of_day(b)


def _hour_of_day(time: TimeOfDay) -> int:
    return time[0] % 12 + 12 * (time[3] == "p") if time[3] else time[0]


def format_time(time: TimeOfDay | str) -> str:
    if isinstance(time, str):
        return time
    seconds = f":{time[2]:02d}" if time[2] else ""
    return f"{time[0]}:{time[1]:02d}{seconds}{f' {time[3]}.m.' if time[3] else ''}"


def format_ratio(value: Fraction | str) -> str:
    return value if isinstance(value, str) else f"{value.numerator}:{value.denominator}"
