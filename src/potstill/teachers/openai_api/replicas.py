"""The servers (replicas) of a recipe: which of them may get a request now, and when failures stop the run.

>>> settings = ServerSettings("m", urls=("http://a/v1", "http://b/v1"), concurrency=2)
>>> replicas = Replicas(settings, warn=lambda message: None)
>>> first = replicas.find_free(now=0.0); first.running += 1
>>> first.url, replicas.find_free(now=0.0).url
('http://a/v1', 'http://b/v1')
>>> busy = Reply("busy", message="HTTP 503", retry_after=9.0)
>>> replicas.record_failure(first, busy, now=1.0, started=0.0)
>>> replicas.find_free(now=1.0).url, replicas.next_change(now=1.0)
('http://b/v1', 10.0)
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Final

from potstill import progress
from potstill.errors import UserError
from potstill.teachers.openai_api import server_errors
from potstill.teachers.openai_api.client import Reply
from potstill.teachers.openai_api.limits import OUTAGE_REPORT_INTERVAL, AimdLimiter, backoff_seconds
from potstill.teachers.openai_api.request import ServerSettings

MIN_FAILURES: Final = 5  # failures in a row before a run may stop
LONG_WAIT: Final = 5.0  # seconds; a longer Retry-After is reported


class Replicas:
    """The limiters of all servers, and the failures in a row of all of them together.

    warn  displays a message about a server, once
    Times are seconds of any monotonic clock.
    """

    def __init__(self, settings: ServerSettings, warn: Callable[[str], None]) -> None:
        self.settings, self.warn = settings, warn
        self.limiters = [AimdLimiter(url, settings.concurrency) for url in settings.urls]
        self.failures, self.failing_since = 0, 0.0  # failures in a row, of all servers; time of the first of them
        self.rng = random.Random()

    def find_free(self, now: float) -> AimdLimiter | None:
        """The server that may get the most requests now; None if none may get one."""
        limiter = max(self.limiters, key=lambda limiter: limiter.free_slots(now))
        return limiter if limiter.free_slots(now) > 0 else None

    def next_change(self, now: float) -> float | None:
        """The time when the next pause of a server ends; None if no server pauses."""
        return min((limiter.paused_until for limiter in self.limiters if limiter.paused_until > now), default=None)

    def record_success(self, limiter: AimdLimiter, now: float) -> None:
        if limiter.failures_while_down:
            progress.print_line(
                f"teacher   {limiter.url} answers again after {now - limiter.down_since:.0f} s", "green"
            )
            limiter.reported_at = now - OUTAGE_REPORT_INTERVAL
        limiter.record_success()
        self.failures = 0

    def record_failure(self, limiter: AimdLimiter, reply: Reply, now: float, started: float) -> None:
        """Slow down or pause a server that failed to answer a request, which started at `started`."""
        message, wait = reply.message, reply.retry_after
        if message.startswith("HTTP 5"):
            limiter.last_error = message
        if reply.outcome == "busy":
            limiter.record_congestion(now, started)
        if limiter.record_failure(now, started, reply.outcome == "away", self.settings.first_backoff, self.rng):
            progress.print_line(f"teacher   {self._describe_outage(limiter, message)}", "yellow")
        if wait:
            limiter.pause(now, wait)
            if wait >= LONG_WAIT:
                self.warn(f"{limiter.url} requests a wait of {wait:.0f} s: {message}")

    def count_failure(self, message: str, now: float, tries: int, *, paused: bool = False) -> float:
        """Count a failed or unusable response. Returns the seconds after which its request may be sent again.

        tries   number of tries of the request. The wait does not grow with them while other requests succeed
        paused  whether the server requested a pause; another replica may then take the request at once

        Raises UserError after MIN_FAILURES failures in a row, of all servers, in more than `settings.patience` seconds.
        """
        self.failing_since = self.failing_since if self.failures else now
        self.failures += 1
        seconds = now - self.failing_since
        if self.failures >= MIN_FAILURES and seconds > self.settings.patience:  # do not waste the budget
            hint = "check the server and run the same command again; everything that is stored is kept"
            raise UserError(
                f"the teacher has not answered for {seconds:.0f} s",
                code="E-teacher-no-answer",
                where=", ".join(self.settings.urls),
                found=f"{self.failures} failures in a row; the last one: {message}",
                hint=server_errors.crash_hint(self.limiters[0].last_error) or hint,
            )
        if paused:
            return 0.0
        return backoff_seconds(min(tries, self.failures - 1), self.settings.first_backoff, self.rng)

    def _describe_outage(self, limiter: AimdLimiter, message: str) -> str:
        patience = self.settings.patience
        line = f"{limiter.url} does not answer ({message}); potstill retries for {patience:g} s, at growing intervals"
        if hint := server_errors.crash_hint(limiter.last_error):
            line += f"\n          last error: {limiter.last_error}\n          {hint}"
        return line
