"""Requests that score texts: as many in flight as the servers can handle. Each score is stored as it arrives.

A request is sent again after a failure, and if its response is not usable: if it lacks values, scores another text, or comes
from another model. After an error that no retry corrects, requests in flight may end, because the server bills them.

    requests = ScoreRequests(settings, server, lookup, runner, client, store, usage)
    requests.score([TextToScore(key, "2 + 2 =", " 4", "sums/1")])
    store.read(key)
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from potstill.errors import UserError
from potstill.records import Chain
from potstill.storage.scores import ScoreStore
from potstill.teachers.openai_api import response, server_errors
from potstill.teachers.openai_api.budgeted_client import BudgetedClient
from potstill.teachers.openai_api.client import Reply
from potstill.teachers.openai_api.limits import AimdLimiter
from potstill.teachers.openai_api.replicas import Replicas
from potstill.teachers.openai_api.request import Capabilities, ServerSettings
from potstill.teachers.openai_api.response import ResponseBody
from potstill.teachers.openai_api.scoring import (
    CANNOT_SCORE,
    ScoringMethod,
    build_scoring_request,
    has_next_token,
    lacks_tokens,
    read_prompt_entries,
    read_scored_chain,
)
from potstill.teachers.openai_api.settings import parse_capabilities
from potstill.teachers.openai_api.token_entries import DEFECT_BEYOND_TEXT, Piece, ReaderContext
from potstill.teachers.protocol import UsageMeter

MAX_UNUSABLE: Final = 16  # responses without usable scores of a text, after which the run stops
MAX_INCOMPLETE: Final = 8  # responses that lack values of a text, after which such a response is stored
INCOMPLETE: Final = "the response lacks values of the text"
OTHER_TEXT: Final = "the response scores another text"
NO_ANSWER: Final = "E-teacher-no-answer"


@dataclass(frozen=True, slots=True)
class TextToScore:
    """A text to score: its key in the store, the prompt as the model sees it, and its question, for errors."""

    key: str
    prompt: str
    text: str
    question: str


class ScoreRequests:
    """Sends the requests for texts to the servers, as many at once as the servers can handle, and stores the scores."""

    def __init__(
        self,
        settings: ServerSettings,
        server: Mapping[str, Any],
        lookup: Callable[[int, int], Piece] | None,
        runner: asyncio.Runner,
        client: BudgetedClient,
        store: ScoreStore,
        usage: UsageMeter,
    ) -> None:
        """server: the content of SERVER_FILE."""
        self.settings, self.runner, self.client, self.store, self.usage = settings, runner, client, store, usage
        self.method: ScoringMethod = server["method"]
        self.gives_next_token: bool = server["next_token"]
        self.capabilities = parse_capabilities(server["capabilities"])
        self.context = scoring_context(lookup, self.capabilities)
        self.replicas = Replicas(settings, client.warn)
        self.released = asyncio.Event()  # set when a request ends
        self.stopped = False  # after an error, no further request is sent

    def score(self, texts: Iterable[TextToScore]) -> None:
        """Store the scores of all texts. Raises UserError; then the scores received before are stored."""
        self.stopped = False
        try:
            self.runner.run(self._score_all(deque(texts)))
        except BaseExceptionGroup as errors:  # of tasks; one error stops all of them
            raise errors.exceptions[0] from None

    async def _score_all(self, texts: deque[TextToScore]) -> None:
        started = time.monotonic()
        workers = min(len(texts), self.settings.concurrency * len(self.settings.urls))
        errors: list[UserError] = []
        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(workers):
                    group.create_task(self._work(texts, errors))
        finally:
            self.usage.seconds += time.monotonic() - started
        if errors:
            raise errors[0]

    async def _work(self, texts: deque[TextToScore], errors: list[UserError]) -> None:
        """Score texts until none is left or an error stops all workers. Requests in flight may end, because they are
        billed; if no server answers, they are cancelled."""
        try:
            while texts and not self.stopped:
                await self._score_text(texts.popleft())
        except UserError as error:
            if error.code == NO_ANSWER:
                raise
            errors.append(error)
            self.stopped = True
            self.released.set()

    async def _score_text(self, text: TextToScore) -> None:
        settings, tries, unusable, incomplete = self.settings, 0, 0, 0
        body = build_scoring_request(
            settings.model, self.capabilities, text.prompt, text.text, k=settings.top_logprobs, method=self.method
        )
        while (limiter := await self._wait_for_server()) is not None:
            started = time.monotonic()
            limiter.running += 1
            try:
                reply = await self.client.send(limiter.url, body, "/completions")
            finally:
                limiter.release(started)
                self.released.set()
            now = time.monotonic()
            if reply.body is None:
                if reply.outcome in ("stop", "refused"):
                    raise _refusal(reply, text, limiter.url)
                self.replicas.record_failure(limiter, reply, now, started)
                tries, message = tries + (reply.outcome != "away"), reply.message  # away: no request was sent
            else:
                error = self._store_scores(text, reply.body, accept_incomplete=incomplete + 1 >= MAX_INCOMPLETE)
                if error is None:
                    self.replicas.record_success(limiter, now)
                    return
                tries, unusable, message = tries + 1, unusable + 1, error.what
                incomplete += message == INCOMPLETE
                if unusable >= MAX_UNUSABLE:
                    raise error
            self.usage.count_failure(message)
            wait = self.replicas.count_failure(message, now, max(tries - 1, 0), paused=bool(reply.retry_after))
            if tries >= settings.max_tries:
                found = f"{tries} tries; the last one: {message}"
                hint = server_errors.hint_for(message)
                raise UserError(
                    "the teacher does not score a text", code=NO_ANSWER, where=text.question, found=found, hint=hint
                )
            await asyncio.sleep(wait)

    async def _wait_for_server(self) -> AimdLimiter | None:
        """A server that may get a request now; None if an error stopped the requests."""
        while not self.stopped:
            now = time.monotonic()
            if (limiter := self.replicas.find_free(now)) is not None:
                return limiter
            self.released.clear()
            until = self.replicas.next_change(now)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(None if until is None else max(0.001, until - now)):
                    await self.released.wait()
        return None

    def _store_scores(self, text: TextToScore, body: ResponseBody, *, accept_incomplete: bool) -> UserError | None:
        """Store the scores in a response; otherwise, the error that says why they are unusable."""
        served = self.capabilities.served
        if body.model and served and body.model != served:
            what, found = "the server names another model", f"{body.model}; the first response named {served}"
            hint = "serve the old model at all addresses in teacher.server.urls, or give the recipe another name"
            return UserError(what, code="E-teacher-server-changed", where=text.question, found=found, hint=hint)
        try:
            scored, fault = self._read_scores(text, body, accept_incomplete=accept_incomplete)
        except response.DECODE_ERRORS as error:
            scored, fault = None, f"the response cannot be decoded: {error}"
        except UserError as error:
            return error.at(text.question)
        if scored is None or fault:
            hint = "look at the server's log"
            return UserError(fault, code=CANNOT_SCORE, where=text.question, found=text.text[:80], hint=hint)
        self.store.append(text.key, scored)
        self.usage.chains += 1
        return None

    def _read_scores(
        self, text: TextToScore, body: ResponseBody, *, accept_incomplete: bool
    ) -> tuple[Chain | None, str]:
        """The scores in a response, and why they are unusable; empty if they are usable."""
        request_text, choice = text.prompt + text.text, body.choices[0] if body.choices else None
        if choice is None or response.read_finish_reason(choice.finish_reason) == "broken":
            return None, "the server broke the response off"
        if self.method == "echo" and not (choice.text or "").startswith(request_text):
            return None, OTHER_TEXT
        scored = read_scored_chain(choice, text.prompt, text.text, self.context, newline_ends=True)
        if DEFECT_BEYOND_TEXT in scored.defects:
            return None, OTHER_TEXT
        entries = read_prompt_entries(choice, request_text, self.context)
        lacks = self.capabilities.whole and lacks_tokens(scored, entries)
        lacks = lacks or (self.gives_next_token and not has_next_token(entries, request_text))
        return scored, INCOMPLETE if lacks and not accept_incomplete else ""


def _refusal(reply: Reply, text: TextToScore, url: str) -> UserError:
    if reply.outcome == "stop":
        what, code, where = "the teacher's server refuses all requests", "E-teacher-refuses", url
    else:
        what, code, where = "the teacher's server refuses to score a text", "E-teacher-refused-request", text.question
    return UserError(what, code=code, where=where, found=reply.message, hint=server_errors.hint_for(reply.message))


def scoring_context(lookup: Callable[[int, int], Piece] | None, capabilities: Capabilities) -> ReaderContext:
    return ReaderContext("scored", "raw", lookup, frozenset(capabilities.ends))
