"""Contamination: the overlap of a text with many other texts, without comparing every pair.

    >>> index = OverlapIndex([frozenset("abc"), frozenset("abd"), frozenset("xy")])
    >>> sorted(index.max_shared(frozenset("abdx")).items())
    [(2, 1), (3, 3)]
    >>> mask_numbers_and_names("Tom Hill has 12 pens. He buys five more.")
    'name has 0 pens. he buys 0 more.'

Questions from the same template share their fixed words, so a list of overlapping pairs would grow with the square of
their number. `OverlapIndex` avoids this: n-grams that occur in exactly the same texts form one class with a weight, and
a branch-and-bound search visits only texts that can still beat the best text so far. Pure: reads no file and no clock.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Hashable, Iterable, Mapping
from typing import Final

from potstill.data import splits

VERSION: Final = 1  # version of the masking, which determines which questions count as the same
SAME_TEMPLATE: Final = 0.9  # share of a question's masked n-grams that another question of its template contains
MAX_CANDIDATES: Final = 16  # below this number of texts, the texts are compared one by one
MAX_NODES: Final = 400  # after this number of search nodes, all texts are counted instead

_NUMBER = re.compile(
    r"\d+(?:[.,/:]\d+)*|\b(?:one|two|three|four|five|six|seven|eight|nine|ten|eleven|twelve|(?:thir|four|fif|six|seven|eigh"
    r"|nine)teen|(?:twen|thir|for|fif|six|seven|eigh|nine)ty|hundred|thousand|million|dozen|half|third|quarter|once|twice"
    r"|thrice)\b",
    re.IGNORECASE,
)
_NUMBERS = re.compile(r"\b0\b(?:[\s-]+(?:and\s+)?0\b)+")
_NAMES = re.compile(r"\b[^\W\d_a-z][^\W\d_]*(?:['\u2019]s\b)?(?:[\s.]+[^\W\d_a-z][^\W\d_]*(?:['\u2019]s\b)?)*")
_PERSONS = re.compile(r"\b(?:he|she|him|her|his|hers|himself|herself)\b", re.IGNORECASE)


def mask_numbers_and_names(text: str) -> str:
    """A question with 0 for every number, `name` for every name, and `he` for every he or she.

    Questions of the same template become equal. A capitalized word counts as a name, unless the text has no lower-case
    letters.
    """
    text = unicodedata.normalize("NFKC", text)
    text = _NUMBERS.sub("0", _NUMBER.sub("0", text))
    if any(letter.islower() for letter in text):
        text = _NAMES.sub("name", _PERSONS.sub("he", text))
    return text


def word_ngrams(text: str, n: int = 8) -> frozenset[tuple[str, ...]]:
    """The word n-grams of a text in canonical form. A text of fewer than n words is a single n-gram."""
    words = splits.canonical_question(text).split()
    return frozenset(tuple(words[start : start + n]) for start in range(max(1, len(words) - n + 1)))


def overlap_shares(texts: Mapping[str, str], held_out: Iterable[str], n: int = 8) -> dict[str, float]:
    """Text id -> the largest fraction of the text's n-grams that one held-out text contains; only ids above 0."""
    index = OverlapIndex(word_ngrams(text, n) for text in held_out)
    shares = {}
    for name, text in texts.items():
        ngrams = word_ngrams(text, n)
        if shared := index.max_shared(ngrams):
            shares[name] = max(shared.values()) / len(ngrams)
    return shares


def contained_shares(texts: Mapping[str, str], held_out: Iterable[str], n: int = 8) -> dict[str, float]:
    """Text id -> the largest fraction of one held-out text's n-grams that the text contains; only ids above 0."""
    held = [word_ngrams(text, n) - {()} for text in held_out]
    lengths = {
        len(ngram) for ngrams in held for ngram in ngrams
    }  # a short held-out text is a single n-gram of its length
    index = OverlapIndex(held)
    shares = {}
    for name, text in texts.items():
        words = splits.canonical_question(text).split()
        ngrams = {tuple(words[start : start + k]) for k in lengths for start in range(len(words) - k + 1)}
        if shared := index.max_shared(ngrams):
            shares[name] = max(count / size for size, count in shared.items())
    return shares


def find_same_templates(texts: Mapping[str, str], held_out: Mapping[str, str], n: int = 8) -> tuple[set[str], set[str]]:
    """Ids of the texts and of the held-out texts that differ from a text of the other group only in numbers and names.

    Two texts count as such if the text contains at least SAME_TEMPLATE of the held-out text's masked n-grams.
    """
    text_ngrams = {name: word_ngrams(mask_numbers_and_names(text), n) for name, text in texts.items()}
    held_ngrams = {name: word_ngrams(mask_numbers_and_names(text), n) for name, text in held_out.items()}
    of_texts, of_held_out = OverlapIndex(text_ngrams.values()), OverlapIndex(held_ngrams.values())
    same_held_out = {
        name
        for name, ngrams in held_ngrams.items()
        if max(of_texts.max_shared(ngrams).values(), default=0) >= SAME_TEMPLATE * max(1, len(ngrams))
    }
    same_texts = {
        name
        for name, ngrams in text_ngrams.items()
        if any(count >= SAME_TEMPLATE * size for size, count in of_held_out.max_shared(ngrams).items())
    }
    return same_texts, same_held_out


class OverlapIndex:
    """An index of texts (sets of n-grams) to find the largest overlap with another text."""

    def __init__(self, texts: Iterable[frozenset[Hashable]]) -> None:
        distinct = list(dict.fromkeys(texts))
        occurrences: dict[Hashable, list[int]] = {}
        for index, ngrams in enumerate(distinct):
            for ngram in ngrams:
                occurrences.setdefault(ngram, []).append(index)
        # A class stands for the n-grams that occur in exactly the same texts, among texts of the same size.
        self._classes: dict[Hashable, tuple[tuple[int, int], ...]] = {}  # n-gram -> (size of its texts, class)
        class_of: dict[tuple[int, ...], int] = {}  # texts -> class
        classes_of: dict[tuple[int, ...], tuple[tuple[int, int], ...]] = {}
        for ngram, indices in occurrences.items():
            key = tuple(indices)
            if key not in classes_of:
                by_size: dict[int, list[int]] = {}
                for index in indices:
                    by_size.setdefault(len(distinct[index]), []).append(index)
                classes_of[key] = tuple(
                    (size, class_of.setdefault(tuple(members), len(class_of))) for size, members in by_size.items()
                )
            self._classes[ngram] = classes_of[key]
        self._members = [frozenset(members) for members in class_of]  # class -> its texts

    def max_shared(self, ngrams: Iterable[Hashable]) -> dict[int, int]:
        """Size of indexed texts -> the largest number of `ngrams` that a text of this size contains, if it is not 0."""
        weights: dict[int, Counter[int]] = {}
        for ngram in ngrams:
            for size, number in self._classes.get(ngram, ()):
                weights.setdefault(size, Counter())[number] += 1
        return {size: self._max_weight(of_size) for size, of_size in weights.items()}

    def _max_weight(self, weights: Counter[int]) -> int:
        """The largest total weight of classes that have a text in common.

        Branch and bound: take or leave each class, the rarest class first. A branch ends if even all remaining classes
        cannot beat the best total. If few texts are left, they are counted one by one.
        """
        order = sorted(weights, key=lambda number: len(self._members[number]))
        members = [self._members[number] for number in order]
        values = [weights[number] for number in order]
        remaining = [0] * (len(order) + 1)  # depth -> total weight of the classes from there on: the bound
        for depth in reversed(range(len(order))):
            remaining[depth] = remaining[depth + 1] + values[depth]
        best = nodes = 0
        stack: list[tuple[int, frozenset[int] | None, int]] = [(0, None, 0)]  # depth, texts in all taken classes, total
        while stack:
            depth, common, total = stack.pop()
            best = max(best, total)
            if depth == len(order) or total + remaining[depth] <= best:
                continue
            nodes += 1
            if nodes > MAX_NODES:
                return self._max_count(members, values)
            stack.append((depth + 1, common, total))  # leave this class; visited after every branch that takes it
            taken = members[depth] if common is None else common & members[depth]
            if len(taken) > MAX_CANDIDATES:
                stack.append((depth + 1, taken, total + values[depth]))
                continue
            for text in taken:
                rest = sum(value for texts, value in zip(members[depth:], values[depth:], strict=True) if text in texts)
                best = max(best, total + rest)
        return best

    @staticmethod
    def _max_count(members: list[frozenset[int]], values: list[int]) -> int:
        """The result of `_max_weight`, from counting every text of every class."""
        counts = Counter[int]()
        for texts, value in zip(members, values, strict=True):
            for text in texts:
                counts[text] += value
        return max(counts.values())
