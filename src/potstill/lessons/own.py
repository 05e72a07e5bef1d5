"""What the student writes itself, and what another says of it: the lesson of a repair.

    lesson = read(run, plan, student, scorer)
    lesson.micro_batches(7)        # asks the student as it is now, so call it when step 7 is due

Each step asks training questions of generic sets as evaluation does, in the format of the choice; the student answers
with the weights that it has at that step, and the scorer gives its distribution at every token of the answer, through
`retold` where its tokens are others. Nobody grades them. With `repair.keep` questions of the task are asked beside
them, and the chosen student as it was scores these answers, so that it keeps what it was taught. Texts, and so a step,
are a function of weights, seed and step. Generic questions that nearly stand in a validation or test question, or hold
one, are left out (`filter.contamination`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache, partial
from itertools import takewhile
from pathlib import Path
from typing import Final

from potstill import engines, order, prompts, students
from potstill.engines import Request, Scoring
from potstill.lessons import cuts, replayed
from potstill.lessons.replayed import Form
from potstill.lessons.retold import retold
from potstill.questions import collected
from potstill.recipe import Recipe
from potstill.records import Prompt
from potstill.students import Example, Student

NAME: Final = "own"  # under which losses and positions are reported
KEPT: Final = "kept"  # and those of the questions of the task


@dataclass(frozen=True, slots=True)
class Own:
    """micro_batches: step -> its rows, made now; questions: the generic ones that are asked."""

    micro_batches: Callable[[int], list[list[Example]]]
    questions: int


def read(run: Path, plan: Recipe, student: Student, scorer: Student, keeper: Student | None = None) -> Own:
    """The lesson of a run whose student was chosen. keeper: that student as it was, for `repair.keep`.

    Raises UserError where no question is left to ask.
    """
    asked = plan.repair
    assert asked is not None, "a run that is repaired"
    rows = replayed.rows(run, plan, asked.sets, "repair.sets")
    engine, table = engines.open(student), collected.shots(run)
    form = prompts.FORMATS[plan.select.format]
    course, generic = _course(plan, asked.groups, list(rows)), len(rows)

    def prompt_of(name: str) -> Prompt:
        return collected.prompt_of(rows[name], form, table)

    reader = None if scorer.tokenizer.digest == student.tokenizer.digest else engines.open(scorer)
    tellers = {} if reader else {NAME: partial(students.told, scorer, candidates=asked.candidates)}
    task = None
    if asked.keep is not None and keeper is not None:
        taught = {question.id: question for question in collected.questions(run, plan.questions.train, "train")}
        tellers[KEPT] = partial(students.told, keeper, candidates=asked.candidates)
        task, rows = _course(plan, kept(plan), list(taught)), taught | rows

    @lru_cache(maxsize=1 << 16)
    def prompt(name: str) -> tuple[int, ...]:
        return engine.encode(prompt_of(name))

    def answers(step: int) -> Iterator[list[Example]]:
        """By group."""
        asks = [(group.question, NAME) for group in order.groups(course, step)]
        asks += [(group.question, KEPT) for group in order.groups(task, step)] if task else []
        requests = [
            Request((f"{step}/{place}/{name}", index), prompt(name))
            for place, (name, _) in enumerate(asks)
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
                    name, kind = asks[int(request.key[0].split("/")[1])]
                    found[request.key] = students.written(request.prompt, ids, end, name, kind)
        for place, (name, _) in enumerate(asks):
            keys = [(f"{step}/{place}/{name}", index) for index in range(asked.samples)]
            if part := [found[key] for key in keys if key in found]:
                yield part

    def micro_batches(step: int) -> list[list[Example]]:
        groups = answers(step) if reader is None else read_by(reader, list(answers(step)))
        made = cuts.micro_batches(groups, plan.train.batch_tokens, padded=student.padded)
        return [scored(rows) for rows in made]

    def read_by(reader: Scoring, groups: list[list[Example]]) -> list[list[Example]]:
        """By a scorer of other tokens, a whole step at once: texts say of each other how words go on."""
        rows = [row for rows in groups for row in rows if row.format == NAME]
        sizes = {"candidates": asked.candidates, "budget": plan.train.batch_tokens}
        made = iter(retold(reader, scorer.tokenizer, student.tokenizer, prompt_of, rows, **sizes))
        return [[next(made) if row.format == NAME else row for row in rows] for rows in groups]

    def scored(rows: list[Example]) -> list[Example]:
        """Each by the one who scores questions of its kind, those of a group side by side as before; those that were
        read stay."""
        parts = {name: [row for row in rows if row.format == name] for name in tellers}
        own = {name: iter(tellers[name](part) if part else []) for name, part in parts.items()}
        return [next(own[row.format]) if row.format in own else row for row in rows]

    return Own(micro_batches, generic)


def kept(plan: Recipe) -> int:
    """How many questions of the task each step asks: their share of all, one at least."""
    asked = plan.repair
    return 0 if asked is None or asked.keep is None else cuts.beside(asked.groups, asked.keep)


def _course(plan: Recipe, groups: int, names: list[str]) -> order.Plan[Form]:
    return order.Plan(
        seed=plan.seed, groups_per_step=groups, quotas={Form(NAME): 1}, questions=[(name, 0) for name in names]
    )
