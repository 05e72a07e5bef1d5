"""Forms: what kind of answer a gold answer is, from its task or its own looks.

>>> form("72", "gsm8k"), form("(A)"), form("valid", "bbh/formal_fallacies")
('number', 'choice', 'boolean')
>>> form("b a", "sorting/list"), canonical("7,200.0", "number"), canonical("3:30 p.m.", "time")
('list', '7200', '3:30 p.m.')
"""

from __future__ import annotations

import difflib
from functools import lru_cache
from typing import Any, Final

from potstill.answers import formal, functions, golds
from potstill.answers.readers import READERS
from potstill.errors import UserError

FORMS: Final = tuple(READERS)
FUNCTION: Final = "function"

# The first reader that reads a gold answer decides. 9:10 is a time before it is a ratio; see the policies.
_BY_LOOKS: Final = ("choice", "boolean", "time", "ratio", "number", "several", "brackets", "text")
_SETS: Final = {"gsm8k": "number", "multiarith": "number", "svamp": "number", "asdiv": None}
_BBH_OTHERS: Final = {
    "boolean_expressions": "boolean",
    "causal_judgement": "boolean",
    "formal_fallacies": "boolean",
    "navigate": "boolean",
    "sports_understanding": "boolean",
    "web_of_lies": "boolean",
    "multistep_arithmetic_two": "number",
    "object_counting": "number",
    "word_sorting": "list",
    "dyck_languages": "brackets",
}
_BBH_CHOICES: Final = (
    "date_understanding",
    "disambiguation_qa",
    "geometric_shapes",
    "hyperbaton",
    "logical_deduction_five_objects",
    "logical_deduction_seven_objects",
    "logical_deduction_three_objects",
    "movie_recommendation",
    "penguins_in_a_table",
    "reasoning_about_colored_objects",
    "ruin_names",
    "salient_translation_error_detection",
    "snarks",
    "temporal_sequences",
    "tracking_shuffled_objects_five_objects",
    "tracking_shuffled_objects_seven_objects",
    "tracking_shuffled_objects_three_objects",
)
TASKS: Final = {f"bbh/{task}": form for task, form in _BBH_OTHERS.items()} | {
    f"bbh/{t}": "choice" for t in _BBH_CHOICES
}


def check(task: str) -> None:
    """Raises UserError unless `task` is a set, `bbh/<task>`, a form, `<any name>/<form>`, or a function."""
    name = functions.named(task)
    if name is not None:
        functions.function(name)
    _declared(task)


def form(gold: str, task: str | None = None) -> str:
    """The form of a gold answer: what its task says, else what it looks like."""
    declared = None if task is None else _declared(task)
    if declared == "choice" and task in TASKS and _value(gold, "choice") is None:
        return "text"  # three golds of BBH's ruin_names and movie_recommendation are the words of an option
    if declared is not None:
        return declared
    return next((name for name in _BY_LOOKS if _value(gold, name) is not None), "text")


def canonical(gold: str, form: str) -> str:
    """The canonical text of a gold answer. Raises UserError where it has not this form."""
    if form == FUNCTION:
        return " ".join(gold.split())
    value = _value(gold, form)
    if value is None and form == "regex" and gold.strip():
        do = "write it without what a linear engine (RE2) lacks: look-around, back-references, \\Z, possessive repeats"
        raise UserError(
            "the gold answer is no regex that can be used", found=f"{gold[:80]!r}: {formal.why_no_regex(gold)}", do=do
        )
    if value is None:
        letter = " (a choice is a capital letter, such as (B))" if form == "choice" else ""
        do = f"correct the answer{letter}, or name another task"
        raise UserError(f"the gold answer is no {form}", found=repr(gold[:80]), do=do)
    return READERS[form].show(value)


@lru_cache(maxsize=1 << 16)
def target(gold: str, task: str | None) -> tuple[str, Any]:
    """Form and value of a gold answer. Raises UserError as `canonical` does."""
    own = form(gold, task)
    canonical(gold, own)
    return own, _value(gold, own)


def _value(gold: str, form: str) -> Any:
    """The value of a gold answer, read as texts of this form are; None where it has not this form."""
    reader = READERS[form]
    bare = golds.bare(gold) if form in golds.FORMS else gold
    return reader.gold(reader.ready(bare))


def _declared(task: str) -> str | None:
    if functions.named(task) is not None:
        return FUNCTION
    if task in _SETS:
        return _SETS[task]
    known = TASKS.get(task)
    if known is not None:
        return known
    last = task.rpartition("/")[2]
    if last in READERS and not task.startswith("bbh/"):
        return last
    names = [*_SETS, *FORMS, *TASKS]
    near = difflib.get_close_matches(task, names, n=1)
    do = f"did you mean {near[0]!r}? " if near else ""
    forms = f"one of {', '.join(FORMS)}, function: module:name"
    raise UserError(f"unknown task {task!r}", do=f"{do}a set, bbh/<task>, {forms}, or <your name>/<form>")
