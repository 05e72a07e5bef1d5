"""Forms: what kind of answer a gold answer is, from its task or its own looks.

>>> infer_answer_type("72", "gsm8k"), infer_answer_type("(A)"), infer_answer_type("valid", "bbh/formal_fallacies")
('number', 'choice', 'boolean')
>>> infer_answer_type("b a", "sorting/list"), canonicalize_gold("7,200.0", "number"), canonicalize_gold("3:30 p.m.", "time")
('list', '7200', '3:30 p.m.')

Grading: a text against a gold answer.

>>> grade("He pays 2 x 9 = $18. The answer is $18.", "18", "gsm8k")
Verdict(grade='right', found='18', dropped=None)
>>> grade("He pays", "18", "gsm8k", stop="length").grade
'truncated'
"""

from __future__ import annotations

import difflib
from functools import lru_cache
from typing import Any, Final

from potstill.errors import UserError
from potstill.grading import custom, gold_answers, markers, structured
from potstill.grading.answer_types import ANSWER_TYPES, AnswerType
from potstill.grading.normalize import replace_lone_surrogates
from potstill.records import Verdict

ANSWER_TYPE_NAMES: Final = tuple(ANSWER_TYPES)
FUNCTION_TYPE: Final = "function"

# The first reader that reads a gold answer decides. 9:10 is a time before it is a ratio; see the policies.
_INFERABLE_TYPES: Final = ("choice", "boolean", "time", "ratio", "number", "several", "brackets", "text")
_SET_ANSWER_TYPES: Final = {"gsm8k": "number", "multiarith": "number", "svamp": "number", "asdiv": None}
_BBH_OTHER_TYPES: Final = {
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
_BBH_CHOICE_TASKS: Final = (
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
BBH_ANSWER_TYPES: Final = {f"bbh/{task}": form for task, form in _BBH_OTHER_TYPES.items()} | {
    f"bbh/{t}": "choice" for t in _BBH_CHOICE_TASKS
}


def check_task(task: str) -> None:
    """Raises UserError unless `task` is a set, `bbh/<task>`, a form, `<any name>/<form>`, or a function."""
    name = custom.parse_function_name(task)
    if name is not None:
        custom.load_function(name)
    _type_of_task(task)


def infer_answer_type(gold: str, task: str | None = None) -> str:
    """The form of a gold answer: what its task says, else what it looks like."""
    declared = None if task is None else _type_of_task(task)
    if declared == "choice" and task in BBH_ANSWER_TYPES and _parse_gold_as(gold, "choice") is None:
        return "text"  # three golds of BBH's ruin_names and movie_recommendation are the words of an option
    if declared is not None:
        return declared
    return next((name for name in _INFERABLE_TYPES if _parse_gold_as(gold, name) is not None), "text")


def canonicalize_gold(gold: str, form: str) -> str:
    """The canonical text of a gold answer. Raises UserError where it has not this form."""
    if form == FUNCTION_TYPE:
        return " ".join(gold.split())
    value = _parse_gold_as(gold, form)
    if value is None and form == "regex" and gold.strip():
        hint = (
            "write it without what a linear engine (RE2) lacks: look-around, back-references, \\Z, possessive repeats"
        )
        raise UserError(
            "the gold answer is no regex that can be used",
            found=f"{gold[:80]!r}: {structured.regex_error(gold)}",
            hint=hint,
        )
    if value is None:
        letter = " (a choice is a capital letter, such as (B))" if form == "choice" else ""
        hint = f"correct the answer{letter}, or name another task"
        raise UserError(f"the gold answer is no {form}", found=repr(gold[:80]), hint=hint)
    return ANSWER_TYPES[form].show(value)


@lru_cache(maxsize=1 << 16)
def parse_gold(gold: str, task: str | None) -> tuple[str, Any]:
    """Form and value of a gold answer. Raises UserError as `canonical` does."""
    own = infer_answer_type(gold, task)
    canonicalize_gold(gold, own)
    return own, _parse_gold_as(gold, own)


def _parse_gold_as(gold: str, form: str) -> Any:
    """The value of a gold answer, read as texts of this form are; None where it has not this form."""
    reader = ANSWER_TYPES[form]
    bare = gold_answers.bare_gold(gold) if form in gold_answers.STRIPPED_TYPES else gold
    return reader.gold(reader.ready(bare))


def _type_of_task(task: str) -> str | None:
    if custom.parse_function_name(task) is not None:
        return FUNCTION_TYPE
    if task in _SET_ANSWER_TYPES:
        return _SET_ANSWER_TYPES[task]
    known = BBH_ANSWER_TYPES.get(task)
    if known is not None:
        return known
    last = task.rpartition("/")[2]
    if last in ANSWER_TYPES and not task.startswith("bbh/"):
        return last
    names = [*_SET_ANSWER_TYPES, *ANSWER_TYPE_NAMES, *BBH_ANSWER_TYPES]
    near = difflib.get_close_matches(task, names, n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    forms = f"one of {', '.join(ANSWER_TYPE_NAMES)}, function: module:name"
    raise UserError(f"unknown task {task!r}", hint=f"{hint}a set, bbh/<task>, {forms}, or <your name>/<form>")


def grade(text: str, gold: str, task: str | None = None, stop: str | None = None) -> Verdict:
    """Whether a text comes to the gold answer, and what it came to in canonical form.

    task   a set, `bbh/<task>`, a form, `<any name>/<form>`, or `function: module:name`, which runs that function;
           None: the form of the gold answer decides
    stop   `length` says that the text was cut off: without a marked answer it is then `truncated`, not wrong
    Raises UserError for an unknown task and for a gold answer that cannot be read, and never for a text. Takes linear
    time in any text; a function of yours takes what it takes, and `math` is stopped after a while.
    """
    text, gold = replace_lone_surrogates(text), replace_lone_surrogates(gold)
    name = None if task is None else custom.parse_function_name(task)
    if name is not None:
        return custom.grade_with_function(name, text, gold, stop)
    form, target = parse_gold(gold, task)
    reader = ANSWER_TYPES[form]
    value = _extract_answer(text, reader, target, form, stop == "length")
    if value is None:
        return Verdict("truncated" if stop == "length" else "no answer")
    return Verdict("right" if reader.same(target, value) else "wrong", reader.show(value))


def _extract_answer(text: str, reader: AnswerType, target: Any, form: str, cut: bool) -> Any:
    """What a text comes to, None for nothing. See the principle in `potstill.grading`."""
    if not reader.marked:
        return reader.unmarked(text, target)
    spoken = markers.remove_reasoning(reader.ready(text), cut)
    if spoken is None:
        return None
    head = markers.cut_at_next_question(spoken)
    asked = head is not spoken  # the next question says that this one was answered
    decision = markers.read_last_mark(head, lambda span: reader.after_mark(span, target), form)
    if decision is None and asked:
        value = reader.unmarked(head, target)
        if value is not None:
            return value
        decision = markers.read_last_mark(spoken, lambda span: reader.after_mark(span, target), form)
    if decision is not None:
        if decision.value is not None or not decision.rest.strip() or (cut and not asked):
            return decision.value
        return reader.unmarked(decision.rest, target)
    return None if cut else reader.unmarked(markers.cut_at_next_turn(spoken), target)
