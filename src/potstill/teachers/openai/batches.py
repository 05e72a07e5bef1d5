"""Batch files: requests written for a service that answers them later; `results` reads what it answers.

    >>> custom_id("3f9c2a71b0de", 17, (8, 9, 11), 0), parsed("3f9c2a71b0de-17-8-b-0")
    ('3f9c2a71b0de-17-8-b-0', ('3f9c2a71b0de', 17, (8, 9, 11), 0))

A request is a line `{"custom_id": ..., "method": "POST", "url": "/v1/completions", "body": {...}}`, as OpenAI's Batch
API, its likes, and vLLM's `run-batch` take it. The id says all: of which run, which question by its number, which
chains, and at which try. So results may come in any order, in any number of files, twice, or not at all; what has none
is asked again.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

from potstill.records import Prompt, Question
from potstill.teachers.openai import body
from potstill.teachers.openai.asking import PATHS, Manner, Settings, asks, request
from potstill.teachers.openai.budget import Budget, cost, typical
from potstill.teachers.openai.reading import Reader

MOST_REQUESTS: Final = 50_000  # of a file that OpenAI's Batch API takes
MOST_BYTES: Final = 200_000_000
MOST_CHAINS: Final = 100  # of a request: 25 digits of an id
ID: Final = re.compile(r"([0-9a-f]{12})-([0-9]{1,9})-([0-9]{1,9})-([0-9a-f]{1,64})-([0-9]{1,9})")
Name = tuple[str, int, tuple[int, ...], int]


def tag(made_from: Any, server: Mapping[str, Any]) -> str:
    """What all requests of one run are known by: the same only if the same would be asked in the same manner."""
    text = json.dumps([made_from, dict(server)], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def custom_id(tag: str, number: int, indices: Sequence[int], tries: int) -> str:
    """At most 64 characters, as some services take no more: for indices less than MOST_CHAINS apart, 9 digits of number
    and first index, 5 of tries."""
    mask = sum(1 << (index - indices[0]) for index in indices)
    return f"{tag}-{number}-{indices[0]}-{mask:x}-{tries}"


def parsed(text: str) -> Name | None:
    """Tag, number of the question, indices of chains, and try; None for an id of somebody else."""
    found = ID.fullmatch(text)
    if found is None or not (mask := int(found[4], 16)) & 1:
        return None
    first = int(found[3])
    return found[1], int(found[2]), tuple(first + i for i in range(mask.bit_length()) if mask >> i & 1), int(found[5])


@dataclass(frozen=True, slots=True)
class Batch:
    """What writing requests and reading results need of a run. questions: all of them, in the run's order."""

    tag: str
    settings: Settings
    manner: Manner
    reader: Reader
    questions: Sequence[Question]
    prompt_of: Callable[[Question], Prompt]

    @property
    def url(self) -> str:
        return "/v1" + PATHS[self.settings.api]


@dataclass(slots=True)
class Before:
    """What came back from earlier batches without its chains: rows of `custom_id`, `said`, and `outcome`."""

    names: set[str] = field(default_factory=set)
    tries: dict[tuple[int, int], int] = field(default_factory=dict)  # (question, index) -> tries that are used up
    refused: dict[int, str] = field(default_factory=dict)

    def add(self, row: Mapping[str, Any]) -> bool:
        """Whether the row is new."""
        name = parsed(row["custom_id"])
        if name is None or row["custom_id"] in self.names:
            return False
        self.names.add(row["custom_id"])
        _, number, indices, tries = name
        for index in indices:
            self.tries[number, index] = max(self.tries.get((number, index), 0), tries + 1)
        if row["outcome"] == "refused":
            self.refused[number] = row["said"]
        return True


@dataclass(slots=True)
class Written:
    """What was written: prompt_tokens are estimated, completion_tokens the most. stopped: a ceiling left some out."""

    requests: int = 0
    chains: int = 0
    prompt_tokens: float = 0.0
    completion_tokens: int = 0
    stopped: bool = False

    def money(self, settings: Settings) -> float:
        return cost(settings, self.prompt_tokens, self.completion_tokens)


def lines(
    batch: Batch,
    done: Container[tuple[str, str, int]],
    right: Mapping[str, int],
    before: Before,
    budget: Budget,
    written: Written,
) -> Iterator[bytes]:
    """The requests for what is not stored, each as a line, of at most MOST_CHAINS chains; as many as the budget can
    pay."""
    settings, manner = batch.settings, batch.manner
    numbers = {question.id: number for number, question in enumerate(batch.questions)}
    skipped = before.refused if settings.refused == "skip" else ()
    questions = [question for number, question in enumerate(batch.questions) if number not in skipped]
    width = min(settings.per_request, MOST_CHAINS) if manner.n else 1
    for ask in asks(settings, width, questions, batch.prompt_of, done, right):
        if budget.reserve(ask.prompt, len(ask.indices)) is None:
            written.stopped = True
            return
        number = numbers[ask.question.id]
        ask = replace(ask, tries=max(before.tries.get((number, index), 0) for index in ask.indices))
        written.requests += 1
        written.chains += len(ask.indices)
        written.prompt_tokens += typical(ask.prompt)
        written.completion_tokens += len(ask.indices) * settings.max_tokens
        name = custom_id(batch.tag, number, ask.indices, ask.tries)
        row = {"custom_id": name, "method": "POST", "url": batch.url, "body": request(settings, manner, ask)}
        yield body.encode(row) + b"\n"


def told(batch: Batch, written: Written, paths: Sequence[Path]) -> list[str]:
    """What was written, in lines: how much is asked, and what it may cost."""
    if not paths:
        return ["batch     nothing is missing: no request is written"]
    prices = batch.settings.prices
    found = [
        f"batch     {len(paths)} files in {paths[0].parent}: {written.requests} requests for {written.chains} chains",
        f"tokens    about {written.prompt_tokens:.0f} of prompts, at most {written.completion_tokens} written",
    ]
    if any(prices):
        cost = f"cost      at most about {written.money(batch.settings):.2f}, at {prices[0]:g} and {prices[1]:g}"
        found.append(f"{cost} (teacher.budget.prices: those of batches)")
    if written.stopped:
        found.append("ceiling   the budget pays no more than these; the others are left out")
    return found
