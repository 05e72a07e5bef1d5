"""Reference page of the Python API, from signatures and docstrings."""

from __future__ import annotations

import importlib
import inspect
import re
import textwrap
from collections.abc import Iterator
from typing import Any

from recipe_keys import HEADER, escape_tags


def page() -> str:
    """One heading for each name in `potstill.__all__`."""
    lines = [
        HEADER.format(title="Python API"),
        "# Python API\n",
        "Every function works on plain data, without a run. The signature has the types, the text the rest.\n",
    ]
    package = importlib.import_module("potstill")
    for name in package.__all__:
        if not name.startswith("__"):
            lines += _entry(f"ps.{name}", getattr(package, name))
    return "\n".join(lines) + "\n"


def _entry(name: str, thing: Any, level: int = 2) -> Iterator[str]:
    mark = "#" * level
    anchor = re.sub(r"[^a-z0-9]+", "-", name.lower())
    yield f"{mark} `{name}` {{ #{anchor} }}\n"
    if inspect.ismodule(thing):
        yield from _markdown(inspect.getdoc(thing) or "")
        for inner in getattr(thing, "__all__", ()):
            value = getattr(thing, inner)
            if callable(value):
                yield from _entry(f"{name}.{inner}", value, level + 1)
        return
    if callable(thing):
        short = name.rpartition(".")[2]
        yield f"```python\n{_signature(short, thing)}\n```\n"
    yield from _markdown(inspect.getdoc(thing) or "")
    if inspect.isclass(thing):
        for inner, value in vars(thing).items():
            function = value.__func__ if isinstance(value, classmethod | staticmethod) else value
            if not inner.startswith("_") and inspect.isfunction(function) and function.__doc__:
                bound = getattr(thing, inner)
                yield f"**`{name.rpartition('.')[2]}.{inner}{_shown(bound)}`**\n"
                yield from _markdown(inspect.getdoc(function) or "")
            elif isinstance(value, property) and value.__doc__:
                yield f"**`{name.rpartition('.')[2]}.{inner}`**\n"
                yield from _markdown(inspect.getdoc(value) or "")


def _signature(name: str, thing: Any) -> str:
    line = name + _shown(thing)
    if len(line) <= 88:
        return line
    try:
        signature = inspect.signature(thing)
    except (ValueError, TypeError):
        return line
    inside = "\n".join(f"    {parameter}," for parameter in _parameters(signature))
    returned = (
        "" if signature.return_annotation is inspect.Signature.empty else f" -> {_type(signature.return_annotation)}"
    )
    return f"{name}(\n{inside}\n){returned}"


def _parameters(signature: inspect.Signature) -> Iterator[str]:
    star = False
    for parameter in signature.parameters.values():
        if parameter.kind is parameter.VAR_POSITIONAL:
            star = True
        if parameter.kind is parameter.KEYWORD_ONLY and not star:
            star = True
            yield "*"
        yield _unquoted(str(parameter))


def _shown(thing: Any) -> str:
    try:
        return _unquoted(str(inspect.signature(thing)))
    except (ValueError, TypeError):
        return "(...)"


def _unquoted(text: str) -> str:
    """The text without the quotes around annotations, which come from postponed evaluation, and without addresses."""
    text = re.sub(r"<(?:function|object)? ?[^ ]+ at 0x[0-9a-f]+>", "...", text)
    return re.sub(r"(: |-> )'([^']*)'", r"\1\2", text)


def _type(annotation: Any) -> str:
    return annotation if isinstance(annotation, str) else getattr(annotation, "__name__", str(annotation))


def _markdown(text: str) -> Iterator[str]:
    """A docstring as Markdown: examples and indented blocks become code, other text stays a paragraph."""
    for block in re.split(r"\n\s*\n", text.strip()):
        if not block.strip():
            continue
        lines = textwrap.dedent(block).splitlines()
        listed = [re.match(r"(\w[\w, ]*?)  +(.*)", line) for line in lines]
        if lines[0].lstrip().startswith(">>>"):
            yield "```pycon\n" + textwrap.dedent("\n".join(lines)) + "\n```\n"
        elif listed[0]:
            yield from _arguments(lines)
        elif block.startswith("    "):
            yield "```text\n" + "\n".join(lines) + "\n```\n"
        else:
            yield escape_tags("\n".join(lines)) + "\n"


def _arguments(lines: list[str]) -> Iterator[str]:
    """`name   meaning` lines, continued by indentation, as a list. Other lines are one paragraph before or after it."""
    items: list[str] = []
    for line in lines:
        entry = re.match(r"(\w[\w, ]*?)  +(.*)", line)
        if entry:
            items.append(f"- `{entry[1]}`: {entry[2]}")
        elif items and (line.startswith(" ") or not items[-1].startswith("- ")):
            items[-1] += " " + line.strip()
        else:
            items.append(("\n" if items else "") + line)
    yield escape_tags("\n".join(items)) + "\n"
