"""Generic tasks in the spirit of BIG-Bench Hard: what a base student can do besides word problems, and may lose.

    >>> problem = navigate(random.Random("1"))
    >>> problem.text, problem.answer
    ('Take 9 steps. Take 9 steps. Turn around. Take 18 steps. Does Nora return to the start?', 'Yes')
    >>> problem.rationale, problem.task
    ('The way out is 9 + 9 = 18 steps. The way back is 18 steps. These are equal.', 'boolean')

Each task writes a question, the rationale, the answer and the form of the answer. Its answer-only twin is the same
question asked in another format: the rationale is shown or not by the prompt, never by the question.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from typing import Final

from tools.toy_models.problem import Problem
from tools.toy_models.words import ANIMALS, COLOURS, NAMES, THINGS, article

WORDS: Final = (*(thing for thing, _ in THINGS), *ANIMALS)


def sorting(rng: random.Random) -> Problem:
    """The alphabet decides at the first letter: no two words begin alike."""
    chosen: list[str] = []
    for word in rng.sample(WORDS, len(WORDS)):
        if word[0] not in {other[0] for other in chosen} and len(chosen) < 4:
            chosen.append(word)
    chosen = chosen[: rng.choice((3, 4))]
    ordered = sorted(chosen)
    text = f"Sort these words by the alphabet: {' '.join(chosen)}"
    said = " ".join(f"{word[0]} begins {word}." for word in ordered)
    return Problem(text, " ".join(ordered), said, "list")


def booleans(rng: random.Random) -> Problem:
    """Three to five values, some denied, joined from the left: the brackets say so."""
    values = [rng.random() < 0.5 for _ in range(rng.choice((3, 4, 4, 5)))]
    denied = [rng.random() < 0.3 for _ in values]
    shown = [f"not {value}" if no else str(value) for value, no in zip(values, denied, strict=True)]
    truths = [value != no for value, no in zip(values, denied, strict=True)]
    text, result, said, before = shown[0], truths[0], [], shown[0]
    for number, (literal, truth) in enumerate(zip(shown[1:], truths[1:], strict=True)):
        join = rng.choice(("and", "or"))
        text = f"( {text} ) {join} {literal}" if number else f"{text} {join} {literal}"
        result = (result and truth) if join == "and" else (result or truth)
        said.append(f"{before} {join} {literal} is {result}.")
        before = str(result)
    return Problem(f"{text} is", str(result), " ".join(said), "boolean")


def letters(rng: random.Random) -> Problem:
    """The last letter of each word, set off by spaces."""
    chosen = rng.sample(WORDS, rng.choice((2, 3)))
    said = " ".join(f"{word} ends in {word[-1]}." for word in chosen)
    return Problem(
        f"Take the last letter of each word: {' '.join(chosen)}", " ".join(word[-1] for word in chosen), said, "list"
    )


def lookup(rng: random.Random) -> Problem:
    """Which of three or four objects has this colour."""
    count = rng.choice((3, 4))
    nouns, colours = rng.sample(WORDS, count), rng.sample(COLOURS, count)
    facts = [f"The {noun} is {colour}." for noun, colour in zip(nouns, colours, strict=True)]
    at = rng.randrange(count)
    return Problem(f"{' '.join(facts)} What is {colours[at]}?", nouns[at], facts[at], "exact")


def counting(rng: random.Random) -> Problem:
    """How many of the listed nouns are animals."""
    beasts, others = rng.sample(ANIMALS, rng.choice((1, 2, 3, 4))), rng.sample(THINGS, rng.choice((1, 2)))
    nouns = rng.sample([*beasts, *(thing for thing, _ in others)], len(beasts) + len(others))
    listed = ", ".join(article(noun) for noun in nouns[:-1]) + f" and {article(nouns[-1])}"
    seen = [noun for noun in nouns if noun in beasts]
    said = " ".join(f"{noun} {place}." for place, noun in enumerate(seen, 1))
    return Problem(f"{rng.choice(NAMES)} sees {listed}. How many animals are that?", str(len(beasts)), said, "number")


def navigate(rng: random.Random) -> Problem:
    """Out in two legs and back in one: does the way end where it began? Half of the answers are yes."""
    first, second = rng.randint(2, 9), rng.randint(2, 9)
    out = first + second
    back = out if rng.random() < 0.5 else rng.choice([steps for steps in range(4, 19) if steps != out])
    text = f"Take {first} steps. Take {second} steps. Turn around. Take {back} steps."
    said = f"The way out is {first} + {second} = {out} steps. The way back is {back} steps."
    same = "equal" if out == back else "different"
    ask = f"Does {rng.choice(NAMES)} return to the start?"
    return Problem(f"{text} {ask}", "Yes" if out == back else "No", f"{said} These are {same}.", "boolean")


TASKS: Final[dict[str, Callable[[random.Random], Problem]]] = {
    task.__name__: task for task in (sorting, booleans, letters, lookup, counting, navigate)
}


def draw_generic(rng: random.Random) -> Problem:
    """A question of any task; its task reads `sorting/list`: the task, and the form of its answers."""
    name = rng.choice(tuple(TASKS))
    problem = TASKS[name](rng)
    return replace(problem, task=f"{name}/{problem.task}")
