"""What the student writes itself, and what another says of it: the lesson of a repair.

    lesson = read(run, plan, student, scorer)
    lesson.micro_batches(7)        # asks the student as it is now, so call it when step 7 is due

Each step asks training questions of generic sets as evaluation does, in the format of the choice; the student answers
with the weights that it has at that step, and the scorer gives its distribution at every token of the answer. Nobody
grades them. Texts, and so a step, are a function of weights, seed and step. Questions that nearly stand in a validation
or test question, or hold one, are left out (`filter.contamination`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import takewhile
from pathlib import Path
from typing import Final

from potstill import engines, order, prompts, students
from potstill.engines import Request
from potstill.lessons import replayed
from potstill.questions import collected
from potstill.recipe import Recipe
from potstill.students import Example, Student

NAME: Final = "own"  # under which losses and positions are reported


@dataclass(frozen=True, slots=True)
class _Form:
    """What `order` asks of a format."""

    name: str = NAME
    rationale: bool = False


@dataclass(frozen=True, slots=True)
class Own:
    """micro_batches: step -> its rows, made now; questions: those that are asked."""

    micro_batches: Callable[[int], list[list[Example]]]
    questions: int


def read(run: Path, plan: Recipe, student: Student, scorer: Student) -> Own:
    """The lesson of a run whose student was chosen. Raises UserError where no question is left to ask."""
    asked = plan.repair
    assert asked is not None, "a run that is repaired"
    rows = replayed.rows(run, plan, asked.sets, "repair.sets")
    engine, table = engines.open(student), collected.shots(run)
    form = prompts.FORMATS[plan.select.format]
    course = order.Plan(
        seed=plan.seed, groups_per_step=asked.groups, quotas={_Form(): 1}, questions=[(name, 0) for name in rows]
    )

    @lru_cache(maxsize=1 << 16)
    def prompt(name: str) -> tuple[int, ...]:
        return engine.encode(collected.prompt_of(rows[name], form, table))

    def answers(step: int) -> Iterator[list[Example]]:
        """By group."""
        names = [group.question for group in order.groups(course, step)]
        requests = [
            Request((f"{step}/{place}/{name}", index), prompt(name))
            for place, name in enumerate(names)
            for index in range(asked.samples)
        ]
        found: dict[engines.Key, Example] = {}
        for batch in engines.batches(requests, plan.train.batch_tokens, max_tokens=asked.max_tokens):
            own = [requests[place] for place in batch]
            texts = engine.generate(own, max_tokens=asked.max_tokens, temperature=asked.temperature, seed=plan.seed)
            for request, text in zip(own, texts, strict=True):
                # A head may have more rows than the tokenizer has tokens; a text ends before such a one.
                ids = tuple(takewhile(lambda token: token < student.tokenizer.size, text.ids))
                whole = text.stop == "end" and len(ids) == len(text.ids)
                if ids or whole:
                    end = student.tokenizer.eos if whole else None
                    name = names[int(request.key[0].split("/")[1])]
                    found[request.key] = students.written(request.prompt, ids, end, name, NAME)
        for place, name in enumerate(names):
            keys = [(f"{step}/{place}/{name}", index) for index in range(asked.samples)]
            if part := [found[key] for key in keys if key in found]:
                yield part

    def micro_batches(step: int) -> list[list[Example]]:
        # As for all lessons: a student that pads computes every row by itself; another reads a shared prompt once.
        parts = [part for own in answers(step) for part in ([[row] for row in own] if student.padded else [own])]
        lengths = [(len(part[0].prompt), sum(len(row.target) for row in part)) for part in parts]
        cuts = order.micro_batches(lengths, plan.train.batch_tokens, padded=student.padded)
        return [students.told(scorer, [row for place in cut for row in parts[place]], asked.candidates) for cut in cuts]

    return Own(micro_batches, len(rows))
