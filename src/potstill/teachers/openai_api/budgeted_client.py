"""A client that keeps the budget: it reserves the maximum cost of a request before it is sent, and records the cost after.

    >>> count_texts({"prompt": "2 + 2", "n": 2, "max_tokens": 24}), count_texts({"prompt": "2 + 2", "max_tokens": 1})
    (48, 1)

A text of m tokens costs as much as m texts of one token, so requests of different lengths share one budget. The ledger has a
row for each response, so a killed process has no other cost than the reservation that its last row counts as spent.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from potstill.records import Prompt, Turn
from potstill.teachers.openai_api.client import Client, Reply
from potstill.teachers.openai_api.limits import Budget
from potstill.teachers.openai_api.request import ServerSettings
from potstill.teachers.openai_api.response import Choice, ResponseBody
from potstill.teachers.protocol import UsageMeter


class BudgetedClient(Client):
    """A client for requests of /completions with one prompt. The cost of each request is added to `usage`."""

    def __init__(self, settings: ServerSettings, usage: UsageMeter, *, may_seal: bool = False) -> None:
        """may_seal: whether the run can continue when the budget is spent, for the hint of the error."""
        super().__init__(settings)
        self.usage, self.may_seal = usage, may_seal
        self.budget = Budget(replace(settings, max_tokens=1), usage)
        self._in_flight = 0
        self._settled = asyncio.Event()

    async def send(self, url: str, body: dict[str, Any], endpoint: str | None = None) -> Reply:
        """Send a request and read its response, as soon as the budget allows it.

        Raises UserError if the budget does not allow the request, and no request in flight can change that.
        """
        prompt, texts = Prompt((Turn("user", body["prompt"]),)), count_texts(body)
        while (reservation := self.budget.reserve(prompt, texts)) is None:
            if not self._in_flight:
                raise self.budget.spent_error(may_seal=self.may_seal)
            self._settled.clear()
            await self._settled.wait()
        reply = Reply("again", charged=True)  # if the request is cancelled, the server may still bill it
        self._in_flight += 1
        try:
            reply = self.read(await self.post(url, body, endpoint))
        finally:
            self._in_flight -= 1
            self.usage.requests += 1
            self.budget.settle(reservation, prompt, texts, _without_prompt(reply, body))
            self.usage.on_settle()
            self._settled.set()
        return reply


def count_texts(body: Mapping[str, Any]) -> int:
    """The maximum number of tokens that a request generates, which the budget counts as texts of one token."""
    return body.get("n", 1) * (body.get("max_tokens") or body.get("max_completion_tokens") or 1)


def _without_prompt(reply: Reply, body: Mapping[str, Any]) -> Reply:
    """The reply without the texts and entries of a response that repeats the prompt, which are no generated tokens."""
    if reply.body is None or not ("echo" in body or "prompt_logprobs" in body):
        return reply
    return replace(reply, body=ResponseBody([Choice(text="") for _ in reply.body.choices], reply.body.usage))
