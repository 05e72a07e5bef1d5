"""Request bodies. A body sets every sampling parameter, so no server default takes effect.

>>> settings = ServerSettings(model="m", temperature=0.5, max_tokens=8, top_logprobs=2)
>>> body = build_body(settings, Capabilities(), Prompt((Turn("user", "2 + 2"),), "\\n"), n=1, seed=7)
>>> body["prompt"], body["logprobs"], body["temperature"], body["top_p"], body["seed"]
('2 + 2\\n', 2, 0.5, 1.0, 7)
"""

from __future__ import annotations

import hashlib
from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final, Literal

from potstill.recipe.teacher import LearntPart
from potstill.records import Prompt, Question, Turn
from potstill.storage.segments import ChainKey
from potstill.teachers.protocol import PromptBuilder

NEUTRAL_PARAMETERS: Final[dict[str, Any]] = {
    "min_p": 0.0,
    "repetition_penalty": 1.0,  # vLLM, SGLang
    "repeat_penalty": 1.0,  # llama.cpp
    "presence_penalty": 0.0,
    "frequency_penalty": 0.0,
}
ENDPOINTS: Final = {"completions": "/completions", "chat": "/chat/completions"}
REQUIRED_PARAMETERS: Final = {"model", "prompt", "messages", "stop", "max_tokens", "max_completion_tokens"}
REQUEST_IDS: Final = {"return_token_ids": True, "return_tokens_as_token_ids": True}


@dataclass(frozen=True, slots=True)
class ServerSettings:
    """The settings of a recipe for its server.

    A field with the name of a recipe key has the meaning of that key. Times are in seconds, prices per million tokens.
    """

    model: str
    urls: tuple[str, ...] = ("http://localhost:8000/v1",)
    api: Literal["completions", "chat"] = "completions"
    key: str | None = None  # name of the environment variable that contains the API key
    samples: int = 1
    temperature: float = 0.5
    max_tokens: int = 256
    top_logprobs: int = 5
    seed: int = 0
    source: str = "openai"
    system: str | None = None
    stop: tuple[str, ...] = ()
    samples_per_request: int = 8
    enough: int | None = None
    reasoning: LearntPart = "both"
    extra: Mapping[str, Any] = field(default_factory=dict)
    concurrency: int = 64
    timeout: float = 600.0
    patience: float = 300.0
    first_backoff: float = 0.5
    max_tries: int = 30
    refused: Literal["stop", "skip"] = "stop"
    budget_tokens: int | None = None
    budget_money: float | None = None
    prices: tuple[float, float] = (0.0, 0.0)  # price of prompt tokens, price of completion tokens
    spent: Literal["stop", "seal"] = "stop"


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What a server accepts and returns. The probe tests it once, and `server.json` stores it for the whole run.

    n          whether the server returns as many texts as requested
    ids        whether it names tokens by ids
    length     name of the parameter for the maximum number of tokens
    values     parameter -> the value sent instead of a refused value
    left_out   parameters that the server refuses with any value
    whole      whether its list of tokens was complete
    bytes      source of the tokens' bytes: true, strings, ids, none
    ends       strings by which it names the end token
    semantics  meaning of its log-probabilities, see `records.Chain`
    served     the model that the server names
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
        """The capabilities without a parameter that the server refused; None if the parameter is required."""
        if name == "top_k" and "top_k" not in self.values:  # some servers turn top_k off by -1 instead of 0
            return replace(self, values={"top_k": -1})
        if name == "max_tokens" and self.length == "max_tokens":
            return replace(self, length="max_completion_tokens")
        if name in REQUEST_IDS:
            return replace(self, ids=False)
        if name in REQUIRED_PARAMETERS or name in self.left_out:
            return None
        return replace(self, left_out=(*self.left_out, name), n=self.n and name != "n")


@dataclass(slots=True)
class SampleRequest:
    """A request for chains of one question, by their indices.

    accept_incomplete  whether texts with missing entries are accepted, because an earlier try returned such texts
    """

    question: Question
    prompt: Prompt
    indices: tuple[int, ...]
    tries: int = 0
    accept_incomplete: bool = False


def iter_requests(
    settings: ServerSettings,
    width: int,
    questions: Sequence[Question],
    build_prompt: PromptBuilder,
    stored: Container[ChainKey],
    right: Mapping[str, int],
) -> Iterator[SampleRequest]:
    """The requests for all missing chains, with at most `width` chains per request.

    stored  keys of the stored chains
    right   question id -> number of its right chains. With `settings.enough`, a question with enough right chains gets
            no request, and any other question gets only its next request
    """
    for question in questions:
        if settings.enough is not None and right.get(question.id, 0) >= settings.enough:
            continue
        prompt = None
        for indices in iter_missing_indices(settings, width, question, stored):
            prompt = prompt or build_prompt(question)
            yield SampleRequest(question, prompt, indices)
            if settings.enough is not None:
                break


def iter_missing_indices(
    settings: ServerSettings, width: int, question: Question, stored: Container[ChainKey], first: int = 0
) -> Iterator[tuple[int, ...]]:
    """The indices of a question's missing chains, from `first` on, request by request."""
    for start in range(first, settings.samples, width):
        stop = min(start + width, settings.samples)
        indices = tuple(i for i in range(start, stop) if (question.id, settings.source, i) not in stored)
        if indices:
            yield indices


def build_request(settings: ServerSettings, capabilities: Capabilities, request: SampleRequest) -> dict[str, Any]:
    """The body of a request. Its seed depends on the chains and on the number of the try."""
    seed = derive_seed(settings.seed, request.question.id, (*request.indices, request.tries))
    return build_body(settings, capabilities, request.prompt, n=len(request.indices), seed=seed)


def build_body(
    settings: ServerSettings,
    capabilities: Capabilities,
    prompt: Prompt,
    *,
    n: int,
    seed: int,
    max_tokens: int | None = None,
    temperature: float | None = None,
) -> dict[str, Any]:
    """The body of a request for n texts. max_tokens, temperature: None: the values of the settings; the probe sets both."""
    body: dict[str, Any] = {"model": settings.model}
    chat = settings.api == "chat"
    if chat:
        system = (Turn("system", settings.system),) if settings.system else ()
        body["messages"] = Prompt((*system, *prompt.turns)).messages
    else:
        body["prompt"] = prompt.plain + prompt.lead
    body[capabilities.length] = max_tokens or settings.max_tokens
    body["temperature"] = settings.temperature if temperature is None else temperature
    body |= {"top_p": 1.0, "n": n, "seed": seed, "stream": False, "top_k": capabilities.values.get("top_k", 0)}
    body |= NEUTRAL_PARAMETERS
    if settings.stop:
        body["stop"] = list(settings.stop)
    if k := settings.top_logprobs:
        body |= {"logprobs": True, "top_logprobs": k} if chat else {"logprobs": k}
    if capabilities.ids:
        body |= REQUEST_IDS
    return {name: value for name, value in body.items() if name not in capabilities.left_out} | dict(settings.extra)


def derive_seed(seed: int, question: str, indices: Sequence[int]) -> int:
    """A seed of 31 bits for one request. For n texts, servers count up from it, so a hash keeps the seeds far apart."""
    state = hashlib.sha256(f"{seed}\0{question}\0{','.join(map(str, indices))}".encode())
    return int.from_bytes(state.digest()[:4], "big") & 0x7FFFFFFF
