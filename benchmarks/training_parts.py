"""potstill's side of `training.py`: one step for each line of input, complete or without some parts.

ours            everything
no sharing      each chain has its own prompt
padding         also with padded rows, in transformers' forward pass, cut for the least padding
whole logits    also with logits at every position and torch's cross-entropy
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from typing import Any

import torch

from potstill import models, training
from potstill.models import Example, Student
from potstill.records import Target, TargetKind
from potstill.training import data_order
from trainers import held, peak


class UniquePrompt(tuple[int, ...]):
    """A prompt that equals no other, so that nothing shares it."""

    __eq__, __hash__ = object.__eq__, object.__hash__


def main() -> None:
    """Read a job from the first line, then take a step for each further line."""
    torch.set_num_threads(1)
    job = json.loads(sys.stdin.readline())
    student = models.open_student(job["folder"], dropout=0.0)
    sharing = job["what"] == "ours"
    examples = []
    for number, (prompt, ids) in enumerate(job["examples"]):
        target = hard_target(ids)
        examples.append(Example(tuple(prompt) if sharing else UniquePrompt(prompt), target, 1.0, str(number), "all"))
    padded = job["what"] in ("padding", "whole logits")
    if padded:
        pad(student, whole=job["what"] == "whole logits")
    groups = list(group_by_prompt(examples).values())
    lengths = [(len(group[0].prompt), sum(len(row.target) for row in group)) for group in groups]

    def micro_batches(_: int) -> list[list[Example]]:
        cuts = data_order.split_into_micro_batches(lengths, job["budget"], padded=padded)
        return [[row for index in cut for row in groups[index]] for cut in cuts]

    adam, base = training.build_optimizer(student, job["rate"]), held()
    steps = training.train_steps(
        student,
        adam,
        micro_batches,
        first=1,
        last=job["steps"],
        schedule=training.Schedule("constant", job["rate"]),
        seed=1,
        precision="bfloat16" if job["bf16"] else "float32",
    )
    print(json.dumps({"ready": True}), flush=True)
    while sys.stdin.readline().strip():
        start = time.process_time()
        done = next(steps)
        seconds = time.process_time() - start
        print(json.dumps({"s": seconds, "loss": done.loss, "MiB": peak() - base}), flush=True)


def group_by_prompt(examples: Sequence[Example]) -> dict[tuple[int, ...], list[Example]]:
    groups: dict[tuple[int, ...], list[Example]] = {}
    for example in examples:
        groups.setdefault(example.prompt, []).append(example)
    return groups


def hard_target(ids: list[int]) -> Target:
    kinds: list[TargetKind] = ["hard" for _ in ids]
    return Target(ids, range(len(ids) + 1), ids, [1.0] * len(ids), kinds)


def pad(student: Student, *, whole: bool) -> None:
    """Make a student compute padded rows as transformers does and, if `whole`, the logits of every position."""

    def states(batch: models.Batch) -> torch.Tensor:
        model: Any = student.model
        if student.family == "causal":
            positions = (batch.input_mask.cumsum(1) - 1).clamp_min(0)
            options = {"attention_mask": batch.input_mask, "position_ids": positions, "use_cache": False}
            return model.get_decoder()(input_ids=batch.input_ids, **options).last_hidden_state
        assert batch.prompt_ids is not None and batch.prompt_mask is not None
        rows = torch.tensor(batch.prompts)
        ids, mask = batch.prompt_ids[rows], batch.prompt_mask[rows]
        encoded = model.encoder(input_ids=ids, attention_mask=mask).last_hidden_state
        options = {"encoder_hidden_states": encoded, "encoder_attention_mask": mask, "use_cache": False}
        return model.decoder(input_ids=batch.input_ids, **options).last_hidden_state

    def forward(batch: models.Batch, loss: object = None, *, summed: bool = False) -> Any:
        assert summed
        logits = student.head.logits(states(batch))
        labels = torch.full(batch.input_ids.shape, -100).flatten()
        labels[batch.positions] = batch.candidate_ids[:, 0]
        losses = torch.nn.functional.cross_entropy(logits.flatten(0, 1).float(), labels, reduction="none")
        return losses.sum(), losses.detach()[batch.positions]

    student.padded = True
    student.hidden = lambda batch: states(batch).flatten(0, 1)[batch.positions]  # type: ignore[method-assign]
    if whole:
        student.forward = forward  # type: ignore[method-assign]


if __name__ == "__main__":
    main()
