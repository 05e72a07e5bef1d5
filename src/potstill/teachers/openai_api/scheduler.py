"""Taking: the chains of one answer, and what it lacks; the same whether the answer came at once or in a file.

>>> from potstill.records import Question
>>> from potstill.teachers.openai_api import response
>>> answer = response.decode_body(b'{"choices": [{"text": "So.\\\\nThe answer is 4.\\\\nNext", "finish_reason": "stop"}]}')
>>> ask = SampleRequest(Question("q", "2 + 2?", "4", "s", "train", "number"), Prompt(()), (3, 4))
>>> chains, left, said = collect_chains(answer, ask, ServerSettings("m", candidates=0), Capabilities(), ReaderContext("teacher", "none"))
>>> [(chain.index, chain.text) for chain in chains], left, said
([(3, 'So.\\nThe answer is 4.')], (4,), 'fewer texts than asked')

Sampling: questions in, chains out as they arrive, with as many requests under way as the servers can bear.

One event loop, no threads: whoever takes the batches runs the loop while it waits for one (`drawn`), and requests come
back into the sockets while it stores them. What is waiting is one iterator over questions; what is in memory is what is
under way.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
import random
import time
from collections import deque
from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from typing import Any

from potstill import grading, progress
from potstill.errors import UserError
from potstill.records import Chain, Prompt, Question
from potstill.teachers import ChainKey
from potstill.teachers.openai_api import chain_reader, server_errors
from potstill.teachers.openai_api.budget import Budget, Reservation
from potstill.teachers.openai_api.client import Client, Reply
from potstill.teachers.openai_api.rate_limit import OUTAGE_REPORT_INTERVAL, AimdLimiter, CircuitBreaker, backoff_seconds
from potstill.teachers.openai_api.request import (
    Capabilities,
    SampleRequest,
    ServerSettings,
    build_request,
    iter_missing_indices,
    iter_requests,
)
from potstill.teachers.openai_api.response import DECODE_ERRORS, Choice, ResponseBody
from potstill.teachers.openai_api.server_errors import hint_for
from potstill.teachers.openai_api.token_entries import ReaderContext
from potstill.teachers.truncate import truncate_at_answer
from potstill.teachers.usage import FirstChainsCheck, UsageMeter

__all__ = ["Prompt", "collect_chains", "grade_and_count"]


def collect_chains(
    body: ResponseBody, ask: SampleRequest, settings: ServerSettings, manner: Capabilities, reader: ReaderContext
) -> tuple[list[Chain], tuple[int, ...], str]:
    """The chains of a body, cut behind their answers, under the indices that were asked, in order; the indices that are
    left; and what is wrong with the texts that gave none."""
    chains, left, said = [], list(ask.indices), "fewer texts than asked"
    chain_reader.fill_finish_reasons(body, settings.max_tokens)
    for choice in body.choices[: len(ask.indices)]:
        chain, why = _read_choice(choice, ask, left[0], settings, manner, reader)
        if chain is None:
            said = why
            continue
        left.pop(0)
        chains.append(chain)
    return chains, tuple(left), said


def _read_choice(
    choice: Choice,
    ask: SampleRequest,
    index: int,
    settings: ServerSettings,
    manner: Capabilities,
    reader: ReaderContext,
) -> tuple[Chain | None, str]:
    if chain_reader.read_finish_reason(choice.finish_reason) == "broken":
        why = server_errors.parse_error(choice.error).said if choice.error else f"finish_reason {choice.finish_reason}"
        return None, f"the server broke the text off: {why}"
    if choice.text is None and choice.message is None:
        return None, "a choice without a text"
    if starts_with_prompt(choice, ask.prompt):
        return None, "the text begins with the prompt"
    try:
        chain, answer = chain_reader.read_chain_and_answer(choice, ask.question.id, index, reader)
    except DECODE_ERRORS as fault:  # bytes are looked at only where they are needed
        return None, f"no answer that can be read: {fault}"
    if (
        settings.candidates
        and not chain.candidates
        and chain.content
        and chain_reader.DEFECT_OTHER_TEXT not in chain.defects
    ):
        return None, "no log-probabilities this time"
    if settings.candidates and manner.whole and not ask.mended and "entries missing" in chain.defects:
        return None, "entries missing this time"
    return truncate_at_answer(chain, answer), ""


def starts_with_prompt(choice: Choice, prompt: Prompt) -> bool:
    """Whether a text of legacy completions begins with its prompt, as from a server that echoes."""
    return bool(prompt.plain) and choice.text is not None and choice.text.startswith(prompt.plain)


def drop_probabilities(chain: Chain, defect: str) -> Chain:
    """The chain as a text alone, marked: it gets hard targets."""
    marks = tuple(sorted({*chain.defects, defect}))
    return replace(chain, tokens=(), spans=(), candidates=(), semantics="none", defects=marks)


def grade_and_count(chain: Chain, question: Question, watch: UsageMeter, right: dict[str, int]) -> None:
    """Grade a chain on the fly and count it."""
    watch.chains += 1
    watch.graded += 1
    if grading.grade(chain.text, question.gold, question.task, chain.stop).grade == "right":
        watch.right += 1
        right[question.id] = right.get(question.id, 0) + 1


BATCH_SIZE = 64  # chains that are worth a write of their own
BATCH_DELAY = 0.05  # seconds after which fewer are
LONG_WAIT = 5.0  # seconds of a Retry-After that are worth a line
SERVER_DEFECTS = (
    chain_reader.DEFECT_ABOVE_ONE,
    chain_reader.DEFECT_VOCABULARY_MARKS,
    chain_reader.DEFECT_OTHER_TEXT,
)  # defects of a server, not of one text


class _UnionContainer:
    """Two containers as one."""

    def __init__(self, *parts: Container[Any]) -> None:
        self.parts = parts

    def __contains__(self, key: object) -> bool:
        return any(key in part for part in self.parts)


class Scheduler:
    """Keeps requests under way until every chain is there, and collects what arrives in `ready`."""

    def __init__(
        self,
        client: Client,
        settings: ServerSettings,
        manner: Capabilities,
        reader: ReaderContext,
        watch: UsageMeter,
        questions: Sequence[Question],
        prompt_of: Callable[[Question], Prompt],
        done: Container[ChainKey],
        right: Mapping[str, int],
        trial: FirstChainsCheck | None = None,
    ) -> None:
        self.client, self.settings, self.manner, self.reader, self.watch = client, settings, manner, reader, watch
        self.done, self.right = done, dict(right)
        self.width = settings.per_request if manner.n else 1
        self.gates = [AimdLimiter(url, settings.concurrency) for url in settings.urls]
        self.breaker = CircuitBreaker(settings.patience)
        self.served = {settings.urls[0]: manner.served} if manner.served else {}  # url -> the model that it names
        self.budget = Budget(settings, watch)
        self.draw = random.Random()
        self.trial = trial
        self.fresh = iter_requests(settings, self.width, questions, prompt_of, done, self.right)
        if trial is not None and settings.enough is None:  # the first chains are of as many questions as can be
            once = replace(settings, samples=min(settings.samples, self.width))
            first = list(islice(iter_requests(once, self.width, questions, prompt_of, done, self.right), trial.limit))
            begun = _UnionContainer(
                done, {(a.question.id, settings.source, index) for a in first for index in a.indices}
            )
            self.fresh = itertools.chain(
                first, iter_requests(settings, self.width, questions, prompt_of, begun, self.right)
            )
        self.next: deque[SampleRequest] = deque()  # the next requests of questions that were asked already
        self.later: list[tuple[float, int, SampleRequest]] = []  # tries that wait: a heap by moment
        self.running: set[asyncio.Task[None]] = set()
        self.ready: list[Chain] = []
        self.fault: BaseException | None = None
        self.over = False
        self.held = False  # a request waits for the first chains to be judged
        self.woken = asyncio.Event()
        self.timer: asyncio.TimerHandle | None = None
        self.began = time.monotonic()
        self.number = 0

    async def wait(self) -> bool:
        """Until there are chains to take, at least one; False once there is nothing left to come."""
        if not self.number or (not self.running and not self.over):
            self.fill()
        while len(self.ready) < BATCH_SIZE and (self.running or not self.over):
            self.woken.clear()
            try:
                async with asyncio.timeout(BATCH_DELAY if self.ready else None):
                    await self.woken.wait()
            except TimeoutError:
                break
        self.watch.seconds = time.monotonic() - self.began
        if not self.ready and self.fault is not None:
            raise self.fault
        return bool(self.ready)

    def taken(self) -> list[Chain]:
        """What has arrived since the last call. Not the result of `wait`: whoever runs a task writes out its result's
        `repr` where signals are handled, which took as long as the chains had taken to read."""
        found, self.ready = self.ready, []
        return found

    def fill(self) -> None:
        """Start as many requests as there is room for; see whether everything is done."""
        now = time.monotonic()
        while not self.over and (gate := max(self.gates, key=lambda one: one.room(now))).room(now) > 0:
            ask = self._due(now)
            if ask is not None and not self._tried(ask):
                break
            if ask is None or (aside := self._affordable(ask)) is None:
                break
            gate.running += 1
            self.number += 1
            task = asyncio.get_running_loop().create_task(self._one(gate, ask, aside, now))
            self.running.add(task)
            task.add_done_callback(self._ended)
        self.watch.concurrency = len(self.running)
        if self.over:
            return
        if self.held and not self.running and not self.later:
            self.woken.set()  # what is ready is stored before the first chains are judged
        elif not self.running and not self.later and not self.next and self._peek() is None:
            self._stop(self._refusal())
        elif len(self.running) < sum(gate.most for gate in self.gates):
            self._wake_at(now)

    def _due(self, now: float) -> SampleRequest | None:
        if self.later and self.later[0][0] <= now:
            return heapq.heappop(self.later)[2]
        return self.next.popleft() if self.next else next(self.fresh, None)

    def _tried(self, ask: SampleRequest) -> bool:
        """Whether a request may be sent as far as the first chains are concerned; if not, it waits until one of them is
        right, and sampling stops where none is. Tries of a request that was sent before always may."""
        self.held = False
        if self.trial is None or self.trial.passed or ask.tries:
            return True
        self.trial.passed = self.watch.right > 0
        if self.trial.may(len(ask.indices)):
            return True
        self.next.appendleft(ask)
        if not self.running and not self.ready and not self.later:
            if (fault := self.trial.verdict(len(ask.indices))) is not None:
                self._stop(fault)
                return False
            return self._tried(self.next.popleft())
        self.held = True
        return False

    def _peek(self) -> SampleRequest | None:
        ask = next(self.fresh, None)
        if ask is not None:
            self.next.append(ask)
        return ask

    def _wake_at(self, now: float) -> None:
        moments = [gate.closed for gate in self.gates if gate.closed > now]
        if self.later and self.later[0][0] > now:  # what is due already waits for a gate, or for a request to end
            moments.append(self.later[0][0])
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None
        if moments:
            self.timer = asyncio.get_running_loop().call_later(max(0.001, min(moments) - now), self.fill)

    def _affordable(self, ask: SampleRequest) -> Reservation | None:
        """What was set aside for a request; None if the ceiling forbids it now, and then it waits."""
        if (aside := self.budget.reserve(ask.prompt, len(ask.indices))) is not None:
            return aside
        self.next.appendleft(ask)
        if not self.running:
            self._stop(self.budget.reached() if self.settings.spent == "stop" else None)
        return None

    async def _one(self, gate: AimdLimiter, ask: SampleRequest, aside: Reservation, began: float) -> None:
        try:
            answer = await self.client.post(gate.url, build_request(self.settings, self.manner, ask))
            gate.done(began)
            if answer.data is not None:  # the next request is on its way before this answer is read
                self.fill()
                await asyncio.sleep(0)
                answer = self.client.read(answer)
        except asyncio.CancelledError:  # the server may go on writing, and bill it
            self.watch.requests += 1
            self.budget.settle(aside, ask.prompt, len(ask.indices), Reply("again", charged=True))
            raise
        now = time.monotonic()
        self.watch.requests += 1
        self.budget.settle(aside, ask.prompt, len(ask.indices), answer)
        if answer.body is not None:
            self._take(gate, ask, answer, now)
            return
        self._fault(gate, ask, answer, now, began)

    def _fault(self, gate: AimdLimiter, ask: SampleRequest, answer: Reply, now: float, began: float) -> None:
        """What becomes of a request that was not answered."""
        if answer.said.startswith("HTTP 5"):
            gate.fault = answer.said
        if answer.outcome == "stop":
            fault = UserError("the teacher refuses", where=gate.url, found=answer.said, hint=hint_for(answer.said))
            self._stop(fault, drain=True)
        elif answer.outcome == "refused":
            self.watch.refused[ask.question.id] = answer.said
            self._check_refused()
        else:
            if answer.outcome == "busy":
                gate.bad(now, began)
            first, away = self.settings.first_pause, answer.outcome == "away"
            if gate.failed(now, began, away, first, self.draw):
                progress.print_line(f"teacher   {describe_outage(gate, answer.said, self.settings.patience)}", "yellow")
            if answer.wait:
                gate.close(now, answer.wait)
                if answer.wait >= LONG_WAIT:
                    self.client.tell(f"{gate.url} asks to wait {answer.wait:.0f} s: {answer.said}")
            self._again(ask, ask.indices, answer.said, now, wait=answer.wait or None, away=away)

    def _take(self, gate: AimdLimiter, ask: SampleRequest, answer: Reply, now: float) -> None:
        """Chains from a body; what it lacks is asked again."""
        assert answer.body is not None
        for reason in chain_reader.unknown_finish_reasons(answer.body):
            self.client.tell(f"finish_reason {reason!r} has no meaning here: such texts count as cut off")
        chains, left, said = collect_chains(answer.body, ask, self.settings, self.manner, self.reader)
        if not self._same(gate.url, answer.body.model):
            chains = [drop_probabilities(chain, "another model") for chain in chains]
        for chain in chains:
            for defect in chain.defects:
                if defect in SERVER_DEFECTS:
                    self.client.tell(f"{defect}, in {chain.question} and maybe others: such tokens get hard targets")
        self.ready += chains
        for chain in chains:
            grade_and_count(chain, ask.question, self.watch, self.right)
        if chains:
            if gate.down:
                progress.print_line(f"teacher   {gate.url} answers again after {now - gate.since:.0f} s", "green")
                gate.told = now - OUTAGE_REPORT_INTERVAL
            gate.good()
            self.breaker.good()
        if left:
            mended = ask.mended or said.startswith("entries")
            self._again(replace(ask, mended=mended), left, said, now)
        elif self.settings.enough is not None and self.right.get(ask.question.id, 0) < self.settings.enough:
            rest = iter_missing_indices(self.settings, self.width, ask.question, self.done, ask.indices[-1] + 1)
            self.next.extend(SampleRequest(ask.question, ask.prompt, indices) for indices in islice(rest, 1))
        self.woken.set()

    def _same(self, url: str, model: str | None) -> bool:
        """Whether a server names the model that it named first. Of a replica that is what its first answer says."""
        first = self.served.setdefault(url, model or "")
        if not model or not first or model == first:
            return True
        self.client.tell(f"{url} answers for the model {model!r}, first for {first!r}: such chains get hard targets")
        return False

    def _again(
        self,
        ask: SampleRequest,
        indices: tuple[int, ...],
        said: str,
        now: float,
        wait: float | None = None,
        away: bool = False,
    ) -> None:
        self.watch.fault(said)
        if self.breaker.bad(now):
            self._stop(
                UserError(
                    f"the teacher has answered nothing for {now - self.breaker.since:.0f} s",
                    where=", ".join(self.settings.urls),
                    found=f"{self.breaker.row} faults in a row; the last: {said}",
                    hint=server_errors.crash_hint(self.gates[0].fault)
                    or "see to the server and run the same command again; what was stored stays",
                )
            )
        elif ask.tries + 1 >= self.settings.tries and not away:
            self.watch.refused[ask.question.id] = f"{ask.tries + 1} tries; the last: {said}"
            self._check_refused()
        else:
            # A server that names its pause has closed its gate; a replica may take the request at once. While others
            # are answered, one that was unlucky often need not wait longer and longer.
            times = min(ask.tries, self.breaker.row - 1)
            seconds = 0.0 if wait is not None else backoff_seconds(times, self.settings.first_pause, self.draw)
            again = replace(ask, indices=indices, tries=ask.tries + (not away))  # no request has left
            heapq.heappush(self.later, (now + seconds, self.watch.retries, again))  # retries: no two are alike

    def _check_refused(self) -> None:
        """A server that refuses one question in twenty refuses what we ask, not the questions."""
        if len(self.watch.refused) > max(10, self.number // 20):
            self._stop(self._refusal(always=True), drain=True)

    def _refusal(self, always: bool = False) -> UserError | None:
        refused = self.watch.refused
        if not refused or (self.settings.refused == "skip" and not always):
            return None
        question, said = next(iter(refused.items()))
        return UserError(
            f"the teacher did not answer {len(refused)} questions; everything else is stored",
            where=question,
            found=said,
            hint="mend what it names, or set teacher.server.refused to skip, and run the same command again",
        )

    def _ended(self, task: asyncio.Task[None]) -> None:
        self.running.discard(task)
        if not task.cancelled() and task.exception() is not None:
            self._stop(task.exception())
        self.fill()
        if self.over:
            self.woken.set()

    def _stop(self, fault: BaseException | None, *, drain: bool = False) -> None:
        """Send no more. drain: the server is there, so requests under way, which are paid for, may be answered."""
        if not self.over:
            self.over, self.fault = True, fault
            if not drain:
                self._cancel()
        self.woken.set()

    def _cancel(self) -> None:
        for task in self.running:
            task.cancel()

    async def close(self) -> None:
        self._stop(None)
        self._cancel()
        if self.timer is not None:
            self.timer.cancel()
        await asyncio.gather(*self.running, return_exceptions=True)


def describe_outage(gate: AimdLimiter, said: str, patience: float) -> str:
    """What to say of a server that has gone, or is still gone."""
    line = f"{gate.url} does not answer ({said}); it is asked again, less and less often, for {patience:g} s"
    if hint := server_errors.crash_hint(gate.fault):
        line += f"\n          before that: {gate.fault}\n          {hint}"
    return line
