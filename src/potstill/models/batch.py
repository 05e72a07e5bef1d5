"""A micro-batch as tensors: the rows that the model reads, and the supervised positions.

    prompt        Q : 2 + 2 A : </s>                     (T5: the encoder's row, with an end token as in T5's training)
    target        4 </s>                                 (end token included)
    input T5      <start> 4                              supervised: 0 1
    input causal  Q : 2 + 2 A : 4                        supervised: 6 7, the positions before `4` and before the end

    >>> target = Target([7, 1], [0, 1, 3], [7, 1, 4], [1.0, 0.75, 0.25], ["hard", "mixed"])
    >>> candidate_tensors([Example((3, 1), target), Example((4,), target, weight=0.5)])[1].tolist()
    [[1.0, 0.0], [0.75, 0.25], [1.0, 0.0], [0.75, 0.25]]

The logits at a supervised position predict one token of the target, so a target of n tokens has n supervised positions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Self

import numpy as np
import torch
from torch import Tensor

from potstill.errors import UserError
from potstill.losses import WrittenPositions
from potstill.models.causal_unpadded import Packing
from potstill.models.unpadded import Layout
from potstill.records import Target


@dataclass(frozen=True, slots=True)
class WrittenText:
    """What training needs to know of a target that the student wrote itself, besides its scorer's distributions.

    weight     weight of the divergence: 0 for a dropped text
    advantage  advantage of each of the text's tokens
    logprobs   [n] natural log-probabilities of the target's tokens under the weights that wrote them; None if these are
               the current weights
    """

    weight: float = 1.0
    advantage: float = 0.0
    logprobs: tuple[float, ...] | None = None


@dataclass(frozen=True, slots=True)
class Example:
    """A prompt and a target.

    prompt    token ids, as returned by `Student.encode`
    weight    weight of each of the target's positions in the loss, at least 0
    question  id of the question, for messages
    format    name of the prompt format, under which the loss is reported
    written   given if the student wrote the text; such examples need an `OnPolicyLoss`
    """

    prompt: tuple[int, ...]
    target: Target
    weight: float = 1.0
    question: str = ""
    format: str = ""
    written: WrittenText | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """b rows, n supervised positions in (example, position) order, at most k candidates per position.

    input_ids      [b, t] int64: the tokens that the decoder reads; b is 1 with a packing
    input_mask     [b, t] bool: True on tokens, False on padding
    positions      [n] int64: indices of the supervised positions in the flattened [b * t]; the last token of a shared
                   prompt occurs once per chain
    candidate_ids  [n, k] int64, probabilities [n, k] float32: the teacher's distributions, padded with probability 0
    weights        [n] float32: weight of each position
    rows           [n] int64: index in `examples` of each position's example
    examples       the examples of the batch
    prompt_ids     [p, s] int64, prompt_mask [p, s] bool: the prompts that the encoder reads, each prompt once; None without
                   an encoder
    prompts        [b]: index in `prompt_ids` of each row's prompt; () without an encoder
    layouts        unpadded attention over prompts, over targets, and from targets to prompts; () without an encoder
    packing        decoder-only: positions of the tokens of unpadded rows; None if rows are padded
    written        what the loss needs of texts that the student wrote; None if it wrote none of the targets
    """

    input_ids: Tensor
    input_mask: Tensor
    positions: Tensor
    candidate_ids: Tensor
    probabilities: Tensor
    weights: Tensor
    rows: Tensor
    examples: tuple[Example, ...]
    prompt_ids: Tensor | None = None
    prompt_mask: Tensor | None = None
    prompts: tuple[int, ...] = ()
    layouts: tuple[Layout, ...] = ()
    packing: Packing | None = None
    written: WrittenPositions | None = None

    def to(self, device: torch.device | str) -> Self:
        """The same batch with every tensor on the device."""
        values = {name: getattr(self, name) for name in self.__slots__}
        moved = {
            name: value.to(device)
            for name, value in values.items()
            if isinstance(value, Tensor | Packing | WrittenPositions)
        }
        return replace(self, **moved, layouts=tuple(layout.to(device) for layout in self.layouts))

    def __len__(self) -> int:
        return len(self.input_ids)

    @property
    def slots(self) -> int:
        """The number of slots for which the model computes its layers, including padding that it computes."""
        return self.tokens if self.layouts else self.input_ids.numel()

    @property
    def tokens(self) -> int:
        """The number of slots with a token."""
        return int(self.input_mask.sum()) + (0 if self.prompt_mask is None else int(self.prompt_mask.sum()))


def pad_rows(rows: Sequence[Sequence[int]], value: int, *, left: bool = False) -> tuple[Tensor, Tensor]:
    """Rows of different lengths as ids [b, longest] int64 and mask [b, longest] bool."""
    ids = np.full((len(rows), max(map(len, rows))), value, np.int64)
    mask = np.zeros(ids.shape, bool)
    for i, row in enumerate(rows):
        columns = slice(ids.shape[1] - len(row), None) if left else slice(0, len(row))
        ids[i, columns], mask[i, columns] = row, True
    return torch.from_numpy(ids), torch.from_numpy(mask)


def candidate_tensors(examples: Sequence[Example]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Candidate ids [n, k] int64, probabilities [n, k] float32, weights [n] float32 and example indices [n] int64.

    n positions of all examples, in order; unused candidates have the probability 0.
    """
    targets = [example.target for example in examples]
    offsets = [np.asarray(target.offsets, np.int64) for target in targets]
    counts = np.concatenate([np.diff(offset) for offset in offsets])
    ids = np.zeros((len(counts), max(1, int(counts.max(initial=0)))), np.int64)
    probabilities = np.zeros(ids.shape, np.float32)
    # Boolean indexing fills row by row, which is the order of the candidates in the targets.
    used = np.arange(ids.shape[1]) < counts[:, None]
    parts = [(target, slice(int(offset[0]), int(offset[-1]))) for target, offset in zip(targets, offsets, strict=True)]
    ids[used] = np.concatenate([np.asarray(target.candidate_ids[part]) for target, part in parts])
    probabilities[used] = np.concatenate([np.asarray(target.probabilities[part], np.float32) for target, part in parts])
    lengths = [len(target) for target in targets]
    weights = np.repeat(np.asarray([example.weight for example in examples], np.float32), lengths)
    rows = np.repeat(np.arange(len(examples)), lengths)
    return torch.from_numpy(ids), torch.from_numpy(probabilities), torch.from_numpy(weights), torch.from_numpy(rows)


def written_positions(examples: Sequence[Example]) -> WrittenPositions | None:
    """The positions of texts that the student wrote; None if it wrote none of the targets, and never only some of them."""
    texts = [(example.target, example.written) for example in examples]
    own = [(target, text) for target, text in texts if text is not None]
    if not own:
        return None
    assert len(own) == len(texts), "a batch has only texts of the student, or none"
    lengths = torch.tensor([len(target) for target, _ in own])
    weights, advantages = torch.tensor([[text.weight, text.advantage] for _, text in own]).float().T
    written = None
    if all(text.logprobs is not None for _, text in own):
        written = torch.tensor([value for _, text in own for value in text.logprobs or ()])
        assert len(written) == lengths.sum(), "a log-probability for every position"
    return WrittenPositions(
        tokens=torch.tensor([token for target, _ in own for token in target.ids]),
        weights=weights.repeat_interleave(lengths),
        advantages=advantages.repeat_interleave(lengths),
        written=written,
    )


def index_prompts(examples: Sequence[Example]) -> tuple[list[tuple[int, ...]], list[int]]:
    """The different prompts, and the index of each example's prompt among them."""
    index_of: dict[tuple[int, ...], int] = {}
    indices = [index_of.setdefault(example.prompt, len(index_of)) for example in examples]
    return list(index_of), indices


def check_examples(examples: Sequence[Example], vocabulary_size: int) -> None:
    """Raise UserError if a prompt or target is empty, or has an id outside the tokenizer's vocabulary.

    Rows that only pad the head do not belong to the vocabulary.
    """
    assert examples, "a batch without examples"
    for example in examples:
        name, target = example.question or "a target", example.target
        assert example.weight >= 0, f"{name} has the weight {example.weight}"
        if not len(target) or not example.prompt:
            part = "target" if example.prompt else "prompt"
            raise UserError(f"the {part} has no tokens", code="E-train-empty-example", where=name)
        highest = max(int(np.max(values, initial=0)) for values in (example.prompt, target.ids, target.candidate_ids))
        if highest >= vocabulary_size:
            raise UserError(
                "a token of this target is not in the student's vocabulary",
                code="E-train-token-outside-vocabulary",
                where=name,
                found=f"id {highest}, tokenizer of {vocabulary_size} tokens",
                hint="align the chains again with this student's tokenizer (--redo align)",
            )
