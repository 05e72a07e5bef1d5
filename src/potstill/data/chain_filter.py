"""Sifting: which of a question's chains are dropped, and why, whatever their answers are worth.

    >>> sieve = ChainFilter(FilterRules(cap=1))
    >>> [sieve.dropped(text, True) for text in ("1 + 1 = 2", "1 + 1 = 2", "Two.")]
    [None, 'duplicate', 'cap']

The first rule that holds gives the reason: contaminated, length, language, wrong sum, duplicate, near duplicate, cap.
"""

from __future__ import annotations

import unicodedata
from dataclasses import dataclass
from typing import Final

from potstill.calculator import equations
from potstill.data import splits

VERSION: Final = 1
NGRAM_WORDS: Final = 5  # in a row, by which near duplicates are told
MAX_FOREIGN_SHARE: Final = 0.1  # most of a text's letters that may be of another script


@dataclass(frozen=True, slots=True)
class FilterRules:
    """duplicates  whether a text that the question has already is dropped
    near        share of its runs of words that a kept chain of the question may have, None for any
    cap         right chains kept
    shortest, longest  characters
    script      as Unicode names it, in small letters; None for any
    sums        whether a text that says a wrong sum is dropped
    """

    duplicates: bool = True
    near: float | None = None
    cap: int | None = None
    shortest: int = 0
    longest: int | None = None
    script: str | None = None
    sums: bool = False


class ChainFilter:
    """The chains of one question, one after the other."""

    def __init__(self, rules: FilterRules, *, contaminated: bool = False) -> None:
        self.rules, self.contaminated, self.kept = rules, contaminated, 0
        self._texts: set[str] = set()
        self._grams: list[frozenset[tuple[str, ...]]] = []

    def dropped(self, text: str, right: bool) -> str | None:
        """Why this chain is dropped; None where it is not, and then, if it is right, it is kept."""
        reason = self._reason(text, right)
        self._texts.add(text)
        if reason is None and right:
            self.kept += 1
            if self.rules.near is not None:
                self._grams.append(splits.word_ngrams(text, NGRAM_WORDS))
        return reason

    def _reason(self, text: str, right: bool) -> str | None:
        rules = self.rules
        if self.contaminated:
            return "contaminated"
        if len(text) < rules.shortest or (rules.longest is not None and len(text) > rules.longest):
            return "length"
        if rules.script is not None and foreign_letter_share(text, rules.script) > MAX_FOREIGN_SHARE:
            return "language"
        if right and rules.sums and equations.find_wrong_equations(text):
            return "wrong sum"
        if rules.duplicates and text in self._texts:
            return "duplicate"
        if right and rules.near is not None and self._is_near(text, rules.near):
            return "near duplicate"
        return "cap" if right and rules.cap is not None and self.kept >= rules.cap else None

    def _is_near(self, text: str, share: float) -> bool:
        own = splits.word_ngrams(text, NGRAM_WORDS)
        return any(len(own & other) >= share * len(own) for other in self._grams)


def foreign_letter_share(text: str, script: str) -> float:
    """Share of the letters that are of another script than this one; 0 for a text without letters.

    >>> foreign_letter_share("2 + 2 = vier", "latin"), foreign_letter_share("да ok", "cyrillic")
    (0.0, 0.5)
    """
    letters = [each for each in text if each.isalpha()]
    other = sum(not unicodedata.name(each, "").startswith(script.upper()) for each in letters)
    return other / len(letters) if letters else 0.0
