"""Decodings: how one answer is taken from a student, by name.

    >>> named("vote-8+calculator")
    Decoding(choice='vote', samples=8, calculator=True)
    >>> [drawing.name for drawing in drawings(["greedy", "vote-8", "best-40", "vote-8+calculator"])]
    ['greedy', 'samples', 'samples+calculator']

    greedy          the likeliest token at every step
    vote-8          self-consistency: the value that most of 8 samples found (Wang et al. 2022)
    best-8          of 8 samples the one that the student itself finds likeliest
    ...+calculator  what stands behind an arithmetic expression and `=` is calculated, not written by the student

Decodings that differ only in how they choose share one *drawing*, and so do 8 of 40 samples: a sample's draws depend
on its index, never on how many there are. Pure.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final, Literal

from potstill import votes
from potstill.contenders import Contender
from potstill.intervals import wilson
from potstill.records import Prediction, Split, Tries

VERSION: Final = 1  # of what a decoding draws and chooses; stored with the scores
PATTERN: Final = r"^(greedy|vote-[1-9][0-9]{0,3}|best-[1-9][0-9]{0,3})(\+calculator)?$"


@dataclass(frozen=True, slots=True)
class Decoding:
    choice: Literal["greedy", "vote", "best"]
    samples: int = 1
    calculator: bool = False

    @property
    def name(self) -> str:
        number = "" if self.choice == "greedy" else f"-{self.samples}"
        return f"{self.choice}{number}{'+calculator' if self.calculator else ''}"


@dataclass(frozen=True, slots=True)
class Drawing:
    """What is generated: `samples` texts a question, or one greedy one."""

    sampled: bool = False
    samples: int = 1
    calculator: bool = False

    @property
    def name(self) -> str:
        return f"{'samples' if self.sampled else 'greedy'}{'+calculator' if self.calculator else ''}"


GREEDY: Final = Drawing()


def named(name: str) -> Decoding:
    """The decoding of a name that fits `PATTERN`."""
    assert re.match(PATTERN, name), f"no decoding: {name!r}"
    first, _, calculator = name.partition("+")
    choice, _, samples = first.partition("-")
    return Decoding(choice, int(samples or 1), bool(calculator))  # type: ignore[arg-type]


def drawings(names: Iterable[str]) -> list[Drawing]:
    """What has to be generated for some decodings, each once, with as many samples as the largest asks for."""
    found: dict[str, Drawing] = {}
    for each in map(named, names):
        drawn = Drawing(each.choice != "greedy", each.samples, each.calculator)
        before = found.get(drawn.name)
        if before is None or before.samples < drawn.samples:
            found[drawn.name] = drawn
    return list(found.values())


def drawing_of(name: str) -> str:
    """The name of the drawing that a decoding chooses from."""
    return drawings([name])[0].name


def choose(name: str, samples: Iterable[Prediction]) -> list[Prediction]:
    """One answer a question, in the order in which the questions come first."""
    asked = named(name)
    chosen = []
    for own in _questions(samples, asked.samples):
        if asked.choice == "best":
            chosen.append(own[votes.likeliest([_likelihood(each) for each in own])])
        else:
            chosen.append(own[votes.winner([each.found for each in own])])
    return chosen


def tries(
    samples: Iterable[Prediction], *, contender: Contender, split: Split, format: str, drawing: str
) -> list[Tries]:
    """Of every set, what k of the samples come to, for each k up to their number: by vote, by the student's own
    likelihood, and if any right one counted.

    Each is the mean over all ways to take k of a question's samples, and over the questions. The intervals are Wilson's
    for shares, which is wide enough for means of values in [0, 1]: their variance is at most p (1 - p).
    """
    sets: dict[str, list[list[Prediction]]] = {}
    for own in _questions(samples):
        sets.setdefault(own[0].set, []).append(own)
    found = []
    for name in sorted(sets):
        rows: dict[str, list[list[float]]] = {"vote": [], "best": [], "any": []}
        for own in sets[name]:
            rows["vote"].append(votes.voted([(each.found, each.grade == "right") for each in own]))
            rows["best"].append(votes.best_of([(_likelihood(each), each.grade == "right") for each in own]))
            rows["any"].append(votes.any_right(len(own), sum(each.grade == "right" for each in own)))
        n = len(sets[name])
        for how, values in rows.items():
            for k in range(1, min(map(len, values)) + 1):
                total = sum(value[k - 1] for value in values)
                low, high = wilson(min(total, n), n)
                found.append(Tries(contender, name, split, format, drawing, how, k, n, total / n, low, high))  # type: ignore[arg-type]
    return found


def _questions(samples: Iterable[Prediction], most: int | None = None) -> list[list[Prediction]]:
    """The samples of each question in the order of their indices, at most the first so many."""
    found: dict[str, list[Prediction]] = {}
    for each in samples:
        found.setdefault(each.question, []).append(each)
    return [sorted(own, key=lambda each: each.index)[:most] for own in found.values()]


def _likelihood(prediction: Prediction) -> float:
    assert prediction.likelihood is not None, f"{prediction.question}: a sample without its likelihood"
    return prediction.likelihood
