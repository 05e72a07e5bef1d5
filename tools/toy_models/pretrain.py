"""Trains one toy model from a seed with potstill's own training loop, and resumes after an interruption.

An unfinished model is in `<name>.partial`: weights, optimizer, and `made.json` with the steps, the seconds and the curves
so far. One thread and one kind of machine give the same bytes, however often training was interrupted.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

from potstill import models, progress, storage, training
from potstill.alignment.cross_tokenizer import transfer
from potstill.errors import UserError
from potstill.models import Example, Student, random_student
from potstill.records import Chain
from potstill.tokenization import Tokenizer
from potstill.training import data_order
from tools.toy_models import acceptance, inits, task_mix
from tools.toy_models.curricula import Curriculum
from tools.toy_models.tokenizer_training import train_bpe, train_unigram

BLOCK: Final = 8  # steps whose rows are drawn together
BUDGET: Final = 6144  # positions of a micro-batch
OPTIMIZER: Final = "optimizer.safetensors"
PROGRESS_FILE: Final = "made.json"
FIRST_STEPS: Final = 4  # steps after which the card has a digest of the weights


def pretrain(
    name: str,
    curriculum: Curriculum,
    seed: str,
    source: task_mix.DataSource,
    under_way: Path,
    *,
    every: int = 100,
    until: int = 0,
    n: int = 64,
) -> tuple[Student, dict[str, Any]]:
    """A model and the measurements of its training: {"made_of", "step", "seconds", "curves": [{"step", "seconds",
    "losses", "shares"}]}.

    under_way  where checkpoints go; training starts from the last one
    every      steps between checkpoints, each with a point of the curves
    until      stop after this step, 0 for the whole curriculum
    n          questions of each acceptance test at a point of the curves, 0 for none

    Raises UserError if `under_way` has another curriculum, seed or world.
    """
    made_of = repr((seed, curriculum, source.world))
    last = curriculum.steps
    if (under_way / PROGRESS_FILE).is_file():
        made = storage.read_json(under_way / PROGRESS_FILE)
        if made["made_of"] != made_of:
            raise UserError(
                "the unfinished model has other settings",
                code="E-toy-partial-settings",
                where=under_way,
                hint="delete this folder",
            )
        student = models.open_student(under_way)
    else:
        made = {"made_of": made_of, "step": 0, "seconds": 0.0, "curves": []}
        student = init_student(name, curriculum, seed, source)
    optimizer = training.build_optimizer(student, curriculum.peak, betas=(0.9, 0.98), lr_multipliers=curriculum.factors)
    if made["step"]:
        training.restore_optimizer_bytes(optimizer, storage.read_bytes(under_way / OPTIMIZER))
    before, began = made["seconds"], time.monotonic()
    with progress.bar(name, last, done=made["step"]) as tick:
        for metrics in training.train_steps(
            student,
            optimizer,
            training_rows(student, curriculum, seed, source),
            first=made["step"] + 1,
            last=until or last,
            schedule=curriculum.rate,
            seed=number(f"{seed}/{name}/steps"),
        ):
            tick(1, f"loss {metrics.loss:.3f}")
            if metrics.step % every == 0 or metrics.step == last:
                passed = time.monotonic() - began
                shares = acceptance.curve(student, source, n) if n else {}
                losses = {task: round(loss, 4) for task, loss in metrics.losses.items()}
                made["step"], made["seconds"] = metrics.step, round(before + passed, 1)
                made["curves"].append(
                    {"step": metrics.step, "seconds": made["seconds"], "losses": losses, "shares": shares}
                )
                _keep(student, optimizer, made, under_way)
                began += time.monotonic() - began - passed  # the acceptance tests are not training time
                progress.print_line(f"{name} {made['curves'][-1]}", "dim")
    return student, made


def first_steps_digest(name: str, curriculum: Curriculum, seed: str, source: task_mix.DataSource) -> str:
    """Digest of the weights after the first steps: reproducible in seconds on a machine of the same kind."""
    with TemporaryDirectory() as folder:
        under_way = Path(folder) / name
        pretrain(name, curriculum, seed, source, under_way, every=FIRST_STEPS, until=FIRST_STEPS, n=0)
        return storage.file_digest(under_way / "model.safetensors")


def init_student(name: str, curriculum: Curriculum, seed: str, source: task_mix.DataSource) -> Student:
    """The model before its first step."""
    student = random_student(
        curriculum.shape, tokenizer_of(curriculum, seed, source), seed=number(f"{seed}/{name}/weights")
    )
    if curriculum.preset:
        inits.init_number_embeddings(student, seed=number(f"{seed}/{name}/numbers"))
        if student.family == "t5":
            inits.init_neighbour_attention(student)
    return student


def tokenizer_of(curriculum: Curriculum, seed: str, source: task_mix.DataSource) -> Tokenizer:
    """A tokenizer that is trained on all tasks, every number, and the plain text with every word of every family."""
    texts = [
        row.prompt.plain + row.prompt.lead + row.reply
        for task in task_mix.TASKS
        if task != "clauses"  # all of its words occur in other tasks
        for row in task_mix.draw_examples(task, f"{seed}/tokenizer", 300, source)
    ]
    texts += [" ".join(str(number) for number in range(source.world.largest + 1))] * 40
    make = train_bpe if curriculum.has_whole_problems else train_unigram
    return make(texts, curriculum.shape.vocabulary)


def training_rows(
    student: Student, curriculum: Curriculum, seed: str, source: task_mix.DataSource
) -> Callable[[int], Sequence[Sequence[Example]]]:
    """The micro-batches of a step, counted from 1: rows of similar length, of any task."""

    @lru_cache(maxsize=1)
    def block(phase: int, number: int) -> list[list[Example]]:
        steps: list[list[Example]] = [[] for _ in range(BLOCK)]
        for task, n in curriculum.phases[phase].rows.items():
            label = f"{seed}/{phase}/{number}/{task}"
            weight = curriculum.weights.get(task, 1.0)
            for index, row in enumerate(task_mix.draw_examples(task, label, n * BLOCK, source)):
                steps[index % BLOCK].append(training_example(student, row, task, weight))
        return steps

    def of(step: int) -> list[list[Example]]:
        before = 0
        for index, phase in enumerate(curriculum.phases):
            if step <= before + phase.steps:
                block_number, row = divmod(step - before - 1, BLOCK)
                return _cut(block(index, block_number)[row])
            before += phase.steps
        raise AssertionError(f"step {step} of {before}")

    return of


def training_example(student: Student, row: task_mix.TaskExample, task: str, weight: float = 1.0) -> Example:
    chain = Chain.from_text(task, 0, row.reply, source="world")
    target = transfer(chain, student.tokenizer, "one-hot")
    return Example(tuple(student.encode(student.render(row.prompt))), target, weight, format=task)


def number(label: str) -> int:
    return random.Random(label).getrandbits(31)


def _cut(examples: Sequence[Example]) -> list[list[Example]]:
    lengths = [(len(example.prompt), len(example.target)) for example in examples]
    return [[examples[index] for index in batch] for batch in data_order.split_into_micro_batches(lengths, BUDGET)]


def _keep(student: Student, optimizer: Any, made: Mapping[str, Any], under_way: Path) -> None:
    storage.remove(under_way)
    with storage.write_folder(under_way) as beside:
        student.save(beside)
        storage.write_file(beside / OPTIMIZER, training.optimizer_state_bytes(optimizer))
        storage.write_json(beside / PROGRESS_FILE, made)
