"""Checks: what must hold of every question of a set before anybody is asked anything.

    >>> raw = RawQuestion("m/1", "Which?", "Stop. Go.", "text", "mine.jsonl line 1")
    >>> check_questions([raw], "m")
    Traceback (most recent call last):
    potstill.errors.UserError: m: 1 of 1 gold answers are not graded right where a text says "The answer is ..."
      found: mine.jsonl line 1: 'Stop. Go.' (text) is wrong, read as 'stop'
      hint: correct these answers, or say in the recipe how they are graded (sets.NAME.task)

A student is taught to end with "The answer is <gold>", and a teacher is asked for that: where the sentence with the
gold answer itself is not right, no chain ever is. A `regex` gold is a pattern and no answer, so that only its syntax is
checked. A function of one's own is called for the first questions and must not fail; it need not call the sentence
right, since its gold may be anything (a test to run, for example).
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

MAX_CHARACTERS: Final = (
    100_000  # characters, some 25,000 tokens: attention over more fits no memory that a student is given
)
MAX_FUNCTION_CALLS: Final = 3  # questions for which a function is called
MAX_SHOWN: Final = 3
# Letters of several options. As text their articles, of which "A" is one, would not count.
_LETTERS: Final = re.compile(
    r"\(?[A-Z]\)?(?:(?:\s?[,;/&]\s?(?:(?:and|or)\s)?|\s(?:and|or)\s|(?<=\))\s?(?=\())\(?[A-Z]\)?){1,25}"
)


def check_questions(raws: Sequence[RawQuestion], name: str) -> None:
    """Raises UserError, naming the records, where an id stands twice, a text is not Unicode, a gold answer has not its
    form, or is not right where a text says it."""
    seen: dict[str, str] = {}
    called = 0
    failed: list[tuple[RawQuestion, Verdict]] = []
    for raw in raws:
        if raw.id in seen:
            raise UserError(f"the id {raw.id!r} stands twice", where=raw.where, found=f"first in {seen[raw.id]}")
        seen[raw.id] = raw.where
        for part, said in (("id", raw.id), ("question", raw.text), ("answer", raw.gold), ("rationale", raw.rationale)):
            check_text(said or "", part, raw.where)
        try:
            form = grading.infer_answer_type(raw.gold, raw.task)
            grading.canonicalize_gold(raw.gold, form)
            called += form == grading.FUNCTION_TYPE
            if form == "regex" or (form == grading.FUNCTION_TYPE and called > MAX_FUNCTION_CALLS):
                continue
            if form == "text" and _LETTERS.fullmatch(raw.gold.strip()):
                hint = "give one letter, or say task: list in the recipe, which compares all of them in their order"
                raise UserError("several choices cannot be graded as text", found=repr(raw.gold), hint=hint)
            verdict = grading.grade(prompts.format_answer(raw.gold), raw.gold, raw.task)
        except UserError as error:
            raise UserError(error.what, code=error.code, where=raw.where, found=error.found, hint=error.hint) from None
        if verdict.grade != "right" and form != grading.FUNCTION_TYPE:
            failed.append((raw, verdict))
    if failed:
        raise _ungradable_error(failed, len(raws), name)


def check_text(found: str, name: str, where: str) -> str:
    """The text, if it is Unicode and not too long to be learnt or answered. Raises UserError."""
    if len(found) > MAX_CHARACTERS:
        shown = f"{len(found)} characters, at most {MAX_CHARACTERS} are read"
        raise UserError(f"the {name} is too long", where=where, found=shown, hint="shorten it, or leave it out")
    return check_unicode(found, name, where)


def _ungradable_error(failed: Sequence[tuple[RawQuestion, Verdict]], count: int, name: str) -> UserError:
    shown = [
        f"{raw.where}: {shorten(raw.gold)!r} ({raw.task}) is {verdict.grade}"
        + (f", read as {shorten(verdict.found)!r}" if verdict.found is not None else "")
        for raw, verdict in failed[:MAX_SHOWN]
    ]
    hint = "correct these answers, or say in the recipe how they are graded (sets.NAME.task)"
    if any("\n" in raw.gold or len(raw.gold) > 120 for raw, _ in failed[:MAX_SHOWN]):
        hint = (
            "if these are whole solutions, say what the answer stands behind: "
            'sets.NAME.fields: {answer: {column: answer, after: "####"}}'
        )
    what = f'{len(failed)} of {count} gold answers are not graded right where a text says "The answer is ..."'
    return UserError(what, where=name, found="\n         ".join(shown), hint=hint)


def find_contradictions(questions: Sequence[Question]) -> list[tuple[Question, Question]]:
    """Questions of one set that are equal in canonical form and have different answers: each with the first of them.

    >>> mine = [Question(f"m/{gold}", "How many?", gold, "m", "train", "number") for gold in ("5", "5.0", "6")]
    >>> [(first.id, other.id) for first, other in find_contradictions(mine)]
    [('m/5', 'm/6')]
    """
    first: dict[tuple[str, str], Question] = {}
    found = []
    for question in questions:
        other = first.setdefault((question.set, splits.canonical_question(question.text)), question)
        if other is not question and _canonical_gold(other) != _canonical_gold(question):
            found.append((other, question))
    return found


def _canonical_gold(question: Question) -> str:
    return grading.canonicalize_gold(question.gold, grading.infer_answer_type(question.gold, question.task))
