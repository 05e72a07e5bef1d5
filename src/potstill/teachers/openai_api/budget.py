"""The budget: what a run may cost, what it has cost, and the ceiling that it does not pass.

    >>> settings = ServerSettings(model="m", max_tokens=100, prices=(1.0, 2.0), most_tokens=1000)
    >>> budget = Budget(settings, UsageMeter())
    >>> prompt = Prompt((Turn("user", "x" * 200),))
    >>> [budget.reserve(prompt, 4) for _ in range(3)]            # at most 100 + 400 tokens each
    [(500.0, 0.0009), (500.0, 0.0009), None]

Before a request is sent the most that it can cost is set aside: its prompt, and all the tokens that it may write. What
comes back is counted as the server counts it; an answer that broke off may have been billed, so all that was set aside
for it is spent. The same holds for an answer without a credible count (none, a negative one, two different ones, fewer
tokens than its texts can have): then the larger of what was set aside and what arrived is spent.
Requests that are given up when sampling stops are counted as broken off.
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

TOKENS_PER_BYTE_AT_MOST = 0.5  # tokens a byte of a prompt, before a server has said how many it counts
TOKENS_PER_BYTE = 0.27  # for a plan: English and digits
MILLION = 1e6
MAX_BYTES_PER_TOKEN = 64  # bytes a token; a server that counts fewer tokens than this makes is not believed


class Budget:
    def __init__(self, settings: ServerSettings, watch: UsageMeter) -> None:
        self.settings, self.watch = settings, watch
        self.aside_tokens = self.aside_money = 0.0
        self.most_aside = (0.0, 0.0)  # ever, at the same time
        self.density = 0.0  # the most tokens a byte that a prompt had
        self.longest = settings.max_tokens  # the most tokens a text that a server wrote, if it wrote more than it may

    def reserve(self, prompt: Prompt, n: int) -> Reservation | None:
        """Set tokens and money aside for n texts; None if they could pass a ceiling."""
        tokens, money = self._most(prompt, n)
        if not self._within(tokens, money):
            return None
        self.aside_tokens += tokens
        self.aside_money += money
        if self.aside_tokens > self.most_aside[0] or self.aside_money > self.most_aside[1]:
            self.most_aside = max(self.aside_tokens, self.most_aside[0]), max(self.aside_money, self.most_aside[1])
            self.watch.risk(*self.most_aside)
        return tokens, money

    def allows(self, prompt: Prompt, n: int, times: int, length: int) -> bool:
        """Whether a request for n texts is within the ceilings, and so many small ones of two texts."""
        size = _prompt_bytes(prompt) * TOKENS_PER_BYTE_AT_MOST * times
        small = size + 2 * times * length
        return self._within(*self._most(prompt, n)) and self._within(
            small, compute_cost(self.settings, size, 2 * times * length)
        )

    def _within(self, tokens: float, money: float) -> bool:
        s = self.settings
        if s.most_tokens is not None and self.tokens + self.aside_tokens + tokens > s.most_tokens:
            return False
        return s.most_money is None or self.money + self.aside_money + money <= s.most_money

    def settle(self, aside: Reservation, prompt: Prompt, n: int, answer: Reply) -> None:
        """Give back what was set aside for n texts and count what was spent."""
        self.aside_tokens -= aside[0]
        self.aside_money -= aside[1]
        if answer.body is None and not answer.charged:
            return
        asked, written = self._counted(prompt, n, answer.body)
        self.watch.prompt_tokens += asked
        self.watch.completion_tokens += written
        self.watch.money += compute_cost(self.settings, asked, written)

    def _counted(self, prompt: Prompt, n: int, body: ResponseBody | None) -> tuple[int, int]:
        """The tokens of an answer's prompt and texts: as the server counts them, if that can be."""
        size = _prompt_bytes(prompt)
        asked, written = round(size * max(TOKENS_PER_BYTE_AT_MOST, self.density)), n * self.longest
        if body is None:
            return asked, written
        usage, entries = body.usage or Usage(), sum(choice.entries() for choice in body.choices)
        if usage.prompt_tokens is not None and usage.prompt_tokens * MAX_BYTES_PER_TOKEN >= size:
            asked = usage.prompt_tokens
            self.density = max(self.density, asked / max(size, 1))
        if usage.completion_tokens is not None and usage.completion_tokens * MAX_BYTES_PER_TOKEN >= sum(
            map(_text_bytes, body.choices)
        ):
            written = max(usage.completion_tokens, entries)
            self.longest = max(self.longest, -(-written // max(n, 1)))
            return asked, written
        return asked, max(written, entries, round(sum(map(_text_bytes, body.choices)) * TOKENS_PER_BYTE))

    @property
    def tokens(self) -> float:
        watch = self.watch
        before = watch.before.get("prompt_tokens", 0) + watch.before.get("completion_tokens", 0)
        return before + watch.prompt_tokens + watch.completion_tokens

    @property
    def money(self) -> float:
        return self.watch.before.get("money", 0.0) + self.watch.money

    def reached(self) -> UserError:
        """What to say when nothing more can be asked."""
        s = self.settings
        key, found, ceiling = "tokens", self.tokens, s.most_tokens
        if ceiling is None or (s.most_money is not None and self.money * ceiling >= self.tokens * s.most_money):
            key, found, ceiling = "money", round(self.money, 4), s.most_money
        return UserError(
            "the budget is spent: one more request could pass it",
            where=f"teacher.budget.{key}",
            found=f"{found:g} of {ceiling:g}" + (", this shard's part" if self.watch.settled else ""),
            hint="raise it, or set teacher.budget.spent to seal to go on with what is stored; run the same command again",
        )

    def _most(self, prompt: Prompt, n: int) -> Reservation:
        asked = _prompt_bytes(prompt) * (TOKENS_PER_BYTE_AT_MOST if self.density == 0 else max(self.density, 0.1))
        written = n * self.longest
        return asked + written, compute_cost(self.settings, asked, written)


def compute_cost(settings: ServerSettings, asked: float, written: float) -> float:
    """Money for so many tokens of prompts and of answers."""
    return (asked * settings.prices[0] + written * settings.prices[1]) / MILLION


@dataclass(frozen=True, slots=True)
class Forecast:
    """chains and requests are exact if nothing fails; tokens of prompts are estimated, those written are the most."""

    questions: int
    chains: int
    requests: int
    prompt_tokens: int
    written: int
    money: float


def forecast(settings: ServerSettings, prompts: list[Prompt]) -> Forecast:
    """What asking all questions would take."""
    requests = -(-settings.samples // settings.per_request)
    asked = round(sum(map(estimate_tokens, prompts)) * requests)
    written = len(prompts) * settings.samples * settings.max_tokens
    return Forecast(
        len(prompts), len(prompts) * settings.samples, len(prompts) * requests, asked, written,
        compute_cost(settings, asked, written),
    )  # fmt: skip


def estimate_tokens(prompt: Prompt) -> float:
    """About how many tokens a prompt has."""
    return _prompt_bytes(prompt) * TOKENS_PER_BYTE


def _text_bytes(choice: Choice) -> int:
    """Bytes of a text and of its thoughts."""
    thought, answer = message_texts(choice)
    return len((thought + answer).encode("utf-8", "replace"))


def _prompt_bytes(prompt: Prompt) -> int:
    return len(prompt.plain.encode("utf-8", "replace"))
