"""train: the student learns the targets, step by step, and leaves a checkpoint now and then.

Resume needs the newest checkpoint (weights and engine state) whose metrics are complete; later metrics are cut off.
`train.steps` may grow: under a constant schedule the later steps do not change the earlier ones.

With `train.evaluate` every checkpoint answers the validation questions at once, opened from its folder, into the files
that `evaluate` would write; it then finds them. With `train.stop_after` training ends where they say so. Both look at
files alone, so a killed training comes to the same end.
"""

from __future__ import annotations

import time
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

from potstill import (
    exam,
    files,
    lessons,
    loss,
    order,
    progress,
    prompts,
    recipe,
    selection,
    splits,
    students,
    tokenizers,
    training,
    transfer,
)
from potstill.contenders import Contender
from potstill.errors import UserError
from potstill.files import manifest, run_folder
from potstill.recipe import Recipe
from potstill.students import Example
from potstill.training.checkpoints import Checkpoints, cut, forget_digests, newest, restore, saved

READS = ("train", "student", "seed", "evaluate", "select", "questions")  # the latter three if they decide the end
AFTER = ("collect", "filter", "align")
VERSIONS = {
    "lessons": lessons.VERSION,
    "loss": loss.VERSION,
    "order": order.VERSION,
    "prompts": prompts.VERSION,
    "splits": splits.VERSION,
    "students": students.VERSION,
    "tokenizers": tokenizers.VERSION,
    "training": training.VERSION,
    "transfer": transfer.VERSION,
}
SPEED = "speed.jsonl"  # what the machine took, a line a step; no digest covers it
FREE = ("sharding", "evaluate", "peak", "snapshot", "loss_kernel")  # keys of `train` that change rounding at most
RISEN = 1.2  # a loss that ends so many times above its beginning is worth a warning
TOGETHER = True  # several processes, where they were started, make this stage as one


def inputs(plan: Recipe) -> dict[str, str]:
    own = students.identity(plan)
    if plan.train.stop_after is None:
        return own
    versions = {**exam.versions(), "selection": selection.VERSION}
    named = {f"version of {name}": str(number) for name, number in versions.items()}
    return {**own, **exam.graders(plan, "validation"), **named}


def free(plan: Recipe) -> tuple[str, ...]:
    """The keys that may change without making the stage again: where the weights lie, and the number of steps, if it
    can only add some. A choice that the recipe does not make leaves no trace."""
    absent = [f"train.{name}" for name in ("replay", "stop_after", "loss_weights") if getattr(plan.train, name) is None]
    absent += ["train.uniform_over"] if plan.train.uniform_over == "questions" else []
    unread = exam.free("validation") if plan.train.stop_after else recipe.flat(plan, "evaluate", "select", "questions")
    steps = ("train.steps",) if plan.train.schedule == "constant" else ()
    return (*(f"train.{name}" for name in FREE), *absent, *unread, *steps)


def grown(counts: dict[str, Any], plan: Recipe) -> bool:
    """Whether a finished training has to go on, because the recipe now asks for more steps. UserError: for fewer."""
    _check_steps(counts["steps"], plan)
    return plan.train.steps > counts["steps"] and not counts.get("stopped")


def make(run: Path, plan: Recipe) -> tuple[list[Path], dict[str, Any]]:
    asked = plan.train
    folder, metrics, speeds = (run / "train" / name for name in ("checkpoints", "metrics.jsonl", SPEED))
    first = training.first()
    before, latest = training.agreed(lambda: (newest(folder, metrics), max(saved(folder), default=0)))
    _check_steps(latest, plan)
    if before < latest:
        progress.say(
            f"checkpoint {latest} is not one to continue from: training continues from step {before}", "yellow"
        )
    student = _student(plan, folder, before)
    if asked.recompute:
        student.checkpoint_activations()
    model = training.distribute(student, asked.sharding, asked.precision)
    student.kernel = _kernel(student, asked.loss_kernel, asked.precision)
    optimizer = training.optimizer_of(plan, model, asked.learning_rate)
    if before:
        restore(folder / str(before), optimizer)
    if first:
        cut(metrics, before)
        cut(speeds, before)
    lesson = lessons.read(run, plan, student)
    watching = asked.evaluate or asked.stop_after is not None  # each checkpoint answers before training goes on
    last, stopped = before, before > 0 and watching and _watched(run, plan, saved(folder, before))
    with (
        ExitStack() as opened,
        Checkpoints(folder, student, optimizer, beside=asked.snapshot and not watching) as checkpoints,
        progress.bar("train", asked.steps, "steps", done=before) as tick,
    ):
        lines, measured = (opened.enter_context(files.Appender(path)) if first else None for path in (metrics, speeds))
        began, tokens, work = time.monotonic(), 0, dict[int, int]()
        waiting: list[dict[str, Any]] = []
        mark, could = began, training.peak(student.device, asked.precision, asked.peak)

        def counted(step: int) -> list[list[Example]]:
            batches = lesson.micro_batches(step)
            work[step] = students.operations(student, batches)
            return batches

        for step in training.steps(
            model,
            optimizer,
            counted,
            first=before + 1,
            last=before if stopped else asked.steps,
            schedule=training.Schedule(asked.schedule, asked.learning_rate, asked.warm_up, asked.steps, asked.hold),
            clip=asked.clip,
            precision=asked.precision,
            seed=plan.seed,
        ):
            done = {"tokens": step.tokens, "operations": work.pop(step.step), "memory": training.memory(student.device)}
            speed = training.speed(step.step, time.monotonic() - mark, peak=could, **done)
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
                stopped = watching and _watched(run, plan, saved(folder, last))
            checkpoints.check()
            if stopped:
                break
            mark = time.monotonic()
        checkpoints.wait()
        seconds = time.monotonic() - began
        if not first:
            return [], {}
        waited = round(checkpoints.seconds, 3)
        run_folder.log(
            run,
            "train",
            steps=last - before,
            seconds=round(seconds, 3),
            saving=waited,
            tokens=tokens,
            loss_kernel=student.kernel,
        )
    _say_of_loss(metrics)
    forget_digests(folder)
    outputs = [metrics, *(path for path in folder.rglob("*") if path.is_file())]
    counts = {"steps": last, "checkpoints": saved(folder), "chat_template": student.chat is not None}
    return outputs, counts | ({"stopped": True} if stopped else {}) | lesson.counts


def _say_of_loss(metrics: Path) -> None:
    """A warning where the mean loss of the last tenth of the steps is far above that of the first tenth."""
    losses = [row["loss"] for _, row in files.read_jsonl(metrics)]
    tenth = max(1, len(losses) // 10)
    first, last = (sum(some) / tenth for some in (losses[:tenth], losses[-tenth:]))
    if last > RISEN * first:
        progress.say(f"train     the loss rose from {first:.4g} to {last:.4g}: lower train.learning_rate", "yellow")


def _watched(run: Path, plan: Recipe, steps: list[int]) -> bool:
    """Let the checkpoints answer the validation questions; whether training is to stop.

    The first process alone asks them; the others wait for what it finds.
    """
    return training.agreed(lambda: _answers(run, plan, steps))


def _answers(run: Path, plan: Recipe, steps: list[int]) -> bool:
    values = []
    for who in map(Contender, steps):
        if who.step == steps[-1] or manifest.finished(run / "evaluate" / who.name) is None:  # digests weights: once
            exam.sit(run, plan, run / "evaluate", who, "validation")
        values.append(selection.value(exam.right(run, plan, who)))
    since = selection.since_best(values)
    best = f"the best so far is step {steps[-1 - since]}"
    progress.say(f"step {steps[-1]}: {values[-1]:.1%} on out-of-distribution validation; {best}", "dim")
    return plan.train.stop_after is not None and since >= plan.train.stop_after


def _kernel(student: students.Student, asked: str, precision: str) -> loss.Kernel:
    """The loss's kernel: as the recipe says, or the faster one, which is measured where that may be worth it.

    Raises UserError where the recipe wants it compiled and it cannot be.
    """
    device, weight = student.device, student.head.weight
    if asked == "plain" or (asked == "measured" and device.type == "cpu"):
        return "plain"
    sizes = loss.chunk_rows(weight), weight.shape[0], 8, student.mass, student.head.cap
    found = training.agreed(lambda: loss.measured(*sizes, device, precision != "float32"))
    if asked == "compiled" and found.why:
        raise UserError("the loss cannot be compiled here", where="train.loss_kernel", found=found.why, do="take plain")
    times = ", ".join(f"{name} {1000 * value:.3g} ms" for name, value in found.seconds.items())
    chosen = "compiled" if asked == "compiled" else found.kernel
    progress.say(f"kernel of the loss: {chosen} ({found.why or times + ' a chunk'})", "dim")
    return chosen


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
