"""Reference page of the Python API, from signatures and docstrings."""

from __future__ import annotations

import importlib
import inspect
import re
import textwrap
from collections.abc import Iterator
from typing import Any

from names import API, load
from recipe_keys import HEADER


def page() -> str:
    """One heading for each public name. Of `potstill.__all__` where it is filled, else of the table in `names`."""
    lines = [
        HEADER.format(title="Python API"),
        "# Python API\n",
        "Every function works alone on plain data. The signature gives the types; the text gives the rest.\n",
    ]
    package = importlib.import_module("potstill")
    exported = [name for name in getattr(package, "__all__", ()) if not name.startswith("__")]
    if exported:
        for name in exported:
            lines += _entry(f"ps.{name}", getattr(package, name))
    else:
        for title, listed in API.items():
            lines += [f"## {title}\n"] if listed else []
            for name in listed:
                lines += _entry(name.replace(":", "."), load(name), level=3)
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
    inside = "\n".join(f"    {each}," for each in _parameters(signature))
    returned = (
        "" if signature.return_annotation is inspect.Signature.empty else f" -> {_type(signature.return_annotation)}"
    )
    return f"{name}(\n{inside}\n){returned}"


def _parameters(signature: inspect.Signature) -> Iterator[str]:
    star = False
    for each in signature.parameters.values():
        if each.kind is each.VAR_POSITIONAL:
            star = True
        if each.kind is each.KEYWORD_ONLY and not star:
            star = True
            yield "*"
        yield _unquoted(str(each))


def _shown(thing: Any) -> str:
    try:
        return _unquoted(str(inspect.signature(thing)))
    except (ValueError, TypeError):
        return "(...)"


def _unquoted(text: str) -> str:
    """Annotations without the quotes that postponed evaluation gives them; defaults keep theirs."""
    return re.sub(r"(: |-> )'([^']*)'", r"\1\2", text)


def _type(annotation: Any) -> str:
    return annotation if isinstance(annotation, str) else getattr(annotation, "__name__", str(annotation))


def _markdown(text: str) -> Iterator[str]:
    """A docstring as Markdown: examples and indented blocks become code, all else stays a paragraph."""
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
            yield re.sub(r"(?<![\\`<])<", "&lt;", "\n".join(lines)) + "\n"


def _arguments(lines: list[str]) -> Iterator[str]:
    """`name   meaning` lines, continued by indentation, as a list."""
    items: list[str] = []
    for line in lines:
        found = re.match(r"(\w[\w, ]*?)  +(.*)", line)
        if found:
            items.append(f"- `{found[1]}`: {found[2]}")
        elif items and line.startswith(" "):
            items[-1] += " " + line.strip()
        else:
            items.append(("\n" if items else "") + line)
    yield "\n".join(items).replace("<", "&lt;") + "\n"
