"""Counts the floating-point operations of a training step, and measures its speed and memory. No result uses them.

    >>> from potstill.records import Target
    >>> from potstill.models import Shape, random_student
    >>> from potstill import demo, tokenization
    >>> tokenizer = tokenization.load_tokenizer(demo.DATA / "models" / "student")
    >>> student = random_student(Shape("causal", 8, 1, 2, 16, 4, tokenizer.size), tokenizer, seed=1)
    >>> row = Example((3, 4, 5), Target([7, 1], [0, 1, 2], [7, 1], [1.0, 1.0], ["hard", "end"]))
    >>> matrices, attention, head = 4 * 8 * 8 + 3 * 8 * 16, 2 * 2 * 4 * (4 * 4), 2 * 8 * tokenizer.size
    >>> count_training_flops(student, [[row]]) == 3 * 2 * (4 * matrices + attention + head)
    True
    >>> compute_step_speed(7, 0.5, tokens=1000, operations=4_000_000, peak=16e6, memory=1 << 30, time=0.0).utilisation
    0.5

A product of [n, a] and [a, b] takes 2 n a b operations. Its backward pass has two such products, or one if the matrix is
frozen. The count includes products with the model's matrices, products inside attention, and the head at supervised
positions. Attention counts as full squares, as is usual, although causal attention needs half of them. Tokens that a
batch computes once count once: the prompt of several chains, and the prefix that all prompts share. The count excludes
layers that are computed again (`train.gradient_checkpointing`), norms, embeddings and the optimizer.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import nn

from potstill import process
from potstill.models import Example, Student
from potstill.models.causal_unpadded import find_shared_prefix
from potstill.training.distributed import rank_and_world

# (bfloat16, float32 without TF32): dense operations per second from the makers' data sheets, by a part of the device's name.
DEVICE_PEAK_FLOPS: Final = {
    "H200": (989e12, 67e12),
    "H100 PCIe": (756e12, 51e12),
    "H100": (989e12, 67e12),
    "A100": (312e12, 19.5e12),
    "L40S": (362e12, 91.6e12),
    "L4": (121e12, 30.3e12),
}


def count_training_flops(student: Student, micro_batches: Sequence[Sequence[Example]]) -> int:
    """The number of operations of one step's micro-batches, forward and backward."""
    count = _t5_flops if student.family == "t5" else _causal_flops
    return sum(count(student, batch) for batch in micro_batches)


def _t5_flops(student: Student, examples: Sequence[Example]) -> int:
    model: Any = student.model
    width = model.config.num_heads * model.config.d_kv
    target_tokens = Counter[tuple[int, ...]]()  # by prompt
    for example in examples:
        target_tokens[example.prompt] += len(example.target)
    encoded, decoded = sum(map(len, target_tokens)), sum(target_tokens.values())
    encoder_squares = sum(len(prompt) ** 2 for prompt in target_tokens) * len(model.encoder.block)
    decoder_squares = sum(len(example.target) ** 2 for example in examples)
    cross_rectangles = sum(len(prompt) * count for prompt, count in target_tokens.items())
    cross = [block.layer[1].EncDecAttention for block in model.decoder.block]
    keys = sum(_flops_per_token(layer.k) + _flops_per_token(layer.v) for layer in cross)  # per token of the prompt
    products = encoded * (_flops_per_token(model.encoder) + keys) + decoded * (_flops_per_token(model.decoder) - keys)
    scores = encoder_squares + (decoder_squares + cross_rectangles) * len(model.decoder.block)
    return products + 3 * 2 * 2 * width * scores + _head_flops(student, decoded)


def _causal_flops(student: Student, examples: Sequence[Example]) -> int:
    decoder: Any = student.model.get_decoder()
    config: Any = student.model.config
    head_width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    width = config.num_attention_heads * head_width
    rows: dict[tuple[int, ...] | int, list[tuple[int, int]]] = {}  # (prompt tokens, chain tokens) by shared prompt
    for index, example in enumerate(examples):  # padded rows share no prompt
        lengths = (len(example.prompt), len(example.target) - 1)
        rows.setdefault(index if student.padded else example.prompt, []).append(lengths)
    tokens = sum(row[0][0] + sum(chain for _, chain in row) for row in rows.values())
    prompts = [prompt for prompt in rows if isinstance(prompt, tuple)]
    prefix = find_shared_prefix(prompts, tokens) if prompts else 0
    tokens -= max(0, len(prompts) - 1) * prefix
    squares = prefix**2
    for row in rows.values():
        prompt, first = row[0]
        # The prompt of several chains is a row, and every chain is another row, which attends to the prompt and itself.
        if len(row) == 1:
            squares += (prompt - prefix + first) * (prompt + first)
        else:
            squares += (prompt - prefix) * prompt + sum(chain * (prompt + chain) for _, chain in row)
    attention = 3 * 2 * 2 * width * squares * config.num_hidden_layers
    supervised = sum(len(example.target) for example in examples)
    return tokens * _flops_per_token(decoder) + attention + _head_flops(student, supervised)


def _flops_per_token(module: nn.Module) -> int:
    """The operations of all matrices of a module for one token, forward and backward."""
    linear = [layer for layer in module.modules() if isinstance(layer, nn.Linear)]
    return sum((6 if layer.weight.requires_grad else 4) * layer.weight.numel() for layer in linear)


def _head_flops(student: Student, positions: int) -> int:
    weight = student.head.weight
    return (6 if weight.requires_grad else 4) * weight.numel() * positions


@dataclass(frozen=True, slots=True)
class StepSpeed:
    """The speed of one optimizer step, without the time for saving or evaluating after it.

    tokens_per_second  tokens that the model read, per second
    operations         operations of the step by `count_training_flops`, over all processes
    utilisation        operations per second, divided by the total peak of all devices; None if the peak is unknown
    memory_mib         peak memory so far in MiB: of the GPU if the device is one, else of this process
    time               when the step ended, in seconds since 1970
    """

    step: int
    seconds: float
    tokens_per_second: float
    operations: int
    utilisation: float | None
    memory_mib: int
    time: float


def compute_step_speed(
    step: int, seconds: float, *, tokens: int, operations: int, peak: float | None, memory: int, time: float
) -> StepSpeed:
    """The speed of a step that ended at `time`. `seconds` is its duration, `peak` is in operations per second, `memory` in
    bytes."""
    utilisation = None if peak is None else round(operations / seconds / peak, 6)
    speed = round(tokens / seconds, 3)
    return StepSpeed(step, round(seconds, 6), speed, operations, utilisation, memory >> 20, round(time, 3))


def total_peak_flops(device: torch.device, precision: str, given: float | None = None) -> float | None:
    """The sum of the peak operations per second of all processes' devices, which are assumed to be equal.

    given  the peak of one device (`train.peak_flops`); None to look it up in DEVICE_PEAK_FLOPS

    Returns None for a device that is not in the table, such as a CPU.
    """
    _, processes = rank_and_world()
    if given is not None or device.type != "cuda":
        return None if given is None else given * processes
    name = torch.cuda.get_device_name(device)
    peaks = next((peaks for part, peaks in DEVICE_PEAK_FLOPS.items() if part in name), None)
    return None if peaks is None else peaks[0 if precision == "bfloat16" else 1] * processes


def peak_memory_bytes(device: torch.device) -> int:
    """Peak memory so far in bytes: of the GPU if the device is one, else of this process."""
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else process.peak_memory()
