"""Pacing: how many requests a server gets at once, how long to wait after a fault, and when to give up.

    >>> gate = Gate("http://a/v1", most=64)
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
import random
from dataclasses import dataclass, field
from typing import Final

FIRST: Final = 4.0  # requests at once in the beginning, or a quarter of what is allowed
LONGEST: Final = 30.0  # seconds between two tries, unless the server names more
UNTIL: Final = 3600.0  # seconds of a Retry-After that are honoured


@dataclass(slots=True)
class Gate:
    """One server, or one of several replicas."""

    url: str
    most: int
    limit: float = 0.0
    running: int = 0
    closed: float = 0.0  # no request before this moment
    cut: float = -1.0  # when the limit was last lowered
    starting: bool = True

    def __post_init__(self) -> None:
        self.limit = min(max(FIRST, self.most / 4), float(self.most))

    def room(self, now: float) -> int:
        """How many more requests it may be given."""
        return int(self.limit) - self.running if now >= self.closed else 0

    def good(self) -> None:
        self.limit = min(float(self.most), self.limit + (1.0 if self.starting else 1.0 / self.limit))

    def bad(self, now: float, began: float) -> None:
        """Congestion, seen by a request that began at `began`."""
        self.starting = False
        if began > self.cut:
            self.limit, self.cut = max(1.0, self.limit / 2), now

    def close(self, now: float, seconds: float) -> None:
        self.closed = max(self.closed, now + min(seconds, UNTIL))


@dataclass(slots=True)
class Breaker:
    """Stops a run whose server has answered nothing for so long, instead of burning budget."""

    patience: float  # seconds
    least: int = 20  # faults in a row
    since: float = 0.0
    row: int = field(default=0)

    def good(self, now: float) -> None:
        self.since, self.row = now, 0

    def bad(self, now: float) -> bool:
        """Count a fault; whether it is time to give up."""
        self.row += 1
        return self.row >= self.least and now - self.since > self.patience


def pause(tries: int, first: float, draw: random.Random) -> float:
    """Seconds before the next try: doubling, with jitter between half and all of it."""
    return draw.uniform(0.5, 1.0) * min(LONGEST, first * 2 ** min(tries, 16))


def retry_after(header: str | None, now: datetime.datetime) -> float | None:
    """Seconds that a server asks to wait: a number or a date. None if it does not say, or not so that it is understood.

    >>> retry_after("Wed, 21 Oct 2026 07:28:00 GMT", datetime.datetime(2026, 10, 21, 7, 27, 30, tzinfo=datetime.UTC))
    30.0
    """
    if not header:
        return None
    try:
        return max(0.0, float(header))
    except ValueError:
        pass
    try:
        then = email.utils.parsedate_to_datetime(header)
    except ValueError:
        return None
    if then.tzinfo is None:
        then = then.replace(tzinfo=datetime.UTC)
    return max(0.0, (then - now).total_seconds())
