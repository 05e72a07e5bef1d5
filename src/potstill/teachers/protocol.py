"""What the pipeline asks of a teacher: chains, the inputs that determine them, and forecasts.

A backend is one class in its own module, and one entry of `recipe.teacher.BACKENDS`. Only `sample` is required, or
for chains that exist already, `read_chains` of `TextTeacher`:

    >>> class Echo(TextTeacher):
    ...     def read_chains(self, questions, other_questions=()):
    ...         yield [Chain.from_text(question.id, 0, question.text, source=self.source) for question in questions]
    >>> question = Question("mine/1", "What is 1 + 1?", "2", "mine", "train", "number")
    >>> [[chain.text for chain in batch] for batch in Echo(Recipe(name="mine")).sample([question])]
    [['What is 1 + 1?']]

Batches, and the chains within a batch, may come in any order. A batch whose chains are all stored is skipped; any other
is yielded whole, and the caller drops the chains that it has.
"""

from __future__ import annotations

import re
from abc import abstractmethod
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, ClassVar, Protocol

from potstill import prompts, storage
from potstill import recipe as recipes
from potstill.errors import UserError
from potstill.prompts import Demonstration, PromptFormat, PromptStyle
from potstill.recipe import Recipe
from potstill.records import Chain, Prompt, Question, Turn
from potstill.storage.segments import UNSHARDED, ChainKey, Shard

PromptBuilder = Callable[[Question], Prompt]


@dataclass(slots=True)
class UsageMeter:
    """The usage of a teacher: progress, cost and failures of this process, counted while it samples.

    prompt_tokens, completion_tokens   as the server counts them, including responses that could not be used
    money       by the recipe's prices; 0 without prices
    faults      message of a failure -> how often it occurred
    refused     question id -> why the server did not answer it
    before      the usage of earlier processes of the run; settled: the usage before the budget was split among shards
    on_reserve  called, before a request is sent, when the reserved tokens and money reach a new maximum

    >>> totals = {"chains": 200, "completion_tokens": 24000, "right": 120, "graded": 200, "money": 0.5}
    >>> UsageMeter(**totals, seconds=60.0, concurrency=16).progress_note()
    '400 tokens/s, 60 % right, cost 0.50, 16 concurrent'
    """

    chains: int = 0
    requests: int = 0
    retries: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    money: float = 0.0
    right: int = 0
    graded: int = 0
    concurrency: int = 0
    seconds: float = 0.0
    faults: dict[str, int] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)
    before: dict[str, float] = field(default_factory=dict)
    settled: dict[str, float] = field(default_factory=dict)
    on_reserve: Callable[[float, float], None] = field(default=lambda tokens, money: None, repr=False)

    def count_failure(self, message: str) -> None:
        """Count a response that lacked what was requested, by its message without long numbers."""
        self.retries += 1
        kind = re.sub(r"\d{4,}", "N", message)[:120]
        self.faults[kind] = self.faults.get(kind, 0) + 1

    def progress_note(self) -> str:
        """The text next to a progress bar."""
        if not self.requests and not self.chains:
            return ""
        parts = [f"{self.completion_tokens / max(self.seconds, 1e-9):.0f} tokens/s"] if self.completion_tokens else []
        if self.graded:
            parts.append(f"{self.right / self.graded:.0%} right".replace("%", " %"))
        money = self.money + self.before.get("money", 0.0)
        if money:
            parts.append(f"cost {money:.2f}")
        if self.retries:
            parts.append(f"{self.retries} retries")
        if self.concurrency:
            parts.append(f"{self.concurrency} concurrent")
        return ", ".join(parts)

    def spent(self) -> dict[str, float]:
        """What a later process must know to keep the budget."""
        names = ("requests", "prompt_tokens", "completion_tokens", "money")
        return {name: getattr(self, name) for name in names}

    def as_json(self) -> dict[str, Any]:
        names = [item.name for item in fields(self) if item.name not in ("before", "settled", "on_reserve")]
        row = {name: getattr(self, name) for name in names}
        return row | {"seconds": round(self.seconds, 3), "money": round(self.money, 6)}


class FirstChainsCheck:
    """Stops sampling if none of the first chains of a run is right. Each shard samples an equal part of the first
    chains, and judges those of all shards.

    >>> counts = [0, 0]                                        # stored chains of the run, and right ones
    >>> check = FirstChainsCheck(10, lambda: (counts[0], counts[1]), lambda: UserError("none is right", code="E-x"))
    >>> [check.allow(4) for _ in range(3)]                     # two requests for four chains, and no third
    [True, True, False]
    >>> counts[0] = 8; check.judge(4) is None                  # two more chains are allowed
    False
    >>> counts[1] = 1; check.judge(4) is None, check.allow(1000)
    (True, True)
    """

    def __init__(
        self,
        limit: int,
        count_stored: Callable[[], tuple[int, int]],
        build_error: Callable[[], UserError],
        shards: int = 1,
    ) -> None:
        """limit         chains of which at least one must be right
        count_stored  the stored chains of the run, and how many of them are right (at least whether any is)
        build_error   the error if none is right
        shards        the number of shards, which share the first chains
        """
        self.limit, self.count_stored, self.build_error, self.shards = limit, count_stored, build_error, shards
        self.passed, self.requested, self.stored_before = False, 0, count_stored()[0]
        self.allowed = self._shard_part(self.stored_before)

    def allow(self, n: int) -> bool:
        """Whether n further chains may be requested now; if so, they are counted. The first request always may."""
        is_first = not self.requested and not self.stored_before
        if not self.passed and not is_first and self.requested + n > self.allowed:
            return False
        self.requested += n
        return True

    def judge(self, n: int) -> UserError | None:
        """The error if enough chains are stored and none is right; else None, and more chains are allowed. Call it when
        all requested chains are stored and n more would be requested."""
        stored, right = self.count_stored()
        if right:
            self.passed = True
        elif stored + n > self.limit:
            return self.build_error()
        else:
            self.allowed = self.requested + max(n, self._shard_part(stored))
        return None

    def _shard_part(self, stored: int) -> int:
        return -(-(self.limit - stored) // self.shards)


@dataclass(slots=True)
class SamplingState:
    """What a run knows when it samples.

    stored           keys of the chains that are stored
    right            question id -> number of its right chains; used if the recipe has `teacher.enough`
    usage            counts what this process spends
    shard            the part of the batches to sample. They are those of the whole run, so that no chain depends on the
                     number of shards
    other_questions  questions of the run's sets that are not sampled: stored chains about them are skipped, and chains
                     about unknown questions are an error
    server           what `Teacher.probe` found
    first_chains     stops sampling if none of the first chains is right
    """

    stored: Container[ChainKey] = ()
    right: Mapping[str, int] = field(default_factory=dict)
    usage: UsageMeter = field(default_factory=UsageMeter)
    shard: Shard = UNSHARDED
    other_questions: Iterable[Question] = ()
    server: Mapping[str, Any] | None = None
    first_chains: FirstChainsCheck | None = None


class Teacher(Protocol):
    """A source of chains, as a recipe describes it. Methods without `abstractmethod` have defaults that suit a teacher
    which costs nothing and depends on no model.

    metered              whether a server bills the chains: then the run keeps a ledger, and batch files work
    generates            whether the chains are generated on request, from prompts
    right_by_definition  whether every chain has the right answer
    samples_per_request  chains that are generated and stored together, at most
    """

    metered: ClassVar[bool] = False
    generates: ClassVar[bool] = False
    right_by_definition: ClassVar[bool] = False
    samples_per_request: int = 1
    recipe: Recipe

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe

    @abstractmethod
    def sample(self, questions: Sequence[Question], state: SamplingState | None = None) -> Iterator[list[Chain]]:
        """The chains of some questions, in batches. Raises UserError for what the user can fix."""
        ...

    # --- what the chains depend on

    @property
    def source(self) -> str:
        """The name of the teacher in the keys of its chains."""
        return self.recipe.teacher.name or self.recipe.teacher.kind

    def input_files(self) -> dict[str, str]:
        """Recipe key -> path of a file or folder whose content determines the chains."""
        paths = {"teacher.chains": self.recipe.teacher.chains, "teacher.prompt": self.recipe.teacher.prompt}
        return {key: path for key, path in paths.items() if path is not None}

    def inputs(self) -> dict[str, str]:
        """What determines the chains beside the recipe's keys: digests of files, and versions of other packages."""
        return {key: storage.folder_fingerprint(self.find_path(path, key)) for key, path in self.input_files().items()}

    def free_keys(self) -> set[str]:
        """Recipe keys that may change during a run, because they change no chain."""
        keys = {*recipes.flatten_keys(self.recipe, "teacher.budget"), "teacher.none_right_limit", "teacher.chat"}
        keys |= {f"teacher.vllm.{name}" for name in recipes.VllmSection.FREE}  # teacher.chat: see LocalModel.inputs
        keys |= set() if self.recipe.teacher.unsolved == "skip" else {"teacher.unsolved"}
        return keys | set(recipes.flatten_keys(self.recipe, "teacher.enough", "teacher.server"))

    # --- what can be said before a run

    def checks(self, *, weights: bool = True) -> Iterator[Callable[[], object]]:
        """Functions that raise UserError for what would stop sampling. weights: whether to read the weights of models,
        which takes as long as reading their files once."""
        return iter(())

    def count_chains(self, questions: Sequence[Question]) -> int | None:
        """The number of chains for some questions, at most; None if it is unknown."""
        return len(questions) * self.recipe.teacher.samples

    def forecast(self, questions: Sequence[Question]) -> list[str]:
        """Lines for `potstill run --dry-run`: what sampling would do and cost."""
        return [f"teacher           {self.recipe.teacher.kind}"]

    # --- what other stages and the report need

    def prompt_builder(self) -> PromptBuilder | None:
        """How a question becomes the teacher's prompt; None for a teacher without prompts."""
        return None

    def tokenizer_folder(self) -> Path | None:
        """The folder of the tokenizer whose tokens the log-probabilities belong to, if it is local."""
        return None

    def describe_chains(self) -> str:
        """What a student of this teacher learns from, for the report."""
        return f"chains of {self.source}"

    def report_notes(self) -> list[str]:
        """Sentences about the chains, for the report."""
        return []

    # --- servers: see `openai_api.teacher`

    def probe(
        self, questions: Sequence[Question], before: Mapping[str, Any] | None = None, usage: UsageMeter | None = None
    ) -> dict[str, Any] | None:
        """The capabilities of the teacher's server, as plain JSON; None without a server.

        before  the capabilities that an earlier process of the run found. They are kept; a server that differs in what
                determines the chains is an error
        usage   counts what the probe costs
        """
        return None

    def is_complete(self, questions: Sequence[Question], state: SamplingState) -> bool:
        """Whether no request is left, if that can be known without asking the teacher."""
        return False

    def budget_error(self, questions: Sequence[Question], state: SamplingState) -> UserError | None:
        """The error of a budget that does not allow another request; None if it does."""
        return None

    def open_batch(
        self,
        questions: Sequence[Question],
        server: Mapping[str, Any],
        identity: Any,
        failed: Iterable[Mapping[str, Any]],
        usage: UsageMeter,
    ) -> Any:
        """The batch files of a metered teacher, see `openai_api.batch_api.Batch`.

        server    what `probe` found; identity: what determines the chains of the run, as JSON
        failed    rows of earlier results that gave no chain
        """
        raise NotImplementedError

    # --- helpers

    def find_path(self, path: str | None, key: str) -> Path:
        """The file or folder of a recipe key. Raises UserError if it does not exist."""
        assert path is not None, f"the recipe's schema requires {key}"
        return recipes.find_path(self.recipe, path, key)

    def find_path_or_none(self, path: str | None, key: str) -> Path | None:
        try:
            return self.find_path(path, key)
        except UserError:
            return None


class Scorer(Teacher, Protocol):
    """A teacher that also assigns log-probabilities to the tokens of existing chains (`teacher.score`)."""

    def score(self, questions: Sequence[Question], batches: Iterable[list[Chain]]) -> Iterator[list[Chain]]:
        """The batches, each chain with its text and key, and with the tokens and log-probabilities of this model."""
        ...


class TextTeacher(Teacher, Protocol):
    """A teacher whose chains exist already, as texts. A scorer may add log-probabilities to them."""

    scorer: Scorer | None

    def __init__(self, recipe: Recipe, scorer: Scorer | None = None) -> None:
        super().__init__(recipe)
        self.scorer = scorer

    @abstractmethod
    def read_chains(
        self, questions: Sequence[Question], other_questions: Iterable[Question] = ()
    ) -> Iterator[list[Chain]]:
        """All chains of some questions, in batches of a fixed order. other_questions: see `SamplingState`."""
        ...

    def sample(self, questions: Sequence[Question], state: SamplingState | None = None) -> Iterator[list[Chain]]:
        state = state or SamplingState()
        shard, batches = state.shard, self.read_chains(questions, state.other_questions)
        batches = (batch for number, batch in enumerate(batches) if number % shard.count == shard.number - 1)
        batches = (batch for batch in batches if not all(chain.key in state.stored for chain in batch))
        return batches if self.scorer is None else self.scorer.score(questions, batches)

    def inputs(self) -> dict[str, str]:
        return super().inputs() | ({} if self.scorer is None else self.scorer.inputs())

    def free_keys(self) -> set[str]:
        return super().free_keys() if self.scorer is None else self.scorer.free_keys()

    def checks(self, *, weights: bool = True) -> Iterator[Callable[[], object]]:
        return iter(()) if self.scorer is None else self.scorer.checks(weights=weights)

    def tokenizer_folder(self) -> Path | None:
        return None if self.scorer is None else self.scorer.tokenizer_folder()


def load_prompt_builder(recipe: Recipe) -> PromptBuilder:
    """How the teacher of a recipe gets a question: after the text of `teacher.prompt`, if the recipe has one."""
    if recipe.teacher.prompt is None:
        return make_prompt_builder()
    path = recipes.find_path(recipe, recipe.teacher.prompt, "teacher.prompt")
    try:
        return make_prompt_builder(prefix=storage.read_bytes(path).decode("utf-8"))
    except UnicodeDecodeError as error:
        raise UserError(
            "the file is not UTF-8 text",
            code="E-data-not-utf8",
            where=path,
            found=error.reason,
            hint="name a text file",
        ) from None


def make_prompt_builder(
    *, style: PromptStyle = prompts.TEACHER_STYLE, demonstrations: Sequence[Demonstration] = (), prefix: str = ""
) -> PromptBuilder:
    """How a teacher gets a question: after demonstrations, or after a text that contains them.

    prefix  precedes the question unchanged, with one newline between (Fu et al. 2023: the eight complex demonstrations,
            in a file that itself ends with a newline)

    >>> question = Question("mine/1", "What is 1 + 1?", "2", "mine", "train", "number")
    >>> print(make_prompt_builder(prefix="Question: 2 + 2?\\nThe answer is 4\\n")(question).plain)
    Question: 2 + 2?
    The answer is 4
    <BLANKLINE>
    Question: What is 1 + 1?
    Let's think step by step
    """
    assert not (demonstrations and prefix), "the order of demonstrations and a prefix is not defined"

    def build_prompt(question: Question) -> Prompt:
        prompt_format = PromptFormat(bool(demonstrations), True)
        prompt = prompts.build_prompt(question.text, prompt_format, demonstrations, style=style)
        if not prefix:
            return prompt
        first, *others = prompt.turns
        return Prompt((Turn(first.role, f"{prefix}\n{first.text}"), *others), prompt.lead)

    return build_prompt
