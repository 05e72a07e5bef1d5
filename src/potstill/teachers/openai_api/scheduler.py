"""The scheduler: keeps as many requests in flight as the servers can handle, and returns chains as they arrive.

>>> body = response.decode_body(b'{"choices": [{"text": "So.\\\\nThe answer is 4.\\\\nNext", "finish_reason": "stop"}]}')
>>> request = SampleRequest(Question("q", "2 + 2?", "4", "s", "train", "number"), Prompt(()), (3, 4))
>>> settings, context = ServerSettings("m", top_logprobs=0), ReaderContext("teacher", "none")
>>> chains, left, message = collect_chains(body, request, settings, Capabilities(), context)
>>> [(chain.index, chain.text) for chain in chains], left, message
([(3, 'So.\\nThe answer is 4.')], (4,), 'fewer texts than requested')

There is one event loop and no thread. The caller runs the loop while it waits for chains. While it stores chains,
responses arrive in the sockets. The waiting requests are an iterator over the questions, so memory holds only requests
in flight.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import replace
from typing import Final

import msgspec

from potstill import grading
from potstill.errors import UserError
from potstill.records import Prompt, Question
from potstill.storage.flat_chains import FlatChain, flatten
from potstill.teachers.chain_parts import find_truncation, truncate_at_answer
from potstill.teachers.openai_api import chain_reader, response, server_errors
from potstill.teachers.openai_api.client import Client, Reply
from potstill.teachers.openai_api.limits import AimdLimiter, Budget, Reservation
from potstill.teachers.openai_api.replicas import Replicas
from potstill.teachers.openai_api.request import (
    Capabilities,
    SampleRequest,
    ServerSettings,
    build_request,
    iter_missing_indices,
    iter_requests,
)
from potstill.teachers.openai_api.response import Choice, ResponseBody
from potstill.teachers.openai_api.token_entries import DEFECT_ENTRIES_MISSING, ReaderContext
from potstill.teachers.protocol import PromptBuilder, SamplingState, UsageMeter

BATCH_SIZE: Final = 64  # number of chains that are stored with one write
MAX_UNREAD: Final = 64  # number of responses that may wait to be decoded; above it, no request is sent
BATCH_DELAY: Final = 0.05  # seconds after which a smaller batch is returned
SERVER_DEFECTS: Final = {  # defects of a server, which all of its texts have
    chain_reader.DEFECT_ABOVE_ONE,
    chain_reader.DEFECT_VOCABULARY_MARKS,
    chain_reader.DEFECT_OTHER_TEXT,
}


def collect_chains(
    body: ResponseBody,
    request: SampleRequest,
    settings: ServerSettings,
    capabilities: Capabilities,
    context: ReaderContext,
) -> tuple[list[FlatChain], tuple[int, ...], str]:
    """The chains of a response (also from a batch file), the indices still missing, and why they are missing.

    The chains are truncated after their answers, and get the first of the requested indices.
    """
    chains, left, message = [], list(request.indices), "fewer texts than requested"
    response.fill_finish_reasons(body, settings.max_tokens)
    for choice in body.choices[: len(request.indices)]:
        chain, defect = _read_choice(choice, request, left[0], settings, capabilities, context)
        if chain is None:
            message = defect
            continue
        left.pop(0)
        chains.append(chain)
    return chains, tuple(left), message


def _read_choice(
    choice: Choice,
    request: SampleRequest,
    index: int,
    settings: ServerSettings,
    capabilities: Capabilities,
    context: ReaderContext,
) -> tuple[FlatChain | None, str]:
    if response.read_finish_reason(choice.finish_reason) == "broken":
        error = server_errors.parse_error(choice.error) if choice.error else None
        reason = error.message if error else f"finish_reason {choice.finish_reason}"
        return None, f"the server broke the text off: {reason}"
    if choice.text is None and choice.message is None:
        return None, "a choice without a text"
    if starts_with_prompt(choice, request.prompt):
        return None, "the text begins with the prompt"
    row = chain_reader.read_row(choice, request.question.id, index, context)
    if row is not None and find_truncation(row.content) is None:
        return row, ""
    try:
        chain, answer_start = chain_reader.read_chain_and_answer(choice, request.question.id, index, context)
    except response.DECODE_ERRORS as error:  # the bytes of tokens are decoded only here
        return None, f"the response cannot be decoded: {error}"
    if settings.top_logprobs:
        if not chain.candidates and chain.content and chain_reader.DEFECT_OTHER_TEXT not in chain.defects:
            return None, "no log-probabilities this time"
        if capabilities.whole and not request.accept_incomplete and DEFECT_ENTRIES_MISSING in chain.defects:
            return None, "entries missing this time"
    return flatten(truncate_at_answer(chain, answer_start)), ""


def starts_with_prompt(choice: Choice, prompt: Prompt) -> bool:
    """Whether a text of legacy completions begins with its prompt, because the server echoes the prompt."""
    return bool(prompt.plain) and choice.text is not None and choice.text.startswith(prompt.plain)


def grade_and_count(chain: FlatChain, question: Question, usage: UsageMeter, right: dict[str, int]) -> None:
    """Grade a chain. Count it in `usage` and, if it is right, in `right` (question id -> number of right chains)."""
    usage.chains += 1
    usage.graded += 1
    text = chain.content.decode("utf-8", "replace")
    if grading.grade_chain(text, question, chain.stop, chain.defects).grade == "right":
        usage.right += 1
        right[question.id] = right.get(question.id, 0) + 1


class Scheduler:
    """Keeps requests in flight until every chain has arrived.

    Call `wait` and `take` in turn to get chains, and `close` at the end. When a request finishes, `_fill` starts as many
    new requests as the limiters, the budget and the check of the first chains allow.
    """

    def __init__(
        self,
        client: Client,
        settings: ServerSettings,
        capabilities: Capabilities,
        context: ReaderContext,
        questions: Sequence[Question],
        build_prompt: PromptBuilder,
        state: SamplingState,
    ) -> None:
        self.client, self.settings, self.capabilities, self.context = client, settings, capabilities, context
        self.usage, self.stored, self.right, self.check = (
            state.usage,
            state.stored,
            dict(state.right),
            state.first_chains,
        )
        self.width = width = settings.samples_per_request if capabilities.n else 1
        self.replicas = Replicas(settings, client.warn)
        # url -> the model that the server names
        self.served = {settings.urls[0]: capabilities.served} if capabilities.served else {}
        self.budget = Budget(settings, state.usage)
        self.new_requests = iter_requests(settings, width, questions, build_prompt, self.stored, self.right)
        if self.check is not None and settings.enough is None:  # begin with one request per question
            one_request = replace(settings, samples=min(settings.samples, width))
            requests = iter_requests(one_request, width, questions, build_prompt, self.stored, self.right)
            first = list(itertools.islice(requests, self.check.limit))
            ids = {request.question.id for request in first}
            others = (r for r in self.new_requests if r.indices[0] >= width or r.question.id not in ids)
            self.new_requests = itertools.chain(first, others)
        self.next_requests: deque[SampleRequest] = deque()  # requests of questions whose first request was sent
        self.retries: list[tuple[float, int, SampleRequest]] = []  # heap ordered by the time of the retry
        self.running: set[asyncio.Task[None]] = set()
        self.ready: list[FlatChain] = []
        self.error: BaseException | None = None
        self.stopped = False
        self.waits_for_check = False  # whether a request waits for the check of the first chains
        self.reading = asyncio.Lock()  # held while a response is decoded
        self.unread = 0  # responses that wait for it
        self.wake = asyncio.Event()
        self.timer: asyncio.TimerHandle | None = None
        self.started = time.monotonic()
        self.request_count = 0

    async def wait(self) -> bool:
        """Wait until a chain is ready. Returns False if no more chains will follow.

        If an error stopped the scheduler, raises it after all ready chains have been taken.
        """
        if not self.request_count or (not self.running and not self.stopped):
            self._fill()
        while len(self.ready) < BATCH_SIZE and (self.running or not self.stopped):
            self.wake.clear()
            try:
                async with asyncio.timeout(BATCH_DELAY if self.ready else None):
                    await self.wake.wait()
            except TimeoutError:
                break
        self.usage.seconds = time.monotonic() - self.started
        if not self.ready and self.error is not None:
            raise self.error
        return bool(self.ready)

    def take(self) -> list[FlatChain]:
        """The chains that have arrived since the last call.

        `wait` does not return them, because asyncio formats the `repr` of a task's result when it handles signals; that
        took as long as reading the chains.
        """
        chains, self.ready = self.ready, []
        return chains

    def _fill(self) -> None:
        """Start as many requests as there are free slots. Stop the scheduler if no request is left."""
        now = time.monotonic()
        while not self.stopped and self.unread <= MAX_UNREAD:
            if (limiter := self.replicas.find_free(now)) is None:
                break
            request = self._next_request(now)
            if request is None or not self._passes_check(request):
                break
            if (reservation := self._reserve(request)) is None:
                break
            limiter.running += 1
            self.request_count += 1
            task = asyncio.create_task(self._run_request(limiter, request, reservation, now))
            self.running.add(task)
            task.add_done_callback(self._on_task_done)
        self.usage.concurrency = len(self.running)
        if self.stopped:
            return
        if self.waits_for_check and not self.running and not self.retries:
            self.wake.set()  # the caller stores the ready chains before the check
        elif not self.running and not self.retries and not self._has_new_request():
            self._stop(self._refusal_error())
        elif len(self.running) < sum(limiter.maximum for limiter in self.replicas.limiters):
            self._set_timer(now)

    def _next_request(self, now: float) -> SampleRequest | None:
        if self.retries and self.retries[0][0] <= now:
            return heapq.heappop(self.retries)[2]
        return self.next_requests.popleft() if self.next_requests else next(self.new_requests, None)

    def _passes_check(self, request: SampleRequest) -> bool:
        """Whether the check of the first chains allows a request. Retries always pass.

        If the check does not allow it, the request waits until one of the first chains is right. The scheduler stops if
        none of them is right.
        """
        self.waits_for_check = False
        check = self.check
        if check is None or check.passed or request.tries:
            return True
        check.passed = self.usage.right > 0
        if check.allow(len(request.indices)):
            return True
        self.next_requests.appendleft(request)
        if not self.running and not self.ready and not self.retries:
            if (error := check.judge(len(request.indices))) is not None:
                self._stop(error)
                return False
            return self._passes_check(self.next_requests.popleft())
        self.waits_for_check = True
        return False

    def _has_new_request(self) -> bool:
        if not self.next_requests:
            self.next_requests.extend(itertools.islice(self.new_requests, 1))
        return bool(self.next_requests)

    def _set_timer(self, now: float) -> None:
        """Schedule a call of `_fill` for the time when the next pause of a server ends or the next retry is due."""
        until = self.replicas.next_change(now)
        times = [] if until is None else [until]
        if self.retries and self.retries[0][0] > now:  # an overdue retry waits for a free slot, not for a time
            times.append(self.retries[0][0])
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None
        if times:
            self.timer = asyncio.get_running_loop().call_later(max(0.001, min(times) - now), self._fill)

    def _reserve(self, request: SampleRequest) -> Reservation | None:
        """The reservation for a request. None if the budget does not allow the request now; it then waits."""
        if (reservation := self.budget.reserve(request.prompt, len(request.indices))) is not None:
            return reservation
        self.next_requests.appendleft(request)
        if not self.running:
            self._stop(self.budget.spent_error() if self.settings.spent == "stop" else None)
        return None

    async def _run_request(
        self, limiter: AimdLimiter, request: SampleRequest, reservation: Reservation, started: float
    ) -> None:
        try:
            reply = await self.client.post(limiter.url, build_request(self.settings, self.capabilities, request))
            limiter.release(started)
            if reply.data is None:
                self._settle(limiter, request, reservation, reply, started)
                return
            self.unread += 1
            try:
                self._fill()  # send the next request before decoding this response
                async with self.reading:
                    await asyncio.sleep(0)  # the event loop sends and receives between any two responses
                    self._settle(limiter, request, reservation, self.client.read(reply), started)
            finally:
                self.unread -= 1
        except asyncio.CancelledError:  # the server may continue to generate, and bill the tokens
            self.usage.requests += 1
            self.budget.settle(reservation, request.prompt, len(request.indices), Reply("again", charged=True))
            raise

    def _settle(
        self, limiter: AimdLimiter, request: SampleRequest, reservation: Reservation, reply: Reply, started: float
    ) -> None:
        """Charge a decoded reply, and handle its chains or its failure."""
        now = time.monotonic()
        self.usage.requests += 1
        self.budget.settle(reservation, request.prompt, len(request.indices), reply)
        if reply.body is not None:
            self._handle_chains(limiter, request, reply.body, now)
        else:
            self._handle_failure(limiter, request, reply, now, started)

    def _handle_failure(
        self, limiter: AimdLimiter, request: SampleRequest, reply: Reply, now: float, started: float
    ) -> None:
        message = reply.message
        if reply.outcome == "stop":
            what, hint = "the teacher's server refuses all requests", server_errors.hint_for(message)
            error = UserError(what, code="E-teacher-refuses", where=limiter.url, found=message, hint=hint)
            self._stop(error, drain=True)
        elif reply.outcome == "refused":
            self._refuse(request, message)
        else:
            self.replicas.record_failure(limiter, reply, now, started)
            self._retry(request, message, now, paused=bool(reply.retry_after), unreachable=reply.outcome == "away")

    def _handle_chains(self, limiter: AimdLimiter, request: SampleRequest, body: ResponseBody, now: float) -> None:
        """Add the chains of a response to the ready chains, and request missing chains again."""
        for reason in response.unknown_finish_reasons(body):
            self.client.warn(f"the finish_reason {reason!r} is unknown: such texts count as cut off")
        chains, left, message = collect_chains(body, request, self.settings, self.capabilities, self.context)
        if not self._is_same_model(limiter.url, body.model):
            chains = [_drop_probabilities(chain, "another model") for chain in chains]
        self.ready += chains
        for chain in chains:
            grade_and_count(chain, request.question, self.usage, self.right)
            for defect in [defect for defect in chain.defects if defect in SERVER_DEFECTS]:
                self.client.warn(f"{defect}, in {chain.question} and maybe others: such tokens get hard targets")
        if chains:
            self.replicas.record_success(limiter, now)
        enough = self.settings.enough
        if left:
            accept_incomplete = request.accept_incomplete or message.startswith("entries")
            self._retry(replace(request, indices=left, accept_incomplete=accept_incomplete), message, now)
        elif enough is not None and self.right.get(request.question.id, 0) < enough:
            first = request.indices[-1] + 1
            missing = iter_missing_indices(self.settings, self.width, request.question, self.stored, first)
            if (indices := next(missing, None)) is not None:
                self.next_requests.append(SampleRequest(request.question, request.prompt, indices))
        self.wake.set()

    def _is_same_model(self, url: str, model: str | None) -> bool:
        """Whether a server names the same model as in its first response (the first server: in the probe)."""
        first = self.served.setdefault(url, model or "")
        if not model or not first or model == first:
            return True
        self.client.warn(f"{url} names the model {model!r}, but first named {first!r}: such chains get hard targets")
        return False

    def _retry(
        self, request: SampleRequest, message: str, now: float, paused: bool = False, unreachable: bool = False
    ) -> None:
        self.usage.count_failure(message)
        try:
            seconds = self.replicas.count_failure(message, now, request.tries, paused=paused)
        except UserError as error:
            self._stop(error)
            return
        if request.tries + 1 >= self.settings.max_tries and not unreachable:
            self._refuse(request, f"{request.tries + 1} tries; the last one: {message}")
        else:
            retry = replace(request, tries=request.tries + (not unreachable))  # unreachable: no request was sent
            heapq.heappush(self.retries, (now + seconds, self.usage.retries, retry))  # usage.retries breaks ties

    def _refuse(self, request: SampleRequest, message: str) -> None:
        """Skip a question. Stop if the server refuses more than one question in twenty, because then the requests are
        wrong, not the questions."""
        self.usage.refused[request.question.id] = message
        if len(self.usage.refused) > max(10, self.request_count // 20):
            self._stop(self._refusal_error(always=True), drain=True)

    def _refusal_error(self, always: bool = False) -> UserError | None:
        refused = self.usage.refused
        if not refused or (self.settings.refused == "skip" and not always):
            return None
        question, message = next(iter(refused.items()))
        what = f"the teacher did not answer {len(refused)} questions; all other chains are stored"
        hint = (
            "correct the setting in the message, or set teacher.server.refused to skip; then run the same command again"
        )
        return UserError(what, code="E-teacher-refused-questions", where=question, found=message, hint=hint)

    def _on_task_done(self, task: asyncio.Task[None]) -> None:
        self.running.discard(task)
        if not task.cancelled() and task.exception() is not None:
            self._stop(task.exception())
        self._fill()
        if self.stopped:
            self.wake.set()

    def _stop(self, error: BaseException | None, *, drain: bool = False) -> None:
        """Send no further request. drain: let the requests in flight finish, because the server bills them."""
        if not self.stopped:
            self.stopped, self.error = True, error
            if not drain:
                self._cancel()
        self.wake.set()

    def _cancel(self) -> None:
        for task in self.running:
            task.cancel()

    async def close(self) -> None:
        self._stop(None)
        self._cancel()
        if self.timer is not None:
            self.timer.cancel()
        await asyncio.gather(*self.running, return_exceptions=True)
        await self.client.close()


def _drop_probabilities(chain: FlatChain, defect: str) -> FlatChain:
    """The chain without tokens and probabilities, so that it gets hard targets, and with a defect."""
    cleared = {"tokens": [], "spans": None, "outcomes": [], "log_probabilities": [], "step_sizes": []}
    return msgspec.structs.replace(chain, **cleared, semantics="none", defects=sorted({*chain.defects, defect}))
