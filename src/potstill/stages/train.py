"""train: trains the student on the targets, step by step, and saves checkpoints.

Training resumes from the newest checkpoint (weights and engine state) whose metrics are complete; later metrics are cut
off. `train.steps` may grow: with a constant schedule, later steps do not change earlier steps.

With `train.evaluate`, each checkpoint answers the validation questions as soon as it is saved. The answers are written to
the files that the stage `evaluate` would write. With `train.early_stopping_patience`, training stops when the checkpoints
stop improving. Evaluation and early stopping depend only on files, so a killed and resumed training stops at the same
step.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

from potstill import (
    losses,
    models,
    progress,
    prompts,
    storage,
    tokenization,
    training,
)
from potstill.alignment import cross_tokenizer
from potstill.data import custom_set, grader_tasks, splits
from potstill.errors import UserError
from potstill.evaluation import checkpoint, choice, selection
from potstill.models import Example
from potstill.recipe import Recipe, flatten_keys
from potstill.records import Checkpoint
from potstill.stages import Stage, StageResult
from potstill.storage import manifest, run_folder
from potstill.storage.manifest import VERSION_PREFIX
from potstill.training import data_order, examples, on_policy, scorer_models
from potstill.training.checkpoints import (
    CheckpointWriter,
    find_newest_checkpoint,
    remove_digests,
    restore_checkpoint,
    truncate_metrics,
)
from potstill.training.own_texts import OWN_TEXTS_FILE

SPEED_FILE = "speed.jsonl"  # time and memory of each step; no digest covers it
# Keys of `train` that do not change the result, except for rounding.
FREE_KEYS = ("sharding", "evaluate", "peak_flops", "async_checkpoints", "loss_kernel", "save_adapter")
LOSS_RISE_WARNING = 1.2  # warn if the final loss is larger than the initial loss by more than this factor


class Train(Stage):
    reads = ("train", "student", "seed", "evaluate", "select", "questions")  # the last three only with early stopping
    after = ("collect", "filter", "align")
    growing = ("train.steps",)
    distributed = True

    def versions(self) -> dict[str, int]:
        return {
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

    def free(self, recipe: Recipe) -> tuple[str, ...]:
        """Keys that may change. Optional keys that are not set are among them, so that the manifest does not name them.

        The other keys concern speed; the number of steps, under a constant schedule; evaluation, without early stopping;
        and `divergence_beta`, if the divergence has no beta.
        """
        section = recipe.train
        optional = ("sources", "lengths", "replay", "on_policy", "early_stopping_patience", "loss_weights")
        unnamed = [name for name in optional if getattr(section, name) is None]
        unnamed += [] if section.load_in_4bit else ["load_in_4bit"]
        unnamed += ["uniform_over"] if section.uniform_over == "questions" else []
        unnamed += ["divergence"] if section.divergence == losses.DEFAULT_LOSS.divergence else []
        unnamed += ["steps"] if section.schedule == "constant" else []
        own = section.on_policy
        uses_beta = losses.uses_beta(section.divergence)
        if own is not None:
            uses_beta = uses_beta or (losses.uses_beta(own.divergence) and own.divergence_beta is None)
            unnamed += [] if losses.uses_beta(own.divergence) else ["on_policy.divergence_beta"]
            unnamed += [f"on_policy.{key}" for name in own.scorers for key in scorer_models.free_keys(name)]
        unnamed += [] if uses_beta else ["divergence_beta"]
        unread = (
            (*checkpoint.list_unused_keys(recipe, "validation"), *choice.list_unused_keys(recipe))
            if section.early_stopping_patience
            else flatten_keys(recipe, "evaluate", "select", "questions")
        )
        read = {"select.format"} if own is not None else set()  # the student's own texts answer prompts of this format
        return (*(f"train.{name}" for name in (*FREE_KEYS, *unnamed)), *(key for key in unread if key not in read))

    def inputs(self, recipe: Recipe, run_dir: Path | None = None) -> dict[str, str]:
        digests = models.weights_identity(recipe)
        if recipe.train.early_stopping_patience is not None:  # the checkpoints' answers determine when training stops
            versions = {**checkpoint.versions(), "selection": selection.VERSION}
            digests |= checkpoint.collect_grader_digests(recipe, "validation") | checkpoint.rounding_identity(recipe)
            digests |= {f"{VERSION_PREFIX}{name}": str(number) for name, number in versions.items()}
        if recipe.train.on_policy is not None:
            versions = scorer_models.versions(recipe)
            digests |= {f"{VERSION_PREFIX}{name}": str(number) for name, number in versions.items()}
            digests |= scorer_models.scorer_inputs(recipe)
            digests |= tokenization.thought_tags_identity(models.tokenizer_folder(recipe), "student.tokenizer")
            if any(scorer.rewards for scorer in recipe.train.on_policy.scorers.values()):
                digests |= custom_set.grader_digests(grader_tasks(recipe)) | models.identify_student_thoughts(recipe)
        return digests

    def grown(self, recipe: Recipe, counts: Mapping[str, Any]) -> bool:
        """Whether the recipe has more steps than were made. Raises UserError if it has fewer."""
        _check_steps(counts["steps"], recipe)
        return recipe.train.steps > counts["steps"] and not counts.get("stopped")

    def make(self, run_dir: Path, recipe: Recipe) -> StageResult:
        section, is_main = recipe.train, training.is_main_process()
        folder, metrics, speeds = (run_dir / "train" / name for name in ("checkpoints", "metrics.jsonl", SPEED_FILE))
        resumed, latest = training.broadcast_from_main(
            lambda: (find_newest_checkpoint(folder, metrics), max(storage.list_saved_steps(folder), default=0))
        )
        _check_steps(latest, recipe)
        if resumed < latest:
            progress.print_line(
                f"checkpoint {latest} cannot be resumed: training continues from step {resumed}", "yellow"
            )
        student = _load_student(recipe, folder, resumed)
        if section.gradient_checkpointing:
            student.enable_gradient_checkpointing()
        model = training.distribute_student(student, section.sharding, section.precision)
        loss = training.loss_from_recipe(recipe)
        loss = replace(loss, kernel=_choose_loss_kernel(student, loss, section.loss_kernel, section.precision))
        optimizer = training.optimizer_from_recipe(recipe, model, section.learning_rate)
        if resumed:
            restore_checkpoint(folder / str(resumed), optimizer)
        if is_main:
            truncate_metrics(metrics, resumed)
            truncate_metrics(speeds, resumed)
        servers = ExitStack()
        texts = _open_own_texts(run_dir, recipe, student, resumed, servers)
        training_data = examples.read_training_data(run_dir, recipe, student, texts and texts.micro_batches)
        # Whether training pauses after each checkpoint to evaluate it.
        evaluates = section.evaluate or section.early_stopping_patience is not None
        saved_steps, last, stopped = set(section.checkpoint_steps), resumed, False
        if resumed and evaluates:
            stopped = _evaluate_and_check_stop(run_dir, recipe, storage.list_saved_steps(folder, resumed))
        with (
            servers,
            ExitStack() as stack,
            CheckpointWriter(
                folder,
                student,
                optimizer,
                background=section.async_checkpoints and not evaluates,
            ) as checkpoints,
            progress.bar("train", section.steps, "steps", done=resumed) as tick,
        ):
            metrics_file, speed_file = (
                stack.enter_context(storage.Appender(path)) if is_main else None for path in (metrics, speeds)
            )
            peak_flops = training.total_peak_flops(student.device, section.precision, section.peak_flops)
            start, tokens, flops = time.monotonic(), 0, dict[int, int]()
            step_start = start

            def micro_batches(step: int) -> list[list[Example]]:
                batches = training_data.micro_batches(step)
                flops[step] = training.count_training_flops(student, batches)
                return batches

            for step in training.train_steps(
                model,
                optimizer,
                micro_batches,
                first=resumed + 1,
                last=resumed if stopped else section.steps,
                schedule=training.Schedule(
                    section.schedule, section.learning_rate, section.warmup_steps, section.steps, section.stable_steps
                ),
                max_grad_norm=section.max_grad_norm,
                precision=section.precision,
                loss=loss,
                on_policy_loss=training.on_policy_loss_from_recipe(recipe, "train.on_policy"),
                seed=recipe.training_seed,
            ):
                if texts is not None:
                    step = texts.complete(step)
                speed = training.compute_step_speed(
                    step.step,
                    time.monotonic() - step_start,
                    peak=peak_flops,
                    tokens=step.tokens,
                    operations=flops.pop(step.step),
                    memory=training.peak_memory_bytes(student.device),
                    time=time.time(),
                )
                if metrics_file and speed_file:
                    # The speed first: `potstill track` reads the time of every step in the metrics.
                    speed_file.append([asdict(speed)])
                    metrics_file.append([training.metrics_row(step)])
                tokens += step.tokens
                utilisation = "" if speed.utilisation is None else f", {speed.utilisation:.1%} of the peak"
                of_own = "" if texts is None else texts.progress_note
                tick(1, f"loss {step.loss:.4f}{of_own}, {speed.tokens_per_second:.0f} tokens/s{utilisation}")
                last = step.step
                if last in saved_steps:
                    if metrics_file and speed_file:
                        for file in (metrics_file, speed_file):
                            file.sync()  # before the checkpoint: it can be resumed only if its metrics are complete
                    checkpoints.save(last)
                    if evaluates:
                        stopped = _evaluate_and_check_stop(run_dir, recipe, storage.list_saved_steps(folder, last))
                checkpoints.check()
                if stopped:
                    break
                step_start = time.monotonic()
            checkpoints.wait()
            seconds = time.monotonic() - start
            if not is_main:
                return StageResult([], {})
            run_folder.append_log(
                run_dir,
                "train",
                steps=last - resumed,
                seconds=round(seconds, 3),
                saving=round(checkpoints.seconds, 3),
                tokens=tokens,
                loss_kernel=loss.kernel,
            )
        if texts is None:  # a divergence on the student's own texts may rise while the student learns
            _warn_if_loss_rose(metrics)
        remove_digests(folder)
        own_texts = run_dir / "train" / OWN_TEXTS_FILE
        outputs = [
            metrics,
            *([own_texts] if texts is not None else []),
            *(path for path in folder.rglob("*") if path.is_file()),
        ]
        counts = {
            "steps": last,
            "checkpoints": storage.list_saved_steps(folder),
            "chat_template": student.chat is not None,
        }
        return StageResult(outputs, counts | ({"stopped": True} if stopped else {}) | training_data.counts)


def _open_own_texts(
    run_dir: Path, recipe: Recipe, student: models.Student, resumed: int, servers: ExitStack
) -> on_policy.OwnTexts | None:
    """The texts that the student writes in the steps after `resumed`; None without `train.on_policy`.

    servers  closes the connections to servers that score them
    """
    if recipe.train.on_policy is None:
        return None
    file, writer, refresh = run_dir / "train" / OWN_TEXTS_FILE, student, None
    if training.is_sharded(student):  # texts are written by a student with all weights, in every process
        writer = _load_student(recipe, run_dir / "train" / "checkpoints", resumed).to(student.device)
        refresh = partial(training.copy_weights, student, writer)
    plan = on_policy.plan_training(run_dir, recipe, writer, file, servers)
    texts = on_policy.OwnTexts(plan, writer, refresh)
    metrics = run_dir / "train" / "metrics.jsonl"
    rows = training.broadcast_from_main(lambda: [row for _, row in storage.read_jsonl(metrics)][-1:] if resumed else [])
    texts.resume(resumed, rows[0]["written"] if rows else {})
    return texts


def _warn_if_loss_rose(metrics: Path) -> None:
    """Warn if the mean loss of the last tenth of the steps is far above the mean loss of the first tenth."""
    losses = [row["loss"] for _, row in storage.read_jsonl(metrics)]
    tenth = max(1, len(losses) // 10)
    first, last = (sum(part) / tenth for part in (losses[:tenth], losses[-tenth:]))
    if last > LOSS_RISE_WARNING * first:
        progress.print_line(
            f"train     the loss rose from {first:.4g} to {last:.4g}: lower train.learning_rate", "yellow"
        )


def _evaluate_and_check_stop(run_dir: Path, recipe: Recipe, steps: list[int]) -> bool:
    """Evaluate the checkpoints on the validation questions, in the main process. Returns whether training must stop."""
    return training.broadcast_from_main(lambda: _evaluate_checkpoints(run_dir, recipe, steps))


def _evaluate_checkpoints(run_dir: Path, recipe: Recipe, steps: list[int]) -> bool:
    values, folder, weights = [], run_dir / "evaluate", choice.rule_weights(recipe, recipe.select.rule)
    for saved in map(Checkpoint, steps):
        # Older checkpoints that are already evaluated are skipped, because `evaluate_checkpoint` would digest their weights.
        if saved.step == steps[-1] or manifest.read_finished(folder / saved.name) is None:
            checkpoint.evaluate_checkpoint(run_dir, recipe, folder, saved, "validation")
        values.append(selection.rule_value(choice.read_selection_outcomes(run_dir, recipe, saved), weights))
    extra = recipe.train.extra_checkpoints
    best, since = selection.count_since_best(values, [step not in extra for step in steps])
    best = f"best step so far: {steps[best]}"
    name = recipe.select.rule.removeprefix("mean-")
    progress.print_line(f"step {steps[-1]}: {values[-1]:.1%} on {name} validation; {best}", "dim")
    return recipe.train.early_stopping_patience is not None and since >= recipe.train.early_stopping_patience


def _choose_loss_kernel(student: models.Student, loss: losses.Loss, setting: str, precision: str) -> losses.Kernel:
    """The kernel of the loss that the recipe names; for `measured`, the faster kernel on this device.

    Raises UserError if the recipe names the compiled kernel and it cannot be compiled.
    """
    device, weight = student.device, student.head.weight
    if setting == "plain" or loss.divergence != "forward_kl" or (setting == "measured" and device.type == "cpu"):
        return "plain"
    sizes = losses.default_chunk_rows(weight), weight.shape[0], 8, loss.missing_probability, student.head.softcap
    measured = training.broadcast_from_main(lambda: losses.measure_kernels(*sizes, device, precision != "float32"))
    if setting == "compiled" and measured.failure:
        what, hint = "the loss cannot be compiled here", "set train.loss_kernel: plain"
        found = measured.failure
        raise UserError(what, code="E-train-loss-kernel", where="train.loss_kernel", found=found, hint=hint)
    times = ", ".join(f"{name} {1000 * value:.3g} ms" for name, value in measured.seconds.items())
    kernel = "compiled" if setting == "compiled" else measured.kernel
    progress.print_line(f"kernel of the loss: {kernel} ({measured.failure or times + ' per chunk'})", "dim")
    return kernel


def _check_steps(made: int, recipe: Recipe) -> None:
    """Raise UserError if training has passed the last step of the recipe, because it cannot be shortened."""
    if recipe.train.steps < made:
        what, redo = f"training has already reached step {made}", "makes train and all later stages again"
        hint = f"set train.steps to {made} or more, or allow the change with --redo train ({redo})"
        raise UserError(what, code="E-run-shrinks", where="train.steps", found=recipe.train.steps, hint=hint)


def _load_student(recipe: Recipe, folder: Path, step: int) -> models.Student:
    if recipe.train.lora:
        student, checkpoint = models.from_recipe(recipe), folder / str(step)
        student.adapter_base = models.adapter_base(recipe, student)
        # Earlier versions saved merged weights, and the adapters with the optimizer.
        has_adapter = models.is_adapter(checkpoint)
        if has_adapter:
            models.check_base(checkpoint, student.adapter_base)
        if recipe.train.load_in_4bit:
            models.check_quantization()
            models.quantize_layers(student.model, recipe.train.precision)
        models.add_adapters(student.model, recipe.train.lora, recipe.training_seed)
        if has_adapter:
            models.load_adapter(student.model, checkpoint)
        return student
    if step == 0:
        return models.from_recipe(recipe)
    return models.from_checkpoint(recipe, folder / str(step))
