"""Weights between two students (Wortsman et al. 2022): what training changed, taken in part.

>>> from potstill.students import Shape, initialise
>>> from potstill.tokenizers import train_unigram
>>> tokenizer = train_unigram(["2 + 2 = 4", "The answer is 4"], 60)
>>> shape = Shape("t5", d_model=8, layers=1, heads=2, d_ff=16, d_kv=4, vocabulary=tokenizer.size)
>>> one, other = (initialise(shape, tokenizer, seed) for seed in (1, 2))
>>> mix(one, initialise(shape, tokenizer, 1), 0.25)   # a student mixed with itself is itself
>>> torch.equal(one.head.weight, initialise(shape, tokenizer, 1).head.weight)
True
"""

from __future__ import annotations

import torch

from potstill.errors import UserError
from potstill.students.student import Student


def mix(student: Student, base: Student, share: float) -> None:
    """Move the weights of a student in place: `share` of its own and the rest of the base's, weight by weight.

    Raises UserError where the two are not of one shape.
    """
    assert 0 <= share <= 1, f"a share of {share}"
    theirs = dict(base.model.named_parameters())
    own = dict(student.model.named_parameters())
    if {name: value.shape for name, value in own.items()} != {name: value.shape for name, value in theirs.items()}:
        raise UserError(
            "the checkpoint is not of the base student's shape", where="evaluate.mix", do="train again (--redo train)"
        )
    with torch.no_grad():
        for name, value in own.items():
            value.lerp_(theirs[name].to(value), 1 - share)
