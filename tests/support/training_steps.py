"""A tiny student, seven training examples, and training steps over them, for the tests of training."""

from __future__ import annotations

from pathlib import Path

import torch

from potstill import models, training
from potstill.models import Example, Shape, Student
from potstill.records import Target
from potstill.training import Schedule
from tools.toy_models.tokenizer_training import train_unigram

TEXTS = ["Q: 2 + 3 A: The answer is 5", "Q: 4 + 3 A: The answer is 7", "Q: 1 + 1 A: The answer is 2"]
TOKENIZER = train_unigram(TEXTS, 60)
FAMILIES = ("t5", "causal")


def make_student(family: str, dropout: float = 0.0) -> Student:
    kind = "t5" if family.startswith("t5") else "causal"
    shape = Shape(kind, 16, 2, 2, 32, 8, TOKENIZER.size, tied=family.endswith("tied"))
    return models.random_student(shape, TOKENIZER, 1, dropout=dropout)


def training_examples(student: Student) -> list[Example]:
    """Seven examples of unequal lengths and weights, one with soft targets, in two formats."""
    made = []
    for number, (question, answer) in enumerate([("2 + 3", "5"), ("4 + 3", "The answer is 7"), ("1 + 1", "2")] * 2):
        ids = [*TOKENIZER.encode(answer).ids, TOKENIZER.eos]
        target = Target(ids, range(len(ids) + 1), ids, [1.0] * len(ids), ["hard"] * len(ids))
        prompt = tuple(student.encode(f"Q: {question}" + " A:" * (number % 3)))
        made.append(Example(prompt, target, 1.0 + number / 4, f"q{number}", ("short", "long")[number % 2]))
    soft = Target([5, 1], [0, 2, 3], [5, 6, 1], [0.7, 0.2, 1.0], ["mixed", "end"])
    return [*made, Example(tuple(student.encode("Q:")), soft, 0.5, "q6", "long")]


MICRO_BATCHES = {
    "one": [[0, 1, 2, 3, 4, 5, 6]],
    "two": [[6, 2, 4, 0], [1, 3, 5]],
    "four": [[0], [1, 2], [3, 6], [5, 4]],
    "seven": [[i] for i in range(7)],
}


def micro_batches(student: Student, name: str) -> list[list[Example]]:
    made = training_examples(student)
    return [[made[i] for i in batch] for batch in MICRO_BATCHES[name]]


def gradients(student: Student) -> dict[str, torch.Tensor]:
    return {name: value.grad.clone() for name, value in student.named_parameters() if value.grad is not None}


def gradients_agree(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor], relative: float = 1e-5) -> bool:
    """Each tensor within `relative` of its own norm."""
    assert one.keys() == other.keys() and one
    with torch.no_grad():
        return all(float((one[n] - other[n]).norm()) <= relative * float(other[n].norm()) + 1e-9 for n in one)


def train(student: Student, first: int, last: int, optimizer, model=None, **options) -> list[training.StepMetrics]:
    """Steps over the seven examples, cut in two ways in turn; `model` is the student's wrapper, if it has one."""
    options = {"schedule": Schedule("constant", 1e-2, 2), "seed": 1} | options
    step = training.train_steps(
        model or student,
        optimizer,
        lambda step: micro_batches(student, "two" if step % 2 else "four"),
        first=first,
        last=last,
        **options,
    )
    return list(step)


def train_and_save(folder: Path, first: int, last: int) -> None:
    """Train from the folder's checkpoint, or from nothing, and leave a checkpoint there."""
    student = models.open_student(folder, dropout=0.2) if first > 1 else make_student("t5", dropout=0.2)
    optimizer = training.build_optimizer(student, weight_decay=0.01)
    if first > 1:
        training.restore_optimizer_bytes(optimizer, (folder / "engine.safetensors").read_bytes())
    train(student, first, last, optimizer)
    student.save(folder)
    (folder / "engine.safetensors").write_bytes(training.optimizer_state_bytes(optimizer))


def optimizer_after_a_step(student: Student) -> torch.optim.Optimizer:
    adam = training.build_optimizer(student)
    train(student, 1, 1, adam)
    return adam
