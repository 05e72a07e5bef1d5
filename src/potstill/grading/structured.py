"""The answer types `regex` (the gold answer is a pattern) and `json`.

>>> is_same_json(parse_gold_json('{"n": 1, "of": ["a"]}'), extract_unmarked_json('So: {"of": ["a"], "n": 1.0}.', None))
True
>>> pattern = parse_gold_regex("[0-9]{4}-[0-9]{2}")
>>> extract_marked_regex(" 2024-05.", pattern), extract_marked_regex(" May 2024.", pattern)
('2024-05', 'May 2024')

`answer_types.AnswerType` explains the five functions of a type.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from decimal import Decimal
from functools import lru_cache
from typing import Any, Final

from potstill.errors import UserError
from potstill.grading import normalize

# Regex. The pattern may come from an untrusted file, so RE2 matches it, in linear time.

_MAX_CHARS: Final = 2000
Pattern = Any  # RE2's; the library is loaded with the first pattern


def parse_gold_regex(gold: str) -> Pattern | None:
    """The pattern; None for an empty one. Raises UserError for a pattern that RE2 cannot match."""
    if not gold.strip():
        return None
    pattern, error = _compile_pattern(gold)
    if error is not None:
        what, found = "the gold answer is not a valid regex", f"{gold[:80]!r}: {error}"
        hint = "write an RE2 pattern: no look-around, back-references, \\Z or possessive repeats"
        raise UserError(what, code="E-grade-invalid-regex", found=found, hint=hint)
    return pattern


@lru_cache(maxsize=4096)
def _compile_pattern(gold: str) -> tuple[Pattern | None, str | None]:
    import re2

    options = re2.Options()
    options.log_errors = False
    try:
        return re2.compile(gold, options), None
    except re2.error as error:
        message = error.args[0] if error.args else ""
        return None, message.decode("utf-8", "replace") if isinstance(message, bytes) else str(message)


def extract_marked_regex(text: str, gold: Pattern) -> str | None:
    """The line or sentence that the whole pattern matches, with or without its final period."""
    line = text.strip()[:_MAX_CHARS].split("\n", 1)[0].strip()
    sentence = normalize.read_answer_sentence(text[:_MAX_CHARS])
    candidates = [line, line.strip(normalize.STRIP_CHARS), sentence, line.rstrip("."), sentence.rstrip(".")]
    return next((candidate for candidate in candidates if candidate and gold.fullmatch(candidate)), sentence or None)


def extract_unmarked_regex(text: str, gold: Pattern) -> str | None:
    whole = text.strip()
    if len(whole) <= _MAX_CHARS and gold.fullmatch(whole):
        return whole
    return extract_marked_regex(normalize.read_last_line(text), gold)


def format_regex(value: Pattern | str) -> str:
    return value[:200] if isinstance(value, str) else value.pattern


# JSON, compared by value: fields may have any order, 1 equals 1.0, and true does not equal 1. A value is wrapped in a
# tuple, because null is None, which means "no value" everywhere else.

_MAX_DEPTH: Final = 60
_MAX_UNCLOSED: Final = 20  # the search ends after this many opening brackets that begin no JSON
_SIGNS = re.compile(r'[\[\]{}"\\]')
_OPENING = re.compile(r"[\[{]")
_STRING = re.compile(r'"(?:[^"\\]|\\.)*"', re.DOTALL)
_FENCE = re.compile(r"\s*(?:```(?:json)?|`)?\s*")
_INVALID: Final = object()


def escape_json_strings(text: str) -> str:
    """The text with every character of its JSON strings escaped, so that no word in them can be a marker.

    The JSON values stay equal.
    """
    parts: list[str] = []
    previous_end = 0
    for start, end, _ in _iter_structures(text):
        parts += text[previous_end:start], _STRING.sub(_escape_string, text[start:end])
        previous_end = end
    return "".join([*parts, text[previous_end:]])


def _escape_string(string: re.Match[str]) -> str:
    units = json.loads(string[0]).encode("utf-16-be", "surrogatepass").hex()
    return '"' + "".join(f"\\u{units[i : i + 4]}" for i in range(0, len(units), 4)) + '"'


def parse_gold_json(gold: str) -> tuple[Any] | None:
    value = _parse_json(gold.strip())
    return None if value is _INVALID else (value,)


def extract_marked_json(text: str, gold: Any) -> tuple[Any] | None:
    """The value after a marker: an object or list, or the rest of the line as a string, number, boolean or null."""
    fence = _FENCE.match(text)
    rest = text[fence.end() :] if fence else text
    if rest[:1] in ("{", "["):
        return _first_structure(rest)
    line = rest.split("\n", 1)[0].strip().strip("`*").strip()
    for candidate in (line, line.rstrip(".")):
        if (value := _parse_json(candidate)) is not _INVALID:
            return (value,)
    return _first_structure(rest)


def extract_unmarked_json(text: str, gold: Any) -> tuple[Any] | None:
    """The last object or list of a text; without one, the whole text if it is a JSON value; otherwise None."""
    structures = [value for _, _, value in _iter_structures(text)]
    return structures[-1] if structures else parse_gold_json(text)


def is_same_json(gold: tuple[Any], value: tuple[Any]) -> bool:
    return _is_equal_json(gold[0], value[0])


def format_json(value: tuple[Any]) -> str:
    return json.dumps(value[0], sort_keys=True, ensure_ascii=False, default=_plain_number)[:2000]


def _plain_number(value: Any) -> Any:
    """A Decimal as a JSON number; as a string if it would have more than about 30 digits."""
    assert isinstance(value, Decimal), value
    if not -30 <= value.adjusted() <= 30:
        return str(value) if value else 0
    return int(value) if value == value.to_integral_value() and abs(value) < 10**15 else float(value)


def _iter_structures(text: str) -> Iterator[tuple[int, int, tuple[Any]]]:
    """Start, end and value of every outermost JSON object and list. Takes time linear in the text."""
    position = failures = 0
    while failures <= _MAX_UNCLOSED and (opening := _OPENING.search(text, position)):
        start = opening.start()
        end = _closing_position(text, start)
        value = _INVALID if end < 0 else _parse_json(text[start:end])
        if value is _INVALID:
            failures += 1
            position = start + 1
        else:
            yield start, end, (value,)
            position = end


def _first_structure(text: str) -> tuple[Any] | None:
    return next((value for _, _, value in _iter_structures(text)), None)


def _closing_position(text: str, start: int) -> int:
    """The position after the bracket that closes the bracket at `start`.

    -1 if no bracket closes it, or if brackets are nested deeper than `_MAX_DEPTH`.
    """
    depth, quoted, escaped = 0, False, -1
    for match in _SIGNS.finditer(text, start):
        sign, position = match[0], match.start()
        if position == escaped:
            continue
        if sign == "\\":
            escaped = position + 1 if quoted else escaped
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
        return _INVALID
    try:
        return json.loads(text, parse_float=Decimal, parse_constant=_refuse_constant)
    except (ValueError, RecursionError, ArithmeticError):
        return _INVALID


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


def _is_equal_json(a: Any, b: Any) -> bool:
    if {type(a), type(b)} <= {int, Decimal}:
        a, b = Decimal(a), Decimal(b)
        # Decimal's comparison would write out all digits of 1e999999999, so magnitudes are compared first.
        return a.adjusted() == b.adjusted() and a == b if a and b else not a and not b
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(_is_equal_json(a[key], b[key]) for key in a)
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(_is_equal_json(x, y) for x, y in zip(a, b, strict=True))
    return type(a) is type(b) and a == b
