"""Formal: an answer that a regular expression describes, and an answer in JSON.

>>> is_same_json(parse_gold_json('{"n": 1, "of": ["a"]}'), extract_unmarked_json('So:\\n{"of": ["a"], "n": 1.0}\\nDone.', None))
True
>>> pattern = parse_gold_regex("[0-9]{4}-[0-9]{2}")
>>> extract_marked_regex(" 2024-05.", pattern), extract_marked_regex(" May 2024.", pattern)
('2024-05', 'May 2024')
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from decimal import Decimal
from functools import lru_cache
from typing import Any, Final, TypeGuard

from potstill.grading import normalize

# regex: the gold answer is the pattern, and may come from a file that somebody else wrote. RE2 takes linear time.

_MAX_CHARS: Final = 2000
Pattern = Any  # of RE2, which is loaded where a pattern is first read


def parse_gold_regex(gold: str) -> Pattern | None:
    """The pattern; None where it is empty, or has what a linear engine cannot offer (see `why_no_regex`)."""
    return _compile_pattern(gold)[0] if gold.strip() else None


def regex_error(gold: str) -> str | None:
    """What RE2 says against a pattern, None where it takes it."""
    return _compile_pattern(gold)[1]


@lru_cache(maxsize=4096)
def _compile_pattern(gold: str) -> tuple[Pattern | None, str | None]:
    import re2

    options = re2.Options()
    options.log_errors = False
    try:
        return re2.compile(gold, options), None
    except re2.error as fault:
        told = fault.args[0] if fault.args else ""
        return None, told.decode("utf-8", "replace") if isinstance(told, bytes) else str(told)


def extract_marked_regex(text: str, target: Pattern) -> str | None:
    """What the pattern matches from end to end: the line or the sentence, with or without its final period."""
    line = text.strip()[:_MAX_CHARS].split("\n", 1)[0].strip()
    sentence = normalize.read_answer_sentence(text[:_MAX_CHARS])
    options = [line, line.strip(normalize.STRIP_CHARS), sentence, line.rstrip("."), sentence.rstrip(".")]
    return next((option for option in options if option and target.fullmatch(option)), sentence or None)


def extract_unmarked_regex(text: str, target: Pattern) -> str | None:
    whole = text.strip()
    if len(whole) <= _MAX_CHARS and target.fullmatch(whole):
        return whole
    return extract_marked_regex(normalize.read_last_line(text), target)


def is_same_regex(target: Pattern, found: str) -> bool:
    return target.fullmatch(found) is not None


def format_regex(value: Pattern | str) -> str:
    return value[:200] if isinstance(value, str) else value.pattern


# json: values, not bytes. Fields may come in any order, 1 is 1.0 and true is not 1.

_MAX_DEPTH: Final = 60
_MAX_UNCLOSED: Final = 20  # brackets that open and never close, before looking for JSON is given up
_SIGNS = re.compile(r'[\[\]{}"\\]')
_STRING = re.compile(r'"(?:[^"\\]|\\.)*"', re.DOTALL)
_FENCE = re.compile(r"\s*(?:```(?:json)?|`)?\s*")


class _Missing:
    """JSON has null, which is None here, so that "no value" needs a sign of its own."""


_MISSING: Final = _Missing()


def escape_json_strings(text: str) -> str:
    """The text with the strings of its objects and lists in escapes, the same values: no words in them are a mark."""
    parts: list[str] = []
    at = 0
    for start, end, _ in _iter_structures(text):
        parts += text[at:start], _STRING.sub(_escape_string, text[start:end])
        at = end
    return "".join([*parts, text[at:]])


def _escape_string(string: re.Match[str]) -> str:
    units = json.loads(string[0]).encode("utf-16-be", "surrogatepass").hex()
    return '"' + "".join(f"\\u{units[i : i + 4]}" for i in range(0, len(units), 4)) + '"'


def parse_gold_json(gold: str) -> tuple[Any] | None:
    value = _parse_json(gold.strip())
    return None if value is _MISSING else (value,)


def extract_marked_json(text: str, target: Any) -> tuple[Any] | None:
    """The value behind a mark: an object or a list, else a string, number, true, false or null up to the line's end."""
    start = _FENCE.match(text)
    assert start is not None, "it may match nothing"
    rest = text[start.end() :]
    if rest[:1] in ("{", "["):
        return _first_structure(rest)
    line = rest.split("\n", 1)[0].strip().strip("`*").strip()
    value = next(
        (value for value in (_parse_json(line), _parse_json(line.rstrip("."))) if value is not _MISSING), _MISSING
    )
    return _first_structure(rest) if value is _MISSING else (value,)


def extract_unmarked_json(text: str, target: Any) -> tuple[Any] | None:
    """The last object or list of a text; the whole text if that is a value."""
    last = None
    for _, _, last in _iter_structures(text):  # noqa: B007
        pass
    whole = _parse_json(text.strip()) if last is None else _MISSING
    return last if whole is _MISSING else (whole,)


def is_same_json(a: tuple[Any], b: tuple[Any]) -> bool:
    return _is_equal_json(a[0], b[0])


def format_json(value: tuple[Any]) -> str:
    return json.dumps(value[0], sort_keys=True, ensure_ascii=False, default=_plain_number)[:2000]


def _plain_number(value: Any) -> Any:
    """What a number with a point or an exponent is shown as. Nothing is written out that would not fit a line."""
    assert isinstance(value, Decimal), value
    if not -30 <= value.adjusted() <= 30:
        return str(value) if value else 0
    return int(value) if value == value.to_integral_value() and abs(value) < 10**15 else float(value)


def _iter_structures(text: str) -> Iterator[tuple[int, int, tuple[Any]]]:
    """Start, end and value of the outermost objects and lists that are JSON, in order. Looks at a sign a few times."""
    at = unclosed = 0
    while unclosed <= _MAX_UNCLOSED:
        start = min((place for place in (text.find("{", at), text.find("[", at)) if place >= 0), default=-1)
        if start < 0:
            return
        end = _closing_position(text, start)
        if end < 0:
            unclosed += 1
            at = start + 1
            continue
        value = _parse_json(text[start:end])
        if value is _MISSING:
            unclosed += 1
            at = start + 1
            continue
        yield start, end, (value,)
        at = end


def _first_structure(text: str) -> tuple[Any] | None:
    return next((value for _, _, value in _iter_structures(text)), None)


def _closing_position(text: str, start: int) -> int:
    """Where the bracket at `start` is closed, -1 if nowhere or if it holds more than `_DEEPEST` levels."""
    depth, quoted, skip = 0, False, -1
    for match in _SIGNS.finditer(text, start):
        sign, place = match[0], match.start()
        if place == skip:
            continue
        if sign == "\\":
            skip = place + 1 if quoted else skip
        elif sign == '"':
            quoted = not quoted
        elif not quoted:
            depth += 1 if sign in "[{" else -1
            if depth == 0:
                return match.end()
            if depth > _MAX_DEPTH:
                return -1
    return -1


def _parse_json(text: str) -> Any:
    if text[:1] in ("[", "{") and _closing_position(text, 0) < 0:
        return _MISSING  # not closed, or deeper than anything here goes
    try:
        return json.loads(text, parse_float=Decimal, parse_constant=_refuse_constant)
    except (ValueError, RecursionError, ArithmeticError):
        return _MISSING


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON")


def _is_equal_json(a: Any, b: Any) -> bool:
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(_is_equal_json(a[key], b[key]) for key in a)
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(_is_equal_json(x, y) for x, y in zip(a, b, strict=True))
    if _is_number(a) and _is_number(b):
        return _is_equal_decimal(Decimal(a), Decimal(b))
    return type(a) is type(b) and a == b


def _is_number(value: Any) -> TypeGuard[int | Decimal]:
    return isinstance(value, int | Decimal) and not isinstance(value, bool)


def _is_equal_decimal(a: Decimal, b: Decimal) -> bool:
    """Exactly equal. Decimal's own comparison writes 1e999999999 out; two numbers with unlike first places differ."""
    if not a or not b:
        return not a and not b
    return a.adjusted() == b.adjusted() and a == b
