"""The teacher `openai`: a model behind an OpenAI-compatible server, as a recipe describes it.

>>> recipe = Recipe(name="mine", teacher={"kind": "openai", "model": "m", "samples": 3})
>>> settings_from_recipe(recipe).urls, OpenAITeacher(recipe).samples_per_request
(('http://localhost:8000/v1',), 3)

    teacher = OpenAITeacher(recipe)
    server = teacher.probe(questions)           # what the server accepts and returns: a small request or two
    for chains in teacher.sample(questions, SamplingState(server=server)): ...
"""

from __future__ import annotations

import asyncio
import dataclasses
import time
from collections import deque
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Final
from urllib.parse import urlsplit

from potstill import progress, tokenization
from potstill.errors import UserError
from potstill.recipe import Recipe, find_path, flatten_keys
from potstill.records import Chain, Question
from potstill.storage.segments import ChainKey, Shard
from potstill.teachers.openai_api import capabilities as probing
from potstill.teachers.openai_api import scoring
from potstill.teachers.openai_api.batch_api import Batch, run_tag
from potstill.teachers.openai_api.budget import Budget, forecast
from potstill.teachers.openai_api.client import Client, Reply, read_api_key
from potstill.teachers.openai_api.request import Capabilities, ServerSettings, iter_requests
from potstill.teachers.openai_api.scheduler import Scheduler
from potstill.teachers.openai_api.token_entries import Piece, ReaderContext
from potstill.teachers.protocol import PromptBuilder, SamplingState, Scorer, load_prompt_builder
from potstill.teachers.usage import FirstChainsCheck, UsageMeter

FORECAST_SECONDS: Final = 60.0  # after this time the remaining time can be estimated
FIXED_CAPABILITIES: Final = ("n", "whole", "bytes", "semantics", "left_out")  # chains of one run must agree on these
FREE_SERVER_KEYS: Final = ("urls", "key", "samples_per_request", "concurrency", "timeout", "patience", "refused")
HARD_TARGETS_NOTE: Final = (
    "The teacher showed no probabilities of its words: the student learnt its texts as they are, each word as certain"
    " (hard targets)."
)


class OpenAITeacher(Scorer):
    """The teacher `openai`. As a scorer, it uses the model of `teacher.score` on the same server."""

    metered = True
    generates = True

    def __init__(self, recipe: Recipe, *, as_scorer: bool = False) -> None:
        super().__init__(recipe)
        self.as_scorer, score = as_scorer, self.recipe.teacher.score
        self.model = score.model if as_scorer and score is not None else self.recipe.teacher.model
        self.samples_per_request = min(self.recipe.teacher.samples, self.recipe.teacher.server.samples_per_request)

    @property
    def settings(self) -> ServerSettings:
        """Raises UserError for an invalid address."""
        return settings_from_recipe(self.recipe, self.model, self.source)

    # --- sampling

    def probe(
        self, questions: Sequence[Question], before: Mapping[str, Any] | None = None, usage: UsageMeter | None = None
    ) -> dict[str, Any]:
        settings = self.settings
        found = self._probe(settings, questions[0], usage or UsageMeter())
        row = dataclasses.asdict(found)
        row = {name: list(value) if isinstance(value, tuple) else value for name, value in row.items()}
        if before is None:
            progress.print_line(f"teacher   {probing.describe(settings, found)}", "dim")
            return row
        changed = [f"{name}: {before[name]} -> {row[name]}" for name in FIXED_CAPABILITIES if before[name] != row[name]]
        if changed:
            raise UserError(
                "the server is not the one with which this run began",
                code="E-teacher-server-changed",
                where=settings.urls[0],
                found="; ".join(changed),
                hint="start the old server again, or give the recipe another name: this run keeps its chains",
            )
        return dict(before)

    def _probe(self, settings: ServerSettings, question: Question, usage: UsageMeter) -> Capabilities:
        has_stop_strings, reasoning = bool(settings.stop), settings.reasoning
        context = ReaderContext("probe", "unknown", _open_lookup(self.recipe), frozenset(), reasoning, has_stop_strings)
        prompt = load_prompt_builder(self.recipe)(question)

        def charge(body: dict[str, Any], reply: Reply) -> None:
            usage.requests += 1
            max_tokens = body.get("max_tokens", probing.PROBE_MAX_TOKENS)
            budget = Budget(dataclasses.replace(settings, max_tokens=max_tokens), usage)
            budget.settle((0.0, 0.0), prompt, body.get("n", 1), reply)

        async def run() -> Capabilities:
            client = Client(settings)
            client.on_reply = charge
            try:
                return await probing.probe(client, settings, prompt, context)
            finally:
                await client.close()

        return asyncio.run(run())

    def sample(self, questions: Sequence[Question], state: SamplingState | None = None) -> Iterator[list[Chain]]:
        state = state or SamplingState()
        server = state.server if state.server is not None else self.probe(questions, usage=state.usage)
        settings = split_budget(self.settings, state.shard, state.usage.settled)
        capabilities = parse_capabilities(server)
        return sample(
            settings,
            capabilities,
            self._context(settings, capabilities),
            state.usage,
            state.shard.of(questions),
            load_prompt_builder(self.recipe),
            state.stored,
            state.right,
            state.first_chains,
        )

    def is_complete(self, questions: Sequence[Question], state: SamplingState) -> bool:
        settings, build_prompt = self.settings, load_prompt_builder(self.recipe)
        requests = iter_requests(settings, settings.samples, questions, build_prompt, state.stored, state.right)
        return next(requests, None) is None

    def budget_error(self, questions: Sequence[Question], state: SamplingState) -> UserError | None:
        settings = split_budget(self.settings, state.shard, state.usage.settled)
        width, build_prompt = settings.samples_per_request, load_prompt_builder(self.recipe)
        questions = state.shard.of(questions)
        first = next(iter_requests(settings, width, questions, build_prompt, state.stored, state.right), None)
        budget = Budget(settings, state.usage)
        probe_cost = probing.PROBE_REQUESTS, probing.PROBE_MAX_TOKENS
        if first is None or budget.allows_probe(first.prompt, len(first.indices), *probe_cost):
            return None
        return budget.spent_error()

    def open_batch(self, questions: Sequence[Question], server: Mapping[str, Any], identity: Any) -> Batch:
        """What writing and reading batch files needs. identity: what determines the chains of the run, as JSON."""
        settings, capabilities = self.settings, parse_capabilities(server)
        context, build_prompt = self._context(settings, capabilities), load_prompt_builder(self.recipe)
        return Batch(run_tag(identity, server), settings, capabilities, context, questions, build_prompt)

    def _context(self, settings: ServerSettings, capabilities: Capabilities) -> ReaderContext:
        return ReaderContext(
            settings.source,
            capabilities.semantics,  # type: ignore[arg-type]
            _open_lookup(self.recipe),
            frozenset(capabilities.ends),
            settings.reasoning,
            bool(settings.stop),
        )

    # --- scoring

    def score(self, questions: Sequence[Question], batches: Iterable[list[Chain]]) -> Iterator[list[Chain]]:
        settings, build_prompt = self.settings, load_prompt_builder(self.recipe)
        by_id = {question.id: question for question in questions}
        capabilities, sizes = self._probe(settings, questions[0], UsageMeter()), deque[int]()
        context = ReaderContext("scored", "raw", _open_lookup(self.recipe), frozenset(capabilities.ends))

        def rows() -> Iterator[tuple[str, Chain]]:
            for batch in batches:
                sizes.append(len(batch))
                for chain in batch:
                    prompt = build_prompt(by_id[chain.question])
                    yield prompt.plain + prompt.lead, chain

        scored: list[Chain] = []
        for chain in score_texts(settings, capabilities, context, rows()):
            scored.append(chain)
            if len(scored) == sizes[0]:
                sizes.popleft()
                yield scored
                scored = []

    # --- identity, checks, forecasts

    def input_files(self) -> dict[str, str]:
        tokenizer = self.recipe.teacher.server.tokenizer
        files = {} if tokenizer is None else {"teacher.server.tokenizer": tokenizer}
        return {**super().input_files(), **files}

    def inputs(self) -> dict[str, str]:
        inputs = super().inputs()
        if self.recipe.teacher.server.tokenizer is not None:
            inputs["version of tokenizers"] = str(tokenization.VERSION)
        return inputs

    def free_keys(self) -> set[str]:
        """Where a server is and how many requests it gets at once change no chain; its other keys do."""
        keys = super().free_keys() - set(flatten_keys(self.recipe, "teacher.server"))
        if not self.as_scorer:
            keys -= set(flatten_keys(self.recipe, "teacher.enough"))
        return keys | {f"teacher.server.{name}" for name in FREE_SERVER_KEYS}

    def checks(self, *, weights: bool = True) -> Iterator[Callable[[], object]]:
        if not self.as_scorer:
            yield lambda: load_prompt_builder(self.recipe)
        yield self._check_server

    def _check_server(self) -> None:
        """Raises UserError for an invalid address, a missing key, or a missing tokenizer."""
        read_api_key(self.settings)
        _open_lookup(self.recipe)

    def forecast(self, questions: Sequence[Question]) -> list[str]:
        teacher = self.recipe.teacher
        if teacher.prompt is not None and self.find_path_or_none(teacher.prompt, "teacher.prompt") is None:
            return [
                f"teacher           openai: {teacher.prompt} does not exist; the run would stop at the stage sample"
            ]
        build_prompt, budget = load_prompt_builder(self.recipe), teacher.budget
        work = forecast(self.settings, [build_prompt(question) for question in questions])
        stores = (
            f"{teacher.top_logprobs} log-probabilities per token" if teacher.top_logprobs else "texts: hard targets"
        )
        lines = [
            f"teacher           openai: {teacher.model} at {', '.join(teacher.server.urls)} (not contacted yet)",
            f"  requests        {work.questions} questions x {teacher.samples} = {work.chains} chains"
            f" in {work.requests} requests, if n is honoured",
            f"  tokens          about {work.prompt_tokens} in prompts, at most {work.completion_tokens} in answers",
            f"  stores          {stores}, temperature {teacher.temperature}",
        ]
        prices = budget.prices
        if prices.prompt or prices.completion:
            per_million = f"at {prices.prompt:g} and {prices.completion:g}"
            lines.append(f"  cost            at most about {work.money:.2f}, {per_million} per million tokens")
        if budget.tokens or budget.money:
            limits = [f"{budget.tokens} tokens"] if budget.tokens else []
            limits += [f"{budget.money:g} in money"] if budget.money else []
            lines.append(f"  budget          {', '.join(limits)}")
        return [*lines, "  time            estimated after the first minute of sampling"]

    def prompt_builder(self) -> PromptBuilder | None:
        return load_prompt_builder(self.recipe)

    def report_notes(self) -> list[str]:
        return [HARD_TARGETS_NOTE] if self.recipe.teacher.top_logprobs == 0 else []


def settings_from_recipe(recipe: Recipe, model: str | None = None, source: str = "openai") -> ServerSettings:
    """The settings of a recipe's server. model: replaces `teacher.model`. Raises UserError for an invalid address."""
    teacher, server, budget = recipe.teacher, recipe.teacher.server, recipe.teacher.budget
    model = model or teacher.model
    assert model is not None
    for url in server.urls:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.username or parts.password:
            raise UserError(
                "not the address of a server",
                code="E-teacher-invalid-url",
                where="teacher.server.urls",
                found="an address with a name and a password" if parts.password else url,
                hint="write http://HOST:PORT/v1; the key comes from the environment (teacher.server.key)",
            )
    return ServerSettings(
        model=model,
        urls=tuple(url.rstrip("/") for url in server.urls),
        api=server.api,
        key=server.key,
        samples=teacher.samples,
        temperature=teacher.temperature,
        max_tokens=teacher.max_tokens,
        top_logprobs=teacher.top_logprobs,
        seed=recipe.seed,
        source=source,
        system=server.system,
        stop=tuple(server.stop),
        samples_per_request=server.samples_per_request,
        enough=teacher.enough,
        reasoning=server.reasoning,
        extra=server.extra,
        concurrency=server.concurrency,
        timeout=server.timeout,
        patience=server.patience,
        refused=server.refused,
        budget_tokens=budget.tokens,
        budget_money=budget.money,
        prices=(budget.prices.prompt, budget.prices.completion),
        spent=budget.spent,
    )


def split_budget(
    settings: ServerSettings, shard: Shard, settled: Mapping[str, float] = MappingProxyType({})
) -> ServerSettings:
    """The settings of a shard: it gets an equal part of the budget that `settled`, the usage before the split, left."""
    tokens, money = settings.budget_tokens, settings.budget_money
    settled_tokens = int(settled.get("prompt_tokens", 0) + settled.get("completion_tokens", 0))
    return dataclasses.replace(
        settings,
        budget_tokens=None if tokens is None else max(0, tokens - settled_tokens) // shard.count,
        budget_money=None if money is None else max(0.0, money - settled.get("money", 0.0)) / shard.count,
    )


def parse_capabilities(row: Mapping[str, Any]) -> Capabilities:
    """The capabilities in `server.json`."""
    values: dict[str, Any] = {name: tuple(value) if isinstance(value, list) else value for name, value in row.items()}
    return Capabilities(**values)


def _open_lookup(recipe: Recipe) -> Callable[[int, int], Piece] | None:
    """Token id and position -> the token's bytes, if the recipe names the tokenizer of the served model."""
    path = recipe.teacher.server.tokenizer
    if path is None:
        return None
    return tokenization.load_tokenizer(find_path(recipe, path, "teacher.server.tokenizer")).candidate


def sample(
    settings: ServerSettings,
    capabilities: Capabilities,
    context: ReaderContext,
    usage: UsageMeter,
    questions: Sequence[Question],
    build_prompt: PromptBuilder,
    stored: Container[ChainKey] = (),
    right: Mapping[str, int] | None = None,
    first_chains: FirstChainsCheck | None = None,
) -> Iterator[list[Chain]]:
    """The chains of any server, as they arrive. The event loop runs only while the caller waits for a batch."""
    with asyncio.Runner() as runner:
        client = Client(settings)
        scheduler = Scheduler(
            client, settings, capabilities, context, usage, questions, build_prompt, stored, right or {}, first_chains
        )
        started, has_forecast = time.monotonic(), False
        try:
            while runner.run(scheduler.wait()):
                yield scheduler.take()
                if not has_forecast and time.monotonic() - started > FORECAST_SECONDS:
                    has_forecast = True
                    progress.print_line(_time_left_line(settings, usage, len(questions)), "dim")
            if usage.refused:
                progress.print_line(f"the teacher refused {len(usage.refused)} questions, which are skipped", "yellow")
        finally:
            runner.run(_close(scheduler, client))


async def _close(scheduler: Scheduler, client: Client) -> None:
    await scheduler.close()
    await client.close()


def _time_left_line(settings: ServerSettings, usage: UsageMeter, questions: int) -> str:
    rate = usage.chains / max(usage.seconds, 1e-9)
    left = max(0.0, questions * settings.samples - usage.chains)
    minutes = left / max(rate, 1e-9) / 60
    money = f", remaining cost {usage.money / max(usage.chains, 1) * left:.2f}" if usage.money else ""
    return f"after the first minute: {rate:.1f} chains/s, about {minutes:.0f} min left{money}"


def score_texts(
    settings: ServerSettings,
    capabilities: Capabilities,
    context: ReaderContext,
    rows: Iterable[tuple[str, Chain]],
    *,
    method: scoring.ScoringMethod | None = None,
) -> Iterator[Chain]:
    """Existing chains with the server's log-probabilities, in the order of `rows`: (prompt as the model sees it, chain).

    method  how the server scores; None finds it with the first row
    Raises UserError if the server cannot score, or does not answer.
    """
    with asyncio.Runner() as runner:
        client = Client(settings)
        try:
            yield from scoring.score_all(runner, client, settings, capabilities, context, rows, method)
        finally:
            runner.run(client.close())
