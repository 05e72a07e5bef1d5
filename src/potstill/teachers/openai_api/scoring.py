"""Scoring: a text that exists, with the distributions of a server that reads it instead of writing it.

    >>> build_scoring_request("m", Capabilities(), "2 + 2 =", " 4", k=3, way="echo")["echo"]
    True

Two ways, found out by asking: `prompt_logprobs` (vLLM) and `echo` (legacy completions). In both the server is given
prompt and text as one, and writes one token more, whose outcomes say how likely the end was.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any, Final, Literal

from potstill.errors import UserError
from potstill.records import END, Chain
from potstill.teachers.openai_api import chain_reader, token_entries
from potstill.teachers.openai_api.client import Client
from potstill.teachers.openai_api.rate_limit import backoff_seconds
from potstill.teachers.openai_api.request import Capabilities, ServerSettings
from potstill.teachers.openai_api.response import Choice, PromptToken
from potstill.teachers.openai_api.server_errors import hint_for
from potstill.teachers.openai_api.token_entries import ReaderContext, TokenEntry

ScoringMethod = Literal["prompt_logprobs", "echo"]
SCORING_METHODS: Final[tuple[ScoringMethod, ...]] = ("prompt_logprobs", "echo")
CANNOT_SCORE: Final = "this server does not score a text that it is given"
INCONSISTENT_SCORES: Final = "this server scores a text otherwise than it writes it"
CHECK_TOKENS: Final = 16  # tokens that it writes to be asked about them


def build_scoring_request(
    model: str, manner: Capabilities, prompt: str, text: str, *, k: int, way: ScoringMethod
) -> dict[str, Any]:
    """The body of a request to `completions` that scores `text` behind `prompt`, with k outcomes a token.

    At temperature 1, where tempered log-probabilities are the raw ones.
    """
    body: dict[str, Any] = {"model": model, "prompt": prompt + text, "max_tokens": 1, "temperature": 1.0}
    body |= {"logprobs": k, "seed": 0, "top_p": 1.0}
    if manner.ids:
        body |= {"return_token_ids": True, "return_tokens_as_token_ids": True}
    return body | ({"echo": True} if way == "echo" else {"prompt_logprobs": k})


def read_scored_chain(choice: Choice, prompt: str, text: str, reader: ReaderContext) -> Chain:
    """The chain of `text` with what the server said of it; without a key. Its text is `text`, whatever was said.

    A token on both sides of the border is left out, and so is one whose bytes are unknown. Raises UserError if the
    server did not score the text at all.
    """
    before, own, given = len(prompt.encode()), text.encode(), prompt + text
    found = _read_prompt_entries(choice, given, reader)
    if len(found) < 2:
        raise UserError(CANNOT_SCORE, hint="score it with a model in process")
    defects: set[str] = set()
    after: TokenEntry | None = found[-1]  # what would have been written behind the text
    chain = chain_reader.compose_chain(given, found[:-1], None, defects)
    if not chain.spans or (chain.spans[-1][1] < len(chain.content) and chain.content.endswith(_entry_bytes(found[-1]))):
        defects, after = set(), None  # some leave the end out of their list: the last entry is the text's
        chain = chain_reader.compose_chain(given, found, None, defects)
    tokens, spans, candidates = [], [], []
    last = None
    for token, (start, end), step in zip(chain.tokens, chain.spans, chain.candidates, strict=True):
        if start >= before and end <= before + len(own) and step:
            tokens.append(token)
            spans.append((start - before, end - before))
            candidates.append(step)
        elif start < before < end:
            defects.add("a token across the border")
    if after is not None and any(piece is END for piece, _, _ in (*after.tops, (after.piece, 0, 0.0))):
        last = tuple((p, round(min(v, 0.0), 6) + 0.0) for p, _, v in after.tops if p and v is not None)
    if not tokens:
        raise UserError("the server's tokens do not fit the text", found=given[:80], hint="name teacher.tokenizer")
    defects.discard("log-probability hidden")  # the first token of the prompt never has one
    return replace(
        chain,
        content=own,
        tokens=tuple(tokens),
        spans=tuple(spans),
        candidates=(*candidates, last) if last else tuple(candidates),
        source=reader.source,
        semantics="raw",
        defects=tuple(sorted(defects)),
    )


def score_all(
    runner: asyncio.Runner,
    client: Client,
    settings: ServerSettings,
    manner: Capabilities,
    reader: ReaderContext,
    rows: Iterable[tuple[str, Chain]],
    way: ScoringMethod | None,
) -> Iterator[Chain]:
    """The chains of (prompt, chain), scored, in their order, `settings.concurrency` under way at once.

    A chain keeps its key and how it stopped.
    """
    waiting: deque[asyncio.Task[Chain]] = deque()
    source = iter(rows)
    try:
        for prompt, chain in source:
            if way is None:
                way = runner.run(_find_method(client, settings, manner, reader, prompt, chain))
            task = _score_one(client, settings, manner, reader, prompt, chain, way)
            waiting.append(runner.get_loop().create_task(task))
            if len(waiting) >= settings.concurrency:
                yield runner.run(_result_of(waiting.popleft()))
        while waiting:
            yield runner.run(_result_of(waiting.popleft()))
    finally:
        for task in waiting:
            task.cancel()


async def _result_of(task: asyncio.Task[Chain]) -> Chain:
    return await task


async def _find_method(
    client: Client, settings: ServerSettings, manner: Capabilities, reader: ReaderContext, prompt: str, chain: Chain
) -> ScoringMethod:
    """How the server scores, found with one chain. Raises UserError if it does not, or not what it says it does."""
    fault = UserError(CANNOT_SCORE, where=settings.urls[0], hint="score it with a model in process")
    for way in SCORING_METHODS:
        try:
            await _score_one(client, settings, manner, reader, prompt, chain, way)
            await _check_consistency(client, settings, manner, reader, prompt, way)
        except UserError as found:
            if found.what not in (CANNOT_SCORE, INCONSISTENT_SCORES):
                raise
            fault = found if found.what == INCONSISTENT_SCORES else fault
        else:
            return way
    raise fault


async def _check_consistency(
    client: Client,
    settings: ServerSettings,
    manner: Capabilities,
    reader: ReaderContext,
    prompt: str,
    way: ScoringMethod,
) -> None:
    """Have the server write a little and score what it wrote. Raises UserError where it says another thing of it: of a
    model without a token for the beginning llama-cpp-python's `echo` says of each token what belongs to the next."""
    body = build_scoring_request(settings.model, manner, prompt, "", k=settings.candidates, way="echo")
    del body["echo"]
    answer = await client.ask(settings.urls[0], body | {"max_tokens": CHECK_TOKENS}, "/completions")
    if answer.body is None or not answer.body.choices:
        return
    written = replace(chain_reader.read_chain(answer.body.choices[0], "", 0, reader), stop="length")
    if not written.text:
        return
    again = await _score_one(client, settings, manner, reader, prompt, written, way)
    before, after = _logprobs_by_span(written), _logprobs_by_span(again)
    shared = sorted(set(before) & set(after))
    if sum(abs(before[at] - after[at]) > 0.1 + 0.1 * abs(before[at]) for at in shared) > len(shared) / 2:
        pairs = ", ".join(f"{before[at]:.2f} and {after[at]:.2f}" for at in shared[:3])
        raise UserError(
            INCONSISTENT_SCORES,
            where=f"{settings.urls[0]}, {way}",
            found=f"of its own tokens when they are written and when they are scored: {pairs}, ...",
            hint="score it with a model in process",
        )


def _logprobs_by_span(chain: Chain) -> dict[tuple[int, int], float]:
    """What is said of each token, by the token's place."""
    steps = zip(chain.tokens, chain.spans, chain.candidates, strict=False)
    return {span: dict(step)[token] for token, span, step in steps if token in dict(step)}


async def _score_one(
    client: Client,
    settings: ServerSettings,
    manner: Capabilities,
    reader: ReaderContext,
    prompt: str,
    chain: Chain,
    way: ScoringMethod,
) -> Chain:
    body = build_scoring_request(settings.model, manner, prompt, chain.text, k=settings.candidates, way=way)
    draw = random.Random(settings.seed)
    said, began = "", time.monotonic()
    for tries in range(settings.tries):
        answer = await client.ask(settings.urls[tries % len(settings.urls)], body, "/completions")
        if answer.body is not None and answer.body.choices:
            made = read_scored_chain(answer.body.choices[0], prompt, chain.text, reader)
            steps = made.candidates[: len(made.tokens)] if chain.stop == "length" else made.candidates
            key = {"question": chain.question, "source": chain.source, "index": chain.index}
            return replace(made, candidates=steps, stop=chain.stop, **key)
        said = answer.said
        if answer.outcome == "refused":
            raise UserError(CANNOT_SCORE, where=settings.urls[0], found=said, hint="score it with a model in process")
        if answer.outcome == "stop" or answer.lasting or time.monotonic() - began > settings.patience:
            break
        client.tell(f"a request failed ({said}); asking again for {settings.patience:g} s")
        await asyncio.sleep(answer.wait or backoff_seconds(tries, settings.first_pause, draw))
    raise UserError("the teacher does not answer", where=settings.urls[0], found=said, hint=hint_for(said))


def _entry_bytes(step: TokenEntry) -> bytes:
    return step.piece if isinstance(step.piece, bytes) else b"\0"


def _read_prompt_entries(choice: Choice, given: str, reader: ReaderContext) -> list[TokenEntry]:
    """An entry for every token of what was given, and that of the one written."""
    if choice.prompt_logprobs is None or (choice.text or "").startswith(given):
        return token_entries.read_entries(choice, reader)
    found = []
    for position, shown in enumerate(choice.prompt_logprobs):
        ids = choice.prompt_token_ids
        # The names are texts: what is made of a decoded string may begin with bytes of the token before.
        own = str(ids[position]) if ids and position < len(ids) else next(iter(shown or {}), "")
        tops = [
            (_read_prompt_piece(name, one, position, reader), name, one.logprob) for name, one in (shown or {}).items()
        ]
        piece = next((piece for piece, name, _ in tops if name == own), None)
        if piece is None and reader.pieces is not None and own:
            piece = reader.pieces(int(own), position)
        value = next((value for _, name, value in tops if name == own), None)
        found.append(TokenEntry(piece, own, value, tops))
    if found and not found[0].piece:  # nothing is said of the first token but what follows it
        second = next((step.piece for step in found[1:] if isinstance(step.piece, bytes)), b"")
        at = given.encode().find(second)
        found[0] = found[0]._replace(piece=given.encode()[:at] or None)
    written = token_entries.read_entries(choice, reader)
    return [*found, *(written or [TokenEntry(None, "", None, ())])]


def _read_prompt_piece(name: str, one: PromptToken, position: int, reader: ReaderContext) -> token_entries.Piece:
    if reader.pieces is not None:
        return reader.pieces(int(name), position)
    if one.decoded_token in reader.ends:
        return END
    text = one.decoded_token or ""
    return text.encode("utf-8", "replace") if "�" not in text else None
