"""What is seen of a teacher while it works: how far it is, what it has cost, how it is doing. Changes nothing.

>>> totals = {"chains": 200, "completion_tokens": 24000, "right": 120, "graded": 200, "money": 0.5}
>>> watch = UsageMeter(**totals, seconds=60.0, concurrency=16)
>>> watch.note()
'400 tokens/s, 60 % right, cost 0.50, 16 at once'

The first chains of a run: a teacher of whose first chains none is right is not asked for the others.

    >>> stored = [0, 0]                                        # chains of the run, and right ones
    >>> trial = FirstChainsCheck(10, look=lambda: (stored[0], stored[1]), fault=lambda: UserError("none is right"))
    >>> [trial.may(4) for _ in range(3)]                       # two requests for four texts, no third one
    [True, True, False]
    >>> stored[0] = 8; trial.verdict(4) is None                # two more chains may still be asked for
    False
    >>> stored[1] = 1; trial.verdict(4) is None, trial.may(1000)
    (True, True)

Shards have an even part each of the first chains, and look at those of all before they stop.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from typing import Any

from potstill.errors import UserError


@dataclass(slots=True)
class UsageMeter:
    """Counts of this process; `before` holds what earlier ones spent on the same run, and `settled` what was spent
    before the ceilings were shared among the shards of a run. `risk` is told when more is under way (tokens, money)
    than ever before, before it is sent.

    prompt_tokens, completion_tokens   as the server counts them, also of answers that could not be used
    money      by the recipe's prices; 0 without them
    refused    question -> why the server never answered it
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
    risk: Callable[[float, float], None] = field(default=lambda tokens, money: None, repr=False)

    def fault(self, said: str) -> None:
        """Count an answer that did not give what was asked, by what was wrong with it."""
        self.retries += 1
        kind = re.sub(r"\d{4,}", "N", said)[:120]
        self.faults[kind] = self.faults.get(kind, 0) + 1

    def note(self) -> str:
        """What a bar says beside its count."""
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
            parts.append(f"{self.concurrency} at once")
        return ", ".join(parts)

    def spent(self) -> dict[str, float]:
        """What a later process must know to keep a ceiling."""
        names = ("requests", "prompt_tokens", "completion_tokens", "money")
        return {name: getattr(self, name) for name in names}

    def as_json(self) -> dict[str, Any]:
        names = [each.name for each in fields(self) if each.name not in ("before", "settled", "risk")]
        row = {name: getattr(self, name) for name in names}
        return row | {"seconds": round(self.seconds, 3), "money": round(self.money, 6)}


class FirstChainsCheck:
    def __init__(
        self, limit: int, look: Callable[[], tuple[int, int]], fault: Callable[[], UserError], parts: int = 1
    ) -> None:
        """limit  chains of which at least one has to be right
        look   how many chains of the run are stored, and how many of them are right
        fault  what to say where none is
        parts  how many shards share the first chains
        """
        self.limit, self.look, self.fault, self.parts = limit, look, fault, parts
        self.passed, self.asked, self.before = False, 0, look()[0]
        self.allowed = self._share(self.before)

    def may(self, n: int) -> bool:
        """Whether n further chains may be asked for now; counts them if so."""
        if not self.passed and (self.asked or self.before) and self.asked + n > self.allowed:
            return False
        self.asked += n
        return True

    def verdict(self, n: int) -> UserError | None:
        """What to say when all chains that were asked for are stored and n more would be: an error if enough were
        stored without a right one; else None, and more may be asked for."""
        stored, right = self.look()
        if right:
            self.passed = True
        elif stored + n > self.limit:
            return self.fault()
        else:
            self.allowed = self.asked + max(n, self._share(stored))
        return None

    def _share(self, stored: int) -> int:
        return -(-(self.limit - stored) // self.parts)
