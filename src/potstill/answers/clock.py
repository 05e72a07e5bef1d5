"""Clock: ratios, and times of day, which may look alike (9:10).

>>> same_time(gold_time("3:30 p.m."), any_time("at 15:30 sharp", gold_time("3:30 p.m.")))
True
>>> gold_ratio("4:6") == any_ratio("2 to 3", gold_ratio("4:6"))
True
"""

from __future__ import annotations

import itertools
import re
from fractions import Fraction

# ratio, and time, which may be a ratio (9:10)

_PART = r"(?:[0-9]{1,3}(?:,[0-9]{3})+|[0-9]{1,9})(?:\.[0-9]{1,9})?"
_RATIO = re.compile(
    rf"(?<![0-9.:,])({_PART})(?:\s[A-Za-z]{{1,20}}){{0,2}}?\s?(?::|\bto\b|-to-|\bout of\b|\bfor every\b|\bper\b|/)"
    rf"\s?({_PART})(?![0-9:]|,[0-9])"
)
_GOLD_RATIO = re.compile(rf"({_PART})\s?:\s?({_PART})")
_TIME = re.compile(
    r"(?<![0-9:.])([0-9]{1,2})(?::([0-5][0-9])(?::([0-5][0-9]))?(?![0-9:])(?:\s?([aApP])\.?\s?[mM]\b\.?)?|\s?([aApP])\.?\s?[mM]\b\.?"
    r"|\so'clock)"
)
_POINT = re.compile(r"(?<![0-9.])([0-9]{1,2})\.([0-5][0-9])(?=\s?[aApP]\.?\s?[mM]\b)")  # 3.30 p.m.
_EITHER = re.compile(r"\s?(?:,?\s?(?:or|and|to|till|until)\s|-)\s?")  # between two times or ratios
Time = tuple[int, int, int, str]


def gold_ratio(gold: str) -> Fraction | None:
    match = _GOLD_RATIO.fullmatch(gold.strip())
    return None if match is None else _ratio(match)


def _ratio(match: re.Match[str]) -> Fraction | None:
    below = Fraction(match[2].replace(",", ""))
    return Fraction(match[1].replace(",", "")) / below if below else None


def any_ratio(text: str, target: Fraction) -> Fraction | str | None:
    """The first ratio; two of them joined ("2:3 or 3:2") are neither, and are shown as they stand."""
    matches = list(itertools.islice(_RATIO.finditer(text), 2))
    if not matches:
        return None
    values = [_ratio(match) for match in matches]
    return _either(text, matches, values[0] == values[-1]) or values[0]


def _either(text: str, matches: list[re.Match[str]], agree: bool) -> str | None:
    """Two values that a text leaves open, as it has them; None where it names one."""
    if len(matches) < 2 or agree or not _EITHER.fullmatch(text, matches[0].end(), matches[1].start()):
        return None
    return text[matches[0].start() : matches[1].end()]


def last_ratio(text: str, target: Fraction) -> Fraction | None:
    matches = list(_RATIO.finditer(text))
    return _ratio(matches[-1]) if matches else None


def gold_time(gold: str) -> Time | None:
    match = _TIME.fullmatch(gold.strip())
    return None if match is None else _time(match)


def _time(match: re.Match[str]) -> Time:
    return int(match[1]), int(match[2] or 0), int(match[3] or 0), (match[4] or match[5] or "").lower()


def any_time(text: str, target: Time, which: int = 0) -> Time | str | None:
    """The first time (-1: the last one); two of them joined ("3:30 or 4:30") are neither."""
    text = _POINT.sub(r"\1:\2", text)
    matches = list(_TIME.finditer(text))
    found = [_time(match) for match in matches]
    if not found and not target[3]:
        found = [(int(m[1]), int(m[2]), 0, "") for m in _RATIO.finditer(text) if m[1].isdecimal() and m[2].isdecimal()]
    either = _either(text, matches, same_time(*found[:2])) if len(matches) > 1 and which == 0 else None
    return either or (found[which] if found else None)


def last_time(text: str, target: Time) -> Time | str | None:
    return any_time(text, target, -1)


def same_time(a: Time, b: Time | str) -> bool:
    if isinstance(b, str):
        return False
    if a[1:3] != b[1:3]:
        return False
    if a[0] == b[0] and a[3] == b[3]:
        return True
    vague = any(not time[3] and 1 <= time[0] <= 12 for time in (a, b))  # 5:45 may be morning or evening
    if vague:
        return a[0] % 12 == b[0] % 12 and max(a[0], b[0]) < 24
    return _hours(a) == _hours(b)


def _hours(time: Time) -> int:
    return time[0] % 12 + 12 * (time[3] == "p") if time[3] else time[0]


def show_time(time: Time | str) -> str:
    if isinstance(time, str):
        return time
    seconds = f":{time[2]:02d}" if time[2] else ""
    return f"{time[0]}:{time[1]:02d}{seconds}{f' {time[3]}.m.' if time[3] else ''}"


def show_ratio(value: Fraction | str) -> str:
    return value if isinstance(value, str) else f"{value.numerator}:{value.denominator}"
