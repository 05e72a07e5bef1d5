"""What one student says at every position of texts that another has written in the same vocabulary.

>>> from potstill.students import Shape, initialise
>>> from potstill.tokenizers import train_unigram
>>> tokenizer = train_unigram(["2 + 2 = 4", "The answer is 4"], 60)
>>> student = initialise(Shape("t5", 8, 1, 2, 16, 4, tokenizer.size), tokenizer, seed=1)
>>> [row] = told(student, [written((5, 6), (7, 8), tokenizer.eos)], 2)
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
from potstill.records import Kind, Target
from potstill.students.batch import Example
from potstill.students.student import Student

CHUNK: Final = 1024  # positions whose logits exist at a time
LEAST: Final = 1e-9  # what is less likely counts as this, so that a divergence from it stays finite


def written(
    prompt: tuple[int, ...], ids: tuple[int, ...], end: int | None, question: str = "", format: str = ""
) -> Example:
    """A text as its writer gave it, each token certain. end: its end token; None where a budget ended it."""
    own = ids if end is None else (*ids, end)
    kinds: list[Kind] = ["same"] * len(ids)
    if end is not None:
        kinds.append("end")
    return Example(prompt, Target(own, range(len(own) + 1), own, [1.0] * len(own), tuple(kinds)), 1.0, question, format)


def told(teller: Student, rows: Sequence[Example], candidates: int) -> list[Example]:
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
        for states, own in zip(teller.hidden(batch).split(CHUNK), stood.split(CHUNK), strict=True):
            logs = teller.head.logits(states).float().log_softmax(-1)[:, :size]
            if logs.isnan().any():
                raise UserError("the logits of what scores a text are not numbers", where="repair.scorer", found="NaN")
            values, ids = logs.topk(min(candidates, size), dim=-1)
            values, ids = torch.cat([values, logs.gather(-1, own)], 1), torch.cat([ids, own], 1)
            new = torch.ones_like(ids, dtype=torch.bool)
            new[:, -1] = (ids[:, :-1] != own).all(1)  # what stands there may be among the likeliest
            found += [
                (row[keep].tolist(), p[keep].tolist())
                for row, p, keep in zip(ids, values.exp().clamp_min(LEAST), new, strict=True)
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
