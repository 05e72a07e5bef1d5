"""Scoring: the log-probabilities that a server assigns to the tokens of an existing text.

    >>> body = build_scoring_request("m", Capabilities(), "2 + 2 =", " 4", k=3, method="echo")
    >>> body["prompt"], body["echo"], body["max_tokens"]
    ('2 + 2 = 4', True, 1)

There are two methods: `prompt_logprobs` (vLLM) and `echo` (legacy completions). The first method that works is used.
With both methods, the server receives the prompt and the text as one string, and generates one more token, whose
alternatives give the probability of the end.
"""

from __future__ import annotations

import asyncio
import itertools
import random
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Final, Literal

from potstill.errors import UserError
from potstill.records import END, Chain
from potstill.teachers.chain_parts import merge_end_outcomes
from potstill.teachers.openai_api import chain_reader
from potstill.teachers.openai_api.client import Client
from potstill.teachers.openai_api.limits import backoff_seconds
from potstill.teachers.openai_api.request import REQUEST_IDS, Capabilities, ServerSettings
from potstill.teachers.openai_api.response import Choice, PromptToken
from potstill.teachers.openai_api.server_errors import hint_for
from potstill.teachers.openai_api.token_entries import (
    DEFECT_BYTES_UNKNOWN,
    DEFECT_ENTRIES_MISSING,
    Piece,
    ReaderContext,
    TokenEntry,
    read_entries,
)

ScoringMethod = Literal["prompt_logprobs", "echo"]
SCORING_METHODS: Final[tuple[ScoringMethod, ...]] = ("prompt_logprobs", "echo")
CANNOT_SCORE: Final = "E-teacher-cannot-score"
INCONSISTENT_SCORES: Final = "E-teacher-inconsistent-scores"
LOCAL_HINT: Final = "score the chains with a local model (teacher.score.kind: local)"
DEFECT_ACROSS_BORDER: Final = "a token across the border"
CHECK_TOKENS: Final = 16  # number of tokens that the server generates and then scores, as a check


def build_scoring_request(
    model: str, capabilities: Capabilities, prompt: str, text: str, *, k: int, method: ScoringMethod | None
) -> dict[str, Any]:
    """The body of a request to /completions that scores `text` after `prompt`, with k alternatives per token.

    method  None: generate only one token after the text, without scores of the text
    The temperature is 1, because tempered log-probabilities then equal raw log-probabilities. With `echo`, the names of the
    entries have the ids: vLLM 0.32 echoes no text if it also returns the ids alone.
    """
    body: dict[str, Any] = {"model": model, "prompt": prompt + text, "max_tokens": 1, "temperature": 1.0}
    body |= {"logprobs": k, "seed": 0, "top_p": 1.0} | (REQUEST_IDS if capabilities.ids else {})
    if method == "echo":
        body.pop("return_token_ids", None)
    return body | ({"echo": True} if method == "echo" else {"prompt_logprobs": k} if method else {})


def read_scored_chain(
    choice: Choice, prompt: str, text: str, context: ReaderContext, *, newline_ends: bool = False
) -> Chain:
    """The chain of `text`, without a key, with the log-probabilities of a response.

    newline_ends  whether a newline after the text also ends it, as for a text that a local model scores

    Tokens that span the border between prompt and text, and tokens of unknown bytes, are omitted. An empty text has no
    tokens, only the step of the end. Raises UserError if the response does not score the text.
    """
    border, content, request_text = len(prompt.encode()), text.encode(), prompt + text
    entries = read_prompt_entries(choice, request_text, context)
    if len(entries) < 2:
        raise _cannot_score()
    defects: set[str] = set()
    after: TokenEntry | None = entries[-1]  # the generated token after the text
    chain = chain_reader.compose_chain(request_text, entries[:-1], None, defects)
    last_bytes = entries[-1].piece if isinstance(entries[-1].piece, bytes) else b"\0"
    if not chain.spans or (chain.spans[-1][1] < len(chain.content) and chain.content.endswith(last_bytes)):
        defects, after = set(), None  # some servers omit the generated token, so the last entry belongs to the text
        chain = chain_reader.compose_chain(request_text, entries, None, defects)
    tokens, spans, candidates = [], [], []
    for token, (start, end), step in zip(chain.tokens, chain.spans, chain.candidates, strict=True):
        if start >= border and end <= border + len(content) and step:
            tokens.append(token)
            spans.append((start - border, end - border))
            candidates.append(step)
        elif start < border < end:
            defects.add(DEFECT_ACROSS_BORDER)
    if text and not tokens:
        hint, found = "set teacher.server.tokenizer to the tokenizer of the served model", request_text[:80]
        what = "the server's tokens do not fit the text"
        raise UserError(what, code="E-teacher-wrong-tokenizer", found=found, hint=hint)
    if after is not None:
        rows = [(piece, value) for piece, _, value in after.alternatives if piece and value is not None]
        step = tuple((piece, chain_reader.round_logprob(value)) for piece, value in rows)
        step = merge_end_outcomes(step) if newline_ends else step
        if after.piece is END or any(piece is END for piece, _ in step):
            candidates.append(step)
    if candidates and not candidates[-1]:
        candidates.pop()
    defects.discard(chain_reader.DEFECT_HIDDEN)  # the first token of the prompt never has a log-probability
    return replace(
        chain,
        content=content,
        tokens=tuple(tokens),
        spans=tuple(spans),
        candidates=tuple(candidates),
        source=context.source,
        semantics="raw",
        defects=tuple(sorted(defects)),
    )


def read_prompt_entries(choice: Choice, request_text: str, context: ReaderContext) -> list[TokenEntry]:
    """The entries of all tokens in the request's text, and the entry of the generated token."""
    if choice.prompt_logprobs is None or (choice.text or "").startswith(request_text):
        return read_entries(choice, context)
    entries, ids = [], choice.prompt_token_ids
    for position, table in enumerate(choice.prompt_logprobs):
        # Ids name the entries, because a decoded string may begin with bytes of the previous token.
        name = str(ids[position]) if ids and position < len(ids) else next(iter(table or {}), "")
        alternatives = {
            other: (_read_prompt_piece(other, row, position, context), other, row.logprob)
            for other, row in (table or {}).items()
        }
        piece, _, logprob = alternatives.get(name, (None, name, None))
        if piece is None and context.lookup is not None and name:
            piece = context.lookup(int(name), position)
        entries.append(TokenEntry(piece, name, logprob, list(alternatives.values())))
    if entries and not entries[0].piece:  # the first token has no description; it ends at the start of the second token
        second = next((entry.piece for entry in entries[1:] if isinstance(entry.piece, bytes)), b"")
        data = request_text.encode()
        entries[0] = entries[0]._replace(piece=data[: data.find(second)] or None)
    return [*entries, *(read_entries(choice, context) or [TokenEntry(None, "", None, ())])]


def _read_prompt_piece(name: str, row: PromptToken, position: int, context: ReaderContext) -> Piece:
    if context.lookup is not None:
        return context.lookup(int(name), position)
    if row.decoded_token in context.end_names:
        return END
    text = row.decoded_token or ""
    return text.encode("utf-8", "replace") if "�" not in text else None


def lacks_tokens(scored: Chain, entries: Sequence[TokenEntry]) -> bool:
    """Whether a response lacks values that a server which gives all values would have sent.

    scored   the chain of the response
    entries  all entries of the response; the first one never has a value, and the last one may be the generated token

    Bytes without a token are no fault if a token of the prompt ends in them, or if their tokens are parts of characters.
    """
    if DEFECT_ENTRIES_MISSING in scored.defects:
        return True
    bounds = [0, *itertools.chain.from_iterable(scored.spans), len(scored.content)]
    for start, end in zip(bounds[::2], bounds[1::2], strict=True):
        at_border = start == 0 and DEFECT_ACROSS_BORDER in scored.defects
        partial = DEFECT_BYTES_UNKNOWN in scored.defects and not scored.content[start:end].isascii()
        if start < end and not at_border and not partial:
            return True
    return any(entry.logprob is None for entry in entries[1:-1])


def has_next_token(entries: Sequence[TokenEntry], request_text: str) -> bool:
    """Whether a response contains the generated token after the text of its request, with alternatives."""
    if not entries or not entries[-1].alternatives:
        return False
    pieces = [entry.piece for entry in entries if isinstance(entry.piece, bytes)]
    return not entries[-1].piece or entries[-1].piece is END or b"".join(pieces) != request_text.encode()


class MethodFinder:
    """Finds the method by which a server scores texts, and scores single texts."""

    def __init__(
        self, client: Client, settings: ServerSettings, capabilities: Capabilities, context: ReaderContext
    ) -> None:
        self.client, self.settings, self.capabilities, self.context = client, settings, capabilities, context

    async def find_method(self, prompt: str, chain: Chain) -> ScoringMethod:
        """The first method that works, tested with one chain. Raises UserError if no method works."""
        error = _cannot_score(self.settings.urls[0])
        for method in SCORING_METHODS:
            try:
                await self.score(prompt, chain, method)
                await self._check_consistency(prompt, method)
            except UserError as failure:
                if failure.code not in (CANNOT_SCORE, INCONSISTENT_SCORES):
                    raise
                error = failure if failure.code == INCONSISTENT_SCORES else error
            else:
                return method
        raise error

    async def _check_consistency(self, prompt: str, method: ScoringMethod) -> None:
        """Let the server generate a short text and score it. Raises UserError if the log-probabilities differ.

        For models without a token for the beginning, the `echo` of llama-cpp-python returns the values of the next token
        for each token.
        """
        body = self._build_body(prompt, "", None) | {"max_tokens": CHECK_TOKENS}
        reply = await self.client.send(self.settings.urls[0], body, "/completions")
        if reply.body is None or not reply.body.choices:
            return
        written = replace(chain_reader.read_chain(reply.body.choices[0], "", 0, self.context), stop="length")
        if not written.text:
            return
        before = _logprobs_by_span(written)
        after = _logprobs_by_span(await self.score(prompt, written, method))
        shared = sorted(set(before) & set(after))
        if sum(abs(before[span] - after[span]) > 0.1 + 0.1 * abs(before[span]) for span in shared) > len(shared) / 2:
            pairs = ", ".join(f"{before[span]:.2f} and {after[span]:.2f}" for span in shared[:3])
            raise UserError(
                "the server's scores of a text that it generated differ from the log-probabilities at generation",
                code="E-teacher-inconsistent-scores",
                where=f"{self.settings.urls[0]}, {method}",
                found=f"log-probabilities of the same token, generated and scored: {pairs}, ...",
                hint=LOCAL_HINT,
            )

    def _build_body(self, prompt: str, text: str, method: ScoringMethod | None) -> dict[str, Any]:
        settings = self.settings
        return build_scoring_request(
            settings.model, self.capabilities, prompt, text, k=settings.top_logprobs, method=method
        )

    async def score(self, prompt: str, chain: Chain, method: ScoringMethod) -> Chain:
        settings, body = self.settings, self._build_body(prompt, chain.text, method)
        rng, started, message = random.Random(settings.seed), time.monotonic(), ""
        for tries in range(settings.max_tries):
            reply = await self.client.send(settings.urls[tries % len(settings.urls)], body, "/completions")
            if reply.body is not None and reply.body.choices:
                scored = read_scored_chain(reply.body.choices[0], prompt, chain.text, self.context)
                candidates = scored.candidates[: len(scored.tokens)] if chain.stop == "length" else scored.candidates
                key = {"question": chain.question, "source": chain.source, "index": chain.index}
                return replace(scored, candidates=candidates, stop=chain.stop, **key)
            message = reply.message
            if reply.outcome == "refused":
                raise _cannot_score(settings.urls[0], message)
            if reply.outcome == "stop" or reply.permanent or time.monotonic() - started > settings.patience:
                break
            self.client.warn(f"a request failed ({message}); potstill retries for {settings.patience:g} s")
            await asyncio.sleep(reply.retry_after or backoff_seconds(tries, settings.first_backoff, rng))
        what, hint = "the teacher does not answer", hint_for(message)
        raise UserError(what, code="E-teacher-no-answer", where=settings.urls[0], found=message, hint=hint)


def _logprobs_by_span(chain: Chain) -> dict[tuple[int, int], float]:
    """Span of a token -> the token's log-probability."""
    steps = zip(chain.tokens, chain.spans, chain.candidates, strict=False)
    return {span: dict(step)[token] for token, span, step in steps if token in dict(step)}


def _cannot_score(where: str = "", found: str = "") -> UserError:
    what = "the server does not score existing texts"
    return UserError(what, code="E-teacher-cannot-score", where=where, found=found, hint=LOCAL_HINT)
