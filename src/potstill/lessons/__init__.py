"""Lessons: what each training step teaches, as micro-batches, from the files of a run.

    lesson = read(run, plan, student)
    lesson.micro_batches(1)        # the first step's examples, cut by the token budget

`order` says which questions, formats, chains and demonstrations a step has; this room turns them into prompts and
targets. A chain is a target in the formats with rationale; the bare answer, hard, is the target in the others.
`mix` says how much each format weighs, and `replayed` adds rows of what the student could do before.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Final

from potstill import order, prompts, recipe, splits, transfer, vocabulary
from potstill.errors import UserError
from potstill.files import manifest
from potstill.lessons import cuts, mix, replayed
from potstill.questions import collected
from potstill.recipe import Recipe
from potstill.records import Chain, Prompt, Question, Target
from potstill.students import Example, Student, tokenizer_folder
from potstill.targets import Origin, Targets
from potstill.tokenizers import Tokenizer

VERSION: Final = 1  # of the rows of each step, their order, weights and batches; stored by the stages that train


@dataclass(frozen=True, slots=True)
class Lesson:
    """The training data of a run.

    groups         step (from 1) -> the groups that it holds
    examples       step -> its rows, in the order of the groups; then those that are replayed, each alone
    micro_batches  step -> the same rows cut into batches, not knowing how many processes there are
    counts         what a manifest says of it
    """

    groups: Callable[[int], tuple[order.Group[prompts.Format], ...]]
    examples: Callable[[int], list[Example]]
    micro_batches: Callable[[int], list[list[Example]]]
    counts: dict[str, int]


def read(run: Path, plan: Recipe, student: Student) -> Lesson:
    """The lesson of a run whose chains are aligned. Raises UserError where a format has nothing to teach."""
    asked = {question.id: question for question in collected.questions(run, plan.questions.train, "train")}
    targets = Targets(targets_folder(run, plan), origin(run, plan, student.tokenizer))
    own: dict[str, list[int]] = {name: [] for name in asked}
    for place in range(len(targets)):
        own[targets.key(place)[0]].append(place)
    course = mix.course(plan, [(name, len(places)) for name, places in own.items()])
    replay = replayed.read(run, plan, student)
    weights: Mapping[str, float] | None = {**plan.train.loss_weights} if plan.train.loss_weights else None
    solved = _solved(plan, asked)
    # A question that stands twice, under two ids, must not be shown to its twin either: the pool holds one of them.
    shown_as = {splits.canonical(shot.question): name for name, shot in solved.items()}

    @lru_cache(maxsize=1 << 16)
    def answer(question: str) -> Target:
        text = prompts.bare(asked[question].gold)
        return transfer.transfer(Chain.from_text(question, 0, text, source="answer"), student.tokenizer, "one-hot")

    @lru_cache(maxsize=1 << 16)
    def encoded(text: str) -> tuple[int, ...]:
        return tuple(student.encode(text))

    def prompt(group: order.Group[prompts.Format]) -> Prompt:
        shown = []
        if group.format.few_shot:
            count = plan.train.demonstrations
            own_name = shown_as.get(splits.canonical(asked[group.question].text), group.question)
            chosen = order.demonstrations(plan.seed, group.turn, own_name, group.format, tuple(solved), count)
            shown = [solved[name] for name in chosen]
        return prompts.build(asked[group.question].text, group.format, shown)

    def taught(step: int) -> list[list[Example]]:
        """By group."""
        found = []
        for group in order.groups(course, step):
            ids = encoded(student.render(prompt(group)))
            own_targets = [targets[own[group.question][place]] for place in group.chains] or [answer(group.question)]
            found.append([Example(ids, one, 1.0, group.question, group.format.name) for one in own_targets])
        found = mix.weighted(found, weights)
        if replay is not None:
            weight = sum(row.weight * len(row.target) for rows in found for row in rows)
            found += [[row] for row in replay.examples(step, weight)]
        return found

    def examples(step: int) -> list[Example]:
        return [row for rows in taught(step) for row in rows]

    def micro_batches(step: int) -> list[list[Example]]:
        return cuts.micro_batches(taught(step), plan.train.batch_tokens, padded=student.padded)

    return Lesson(
        groups=lambda step: order.groups(course, step),
        examples=examples,
        micro_batches=micro_batches,
        counts={
            "questions": sum(bool(places) for places in own.values()),
            "chains": len(targets),
            **(replay.counts if replay is not None else {}),
        },
    )


def targets_folder(run: Path, plan: Recipe) -> Path:
    """Where a run's aligned chains lie."""
    return run / "align" / f"{tokenizer_folder(plan).name}-{plan.transfer.rule}"


def origin(run: Path, plan: Recipe, tokenizer: Tokenizer) -> Origin:
    """What a run's targets are made with: the student's tokenizer, the chains that were sampled, the rule."""
    sampled, filtered = (manifest.finished(run / stage) for stage in ("sample", "filter"))
    assert sampled is not None and filtered is not None, "targets come after sample and filter"
    # How words go on is told by the chains that were kept.
    chosen = {key: value for key, value in recipe.flat(plan, "transfer").items() if value is not None}
    settings = json.dumps([chosen, filtered.digest], sort_keys=True)
    return Origin(
        tokenizer.digest, sampled.digest, plan.transfer.rule, transfer.VERSION, vocabulary.digest(settings.encode())
    )


def _solved(plan: Recipe, asked: dict[str, Question]) -> dict[str, prompts.Demonstration]:
    """The training questions that can be shown as solved examples: those with a rationale (PAPER section 3), each once
    in canonical form."""
    if not any(quota and prompts.FORMATS[name].few_shot for name, quota in plan.train.formats.items()):
        return {}
    solved: dict[str, prompts.Demonstration] = {}
    forms: set[str] = set()
    for name, question in asked.items():
        form = splits.canonical(question.text)
        if question.rationale and form not in forms:
            forms.add(form)
            solved[name] = prompts.Demonstration(question.text, question.gold, question.rationale)
    if not solved:
        raise UserError(
            "no training question has a rationale to show as a demonstration",
            where="train.formats",
            found=_few_shot(plan.train.formats),
            do="give the sets rationales, or set the quota of the few-shot formats to 0",
        )
    return solved


def _few_shot(formats: Iterable[str]) -> str:
    return ", ".join(name for name in formats if name.startswith("few-shot"))
