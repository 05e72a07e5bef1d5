"""The teacher `openai` of a recipe: a model behind an OpenAI-compatible server.

>>> recipe = Recipe(name="mine", teacher={"kind": "openai", "model": "m", "samples": 3})
>>> settings_from_recipe(recipe).urls, OpenAITeacher(recipe).samples_per_request
(('http://localhost:8000/v1',), 3)

    teacher = OpenAITeacher(recipe)
    server = teacher.probe(questions)           # what the server accepts and returns, from a few small requests
    for chains in teacher.sample(questions, SamplingState(server=server)): ...
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import tempfile
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from potstill import progress, thoughts, tokenization
from potstill.errors import UserError
from potstill.recipe import Recipe, flatten_keys
from potstill.records import Chain, Question
from potstill.storage.flat_chains import FlatChain
from potstill.teachers.openai_api import capabilities as probing
from potstill.teachers.openai_api import stored_scores
from potstill.teachers.openai_api.batch_api import Batch, FailedResults, run_tag
from potstill.teachers.openai_api.client import Client, Reply, find_proxy, read_api_key
from potstill.teachers.openai_api.limits import BUDGET_SPENT, Budget, compute_cost, estimate_tokens
from potstill.teachers.openai_api.request import Capabilities, ServerSettings, iter_requests
from potstill.teachers.openai_api.scheduler import Scheduler
from potstill.teachers.openai_api.settings import (
    open_lookup,
    parse_capabilities,
    settings_from_recipe,
    split_budget,
)
from potstill.teachers.openai_api.stored_scores import StoredScorer
from potstill.teachers.openai_api.token_entries import ReaderContext
from potstill.teachers.protocol import (
    PromptBuilder,
    SamplingState,
    Scorer,
    UsageMeter,
    describe_chains,
    load_prompt_builder,
    missing_chains,
)

GROUP_REQUESTS: Final = 8  # texts that are scored before the next ones, for each concurrent request
FORECAST_SECONDS: Final = 60.0  # after this time, the remaining time is estimated
FIXED_CAPABILITIES: Final = ("n", "whole", "bytes", "semantics", "left_out")  # these may not change during a run
FREE_SERVER_KEYS: Final = ("urls", "key", "samples_per_request", "concurrency", "timeout", "patience", "refused")
HARD_TARGETS_NOTE: Final = (
    "The teacher returned no probabilities, so the student learnt every word of its texts as certain (hard targets)."
)


class OpenAITeacher(Scorer):
    """The teacher `openai`. A scorer uses the model of `teacher.score` on the same server."""

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

    # --- Sampling

    def probe(
        self, questions: Sequence[Question], before: Mapping[str, Any] | None = None, usage: UsageMeter | None = None
    ) -> dict[str, Any]:
        settings = self.settings
        capabilities = self._probe(settings, questions[0], usage or UsageMeter())
        row = dataclasses.asdict(capabilities)
        row = {name: list(value) if isinstance(value, tuple) else value for name, value in row.items()}
        if before is None:
            progress.print_line(f"teacher   {probing.describe(settings, capabilities)}", "dim")
            return row
        changed = [f"{name}: {before[name]} -> {row[name]}" for name in FIXED_CAPABILITIES if before[name] != row[name]]
        if changed:
            raise UserError(
                "this is another server than at the start of the run",
                code="E-teacher-server-changed",
                where=settings.urls[0],
                found="; ".join(changed),
                hint="start the old server again, or give the recipe another name: this run keeps its chains",
            )
        return dict(before)

    def _probe(self, settings: ServerSettings, question: Question, usage: UsageMeter) -> Capabilities:
        context, prompt = self._context(settings, Capabilities(semantics="unknown")), self.prompt_builder()(question)
        context = dataclasses.replace(context, source="probe")

        def charge(body: dict[str, Any], reply: Reply) -> None:
            usage.requests += 1
            max_tokens = body.get("max_tokens", probing.PROBE_MAX_TOKENS)
            budget = Budget(dataclasses.replace(settings, max_tokens=max_tokens), usage)
            budget.settle((0.0, 0.0), prompt, body.get("n", 1), reply)
            usage.on_settle()

        async def run() -> Capabilities:
            client = Client(settings)
            client.on_reply = charge
            try:
                return await probing.probe(client, settings, prompt, context)
            finally:
                await client.close()

        return asyncio.run(run())

    def sample(self, questions: Sequence[Question], state: SamplingState | None = None) -> Iterator[list[Chain]]:
        with contextlib.closing(self.sample_rows(questions, state)) as batches:
            for rows in batches:
                yield [row.as_chain() for row in rows]

    def sample_rows(
        self, questions: Sequence[Question], state: SamplingState | None = None
    ) -> Generator[list[FlatChain]]:
        state = state or SamplingState()
        server = state.server if state.server is not None else self.probe(questions, usage=state.usage)
        settings, capabilities = self._split_settings(state), parse_capabilities(server)
        context = self._context(settings, capabilities)
        return sample(settings, capabilities, context, state.shard.of(questions), self.prompt_builder(), state)

    def _split_settings(self, state: SamplingState) -> ServerSettings:
        return split_budget(self.settings, state.shard, state.usage.settled)

    def is_complete(self, questions: Sequence[Question], state: SamplingState) -> bool:
        settings, build_prompt = self.settings, self.prompt_builder()
        requests = iter_requests(settings, settings.samples, questions, build_prompt, state.stored, state.right)
        return next(requests, None) is None

    def budget_error(self, questions: Sequence[Question], state: SamplingState) -> UserError | None:
        settings, questions = self._split_settings(state), state.shard.of(questions)
        width, build_prompt = settings.samples_per_request, self.prompt_builder()
        requests = iter_requests(settings, width, questions, build_prompt, state.stored, state.right)
        first, budget = next(requests, None), Budget(settings, state.usage)
        probe_cost = probing.PROBE_REQUESTS, probing.PROBE_MAX_TOKENS
        if first is None or budget.allows_probe(first.prompt, len(first.indices), *probe_cost):
            return None
        return budget.spent_error()

    def open_batch(
        self,
        questions: Sequence[Question],
        server: Mapping[str, Any],
        identity: Any,
        failed: Iterable[Mapping[str, Any]],
        usage: UsageMeter,
    ) -> Batch:
        settings, capabilities = self.settings, parse_capabilities(server)
        context, tag = self._context(settings, capabilities), run_tag(identity, server)
        failed_results = FailedResults.from_rows(failed)
        return Batch(tag, settings, capabilities, context, questions, self.prompt_builder(), failed_results, usage)

    def _context(self, settings: ServerSettings, capabilities: Capabilities) -> ReaderContext:
        return ReaderContext(
            settings.source,
            capabilities.semantics,  # type: ignore[arg-type]
            open_lookup(self.recipe),
            frozenset(capabilities.ends),
            settings.reasoning,
            bool(settings.stop),
        )

    # --- Scoring

    def score(
        self, questions: Sequence[Question], batches: Iterable[list[Chain]], state: SamplingState | None = None
    ) -> Iterator[list[Chain]]:
        state = state or SamplingState()
        by_id, build_prompt = {question.id: question for question in questions}, self.prompt_builder()
        missing = ([chain for chain in batch if chain.key not in state.stored] for batch in batches)
        with contextlib.ExitStack() as stack:
            folder = state.scores or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="potstill-scores-")))
            scorer = stack.enter_context(
                StoredScorer(
                    self.recipe,
                    folder=folder,
                    usage=contextlib.nullcontext(state.usage),
                    settings=self._split_settings(state),
                    shard=state.shard,
                    may_seal=True,
                )
            )
            for chains in _in_groups(missing, GROUP_REQUESTS * self.settings.concurrency * len(self.settings.urls)):
                rows = [(build_prompt(by_id[chain.question]), chain) for chain in chains]
                try:
                    scored = scorer.score(rows)
                except UserError as error:
                    if scored := scorer.read_stored(rows):
                        yield scored
                    if error.code == BUDGET_SPENT and self.settings.spent == "seal":
                        return
                    raise
                yield scored

    # --- Identity, checks, forecasts

    def input_files(self) -> dict[str, str]:
        tokenizer = self.recipe.teacher.server.tokenizer
        return super().input_files() | ({} if tokenizer is None else {"teacher.server.tokenizer": tokenizer})

    def inputs(self) -> dict[str, str]:
        versions = {"version of scores": str(stored_scores.VERSION)} if self.as_scorer else {}
        if self.recipe.teacher.server.api == "chat" and not self.as_scorer:
            versions["version of thoughts"] = str(thoughts.READING_VERSION)
        if self.recipe.teacher.server.tokenizer is not None:
            versions["version of tokenizers"] = str(tokenization.VERSION)
        return super().inputs() | versions

    def free_keys(self) -> set[str]:
        """Recipe keys that may change during a run. The address and the concurrency of a server change no chain; the
        other keys of a server do."""
        keys = super().free_keys() - set(flatten_keys(self.recipe, "teacher.server"))
        if not self.as_scorer:
            keys -= set(flatten_keys(self.recipe, "teacher.enough"))
        return keys | {f"teacher.server.{name}" for name in FREE_SERVER_KEYS}

    def checks(self, *, weights: bool = True) -> Iterator[Callable[[], object]]:
        if not self.as_scorer:
            yield self.prompt_builder
        else:
            yield lambda: stored_scores.check_recipe(self.recipe)
        yield self._check_server

    def _check_server(self) -> None:
        """Raises UserError for an invalid address, a missing key, an unusable proxy, or a missing tokenizer."""
        read_api_key(self.settings)
        for url in self.settings.urls:
            find_proxy(url)
        open_lookup(self.recipe)

    def forecast(
        self, questions: Sequence[Question], stored: Mapping[str, int] | None = None, scores: Path | None = None
    ) -> list[str]:
        teacher = self.recipe.teacher
        if teacher.prompt is not None and self.find_path_or_none(teacher.prompt, "teacher.prompt") is None:
            return [
                f"teacher           openai: {teacher.prompt} does not exist; the run would stop at the stage sample"
            ]
        build_prompt, budget, settings = self.prompt_builder(), teacher.budget, self.settings
        missing = missing_chains(questions, teacher.samples, stored)
        chains, requests = sum(missing), [-(-number // settings.samples_per_request) for number in missing]
        sizes = (
            estimate_tokens(build_prompt(question)) * number
            for question, number in zip(questions, requests, strict=True)
            if number
        )
        prompt_tokens = round(sum(sizes))
        written = chains * teacher.max_tokens
        stores = f"{teacher.top_logprobs} log-probabilities per token"
        lines = [
            f"teacher           openai: {teacher.model} at {', '.join(teacher.server.urls)} (not contacted yet)",
            f"  requests        {describe_chains(questions, teacher.samples, stored)}"
            f" in {sum(requests)} requests, if n is honoured",
            f"  tokens          about {prompt_tokens} in prompts, at most {written} in answers",
            f"  stores          {stores if teacher.top_logprobs else 'texts: hard targets'}, temperature"
            f" {teacher.temperature}",
        ]
        prices = budget.prices
        if prices.prompt or prices.completion:
            money = compute_cost(settings, prompt_tokens, written)
            per_million = f"at {prices.prompt:g} and {prices.completion:g} per million tokens"
            lines.append(f"  cost            at most about {money:.2f}, {per_million}")
        else:
            lines.append("  cost            unknown: no prices were given (teacher.budget.prices)")
        if budget.tokens or budget.money:
            limits = [f"{budget.tokens} tokens"] if budget.tokens else []
            limits += [f"{budget.money:g} in money"] if budget.money else []
            lines.append(f"  budget          {', '.join(limits)}")
        return [*lines, "  time            estimated after the first minute of sampling"]

    def forecast_scores(self, rows: Iterable[tuple[Question, str]], scores: Path | None = None) -> list[str]:
        build_prompt = self.prompt_builder()
        pairs = [(build_prompt(question), text) for question, text in rows]
        forecast = stored_scores.forecast_texts(self.recipe, self.settings, pairs, scores)
        return stored_scores.describe_forecast(self.recipe, forecast)

    def prompt_builder(self) -> PromptBuilder:
        return load_prompt_builder(self.recipe)

    def report_notes(self) -> list[str]:
        return [HARD_TARGETS_NOTE] if self.recipe.teacher.top_logprobs == 0 else []


def _in_groups(batches: Iterable[list[Chain]], size: int) -> Iterator[list[Chain]]:
    """The chains of whole batches, in lists of at least `size`, except the last one."""
    group: list[Chain] = []
    for batch in batches:
        group += batch
        if len(group) >= size:
            yield group
            group = []
    if group:
        yield group


def sample(
    settings: ServerSettings,
    capabilities: Capabilities,
    context: ReaderContext,
    questions: Sequence[Question],
    build_prompt: PromptBuilder,
    state: SamplingState,
) -> Generator[list[FlatChain]]:
    """The chains of all servers, in batches as they arrive. The event loop runs only while the caller waits for a batch."""
    usage = state.usage
    with asyncio.Runner() as runner:
        scheduler = Scheduler(Client(settings), settings, capabilities, context, questions, build_prompt, state)
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
            runner.run(scheduler.close())


def _time_left_line(settings: ServerSettings, usage: UsageMeter, questions: int) -> str:
    rate = usage.chains / max(usage.seconds, 1e-9)
    left = max(0.0, questions * settings.samples - usage.chains)
    minutes = left / max(rate, 1e-9) / 60
    money = f", remaining cost {usage.money / max(usage.chains, 1) * left:.2f}" if usage.money else ""
    return f"after the first minute: {rate:.1f} chains/s, about {minutes:.0f} min left{money}"
