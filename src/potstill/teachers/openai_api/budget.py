"""The budget of a run: what its requests may cost, what they have cost, and the limit that they do not exceed.

    >>> settings = ServerSettings(model="m", max_tokens=100, prices=(1.0, 2.0), budget_tokens=1000)
    >>> budget = Budget(settings, UsageMeter())
    >>> prompt = Prompt((Turn("user", "x" * 200),))
    >>> [budget.reserve(prompt, 4) for _ in range(3)]            # each at most 100 + 400 tokens
    [(500.0, 0.0009), (500.0, 0.0009), None]

Before a request is sent, the most that it can cost is reserved: its prompt, and the maximum length of all its texts.
The response is then charged by the server's token counts. A broken response may have been billed, so its whole
reservation is charged. If the counts are not credible (missing, negative, given twice, too small for the texts), the
larger of the reservation and of an estimate of the received text is charged.
"""

from __future__ import annotations

from dataclasses import dataclass

from potstill.errors import UserError
from potstill.records import Prompt, Turn
from potstill.teachers.openai_api.client import Reply
from potstill.teachers.openai_api.request import ServerSettings
from potstill.teachers.openai_api.response import Choice, ResponseBody, Usage, message_texts
from potstill.teachers.usage import UsageMeter

__all__ = ["Budget", "Prompt", "Turn", "forecast"]
Reservation = tuple[float, float]  # tokens, money

TOKENS_PER_BYTE_AT_MOST = 0.5  # of a prompt, until the server has counted one
TOKENS_PER_BYTE = 0.27  # a typical value for English and digits
MAX_BYTES_PER_TOKEN = 64  # a server that counts fewer tokens than this implies is not credible


class Budget:
    def __init__(self, settings: ServerSettings, usage: UsageMeter) -> None:
        self.settings, self.usage = settings, usage
        self.reserved_tokens = self.reserved_money = 0.0
        self.max_reserved = (0.0, 0.0)  # tokens and money, the highest at any time
        self.prompt_density = 0.0  # the most tokens per byte that a prompt had
        self.longest_text = settings.max_tokens  # tokens; larger if the server exceeded the limit

    def reserve(self, prompt: Prompt, n: int) -> Reservation | None:
        """Reserve the most that n texts can cost; None if that could exceed the budget."""
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
        asked, written = _prompt_bytes(prompt) * TOKENS_PER_BYTE_AT_MOST * probes, 2 * probes * max_tokens
        return self._is_within(*self._max_cost(prompt, n)) and self._is_within(
            asked + written, compute_cost(self.settings, asked, written)
        )

    def _is_within(self, tokens: float, money: float) -> bool:
        max_tokens, max_money = self.settings.budget_tokens, self.settings.budget_money
        if max_tokens is not None and self.tokens + self.reserved_tokens + tokens > max_tokens:
            return False
        return max_money is None or self.money + self.reserved_money + money <= max_money

    def settle(self, reservation: Reservation, prompt: Prompt, n: int, reply: Reply) -> None:
        """Release the reservation for n texts and charge what the reply cost."""
        self.reserved_tokens -= reservation[0]
        self.reserved_money -= reservation[1]
        if reply.body is None and not reply.charged:
            return
        asked, written = self._count_tokens(prompt, n, reply.body)
        self.usage.prompt_tokens += asked
        self.usage.completion_tokens += written
        self.usage.money += compute_cost(self.settings, asked, written)

    def _count_tokens(self, prompt: Prompt, n: int, body: ResponseBody | None) -> tuple[int, int]:
        """The tokens of the prompt and of the texts: the server's counts if they are credible, else estimates."""
        size = _prompt_bytes(prompt)
        asked, written = round(size * max(TOKENS_PER_BYTE_AT_MOST, self.prompt_density)), n * self.longest_text
        if body is None:
            return asked, written
        usage, entries = body.usage or Usage(), sum(choice.count_entries() for choice in body.choices)
        text_bytes = sum(map(_text_bytes, body.choices))
        if usage.prompt_tokens is not None and usage.prompt_tokens * MAX_BYTES_PER_TOKEN >= size:
            asked = usage.prompt_tokens
            self.prompt_density = max(self.prompt_density, asked / max(size, 1))
        if usage.completion_tokens is not None and usage.completion_tokens * MAX_BYTES_PER_TOKEN >= text_bytes:
            written = max(usage.completion_tokens, entries)
            self.longest_text = max(self.longest_text, -(-written // max(n, 1)))
            return asked, written
        return asked, max(written, entries, round(text_bytes * TOKENS_PER_BYTE))

    @property
    def tokens(self) -> float:
        """Tokens of prompts and texts that the run has spent, in earlier processes and in this one."""
        before = self.usage.before
        return sum(before.get(name, 0) + getattr(self.usage, name) for name in ("prompt_tokens", "completion_tokens"))

    @property
    def money(self) -> float:
        return self.usage.before.get("money", 0.0) + self.usage.money

    def spent_error(self) -> UserError:
        """The error of a run whose budget allows no further request."""
        settings = self.settings
        key, spent, limit = "tokens", self.tokens, settings.budget_tokens
        if limit is None or (settings.budget_money is not None and self.money * limit >= spent * settings.budget_money):
            key, spent, limit = "money", round(self.money, 4), settings.budget_money
        return UserError(
            "the budget is spent: one more request could exceed it",
            code="E-teacher-budget-spent",
            where=f"teacher.budget.{key}",
            found=f"{spent:g} of {limit:g}" + (" (the part of this shard)" if self.usage.settled else ""),
            hint="raise it, or set teacher.budget.spent to seal to continue with the stored chains; then run the same"
            " command again",
        )

    def _max_cost(self, prompt: Prompt, n: int) -> Reservation:
        density = TOKENS_PER_BYTE_AT_MOST if self.prompt_density == 0 else max(self.prompt_density, 0.1)
        asked, written = _prompt_bytes(prompt) * density, n * self.longest_text
        return asked + written, compute_cost(self.settings, asked, written)


def compute_cost(settings: ServerSettings, prompt_tokens: float, completion_tokens: float) -> float:
    return (prompt_tokens * settings.prices[0] + completion_tokens * settings.prices[1]) / 1e6


@dataclass(frozen=True, slots=True)
class Forecast:
    """chains and requests are exact if nothing fails; prompt_tokens is an estimate, completion_tokens a maximum."""

    questions: int
    chains: int
    requests: int
    prompt_tokens: int
    completion_tokens: int
    money: float


def forecast(settings: ServerSettings, prompts: list[Prompt]) -> Forecast:
    """The work and the cost of sampling all chains of some questions, given their prompts."""
    requests = -(-settings.samples // settings.samples_per_request)
    asked = round(sum(map(estimate_tokens, prompts)) * requests)
    chains = len(prompts) * settings.samples
    written = chains * settings.max_tokens
    money = compute_cost(settings, asked, written)
    return Forecast(len(prompts), chains, len(prompts) * requests, asked, written, money)


def estimate_tokens(prompt: Prompt) -> float:
    """The typical number of tokens of a prompt."""
    return _prompt_bytes(prompt) * TOKENS_PER_BYTE


def _text_bytes(choice: Choice) -> int:
    """The size of a text and of its thought in bytes."""
    thought, answer = message_texts(choice)
    return len((thought + answer).encode("utf-8", "replace"))


def _prompt_bytes(prompt: Prompt) -> int:
    return len(prompt.plain.encode("utf-8", "replace"))
