"""The table of answer types: how each parses a gold answer, extracts a model's answer and compares the two.

    >>> number = ANSWER_TYPES["number"]
    >>> gold = number.parse_gold("9 (apples)")
    >>> [number.format(read("5 + 4 = 9 apples.", gold)) for read in (number.extract_marked, number.extract_unmarked)]
    ['9', '9']

A new answer type is one entry of this table. Its functions know nothing of markers, questions or tasks.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from potstill.grading import choices, expressions, numbers, paper_rules, phrases, quantities, structured
from potstill.grading.markers import WORD_MARKERS, MarkerRules
from potstill.grading.normalize import to_exact_text, to_plain_text


@dataclass(frozen=True, slots=True)
class AnswerType:
    """parse_gold        text -> the gold value; None if the text is not of this type
    extract_marked    the text after a marker, gold value -> the model's value; None if there is none
    extract_unmarked  a text without a marker, gold value -> the same
    is_same           gold value, model's value -> whether they agree
    format            value -> its canonical text
    normalize         text -> the text that the functions above read, for model texts and gold answers
    markers           which markers announce an answer; None: the functions read every text whole, without markers
    unwrap_gold       whether markers around a gold answer are removed ("#### 5" -> "5")
    inferable         whether a gold answer without a task may be of this type. The first inferable type of the table
                      that parses it is taken: 9:10 is a time before it is a ratio.
    hint              what a gold answer of this type looks like, for the error message
    """

    parse_gold: Callable[[str], Any]
    extract_marked: Callable[[str, Any], Any]
    extract_unmarked: Callable[[str, Any], Any]
    is_same: Callable[[Any, Any], bool]
    format: Callable[[Any], str]
    normalize: Callable[[str], str] = to_plain_text
    markers: MarkerRules | None = WORD_MARKERS
    unwrap_gold: bool = True
    inferable: bool = False
    hint: str = ""


_NUMERIC: Final = MarkerRules(before_solution=True, reversed=True, denial=True, refusal=True)
_CHOICE: Final = MarkerRules(words=("answer", "option", "choice"), reversed=True, denial=True, refusal=True)

ANSWER_TYPES: Final = {
    "choice": AnswerType(
        choices.parse_gold_choice, choices.extract_marked_choice, choices.extract_unmarked_choice,
        operator.eq, choices.format_choice, markers=_CHOICE, inferable=True,
        hint="a choice is a capital letter, such as (B)",
    ),
    "boolean": AnswerType(
        choices.parse_gold_boolean, choices.extract_marked_boolean, choices.extract_unmarked_boolean,
        operator.eq, str, markers=MarkerRules(refusal=True), inferable=True,
    ),
    "time": AnswerType(
        quantities.parse_gold_time, quantities.extract_marked_time, quantities.extract_unmarked_time,
        quantities.is_same_time, quantities.format_time, markers=_NUMERIC, inferable=True,
    ),
    "ratio": AnswerType(
        quantities.parse_gold_ratio, quantities.extract_marked_ratio, quantities.extract_unmarked_ratio,
        operator.eq, quantities.format_ratio, markers=_NUMERIC, inferable=True,
    ),
    "number": AnswerType(
        quantities.parse_gold_number, quantities.extract_marked_number, quantities.extract_unmarked_number,
        numbers.is_same_number, numbers.format_number, markers=_NUMERIC, inferable=True,
    ),
    "several": AnswerType(
        quantities.parse_gold_several, quantities.extract_marked_several, quantities.extract_unmarked_several,
        quantities.is_same_several, quantities.format_several, markers=_NUMERIC, inferable=True,
    ),
    "brackets": AnswerType(
        phrases.parse_gold_brackets, phrases.extract_marked_brackets, phrases.extract_unmarked_brackets,
        operator.eq, " ".join, inferable=True,
    ),
    "text": AnswerType(
        phrases.parse_gold_text, phrases.extract_marked_text, phrases.extract_unmarked_text,
        phrases.is_same_text, phrases.format_words, inferable=True,
    ),
    "list": AnswerType(
        phrases.parse_gold_list, phrases.extract_marked_list, phrases.extract_unmarked_list,
        operator.eq, phrases.format_words,
    ),
    "exact": AnswerType(
        phrases.parse_gold_exact, phrases.extract_exact, phrases.extract_exact,
        operator.eq, phrases.format_exact, normalize=to_exact_text, unwrap_gold=False,
    ),
    "regex": AnswerType(
        structured.parse_gold_regex, structured.extract_marked_regex, structured.extract_unmarked_regex,
        structured.is_same_regex, structured.format_regex, normalize=to_exact_text, unwrap_gold=False,
    ),
    "json": AnswerType(
        structured.parse_gold_json, structured.extract_marked_json, structured.extract_unmarked_json,
        structured.is_same_json, structured.format_json, normalize=structured.escape_json_strings,
        markers=MarkerRules(before_json=True), unwrap_gold=False,
    ),
    "math": AnswerType(
        expressions.parse_gold_expression, expressions.extract_marked_expression,
        expressions.extract_unmarked_expression, expressions.is_same_expression, expressions.format_expression,
        normalize=to_exact_text, markers=MarkerRules(denial=True, refusal=True),
    ),
    "paper": AnswerType(
        paper_rules.parse_gold_number, paper_rules.extract_last_number, paper_rules.extract_last_number,
        paper_rules.is_same_number, paper_rules.format_number, normalize=str, markers=None, unwrap_gold=False,
    ),
    "paper-bbh": AnswerType(
        paper_rules.parse_gold_text, paper_rules.find_in_answer, paper_rules.find_in_answer,
        operator.eq, str, normalize=str, markers=None, unwrap_gold=False,
    ),
    "paper-bbh-answer": AnswerType(
        paper_rules.parse_gold_text, paper_rules.find_in_text, paper_rules.find_in_text,
        operator.eq, str, normalize=str, markers=None, unwrap_gold=False,
    ),
}  # fmt: skip
