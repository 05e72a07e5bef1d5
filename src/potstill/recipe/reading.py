"""Reading a recipe: YAML 1.2 to sections, and one clear message for the first thing that is wrong."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, get_args, get_origin

from pydantic import BaseModel, ValidationError

from potstill.errors import UserError
from potstill.recipe import synonyms, tree
from potstill.recipe.section import DECODING, NAME
from potstill.recipe.sections import Recipe

ANY: Final = "NAME"  # in place of what a person has called a set

# What a value must be where another kind of value stands, with an example of the right form.
_FORMS: Final = {
    "model_type": ("a mapping of keys", "write its keys, each on a line below it, indented"),
    "model_attributes_type": ("a mapping of keys", "write its keys, each on a line below it, indented"),
    "dict_type": ("a mapping of keys", "write its keys, each on a line below it, indented"),
    "list_type": ("a list", "write [one] or [one, another]"),
}
_EXAMPLES: Final = {
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
SECRET: Final = re.compile(
    r"(?:^|[^a-z])(?:api.?key|key|password|secret|(?:access|api|auth).?token)s?(?:$|[^a-z])", re.IGNORECASE
)


_REMEDIES: Final = {
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
_PATTERNS: Final = {
    NAME: "begin with a letter or a digit, then at most 99 letters, digits, dots, underscores or hyphens",
    DECODING: "write greedy, vote-8 or best-8, with +calculator where a calculator computes the sums",
    r"^[0-9a-f]{64}$": "write 64 digits of hexadecimal (sha256sum FILE)",
    r"^[0-9a-f]{40}$": "write the whole commit, 40 digits of hexadecimal: the hub shows it under History",
    r"^https?://": "begin with http:// or https://",
}


def load(path: Path, changes: Sequence[str] = ()) -> Recipe:
    """Read a recipe; `changes` are `key=value` with dotted keys and YAML values, put in after reading.

    Raises UserError with the file, line or option, what was found, and what to do.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as fault:
        raise UserError("cannot be read", where=path, found=fault.strerror, do="name a recipe (YAML)") from None
    except UnicodeDecodeError as fault:
        raise UserError("is not UTF-8 text", where=path, found=fault.reason, do="name a recipe (YAML)") from None
    return parse(text, str(path), changes)


def parse(text: str, where: str, changes: Sequence[str] = ()) -> Recipe:
    """The recipe that a YAML text holds. `where` names it in messages."""
    written = tree.load(text, where)
    if written is None or not isinstance(written, Mapping):
        found = "nothing" if written is None else "a list" if isinstance(written, list) else repr(written)[:80]
        raise UserError("a recipe is a mapping of keys", where=where, found=found, do="begin with `name: ...`")
    places = dict(tree.lines(written))
    values = tree.plain(written, where)
    origin: dict[tuple[str, ...], str] = {}
    for change in changes:
        key, equals, value = change.partition("=")
        if not equals or not key:
            raise UserError("a change is key=value", where=f"--set {change}", do="for example --set train.steps=20")
        keys = tuple(key.split("."))
        origin[keys] = f"--set {_shown(key, value)}"
        places = {place: line for place, line in places.items() if place[: len(keys)] != keys}
        _put(values, keys, tree.plain(tree.load(value, origin[keys]), origin[keys]), origin[keys])
    try:
        return Recipe.model_validate(values, strict=True)
    except ValidationError as fault:
        raise _first_fault(fault, where, places, origin) from None


def _put(values: dict[str, Any], keys: tuple[str, ...], value: Any, where: str) -> None:
    for key in keys[:-1]:
        inner = values.setdefault(key, {})
        if inner is None:
            inner = values[key] = {}
        if not isinstance(inner, dict):
            found = "" if _secret(keys) else inner
            raise UserError(f"{key} holds no keys", where=where, found=found, do="set the key itself")
        values = inner
    values[keys[-1]] = value


def _first_fault(
    fault: ValidationError, where: str, places: Mapping[tuple[str, ...], int], origin: Mapping[tuple[str, ...], str]
) -> UserError:
    """One clear message for the first thing that pydantic found wrong."""
    error = next((error for error in fault.errors() if error["type"] == "extra_forbidden"), fault.errors()[0])
    keys = _keys(error)
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
        return UserError(f"unknown key {dotted}", where=place, do=_suggestion(keys))
    if error["type"] == "missing":
        return UserError(f"{dotted} is missing", where=place, do=f"add {dotted}")
    hidden = isinstance(error["input"], dict) or _secret(keys)
    found = "" if hidden else json.dumps(error["input"], ensure_ascii=False, default=str)
    if error["type"] in _FORMS:
        what, do = _FORMS[error["type"]]
        do = _EXAMPLES.get(dotted.partition(".")[0], do) if error["type"] != "list_type" and len(keys) < 3 else do
        return UserError(f"{dotted} must be {what}", where=place, found=found, do=do)
    message = error["msg"].removeprefix("Value error, ")
    what = f"{dotted}: {message}" if dotted else message
    return UserError(
        what,
        where=place,
        found=found,
        do=" or ".join(dict.fromkeys(_remedy(each, dotted) for each in fault.errors() if _keys(each) == keys)),
    )


def _keys(error: Any) -> tuple[str, ...]:
    """The place of an error, without what pydantic adds: the tag of a shape, and which form of several it tried."""
    parts = tuple(str(part) for part in error["loc"] if part != "numbers" and str(part)[:1] != "[")
    forms = ("literal[", "bool", "constrained-", "function-")
    return parts[:-1] if parts[:2] == ("student", "chat") and parts[-1].startswith(forms) else parts


def _remedy(error: Any, dotted: str) -> str:
    """What to write instead of a value that is of the right kind of thing and still wrong."""
    kind, limits = error["type"], error.get("ctx", {})
    written = error["input"]
    if kind == "literal_error":
        allowed = re.findall(r"'([^']*)'", str(limits.get("expected", "")))
        near = difflib.get_close_matches(str(written), allowed, 1)
        several = f"one of {', '.join(allowed)}" if len(allowed) > 1 else allowed[0]
        return f"did you mean {near[0]}?" if near else f"write {several}"
    if kind.startswith("string_pattern"):
        return _PATTERNS.get(str(limits.get("pattern")), f"write a text of the form {limits.get('pattern')}")
    if kind in ("int_type", "int_from_float", "int_parsing") and isinstance(written, str):
        return "write a number in digits, without quotes, such as 4"
    if kind in ("float_type", "float_parsing") and isinstance(written, str):
        return "write a number in digits, without quotes, such as 0.5 or 5e-4"
    if kind == "string_type" and isinstance(written, int | float):
        return "put it in quotes" if _secret(_keys(error)) else f"put it in quotes: {json.dumps(str(written).lower())}"
    bounds = {"greater_than": "gt", "greater_than_equal": "ge", "less_than": "lt", "less_than_equal": "le"}
    if kind in bounds:
        words = {"gt": "greater than", "ge": "of at least", "lt": "less than", "le": "of at most"}[bounds[kind]]
        return f"write a number {words} {limits[bounds[kind]]}"
    return _REMEDIES.get(kind, f"change {dotted}" if dotted else "change one of the keys that it names")


def _secret(keys: Sequence[str]) -> bool:
    """Whether a value may hold somebody's key, and is never repeated."""
    return any(map(SECRET.search, keys)) or keys[-1] == "server" or tuple(keys[:3]) == ("teacher", "server", "urls")


def _shown(key: str, value: str) -> str:
    """A change as messages repeat it."""
    hidden = _secret(key.split(".")) or SECRET.search(value)
    return f"{key}=..." if hidden else f"{key}={value}"


def _suggestion(keys: tuple[str, ...]) -> str:
    known = _known_keys(Recipe)
    beside = [key for key in known if len(key) == len(keys) and all(map(_fits, key[:-1], keys[:-1]))]
    for cutoff in (0.85, 0.6):
        near = difflib.get_close_matches(keys[-1], [key[-1] for key in beside], 1, cutoff)
        if near:
            return f"did you mean {'.'.join((*keys[:-1], near[0]))}?"
        if other := synonyms.meant(keys):  # before the less alike: lr is not lora
            return other.removeprefix("= ") if other.startswith("=") else f"did you mean {other}?"
    elsewhere = [key for key in known if key[-1] == keys[-1]]
    if elsewhere:
        return f"did you mean {'.'.join(elsewhere[0])}?"
    return f"known here: {', '.join(key[-1] for key in beside)}" if beside else "take it out"


def _fits(known: str, written: str) -> bool:
    return known in (ANY, written)


def _known_keys(section: type[BaseModel], before: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    """Every key of a section and of those within it; a set's own name is ANY."""
    keys = []
    for name, field in section.model_fields.items():
        keys.append((*before, name))
        for inner in _sections(field.annotation):
            at = (*before, name, ANY) if get_origin(field.annotation) is dict else (*before, name)
            keys += _known_keys(inner, at)
    return keys


def _sections(annotation: Any) -> list[type[BaseModel]]:
    """The sections that a field may hold."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [found for part in get_args(annotation) for found in _sections(part)]
