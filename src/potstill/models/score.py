"""What one student says at every position of texts that another has written in the same vocabulary.

>>> from potstill.models import Shape, random_student
>>> from potstill.tokenization import train_unigram
>>> tokenizer = train_unigram(["2 + 2 = 4", "The answer is 4"], 60)
>>> student = random_student(Shape("t5", 8, 1, 2, 16, 4, tokenizer.size), tokenizer, seed=1)
>>> [row] = teacher_forced_scores(student, [hard_example((5, 6), (7, 8), tokenizer.eos)], 2)
>>> row.target.ids, row.target.kinds, [len(row.target.distribution(p)) in (2, 3) for p in range(3)]
((7, 8, 1), ('same', 'same', 'end'), [True, True, True])
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import accumulate
from typing import Final

import torch

from potstill.errors import UserError
from potstill.models.batch import Example
from potstill.models.student import Student
from potstill.records import Target, TargetKind

CHUNK_POSITIONS: Final = 1024  # positions whose logits exist at a time
MIN_PROBABILITY: Final = 1e-9  # what is less likely counts as this, so that a divergence from it stays finite


def hard_example(
    prompt: tuple[int, ...], ids: tuple[int, ...], end: int | None, question: str = "", format: str = ""
) -> Example:
    """A text as its writer gave it, each token certain. end: its end token; None where a budget ended it."""
    own = ids if end is None else (*ids, end)
    kinds: list[TargetKind] = ["same"] * len(ids)
    if end is not None:
        kinds.append("end")
    return Example(prompt, Target(own, range(len(own) + 1), own, [1.0] * len(own), tuple(kinds)), 1.0, question, format)


def teacher_forced_scores(teller: Student, rows: Sequence[Example], candidates: int) -> list[Example]:
    """The same rows, each position with the distribution of `teller` in place of its own: its likeliest `candidates`
    tokens and the one that stands there. One forward pass, without dropout, nothing learnt.

    Raises UserError where its logits are not numbers.
    """
    size, training = teller.tokenizer.size, teller.training
    teller.eval()
    found: list[tuple[list[int], list[float]]] = []
    with torch.no_grad():
        batch = teller.batch(rows).to(teller.device)
        stood = torch.tensor([token for row in rows for token in row.target.ids], device=teller.device)[:, None]
        for states, own in zip(teller.hidden(batch).split(CHUNK_POSITIONS), stood.split(CHUNK_POSITIONS), strict=True):
            logs = teller.head.logits(states).float().log_softmax(-1)[:, :size]
            if logs.isnan().any():
                raise UserError(
                    "the logits of what scores a text are not numbers", where="on_policy.scorer", found="NaN"
                )
            values, ids = logs.topk(min(candidates, size), dim=-1)
            values, ids = torch.cat([values, logs.gather(-1, own)], 1), torch.cat([ids, own], 1)
            new = torch.ones_like(ids, dtype=torch.bool)
            new[:, -1] = (ids[:, :-1] != own).all(1)  # what stands there may be among the likeliest
            found += [
                (row[keep].tolist(), p[keep].tolist())
                for row, p, keep in zip(ids, values.exp().clamp_min(MIN_PROBABILITY), new, strict=True)
            ]
    teller.train(training)
    result, start = [], 0
    for row in rows:
        own = found[start : start + len(row.target)]
        start += len(row.target)
        offsets = [0, *accumulate(len(ids) for ids, _ in own)]
        tokens = [token for each, _ in own for token in each]
        likely = [value for _, each in own for value in each]
        result.append(replace(row, target=Target(row.target.ids, offsets, tokens, likely, row.target.kinds)))
    return result
