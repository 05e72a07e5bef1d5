"""Reading of recipes: a YAML 1.2 text becomes a frozen `Recipe`, or one message about its first error.

    >>> load_yaml("train: {steps: 0x10}", "mine.yaml")["train"]["steps"]
    16
    >>> load_yaml("name: !foo x", "mine.yaml")
    Traceback (most recent call last):
    potstill.errors.UserError: mine.yaml line 1: tags are not allowed in a recipe
      found: !foo
      hint: write the value without the tag; a quoted value is text
      code: E-recipe-yaml-tag

The text is first read as a stream of events. This checks its depth, its size with all aliases expanded, and its tags before
any value is built. A date stays text.
"""

from __future__ import annotations

import copy
import difflib
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
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
MAX_VALUES: Final = 10_000  # maximum number of values with all aliases expanded
MAX_DIGITS: Final = 400  # maximum number of digits in a number
NUMBER: Final = re.compile(r"[-+]?(0x[0-9a-fA-F_]+|0o[0-7_]+|[0-9_.]+([eE][-+]?[0-9_]+)?)")
# Keys whose value no message repeats.
SECRET_KEY: Final = re.compile(
    r"(?:^|[^a-z])(?:api.?key|key|password|secret|(?:access|api|auth).?token)s?(?:$|[^a-z])", re.IGNORECASE
)
ANY_NAME: Final = "NAME"  # stands for a name that the user chooses, such as the name of a set
# Keys that tell a study from a recipe.
STUDY_KEYS: Final = frozenset({"recipe", "set", "grid", "experiments", "quick"})
RECIPE_SECTIONS: Final = frozenset({"sets", "questions", "teacher", "teachers", "student", "train", "evaluate"})
NOT_A_RECIPE: Final = (
    "name a recipe file (YAML), or the folder of a run such as runs/demo; `potstill recipes` copies recipes"
)

_COLON_HINT: Final = "write `key: value` with a space after the colon, and quote texts that contain a colon"
_CONTROL_HINT: Final = "remove the control character, or write it as an escape in double quotes"
_YAML_HINTS: Final = {  # part of ruamel's message -> hint
    r"'\t'": "indent with spaces, not with tabs",
    "another document": "a file contains one recipe: remove the line `---` and everything after it",
    "duplicate key": "write every key only once",
    "undefined alias": "quote texts that begin with *, or write the value instead of the alias",
    "mapping values are not allowed": _COLON_HINT,
    "could not find expected ':'": _COLON_HINT,
    "special characters are not allowed": _CONTROL_HINT,
    "control characters": _CONTROL_HINT,
}
_MAPPING_HINT: Final = ("a mapping of keys", "write its keys on the next lines, indented")
_CONTAINER_HINTS: Final = {  # pydantic's error type -> what the value must be, and how to write it
    "model_type": _MAPPING_HINT,
    "model_attributes_type": _MAPPING_HINT,
    "dict_type": _MAPPING_HINT,
    "list_type": ("a list", "write [one] or [one, another]"),
}
_SECTION_EXAMPLES: Final[dict[str, str]] = {
    "sets": "for example `sets: {animals: {file: animals.jsonl}}`",
    "questions": "for example `questions: {train: [animals], out_of_distribution: [largest]}`",
    "teacher": "for example `teacher: {kind: human}` or `teacher: {kind: openai, model: NAME}`",
    "student": "for example `student: {model: FOLDER}`",
    "teacher.server": 'for example `server: {urls: ["http://localhost:8000/v1"]}`',
    "train": "for example `train: {steps: 200}`",
    "train.formats": "for example `formats: {zero-shot-rationale: 2, few-shot-rationale: 1}`",
    "evaluate": "for example `evaluate: {max_tokens: 256}`",
    "filter": "for example `filter: {max_per_question: 4}`",
    "report": "for example `report: {examples: 6}`",
}
_TYPE_HINTS: Final = {
    "int_type": "write a whole number, such as 4",
    "int_from_float": "write a whole number, such as 4",
    "float_type": "write a number, such as 0.5 or 5e-4",
    "bool_type": "write true or false",
    "string_type": "write one text",
    "string_unicode": "the text contains half of a surrogate pair: remove it, or write the whole character",
    "string_too_short": "write at least one character",
    "string_too_long": "write one character",
    "too_short": "write at least one value",
    "too_long": "write fewer values",
    "finite_number": "write a finite number",
    "none_required": "leave the value empty",
}
_BOUND_HINTS: Final = {  # pydantic's error type -> the name of the limit in its context, and the words for the hint
    "greater_than": ("gt", "greater than"),
    "greater_than_equal": ("ge", "of at least"),
    "less_than": ("lt", "less than"),
    "less_than_equal": ("le", "of at most"),
}
_PATTERN_HINTS: Final = {
    NAME_PATTERN: "begin with a letter or digit; then write at most 99 letters, digits, dots, underscores or hyphens",
    DECODING_PATTERN: "write greedy, vote-8 or best-8, with +calculator if a calculator computes the equations",
    r"^[0-9a-f]{64}$": "write 64 hexadecimal digits (sha256sum FILE)",
    r"^[0-9a-f]{40}$": "write the full commit, 40 hexadecimal digits, which the hub shows under History",
    r"^https?://": "begin with http:// or https://",
}


def _fault(code: str, what: str, where: object, found: object = "", hint: str = "") -> UserError:
    return UserError(what, code=code, where=where, found=found, hint=hint)


class _DateAsTextConstructor(RoundTripConstructor):
    """Reads dates as text, because a name such as 2026-11-28 is valid."""


_DateAsTextConstructor.add_constructor("tag:yaml.org,2002:timestamp", lambda self, node: node.value)


def load_yaml(text: str, where: str) -> Any:
    """The tree of a YAML text, whose maps and lists have line numbers. Raises UserError if the text is not YAML."""
    if len(text) > MAX_CHARACTERS:
        raise _too_large(where, f"{len(text)} characters")
    try:
        _check_events(text, where)
        reader = YAML(typ="rt", pure=True)
        reader.Constructor = _DateAsTextConstructor
        return reader.load(text)
    except YAMLError as fault:
        mark = getattr(fault, "problem_mark", None) or getattr(fault, "context_mark", None)
        location = f"{where} line {mark.line + 1}" if mark else where
        if isinstance(fault, ReaderError):
            location = f"{where} line {text.count(chr(10), 0, fault.position) + 1}"
        problem = getattr(fault, "problem", None) or str(fault).partition("\n")[0]
        problem = problem.partition(" with value ")[0]  # the value of a duplicate key may be a secret
        default = "correct this line or an earlier line: an unclosed quote or bracket is only found later"
        hint = next((hint for part, hint in _YAML_HINTS.items() if part in problem), default)
    except RecursionError:
        raise _too_deep(where) from None
    except (ValueError, TypeError, LookupError, AttributeError, AssertionError, NotImplementedError) as fault:
        # ruamel failed to convert a value or a directive
        location, problem, hint = where, fault, "write plain keys and values, and quote texts"
    raise _fault("E-recipe-yaml", "not valid YAML", location, _shorten(problem), hint)


def plain_values(tree: Any, where: str) -> Any:
    """A tree as plain values. Raises UserError for values that JSON does not have, such as a list as a key."""
    try:
        return json.loads(json.dumps(tree, default=str))
    except (TypeError, ValueError, RecursionError) as fault:
        message, hint = "a recipe cannot contain these values", "write plain keys and values"
        raise _fault("E-recipe-values", message, where, _shorten(fault), hint) from None


def key_lines(tree: Any, keys: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], int]]:
    """The line (from 1) of every key and list item. A merged key has the line of the map into which it is merged."""
    if isinstance(tree, Mapping):
        for name, value in tree.items():
            yield (*keys, str(name)), _line_of(tree, "key", name)
            yield from key_lines(value, (*keys, str(name)))
    elif isinstance(tree, list):
        for index, value in enumerate(tree):
            yield (*keys, str(index)), _line_of(tree, "item", index)
            yield from key_lines(value, (*keys, str(index)))


def _line_of(tree: Any, lookup: str, key: Any) -> int:
    try:
        return getattr(tree.lc, lookup)(key)[0] + 1
    except (KeyError, TypeError, AttributeError, IndexError):
        return getattr(getattr(tree, "lc", None), "line", 0) + 1


def _check_events(text: str, where: str) -> None:
    """Raise UserError for a text that is too large or too deep, or that contains YAML that recipes may not use."""
    sizes: dict[str, int] = {}  # anchor -> number of values in its node, with aliases expanded
    anchors = set[str]()
    open_nodes: list[tuple[str | None, int]] = []  # anchor of each open map or list, and the number of values before it
    total = 0
    for event in YAML(typ="rt", pure=True).parse(text):
        kind = type(event).__name__
        mark = getattr(event, "start_mark", None)
        location = f"{where} line {mark.line + 1}" if mark is not None else where
        anchor, tag = getattr(event, "anchor", None), getattr(event, "tag", None)
        if anchor is not None and kind != "AliasEvent":
            if str(anchor) in anchors:
                hint = "give every anchor a different name"
                raise _fault("E-recipe-yaml-anchor", "two anchors have the same name", location, f"&{anchor}", hint)
            anchors.add(str(anchor))
        if kind == "AliasEvent":
            if anchor in [name for name, _ in open_nodes]:
                hint = "write the value instead of the alias"
                raise _fault("E-recipe-yaml-anchor", "a value contains itself", location, f"*{anchor}", hint)
            total += sizes.get(str(anchor), 1)
        elif kind in ("MappingStartEvent", "SequenceStartEvent"):
            open_nodes.append((None if anchor is None else str(anchor), total))
            total += 1
        elif kind in ("MappingEndEvent", "SequenceEndEvent"):
            name, before = open_nodes.pop()
            if name is not None:
                sizes[name] = total - before
        elif kind == "ScalarEvent":
            total += 1
            if event.style is None and len(event.value) > MAX_DIGITS and NUMBER.fullmatch(event.value):
                found = f"{event.value[:20]}... ({len(event.value)} digits)"
                hint = f"write a number of at most {MAX_DIGITS} digits"
                raise _fault("E-recipe-yaml-number", "the number has too many digits", location, found, hint)
        if tag is not None and str(tag) != "!":
            found = _shorten(str(tag).replace("tag:yaml.org,2002:", "!!"))
            hint = "write the value without the tag; a quoted value is text"
            raise _fault("E-recipe-yaml-tag", "tags are not allowed in a recipe", location, found, hint)
        if len(open_nodes) > MAX_DEPTH:
            raise _too_deep(location)
        if total > MAX_VALUES:
            raise _too_large(location, f"more than {MAX_VALUES} values with aliases expanded")


def _too_large(where: str, found: str) -> UserError:
    return _fault("E-recipe-too-large", "too large for a recipe", where, found, NOT_A_RECIPE)


def _too_deep(where: str) -> UserError:
    hint = "a recipe has at most five levels: close the open brackets"
    return _fault("E-recipe-too-deep", "nested too deeply", where, f"more than {MAX_DEPTH} levels", hint)


def _shorten(value: object) -> str:
    text = str(value)
    return text if len(text) <= 300 else f"{text[:300]}..."


def load_recipe(path: Path, changes: Sequence[str] = ()) -> Recipe:
    """Read a recipe file and apply `changes`.

    changes  strings `key=value`, with a dotted key and a YAML value
    Raises UserError with the file and line, or the change; the faulty value; and a hint.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as fault:
        is_copy = path.parent.name == "recipes" and isinstance(fault, FileNotFoundError)
        hint = f"`potstill recipes {path.stem}` copies potstill's recipe of this name; " if is_copy else ""
        what = "the recipe cannot be read"
        raise _fault("E-recipe-unreadable", what, path, fault.strerror, hint + NOT_A_RECIPE) from None
    except UnicodeDecodeError as fault:
        raise _fault("E-recipe-utf8", "the recipe is not UTF-8 text", path, fault.reason, NOT_A_RECIPE) from None
    return parse_recipe(text, str(path), changes)


def write_value(value: Any, where: str) -> str:
    """A value of a Python program as YAML on one line; a path becomes text. Raises UserError for other objects."""
    try:
        return json.dumps(value, default=os.fspath)
    except (TypeError, ValueError, RecursionError) as fault:
        message, hint = "a recipe cannot contain this value", "give numbers, texts, lists and dictionaries"
        raise _fault("E-recipe-values", message, where, _shorten(fault), hint) from None


def parse_recipe(text: str, where: str, changes: Sequence[str] = (), changed_by: str = "--set") -> Recipe:
    """The recipe in a YAML text.

    where       name of the text, for messages
    changes     as for `load_recipe`
    changed_by  where the changes were written, for messages
    """
    values, lines = read_mapping(text, where, "recipe")
    origins: dict[tuple[str, ...], str] = {}
    for change in changes:
        key, equals, value = change.partition("=")
        if not equals or not key:
            hint = "for example --set train.steps=20"
            raise _fault("E-recipe-change", "a change must have the form key=value", f"--set {change}", hint=hint)
        keys = tuple(key.split("."))
        origins[keys] = f"{changed_by} {_display_change(key, value)}"
        lines = {line_keys: line for line_keys, line in lines.items() if line_keys[: len(keys)] != keys}
        _set_key(values, keys, plain_values(load_yaml(value, origins[keys]), origins[keys]), origins[keys])
    try:
        return Recipe.model_validate(values, strict=True)
    except ValidationError as fault:
        raise error_of_validation(fault, where, lines, origins) from None


def read_mapping(text: str, where: str, kind: str) -> tuple[dict[str, Any], dict[tuple[str, ...], int]]:
    """The keys of a YAML text with plain values, and the line of every key. Raises UserError if it is not a mapping.

    where  name of the text, for messages
    kind   what the text is: recipe or study
    """
    values, lines = _read_mapping_once(text, where, kind)
    of_study, of_recipe = STUDY_KEYS & values.keys(), RECIPE_SECTIONS & values.keys()
    if kind == "recipe" and {"recipe"} < of_study and not of_recipe:
        hint = f"make its runs: potstill study {where}"
        raise _fault("E-recipe-is-study", "this is a study, not a recipe", where, ", ".join(sorted(of_study)), hint)
    if kind == "study" and of_recipe and "recipe" not in values:
        hint = f"make its run: potstill run {where}; a study names its base recipe: recipe: {where}"
        raise _fault("E-study-is-recipe", "this is a recipe, not a study", where, ", ".join(sorted(of_recipe)), hint)
    return copy.deepcopy(values), dict(lines)


@cache
def _read_mapping_once(text: str, where: str, kind: str) -> tuple[dict[str, Any], dict[tuple[str, ...], int]]:
    """`read_mapping`, whose result is the same object for the same text: a study reads its recipe once for each run."""
    tree = load_yaml(text, where)
    if not isinstance(tree, Mapping):
        found = "nothing" if tree is None else "a list" if isinstance(tree, list) else repr(tree)[:80]
        message = f"a {kind} must be a mapping of keys"
        raise _fault("E-recipe-not-a-mapping", message, where, found, "begin with `name: ...`")
    return plain_values(tree, where), dict(key_lines(tree))


def _set_key(values: dict[str, Any], keys: tuple[str, ...], value: Any, where: str) -> None:
    for key in keys[:-1]:
        inner = values.setdefault(key, {})
        if inner is None:
            inner = values[key] = {}
        if not isinstance(inner, dict):
            found = "" if _is_secret(keys) else inner
            message = f"{key} is a value, not a mapping of keys"
            raise _fault("E-recipe-change", message, where, found, "set the key itself")
        values = inner
    values[keys[-1]] = value


def error_of_validation(
    fault: ValidationError,
    where: str,
    lines: Mapping[tuple[str, ...], int],
    origins: Mapping[tuple[str, ...], str],
    root: type[BaseModel] = Recipe,
) -> UserError:
    """The error for the first fault that pydantic found; unknown keys come before other faults.

    origins  keys -> where they were written, if not in the file
    root     the section whose keys the file has
    """
    error = next((error for error in fault.errors() if error["type"] == "extra_forbidden"), fault.errors()[0])
    keys = _error_keys(error)
    location = where
    for end in range(len(keys), 0, -1):
        if keys[:end] in origins:
            location = origins[keys[:end]]
            break
        if keys[:end] in lines:
            location = f"{where} line {lines[keys[:end]]}"
            break
    dotted = ".".join(keys)
    if error["type"] == "extra_forbidden":
        if renamed := synonyms.RENAMED_KEYS.get(dotted):
            hint = f"write {renamed}; its values have not changed"
            return _fault("E-recipe-renamed-key", f"{dotted} is now called {renamed}", location, hint=hint)
        return _fault("E-recipe-unknown-key", f"unknown key {dotted}", location, hint=_suggest_key(keys, root))
    if error["type"] == "missing":
        return _fault("E-recipe-missing-key", f"{dotted} is missing", location, hint=f"add {dotted}")
    hidden = isinstance(error["input"], dict) or _is_secret(keys)
    found = "" if hidden else json.dumps(error["input"], ensure_ascii=False, default=str)
    if error["type"] in _CONTAINER_HINTS:
        expected, hint = _CONTAINER_HINTS[error["type"]]
        if error["type"] != "list_type":
            hint = _SECTION_EXAMPLES.get(dotted) or hint
        return _fault("E-recipe-type", f"{dotted} must be {expected}", location, found, hint)
    hints = dict.fromkeys(_value_hint(other, dotted) for other in fault.errors() if _error_keys(other) == keys)
    message = f"{dotted}: {error['msg']}" if dotted else error["msg"]
    code = error["type"] if error["type"].startswith("E-") else "E-recipe-value"
    return _fault(code, message, location, found, " or ".join(hints))


def _error_keys(error: Any) -> tuple[str, ...]:
    """The keys in an error's location, without the union tags and branches that pydantic adds."""
    parts = tuple(str(part) for part in error["loc"] if part != "numbers" and str(part)[:1] != "[")
    branches = ("literal[", "bool", "constrained-", "function-")
    if parts[:2] == ("student", "chat") and parts[-1].startswith(branches):
        parts = parts[:-1]
    key = error["type"].startswith("E-") and error.get("ctx", {}).get("key")  # from a validator of a whole section
    return (*parts, *key.split(".")) if key else parts


def _value_hint(error: Any, dotted: str) -> str:
    """A hint for a wrong value."""
    kind, limits = error["type"], error.get("ctx", {})
    written = error["input"]
    if limits.get("hint"):
        return limits["hint"]
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
        secret = _is_secret(_error_keys(error))
        return "quote the value" if secret else f"quote the value: {json.dumps(str(written).lower())}"
    if kind in _BOUND_HINTS:
        limit, comparison = _BOUND_HINTS[kind]
        return f"write a number {comparison} {limits[limit]}"
    return _TYPE_HINTS.get(kind, f"change {dotted}" if dotted else "change one of the keys in this message")


def _is_secret(keys: Sequence[str]) -> bool:
    """Whether the value of these keys may be an API key, which no message may repeat."""
    section = keys[2:] if keys[0] == "teachers" else keys[1:] if keys[0] == "teacher" else ()
    return any(map(SECRET_KEY.search, keys)) or keys[-1] == "server" or tuple(section[:2]) == ("server", "urls")


def _display_change(key: str, value: str) -> str:
    """The change in the form for messages, without a secret value."""
    hidden = _is_secret(key.split(".")) or SECRET_KEY.search(value)
    return f"{key}=..." if hidden else f"{key}={value}"


def _suggest_key(keys: tuple[str, ...], root: type[BaseModel]) -> str:
    known = known_keys(root)
    siblings = [
        key
        for key in known
        if len(key) == len(keys)
        and all(part in (ANY_NAME, written) for part, written in zip(key[:-1], keys[:-1], strict=True))
    ]
    synonym = synonyms.find_synonym(keys) if root is Recipe else None
    if synonym and synonym.split(".")[:-1] == list(
        keys[:-1]
    ):  # before a similar name, because beta does not mean betas
        return f"did you mean {synonym}?"
    elsewhere = [".".join(key) for key in known if key[-1] == keys[-1]]
    if len(keys) == 1 and elsewhere:  # a key of a section, such as steps, and not a similar section, such as sets
        return f"did you mean {elsewhere[0]}?"
    for cutoff in (0.85, 0.6):
        near = difflib.get_close_matches(keys[-1], [key[-1] for key in siblings], 1, cutoff)
        if near:
            return f"did you mean {'.'.join((*keys[:-1], near[0]))}?"
        if synonym:  # before the looser match below, because lr does not mean lora
            return synonym.removeprefix("= ") if synonym.startswith("=") else f"did you mean {synonym}?"
    nearby = [key for key in elsewhere if len(keys) == 1 or key.startswith(f"{keys[0]}.")]
    if nearby:
        return f"did you mean {nearby[0]}?"
    if not siblings:
        return f"did you mean {elsewhere[0]}?" if elsewhere else "remove the key"
    others = f"; elsewhere: {', '.join(elsewhere)}" if elsewhere else ""
    return f"known keys here: {', '.join(key[-1] for key in siblings)}{others}"


def known_keys(section: type[BaseModel], before: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    """Every key of a section and of its subsections. ANY_NAME stands for the name of a set."""
    keys = []
    for name, field in section.model_fields.items():
        keys.append((*before, name))
        for inner in sections_of(field.annotation):
            named = dict in map(get_origin, (field.annotation, *get_args(field.annotation)))
            path = (*before, name, ANY_NAME) if named else (*before, name)
            keys += known_keys(inner, path)
    return keys


def sections_of(annotation: Any) -> list[type[BaseModel]]:
    """The sections that a field may contain."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [section for part in get_args(annotation) for section in sections_of(part)]
