"""Makes one model of the package from a seed, with the house's own loop, and goes on where it was interrupted.

A model under way lies in `<name>.partial`: weights, optimizer, and `made.json` with the steps, the seconds and the
curves so far. One thread and one kind of machine give the same bytes, however often it was interrupted.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

from potstill import models, progress, storage, tokenization, training
from potstill.alignment.cross_tokenizer import transfer
from potstill.errors import UserError
from potstill.miniature import acceptance, task_mix
from potstill.miniature.curricula import Curriculum
from potstill.models import Example, Student, presets, random_student
from potstill.records import Chain
from potstill.tokenization import Tokenizer
from potstill.training import data_order

BLOCK: Final = 8  # steps whose rows are drawn together
BUDGET: Final = 6144  # places of a micro-batch
OPTIMIZER: Final = "optimizer.safetensors"
PROGRESS_FILE: Final = "made.json"
FIRST_STEPS: Final = 4  # steps whose digest stands in the card


def pretrain(
    name: str,
    course: Curriculum,
    seed: str,
    kitchen: task_mix.DataSource,
    under_way: Path,
    *,
    every: int = 100,
    until: int = 0,
    n: int = 64,
) -> tuple[Student, dict[str, Any]]:
    """A model and what was measured while it was made: {"made_of", "step", "seconds", "curves": [{"step", "seconds",
    "losses", "shares"}]}.

    under_way  where checkpoints go; the last of them is where it begins
    every      steps between checkpoints, each with a point of the curves
    until      stop after this step, 0 for the whole course
    n          questions of each gate at a point of the curves, 0 for none

    Raises UserError where `under_way` was begun with another course, seed or world.
    """
    made_of = repr((seed, course, kitchen.world))
    last = course.steps
    if (under_way / PROGRESS_FILE).is_file():
        made = storage.read_json(under_way / PROGRESS_FILE)
        if made["made_of"] != made_of:
            raise UserError("the model under way was begun otherwise", where=under_way, hint="remove this folder")
        student = models.open_student(under_way)
    else:
        made = {"made_of": made_of, "step": 0, "seconds": 0.0, "curves": []}
        student = init_student(name, course, seed, kitchen)
    optimizer = training.build_optimizer(student, course.peak, betas=(0.9, 0.98), factors=course.factors)
    if made["step"]:
        training.restore_optimizer_bytes(optimizer, storage.read_bytes(under_way / OPTIMIZER))
    before, began = made["seconds"], time.monotonic()
    with progress.bar(name, last, done=made["step"]) as tick:
        for metrics in training.train_steps(
            student,
            optimizer,
            training_rows(student, course, seed, kitchen),
            first=made["step"] + 1,
            last=until or last,
            schedule=course.rate,
            seed=number(f"{seed}/{name}/steps"),
        ):
            tick(1, f"loss {metrics.loss:.3f}")
            if metrics.step % every == 0 or metrics.step == last:
                passed = time.monotonic() - began
                shares = acceptance.curve(student, kitchen, n) if n else {}
                losses = {dish: round(loss, 4) for dish, loss in metrics.losses.items()}
                made["step"], made["seconds"] = metrics.step, round(before + passed, 1)
                made["curves"].append(
                    {"step": metrics.step, "seconds": made["seconds"], "losses": losses, "shares": shares}
                )
                _keep(student, optimizer, made, under_way)
                began += time.monotonic() - began - passed  # what examining takes is no training
                progress.print_line(f"{name} {made['curves'][-1]}", "dim")
    return student, made


def first_steps_digest(name: str, course: Curriculum, seed: str, kitchen: task_mix.DataSource) -> str:
    """Digest of the weights after the first steps: what anybody can make again in seconds on a machine of that kind."""
    with TemporaryDirectory() as folder:
        under_way = Path(folder) / name
        pretrain(name, course, seed, kitchen, under_way, every=FIRST_STEPS, until=FIRST_STEPS, n=0)
        return storage.file_digest(under_way / "model.safetensors")


def init_student(name: str, course: Curriculum, seed: str, kitchen: task_mix.DataSource) -> Student:
    """The model before its first step."""
    student = random_student(course.shape, tokenizer_of(course, seed, kitchen), seed=number(f"{seed}/{name}/weights"))
    if course.preset:
        presets.init_number_embeddings(student, seed=number(f"{seed}/{name}/numbers"))
        if student.family == "t5":
            presets.init_neighbour_attention(student)
    return student


def tokenizer_of(course: Curriculum, seed: str, kitchen: task_mix.DataSource) -> Tokenizer:
    """Trained on all dishes, on every number, and on the plain text, in which every word of every family stands."""
    texts = [
        meal.prompt.plain + meal.prompt.lead + meal.reply
        for dish in task_mix.TASK_BUILDERS
        if dish != "clauses"  # they have no word of their own
        for meal in task_mix.mixed_examples(dish, f"{seed}/tokenizer", 300, kitchen)
    ]
    texts += [" ".join(str(number) for number in range(kitchen.world.largest + 1))] * 40
    make = tokenization.train_bpe if course.teaches_whole else tokenization.train_unigram
    return make(texts, course.shape.vocabulary)


def training_rows(
    student: Student, course: Curriculum, seed: str, kitchen: task_mix.DataSource
) -> Callable[[int], Sequence[Sequence[Example]]]:
    """The micro-batches of a step, counted from 1: rows alike in length, whatever their dish."""

    @lru_cache(maxsize=1)
    def block(phase: int, number: int) -> list[list[Example]]:
        steps: list[list[Example]] = [[] for _ in range(BLOCK)]
        for dish, n in course.phases[phase].rows.items():
            label = f"{seed}/{phase}/{number}/{dish}"
            weight = course.weights.get(dish, 1.0)
            for place, meal in enumerate(task_mix.mixed_examples(dish, label, n * BLOCK, kitchen)):
                steps[place % BLOCK].append(training_example(student, meal, dish, weight))
        return steps

    def of(step: int) -> list[list[Example]]:
        before = 0
        for phase, own in enumerate(course.phases):
            if step <= before + own.steps:
                at, place = divmod(step - before - 1, BLOCK)
                return _cut(block(phase, at)[place])
            before += own.steps
        raise AssertionError(f"step {step} of {before}")

    return of


def training_example(student: Student, meal: task_mix.TaskExample, dish: str, weight: float = 1.0) -> Example:
    chain = Chain.from_text(dish, 0, meal.reply, source="world")
    target = transfer(chain, student.tokenizer, "one-hot")
    return Example(tuple(student.encode(student.render(meal.prompt))), target, weight, format=dish)


def number(label: str) -> int:
    return random.Random(label).getrandbits(31)


def _cut(examples: Sequence[Example]) -> list[list[Example]]:
    lengths = [(len(example.prompt), len(example.target)) for example in examples]
    return [[examples[place] for place in batch] for batch in data_order.split_into_micro_batches(lengths, BUDGET)]


def _keep(student: Student, optimizer: Any, made: Mapping[str, Any], under_way: Path) -> None:
    storage.remove(under_way)
    with storage.write_folder(under_way) as beside:
        student.save(beside)
        storage.write_file(beside / OPTIMIZER, training.optimizer_state_bytes(optimizer))
        storage.write_json(beside / PROGRESS_FILE, made)
