"""Functions: a grader of one's own, named by whoever runs potstill and never by a file of questions.

    >>> parse_function_name("mine/function: operator:eq"), parse_function_name("number")
    ('operator:eq', None)
    >>> grade_with_function("operator:eq", "yes", "yes"), grade_with_function("operator:eq", "no", "yes")
    (Verdict(grade='right', found='yes', dropped=None), Verdict(grade='wrong', found='no', dropped=None))

`function: module:name` calls `name(text, gold)` of a module that can be imported, or that lies in the working folder.
It returns true or false, or None for no answer, or one of these with what it found, as text: `(True, "18")`.
It runs as any other code of yours does, so a record of a file cannot name one: see `questions.own`, `cli.grading`.
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
    """`module:name` of a task, None for a task that names no function. Raises UserError for half a name."""
    match = _TASK.fullmatch(task)
    if match is None and task.rpartition("/")[2].startswith("function"):
        raise UserError("not a function", where=f"task {task!r}", hint="write `function: module:name`")
    return None if match is None else match["name"]


def grade_with_function(name: str, text: str, gold: str, stop: str | None = None) -> Verdict:
    """What the function makes of a text; a text without an answer that was cut off is truncated.

    Raises UserError where the function is not there, fails, or returns something else.
    """
    try:
        told = load_function(name)(text, gold)
    except UserError:
        raise
    except Exception as fault:
        where, found = f"function {name}", f"{type(fault).__name__}: {fault}"
        raise UserError("the grading function failed", where=where, found=found, hint="mend it") from fault
    right, found = told if isinstance(told, tuple) and len(told) == 2 else (told, text.strip())
    if right is None:
        return Verdict("truncated" if stop == "length" else "no answer")
    if not isinstance(right, bool) or not isinstance(found, str):
        hint = "return True, False or None, or one of them with the answer that was found as text"
        raise UserError("the grading function returned something else", where=f"function {name}", found=told, hint=hint)
    return Verdict("right" if right else "wrong", found[:200])


@lru_cache(maxsize=64)
def load_function(name: str) -> Callable[[str, str], Any]:
    """The function `module:name`. Raises UserError where there is none."""
    module, _, attribute = name.partition(":")
    try:
        found = getattr(_module(module), attribute, None)
    except ImportError as fault:
        hint = "install the module, or run from the folder in which it lies"
        raise UserError("no such module", where=f"function {name}", found=fault, hint=hint) from None
    if not callable(found):
        raise UserError(
            "no such function", where=f"function {name}", hint=f"define {attribute}(text, gold) in {module}"
        )
    return found


def function_digest(name: str) -> str:
    """SHA-256 of the file that defines the function, of its name where there is no such file."""
    try:
        path = inspect.getsourcefile(inspect.unwrap(load_function(name)))
    except TypeError:  # written in C
        path = None
    return hashlib.sha256(name.encode() if path is None else Path(path).read_bytes()).hexdigest()


def _module(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as fault:
        here = str(Path.cwd())
        if fault.name != name.partition(".")[0] or here in sys.path:
            raise
        sys.path.append(here)  # last, so that nothing that is installed is shadowed
        importlib.invalidate_caches()
        return importlib.import_module(name)
