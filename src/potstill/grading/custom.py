"""Grading functions of your own: the task `function: module:name`.

    >>> parse_function_name("mine/function: operator:eq"), parse_function_name("number")
    ('operator:eq', None)
    >>> grade_with_function("operator:eq", "yes", "yes"), grade_with_function("operator:eq", "no", "yes")
    (Verdict(grade='right', answer='yes', dropped=None), Verdict(grade='wrong', answer='no', dropped=None))

The task calls `name(text, gold)` of a module that can be imported, or that is in the working folder. The function
returns True, False, or None for no answer, or one of these with the extracted answer as text: `(True, "18")`. It runs
with all your rights, so a record of a file cannot name one (`data.custom_set`, `cli.grade_rows`).
"""

from __future__ import annotations

import hashlib
import importlib
import inspect
import re
import sys
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

from potstill.errors import UserError
from potstill.records import Verdict

_TASK = re.compile(r"(?:.*/)?function:\s*(?P<name>[\w.]+:\w+)")


def parse_function_name(task: str) -> str | None:
    """`module:name` of a task; None if the task names no function. Raises UserError for an incomplete name."""
    match = _TASK.fullmatch(task)
    if match is None and task.rpartition("/")[2].startswith("function"):
        raise UserError(
            "not the name of a function",
            code="E-grade-function-name",
            where=f"task {task!r}",
            hint="write `function: module:name`",
        )
    return None if match is None else match["name"]


def grade_with_function(name: str, text: str, gold: str, stop: str | None = None) -> Verdict:
    """The verdict of the function; a truncated text without an answer is "truncated".

    Raises UserError if the function does not exist, fails, or returns something else.
    """
    function, where = load_function(name), f"function {name}"
    try:
        result = function(text, gold)
    except UserError:
        raise
    except Exception as error:
        raise UserError(
            "the grading function failed",
            code="E-grade-function-failed",
            where=where,
            found=f"{type(error).__name__}: {error}",
            hint="fix the function",
        ) from error
    right, answer = result if isinstance(result, tuple) and len(result) == 2 else (result, text.strip())
    if right is None:
        return Verdict("truncated" if stop == "length" else "no answer")
    if not isinstance(right, bool) or not isinstance(answer, str):
        raise UserError(
            "the grading function returned an unknown result",
            code="E-grade-function-result",
            where=where,
            found=result,
            hint="return True, False or None, alone or in a tuple with the extracted answer as text",
        )
    return Verdict("right" if right else "wrong", answer[:200])


@lru_cache(maxsize=64)
def load_function(name: str) -> Callable[[str, str], Any]:
    """The function `module:name`. Raises UserError if there is none."""
    module, _, attribute = name.partition(":")
    try:
        function = getattr(_import_module(module), attribute, None)
    except ImportError as error:
        raise UserError(
            "the module cannot be imported",
            code="E-grade-function-module",
            where=f"function {name}",
            found=error,
            hint="install the module, or run potstill from the folder that contains it",
        ) from None
    if not callable(function):
        raise UserError(
            "the module has no such function",
            code="E-grade-function-missing",
            where=f"function {name}",
            hint=f"define {attribute}(text, gold) in {module}",
        )
    return function


def function_digest(name: str) -> str:
    """SHA-256 of the file that defines the function; of its name if there is no file."""
    try:
        path = inspect.getsourcefile(inspect.unwrap(load_function(name)))
    except TypeError:  # written in C
        path = None
    return hashlib.sha256(name.encode() if path is None else Path(path).read_bytes()).hexdigest()


def _import_module(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        folder = str(Path.cwd())
        if error.name != name.partition(".")[0] or folder in sys.path:
            raise
        sys.path.append(folder)  # last, so that it shadows no installed module
        importlib.invalidate_caches()
        return importlib.import_module(name)
