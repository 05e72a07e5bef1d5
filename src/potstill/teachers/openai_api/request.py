"""Asking: what is sent. Every sampling parameter is said, so that no server's default decides.

>>> settings = ServerSettings(model="m", temperature=0.5, max_tokens=8, candidates=2)
>>> body = build_body(settings, Capabilities(), Prompt((Turn("user", "2 + 2"),), "\\n"), n=1, seed=7)
>>> body["prompt"], body["logprobs"], body["temperature"], body["top_p"], body["seed"]
('2 + 2\\n', 2, 0.5, 1.0, 7)
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final, Literal

from potstill.records import Prompt, Question, Turn
from potstill.teachers.openai_api.token_entries import LearntPart

# A parameter that a server refuses is sent with the next of its values, then left out.
FALLBACK_VALUES: Final[dict[str, tuple[Any, ...]]] = {"top_k": (0, -1)}
NEUTRAL_PARAMETERS: Final[dict[str, Any]] = {
    "min_p": 0.0,
    "repetition_penalty": 1.0,  # vLLM, SGLang
    "repeat_penalty": 1.0,  # llama.cpp
    "presence_penalty": 0.0,
    "frequency_penalty": 0.0,
}
ENDPOINTS: Final = {"completions": "/completions", "chat": "/chat/completions"}
REQUIRED_PARAMETERS: Final = {"model", "prompt", "messages", "stop", "max_tokens", "max_completion_tokens"}


@dataclass(frozen=True, slots=True)
class ServerSettings:
    """What a recipe says of a server; seconds, tokens, and money in the unit of the prices (a million tokens)."""

    model: str
    urls: tuple[str, ...] = ("http://localhost:8000/v1",)
    api: Literal["completions", "chat"] = "completions"
    key: str | None = None  # name of the environment variable
    samples: int = 1
    temperature: float = 0.5
    max_tokens: int = 256
    candidates: int = 5
    seed: int = 0
    source: str = "openai"
    system: str | None = None
    stop: tuple[str, ...] = ()
    per_request: int = 8
    enough: int | None = None
    learn: LearntPart = "both"
    extra: Mapping[str, Any] = field(default_factory=dict)  # further fields of every request
    concurrency: int = 64
    timeout: float = 600.0
    patience: float = 300.0
    first_pause: float = 0.5
    tries: int = 30
    refused: Literal["stop", "skip"] = "stop"
    most_tokens: int | None = None
    most_money: float | None = None
    prices: tuple[float, float] = (0.0, 0.0)
    spent: Literal["stop", "seal"] = "stop"


@dataclass(frozen=True, slots=True)
class Capabilities:
    """How a server wants to be asked, and what it gives: found out by the probe, kept for the whole run.

    n         whether it writes as many texts as asked
    ids       whether it names tokens by ids
    length    the name of the parameter for the most tokens
    values    values that replaced refused ones; left_out: parameters that it refuses altogether
    whole     whether its list of tokens was whole
    bytes     what its tokens' bytes are: true, strings, ids, none
    ends      how it names the end
    semantics what its log-probabilities mean
    """

    n: bool = True
    ids: bool = False
    length: str = "max_tokens"
    values: dict[str, Any] = field(default_factory=dict)
    left_out: tuple[str, ...] = ()
    whole: bool = True
    bytes: str = "none"
    ends: tuple[str, ...] = ()
    semantics: str = "none"
    served: str = ""

    def without(self, name: str) -> Capabilities | None:
        """The manner without a parameter that was refused; None where nothing can be done without it."""
        ladder = FALLBACK_VALUES.get(name, ())
        used = self.values.get(name, ladder[0] if ladder else None)
        if used in ladder[:-1]:
            return replace(self, values={**self.values, name: ladder[ladder.index(used) + 1]})
        if name == "max_tokens" and self.length == "max_tokens":
            return replace(self, length="max_completion_tokens")
        if name in ("return_token_ids", "return_tokens_as_token_ids"):
            return replace(self, ids=False)
        if name in REQUIRED_PARAMETERS or name in self.left_out:
            return None
        return replace(self, left_out=(*self.left_out, name), n=self.n and name != "n")


@dataclass(slots=True)
class SampleRequest:
    """The texts of one request: a question and indices. `mended`: asked again once, because entries were missing."""

    question: Question
    prompt: Prompt
    indices: tuple[int, ...]
    tries: int = 0
    mended: bool = False


def iter_requests(
    settings: ServerSettings,
    width: int,
    questions: Sequence[Question],
    prompt_of: Callable[[Question], Prompt],
    done: Container[tuple[str, str, int]],
    right: Mapping[str, int],
) -> Iterator[SampleRequest]:
    """The requests for what is not stored, `width` texts at most in each; of a question that may stop early only the
    next one, and none once enough of its chains are right.

    done   keys (question, source, index) that are stored
    right  question -> right chains of it
    """
    for question in questions:
        if settings.enough is not None and right.get(question.id, 0) >= settings.enough:
            continue
        prompt = None
        for indices in iter_missing_indices(settings, width, question, done):
            prompt = prompt or prompt_of(question)
            yield SampleRequest(question, prompt, indices)
            if settings.enough is not None:
                break


def iter_missing_indices(
    settings: ServerSettings, width: int, question: Question, done: Container[tuple[str, str, int]], first: int = 0
) -> Iterator[tuple[int, ...]]:
    """The indices of a question's chains that are not stored, from the first on, request by request."""
    for start in range(first, settings.samples, width):
        stop = min(start + width, settings.samples)
        indices = tuple(i for i in range(start, stop) if (question.id, settings.source, i) not in done)
        if indices:
            yield indices


def build_request(settings: ServerSettings, manner: Capabilities, ask: SampleRequest) -> dict[str, Any]:
    """The body that asks for some chains: the same for the same ones, another with every try."""
    seed = derive_seed(settings.seed, ask.question.id, (*ask.indices, ask.tries))
    return build_body(settings, manner, ask.prompt, n=len(ask.indices), seed=seed)


def build_body(
    settings: ServerSettings,
    manner: Capabilities,
    prompt: Prompt,
    *,
    n: int,
    seed: int,
    max_tokens: int | None = None,
    temperature: float | None = None,
) -> dict[str, Any]:
    """The body of a request for n texts. `max_tokens` and `temperature` replace the settings', for the probe."""
    body: dict[str, Any] = {"model": settings.model}
    if settings.api == "chat":
        system = (Turn("system", settings.system),) if settings.system else ()
        body["messages"] = Prompt((*system, *prompt.turns)).messages
    else:
        body["prompt"] = prompt.plain + prompt.lead
    body[manner.length] = max_tokens or settings.max_tokens
    body["temperature"] = settings.temperature if temperature is None else temperature
    body |= {
        "top_p": 1.0,
        "n": n,
        "seed": seed,
        "stream": False,
        "top_k": manner.values.get("top_k", 0),
        **NEUTRAL_PARAMETERS,
    }
    if settings.stop:
        body["stop"] = list(settings.stop)
    if settings.candidates:
        chat = settings.api == "chat"
        body |= {"logprobs": True, "top_logprobs": settings.candidates} if chat else {"logprobs": settings.candidates}
    if manner.ids:
        body |= {"return_token_ids": True, "return_tokens_as_token_ids": True}
    return {name: value for name, value in body.items() if name not in manner.left_out} | dict(settings.extra)


def derive_seed(seed: int, question: str, indices: Sequence[int]) -> int:
    """A seed of 31 bits for one request: no two of a run are alike, though servers count up from it for n texts.

    >>> derive_seed(0, "q1", [0, 1]) == derive_seed(0, "q1", [0, 1]), derive_seed(0, "q1", [0, 1]) == derive_seed(0, "q1", [1])
    (True, False)
    """
    state = hashlib.sha256(f"{seed}\0{question}\0{','.join(map(str, indices))}".encode())
    return int.from_bytes(state.digest()[:4], "big") & 0x7FFFFFFF
