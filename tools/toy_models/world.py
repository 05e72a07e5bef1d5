"""The toy task: its families of questions, drawn from a seed, and how much they have in common.

    >>> first = draw_questions("steps", "demo", 2)
    >>> [question.id for question in first], first == draw_questions("steps", "demo", 2)
    (['steps/0', 'steps/1'], True)
    >>> print(measure_overlap(["Ann has 17 kites. Why has Ann so many?"], ["Tom has 3 apples. Where?"]))
    templates 50 %, 1-grams 86 %, 2-grams 80 %, 3-grams 100 %

`steps` is in-distribution; `multi`, `diverse`, `varied` are not, and no training text may contain them; `generic`
measures other abilities. Everything is a pure function of its arguments: draw i of a family under a seed is always the
same.
"""

from __future__ import annotations

import random
import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import count
from typing import Final

from potstill.data import splits
from potstill.records import Question
from tools.toy_models import families, generic, steps
from tools.toy_models.problem import OutOfRange, Problem, World
from tools.toy_models.words import BOXES, COLOURS, NAMES, PLACES, THINGS

IN_DISTRIBUTION: Final = ("steps",)
OUT_OF_DISTRIBUTION: Final = tuple(families.FAMILIES)
GENERIC: Final = ("generic",)
SETS: Final = (*IN_DISTRIBUTION, *OUT_OF_DISTRIBUTION, *GENERIC)
STEP_SHARES: Final = (1 / 3, 1 / 3, 1 / 3)  # of the demo's in-distribution questions with 1, 2 and 3 steps
VALIDATION: Final = 0.25  # of every set, by the digest of a question's canonical form
TEST: Final = 0.35
# The world of the shipped models; base students know neither the further wordings nor irrelevant numbers.
DEMO_WORLD: Final = World(largest=50, shares=(0.15, 0.45, 0.40), further=True, beside=0.5)
# Questions of each family, so that its test split holds at least 600, and at least 200 of each generic task.
SIZES: Final[Mapping[str, int]] = {"steps": 6000, "multi": 2700, "diverse": 2700, "varied": 2700, "generic": 6400}
TRAINING_SIZE: Final = 15000  # further draws of the in-distribution family; only those of the training split are used
MAX_MISSES: Final = 1000  # draws in a row without a new question: then the world is too small


def draw_problem(family: str, rng: random.Random, world: World) -> Problem:
    """One problem of any family. Raises OutOfRange where its numbers leave the world, KeyError for no family."""
    if family in IN_DISTRIBUTION:
        return steps.draw_steps(rng, world)
    return generic.draw_generic(rng) if family in GENERIC else families.draw_family(family, rng, world)


def problem_stream(family: str, seed: str, world: World, without: Collection[str] = ()) -> Iterator[Problem]:
    """Endless problems, each question once, none whose canonical form is in `without`."""
    seen, misses = set(without), 0
    for number in count():
        misses += 1
        assert misses < MAX_MISSES, f"the family {family} of {world} has too few questions"
        try:
            problem = draw_problem(family, random.Random(f"{family}/{seed}/{number}"), world)
        except OutOfRange:
            continue
        form = splits.canonical_question(problem.text)
        if form not in seen:
            seen.add(form)
            misses = 0
            yield problem


def draw_questions(family: str, seed: str, n: int, world: World | None = None) -> list[Question]:
    """n questions of a family, no two with the same canonical form, split by their digests."""
    problems = zip(range(n), problem_stream(family, seed, world or World()), strict=False)
    return [
        Question(
            id=f"{family}/{number}",
            text=problem.text,
            gold=problem.answer,
            set=family,
            split=splits.split_of(problem.text, VALIDATION, TEST),
            task=problem.task,
            rationale=problem.rationale,
        )
        for number, problem in problems
    ]


_CLASSES: Final = {
    **dict.fromkeys((name.lower() for name in NAMES), "NAME"),
    **dict.fromkeys((word for pair in THINGS for word in pair), "THING"),
    **dict.fromkeys((word for pair in BOXES for word in pair), "BOX"),
    **dict.fromkeys(PLACES, "PLACE"),
    **dict.fromkeys(COLOURS, "COLOUR"),
}


def templates(text: str) -> list[tuple[str, ...]]:
    """The sentences of a text as tuples of words; names, things, boxes, places, colours and numbers become classes."""
    sentences = []
    for sentence in re.split(r"(?<=[.?!])\s+", text.strip()):
        words = re.findall(r"[a-z]+|\d+|[^\sa-z\d]", sentence.lower())
        sentences.append(tuple("#" if word.isdigit() else _CLASSES.get(word, word) for word in words))
    return sentences


@dataclass(frozen=True, slots=True)
class Overlap:
    """How much of a second set of texts is found in a first: shares of its distinct sentence templates and of the
    distinct runs of 1, 2 and 3 words within them."""

    templates: float
    grams: tuple[float, float, float]

    def __str__(self) -> str:
        parts = [f"{size}-grams {share:.0%}" for size, share in enumerate(self.grams, 1)]
        return f"templates {self.templates:.0%}, {', '.join(parts)}".replace("%", " %")


def measure_overlap(known: Iterable[str], other: Iterable[str]) -> Overlap:
    ours = {template for text in known for template in templates(text)}
    theirs = {template for text in other for template in templates(text)}

    def share(a: set[tuple[str, ...]], b: set[tuple[str, ...]]) -> float:
        return len(a & b) / max(1, len(b))

    one, two, three = (share(_grams(ours, size), _grams(theirs, size)) for size in (1, 2, 3))
    return Overlap(share(ours, theirs), (one, two, three))


def _grams(sentences: set[tuple[str, ...]], size: int) -> set[tuple[str, ...]]:
    return {words[at : at + size] for words in sentences for at in range(len(words) - size + 1)}
