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
from potstill.teachers.openai import finish, reading
from potstill.teachers.openai.asking import NEEDED, Manner, Settings, payload
from potstill.teachers.openai.body import Body, Choice, Malformed, raw, spoken
from potstill.teachers.openai.client import Answer, Client, advice
from potstill.teachers.openai.pacing import pause
from potstill.teachers.openai.reading import Reader
from potstill.teachers.openai.taking import repeats

LENGTH = 24  # tokens that a probe may write
FURTHER = ("top_k", "min_p", "repetition_penalty", "repeat_penalty")  # what only some servers know
COMMON = ("presence_penalty", "frequency_penalty", "top_p", "seed", "n")
TIMES = 4  # requests of a probe that a server answers: one of two texts, one each at two temperatures, one to spare


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
    manner = replace(manner, n=manner.n and len(body.choices) == 2, served=(body.model or "")[:200])
    finish.settled(body, min(LENGTH, settings.max_tokens))
    for reason in finish.unknown(body):
        client.tell(f"finish_reason {reason!r} has no meaning here: such texts count as cut off")
    _check_echo(settings, body, prompt)
    if settings.candidates == 0:
        return manner
    choice = body.choices[0]
    _check_candidates(settings, choice)
    chain = reading.read(choice, "probe", 0, replace(reader, learn="both"))
    if reader.pieces is not None:
        _check_tokenizer(settings, chain, choice)
    if reading.OTHER in chain.defects:
        raise UserError(
            "the server's log-probabilities are of other tokens than its text has",
            where=settings.urls[0],
            found=f"{chain.text[:60]!r}",
            do="set teacher.candidates to 0, or use another server",
        )
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
    first, less = Answer("refused"), list[Manner]()
    for _ in range(24):
        n = n if manner.n else 1
        request = payload(settings, manner, prompt, n=n, seed=1, max_tokens=length, temperature=temperature)
        answer, alone = await _reached(client, settings, request)
        manner = replace(manner, n=False) if alone else manner
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
        if name in settings.extra:
            raise UserError("the server refuses a field of the recipe", where=f"teacher.server.extra.{name}",
                            found=answer.said, do="take it out, or correct its value")  # fmt: skip
        other = manner.without(name) if name else None
        if other is None and not first.said:  # it names nothing that can be left out: try with less
            first, less = answer, _fewer(manner, n)
        if other is None and not less:
            raise UserError("the server refuses the request", where=settings.urls[0], found=first.said,
                            do="correct what it names in the recipe")  # fmt: skip
        manner = other or less.pop(0)
    raise UserError("the server refuses every form of the request", where=settings.urls[0], do="look at its log")


def _fewer(manner: Manner, n: int) -> list[Manner]:
    """Manners that ask for less: one text, then without what only some servers know, then with the least."""
    further = replace(manner, left_out=(*manner.left_out, *(name for name in FURTHER if name not in manner.left_out)))
    least = tuple(name for name in (*FURTHER, *COMMON) if name not in manner.left_out)
    alone = [replace(manner, n=False), further, replace(further, n=False)] if n > 1 else [further]
    return [*alone, replace(manner, n=False, left_out=(*manner.left_out, *least))]


async def _reached(client: Client, settings: Settings, request: dict) -> tuple[Answer, bool]:
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
                do=f"run the same command again later, or raise teacher.server.patience ({settings.patience:g} s)",
            )
        seconds = answer.wait or pause(tries, settings.first_pause, draw)
        if seconds > left:
            break
        client.tell(f"{url} is not ready ({answer.said}); asking again for {settings.patience:g} s")
        await asyncio.sleep(seconds)
        tries += 1
    raise UserError("the teacher does not answer", where=url, found=answer.said, do=advice(answer.said))


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
    most = max(len(step.tops) + (not _listed(step)) for step in steps)
    if most < 0.9 * settings.candidates:  # lists that are keyed by strings lose tokens of the same string
        raise UserError(
            f"the server gives at most {most} candidates a token",
            where=settings.urls[0],
            found=f"teacher.candidates {settings.candidates}",
            do=f"set teacher.candidates to {most}",
        )
    for step in steps:
        values = [value for _, _, value in step.tops if value is not None and value > reading.HIDDEN]
        if not _listed(step) and reading.marked(step):
            raise UserError(
                "the server writes its candidates as its vocabulary has them, not as they stand in a text",
                where=settings.urls[0],
                found=f"{step.name!r}, and the candidates {[name for _, name, _ in step.tops][:3]}",
                do="set teacher.candidates to 0, or use another server",
            )
        if not _listed(step) and step.value is not None and step.value > reading.HIDDEN:
            values.append(step.value)
        if reading.above(values):
            raise UserError("the server's log-probabilities are none: the probabilities of a token are above 1",
                            where=settings.urls[0], found=values[:3],
                            do="set teacher.candidates to 0, or use another server")  # fmt: skip


def _listed(step: reading.Step) -> bool:
    """Whether the token is among its own candidates, or has no probability that could be put there."""
    return step.value is None or any(name == step.name for _, name, _ in step.tops)


def _check_echo(settings: Settings, body: Body, prompt: Prompt) -> None:
    if any(repeats(choice, prompt) for choice in body.choices):
        raise UserError(
            "the server's text begins with the prompt",
            where=settings.urls[0],
            found=spoken(body.choices[0])[1][:80],
            do="have it return the new text alone, for example with teacher.server.extra: {echo: false}",
        )


def _check_tokenizer(settings: Settings, chain: Chain, choice: Choice) -> None:
    told = spoken(choice)[1]
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
