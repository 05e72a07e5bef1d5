"""Batch files: requests written for a service that answers them later; `results` reads what it answers.

    >>> format_custom_id("3f9c2a71b0de", 17, (8, 9, 11), 0), parse_custom_id("3f9c2a71b0de-17-8-b-0")
    ('3f9c2a71b0de-17-8-b-0', ('3f9c2a71b0de', 17, (8, 9, 11), 0))

A request is a line `{"custom_id": ..., "method": "POST", "url": "/v1/completions", "body": {...}}`, as OpenAI's Batch
API, its likes, and vLLM's `run-batch` take it. The id says all: of which run, which question by its number, which
chains, and at which try. So results may come in any order, in any number of files, twice, or not at all; what has none
is asked again.

Results of batch files: the chains that each brings, and what to remember of those that lack some.

    >>> told = b'{"custom_id": "x", "response": null, "error": {"code": "batch_expired", "message": "too late"}}'
    >>> _reply_of(_result_decoder.decode(told)).outcome, _reply_of(_result_decoder.decode(told)).said
    ('busy', 'batch_expired too late')

A result is a line with the `custom_id` of its request and a `response` (`status_code`, `body`) or an `error`; `batches`
has the requests. One that is read again brings nothing new, and costs nothing.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

import msgspec

from potstill.errors import UserError
from potstill.records import Chain, Prompt, Question
from potstill.storage.read import as_user_errors
from potstill.teachers.openai_api import client, response, server_errors
from potstill.teachers.openai_api.budget import Budget, compute_cost, estimate_tokens
from potstill.teachers.openai_api.client import Reply
from potstill.teachers.openai_api.request import (
    ENDPOINTS,
    Capabilities,
    SampleRequest,
    ServerSettings,
    build_request,
    iter_requests,
)
from potstill.teachers.openai_api.scheduler import collect_chains, grade_and_count
from potstill.teachers.openai_api.token_entries import ReaderContext
from potstill.teachers.usage import UsageMeter

MAX_REQUESTS: Final = 50_000  # of a file that OpenAI's Batch API takes
MAX_BYTES: Final = 200_000_000
MAX_CHAINS_PER_REQUEST: Final = 100  # of a request: 25 digits of an id
CUSTOM_ID: Final = re.compile(r"([0-9a-f]{12})-([0-9]{1,9})-([0-9]{1,9})-([0-9a-f]{1,64})-([0-9]{1,9})")
RequestId = tuple[str, int, tuple[int, ...], int]


def run_tag(made_from: Any, server: Mapping[str, Any]) -> str:
    """What all requests of one run are known by: the same only if the same would be asked in the same manner."""
    text = json.dumps([made_from, dict(server)], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def format_custom_id(tag: str, number: int, indices: Sequence[int], tries: int) -> str:
    """At most 64 characters, as some services take no more: for indices less than MOST_CHAINS apart, 9 digits of number
    and first index, 5 of tries."""
    mask = sum(1 << (index - indices[0]) for index in indices)
    return f"{tag}-{number}-{indices[0]}-{mask:x}-{tries}"


def parse_custom_id(text: str) -> RequestId | None:
    """Tag, number of the question, indices of chains, and try; None for an id of somebody else."""
    found = CUSTOM_ID.fullmatch(text)
    if found is None or not (mask := int(found[4], 16)) & 1:
        return None
    first = int(found[3])
    return found[1], int(found[2]), tuple(first + i for i in range(mask.bit_length()) if mask >> i & 1), int(found[5])


@dataclass(frozen=True, slots=True)
class Batch:
    """What writing requests and reading results need of a run. questions: all of them, in the run's order."""

    tag: str
    settings: ServerSettings
    manner: Capabilities
    reader: ReaderContext
    questions: Sequence[Question]
    prompt_of: Callable[[Question], Prompt]

    @property
    def url(self) -> str:
        return "/v1" + ENDPOINTS[self.settings.api]


@dataclass(slots=True)
class FailedResults:
    """What came back from earlier batches without its chains: rows of `custom_id`, `said`, and `outcome`."""

    names: set[str] = field(default_factory=set)
    tries: dict[tuple[int, int], int] = field(default_factory=dict)  # (question, index) -> tries that are used up
    refused: dict[int, str] = field(default_factory=dict)

    def add(self, row: Mapping[str, Any]) -> bool:
        """Whether the row is new."""
        name = parse_custom_id(row["custom_id"])
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
class BatchSummary:
    """What was written: prompt_tokens are estimated, completion_tokens the most. stopped: a ceiling left some out."""

    requests: int = 0
    chains: int = 0
    prompt_tokens: float = 0.0
    completion_tokens: int = 0
    stopped: bool = False

    def money(self, settings: ServerSettings) -> float:
        return compute_cost(settings, self.prompt_tokens, self.completion_tokens)


def iter_request_lines(
    batch: Batch,
    done: Container[tuple[str, str, int]],
    right: Mapping[str, int],
    before: FailedResults,
    budget: Budget,
    written: BatchSummary,
) -> Iterator[bytes]:
    """The requests for what is not stored, each as a line, of at most MOST_CHAINS chains; as many as the budget can
    pay."""
    settings, manner = batch.settings, batch.manner
    numbers = {question.id: number for number, question in enumerate(batch.questions)}
    skipped = before.refused if settings.refused == "skip" else ()
    questions = [question for number, question in enumerate(batch.questions) if number not in skipped]
    width = min(settings.per_request, MAX_CHAINS_PER_REQUEST) if manner.n else 1
    for ask in iter_requests(settings, width, questions, batch.prompt_of, done, right):
        if budget.reserve(ask.prompt, len(ask.indices)) is None:
            written.stopped = True
            return
        number = numbers[ask.question.id]
        ask = replace(ask, tries=max(before.tries.get((number, index), 0) for index in ask.indices))
        written.requests += 1
        written.chains += len(ask.indices)
        written.prompt_tokens += estimate_tokens(ask.prompt)
        written.completion_tokens += len(ask.indices) * settings.max_tokens
        name = format_custom_id(batch.tag, number, ask.indices, ask.tries)
        row = {"custom_id": name, "method": "POST", "url": batch.url, "body": build_request(settings, manner, ask)}
        yield response.encode(row) + b"\n"


def describe(batch: Batch, written: BatchSummary, paths: Sequence[Path]) -> list[str]:
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


UNPROCESSED_CODES: Final = ("batch_expired", "batch_cancelled")  # errors of requests that no model has seen
MAX_REFUSED: Final = 10  # questions; more, and more than one of twenty results, are not for the questions


class ResultResponse(msgspec.Struct):
    status_code: int = 200
    body: msgspec.Raw = msgspec.Raw(b"null")


class BatchResult(msgspec.Struct):
    custom_id: str
    response: ResultResponse | None = None
    error: msgspec.Raw = msgspec.Raw(b"null")


_result_decoder = msgspec.json.Decoder(BatchResult)


def read_results(
    batch: Batch,
    paths: Iterable[Path],
    done: Container[tuple[str, str, int]],
    right: dict[str, int],
    before: FailedResults,
    counted: set[str],
    budget: Budget,
    watch: UsageMeter,
) -> Iterator[tuple[list[Chain], list[dict[str, Any]], list[str]]]:
    """Of each result the chains that are not stored, what to remember of it if it lacks some (see `Before`), and its
    id if it is one that was paid and not counted yet.

    counted  ids of results that the ledger has; those that are found now join them
    Raises UserError, naming file and line, for a line that is no result of a request of this run; and where so many
    questions were refused that it is not for the questions.
    """
    refused: list[dict[str, Any]] = []
    counted |= before.names
    seen = 0
    for seen, (result, name, ask) in enumerate(_iter_results(batch, paths), 1):  # noqa: B007 - how many there were
        answer = _reply_of(result)
        billed = _newly_billed(answer, name, counted)
        if billed:
            watch.requests += 1
            budget.settle((0.0, 0.0), ask.prompt, len(ask.indices), answer)
        if all((ask.question.id, batch.settings.source, index) in done for index in ask.indices):
            if billed:
                yield [], [], billed
            continue
        chains, left, said = [], ask.indices, answer.said
        if answer.body is not None:
            found, left, said = collect_chains(answer.body, ask, batch.settings, batch.manner, batch.reader)
            chains = [chain for chain in found if chain.key not in done]
        for chain in chains:
            grade_and_count(chain, ask.question, watch, right)
        rows = []
        if left:
            watch.fault(said)
            row = {"custom_id": name, "outcome": answer.outcome, "said": said}
            if answer.outcome == "refused":
                watch.refused[ask.question.id] = said
                refused.append(row)
            elif answer.outcome != "busy" and before.add(row):
                rows.append(row)
        if chains or rows or billed:
            yield chains, rows, billed
    if len(watch.refused) > max(MAX_REFUSED, seen // 20):
        question, said = next(iter(watch.refused.items()))
        raise UserError(
            f"the service refused {len(watch.refused)} questions; every chain that came is stored",
            where=question,
            found=said,
            hint="fix what it names; where that is a key of the recipe, in a recipe of another name",
        )
    yield [], [row for row in refused if before.add(row)], []


def _newly_billed(answer: Reply, name: str, counted: set[str]) -> list[str]:
    """The id of a result that is to be counted now: one that a model has seen, the first time that it is read."""
    if answer.outcome == "busy" or name in counted:
        return []
    counted.add(name)
    return [name]


def _iter_results(batch: Batch, paths: Iterable[Path]) -> Iterator[tuple[BatchResult, str, SampleRequest]]:
    """Each result of some files, its id, and what was asked."""
    for path in paths:
        with as_user_errors(path), open(path, "rb") as file:
            for place, line in enumerate(file, 1):
                if line.strip():
                    yield _parse_line(batch, line, f"{path} line {place}")


def _parse_line(batch: Batch, line: bytes, where: str) -> tuple[BatchResult, str, SampleRequest]:
    try:
        result = _result_decoder.decode(line)
    except response.DECODE_ERRORS as fault:
        raise UserError(
            "not a whole result",
            where=where,
            found=fault,
            hint="fetch the file again, or remove this line and ask its request again; what came before it is stored",
        ) from None
    name = parse_custom_id(result.custom_id)
    if name is None or name[0] != batch.tag or name[1] >= len(batch.questions):
        raise UserError(
            "a result of another run",
            where=where,
            found=f"custom_id {result.custom_id[:80]}, where those of this run begin with {batch.tag}",
            hint="name the run whose requests these were: with other values in its recipe they would be other requests",
        )
    if result.response is None and bytes(result.error) == b"null":
        raise UserError(
            "neither a response nor an error",
            where=where,
            found="a request" if b'"method"' in line else result.custom_id,
            hint="name the files that the service gave back, not those that were sent",
        )
    _, number, indices, tries = name
    question = batch.questions[number]
    return (
        result,
        result.custom_id,
        SampleRequest(question, batch.prompt_of(question), indices, tries, mended=tries > 0),
    )


def _reply_of(result: BatchResult) -> Reply:
    """As if it had come at once. A request that no model has seen is `busy`: it may be sent again as it is."""
    response, error = result.response, bytes(result.error)
    inside = bytes(response.body) if response is not None else b"null"
    if response is not None and response.status_code == 200 and inside != b"null":
        found = client.parse_reply(inside)
        return replace(found, said=client.to_one_line(found.said))
    told = server_errors.read_server_error(error if inside == b"null" else inside)
    said, code = client.to_one_line(told.said), client.to_one_line(_error_code(error))
    if code in UNPROCESSED_CODES:
        return Reply("busy", said=f"{code} {said}")
    if response is None or response.status_code == 200:
        return Reply("again", said=f"{code} {said}".strip())
    return Reply(server_errors.classify_error(response.status_code, told), said=f"HTTP {response.status_code} {said}")


def _error_code(error: bytes) -> str:
    try:
        found = msgspec.json.decode(error)
    except response.DECODE_ERRORS:
        return ""
    return str(found.get("code") or "") if isinstance(found, dict) else ""
