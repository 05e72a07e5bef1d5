"""Batch files: requests for a service that answers them later, and the chains of its results.

    >>> format_custom_id("3f9c2a71b0de", 17, (8, 9, 11), 0), parse_custom_id("3f9c2a71b0de-17-8-b-0")
    ('3f9c2a71b0de-17-8-b-0', RequestId(tag='3f9c2a71b0de', question=17, indices=(8, 9, 11), tries=0))

A request is a line `{"custom_id": ..., "method": "POST", "url": "/v1/completions", "body": {...}}`, the format of
OpenAI's Batch API, of compatible services, and of vLLM's `run-batch`. Its id identifies the run, the question by its
number, the chains, and the try. So results may come in any order, in any number of files, twice, or not at all; a
request without a result is written again.

A result is a line with the `custom_id` of its request and a `response` (`status_code`, `body`) or an `error`:

    >>> line = b'{"custom_id": "x", "response": null, "error": {"code": "batch_expired", "message": "too late"}}'
    >>> reply = read_result(line)
    >>> reply.outcome, reply.message
    ('busy', 'batch_expired too late')

A result that is read again brings nothing new and costs nothing.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final, NamedTuple

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

MAX_REQUESTS: Final = 50_000  # in a file of OpenAI's Batch API
MAX_BYTES: Final = 200_000_000
MAX_CHAINS_PER_REQUEST: Final = 100  # their bit mask fits into 25 digits of the id
CUSTOM_ID: Final = re.compile(r"([0-9a-f]{12})-([0-9]{1,9})-([0-9]{1,9})-([0-9a-f]{1,64})-([0-9]{1,9})")
UNPROCESSED_CODES: Final = ("batch_expired", "batch_cancelled")  # errors of requests that no model has seen
MAX_REFUSED: Final = 10  # questions; if more, and more than one result in twenty, are refused, the requests are wrong


class RequestId(NamedTuple):
    """The parts of a custom_id. question: its number in the run."""

    tag: str
    question: int
    indices: tuple[int, ...]
    tries: int


def run_tag(identity: Any, server: Mapping[str, Any]) -> str:
    """The common part of all request ids of a run: equal only if equal requests would be sent to an equal server."""
    text = json.dumps([identity, dict(server)], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def format_custom_id(tag: str, question: int, indices: Sequence[int], tries: int) -> str:
    """The id of a request. It has at most 64 characters, the limit of some services, if the indices are less than
    MAX_CHAINS_PER_REQUEST apart, the numbers have at most 9 digits, and tries at most 5."""
    mask = sum(1 << (index - indices[0]) for index in indices)
    return f"{tag}-{question}-{indices[0]}-{mask:x}-{tries}"


def parse_custom_id(text: str) -> RequestId | None:
    """The parts of an id; None for an id that potstill did not write."""
    match = CUSTOM_ID.fullmatch(text)
    if match is None or not (mask := int(match[4], 16)) & 1:
        return None
    first = int(match[3])
    indices = tuple(first + bit for bit in range(mask.bit_length()) if mask >> bit & 1)
    return RequestId(match[1], int(match[2]), indices, int(match[5]))


@dataclass(frozen=True, slots=True)
class Batch:
    """What writing requests and reading results need to know about a run. questions: all, in the run's order."""

    tag: str
    settings: ServerSettings
    capabilities: Capabilities
    context: ReaderContext
    questions: Sequence[Question]
    build_prompt: Callable[[Question], Prompt]

    @property
    def url(self) -> str:
        return "/v1" + ENDPOINTS[self.settings.api]


@dataclass(slots=True)
class FailedResults:
    """Earlier results without their chains: rows of `custom_id`, `said` (the message), and `outcome`."""

    custom_ids: set[str] = field(default_factory=set)
    tries: dict[tuple[int, int], int] = field(default_factory=dict)  # (question, index) -> tries so far
    refused: dict[int, str] = field(default_factory=dict)  # question -> message

    def add(self, row: Mapping[str, Any]) -> bool:
        """Add a row; False if it is there already."""
        request_id = parse_custom_id(row["custom_id"])
        if request_id is None or row["custom_id"] in self.custom_ids:
            return False
        self.custom_ids.add(row["custom_id"])
        for index in request_id.indices:
            key = request_id.question, index
            self.tries[key] = max(self.tries.get(key, 0), request_id.tries + 1)
        if row["outcome"] == "refused":
            self.refused[request_id.question] = row["said"]
        return True


@dataclass(slots=True)
class BatchSummary:
    """What was written: prompt_tokens is an estimate, completion_tokens a maximum. over_budget: the budget does not
    allow the remaining requests."""

    requests: int = 0
    chains: int = 0
    prompt_tokens: float = 0.0
    completion_tokens: int = 0
    over_budget: bool = False


def iter_request_lines(
    batch: Batch,
    stored: Container[tuple[str, str, int]],
    right: Mapping[str, int],
    failed: FailedResults,
    budget: Budget,
    summary: BatchSummary,
) -> Iterator[bytes]:
    """The requests for all missing chains, one line each, as many as the budget allows; counted in `summary`."""
    settings, capabilities = batch.settings, batch.capabilities
    numbers = {question.id: number for number, question in enumerate(batch.questions)}
    skipped = failed.refused if settings.refused == "skip" else ()
    questions = [question for number, question in enumerate(batch.questions) if number not in skipped]
    width = min(settings.samples_per_request, MAX_CHAINS_PER_REQUEST) if capabilities.n else 1
    for request in iter_requests(settings, width, questions, batch.build_prompt, stored, right):
        if budget.reserve(request.prompt, len(request.indices)) is None:
            summary.over_budget = True
            return
        number = numbers[request.question.id]
        request = replace(request, tries=max(failed.tries.get((number, index), 0) for index in request.indices))
        summary.requests += 1
        summary.chains += len(request.indices)
        summary.prompt_tokens += estimate_tokens(request.prompt)
        summary.completion_tokens += len(request.indices) * settings.max_tokens
        custom_id = format_custom_id(batch.tag, number, request.indices, request.tries)
        body = build_request(settings, capabilities, request)
        row = {"custom_id": custom_id, "method": "POST", "url": batch.url, "body": body}
        yield response.encode(row) + b"\n"


def describe(batch: Batch, summary: BatchSummary, paths: Sequence[Path]) -> list[str]:
    """The summary in lines for display: the number of requests, and their maximum cost."""
    if not paths:
        return ["batch     no chain is missing: no request is written"]
    prices = batch.settings.prices
    lines = [
        f"batch     {len(paths)} files in {paths[0].parent}: {summary.requests} requests for {summary.chains} chains",
        f"tokens    about {summary.prompt_tokens:.0f} in prompts, at most {summary.completion_tokens} in answers",
    ]
    if any(prices):
        cost = compute_cost(batch.settings, summary.prompt_tokens, summary.completion_tokens)
        lines.append(
            f"cost      at most about {cost:.2f}, at {prices[0]:g} and {prices[1]:g}"
            " (teacher.budget.prices: set the prices of batches)"
        )
    if summary.over_budget:
        lines.append("budget    it allows no more requests than these; the others are not written")
    return lines


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
    stored: Container[tuple[str, str, int]],
    right: dict[str, int],
    failed: FailedResults,
    counted: set[str],
    budget: Budget,
    usage: UsageMeter,
) -> Iterator[tuple[list[Chain], list[dict[str, Any]], list[str]]]:
    """For each result: its chains that are not stored, a row for `FailedResults` if it lacks some, and its id if it was
    billed and is not counted yet.

    counted  ids of the results in the run's ledger; gains those that are counted now
    Raises UserError, with file and line, for a line that is not a result of a request of this run; and if so many
    questions were refused that the requests must be wrong.
    """
    refused: list[dict[str, Any]] = []
    counted |= failed.custom_ids
    result_count = 0
    for result_count, (result, request) in enumerate(_iter_results(batch, paths), 1):  # noqa: B007 - the total
        custom_id, reply = result.custom_id, _reply_of(result)
        billed: list[str] = []
        if reply.outcome != "busy" and custom_id not in counted:  # busy: no model has seen the request
            counted.add(custom_id)
            billed.append(custom_id)
            usage.requests += 1
            budget.settle((0.0, 0.0), request.prompt, len(request.indices), reply)
        if all((request.question.id, batch.settings.source, index) in stored for index in request.indices):
            if billed:
                yield [], [], billed
            continue
        chains, left, message = [], request.indices, reply.message
        if reply.body is not None:
            chains, left, message = collect_chains(
                reply.body, request, batch.settings, batch.capabilities, batch.context
            )
            chains = [chain for chain in chains if chain.key not in stored]
        for chain in chains:
            grade_and_count(chain, request.question, usage, right)
        rows = []
        if left:
            usage.count_failure(message)
            row = {"custom_id": custom_id, "outcome": reply.outcome, "said": message}
            if reply.outcome == "refused":
                usage.refused[request.question.id] = message
                refused.append(row)
            elif reply.outcome != "busy" and failed.add(row):
                rows.append(row)
        if chains or rows or billed:
            yield chains, rows, billed
    if len(usage.refused) > max(MAX_REFUSED, result_count // 20):
        question, message = next(iter(usage.refused.items()))
        raise UserError(
            f"the service refused {len(usage.refused)} questions; all received chains are stored",
            code="E-teacher-refused-questions",
            where=question,
            found=message,
            hint="fix what the message names; if it is a key of the recipe, do so in a recipe of another name",
        )
    yield [], [row for row in refused if failed.add(row)], []


def _iter_results(batch: Batch, paths: Iterable[Path]) -> Iterator[tuple[BatchResult, SampleRequest]]:
    """Each result of some files, and its request."""
    for path in paths:
        with as_user_errors(path), open(path, "rb") as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    yield _parse_line(batch, line, f"{path} line {number}")


def _parse_line(batch: Batch, line: bytes, where: str) -> tuple[BatchResult, SampleRequest]:
    try:
        result = _result_decoder.decode(line)
    except response.DECODE_ERRORS as error:
        raise UserError(
            "the line is not a complete result",
            code="E-batch-invalid-line",
            where=where,
            found=error,
            hint="download the file again, or remove this line and send its request again; all earlier lines are stored",
        ) from None
    request_id = parse_custom_id(result.custom_id)
    if request_id is None or request_id.tag != batch.tag or request_id.question >= len(batch.questions):
        raise UserError(
            "the result belongs to another run",
            code="E-batch-other-run",
            where=where,
            found=f"custom_id {result.custom_id[:80]}; those of this run begin with {batch.tag}",
            hint="name the run that wrote the requests; a recipe with other values writes other requests",
        )
    if result.response is None and bytes(result.error) == b"null":
        raise UserError(
            "the line has neither a response nor an error",
            code="E-batch-no-result",
            where=where,
            found="a request" if b'"method"' in line else result.custom_id,
            hint="name the files that the service returned, not those that were sent",
        )
    question = batch.questions[request_id.question]
    prompt, retried = batch.build_prompt(question), request_id.tries > 0
    return result, SampleRequest(question, prompt, request_id.indices, request_id.tries, accept_incomplete=retried)


def read_result(line: bytes) -> Reply:
    """The reply in a line of results, as if it had come from a server. `busy`: no model has seen the request, so it may
    be sent again unchanged."""
    return _reply_of(_result_decoder.decode(line))


def _reply_of(result: BatchResult) -> Reply:
    answer, error = result.response, bytes(result.error)
    body = bytes(answer.body) if answer is not None else b"null"
    if answer is not None and answer.status_code == 200 and body != b"null":
        reply = client.parse_reply(body)
        return replace(reply, message=client.to_one_line(reply.message))
    server_error = server_errors.read_server_error(error if body == b"null" else body)
    message, code = client.to_one_line(server_error.message), client.to_one_line(_error_code(error))
    if code in UNPROCESSED_CODES:
        return Reply("busy", message=f"{code} {message}")
    if answer is None or answer.status_code == 200:
        return Reply("again", message=f"{code} {message}".strip())
    outcome = server_errors.classify_error(answer.status_code, server_error)
    return Reply(outcome, message=f"HTTP {answer.status_code} {message}")


def _error_code(error: bytes) -> str:
    try:
        tree = msgspec.json.decode(error)
    except response.DECODE_ERRORS:
        return ""
    return str(tree.get("code") or "") if isinstance(tree, dict) else ""
