"""`grade`: the verdict on a model's text, given a gold answer and its task.

    >>> grade("He pays 2 x 9 = $18. The answer is $18.", "18", "gsm8k")
    Verdict(grade='right', answer='18', dropped=None)
    >>> grade("He pays", "18", "gsm8k", stop="length").grade
    'truncated'

The task determines the answer type; without a task the gold answer does:

    >>> infer_answer_type("72", "gsm8k"), infer_answer_type("(A)"), infer_answer_type("valid", "bbh/formal_fallacies")
    ('number', 'choice', 'boolean')
    >>> infer_answer_type("b a", "sorting/list"), canonicalize_gold("7,200.0", "number")
    ('list', '7200')

The task `function: module:name` calls `name(text, gold)` of a module that can be imported, or that is in the working
folder. The function returns True, False, or None for no answer, or a tuple of such a value and the extracted answer as
text: `(True, "18")`. It runs with all your rights, so a record of a data file cannot name a function of
yours (`data.custom_set`, `cli.grade_rows`), only that of a built-in set (`is_task_of_set`).

    >>> grade("yes", "yes", "mine/function: operator:eq").grade, grade("no", "yes", "function: operator:eq").answer
    ('right', 'no')
"""

from __future__ import annotations

import hashlib
import importlib
import inspect
import re
import sys
from collections.abc import Callable, Collection, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, Final

from potstill.errors import UserError, suggest
from potstill.grading import markers
from potstill.grading.answer_types import ANSWER_TYPES, AnswerType
from potstill.grading.normalize import replace_lone_surrogates
from potstill.records import CUT_IN_THOUGHT, Question, Verdict

FUNCTION_TYPE: Final = "function"  # the answer type of a task that names a grading function

# Task of a built-in set -> its answer type; None: the form of each gold answer determines the type. The loaders in
# `potstill.data` give these tasks to their questions. For other sets, the task names the type: `<set>/<answer type>`.
TASK_ANSWER_TYPES: Final[dict[str, str | None]] = {
    "gsm8k": "number", "multiarith": "number", "asdiv": None, "svamp": "number",
    "bbh/boolean_expressions": "boolean", "bbh/causal_judgement": "boolean", "bbh/formal_fallacies": "boolean",
    "bbh/navigate": "boolean", "bbh/sports_understanding": "boolean", "bbh/web_of_lies": "boolean",
    "bbh/multistep_arithmetic_two": "number", "bbh/object_counting": "number",
    "bbh/word_sorting": "list", "bbh/dyck_languages": "brackets",
    "bbh/date_understanding": "choice", "bbh/disambiguation_qa": "choice", "bbh/geometric_shapes": "choice",
    "bbh/hyperbaton": "choice", "bbh/logical_deduction_five_objects": "choice",
    "bbh/logical_deduction_seven_objects": "choice", "bbh/logical_deduction_three_objects": "choice",
    "bbh/movie_recommendation": "choice", "bbh/penguins_in_a_table": "choice",
    "bbh/reasoning_about_colored_objects": "choice", "bbh/ruin_names": "choice",
    "bbh/salient_translation_error_detection": "choice", "bbh/snarks": "choice", "bbh/temporal_sequences": "choice",
    "bbh/tracking_shuffled_objects_five_objects": "choice", "bbh/tracking_shuffled_objects_seven_objects": "choice",
    "bbh/tracking_shuffled_objects_three_objects": "choice",
}  # fmt: skip
_builtin_sets: Mapping[str, Any] = {}  # see `use_sets`


def use_sets(sets: Mapping[str, Any]) -> None:
    """Register the built-in sets, so that the name of a set that a function grades is a task. `potstill.data` calls this.

    sets  name of a set -> an object whose `grader` is the task of its questions, or None
    """
    global _builtin_sets
    _builtin_sets = sets


def is_task_of_set(task: str) -> bool:
    """Whether a task is the name of a built-in set that a function grades, or the task of such a set's questions.

    The function is part of potstill, so a data file may name it.
    """
    return any(task in (name, builtin.grader) for name, builtin in _builtin_sets.items() if builtin.grader)


def grade(text: str, gold: str, task: str | None = None, stop: str | None = None, *, opened: bool = False) -> Verdict:
    """Grade a model's text against a gold answer.

    task  a data set, `bbh/<task>`, an answer type, `<any name>/<answer type>`, or `function: module:name`, which calls
          that function; None: the form of the gold answer determines the answer type
    stop  "length" or "repeat": the text was truncated. If it has no marked answer, its grade is "truncated", not "wrong"
    opened  whether the prompt opened a thought in which the text begins. A text that was truncated before it closed the
            thought has no answer, whatever it says
    Returns the grade (right, wrong, no answer or truncated) and the extracted answer in canonical form. Raises
    UserError for an unknown task and for a gold answer that is not of the task's type, never for a text. Takes time
    linear in the text, except for your own functions; a `math` comparison is stopped after 20 seconds.
    """
    for name, value in (("text", text), ("gold", gold)):
        if not isinstance(value, str):
            what, hint = (
                f"{name} must be a string",
                "give str(value); an empty cell of a table (NaN) has no text: drop or fill it",
            )
            raise UserError(what, code="E-grade-not-a-string", found=repr(value)[:80], hint=hint)
    text, gold = replace_lone_surrogates(text), replace_lone_surrogates(gold)
    truncated = stop in ("length", "repeat")
    no_answer = Verdict("truncated" if truncated else "no answer")
    if opened and truncated and markers.remove_reasoning(text, truncated, opened) is None:
        return no_answer
    function = None if task is None else parse_function_name(task)
    if function is not None:
        right, answer = _call_function(function, text, gold)
        return no_answer if right is None else Verdict("right" if right else "wrong", answer[:200])
    answer_type, gold_value = _typed_gold(gold, task)
    value = _extract_answer(text, answer_type, gold_value, truncated, opened)
    if value is None:
        return no_answer
    return Verdict("right" if answer_type.is_same(gold_value, value) else "wrong", answer_type.format(value))


def grade_chain(text: str, question: Question, stop: str | None, defects: Collection[str]) -> Verdict:
    """Grade the text of a chain, whose tags of thoughts were removed. A chain that was cut inside a thought has no answer,
    whatever the thought says.

    >>> question = Question("mine/1", "What is 1 + 1?", "2", "mine", "train", "number")
    >>> [grade_chain("The answer is 2. But", question, "length", marks).grade for marks in ((), (CUT_IN_THOUGHT,))]
    ['right', 'truncated']
    """
    return Verdict("truncated") if CUT_IN_THOUGHT in defects else grade(text, question.gold, question.task, stop)


def _extract_answer(text: str, answer_type: AnswerType, gold_value: Any, truncated: bool, opened: bool) -> Any:
    """The value of the answer in a model's text; None if there is no answer.

    `docs/explanation/grading-rules.md` lists the rules.
    """
    rules = answer_type.markers
    if rules is None:
        return answer_type.extract_unmarked(text, gold_value)
    output = markers.remove_reasoning(answer_type.normalize(text), truncated, opened)
    if output is None:
        return None

    def extract_marked(span):  # no annotations: the tests' type checks would compile them at every call
        return answer_type.extract_marked(span, gold_value)

    answer = markers.cut_at_next_question(output)
    complete = answer is not output  # a model that starts the next question has finished this answer
    marked = markers.read_last_marker(answer, extract_marked, rules)
    if marked is None and complete:
        value = answer_type.extract_unmarked(answer, gold_value)
        if value is not None:
            return value
        marked = markers.read_last_marker(output, extract_marked, rules)
    if marked is not None:
        if marked.value is not None or not marked.rest.strip() or (truncated and not complete):
            return marked.value
        return answer_type.extract_unmarked(marked.rest, gold_value)
    return None if truncated else answer_type.extract_unmarked(markers.cut_at_next_turn(output), gold_value)


def check_task(task: str) -> None:
    """Raises UserError if `grade` does not know the task, or if its function cannot be imported."""
    name = parse_function_name(task)
    if name is not None:
        load_function(name)
    _type_of_task(task)


def infer_answer_type(gold: str, task: str | None = None) -> str:
    """The answer type of the task; if the task has no answer type, the first type that can parse the gold answer."""
    declared = None if task is None else _type_of_task(task)
    if declared == "choice" and task in TASK_ANSWER_TYPES and _parse_gold(gold, "choice") is None:
        return "text"  # three gold answers of BBH's ruin_names and movie_recommendation are the words of an option
    if declared is not None:
        return declared
    inferable = (name for name, answer_type in ANSWER_TYPES.items() if answer_type.inferable)
    return next((name for name in inferable if _parse_gold(gold, name) is not None), "text")


def canonicalize_gold(gold: str, type_name: str) -> str:
    """The canonical text of a gold answer. Raises UserError if it is not of this type."""
    if type_name == FUNCTION_TYPE:
        return " ".join(gold.split())
    return ANSWER_TYPES[type_name].format(_require_gold(gold, type_name))


@lru_cache(maxsize=1 << 16)
def _typed_gold(gold: str, task: str | None) -> tuple[AnswerType, Any]:
    type_name = infer_answer_type(gold, task)
    return ANSWER_TYPES[type_name], _require_gold(gold, type_name)


def _require_gold(gold: str, type_name: str) -> Any:
    value = _parse_gold(gold, type_name)
    if value is None:
        what, form = f"the gold answer is not of type {type_name}", ANSWER_TYPES[type_name].hint
        hint = f"correct the gold answer{f' ({form})' if form else ''}, or name another task"
        raise UserError(what, code="E-grade-gold-type", found=repr(gold[:80]), hint=hint)
    return value


def _parse_gold(gold: str, type_name: str) -> Any:
    answer_type = ANSWER_TYPES[type_name]
    return answer_type.parse_gold(answer_type.normalize(markers.unwrap_gold(gold) if answer_type.unwrap_gold else gold))


def _type_of_task(task: str) -> str | None:
    """The answer type of a task; None for a data set whose gold answers are of several types."""
    if parse_function_name(task) is not None:
        return FUNCTION_TYPE
    if task in TASK_ANSWER_TYPES:
        return TASK_ANSWER_TYPES[task]
    last = task.rpartition("/")[2]
    if last in ANSWER_TYPES and not task.startswith("bbh/"):
        return last
    sets = [name for name in TASK_ANSWER_TYPES if "/" not in name]
    sets += [name for name, builtin in _builtin_sets.items() if builtin.grader]
    hint = suggest(task, [*sets, *TASK_ANSWER_TYPES, *ANSWER_TYPES])
    hint += f"write a data set ({', '.join(sets)}), bbh/<task>, an answer type ({', '.join(ANSWER_TYPES)}),"
    hint += " <any name>/<answer type>,"
    hint += " or function: module:name"
    raise UserError(f"unknown task {task!r}", code="E-grade-unknown-task", hint=hint)


# Grading functions of the user

_FUNCTION_TASK = re.compile(r"(?:.*/)?function:\s*(?P<name>[\w.]+:\w+)")


def parse_function_name(task: str) -> str | None:
    """`module:name` of a task; None if the task names no function. Raises UserError for an incomplete name."""
    if (builtin := _builtin_sets.get(task)) is not None and builtin.grader:
        task = builtin.grader
    match = _FUNCTION_TASK.fullmatch(task)
    if match is None and task.rpartition("/")[2].startswith("function"):
        what, hint = "not the name of a function", "write `function: module:name`"
        raise UserError(what, code="E-grade-function-name", where=f"task {task!r}", hint=hint)
    return None if match is None else match["name"]


def _call_function(name: str, text: str, gold: str) -> tuple[bool | None, Any]:
    """Whether the answer is right (None if there is no answer), and the extracted answer."""
    function, where = load_function(name), f"function {name}"
    try:
        result = function(text, gold)
    except UserError:
        raise
    except Exception as error:
        what, found = "the grading function failed", f"{type(error).__name__}: {error}"
        raise UserError(
            what, code="E-grade-function-failed", where=where, found=found, hint="fix the function"
        ) from error
    right, answer = result if isinstance(result, tuple) and len(result) == 2 else (result, text.strip())
    if right is not None and (not isinstance(right, bool) or not isinstance(answer, str)):
        what = "the grading function returned an unknown result"
        hint = "return True, False or None, alone or in a tuple with the extracted answer as text"
        raise UserError(what, code="E-grade-function-result", where=where, found=result, hint=hint)
    return right, answer


@lru_cache(maxsize=64)
def load_function(name: str) -> Callable[[str, str], Any]:
    """The function `module:name`. Raises UserError if the module or the function does not exist."""
    module, _, attribute = name.partition(":")
    try:
        function = getattr(_import_module(module), attribute, None)
    except ImportError as error:
        what, where = "the module cannot be imported", f"function {name}"
        hint = "install the module, or run potstill from the folder that contains it"
        raise UserError(what, code="E-grade-function-module", where=where, found=error, hint=hint) from None
    if not callable(function):
        what, hint = "the module has no such function", f"define {attribute}(text, gold) in {module}"
        raise UserError(what, code="E-grade-function-missing", where=f"function {name}", hint=hint)
    return function


def function_digest(name: str) -> str:
    """SHA-256 of the source file that defines the function; of the function's name if there is no source file."""
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
