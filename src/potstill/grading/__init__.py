"""Grading: the verdict on a model's text, given a gold answer: right, wrong, no answer or truncated.

    >>> grade("6 x 3 = 18. The answer is $18.00 a day. Question: What is 2 + 2? The answer is 4", "18").answer
    '18'
    >>> grade("I do not know.", "18").grade, grade("He has 6 x", "18", stop="length").grade
    ('no answer', 'truncated')

THE PRINCIPLE: the text after the last marker ("the answer is") is the answer. An answer without a marker counts only if
the text has no marker. If the text after the last marker is empty, a hedge, or rejects every option ("none of the
above", "it depends"), nothing before the marker replaces it.

    >>> grade("(B) is a fact. So the answer is none of the above.", "(B)").grade, grade("So 5 * 4 =", "4").grade
    ('no answer', 'no answer')

To add an answer type, add an entry to the table in `answer_types`. A data set with its own grader needs no answer type:
its questions may have the task `function: module:name` (see `grader`).

VERSION is the version of the rules; it is stored with every score. `docs/explanation/grading-rules.md` lists the rules,
and `tests/support/grading_cases.py` has test cases for them.

Grading is pure and thread-safe and takes time linear in the text (except your own functions). It never evaluates a text
as code, and no text makes it raise.
"""

from potstill.grading.answer_types import ANSWER_TYPES
from potstill.grading.grader import (
    FUNCTION_TYPE,
    TASK_ANSWER_TYPES,
    canonicalize_gold,
    check_task,
    function_digest,
    grade,
    grade_chain,
    infer_answer_type,
    is_task_of_set,
    parse_function_name,
    use_sets,
)
from potstill.grading.markers import cut_at_next_question, read_last_marker, remove_reasoning

VERSION = 5

__all__ = [
    "ANSWER_TYPES", "FUNCTION_TYPE", "TASK_ANSWER_TYPES", "VERSION", "canonicalize_gold", "check_task",
    "cut_at_next_question", "function_digest",
    "grade", "grade_chain", "infer_answer_type", "is_task_of_set", "parse_function_name", "read_last_marker",
    "remove_reasoning", "use_sets",
]  # fmt: skip
