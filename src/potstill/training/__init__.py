"""Training as a generator that yields after every optimizer step. The caller decides what to save and to evaluate.

    >>> from potstill.records import Target
    >>> from potstill.models import Example, Shape, random_student
    >>> from potstill import demo, tokenization
    >>> tokenizer = tokenization.load_tokenizer(demo.DATA / "models" / "student")
    >>> student = random_student(Shape("t5", 8, 1, 2, 16, 4, tokenizer.size), tokenizer, seed=1)
    >>> end = tokenizer.eos
    >>> example = Example(tuple(student.encode("2 + 2")), Target([end], [0, 1], [end], [1.0], ["end"]))
    >>> adam = build_optimizer(student, 1e-2)
    >>> losses = [step.loss for step in train_steps(
    ...     student, adam, lambda step: [[example]], first=1, last=3, schedule=Schedule("constant", 1e-2), seed=1)]
    >>> losses[0] > losses[1] > losses[2]
    True

The gradient of a step is the gradient of sum(w * loss) / sum(w) over all of its supervised positions. It does not depend
on the split into micro-batches and over processes. Dropout is drawn from (seed, step, micro-batch). So a step is a
function of the weights, the optimizer's state and the step number, and a resume needs nothing else.
"""

from __future__ import annotations

from typing import Final

from potstill.training.checkpoints import CheckpointWriter
from potstill.training.distributed import (
    broadcast_from_main,
    copy_weights,
    distribute_student,
    full_state_dict,
    is_main_process,
    is_sharded,
    restore_optimizer_shards,
    save_optimizer_shards,
)
from potstill.training.flops import (
    StepSpeed,
    compute_step_speed,
    count_training_flops,
    peak_memory_bytes,
    total_peak_flops,
)
from potstill.training.loop import (
    GradientSums,
    StepMetrics,
    accumulate_gradient,
    loss_from_recipe,
    metrics_row,
    on_policy_divergence,
    on_policy_loss_from_recipe,
    train_steps,
)
from potstill.training.optimizer import (
    Schedule,
    build_optimizer,
    optimizer_from_recipe,
    optimizer_state,
    optimizer_state_bytes,
    restore_optimizer,
    restore_optimizer_bytes,
    save_optimizer_state,
)

VERSION: Final = 4  # of the computation of a step; stored in the manifests of the stages that train

__all__ = [
    "VERSION",
    "CheckpointWriter",
    "GradientSums",
    "Schedule",
    "StepMetrics",
    "StepSpeed",
    "accumulate_gradient",
    "broadcast_from_main",
    "build_optimizer",
    "compute_step_speed",
    "copy_weights",
    "count_training_flops",
    "distribute_student",
    "full_state_dict",
    "is_main_process",
    "is_sharded",
    "loss_from_recipe",
    "metrics_row",
    "on_policy_divergence",
    "on_policy_loss_from_recipe",
    "optimizer_from_recipe",
    "optimizer_state",
    "optimizer_state_bytes",
    "peak_memory_bytes",
    "restore_optimizer",
    "restore_optimizer_bytes",
    "restore_optimizer_shards",
    "save_optimizer_shards",
    "save_optimizer_state",
    "total_peak_flops",
    "train_steps",
]
