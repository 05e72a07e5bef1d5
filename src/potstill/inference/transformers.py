"""The reference engine: transformers models, decoder-only and encoder-decoder, and the one loop that writes texts.

    >>> from potstill.models import Shape, random_student
    >>> from potstill.tokenization import train_unigram
    >>> tokenizer = train_unigram(["2 + 2 = 4", "The answer is 4"], 60)
    >>> shape = Shape("t5", d_model=8, layers=1, heads=2, d_ff=16, d_kv=4, vocabulary=tokenizer.size)
    >>> engine = TransformersEngine(random_student(shape, tokenizer, seed=1))
    >>> [text] = engine.generate([Request(("q1", 0), (5, 6))], max_tokens=3, temperature=1.0, candidates=2)
    >>> len(text.ids), len(text.candidates), text.stop
    (3, 3, 'length')

The model only says what may follow; which token is taken is decided by `choice`, on the raw logits. Sampling policies
that a checkpoint brings along in its generation_config.json (a repetition penalty, say) never reach the text. Prompts
are read once each (`memory`), rows that have ended leave the batch.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from operator import itemgetter
from typing import Any, Final

import torch

from potstill.errors import UserError
from potstill.inference import Generation, Request, SampleKey, ScoredText, StopUnit
from potstill.inference.fast_decode import fast_prefill
from potstill.inference.sampling import AnswerDetector, CalculatorDecoding, TokenSampler
from potstill.models import Example, Student
from potstill.records import END, Candidate, End, Prompt, StopReason, Target, TargetKind
from potstill.tokenization import Tokenizer

SCORE_CHUNK: Final = 1024  # positions whose logits exist at a time


class TransformersEngine:
    """A student, or any local model opened as one, that writes texts. Fulfils `engines.Engine`."""

    def __init__(self, student: Student) -> None:
        self.student = student
        # An instruction-tuned model may end a turn with one token and a document with another; both are END. But a
        # configuration that was never adapted to its tokenizer may name a token that is plain text.
        named = student.model.generation_config.eos_token_id
        others = named if isinstance(named, list) else [] if named is None else [named]
        tokenizer = student.tokenizer
        known = [token for token in others if type(token) is int and 0 <= token < tokenizer.size]
        special = {token for token in known if not tokenizer.bytes(token)}
        self.ends = (tokenizer.eos, *sorted(special - {tokenizer.eos}))
        # T5 counts distances, not positions, so it has no limit; its n_positions is only what it was trained on.
        config, causal = student.model.config, student.family == "causal"
        self.limit: int | None = getattr(config, "max_position_embeddings", None) if causal else None
        self._start, self._inside = (_TokenOutcomes(tokenizer, self.ends, position) for position in (0, 1))

    def encode(self, prompt: Prompt) -> tuple[int, ...]:
        return tuple(self.student.encode(self.student.render(prompt)))

    def generate(
        self,
        requests: Sequence[Request],
        *,
        max_tokens: int,
        temperature: float = 0.0,
        seed: int = 0,
        candidates: int = 0,
        stop_at_answer: StopUnit | None = None,
        calculator: bool = False,
        likelihood: bool = False,
    ) -> list[Generation]:
        """One batch. Beside the cache and one row of logits a text, memory holds k numbers a step, never a vocabulary.

        Raises UserError for a prompt that is empty or does not fit, and for logits that are not numbers.
        """
        assert max_tokens > 0 and temperature >= 0 and candidates >= 0, (max_tokens, temperature, candidates)
        if not requests:
            return []
        self.check(requests, max_tokens)
        choice = TokenSampler([request.key for request in requests], temperature, seed, candidates, likelihood)
        line = AnswerDetector(len(requests), self.piece, stop_at_answer) if stop_at_answer else None
        sums = CalculatorDecoding(len(requests), self.student.tokenizer, self.piece) if calculator else None
        with _eval_mode(self.student.model), torch.no_grad():
            self._write(requests, choice, line, sums, max_tokens)
        if choice.broken:
            raise nan_logits_error()
        lines = line.at if line else [None] * len(requests)
        rows = zip(requests, choice.drawn, choice.seen(), lines, strict=True)
        texts = [self.collect(request.key, drawn, seen, at) for request, drawn, seen, at in rows]
        known = choice.likelihoods([len(text.ids) + (text.stop == "end") for text in texts])
        return [replace(text, likelihood=value) for text, value in zip(texts, known, strict=True)]

    def score(self, requests: Sequence[Request], texts: Sequence[str], *, candidates: int) -> list[ScoredText]:
        """Memory holds the states of the texts' positions and, for CHUNK of them at a time, their logits."""
        if not requests:
            return []
        tokenizer = self.student.tokenizer
        written = tokenizer.encode_batch(list(texts))
        for request, encoding in zip(requests, written, strict=True):
            self.check([request], len(encoding.ids) + 1)
        rows = [
            Example(request.prompt, _hard_target((*encoding.ids, tokenizer.eos)))
            for request, encoding in zip(requests, written, strict=True)
        ]
        ids, values = [], []
        with _eval_mode(self.student.model), torch.no_grad():
            batch = self.student.batch(rows).to(self.student.device)
            own = torch.tensor([token for row in rows for token in row.target.ids], device=self.student.device)
            for states, drawn in zip(
                self.student.hidden(batch).split(SCORE_CHUNK), own.split(SCORE_CHUNK), strict=True
            ):
                logs = self.student.head.logits(states).float().log_softmax(-1)
                if logs.isnan().any():
                    raise nan_logits_error()
                likeliest, top = logs.topk(min(candidates, logs.shape[-1]), dim=-1)
                ids += torch.cat([top, drawn[:, None]], -1).tolist()
                values += torch.cat([likeliest, logs.gather(-1, drawn[:, None])], -1).tolist()
        result, start = [], 0
        for encoding in written:
            end = start + len(encoding.ids) + 1
            places = range(start, end)
            result.append(
                ScoredText(
                    ids=tuple(encoding.ids),
                    tokens=tuple(self.piece(token, place) for place, token in enumerate(encoding.ids)),
                    spans=tuple(encoding.spans),
                    candidates=tuple(self._step(ids[place], values[place], place - start) for place in places),
                )
            )
            start = end
        return result

    def _write(
        self,
        requests: Sequence[Request],
        choice: TokenSampler,
        line: AnswerDetector | None,
        sums: CalculatorDecoding | None,
        max_tokens: int,
    ) -> None:
        """The loop: one token a row and step, until every row has ended or has `max_tokens`."""
        ends, live = frozenset(self.ends), list(range(len(requests)))
        memory, ended = fast_prefill(self.student, [request.prompt for request in requests]), set[int]()
        for position in range(max_tokens):
            if sums:
                ids = choice.take(sums.bar(memory.logits, live), live, sums.given(memory.logits, live))
            else:
                ids = choice.take(memory.logits, live)
            for row in live:
                token = choice.drawn[row][-1]
                if sums:
                    sums.add(row, token, position)
                if row not in ended and (token in ends or (line and line.add(row, token, position))):
                    ended.add(row)
            if len(ended) == len(requests) or position + 1 == max_tokens:
                break
            places = [place for place, row in enumerate(live) if row not in ended]
            if len(places) <= memory.share * len(live):
                order = memory.keep(places)
                live, ids = [live[place] for place in order], ids[order]
            memory.step(ids)

    def check(self, requests: Sequence[Request], max_tokens: int) -> None:
        """Raises UserError for a prompt that is empty or does not fit with its answer."""
        for request in requests:
            length = len(request.prompt)
            if not length:
                raise UserError("the prompt is empty", where=f"question {request.key[0]}")
            if self.limit is not None and length + max_tokens > self.limit:
                raise UserError(
                    "the prompt and its answer do not fit into the model",
                    where=f"question {request.key[0]}",
                    found=f"{length} tokens of prompt + {max_tokens} new tokens; the model has {self.limit} positions",
                    hint="lower max_tokens, show fewer demonstrations, or leave the question out",
                )

    def collect(
        self, key: SampleKey, drawn: list[int], seen: list[tuple[list[int], list[float]]], line: int | None
    ) -> Generation:
        """A row as its text: what was drawn, what was seen, and where its answer line ends if it was stopped there."""
        # Behind its end a row may have gone on for some steps.
        ended = next((position for position, token in enumerate(drawn) if token in self.ends), None)
        stop: StopReason = "end" if ended is not None else "length"
        if line is not None:
            ended, stop = line, "cut"
        ids = drawn[:ended]
        # Up to the first token that is text (before it only specials can stand) a dummy space is no part of the text.
        first = next((position for position, token in enumerate(ids) if isinstance(self._start[token], bytes)), 0)
        tokens = [self.piece(token, max(0, position - first)) for position, token in enumerate(ids)]
        steps = seen[: len(tokens) + (stop == "end")]
        return Generation(
            key=key,
            ids=tuple(ids),
            tokens=tuple(tokens),
            content=b"".join(tokens),
            candidates=tuple(self._step(*step, max(0, position - first)) for position, step in enumerate(steps)),
            stop=stop,
        )

    def _step(self, ids: list[int], values: list[float], position: int) -> tuple[Candidate, ...]:
        """One step's outcomes; the last of `ids` was drawn, and may stand among the others too."""
        drawn = ids[-1]
        if drawn in ids[:-1]:
            ids, values = ids[:-1], values[:-1]
        known = self._start if position == 0 else self._inside
        found = [known[token] for token in ids]
        if None not in found and len(set(found)) == len(found) and values[-1] != -math.inf:
            # likeliest first, as they came
            return tuple(zip(found, map(_round_logprob, values), strict=True))  # type: ignore[return-value]
        outcomes: dict[bytes | End, float] = {}
        for token, outcome, value in zip(ids, found, values, strict=True):
            if outcome is None and token == drawn:
                outcome = b""  # it was written, so it is shown
            if outcome is None or value == -math.inf:
                continue
            # Two tokens that write the same bytes (a byte token beside a letter) are one outcome of the text.
            first = outcomes.get(outcome)
            outcomes[outcome] = value if first is None else first + math.log1p(math.exp(value - first))
        rounded = [(outcome, _round_logprob(value)) for outcome, value in outcomes.items()]
        return tuple(sorted(rounded, key=itemgetter(1), reverse=True))

    def piece(self, token: int, position: int) -> bytes:
        """The bytes that a drawn token adds to the text, none if it is the end or no text."""
        outcome = (self._start if position == 0 else self._inside)[token]
        return outcome if isinstance(outcome, bytes) else b""


class _TokenOutcomes(dict[int, bytes | End | None]):
    """What each token would do to a text, at its start or inside it; None for a special one that does nothing, and for
    an id that the tokenizer does not know: a head may have more rows than the vocabulary has items."""

    def __init__(self, tokenizer: Tokenizer, ends: Sequence[int], position: int) -> None:
        super().__init__()
        self.tokenizer, self.ends, self.position = tokenizer, ends, position

    def __missing__(self, token: int) -> bytes | End | None:
        known = self.tokenizer.candidate(token, self.position) if token < self.tokenizer.size else None
        self[token] = END if token in self.ends else known
        return self[token]


def _round_logprob(value: float) -> float:
    """Six decimals are a tenth of fp32's own noise here, and a third of the bytes at rest. (+ 0.0: never "-0.0".)"""
    return round(min(value, 0.0), 6) + 0.0


def _hard_target(ids: tuple[int, ...]) -> Target:
    kinds: list[TargetKind] = ["hard"] * len(ids)
    return Target(ids, range(len(ids) + 1), ids, [1.0] * len(ids), kinds)


def nan_logits_error() -> UserError:
    return UserError(
        "the model's logits are not numbers",
        found="NaN",
        hint="check its weights and its dtype; a student that diverged needs a lower learning rate",
    )


@contextmanager
def _eval_mode(model: Any) -> Iterator[None]:
    """The model without dropout."""
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)
