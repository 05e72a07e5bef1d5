"""Grading: a text against a gold answer.

>>> grade("He pays 2 x 9 = $18. The answer is $18.", "18", "gsm8k")
Verdict(grade='right', found='18', dropped=None)
>>> grade("He pays", "18", "gsm8k", stop="length").grade
'truncated'
"""

from __future__ import annotations

from typing import Any

from potstill.answers import functions, marks
from potstill.answers.forms import target as target_of
from potstill.answers.readers import READERS, Reader
from potstill.records import Verdict


def grade(text: str, gold: str, task: str | None = None, stop: str | None = None) -> Verdict:
    """Whether a text comes to the gold answer, and what it came to in canonical form.

    task   a set, `bbh/<task>`, a form, `<any name>/<form>`, or `function: module:name`, which runs that function;
           None: the form of the gold answer decides
    stop   `length` says that the text was cut off: without a marked answer it is then `truncated`, not wrong
    Raises UserError for an unknown task and for a gold answer that cannot be read. Takes linear time in any text; a
    regular expression or a function takes what it takes.
    """
    name = None if task is None else functions.named(task)
    if name is not None:
        return functions.verdict(name, text, gold, stop)
    form, target = target_of(gold, task)
    reader = READERS[form]
    text = marks.after_thought(reader.ready(text))
    head = marks.head(text)
    value = _marked(head, reader, target, form)
    if value is None and head is not text:
        value = reader.unmarked(head, target)  # the next question says that this one was answered
        if value is None:
            value = _marked(text, reader, target, form)  # it was only a preamble to a question told again
    if value is None:
        if stop == "length":
            return Verdict("truncated")
        value = reader.unmarked(marks.before_next_question(text), target)
        if value is None:
            return Verdict("no answer")
    return Verdict("right" if reader.same(target, value) else "wrong", reader.show(value))


def _marked(text: str, reader: Reader, target: Any, form: str) -> Any:
    return marks.last_readable(text, lambda span: reader.after_mark(span, target), form)
