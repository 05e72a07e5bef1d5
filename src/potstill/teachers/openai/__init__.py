"""A teacher behind an OpenAI-compatible server: OpenAI, vLLM, SGLang, llama.cpp's server, llama-cpp-python, and what
else speaks legacy completions or chat completions.

    server = probed(plan, questions)        # how it wants to be asked, what it gives: a small request or two
    for chains in planned(plan, questions, "openai", server, watch, done=done): ...

`asking` has what is sent, `client` sends it, `body` and `reading` make chains of what comes back (with `placing` and
`reasoning`), which `taking` puts under their keys, `probe` finds out what a server is, `pacing` and `budget` say how
much at once and in all, `sampling` keeps it going, `batches` asks through files instead, `scoring` has texts scored
that exist.
"""

from __future__ import annotations

import asyncio
import dataclasses
import time
from collections import deque
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

from potstill import progress, tokenizers
from potstill.errors import UserError
from potstill.files.segments import WHOLE, Shard
from potstill.records import Chain, Prompt, Question
from potstill.teachers import Key, local
from potstill.teachers.openai import batches, scoring
from potstill.teachers.openai import budget as budgets
from potstill.teachers.openai import probe as probes
from potstill.teachers.openai.asking import Manner, Settings, asks
from potstill.teachers.openai.client import Answer, Client
from potstill.teachers.openai.client import key as api_key
from potstill.teachers.openai.reading import Piece, Reader
from potstill.teachers.openai.sampling import Sampler
from potstill.teachers.trial import Trial
from potstill.teachers.watch import Watch

if TYPE_CHECKING:
    from potstill.recipe import Recipe

FORECAST: Final = 60.0  # seconds after which the time that is left can be told
FACTS: Final = ("n", "whole", "bytes", "semantics", "left_out")  # of a manner, on which chains of one run must agree


def settings(plan: Recipe, source: str, model: str | None = None) -> Settings:
    """What a recipe says of its server, of which `model` is asked instead of the teacher's if it is given. Raises
    UserError for a url that is none, or that holds a password."""
    teacher, server, budget = plan.teacher, plan.teacher.server, plan.teacher.budget
    model = model or teacher.model
    assert model is not None
    for url in server.urls:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.username or parts.password:
            raise UserError(
                "not the address of a server",
                where="teacher.server.urls",
                found="an address with a name and a password" if parts.password else url,
                do="write http://HOST:PORT/v1; a key comes from the environment (teacher.server.key)",
            )
    return Settings(
        model=model,
        urls=tuple(url.rstrip("/") for url in server.urls),
        api=server.api,
        key=server.key,
        samples=teacher.samples,
        temperature=teacher.temperature,
        max_tokens=teacher.max_tokens,
        candidates=teacher.candidates,
        seed=plan.seed,
        source=source,
        system=server.system,
        stop=tuple(server.stop),
        per_request=server.per_request,
        enough=teacher.enough,
        learn=server.reasoning,
        extra=server.extra,
        concurrency=server.concurrency,
        timeout=server.timeout,
        patience=server.patience,
        refused=server.refused,
        most_tokens=budget.tokens,
        most_money=budget.money,
        prices=(budget.prices.prompt, budget.prices.completion),
        spent=budget.spent,
    )


def ready(plan: Recipe) -> None:
    """Raises UserError for what can be said against a recipe's server before it is asked: addresses, key, tokenizer."""
    scorer = plan.teacher.score  # of chains that no server writes, the server only scores
    api_key(settings(plan, "ready", scorer.model if scorer and plan.teacher.kind != "openai" else None))
    _pieces(plan)


def probed(
    plan: Recipe, questions: Sequence[Question], before: Mapping[str, Any] | None = None, watch: Watch | None = None
) -> dict[str, Any]:
    """How the recipe's server wants to be asked and what it gives, as plain JSON; said in one line.

    before  what an earlier process of the same run found: it is kept, and a server that is another now is refused
    watch   counts what the probe spends
    """
    asked = settings(plan, "probe")
    found = _found(plan, asked, questions[0], watch or Watch())
    row = dataclasses.asdict(found)
    row = {name: list(value) if isinstance(value, tuple) else value for name, value in row.items()}
    if before is not None:
        changed = [f"{name}: {before[name]} -> {row[name]}" for name in FACTS if before[name] != row[name]]
        if changed:
            raise UserError(
                "the server is not the one that this run began with",
                where=asked.urls[0],
                found="; ".join(changed),
                do="start the old one again, or give the recipe another name: the chains of this run stay as they are",
            )
        return dict(before)
    progress.say(f"teacher   {probes.told(asked, found)}", "dim")
    return row


def _found(plan: Recipe, asked: Settings, question: Question, watch: Watch) -> Manner:
    reader = Reader("probe", "unknown", _pieces(plan), stops=bool(asked.stop), learn=asked.learn)
    prompt = local.asked(plan)(question)

    def heard(request: dict[str, Any], answer: Answer) -> None:
        watch.requests += 1
        most = dataclasses.replace(asked, max_tokens=request.get("max_tokens", probes.LENGTH))
        budgets.Budget(most, watch).settle((0.0, 0.0), prompt, request.get("n", 1), answer)

    async def ask() -> Manner:
        client = Client(asked)
        client.heard = heard
        try:
            return await probes.probe(client, asked, prompt, reader)
        finally:
            await client.close()

    return asyncio.run(ask())


def planned(
    plan: Recipe,
    questions: Sequence[Question],
    source: str,
    server: Mapping[str, Any],
    watch: Watch,
    *,
    done: Container[Key] = (),
    right: Mapping[str, int] | None = None,
    shard: Shard = WHOLE,
    trial: Trial | None = None,
) -> Iterator[list[Chain]]:
    """The chains of a recipe's server, as they arrive.

    server  what `probed` found
    right   question -> right chains that are stored, where the recipe stops at enough of them
    shard   which of the questions; its ceilings are its part of the recipe's, so that all together do not pass them
    """
    asked = _part(settings(plan, source), shard, watch.settled)
    questions = shard.of(questions)
    manner = _manner(server)
    reader = _reader(plan, asked, manner)
    return drawn(asked, manner, reader, watch, questions, local.asked(plan), done, right or {}, trial)


def complete(
    plan: Recipe, questions: Sequence[Question], source: str, done: Container[Key], right: Mapping[str, int]
) -> bool:
    """Whether nothing is left to ask, told without asking the server."""
    asked = settings(plan, source)
    return next(asks(asked, asked.samples, questions, local.asked(plan), done, right), None) is None


def exhausted(
    plan: Recipe,
    questions: Sequence[Question],
    source: str,
    watch: Watch,
    done: Container[Key],
    right: Mapping[str, int],
    shard: Shard = WHOLE,
) -> UserError | None:
    """What to say where the ceilings do not allow another request, nor the probe: told without asking the server."""
    asked = _part(settings(plan, source), shard, watch.settled)
    first = next(asks(asked, asked.per_request, shard.of(questions), local.asked(plan), done, right), None)
    ceiling = budgets.Budget(asked, watch)
    if first is None or ceiling.allows(first.prompt, len(first.indices), probes.TIMES, probes.LENGTH):
        return None
    return ceiling.reached()


def batch(
    plan: Recipe, questions: Sequence[Question], source: str, server: Mapping[str, Any], made_from: Any
) -> batches.Batch:
    """What is needed to ask through files. made_from: what the stage's chains hang on, as plain JSON."""
    asked, manner = settings(plan, source), _manner(server)
    tag = batches.tag(made_from, server)
    return batches.Batch(tag, asked, manner, _reader(plan, asked, manner), questions, local.asked(plan))


def _part(asked: Settings, shard: Shard, settled: Mapping[str, float] = MappingProxyType({})) -> Settings:
    """The settings of a shard: its part of what the ceilings leave of what was `settled` before."""
    tokens, money = asked.most_tokens, asked.most_money
    before = int(settled.get("prompt_tokens", 0) + settled.get("completion_tokens", 0))
    return dataclasses.replace(
        asked,
        most_tokens=None if tokens is None else max(0, tokens - before) // shard.count,
        most_money=None if money is None else max(0.0, money - settled.get("money", 0.0)) / shard.count,
    )


def drawn(
    asked: Settings,
    manner: Manner,
    reader: Reader,
    watch: Watch,
    questions: Sequence[Question],
    prompt_of: Callable[[Question], Prompt],
    done: Container[Key] = (),
    right: Mapping[str, int] | None = None,
    trial: Trial | None = None,
) -> Iterator[list[Chain]]:
    """The chains of any server. The event loop runs while a batch is waited for, and only then."""
    with asyncio.Runner() as runner:
        client = Client(asked)
        sampler = Sampler(client, asked, manner, reader, watch, questions, prompt_of, done, right or {}, trial)
        began, told = time.monotonic(), False
        try:
            while runner.run(sampler.wait()):
                yield sampler.taken()
                if not told and time.monotonic() - began > FORECAST:
                    told = True
                    progress.say(_forecast(asked, watch, len(questions)), "dim")
            if watch.refused:
                progress.say(f"{len(watch.refused)} questions were refused by the teacher and skipped", "yellow")
        finally:
            runner.run(_closed(sampler, client))


async def _closed(sampler: Sampler, client: Client) -> None:
    await sampler.close()
    await client.close()


def _forecast(asked: Settings, watch: Watch, questions: int) -> str:
    rate = watch.chains / max(watch.seconds, 1e-9)
    left = max(0.0, questions * asked.samples - watch.chains)
    money = f", {watch.money / max(watch.chains, 1) * left:.2f} more in money" if watch.money else ""
    return f"after the first minute: {rate:.1f} chains/s, about {left / max(rate, 1e-9) / 60:.0f} min left{money}"


def expected(plan: Recipe, questions: Sequence[Question]) -> budgets.Expected:
    """What the recipe's teacher would be asked, for the plan before a run."""
    prompt_of = local.asked(plan)
    return budgets.expected(settings(plan, "plan"), [prompt_of(question) for question in questions])


def scored(
    asked: Settings,
    manner: Manner,
    reader: Reader,
    rows: Iterable[tuple[str, Chain]],
    *,
    way: scoring.Way | None = None,
) -> Iterator[Chain]:
    """Chains that exist, with the server's distributions: (prompt as the model saw it, chain) in, chains out, in order.

    way  how the server scores; None finds out with the first row
    Raises UserError where it does not, or does not answer.
    """
    with asyncio.Runner() as runner:
        client = Client(asked)
        try:
            yield from scoring.each(runner, client, asked, manner, reader, rows, way)
        finally:
            runner.run(client.close())


def rescored(
    plan: Recipe, model: str, questions: Sequence[Question], batches: Iterable[list[Chain]]
) -> Iterator[list[Chain]]:
    """Batches of chains that exist, each with the distributions of a model behind the recipe's server: the text is
    scored behind the question as the recipe's teacher would be asked it."""
    asked, prompt_of = settings(plan, "scored", model), local.asked(plan)
    by_id = {question.id: question for question in questions}
    manner, sizes = _found(plan, asked, questions[0], Watch()), deque[int]()
    reader = Reader("scored", "raw", _pieces(plan), frozenset(manner.ends))

    def rows() -> Iterator[tuple[str, Chain]]:
        for batch in batches:
            sizes.append(len(batch))
            for chain in batch:
                prompt = prompt_of(by_id[chain.question])
                yield prompt.plain + prompt.lead, chain

    made: list[Chain] = []
    for chain in scored(asked, manner, reader, rows()):
        made.append(chain)
        if len(made) == sizes[0]:
            sizes.popleft()
            yield made
            made = []


def _reader(plan: Recipe, asked: Settings, manner: Manner) -> Reader:
    ends = frozenset(manner.ends)
    return Reader(asked.source, manner.semantics, _pieces(plan), ends, asked.learn, bool(asked.stop))  # type: ignore[arg-type]


def _manner(row: Mapping[str, Any]) -> Manner:
    values: dict[str, Any] = {name: tuple(value) if isinstance(value, list) else value for name, value in row.items()}
    return Manner(**values)


def _pieces(plan: Recipe) -> Callable[[int, int], Piece] | None:
    """What an id means, by the teacher's tokenizer if the recipe names it."""
    if plan.teacher.server.tokenizer is None:
        return None
    from potstill import recipe

    opened = tokenizers.open(recipe.find(plan, plan.teacher.server.tokenizer, "teacher.server.tokenizer"))
    return opened.candidate


__all__ = ["batch", "complete", "drawn", "exhausted", "expected", "planned", "probed", "rescored", "scored", "settings"]
