"""What is seen of a teacher while it works: how far it is, what it has cost, how it is doing. Changes nothing.

>>> watch = Watch(chains=200, completion_tokens=24000, right=120, graded=200, money=0.5, seconds=60.0, concurrency=16)
>>> watch.note()
'400 tokens/s, 60 % right, cost 0.50, 16 at once'
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from typing import Any


@dataclass(slots=True)
class Watch:
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
