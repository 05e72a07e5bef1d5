"""A micro-batch as tensors: rows that the model reads, and the positions at which it is taught.

    prompt        Q : 2 + 2 A : </s>                     (T5: the encoder's row; its end token as T5 was trained)
    target        4 </s>                                 (end token included)
    input   T5    <start> 4                              supervised: 0 1
    input causal  Q : 2 + 2 A : 4                        supervised: 6 7, the positions before `4` and before the end

    >>> target = Target([7, 1], [0, 1, 3], [7, 1, 4], [1.0, 0.75, 0.25], ["hard", "mixed"])
    >>> candidate_tensors([Example((3, 1), target), Example((4,), target, weight=0.5)])[1].tolist()
    [[1.0, 0.0], [0.75, 0.25], [1.0, 0.0], [0.75, 0.25]]

The logits at a supervised position are those from which the target's token is drawn, so a target of n tokens has
exactly n.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, Self

import numpy as np
import torch
from torch import Tensor

from potstill.errors import UserError
from potstill.models.causal_unpadded import Packing
from potstill.models.unpadded import Layout
from potstill.records import Target


@dataclass(frozen=True, slots=True)
class Example:
    """One target under one prompt.

    prompt    token ids as `Student.encode` makes them
    weight    of each position of the target in the loss, at least 0
    question  whose it is, for messages
    format    the name under which its loss is reported
    """

    prompt: tuple[int, ...]
    target: Target
    weight: float = 1.0
    question: str = ""
    format: str = ""


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """b rows, n supervised positions in (example, position) order, at most k candidates a position.

    input_ids      [b, t] int64: what the decoder reads; b is 1 where there is a packing
    input_mask     [b, t] bool: True on tokens, False on padding
    positions      [n] int64: the supervised places in the flattened [b * t]; one of a shared prompt stands there often
    candidate_ids  [n, k] int64, probabilities [n, k] float32: the teacher's distributions, padded with probability 0
    weights        [n] float32: of each position
    rows           [n] int64: the place of each position's example in `examples`
    prompt_ids     [p, s] int64, prompt_mask [p, s] bool: what the encoder reads, each prompt once; None where there is
                   no encoder
    examples       what the rows were made of
    prompts        [b]: the prompt of each row, a place in `prompt_ids`; () where there is no encoder
    layouts        how attention sees the rows without padding: prompts, targets, targets on prompts; () where the
                   model computes the padding, or has a packing
    packing        decoder-only: where the tokens of each row stand, none of which is padded; None where rows are
    """

    input_ids: Tensor
    input_mask: Tensor
    positions: Tensor
    candidate_ids: Tensor
    probabilities: Tensor
    weights: Tensor
    rows: Tensor
    prompt_ids: Tensor | None
    prompt_mask: Tensor | None
    examples: tuple[Example, ...]
    prompts: tuple[int, ...] = ()
    layouts: tuple[Layout, ...] = ()
    packing: Packing | None = None

    def to(self, device: torch.device | str) -> Self:
        """The same batch with every tensor on the device."""
        values = {name: getattr(self, name) for name in self.__slots__}
        moved = {name: value.to(device) for name, value in values.items() if isinstance(value, Tensor)}
        packing = None if self.packing is None else self.packing.to(device)
        return replace(self, **moved, layouts=tuple(layout.to(device) for layout in self.layouts), packing=packing)

    def __len__(self) -> int:
        return len(self.input_ids)

    @property
    def slots(self) -> int:
        """Places for which the model computes its layers, padding included where it has any."""
        if self.layouts:
            return self.tokens
        return self.input_ids.numel() + (0 if self.prompt_ids is None else self.prompt_ids.numel())

    @property
    def tokens(self) -> int:
        """Places that hold a token."""
        return int(self.input_mask.sum()) + (0 if self.prompt_mask is None else int(self.prompt_mask.sum()))


def pad_rows(
    rows: Sequence[Sequence[int]], value: int, side: Literal["left", "right"] = "right"
) -> tuple[Tensor, Tensor]:
    """Rows of different lengths as ids [b, longest] and mask [b, longest]."""
    ids = np.full((len(rows), max(map(len, rows))), value, np.int64)
    mask = np.zeros(ids.shape, bool)
    for i, row in enumerate(rows):
        at = slice(0, len(row)) if side == "right" else slice(ids.shape[1] - len(row), None)
        ids[i, at], mask[i, at] = row, True
    return torch.from_numpy(ids), torch.from_numpy(mask)


def candidate_tensors(examples: Sequence[Example]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Candidate ids [n, k], probabilities [n, k], weights [n] and rows [n] of all positions of all targets, in
    order."""
    lengths = [len(example.target) for example in examples]
    offsets = [np.asarray(example.target.offsets, np.int64) for example in examples]
    counts = np.concatenate([np.diff(offset) for offset in offsets])
    ids = np.zeros((len(counts), max(1, int(counts.max(initial=0)))), np.int64)
    probabilities = np.zeros(ids.shape, np.float32)
    used = np.arange(ids.shape[1]) < counts[:, None]
    owned = [slice(int(offset[0]), int(offset[-1])) for offset in offsets]
    ids[used] = np.concatenate([np.asarray(e.target.candidate_ids[at]) for e, at in zip(examples, owned, strict=True)])
    probabilities[used] = np.concatenate(
        [np.asarray(e.target.probabilities[at], np.float32) for e, at in zip(examples, owned, strict=True)]
    )
    weights = np.repeat(np.asarray([example.weight for example in examples], np.float32), lengths)
    rows = np.repeat(np.arange(len(examples)), lengths)
    return torch.from_numpy(ids), torch.from_numpy(probabilities), torch.from_numpy(weights), torch.from_numpy(rows)


def check_examples(examples: Sequence[Example], size: int) -> None:
    """Targets and prompts lie inside the tokenizer's vocabulary, never in the rows that only pad the head."""
    assert examples, "a batch without examples"
    for example in examples:
        who = example.question or "a target"
        assert example.weight >= 0, f"{who} has the weight {example.weight}"
        if not len(example.target) or not example.prompt:
            raise UserError(f"the {'target' if example.prompt else 'prompt'} has no tokens", where=who)
        own = example.target
        highest = max(int(np.max(values, initial=0)) for values in (example.prompt, own.ids, own.candidate_ids))
        if highest >= size:
            raise UserError(
                "a token of this target is not in the student's vocabulary",
                where=who,
                found=f"id {highest}, tokenizer of {size}",
                hint="align the chains again with this student's tokenizer (--redo align)",
            )
