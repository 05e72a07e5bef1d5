"""Replay: rows of what the student could do before, mixed into every step so that it keeps its generic ability.

A row is a training question of a generic set, with the prompt of evaluation and its own rationale as the target (the
bare answer if it has none), or a prompt and its answer from a file. All are hard targets. Each step has a fixed number
of rows, by the share of its prompt groups, and together their positions have exactly that share of the step's weight.
Rows that overlap too much with a validation or test question are left out (`filter.contamination_threshold`).

    replay = read_replay_rows(run_dir, recipe, student)
    replay.examples(1, weight)          # the rows of step 1, whose other positions weigh `weight` together
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
from potstill.training import data_order

REPLAY_FORMAT: Final = "replay"  # under which losses and positions are reported


@dataclass(frozen=True, slots=True)
class RowFormat:
    """A `FormatLike` for rows that have none of the paper's formats."""

    name: str
    rationale: bool = False


@dataclass(frozen=True, slots=True)
class ReplayRows:
    """The rows of a run.

    examples  (step, weight of all other positions of the step) -> the step's rows
    counts    for the manifest
    """

    examples: Callable[[int, float], list[Example]]
    counts: dict[str, int]


def read_replay_rows(run_dir: Path, recipe: Recipe, student: Student) -> ReplayRows | None:
    """The replay of a run; None if its recipe has none. Raises UserError if no row is left."""
    section = recipe.train.replay
    if section is None:
        return None
    all_rows = run_questions.read_replay(run_dir, section.sets)
    rows = _drop_contaminated(run_dir, recipe, all_rows, "train.replay")
    table = run_questions.read_task_prompts(run_dir)
    order = data_order.DataOrder(
        seed=recipe.seed,
        groups_per_step=replay_rows_per_step(recipe),
        quotas={RowFormat(REPLAY_FORMAT): 1},
        questions=[(name, 0) for name in rows],
    )
    odds = section.share / (1 - section.share)

    def build_row(name: str) -> tuple[tuple[int, ...], Chain]:
        prompt, answer = _prompt_and_answer(rows[name], table)
        return tuple(student.encode(student.render(prompt))), Chain.from_text(name, 0, answer, source=REPLAY_FORMAT)

    def examples(step: int, weight: float) -> list[Example]:
        drawn = [build_row(group.question) for group in data_order.draw_groups(order, step)]
        targets = [cross_tokenizer.transfer(chain, student.tokenizer, "one-hot") for _, chain in drawn]
        position_weight = odds * weight / sum(map(len, targets))
        return [
            Example(prompt, target, position_weight, chain.question, REPLAY_FORMAT)
            for (prompt, chain), target in zip(drawn, targets, strict=True)
        ]

    dropped = len(all_rows) - len(rows)
    return ReplayRows(examples, {"replayed rows": len(rows), "rows too near to a measured question": dropped})


def read_generic_questions(run_dir: Path, recipe: Recipe, sets: Sequence[str], key: str) -> dict[str, Question]:
    """The training questions of generic sets by id, without those that overlap with evaluation.

    Raises UserError for the recipe's key if none is left.
    """
    return _drop_contaminated(run_dir, recipe, run_questions.read_questions(run_dir, sets, "train"), key)


def _drop_contaminated(run_dir: Path, recipe: Recipe, rows: Sequence[Question], key: str) -> dict[str, Question]:
    overlaps = run_questions.read_overlaps(run_dir)
    kept = {row.id: row for row in rows if overlaps.get(row.id, 0.0) < recipe.filter.contamination_threshold}
    if not kept:
        raise UserError(
            "every row overlaps with a validation or test question",
            code="E-train-replay-contaminated",
            where=key,
            found=f"{len(rows)} rows",
            hint="use other rows, or raise filter.contamination_threshold",
        )
    return kept


def replay_rows_per_step(recipe: Recipe) -> int:
    """How many rows each step replays: their share of all groups, at least one; 0 without replay."""
    section = recipe.train.replay
    return 0 if section is None else data_order.rows_for_share(recipe.train.prompts_per_step, section.share)


def _prompt_and_answer(row: Question, table: dict[str, run_questions.TaskPrompt]) -> tuple[Prompt, str]:
    if row.id.startswith("replay:"):  # from a file: trailing white space of the prompt leads to the answer
        text = row.text.rstrip()
        return Prompt((Turn("user", text),), row.text[len(text) :] or " "), row.gold
    name = "zero-shot-rationale" if row.rationale else "zero-shot-answer"
    prompt = run_questions.evaluation_prompt(row, prompts.FORMATS[name], table)
    return prompt, prompts.format_solution(row.rationale or "", row.gold)
