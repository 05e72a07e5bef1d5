"""Sampling: questions in, chains out as they arrive, with as many requests under way as the servers can bear.

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

from potstill import progress
from potstill.errors import UserError
from potstill.records import Chain, Prompt, Question
from potstill.teachers import Key
from potstill.teachers.openai import complaints, finish, reading
from potstill.teachers.openai.asking import Ask, Manner, Settings, asks, missing, request
from potstill.teachers.openai.budget import Aside, Budget
from potstill.teachers.openai.client import Answer, Client, advice
from potstill.teachers.openai.pacing import TELL, Breaker, Gate, pause
from potstill.teachers.openai.reading import Reader
from potstill.teachers.openai.taking import count, hardened, taken
from potstill.teachers.trial import Trial
from potstill.teachers.watch import Watch

BATCH = 64  # chains that are worth a write of their own
SOON = 0.05  # seconds after which fewer are
LONG = 5.0  # seconds of a Retry-After that are worth a line
TOLD = (reading.ABOVE, reading.MARKED, reading.OTHER)  # defects of a server, not of one text


class _Also:
    """Two containers as one."""

    def __init__(self, *parts: Container[Any]) -> None:
        self.parts = parts

    def __contains__(self, key: object) -> bool:
        return any(key in part for part in self.parts)


class Sampler:
    """Keeps requests under way until every chain is there, and collects what arrives in `ready`."""

    def __init__(
        self,
        client: Client,
        settings: Settings,
        manner: Manner,
        reader: Reader,
        watch: Watch,
        questions: Sequence[Question],
        prompt_of: Callable[[Question], Prompt],
        done: Container[Key],
        right: Mapping[str, int],
        trial: Trial | None = None,
    ) -> None:
        self.client, self.settings, self.manner, self.reader, self.watch = client, settings, manner, reader, watch
        self.done, self.right = done, dict(right)
        self.width = settings.per_request if manner.n else 1
        self.gates = [Gate(url, settings.concurrency) for url in settings.urls]
        self.breaker = Breaker(settings.patience)
        self.served = {settings.urls[0]: manner.served} if manner.served else {}  # url -> the model that it names
        self.budget = Budget(settings, watch)
        self.draw = random.Random()
        self.trial = trial
        self.fresh = asks(settings, self.width, questions, prompt_of, done, self.right)
        if trial is not None and settings.enough is None:  # the first chains are of as many questions as can be
            once = replace(settings, samples=min(settings.samples, self.width))
            first = list(islice(asks(once, self.width, questions, prompt_of, done, self.right), trial.limit))
            begun = _Also(done, {(a.question.id, settings.source, index) for a in first for index in a.indices})
            self.fresh = itertools.chain(first, asks(settings, self.width, questions, prompt_of, begun, self.right))
        self.next: deque[Ask] = deque()  # the next requests of questions that were asked already
        self.later: list[tuple[float, int, Ask]] = []  # tries that wait: a heap by moment
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
        while len(self.ready) < BATCH and (self.running or not self.over):
            self.woken.clear()
            try:
                async with asyncio.timeout(SOON if self.ready else None):
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

    def _due(self, now: float) -> Ask | None:
        if self.later and self.later[0][0] <= now:
            return heapq.heappop(self.later)[2]
        return self.next.popleft() if self.next else next(self.fresh, None)

    def _tried(self, ask: Ask) -> bool:
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

    def _peek(self) -> Ask | None:
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

    def _affordable(self, ask: Ask) -> Aside | None:
        """What was set aside for a request; None if the ceiling forbids it now, and then it waits."""
        if (aside := self.budget.reserve(ask.prompt, len(ask.indices))) is not None:
            return aside
        self.next.appendleft(ask)
        if not self.running:
            self._stop(self.budget.reached() if self.settings.spent == "stop" else None)
        return None

    async def _one(self, gate: Gate, ask: Ask, aside: Aside, began: float) -> None:
        try:
            answer = await self.client.post(gate.url, request(self.settings, self.manner, ask))
            gate.done(began)
            if answer.data is not None:  # the next request is on its way before this answer is read
                self.fill()
                await asyncio.sleep(0)
                answer = self.client.read(answer)
        except asyncio.CancelledError:  # the server may go on writing, and bill it
            self.watch.requests += 1
            self.budget.settle(aside, ask.prompt, len(ask.indices), Answer("again", charged=True))
            raise
        now = time.monotonic()
        self.watch.requests += 1
        self.budget.settle(aside, ask.prompt, len(ask.indices), answer)
        if answer.body is not None:
            self._take(gate, ask, answer, now)
            return
        self._fault(gate, ask, answer, now, began)

    def _fault(self, gate: Gate, ask: Ask, answer: Answer, now: float, began: float) -> None:
        """What becomes of a request that was not answered."""
        if answer.said.startswith("HTTP 5"):
            gate.fault = answer.said
        if answer.outcome == "stop":
            fault = UserError("the teacher refuses", where=gate.url, found=answer.said, do=advice(answer.said))
            self._stop(fault, drain=True)
        elif answer.outcome == "refused":
            self.watch.refused[ask.question.id] = answer.said
            self._check_refused()
        else:
            if answer.outcome == "busy":
                gate.bad(now, began)
            first, away = self.settings.first_pause, answer.outcome == "away"
            if gate.failed(now, began, away, first, self.draw):
                progress.say(f"teacher   {down(gate, answer.said, self.settings.patience)}", "yellow")
            if answer.wait:
                gate.close(now, answer.wait)
                if answer.wait >= LONG:
                    self.client.tell(f"{gate.url} asks to wait {answer.wait:.0f} s: {answer.said}")
            self._again(ask, ask.indices, answer.said, now, wait=answer.wait or None, away=away)

    def _take(self, gate: Gate, ask: Ask, answer: Answer, now: float) -> None:
        """Chains from a body; what it lacks is asked again."""
        assert answer.body is not None
        for reason in finish.unknown(answer.body):
            self.client.tell(f"finish_reason {reason!r} has no meaning here: such texts count as cut off")
        chains, left, said = taken(answer.body, ask, self.settings, self.manner, self.reader)
        if not self._same(gate.url, answer.body.model):
            chains = [hardened(chain, "another model") for chain in chains]
        for chain in chains:
            for defect in chain.defects:
                if defect in TOLD:
                    self.client.tell(f"{defect}, in {chain.question} and maybe others: such tokens get hard targets")
        self.ready += chains
        for chain in chains:
            count(chain, ask.question, self.watch, self.right)
        if chains:
            if gate.down:
                progress.say(f"teacher   {gate.url} answers again after {now - gate.since:.0f} s", "green")
                gate.told = now - TELL
            gate.good()
            self.breaker.good()
        if left:
            mended = ask.mended or said.startswith("entries")
            self._again(replace(ask, mended=mended), left, said, now)
        elif self.settings.enough is not None and self.right.get(ask.question.id, 0) < self.settings.enough:
            rest = missing(self.settings, self.width, ask.question, self.done, ask.indices[-1] + 1)
            self.next.extend(Ask(ask.question, ask.prompt, indices) for indices in islice(rest, 1))
        self.woken.set()

    def _same(self, url: str, model: str | None) -> bool:
        """Whether a server names the model that it named first. Of a replica that is what its first answer says."""
        first = self.served.setdefault(url, model or "")
        if not model or not first or model == first:
            return True
        self.client.tell(f"{url} answers for the model {model!r}, first for {first!r}: such chains get hard targets")
        return False

    def _again(
        self, ask: Ask, indices: tuple[int, ...], said: str, now: float, wait: float | None = None, away: bool = False
    ) -> None:
        self.watch.fault(said)
        if self.breaker.bad(now):
            self._stop(
                UserError(
                    f"the teacher has answered nothing for {now - self.breaker.since:.0f} s",
                    where=", ".join(self.settings.urls),
                    found=f"{self.breaker.row} faults in a row; the last: {said}",
                    do=complaints.after(self.gates[0].fault)
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
            seconds = 0.0 if wait is not None else pause(times, self.settings.first_pause, self.draw)
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
            do="mend what it names, or set teacher.server.refused to skip, and run the same command again",
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


def down(gate: Gate, said: str, patience: float) -> str:
    """What to say of a server that has gone, or is still gone."""
    line = f"{gate.url} does not answer ({said}); it is asked again, less and less often, for {patience:g} s"
    if hint := complaints.after(gate.fault):
        line += f"\n          before that: {gate.fault}\n          {hint}"
    return line
