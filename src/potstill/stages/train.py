"""train: the student learns the targets, step by step, and leaves a checkpoint now and then.

Resume needs the newest checkpoint (weights and engine state) and its step; metrics written after it are cut off.
`train.steps` may grow: under a constant schedule the later steps do not change the earlier ones.
"""

from __future__ import annotations

import time
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

from potstill import files, lessons, loss, order, progress, prompts, students, training, transfer
from potstill.errors import UserError
from potstill.files import run_folder
from potstill.recipe import Recipe

READS = ("train", "student", "seed")
AFTER = ("collect", "filter", "align")
VERSIONS = {
    "loss": loss.VERSION,
    "order": order.VERSION,
    "prompts": prompts.VERSION,
    "training": training.VERSION,
    "transfer": transfer.VERSION,
}
ENGINE, SHARDS = "engine.safetensors", "engine"  # of a student that is whole; of one that is spread over processes
TOGETHER = True  # several processes, where they were started, make this stage as one


def inputs(plan: Recipe) -> dict[str, str]:
    return students.identity(plan)


def free(plan: Recipe) -> tuple[str, ...]:
    """The keys that may change without making the stage again: where the weights lie, and the number of steps, if it
    can only add some. A choice that the recipe does not make leaves no trace."""
    absent = [f"train.{name}" for name in ("replay",) if getattr(plan.train, name) is None]
    return ("train.sharding", *absent, *(("train.steps",) if plan.train.schedule == "constant" else ()))


def grown(counts: dict[str, Any], plan: Recipe) -> bool:
    """Whether a finished training has to go on, because the recipe now asks for more steps. UserError: for fewer."""
    _check_steps(counts["steps"], plan)
    return plan.train.steps > counts["steps"]


def make(run: Path, plan: Recipe) -> tuple[list[Path], dict[str, Any]]:
    asked = plan.train
    folder, metrics = run / "train" / "checkpoints", run / "train" / "metrics.jsonl"
    first = training.first()
    newest, latest = training.agreed(lambda: (_newest(folder), max(_saved(folder), default=0)))
    _check_steps(latest, plan)
    if newest < latest:
        progress.say(f"checkpoint {latest} has lost its {ENGINE}: training goes on from step {newest}", "yellow")
    student = _student(plan, folder, newest)
    if asked.recompute:
        student.model.activation_checkpointing_enable()
    model = training.distribute(student, asked.sharding, asked.precision)
    optimizer = training.optimizer(
        model,
        asked.learning_rate,
        weight_decay=asked.weight_decay,
        betas=(asked.betas[0], asked.betas[1]),
        factors=asked.factors,
        rule=asked.optimizer,
    )
    if newest:
        _restore(folder / str(newest), optimizer)
    if first:
        _cut(metrics, newest)
    lesson = lessons.read(run, plan, student)
    written = files.Appender(metrics) if first else nullcontext()
    with written as lines, progress.bar("train", asked.steps, "steps", done=newest) as tick:
        began, tokens = time.monotonic(), 0
        for step in training.steps(
            model,
            optimizer,
            lesson.micro_batches,
            first=newest + 1,
            last=asked.steps,
            schedule=training.Schedule(asked.schedule, asked.learning_rate, asked.warm_up, asked.steps, asked.hold),
            clip=asked.clip,
            precision=asked.precision,
            seed=plan.seed,
        ):
            if lines:
                lines.append([asdict(step)])
            tokens += step.tokens
            tick(1, f"loss {step.loss:.4f}")
            if step.step % asked.checkpoint_every == 0 or step.step == asked.steps:
                _checkpoint(folder, step.step, student, optimizer)
        seconds = time.monotonic() - began
        if not first:
            return [], {}
        run_folder.log(run, "train", steps=asked.steps - newest, seconds=round(seconds, 3), tokens=tokens)
    outputs = [metrics, *(path for path in folder.rglob("*") if path.is_file())]
    counts = {"steps": asked.steps, "checkpoints": _saved(folder), "chat_template": student.chat is not None}
    return outputs, counts | lesson.counts


def _check_steps(made: int, plan: Recipe) -> None:
    """A training cannot be shortened: its later checkpoints would stand beside a recipe that has no such steps."""
    if plan.train.steps < made:
        raise UserError(
            f"training has come to step {made} already",
            where="train.steps",
            found=plan.train.steps,
            do=f"ask for {made} or more, or consent with --redo train (makes train and all later stages again)",
        )


def _student(plan: Recipe, folder: Path, step: int) -> students.Student:
    if plan.train.lora:  # adapters lie in the engine's state; a checkpoint's weights have them merged
        student = students.base(plan)
        students.adapt(student, plan.train.lora, plan.seed)
        return student
    if step == 0:
        return students.base(plan)
    return students.at(plan, folder / str(step))


def _checkpoint(folder: Path, step: int, student: students.Student, optimizer: Any) -> None:
    """A Hugging Face folder with the engine's state in it; then the engine state of the older ones is removed.

    The first process alone writes it, but for the engine's state of a student that is spread over several.
    """
    weights, first = training.weights(student), training.first()
    with files.folder(folder / str(step)) if first else nullcontext() as inside:
        if first:
            assert inside is not None
            student.save(inside, weights=weights)
        if training.spread(student):
            at = training.agreed(lambda: inside)
            assert at is not None
            training.save_shards(optimizer, at / SHARDS, parameters=student.adapted)
        elif inside is not None:
            files.write(inside / ENGINE, training.state_bytes(optimizer, parameters=student.adapted))
    for older in _saved(folder) if first else []:
        if older < step:
            _remove(folder / str(older))


def _restore(checkpoint: Path, optimizer: Any) -> None:
    if (checkpoint / SHARDS).exists():
        training.restore_shards(optimizer, checkpoint / SHARDS)
    else:
        training.restore_bytes(optimizer, files.read_bytes(checkpoint / ENGINE))


def _remove(checkpoint: Path) -> None:
    """Take away the engine's state."""
    for name in (ENGINE, SHARDS):
        files.remove(checkpoint / name)


def _saved(folder: Path) -> list[int]:
    """The steps that have a checkpoint, in their order."""
    return sorted(int(path.name) for path in folder.glob("*") if path.name.isdigit())


def _newest(folder: Path) -> int:
    """The newest checkpoint that training can go on from, 0 if there is none."""
    if not folder.is_dir():
        return 0
    files.sweep(folder)
    for older in folder.iterdir():
        files.sweep(older)
    steps = [step for step in _saved(folder) if any((folder / str(step) / name).exists() for name in (ENGINE, SHARDS))]
    newest = max(steps, default=0)
    for step in steps:  # a crash between saving the newest and this
        if step < newest:
            _remove(folder / str(step))
    return newest


def _cut(metrics: Path, step: int) -> None:
    """Metrics of steps after the checkpoint will come again: keep the lines up to it."""
    if not metrics.exists():
        return
    with files.Appender(metrics):
        pass  # cuts a torn last line
    rows = [row for _, row in files.read_jsonl(metrics)]
    kept = [row for row in rows if row["step"] <= step]
    if len(kept) < len(rows):
        files.write_jsonl(metrics, kept)
