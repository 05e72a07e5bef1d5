"""The reference engine: `generate` of transformers, for decoder-only and encoder-decoder models.

    >>> ids, mask = _pad([(5, 6, 7), (8,)], pad=0, left=True, device=torch.device("cpu"))
    >>> ids.tolist(), mask.tolist()
    ([[5, 6, 7], [0, 0, 8]], [[1, 1, 1], [0, 0, 1]])

`generate` only runs the model and keeps its cache. Which token is taken is decided by `choice`, on the raw logits: a
logits processor that records what it saw and then leaves one finite score. Sampling policies that a checkpoint brings
along in its generation_config.json (a repetition penalty, say) never reach the text.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from transformers import GenerationConfig, LogitsProcessorList, StoppingCriteriaList

from potstill.engines import Generated, Request
from potstill.engines.choice import AnswerLine, Choice
from potstill.errors import UserError
from potstill.records import END, Candidate, End, Prompt, Stop
from potstill.students import Student


class Engine:
    """A student, or any local model opened as one, that writes texts. Fulfils `engines.Engine`."""

    def __init__(self, student: Student) -> None:
        self.student = student
        # An instruction-tuned model may end a turn with one token and a document with another; both are END. But a
        # configuration that was never adapted to its tokenizer may name a token that is plain text.
        named = student.model.generation_config.eos_token_id
        others = named if isinstance(named, list) else [] if named is None else [named]
        tokenizer = student.tokenizer
        special = {token for token in others if token < tokenizer.size and not tokenizer.bytes(token)}
        self.ends = (tokenizer.eos, *sorted(special - {tokenizer.eos}))

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
        stop_at_answer: bool = False,
    ) -> list[Generated]:
        """One batch. Beside the cache and one row of logits a text, memory holds k numbers a step, never a vocabulary.

        Raises UserError for a prompt that is empty or does not fit, and for logits that are not numbers.
        """
        assert max_tokens > 0 and temperature >= 0 and candidates >= 0, (max_tokens, temperature, candidates)
        if not requests:
            return []
        self._check(requests, max_tokens)
        model: Any = self.student.model  # PreTrainedModel does not say that it can generate
        tokenizer = self.student.tokenizer
        causal = self.student.family == "causal"
        ids, mask = _pad(
            [request.prompt for request in requests], tokenizer.pad, left=causal, device=self.student.device
        )
        choice = Choice([request.key for request in requests], temperature, seed, candidates)
        line = AnswerLine(len(requests), self.piece)
        settings = GenerationConfig(
            max_new_tokens=max_tokens,
            do_sample=False,
            use_cache=True,
            eos_token_id=list(self.ends),
            pad_token_id=tokenizer.pad,
            decoder_start_token_id=None if causal else model.config.decoder_start_token_id,
        )
        with _bare(model), torch.no_grad():
            model.generate(
                input_ids=ids,
                attention_mask=mask,
                generation_config=settings,
                logits_processor=LogitsProcessorList([choice]),
                stopping_criteria=StoppingCriteriaList([line] if stop_at_answer else []),
            )
        if choice.broken:
            raise UserError(
                "the model's logits are not numbers",
                found="NaN",
                do="check its weights and its dtype; a student that diverged needs a lower learning rate",
            )
        return [self._collect(row, request, choice, line.at[row]) for row, request in enumerate(requests)]

    def _check(self, requests: Sequence[Request], max_tokens: int) -> None:
        # T5 counts distances, not positions, so it has no limit; its n_positions is only what it was trained on.
        limit = getattr(self.student.model.config, "max_position_embeddings", None)
        for request in requests:
            length = len(request.prompt)
            if not length:
                raise UserError("the prompt is empty", where=f"question {request.key[0]}")
            if self.student.family == "causal" and limit is not None and length + max_tokens > limit:
                raise UserError(
                    "the prompt and its answer do not fit into the model",
                    where=f"question {request.key[0]}",
                    found=f"{length} tokens of prompt + {max_tokens} new tokens; the model has {limit} positions",
                    do="lower max_tokens, show fewer demonstrations, or leave the question out",
                )

    def _collect(self, row: int, request: Request, choice: Choice, line: int | None) -> Generated:
        drawn = choice.drawn(row)
        # Behind its end a row went on as padding until the last row of the batch was done.
        ended = next((position for position, token in enumerate(drawn) if token in self.ends), None)
        stop: Stop = "end" if ended is not None else "length"
        if line is not None:
            ended, stop = line, "cut"
        ids = drawn[:ended]
        # Up to the first token that is text (before it only specials can stand) a dummy space is no part of the text.
        first = next((position for position, token in enumerate(ids) if isinstance(self._outcome(token, 0), bytes)), 0)
        tokens = [self.piece(token, max(0, position - first)) for position, token in enumerate(ids)]
        steps = range(len(tokens) + (stop == "end")) if choice.count else ()
        return Generated(
            key=request.key,
            ids=tuple(ids),
            tokens=tuple(tokens),
            content=b"".join(tokens),
            candidates=tuple(self._step(*choice.seen(row, step), max(0, step - first)) for step in steps),
            stop=stop,
        )

    def _step(self, drawn: int, seen: Mapping[int, float], position: int) -> tuple[Candidate, ...]:
        outcomes: dict[bytes | End, float] = {}
        for token, value in sorted(seen.items(), key=lambda pair: (-pair[1], pair[0])):
            outcome = self._outcome(token, position)
            if outcome is None and token == drawn:
                outcome = b""  # it was written, so it is shown
            if outcome is None or value == -math.inf:
                continue
            # Two tokens that write the same bytes (a byte token beside a letter) are one outcome of the text.
            first = outcomes.get(outcome)
            outcomes[outcome] = value if first is None else first + math.log1p(math.exp(value - first))
        # Six decimals are a tenth of fp32's own noise here, and a third of the bytes at rest. (+ 0.0: never "-0.0".)
        known = {outcome: round(min(value, 0.0), 6) + 0.0 for outcome, value in outcomes.items()}
        return tuple(sorted(known.items(), key=lambda pair: -pair[1]))

    def _outcome(self, token: int, position: int) -> bytes | End | None:
        """What a token would do to the text; None for a special one that does nothing, and for an id that the tokenizer
        does not know: a head may have more rows than the vocabulary has items."""
        if token in self.ends:
            return END
        tokenizer = self.student.tokenizer
        return tokenizer.candidate(token, position) if token < tokenizer.size else None

    def piece(self, token: int, position: int) -> bytes:
        """The bytes that a drawn token adds to the text, none if it is the end or no text."""
        outcome = self._outcome(token, position)
        return outcome if isinstance(outcome, bytes) else b""


def _pad(
    prompts: Sequence[Sequence[int]], pad: int, *, left: bool, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    width = max(len(prompt) for prompt in prompts)
    ids = torch.full((len(prompts), width), pad, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for row, prompt in enumerate(prompts):
        place = slice(width - len(prompt), width) if left else slice(0, len(prompt))
        ids[row, place] = torch.tensor(prompt, dtype=torch.long)
        mask[row, place] = 1
    return ids.to(device), mask.to(device)


@contextmanager
def _bare(model: Any) -> Iterator[None]:
    """The model without dropout and without the generation settings of its checkpoint, which `generate` would
    merge into every field that we leave open."""
    training, settings = model.training, model.generation_config
    model.eval()
    model.generation_config = GenerationConfig()
    try:
        yield
    finally:
        model.generation_config = settings
        model.train(training)
