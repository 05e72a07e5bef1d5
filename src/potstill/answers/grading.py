"""Grading: a text against a gold answer.

>>> grade("He pays 2 x 9 = $18. The answer is $18.", "18", "gsm8k")
Verdict(grade='right', found='18', dropped=None)
>>> grade("He pays", "18", "gsm8k", stop="length").grade
'truncated'
"""

from __future__ import annotations

from typing import Any

from potstill.answers import functions, marks, thoughts
from potstill.answers.forms import target as target_of
from potstill.answers.plain import whole
from potstill.answers.readers import READERS, Reader
from potstill.records import Verdict


def grade(text: str, gold: str, task: str | None = None, stop: str | None = None) -> Verdict:
    """Whether a text comes to the gold answer, and what it came to in canonical form.

    task   a set, `bbh/<task>`, a form, `<any name>/<form>`, or `function: module:name`, which runs that function;
           None: the form of the gold answer decides
    stop   `length` says that the text was cut off: without a marked answer it is then `truncated`, not wrong
    Raises UserError for an unknown task and for a gold answer that cannot be read, and never for a text. Takes linear
    time in any text; a function of yours takes what it takes, and `math` is stopped after a while.
    """
    text, gold = whole(text), whole(gold)
    name = None if task is None else functions.named(task)
    if name is not None:
        return functions.verdict(name, text, gold, stop)
    form, target = target_of(gold, task)
    reader = READERS[form]
    value = _value(text, reader, target, form, stop == "length")
    if value is None:
        return Verdict("truncated" if stop == "length" else "no answer")
    return Verdict("right" if reader.same(target, value) else "wrong", reader.show(value))


def _value(text: str, reader: Reader, target: Any, form: str, cut: bool) -> Any:
    """What a text comes to, None for nothing. See the principle in `potstill.answers`."""
    if not reader.marked:
        return reader.unmarked(text, target)
    spoken = thoughts.spoken(reader.ready(text), cut)
    if spoken is None:
        return None
    head = marks.head(spoken)
    asked = head is not spoken  # the next question says that this one was answered
    decision = marks.decide(head, lambda span: reader.after_mark(span, target), form)
    if decision is None and asked:
        value = reader.unmarked(head, target)
        if value is not None:
            return value
        decision = marks.decide(spoken, lambda span: reader.after_mark(span, target), form)
    if decision is not None:
        if decision.value is not None or not decision.rest.strip() or (cut and not asked):
            return decision.value
        return reader.unmarked(decision.rest, target)
    return None if cut else reader.unmarked(marks.before_next_question(spoken), target)
