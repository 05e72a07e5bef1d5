"""How many operations a step of training needs, counted from the shapes: what the time of a step is held against.

    >>> from potstill.records import Target
    >>> from potstill.models import Shape, random_student
    >>> from potstill.tokenization import train_unigram
    >>> tokenizer = train_unigram(["2 + 2 = 4", "The answer is 4"], 60)
    >>> student = random_student(Shape("causal", 8, 1, 2, 16, 4, tokenizer.size), tokenizer, seed=1)
    >>> row = Example((3, 4, 5), Target([7, 1], [0, 1, 2], [7, 1], [1.0, 1.0], ["hard", "end"]))
    >>> matrices, attention, head = 4 * 8 * 8 + 3 * 8 * 16, 2 * 2 * 4 * (4 * 4), 2 * 8 * tokenizer.size
    >>> count_training_flops(student, [[row]]) == 3 * 2 * (4 * matrices + attention + head)
    True

A product of [n, a] and [a, b] is 2 n a b operations; its backward pass has two such products, one where the matrix does
not learn. Counted are the products with the model's matrices, those inside attention (whole squares, as is usual,
though a decoder needs half of them) and the head at supervised positions. A prompt that is computed once is counted
once; layers that are computed again (`train.gradient_checkpointing`) are not, nor are norms, embeddings and the optimizer.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from potstill.models.batch import Example
from potstill.models.student import Student


def count_training_flops(student: Student, micro_batches: Sequence[Sequence[Example]]) -> int:
    """Of a step with these micro-batches, forward and backward."""
    return sum((_t5_flops if student.family == "t5" else _causal_flops)(student, batch) for batch in micro_batches)


def _t5_flops(student: Student, examples: Sequence[Example]) -> int:
    model: Any = student.model
    config = model.config
    width = config.num_heads * config.d_kv
    prompts: dict[tuple[int, ...], int] = {}
    for example in examples:
        prompts[example.prompt] = prompts.get(example.prompt, 0) + len(example.target)
    read, taught = sum(map(len, prompts)), sum(prompts.values())
    inside = sum(len(prompt) ** 2 for prompt in prompts) * len(model.encoder.block)
    below = sum(len(example.target) ** 2 for example in examples) + sum(len(p) * n for p, n in prompts.items())
    crossing = [block.layer[1].EncDecAttention for block in model.decoder.block]
    keys = sum(
        _flops_per_token(each.k) + _flops_per_token(each.v) for each in crossing
    )  # of the prompt's tokens, not the target's
    rows = read * (_flops_per_token(model.encoder) + keys) + taught * (_flops_per_token(model.decoder) - keys)
    attention = 3 * 2 * 2 * width * (inside + below * len(model.decoder.block))
    return rows + attention + _head_flops(student, taught)


def _causal_flops(student: Student, examples: Sequence[Example]) -> int:
    decoder: Any = student.model.get_decoder()
    config: Any = student.model.config
    narrow = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    width = config.num_attention_heads * narrow
    chains: dict[tuple[int, ...] | int, list[tuple[int, int]]] = {}
    for number, example in enumerate(examples):  # rows that are padded share no prompt
        own = (len(example.prompt), len(example.target) - 1)
        chains.setdefault(number if student.padded else example.prompt, []).append(own)
    read = squares = 0
    for row in chains.values():
        prompt, first = row[0]
        read += prompt + sum(chain for _, chain in row)
        if len(row) == 1:
            squares += (prompt + first) ** 2
        else:  # the prompt is a row, and each chain one that reads the prompt and itself
            squares += prompt**2 + sum(chain * (prompt + chain) for _, chain in row)
    attention = 3 * 2 * 2 * width * squares * config.num_hidden_layers
    return (
        read * _flops_per_token(decoder)
        + attention
        + _head_flops(student, sum(len(example.target) for example in examples))
    )


def _flops_per_token(module: nn.Module) -> int:
    """Operations a token, forward and backward, of all matrices of a module."""
    linear = [each for each in module.modules() if isinstance(each, nn.Linear)]
    return sum((6 if each.weight.requires_grad else 4) * each.weight.numel() for each in linear)


def _head_flops(student: Student, positions: int) -> int:
    weight = student.head.weight
    return (6 if weight.requires_grad else 4) * weight.numel() * positions
