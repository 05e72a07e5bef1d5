"""Scores of texts from a server. Every score is stored before it is used, and no text is scored twice.

    with StoredScorer(recipe, folder=run_dir / "scores", usage=open_usage(run_dir, ledger.SCORES)) as scorer:
        chains = scorer.score([(prompt, chain), ...])       # as `local_model.score_chains` returns them

`scores.jsonl` in the folder has the scores of each text (see `storage.scores`), and `scorer.json` describes the server and
the method. Each shard of a stage has a file of its own, `scores-0001-of-0002.jsonl`, and reads those of the others. A text
that is stored costs nothing, also after a crash. The server is first contacted for a text that is not stored, and must then
be the server that scored the others.

Budget and ledger work as for sampling: the maximum cost of a request is reserved before it is sent, what the server bills is
recorded when its response arrives, and no request may exceed the budget. A broken or unusable response counts as spent, and
its text is scored again.

    >>> recipe = Recipe(name="mine", teacher={"kind": "openai", "model": "m", "budget": {"prices": {"prompt": 2.0}}})
    >>> forecast = forecast_scoring(recipe, texts=1000, max_tokens=100, prompt_bytes=400)
    >>> forecast.prompt_tokens, forecast.completion_tokens, forecast.money
    (208000, 1000, 0.416)
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any, Final, NamedTuple, Self

from potstill import storage, tokenization
from potstill.errors import UserError
from potstill.recipe import Recipe, find_path
from potstill.records import Chain, Prompt, Turn
from potstill.storage import ledger, run_folder
from potstill.storage.scores import KEY_CHARS, ScoreStore
from potstill.storage.segments import UNSHARDED, Shard
from potstill.teachers.openai_api import capabilities as probing
from potstill.teachers.openai_api.budgeted_client import BudgetedClient
from potstill.teachers.openai_api.limits import TOKENS_PER_BYTE, compute_cost
from potstill.teachers.openai_api.request import Capabilities, ServerSettings
from potstill.teachers.openai_api.score_requests import ScoreRequests, TextToScore, scoring_context
from potstill.teachers.openai_api.scoring import (
    CANNOT_SCORE,
    INCONSISTENT_SCORES,
    MethodFinder,
    ScoringMethod,
    build_scoring_request,
    has_next_token,
    read_prompt_entries,
)
from potstill.teachers.openai_api.settings import open_lookup, settings_from_recipe
from potstill.teachers.openai_api.token_entries import ReaderContext
from potstill.teachers.protocol import UsageMeter

VERSION: Final = 1  # of the scores of a text; other versions are other keys
SERVER_FILE: Final = "scorer.json"
FIXED: Final = ("model", "top_logprobs", "tokenizer", "served", "ids")  # these may not change during a run
LOCK_SECONDS: Final = 60.0  # for which another shard may take to write SERVER_FILE
MAX_PROBES: Final = 3  # times that the method is sought, because a fault may hide it
MAX_END_TEXTS: Final = 3  # texts of up to teacher.max_tokens tokens, to see how the server names the end
TOKENIZER_KEY: Final = "teacher.server.tokenizer"
SAMPLE_TEXT: Final = "The answer is 4."  # tests the method if all texts are empty


class ScoringForecast(NamedTuple):
    """The cost of scoring texts: tokens, and money by the recipe's prices (0 without prices).

    texts   number of texts that are not scored yet
    stored  number of other texts, whose scores are stored
    bound   whether the numbers are at most the real ones, because the texts do not exist yet
    """

    texts: int
    prompt_tokens: int
    completion_tokens: int
    money: float
    stored: int = 0
    bound: bool = True


def forecast_scoring(recipe: Recipe, *, texts: int, max_tokens: int, prompt_bytes: float) -> ScoringForecast:
    """What it costs at most, apart from failed requests, to score `texts` texts of at most `max_tokens` tokens.

    prompt_bytes  mean size of a prompt
    A server reads prompt and text as a prompt, and generates one token. The sizes of prompts are converted to tokens at
    the rate of English, so the numbers are estimates.
    """
    prompt_tokens = round(texts * (prompt_bytes * TOKENS_PER_BYTE + max_tokens))
    money = compute_cost(settings_from_recipe(recipe), prompt_tokens, texts)
    return ScoringForecast(texts, prompt_tokens, texts, money)


def forecast_texts(
    recipe: Recipe, settings: ServerSettings, rows: Iterable[tuple[Prompt, str]], folder: Path | None
) -> ScoringForecast:
    """What it costs, apart from failed requests and those that test the server, to score existing texts.

    settings  the settings of the server
    rows      pairs of the model's prompt and the text
    folder    folder of the stored scores, which cost nothing; None: no score is stored
    Sizes are converted to tokens at the rate of English, so the numbers are estimates. Raises UserError as `StoredScorer`
    does.
    """
    texts = dict.fromkeys((prompt.plain + prompt.lead, text) for prompt, text in rows)
    left = list(texts)
    if folder is not None and texts:
        usage = contextlib.nullcontext(UsageMeter())
        left = StoredScorer(recipe, folder=folder, usage=usage, settings=settings, may_seal=True).list_missing(texts)
    size = sum(len((prompt + text).encode("utf-8", "replace")) for prompt, text in left)
    forecast = forecast_scoring(recipe, texts=len(left), max_tokens=0, prompt_bytes=size / max(1, len(left)))
    return forecast._replace(stored=len(texts) - len(left), bound=False)


def describe_forecast(recipe: Recipe, forecast: ScoringForecast) -> list[str]:
    """Lines about a forecast for `potstill run --dry-run`."""
    teacher, budget = recipe.teacher, recipe.teacher.budget
    model = teacher.model if teacher.score is None else teacher.score.model
    first = f"scores            openai: {model} at {', '.join(teacher.server.urls)} (not contacted yet)"
    stored = f"the scores of {forecast.stored} texts are stored" if forecast.stored else ""
    if stored and not forecast.texts:
        return [first, f"  requests        none: {stored}"]
    about = "at most about" if forecast.bound else "about"
    lines = [
        first,
        f"  requests        {forecast.texts} texts, each once; and a few requests that test the server",
        *([f"                  {stored}"] if stored else []),
        f"  tokens          {about} {forecast.prompt_tokens} in prompts and texts, {forecast.completion_tokens} generated",
        f"  stores          {teacher.top_logprobs} log-probabilities per token",
    ]
    if any((budget.prices.prompt, budget.prices.completion)):
        per_million = f"at {budget.prices.prompt:g} and {budget.prices.completion:g} per million tokens"
        lines.append(f"  cost            {about} {forecast.money:.2f}, {per_million}")
    else:
        lines.append("  cost            unknown: no prices were given (teacher.budget.prices)")
    limits = [f"{budget.tokens} tokens"] if budget.tokens else []
    limits += [f"{budget.money:g} in money"] if budget.money else []
    return lines + ([f"  budget          {', '.join(limits)}"] if limits else [])


def scores_file(shard: Shard = UNSHARDED) -> str:
    """The name of a shard's file of scores."""
    return "scores.jsonl" if shard == UNSHARDED else f"scores-{shard.number:04}-of-{shard.count:04}.jsonl"


@contextlib.contextmanager
def open_usage(run_dir: Path, source: str) -> Iterator[UsageMeter]:
    """The usage of requests that have a ledger of their own.

    source  name of the ledger. The budget limits what this ledger counts
    """
    with ledger.LedgerWriter(ledger.ledger_path(run_dir, source=source)) as writer:
        usage = UsageMeter(before=ledger.total_usage(run_dir, source))
        usage.record_in(writer)
        try:
            yield usage
        finally:
            run_folder.append_log(run_dir, "scored", **usage.as_json())


def check_recipe(recipe: Recipe) -> None:
    """Raise UserError for a recipe whose teacher's server can give no scores."""
    if not recipe.teacher.top_logprobs:
        what, hint = "scores need at least one log-probability per token", "set it to 20, for example"
        raise UserError(what, code="E-teacher-no-scores", where="teacher.top_logprobs", found=0, hint=hint)


class StoredScorer:
    """Scores texts through the server of a recipe's teacher. A context manager.

    recipe    the section `teacher` names the server, top_logprobs and the budget
    folder    folder of the stored scores
    usage     entered when the server is first contacted. Gives the usage to which the cost of the requests is added
    settings  the settings of the server, with this process's part of the budget; None: those of the recipe
    shard     the shard whose file new scores are appended to. Only one process may do so at a time
    may_seal  whether the run can continue when the budget is spent
    """

    def __init__(
        self,
        recipe: Recipe,
        *,
        folder: Path,
        usage: AbstractContextManager[UsageMeter],
        settings: ServerSettings | None = None,
        shard: Shard = UNSHARDED,
        may_seal: bool = False,
    ) -> None:
        """Raises UserError if the folder has scores of another model, or for a recipe that does not fit."""
        if recipe.teacher.budget.spent == "seal" and not may_seal:
            what, hint = "training cannot continue without scores, as seal would demand", "set it to stop"
            raise UserError(what, code="E-teacher-cannot-seal", where="teacher.budget.spent", found="seal", hint=hint)
        check_recipe(recipe)
        # At temperature 1, log-probabilities are raw, so the probe need not compare temperatures.
        self.settings = replace(settings or settings_from_recipe(recipe), api="completions", temperature=1.0)
        self.folder, self.may_seal, self._usage = folder, may_seal, usage
        self._lookup = open_lookup(recipe)
        self._fixed = {"model": self.settings.model, "top_logprobs": self.settings.top_logprobs}
        self._fixed |= {"tokenizer": _tokenizer_digest(recipe)}
        self._server: dict[str, Any] | None = None  # the content of SERVER_FILE
        if (folder / SERVER_FILE).exists():
            self._server = storage.read_json(folder / SERVER_FILE)
            self._check_server(self._fixed)
        own = folder / scores_file(shard)
        self._store = ScoreStore(own)
        self._others = [ScoreStore(path) for path in sorted(folder.glob("scores*.jsonl")) if path != own]
        self._stack = contextlib.ExitStack()
        self._connection: tuple[asyncio.Runner, BudgetedClient] | None = None  # None until a text is not stored
        self._requests: ScoreRequests | None = None  # None until the server was tested

    def __enter__(self) -> Self:
        self._stack.enter_context(self._store)
        return self

    def __exit__(self, *fault: object) -> None:
        self._stack.__exit__(*fault)  # type: ignore[arg-type]

    def score(self, rows: Sequence[tuple[Prompt, Chain]]) -> list[Chain]:
        """The chains with unchanged texts and keys, and with the tokens and raw log-probabilities of the server.

        rows  pairs of the model's prompt and the chain. The server sees `prompt.plain + prompt.lead`
        A newline after a text counts as its end. The step of the end is left out if no alternative of the server is an end.

        Raises UserError if the budget is spent, if the server cannot score, refuses a text or does not answer. All scores
        received before are stored.
        """
        texts = [(prompt.plain + prompt.lead, chain) for prompt, chain in rows]
        if self._server is None and texts:
            self._connect(*texts[0])
        keys = [self._key(prompt, chain.text) for prompt, chain in texts]
        missing = {
            key: TextToScore(key, prompt, chain.text, chain.question)
            for key, (prompt, chain) in zip(keys, texts, strict=True)
            if not self._has(key)
        }
        if missing:
            requests = self._connect(*next(row for key, row in zip(keys, texts, strict=True) if key in missing))
            try:
                requests.score(missing.values())
            finally:
                requests.usage.flush()  # first, so that no power loss keeps scores and loses their cost
                self._store.sync()
        return [self._read(key, chain) for key, (_, chain) in zip(keys, texts, strict=True)]

    def read_stored(self, rows: Sequence[tuple[Prompt, Chain]]) -> list[Chain]:
        """The chains of `rows` whose texts are stored, as `score` returns them. Sends no request."""
        if self._server is None:
            return []
        keys = [self._key(prompt.plain + prompt.lead, chain.text) for prompt, chain in rows]
        return [self._read(key, chain) for key, (_, chain) in zip(keys, rows, strict=True) if self._has(key)]

    def list_missing(self, texts: Iterable[tuple[str, str]]) -> list[tuple[str, str]]:
        """Those pairs of a prompt and a text whose scores are not stored. Sends no request."""
        return [
            (prompt, text) for prompt, text in texts if self._server is None or not self._has(self._key(prompt, text))
        ]

    def _has(self, key: str) -> bool:
        return key in self._store or any(key in store for store in self._others)

    def _read(self, key: str, chain: Chain) -> Chain:
        scored = next(filter(None, (store.read(key) for store in (self._store, *self._others))), None)
        assert scored is not None, "every text is stored before it is used"
        candidates = scored.candidates[: len(scored.tokens)] if chain.stop == "length" else scored.candidates
        own = {"question": chain.question, "source": chain.source, "index": chain.index, "stop": chain.stop}
        return replace(scored, candidates=candidates, **own)

    def _key(self, prompt: str, text: str) -> str:
        """The key of a text: a digest of all that its scores depend on."""
        assert self._server is not None
        capabilities = self._server["capabilities"]
        identity = {name: self._server[name] for name in ("model", "top_logprobs", "tokenizer", "method")}
        identity |= {name: capabilities[name] for name in ("served", "ids", "ends")} | {"version": VERSION}
        parts = json.dumps([identity, prompt, text], sort_keys=True)
        return hashlib.sha256(parts.encode()).hexdigest()[:KEY_CHARS]

    # --- The server

    def _connect(self, prompt: str, chain: Chain) -> ScoreRequests:
        """The connection to the server, which is made and tested with one text when it is first needed."""
        if self._requests is not None:
            return self._requests
        runner, client = self._open_client()
        capabilities = runner.run(self._probe(client, prompt))
        if self._server is None:
            method, gives_next_token = runner.run(self._find_method(client, capabilities, prompt, chain))
            row = {name: list(v) if isinstance(v, tuple) else v for name, v in dataclasses.asdict(capabilities).items()}
            server = {**self._fixed, "method": method, "next_token": gives_next_token, "capabilities": row}
            self._server = self._store_server(server)
        self._check_server({name: getattr(capabilities, name) for name in ("served", "ids")})
        self._requests = ScoreRequests(
            self.settings, self._server, self._lookup, runner, client, self._store, client.usage
        )
        return self._requests

    def _store_server(self, server: dict[str, Any]) -> dict[str, Any]:
        """The description of the server in SERVER_FILE, which the first of several shards writes."""
        path = self.folder / SERVER_FILE
        with storage.hold_lock(self.folder, f".{SERVER_FILE}.lock", LOCK_SECONDS, "another process writes this file"):
            if not path.exists():
                storage.write_json(path, server)
            return storage.read_json(path)

    def _open_client(self) -> tuple[asyncio.Runner, BudgetedClient]:
        """The event loop and the client, which share one usage until the end."""
        if self._connection is None:
            usage = self._stack.enter_context(self._usage)
            runner = self._stack.enter_context(asyncio.Runner())
            client = BudgetedClient(self.settings, usage, may_seal=self.may_seal)
            self._stack.callback(lambda: runner.run(client.close()))
            self._connection = runner, client
        return self._connection

    async def _probe(self, client: BudgetedClient, prompt: str) -> Capabilities:
        """What the server accepts and returns. At the first use of a server, also its name for the end of a text."""
        context = ReaderContext("probe", "unknown", self._lookup)
        capabilities = await probing.probe(client, self.settings, _as_prompt(prompt), context)
        if self._server is not None or self._lookup is not None:
            return capabilities
        for seed in range(MAX_END_TEXTS):
            if capabilities.ends:
                return capabilities
            body = probing.build_body(self.settings, capabilities, _as_prompt(prompt), n=1, seed=seed)
            reply = await client.send(self.settings.urls[0], body)
            if reply.body is not None:
                capabilities = replace(capabilities, ends=probing.find_end_names(reply.body, context))
        if not capabilities.ends:
            client.warn(
                f"{self.settings.urls[0]} ended no text, so its name for the end is unknown, and the ends of texts get no"
                " probability: set teacher.server.tokenizer to the tokenizer of the model"
            )
        return capabilities

    async def _find_method(
        self, client: BudgetedClient, capabilities: Capabilities, prompt: str, chain: Chain
    ) -> tuple[ScoringMethod, bool]:
        """The method of scoring, and whether the response contains the generated token after the text."""
        context = scoring_context(self._lookup, capabilities)
        finder = MethodFinder(client, self.settings, capabilities, context)
        chain = chain if chain.text else Chain.from_text(chain.question, 0, SAMPLE_TEXT, source=chain.source)
        for _ in range(MAX_PROBES - 1):
            try:
                method = await finder.find_method(prompt, chain)
                break
            except UserError as error:
                if error.code not in (CANNOT_SCORE, INCONSISTENT_SCORES):
                    raise
        else:
            method = await finder.find_method(prompt, chain)
        settings, text = self.settings, prompt + chain.text
        body = build_scoring_request(
            settings.model, capabilities, prompt, chain.text, k=settings.top_logprobs, method=method
        )
        for _ in range(MAX_PROBES):
            reply = await client.send(settings.urls[0], body, "/completions")
            choices = reply.body.choices if reply.body is not None else []
            if choices and has_next_token(read_prompt_entries(choices[0], text, context), text):
                return method, True
        return method, False

    def _check_server(self, now: Mapping[str, Any]) -> None:
        """Raise UserError if a value of FIXED differs from the stored one. now: the values that are known now."""
        assert self._server is not None
        stored = {**self._server["capabilities"], **self._server}
        changed = [
            f"{name}: {stored[name]} -> {now[name]}" for name in FIXED if name in now and stored[name] != now[name]
        ]
        if changed:
            raise UserError(
                "the stored scores are of another model or server",
                code="E-teacher-server-changed",
                where=self.folder / SERVER_FILE,
                found="; ".join(changed),
                hint="use the old model and server again, or give the recipe another name: this run keeps its scores",
            )


def _as_prompt(text: str) -> Prompt:
    return Prompt((Turn("user", text),))


def _tokenizer_digest(recipe: Recipe) -> str | None:
    """The digest of the served model's tokenizer, which gives tokens their bytes; None if the recipe names none."""
    path = recipe.teacher.server.tokenizer
    return None if path is None else tokenization.load_tokenizer(find_path(recipe, path, TOKENIZER_KEY)).digest
