"""Batch files: requests for a service that answers them later, and the chains of the results.

    >>> format_custom_id("3f9c2a71b0de", 17, (8, 9, 11), 0), parse_custom_id("3f9c2a71b0de-17-8-b-0")
    ('3f9c2a71b0de-17-8-b-0', RequestId(tag='3f9c2a71b0de', question=17, indices=(8, 9, 11), tries=0))

A request is a line `{"custom_id": ..., "method": "POST", "url": "/v1/completions", "body": {...}}`, the format of
OpenAI's Batch API, of compatible services, and of vLLM's `run-batch`. The `custom_id` identifies the run, the question
(by its number), the chains, and the try. Results may therefore come in any order, in any number of files, twice, or not
at all. A request without a result is written again.

A result is a line with the `custom_id` of its request and a `response` (`status_code`, `body`) or an `error`:

    >>> line = b'{"custom_id": "x", "response": null, "error": {"code": "batch_expired", "message": "too late"}}'
    >>> custom_id, reply = read_result(line)
    >>> custom_id, reply.outcome, reply.message
    ('x', 'busy', 'batch_expired too late')

Reading a result again adds no chains and no cost.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, Final, NamedTuple, Self

import msgspec

from potstill.errors import UserError
from potstill.records import Question
from potstill.storage.flat_chains import FlatChain
from potstill.storage.read import as_user_errors
from potstill.storage.segments import ChainKey
from potstill.teachers.openai_api import client, response, server_errors
from potstill.teachers.openai_api.client import Reply
from potstill.teachers.openai_api.limits import Budget, compute_cost, estimate_tokens
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
from potstill.teachers.protocol import PromptBuilder, UsageMeter

MAX_CHAINS_PER_REQUEST: Final = 100  # the id stores a bit mask of the chains in 25 hexadecimal digits
CUSTOM_ID: Final = re.compile(r"([0-9a-f]{12})-([0-9]{1,9})-([0-9]{1,9})-([0-9a-f]{1,64})-([0-9]{1,9})")
UNPROCESSED_CODES: Final = ("batch_expired", "batch_cancelled")  # errors of requests that no model has seen
MAX_REFUSED: Final = 10  # if more questions, and more than one result in twenty, are refused, the requests are wrong


class RequestId(NamedTuple):
    """The parts of a custom_id. question: the number of the question in the run."""

    tag: str
    question: int
    indices: tuple[int, ...]
    tries: int


def run_tag(identity: Any, server: Mapping[str, Any]) -> str:
    """The prefix of all request ids of a run. Runs have the same prefix only if requests and server settings are equal."""
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


@dataclass(slots=True)
class FailedResults:
    """Earlier results that gave no chain: rows of `custom_id`, `said` (the message), and `outcome`."""

    custom_ids: set[str] = field(default_factory=set)
    tries: dict[tuple[int, int], int] = field(default_factory=dict)  # (question, index) -> tries so far
    refused: dict[int, str] = field(default_factory=dict)  # question -> message

    @classmethod
    def from_rows(cls, rows: Iterable[Mapping[str, Any]]) -> Self:
        failed = cls()
        for row in rows:
            failed.add(row)
        return failed

    def add(self, row: Mapping[str, Any]) -> bool:
        """Add a row. Returns False if the row was added before."""
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
class Batch:
    """The batch files of a run: writes requests and reads results.

    questions    all questions, in the run's order
    usage        usage of the run; the usage of each result is added
    over_budget  whether requests were left out because of the budget

    `requests`, `chains`, `prompt_tokens` (an estimate) and `completion_tokens` (a maximum) count the written requests.
    """

    tag: str
    settings: ServerSettings
    capabilities: Capabilities
    context: ReaderContext
    questions: Sequence[Question]
    build_prompt: PromptBuilder
    failed: FailedResults = field(default_factory=FailedResults)
    usage: UsageMeter = field(default_factory=UsageMeter)
    requests: int = 0
    chains: int = 0
    prompt_tokens: float = 0.0
    completion_tokens: int = 0
    over_budget: bool = False
    FILE_LIMITS: ClassVar = {"max_lines": 50_000, "max_bytes": 200_000_000}  # of OpenAI's Batch API

    def iter_request_lines(self, stored: Container[ChainKey], right: Mapping[str, int]) -> Iterator[bytes]:
        """The requests for all missing chains, one line each, as many as the budget allows."""
        settings, capabilities, budget = self.settings, self.capabilities, Budget(self.settings, self.usage)
        numbers = {question.id: number for number, question in enumerate(self.questions)}
        skipped = self.failed.refused if settings.refused == "skip" else ()
        questions = [question for number, question in enumerate(self.questions) if number not in skipped]
        width = min(settings.samples_per_request, MAX_CHAINS_PER_REQUEST) if capabilities.n else 1
        for request in iter_requests(settings, width, questions, self.build_prompt, stored, right):
            if budget.reserve(request.prompt, len(request.indices)) is None:
                self.over_budget = True
                return
            number = numbers[request.question.id]
            tries = max(self.failed.tries.get((number, index), 0) for index in request.indices)
            request = replace(request, tries=tries)
            self.requests += 1
            self.chains += len(request.indices)
            self.prompt_tokens += estimate_tokens(request.prompt)
            self.completion_tokens += len(request.indices) * settings.max_tokens
            custom_id = format_custom_id(self.tag, number, request.indices, tries)
            body = build_request(settings, capabilities, request)
            row = {"custom_id": custom_id, "method": "POST", "url": "/v1" + ENDPOINTS[settings.api], "body": body}
            yield response.encode(row) + b"\n"

    def describe(self, paths: Sequence[Path]) -> list[str]:
        """Lines for display: the number of requests written to the files, and their maximum cost."""
        if not paths:
            return ["batch     no chain is missing, so no request is written"]
        prices = self.settings.prices
        lines = [
            f"batch     {len(paths)} files in {paths[0].parent}: {self.requests} requests for {self.chains} chains",
            f"tokens    about {self.prompt_tokens:.0f} in prompts, at most {self.completion_tokens} in answers",
        ]
        if any(prices):
            cost = compute_cost(self.settings, self.prompt_tokens, self.completion_tokens)
            lines.append(
                f"cost      at most about {cost:.2f}, at {prices[0]:g} and {prices[1]:g}"
                " (teacher.budget.prices: set the prices of batches)"
            )
        if self.over_budget:
            lines.append("budget    the budget allows only these requests; the others are not written")
        return lines

    def spent_error(self) -> UserError:
        return Budget(self.settings, self.usage).spent_error()

    def read_results(
        self, paths: Iterable[Path], stored: Container[ChainKey], right: dict[str, int], counted: set[str]
    ) -> Iterator[tuple[list[FlatChain], list[dict[str, Any]], list[str]]]:
        """For each result: its new chains, rows for `FailedResults`, and ids to count as billed.

        The chains are those that are not stored yet. There is a row if the result lacks chains, and an id if the result
        was billed and is not in `counted`.

        stored   keys of the stored chains
        right    question id -> number of its right chains; updated
        counted  ids of the results that the run's ledger counts; updated
        Raises UserError, with file and line, for a line that is not a result of a request of this run; and if so many
        questions were refused that the requests must be wrong.
        """
        refused: list[dict[str, Any]] = []
        counted |= self.failed.custom_ids
        usage, result_count, budget = self.usage, 0, Budget(self.settings, self.usage)
        for result_count, (custom_id, reply, request) in enumerate(self._iter_results(paths), 1):  # noqa: B007 - the total
            billed: list[str] = []
            if reply.outcome != "busy" and custom_id not in counted:  # busy: no model has seen the request
                counted.add(custom_id)
                billed.append(custom_id)
                usage.requests += 1
                budget.settle((0.0, 0.0), request.prompt, len(request.indices), reply)
            if all((request.question.id, self.settings.source, index) in stored for index in request.indices):
                if billed:
                    yield [], [], billed
                continue
            chains, left, message = [], request.indices, reply.message
            if reply.body is not None:
                chains, left, message = collect_chains(
                    reply.body, request, self.settings, self.capabilities, self.context
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
                elif reply.outcome != "busy" and self.failed.add(row):
                    rows.append(row)
            if chains or rows or billed:
                yield chains, rows, billed
        if len(usage.refused) > max(MAX_REFUSED, result_count // 20):
            question, message = next(iter(usage.refused.items()))
            what = f"the service refused {len(usage.refused)} questions; all received chains are stored"
            hint = "correct the setting in the message; if it is a key of the recipe, also give the recipe another name"
            raise UserError(what, code="E-teacher-refused-questions", where=question, found=message, hint=hint)
        yield [], [row for row in refused if self.failed.add(row)], []

    def _iter_results(self, paths: Iterable[Path]) -> Iterator[tuple[str, Reply, SampleRequest]]:
        """The id, reply and request of each result in the files."""
        for path in paths:
            with as_user_errors(path), open(path, "rb") as file:
                for number, line in enumerate(file, 1):
                    if line.strip():
                        yield self._parse_line(line, f"{path} line {number}")

    def _parse_line(self, line: bytes, where: str) -> tuple[str, Reply, SampleRequest]:
        try:
            custom_id, reply = read_result(line)
        except response.DECODE_ERRORS as error:
            what = "the line is not a complete result"
            hint = (
                "download the file again, or remove this line and send its request again; all earlier lines are stored"
            )
            raise UserError(what, code="E-batch-invalid-line", where=where, found=error, hint=hint) from None
        request_id = parse_custom_id(custom_id)
        if request_id is None or request_id.tag != self.tag or request_id.question >= len(self.questions):
            what = "the result belongs to another run"
            hint = "name the run that wrote the requests; a recipe with other values writes other requests"
            found = f"custom_id {custom_id[:80]}; the ids of this run begin with {self.tag}"
            raise UserError(what, code="E-batch-other-run", where=where, found=found, hint=hint)
        if reply is None:
            what = "the line has neither a response nor an error"
            found = "a request" if b'"method"' in line else custom_id
            hint = "name the files that the service returned, not the files that were sent"
            raise UserError(what, code="E-batch-no-result", where=where, found=found, hint=hint)
        question = self.questions[request_id.question]
        prompt, retried = self.build_prompt(question), request_id.tries > 0
        request = SampleRequest(question, prompt, request_id.indices, request_id.tries, accept_incomplete=retried)
        return custom_id, reply, request


class ResultResponse(msgspec.Struct):
    status_code: int = 200
    body: msgspec.Raw = msgspec.Raw(b"null")


class BatchResult(msgspec.Struct):
    custom_id: str
    response: ResultResponse | None = None
    error: msgspec.Raw = msgspec.Raw(b"null")


_result_decoder = msgspec.json.Decoder(BatchResult)


def read_result(line: bytes) -> tuple[str, Reply | None]:
    """The id in a line of results, and its reply, in the form of a server's reply.

    The reply is None if the line has neither a response nor an error. Its outcome is `busy` if no model has seen the
    request, which may then be sent again unchanged.
    """
    result = _result_decoder.decode(line)
    answer, error = result.response, bytes(result.error)
    if answer is None and error == b"null":
        return result.custom_id, None
    body = bytes(answer.body) if answer is not None else b"null"
    if answer is not None and answer.status_code == 200 and body != b"null":
        reply = client.parse_reply(body)
        return result.custom_id, replace(reply, message=client.to_one_line(reply.message))
    server_error = server_errors.read_server_error(error if body == b"null" else body)
    message, code = client.to_one_line(server_error.message), client.to_one_line(_error_code(error))
    if code in UNPROCESSED_CODES:
        reply = Reply("busy", message=f"{code} {message}")
    elif answer is None or answer.status_code == 200:
        reply = Reply("again", message=f"{code} {message}".strip())
    else:
        outcome = server_errors.classify_error(answer.status_code, server_error)
        reply = Reply(outcome, message=f"HTTP {answer.status_code} {message}")
    return result.custom_id, reply


def _error_code(error: bytes) -> str:
    try:
        tree = msgspec.json.decode(error)
    except response.DECODE_ERRORS:
        return ""
    return str(tree.get("code") or "") if isinstance(tree, dict) else ""
