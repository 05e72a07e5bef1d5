"""Limits: the concurrency of each server, the pauses before retries, and the budget of a run.

    >>> limiter = AimdLimiter("http://a/v1", maximum=64)
    >>> for _ in range(3): limiter.record_success()           # at first, each success allows one more request
    >>> limiter.limit
    19.0
    >>> limiter.record_congestion(now=10.0, started=9.0); limiter.limit         # congestion halves the limit ...
    9.5
    >>> limiter.record_congestion(now=10.1, started=9.5); limiter.limit         # ... once for all requests in flight
    9.5

Additive increase and multiplicative decrease (AIMD, as in TCP) find the unknown capacity of a server. Only the jitter of
`backoff_seconds` is random. Times are seconds of any monotonic clock.

    >>> settings = ServerSettings(model="m", max_tokens=100, prices=(1.0, 2.0), budget_tokens=1000)
    >>> budget = Budget(settings, UsageMeter())
    >>> prompt = Prompt((Turn("user", "x" * 200),))
    >>> [budget.reserve(prompt, 4) for _ in range(3)]            # each at most 100 + 400 tokens
    [(500.0, 0.0009), (500.0, 0.0009), None]

Before a request is sent, its maximum cost is reserved: the prompt, and the maximum length of all texts. The response is
then charged by the server's token counts. A broken response may have been billed, so its whole reservation is charged. If
the counts are not credible (missing, negative, contradictory, too small for the texts), the charge is the larger of the
reservation and an estimate from the received text.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass
from typing import Final

from potstill.errors import UserError
from potstill.records import Prompt, Turn
from potstill.teachers.openai_api.client import Reply
from potstill.teachers.openai_api.request import ServerSettings
from potstill.teachers.openai_api.response import Choice, ResponseBody, Usage, message_texts
from potstill.teachers.protocol import UsageMeter

__all__ = ["BUDGET_SPENT", "AimdLimiter", "Budget", "Prompt", "Turn"]
BUDGET_SPENT: Final = "E-teacher-budget-spent"
INITIAL_LIMIT: Final = 4.0  # concurrent requests at the start; a quarter of the maximum if that is larger
MAX_BACKOFF: Final = 30.0  # maximum seconds between two tries, unless the server requests more
FAILURES_UNTIL_DOWN: Final = 16  # failures in a row after which a server counts as down
OUTAGE_REPORT_INTERVAL: Final = 60.0  # seconds between two lines about a server that stays down
TOKENS_PER_BYTE_AT_MOST: Final = 0.5  # upper bound for prompts, until the server has counted a prompt
TOKENS_PER_BYTE: Final = 0.27  # typical value for English and digits
MAX_BYTES_PER_TOKEN: Final = 64  # a count of fewer tokens than this implies is not credible
Reservation = tuple[float, float]  # tokens, money


@dataclass(slots=True)
class AimdLimiter:
    """The concurrency limit of one server (one replica)."""

    url: str
    maximum: int
    limit: float = 0.0
    running: int = 0
    paused_until: float = 0.0
    lowered_at: float = -1.0  # the time of the last decrease
    slow_start: bool = True  # no congestion yet: each success adds a whole request to the limit
    failures: int = 0  # in a row
    failures_while_down: int = 0  # failures since it is down; it then gets one request at a time, at growing intervals
    down_since: float = 0.0
    running_when_down: int = 0  # requests still in flight that started before the server went down
    reported_at: float = -OUTAGE_REPORT_INTERVAL
    last_error: str = ""  # the last HTTP error of this server

    def __post_init__(self) -> None:
        self.limit = min(max(INITIAL_LIMIT, self.maximum / 4), float(self.maximum))

    def free_slots(self, now: float) -> int:
        """The number of requests that may start now."""
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
        """Halve the limit, unless it was already halved since the congested request started (at `started`)."""
        self.slow_start = False
        if started > self.lowered_at:
            self.limit, self.lowered_at = max(1.0, self.limit / 2), now

    def pause(self, now: float, seconds: float) -> None:
        self.paused_until = max(self.paused_until, now + seconds)

    def record_failure(
        self, now: float, started: float, unreachable: bool, first_backoff: float, rng: random.Random
    ) -> bool:
        """Count a failure. Returns whether to report the outage of the server now.

        A server that accepts no connection is down at once; any other server is down after FAILURES_UNTIL_DOWN failures
        in a row. Failures of requests that started before the server went down do not count as further failures.
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


def backoff_seconds(tries: int, first: float, rng: random.Random) -> float:
    """Seconds before the next try: exponential backoff from `first` on, times a random factor between 0.5 and 1."""
    return rng.uniform(0.5, 1.0) * min(MAX_BACKOFF, first * 2 ** min(tries, 16))


class Budget:
    def __init__(self, settings: ServerSettings, usage: UsageMeter) -> None:
        self.settings, self.usage = settings, usage
        self.reserved_tokens = self.reserved_money = 0.0
        self.max_reserved = (0.0, 0.0)  # highest reservation so far: tokens, money
        self.prompt_density = 0.0  # highest number of tokens per byte of a prompt so far
        self.longest_text = settings.max_tokens  # tokens; larger if the server has exceeded the limit

    def reserve(self, prompt: Prompt, n: int) -> Reservation | None:
        """Reserve the maximum cost of n texts; None if that could exceed the budget."""
        tokens, money = self._max_cost(prompt, n)
        if not self._is_within(tokens, money):
            return None
        self.reserved_tokens += tokens
        self.reserved_money += money
        highest = max(self.reserved_tokens, self.max_reserved[0]), max(self.reserved_money, self.max_reserved[1])
        if highest != self.max_reserved:
            self.max_reserved = highest
            self.usage.on_reserve(*highest)
        return tokens, money

    def allows_probe(self, prompt: Prompt, n: int, probes: int, max_tokens: int) -> bool:
        """Whether the budget allows a request for n texts, and also `probes` requests for two short texts."""
        prompt_tokens, written = _prompt_bytes(prompt) * TOKENS_PER_BYTE_AT_MOST * probes, 2 * probes * max_tokens
        cost = compute_cost(self.settings, prompt_tokens, written)
        return self._is_within(*self._max_cost(prompt, n)) and self._is_within(prompt_tokens + written, cost)

    def _is_within(self, tokens: float, money: float) -> bool:
        max_tokens, max_money = self.settings.budget_tokens, self.settings.budget_money
        if max_tokens is not None and self.tokens + self.reserved_tokens + tokens > max_tokens:
            return False
        return max_money is None or self.money + self.reserved_money + money <= max_money

    def _max_cost(self, prompt: Prompt, n: int) -> Reservation:
        density = TOKENS_PER_BYTE_AT_MOST if self.prompt_density == 0 else max(self.prompt_density, 0.1)
        prompt_tokens, written = math.ceil(_prompt_bytes(prompt) * density), n * self.longest_text
        return float(prompt_tokens + written), compute_cost(self.settings, prompt_tokens, written)

    def settle(self, reservation: Reservation, prompt: Prompt, n: int, reply: Reply) -> None:
        """Release the reservation for n texts, and charge the cost of the reply."""
        self.reserved_tokens -= reservation[0]
        self.reserved_money -= reservation[1]
        if reply.body is None and not reply.charged:
            return
        prompt_tokens, written = self._count_tokens(prompt, n, reply.body)
        self.usage.prompt_tokens += prompt_tokens
        self.usage.completion_tokens += written
        self.usage.money += compute_cost(self.settings, prompt_tokens, written)

    def _count_tokens(self, prompt: Prompt, n: int, body: ResponseBody | None) -> tuple[int, int]:
        """The tokens of the prompt and of the texts: the server's counts if they are credible, otherwise estimates."""
        size = _prompt_bytes(prompt)
        prompt_tokens = round(size * max(TOKENS_PER_BYTE_AT_MOST, self.prompt_density))
        written = n * self.longest_text
        if body is None:
            return prompt_tokens, written
        usage, entries = body.usage or Usage(), sum(choice.count_entries() for choice in body.choices)
        text_bytes = sum(map(_text_bytes, body.choices))
        if usage.prompt_tokens is not None and usage.prompt_tokens * MAX_BYTES_PER_TOKEN >= size:
            prompt_tokens = usage.prompt_tokens
            self.prompt_density = max(self.prompt_density, prompt_tokens / max(size, 1))
        if usage.completion_tokens is not None and usage.completion_tokens * MAX_BYTES_PER_TOKEN >= text_bytes:
            written = max(usage.completion_tokens, entries)
            self.longest_text = max(self.longest_text, -(-written // max(n, 1)))
            return prompt_tokens, written
        return prompt_tokens, max(written, entries, round(text_bytes * TOKENS_PER_BYTE))

    @property
    def tokens(self) -> float:
        """Tokens of prompts and texts that the run has spent, in earlier processes and in this one."""
        before = self.usage.before
        return sum(before.get(name, 0) + getattr(self.usage, name) for name in ("prompt_tokens", "completion_tokens"))

    @property
    def money(self) -> float:
        return self.usage.before.get("money", 0.0) + self.usage.money

    def spent_error(self, *, may_seal: bool = True) -> UserError:
        """The error for a budget that allows no further request. may_seal: whether the run can continue without it."""
        settings = self.settings
        key, spent, limit = "tokens", self.tokens, settings.budget_tokens
        if limit is None or (settings.budget_money is not None and self.money * limit >= spent * settings.budget_money):
            key, spent, limit = "money", round(self.money, 4), settings.budget_money
        part = " (the part of this shard)" if self.usage.settled else ""
        seal = ", or set teacher.budget.spent to seal to continue with the stored chains" if may_seal else ""
        return UserError(
            "the budget is spent: one more request could exceed it",
            code=BUDGET_SPENT,
            where=f"teacher.budget.{key}",
            found=f"{spent:g} of {limit:g}{part}",
            hint=f"raise the budget{seal}; then run the same command again",
        )


def compute_cost(settings: ServerSettings, prompt_tokens: float, completion_tokens: float) -> float:
    return (prompt_tokens * settings.prices[0] + completion_tokens * settings.prices[1]) / 1e6


def estimate_tokens(prompt: Prompt) -> float:
    """The typical number of tokens of a prompt."""
    return _prompt_bytes(prompt) * TOKENS_PER_BYTE


def _text_bytes(choice: Choice) -> int:
    """The size of a choice's text and thought in bytes."""
    return len("".join(message_texts(choice)).encode("utf-8", "replace"))


def _prompt_bytes(prompt: Prompt) -> int:
    return len(prompt.plain.encode("utf-8", "replace"))
