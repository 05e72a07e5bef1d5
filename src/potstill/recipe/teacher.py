"""The sections `teacher` (with the settings of vLLM, servers and budgets), `filter` and `transfer`.

>>> TeacherSection(kind="local", model="models/qwen", samples=8).top_logprobs
5
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Final, Literal
from urllib.parse import urlsplit

from pydantic import Field, field_validator, model_validator

from potstill.recipe.fields import Character, Count, Name, Positive, Probability, Section, Share, refuse

VLLM_BATCH_TOKENS: Final = 1_048_576  # vLLM manages the GPU memory itself, and is fastest with many texts at once


class VllmSection(Section):
    """Settings of vLLM. `dtype` changes the texts; the other keys may change during a run."""

    FREE: ClassVar = ("length", "memory", "gpus", "eager")

    dtype: Literal["float32", "bfloat16", "float16"] | None = Field(
        default=None,
        description="Type of the weights; by default, the stored type for a teacher and float32 for a student.",
    )
    length: Positive | None = Field(
        default=None, description="Maximum number of tokens of prompt and answer; by default, the model's limit."
    )
    memory: float = Field(default=0.9, gt=0, le=1, description="Fraction of each GPU's memory that vLLM uses.")
    gpus: Positive = Field(default=1, description="Number of GPUs for tensor parallelism.")
    eager: bool = Field(default=False, description="Skip compilation: vLLM starts faster, but generates more slowly.")


def with_vllm_batch(section: Any, key: str) -> Any:
    """The section with vLLM's default for `batch_tokens`, if its `key` selects vLLM and `batch_tokens` is not set."""
    if isinstance(section, dict) and section.get(key) == "vllm":
        return {"batch_tokens": VLLM_BATCH_TOKENS, **section}
    return section


MAX_QUOTAS: Final = 10_000  # largest sum of train.sources, and of its products with the quotas of train.lengths
VARIABLE_NAME: Final = re.compile(r"[A-Z_][A-Z0-9_]{0,63}")
RESERVED_FIELDS: Final[dict[str, str]] = {  # request fields that potstill or other keys set
    "model": "set teacher.model instead",
    "prompt": "potstill builds it from teacher.prompt and the question",
    "messages": "potstill builds them from teacher.prompt and the question",
    "temperature": "set teacher.temperature instead",
    "max_tokens": "set teacher.max_tokens instead",
    "max_completion_tokens": "set teacher.max_tokens instead",
    "logprobs": "set teacher.top_logprobs instead",
    "top_logprobs": "set teacher.top_logprobs instead",
    "stop": "set teacher.server.stop instead",
    "n": "set teacher.server.samples_per_request instead",
    "seed": "each request has its own seed, derived from the run's seed",
    "stream": "potstill reads each answer in one piece",
    "prompt_logprobs": "potstill sends it when it scores texts",
}


def _looks_like_key(value: str) -> bool:
    """Whether a value of capitals and digits looks like an API key, not a name: it has a long part with digits."""
    return any(len(part) >= 16 and any(letter.isdigit() for letter in part) for part in value.split("_"))


LearntPart = Literal["both", "reasoning", "answer", "shortened"]
LEARNT_PART: Final = (
    "Part of a reasoning model's output that the student learns: the thought and the answer (both), one of them, or both "
    "with the thought cut where it first gives the final answer (shortened)."
)


class ServerSection(Section):
    """An OpenAI-compatible server. `reasoning`, `system`, `stop`, `tokenizer`, `extra` and `api` change the chains; the
    other keys may change during a run."""

    urls: list[str] = Field(
        default=["http://localhost:8000/v1"],
        min_length=1,
        description="Base URL of the server, or base URLs of several replicas.",
    )
    api: Literal["completions", "chat"] = Field(default="completions", description="Endpoint of the server.")
    key: str | None = Field(default=None, description="Name of the environment variable that contains the API key.")
    system: str | None = Field(default=None, description="System message, for api: chat.")
    stop: list[str] = Field(default=[], description="Strings at which the server stops an answer.")
    reasoning: LearntPart = Field(default="both", description=LEARNT_PART)
    tokenizer: str | None = Field(
        default=None, description="Folder of the model's tokenizer, which makes the tokens of vLLM exact."
    )
    samples_per_request: Positive = Field(
        default=8, description="Number of chains per request, if the server honours `n`."
    )
    concurrency: Positive = Field(default=64, description="Maximum number of concurrent requests to each URL.")
    timeout: float = Field(default=600.0, gt=0, description="Maximum time for one complete answer, in seconds.")
    patience: float = Field(
        default=300.0, gt=0, description="Time without any answer after which the run stops, in seconds."
    )
    refused: Literal["stop", "skip"] = Field(
        default="stop", description="Action if the server refuses a question: stop the run, or skip the question."
    )
    extra: dict[str, Any] = Field(
        default={},
        description="Additional fields of every request, such as {chat_template_kwargs: {enable_thinking: false}}.",
    )

    @field_validator("key")
    @classmethod
    def _names_a_variable(cls, value: str | None) -> str | None:
        """Refuse a value that is not a name. The message does not repeat it, because it may be the key itself."""
        if value is not None and (not VARIABLE_NAME.fullmatch(value) or _looks_like_key(value)):
            refuse(
                "E-recipe-key-variable",
                "this is not the name of an environment variable (capitals, digits, _)",
                hint="write the NAME of the variable that contains the key, such as OPENAI_API_KEY. If you pasted the key "
                "itself, remove it from the recipe",
            )
        return value

    @field_validator("urls")
    @classmethod
    def _without_secrets(cls, value: list[str]) -> list[str]:
        for url in value:
            try:
                parts = urlsplit(url)
                fault = "a name and a password" if parts.username or parts.password else "a query" * bool(parts.query)
            except ValueError:
                fault = "brackets that are not part of an address"
            if fault:
                hint = "write http://HOST:PORT/v1; the key comes from the environment (teacher.server.key)"
                refuse("E-recipe-url", f"the address contains {fault}: {hint}")
        return value

    @field_validator("extra")
    @classmethod
    def _without_reserved(cls, value: dict[str, Any]) -> dict[str, Any]:
        for name in value:
            if name in RESERVED_FIELDS:
                refuse("E-recipe-extra-reserved", f"extra cannot contain {name}: {RESERVED_FIELDS[name]}")
        return value


class PricesSection(Section):
    prompt: float = Field(default=0.0, ge=0, description="Price of a million prompt tokens, in your currency.")
    completion: float = Field(default=0.0, ge=0, description="Price of a million answer tokens, in your currency.")


class BudgetSection(Section):
    """Limits on the tokens and cost of all processes of a run together."""

    tokens: Positive | None = Field(default=None, description="Maximum number of prompt and answer tokens.")
    money: float | None = Field(default=None, gt=0, description="Maximum cost by `prices`, in your currency.")
    prices: PricesSection = PricesSection()
    spent: Literal["stop", "seal"] = Field(
        default="stop",
        description="Action if the budget is spent: stop the run, or continue with the stored chains (seal).",
    )


class ScorerSection(Section):
    """A model that scores the tokens of existing chains."""

    model: str = Field(description="Model as in teacher.model, or for kind: openai the model's name on the server.")
    revision: str | None = Field(default=None, description="Branch, tag or commit of a model on the hub.")
    kind: Literal["local", "openai"] = Field(
        default="local", description="local: a model in this process; openai: the server of `teacher.server`."
    )


@dataclass(frozen=True, slots=True)
class Kind:
    """An entry of `KINDS`.

    source    a phrase that says where the chains come from
    backend   module and class in potstill.teachers
    reads     keys of the section that the kind reads, besides `kind` and `name`; the section refuses values of other keys.
              A class that extends `TextTeacher` reads `score`
    required  keys among `reads` that must be set
    """

    source: str
    backend: str
    reads: tuple[str, ...] = ()
    required: tuple[str, ...] = ()


_GENERATION: Final = (
    "model",
    "prompt",
    "prompt_style",
    "samples",
    "none_right_limit",
    "seed",
    "temperature",
    "max_tokens",
    "top_logprobs",
)
_CHAT: Final = ("chat", "chat_template_kwargs", "system_prompt")
_IN_PROCESS: Final = (*_GENERATION, *_CHAT, "reasoning", "revision", "batch_tokens", "trust_remote_code")

KINDS: Final[dict[str, Kind]] = {
    "local": Kind("a model, run by transformers", "local_model:LocalModel", (*_IN_PROCESS, "dtype"), ("model",)),
    "vllm": Kind("a model, run by vLLM", "local_model:LocalModel", (*_IN_PROCESS, "vllm"), ("model",)),
    "openai": Kind(
        "a server", "openai_api.teacher:OpenAITeacher", (*_GENERATION, "enough", "server", "budget"), ("model",)
    ),
    "human": Kind("the sets' own solutions", "reference_solutions:ReferenceSolutions", ("unsolved", "score")),
    "replay": Kind("a file of chains", "replay:StoredChains", ("chains", "score"), ("chains",)),
    "none": Kind("no chains; the student is only evaluated on test", ""),
}
# Kind of `teacher.score` -> keys that the scorer reads, besides the keys of its own section.
SCORER_READS: Final[dict[str, tuple[str, ...]]] = {
    "local": (*_CHAT, "prompt", "prompt_style", "top_logprobs", "batch_tokens", "dtype", "trust_remote_code"),
    "openai": ("prompt", "prompt_style", "top_logprobs", "server", "budget"),
}
INPUT_FILE: Final[dict[str, Any]] = {
    "format": "path"
}  # marks a key that names a file: a run stops if the content of the file changes

if TYPE_CHECKING:
    TeacherKind = str
else:
    TeacherKind = Literal[tuple(KINDS)]


def _list_readers(key: str) -> str:
    """The kinds that read a key, as a phrase."""
    kinds = [name for name, kind in KINDS.items() if key in kind.reads]
    scorers = [name for name, keys in SCORER_READS.items() if key in keys]
    return ", ".join(kinds + [f"score with kind {name}" for name in scorers])


class TeacherSection(Section):
    kind: TeacherKind = Field(
        default="human",
        description="Source of the chains: "
        + "; ".join(f"{name} ({kind.source})" for name, kind in KINDS.items())
        + ".",
    )
    name: Name | None = Field(default=None, description="Source name stored with the chains; `kind` if not given.")
    model: str | None = Field(
        default=None,
        description="For local and vllm: model folder, name on the Hugging Face hub, GGUF file, package:NAME, or URL in "
        "an object store (s3://BUCKET/PATH); for openai: the model's name on the server.",
    )
    revision: str | None = Field(default=None, description="Branch, tag or commit of a model on the hub.")
    chains: str | None = Field(
        default=None,
        description="File of chains for the kind replay: JSON lines, CSV, Parquet, or another format of a set. It is not "
        "related to train.replay, which mixes generic rows into training.",
        json_schema_extra=INPUT_FILE,
    )
    seed: Count | None = Field(
        default=None,
        description="Seed of the sampled chains; the recipe's `seed` if not given. For local, vllm and openai.",
    )
    prompt: str | None = Field(
        default=None, description="Text file of demonstrations for the prompt.", json_schema_extra=INPUT_FILE
    )
    prompt_style: Literal["teacher", "student"] = Field(
        default="teacher",
        description="Form of the prompt: teacher writes `Question: ...`; student writes the zero-shot prompt with which "
        "students are trained, for a teacher that is a student of another run.",
    )
    chat: Literal["auto"] | bool = Field(
        default="auto",
        description="Whether prompts use the model's chat template, for local, vllm and score; auto: if the model has "
        "one. A server follows `server.api` instead.",
    )
    chat_template_kwargs: dict[str, Any] | None = Field(
        default=None,
        description="Arguments of the chat template, such as {enable_thinking: false}, for local, vllm and score.",
    )
    system_prompt: str | None = Field(
        default=None,
        description="System message of every prompt, for local, vllm and score; an empty text replaces the template's "
        "default message.",
    )
    reasoning: LearntPart = Field(
        default="both",
        description=LEARNT_PART.removesuffix(".")
        + ", for local and vllm with a chat template. A server follows `server.reasoning` instead.",
    )
    samples: Positive = Field(default=1, description="Number of chains per question.")
    unsolved: Literal["stop", "skip", "answer"] = Field(
        default="stop",
        description="Action, for human, if a training question has no solution: stop the run, skip the question, or learn "
        "the bare answer.",
    )
    enough: Positive | None = Field(
        default=None, description="Number of right chains after which openai stops asking a question."
    )
    none_right_limit: Count = Field(
        default=50,
        description="Sampling stops after this number of chains if none of them is right; 0 turns this off.",
    )
    temperature: float = Field(default=0.5, ge=0, description="Sampling temperature of the teacher.")
    max_tokens: Positive = Field(default=256, description="Maximum number of tokens per chain.")
    top_logprobs: Count = Field(
        default=5, description="Number of alternatives stored per token, with their log-probabilities; 0: none."
    )
    batch_tokens: Positive = Field(
        default=16384, description="Maximum number of tokens per batch, for local and vllm; a crash loses one batch."
    )
    dtype: Literal["float32", "bfloat16"] = Field(
        default="float32",
        description="Type of the weights and of the arithmetic, for local and score with kind local; bfloat16 takes half of "
        "the memory. Norms, softmax and the log-probabilities of likely tokens are still float32. For vllm, see vllm.dtype.",
    )
    score: ScorerSection | None = Field(
        default=None,
        description="Model that adds log-probabilities to existing chains, for "
        + " and ".join(name for name, kind in KINDS.items() if "score" in kind.reads)
        + ".",
    )
    trust_remote_code: bool = Field(
        default=False, description="Whether to run Python code that comes with the model folder."
    )
    vllm: VllmSection = VllmSection()
    server: ServerSection = ServerSection()
    budget: BudgetSection = BudgetSection()

    @model_validator(mode="before")
    @classmethod
    def _vllm_batch(cls, value: Any) -> Any:
        return with_vllm_batch(value, "kind")

    @model_validator(mode="after")
    def _complete(self) -> TeacherSection:
        if self.chat_template_kwargs is not None or self.system_prompt is not None:
            if self.is_billed:
                instead = "write them as server.extra: {chat_template_kwargs: ...} and server.system"
                refuse(
                    "E-recipe-chat-settings", f"chat_template_kwargs and system_prompt are for local models: {instead}"
                )
            if self.chat is False:
                refuse(
                    "E-recipe-chat-settings", "chat_template_kwargs and system_prompt need the model's chat template"
                )
        if self.reasoning != "both" and self.chat is False and "reasoning" in KINDS[self.kind].reads:
            refuse("E-recipe-chat-settings", "reasoning needs the model's chat template: remove chat: false")
        kind = KINDS[self.kind]
        reads = {"kind", "name", *kind.reads, *(SCORER_READS[self.score.kind] if self.score is not None else ())}
        for name, field in type(self).model_fields.items():
            if name not in reads and getattr(self, name) != field.default:
                message = f"the kind {self.kind} does not read this key; it is read by: {_list_readers(name)}"
                hint = f"remove teacher.{name}, or set another teacher.kind"
                refuse("E-recipe-teacher-key", message, hint=hint, key=name)
        for name in kind.required:
            if getattr(self, name) is None:
                refuse("E-recipe-teacher-incomplete", f"the kind {self.kind} needs {name}", hint=f"add teacher.{name}")
        return self

    @property
    def is_billed(self) -> bool:
        """Whether a server writes or scores the chains."""
        return self.kind == "openai" or (self.score is not None and self.score.kind == "openai")

    @property
    def label(self) -> str:
        """The name of the source of the chains for readers: the value of the first required key, or the kind."""
        return next((getattr(self, name) for name in KINDS[self.kind].required), self.kind)

    @property
    def input_files(self) -> dict[str, str]:
        """Recipe key -> path, for every file that the section names (see INPUT_FILE)."""
        marked = [name for name, field in type(self).model_fields.items() if field.json_schema_extra == INPUT_FILE]
        return {f"teacher.{name}": path for name in marked if (path := getattr(self, name)) is not None}


def check_sources(
    teacher: TeacherSection,
    teachers: dict[str, TeacherSection] | None,
    quotas: dict[str, int] | None,
    uniform_over: str,
) -> None:
    """Refuse `teachers` that are empty, given together with `teacher`, or have no chains or a second name, and quotas
    (`train.sources`) that do not name all teachers and no others."""
    if teachers is not None and teacher != TeacherSection():
        hint = "move the keys of teacher into one of the teachers, under a name"
        refuse("E-recipe-teachers", "a recipe has either teacher or teachers", hint=hint)
    if teachers == {}:
        refuse("E-recipe-teachers", "teachers names no source of chains", hint="write teacher, or name a source")
    for name, section in (teachers or {}).items():
        if section.kind == "none":
            refuse("E-recipe-teachers", f"teachers.{name} has no chains: remove it")
        if section.name is not None:
            refuse("E-recipe-teachers", f"teachers.{name}.name: the source already has the name {name}")
    if quotas is None:
        return
    for name in sorted(set(quotas) ^ set(teachers or ())):
        fault = f"{name} has no quota" if name not in quotas else f"{name} is not among the recipe's teachers"
        refuse("E-recipe-sources", f"train.sources must name all teachers and no others: {fault}")
    if not 0 < sum(quotas.values()) <= MAX_QUOTAS:
        refuse("E-recipe-sources", f"the sum of the quotas in train.sources must be between 1 and {MAX_QUOTAS}")
    if uniform_over == "chains":
        refuse("E-recipe-sources", "train.sources draws by source, so it needs train.uniform_over: questions")


def check_lengths(quotas: int, sources: dict[str, int] | None, uniform_over: str) -> None:
    """Refuse `train.lengths` without a quota, with too large quotas, and together with `train.uniform_over: chains`.

    quotas  sum of the quotas of short and long chains
    """
    if not 0 < quotas * sum((sources or {"": 1}).values()) <= MAX_QUOTAS:
        message = (
            f"the sum of the quotas in train.lengths, times that of train.sources, is not between 1 and {MAX_QUOTAS}"
        )
        refuse("E-recipe-lengths", message)
    if uniform_over == "chains":
        refuse("E-recipe-lengths", "train.lengths draws by length, so it needs train.uniform_over: questions")


class FilterSection(Section):
    max_per_question: Positive | None = Field(
        default=None,
        description="Maximum number of right chains kept per question; with `teachers`, from each of them.",
    )
    duplicates: Literal["drop", "keep"] = Field(
        default="drop",
        description="Whether to drop or keep a chain with the same text as an earlier chain of the question.",
    )
    near_duplicate_threshold: Share | None = Field(
        default=None,
        description="Drop a chain that shares at least this fraction of its word 5-grams with a kept chain.",
    )
    min_chars: Count = Field(default=0, description="Minimum length of a chain, in characters.")
    max_chars: Positive | None = Field(default=None, description="Maximum length of a chain, in characters.")
    min_tokens: Count = Field(default=0, description="Minimum length of a chain, in tokens of the student.")
    max_tokens: Positive | None = Field(
        default=None,
        description="Maximum length of a chain, in tokens of the student, without the end token; memory of training depends "
        "on it.",
    )
    script: Literal["latin", "cyrillic", "greek", "arabic", "hebrew", "cjk", "hangul", "devanagari", "thai"] | None = (
        Field(default=None, description="Drop a chain with more than a tenth of its letters in another script.")
    )
    wrong_sums: Literal["drop"] | None = Field(
        default=None,
        description="Drop a chain that contains a wrong equation such as 3 * 4 = 13, even if its answer is right.",
    )
    contamination_threshold: float = Field(
        default=0.9,
        gt=0,
        le=1,
        description="Drop a question that shares at least this fraction of its word 8-grams with a validation or test "
        "question.",
    )


class TransferSection(Section):
    rule: Literal["one-hot", "paper", "span", "text"] = Field(
        default="text", description="How the teacher's probabilities are mapped to the student's tokens."
    )
    rewrite: dict[Character, str] = Field(
        default={}, description="Characters of a chain to replace before the student learns it, such as ×: '*'."
    )
    calculator_marks: Literal["insert", "remove"] | None = Field(
        default=None,
        description="Insert or remove calculator marks before the results of equations, as in 48/2 = <<48/2=24>>24.",
    )
    min_probability: Probability = Field(
        default=3e-4, description="Candidates with a smaller probability are added to the tail."
    )
    min_coverage: Probability = Field(
        default=0.2,
        description="Minimum fraction of positions with a teacher distribution; below it, the run stops if the teacher has "
        "log-probabilities.",
    )
    min_transferred_probability: Probability = Field(
        default=0.5,
        description="Minimum fraction of the candidates' probability that is transferred to positions on whole teacher "
        "tokens; below it, align and the report warn.",
    )
