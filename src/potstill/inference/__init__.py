"""Engines: many prompts in, as many texts out, with what the model said about every token.

    >>> requests = [Request(("q1", 0), (5, 6, 7)), Request(("q2", 0), (5, 6)), Request(("q3", 0), (9, 8, 7, 6))]
    >>> batch_requests(requests, budget=6)      # 1 x 4, then 2 x 3 tokens
    ((2,), (0, 1))
    >>> batch_requests(requests, budget=8, max_tokens=2)      # 1 x 6, 1 x 5, 1 x 4
    ((2,), (0,), (1,))

A batch is the unit of resume. It is a pure function of the set of requests and of the budget, so a run that was
interrupted computes the batches that it lacks as the uninterrupted run would have, to the last bit on one machine.
Across batches of another make-up only float noise differs: a draw comes from `uniform`, a counter.

This module is the contract: it imports no model library until `open` is called. `engines.transformers`,
`engines.ctranslate2` and `engines.vllm` fulfil it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, Protocol, overload

from potstill.records import Candidate, Prompt, StopReason

if TYPE_CHECKING:
    from potstill.models import Student
    from potstill.recipe import VllmSection

VERSION: Final = 2  # of `uniform`, of `batches` and of how an engine draws: stored where sampled texts are stored

SampleKey = tuple[str, int]
EngineKind = Literal["transformers", "ctranslate2", "ctranslate2-int8", "vllm"]
StopUnit = Literal["line", "sentence"]  # behind which a text can be stopped


@dataclass(frozen=True, slots=True)
class Request:
    """One text to be written.

    key     id of the question, index of the sample: what its draws and its place depend on
    prompt  token ids as the model is fed them, nothing is added. Samples of one question share one tuple.
    """

    key: SampleKey
    prompt: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Generation:
    """One text as its model wrote it.

    ids         [n] token ids, without the end token
    tokens      [n] the bytes that each adds to the text
    content     the bytes of the text: the tokens put one after the other
    candidates  empty if none were asked for; else one step a token and, if `stop` is `end`, one more for the end. A
                step holds the k likeliest outcomes and the drawn one (so k or k + 1, fewer where fewer are possible),
                likeliest first, each once, with the natural logarithm of its raw probability to six decimals
    likelihood  sum of the raw natural log-probabilities of what the model wrote itself, its end counted; None unless
                asked for
    stop        end: the model ended it; length: `max_tokens` were written; cut: stopped behind its answer line, whose
                newline is still part of `content` (`teachers.cut` takes it off)
    """

    key: SampleKey
    ids: tuple[int, ...]
    tokens: tuple[bytes, ...]
    content: bytes
    candidates: tuple[tuple[Candidate, ...], ...]
    stop: StopReason
    likelihood: float | None = None

    @property
    def text(self) -> str:
        return self.content.decode("utf-8", "replace")


class Engine(Protocol):
    """What every library that generates is wrapped into."""

    def encode(self, prompt: Prompt) -> tuple[int, ...]:
        """The ids of a prompt as this model wants it rendered."""
        ...

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
        """One batch of texts, in the order of the requests.

        max_tokens      most tokens of one text, its end token counted
        temperature     0 takes the likeliest token, else logits are divided by it before a token is drawn
        seed            together with key and position decides a draw
        candidates      how many outcomes a step shows; their log-probabilities are raw, whatever the temperature
        stop_at_answer  stop a text once the first line that holds "answer is" is complete (its newline is written), or
                        the first such sentence (for models that write no newline; the token behind it is dropped)
        calculator      write the exact result behind an arithmetic expression and `=`, whatever the model would write
        likelihood      say how likely each text was

        Raises UserError if a prompt and `max_tokens` exceed the positions of the model: nothing is ever cut silently.
        """
        ...


class ScoringEngine(Engine, Protocol):
    """An engine that also reads texts that exist."""

    def score(self, requests: Sequence[Request], texts: Sequence[str], *, candidates: int) -> list[ScoredText]:
        """One batch of texts read behind their prompts, in the order of the requests: one forward pass, nothing drawn.

        Raises UserError as `generate` does.
        """
        ...


@dataclass(frozen=True, slots=True)
class ScoredText:
    """A text that somebody wrote, as a model reads it.

    ids         [n] token ids
    tokens      [n] the bytes that each means to this model
    spans       [n] start and end of each in the text, in bytes
    candidates  [n + 1] as in `Generated`, the written token among them; the last step says how likely the end was
    """

    ids: tuple[int, ...]
    tokens: tuple[bytes, ...]
    spans: tuple[tuple[int, int], ...]
    candidates: tuple[tuple[Candidate, ...], ...]


@overload
def open_engine(
    source: Student | Path | str,
    kind: Literal["transformers"] = "transformers",
    *,
    trust_remote_code: bool = False,
    chat_template: Literal["auto"] | bool = False,
) -> ScoringEngine: ...
@overload
def open_engine(
    source: Student | Path | str,
    kind: EngineKind,
    *,
    trust_remote_code: bool = False,
    chat_template: Literal["auto"] | bool = False,
    vllm: VllmSection | None = None,
) -> Engine: ...
def open_engine(
    source: Student | Path | str,
    kind: EngineKind = "transformers",
    *,
    trust_remote_code: bool = False,
    chat_template: Literal["auto"] | bool = False,
    vllm: VllmSection | None = None,
) -> Engine:
    """The engine of a kind around a student, or around the model in a folder of Hugging Face form.

    transformers computes where the student is: one that is opened here is moved to where `students.device` says, one
          that was open stays, since an optimizer may hold moments beside its weights.
    chat_template  of a folder: prompts in its own chat template (`students.open`); a student that is open has its own
    vllm  how vLLM holds the model. If it says no dtype, a folder is taken as its weights are stored, a student in
          float32 as the other engines take it. Of a student that was opened without weights vLLM reads them itself.

    Raises UserError where the folder holds no model that can be opened, see `students.open`; where CTranslate2 is not
    installed, does not know the kind of model, or would change its scores; where vLLM is not installed or does not
    start.
    """
    from potstill import models  # torch

    if kind == "vllm":
        return _open_vllm(source, trust_remote_code, chat_template, vllm)
    folder = isinstance(source, Path | str)
    told: Any = {"chat_template": chat_template, "chat_key": "teacher.chat", "trust_remote_code": trust_remote_code}
    student = models.open_student(source, **told) if folder else source
    if kind == "transformers":
        from potstill.inference import transformers

        return transformers.TransformersEngine(student.to(models.default_device()) if folder else student)
    from potstill.inference import ctranslate2

    return ctranslate2.CTranslate2Engine(student, int8=kind == "ctranslate2-int8")


def has_chat_template(folder: Path) -> bool:
    """Whether the model in a folder has a chat template, in which `open` with `chat_template="auto"` asks it."""
    from potstill import models

    return models.auto_uses_chat_template(folder)


def _open_vllm(
    source: Student | Path | str,
    trust_remote_code: bool,
    chat_template: Literal["auto"] | bool,
    settings: VllmSection | None,
) -> Engine:
    from potstill import models
    from potstill.inference import vllm
    from potstill.recipe import VllmSection

    vllm.import_vllm()  # before anything is read
    settings, dtype = settings or VllmSection(), "float32"
    if isinstance(source, Path | str):
        told: Any = {"chat_template": chat_template, "chat_key": "teacher.chat", "trust_remote_code": trust_remote_code}
        source = models.open_student(source, weights=False, **told)
        dtype = str(source.model.dtype).removeprefix("torch.")
    return vllm.VllmEngine(source, settings, dtype=settings.dtype or dtype, trust_remote_code=trust_remote_code)


def batch_requests(requests: Sequence[Request], budget: int, *, max_tokens: int = 0) -> tuple[tuple[int, ...], ...]:
    """Indices of the requests, batch by batch: longest prompts first, samples of a question side by side.

    budget      tokens that a batch may hold: rows x (its longest prompt + `max_tokens`). A request that alone exceeds
                it makes a batch of its own.
    max_tokens  tokens that each row may grow by

    Which keys share a batch depends on the set of requests only, neither on their order nor on what is already done.
    """
    assert budget > 0 and max_tokens >= 0, (budget, max_tokens)
    assert len({request.key for request in requests}) == len(requests), "two requests with one key"
    order = sorted(range(len(requests)), key=lambda index: (-len(requests[index].prompt), requests[index].key))
    result, start = [], 0
    while start < len(order):
        longest = len(requests[order[start]].prompt) + max_tokens
        rows = max(1, budget // max(1, longest))
        result.append(tuple(order[start : start + rows]))
        start += rows
    return tuple(result)


def draw_uniform(seed: int, key: SampleKey, position: int) -> float:
    """The number in [0, 1) that decides the token at `position` of the text `key`: a counter, not a generator, so it
    depends on nothing that was drawn before.

    >>> draw_uniform(0, ("gsm8k/1", 0), 0) == draw_uniform(0, ("gsm8k/1", 0), 0) != draw_uniform(0, ("gsm8k/1", 1), 0)
    True
    """
    question, index = key
    counter = f"{seed}/{index}/{position}/{question}".encode("utf-8", "surrogatepass")
    digest = hashlib.blake2b(counter, digest_size=8).digest()
    return (int.from_bytes(digest, "big") >> 11) * 2.0**-53
