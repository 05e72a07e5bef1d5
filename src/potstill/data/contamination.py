"""Contamination: the most that a text shares with one of many others, without looking at each pair of them.

    >>> index = OverlapIndex([frozenset("abc"), frozenset("abd"), frozenset("xy")])
    >>> sorted(index.most(frozenset("abdx")).items())
    [(2, 1), (3, 3)]
    >>> mask_numbers_and_names("Tom Hill has 12 pens. He buys five more.") == mask_numbers_and_names("Ann has 3.5 pens. She buys 9 more.")
    True

Questions made from templates share their fixed words with all others of the template, so a list of the pairs that share
something grows with the square of their number. Here pieces that occur in the very same texts are one piece with a
weight, and of the texts that hold a piece only as many are looked at as can still beat the best one found.
Pure: no file, no clock.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Hashable, Iterable
from typing import Final

VERSION: Final = 1  # of what is masked, and so of which questions count as the same
MAX_CANDIDATES: Final = 16  # texts that are looked at one by one
MAX_NODES: Final = 400  # combinations of pieces that are tried before the texts are counted instead

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
    """A question with one word for every number, one for every name and one for every he or she, so that questions of
    one template look alike. A word that begins with a capital letter counts as a name, unless no letter is small."""
    text = unicodedata.normalize("NFKC", text)
    text = _NUMBERS.sub("0", _NUMBER.sub("0", text))
    if any(letter.islower() for letter in text):
        text = _NAMES.sub("name", _PERSONS.sub("he", text))
    return text


class OverlapIndex:
    """Sets of pieces, to be asked which shares most with another one."""

    def __init__(self, held: Iterable[frozenset[Hashable]]) -> None:
        """held: of each text its pieces."""
        self._texts = list(dict.fromkeys(held))
        places: dict[Hashable, list[int]] = {}
        for place, pieces in enumerate(self._texts):
            for piece in pieces:
                places.setdefault(piece, []).append(place)
        numbers: dict[tuple[int, ...], int] = {}
        # of every piece, by the size of the texts that hold it, the class of pieces that are in the same ones
        self._classes: dict[Hashable, tuple[tuple[int, int], ...]] = {}
        self._members: list[frozenset[int]] = []
        kept: dict[tuple[int, ...], tuple[tuple[int, int], ...]] = {}
        for piece, own in places.items():
            key = tuple(own)
            if key not in kept:
                by_size: dict[int, list[int]] = {}
                for place in own:
                    by_size.setdefault(len(self._texts[place]), []).append(place)
                kept[key] = tuple((size, self._class(numbers, tuple(some))) for size, some in by_size.items())
            self._classes[piece] = kept[key]

    def _class(self, numbers: dict[tuple[int, ...], int], key: tuple[int, ...]) -> int:
        number = numbers.setdefault(key, len(self._members))
        if number == len(self._members):
            self._members.append(frozenset(key))
        return number

    def most(self, own: Iterable[Hashable]) -> dict[int, int]:
        """Size of held texts -> the most of `own` that one of this size holds; sizes that hold none are left out."""
        weights: dict[int, Counter[int]] = {}
        for piece in own:
            for size, number in self._classes.get(piece, ()):
                weights.setdefault(size, Counter())[number] += 1
        return {size: self._most(found) for size, found in weights.items()}

    def _most(self, weights: Counter[int]) -> int:
        order = sorted(weights, key=lambda number: len(self._members[number]))  # the rarest first
        members = [self._members[number] for number in order]
        values = [weights[number] for number in order]
        left = [0] * (len(order) + 1)  # what all classes from here on weigh
        for at in reversed(range(len(order))):
            left[at] = left[at + 1] + values[at]
        best = nodes = 0
        waiting: list[tuple[int, frozenset[int] | None, int]] = [(0, None, 0)]  # next class, texts that hold all so far
        while waiting:
            at, inside, weight = waiting.pop()
            best = max(best, weight)
            if at == len(order) or weight + left[at] <= best:
                continue
            nodes += 1
            if nodes > MAX_NODES:
                return self._counted(members, values)
            waiting.append((at + 1, inside, weight))  # without this class: looked at after all that is with it
            both = members[at] if inside is None else inside & members[at]
            if len(both) > MAX_CANDIDATES:
                waiting.append((at + 1, both, weight + values[at]))
                continue
            for place in both:
                held = sum(value for own, value in zip(members[at:], values[at:], strict=True) if place in own)
                best = max(best, weight + held)
        return best

    @staticmethod
    def _counted(members: list[frozenset[int]], values: list[int]) -> int:
        counts = Counter[int]()
        for own, value in zip(members, values, strict=True):
            for _ in range(value):
                counts.update(own)
        return max(counts.values())
