"""Rate limits: how many requests a server gets at once, how long to wait after a failure, and when to give up.

    >>> limiter = AimdLimiter("http://a/v1", maximum=64)
    >>> for _ in range(3): limiter.record_success()           # at first, each success allows one more request
    >>> limiter.limit
    19.0
    >>> limiter.record_congestion(now=10.0, started=9.0); limiter.limit         # congestion halves the limit ...
    9.5
    >>> limiter.record_congestion(now=10.1, started=9.5); limiter.limit         # ... once for all requests in flight
    9.5

Additive increase and multiplicative decrease (AIMD, as in TCP) find the capacity of a server without knowing it. The
only random part is the jitter of `backoff_seconds`; times are seconds of any monotonic clock.
"""

from __future__ import annotations

import datetime
import email.utils
import math
import random
from dataclasses import dataclass
from typing import Final

INITIAL_LIMIT: Final = 4.0  # concurrent requests at first, or a quarter of the maximum if that is more
MAX_BACKOFF: Final = 30.0  # seconds between two tries, unless the server asks for more
MAX_RETRY_AFTER: Final = 3600.0  # seconds; a longer Retry-After is cut to this
FAILURES_UNTIL_DOWN: Final = 16  # failures in a row of any kind after which a server counts as down
OUTAGE_REPORT_INTERVAL: Final = 60.0  # seconds between two lines about a server that stays down


@dataclass(slots=True)
class AimdLimiter:
    """The concurrency limit of one server, or of one of several replicas."""

    url: str
    maximum: int
    limit: float = 0.0
    running: int = 0
    paused_until: float = 0.0
    lowered_at: float = -1.0  # the time of the last decrease
    slow_start: bool = True  # no congestion yet: each success adds a whole request to the limit
    failures: int = 0  # in a row
    failures_while_down: int = 0  # of these; a server that is down gets one request at a time, ever less often
    down_since: float = 0.0
    running_when_down: int = 0  # requests that were in flight when the server went down, and still are
    reported_at: float = -OUTAGE_REPORT_INTERVAL
    last_error: str = ""  # the last HTTP error of this server

    def __post_init__(self) -> None:
        self.limit = min(max(INITIAL_LIMIT, self.maximum / 4), float(self.maximum))

    def free_slots(self, now: float) -> int:
        """How many more requests may start."""
        if now < self.paused_until:
            return 0
        if self.failures_while_down:
            return 1 - (self.running - self.running_when_down)
        return int(self.limit) - self.running

    def release(self, started: float) -> None:
        """Count a request that started at `started` as finished."""
        self.running -= 1
        if self.running_when_down and started < self.down_since:
            self.running_when_down -= 1

    def record_success(self) -> None:
        self.failures = self.failures_while_down = self.running_when_down = 0
        self.limit = min(float(self.maximum), self.limit + (1.0 if self.slow_start else 1.0 / self.limit))

    def record_congestion(self, now: float, started: float) -> None:
        """Halve the limit, unless it was already halved after the request that saw the congestion started."""
        self.slow_start = False
        if started > self.lowered_at:
            self.limit, self.lowered_at = max(1.0, self.limit / 2), now

    def pause(self, now: float, seconds: float) -> None:
        self.paused_until = max(self.paused_until, now + min(seconds, MAX_RETRY_AFTER))

    def record_failure(
        self, now: float, started: float, unreachable: bool, first_backoff: float, rng: random.Random
    ) -> bool:
        """Count a failure. Returns whether the outage of the server should be reported (again) now.

        A server that accepts no connection is down at once, any other after FAILURES_UNTIL_DOWN failures in a row.
        Failures of requests that were in flight when the server went down (`started` earlier) are not counted again.
        """
        self.failures += 1
        if not unreachable and self.failures < FAILURES_UNTIL_DOWN and not self.failures_while_down:
            return False
        if self.failures_while_down and started < self.down_since:
            return False
        if not self.failures_while_down:
            self.down_since, self.running_when_down = now, self.running
        self.failures_while_down += 1
        self.pause(now, backoff_seconds(self.failures_while_down - 1, first_backoff, rng))
        if now - self.reported_at < OUTAGE_REPORT_INTERVAL:
            return False
        self.reported_at = now
        return True


@dataclass(slots=True)
class CircuitBreaker:
    """Stops a run whose servers have answered nothing for `patience` seconds, so that it does not waste its budget."""

    patience: float  # seconds since the first failure
    min_failures: int = 5  # in a row
    failing_since: float = 0.0
    failures: int = 0

    def record_success(self) -> None:
        self.failures = 0

    def record_failure(self, now: float) -> bool:
        """Count a failure; True if it is time to give up."""
        if self.failures == 0:
            self.failing_since = now
        self.failures += 1
        return self.failures >= self.min_failures and now - self.failing_since > self.patience


def backoff_seconds(tries: int, first: float, rng: random.Random) -> float:
    """Seconds before the next try: exponential backoff from `first` on, with jitter between half and all of it."""
    return rng.uniform(0.5, 1.0) * min(MAX_BACKOFF, first * 2 ** min(tries, 16))


def parse_retry_after(header: str | None, now: datetime.datetime) -> float | None:
    """The seconds of a Retry-After header (a number or a date), at most one hour; None for a missing or invalid one.

    >>> now = datetime.datetime(2026, 10, 21, 7, 27, 30, tzinfo=datetime.UTC)
    >>> parse_retry_after("Wed, 21 Oct 2026 07:28:00 GMT", now)
    30.0
    """
    if not header:
        return None
    try:
        seconds = float(header)
        return None if math.isnan(seconds) else min(max(0.0, seconds), MAX_RETRY_AFTER)
    except ValueError:
        pass
    try:
        date = email.utils.parsedate_to_datetime(header)
        if date.tzinfo is None:
            date = date.replace(tzinfo=datetime.UTC)
        return min(max(0.0, (date - now).total_seconds()), MAX_RETRY_AFTER)
    except (ValueError, TypeError, OverflowError):  # a year that no calendar has
        return None
