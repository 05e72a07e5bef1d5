"""Pacing: how many requests a server gets at once, how long to wait after a fault, and when to give up.

    >>> gate = AimdLimiter("http://a/v1", most=64)
    >>> for _ in range(3): gate.good()                      # at first one more for each that comes back
    >>> gate.limit
    19.0
    >>> gate.bad(now=10.0, began=9.0); gate.limit           # half after congestion ...
    9.5
    >>> gate.bad(now=10.1, began=9.5); gate.limit           # ... once for all that were under way
    9.5

Additive increase, multiplicative decrease: near what the server can bear, without knowing it. Pure but for the draw of
a wait; moments are seconds of any clock that does not run backwards.
"""

from __future__ import annotations

import datetime
import email.utils
import math
import random
from dataclasses import dataclass, field
from typing import Final

INITIAL_LIMIT: Final = 4.0  # requests at once in the beginning, or a quarter of what is allowed
MAX_BACKOFF: Final = 30.0  # seconds between two tries, unless the server names more
MAX_RETRY_AFTER: Final = 3600.0  # seconds of a Retry-After that are honoured
FAILURES_UNTIL_DOWN: Final = 16  # faults in a row after which a server counts as down, whatever they were
OUTAGE_REPORT_INTERVAL: Final = 60.0  # seconds between two lines about a server that stays down


@dataclass(slots=True)
class AimdLimiter:
    """One server, or one of several replicas."""

    url: str
    most: int
    limit: float = 0.0
    running: int = 0
    closed: float = 0.0  # no request before this moment
    cut: float = -1.0  # when the limit was last lowered
    starting: bool = True
    row: int = 0  # faults since an answer came
    down: int = 0  # of these, those since it counts as down: then it is asked once at a time, and less and less often
    since: float = 0.0  # when it went down
    before: int = 0  # requests that were under way then, and still are
    told: float = -OUTAGE_REPORT_INTERVAL  # when that was last told
    fault: str = ""  # the last HTTP error that it answered with

    def __post_init__(self) -> None:
        self.limit = min(max(INITIAL_LIMIT, self.most / 4), float(self.most))

    def room(self, now: float) -> int:
        """How many more requests it may be given."""
        if now < self.closed:
            return 0
        return 1 - (self.running - self.before) if self.down else int(self.limit) - self.running

    def done(self, began: float) -> None:
        """A request that began at `began` is over."""
        self.running -= 1
        if self.before and began < self.since:
            self.before -= 1

    def good(self) -> None:
        self.row = self.down = self.before = 0
        self.limit = min(float(self.most), self.limit + (1.0 if self.starting else 1.0 / self.limit))

    def bad(self, now: float, began: float) -> None:
        """Congestion, seen by a request that began at `began`."""
        self.starting = False
        if began > self.cut:
            self.limit, self.cut = max(1.0, self.limit / 2), now

    def close(self, now: float, seconds: float) -> None:
        self.closed = max(self.closed, now + min(seconds, MAX_RETRY_AFTER))

    def failed(self, now: float, began: float, away: bool, first: float, draw: random.Random) -> bool:
        """Count a fault; whether the server has just gone down, or it is time to say again that it is. A server that
        takes no connection is down at once, any other after so many faults in a row.

        began  when the request began: those that were under way when the server went down say nothing new
        """
        self.row += 1
        if not away and self.row < FAILURES_UNTIL_DOWN and not self.down:
            return False
        if self.down and began < self.since:
            return False
        if not self.down:
            self.since, self.before = now, self.running
        self.down += 1
        self.close(now, backoff_seconds(self.down - 1, first, draw))
        if now - self.told < OUTAGE_REPORT_INTERVAL:
            return False
        self.told = now
        return True


@dataclass(slots=True)
class CircuitBreaker:
    """Stops a run whose server has answered nothing for so long, instead of burning budget."""

    patience: float  # seconds, from the first fault on
    least: int = 5  # faults in a row
    since: float = 0.0
    row: int = field(default=0)

    def good(self) -> None:
        self.row = 0

    def bad(self, now: float) -> bool:
        """Count a fault; whether it is time to give up."""
        if self.row == 0:
            self.since = now
        self.row += 1
        return self.row >= self.least and now - self.since > self.patience


def backoff_seconds(tries: int, first: float, draw: random.Random) -> float:
    """Seconds before the next try: doubling, with jitter between half and all of it."""
    return draw.uniform(0.5, 1.0) * min(MAX_BACKOFF, first * 2 ** min(tries, 16))


def parse_retry_after(header: str | None, now: datetime.datetime) -> float | None:
    """Seconds that a server asks to wait, an hour at most: a number or a date. None if it does not say, or not so that
    it is understood.

    >>> parse_retry_after("Wed, 21 Oct 2026 07:28:00 GMT", datetime.datetime(2026, 10, 21, 7, 27, 30, tzinfo=datetime.UTC))
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
        then = email.utils.parsedate_to_datetime(header)
        if then.tzinfo is None:
            then = then.replace(tzinfo=datetime.UTC)
        return min(max(0.0, (then - now).total_seconds()), MAX_RETRY_AFTER)
    except (ValueError, TypeError, OverflowError):  # a year that no calendar has
        return None
