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
    trees = {path: ast.parse(path.read_text("utf-8")) for path in sorted(SOURCE.rglob("*.py"))}
    functions = [node for tree in trees.values() for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
    parameters = {node.name: [argument.arg for argument in node.args.args] for node in functions}
    for path, tree in trees.items():
        assigned = _Assigned(tree)
        for node in ast.walk(tree):
            if isinstance(node, ast.Call):
                yield from _of_call(node, path.relative_to(SOURCE).parts[0], parameters, assigned)


def _of_call(node: ast.Call, package: str, parameters: dict[str, list[str]], assigned: _Assigned) -> Iterator[Raised]:
    """A helper's positional arguments have the names of its parameters."""
    texts = [assigned.text(each) for each in node.args]
    called = node.func.id if isinstance(node.func, ast.Name) else ""
    named = dict(zip(parameters.get(called, ()), texts, strict=False))
    named |= {each.arg: assigned.text(each.value) for each in node.keywords if each.arg}
    code = next((each for each in [named.get("code", ""), *texts] if CODE.fullmatch(each)), None)
    if code:
        what = named.get("what") or next((each for each in texts if each and each != code), "")
        yield Raised(code, what, named.get("hint", ""), package)


class _Assigned:
    """The texts of a module, where a variable has the text that was assigned to it last above the call."""

    def __init__(self, tree: ast.Module) -> None:
        self._texts: list[tuple[int, str, ast.expr]] = []
        for node in ast.walk(tree):
            targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
            value = getattr(node, "value", None)
            if not isinstance(node, ast.Assign | ast.AnnAssign) or value is None:
                continue
            for target in targets:
                pairs = [(target, value)]
                if isinstance(target, ast.Tuple) and isinstance(value, ast.Tuple):
                    pairs = list(zip(target.elts, value.elts, strict=False))
                self._texts += [(node.lineno, name.id, text) for name, text in pairs if isinstance(name, ast.Name)]
        self._texts.sort(key=lambda row: row[0])

    def text(self, node: ast.expr | None) -> str:
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            return node.value
        if isinstance(node, ast.JoinedStr):
            return "".join(map(self._part, node.values))
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
            return self.text(node.left) + self.text(node.right)
        if isinstance(node, ast.IfExp):
            return " / ".join(filter(None, (self.text(node.body), self.text(node.orelse))))
        if isinstance(node, ast.Name):
            above = [value for line, name, value in self._texts if name == node.id and line < node.lineno]
            return self.text(above[-1]) if above else ""
        return ""

    def _part(self, part: ast.expr) -> str:
        """A part of an f-string: a variable is written out if it is a sentence."""
        if isinstance(part, ast.Constant):
            return str(part.value)
        name = part.value if isinstance(part, ast.FormattedValue) else None
        text = self.text(name) if isinstance(name, ast.Name) else ""
        return text if text.count(" ") > 4 else "…"


def _escape(text: str) -> str:
    return " ".join(text.split()).replace("<", "&lt;").replace("|", "\\|")
