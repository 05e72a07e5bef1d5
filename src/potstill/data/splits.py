"""Splits: whether a question is for training, validation or test, as a function of its words.

    >>> canonical_question("Tom has  1,000 apples.  He eats $ 3.50!")
    'tom has 1000 apples he eats$3.50'
    >>> [split_of(text, validation=0.3, test=0.3) for text in ("How far?", "How old?", "How long?")]
    ['validation', 'test', 'train']
    >>> split_questions(["How long?", "how far", "How far?", "How old?"], validation=2, test=1)
    ['train', 'validation', 'validation', 'test']

Two questions with the same canonical form have the same digest. With fractions, they are in the same split, even in
different sets, because the range of digests is divided at the same values for every set. With a number (the paper's 500),
the dividing values depend on the set, so two sets may put a shared question into different splits;
`find_duplicates_across_splits` finds such questions. The order of questions and files never matters. Pure: reads no file
and no clock.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Iterable, Sequence
from typing import Final

from potstill.errors import UserError
from potstill.records import Question, Split

VERSION: Final = 1  # version of the canonical form; a new form moves questions between splits

# Only sentence punctuation is dropped, because some questions consist of brackets and operators.
_PUNCTUATION = re.compile(r"(?<![0-9])[.,]|[.,](?![0-9])|[;:!?\"'`\u2018\u2019\u201c\u201d\u2026]")
_THOUSANDS = re.compile(r"(?<=[0-9]),(?=[0-9]{3}(?![0-9]))")
_AROUND_SYMBOLS = re.compile(r" ?([^\w ]) ?")


def canonical_question(text: str) -> str:
    """The canonical form of a question: NFKC, case-folded, without sentence punctuation, with collapsed white space.

    Numbers, brackets and operators do not change: "3.5" differs from "35", and "[ [" from "( (".
    """
    text = unicodedata.normalize("NFKC", text).casefold()
    text = _PUNCTUATION.sub(" ", _THOUSANDS.sub("", text))
    return _AROUND_SYMBOLS.sub(r"\1", " ".join(text.split()))


def question_digest(text: str) -> str:
    """SHA-256 of the canonical form of a question, 64 hexadecimal digits."""
    return hashlib.sha256(canonical_question(text).encode("utf-8", "surrogatepass")).hexdigest()


def unit_hash(text: str) -> float:
    """The digest of a question as a number in [0, 1), uniform over different questions."""
    return int(question_digest(text)[:13], 16) / 16**13


def split_of(text: str, validation: float, test: float) -> Split:
    """The split of a question: validation if its hash is below `validation`, test if below the sum, otherwise train.

    Raises UserError unless both fractions and their sum are between 0 and 1.
    """
    _check_shares(validation, test)
    return _split_of_fraction(unit_hash(text), validation, test)


def split_questions(texts: Sequence[str], validation: int | float, test: int | float | None) -> list[Split]:
    """The split of each text of a set, in the order of the texts.

    validation, test  two fractions (float) or two numbers (int). The texts with the lowest digests are validation, the
                      next texts test. test None: the rest is test, and the set has no training split
    A split may have a few texts fewer than its number, because texts with the same canonical form stay together.
    Raises UserError for a negative or too large size, or for a fraction together with a number.
    """
    if test is not None and isinstance(validation, int) != isinstance(test, int):
        what, hint = "one split size is a number, the other is a fraction", "give two numbers or two fractions"
        found = f"validation {validation!r}, test {test!r}"
        raise UserError(what, code="E-data-split-size", found=found, hint=hint)
    if isinstance(validation, int):
        assert test is None or isinstance(test, int)
        return _split_by_count(texts, validation, test)
    _check_shares(validation, 1.0 - validation if test is None else test)
    # Without a training split, every text that is not validation is test, despite the rounding of 1 - validation.
    return [_split_of_fraction(unit_hash(text), validation, 1.0 if test is None else test) for text in texts]


def sample_by_hash(questions: Iterable[Question], n: int) -> list[Question]:
    """The n questions with the lowest digests (all questions if there are fewer), in the order of the input.

    A larger n only adds questions. Questions with the same canonical form are ordered by id.
    """
    questions = list(questions)
    ranked = sorted(range(len(questions)), key=lambda i: (question_digest(questions[i].text), questions[i].id))
    return [questions[i] for i in sorted(ranked[: max(n, 0)])]


def _split_of_fraction(fraction: float, validation: float, test: float) -> Split:
    return "validation" if fraction < validation else "test" if fraction < validation + test else "train"


def _split_by_count(texts: Sequence[str], validation: int, test: int | None) -> list[Split]:
    wanted = validation + (test or 0)
    if min(validation, test or 0) < 0 or wanted > len(texts):
        what = f"the splits need {wanted} questions, but there are {len(texts)}"
        raise UserError(what, code="E-data-split-size", hint="reduce the split sizes")
    groups: dict[str, list[int]] = {}
    for i, text in enumerate(texts):
        groups.setdefault(question_digest(text), []).append(i)
    parts: list[Split] = ["test" if test is None else "train"] * len(texts)
    left = {"validation": validation, "test": test or 0}
    for _, group in sorted(groups.items()):
        for part in ("validation", "test"):
            if len(group) <= left[part]:  # a group that is too large is skipped, because the next group may fit
                left[part] -= len(group)
                for i in group:
                    parts[i] = part
                break
    return parts


def _check_shares(validation: float, test: float) -> None:
    if not (0 <= validation <= 1 and 0 <= test <= 1 and validation + test <= 1 + 1e-9):
        what = "the fractions of a split and their sum must be between 0 and 1"
        raise UserError(what, code="E-data-split-size", found=f"validation {validation}, test {test}")
