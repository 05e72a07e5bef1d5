"""The usage of a teacher: progress, cost and failures, counted while it samples.

>>> totals = {"chains": 200, "completion_tokens": 24000, "right": 120, "graded": 200, "money": 0.5}
>>> usage = UsageMeter(**totals, seconds=60.0, concurrency=16)
>>> usage.progress_note()
'400 tokens/s, 60 % right, cost 0.50, 16 concurrent'

`FirstChainsCheck` stops sampling if none of the first chains of a run is right:

    >>> counts = [0, 0]                                        # stored chains of the run, and right ones
    >>> check = FirstChainsCheck(10, lambda: (counts[0], counts[1]), lambda: UserError("none is right", code="E-x"))
    >>> [check.allow(4) for _ in range(3)]                     # two requests for four chains, and no third
    [True, True, False]
    >>> counts[0] = 8; check.judge(4) is None                  # two more chains are allowed
    False
    >>> counts[1] = 1; check.judge(4) is None, check.allow(1000)
    (True, True)

Each shard samples an equal part of the first chains, and judges those of all shards.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from typing import Any

from potstill.errors import UserError


@dataclass(slots=True)
class UsageMeter:
    """Counts of this process.

    prompt_tokens, completion_tokens   as the server counts them, including responses that could not be used
    money       by the recipe's prices; 0 without prices
    faults      message of a failure -> how often it occurred
    refused     question id -> why the server did not answer it
    before      the usage of earlier processes of the run; settled: the usage before the budget was split among shards
    on_reserve  called, before a request is sent, when the reserved tokens and money reach a new maximum
    """

    chains: int = 0
    requests: int = 0
    retries: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    money: float = 0.0
    right: int = 0
    graded: int = 0
    concurrency: int = 0
    seconds: float = 0.0
    faults: dict[str, int] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)
    before: dict[str, float] = field(default_factory=dict)
    settled: dict[str, float] = field(default_factory=dict)
    on_reserve: Callable[[float, float], None] = field(default=lambda tokens, money: None, repr=False)

    def count_failure(self, message: str) -> None:
        """Count a response that lacked what was requested, by its message without long numbers."""
        self.retries += 1
        kind = re.sub(r"\d{4,}", "N", message)[:120]
        self.faults[kind] = self.faults.get(kind, 0) + 1

    def progress_note(self) -> str:
        """The text next to a progress bar."""
        if not self.requests and not self.chains:
            return ""
        parts = [f"{self.completion_tokens / max(self.seconds, 1e-9):.0f} tokens/s"] if self.completion_tokens else []
        if self.graded:
            parts.append(f"{self.right / self.graded:.0%} right".replace("%", " %"))
        money = self.money + self.before.get("money", 0.0)
        if money:
            parts.append(f"cost {money:.2f}")
        if self.retries:
            parts.append(f"{self.retries} retries")
        if self.concurrency:
            parts.append(f"{self.concurrency} concurrent")
        return ", ".join(parts)

    def spent(self) -> dict[str, float]:
        """What a later process must know to keep the budget."""
        names = ("requests", "prompt_tokens", "completion_tokens", "money")
        return {name: getattr(self, name) for name in names}

    def as_json(self) -> dict[str, Any]:
        names = [item.name for item in fields(self) if item.name not in ("before", "settled", "on_reserve")]
        row = {name: getattr(self, name) for name in names}
        return row | {"seconds": round(self.seconds, 3), "money": round(self.money, 6)}


class FirstChainsCheck:
    def __init__(
        self,
        limit: int,
        count_stored: Callable[[], tuple[int, int]],
        build_error: Callable[[], UserError],
        shards: int = 1,
    ) -> None:
        """limit         chains of which at least one must be right
        count_stored  the stored chains of the run, and how many of them are right (at least whether any is)
        build_error   the error if none is right
        shards        the number of shards, which share the first chains
        """
        self.limit, self.count_stored, self.build_error, self.shards = limit, count_stored, build_error, shards
        self.passed, self.requested, self.stored_before = False, 0, count_stored()[0]
        self.allowed = self._shard_part(self.stored_before)

    def allow(self, n: int) -> bool:
        """Whether n further chains may be requested now; if so, they are counted. The first request always may."""
        is_first = not self.requested and not self.stored_before
        if not self.passed and not is_first and self.requested + n > self.allowed:
            return False
        self.requested += n
        return True

    def judge(self, n: int) -> UserError | None:
        """The error if enough chains are stored and none is right; else None, and more chains are allowed. Call it when
        all requested chains are stored and n more would be requested."""
        stored, right = self.count_stored()
        if right:
            self.passed = True
        elif stored + n > self.limit:
            return self.build_error()
        else:
            self.allowed = self.requested + max(n, self._shard_part(stored))
        return None

    def _shard_part(self, stored: int) -> int:
        return -(-(self.limit - stored) // self.shards)
