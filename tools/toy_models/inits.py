"""Initialisations of very small students, with what a large student learns within a few steps.

    >>> from potstill.models import Shape, random_student
    >>> from tools.toy_models.tokenizer_training import train_unigram
    >>> tokenizer = train_unigram(["2 + 2 = 4 and 4 + 4 = 8"] * 9, 40)
    >>> student = random_student(Shape("t5", 8, 1, 2, 16, 4, tokenizer.size), tokenizer, seed=1)
    >>> init_neighbour_attention(student)
    >>> init_number_embeddings(student, seed=1)  # 2, 4 and 8, each with and without a space before it
    6

Both change a student in place. A model of a million parameters otherwise spends most of its training on finding the
token before this one, and on learning that 17 lies between 16 and 18.
"""

from __future__ import annotations

import math
from typing import Any, Final

import torch

from potstill.models import Student

STRENGTH: Final = 4.0  # added to one bucket's logit: e^4 times the weight of any other place
PERIODS: Final = (2, 3, 5, 10, 20, 50, 100)


def init_neighbour_attention(student: Student, strength: float = STRENGTH) -> None:
    """Relative-position biases of a T5 so that its first head looks at the token before, its second at the token after.

    In the decoder, which sees nothing after, the second looks two back. All layers share the biases of the first.
    """
    assert student.family == "t5", "only a T5 has relative-position biases"
    model: Any = student.model
    with torch.no_grad():
        for stack, ahead in ((model.encoder, True), (model.decoder, False)):
            bias = stack.block[0].layer[0].SelfAttention.relative_attention_bias.weight  # [buckets, heads]
            # In the encoder, the first half of the buckets is for tokens before, the second half for tokens after.
            second = bias.shape[0] // 2 + 1 if ahead else 2
            bias[1, 0] += strength
            if bias.shape[1] > 1:
                bias[second, 1] += strength


def init_number_embeddings(student: Student, seed: int, share: float = 0.8) -> int:
    """Initialise the embeddings of tokens that are whole numbers with waves of the number; return how many there are.

    share  the waves' share of an embedding's variance; the rest stays random

    The directions of the waves are a function of the seed. An untied head is not changed.
    """
    numbers = [
        (token, value) for token in range(student.tokenizer.size) if (value := _number(student, token)) is not None
    ]
    if not numbers:
        return 0
    embeddings: Any = student.model.get_input_embeddings()
    weight = embeddings.weight
    values = torch.tensor([float(value) for _, value in numbers])
    angles = values[:, None] * (2 * math.pi / torch.tensor(PERIODS))
    waves = torch.cat([angles.cos(), angles.sin()], 1)  # [numbers, 2 * periods], every pair of length 1
    directions = torch.randn(waves.shape[1], weight.shape[1], generator=torch.Generator().manual_seed(seed))
    tokens = torch.tensor([token for token, _ in numbers])
    with torch.no_grad():
        initial = weight[tokens]
        features = waves @ directions / math.sqrt(len(PERIODS)) * initial.std()
        weight[tokens] = math.sqrt(share) * features.to(initial) + math.sqrt(1 - share) * initial
    return len(numbers)


def _number(student: Student, token: int) -> int | None:
    text = student.tokenizer.token_bytes(token).strip()
    return int(text) if text.isdigit() and len(text) < 5 else None
