"""Reference page of error codes: every error that has one, found by reading the source, not by running it."""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from collections.abc import Iterator
from typing import Final, NamedTuple

from names import SOURCE
from recipe_keys import HEADER

CODE: Final = re.compile(r"E(-[a-z0-9]+)+")


class Raised(NamedTuple):
    code: str
    what: str
    hint: str
    package: str


def page() -> str:
    """One heading for each code with what is wrong and what to do."""
    by_code: dict[str, list[Raised]] = defaultdict(list)
    for each in raised():
        by_code[each.code].append(each)
    lines = [
        HEADER.format(title="Error codes"),
        "# Error codes\n",
        "An error that you can fix has four parts: what is wrong, where, what was found, and a hint. It also has a",
        "code that does not change between versions, such as `E-recipe-unknown-key`. potstill prints the message and",
        "exits with status 2. Any other error is a fault of potstill: it prints a traceback and exits with status 1.",
        "`…` stands for a part that depends on your files.\n",
    ]
    for code in sorted(by_code):
        lines.append(f"## `{code}` {{ #{code.lower()} }}\n")
        whats = dict.fromkeys(each.what for each in by_code[code] if each.what)
        hints = dict.fromkeys(each.hint for each in by_code[code] if each.hint)
        lines += [f"- **What**: {_escape(what)}" for what in whats]
        lines += [f"- **Hint**: {_escape(hint)}" for hint in hints]
        lines.append("")
    if not by_code:
        lines.append("This version gives no error a code yet.\n")
    return "\n".join(lines)


def raised() -> Iterator[Raised]:
    """Every call with an error code among its arguments."""
    for path in sorted(SOURCE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Call):
                yield from _of_call(node, path.relative_to(SOURCE).parts[0])


def _of_call(node: ast.Call, package: str) -> Iterator[Raised]:
    texts = [_text(each) for each in node.args]
    named = {each.arg: _text(each.value) for each in node.keywords if each.arg}
    code = next((each for each in [named.get("code", ""), *texts] if CODE.fullmatch(each)), None)
    if code:
        what = named.get("what") or next((each for each in texts if each and each != code), "")
        yield Raised(code, what, named.get("hint") or named.get("do") or "", package)


def _text(node: ast.expr) -> str:
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        return "".join(part.value if isinstance(part, ast.Constant) else "…" for part in node.values)  # type: ignore[misc]
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return _text(node.left) + _text(node.right)
    if isinstance(node, ast.IfExp):
        return " / ".join(filter(None, (_text(node.body), _text(node.orelse))))
    return ""


def _escape(text: str) -> str:
    return " ".join(text.split()).replace("<", "&lt;").replace("|", "\\|")
