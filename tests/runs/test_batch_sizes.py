"""Greedy texts do not depend on the batch size, except where two tokens are equally likely up to rounding."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from potstill import inference, models, prompts
from potstill.inference import Decode, Request, batch_requests
from potstill.models import Student

NOISE = 1e-4  # between the two best logits
ROOT = Path(__file__).parents[2]
BUDGETS = (64, 500, 4096, 40000)


@pytest.mark.parametrize("folder", ["src/potstill/demo/models/student", "tools/toy_models/models/student-causal"])
def test_texts_differ_only_where_two_tokens_are_equally_likely(folder: str, capsys: pytest.CaptureFixture[str]) -> None:
    student = models.open_student(ROOT / folder)
    requests = [
        Request((str(row), 0), tuple(student.encode(student.render(prompt)))) for row, prompt in enumerate(some())
    ]
    found = [greedy(student, requests, budget) for budget in BUDGETS]
    differing = 0
    for key, first in found[0].items():
        for other in found[1:]:
            if first != other[key]:
                differing += 1
                at = next(
                    (i for i, pair in enumerate(zip(first, other[key], strict=False)) if pair[0] != pair[1]),
                    min(len(first), len(other[key])),
                )
                prompt = next(request.prompt for request in requests if request.key[0] == key)
                assert margin(student, prompt, first[:at]) < NOISE
    with capsys.disabled():
        count = len(requests) * (len(BUDGETS) - 1)
        print(f"\n{Path(folder).name}: {differing} of {count} greedy texts differ from those of the smallest batches")


def some() -> list:
    things = ("cookies", "shells", "coins", "pens", "hats")
    rows = [
        f"Emma has {a} {things[b % 5]}. Leo gives her {b} more{'' if a % 3 else ', and Kai ' + str(a + b)}. Count all."
        for a in range(3, 9)
        for b in range(2, 12)
    ]
    return [prompts.build_prompt(row, prompts.FORMATS["zero-shot-rationale"]) for row in rows]


def greedy(student: Student, requests: list[Request], budget: int) -> dict[str, tuple[int, ...]]:
    engine, found = inference.open_engine(student), {}
    for batch in batch_requests(requests, budget, max_tokens=48):
        for text in engine.generate([requests[index] for index in batch], Decode(max_tokens=48)):
            found[text.key[0]] = text.ids
    return found


def margin(student: Student, prompt: tuple[int, ...], ids: tuple[int, ...]) -> float:
    """Between the two best logits behind a prompt and some tokens, from one plain forward pass."""
    with torch.no_grad():
        if student.family == "t5":
            start = student.model.config.decoder_start_token_id
            told = student.model(input_ids=torch.tensor([prompt]), decoder_input_ids=torch.tensor([[start, *ids]]))
        else:
            told = student.model(input_ids=torch.tensor([[*prompt, *ids]]))
    best, second = told.logits[0, -1].topk(2).values.tolist()
    return best - second
