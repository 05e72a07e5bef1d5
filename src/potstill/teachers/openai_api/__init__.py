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

from potstill import progress, tokenization
from potstill.errors import UserError
from potstill.records import Chain, Prompt, Question
from potstill.storage.segments import UNSHARDED, Shard
from potstill.teachers import ChainKey, local_model
from potstill.teachers.openai_api import batch_api, budget, capabilities, scoring
from potstill.teachers.openai_api.client import Client, Reply
from potstill.teachers.openai_api.client import read_api_key as api_key
from potstill.teachers.openai_api.request import Capabilities, ServerSettings, iter_requests
from potstill.teachers.openai_api.scheduler import Scheduler
from potstill.teachers.openai_api.token_entries import Piece, ReaderContext
from potstill.teachers.usage import FirstChainsCheck, UsageMeter

if TYPE_CHECKING:
    from potstill.recipe import Recipe

FORECAST_SECONDS: Final = 60.0  # seconds after which the time that is left can be told
FIXED_CAPABILITIES: Final = (
    "n",
    "whole",
    "bytes",
    "semantics",
    "left_out",
)  # of a manner, on which chains of one run must agree


def settings_from_recipe(recipe: Recipe, source: str, model: str | None = None) -> ServerSettings:
    """What a recipe says of its server, of which `model` is asked instead of the teacher's if it is given. Raises
    UserError for a url that is none, or that holds a password."""
    teacher, server, budget = recipe.teacher, recipe.teacher.server, recipe.teacher.budget
    model = model or teacher.model
    assert model is not None
    for url in server.urls:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.username or parts.password:
            raise UserError(
                "not the address of a server",
                where="teacher.server.urls",
                found="an address with a name and a password" if parts.password else url,
                hint="write http://HOST:PORT/v1; a key comes from the environment (teacher.server.key)",
            )
    return ServerSettings(
        model=model,
        urls=tuple(url.rstrip("/") for url in server.urls),
        api=server.api,
        key=server.key,
        samples=teacher.samples,
        temperature=teacher.temperature,
        max_tokens=teacher.max_tokens,
        candidates=teacher.top_logprobs,
        seed=recipe.seed,
        source=source,
        system=server.system,
        stop=tuple(server.stop),
        per_request=server.samples_per_request,
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


def check_ready(recipe: Recipe) -> None:
    """Raises UserError for what can be said against a recipe's server before it is asked: addresses, key, tokenizer."""
    scorer = recipe.teacher.score  # of chains that no server writes, the server only scores
    api_key(settings_from_recipe(recipe, "ready", scorer.model if scorer and recipe.teacher.kind != "openai" else None))
    _token_lookup(recipe)


def probe_server(
    recipe: Recipe,
    questions: Sequence[Question],
    before: Mapping[str, Any] | None = None,
    watch: UsageMeter | None = None,
) -> dict[str, Any]:
    """How the recipe's server wants to be asked and what it gives, as plain JSON; said in one line.

    before  what an earlier process of the same run found: it is kept, and a server that is another now is refused
    watch   counts what the probe spends
    """
    asked = settings_from_recipe(recipe, "probe")
    found = _probe(recipe, asked, questions[0], watch or UsageMeter())
    row = dataclasses.asdict(found)
    row = {name: list(value) if isinstance(value, tuple) else value for name, value in row.items()}
    if before is not None:
        changed = [f"{name}: {before[name]} -> {row[name]}" for name in FIXED_CAPABILITIES if before[name] != row[name]]
        if changed:
            raise UserError(
                "the server is not the one that this run began with",
                where=asked.urls[0],
                found="; ".join(changed),
                hint="start the old one again, or give the recipe another name: the chains of this run stay as they are",
            )
        return dict(before)
    progress.print_line(f"teacher   {capabilities.describe(asked, found)}", "dim")
    return row


def _probe(recipe: Recipe, asked: ServerSettings, question: Question, watch: UsageMeter) -> Capabilities:
    reader = ReaderContext("probe", "unknown", _token_lookup(recipe), stops=bool(asked.stop), learn=asked.learn)
    prompt = local_model.prompt_builder_of(recipe)(question)

    def heard(request: dict[str, Any], answer: Reply) -> None:
        watch.requests += 1
        most = dataclasses.replace(asked, max_tokens=request.get("max_tokens", capabilities.PROBE_MAX_TOKENS))
        budget.Budget(most, watch).settle((0.0, 0.0), prompt, request.get("n", 1), answer)

    async def ask() -> Capabilities:
        client = Client(asked)
        client.heard = heard
        try:
            return await capabilities.probe(client, asked, prompt, reader)
        finally:
            await client.close()

    return asyncio.run(ask())


def sample_from_recipe(
    recipe: Recipe,
    questions: Sequence[Question],
    source: str,
    server: Mapping[str, Any],
    watch: UsageMeter,
    *,
    done: Container[ChainKey] = (),
    right: Mapping[str, int] | None = None,
    shard: Shard = UNSHARDED,
    trial: FirstChainsCheck | None = None,
) -> Iterator[list[Chain]]:
    """The chains of a recipe's server, as they arrive.

    server  what `probed` found
    right   question -> right chains that are stored, where the recipe stops at enough of them
    shard   which of the questions; its ceilings are its part of the recipe's, so that all together do not pass them
    """
    asked = _shard_settings(settings_from_recipe(recipe, source), shard, watch.settled)
    questions = shard.of(questions)
    manner = _capabilities_from_json(server)
    reader = _open_reader(recipe, asked, manner)
    return sample(
        asked, manner, reader, watch, questions, local_model.prompt_builder_of(recipe), done, right or {}, trial
    )


def is_complete(
    recipe: Recipe, questions: Sequence[Question], source: str, done: Container[ChainKey], right: Mapping[str, int]
) -> bool:
    """Whether nothing is left to ask, told without asking the server."""
    asked = settings_from_recipe(recipe, source)
    return (
        next(iter_requests(asked, asked.samples, questions, local_model.prompt_builder_of(recipe), done, right), None)
        is None
    )


def budget_error(
    recipe: Recipe,
    questions: Sequence[Question],
    source: str,
    watch: UsageMeter,
    done: Container[ChainKey],
    right: Mapping[str, int],
    shard: Shard = UNSHARDED,
) -> UserError | None:
    """What to say where the ceilings do not allow another request, nor the probe: told without asking the server."""
    asked = _shard_settings(settings_from_recipe(recipe, source), shard, watch.settled)
    first = next(
        iter_requests(
            asked, asked.per_request, shard.of(questions), local_model.prompt_builder_of(recipe), done, right
        ),
        None,
    )
    ceiling = budget.Budget(asked, watch)
    if first is None or ceiling.allows(
        first.prompt, len(first.indices), capabilities.PROBE_REQUESTS, capabilities.PROBE_MAX_TOKENS
    ):
        return None
    return ceiling.reached()


def open_batch(
    recipe: Recipe, questions: Sequence[Question], source: str, server: Mapping[str, Any], made_from: Any
) -> batch_api.Batch:
    """What is needed to ask through files. made_from: what the stage's chains hang on, as plain JSON."""
    asked, manner = settings_from_recipe(recipe, source), _capabilities_from_json(server)
    tag = batch_api.run_tag(made_from, server)
    return batch_api.Batch(
        tag, asked, manner, _open_reader(recipe, asked, manner), questions, local_model.prompt_builder_of(recipe)
    )


def _shard_settings(
    asked: ServerSettings, shard: Shard, settled: Mapping[str, float] = MappingProxyType({})
) -> ServerSettings:
    """The settings of a shard: its part of what the ceilings leave of what was `settled` before."""
    tokens, money = asked.most_tokens, asked.most_money
    before = int(settled.get("prompt_tokens", 0) + settled.get("completion_tokens", 0))
    return dataclasses.replace(
        asked,
        most_tokens=None if tokens is None else max(0, tokens - before) // shard.count,
        most_money=None if money is None else max(0.0, money - settled.get("money", 0.0)) / shard.count,
    )


def sample(
    asked: ServerSettings,
    manner: Capabilities,
    reader: ReaderContext,
    watch: UsageMeter,
    questions: Sequence[Question],
    prompt_of: Callable[[Question], Prompt],
    done: Container[ChainKey] = (),
    right: Mapping[str, int] | None = None,
    trial: FirstChainsCheck | None = None,
) -> Iterator[list[Chain]]:
    """The chains of any server. The event loop runs while a batch is waited for, and only then."""
    with asyncio.Runner() as runner:
        client = Client(asked)
        sampler = Scheduler(client, asked, manner, reader, watch, questions, prompt_of, done, right or {}, trial)
        began, told = time.monotonic(), False
        try:
            while runner.run(sampler.wait()):
                yield sampler.taken()
                if not told and time.monotonic() - began > FORECAST_SECONDS:
                    told = True
                    progress.print_line(_time_left_line(asked, watch, len(questions)), "dim")
            if watch.refused:
                progress.print_line(f"{len(watch.refused)} questions were refused by the teacher and skipped", "yellow")
        finally:
            runner.run(_close(sampler, client))


async def _close(sampler: Scheduler, client: Client) -> None:
    await sampler.close()
    await client.close()


def _time_left_line(asked: ServerSettings, watch: UsageMeter, questions: int) -> str:
    rate = watch.chains / max(watch.seconds, 1e-9)
    left = max(0.0, questions * asked.samples - watch.chains)
    money = f", {watch.money / max(watch.chains, 1) * left:.2f} more in money" if watch.money else ""
    return f"after the first minute: {rate:.1f} chains/s, about {left / max(rate, 1e-9) / 60:.0f} min left{money}"


def forecast(recipe: Recipe, questions: Sequence[Question]) -> budget.Forecast:
    """What the recipe's teacher would be asked, for the plan before a run."""
    prompt_of = local_model.prompt_builder_of(recipe)
    return budget.forecast(settings_from_recipe(recipe, "plan"), [prompt_of(question) for question in questions])


def score_texts(
    asked: ServerSettings,
    manner: Capabilities,
    reader: ReaderContext,
    rows: Iterable[tuple[str, Chain]],
    *,
    way: scoring.ScoringMethod | None = None,
) -> Iterator[Chain]:
    """Chains that exist, with the server's distributions: (prompt as the model saw it, chain) in, chains out, in order.

    way  how the server scores; None finds out with the first row
    Raises UserError where it does not, or does not answer.
    """
    with asyncio.Runner() as runner:
        client = Client(asked)
        try:
            yield from scoring.score_all(runner, client, asked, manner, reader, rows, way)
        finally:
            runner.run(client.close())


def score_batches(
    recipe: Recipe, model: str, questions: Sequence[Question], batches: Iterable[list[Chain]]
) -> Iterator[list[Chain]]:
    """Batches of chains that exist, each with the distributions of a model behind the recipe's server: the text is
    scored behind the question as the recipe's teacher would be asked it."""
    asked, prompt_of = settings_from_recipe(recipe, "scored", model), local_model.prompt_builder_of(recipe)
    by_id = {question.id: question for question in questions}
    manner, sizes = _probe(recipe, asked, questions[0], UsageMeter()), deque[int]()
    reader = ReaderContext("scored", "raw", _token_lookup(recipe), frozenset(manner.ends))

    def rows() -> Iterator[tuple[str, Chain]]:
        for batch in batches:
            sizes.append(len(batch))
            for chain in batch:
                prompt = prompt_of(by_id[chain.question])
                yield prompt.plain + prompt.lead, chain

    made: list[Chain] = []
    for chain in score_texts(asked, manner, reader, rows()):
        made.append(chain)
        if len(made) == sizes[0]:
            sizes.popleft()
            yield made
            made = []


def _open_reader(recipe: Recipe, asked: ServerSettings, manner: Capabilities) -> ReaderContext:
    ends = frozenset(manner.ends)
    return ReaderContext(asked.source, manner.semantics, _token_lookup(recipe), ends, asked.learn, bool(asked.stop))  # type: ignore[arg-type]


def _capabilities_from_json(row: Mapping[str, Any]) -> Capabilities:
    values: dict[str, Any] = {name: tuple(value) if isinstance(value, list) else value for name, value in row.items()}
    return Capabilities(**values)


def _token_lookup(recipe: Recipe) -> Callable[[int, int], Piece] | None:
    """What an id means, by the teacher's tokenizer if the recipe names it."""
    if recipe.teacher.server.tokenizer is None:
        return None
    from potstill.recipe import find_path

    opened = tokenization.load_tokenizer(find_path(recipe, recipe.teacher.server.tokenizer, "teacher.server.tokenizer"))
    return opened.candidate


__all__ = [
    "budget_error",
    "forecast",
    "is_complete",
    "open_batch",
    "probe_server",
    "sample",
    "sample_from_recipe",
    "score_batches",
    "score_texts",
    "settings_from_recipe",
]
