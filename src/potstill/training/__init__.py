"""Training as a generator: each value is one finished optimizer step, and what to save or to evaluate is decided
outside.

    >>> from potstill.records import Target
    >>> from potstill.students import Example, Shape, initialise
    >>> from potstill.tokenizers import train_unigram
    >>> tokenizer = train_unigram(["2 + 2 = 4", "The answer is 4"], 60)
    >>> student = initialise(Shape("t5", 8, 1, 2, 16, 4, tokenizer.size), tokenizer, seed=1)
    >>> end = tokenizer.eos
    >>> example = Example(tuple(student.encode("2 + 2")), Target([end], [0, 1], [end], [1.0], ["end"]))
    >>> adam = optimizer(student, 1e-2)
    >>> done = [step.loss for step in steps(
    ...     student, adam, lambda step: [[example]], first=1, last=3, schedule=Schedule("constant", 1e-2), seed=1)]
    >>> done[0] > done[1] > done[2]
    True

The gradient of a step is that of sum(w * loss) / sum(w) over all supervised positions of the whole step, whatever the
micro-batches and however many processes: the divisor is known from the examples before anything is computed. Dropout
is drawn from (seed, step, micro-batch). So a step is a function of weights, optimizer state and its number, and
resume needs only these.
"""

from __future__ import annotations

from typing import Final

from potstill.training.checkpoints import Checkpoints
from potstill.training.optimizer import optimizer, optimizer_of, restore, restore_bytes, save_state, state, state_bytes
from potstill.training.schedule import Schedule
from potstill.training.sharding import distribute, spread, weights
from potstill.training.shards import restore_shards, save_shards
from potstill.training.speed import Speed, memory, peak, speed
from potstill.training.steps import Metrics, Sums, gradient, steps
from potstill.training.team import agreed, first

VERSION: Final = 3  # of what a step computes; stored in the manifest of the stage that trains

__all__ = [
    "VERSION",
    "Checkpoints",
    "Metrics",
    "Schedule",
    "Speed",
    "Sums",
    "agreed",
    "distribute",
    "first",
    "gradient",
    "memory",
    "optimizer",
    "optimizer_of",
    "peak",
    "restore",
    "restore_bytes",
    "restore_shards",
    "save_shards",
    "save_state",
    "speed",
    "spread",
    "state",
    "state_bytes",
    "steps",
    "weights",
]
