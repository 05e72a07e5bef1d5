"""What all lessons count alike: rows as micro-batches, and rows of one kind beside those of another.

>>> rows_for_share(32, 0.5), rows_for_share(10, 0.01)
(32, 1)

Lessons: what each training step teaches, as micro-batches, from the files of a run.

    lesson = read(run, plan, student)
    lesson.micro_batches(1)        # the first step's examples, cut by the token budget

`order` says which questions, formats, chains and demonstrations a step has; this room turns them into prompts and
targets. A chain is a target in the formats with rationale; the bare answer, hard, is the target in the others.
`mix` says how much each format weighs, and `replayed` adds rows of what the student could do before.
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


def build_micro_batches(groups: Iterable[list[Example]], budget: int, *, padded: bool) -> list[list[Example]]:
    """The rows of a step, cut by their lengths. A student that pads computes every row by itself; another reads the
    prompt of a group once, so the rows of a group stay together.

    budget  tokens of a micro-batch
    """
    parts = [part for rows in groups for part in ([[row] for row in rows] if padded else [rows])]
    lengths = [(len(part[0].prompt), sum(len(row.target) for row in part)) for part in parts]
    cuts = data_order.split_into_micro_batches(lengths, budget, padded=padded)
    return [[row for place in cut for row in parts[place]] for cut in cuts]


def rows_for_share(groups: int, share: float) -> int:
    """How many rows a step has beside its groups, so that they are this share of both; one at least."""
    return max(1, round(groups * share / (1 - share)))


VERSION: Final = 1  # of the rows of each step, their order, weights and batches; stored by the stages that train


@dataclass(frozen=True, slots=True)
class TrainingData:
    """The training data of a run.

    groups         step (from 1) -> the groups that it holds
    examples       step -> its rows, in the order of the groups; then those that are replayed, each alone
    micro_batches  step -> the same rows cut into batches, not knowing how many processes there are
    counts         what a manifest says of it
    """

    groups: Callable[[int], tuple[data_order.PromptGroup[prompts.PromptFormat], ...]]
    examples: Callable[[int], list[Example]]
    micro_batches: Callable[[int], list[list[Example]]]
    counts: dict[str, int]


def read_training_data(run_dir: Path, recipe: Recipe, student: Student) -> TrainingData:
    """The lesson of a run whose chains are aligned. Raises UserError where a format has nothing to teach."""
    asked = {
        question.id: question for question in run_questions.read_questions(run_dir, recipe.questions.train, "train")
    }
    targets = TargetStore(targets_folder(run_dir, recipe), target_origin(run_dir, recipe, student.tokenizer))
    own: dict[str, list[int]] = {name: [] for name in asked}
    for place in range(len(targets)):
        own[targets.keys[place][0]].append(place)
    course = format_mix.build_data_order(recipe, [(name, len(places)) for name, places in own.items()])
    replay = replay_data.read_replay_rows(run_dir, recipe, student)
    weights: Mapping[str, float] | None = {**recipe.train.loss_weights} if recipe.train.loss_weights else None
    solved = _demonstration_pool(recipe, asked)
    # A question that stands twice, under two ids, must not be shown to its twin either: the pool holds one of them.
    shown_as = {splits.canonical_question(shot.question): name for name, shot in solved.items()}

    @lru_cache(maxsize=1 << 16)
    def answer(question: str) -> Target:
        text = prompts.format_answer(asked[question].gold)
        return cross_tokenizer.transfer(
            Chain.from_text(question, 0, text, source="answer"), student.tokenizer, "one-hot"
        )

    @lru_cache(maxsize=1 << 16)
    def encoded(text: str) -> tuple[int, ...]:
        return tuple(student.encode(text))

    def prompt(group: data_order.PromptGroup[prompts.PromptFormat]) -> Prompt:
        shown = []
        if group.format.few_shot:
            count = recipe.train.demonstrations
            own_name = shown_as.get(splits.canonical_question(asked[group.question].text), group.question)
            chosen = data_order.draw_demonstrations(
                recipe.seed, group.turn, own_name, group.format, tuple(solved), count
            )
            shown = [solved[name] for name in chosen]
        return prompts.build_prompt(asked[group.question].text, group.format, shown)

    def taught(step: int) -> list[list[Example]]:
        """By group."""
        found = []
        for group in data_order.draw_groups(course, step):
            ids = encoded(student.render(prompt(group)))
            own_targets = [targets[own[group.question][place]] for place in group.chains] or [answer(group.question)]
            found.append([Example(ids, one, 1.0, group.question, group.format.name) for one in own_targets])
        found = format_mix.weight_formats(found, weights)
        if replay is not None:
            weight = sum(row.weight * len(row.target) for rows in found for row in rows)
            found += [[row] for row in replay.examples(step, weight)]
        return found

    def examples(step: int) -> list[Example]:
        return [row for rows in taught(step) for row in rows]

    def micro_batches(step: int) -> list[list[Example]]:
        return build_micro_batches(taught(step), recipe.train.batch_tokens, padded=student.padded)

    return TrainingData(
        groups=lambda step: data_order.draw_groups(course, step),
        examples=examples,
        micro_batches=micro_batches,
        counts={
            "questions": sum(bool(places) for places in own.values()),
            "chains": len(targets),
            **(replay.counts if replay is not None else {}),
        },
    )


def targets_folder(run_dir: Path, recipe: Recipe) -> Path:
    """Where a run's aligned chains lie."""
    return run_dir / "align" / f"{tokenizer_folder(recipe).name}-{recipe.transfer.rule}"


def target_origin(run_dir: Path, recipe: Recipe, tokenizer: Tokenizer) -> TargetOrigin:
    """What a run's targets are made with: the student's tokenizer, the chains that were sampled, the rule."""
    sampled, filtered = (manifest.read_finished(run_dir / stage) for stage in ("sample", "filter"))
    assert sampled is not None and filtered is not None, "targets come after sample and filter"
    # How words go on is told by the chains that were kept.
    chosen = {key: value for key, value in flatten_keys(recipe, "transfer").items() if value is not None}
    settings = json.dumps([chosen, filtered.digest], sort_keys=True)
    return TargetOrigin(
        tokenizer.digest,
        sampled.digest,
        recipe.transfer.rule,
        cross_tokenizer.VERSION,
        hashlib.sha256(settings.encode()).hexdigest(),
    )


def _demonstration_pool(recipe: Recipe, asked: dict[str, Question]) -> dict[str, prompts.Demonstration]:
    """The training questions that can be shown as solved examples: those with a rationale (PAPER section 3), each once
    in canonical form."""
    if not any(quota and prompts.FORMATS[name].few_shot for name, quota in recipe.train.formats.items()):
        return {}
    solved: dict[str, prompts.Demonstration] = {}
    forms: set[str] = set()
    for name, question in asked.items():
        form = splits.canonical_question(question.text)
        if question.rationale and form not in forms:
            forms.add(form)
            solved[name] = prompts.Demonstration(question.text, question.gold, question.rationale)
    if not solved:
        raise UserError(
            "no training question has a rationale to show as a demonstration",
            where="train.formats",
            found=_few_shot_names(recipe.train.formats),
            hint="give the sets rationales, or set the quota of the few-shot formats to 0",
        )
    return solved


def _few_shot_names(formats: Iterable[str]) -> str:
    return ", ".join(name for name in formats if name.startswith("few-shot"))
