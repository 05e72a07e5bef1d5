"""The probe: a few small requests that find out which requests a server accepts and what it returns.

    >>> at_temperature_1 = {"a": -0.1, "b": -2.4}
    >>> compare_temperatures(at_temperature_1, {"a": -0.1, "b": -2.4}, 0.5)
    'raw'
    >>> compare_temperatures(at_temperature_1, {"a": -0.01, "b": -4.61}, 0.5)
    'tempered'

It judges behaviour, never the name of a server: whether log-probabilities arrive and how many, whether `n` is honoured,
whether the bytes and ids of tokens are true, how the end token is named, and whether the log-probabilities include the
temperature.
"""

from __future__ import annotations

import asyncio
import random
import re
import time
from dataclasses import replace

from potstill.errors import UserError
from potstill.records import Chain, Prompt, Semantics
from potstill.teachers.openai_api import chain_reader, token_entries
from potstill.teachers.openai_api.client import Client, Reply
from potstill.teachers.openai_api.rate_limit import backoff_seconds
from potstill.teachers.openai_api.request import REQUIRED_PARAMETERS, Capabilities, ServerSettings, build_body
from potstill.teachers.openai_api.response import DECODE_ERRORS, Choice, ResponseBody, message_texts, token_bytes
from potstill.teachers.openai_api.scheduler import starts_with_prompt
from potstill.teachers.openai_api.server_errors import hint_for
from potstill.teachers.openai_api.token_entries import ReaderContext

PROBE_MAX_TOKENS = 24
PROBE_REQUESTS = 4  # answered ones: one for two texts, one at each of two temperatures, and one to spare
MAX_FORMS = 24  # forms of the request that are tried
RARE_PARAMETERS = ("top_k", "min_p", "repetition_penalty", "repeat_penalty")  # only some servers know them
COMMON_PARAMETERS = ("presence_penalty", "frequency_penalty", "top_p", "seed", "n")
HARD_TARGETS_HINT = "set teacher.top_logprobs to 0 (hard targets), or use another server"


async def probe(client: Client, settings: ServerSettings, prompt: Prompt, context: ReaderContext) -> Capabilities:
    """The capabilities of the first server of a recipe, found with one of the recipe's own prompts.

    Raises UserError if the server gives less than the recipe asks for: the user must decide what to change.
    """
    try:
        return await _probe(client, settings, prompt, context)
    except DECODE_ERRORS as error:
        raise UserError(
            "the server's response cannot be decoded",
            code="E-teacher-invalid-response",
            where=settings.urls[0],
            found=error,
            hint=HARD_TARGETS_HINT,
        ) from None


async def _probe(client: Client, settings: ServerSettings, prompt: Prompt, context: ReaderContext) -> Capabilities:
    capabilities = Capabilities(ids=context.lookup is not None)
    capabilities, body = await _send(client, settings, capabilities, prompt, n=2)
    if not body.choices:
        raise UserError(
            "the server's response has no text",
            code="E-teacher-no-text",
            where=settings.urls[0],
            hint="look at the server's log",
        )
    honours_n = capabilities.n and len(body.choices) == 2
    capabilities = replace(capabilities, n=honours_n, served=(body.model or "")[:200])
    chain_reader.fill_finish_reasons(body, min(PROBE_MAX_TOKENS, settings.max_tokens))
    for reason in chain_reader.unknown_finish_reasons(body):
        client.warn(f"the finish_reason {reason!r} is unknown: such texts count as cut off")
    _check_echo(settings, body, prompt)
    if settings.top_logprobs == 0:
        return capabilities
    choice = body.choices[0]
    _check_top_logprobs(settings, choice)
    chain = chain_reader.read_chain(choice, "probe", 0, replace(context, reasoning="both"))
    if context.lookup is not None:
        _check_tokenizer(settings, chain, choice)
    if chain_reader.DEFECT_OTHER_TEXT in chain.defects:
        raise UserError(
            "the server's log-probabilities belong to other tokens than its text",
            code="E-teacher-other-tokens",
            where=settings.urls[0],
            found=f"{chain.text[:60]!r}",
            hint=HARD_TARGETS_HINT,
        )
    return replace(
        capabilities,
        whole="entries missing" not in chain.defects,
        bytes=_classify_bytes(choice, chain, context),
        ends=_find_end_names(body, context),
        semantics=await _find_semantics(client, settings, capabilities, prompt, context),
    )


async def _send(
    client: Client,
    settings: ServerSettings,
    capabilities: Capabilities,
    prompt: Prompt,
    n: int = 1,
    temperature: float | None = None,
) -> tuple[Capabilities, ResponseBody]:
    """A response body, and the capabilities with which the server was willing to give it."""
    max_tokens = min(PROBE_MAX_TOKENS, settings.max_tokens) if n > 1 else 1
    first_refusal, reduced = Reply("refused"), list[Capabilities]()
    for _ in range(MAX_FORMS):
        n = n if capabilities.n else 1
        body = build_body(settings, capabilities, prompt, n=n, seed=1, max_tokens=max_tokens, temperature=temperature)
        reply, single_text = await _wait_for_reply(client, settings, body)
        capabilities = replace(capabilities, n=False) if single_text else capabilities
        if reply.body is not None:
            return capabilities, reply.body
        name = _refused_parameter(reply, body)
        if name in ("logprobs", "top_logprobs"):
            raise UserError(
                f"the server does not give {settings.top_logprobs} log-probabilities per token",
                code="E-teacher-top-logprobs",
                where=settings.urls[0],
                found=reply.message,
                hint="set teacher.top_logprobs to a number that the server allows, or to 0 to learn from its texts alone"
                " (hard targets)",
            )
        if name in settings.extra:
            raise UserError(
                "the server refuses a field of the recipe",
                code="E-teacher-refused-field",
                where=f"teacher.server.extra.{name}",
                found=reply.message,
                hint="remove it, or correct its value",
            )
        without = capabilities.without(name) if name else None
        if without is None and not first_refusal.message:  # the message names no optional parameter: try with fewer
            first_refusal, reduced = reply, _reduced_forms(capabilities, n)
        if without is None and not reduced:
            raise UserError(
                "the server refuses the request",
                code="E-teacher-refused-request",
                where=settings.urls[0],
                found=first_refusal.message,
                hint="correct in the recipe what the message names",
            )
        capabilities = without or reduced.pop(0)
    raise UserError(
        "the server refuses every form of the request",
        code="E-teacher-refused-request",
        where=settings.urls[0],
        hint="look at the server's log",
    )


def _reduced_forms(capabilities: Capabilities, n: int) -> list[Capabilities]:
    """Capabilities that ask for less: one text, then no rare parameters, then only the required ones."""
    left_out = capabilities.left_out
    rare = replace(capabilities, left_out=(*left_out, *(name for name in RARE_PARAMETERS if name not in left_out)))
    optional = tuple(name for name in (*RARE_PARAMETERS, *COMMON_PARAMETERS) if name not in left_out)
    forms = [replace(capabilities, n=False), rare, replace(rare, n=False)] if n > 1 else [rare]
    return [*forms, replace(capabilities, n=False, left_out=(*left_out, *optional))]


async def _wait_for_reply(client: Client, settings: ServerSettings, body: dict) -> tuple[Reply, bool]:
    """A response or a refusal of the first server, which may still be loading its model: `settings.patience` limits
    the wait. And whether the server answered only after the request for several texts became one for a single text."""
    url, rng, started, tries = settings.urls[0], random.Random(settings.seed), time.monotonic(), 0
    while True:
        reply = await client.send(url, body)
        if reply.outcome in ("good", "refused"):
            return reply, False
        if reply.outcome == "stop" or reply.permanent:
            break
        if reply.outcome == "again" and body.get("n", 1) > 1:  # some servers fail instead of refusing n
            single = await client.send(url, body | {"n": 1})
            if single.outcome in ("good", "refused"):
                return single, True
        left = settings.patience - (time.monotonic() - started)
        if reply.retry_after is not None and reply.retry_after > left:
            raise UserError(
                "the server asks to wait longer than the recipe allows",
                code="E-teacher-retry-after",
                where=url,
                found=f"Retry-After {reply.retry_after:.0f} s; {reply.message}",
                hint=f"run the same command again later, or raise teacher.server.patience ({settings.patience:g} s)",
            )
        seconds = reply.retry_after or backoff_seconds(tries, settings.first_backoff, rng)
        if seconds > left:
            break
        client.warn(f"{url} is not ready ({reply.message}); potstill retries for {settings.patience:g} s")
        await asyncio.sleep(seconds)
        tries += 1
    raise UserError(
        "the teacher does not answer",
        code="E-teacher-no-answer",
        where=url,
        found=reply.message,
        hint=hint_for(reply.message),
    )


def _refused_parameter(reply: Reply, body: dict) -> str:
    """The parameter that a refusal is about: the one that it names, or the first of ours in its message."""
    if reply.parameter in body:
        return reply.parameter
    message = reply.message
    matches = [(match.start(), name) for name in body if (match := re.search(rf"\b{re.escape(name)}\b", message))]
    optional = [match for match in matches if match[1] not in REQUIRED_PARAMETERS]
    return min(optional or matches)[1] if matches else ""


def _check_top_logprobs(settings: ServerSettings, choice: Choice) -> None:
    entries = token_entries.read_entries(choice, ReaderContext("probe", "unknown"))
    if not entries:
        raise UserError(
            "the server's response has no log-probabilities",
            code="E-teacher-no-logprobs",
            where=settings.urls[0],
            hint="set teacher.top_logprobs to 0 to learn from its texts alone (hard targets), or try the other"
            " teacher.server.api",
        )
    most = max(len(entry.alternatives) + (not _lists_itself(entry)) for entry in entries)
    if most < 0.9 * settings.top_logprobs:  # lists keyed by strings lose tokens with equal strings
        raise UserError(
            f"the server gives at most {most} log-probabilities per token",
            code="E-teacher-top-logprobs",
            where=settings.urls[0],
            found=f"teacher.top_logprobs {settings.top_logprobs}",
            hint=f"set teacher.top_logprobs to {most}",
        )
    hidden = chain_reader.HIDDEN_LOGPROB
    for entry in entries:
        if not _lists_itself(entry) and chain_reader.has_vocabulary_marks(entry):
            raise UserError(
                "the server writes its alternatives as in its vocabulary, not as text",
                code="E-teacher-vocabulary-marks",
                where=settings.urls[0],
                found=f"{entry.name!r}, and the alternatives {[name for _, name, _ in entry.alternatives][:3]}",
                hint=HARD_TARGETS_HINT,
            )
        values = [value for _, _, value in entry.alternatives if value is not None and value > hidden]
        if not _lists_itself(entry) and entry.logprob is not None and entry.logprob > hidden:
            values.append(entry.logprob)
        if chain_reader.exceeds_one(values):
            raise UserError(
                "the server returned no valid log-probabilities: the probabilities of a token are above 1",
                code="E-teacher-invalid-logprobs",
                where=settings.urls[0],
                found=values[:3],
                hint=HARD_TARGETS_HINT,
            )


def _lists_itself(entry: token_entries.TokenEntry) -> bool:
    """Whether the token is one of its own alternatives, or has no log-probability to add there."""
    return entry.logprob is None or any(name == entry.name for _, name, _ in entry.alternatives)


def _check_echo(settings: ServerSettings, body: ResponseBody, prompt: Prompt) -> None:
    if any(starts_with_prompt(choice, prompt) for choice in body.choices):
        raise UserError(
            "the server's text begins with the prompt",
            code="E-teacher-echo",
            where=settings.urls[0],
            found=message_texts(body.choices[0])[1][:80],
            hint="make it return only the new text, for example with teacher.server.extra: {echo: false}",
        )


def _check_tokenizer(settings: ServerSettings, chain: Chain, choice: Choice) -> None:
    if chain.tokens and not set(chain.defects) - {"candidates unknown", "tokens beyond the text"}:
        return
    raise UserError(
        "teacher.server.tokenizer does not fit the server's tokens",
        code="E-teacher-wrong-tokenizer",
        where=settings.urls[0],
        found=f"{message_texts(choice)[1][:60]!r} with the tokens {list(chain.tokens)[:6]}",
        hint="name the tokenizer of the served model, or none",
    )


def _classify_bytes(choice: Choice, chain: Chain, context: ReaderContext) -> str:
    """Where the bytes of tokens come from, see `Capabilities.bytes`."""
    if context.lookup is not None:
        return "ids"
    entries = choice.logprobs.content if choice.logprobs else None
    if not entries or all(token_bytes(entry) is None for entry in entries):
        return "strings"
    from_strings = all(
        token_bytes(outcome) == outcome.token.encode("utf-8", "replace")
        for entry in entries
        for outcome in (entry, *(entry.top_logprobs or ()))
    )
    return "strings" if from_strings and b"".join(chain.tokens) != chain.content else "true"


def _find_end_names(body: ResponseBody, context: ReaderContext) -> tuple[str, ...]:
    """The strings by which the server named the end token, if a text reached it."""
    names = set()
    for choice in body.choices:
        entries = token_entries.read_entries(choice, context)
        chain = chain_reader.read_chain(choice, "probe", 0, context)
        if len(chain.candidates) > len(chain.tokens) and entries and isinstance(entries[-1].name, str):
            names.add(entries[-1].name)
    return tuple(sorted(names - {""}))


async def _find_semantics(
    client: Client, settings: ServerSettings, capabilities: Capabilities, prompt: Prompt, context: ReaderContext
) -> Semantics:
    """Requests the first token at temperature 1 and at the recipe's temperature, and compares its log-probabilities."""
    if settings.temperature == 1.0:
        return "raw"  # there is no difference
    if "temperature" in capabilities.left_out:
        return "unknown"
    tables = []
    temperatures = (1.0, settings.temperature)
    requests = (_send(client, settings, capabilities, prompt, temperature=value) for value in temperatures)
    for _, body in await asyncio.gather(*requests):
        entries = token_entries.read_entries(body.choices[0], context) if body.choices else []
        if not entries:
            return "unknown"
        alternatives = entries[0].alternatives
        hidden = chain_reader.HIDDEN_LOGPROB
        tables.append({name: value for _, name, value in alternatives if value is not None and value > hidden})
    return compare_temperatures(tables[0], tables[1], settings.temperature)


def compare_temperatures(at_one: dict, at_temperature: dict, temperature: float) -> Semantics:
    """What log-probabilities mean, from those of one position at temperature 1 and at `temperature`: raw if the
    difference of two outcomes stays, tempered if it is divided by the temperature."""
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
