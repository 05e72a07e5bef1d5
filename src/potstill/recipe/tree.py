"""YAML text to a tree of plain values, whatever the text is: one message for what is not YAML, or is meant to do harm.

    >>> load("train: {steps: 0x10}", "mine.yaml")["train"]["steps"]
    16
    >>> load("name: !foo x", "mine.yaml")
    Traceback (most recent call last):
    potstill.errors.UserError: mine.yaml line 1: a recipe has no tags
      found: !foo
      do: write the value without it; what stands in quotes is a text

Before anything is built, the text is read once as a stream of events: how deep it goes, how large it is with every
alias written out, and whether it has tags. A date stays the text that was written.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any, Final

from ruamel.yaml import YAML
from ruamel.yaml.constructor import RoundTripConstructor
from ruamel.yaml.error import YAMLError
from ruamel.yaml.reader import ReaderError

from potstill.errors import UserError

MOST_CHARACTERS: Final = 1 << 18
MOST_DEPTH: Final = 40
MOST_VALUES: Final = 10_000  # with every alias written out
MOST_DIGITS: Final = 400  # of one number
NUMBER: Final = re.compile(r"[-+]?(0x[0-9a-fA-F_]+|0o[0-7_]+|[0-9_.]+([eE][-+]?[0-9_]+)?)")


class _Constructor(RoundTripConstructor):
    """Dates are texts: a name such as 2026-11-28 is one."""


_Constructor.add_constructor("tag:yaml.org,2002:timestamp", lambda self, node: node.value)


def load(text: str, where: str) -> Any:
    """The tree of a text, whose maps and lists know their lines. Raises UserError where it is none."""
    if len(text) > MOST_CHARACTERS:
        raise UserError(
            "too large for a recipe", where=where, found=f"{len(text)} characters", do="name a recipe (YAML)"
        )
    try:
        _check(text, where)
        reader = YAML(typ="rt", pure=True)
        reader.Constructor = _Constructor
        return reader.load(text)
    except YAMLError as fault:
        mark = getattr(fault, "problem_mark", None) or getattr(fault, "context_mark", None)
        place = f"{where} line {mark.line + 1}" if mark else where
        problem = getattr(fault, "problem", None) or str(fault).partition("\n")[0]
        problem = problem.partition(" with value ")[0]  # of a key that stands twice: the value may be a secret
        if isinstance(fault, ReaderError):
            place = f"{where} line {text.count(chr(10), 0, fault.position) + 1}"
        raise UserError("not valid YAML", where=place, found=_short(problem), do=_remedy(problem)) from None
    except RecursionError:
        raise _too_deep(where) from None
    except (ValueError, TypeError, LookupError, AttributeError, AssertionError, NotImplementedError) as fault:
        raise UserError(  # the library's own reading of a value or of a directive
            "not valid YAML", where=where, found=_short(fault), do="write plain keys and values, texts in quotes"
        ) from None


def plain(tree: Any, where: str) -> Any:
    """A tree as plain values. Raises UserError for what JSON does not know, such as a list as a key."""
    try:
        return json.loads(json.dumps(tree, default=str))
    except (TypeError, ValueError, RecursionError) as fault:
        raise UserError(
            "not a recipe's values", where=where, found=_short(fault), do="write plain keys and values"
        ) from None


def lines(tree: Any, keys: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], int]]:
    """The line (from 1) of every key and item. What another map was merged into has the line of the map itself."""
    if isinstance(tree, Mapping):
        for name, value in tree.items():
            yield (*keys, str(name)), _line(tree, "key", name)
            yield from lines(value, (*keys, str(name)))
    elif isinstance(tree, list):
        for number, value in enumerate(tree):
            yield (*keys, str(number)), _line(tree, "item", number)
            yield from lines(value, (*keys, str(number)))


def _line(tree: Any, what: str, at: Any) -> int:
    try:
        return getattr(tree.lc, what)(at)[0] + 1
    except (KeyError, TypeError, AttributeError, IndexError):
        return getattr(getattr(tree, "lc", None), "line", 0) + 1


def _check(text: str, where: str) -> None:
    """Raises UserError for what could not be read in a moment, or has no place in a recipe."""
    sizes: dict[str, int] = {}  # of what has an anchor, with its aliases written out
    anchors = set[str]()
    opened: list[tuple[str | None, int]] = []  # the anchor of each map or list that is not closed, and what came before
    total = 0
    for event in YAML(typ="rt", pure=True).parse(text):
        kind = type(event).__name__
        mark = getattr(event, "start_mark", None)
        place = f"{where} line {mark.line + 1}" if mark is not None else where
        anchor, tag = getattr(event, "anchor", None), getattr(event, "tag", None)
        if anchor is not None and kind != "AliasEvent":
            if str(anchor) in anchors:
                raise UserError(
                    "two anchors have one name", where=place, found=f"&{anchor}", do="give each its own name"
                )
            anchors.add(str(anchor))
        if kind == "AliasEvent":
            if anchor in [name for name, _ in opened]:
                raise UserError("holds itself", where=place, found=f"*{anchor}", do="write the value out")
            total += sizes.get(str(anchor), 1)
        elif kind in ("MappingStartEvent", "SequenceStartEvent"):
            opened.append((None if anchor is None else str(anchor), total))
            total += 1
        elif kind in ("MappingEndEvent", "SequenceEndEvent"):
            name, before = opened.pop()
            if name is not None:
                sizes[name] = total - before
        elif kind == "ScalarEvent":
            total += 1
            if event.style is None and len(event.value) > MOST_DIGITS and NUMBER.fullmatch(event.value):
                found = f"{event.value[:20]}... ({len(event.value)} digits)"
                raise UserError(
                    "no number has so many digits", where=place, found=found, do="write a number in this range"
                )
        if tag is not None and str(tag) != "!":
            do = "write the value without it; what stands in quotes is a text"
            raise UserError("a recipe has no tags", where=place, found=_short(_written(tag)), do=do)
        if len(opened) > MOST_DEPTH:
            raise _too_deep(place)
        if total > MOST_VALUES:
            found = f"more than {MOST_VALUES} values, aliases written out"
            raise UserError("too large for a recipe", where=place, found=found, do="name a recipe (YAML)")


def _too_deep(place: str) -> UserError:
    return UserError(
        "nested too deeply",
        where=place,
        found=f"more than {MOST_DEPTH} levels",
        do="a recipe has five: close what is open",
    )


def _written(tag: Any) -> str:
    return str(tag).replace("tag:yaml.org,2002:", "!!")


def _remedy(problem: str) -> str:
    if r"'\t'" in problem:
        return "indent with spaces, not with tabs"
    if "another document" in problem:
        return "a file holds one recipe: take out the line `---` and what follows it"
    if "duplicate key" in problem:
        return "write each key once"
    if "undefined alias" in problem:
        return "put what begins with * in quotes, or write the value out"
    if "mapping values are not allowed" in problem or "could not find expected ':'" in problem:
        return "write `key: value` with a space after the colon, and a text that holds a colon in quotes"
    if "special characters are not allowed" in problem or "control characters" in problem:
        return "remove the control character, or write it as an escape in double quotes"
    return "correct this line, or the one before it: an unclosed quote or bracket shows only later"


def _short(what: object) -> str:
    text = str(what)
    return text if len(text) <= 300 else f"{text[:300]}..."
