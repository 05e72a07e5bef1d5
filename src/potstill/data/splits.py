"""Splits: which part of a set a question belongs to, as a function of its own words.

    >>> canonical_question("Tom has  1,000 apples.  He eats $ 3.50!")
    'tom has 1000 apples he eats$3.50'
    >>> canonical_question("TOM has 1000 apples; he eats $3.50")
    'tom has 1000 apples he eats$3.50'
    >>> [split_of(text, validation=0.3, test=0.3) for text in ("How far?", "How old?", "How long?")]
    ['validation', 'test', 'train']
    >>> split_questions(["How long?", "how far", "How far?", "How old?"], validation=2, test=1)
    ['train', 'validation', 'validation', 'test']

Two questions of one canonical form have one digest, so they cannot land on two sides of a split, whatever their set,
their place in the file or the order of the files: disjointness holds by construction. A share cuts the line of all
digests at the same places for every set; a count (the paper's 500) cuts where the set reaches it, so two sets may
then disagree about a question that they share: `questions.leaks` finds those.
Pure: no file, no clock.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from typing import Final

from potstill.data import contamination
from potstill.errors import UserError
from potstill.records import Question, Split

VERSION: Final = 1  # of the canonical form; a new one moves questions between splits
SAME_TEMPLATE: Final = (
    0.9  # of a question's masked runs of words that another one has, which then is the same but for numbers
)

# Only the punctuation of sentences is dropped. Brackets and operators are the whole question in some tasks.
_PUNCTUATION = re.compile(r"(?<![0-9])[.,]|[.,](?![0-9])|[;:!?\"'`\u2018\u2019\u201c\u201d\u2026]")
_THOUSANDS = re.compile(r"(?<=[0-9]),(?=[0-9]{3}(?![0-9]))")
_AROUND_SYMBOLS = re.compile(r" ?([^\w ]) ?")


def canonical_question(text: str) -> str:
    """The canonical form of a question: NFKC, case folded, white space and the punctuation of sentences collapsed.

    Numbers, brackets and operators stay: "3.5" is not "35", and "[ [" is not "( (".
    """
    text = unicodedata.normalize("NFKC", text).casefold()
    text = _PUNCTUATION.sub(" ", _THOUSANDS.sub("", text))
    return _AROUND_SYMBOLS.sub(r"\1", " ".join(text.split()))


def word_ngrams(text: str, n: int = 8) -> frozenset[tuple[str, ...]]:
    """The runs of n words of a text in canonical form; the whole of it where it has fewer.

    >>> sorted(word_ngrams("Two and 2 make four.", 4))
    [('and', '2', 'make', 'four'), ('two', 'and', '2', 'make')]
    """
    words = canonical_question(text).split()
    return frozenset(tuple(words[start : start + n]) for start in range(max(1, len(words) - n + 1)))


def overlap_shares(texts: Mapping[str, str], held: Iterable[str], n: int = 8) -> dict[str, float]:
    """Of each text (id -> text) the largest share of its runs of n words that one of the held-out texts has; texts
    that share none are left out.

    >>> overlap_shares({"a": "one two three four five", "b": "six"}, ["zero one two three four"], 3)
    {'a': 0.6666666666666666}
    """
    index = contamination.OverlapIndex(word_ngrams(text, n) for text in held)
    found = {}
    for name, text in texts.items():
        own = word_ngrams(text, n)
        shared = index.most(own)
        if shared:
            found[name] = max(shared.values()) / len(own)
    return found


def find_same_templates(texts: Mapping[str, str], held: Mapping[str, str], n: int = 8) -> tuple[set[str], set[str]]:
    """Which texts and which held-out texts are each other's but for numbers and names: at least `SAME` of the masked
    runs of n words of the held-out one stand in the other.

    >>> find_same_templates({"a": "Tom has 3 pens.", "b": "Why?"}, {"x": "Ann has twelve pens.", "y": "Who has 3 hens?"})
    ({'a'}, {'x'})
    """
    own = {name: word_ngrams(contamination.mask_numbers_and_names(text), n) for name, text in texts.items()}
    others = {name: word_ngrams(contamination.mask_numbers_and_names(text), n) for name, text in held.items()}
    forward, backward = contamination.OverlapIndex(own.values()), contamination.OverlapIndex(others.values())
    found = {
        name
        for name, run in others.items()
        if max(forward.most(run).values(), default=0) >= SAME_TEMPLATE * max(1, len(run))
    }
    taking = {
        name
        for name, run in own.items()
        if any(count >= SAME_TEMPLATE * size for size, count in backward.most(run).items())
    }
    return taking, found


def contained_shares(texts: Mapping[str, str], held: Iterable[str], n: int = 8) -> dict[str, float]:
    """Of each text (id -> text) the largest share of the runs of n words of one held-out text that stand in it, a
    shorter one being a single run; texts that hold none are left out.

    >>> contained_shares({"a": "Q: how old is Tom? A: 7. Q: how far is it?", "b": "how far"}, ["How far is it?", "Why?"])
    {'a': 1.0}
    """
    own = [word_ngrams(text, n) - {()} for text in held]
    lengths = {len(gram) for pieces in own for gram in pieces}
    index = contamination.OverlapIndex(own)
    found = {}
    for name, text in texts.items():
        words = canonical_question(text).split()
        shared = index.most({tuple(words[at : at + k]) for k in lengths for at in range(len(words) - k + 1)})
        if shared:
            found[name] = max(count / size for size, count in shared.items())
    return found


def question_digest(text: str) -> str:
    """SHA-256 of the canonical form, 64 hexadecimal digits."""
    return hashlib.sha256(canonical_question(text).encode("utf-8", "surrogatepass")).hexdigest()


def unit_hash(text: str) -> float:
    """The digest as a number in [0, 1), evenly spread over different questions."""
    return int(question_digest(text)[:13], 16) / 16**13


def split_of(text: str, validation: float, test: float) -> Split:
    """The part of a question: validation below `validation`, test in the next `test`, train above.

    Raises UserError where the shares are not between 0 and 1 or make more than 1 together.
    """
    _check_shares(validation, test)
    return _split_of_fraction(unit_hash(text), validation, test)


def split_questions(texts: Sequence[str], validation: int | float, test: int | float | None) -> list[Split]:
    """The part of each text of one set, in their order.

    validation, test  both shares (float: of the digests) or both counts (int: those with the lowest digests come into
                      validation, the next ones into test). test None: the set has no training part, the rest is test.
    A count may be missed by a few where texts of one canonical form would be torn apart.
    Raises UserError for a negative or too large number, and for a share beside a count.
    """
    if test is not None and isinstance(validation, int) != isinstance(test, int):
        found = f"validation {validation!r}, test {test!r}"
        raise UserError("one size is a count, the other a share", found=found, hint="give two counts or two shares")
    if isinstance(validation, int):
        assert test is None or isinstance(test, int)
        return _divide_counts(texts, validation, test)
    share = 1.0 - validation if test is None else test
    _check_shares(validation, share)
    if test is None:
        return ["validation" if unit_hash(text) < validation else "test" for text in texts]
    return [_split_of_fraction(unit_hash(text), validation, share) for text in texts]


def sample_by_hash(questions: Iterable[Question], n: int) -> list[Question]:
    """The n questions of lowest digest (all of them if there are fewer), in the order they came in.

    A larger n adds questions and never exchanges any. Questions of one canonical form are taken by their id.
    """
    questions = list(questions)
    ranked = sorted(range(len(questions)), key=lambda i: (question_digest(questions[i].text), questions[i].id))
    return [questions[i] for i in sorted(ranked[: max(n, 0)])]


def _split_of_fraction(fraction: float, validation: float, test: float) -> Split:
    return "validation" if fraction < validation else "test" if fraction < validation + test else "train"


def _divide_counts(texts: Sequence[str], validation: int, test: int | None) -> list[Split]:
    wanted = validation + (test or 0)
    if min(validation, test or 0) < 0 or wanted > len(texts):
        raise UserError(f"a split of {wanted} questions was asked of {len(texts)}", hint="ask for fewer")
    groups: dict[str, list[int]] = {}
    for i, text in enumerate(texts):
        groups.setdefault(question_digest(text), []).append(i)
    parts: list[Split] = ["test" if test is None else "train"] * len(texts)
    room = {"validation": validation, "test": test or 0}
    for _, group in sorted(groups.items()):
        for part in ("validation", "test"):
            if len(group) <= room[part]:  # a group too large for what is left is passed over, the next may fit
                room[part] -= len(group)
                for i in group:
                    parts[i] = part
                break
    return parts


def _check_shares(validation: float, test: float) -> None:
    if not (0 <= validation <= 1 and 0 <= test <= 1 and validation + test <= 1 + 1e-9):
        found = f"validation {validation}, test {test}"
        raise UserError("shares of a split lie between 0 and 1, and so does their sum", found=found)
