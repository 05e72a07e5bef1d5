"""The table of answer types. An answer type parses a gold answer, extracts a model's answer and compares the answers.

    >>> number = ANSWER_TYPES["number"]
    >>> gold = number.parse_gold("9 (apples)")
    >>> [number.format(read("5 + 4 = 9 apples.", gold)) for read in (number.extract_marked, number.extract_unmarked)]
    ['9', '9']
    >>> ANSWER_TYPES["paper"].extract_unmarked("It is 7,200", None)
    (200.0, '200')

To add an answer type, add one entry to this table. Its functions know nothing about markers, questions or tasks.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from potstill.grading import expressions, numbers, quantities, structured, words
from potstill.grading.markers import WORD_MARKERS, MarkerRules
from potstill.grading.normalize import to_exact_text, to_plain_text


@dataclass(frozen=True, slots=True)
class AnswerType:
    """parse_gold        text -> the gold value; None if the text is not of this type
    extract_marked    the text after a marker, gold value -> the model's value; None if the text has no answer
    extract_unmarked  a text without a marker, gold value -> the model's value; None if the text has no answer
    is_same           gold value, model's value -> whether they agree
    format            value -> its canonical text
    normalize         model text or gold answer -> the text that the functions above read
    markers           which markers announce an answer; None: markers are ignored and the whole text is read
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


# The rules of Fu et al. 2023, faults included, so that the tables of the paper can be recomputed. Source: the repository
# FranxYao/FlanT5-CoT-Specialization, `notebooks/utils.py` (`test_answer`) and `test_bbh.py` (`parse_ans_general`).
# Numbers have no commas and no signs. If the gold answer has no number, every text with a number is right. On BBH the
# gold answer may be anywhere in the text, even inside a word ("valid" in "invalid"). These rules handle no other
# markers, no reasoning blocks and no truncation.

_PAPER_NUMBER: Final = re.compile(r"\d*\.?\d+")
PaperNumber = tuple[float | None, str]  # the value (None if a gold answer has no number) and the number as written


def _parse_paper_number(gold: str) -> PaperNumber | None:
    """The last number of a gold answer; the whole gold answer if it has none."""
    return _extract_paper_number(gold) or ((None, " ".join(gold.split())) if gold.strip() else None)


def _extract_paper_number(text: str, gold: PaperNumber | None = None) -> PaperNumber | None:
    found = _PAPER_NUMBER.findall(text)
    return (float(found[-1]), found[-1]) if found else None


def _is_same_paper_number(gold: PaperNumber, number: PaperNumber) -> bool:
    return gold[0] is None or gold[0] == number[0]


def _find_in_answer(text: str, gold: str) -> str | None:
    """The gold answer if it is between the first "the answer is" and the next; otherwise the text between them."""
    parts = text.split("the answer is", 2)
    return None if len(parts) < 2 else _find_in_text(parts[1], gold)


def _find_in_text(text: str, gold: str) -> str | None:
    """The gold answer if the text contains it; otherwise the text, or None if it is empty."""
    return gold if gold in text else (text.strip()[:200] or None)


def _shorten(text: str) -> str:
    return text[:200]


_NUMERIC: Final = MarkerRules(before_solution=True, reversed=True, denial=True, refusal=True)
_CHOICE: Final = MarkerRules(words=("answer", "option", "choice"), reversed=True, denial=True, refusal=True)

ANSWER_TYPES: Final = {
    "choice": AnswerType(
        words.parse_gold_choice, words.extract_marked_choice, words.extract_unmarked_choice,
        operator.eq, words.format_choice, markers=_CHOICE, inferable=True,
        hint="a choice is a capital letter, such as (B)",
    ),
    "boolean": AnswerType(
        words.parse_gold_boolean, words.extract_marked_boolean, words.extract_unmarked_boolean,
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
        words.parse_gold_brackets, words.extract_marked_brackets, words.extract_unmarked_brackets,
        operator.eq, " ".join, inferable=True,
    ),
    "text": AnswerType(
        words.parse_gold_text, words.extract_marked_text, words.extract_unmarked_text,
        words.is_same_text, words.format_words, inferable=True,
    ),
    "label": AnswerType(
        words.parse_gold_label, words.extract_marked_label, words.extract_unmarked_label,
        operator.eq, _shorten, unwrap_gold=False,
    ),
    "list": AnswerType(
        words.parse_gold_list, words.extract_marked_list, words.extract_unmarked_list,
        operator.eq, words.format_words,
    ),
    "exact": AnswerType(
        words.parse_gold_exact, words.extract_exact, words.extract_exact,
        operator.eq, _shorten, normalize=to_exact_text, unwrap_gold=False,
    ),
    "regex": AnswerType(
        structured.parse_gold_regex, structured.extract_marked_regex, structured.extract_unmarked_regex,
        lambda gold, text: gold.fullmatch(text) is not None, structured.format_regex,
        normalize=to_exact_text, unwrap_gold=False,
    ),
    "json": AnswerType(
        structured.parse_gold_json, structured.extract_marked_json, structured.extract_unmarked_json,
        structured.is_same_json, structured.format_json, normalize=structured.escape_json_strings,
        markers=MarkerRules(before_json=True), unwrap_gold=False,
    ),
    "math": AnswerType(
        expressions.parse_gold_expression, expressions.extract_marked_expression,
        expressions.extract_unmarked_expression, expressions.is_same_expression, _shorten,
        normalize=to_exact_text, markers=MarkerRules(denial=True, refusal=True),
    ),
    "paper": AnswerType(
        _parse_paper_number, _extract_paper_number, _extract_paper_number,
        _is_same_paper_number, lambda number: number[1][:200], normalize=str, markers=None, unwrap_gold=False,
    ),
    "paper-bbh": AnswerType(
        lambda gold: gold or None, _find_in_answer, _find_in_answer,
        operator.eq, str, normalize=str, markers=None, unwrap_gold=False,
    ),
    "paper-bbh-answer": AnswerType(
        lambda gold: gold or None, _find_in_text, _find_in_text,
        operator.eq, str, normalize=str, markers=None, unwrap_gold=False,
    ),
}  # fmt: skip
