"""On-policy rollouts: texts that the student generates, with another model's distributions as targets.

    data = build_rollouts(run_dir, recipe, student, scorer)
    data.micro_batches(7)        # generates with the student's current weights, so call it right before step 7

    >>> from potstill.models import Shape, random_student
    >>> from potstill import demo, tokenization
    >>> tokenizer = tokenization.load_tokenizer(demo.DATA / "models" / "student")
    >>> student = random_student(Shape("t5", 8, 1, 2, 16, 4, tokenizer.size), tokenizer, seed=1)
    >>> [row] = teacher_forced_scores(student, [hard_example((5, 6), (7, 8), tokenizer.eos)], 2)
    >>> row.target.ids, row.target.kinds, [len(row.target.distribution(p)) in (2, 3) for p in range(3)]
    ((7, 8, 1), ('same', 'same', 'end'), [True, True, True])

A step uses training questions of generic sets, with the prompts of evaluation in the format of `select.format`. The
student answers with its weights at that step, and the scorer gives its distribution at every token of the answer. The
answers are not graded. With `on_policy.keep` a step also has questions of the task. Their answers are scored by the
selected student as it was before these steps, so that the student keeps what it learned. The texts, and with them a step,
are a function of the weights, the seed and the step. Generic questions that overlap too much with a validation or test
question (`filter.contamination_threshold`) are left out.

`teacher_forced_scores` is for a scorer with the student's tokenizer. `rescore_across_tokenizers` is for a scorer with
another tokenizer. It scores the texts as a teacher scores existing chains, and the rule `text` transfers the scores to
the student's vocabulary. Its rows have the text as the student's tokenizer encodes it, which may differ from the tokens
that the student generated.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from itertools import accumulate, takewhile
from pathlib import Path
from typing import Final

import numpy as np

from potstill import inference, prompts
from potstill.alignment import cross_tokenizer, text_rule_completions
from potstill.alignment.exact_rules import encode_chain_text
from potstill.data import run_questions
from potstill.errors import UserError
from potstill.inference import Decode, Request, ScoringEngine
from potstill.inference.transformers import hard_example, score_targets
from potstill.models import Example, Student
from potstill.recipe import Recipe
from potstill.records import END, Chain, Prompt, StopReason, Target
from potstill.teachers import local_model
from potstill.tokenization import Tokenizer
from potstill.tokenization.encoder import Encoder, get_encoder
from potstill.training import data_order, examples

ROLLOUT_FORMAT: Final = "own"  # the format under which losses and positions of generic questions are reported
TASK_FORMAT: Final = "kept"  # the format under which losses and positions of the task's questions are reported
MIN_PROBABILITY: Final = 1e-9  # lower probabilities are raised to it, so that divergences stay finite


@dataclass(frozen=True, slots=True)
class OnPolicyRollouts:
    """The rollouts of a run.

    micro_batches  function from a step to its rows in micro-batches; a call generates them
    questions      number of generic questions
    """

    micro_batches: Callable[[int], list[list[Example]]]
    questions: int


def build_rollouts(
    run_dir: Path, recipe: Recipe, student: Student, scorer: Student, task_scorer: Student | None = None
) -> OnPolicyRollouts:
    """The rollouts of a run after its checkpoint was selected.

    task_scorer  the selected student, which scores the answers to the task's questions (`on_policy.keep`)

    Raises UserError if no generic question is left.
    """
    section = recipe.on_policy
    assert section is not None, "the recipe has the section on_policy"
    questions = examples.read_generic_questions(run_dir, recipe, section.sets, "on_policy.sets")
    engine, table = inference.open_engine(student), run_questions.read_task_prompts(run_dir)
    form = prompts.FORMATS[recipe.select.format]
    generic = len(questions)
    order = examples.order_questions(recipe, section.prompts_per_step, ROLLOUT_FORMAT, questions)

    def prompt_of(name: str) -> Prompt:
        return run_questions.evaluation_prompt(questions[name], form, table)

    same_tokens = scorer.tokenizer.digest == student.tokenizer.digest
    scoring_engine = None if same_tokens else inference.open_engine(scorer)
    scorers = {}  # by format, a function that adds scores to rows
    if same_tokens:
        scorers[ROLLOUT_FORMAT] = partial(teacher_forced_scores, scorer, top_k=section.top_logprobs)
    task_order = None
    if section.keep is not None and task_scorer is not None:
        train_questions = run_questions.read_questions(run_dir, recipe.questions.train, "train")
        task_questions = {question.id: question for question in train_questions}
        scorers[TASK_FORMAT] = partial(teacher_forced_scores, task_scorer, top_k=section.top_logprobs)
        task_order = examples.order_questions(recipe, task_questions_per_step(recipe), ROLLOUT_FORMAT, task_questions)
        questions = task_questions | questions

    @lru_cache(maxsize=1 << 16)
    def encode_prompt(name: str) -> tuple[int, ...]:
        return engine.encode(prompt_of(name))

    def generate(step: int) -> Iterator[list[Example]]:
        """The rows of a step by prompt group."""
        orders = [(order, ROLLOUT_FORMAT)] + ([] if task_order is None else [(task_order, TASK_FORMAT)])
        slots = [(group.question, name) for drawn, name in orders for group in data_order.draw_groups(drawn, step)]
        requests = [
            Request((f"{step}/{slot}/{name}", index), encode_prompt(name))
            for slot, (name, _) in enumerate(slots)
            for index in range(section.samples)
        ]
        rows: dict[inference.SampleKey, Example] = {}
        decode = Decode(max_tokens=section.max_tokens, temperature=section.temperature, seed=recipe.training_seed)
        budget = recipe.train.batch_tokens
        for batch in inference.batch_requests(requests, budget, max_tokens=section.max_tokens):
            batch_requests = [requests[index] for index in batch]
            texts = engine.generate(batch_requests, decode)
            for request, text in zip(batch_requests, texts, strict=True):
                # The head may have more rows than the tokenizer has tokens. The text is cut before the first such id.
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
        batches = examples.build_micro_batches(groups, recipe.train.batch_tokens, student.padded)
        return [score(rows) for rows in batches]

    def rescore(engine: ScoringEngine, groups: list[list[Example]]) -> list[list[Example]]:
        """Score the rows of a step by a scorer with another tokenizer. All rows are scored together, because the
        completions come from the texts of the whole step."""
        rows = [row for rows in groups for row in rows if row.format == ROLLOUT_FORMAT]
        limits = {"top_k": section.top_logprobs, "budget": recipe.train.batch_tokens}
        rescored = iter(
            rescore_across_tokenizers(engine, scorer.tokenizer, student.tokenizer, prompt_of, rows, **limits)
        )
        return [[next(rescored) if row.format == ROLLOUT_FORMAT else row for row in rows] for rows in groups]

    def score(rows: list[Example]) -> list[Example]:
        """Score each row by the scorer of its format. The order of the rows stays, and rescored rows do not change."""
        parts = {name: [row for row in rows if row.format == name] for name in scorers}
        scored = {name: iter(scorers[name](part) if part else []) for name, part in parts.items()}
        return [next(scored[row.format]) if row.format in scored else row for row in rows]

    return OnPolicyRollouts(micro_batches, generic)


def task_questions_per_step(recipe: Recipe) -> int:
    """The number of the task's questions in a step, at least 1. It follows from their share `on_policy.keep`; without this
    key it is 0."""
    section = recipe.on_policy
    if section is None or section.keep is None:
        return 0
    return data_order.rows_for_share(section.prompts_per_step, section.keep)


def teacher_forced_scores(scorer: Student, rows: Sequence[Example], top_k: int) -> list[Example]:
    """The same rows with the scorer's distributions as targets, from one forward pass without dropout and gradients.

    A position gets the probabilities of the scorer's `top_k` most likely tokens and of the row's own token. Raises
    UserError if a logit is NaN.
    """
    ids, log_q = score_targets(scorer, rows, top_k, vocabulary=scorer.tokenizer.size)
    if log_q.isnan().any():
        what = "the logits of the scorer are NaN"
        raise UserError(what, code="E-on-policy-scorer-not-finite", where="on_policy.scorer", found="NaN")
    probabilities = log_q.exp().clamp_min(MIN_PROBABILITY)
    # A row's own token comes last. If it is also one of the most likely tokens, the dict keeps it at that earlier place.
    pairs = zip(ids.tolist(), probabilities.tolist(), strict=True)
    distributions = (dict(zip(tokens, values, strict=True)) for tokens, values in pairs)
    return [
        replace(row, target=_target_with_rows(row.target, [next(distributions) for _ in range(len(row.target))]))
        for row in rows
    ]


def rescore_across_tokenizers(
    scorer: ScoringEngine,
    scorer_tokenizer: Tokenizer,
    student_tokenizer: Tokenizer,
    prompt_of: Callable[[str], Prompt],
    rows: Sequence[Example],
    *,
    top_k: int,
    budget: int,
) -> list[Example]:
    """The same rows with the scorer's distributions as targets. The scorer reads the prompts in its own chat template.

    prompt_of  function from the question id of a row to its prompt
    top_k      number of the scorer's most likely tokens at each of its positions, in addition to the written token
    budget     largest number of tokens in a batch of the scorer

    Raises UserError if a text does not fit into the scorer's context, or if a logit is NaN.
    """
    stops: list[StopReason] = ["end" if row.target.kinds[-1] == "end" else "length" for row in rows]
    texts = [student_tokenizer.decode(row.target.ids) for row in rows]
    if b"\n" not in student_tokenizer.decode_bytes(student_tokenizer.encode("a\nb").ids):
        # The scorer expects a line break before the answer, but the student's tokenizer drops line breaks.
        texts = [prompts.restore_answer_line(text) for text in texts]
    chains = [
        Chain.from_text(row.question, index, text, source=row.format, stop=stop)
        for index, (row, text, stop) in enumerate(zip(rows, texts, stops, strict=True))
    ]
    pairs = [(prompt_of(chain.question), chain) for chain in chains]
    scored = local_model.score_chains(scorer, pairs, top_logprobs=top_k, batch_tokens=budget)
    completions = text_rule_completions.completions(scored, student_tokenizer)
    encoder = get_encoder(student_tokenizer)
    result = []
    for row, chain in zip(rows, scored, strict=True):
        transferred = cross_tokenizer.transfer(chain, student_tokenizer, "text", completions, scorer_tokenizer)
        if len(transferred):
            target = self_written_target(transferred, chain, encoder)
        else:  # the tokens have no text (special tokens up to the token limit), so the row gets no scores
            target = _target_with_rows(row.target, [{}] * len(row.target))
        result.append(replace(row, target=target))
    return result


def self_written_target(target: Target, chain: Chain, encoder: Encoder) -> Target:
    """Change a transferred target for a text that the student wrote.

    A hard position teaches a token that the teacher wrote. Here the student wrote it, so hard positions lose their
    distribution. The other distributions get the written token, even if it is very unlikely: as part of the tail it
    would hardly cost the student anything.
    """
    _, offsets = encode_chain_text(chain, encoder)
    starts = np.array([start for start, _ in chain.spans])
    pairs = zip(chain.tokens, chain.candidates, strict=False)
    log_probabilities = np.array([dict(step)[token] for token, step in pairs])
    end = dict(chain.candidates[-1]).get(END, -math.inf)
    rows = []
    for position, (token, kind) in enumerate(zip(target.ids, target.kinds, strict=True)):
        row = target.distribution(position)
        if kind == "hard" or (kind == "end" and row == {token: 1.0}):
            row = {}
        elif token not in row:
            value = end
            if kind != "end":  # multiply the probabilities of the scorer's tokens that start inside this token
                inside = (starts >= offsets[position, 0]) & (starts < offsets[position, 1])
                value = float(log_probabilities[inside].sum())
            row[token] = max(MIN_PROBABILITY, math.exp(value))
        rows.append(row)
    return _target_with_rows(target, rows)


def _target_with_rows(target: Target, rows: Sequence[Mapping[int, float]]) -> Target:
    """The target with other distributions. A position with an empty distribution is all tail, and adds no loss."""
    filled = [row or {token: 0.0} for token, row in zip(target.ids, rows, strict=True)]
    return Target(
        target.ids,
        [0, *accumulate(map(len, filled))],
        [token for row in filled for token in row],
        [value for row in filled for value in row.values()],
        target.kinds,
    )
