"""What the student writes itself, and what another says of it: the lesson of a repair.

    lesson = read(run, plan, student, scorer)
    lesson.micro_batches(7)        # asks the student as it is now, so call it when step 7 is due

Each step asks training questions of generic sets as evaluation does, in the format of the choice; the student answers
with the weights that it has at that step, and the scorer gives its distribution at every token of the answer, through
`retold` where its tokens are others. Nobody grades them. With `on_policy.keep` questions of the task are asked beside
them, and the chosen student as it was scores these answers, so that it keeps what it was taught. Texts, and so a step,
are a function of weights, seed and step. Generic questions that nearly stand in a validation or test question, or hold
one, are left out (`filter.contamination_threshold`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache, partial
from itertools import takewhile
from pathlib import Path
from typing import Final

from potstill import inference, models, prompts
from potstill.data import run_questions
from potstill.inference import Decode, Request, ScoringEngine
from potstill.models import Example, Student
from potstill.recipe import Recipe
from potstill.records import Prompt
from potstill.training import data_order, examples, replay_data
from potstill.training.replay_data import RowFormat
from potstill.training.teacher_scores import rescore_across_tokenizers

ROLLOUT_FORMAT: Final = "own"  # under which losses and positions are reported
TASK_FORMAT: Final = "kept"  # and those of the questions of the task


@dataclass(frozen=True, slots=True)
class OnPolicyRollouts:
    """micro_batches: step -> its rows, made now; questions: the generic ones that are asked."""

    micro_batches: Callable[[int], list[list[Example]]]
    questions: int


def build_rollouts(
    run_dir: Path, recipe: Recipe, student: Student, scorer: Student, keeper: Student | None = None
) -> OnPolicyRollouts:
    """The lesson of a run whose student was chosen. keeper: that student as it was, for `on_policy.keep`.

    Raises UserError where no question is left to ask.
    """
    asked = recipe.on_policy
    assert asked is not None, "a run that is repaired"
    rows = replay_data.read_generic_questions(run_dir, recipe, asked.sets, "on_policy.sets")
    engine, table = inference.open_engine(student), run_questions.read_task_prompts(run_dir)
    form = prompts.FORMATS[recipe.select.format]
    course, generic = _question_order(recipe, asked.prompts_per_step, list(rows)), len(rows)

    def prompt_of(name: str) -> Prompt:
        return run_questions.evaluation_prompt(rows[name], form, table)

    reader = None if scorer.tokenizer.digest == student.tokenizer.digest else inference.open_engine(scorer)
    tellers = (
        {} if reader else {ROLLOUT_FORMAT: partial(models.teacher_forced_scores, scorer, candidates=asked.top_logprobs)}
    )
    task = None
    if asked.keep is not None and keeper is not None:
        taught = {
            question.id: question for question in run_questions.read_questions(run_dir, recipe.questions.train, "train")
        }
        tellers[TASK_FORMAT] = partial(models.teacher_forced_scores, keeper, candidates=asked.top_logprobs)
        task, rows = _question_order(recipe, task_questions_per_step(recipe), list(taught)), taught | rows

    @lru_cache(maxsize=1 << 16)
    def prompt(name: str) -> tuple[int, ...]:
        return engine.encode(prompt_of(name))

    def answers(step: int) -> Iterator[list[Example]]:
        """By group."""
        asks = [(group.question, ROLLOUT_FORMAT) for group in data_order.draw_groups(course, step)]
        asks += [(group.question, TASK_FORMAT) for group in data_order.draw_groups(task, step)] if task else []
        requests = [
            Request((f"{step}/{place}/{name}", index), prompt(name))
            for place, (name, _) in enumerate(asks)
            for index in range(asked.samples)
        ]
        found: dict[inference.SampleKey, Example] = {}
        for batch in inference.batch_requests(requests, recipe.train.batch_tokens, max_tokens=asked.max_tokens):
            own = [requests[place] for place in batch]
            texts = engine.generate(
                own, Decode(max_tokens=asked.max_tokens, temperature=asked.temperature, seed=recipe.seed)
            )
            for request, text in zip(own, texts, strict=True):
                # A head may have more rows than the tokenizer has tokens; a text ends before such a one.
                ids = tuple(takewhile(lambda token: token < student.tokenizer.size, text.ids))
                whole = text.stop == "end" and len(ids) == len(text.ids)
                if ids or whole:
                    end = student.tokenizer.eos if whole else None
                    name, kind = asks[int(request.key[0].split("/")[1])]
                    found[request.key] = models.hard_example(request.prompt, ids, end, name, kind)
        for place, (name, _) in enumerate(asks):
            keys = [(f"{step}/{place}/{name}", index) for index in range(asked.samples)]
            if part := [found[key] for key in keys if key in found]:
                yield part

    def micro_batches(step: int) -> list[list[Example]]:
        groups = answers(step) if reader is None else read_by(reader, list(answers(step)))
        made = examples.build_micro_batches(groups, recipe.train.batch_tokens, padded=student.padded)
        return [scored(rows) for rows in made]

    def read_by(reader: ScoringEngine, groups: list[list[Example]]) -> list[list[Example]]:
        """By a scorer of other tokens, a whole step at once: texts say of each other how words go on."""
        rows = [row for rows in groups for row in rows if row.format == ROLLOUT_FORMAT]
        sizes = {"candidates": asked.top_logprobs, "budget": recipe.train.batch_tokens}
        made = iter(rescore_across_tokenizers(reader, scorer.tokenizer, student.tokenizer, prompt_of, rows, **sizes))
        return [[next(made) if row.format == ROLLOUT_FORMAT else row for row in rows] for rows in groups]

    def scored(rows: list[Example]) -> list[Example]:
        """Each by the one who scores questions of its kind, those of a group side by side as before; those that were
        read stay."""
        parts = {name: [row for row in rows if row.format == name] for name in tellers}
        own = {name: iter(tellers[name](part) if part else []) for name, part in parts.items()}
        return [next(own[row.format]) if row.format in own else row for row in rows]

    return OnPolicyRollouts(micro_batches, generic)


def task_questions_per_step(recipe: Recipe) -> int:
    """How many questions of the task each step asks: their share of all, one at least."""
    asked = recipe.on_policy
    return 0 if asked is None or asked.keep is None else examples.rows_for_share(asked.prompts_per_step, asked.keep)


def _question_order(recipe: Recipe, groups: int, names: list[str]) -> data_order.DataOrder[RowFormat]:
    return data_order.DataOrder(
        seed=recipe.seed,
        groups_per_step=groups,
        quotas={RowFormat(ROLLOUT_FORMAT): 1},
        questions=[(name, 0) for name in names],
    )
