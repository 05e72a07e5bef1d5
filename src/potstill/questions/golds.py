"""Golds: what a field of somebody's set says of the right answer, as the text that a solution ends with.

    >>> read("48 / 2 = <<48/2=24>>24.\\n#### 24", "mine.jsonl line 1")
    Gold(text='24', rationale='48 / 2 = 24.')
    >>> read(True, "mine.jsonl line 1", question="Do hamsters eat?").text
    'yes'
    >>> read("Answer key: B", "mine.jsonl line 1", after="key:").text
    'B'

A whole solution is read by its end: `#### 24` (GSM8K), `\\\\boxed{24}` (MATH), "The answer is 24."; what stands before
it is the rationale of a set that names none. What an answer stands behind in other sets, the recipe says (`after`).
"""

from __future__ import annotations

import json
import re
import string
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from potstill.errors import UserError
from potstill.questions import reading

AS_WRITTEN: Final = ("exact", "json", "regex", "function")  # forms whose golds are never looked into
BEHIND: Final = '`fields: {answer: {column: answer, after: "####"}}` says what it stands behind'
_CALCULATED = re.compile(r"<<[^<>\n]*>>")
_SAID = re.compile(
    r"(?:^|(?<=[.!?:;,]\s))(?:(?:so|thus|hence|therefore),?\s)?(?:the\s)?(?:final\s|correct\s)?answer\s?(?:is\s?:?|:)\s*(\S.*)$",
    re.IGNORECASE,
)
_LONGEST: Final = 300  # characters of an answer that is looked for at the end of a solution


@dataclass(frozen=True, slots=True)
class Gold:
    text: str
    rationale: str | None = None


def read(
    value: Any,
    where: str,
    *,
    name: str = "answer",
    form: str | None = None,
    question: str = "",
    after: str | None = None,
    values: Mapping[str, str] | None = None,
) -> Gold:
    """The gold answer of a record, and the rationale that stood before it in the same field, if any.

    form      how it is graded, as far as the recipe or the record says; of some forms nothing is looked into
    question  decides whether true and false are answered yes and no
    after     what the answer stands behind; `\\boxed` for what stands in its braces
    values    other words for whole answers, such as {true: yes, 0: A}
    Raises UserError for a value that is no answer.
    """
    if isinstance(value, list) and len(value) == 1 and form != "json":
        value = value[0]
    renamed = (values or {}).get(value if isinstance(value, str) else json.dumps(value, default=str))
    if renamed is not None:
        return Gold(renamed)
    if form == "json" and not isinstance(value, str):
        return Gold(json.dumps(value, ensure_ascii=False))
    if isinstance(value, bool):
        asks = question.rstrip().endswith("?") and "true or false" not in question.lower()
        return Gold(("yes" if value else "no") if asks else json.dumps(value))
    if isinstance(value, int | float):
        return Gold(reading.to_number(value, name, where=where))
    if not isinstance(value, str):
        do = 'write one text, such as "72", or "5; 15" for numbers that all belong to it; other values need task json'
        found = reading.short(json.dumps(value, default=str))
        raise UserError(f"`{name}` must be text, a number, true or false", where=where, found=found, do=do)
    text = value.strip()
    if not text:
        raise UserError(f"`{name}` is empty", where=where)
    if after is not None:
        return _after(text, after, name, where)
    return Gold(text) if form in AS_WRITTEN else _solution(text) or Gold(text)


def _after(text: str, after: str, name: str, where: str) -> Gold:
    before, mark, rest = text.rpartition(after)
    rest = _braces(rest) if after.startswith("\\boxed") else rest.strip()
    if not mark or not rest:
        do = "correct the record, or `after` in the recipe's sets.NAME.fields.answer"
        found = f"... {text[-60:]}" if len(text) > 60 else text
        raise UserError(f"`{name}` has nothing behind {after!r}", where=where, found=found, do=do)
    return Gold(rest, _CALCULATED.sub("", before).strip() or None)


def _solution(text: str) -> Gold | None:
    """A solution that ends with its answer; None for any other text."""
    before, mark, rest = text.rpartition("####")
    if mark and 0 < len(rest.strip()) < _LONGEST and "\n" not in rest.strip():
        return Gold(rest.strip(), _CALCULATED.sub("", before).strip() or None)
    at = text.rfind("\\boxed{")
    inside = _braces(text[at + 6 :]) if at >= 0 else ""
    if inside and not text[at + 6 + len(inside) + 2 :].strip(" $.)\\]\n"):
        return Gold(inside)
    start = text.rfind("\n") + 1
    if len(text) - start < 4 * _LONGEST:
        match = _SAID.search(text[start:])
        said = match[1].removesuffix(".").strip() if match is not None else ""
        if match is not None and said and len(said) < _LONGEST:
            return Gold(said, text[: start + match.start()].strip() or None)
    return None


def _braces(text: str) -> str:
    """What stands in the braces that a text begins with; nothing where it begins with none."""
    depth = 0
    for at, sign in enumerate(text[: 4 * _LONGEST]):
        depth += (sign == "{") - (sign == "}")
        if depth == 0:
            return text[1:at] if at else ""
    return ""


# A question whose options stand in a field of their own.


def options(value: Any) -> list[tuple[str, str]] | None:
    """Label and text of each option: of a list of texts, of `{"text": [...], "label": [...]}`, or of a list of objects
    with these two; None for anything else."""
    if isinstance(value, Mapping):
        texts, labels = value.get("text"), value.get("label")
    elif isinstance(value, list) and value and all(isinstance(each, Mapping) for each in value):
        texts, labels = [each.get("text") for each in value], [each.get("label") for each in value]
    else:
        texts, labels = value, None
    if not isinstance(texts, list) or not 2 <= len(texts) <= 26:
        return None
    texts = [reading.plain_number(each) if _is_number(each) else each for each in texts]
    if not all(isinstance(each, str) and each.strip() for each in texts):
        return None
    named = isinstance(labels, list) and len(labels) == len(texts) and all(isinstance(each, str) for each in labels)
    own = labels if named and labels is not None else list(string.ascii_uppercase[: len(texts)])
    return [(label.strip(), text.strip()) for label, text in zip(own, texts, strict=True)]


def offered(question: str, found: list[tuple[str, str]]) -> str:
    """The question with its options, lettered as BBH letters them."""
    rows = [f"({letter}) {text}" for letter, (_, text) in zip(string.ascii_uppercase, found, strict=False)]
    return "\n".join([question, "Options:", *rows])


def choice(value: Any, found: list[tuple[str, str]], where: str) -> str:
    """The letter of the right option: the value is its label, its letter, its place from 0, or its text."""
    said = reading.plain_number(value) if _is_number(value) else value.strip() if isinstance(value, str) else ""
    bare = said.strip("().")
    places = {
        "label": [at for at, (label, _) in enumerate(found) if label.casefold() == bare.casefold()],
        "letter": [at for at, letter in zip(range(len(found)), string.ascii_uppercase, strict=False) if bare == letter],
        "place": [int(bare)] if bare.isascii() and bare.isdecimal() and int(bare[:3]) < len(found) else [],
        "text": [at for at, (_, text) in enumerate(found) if text.casefold() == said.casefold()],
    }
    if isinstance(value, str) and len(bare) > 1:  # "12" among options of numbers is the option, not the twelfth
        places = {"text": places["text"], **places}
    at = next((own[0] for own in places.values() if len(own) == 1), None)
    if at is None:
        shown = ", ".join(f"{label}: {reading.short(text)}" for label, text in found[:5])
        what = "the answer is none of the choices"
        raise UserError(what, where=where, found=f"{value!r} among {shown}", do="correct one of the two")
    return f"({string.ascii_uppercase[at]})"


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
