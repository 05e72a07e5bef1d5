"""Chain filter: which chains of a question are dropped, and why. Whether answers are right is decided elsewhere.

    >>> chain_filter = ChainFilter(FilterRules(max_per_question=1))
    >>> [chain_filter.drop_reason(text, True) for text in ("1 + 1 = 2", "1 + 1 = 2", "Two.")]
    [None, 'duplicate', 'cap']

The reason is the first rule that applies: contaminated, length, language, wrong sum, duplicate, near duplicate, cap.
"""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from potstill.calculator import equations
from potstill.data.contamination import word_ngrams

VERSION: Final = 1
NGRAM_WORDS: Final = 5  # n-gram length for near duplicates
MAX_FOREIGN_SHARE: Final = 0.1  # maximum share of a text's letters in another script


@dataclass(frozen=True, slots=True)
class FilterRules:
    """duplicates                drop a text that an earlier chain of the question has
    near_duplicate_threshold  drop a text that shares at least this fraction of its 5-grams with a kept chain
    max_per_question          maximum number of right chains kept per question, and per source if the run has several
    min_chars, max_chars      length of a text in characters
    min_tokens, max_tokens    length of a text in tokens of the student
    script                    lower-case Unicode name of the script, such as "latin"
    drop_wrong_equations      drop a text that contains a wrong equation
    """

    duplicates: bool = True
    near_duplicate_threshold: float | None = None
    max_per_question: int | None = None
    min_chars: int = 0
    max_chars: int | None = None
    min_tokens: int = 0
    max_tokens: int | None = None
    script: str | None = None
    drop_wrong_equations: bool = False

    @property
    def counts_tokens(self) -> bool:
        return self.min_tokens > 0 or self.max_tokens is not None


class ChainFilter:
    """Filters the chains of one question in order.

    contaminated  drop all of them
    count_tokens  number of the student's tokens of a text; needed if the rules limit it
    """

    def __init__(
        self, rules: FilterRules, *, contaminated: bool = False, count_tokens: Callable[[str], int] | None = None
    ) -> None:
        assert count_tokens or not rules.counts_tokens, "the rules limit the number of tokens"
        self.rules, self.contaminated, self.count_tokens, self.kept = rules, contaminated, count_tokens, 0
        self._kept_of_source = Counter[str]()
        self._texts: set[str] = set()
        self._ngrams: list[frozenset[tuple[str, ...]]] = []

    def drop_reason(self, text: str, right: bool, source: str = "") -> str | None:
        """The reason to drop the next chain, or None. A right chain that is not dropped counts as kept.

        right   whether the answer of the chain is right
        source  its source, if each source may have `max_per_question` chains
        """
        reason = self._first_reason(text, right, source)
        self._texts.add(text)
        if reason is None and right:
            self.kept += 1
            self._kept_of_source[source] += 1
            if self.rules.near_duplicate_threshold is not None:
                self._ngrams.append(word_ngrams(text, NGRAM_WORDS))
        return reason

    def _first_reason(self, text: str, right: bool, source: str) -> str | None:
        rules = self.rules
        if self.contaminated:
            return "contaminated"
        if len(text) < rules.min_chars or (rules.max_chars is not None and len(text) > rules.max_chars):
            return "length"
        if self.count_tokens is not None and rules.counts_tokens:
            tokens = self.count_tokens(text)
            if tokens < rules.min_tokens or (rules.max_tokens is not None and tokens > rules.max_tokens):
                return "length"
        if rules.script is not None and foreign_letter_share(text, rules.script) > MAX_FOREIGN_SHARE:
            return "language"
        if right and rules.drop_wrong_equations and equations.find_wrong_equations(text):
            return "wrong sum"
        if rules.duplicates and text in self._texts:
            return "duplicate"
        if right and rules.near_duplicate_threshold is not None and self._is_near(text, rules.near_duplicate_threshold):
            return "near duplicate"
        full = rules.max_per_question is not None and self._kept_of_source[source] >= rules.max_per_question
        return "cap" if right and full else None

    def _is_near(self, text: str, threshold: float) -> bool:
        ngrams = word_ngrams(text, NGRAM_WORDS)
        return any(len(ngrams & kept) >= threshold * len(ngrams) for kept in self._ngrams)


def foreign_letter_share(text: str, script: str) -> float:
    """Fraction of the letters that are in another script than `script`; 0 for a text without letters."""
    letters = [letter for letter in text if letter.isalpha()]
    foreign = sum(not unicodedata.name(letter, "").startswith(script.upper()) for letter in letters)
    return foreign / len(letters) if letters else 0.0
