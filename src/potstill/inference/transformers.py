"""The reference engine: decoder-only and encoder-decoder models of transformers, and the generation loop.

    >>> from potstill.models import Shape, random_student
    >>> from potstill import demo, tokenization
    >>> tokenizer = tokenization.load_tokenizer(demo.DATA / "models" / "student")
    >>> shape = Shape("t5", d_model=8, layers=1, heads=2, d_ff=16, d_kv=4, vocabulary=tokenizer.size)
    >>> engine = TransformersEngine(random_student(shape, tokenizer, seed=1))
    >>> decode = Decode(max_tokens=3, temperature=1.0, top_logprobs=2)
    >>> [text] = engine.generate([Request(("q1", 0), (5, 6))], decode)
    >>> len(text.ids), len(text.candidates), text.stop
    (3, 3, 'length')

The model only computes raw logits; `sampling` selects the tokens. Sampling settings in a checkpoint's
generation_config.json (such as a repetition penalty) are ignored. Equal prompts are read once, and rows that have ended
are removed from the batch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from operator import itemgetter
from typing import Any, Final

import torch

from potstill.errors import UserError
from potstill.inference.engine import Decode, Generation, Request, SampleKey, ScoredText
from potstill.inference.fast_decode import fast_prefill
from potstill.inference.sampling import AnswerDetector, CalculatorDecoding, RepeatDetector, StepLogprobs, TokenSampler
from potstill.models import Example, Student
from potstill.records import END, Candidate, End, Prompt, StopReason, Target, TargetKind
from potstill.tokenization import Tokenizer

SCORE_CHUNK: Final = 1024  # number of positions whose logits exist at the same time while texts are scored


class TransformersEngine:
    """An `Engine` and `ScoringEngine` for a student, or for any local model that is opened as a student."""

    def __init__(self, student: Student) -> None:
        self.student = student
        # An instruction-tuned model may end a turn with one token, and a document with another token; both are END. A
        # configuration that does not match its tokenizer may name a token of plain text, which is ignored.
        eos = student.model.generation_config.eos_token_id
        eos_ids = eos if isinstance(eos, list) else [] if eos is None else [eos]
        tokenizer = student.tokenizer
        known = [token for token in eos_ids if type(token) is int and 0 <= token < tokenizer.size]
        special = {token for token in known if not tokenizer.token_bytes(token)}
        self.end_tokens = (tokenizer.eos, *sorted(special - {tokenizer.eos}))
        # T5 has relative positions without a limit; its `n_positions` is only the length of its training texts.
        config, causal = student.model.config, student.family == "causal"
        self.max_positions: int | None = getattr(config, "max_position_embeddings", None) if causal else None
        self._start, self._inside = (_TokenOutcomes(tokenizer, self.end_tokens, position) for position in (0, 1))

    @property
    def opens_thought(self) -> bool:
        return self.student.opens_thought

    def encode(self, prompt: Prompt) -> tuple[int, ...]:
        return tuple(self.student.encode(self.student.render(prompt)))

    def generate(
        self, requests: Sequence[Request], decode: Decode, on_tokens: Callable[[int], None] | None = None
    ) -> list[Generation]:
        """A batch of texts. Memory: the cache, one row of logits per text, and k numbers per step (not k vocabularies).

        on_tokens  function that is called at every step with the number of new tokens

        Raises UserError for a prompt that is empty or too long, and for logits that are NaN.
        """
        if not requests:
            return []
        self.check_requests(requests, decode.max_tokens)
        sampler = TokenSampler([request.key for request in requests], decode)
        detector = calculator = repeats = None
        if decode.stop_at_answer:
            detector = AnswerDetector(len(requests), self.token_bytes, decode.stop_at_answer)
        if decode.calculator:
            calculator = CalculatorDecoding(len(requests), self.student.tokenizer, self.token_bytes)
        if decode.stop_repeats:
            repeats = RepeatDetector(len(requests), self.token_bytes)
        with eval_mode(self.student.model), torch.no_grad():
            self._generate(requests, decode.max_tokens, sampler, detector, repeats, calculator, on_tokens)
        if sampler.has_nan:
            raise nan_logits_error()
        answer_lengths = detector.lengths if detector else [None] * len(requests)
        texts = []
        for row, (request, steps) in enumerate(zip(requests, sampler.top_logprobs(), strict=True)):
            cut: tuple[int | None, StopReason] = (answer_lengths[row], "cut")
            if cut[0] is None and repeats:
                cut = (repeats.lengths[row], "repeat")
            texts.append(self.to_generation(request.key, sampler.tokens[row], steps, *cut))
        likelihoods = sampler.likelihoods([text.written for text in texts])
        return [replace(text, likelihood=value) for text, value in zip(texts, likelihoods, strict=True)]

    def score(self, requests: Sequence[Request], texts: Sequence[str], *, top_logprobs: int) -> list[ScoredText]:
        """The scores of existing texts. Memory: the states of all positions, and the logits of SCORE_CHUNK positions."""
        if not requests:
            return []
        tokenizer = self.student.tokenizer
        encodings = tokenizer.encode_batch(list(texts))
        rows = []
        for request, encoding in zip(requests, encodings, strict=True):
            self.check_requests([request], len(encoding.ids) + 1)
            rows.append(hard_example(request.prompt, tuple(encoding.ids), tokenizer.eos))
        ids, values = score_targets(self.student, rows, top_logprobs)
        if values.isnan().any():
            raise nan_logits_error()
        steps = zip(ids.tolist(), values.tolist(), strict=True)
        return [
            ScoredText(
                ids=tuple(encoding.ids),
                tokens=tuple(self.token_bytes(token, position) for position, token in enumerate(encoding.ids)),
                spans=tuple(encoding.spans),
                candidates=tuple(self._step(*next(steps), position) for position in range(len(encoding.ids) + 1)),
            )
            for encoding in encodings
        ]

    def _generate(
        self,
        requests: Sequence[Request],
        max_tokens: int,
        sampler: TokenSampler,
        detector: AnswerDetector | None,
        repeats: RepeatDetector | None,
        calculator: CalculatorDecoding | None,
        on_tokens: Callable[[int], None] | None,
    ) -> None:
        """Generate one token per row and step, until every row has ended or has `max_tokens` tokens."""
        end_tokens, ended = frozenset(self.end_tokens), set[int]()
        state = fast_prefill(self.student, [request.prompt for request in requests])
        live = list(range(len(requests)))  # request of each row of the state; some of these rows may have ended
        for position in range(max_tokens):
            if calculator:
                logits = calculator.mask_logits(state.logits, live)
                ids = sampler.sample(logits, live, calculator.forced_tokens(state.logits, live))
            else:
                ids = sampler.sample(state.logits, live)
            writing = [row for row in live if row not in ended]
            if on_tokens:
                on_tokens(len(writing))
            for row in live:
                token = sampler.tokens[row][-1]
                if calculator:
                    calculator.add(row, token, position)
                if row not in ended and (token in end_tokens or (detector and detector.add(row, token, position))):
                    ended.add(row)
            if repeats:
                writing = [row for row in writing if row not in ended]
                ended.update(repeats.add(writing, [sampler.tokens[row] for row in writing]))
            if len(ended) == len(requests) or position + 1 == max_tokens:
                break
            unfinished = [index for index, row in enumerate(live) if row not in ended]
            if len(unfinished) <= state.keep_share * len(live):
                order = state.keep(unfinished)
                live, ids = [live[index] for index in order], ids[order]
            state.step(ids)

    def check_requests(self, requests: Sequence[Request], max_tokens: int) -> None:
        """Raise UserError for a prompt that is empty or, together with `max_tokens`, too long for the model."""
        for request in requests:
            length, where = len(request.prompt), f"question {request.key[0]}"
            if not length:
                raise UserError("the prompt is empty", code="E-inference-empty-prompt", where=where)
            if self.max_positions is not None and length + max_tokens > self.max_positions:
                raise UserError(
                    "the prompt and its answer are too long for the model",
                    code="E-inference-prompt-too-long",
                    where=where,
                    found=f"{length} prompt tokens + {max_tokens} new tokens; the model has {self.max_positions} positions",
                    hint="lower max_tokens, use fewer demonstrations, or remove the question",
                )

    def to_generation(
        self,
        key: SampleKey,
        tokens: list[int],
        steps: list[StepLogprobs],
        cut_length: int | None,
        cut_reason: StopReason = "cut",
    ) -> Generation:
        """A row as a text, without the tokens after its end.

        tokens      all tokens of the row
        steps       recorded outcomes, one entry per token; or empty
        cut_length  number of tokens to keep, if a rule stopped the row; None otherwise
        cut_reason  the rule: `cut` (after the answer) or `repeat`
        """
        length = next((position for position, token in enumerate(tokens) if token in self.end_tokens), None)
        stop: StopReason = "end" if length is not None else "length"
        if cut_length is not None:
            length, stop = cut_length, cut_reason
        ids = tokens[:length]
        # The first text token (only special tokens may precede it) does not contribute its dummy space.
        tags = self.student.tokenizer.vocabulary.thought_tags
        is_text = (token not in tags and isinstance(self._start[token], bytes) for token in ids)
        first = next((position for position, found in enumerate(is_text) if found), 0)
        contents = [self.token_bytes(token, max(0, position - first)) for position, token in enumerate(ids)]
        steps = steps[: len(contents) + (stop == "end")]
        return Generation(
            key=key,
            ids=tuple(ids),
            tokens=tuple(contents),
            content=b"".join(contents),
            candidates=tuple(self._step(*step, max(0, position - first)) for position, step in enumerate(steps)),
            stop=stop,
            opened=self.opens_thought,
        )

    def _step(self, ids: list[int], values: list[float], position: int) -> tuple[Candidate, ...]:
        """The outcomes of a step. The last id is the sampled token, which may also be among the ids before it."""
        sampled = ids[-1]
        if sampled in ids[:-1]:
            ids, values = ids[:-1], values[:-1]
        table = self._start if position == 0 else self._inside
        outcomes = [table[token] for token in ids]
        if None not in outcomes and len(set(outcomes)) == len(outcomes) and values[-1] != -math.inf:
            # The usual case: distinct outcomes, already sorted by probability.
            return tuple(zip(outcomes, map(_round_logprob, values), strict=True))  # type: ignore[return-value]
        merged: dict[bytes | End, float] = {}
        for token, outcome, value in zip(ids, outcomes, values, strict=True):
            if outcome is None and token == sampled:
                outcome = b""  # the sampled token is always listed
            if outcome is None or value == -math.inf:
                continue
            # Two tokens that write the same bytes (a byte token and a letter) are one outcome, so add their probabilities.
            known = merged.get(outcome)
            merged[outcome] = value if known is None else known + math.log1p(math.exp(value - known))
        rounded = [(outcome, _round_logprob(value)) for outcome, value in merged.items()]
        return tuple(sorted(rounded, key=itemgetter(1), reverse=True))

    def token_bytes(self, token: int, position: int) -> bytes:
        """The bytes that a token adds to a text at a position; empty for special tokens, except for tags of thoughts."""
        outcome = (self._start if position == 0 else self._inside)[token]
        return outcome if isinstance(outcome, bytes) else b""


class _TokenOutcomes(dict[int, bytes | End | None]):
    """Token id -> the bytes that it writes at the start of a text or inside it, or END. Computed at the first use.

    A special token that is a tag of thoughts writes its name. None for other special tokens, and for ids outside the
    vocabulary (the head may have more rows than tokens).
    """

    def __init__(self, tokenizer: Tokenizer, end_tokens: Sequence[int], position: int) -> None:
        super().__init__()
        self.tokenizer, self.end_tokens, self.position = tokenizer, end_tokens, position

    def __missing__(self, token: int) -> bytes | End | None:
        outcome = self.tokenizer.candidate(token, self.position) if token < self.tokenizer.size else None
        outcome = self.tokenizer.vocabulary.thought_tags.get(token, outcome)
        self[token] = END if token in self.end_tokens else outcome
        return self[token]


def _round_logprob(value: float) -> float:
    """Round to six decimals, a tenth of float32's noise, which takes a third of the bytes on disk; + 0.0 avoids "-0.0"."""
    return round(min(value, 0.0), 6) + 0.0


def hard_example(
    prompt: tuple[int, ...], ids: tuple[int, ...], end: int | None, question: str = "", format: str = ""
) -> Example:
    """A text as an example with hard targets. end: its end token; None if it was truncated at a token limit."""
    tokens = ids if end is None else (*ids, end)
    kinds: list[TargetKind] = ["same"] * len(ids)
    if end is not None:
        kinds.append("end")
    target = Target(tokens, range(len(tokens) + 1), tokens, [1.0] * len(tokens), tuple(kinds))
    return Example(prompt, target, 1.0, question, format)


def score_targets(
    student: Student, rows: Sequence[Example], top_k: int, *, vocabulary: int | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids [n, k + 1] int64 and raw natural log-probabilities [n, k + 1] at the n positions of the rows' targets.

    They are those of the k most likely tokens, then of the target's token, which may be among them. NaN if the logits are
    NaN. vocabulary: only ids below it are listed.
    """
    ids, values = [], []
    with eval_mode(student.model), torch.no_grad():
        batch = student.batch(rows).to(student.device)
        tokens = torch.tensor([token for row in rows for token in row.target.ids], device=student.device)[:, None]
        chunks = zip(student.hidden(batch).split(SCORE_CHUNK), tokens.split(SCORE_CHUNK), strict=True)
        for states, chunk in chunks:
            logprobs = student.head.logits(states).float().log_softmax(-1)[:, :vocabulary]
            top_values, top = logprobs.topk(min(top_k, logprobs.shape[-1]), dim=-1)
            ids.append(torch.cat([top, chunk], -1))
            values.append(torch.cat([top_values, logprobs.gather(-1, chunk)], -1))
    return torch.cat(ids), torch.cat(values)


def nan_logits_error() -> UserError:
    hint = "check the weights and the dtype of the model; if a student diverged, lower the learning rate"
    return UserError("the model's logits are not numbers", code="E-inference-nan-logits", found="NaN", hint=hint)


@contextmanager
def eval_mode(model: Any) -> Iterator[None]:
    """Switch a model to evaluation mode, without dropout, for the block."""
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)
