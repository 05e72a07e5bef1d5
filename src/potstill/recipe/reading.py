"""Reading a recipe: YAML 1.2 to sections, and one clear message for the first thing that is wrong."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from pydantic import BaseModel, ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from potstill.errors import UserError
from potstill.recipe.sections import Recipe

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
    tree = _yaml(text, where)
    if tree is None or not isinstance(tree, Mapping):
        found = "nothing" if tree is None else "a list" if isinstance(tree, list) else repr(tree)
        raise UserError("a recipe is a mapping of keys", where=where, found=found, do="begin with `name: ...`")
    places = dict(_lines(tree))
    values = _plain(tree, where)
    origin: dict[tuple[str, ...], str] = {}
    for change in changes:
        key, equals, value = change.partition("=")
        if not equals or not key:
            raise UserError("a change is key=value", where=f"--set {change}", do="for example --set train.steps=20")
        keys = tuple(key.split("."))
        origin[keys] = f"--set {_shown(key, value)}"
        places = {place: line for place, line in places.items() if place[: len(keys)] != keys}
        _put(values, keys, _plain(_yaml(value, origin[keys]), origin[keys]), origin[keys])
    try:
        return Recipe.model_validate(values, strict=True)
    except ValidationError as fault:
        raise _first_fault(fault, where, places, origin) from None


def _yaml(text: str, where: str) -> Any:
    try:
        return YAML(typ="rt", pure=True).load(text)
    except YAMLError as fault:
        mark = getattr(fault, "problem_mark", None)
        place = f"{where} line {mark.line + 1}" if mark else where
        problem = getattr(fault, "problem", None) or str(fault)
        do = "indent with spaces, not with tabs" if r"'\t'" in problem else "mend the line"
        raise UserError("not valid YAML", where=place, found=problem, do=do) from None


def _plain(tree: Any, where: str) -> Any:
    """The reader's values, which remember how they were written, as plain ones."""
    try:
        return json.loads(json.dumps(tree, default=str))
    except (TypeError, ValueError, RecursionError) as fault:  # a list as a key, a value that holds itself
        raise UserError("not a recipe's values", where=where, found=fault, do="write plain keys and values") from None


def _lines(tree: Any, keys: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], int]]:
    """The line (from 1) of every key and item."""
    if isinstance(tree, Mapping):
        for name, value in tree.items():
            yield (*keys, str(name)), tree.lc.key(name)[0] + 1  # type: ignore[attr-defined]
            yield from _lines(value, (*keys, str(name)))
    elif isinstance(tree, list):
        for number, value in enumerate(tree):
            yield (*keys, str(number)), tree.lc.item(number)[0] + 1  # type: ignore[attr-defined]
            yield from _lines(value, (*keys, str(number)))


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
    # a tag (a shape's name or its numbers) and a wrong dictionary key add their own words to the place: leave them out
    keys = tuple(str(part) for part in error["loc"] if part != "numbers" and str(part)[:1] != "[")
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
    return UserError(what, where=place, found=found, do="mend the value")


def _secret(keys: Sequence[str]) -> bool:
    """Whether a value may hold somebody's key, and is never repeated."""
    return any(map(SECRET.search, keys)) or keys[-1] == "server" or tuple(keys[:3]) == ("teacher", "server", "urls")


def _shown(key: str, value: str) -> str:
    """A change as messages repeat it."""
    hidden = _secret(key.split(".")) or SECRET.search(value)
    return f"{key}=..." if hidden else f"{key}={value}"


def _suggestion(keys: tuple[str, ...]) -> str:
    known = _known_keys(Recipe)
    beside = [key for key in known if key[:-1] == keys[:-1]]
    near = difflib.get_close_matches(keys[-1], [key[-1] for key in beside], 1)
    if near:
        return f"did you mean {'.'.join((*keys[:-1], near[0]))}?"
    elsewhere = [key for key in known if key[-1] == keys[-1]]
    if elsewhere:
        return f"did you mean {'.'.join(elsewhere[0])}?"
    return f"known here: {', '.join(key[-1] for key in beside)}" if beside else "take it out"


def _known_keys(section: type[BaseModel], before: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    keys = []
    for name, field in section.model_fields.items():
        keys.append((*before, name))
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            keys += _known_keys(field.annotation, (*before, name))
    return keys
