"""Replay: rows of what a student could do before, mixed into every step, so that it is not forgotten.

A row is a training question of a generic set, asked as it is in evaluation and answered with its own rationale (where
it has none with the bare answer), or a prompt and its answer from a file. All are hard targets. Each step has a fixed
number of them, as many for its groups as the share says, and together their positions weigh exactly that share of the
step. Rows that nearly stand in a validation or test question, or hold one, are left out (`filter.contamination_threshold`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from potstill import prompts
from potstill.alignment import cross_tokenizer
from potstill.data import run_questions
from potstill.errors import UserError
from potstill.models import Example, Student
from potstill.recipe import Recipe
from potstill.records import Chain, Prompt, Question, Turn
from potstill.training import data_order, examples

REPLAY_FORMAT: Final = "replay"  # under which its losses and positions are reported


@dataclass(frozen=True, slots=True)
class RowFormat:
    """What `order` asks of a format; of rows that are in none of the paper's."""

    name: str
    rationale: bool = False


@dataclass(frozen=True, slots=True)
class ReplayRows:
    """The rows of a run.

    examples  (step, weight of all other positions of the step) -> the step's rows
    counts    what a manifest says of it
    """

    examples: Callable[[int, float], list[Example]]
    counts: dict[str, int]


def read_replay_rows(run_dir: Path, recipe: Recipe, student: Student) -> ReplayRows | None:
    """What a run replays; None if nothing. Raises UserError where no row is left."""
    asked = recipe.train.replay
    if asked is None:
        return None
    found = run_questions.read_replay(run_dir, asked.sets)
    rows = _drop_contaminated(run_dir, recipe, found, "train.replay")
    table = run_questions.read_task_prompts(run_dir)
    form, odds = RowFormat(REPLAY_FORMAT), asked.share / (1 - asked.share)
    course = data_order.DataOrder(
        seed=recipe.seed,
        groups_per_step=replay_rows_per_step(recipe),
        quotas={form: 1},
        questions=[(name, 0) for name in rows],
    )

    def row(name: str, weight: float) -> Example:
        question = rows[name]
        prompt, answer = _prompt_and_answer(question, table)
        chain = Chain.from_text(name, 0, answer, source=REPLAY_FORMAT)
        target = cross_tokenizer.transfer(chain, student.tokenizer, "one-hot")
        return Example(tuple(student.encode(student.render(prompt))), target, weight, name, REPLAY_FORMAT)

    def examples(step: int, weight: float) -> list[Example]:
        own = [row(group.question, 1.0) for group in data_order.draw_groups(course, step)]
        each = odds * weight / sum(len(example.target) for example in own)
        return [Example(e.prompt, e.target, each, e.question, e.format) for e in own]

    counts = {"replayed rows": len(rows), "rows too near to a measured question": len(found) - len(rows)}
    return ReplayRows(examples, counts)


def read_generic_questions(run_dir: Path, recipe: Recipe, sets: Sequence[str], key: str) -> dict[str, Question]:
    """The training questions of some generic sets by id, as far as they are no measured ones. Raises UserError, naming
    the recipe's key, where none is left."""
    return _drop_contaminated(run_dir, recipe, run_questions.read_questions(run_dir, sets, "train"), key)


def _drop_contaminated(run_dir: Path, recipe: Recipe, found: Sequence[Question], key: str) -> dict[str, Question]:
    near = run_questions.read_overlaps(run_dir)
    rows = {row.id: row for row in found if near.get(row.id, 0.0) < recipe.filter.contamination_threshold}
    if not rows:
        hint = "name other rows, or raise filter.contamination_threshold"
        what = "every row nearly stands in a validation or test question, or holds one"
        raise UserError(what, where=key, found=f"{len(found)} rows", hint=hint)
    return rows


def replay_rows_per_step(recipe: Recipe) -> int:
    """How many rows each step replays: their share of all groups, one at least."""
    asked = recipe.train.replay
    return 0 if asked is None else examples.rows_for_share(recipe.train.prompts_per_step, asked.share)


def _prompt_and_answer(row: Question, table: dict[str, run_questions.TaskPrompt]) -> tuple[Prompt, str]:
    if row.id.startswith("replay:"):
        asked = row.text.rstrip()
        return Prompt((Turn("user", asked),), row.text[len(asked) :] or " "), row.gold
    name = "zero-shot-rationale" if row.rationale else "zero-shot-answer"
    return run_questions.evaluation_prompt(row, prompts.FORMATS[name], table), prompts.format_solution(
        row.rationale or "", row.gold
    )
