"""The section of a recipe that says how vLLM holds a model, a teacher's or a student's.

The section of a recipe that says who teaches: a model, a server, a file, people, or nobody.
"""

from __future__ import annotations

import re
from typing import Any, ClassVar, Final, Literal
from urllib.parse import urlsplit

from pydantic import Field, field_validator, model_validator

from potstill.recipe.fields import Count, Name, Positive, Section

VLLM_BATCH_TOKENS: Final = (
    1_048_576  # of a batch: vLLM keeps house with the device's memory itself, and wants many texts at once
)


class VllmSection(Section):
    """`dtype` decides what is written; the other keys may change while a run goes on."""

    FREE: ClassVar = ("length", "memory", "gpus", "eager")

    dtype: Literal["float32", "bfloat16", "float16"] | None = Field(
        default=None, description="if not given: a teacher as its weights are stored, a student in float32"
    )
    length: Positive | None = Field(
        default=None, description="most tokens of prompt and answer; the model's own if not"
    )
    memory: float = Field(default=0.9, gt=0, le=1, description="share of each device's memory that it takes")
    gpus: Positive = Field(default=1, description="devices over which the model is spread")
    eager: bool = Field(default=False, description="compile nothing: starts sooner, writes slower")


def with_vllm_batch(section: Any, key: str) -> Any:
    """A section as it was written, with the batches that vLLM wants if its `key` names vLLM and it names no others."""
    if isinstance(section, dict) and section.get(key) == "vllm":
        return {"batch_tokens": VLLM_BATCH_TOKENS, **section}
    return section


VARIABLE_NAME: Final = re.compile(r"[A-Z_][A-Z0-9_]{0,63}")
RESERVED_FIELDS: Final[dict[str, str]] = {  # fields of a request that other keys of a recipe decide, or nothing does
    "model": "it is teacher.model",
    "prompt": "it is made from teacher.prompt and the question",
    "messages": "they are made from teacher.prompt and the question",
    "temperature": "it is teacher.temperature",
    "max_tokens": "it is teacher.max_tokens",
    "max_completion_tokens": "it is teacher.max_tokens",
    "logprobs": "it is teacher.candidates",
    "top_logprobs": "it is teacher.candidates",
    "stop": "it is teacher.server.stop",
    "n": "it follows from teacher.server.per_request",
    "seed": "every request has its own, from the run's seed",
    "stream": "answers are read in one piece",
    "prompt_logprobs": "scoring sends it itself",
}


def _looks_like_key(value: str) -> bool:
    """Whether capitals and digits look like a key rather than a name: long, in one piece, with digits."""
    return any(len(part) >= 16 and any(letter.isdigit() for letter in part) for part in value.split("_"))


class ServerSection(Section):
    """A teacher behind an OpenAI-compatible server. `reasoning`, `system`, `stop`, `tokenizer`, `extra` and `api`
    decide what is learnt; the other keys may change while a run goes on."""

    urls: list[str] = Field(default=["http://localhost:8000/v1"], min_length=1, description="one, or several replicas")
    api: Literal["completions", "chat"] = "completions"
    key: str | None = Field(default=None, description="name of the environment variable that holds the API key")
    system: str | None = Field(default=None, description="chat: what the system message says")
    stop: list[str] = Field(default=[], description="strings at which the server stops")
    reasoning: Literal["both", "reasoning", "answer"] = Field(
        default="both", description="of a model that thinks before it answers: what the student learns"
    )
    tokenizer: str | None = Field(default=None, description="a folder; with it vLLM's tokens are exact")
    per_request: Positive = Field(default=8, description="chains a request, where the server honours n")
    concurrency: Positive = Field(default=64, description="at most so many requests at once to each url")
    timeout: float = Field(default=600.0, gt=0, description="seconds until a whole answer must be there")
    patience: float = Field(default=300.0, gt=0, description="seconds without any answer until the run stops")
    refused: Literal["stop", "skip"] = Field(default="stop", description="what becomes of questions it does not answer")
    extra: dict[str, Any] = Field(
        default={},
        description="further fields of every request, such as {chat_template_kwargs: {enable_thinking: false}}",
    )

    @field_validator("key")
    @classmethod
    def _names_a_variable(cls, value: str | None) -> str | None:
        """The value is never repeated: somebody may have pasted the key itself."""
        if value is not None and (not VARIABLE_NAME.fullmatch(value) or _looks_like_key(value)):
            raise ValueError(
                "this is no name of an environment variable (capitals, digits, _). Write the NAME of the variable that"
                " holds the key, such as OPENAI_API_KEY; if you pasted the key itself, take it out of the recipe"
            )
        return value

    @field_validator("urls")
    @classmethod
    def _addresses(cls, value: list[str]) -> list[str]:
        for url in value:
            try:
                parts = urlsplit(url)
                secret = (
                    "a name and a password" if parts.username or parts.password else "a query" if parts.query else ""
                )
            except ValueError:
                secret = "brackets that are no address"
            if secret:
                raise ValueError(
                    f"an address with {secret}: write http://HOST:PORT/v1; a key comes from the environment"
                    " (teacher.server.key)"
                )
        return value

    @field_validator("extra")
    @classmethod
    def _further(cls, value: dict[str, Any]) -> dict[str, Any]:
        for name in value:
            if name in RESERVED_FIELDS:
                raise ValueError(f"{name} is not for extra: {RESERVED_FIELDS[name]}")
        return value


class PricesSection(Section):
    prompt: float = Field(default=0.0, ge=0, description="money for a million tokens of prompts")
    completion: float = Field(default=0.0, ge=0, description="money for a million tokens of answers")


class BudgetSection(Section):
    """Ceilings that a run does not pass, counted over all its processes."""

    tokens: Positive | None = None
    money: float | None = Field(default=None, gt=0)
    prices: PricesSection = PricesSection()
    spent: Literal["stop", "seal"] = Field(default="stop", description="seal: go on with the chains that are there")


class ScorerSection(Section):
    """Who says afterwards how likely each token of chains was that exist already."""

    model: str = Field(description="a folder in Hugging Face form, or the name by which teacher.server knows a model")
    kind: Literal["local", "openai"] = Field(default="local", description="openai: asked of teacher.server")


class TeacherSection(Section):
    kind: Literal["local", "vllm", "openai", "human", "replay", "none"] = Field(
        default="human",
        description="local, vllm: a model folder, written by transformers or vLLM (extra `vllm`); none: nothing is"
        " trained, the student is only measured on test",
    )
    name: Name | None = Field(default=None, description="what its chains call their source; the kind if not given")
    model: str | None = Field(
        default=None, description="local, vllm: a folder in Hugging Face form; openai: the server's name of the model"
    )
    chains: str | None = Field(default=None, description="replay: a file of chains, JSONL or Parquet")
    prompt: str | None = Field(default=None, description="local, vllm, openai: a text file of demonstrations")
    chat: Literal["auto"] | bool = Field(
        default="auto",
        description="local, vllm, score: prompts in the model's own chat template; auto: if it has any. A server is"
        " asked as teacher.server.api says",
    )
    samples: Positive = Field(default=1, description="chains a question")
    enough: Positive | None = Field(default=None, description="openai: no more chains once so many are right")
    none_right_limit: Count = Field(
        default=50,
        description="local, vllm, openai: sampling stops if none of the first so many chains is right; 0: never",
    )
    temperature: float = Field(default=0.5, ge=0)
    max_tokens: Positive = 256
    candidates: Count = Field(default=5, description="alternatives a token whose log-probabilities are kept")
    batch_tokens: Positive = 16384
    score: ScorerSection | None = Field(
        default=None, description="human, replay: a model that gives the chains probabilities"
    )
    trust_remote_code: bool = False
    vllm: VllmSection = VllmSection()
    server: ServerSection = ServerSection()
    budget: BudgetSection = BudgetSection()

    @model_validator(mode="before")
    @classmethod
    def _roomy(cls, value: Any) -> Any:
        return with_vllm_batch(value, "kind")

    @model_validator(mode="after")
    def _complete(self) -> TeacherSection:
        if self.score is not None and self.kind not in ("human", "replay"):
            raise ValueError(f"a {self.kind} teacher gives its chains probabilities itself: score is for human, replay")
        if self.chat is True and self.kind not in ("local", "vllm") and self.score is None:
            raise ValueError(f"chat: true needs a model in this process, which a {self.kind} teacher has not")
        needed = {"local": "model", "vllm": "model", "openai": "model", "replay": "chains"}.get(self.kind)
        if needed and getattr(self, needed) is None:
            raise ValueError(f"a {self.kind} teacher needs {needed}")
        return self
