"""The probe: a few small requests that find out how a server wants to be asked and what it gives.

By behaviour, never by name: whether log-probabilities come and how many, whether n is honoured, what the bytes and ids
of tokens are worth, how the end is named, and whether temperature is in the numbers.
"""

from __future__ import annotations

import asyncio
import math
import random
import re
from dataclasses import replace

from potstill.errors import UserError
from potstill.records import Chain, Prompt, Semantics
from potstill.teachers.openai import reading
from potstill.teachers.openai.asking import NEEDED, Manner, Settings, payload
from potstill.teachers.openai.body import Body, Choice, Malformed, raw
from potstill.teachers.openai.client import Answer, Client, advice
from potstill.teachers.openai.pacing import pause
from potstill.teachers.openai.reading import Reader

LENGTH = 24  # tokens that a probe may write
REACHED = 5  # tries before a server counts as out of reach


async def probe(client: Client, settings: Settings, prompt: Prompt, reader: Reader) -> Manner:
    """The manner of the first server of a recipe, found with one of its own prompts.

    Raises UserError where it gives less than the recipe asks: that must be the user's decision.
    """
    try:
        return await _found(client, settings, prompt, reader)
    except Malformed as fault:
        raise UserError("the server's answer cannot be read", where=settings.urls[0], found=fault,
                        do="set teacher.candidates to 0, or use another server") from None  # fmt: skip


async def _found(client: Client, settings: Settings, prompt: Prompt, reader: Reader) -> Manner:
    manner = Manner(ids=reader.pieces is not None)
    manner, body = await _asked(client, settings, manner, prompt, n=2)
    if not body.choices:
        raise UserError("the server answers without a text", where=settings.urls[0], do="look at its log")
    manner = replace(manner, n=manner.n and len(body.choices) == 2, served=body.model or "")
    if settings.candidates == 0:
        return manner
    choice = body.choices[0]
    _check_candidates(settings, choice)
    chain = reading.read(choice, "probe", 0, replace(reader, learn="both"))
    if reader.pieces is not None:
        _check_tokenizer(settings, chain, choice)
    return replace(
        manner,
        whole="entries missing" not in chain.defects,
        bytes=_bytes(choice, chain, reader),
        ends=_ends(body, chain, reader),
        semantics=await _semantics(client, settings, manner, prompt, reader),
    )


async def _asked(
    client: Client, settings: Settings, manner: Manner, prompt: Prompt, n: int = 1, temperature: float | None = None
) -> tuple[Manner, Body]:
    """A body, and the manner in which the server was willing to give it."""
    length = min(LENGTH, settings.max_tokens) if n > 1 else 1
    for _ in range(24):
        n = n if manner.n else 1
        request = payload(settings, manner, prompt, n=n, seed=1, max_tokens=length, temperature=temperature)
        answer = await _reached(client, settings, request)
        if answer.body is not None:
            return manner, answer.body
        name = _named(answer, request)
        if name in ("logprobs", "top_logprobs"):
            raise UserError(
                f"the server does not give {settings.candidates} candidates a token",
                where=settings.urls[0],
                found=answer.said,
                do="set teacher.candidates to what it gives, or to 0 to learn from its texts alone (hard targets)",
            )
        other = manner.without(name) if name else None
        if other is None:
            raise UserError("the server refuses the request", where=settings.urls[0], found=answer.said,
                            do="mend what it names in the recipe")  # fmt: skip
        manner = other
    raise UserError("the server refuses every form of the request", where=settings.urls[0], do="look at its log")


async def _reached(client: Client, settings: Settings, request: dict) -> Answer:
    answer = Answer("again")
    draw = random.Random(settings.seed)
    for tries in range(REACHED):
        answer = await client.ask(settings.urls[0], request)
        if answer.outcome in ("good", "refused"):
            return answer
        if answer.outcome == "stop":
            break
        if tries + 1 < REACHED:
            await asyncio.sleep(answer.wait or pause(tries, settings.first_pause, draw))
    raise UserError("the teacher does not answer", where=settings.urls[0], found=answer.said, do=advice(answer.said))


def _named(answer: Answer, request: dict) -> str:
    """The parameter that a refusal speaks of: named, or the first of ours whose name stands in its text."""
    if answer.named in request:
        return answer.named
    found = [(match.start(), name) for name in request if (match := re.search(rf"\b{re.escape(name)}\b", answer.said))]
    optional = [place for place in found if place[1] not in NEEDED]
    return min(optional or found)[1] if found else ""


def _check_candidates(settings: Settings, choice: Choice) -> None:
    steps = reading.steps(choice, Reader("probe", "unknown"))
    if not steps:
        raise UserError(
            "the server answers, but gives no log-probabilities",
            where=settings.urls[0],
            do="set teacher.candidates to 0 to learn from its texts alone (hard targets), or try the other"
            " teacher.server.api",
        )
    most = max(len(step.tops) for step in steps)
    if most < 0.9 * settings.candidates:  # lists that are keyed by strings lose tokens of the same string
        raise UserError(
            f"the server gives at most {most} candidates a token",
            where=settings.urls[0],
            found=f"teacher.candidates {settings.candidates}",
            do=f"set teacher.candidates to {most}",
        )
    for step in steps:
        values = [value for _, _, value in step.tops if value is not None and value > reading.HIDDEN]
        if any(value > 1e-3 for value in values) or sum(map(math.exp, values)) > 1.01:
            raise UserError("the server's log-probabilities are none", where=settings.urls[0], found=values[:3],
                            do="set teacher.candidates to 0, or use another server")  # fmt: skip


def _check_tokenizer(settings: Settings, chain: Chain, choice: Choice) -> None:
    told = choice.text if choice.text is not None else (choice.message.content if choice.message else "") or ""
    if chain.tokens and not set(chain.defects) - {"candidates unknown", "tokens beyond the text"}:
        return
    raise UserError(
        "teacher.server.tokenizer does not fit what the server writes",
        where=settings.urls[0],
        found=f"{told[:60]!r} with the tokens {list(chain.tokens)[:6]}",
        do="name the tokenizer of the served model, or none",
    )


def _bytes(choice: Choice, chain: Chain, reader: Reader) -> str:
    if reader.pieces is not None:
        return "ids"
    listing = choice.logprobs
    entries = listing.content if listing else None
    if not entries or all(raw(entry) is None for entry in entries):
        return "strings"
    made = all(
        raw(entry) == entry.token.encode("utf-8", "replace")
        for entry in entries
        for entry in (entry, *(entry.top_logprobs or ()))
    )
    return "strings" if made and b"".join(chain.tokens) != chain.content else "true"


def _ends(body: Body, chain: Chain, reader: Reader) -> tuple[str, ...]:
    """The strings by which the server named the end of a text, if it came to one."""
    names = set()
    for choice in body.choices:
        steps = reading.steps(choice, reader)
        whole = reading.read(choice, "probe", 0, reader)
        if len(whole.candidates) > len(whole.tokens) and steps and isinstance(steps[-1].name, str) and steps[-1].name:
            names.add(steps[-1].name)
    return tuple(sorted(names))


async def _semantics(client: Client, settings: Settings, manner: Manner, prompt: Prompt, reader: Reader) -> Semantics:
    """The same step at temperature 1 and at the recipe's: raw if the distance of two outcomes stays, tempered if it is
    divided by the temperature."""
    if settings.temperature == 1.0:
        return "raw"  # both are the same
    if "temperature" in manner.left_out:
        return "unknown"
    steps = []
    both = (_asked(client, settings, manner, prompt, temperature=each) for each in (1.0, settings.temperature))
    for _, body in await asyncio.gather(*both):
        found = reading.steps(body.choices[0], reader) if body.choices else []
        if not found:
            return "unknown"
        steps.append({name: value for _, name, value in found[0].tops if value is not None and value > reading.HIDDEN})
    return judged(steps[0], steps[1], settings.temperature)


def judged(one: dict, other: dict, temperature: float) -> Semantics:
    """What the second list of outcomes means, the first being of temperature 1.

    >>> one = {"a": -0.1, "b": -2.4}
    >>> judged(one, {"a": -0.1, "b": -2.4}, 0.5), judged(one, {"a": -0.01, "b": -4.61}, 0.5)
    ('raw', 'tempered')
    """
    shared = sorted(set(one) & set(other), key=lambda name: one[name])
    if len(shared) < 2 or (before := one[shared[-1]] - one[shared[0]]) < 0.1:
        return "unknown"
    after = other[shared[-1]] - other[shared[0]]
    if abs(after - before) < 0.03 * before:
        return "raw"
    return "tempered" if temperature > 0 and abs(after * temperature - before) < 0.03 * before else "unknown"


def told(settings: Settings, manner: Manner) -> str:
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
