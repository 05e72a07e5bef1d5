"""Checks of every question of a set before any model is asked.

    >>> raw = RawQuestion("m/1", "Which?", "Stop. Go.", "text", "mine.jsonl line 1")
    >>> check_questions([raw], "m")
    Traceback (most recent call last):
    potstill.errors.UserError: m: 1 of 1 gold answers are not right in the sentence "The answer is ..."
      found: mine.jsonl line 1: 'Stop. Go.' (text) is wrong, read as 'stop'
      hint: correct these answers, or set sets.NAME.task in the recipe to how they are graded
      code: E-data-ungradable-gold

The student learns to end with "The answer is <gold>", and the teacher is prompted for that, so a gold answer that is
not right in this sentence can never have a right chain. A `regex` gold is a pattern: only its syntax is checked. A
grading function is called for the first questions and must not fail; it may grade the sentence as wrong, because its
gold may be anything (a test to run, for example).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

from potstill import grading, prompts
from potstill.data import splits
from potstill.data.set_files import RawQuestion, check_unicode
from potstill.errors import UserError
from potstill.records import Question, Verdict
from potstill.storage.dataset_files import shorten

MAX_CHARACTERS: Final = 100_000  # about 25,000 tokens; attention over more does not fit into memory
MAX_FUNCTION_CALLS: Final = 3  # questions for which a grading function is called
MAX_SHOWN: Final = 3
# Letters of several options. As text, the article "A" among them would not count.
_LETTERS: Final = re.compile(
    r"\(?[A-Z]\)?(?:(?:\s?[,;/&]\s?(?:(?:and|or)\s)?|\s(?:and|or)\s|(?<=\))\s?(?=\())\(?[A-Z]\)?){1,25}"
)


def check_questions(raws: Sequence[RawQuestion], name: str) -> None:
    """Raises UserError, naming the records, for a repeated id, a text that is not Unicode, or a gold answer that has
    the wrong form or is not right in the answer sentence."""
    places: dict[str, str] = {}
    function_calls = 0
    failed: list[tuple[RawQuestion, Verdict]] = []
    for raw in raws:
        if raw.id in places:
            raise UserError(
                f"the id {raw.id!r} occurs twice",
                code="E-data-repeated-id",
                where=raw.where,
                found=f"first in {places[raw.id]}",
            )
        places[raw.id] = raw.where
        fields = {"id": raw.id, "question": raw.text, "answer": raw.gold, "rationale": raw.rationale}
        for field, text in fields.items():
            check_text(text or "", field, raw.where)
        try:
            answer_type = grading.infer_answer_type(raw.gold, raw.task)
            grading.canonicalize_gold(raw.gold, answer_type)
            function_calls += answer_type == grading.FUNCTION_TYPE
            if answer_type == "regex" or (answer_type == grading.FUNCTION_TYPE and function_calls > MAX_FUNCTION_CALLS):
                continue
            if answer_type == "text" and _LETTERS.fullmatch(raw.gold.strip()):
                raise UserError(
                    "several choices cannot be graded as text",
                    code="E-data-several-choices",
                    found=repr(raw.gold),
                    hint="give one letter, or set task: list in the recipe, which compares all of them in order",
                )
            verdict = grading.grade(prompts.format_answer(raw.gold), raw.gold, raw.task)
        except UserError as error:
            raise UserError(error.what, code=error.code, where=raw.where, found=error.found, hint=error.hint) from None
        if verdict.grade != "right" and answer_type != grading.FUNCTION_TYPE:
            failed.append((raw, verdict))
    if failed:
        raise _ungradable_error(failed, len(raws), name)


def check_text(text: str, name: str, where: str) -> str:
    """The text. Raises UserError if it is not Unicode, or too long to learn or to answer."""
    if len(text) > MAX_CHARACTERS:
        raise UserError(
            f"the {name} is too long",
            code="E-data-too-long",
            where=where,
            found=f"{len(text)} characters; the maximum is {MAX_CHARACTERS}",
            hint="shorten it, or remove the record",
        )
    return check_unicode(text, name, where)


def _ungradable_error(failed: Sequence[tuple[RawQuestion, Verdict]], count: int, name: str) -> UserError:
    shown = [
        f"{raw.where}: {shorten(raw.gold)!r} ({raw.task}) is {verdict.grade}"
        + (f", read as {shorten(verdict.answer)!r}" if verdict.answer is not None else "")
        for raw, verdict in failed[:MAX_SHOWN]
    ]
    hint = "correct these answers, or set sets.NAME.task in the recipe to how they are graded"
    if any("\n" in raw.gold or len(raw.gold) > 120 for raw, _ in failed[:MAX_SHOWN]):
        hint = (
            "if these are whole solutions, name the text that precedes the answer: "
            'sets.NAME.fields: {answer: {column: answer, after: "####"}}'
        )
    return UserError(
        f'{len(failed)} of {count} gold answers are not right in the sentence "The answer is ..."',
        code="E-data-ungradable-gold",
        where=name,
        found="\n         ".join(shown),
        hint=hint,
    )


def find_contradictions(questions: Sequence[Question]) -> list[tuple[Question, Question]]:
    """Questions of one set with the same canonical form and different answers, each with the first of that form.

    >>> mine = [Question(f"m/{gold}", "How many?", gold, "m", "train", "number") for gold in ("5", "5.0", "6")]
    >>> [(first.id, other.id) for first, other in find_contradictions(mine)]
    [('m/5', 'm/6')]
    """
    firsts: dict[tuple[str, str], Question] = {}
    pairs = []
    for question in questions:
        first = firsts.setdefault((question.set, splits.canonical_question(question.text)), question)
        if first is not question and _canonical_gold(first) != _canonical_gold(question):
            pairs.append((first, question))
    return pairs


def _canonical_gold(question: Question) -> str:
    return grading.canonicalize_gold(question.gold, grading.infer_answer_type(question.gold, question.task))
