"""repair: the chosen student learns what another says of its own texts, so that it does again what the base could do.

Where the recipe has a section `repair`, and after the choice, which it leaves as it is: what comes of it answers
validation here, and `test` beside the chosen student. Every step samples anew from the student as it is then
(on-policy), and its gradient is that of the divergence between student and scorer at each token. Resume as in `train`:
weights, optimizer and one integer. All weights learn, in one process.
"""

from __future__ import annotations

import time
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

from potstill import (
    alignment,
    exam,
    files,
    lessons,
    loss,
    order,
    progress,
    recipe,
    students,
    teachers,
    tokenizers,
    training,
    transfer,
)
from potstill.files import run_folder
from potstill.lessons import own
from potstill.recipe import Recipe
from potstill.students import Student
from potstill.training.checkpoints import Checkpoints, cut, forget_digests, newest, restore, saved

READS = (
    *("repair", "student", "seed", "select.format", "filter.contamination", "evaluate", "questions"),
    *(f"train.{name}" for name in ("optimizer", "betas", "factors", "weight_decay", "clip", "precision")),
    "train.batch_tokens",
)
AFTER = ("collect", "train", "select")
VERSIONS = {
    **exam.versions(),
    "lessons": lessons.VERSION,
    "loss": loss.VERSION,
    "order": order.VERSION,
    "training": training.VERSION,
}


def free(plan: Recipe) -> tuple[str, ...]:
    return exam.free("validation")


def inputs(plan: Recipe) -> dict[str, str]:
    asked = plan.repair
    assert asked is not None, "the stage is there where the recipe has the section"
    named = {**students.identity(plan), **exam.graders(plan, "validation")}
    if asked.scorer is not None:
        named["repair.scorer"] = files.fingerprint(recipe.find(plan, asked.scorer, "repair.scorer"))
        # The probabilities of one with other tokens come through these.
        named |= {"teachers": str(teachers.VERSION), "transfer": str(transfer.VERSION)}
        named["version of alignment"] = str(alignment.VERSION)
    return named


def unread(run: Path, plan: Recipe) -> tuple[str, ...]:
    return exam.unread(run, plan)


def make(run: Path, plan: Recipe) -> tuple[list[Path], dict[str, Any]]:
    asked, taught = plan.repair, plan.train
    assert asked is not None
    folder, metrics = run / "repair" / "checkpoints", run / "repair" / "metrics.jsonl"
    before = newest(folder, metrics)
    student = (
        students.at(plan, folder / str(before))
        if before
        else exam.open_contender(run, plan, exam.choice(run).contender)
    )
    student.divergence, student.mass = asked.divergence, "tail"
    scorer = _scorer(plan, student)
    keeper = None if asked.keep is None else exam.open_contender(run, plan, exam.choice(run).contender)
    training.distribute(student)
    scorer.to(student.device)
    if keeper is not None:
        keeper.to(student.device)
    optimizer = training.optimizer_of(plan, student, asked.learning_rate)
    if before:
        restore(folder / str(before), optimizer)
    cut(metrics, before)
    lesson = own.read(run, plan, student, scorer, keeper)
    began = time.monotonic()
    with (
        ExitStack() as opened,
        Checkpoints(folder, student, optimizer, beside=taught.snapshot) as checkpoints,
        progress.bar("repair", asked.steps, "steps", done=before) as tick,
    ):
        lines = opened.enter_context(files.Appender(metrics))
        for step in training.steps(
            student,
            optimizer,
            lesson.micro_batches,
            first=before + 1,
            last=asked.steps,
            schedule=training.Schedule("constant", asked.learning_rate, asked.warm_up),
            clip=taught.clip,
            precision=taught.precision,
            seed=plan.seed,
        ):
            lines.append([asdict(step)])
            tick(1, f"{asked.divergence} divergence {step.loss:.4f}")
            if step.step % asked.checkpoint_every == 0 or step.step == asked.steps:
                lines.sync()  # before the checkpoint: without them it is none to continue from
                checkpoints.save(step.step)
            checkpoints.check()
    run_folder.log(run, "repair", steps=asked.steps - before, seconds=round(time.monotonic() - began, 3))
    who = exam.tested(run, plan)[-1]
    forget_digests(folder)
    outputs = [metrics, *exam.sit(run, plan, run / "repair", who, "validation")]
    outputs += [path for path in folder.rglob("*") if path.is_file()]
    learnt = sum(row["positions"] for _, row in files.read_jsonl(metrics))
    counts = {"steps": asked.steps, "checkpoints": saved(folder), "questions": lesson.questions, "positions": learnt}
    return outputs, counts


def _scorer(plan: Recipe, student: Student) -> Student:
    """The base, or the model that the recipe names; one of other tokens is asked in its own chat template, if any."""
    asked = plan.repair
    assert asked is not None
    if asked.scorer is None:
        return students.base(plan)
    folder = recipe.find(plan, asked.scorer, "repair.scorer")
    if tokenizers.open(folder).digest == student.tokenizer.digest:
        return students.at(plan, folder)
    return students.open(folder, chat_template="auto", trust_remote_code=plan.student.trust_remote_code)
