"""Training data: the examples of each step as micro-batches, from the files of a run.

    data = read_training_data(run_dir, recipe, student)
    data.micro_batches(1)        # the examples of the first step, split by the token budget

`data_order` decides which questions, formats, chains and demonstrations a step has; this module builds prompts and
targets from them. In formats with a rationale the chain is the target, in the others the bare answer, as a hard target.
`format_mix` weights the formats, and `replay_data` adds rows of what the student could do before.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Final

from potstill import prompts
from potstill.alignment import cross_tokenizer
from potstill.alignment.target_store import TargetOrigin, TargetStore
from potstill.data import run_questions, splits
from potstill.errors import UserError
from potstill.models import Example, Student, tokenizer_folder
from potstill.recipe import Recipe, flatten_keys
from potstill.records import Chain, Prompt, Question, Target
from potstill.storage import manifest
from potstill.tokenization import Tokenizer
from potstill.training import data_order, format_mix, replay_data

VERSION: Final = 1  # of the rows of each step, their order, weights and batches; stored by the stages that train


@dataclass(frozen=True, slots=True)
class TrainingData:
    """The training data of a run.

    groups         step (from 1) -> its prompt groups
    examples       step -> its rows in the order of the groups, then replayed rows
    micro_batches  step -> the same rows in micro-batches, which do not depend on the number of processes
    counts         for the manifest
    """

    groups: Callable[[int], tuple[data_order.PromptGroup[prompts.PromptFormat], ...]]
    examples: Callable[[int], list[Example]]
    micro_batches: Callable[[int], list[list[Example]]]
    counts: dict[str, int]


def read_training_data(run_dir: Path, recipe: Recipe, student: Student) -> TrainingData:
    """The training data of a run whose chains are aligned. Raises UserError if a format has no target."""
    section = recipe.train
    questions = {q.id: q for q in run_questions.read_questions(run_dir, recipe.questions.train, "train")}
    targets = TargetStore(targets_folder(run_dir, recipe), target_origin(run_dir, recipe, student.tokenizer))
    targets_of: dict[str, list[int]] = {name: [] for name in questions}
    for index in range(len(targets)):
        targets_of[targets.keys[index][0]].append(index)
    order = format_mix.build_data_order(recipe, [(name, len(indices)) for name, indices in targets_of.items()])
    replay = replay_data.read_replay_rows(run_dir, recipe, student)
    loss_weights: Mapping[str, float] | None = {**section.loss_weights} if section.loss_weights else None
    pool = _demonstration_pool(recipe, questions)
    # A question may occur twice under two ids. The pool has one of them, and neither must demonstrate the other.
    pool_name = {splits.canonical_question(shot.question): name for name, shot in pool.items()}

    @lru_cache(maxsize=1 << 16)
    def answer_target(question: str) -> Target:
        text = prompts.format_answer(questions[question].gold)
        chain = Chain.from_text(question, 0, text, source="answer")
        return cross_tokenizer.transfer(chain, student.tokenizer, "one-hot")

    @lru_cache(maxsize=1 << 16)
    def encode(text: str) -> tuple[int, ...]:
        return tuple(student.encode(text))

    def build_prompt(group: data_order.PromptGroup[prompts.PromptFormat]) -> Prompt:
        text, shots = questions[group.question].text, []
        if group.format.few_shot:
            name = pool_name.get(splits.canonical_question(text), group.question)
            drawn = data_order.draw_demonstrations(
                recipe.seed, group.turn, name, group.format, tuple(pool), section.demonstrations
            )
            shots = [pool[name] for name in drawn]
        return prompts.build_prompt(text, group.format, shots)

    def rows_by_group(step: int) -> list[list[Example]]:
        groups = []
        for group in data_order.draw_groups(order, step):
            prompt, indices = encode(student.render(build_prompt(group))), targets_of[group.question]
            group_targets = [targets[indices[chain]] for chain in group.chains] or [answer_target(group.question)]
            groups.append([Example(prompt, t, 1.0, group.question, group.format.name) for t in group_targets])
        groups = format_mix.weight_formats(groups, loss_weights)
        if replay is not None:
            weight = sum(row.weight * len(row.target) for rows in groups for row in rows)
            groups += [[row] for row in replay.examples(step, weight)]
        return groups

    return TrainingData(
        groups=lambda step: data_order.draw_groups(order, step),
        examples=lambda step: [row for rows in rows_by_group(step) for row in rows],
        micro_batches=lambda step: build_micro_batches(
            rows_by_group(step), section.batch_tokens, padded=student.padded
        ),
        counts={
            "questions": sum(bool(indices) for indices in targets_of.values()),
            "chains": len(targets),
            **(replay.counts if replay is not None else {}),
        },
    )


def build_micro_batches(groups: Iterable[list[Example]], budget: int, *, padded: bool) -> list[list[Example]]:
    """The rows of a step in micro-batches of at most `budget` tokens.

    A student that pads computes every row by itself. Otherwise the prompt of a group is computed once, so the rows of a
    group stay together.
    """
    units = [unit for rows in groups for unit in ([[row] for row in rows] if padded else [rows])]
    lengths = [(len(unit[0].prompt), sum(len(row.target) for row in unit)) for unit in units]
    split = data_order.split_into_micro_batches(lengths, budget, padded=padded)
    return [[row for index in batch for row in units[index]] for batch in split]


def targets_folder(run_dir: Path, recipe: Recipe) -> Path:
    """The folder of a run's aligned chains."""
    return run_dir / "align" / f"{tokenizer_folder(recipe).name}-{recipe.transfer.rule}"


def target_origin(run_dir: Path, recipe: Recipe, tokenizer: Tokenizer) -> TargetOrigin:
    """What a run's targets are computed from: the student's tokenizer, the sampled chains, and the rule."""
    sampled, filtered = (manifest.read_finished(run_dir / stage) for stage in ("sample", "filter"))
    assert sampled is not None and filtered is not None, "sample and filter come before targets"
    # The chains that the filter kept provide the completions of the rule `text`.
    settings = {key: value for key, value in flatten_keys(recipe, "transfer").items() if value is not None}
    identity = json.dumps([settings, filtered.digest], sort_keys=True)
    return TargetOrigin(
        tokenizer.digest,
        sampled.digest,
        recipe.transfer.rule,
        cross_tokenizer.VERSION,
        hashlib.sha256(identity.encode()).hexdigest(),
    )


def _demonstration_pool(recipe: Recipe, questions: dict[str, Question]) -> dict[str, prompts.Demonstration]:
    """The training questions with a rationale (paper, section 3), each once in canonical form; {} without few-shot
    formats."""
    few_shot = [name for name, quota in recipe.train.formats.items() if quota and prompts.FORMATS[name].few_shot]
    if not few_shot:
        return {}
    pool: dict[str, prompts.Demonstration] = {}
    canonical_forms: set[str] = set()
    for name, question in questions.items():
        form = splits.canonical_question(question.text)
        if question.rationale and form not in canonical_forms:
            canonical_forms.add(form)
            pool[name] = prompts.Demonstration(question.text, question.gold, question.rationale)
    if not pool:
        raise UserError(
            "no training question has a rationale for a demonstration",
            code="E-train-no-demonstrations",
            where="train.formats",
            found=", ".join(few_shot),
            hint="add rationales to the sets, or set the quota of the few-shot formats to 0",
        )
    return pool
