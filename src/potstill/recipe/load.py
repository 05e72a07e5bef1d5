"""YAML text to a tree of plain values, whatever the text is: one message for what is not YAML, or is meant to do harm.

    >>> load_yaml("train: {steps: 0x10}", "mine.yaml")["train"]["steps"]
    16
    >>> load_yaml("name: !foo x", "mine.yaml")
    Traceback (most recent call last):
    potstill.errors.UserError: mine.yaml line 1: a recipe has no tags
      found: !foo
      hint: write the value without it; what stands in quotes is a text

Before anything is built, the text is read once as a stream of events: how deep it goes, how large it is with every
alias written out, and whether it has tags. A date stays the text that was written.

Reading a recipe: YAML 1.2 to sections, and one clear message for the first thing that is wrong.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, get_args, get_origin

from pydantic import BaseModel, ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.constructor import RoundTripConstructor
from ruamel.yaml.error import YAMLError
from ruamel.yaml.reader import ReaderError

from potstill.errors import UserError
from potstill.recipe import synonyms
from potstill.recipe.fields import DECODING_PATTERN, NAME_PATTERN
from potstill.recipe.schema import Recipe

MAX_CHARACTERS: Final = 1 << 18
MAX_DEPTH: Final = 40
MAX_VALUES: Final = 10_000  # with every alias written out
MAX_DIGITS: Final = 400  # of one number
NUMBER: Final = re.compile(r"[-+]?(0x[0-9a-fA-F_]+|0o[0-7_]+|[0-9_.]+([eE][-+]?[0-9_]+)?)")


class _DateAsTextConstructor(RoundTripConstructor):
    """Dates are texts: a name such as 2026-11-28 is one."""


_DateAsTextConstructor.add_constructor("tag:yaml.org,2002:timestamp", lambda self, node: node.value)


def load_yaml(text: str, where: str) -> Any:
    """The tree of a text, whose maps and lists know their lines. Raises UserError where it is none."""
    if len(text) > MAX_CHARACTERS:
        raise UserError(
            "too large for a recipe", where=where, found=f"{len(text)} characters", hint="name a recipe (YAML)"
        )
    try:
        _check_events(text, where)
        reader = YAML(typ="rt", pure=True)
        reader.Constructor = _DateAsTextConstructor
        return reader.load(text)
    except YAMLError as fault:
        mark = getattr(fault, "problem_mark", None) or getattr(fault, "context_mark", None)
        place = f"{where} line {mark.line + 1}" if mark else where
        problem = getattr(fault, "problem", None) or str(fault).partition("\n")[0]
        problem = problem.partition(" with value ")[0]  # of a key that stands twice: the value may be a secret
        if isinstance(fault, ReaderError):
            place = f"{where} line {text.count(chr(10), 0, fault.position) + 1}"
        raise UserError(
            "not valid YAML", where=place, found=_short_problem(problem), hint=_yaml_hint(problem)
        ) from None
    except RecursionError:
        raise _too_deep(where) from None
    except (ValueError, TypeError, LookupError, AttributeError, AssertionError, NotImplementedError) as fault:
        raise UserError(  # the library's own reading of a value or of a directive
            "not valid YAML",
            where=where,
            found=_short_problem(fault),
            hint="write plain keys and values, texts in quotes",
        ) from None


def plain_values(tree: Any, where: str) -> Any:
    """A tree as plain values. Raises UserError for what JSON does not know, such as a list as a key."""
    try:
        return json.loads(json.dumps(tree, default=str))
    except (TypeError, ValueError, RecursionError) as fault:
        raise UserError(
            "not a recipe's values", where=where, found=_short_problem(fault), hint="write plain keys and values"
        ) from None


def key_lines(tree: Any, keys: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], int]]:
    """The line (from 1) of every key and item. What another map was merged into has the line of the map itself."""
    if isinstance(tree, Mapping):
        for name, value in tree.items():
            yield (*keys, str(name)), _line_of(tree, "key", name)
            yield from key_lines(value, (*keys, str(name)))
    elif isinstance(tree, list):
        for number, value in enumerate(tree):
            yield (*keys, str(number)), _line_of(tree, "item", number)
            yield from key_lines(value, (*keys, str(number)))


def _line_of(tree: Any, what: str, at: Any) -> int:
    try:
        return getattr(tree.lc, what)(at)[0] + 1
    except (KeyError, TypeError, AttributeError, IndexError):
        return getattr(getattr(tree, "lc", None), "line", 0) + 1


def _check_events(text: str, where: str) -> None:
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
                    "two anchors have one name", where=place, found=f"&{anchor}", hint="give each its own name"
                )
            anchors.add(str(anchor))
        if kind == "AliasEvent":
            if anchor in [name for name, _ in opened]:
                raise UserError("holds itself", where=place, found=f"*{anchor}", hint="write the value out")
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
            if event.style is None and len(event.value) > MAX_DIGITS and NUMBER.fullmatch(event.value):
                found = f"{event.value[:20]}... ({len(event.value)} digits)"
                raise UserError(
                    "no number has so many digits", where=place, found=found, hint="write a number in this range"
                )
        if tag is not None and str(tag) != "!":
            hint = "write the value without it; what stands in quotes is a text"
            raise UserError("a recipe has no tags", where=place, found=_short_problem(_as_written(tag)), hint=hint)
        if len(opened) > MAX_DEPTH:
            raise _too_deep(place)
        if total > MAX_VALUES:
            found = f"more than {MAX_VALUES} values, aliases written out"
            raise UserError("too large for a recipe", where=place, found=found, hint="name a recipe (YAML)")


def _too_deep(place: str) -> UserError:
    return UserError(
        "nested too deeply",
        where=place,
        found=f"more than {MAX_DEPTH} levels",
        hint="a recipe has five: close what is open",
    )


def _as_written(tag: Any) -> str:
    return str(tag).replace("tag:yaml.org,2002:", "!!")


def _yaml_hint(problem: str) -> str:
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


def _short_problem(what: object) -> str:
    text = str(what)
    return text if len(text) <= 300 else f"{text[:300]}..."


ANY_NAME: Final = "NAME"  # in place of what a person has called a set

# What a value must be where another kind of value stands, with an example of the right form.
_CONTAINER_HINTS: Final = {
    "model_type": ("a mapping of keys", "write its keys, each on a line below it, indented"),
    "model_attributes_type": ("a mapping of keys", "write its keys, each on a line below it, indented"),
    "dict_type": ("a mapping of keys", "write its keys, each on a line below it, indented"),
    "list_type": ("a list", "write [one] or [one, another]"),
}
_SECTION_EXAMPLES: Final = {
    "sets": "for example `sets: {animals: {file: animals.jsonl}}`",
    "questions": "for example `questions: {train: [animals], out_of_distribution: [largest]}`",
    "teacher": "for example `teacher: {kind: human}` or `teacher: {kind: openai, model: NAME}`",
    "student": "for example `student: {model: FOLDER}`",
    "train": "for example `train: {steps: 200}`",
    "evaluate": "for example `evaluate: {max_tokens: 256}`",
    "filter": "for example `filter: {cap: 4}`",
    "report": "for example `report: {read: 6}`",
}

# Keys of a recipe whose values are never repeated in a message.
SECRET_KEY: Final = re.compile(
    r"(?:^|[^a-z])(?:api.?key|key|password|secret|(?:access|api|auth).?token)s?(?:$|[^a-z])", re.IGNORECASE
)


_TYPE_HINTS: Final = {
    "int_type": "write a whole number, such as 4",
    "int_from_float": "write a whole number, such as 4",
    "float_type": "write a number, such as 0.5 or 5e-4",
    "bool_type": "write true or false",
    "string_type": "write one text",
    "string_unicode": "remove the half of a surrogate pair, or write the whole character",
    "string_too_short": "write at least one character",
    "string_too_long": "write one character",
    "too_short": "name at least one",
    "too_long": "name fewer",
    "finite_number": "write a finite number",
    "none_required": "leave the value empty",
}
_PATTERN_HINTS: Final = {
    NAME_PATTERN: "begin with a letter or a digit, then at most 99 letters, digits, dots, underscores or hyphens",
    DECODING_PATTERN: "write greedy, vote-8 or best-8, with +calculator where a calculator computes the sums",
    r"^[0-9a-f]{64}$": "write 64 digits of hexadecimal (sha256sum FILE)",
    r"^[0-9a-f]{40}$": "write the whole commit, 40 digits of hexadecimal: the hub shows it under History",
    r"^https?://": "begin with http:// or https://",
}


def load_recipe(path: Path, changes: Sequence[str] = ()) -> Recipe:
    """Read a recipe; `changes` are `key=value` with dotted keys and YAML values, put in after reading.

    Raises UserError with the file, line or option, what was found, and what to do.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as fault:
        raise UserError("cannot be read", where=path, found=fault.strerror, hint="name a recipe (YAML)") from None
    except UnicodeDecodeError as fault:
        raise UserError("is not UTF-8 text", where=path, found=fault.reason, hint="name a recipe (YAML)") from None
    return parse_recipe(text, str(path), changes)


def parse_recipe(text: str, where: str, changes: Sequence[str] = ()) -> Recipe:
    """The recipe that a YAML text holds. `where` names it in messages."""
    written = load_yaml(text, where)
    if written is None or not isinstance(written, Mapping):
        found = "nothing" if written is None else "a list" if isinstance(written, list) else repr(written)[:80]
        raise UserError("a recipe is a mapping of keys", where=where, found=found, hint="begin with `name: ...`")
    places = dict(key_lines(written))
    values = plain_values(written, where)
    origin: dict[tuple[str, ...], str] = {}
    for change in changes:
        key, equals, value = change.partition("=")
        if not equals or not key:
            raise UserError("a change is key=value", where=f"--set {change}", hint="for example --set train.steps=20")
        keys = tuple(key.split("."))
        origin[keys] = f"--set {_display_change(key, value)}"
        places = {place: line for place, line in places.items() if place[: len(keys)] != keys}
        _set_key(values, keys, plain_values(load_yaml(value, origin[keys]), origin[keys]), origin[keys])
    try:
        return Recipe.model_validate(values, strict=True)
    except ValidationError as fault:
        raise _error_of_validation(fault, where, places, origin) from None


def _set_key(values: dict[str, Any], keys: tuple[str, ...], value: Any, where: str) -> None:
    for key in keys[:-1]:
        inner = values.setdefault(key, {})
        if inner is None:
            inner = values[key] = {}
        if not isinstance(inner, dict):
            found = "" if _is_secret(keys) else inner
            raise UserError(f"{key} holds no keys", where=where, found=found, hint="set the key itself")
        values = inner
    values[keys[-1]] = value


def _error_of_validation(
    fault: ValidationError, where: str, places: Mapping[tuple[str, ...], int], origin: Mapping[tuple[str, ...], str]
) -> UserError:
    """One clear message for the first thing that pydantic found wrong."""
    error = next((error for error in fault.errors() if error["type"] == "extra_forbidden"), fault.errors()[0])
    keys = _error_keys(error)
    place = where
    for end in range(len(keys), 0, -1):
        if keys[:end] in origin:
            place = origin[keys[:end]]
            break
        if keys[:end] in places:
            place = f"{where} line {places[keys[:end]]}"
            break
    dotted = ".".join(keys)
    if error["type"] == "extra_forbidden":
        return UserError(f"unknown key {dotted}", where=place, hint=_suggest_key(keys))
    if error["type"] == "missing":
        return UserError(f"{dotted} is missing", where=place, hint=f"add {dotted}")
    hidden = isinstance(error["input"], dict) or _is_secret(keys)
    found = "" if hidden else json.dumps(error["input"], ensure_ascii=False, default=str)
    if error["type"] in _CONTAINER_HINTS:
        what, hint = _CONTAINER_HINTS[error["type"]]
        hint = (
            _SECTION_EXAMPLES.get(dotted.partition(".")[0], hint)
            if error["type"] != "list_type" and len(keys) < 3
            else hint
        )
        return UserError(f"{dotted} must be {what}", where=place, found=found, hint=hint)
    message = error["msg"].removeprefix("Value error, ")
    what = f"{dotted}: {message}" if dotted else message
    return UserError(
        what,
        where=place,
        found=found,
        hint=" or ".join(
            dict.fromkeys(_value_hint(each, dotted) for each in fault.errors() if _error_keys(each) == keys)
        ),
    )


def _error_keys(error: Any) -> tuple[str, ...]:
    """The place of an error, without what pydantic adds: the tag of a shape, and which form of several it tried."""
    parts = tuple(str(part) for part in error["loc"] if part != "numbers" and str(part)[:1] != "[")
    forms = ("literal[", "bool", "constrained-", "function-")
    return parts[:-1] if parts[:2] == ("student", "chat") and parts[-1].startswith(forms) else parts


def _value_hint(error: Any, dotted: str) -> str:
    """What to write instead of a value that is of the right kind of thing and still wrong."""
    kind, limits = error["type"], error.get("ctx", {})
    written = error["input"]
    if kind == "literal_error":
        allowed = re.findall(r"'([^']*)'", str(limits.get("expected", "")))
        near = difflib.get_close_matches(str(written), allowed, 1)
        several = f"one of {', '.join(allowed)}" if len(allowed) > 1 else allowed[0]
        return f"did you mean {near[0]}?" if near else f"write {several}"
    if kind.startswith("string_pattern"):
        return _PATTERN_HINTS.get(str(limits.get("pattern")), f"write a text of the form {limits.get('pattern')}")
    if kind in ("int_type", "int_from_float", "int_parsing") and isinstance(written, str):
        return "write a number in digits, without quotes, such as 4"
    if kind in ("float_type", "float_parsing") and isinstance(written, str):
        return "write a number in digits, without quotes, such as 0.5 or 5e-4"
    if kind == "string_type" and isinstance(written, int | float):
        return (
            "put it in quotes"
            if _is_secret(_error_keys(error))
            else f"put it in quotes: {json.dumps(str(written).lower())}"
        )
    bounds = {"greater_than": "gt", "greater_than_equal": "ge", "less_than": "lt", "less_than_equal": "le"}
    if kind in bounds:
        words = {"gt": "greater than", "ge": "of at least", "lt": "less than", "le": "of at most"}[bounds[kind]]
        return f"write a number {words} {limits[bounds[kind]]}"
    return _TYPE_HINTS.get(kind, f"change {dotted}" if dotted else "change one of the keys that it names")


def _is_secret(keys: Sequence[str]) -> bool:
    """Whether a value may hold somebody's key, and is never repeated."""
    return any(map(SECRET_KEY.search, keys)) or keys[-1] == "server" or tuple(keys[:3]) == ("teacher", "server", "urls")


def _display_change(key: str, value: str) -> str:
    """A change as messages repeat it."""
    hidden = _is_secret(key.split(".")) or SECRET_KEY.search(value)
    return f"{key}=..." if hidden else f"{key}={value}"


def _suggest_key(keys: tuple[str, ...]) -> str:
    known = _known_keys(Recipe)
    beside = [key for key in known if len(key) == len(keys) and all(map(_key_matches, key[:-1], keys[:-1]))]
    for cutoff in (0.85, 0.6):
        near = difflib.get_close_matches(keys[-1], [key[-1] for key in beside], 1, cutoff)
        if near:
            return f"did you mean {'.'.join((*keys[:-1], near[0]))}?"
        if other := synonyms.find_synonym(keys):  # before the less alike: lr is not lora
            return other.removeprefix("= ") if other.startswith("=") else f"did you mean {other}?"
    elsewhere = [key for key in known if key[-1] == keys[-1]]
    if elsewhere:
        return f"did you mean {'.'.join(elsewhere[0])}?"
    return f"known here: {', '.join(key[-1] for key in beside)}" if beside else "take it out"


def _key_matches(known: str, written: str) -> bool:
    return known in (ANY_NAME, written)


def _known_keys(section: type[BaseModel], before: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    """Every key of a section and of those within it; a set's own name is ANY."""
    keys = []
    for name, field in section.model_fields.items():
        keys.append((*before, name))
        for inner in _sections(field.annotation):
            at = (*before, name, ANY_NAME) if get_origin(field.annotation) is dict else (*before, name)
            keys += _known_keys(inner, at)
    return keys


def _sections(annotation: Any) -> list[type[BaseModel]]:
    """The sections that a field may hold."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [found for part in get_args(annotation) for found in _sections(part)]
