"""Replay: rows of what a student could do before, mixed into every step, so that it is not forgotten.

A row is a training question of a generic set, asked as it is in evaluation and answered with its own rationale (where
it has none with the bare answer), or a prompt and its answer from a file. All are hard targets. Each step has a fixed
number of them, as many for its groups as the share says, and together their positions weigh exactly that share of the
step. Rows that nearly stand in a validation or test question, or hold one, are left out (`filter.contamination`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from potstill import order, prompts, transfer
from potstill.errors import UserError
from potstill.lessons import cuts
from potstill.questions import collected
from potstill.recipe import Recipe
from potstill.records import Chain, Prompt, Question, Turn
from potstill.students import Example, Student

NAME: Final = "replay"  # under which its losses and positions are reported


@dataclass(frozen=True, slots=True)
class Form:
    """What `order` asks of a format; of rows that are in none of the paper's."""

    name: str
    rationale: bool = False


@dataclass(frozen=True, slots=True)
class Replayed:
    """The rows of a run.

    examples  (step, weight of all other positions of the step) -> the step's rows
    counts    what a manifest says of it
    """

    examples: Callable[[int, float], list[Example]]
    counts: dict[str, int]


def read(run: Path, plan: Recipe, student: Student) -> Replayed | None:
    """What a run replays; None if nothing. Raises UserError where no row is left."""
    asked = plan.train.replay
    if asked is None:
        return None
    found = collected.replayed(run, asked.sets)
    rows = _unmeasured(run, plan, found, "train.replay")
    table = collected.shots(run)
    form, odds = Form(NAME), asked.share / (1 - asked.share)
    course = order.Plan(
        seed=plan.seed,
        groups_per_step=count(plan),
        quotas={form: 1},
        questions=[(name, 0) for name in rows],
    )

    def row(name: str, weight: float) -> Example:
        question = rows[name]
        prompt, answer = _taught(question, table)
        chain = Chain.from_text(name, 0, answer, source=NAME)
        target = transfer.transfer(chain, student.tokenizer, "one-hot")
        return Example(tuple(student.encode(student.render(prompt))), target, weight, name, NAME)

    def examples(step: int, weight: float) -> list[Example]:
        own = [row(group.question, 1.0) for group in order.groups(course, step)]
        each = odds * weight / sum(len(example.target) for example in own)
        return [Example(e.prompt, e.target, each, e.question, e.format) for e in own]

    counts = {"replayed rows": len(rows), "rows too near to a measured question": len(found) - len(rows)}
    return Replayed(examples, counts)


def rows(run: Path, plan: Recipe, sets: Sequence[str], key: str) -> dict[str, Question]:
    """The training questions of some generic sets by id, as far as they are no measured ones. Raises UserError, naming
    the recipe's key, where none is left."""
    return _unmeasured(run, plan, collected.questions(run, sets, "train"), key)


def _unmeasured(run: Path, plan: Recipe, found: Sequence[Question], key: str) -> dict[str, Question]:
    near = collected.overlaps(run)
    rows = {row.id: row for row in found if near.get(row.id, 0.0) < plan.filter.contamination}
    if not rows:
        do = "name other rows, or raise filter.contamination"
        what = "every row nearly stands in a validation or test question, or holds one"
        raise UserError(what, where=key, found=f"{len(found)} rows", do=do)
    return rows


def count(plan: Recipe) -> int:
    """How many rows each step replays: their share of all groups, one at least."""
    asked = plan.train.replay
    return 0 if asked is None else cuts.beside(plan.train.groups, asked.share)


def _taught(row: Question, table: dict[str, collected.Shots]) -> tuple[Prompt, str]:
    if row.id.startswith("replay:"):
        asked = row.text.rstrip()
        return Prompt((Turn("user", asked),), row.text[len(asked) :] or " "), row.gold
    name = "zero-shot-rationale" if row.rationale else "zero-shot-answer"
    return collected.prompt_of(row, prompts.FORMATS[name], table), prompts.solution(row.rationale or "", row.gold)
