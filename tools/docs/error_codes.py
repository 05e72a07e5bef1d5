"""Reference page of error codes, from the source code of every error that has one."""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from collections.abc import Iterator
from typing import Final, NamedTuple

from names import SOURCE
from recipe_keys import HEADER, escape_tags

CODE: Final = re.compile(r"E(-[a-z0-9]+)+")
Function = ast.FunctionDef | ast.AsyncFunctionDef


class Raised(NamedTuple):
    code: str
    what: str
    hint: str
    package: str


def page() -> str:
    """One heading for each code, with its messages and hints."""
    by_code: dict[str, list[Raised]] = defaultdict(list)
    for error in raised():
        by_code[error.code].append(error)
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
        whats = dict.fromkeys(error.what for error in by_code[code] if error.what)
        hints = dict.fromkeys(error.hint for error in by_code[code] if error.hint)
        lines += [f"- **What**: {_escape(what)}" for what in whats]
        lines += [f"- **Hint**: {_escape(hint)}" for hint in hints]
        lines.append("")
    return "\n".join(lines)


def raised() -> Iterator[Raised]:
    """Every call with an error code among its arguments, and every call of a helper that adds the code to a text."""
    trees = {path: ast.parse(path.read_text("utf-8")) for path in sorted(SOURCE.rglob("*.py"))}
    helpers = [_helper(node) for tree in trees.values() for node in ast.walk(tree) if isinstance(node, Function)]
    by_name = {helper.name: helper for helper in helpers}
    for path, tree in trees.items():
        yield from _in_scope(tree, _Texts(tree, {}), path.relative_to(SOURCE).parts[0], by_name)


class _Helper(NamedTuple):
    """A function's parameters, and the code of the error that it raises with the parameter `what`, if it raises one."""

    name: str
    parameters: list[str]
    code: str = ""
    what: str = "what"


def _helper(function: Function) -> _Helper:
    helper = _Helper(function.name, [argument.arg for argument in function.args.args if argument.arg != "self"])
    for node in ast.walk(function):
        if isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Name):
            code = {keyword.arg: keyword.value for keyword in node.keywords}.get("code")
            if node.args[0].id in helper.parameters and isinstance(code, ast.Constant):
                helper = helper._replace(code=str(code.value), what=node.args[0].id)
    return helper


def _in_scope(scope: ast.AST, texts: _Texts, package: str, helpers: dict[str, _Helper]) -> Iterator[Raised]:
    for node in ast.iter_child_nodes(scope):
        if isinstance(node, Function):
            yield from _in_scope(node, _Texts(node, texts.known), package, helpers)
            continue
        if isinstance(node, ast.Call):
            yield from _of_call(node, texts, package, helpers)
        yield from _in_scope(node, texts, package, helpers)


def _of_call(node: ast.Call, texts: _Texts, package: str, helpers: dict[str, _Helper]) -> Iterator[Raised]:
    """The error of a call. Positional arguments of a helper get the names of its parameters."""
    values = [texts.read(argument) for argument in node.args]
    called = helpers.get(ast.unparse(node.func).rpartition(".")[2], _Helper("", []))
    named = dict(zip(called.parameters, values, strict=False))
    named |= {keyword.arg: texts.read(keyword.value) for keyword in node.keywords if keyword.arg}
    code = next((value for value in [named.get("code", ""), *values] if CODE.fullmatch(value)), called.code)
    if code:
        what = named.get(called.what) or next((value for value in values if value and value != code), "")
        yield Raised(code, what, named.get("hint", ""), package)


class _Texts:
    """The texts of expressions in a function or module. A variable has the text that was last assigned above it."""

    def __init__(self, scope: ast.Module | Function, outer: dict[str, list[tuple[int, ast.expr]]]) -> None:
        self.known = dict(outer)
        if isinstance(scope, Function):
            self.known |= {argument.arg: [] for argument in scope.args.args + scope.args.kwonlyargs}
        for node in scope.body if isinstance(scope, ast.Module) else ast.walk(scope):
            if isinstance(node, ast.Assign | ast.AnnAssign) and node.value is not None:
                for target in node.targets if isinstance(node, ast.Assign) else [node.target]:
                    self._assign(target, node.value)

    def _assign(self, target: ast.expr, value: ast.expr) -> None:
        if isinstance(target, ast.Name):
            self.known[target.id] = [*self.known.get(target.id, ()), (value.lineno, value)]
        elif isinstance(target, ast.Tuple) and isinstance(value, ast.Tuple):
            for inner, text in zip(target.elts, value.elts, strict=False):
                self._assign(inner, text)

    def read(self, node: ast.expr | None) -> str:
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            return node.value
        if isinstance(node, ast.JoinedStr):
            return "".join(map(self._part, node.values))
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
            return self.read(node.left) + self.read(node.right)
        if isinstance(node, ast.IfExp):
            return " / ".join(filter(None, (self.read(node.body), self.read(node.orelse))))
        if isinstance(node, ast.Name):
            above = [value for line, value in self.known.get(node.id, ()) if line < node.lineno]
            return self.read(max(above, key=lambda value: value.lineno)) if above else ""
        return ""

    def _part(self, part: ast.expr) -> str:
        """A part of an f-string. The text of a variable is inserted if it is a sentence."""
        if isinstance(part, ast.Constant):
            return str(part.value)
        variable = part.value if isinstance(part, ast.FormattedValue) else None
        text = self.read(variable) if isinstance(variable, ast.Name) else ""
        return text if text.count(" ") > 4 else "…"


def _escape(text: str) -> str:
    return escape_tags(" ".join(text.split())).replace("|", "\\|")
