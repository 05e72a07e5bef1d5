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

from potstill import alignment, losses, models, progress, storage, teachers, tokenization, training
from potstill.alignment import cross_tokenizer
from potstill.evaluation import checkpoint
from potstill.models import Student
from potstill.recipe import Recipe, find_path
from potstill.storage import run_folder
from potstill.training import data_order, examples, on_policy
from potstill.training.checkpoints import (
    CheckpointWriter,
    find_newest_checkpoint,
    list_saved_steps,
    remove_digests,
    restore_checkpoint,
    truncate_metrics,
)

READS = (
    *("on_policy", "student", "seed", "select.format", "filter.contamination_threshold", "evaluate", "questions"),
    *(
        f"train.{name}"
        for name in ("optimizer", "betas", "lr_multipliers", "weight_decay", "max_grad_norm", "precision")
    ),
    "train.batch_tokens",
)
AFTER = ("collect", "train", "select")
VERSIONS = {
    **checkpoint.versions(),
    "lessons": examples.VERSION,
    "loss": losses.VERSION,
    "order": data_order.VERSION,
    "training": training.VERSION,
}


def free(recipe: Recipe) -> tuple[str, ...]:
    return checkpoint.list_unused_keys("validation")


def inputs(recipe: Recipe) -> dict[str, str]:
    asked = recipe.on_policy
    assert asked is not None, "the stage is there where the recipe has the section"
    named = {**models.weights_identity(recipe), **checkpoint.collect_grader_digests(recipe, "validation")}
    if asked.scorer is not None:
        named["on_policy.scorer"] = storage.folder_fingerprint(find_path(recipe, asked.scorer, "on_policy.scorer"))
        # The probabilities of one with other tokens come through these.
        named |= {"teachers": str(teachers.VERSION), "transfer": str(cross_tokenizer.VERSION)}
        named["version of alignment"] = str(alignment.VERSION)
    return named


def unread(run_dir: Path, recipe: Recipe) -> tuple[str, ...]:
    return checkpoint.list_unused_checkpoints(run_dir, recipe)


def make(run_dir: Path, recipe: Recipe) -> tuple[list[Path], dict[str, Any]]:
    asked, taught = recipe.on_policy, recipe.train
    assert asked is not None
    folder, metrics = run_dir / "repair" / "checkpoints", run_dir / "repair" / "metrics.jsonl"
    before = find_newest_checkpoint(folder, metrics)
    student = (
        models.from_checkpoint(recipe, folder / str(before))
        if before
        else checkpoint.open_checkpoint(run_dir, recipe, checkpoint.read_choice(run_dir).checkpoint)
    )
    loss = training.loss_from_recipe(recipe, "on_policy")
    scorer = _load_scorer(recipe, student)
    keeper = (
        None
        if asked.keep is None
        else checkpoint.open_checkpoint(run_dir, recipe, checkpoint.read_choice(run_dir).checkpoint)
    )
    training.distribute_student(student)
    scorer.to(student.device)
    if keeper is not None:
        keeper.to(student.device)
    optimizer = training.optimizer_from_recipe(recipe, student, asked.learning_rate)
    if before:
        restore_checkpoint(folder / str(before), optimizer)
    truncate_metrics(metrics, before)
    lesson = on_policy.build_rollouts(run_dir, recipe, student, scorer, keeper)
    began = time.monotonic()
    with (
        ExitStack() as opened,
        CheckpointWriter(folder, student, optimizer, background=taught.async_checkpoints) as checkpoints,
        progress.bar("repair", asked.steps, "steps", done=before) as tick,
    ):
        lines = opened.enter_context(storage.Appender(metrics))
        for step in training.train_steps(
            student,
            optimizer,
            lesson.micro_batches,
            first=before + 1,
            last=asked.steps,
            schedule=training.Schedule("constant", asked.learning_rate, asked.warmup_steps),
            max_grad_norm=taught.max_grad_norm,
            precision=taught.precision,
            seed=recipe.seed,
            loss=loss,
        ):
            lines.append([asdict(step)])
            tick(1, f"{asked.divergence} divergence {step.loss:.4f}")
            if step.step % asked.checkpoint_every == 0 or step.step == asked.steps:
                lines.sync()  # before the checkpoint: without them it is none to continue from
                checkpoints.save(step.step)
            checkpoints.check()
    run_folder.append_log(run_dir, "repair", steps=asked.steps - before, seconds=round(time.monotonic() - began, 3))
    who = checkpoint.list_checkpoints_to_test(run_dir, recipe)[-1]
    remove_digests(folder)
    outputs = [metrics, *checkpoint.evaluate_checkpoint(run_dir, recipe, run_dir / "repair", who, "validation")]
    outputs += [path for path in folder.rglob("*") if path.is_file()]
    learnt = sum(row["positions"] for _, row in storage.read_jsonl(metrics))
    counts = {
        "steps": asked.steps,
        "checkpoints": list_saved_steps(folder),
        "questions": lesson.questions,
        "positions": learnt,
    }
    return outputs, counts


def _load_scorer(recipe: Recipe, student: Student) -> Student:
    """The base, or the model that the recipe names; one of other tokens is asked in its own chat template, if any."""
    asked = recipe.on_policy
    assert asked is not None
    if asked.scorer is None:
        return models.from_recipe(recipe)
    folder = find_path(recipe, asked.scorer, "on_policy.scorer")
    if tokenization.load_tokenizer(folder).digest == student.tokenizer.digest:
        return models.from_checkpoint(recipe, folder)
    return models.open_student(folder, chat_template="auto", trust_remote_code=recipe.student.trust_remote_code)
