"""train: the student learns the targets, step by step, and leaves a checkpoint now and then.

Resume needs the newest checkpoint (weights and engine state) whose metrics are complete; later metrics are cut off.
`train.steps` may grow: under a constant schedule the later steps do not change the earlier ones.

With `train.evaluate` every checkpoint answers the validation questions at once, opened from its folder, into the files
that `evaluate` would write; it then finds them. With `train.early_stopping_patience` training ends where they say so. Both look at
files alone, so a killed training comes to the same end.
"""

from __future__ import annotations

import time
from contextlib import ExitStack
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from potstill import losses, models, progress, prompts, storage, tokenization, training
from potstill.alignment import cross_tokenizer
from potstill.data import splits
from potstill.errors import UserError
from potstill.evaluation import checkpoint, selection
from potstill.models import Example
from potstill.recipe import Recipe, flatten_keys
from potstill.records import Checkpoint
from potstill.storage import manifest, run_folder
from potstill.training import data_order, examples
from potstill.training.checkpoints import (
    CheckpointWriter,
    find_newest_checkpoint,
    list_saved_steps,
    remove_digests,
    restore_checkpoint,
    truncate_metrics,
)

READS = ("train", "student", "seed", "evaluate", "select", "questions")  # the latter three if they decide the end
AFTER = ("collect", "filter", "align")
VERSIONS = {
    "lessons": examples.VERSION,
    "loss": losses.VERSION,
    "order": data_order.VERSION,
    "prompts": prompts.VERSION,
    "splits": splits.VERSION,
    "students": models.VERSION,
    "tokenizers": tokenization.VERSION,
    "training": training.VERSION,
    "transfer": cross_tokenizer.VERSION,
}
SPEED_FILE = "speed.jsonl"  # what the machine took, a line a step; no digest covers it
FREE_KEYS = (
    "sharding",
    "evaluate",
    "peak_flops",
    "async_checkpoints",
    "loss_kernel",
)  # keys of `train` that change rounding at most
LOSS_RISE_WARNING = 1.2  # a loss that ends so many times above its beginning is worth a warning
TOGETHER = True  # several processes, where they were started, make this stage as one


def inputs(recipe: Recipe) -> dict[str, str]:
    own = models.weights_identity(recipe)
    if recipe.train.early_stopping_patience is None:
        return own
    versions = {**checkpoint.versions(), "selection": selection.VERSION}
    named = {f"version of {name}": str(number) for name, number in versions.items()}
    return {**own, **checkpoint.collect_grader_digests(recipe, "validation"), **named}


def free(recipe: Recipe) -> tuple[str, ...]:
    """The keys that may change without making the stage again: where the weights lie, and the number of steps, if it
    can only add some. A choice that the recipe does not make leaves no trace."""
    absent = [
        f"train.{name}"
        for name in ("replay", "early_stopping_patience", "loss_weights")
        if getattr(recipe.train, name) is None
    ]
    absent += ["train.uniform_over"] if recipe.train.uniform_over == "questions" else []
    absent += [f"train.{name}" for name in ("divergence", "divergence_beta") if recipe.train.divergence == "forward_kl"]
    unread = (
        checkpoint.list_unused_keys("validation")
        if recipe.train.early_stopping_patience
        else flatten_keys(recipe, "evaluate", "select", "questions")
    )
    steps = ("train.steps",) if recipe.train.schedule == "constant" else ()
    return (*(f"train.{name}" for name in FREE_KEYS), *absent, *unread, *steps)


def grown(counts: dict[str, Any], recipe: Recipe) -> bool:
    """Whether a finished training has to go on, because the recipe now asks for more steps. UserError: for fewer."""
    _check_steps(counts["steps"], recipe)
    return recipe.train.steps > counts["steps"] and not counts.get("stopped")


def make(run_dir: Path, recipe: Recipe) -> tuple[list[Path], dict[str, Any]]:
    asked = recipe.train
    folder, metrics, speeds = (run_dir / "train" / name for name in ("checkpoints", "metrics.jsonl", SPEED_FILE))
    first = training.is_main_process()
    before, latest = training.broadcast_from_main(
        lambda: (find_newest_checkpoint(folder, metrics), max(list_saved_steps(folder), default=0))
    )
    _check_steps(latest, recipe)
    if before < latest:
        progress.print_line(
            f"checkpoint {latest} is not one to continue from: training continues from step {before}", "yellow"
        )
    student = _load_student(recipe, folder, before)
    if asked.gradient_checkpointing:
        student.enable_gradient_checkpointing()
    model = training.distribute_student(student, asked.sharding, asked.precision)
    loss = training.loss_from_recipe(recipe)
    loss = replace(loss, kernel=_choose_loss_kernel(student, loss, asked.loss_kernel, asked.precision))
    optimizer = training.optimizer_from_recipe(recipe, model, asked.learning_rate)
    if before:
        restore_checkpoint(folder / str(before), optimizer)
    if first:
        truncate_metrics(metrics, before)
        truncate_metrics(speeds, before)
    lesson = examples.read_training_data(run_dir, recipe, student)
    watching = (
        asked.evaluate or asked.early_stopping_patience is not None
    )  # each checkpoint answers before training goes on
    last, stopped = (
        before,
        before > 0 and watching and _evaluate_and_check_stop(run_dir, recipe, list_saved_steps(folder, before)),
    )
    with (
        ExitStack() as opened,
        CheckpointWriter(
            folder, student, optimizer, background=asked.async_checkpoints and not watching
        ) as checkpoints,
        progress.bar("train", asked.steps, "steps", done=before) as tick,
    ):
        lines, measured = (
            opened.enter_context(storage.Appender(path)) if first else None for path in (metrics, speeds)
        )
        began, tokens, work = time.monotonic(), 0, dict[int, int]()
        waiting: list[dict[str, Any]] = []
        mark, could = began, training.total_peak_flops(student.device, asked.precision, asked.peak_flops)

        def counted(step: int) -> list[list[Example]]:
            batches = lesson.micro_batches(step)
            work[step] = training.count_training_flops(student, batches)
            return batches

        for step in training.train_steps(
            model,
            optimizer,
            counted,
            first=before + 1,
            last=before if stopped else asked.steps,
            schedule=training.Schedule(
                asked.schedule, asked.learning_rate, asked.warmup_steps, asked.steps, asked.stable_steps
            ),
            max_grad_norm=asked.max_grad_norm,
            precision=asked.precision,
            seed=recipe.seed,
            loss=loss,
        ):
            done = {
                "tokens": step.tokens,
                "operations": work.pop(step.step),
                "memory": training.peak_memory_bytes(student.device),
            }
            speed = training.compute_step_speed(step.step, time.monotonic() - mark, peak=could, **done)
            if lines:
                lines.append([asdict(step)])
            waiting.append(asdict(speed))
            tokens += step.tokens
            used = "" if speed.utilisation is None else f", {speed.utilisation:.1%} of the peak"
            tick(1, f"loss {step.loss:.4f}, {speed.tokens_per_second:.0f} tokens/s{used}")
            last = step.step
            if last % asked.checkpoint_every == 0 or last == asked.steps:
                if lines and measured:
                    measured.append(waiting)
                    for file in (lines, measured):  # before the checkpoint: without them it is none to continue from
                        file.sync()
                waiting.clear()
                checkpoints.save(last)
                stopped = watching and _evaluate_and_check_stop(run_dir, recipe, list_saved_steps(folder, last))
            checkpoints.check()
            if stopped:
                break
            mark = time.monotonic()
        checkpoints.wait()
        seconds = time.monotonic() - began
        if not first:
            return [], {}
        waited = round(checkpoints.seconds, 3)
        run_folder.append_log(
            run_dir,
            "train",
            steps=last - before,
            seconds=round(seconds, 3),
            saving=waited,
            tokens=tokens,
            loss_kernel=loss.kernel,
        )
    _warn_if_loss_rose(metrics)
    remove_digests(folder)
    outputs = [metrics, *(path for path in folder.rglob("*") if path.is_file())]
    counts = {"steps": last, "checkpoints": list_saved_steps(folder), "chat_template": student.chat is not None}
    return outputs, counts | ({"stopped": True} if stopped else {}) | lesson.counts


def _warn_if_loss_rose(metrics: Path) -> None:
    """A warning where the mean loss of the last tenth of the steps is far above that of the first tenth."""
    losses = [row["loss"] for _, row in storage.read_jsonl(metrics)]
    tenth = max(1, len(losses) // 10)
    first, last = (sum(some) / tenth for some in (losses[:tenth], losses[-tenth:]))
    if last > LOSS_RISE_WARNING * first:
        progress.print_line(
            f"train     the loss rose from {first:.4g} to {last:.4g}: lower train.learning_rate", "yellow"
        )


def _evaluate_and_check_stop(run_dir: Path, recipe: Recipe, steps: list[int]) -> bool:
    """Let the checkpoints answer the validation questions; whether training is to stop.

    The first process alone asks them; the others wait for what it finds.
    """
    return training.broadcast_from_main(lambda: _evaluate_checkpoints(run_dir, recipe, steps))


def _evaluate_checkpoints(run_dir: Path, recipe: Recipe, steps: list[int]) -> bool:
    values = []
    for who in map(Checkpoint, steps):
        if (
            who.step == steps[-1] or manifest.read_finished(run_dir / "evaluate" / who.name) is None
        ):  # digests weights: once
            checkpoint.evaluate_checkpoint(run_dir, recipe, run_dir / "evaluate", who, "validation")
        values.append(selection.mean_set_accuracy(checkpoint.read_selection_outcomes(run_dir, recipe, who)))
    since = selection.count_since_best(values)
    best = f"the best so far is step {steps[-1 - since]}"
    progress.print_line(f"step {steps[-1]}: {values[-1]:.1%} on out-of-distribution validation; {best}", "dim")
    return recipe.train.early_stopping_patience is not None and since >= recipe.train.early_stopping_patience


def _choose_loss_kernel(student: models.Student, loss: losses.Loss, asked: str, precision: str) -> losses.Kernel:
    """The loss's kernel: as the recipe says, or the faster one, which is measured where that may be worth it.

    Raises UserError where the recipe wants it compiled and it cannot be.
    """
    device, weight = student.device, student.head.weight
    if asked == "plain" or loss.divergence != "forward_kl" or (asked == "measured" and device.type == "cpu"):
        return "plain"
    sizes = losses.default_chunk_rows(weight), weight.shape[0], 8, loss.missing_probability, student.head.softcap
    found = training.broadcast_from_main(lambda: losses.measure_kernels(*sizes, device, precision != "float32"))
    if asked == "compiled" and found.failure:
        raise UserError(
            "the loss cannot be compiled here",
            code="E-train-loss-kernel",
            where="train.loss_kernel",
            found=found.failure,
            hint="set train.loss_kernel: plain",
        )
    times = ", ".join(f"{name} {1000 * value:.3g} ms" for name, value in found.seconds.items())
    chosen = "compiled" if asked == "compiled" else found.kernel
    progress.print_line(f"kernel of the loss: {chosen} ({found.failure or times + ' a chunk'})", "dim")
    return chosen


def _check_steps(made: int, recipe: Recipe) -> None:
    """A training cannot be shortened: its later checkpoints would stand beside a recipe that has no such steps."""
    if recipe.train.steps < made:
        raise UserError(
            f"training has come to step {made} already",
            where="train.steps",
            found=recipe.train.steps,
            hint=f"ask for {made} or more, or consent with --redo train (makes train and all later stages again)",
        )


def _load_student(recipe: Recipe, folder: Path, step: int) -> models.Student:
    if recipe.train.lora:  # adapters lie in the engine's state; a checkpoint's weights have them merged
        student = models.from_recipe(recipe)
        models.add_adapters(student.model, recipe.train.lora, recipe.seed)
        return student
    if step == 0:
        return models.from_recipe(recipe)
    return models.from_checkpoint(recipe, folder / str(step))
