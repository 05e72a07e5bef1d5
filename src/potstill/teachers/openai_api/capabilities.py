"""The probe: a few small requests that show which requests a server accepts and what it returns.

    >>> at_temperature_1 = {"a": -0.1, "b": -2.4}
    >>> compare_temperatures(at_temperature_1, {"a": -0.1, "b": -2.4}, 0.5)
    'raw'
    >>> compare_temperatures(at_temperature_1, {"a": -0.01, "b": -4.61}, 0.5)
    'tempered'

The probe tests behaviour and ignores the name of a server: whether log-probabilities arrive and how many, whether `n` is
honoured, whether the bytes and ids of tokens are correct, how the end token is named, and whether the temperature changes
the log-probabilities.
"""

from __future__ import annotations

import asyncio
import random
import re
import time
from dataclasses import replace
from typing import Any, Final

from potstill.errors import UserError
from potstill.records import Chain, Prompt, Semantics
from potstill.teachers.openai_api import chain_reader, response
from potstill.teachers.openai_api.chain_reader import HIDDEN_LOGPROB
from potstill.teachers.openai_api.client import Client, Reply
from potstill.teachers.openai_api.limits import backoff_seconds
from potstill.teachers.openai_api.request import REQUIRED_PARAMETERS, Capabilities, ServerSettings, build_body
from potstill.teachers.openai_api.response import Choice, ResponseBody, message_texts, token_bytes
from potstill.teachers.openai_api.scheduler import starts_with_prompt
from potstill.teachers.openai_api.server_errors import hint_for
from potstill.teachers.openai_api.token_entries import (
    DEFECT_BEYOND_TEXT,
    DEFECT_ENTRIES_MISSING,
    ReaderContext,
    TokenEntry,
    read_entries,
)

PROBE_MAX_TOKENS: Final = 24
PROBE_REQUESTS: Final = 4  # requests that may be billed: one for two texts, one per temperature (two), and one spare
MAX_FORMS: Final = 24  # maximum number of forms of the request to try
RARE_PARAMETERS: Final = ("top_k", "min_p", "repetition_penalty", "repeat_penalty")  # only some servers know them
COMMON_PARAMETERS: Final = ("presence_penalty", "frequency_penalty", "top_p", "seed", "n")
HARD_TARGETS_HINT: Final = "set teacher.top_logprobs to 0 (hard targets), or use another server"


async def probe(client: Client, settings: ServerSettings, prompt: Prompt, context: ReaderContext) -> Capabilities:
    """The capabilities of the first server of a recipe, tested with one of the recipe's prompts.

    Raises UserError if the server returns less than the recipe requests, because the user must decide what to change.
    """
    prober = _Prober(client, settings, prompt, context)
    try:
        return await prober.find_capabilities()
    except response.DECODE_ERRORS as error:
        what = "the server's response cannot be decoded"
        raise prober.error("E-teacher-invalid-response", what, error, hint=HARD_TARGETS_HINT) from None


class _Prober:
    def __init__(self, client: Client, settings: ServerSettings, prompt: Prompt, context: ReaderContext) -> None:
        self.client, self.settings, self.prompt, self.context = client, settings, prompt, context
        self.url = settings.urls[0]

    def error(self, code: str, what: str, found: object = "", *, hint: str) -> UserError:
        return UserError(what, code=code, where=self.url, found=found, hint=hint)

    async def find_capabilities(self) -> Capabilities:
        start = Capabilities(ids=self.context.lookup is not None)
        # All at once: a run that starts waits for one response of the server, not for two.
        (capabilities, body), semantics = await asyncio.gather(self._send(start, n=2), self._find_semantics(start))
        if not body.choices:
            raise self.error("E-teacher-no-text", "the server's response has no text", hint="look at the server's log")
        honours_n = capabilities.n and len(body.choices) == 2
        capabilities = replace(capabilities, n=honours_n, served=(body.model or "")[:200])
        response.fill_finish_reasons(body, min(PROBE_MAX_TOKENS, self.settings.max_tokens))
        for reason in response.unknown_finish_reasons(body):
            self.client.warn(f"the finish_reason {reason!r} is unknown: such texts count as cut off")
        self._check_echo(body)
        if self.settings.top_logprobs == 0:
            return capabilities
        choice = body.choices[0]
        self._check_top_logprobs(choice)
        chain = chain_reader.read_chain(choice, "probe", 0, replace(self.context, reasoning="both"))
        if self.context.lookup is not None:
            self._check_tokenizer(chain, choice)
        if chain_reader.DEFECT_OTHER_TEXT in chain.defects:
            what = "the server's log-probabilities belong to other tokens than its text"
            raise self.error("E-teacher-other-tokens", what, f"{chain.text[:60]!r}", hint=HARD_TARGETS_HINT)
        return replace(
            capabilities,
            whole=DEFECT_ENTRIES_MISSING not in chain.defects,
            bytes="ids" if self.context.lookup is not None else _classify_bytes(choice, chain),
            ends=find_end_names(body, self.context),
            semantics=semantics,
        )

    async def _send(
        self, capabilities: Capabilities, n: int = 1, temperature: float | None = None
    ) -> tuple[Capabilities, ResponseBody]:
        """A response body, and the capabilities of the request that the server accepted."""
        max_tokens = min(PROBE_MAX_TOKENS, self.settings.max_tokens) if n > 1 else 1
        first_refusal, reduced = "", list[Capabilities]()
        for _ in range(MAX_FORMS):
            n = n if capabilities.n else 1
            body = build_body(
                self.settings, capabilities, self.prompt, n=n, seed=1, max_tokens=max_tokens, temperature=temperature
            )
            reply, single_text = await self._wait_for_reply(body)
            capabilities = replace(capabilities, n=False) if single_text else capabilities
            if reply.body is not None:
                return capabilities, reply.body
            name = _refused_parameter(reply, body)
            if name in ("logprobs", "top_logprobs"):
                what = f"the server does not return {self.settings.top_logprobs} log-probabilities per token"
                hint = (
                    "set teacher.top_logprobs to a number that the server allows, or to 0 to learn from its texts only"
                    " (hard targets)"
                )
                raise self.error("E-teacher-top-logprobs", what, reply.message, hint=hint)
            if name in self.settings.extra:
                raise UserError(
                    "the server refuses a field of the recipe",
                    code="E-teacher-refused-field",
                    where=f"teacher.server.extra.{name}",
                    found=reply.message,
                    hint="remove it, or correct its value",
                )
            without = capabilities.without(name) if name else None
            if without is None and not first_refusal:  # the message names no optional parameter: try fewer parameters
                first_refusal, reduced = reply.message, _reduced_forms(capabilities, n)
            if without is None and not reduced:
                what, hint = "the server refuses the request", "correct the setting in the message"
                raise self.error("E-teacher-refused-request", what, first_refusal, hint=hint)
            capabilities = without or reduced.pop(0)
        what = "the server refuses every form of the request"
        raise self.error("E-teacher-refused-request", what, hint="look at the server's log")

    async def _wait_for_reply(self, body: dict[str, Any]) -> tuple[Reply, bool]:
        """The server's response or refusal, and whether it came only after n was reduced to 1.

        The server may still be loading its model; `settings.patience` limits the wait.
        """
        url, settings = self.url, self.settings
        rng, started, tries = random.Random(settings.seed), time.monotonic(), 0
        while True:
            reply = await self.client.send(url, body)
            if reply.outcome in ("good", "refused"):
                return reply, False
            if reply.outcome == "stop" or reply.permanent:
                break
            if reply.outcome == "again" and body.get("n", 1) > 1:  # some servers fail instead of refusing n
                single = await self.client.send(url, body | {"n": 1})
                if single.outcome in ("good", "refused"):
                    return single, True
            left = settings.patience - (time.monotonic() - started)
            if reply.retry_after is not None and reply.retry_after > left:
                what = "the server requests a longer wait than the recipe allows"
                found = f"Retry-After {reply.retry_after:.0f} s; {reply.message}"
                hint = f"run the same command again later, or raise teacher.server.patience ({settings.patience:g} s)"
                raise self.error("E-teacher-retry-after", what, found, hint=hint)
            seconds = reply.retry_after or backoff_seconds(tries, settings.first_backoff, rng)
            if seconds > left:
                break
            self.client.warn(f"{url} is not ready ({reply.message}); potstill retries for {settings.patience:g} s")
            await asyncio.sleep(seconds)
            tries += 1
        what = "the teacher does not answer"
        raise self.error("E-teacher-no-answer", what, reply.message, hint=hint_for(reply.message))

    def _check_top_logprobs(self, choice: Choice) -> None:
        entries = read_entries(choice, ReaderContext("probe", "unknown"))
        if not entries:
            hint = (
                "set teacher.top_logprobs to 0 to learn from its texts only (hard targets), or try the other"
                " teacher.server.api"
            )
            raise self.error("E-teacher-no-logprobs", "the server's response has no log-probabilities", hint=hint)
        most = max(len(entry.alternatives) + (not _lists_itself(entry)) for entry in entries)
        requested = self.settings.top_logprobs
        if most < 0.9 * requested:  # lists keyed by strings lose tokens with equal strings
            what = f"the server returns at most {most} log-probabilities per token"
            hint = f"set teacher.top_logprobs to {most}"
            raise self.error("E-teacher-top-logprobs", what, f"teacher.top_logprobs {requested}", hint=hint)
        for entry in entries:
            values = [value for _, _, value in entry.alternatives]
            if not _lists_itself(entry):
                values.append(entry.logprob)
                if chain_reader.has_vocabulary_marks(entry):
                    what = "the server writes alternative tokens as in its vocabulary, not as text"
                    found = f"{entry.name!r}, and the alternatives {[name for _, name, _ in entry.alternatives][:3]}"
                    raise self.error("E-teacher-vocabulary-marks", what, found, hint=HARD_TARGETS_HINT)
            shown = [value for value in values if value is not None and value > HIDDEN_LOGPROB]
            if chain_reader.exceeds_one(shown):
                what = "the server returned no valid log-probabilities: the probabilities of a token are above 1"
                raise self.error("E-teacher-invalid-logprobs", what, shown[:3], hint=HARD_TARGETS_HINT)

    def _check_echo(self, body: ResponseBody) -> None:
        if any(starts_with_prompt(choice, self.prompt) for choice in body.choices):
            what, found = "the server's text begins with the prompt", message_texts(body.choices[0])[1][:80]
            hint = "make the server return only new text, for example with teacher.server.extra: {echo: false}"
            raise self.error("E-teacher-echo", what, found, hint=hint)

    def _check_tokenizer(self, chain: Chain, choice: Choice) -> None:
        if not chain.tokens or set(chain.defects) - {"candidates unknown", DEFECT_BEYOND_TEXT}:
            what = "teacher.server.tokenizer does not fit the server's tokens"
            found = f"{message_texts(choice)[1][:60]!r} with the tokens {list(chain.tokens)[:6]}"
            hint = "name the tokenizer of the served model, or remove the key"
            raise self.error("E-teacher-wrong-tokenizer", what, found, hint=hint)

    async def _find_semantics(self, start: Capabilities) -> Semantics:
        """Request the first token at temperature 1 and at the recipe's temperature, and compare its log-probabilities."""
        temperature = self.settings.temperature
        if self.settings.top_logprobs == 0:
            return "none"
        if temperature == 1.0:
            return "raw"  # at temperature 1 they do not differ
        tables = []
        requests = (self._send(start, temperature=value) for value in (1.0, temperature))
        for capabilities, body in await asyncio.gather(*requests):
            entries = read_entries(body.choices[0], self.context) if body.choices else []
            if not entries or "temperature" in capabilities.left_out:
                return "unknown"
            alternatives = entries[0].alternatives
            tables.append(
                {name: value for _, name, value in alternatives if value is not None and value > HIDDEN_LOGPROB}
            )
        return compare_temperatures(tables[0], tables[1], temperature)


def find_end_names(body: ResponseBody, context: ReaderContext) -> tuple[str, ...]:
    """The names that the server gave to the end token; empty if no text reached the end."""
    names = set()
    for choice in body.choices:
        entries = read_entries(choice, context)
        chain = chain_reader.read_chain(choice, "probe", 0, context)
        if len(chain.candidates) > len(chain.tokens) and entries and isinstance(entries[-1].name, str):
            names.add(entries[-1].name)
    return tuple(sorted(names - {""}))


def _reduced_forms(capabilities: Capabilities, n: int) -> list[Capabilities]:
    """Capabilities for smaller requests: one text, then no rare parameters, then only the required parameters."""
    left_out = capabilities.left_out
    rare = replace(capabilities, left_out=(*left_out, *(name for name in RARE_PARAMETERS if name not in left_out)))
    optional = tuple(name for name in (*RARE_PARAMETERS, *COMMON_PARAMETERS) if name not in left_out)
    forms = [replace(capabilities, n=False), rare, replace(rare, n=False)] if n > 1 else [rare]
    return [*forms, replace(capabilities, n=False, left_out=(*left_out, *optional))]


def _refused_parameter(reply: Reply, body: dict[str, Any]) -> str:
    """The parameter that the server refuses: from the error's field, or the first parameter in the message."""
    if reply.parameter in body:
        return reply.parameter
    message = reply.message
    matches = [(match.start(), name) for name in body if (match := re.search(rf"\b{re.escape(name)}\b", message))]
    optional = [match for match in matches if match[1] not in REQUIRED_PARAMETERS]
    return min(optional or matches)[1] if matches else ""


def _lists_itself(entry: TokenEntry) -> bool:
    """Whether the token is among its own alternatives, or has no log-probability."""
    return entry.logprob is None or any(name == entry.name for _, name, _ in entry.alternatives)


def _classify_bytes(choice: Choice, chain: Chain) -> str:
    """The source of the tokens' bytes without a tokenizer, see `Capabilities.bytes`."""
    entries = choice.logprobs.content if choice.logprobs else None
    if not entries or all(token_bytes(entry) is None for entry in entries):
        return "strings"
    from_strings = all(
        token_bytes(outcome) == outcome.token.encode("utf-8", "replace")
        for entry in entries
        for outcome in (entry, *(entry.top_logprobs or ()))
    )
    return "strings" if from_strings and b"".join(chain.tokens) != chain.content else "true"


def compare_temperatures(
    at_one: dict[int | str, float], at_temperature: dict[int | str, float], temperature: float
) -> Semantics:
    """The meaning of log-probabilities, from one position at temperature 1 and at `temperature`.

    They are raw if the difference between two outcomes is the same, and tempered if it is divided by the temperature;
    otherwise their meaning is unknown.
    """
    shared = sorted(set(at_one) & set(at_temperature), key=lambda name: at_one[name])
    if len(shared) < 2 or (before := at_one[shared[-1]] - at_one[shared[0]]) < 0.1:
        return "unknown"
    after = at_temperature[shared[-1]] - at_temperature[shared[0]]
    if abs(after - before) < 0.03 * before:
        return "raw"
    return "tempered" if temperature > 0 and abs(after * temperature - before) < 0.03 * before else "unknown"


def describe(settings: ServerSettings, capabilities: Capabilities) -> str:
    """The capabilities in one line, for the progress display."""
    parts = [capabilities.served or settings.model]
    if settings.top_logprobs:
        semantics, source = capabilities.semantics, capabilities.bytes
        parts.append(f"{settings.top_logprobs} {semantics} log-probabilities per token, bytes from {source}")
    else:
        parts.append("no log-probabilities requested: hard targets")
    parts.append("n is honoured" if capabilities.n else "one text per request")
    if capabilities.left_out:
        parts.append(f"refuses {', '.join(capabilities.left_out)}")
    return "; ".join(parts)
