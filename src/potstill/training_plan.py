"""What the plan of a run says about training: the mix of formats, tokens, operations and time.

    print("\n".join(lines(plan, train, parameters=250_000_000)))

Lengths are means over the first training questions and their own solutions, which stand for the teacher's chains.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

import numpy

from potstill import lessons, prompts, recipe, splits, students, tokenizers
from potstill.errors import UserError
from potstill.lessons import own
from potstill.recipe import Recipe
from potstill.records import Question
from potstill.teachers import replay

SAMPLED = 200  # training questions whose prompts and solutions are tokenized to estimate lengths
RATES = (1e13, 1e14, 4e14)  # operations a second for which a time is given


def lines(plan: Recipe, train: Sequence[Question], parameters: int | None) -> list[str]:
    """The lines on training. parameters: of the student, None if its size is not known.

    Raises UserError for what would stop training.
    """
    tokenizer = tokenizers.open(students.tokenizer_folder(plan))
    some = splits.take(train, SAMPLED)
    quotas = {prompts.FORMATS[name]: quota for name, quota in plan.train.formats.items() if quota}
    shots = [prompts.Demonstration(q.text, q.gold, q.rationale or "") for q in some[: plan.train.demonstrations]]
    chains = _chains(plan, train)
    each = lessons.mix.chains_each(plan, len(train), chains)
    tokens = supervised = 0.0
    targets: dict[str, float] = {}
    prompt_tokens: dict[str, float] = {}
    path = local(plan, plan.student.model, "student.model") if plan.student.model else None
    chat = students.spoken(plan, path) if path else None
    for format, quota in quotas.items():
        share = quota / sum(quotas.values())
        asked = [prompts.build(q.text, format, shots) for q in some]
        taught = [
            prompts.solution(q.rationale or "", q.gold) if format.rationale else prompts.bare(q.gold) for q in some
        ]
        target = targets[format.name] = _mean([len(ids.ids) + 1 for ids in tokenizer.encode_batch(taught)])
        if chat:
            prompt = _mean([len(chat.encode(chat.render(one))) for one in asked])
        else:
            prompt = _mean([len(ids.ids) + 1 for ids in tokenizer.encode_batch([one.plain for one in asked])])
        prompt_tokens[format.name] = prompt
        rows = each if format.rationale else 1
        tokens += share * (prompt + target * rows)  # the chains of a group share its prompt
        supervised += share * target * rows
    made = _formats(plan, train, chains, prompt_tokens, targets)
    a_step = tokens * plan.train.groups
    total, taught = a_step * plan.train.steps, supervised * plan.train.groups * plan.train.steps
    made += [
        f"  steps           {plan.train.steps} of {plan.train.groups} groups: {a_step:.0f} tokens a step,",
        f"                  {total:.3g} in all, of which {taught:.3g} supervised",
    ]
    if parameters is not None:
        work = 6 * parameters * total
        here = _speed()
        times = [f"{_duration(work / rate)} at {rate / 1e12:.0f} TFLOP/s" for rate in RATES]
        made += [
            f"  time            {work:.2g} operations (6 x parameters x tokens):",
            f"                  {', '.join(times)};",
            f"                  {_duration(work / here)} at the {here / 1e12:.3f} TFLOP/s of one matrix product here",
        ]
    if plan.train.stop_after is not None:
        made.append(f"  may stop        once {plan.train.stop_after} checkpoints came after the best on validation")
    if plan.repair is not None:
        made.append(f"  repair          {_repair(plan)}")
    return [*made, ""]


def _formats(
    plan: Recipe,
    train: Sequence[Question],
    chains: int | None,
    prompt_tokens: dict[str, float],
    targets: dict[str, float],
) -> list[str]:
    """A line for each format, and what its columns are."""
    lines = ["training              rows  tokens  weight  epochs  prompt  target"]
    least = ">=" if plan.teacher.kind != "human" else ""
    for part in lessons.mix.parts(plan, targets, len(train), chains):
        tokens = "-" if part.tokens is None else f"{part.tokens:.1%}"
        about = least if part.name in targets and prompts.FORMATS[part.name].rationale else ""
        epochs = "-" if part.epochs is None else f"{about}{part.epochs:.2f}"
        lengths = f" {prompt_tokens[part.name]:>7.0f} {targets[part.name]:>7.0f}" if part.name in targets else ""
        lines.append(f"  {part.name:<19} {part.rows:>5.1%} {tokens:>7} {part.weight:>7.1%} {epochs:>7}{lengths}")
    if plan.train.replay is not None:
        rows, share = lessons.replayed.count(plan), plan.train.replay.share
        lines.append(f"                  replay adds {rows} rows to each step with {share:.0%} of its weight")
    lines += [
        "                  rows, tokens, weight: shares of the rows, of the supervised tokens and of the gradient",
        "                  epochs: how often each chain is seen, or each answer in an answer-only format",
    ]
    if least and chains is not None:
        lines.append(f"                  (>=: if all {chains} chains are right and kept; fewer are seen more often)")
    n = min(len(train), SAMPLED)
    return [*lines, f"                  prompt, target: tokens, means over {n} questions and their own solutions"]


def _chains(plan: Recipe, train: Sequence[Question]) -> int | None:
    """How many chains there are to learn from at most; None if nothing is known of it."""
    teacher, cap = plan.teacher, plan.filter.cap
    if teacher.kind == "human":
        return sum(bool(question.rationale) for question in train) or None
    if teacher.kind != "replay":
        return len(train) * min(teacher.samples, cap or teacher.samples)
    path = local(plan, teacher.chains or "", "teacher.chains")
    if path is None:
        return None
    count = sum(1 for _ in replay.rows(path))
    return (min(count, len(train) * cap) if cap else count) or None


def _repair(plan: Recipe) -> str:
    asked = plan.repair
    assert asked is not None
    texts = (asked.groups + own.kept(plan)) * asked.samples
    return f"{asked.steps} steps on {texts} texts of its own each, of at most {asked.max_tokens} tokens"


def local(plan: Recipe, path: str, key: str) -> Path | None:
    try:
        return recipe.find(plan, path, key)
    except UserError:
        return None


def _mean(values: Sequence[int]) -> float:
    return sum(values) / len(values) if values else 0.0


def _speed() -> float:
    """Operations a second of one matrix product in 32 bits, the best of three."""
    n = 1024
    left = numpy.ones((n, n), dtype=numpy.float32)
    best = float("inf")
    for _ in range(3):
        began = time.perf_counter()
        numpy.matmul(left, left)
        best = min(best, time.perf_counter() - began)
    return 2 * n**3 / best


def _duration(seconds: float) -> str:
    for size, unit in ((86400, "days"), (3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.1f} s"
