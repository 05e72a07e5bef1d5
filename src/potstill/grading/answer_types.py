"""Readers: one for each form of answer. Each reads what follows a mark, or a text without marks, and compares.

    >>> number = ANSWER_TYPES["number"]
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

from potstill.grading import choices, expressions, numbers, paper_rules, phrases, quantities, structured
from potstill.grading.normalize import to_exact_text, to_plain_text


@dataclass(frozen=True, slots=True)
class AnswerType:
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
    ready: Callable[[str], str] = to_plain_text
    marked: bool = True


ANSWER_TYPES: Final = {
    "number": AnswerType(
        quantities.parse_gold_number,
        quantities.extract_marked_number,
        quantities.extract_unmarked_number,
        numbers.is_same_number,
        numbers.format_number,
    ),
    "several": AnswerType(
        quantities.parse_gold_several,
        quantities.extract_marked_several,
        quantities.extract_unmarked_several,
        quantities.is_same_several,
        quantities.format_several,
    ),
    "time": AnswerType(
        quantities.parse_gold_time,
        quantities.extract_marked_time,
        quantities.extract_unmarked_time,
        quantities.is_same_time,
        quantities.format_time,
    ),
    "ratio": AnswerType(
        quantities.parse_gold_ratio,
        quantities.extract_marked_ratio,
        quantities.extract_unmarked_ratio,
        operator.eq,
        quantities.format_ratio,
    ),
    "choice": AnswerType(
        choices.parse_gold_choice,
        choices.extract_marked_choice,
        choices.extract_unmarked_choice,
        operator.eq,
        choices.format_choice,
    ),
    "boolean": AnswerType(
        choices.parse_gold_boolean, choices.extract_marked_boolean, choices.extract_unmarked_boolean, operator.eq, str
    ),
    "brackets": AnswerType(
        phrases.parse_gold_brackets,
        phrases.extract_marked_brackets,
        phrases.extract_unmarked_brackets,
        operator.eq,
        " ".join,
    ),
    "list": AnswerType(
        phrases.parse_gold_list,
        phrases.extract_marked_list,
        phrases.extract_unmarked_list,
        operator.eq,
        phrases.format_words,
    ),
    "text": AnswerType(
        phrases.parse_gold_text,
        phrases.extract_marked_text,
        phrases.extract_unmarked_text,
        phrases.is_same_text,
        phrases.format_words,
    ),
    "exact": AnswerType(
        phrases.parse_gold_exact,
        phrases.extract_exact,
        phrases.extract_exact,
        operator.eq,
        phrases.format_exact,
        ready=to_exact_text,
    ),
    "regex": AnswerType(
        structured.parse_gold_regex,
        structured.extract_marked_regex,
        structured.extract_unmarked_regex,
        structured.is_same_regex,
        structured.format_regex,
        ready=to_exact_text,
    ),
    "json": AnswerType(
        structured.parse_gold_json,
        structured.extract_marked_json,
        structured.extract_unmarked_json,
        structured.is_same_json,
        structured.format_json,
        ready=structured.escape_json_strings,
    ),
    "math": AnswerType(
        expressions.parse_gold_expression,
        expressions.extract_marked_expression,
        expressions.extract_unmarked_expression,
        expressions.is_same_expression,
        expressions.format_expression,
        ready=to_exact_text,
    ),
    "paper": AnswerType(
        paper_rules.parse_gold_number,
        paper_rules.extract_last_number,
        paper_rules.extract_last_number,
        paper_rules.is_same_number,
        paper_rules.format_number,
        str,
        marked=False,
    ),
    "paper-bbh": AnswerType(
        paper_rules.parse_gold_text,
        paper_rules.find_in_answer,
        paper_rules.find_in_answer,
        operator.eq,
        str,
        ready=str,
        marked=False,
    ),
    "paper-bbh-answer": AnswerType(
        paper_rules.parse_gold_text,
        paper_rules.find_in_text,
        paper_rules.find_in_text,
        operator.eq,
        str,
        ready=str,
        marked=False,
    ),
}
