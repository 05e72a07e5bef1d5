"""One problem of the toy task: its text, its answer and a rationale in short sentences with equations.

    >>> sums = Arithmetic(random.Random("seed"), largest=20)
    >>> value, equation = sums.solve(5, "-", 3)
    >>> value, equation
    (2, '5 - 3 = 2')
    >>> sums.solve(15, "+", 15)  # doctest: +IGNORE_EXCEPTION_DETAIL
    Traceback (most recent call last):
    tools.toy_models.problem.OutOfRange: 15 + 15

A family draws numbers freely and raises `OutOfRange` when a value leaves the range; its stream then takes the next draw.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from tools.toy_models.words import BOXES, NAMES, PLACES, THINGS

SMALLEST: Final = 2  # below it the plural would be wrong: "1 apples"


class OutOfRange(Exception):
    """A value is not a whole number of the world; take another draw."""


@dataclass(frozen=True, slots=True)
class World:
    """The ranges and wordings of the word problems.

    largest  no number of a problem or of its rationale is above it
    shares   how often in-distribution problems have 1, 2 and 3 steps
    frames   how many wordings of each kind of sentence are in use, at most (counted from the first)
    names    how many of the names and of the things are in use, at most
    further  whether in-distribution problems have the further wordings too
    beside   how often in-distribution problems hold a sentence, with a number, that does not matter
    """

    largest: int = 99
    shares: tuple[float, ...] = (1 / 3, 1 / 3, 1 / 3)
    frames: int = 99
    names: int = 99
    further: bool = False
    beside: float = 0.0


@dataclass(frozen=True, slots=True)
class Problem:
    """task  the form of the answer, as the grader calls it"""

    text: str
    answer: str
    rationale: str
    task: str = "number"


@dataclass(frozen=True, slots=True)
class Arithmetic:
    """Draws numbers and writes equations. The two sides of a sum or product may stand in either order."""

    rng: random.Random
    largest: int

    def draw(self, low: int = SMALLEST, high: int | None = None) -> int:
        return self.rng.randint(low, max(low, self.largest // 2 if high is None else high))

    def solve(self, left: int, sign: str, right: int, *, turned: bool = True) -> tuple[int, str]:
        """The value and the equation. Raises OutOfRange unless the value lies between SMALLEST and `largest`.

        turned  a sum or product may change its sides
        """
        if turned and sign in "+*" and self.rng.random() < 0.5:
            left, right = right, left
        if sign == "/":
            value, rest = divmod(left, right)
        else:
            value, rest = {"+": left + right, "-": left - right, "*": left * right}[sign], 0
        if rest or not SMALLEST <= value <= self.largest:
            raise OutOfRange(f"{left} {sign} {right}")
        return value, f"{left} {sign} {right} = {value}"


def cast_names(rng: random.Random, world: World) -> dict[str, str]:
    """Three names, two things, a box and a place, as words for the slots of a wording."""
    first, second, third = rng.sample(NAMES[: world.names], 3)
    (thing, things), (other, others) = rng.sample(THINGS[: world.names], 2)
    box, boxes = rng.choice(BOXES)
    return {
        "A": first, "B": second, "C": third, "thing": thing, "things": things, "other": other, "others": others,
        "box": box, "boxes": boxes, "place": rng.choice(PLACES),
    }  # fmt: skip


def fill_template(wording: str, words: Mapping[str, object]) -> str:
    """A wording of this package with its slots filled; every slot must be known."""
    return wording.format_map(words)


def pick_weighted(rng: random.Random, world: World, wordings: Sequence[str]) -> str:
    return rng.choice(wordings[: world.frames])
