"""Readers: one for each form of answer. Each reads what follows a mark, or a text without marks, and compares.

    >>> number = READERS["number"]
    >>> target = number.gold("9 (apples)")
    >>> number.show(number.after_mark(" 9 apples.", target)), number.show(number.unmarked("5 + 4 = 9", target))
    ('9', '9')

A reader knows nothing of marks, questions or tasks.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from potstill.answers import booleans, clock, formal, numerals, paper, picks, quantities, symbolic, words
from potstill.answers.plain import exactly, plain


@dataclass(frozen=True, slots=True)
class Reader:
    """gold        text -> the value of a gold answer, None if it has not this form
    after_mark  text after a mark, gold's value -> the value found, None if there is none
    unmarked    whole text, gold's value -> the same; the gold tells which pair of words, how many numbers
    same        gold's value, found value -> whether they agree
    show        value -> its canonical text
    marked      whether marks are looked for; a rule that knows none gets every text whole, as it is
    ready       text -> the text that is read, of answers and of gold answers
    """

    gold: Callable[[str], Any]
    after_mark: Callable[[str, Any], Any]
    unmarked: Callable[[str, Any], Any]
    same: Callable[[Any, Any], bool]
    show: Callable[[Any], str]
    ready: Callable[[str], str] = plain
    marked: bool = True


READERS: Final = {
    "number": Reader(
        quantities.gold_number, quantities.number_after_mark, quantities.number_unmarked, numerals.same, numerals.show
    ),
    "several": Reader(
        quantities.gold_several,
        quantities.several_after_mark,
        quantities.several_unmarked,
        quantities.same_several,
        quantities.show_several,
    ),
    "time": Reader(clock.gold_time, clock.any_time, clock.last_time, clock.same_time, clock.show_time),
    "ratio": Reader(clock.gold_ratio, clock.any_ratio, clock.last_ratio, operator.eq, clock.show_ratio),
    "choice": Reader(picks.gold_choice, picks.choice_after_mark, picks.choice_unmarked, operator.eq, picks.show_choice),
    "boolean": Reader(booleans.gold_boolean, booleans.boolean_after_mark, booleans.boolean_unmarked, operator.eq, str),
    "brackets": Reader(words.gold_brackets, words.brackets_after_mark, words.brackets_unmarked, operator.eq, " ".join),
    "list": Reader(words.gold_list, words.list_after_mark, words.list_unmarked, operator.eq, words.show_words),
    "text": Reader(words.gold_text, words.text_after_mark, words.text_unmarked, words.same_text, words.show_words),
    "exact": Reader(
        words.gold_exact, words.exact_after_mark, words.exact_after_mark, operator.eq, words.show_exact, ready=exactly
    ),
    "regex": Reader(
        formal.gold_regex,
        formal.regex_after_mark,
        formal.regex_unmarked,
        formal.same_regex,
        formal.show_regex,
        ready=exactly,
    ),
    "json": Reader(
        formal.gold_json,
        formal.json_after_mark,
        formal.json_unmarked,
        formal.same_json,
        formal.show_json,
        ready=formal.sealed_json,
    ),
    "math": Reader(
        symbolic.gold_expression,
        symbolic.expression_after_mark,
        symbolic.expression_unmarked,
        symbolic.same_expression,
        symbolic.show_expression,
        ready=exactly,
    ),
    "paper": Reader(
        paper.gold_number, paper.last_number, paper.last_number, paper.same_number, paper.show_number, str, marked=False
    ),
    "paper-bbh": Reader(
        paper.gold_text, paper.answer_contains, paper.answer_contains, operator.eq, str, ready=str, marked=False
    ),
    "paper-bbh-answer": Reader(
        paper.gold_text, paper.text_contains, paper.text_contains, operator.eq, str, ready=str, marked=False
    ),
}
