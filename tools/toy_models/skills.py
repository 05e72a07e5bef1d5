"""Skill exercises: the parts of solving a word problem, each alone. A base model learns them before any whole problem.

    >>> exercise = draw_exercise("copying", random.Random("1"), World(largest=20))
    >>> exercise.prompt, exercise.reply
    ('copy Jack shells Tom kites lemons 18', 'Jack shells Tom kites lemons 18')

`facts` one sum; `equations` a chain of sums, each using the result before; `copying` words and numbers as they stand;
`lookup` the pairs asked for, out of several; `clauses` what words do to a number.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from tools.toy_models.clauses import describe_clause
from tools.toy_models.problem import Arithmetic, World
from tools.toy_models.words import NAMES, THINGS

NOUNS: Final = (*NAMES, *(plural for _, plural in THINGS))


@dataclass(frozen=True, slots=True)
class Exercise:
    prompt: str
    reply: str


def facts(rng: random.Random, world: World) -> Exercise:
    sums = Arithmetic(rng, world.largest)
    sign = rng.choice("+-*/+-")
    left, right = sums.draw(high=world.largest - 2), sums.draw()
    if sign == "*":
        left, right = sums.draw(high=9), sums.draw(high=9)
    if sign == "/":
        right = sums.draw(high=9)
        left = right * sums.draw(high=9)
        if left > world.largest:
            sign = "-"
    _, equation = sums.solve(left, sign, right)
    return Exercise(equation.split("=")[0] + "=", equation)


def equations(rng: random.Random, world: World) -> Exercise:
    """`12 ; + 5 ; - 3 ;` -> `12 + 5 = 17 . 17 - 3 = 14 .`: copying and sums in turn, as in a rationale."""
    sums = Arithmetic(rng, world.largest)
    value = sums.draw(high=world.largest - 2)
    asked, said = [str(value)], []
    for _ in range(rng.choice((1, 2, 3))):
        sign = rng.choice("+-+-*")
        amount = sums.draw(high=9) if sign == "*" else sums.draw()
        value, equation = sums.solve(value, sign, amount, turned=False)
        asked.append(f"{sign} {amount}")
        said.append(f"{equation} .")
    return Exercise(" ; ".join(asked) + " ;", " ".join(said))


def copying(rng: random.Random, world: World) -> Exercise:
    length = rng.randint(3, 7)
    words = [rng.choice(NOUNS) if rng.random() < 0.5 else str(rng.randint(2, world.largest)) for _ in range(length)]
    return Exercise(f"copy {' '.join(words)}", " ".join(words))


def lookup(rng: random.Random, world: World) -> Exercise:
    keys = rng.sample(NOUNS, rng.choice((2, 3, 4)))
    pairs = {key: f"{key} {rng.randint(2, world.largest)}" for key in keys}
    asked = rng.sample(keys, rng.choice((1, 2)))
    return Exercise(f"{' '.join(pairs.values())} find {' '.join(asked)}", " ".join(pairs[key] for key in asked))


def clauses(rng: random.Random, world: World) -> Exercise:
    """`14 kites ; Ann lent 5 ;` -> `14 - 5 = 9 .`: what words do to a number."""
    return Exercise(*describe_clause(rng, world))


SKILLS: Final[dict[str, Callable[[random.Random, World], Exercise]]] = {
    skill.__name__: skill for skill in (facts, equations, copying, lookup, clauses)
}


def draw_exercise(skill: str, rng: random.Random, world: World) -> Exercise:
    """One exercise. Raises OutOfRange where its numbers leave the world."""
    return SKILLS[skill](rng, world)
