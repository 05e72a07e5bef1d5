"""The probe: a few small requests that find out how a server wants to be asked and what it gives.

By behaviour, never by name: whether log-probabilities come and how many, whether n is honoured, what the bytes and ids
of tokens are worth, how the end is named, and whether temperature is in the numbers.
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

PROBE_MAX_TOKENS = 24  # tokens that a probe may write
RARE_PARAMETERS = ("top_k", "min_p", "repetition_penalty", "repeat_penalty")  # what only some servers know
COMMON_PARAMETERS = ("presence_penalty", "frequency_penalty", "top_p", "seed", "n")
PROBE_REQUESTS = (
    4  # requests of a probe that a server answers: one of two texts, one each at two temperatures, one to spare
)


async def probe(client: Client, settings: ServerSettings, prompt: Prompt, reader: ReaderContext) -> Capabilities:
    """The manner of the first server of a recipe, found with one of its own prompts.

    Raises UserError where it gives less than the recipe asks: that must be the user's decision.
    """
    try:
        return await _probe(client, settings, prompt, reader)
    except DECODE_ERRORS as fault:
        raise UserError("the server's answer cannot be read", where=settings.urls[0], found=fault,
                        hint="set teacher.top_logprobs to 0, or use another server") from None  # fmt: skip


async def _probe(client: Client, settings: ServerSettings, prompt: Prompt, reader: ReaderContext) -> Capabilities:
    manner = Capabilities(ids=reader.pieces is not None)
    manner, body = await _send(client, settings, manner, prompt, n=2)
    if not body.choices:
        raise UserError("the server answers without a text", where=settings.urls[0], hint="look at its log")
    manner = replace(manner, n=manner.n and len(body.choices) == 2, served=(body.model or "")[:200])
    chain_reader.fill_finish_reasons(body, min(PROBE_MAX_TOKENS, settings.max_tokens))
    for reason in chain_reader.unknown_finish_reasons(body):
        client.tell(f"finish_reason {reason!r} has no meaning here: such texts count as cut off")
    _check_echo(settings, body, prompt)
    if settings.candidates == 0:
        return manner
    choice = body.choices[0]
    _check_top_logprobs(settings, choice)
    chain = chain_reader.read_chain(choice, "probe", 0, replace(reader, learn="both"))
    if reader.pieces is not None:
        _check_tokenizer(settings, chain, choice)
    if chain_reader.DEFECT_OTHER_TEXT in chain.defects:
        raise UserError(
            "the server's log-probabilities are of other tokens than its text has",
            where=settings.urls[0],
            found=f"{chain.text[:60]!r}",
            hint="set teacher.top_logprobs to 0, or use another server",
        )
    return replace(
        manner,
        whole="entries missing" not in chain.defects,
        bytes=_classify_bytes(choice, chain, reader),
        ends=_find_end_names(body, chain, reader),
        semantics=await _find_semantics(client, settings, manner, prompt, reader),
    )


async def _send(
    client: Client,
    settings: ServerSettings,
    manner: Capabilities,
    prompt: Prompt,
    n: int = 1,
    temperature: float | None = None,
) -> tuple[Capabilities, ResponseBody]:
    """A body, and the manner in which the server was willing to give it."""
    length = min(PROBE_MAX_TOKENS, settings.max_tokens) if n > 1 else 1
    first, less = Reply("refused"), list[Capabilities]()
    for _ in range(24):
        n = n if manner.n else 1
        request = build_body(settings, manner, prompt, n=n, seed=1, max_tokens=length, temperature=temperature)
        answer, alone = await _wait_for_reply(client, settings, request)
        manner = replace(manner, n=False) if alone else manner
        if answer.body is not None:
            return manner, answer.body
        name = _refused_parameter(answer, request)
        if name in ("logprobs", "top_logprobs"):
            raise UserError(
                f"the server does not give {settings.candidates} candidates a token",
                where=settings.urls[0],
                found=answer.said,
                hint="set teacher.top_logprobs to what it gives, or to 0 to learn from its texts alone (hard targets)",
            )
        if name in settings.extra:
            raise UserError("the server refuses a field of the recipe", where=f"teacher.server.extra.{name}",
                            found=answer.said, hint="take it out, or correct its value")  # fmt: skip
        other = manner.without(name) if name else None
        if other is None and not first.said:  # it names nothing that can be left out: try with less
            first, less = answer, _reduced_forms(manner, n)
        if other is None and not less:
            raise UserError("the server refuses the request", where=settings.urls[0], found=first.said,
                            hint="correct what it names in the recipe")  # fmt: skip
        manner = other or less.pop(0)
    raise UserError("the server refuses every form of the request", where=settings.urls[0], hint="look at its log")


def _reduced_forms(manner: Capabilities, n: int) -> list[Capabilities]:
    """Manners that ask for less: one text, then without what only some servers know, then with the least."""
    further = replace(
        manner, left_out=(*manner.left_out, *(name for name in RARE_PARAMETERS if name not in manner.left_out))
    )
    least = tuple(name for name in (*RARE_PARAMETERS, *COMMON_PARAMETERS) if name not in manner.left_out)
    alone = [replace(manner, n=False), further, replace(further, n=False)] if n > 1 else [further]
    return [*alone, replace(manner, n=False, left_out=(*manner.left_out, *least))]


async def _wait_for_reply(client: Client, settings: ServerSettings, request: dict) -> tuple[Reply, bool]:
    """An answer or a refusal of the first server, waited for as long as its patience says, as a model may still be
    loading. And whether it was given to a request for one text, where one for several was a fault."""
    url, draw, began, tries = settings.urls[0], random.Random(settings.seed), time.monotonic(), 0
    while True:
        answer = await client.ask(url, request)
        if answer.outcome in ("good", "refused"):
            return answer, False
        if answer.outcome == "stop" or answer.lasting:
            break
        if answer.outcome == "again" and request.get("n", 1) > 1:  # some refuse n with a fault of their own
            alone = await client.ask(url, request | {"n": 1})
            if alone.outcome in ("good", "refused"):
                return alone, True
        left = settings.patience - (time.monotonic() - began)
        if answer.wait is not None and answer.wait > left:
            raise UserError(
                "the server asks to wait longer than the recipe allows",
                where=url,
                found=f"Retry-After {answer.wait:.0f} s; {answer.said}",
                hint=f"run the same command again later, or raise teacher.server.patience ({settings.patience:g} s)",
            )
        seconds = answer.wait or backoff_seconds(tries, settings.first_pause, draw)
        if seconds > left:
            break
        client.tell(f"{url} is not ready ({answer.said}); asking again for {settings.patience:g} s")
        await asyncio.sleep(seconds)
        tries += 1
    raise UserError("the teacher does not answer", where=url, found=answer.said, hint=hint_for(answer.said))


def _refused_parameter(answer: Reply, request: dict) -> str:
    """The parameter that a refusal speaks of: named, or the first of ours whose name stands in its text."""
    if answer.named in request:
        return answer.named
    found = [(match.start(), name) for name in request if (match := re.search(rf"\b{re.escape(name)}\b", answer.said))]
    optional = [place for place in found if place[1] not in REQUIRED_PARAMETERS]
    return min(optional or found)[1] if found else ""


def _check_top_logprobs(settings: ServerSettings, choice: Choice) -> None:
    steps = token_entries.read_entries(choice, ReaderContext("probe", "unknown"))
    if not steps:
        raise UserError(
            "the server answers, but gives no log-probabilities",
            where=settings.urls[0],
            hint="set teacher.top_logprobs to 0 to learn from its texts alone (hard targets), or try the other"
            " teacher.server.api",
        )
    most = max(len(step.tops) + (not _is_listed(step)) for step in steps)
    if most < 0.9 * settings.candidates:  # lists that are keyed by strings lose tokens of the same string
        raise UserError(
            f"the server gives at most {most} candidates a token",
            where=settings.urls[0],
            found=f"teacher.top_logprobs {settings.candidates}",
            hint=f"set teacher.top_logprobs to {most}",
        )
    for step in steps:
        values = [value for _, _, value in step.tops if value is not None and value > chain_reader.HIDDEN_LOGPROB]
        if not _is_listed(step) and chain_reader.has_vocabulary_marks(step):
            raise UserError(
                "the server writes its candidates as its vocabulary has them, not as they stand in a text",
                where=settings.urls[0],
                found=f"{step.name!r}, and the candidates {[name for _, name, _ in step.tops][:3]}",
                hint="set teacher.top_logprobs to 0, or use another server",
            )
        if not _is_listed(step) and step.value is not None and step.value > chain_reader.HIDDEN_LOGPROB:
            values.append(step.value)
        if chain_reader.exceeds_one(values):
            raise UserError("the server's log-probabilities are none: the probabilities of a token are above 1",
                            where=settings.urls[0], found=values[:3],
                            hint="set teacher.top_logprobs to 0, or use another server")  # fmt: skip


def _is_listed(step: token_entries.TokenEntry) -> bool:
    """Whether the token is among its own candidates, or has no probability that could be put there."""
    return step.value is None or any(name == step.name for _, name, _ in step.tops)


def _check_echo(settings: ServerSettings, body: ResponseBody, prompt: Prompt) -> None:
    if any(starts_with_prompt(choice, prompt) for choice in body.choices):
        raise UserError(
            "the server's text begins with the prompt",
            where=settings.urls[0],
            found=message_texts(body.choices[0])[1][:80],
            hint="have it return the new text alone, for example with teacher.server.extra: {echo: false}",
        )


def _check_tokenizer(settings: ServerSettings, chain: Chain, choice: Choice) -> None:
    told = message_texts(choice)[1]
    if chain.tokens and not set(chain.defects) - {"candidates unknown", "tokens beyond the text"}:
        return
    raise UserError(
        "teacher.server.tokenizer does not fit what the server writes",
        where=settings.urls[0],
        found=f"{told[:60]!r} with the tokens {list(chain.tokens)[:6]}",
        hint="name the tokenizer of the served model, or none",
    )


def _classify_bytes(choice: Choice, chain: Chain, reader: ReaderContext) -> str:
    if reader.pieces is not None:
        return "ids"
    listing = choice.logprobs
    entries = listing.content if listing else None
    if not entries or all(token_bytes(entry) is None for entry in entries):
        return "strings"
    made = all(
        token_bytes(entry) == entry.token.encode("utf-8", "replace")
        for entry in entries
        for entry in (entry, *(entry.top_logprobs or ()))
    )
    return "strings" if made and b"".join(chain.tokens) != chain.content else "true"


def _find_end_names(body: ResponseBody, chain: Chain, reader: ReaderContext) -> tuple[str, ...]:
    """The strings by which the server named the end of a text, if it came to one."""
    names = set()
    for choice in body.choices:
        steps = token_entries.read_entries(choice, reader)
        whole = chain_reader.read_chain(choice, "probe", 0, reader)
        if len(whole.candidates) > len(whole.tokens) and steps and isinstance(steps[-1].name, str) and steps[-1].name:
            names.add(steps[-1].name)
    return tuple(sorted(names))


async def _find_semantics(
    client: Client, settings: ServerSettings, manner: Capabilities, prompt: Prompt, reader: ReaderContext
) -> Semantics:
    """The same step at temperature 1 and at the recipe's: raw if the distance of two outcomes stays, tempered if it is
    divided by the temperature."""
    if settings.temperature == 1.0:
        return "raw"  # both are the same
    if "temperature" in manner.left_out:
        return "unknown"
    steps = []
    both = (_send(client, settings, manner, prompt, temperature=each) for each in (1.0, settings.temperature))
    for _, body in await asyncio.gather(*both):
        found = token_entries.read_entries(body.choices[0], reader) if body.choices else []
        if not found:
            return "unknown"
        steps.append(
            {
                name: value
                for _, name, value in found[0].tops
                if value is not None and value > chain_reader.HIDDEN_LOGPROB
            }
        )
    return compare_temperatures(steps[0], steps[1], settings.temperature)


def compare_temperatures(one: dict, other: dict, temperature: float) -> Semantics:
    """What the second list of outcomes means, the first being of temperature 1.

    >>> one = {"a": -0.1, "b": -2.4}
    >>> compare_temperatures(one, {"a": -0.1, "b": -2.4}, 0.5), compare_temperatures(one, {"a": -0.01, "b": -4.61}, 0.5)
    ('raw', 'tempered')
    """
    shared = sorted(set(one) & set(other), key=lambda name: one[name])
    if len(shared) < 2 or (before := one[shared[-1]] - one[shared[0]]) < 0.1:
        return "unknown"
    after = other[shared[-1]] - other[shared[0]]
    if abs(after - before) < 0.03 * before:
        return "raw"
    return "tempered" if temperature > 0 and abs(after * temperature - before) < 0.03 * before else "unknown"


def describe(settings: ServerSettings, manner: Capabilities) -> str:
    """The manner in one line, for the person who watches."""
    parts = [manner.served or settings.model]
    if settings.candidates:
        parts.append(
            f"{settings.candidates} candidates a token, {manner.semantics} log-probabilities, bytes from {manner.bytes}"
        )
    else:
        parts.append("no log-probabilities asked: hard targets")
    parts.append("n honoured" if manner.n else "one text a request")
    if manner.left_out:
        parts.append(f"refuses {', '.join(manner.left_out)}")
    return "; ".join(parts)
