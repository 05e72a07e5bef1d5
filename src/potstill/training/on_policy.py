"""On-policy rollouts: what the student writes itself, with another model's distributions as targets.

    data = build_rollouts(run_dir, recipe, student, scorer)
    data.micro_batches(7)        # generates with the student's current weights, so call it when step 7 is due

Each step takes training questions of generic sets, with the prompts of evaluation, in the format of the selected
checkpoint. The student answers with its weights at that step, and the scorer gives its distribution at every token of
the answer; a scorer with another tokenizer scores through `teacher_scores`. Nothing grades the answers. With
`on_policy.keep` the step also takes questions of the task, whose answers the selected student scores as it was, so that
the student keeps what it learned. The texts, and so a step, are a function of weights, seed and step. Generic questions
that overlap too much with a validation or test question are left out (`filter.contamination_threshold`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache, partial
from itertools import takewhile
from pathlib import Path
from typing import Final

from potstill import inference, prompts
from potstill.data import run_questions
from potstill.inference import Decode, Request, ScoringEngine
from potstill.models import Example, Student
from potstill.recipe import Recipe
from potstill.records import Prompt
from potstill.training import data_order, examples, replay_data
from potstill.training.replay_data import RowFormat
from potstill.training.teacher_scores import hard_example, rescore_across_tokenizers, teacher_forced_scores

ROLLOUT_FORMAT: Final = "own"  # under which losses and positions are reported
TASK_FORMAT: Final = "kept"  # the same for questions of the task


@dataclass(frozen=True, slots=True)
class OnPolicyRollouts:
    """micro_batches: step -> its rows, generated now; questions: the number of generic questions."""

    micro_batches: Callable[[int], list[list[Example]]]
    questions: int


def build_rollouts(
    run_dir: Path, recipe: Recipe, student: Student, scorer: Student, task_scorer: Student | None = None
) -> OnPolicyRollouts:
    """The rollouts of a run whose checkpoint was selected. task_scorer: the selected student, for `on_policy.keep`.

    Raises UserError if no generic question is left.
    """
    section = recipe.on_policy
    assert section is not None, "the recipe has the section on_policy"
    questions = replay_data.read_generic_questions(run_dir, recipe, section.sets, "on_policy.sets")
    engine, table = inference.open_engine(student), run_questions.read_task_prompts(run_dir)
    form = prompts.FORMATS[recipe.select.format]
    order, generic = _question_order(recipe, section.prompts_per_step, list(questions)), len(questions)

    def prompt_of(name: str) -> Prompt:
        return run_questions.evaluation_prompt(questions[name], form, table)

    same_tokens = scorer.tokenizer.digest == student.tokenizer.digest
    scoring_engine = None if same_tokens else inference.open_engine(scorer)
    scorers = {}  # by format: rows -> the same rows with scores
    if same_tokens:
        scorers[ROLLOUT_FORMAT] = partial(teacher_forced_scores, scorer, top_k=section.top_logprobs)
    task_order = None
    if section.keep is not None and task_scorer is not None:
        train_questions = run_questions.read_questions(run_dir, recipe.questions.train, "train")
        task_questions = {question.id: question for question in train_questions}
        scorers[TASK_FORMAT] = partial(teacher_forced_scores, task_scorer, top_k=section.top_logprobs)
        task_order = _question_order(recipe, task_questions_per_step(recipe), list(task_questions))
        questions = task_questions | questions

    @lru_cache(maxsize=1 << 16)
    def encode_prompt(name: str) -> tuple[int, ...]:
        return engine.encode(prompt_of(name))

    def generate(step: int) -> Iterator[list[Example]]:
        """The rows of a step by prompt group."""
        slots = [(group.question, ROLLOUT_FORMAT) for group in data_order.draw_groups(order, step)]
        if task_order is not None:
            slots += [(group.question, TASK_FORMAT) for group in data_order.draw_groups(task_order, step)]
        requests = [
            Request((f"{step}/{slot}/{name}", index), encode_prompt(name))
            for slot, (name, _) in enumerate(slots)
            for index in range(section.samples)
        ]
        rows: dict[inference.SampleKey, Example] = {}
        decode = Decode(max_tokens=section.max_tokens, temperature=section.temperature, seed=recipe.seed)
        budget = recipe.train.batch_tokens
        for batch in inference.batch_requests(requests, budget, max_tokens=section.max_tokens):
            batch_requests = [requests[index] for index in batch]
            texts = engine.generate(batch_requests, decode)
            for request, text in zip(batch_requests, texts, strict=True):
                # A head may have more rows than the tokenizer has tokens; the text is cut before such a token.
                ids = tuple(takewhile(lambda token: token < student.tokenizer.size, text.ids))
                is_complete = text.stop == "end" and len(ids) == len(text.ids)
                if ids or is_complete:
                    end = student.tokenizer.eos if is_complete else None
                    name, row_format = slots[int(request.key[0].split("/")[1])]
                    rows[request.key] = hard_example(request.prompt, ids, end, name, row_format)
        for slot, (name, _) in enumerate(slots):
            keys = [(f"{step}/{slot}/{name}", index) for index in range(section.samples)]
            if group := [rows[key] for key in keys if key in rows]:
                yield group

    def micro_batches(step: int) -> list[list[Example]]:
        groups = list(generate(step))
        if scoring_engine is not None:
            groups = rescore(scoring_engine, groups)
        batches = examples.build_micro_batches(groups, recipe.train.batch_tokens, padded=student.padded)
        return [score(rows) for rows in batches]

    def rescore(engine: ScoringEngine, groups: list[list[Example]]) -> list[list[Example]]:
        """By a scorer with another tokenizer, a whole step at once: its texts provide each other's completions."""
        rows = [row for rows in groups for row in rows if row.format == ROLLOUT_FORMAT]
        rescored = iter(
            rescore_across_tokenizers(
                engine,
                scorer.tokenizer,
                student.tokenizer,
                prompt_of,
                rows,
                top_k=section.top_logprobs,
                budget=recipe.train.batch_tokens,
            )
        )
        return [[next(rescored) if row.format == ROLLOUT_FORMAT else row for row in rows] for rows in groups]

    def score(rows: list[Example]) -> list[Example]:
        """Each row by the scorer of its format, in the order of the rows; rescored rows stay."""
        parts = {name: [row for row in rows if row.format == name] for name in scorers}
        scored = {name: iter(scorers[name](part) if part else []) for name, part in parts.items()}
        return [next(scored[row.format]) if row.format in scored else row for row in rows]

    return OnPolicyRollouts(micro_batches, generic)


def task_questions_per_step(recipe: Recipe) -> int:
    """How many questions of the task each step has: their share of all, at least one; 0 without `on_policy.keep`."""
    section = recipe.on_policy
    if section is None or section.keep is None:
        return 0
    return data_order.rows_for_share(section.prompts_per_step, section.keep)


def _question_order(recipe: Recipe, groups: int, names: list[str]) -> data_order.DataOrder[RowFormat]:
    return data_order.DataOrder(
        seed=recipe.seed,
        groups_per_step=groups,
        quotas={RowFormat(ROLLOUT_FORMAT): 1},
        questions=[(name, 0) for name in names],
    )
