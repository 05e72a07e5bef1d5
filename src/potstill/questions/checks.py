"""Checks: what must hold of every question of a set before anybody is asked anything.

    >>> raw = Raw("m/1", "Which?", "Stop. Go.", "text", "mine.jsonl line 1")
    >>> check([raw], "m")
    Traceback (most recent call last):
    potstill.errors.UserError: m: 1 of 1 gold answers are not graded right where a text says "The answer is ..."
      found: mine.jsonl line 1: 'Stop. Go.' (text) is wrong, read as 'stop'
      do: correct these answers, or say in the recipe how they are graded (sets.NAME.task)

A student is taught to end with "The answer is <gold>", and a teacher is asked for that: where the sentence with the
gold answer itself is not right, no chain ever is. A `regex` gold is a pattern and no answer, so that only its syntax is
checked. A function of one's own is called for the first questions and must not fail; it need not call the sentence
right, since its gold may be anything (a test to run, for example).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

from potstill import answers, prompts, splits
from potstill.errors import UserError
from potstill.questions.raw import Raw
from potstill.questions.reading import short, whole
from potstill.records import Question, Verdict

LONGEST: Final = 100_000  # characters, some 25,000 tokens: attention over more fits no memory that a student is given
CALLED: Final = 3  # questions for which a function is called
SHOWN: Final = 3
# Letters of several options. As text their articles, of which "A" is one, would not count.
_LETTERS: Final = re.compile(
    r"\(?[A-Z]\)?(?:(?:\s?[,;/&]\s?(?:(?:and|or)\s)?|\s(?:and|or)\s|(?<=\))\s?(?=\())\(?[A-Z]\)?){1,25}"
)


def check(raws: Sequence[Raw], name: str) -> None:
    """Raises UserError, naming the records, where an id stands twice, a text is not Unicode, a gold answer has not its
    form, or is not right where a text says it."""
    seen: dict[str, str] = {}
    called = 0
    failed: list[tuple[Raw, Verdict]] = []
    for raw in raws:
        if raw.id in seen:
            raise UserError(f"the id {raw.id!r} stands twice", where=raw.where, found=f"first in {seen[raw.id]}")
        seen[raw.id] = raw.where
        for part, said in (("id", raw.id), ("question", raw.text), ("answer", raw.gold), ("rationale", raw.rationale)):
            text(said or "", part, raw.where)
        try:
            form = answers.form(raw.gold, raw.task)
            answers.canonical(raw.gold, form)
            called += form == answers.FUNCTION
            if form == "regex" or (form == answers.FUNCTION and called > CALLED):
                continue
            if form == "text" and _LETTERS.fullmatch(raw.gold.strip()):
                do = "give one letter, or say task: list in the recipe, which compares all of them in their order"
                raise UserError("several choices cannot be graded as text", found=repr(raw.gold), do=do)
            verdict = answers.grade(prompts.bare(raw.gold), raw.gold, raw.task)
        except UserError as error:
            raise UserError(error.what, where=raw.where, found=error.found, do=error.do) from None
        if verdict.grade != "right" and form != answers.FUNCTION:
            failed.append((raw, verdict))
    if failed:
        raise _unanswerable(failed, len(raws), name)


def text(found: str, name: str, where: str) -> str:
    """The text, if it is Unicode and not too long to be learnt or answered. Raises UserError."""
    if len(found) > LONGEST:
        shown = f"{len(found)} characters, at most {LONGEST} are read"
        raise UserError(f"the {name} is too long", where=where, found=shown, do="shorten it, or leave it out")
    return whole(found, name, where)


def _unanswerable(failed: Sequence[tuple[Raw, Verdict]], count: int, name: str) -> UserError:
    shown = [
        f"{raw.where}: {short(raw.gold)!r} ({raw.task}) is {verdict.grade}"
        + (f", read as {short(verdict.found)!r}" if verdict.found is not None else "")
        for raw, verdict in failed[:SHOWN]
    ]
    do = "correct these answers, or say in the recipe how they are graded (sets.NAME.task)"
    if any("\n" in raw.gold or len(raw.gold) > 120 for raw, _ in failed[:SHOWN]):
        do = (
            "if these are whole solutions, say what the answer stands behind: "
            'sets.NAME.fields: {answer: {column: answer, after: "####"}}'
        )
    what = f'{len(failed)} of {count} gold answers are not graded right where a text says "The answer is ..."'
    return UserError(what, where=name, found="\n         ".join(shown), do=do)


def contradictions(questions: Sequence[Question]) -> list[tuple[Question, Question]]:
    """Questions of one set that are equal in canonical form and have different answers: each with the first of them.

    >>> mine = [Question(f"m/{gold}", "How many?", gold, "m", "train", "number") for gold in ("5", "5.0", "6")]
    >>> [(first.id, other.id) for first, other in contradictions(mine)]
    [('m/5', 'm/6')]
    """
    first: dict[tuple[str, str], Question] = {}
    found = []
    for question in questions:
        other = first.setdefault((question.set, splits.canonical(question.text)), question)
        if other is not question and _gold(other) != _gold(question):
            found.append((other, question))
    return found


def _gold(question: Question) -> str:
    return answers.canonical(question.gold, answers.form(question.gold, question.task))
