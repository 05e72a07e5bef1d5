"""repair: on-policy training, which restores abilities that the student lost when it was specialized.

The stage runs after `select` if the recipe has the section `on_policy`. The chosen student answers questions, and learns
the distribution of a scorer (the base or another model) at every token of its own texts. Each step samples texts from the
current student; its gradient is the gradient of the divergence between student and scorer. The stage trains all weights,
in one process, and resumes from weights, optimizer and step, as `train` does.

The texts are stored in `own_texts.jsonl`. The grader judges them, but its verdicts change nothing: they show what the student
writes.

The result does not change the choice of `select`. It answers the validation questions here, and the test questions in
`test`, next to the chosen student.
"""

from __future__ import annotations

import time
from pathlib import Path

from potstill import alignment, losses, models, progress, storage, teachers, tokenization, training
from potstill.alignment import cross_tokenizer
from potstill.data import custom_set, grader_tasks
from potstill.evaluation import checkpoint, choice
from potstill.models import Student
from potstill.recipe import Recipe
from potstill.stages import Stage, StageResult
from potstill.storage import run_folder
from potstill.training import data_order, examples, on_policy, own_texts
from potstill.training.checkpoints import (
    CheckpointWriter,
    find_newest_checkpoint,
    remove_digests,
    restore_checkpoint,
    truncate_metrics,
)


class Repair(Stage):
    reads = (
        *("on_policy", "student", "seed", "select.format", "filter.contamination_threshold", "evaluate", "questions"),
        *("train.optimizer", "train.betas", "train.lr_multipliers", "train.weight_decay", "train.max_grad_norm"),
        *("train.precision", "train.batch_tokens", "train.divergence_beta"),
    )
    after = ("collect", "train", "select")

    def versions(self) -> dict[str, int]:
        return {
            **checkpoint.versions(),
            "lessons": examples.VERSION,
            "loss": losses.VERSION,
            "order": data_order.VERSION,
            "own texts": own_texts.VERSION,
            "training": training.VERSION,
        }

    def free(self, recipe: Recipe) -> tuple[str, ...]:
        section = recipe.on_policy
        unused = {"train.divergence_beta", "on_policy.divergence_beta"}
        if section is not None and losses.uses_beta(section.divergence):
            used = "train" if section.divergence_beta is None else "on_policy"
            unused.remove(f"{used}.divergence_beta")
        return (*checkpoint.list_unused_keys(recipe, "validation"), *unused)

    def inputs(self, recipe: Recipe, run_dir: Path | None = None) -> dict[str, str]:
        section = recipe.on_policy
        assert section is not None, "the stage exists only if the recipe has the section"
        digests = {**models.weights_identity(recipe), **checkpoint.collect_grader_digests(recipe, "validation")}
        digests |= custom_set.grader_digests(grader_tasks(recipe))
        if section.scorer is not None:
            digests |= models.find_scorer(recipe).identity("on_policy.scorer")
            # These packages transfer the probabilities of a scorer with another tokenizer.
            digests |= {"teachers": str(teachers.VERSION), "transfer": str(cross_tokenizer.VERSION)}
            digests["version of alignment"] = str(alignment.VERSION)
        return digests

    def unread(self, run_dir: Path, recipe: Recipe) -> tuple[str, ...]:
        return choice.list_unused_checkpoints(run_dir, recipe)

    def make(self, run_dir: Path, recipe: Recipe) -> StageResult:
        section = recipe.on_policy
        folder, metrics = run_dir / "repair" / "checkpoints", run_dir / "repair" / "metrics.jsonl"
        assert section is not None, "the stage exists only if the recipe has the section"
        first_step = find_newest_checkpoint(folder, metrics) + 1
        newest = folder / str(first_step - 1) if first_step > 1 else None

        def open_choice() -> Student:
            chosen = checkpoint.read_choice(run_dir).checkpoint
            return checkpoint.open_checkpoint(run_dir, recipe, chosen, rounded=False)

        student = open_choice() if newest is None else models.from_checkpoint(recipe, newest)
        scorer = _load_scorer(recipe, student)
        keeper = None if section.keep is None else open_choice()
        training.distribute_student(student)
        scorer.to(student.device)
        if keeper is not None:
            keeper.to(student.device)
        optimizer = training.optimizer_from_recipe(recipe, student, section.learning_rate)
        if newest is not None:
            restore_checkpoint(newest, optimizer)
        truncate_metrics(metrics, first_step - 1)
        file = run_dir / "repair" / own_texts.OWN_TEXTS_FILE
        texts = on_policy.OwnTexts(on_policy.plan_repair(run_dir, recipe, student, scorer, keeper, file), student)
        texts.resume(first_step - 1, {})
        start = time.monotonic()
        with (
            storage.Appender(metrics) as metrics_file,
            CheckpointWriter(folder, student, optimizer, background=recipe.train.async_checkpoints) as checkpoints,
            progress.bar("repair", section.steps, "steps", done=first_step - 1) as tick,
        ):
            for step in training.train_steps(
                student,
                optimizer,
                texts.micro_batches,
                first=first_step,
                last=section.steps,
                schedule=training.Schedule("constant", section.learning_rate, section.warmup_steps),
                max_grad_norm=recipe.train.max_grad_norm,
                precision=recipe.train.precision,
                on_policy_loss=training.on_policy_loss_from_recipe(recipe, "on_policy"),
                seed=recipe.training_seed,
            ):
                step = texts.complete(step)
                metrics_file.append([training.metrics_row(step)])
                tick(1, f"{section.divergence} divergence {step.loss:.4f}{texts.progress_note}")
                if step.step % section.checkpoint_every == 0 or step.step == section.steps:
                    metrics_file.sync()  # before the checkpoint: it can be resumed only if its metrics are complete
                    checkpoints.save(step.step)
                checkpoints.check()
        seconds = round(time.monotonic() - start, 3)
        run_folder.append_log(run_dir, "repair", steps=section.steps - first_step + 1, seconds=seconds)
        remove_digests(folder)
        result = choice.on_policy_result(run_dir, recipe)
        outputs = [
            metrics,
            file,
            *checkpoint.evaluate_checkpoint(run_dir, recipe, run_dir / "repair", result, "validation"),
        ]
        outputs += [path for path in folder.rglob("*") if path.is_file()]
        counts = {
            "steps": section.steps,
            "checkpoints": storage.list_saved_steps(folder),
            "questions": len(texts.plan.parts[0].questions),
            "positions": sum(row["positions"] for _, row in storage.read_jsonl(metrics)),
        }
        return StageResult(outputs, counts)


def _load_scorer(recipe: Recipe, student: Student) -> Student:
    """The scorer: the base, or the model that the recipe names. With another tokenizer, it uses its own chat template."""
    assert recipe.on_policy is not None
    if recipe.on_policy.scorer is None:
        return models.from_recipe(recipe)
    folder = models.find_scorer(recipe).folder
    if tokenization.load_tokenizer(folder).digest == student.tokenizer.digest:
        return models.from_checkpoint(recipe, folder)
    return models.open_student(folder, chat_template="auto", trust_remote_code=recipe.student.trust_remote_code)
