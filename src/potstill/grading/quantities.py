"""The answer types `number`, `several` (numbers in any order), `ratio` and `time` (of day).

>>> gold = parse_gold_several("5 (years old); 15 (years old)")
>>> is_same_several(gold, extract_marked_several(" 15 and 5.", gold)), format_several(gold)
(True, '5; 15')
>>> is_same_time(parse_gold_time("3:30 p.m."), extract_marked_time("at 15:30 sharp", parse_gold_time("3:30 p.m.")))
True

`answer_types.AnswerType` explains the five functions of a type.
"""

from __future__ import annotations

import itertools
import re
from fractions import Fraction

from potstill.grading import normalize, numbers
from potstill.grading.numbers import Number

# Number

_UNIT = re.compile(r"\s*(?:%|\([^()]*\)|[^0-9;:]{0,60})\.?\s*")
# Letters and signs that make a gold answer an algebraic expression ($12\pi$, $3-i$, $7 x$); they are not units.
_ALGEBRA = re.compile(
    r"[\\^{}=+*_\u221a\u03c0\u221e\u03b8\u00b1<>\u2264\u2265\u2070\u00b9\u00b2\u00b3\u2074-\u2079]"
    r"|-\s?[a-z](?![A-Za-z])|(?<![A-Za-z])[xyzn](?![A-Za-z'])|^[iabnuvwjqe](?![A-Za-z'])|\b(?:pi|sqrt)\b"
)
_RAISED_UNIT = re.compile(r"(?<=[a-z])\^\{?[23]\}?|(?<=[a-z])[\u00b2\u00b3]", re.IGNORECASE)  # m^2
_LONE_LETTER = re.compile(r"(?<![A-Za-z])[A-Za-z](?![A-Za-z])")


def parse_gold_number(gold: str) -> Number | None:
    """The number of a gold answer, which may have a unit; None for an algebraic expression such as $12\\pi$."""
    number, stripped = _parse_number_with_unit(gold), gold.strip()
    if number is None or stripped.isdecimal():
        return number
    rest = re.sub(r"\([^()]*\)\s*$", "", numbers.NUMBER_PATTERN.sub("", gold, 1).strip(" $."))
    rest = _RAISED_UNIT.sub("", rest)
    in_dollars = stripped.startswith("$") and stripped.endswith("$") and len(stripped) > 1
    return None if _ALGEBRA.search(rest) or (in_dollars and _LONE_LETTER.search(rest)) else number


def _parse_number_with_unit(gold: str) -> Number | None:
    gold = _RAISED_UNIT.sub("", gold).strip()
    text = gold.lstrip("$\u00a3\u20ac").removesuffix("$").strip()
    match = numbers.NUMBER_PATTERN.match(text) or numbers.NUMBER_PATTERN.match(gold)
    if match is None:
        return numbers.parse_spelled_number(gold)
    rest = match.string[match.end() :]
    rest = rest.removeprefix(")") if match["minus"] and "(" in match[0] else rest
    number = numbers.parse_number_match(match)
    return number if number.value is not None and _UNIT.fullmatch(rest) else None


_FIRST_STEP = re.compile(r"\(?1[.)]\s")  # the first step of a solution, or of a list of answers
_NUMERAL_LINE = re.compile(r"[\s*_$]*-?[$]?[0-9][0-9.,]*+(?:\s[a-z]+)?[*_$.\s]*", re.IGNORECASE)
_SPACED_MINUS = re.compile(r"\A-\s+(?=[$]?[.0-9])")


def extract_marked_number(text: str, gold: Number) -> Number | None:
    on_new_line = "\n" in text[:8]  # "The answer is - 5" is not a list
    items = normalize.read_list_items(text) if "\n" in text else []
    text = text.lstrip(" \t\n:=*_\"'`")
    if len(items) > 1 and _FIRST_STEP.match(text):
        # A list of numbers is a hedge; any other list is a solution, which is read as unmarked text.
        return Number(None, text=text[:40]) if all(map(_NUMERAL_LINE.fullmatch, items)) else None
    text = items[0] if len(items) == 1 and on_new_line else text
    return numbers.extract_first_number(normalize.read_first_sentence(_SPACED_MINUS.sub("-", text)))


# "So 5 * 4 =", "She sells 9 *", "The total is": the text breaks off before its answer. No earlier number is the answer.
_UNFINISHED = re.compile(
    r"(?:=\s?[$]?|[0-9)]\s?(?:[-+/^\u00f7]|\*{1,2}|x|plus|minus|divided by)|[0-9a-z)]\s\*{1,2}"
    r"|\b(?:is|are|equals?|makes|gives|becomes|totals))[\s?_.]*$",
    re.IGNORECASE,
)
_BOLD = re.compile(r"\*\*[^*\n]{1,80}\*\*[\s.]*$")


def extract_unmarked_number(text: str, gold: Number) -> Number | None:
    if _UNFINISHED.search(text[-60:].rstrip()) and not _BOLD.search(text[-120:]):
        return None
    return numbers.extract_last_number(text) or numbers.parse_spelled_number(text)


# Several numbers, in any order

_SEVERAL_SEPARATOR = re.compile(r";|,\s+")


def parse_gold_several(gold: str) -> tuple[Number, ...] | None:
    parts = [parse_gold_number(part) for part in _SEVERAL_SEPARATOR.split(gold)]
    values = [part for part in parts if part is not None]
    return _sort_numbers(values) if len(values) == len(parts) > 1 else None


def extract_marked_several(text: str, gold: tuple[Number, ...]) -> tuple[Number, ...] | None:
    if listed := _numbers_of_list(text, len(gold)):
        return listed
    sentence = normalize.read_first_sentence(text.lstrip(normalize.STRIP_CHARS))
    values = numbers.extract_all_numbers(sentence)
    if len(values) != len(gold):
        separated = numbers.extract_all_numbers(sentence.replace(",", ", "))  # "500,700" may be two numbers
        values = separated if len(separated) == len(gold) else values
    if len(values) != len(gold):
        values = numbers.extract_all_numbers(_ITEM_NUMBER.sub(" ", sentence)) or values  # "(1) 5 and (2) 15"
    return _sort_numbers(values) if values else None


def extract_unmarked_several(text: str, gold: tuple[Number, ...]) -> tuple[Number, ...] | None:
    if listed := _numbers_of_list(text, len(gold), last=True):
        return listed
    values = numbers.extract_all_numbers(normalize.read_last_line(text)) or numbers.extract_all_numbers(text)
    return _sort_numbers(values[-len(gold) :]) if values else None


_ITEM_NUMBER = re.compile(r"(?<![^\s:])\(?[1-9][.)]\s(?=\s?[$]?-?[A-Za-z0-9])")


def _numbers_of_list(text: str, count: int, last: bool = False) -> tuple[Number, ...] | None:
    """The numbers of a list with bullets or with one number per line; None if there is no list."""
    items = normalize.read_list_items(text[-2000:] if last else text, last)
    if len(items) < 2:
        lines = [line for line in text[:2000].split("\n") if line.strip(normalize.STRIP_CHARS)][:count]
        items = lines if not last and all(map(_NUMERAL_LINE.fullmatch, lines)) else []
    values = [number for item in items for number in numbers.extract_all_numbers(item)]
    return _sort_numbers(values) if len(items) > 1 and values else None


def _sort_numbers(values: list[Number]) -> tuple[Number, ...]:
    return tuple(sorted(values, key=lambda number: (number.value is None, number.value or 0)))


def is_same_several(gold: tuple[Number, ...], values: tuple[Number, ...]) -> bool:
    return len(gold) == len(values) and all(map(numbers.is_same_number, gold, values))


def format_several(values: tuple[Number, ...]) -> str:
    return "; ".join(map(numbers.format_number, values))[:200]


# Ratio, and time of day, which may look like a ratio (9:10)

_RATIO_PART = r"(?:[0-9]{1,3}(?:,[0-9]{3})+|[0-9]{1,9})(?:\.[0-9]{1,9})?"
_RATIO = re.compile(
    rf"(?<![0-9.:,])({_RATIO_PART})(?:\s[A-Za-z]{{1,20}}){{0,2}}?\s?(?::|\bto\b|-to-|\bout of\b|\bfor every\b|\bper\b"
    rf"|/)\s?({_RATIO_PART})(?![0-9:]|,[0-9])"
)
_GOLD_RATIO = re.compile(rf"({_RATIO_PART})\s?:\s?({_RATIO_PART})")
_TIME = re.compile(
    r"(?<![0-9:.])([0-9]{1,2})(?::([0-5][0-9])(?::([0-5][0-9]))?(?![0-9:])(?:\s?([aApP])\.?\s?[mM]\b\.?)?|\s?([aApP])\.?\s?[mM]\b\.?"
    r"|\so'clock)"
)
_TIME_WITH_POINT = re.compile(r"(?<![0-9.])([0-9]{1,2})\.([0-5][0-9])(?=\s?[aApP]\.?\s?[mM]\b)")  # 3.30 p.m.
_JOINED_ANSWERS = re.compile(r"\s?(?:,?\s?(?:or|and|to|till|until)\s|-)\s?")  # between two times or ratios
TimeOfDay = tuple[int, int, int, str]  # hour, minute, second, and "a", "p" or ""


def parse_gold_ratio(gold: str) -> Fraction | None:
    match = _GOLD_RATIO.fullmatch(gold.strip())
    return None if match is None else _parse_ratio(match)


def _parse_ratio(match: re.Match[str]) -> Fraction | None:
    denominator = Fraction(match[2].replace(",", ""))
    return Fraction(match[1].replace(",", "")) / denominator if denominator else None


def extract_marked_ratio(text: str, gold: Fraction) -> Fraction | str | None:
    """The first ratio; the text of two different ratios that are joined ("2:3 or 3:2"); None without a ratio."""
    matches = list(itertools.islice(_RATIO.finditer(text), 2))
    values = [_parse_ratio(match) for match in matches]
    return (_open_alternatives(text, matches, values[0] == values[-1]) or values[0]) if values else None


def _open_alternatives(text: str, matches: list[re.Match[str]], agree: bool) -> str | None:
    """The text of two different joined values ("2:3 or 3:2"); None if the text names one value."""
    if agree or not _JOINED_ANSWERS.fullmatch(text, matches[0].end(), matches[1].start()):
        return None
    return text[matches[0].start() : matches[1].end()]


def extract_unmarked_ratio(text: str, gold: Fraction) -> Fraction | None:
    matches = list(_RATIO.finditer(text))
    return _parse_ratio(matches[-1]) if matches else None


def parse_gold_time(gold: str) -> TimeOfDay | None:
    match = _TIME.fullmatch(gold.strip())
    return None if match is None else _parse_time(match)


def _parse_time(match: re.Match[str]) -> TimeOfDay:
    return int(match[1]), int(match[2] or 0), int(match[3] or 0), (match[4] or match[5] or "").lower()


def extract_marked_time(text: str, gold: TimeOfDay) -> TimeOfDay | str | None:
    """The first time; the text of two different times that are joined ("3:30 or 4:30"); None without a time."""
    text, matches, times = _find_times(text, gold)
    agree = len(matches) < 2 or is_same_time(*times[:2])
    return _open_alternatives(text, matches, agree) or (times[0] if times else None)


def extract_unmarked_time(text: str, gold: TimeOfDay) -> TimeOfDay | str | None:
    _, _, times = _find_times(text, gold)
    return times[-1] if times else None


def _find_times(text: str, gold: TimeOfDay) -> tuple[str, list[re.Match[str]], list[TimeOfDay]]:
    """The text with colons in its times, the matches of its times, and their values.

    If the text has no times, and the gold time has no a.m. or p.m., the values are its ratios read as times.
    """
    text = _TIME_WITH_POINT.sub(r"\1:\2", text)
    matches = list(_TIME.finditer(text))
    times = [_parse_time(match) for match in matches]
    if not times and not gold[3]:
        ratios = (match.groups() for match in _RATIO.finditer(text))
        times = [(int(a), int(b), 0, "") for a, b in ratios if a.isdecimal() and b.isdecimal()]
    return text, matches, times


def is_same_time(gold: TimeOfDay, time: TimeOfDay | str) -> bool:
    """Whether two times agree. 5:45 without a.m. or p.m. agrees with both."""
    if isinstance(time, str) or gold[1:3] != time[1:3]:
        return False
    if gold[0] == time[0] and gold[3] == time[3]:
        return True
    if any(not half and 1 <= hour <= 12 for hour, _, _, half in (gold, time)):
        return gold[0] % 12 == time[0] % 12 and max(gold[0], time[0]) < 24
    return _hour_of_day(gold) == _hour_of_day(time)


def _hour_of_day(time: TimeOfDay) -> int:
    return time[0] % 12 + 12 * (time[3] == "p") if time[3] else time[0]


def format_time(time: TimeOfDay | str) -> str:
    if isinstance(time, str):
        return time
    seconds = f":{time[2]:02d}" if time[2] else ""
    return f"{time[0]}:{time[1]:02d}{seconds}{f' {time[3]}.m.' if time[3] else ''}"


def format_ratio(value: Fraction | str) -> str:
    return value if isinstance(value, str) else f"{value.numerator}:{value.denominator}"
