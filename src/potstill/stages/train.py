"""train: the student learns the targets, step by step, and leaves a checkpoint now and then.

Resume needs the newest checkpoint (weights and engine state) and its step; metrics written after it are cut off.
`train.steps` may grow: under a constant schedule the later steps do not change the earlier ones.
"""

from __future__ import annotations

import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from potstill import files, lessons, loss, order, progress, prompts, students, training, transfer
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
ENGINE = "engine.safetensors"


def inputs(plan: Recipe) -> dict[str, str]:
    return students.identity(plan)


def free(plan: Recipe) -> tuple[str, ...]:
    """The keys that may change without making the stage again: the number of steps, if it can only add some."""
    return ("train.steps",) if plan.train.schedule == "constant" else ()


def grown(counts: dict[str, Any], plan: Recipe) -> bool:
    """Whether a finished training has to go on, because the recipe now asks for more steps."""
    return plan.train.steps > counts["steps"]


def make(run: Path, plan: Recipe) -> tuple[list[Path], dict[str, Any]]:
    asked = plan.train
    folder, metrics = run / "train" / "checkpoints", run / "train" / "metrics.jsonl"
    newest = _newest(folder)
    student = _student(plan, folder, newest)
    optimizer = training.optimizer(student, asked.learning_rate, weight_decay=asked.weight_decay)
    if newest:
        training.restore_bytes(optimizer, files.read_bytes(folder / str(newest) / ENGINE))
    _cut(metrics, newest)
    lesson = lessons.read(run, plan, student)
    with files.Appender(metrics) as lines, progress.bar("train", asked.steps, "steps", done=newest) as tick:
        began = time.monotonic()
        for step in training.steps(
            student,
            optimizer,
            lesson.micro_batches,
            first=newest + 1,
            last=asked.steps,
            schedule=training.Schedule(asked.schedule, asked.learning_rate, asked.warm_up, asked.steps),
            clip=asked.clip,
            seed=plan.seed,
        ):
            lines.append([asdict(step)])
            tick(1, f"loss {step.loss:.4f}")
            if step.step % asked.checkpoint_every == 0 or step.step == asked.steps:
                _checkpoint(folder, step.step, student, optimizer)
        run_folder.log(run, "train", steps=asked.steps - newest, seconds=round(time.monotonic() - began, 3))
    kept = sorted(int(path.name) for path in folder.iterdir() if path.name.isdigit())
    outputs = [metrics, *(path for path in folder.rglob("*") if path.is_file())]
    return outputs, {"steps": asked.steps, "checkpoints": kept, **lesson.counts}


def _student(plan: Recipe, folder: Path, step: int) -> students.Student:
    if step == 0:
        return students.base(plan)
    return students.open(
        folder / str(step),
        mass=plan.train.mass,
        dropout=plan.student.dropout,
        trust_remote_code=plan.student.trust_remote_code,
    )


def _checkpoint(folder: Path, step: int, student: students.Student, optimizer: Any) -> None:
    """A Hugging Face folder with the engine's state in it; then the engine state of the older ones is removed."""
    with files.folder(folder / str(step)) as inside:
        student.save(inside)
        files.write(inside / ENGINE, training.state_bytes(optimizer))
    for older in folder.iterdir():
        if older.name.isdigit() and int(older.name) < step:
            files.remove(older / ENGINE)


def _newest(folder: Path) -> int:
    """The newest checkpoint that training can go on from, 0 if there is none."""
    if not folder.is_dir():
        return 0
    files.sweep(folder)
    for older in folder.iterdir():
        files.sweep(older)
    steps = [int(path.name) for path in folder.iterdir() if path.name.isdigit() and (path / ENGINE).exists()]
    newest = max(steps, default=0)
    for step in steps:  # a crash between saving the newest and this
        if step < newest:
            files.remove(folder / str(step) / ENGINE)
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
