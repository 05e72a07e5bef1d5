"""The interface of a teacher: its chains, the inputs that determine them, and forecasts.

To add a backend, write a class in its own module, and add one entry to `recipe.teacher.KINDS`. Only `sample` is required:

    >>> class Echo(Teacher):
    ...     def sample(self, questions, state=None):
    ...         yield [Chain.from_text(question.id, 0, question.text, source=self.source) for question in questions]
    >>> question = Question("mine/1", "What is 1 + 1?", "2", "mine", "train", "number")
    >>> [[chain.text for chain in batch] for batch in Echo(Recipe(name="mine")).sample([question])]
    [['What is 1 + 1?']]

A teacher of existing chains is a `TextTeacher` (see `teachers.text_teacher`), which requires only `read_chains`.

Batches, and the chains of a batch, may come in any order. A batch is skipped if all of its chains are stored. Otherwise
the whole batch is yielded, and the caller drops the chains that it has already stored.
"""

from __future__ import annotations

import re
from abc import abstractmethod
from collections.abc import Callable, Container, Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, ClassVar, Final, Protocol

from potstill import prompts, storage
from potstill import recipe as recipes
from potstill.data import labels
from potstill.errors import UserError
from potstill.prompts import Demonstration, PromptFormat, PromptStyle
from potstill.recipe import Recipe
from potstill.records import Chain, Prompt, Question, Turn
from potstill.storage.flat_chains import FlatChain, flatten
from potstill.storage.ledger import LedgerWriter
from potstill.storage.segments import UNSHARDED, ChainKey, Shard

PromptBuilder = Callable[[Question], Prompt]


@dataclass(slots=True)
class UsageMeter:
    """The usage of a teacher: progress, cost and failures of this process, counted while it samples.

    prompt_tokens, completion_tokens   the server's counts, including responses that could not be used
    money       cost by the recipe's prices; 0 without prices
    faults      message of a failure -> number of failures
    refused     question id -> why the server did not answer the question
    before      usage of earlier processes of the run
    settled     usage before the budget was split among shards
    on_reserve  function that is called before a request is sent if the reserved tokens or money reach a new maximum
    on_settle   function that is called after the cost of a request that scores a text was added
    flush       function that flushes the ledger to the disk, before scores that it counts are flushed

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
    on_settle: Callable[[], None] = field(default=lambda: None, repr=False)
    flush: Callable[[], None] = field(default=lambda: None, repr=False)

    def record_in(self, writer: LedgerWriter) -> None:
        """Record reservations and costs in a ledger as they arise."""
        self.on_reserve, self.flush = writer.reserve, writer.sync
        self.on_settle = lambda: writer.record(self.spent())

    def count_failure(self, message: str) -> None:
        """Count a failed request under its message. Long numbers in the message are replaced, so that messages repeat."""
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
        """The usage of this process that a later process needs to respect the budget."""
        names = ("requests", "prompt_tokens", "completion_tokens", "money")
        return {name: getattr(self, name) for name in names}

    def as_json(self) -> dict[str, Any]:
        omitted = ("before", "settled", "on_reserve", "on_settle", "flush")
        row = {item.name: getattr(self, item.name) for item in fields(self) if item.name not in omitted}
        return row | {"seconds": round(self.seconds, 3), "money": round(self.money, 6)}


def missing_chains(questions: Sequence[Question], samples: int, stored: Mapping[str, int] | None) -> list[int]:
    """For each question, how many of its `samples` chains are not stored yet. stored: as for `Teacher.forecast`."""
    return [max(0, samples - (stored or {}).get(question.id, 0)) for question in questions]


def describe_chains(questions: Sequence[Question], samples: int, stored: Mapping[str, int] | None) -> str:
    """The chains to sample, as a phrase for the plan."""
    total, missing = len(questions) * samples, sum(missing_chains(questions, samples, stored))
    if stored is None:
        return f"{len(questions)} questions x {samples} = {total} chains"
    return f"{missing} of {len(questions)} questions x {samples} = {total} chains are missing:"


class FirstChainsCheck:
    """Stops sampling if none of the first chains of a run is right.

    Each shard samples an equal part of the first chains, and checks the chains of all shards.

    >>> counts = [0, 0]                                        # stored chains of the run, and right chains
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
        """limit         number of first chains, of which at least one must be right
        count_stored  returns the number of stored chains of the run, and the number of right chains (or 1 if any is)
        build_error   returns the error for first chains that are all wrong
        shards        number of shards that share the first chains
        """
        self.limit, self.count_stored, self.build_error, self.shards = limit, count_stored, build_error, shards
        self.passed, self.requested, self.stored_before = False, 0, count_stored()[0]
        self.allowed = self._shard_part(self.stored_before)

    def allow(self, n: int) -> bool:
        """Whether n more chains may be requested now; if so, count them as requested. Always True for the first request."""
        is_first = not self.requested and not self.stored_before
        if not self.passed and not is_first and self.requested + n > self.allowed:
            return False
        self.requested += n
        return True

    def judge(self, n: int) -> UserError | None:
        """The error if the first chains are stored and none is right. Otherwise None, and more chains are allowed.

        n  number of chains in the next request
        Call it only when all requested chains are stored.
        """
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
    """The state of a run when it samples.

    stored           keys of the stored chains
    right            question id -> number of its right chains; used if the recipe has `teacher.enough`
    usage            usage of this process; updated while sampling
    shard            the shard, which samples a part of the batches. The batches are those of the whole run, so that no
                     chain depends on the number of shards
    other_questions  questions of the run's sets that are not sampled. Stored chains for them are skipped; chains for
                     unknown questions are an error
    server           result of `Teacher.probe`
    scores           folder in which a scorer behind a server stores each score as it arrives; None: a temporary folder
    first_chains     check that stops sampling if none of the first chains is right
    """

    stored: Container[ChainKey] = ()
    right: Mapping[str, int] = field(default_factory=dict)
    usage: UsageMeter = field(default_factory=UsageMeter)
    shard: Shard = UNSHARDED
    other_questions: Iterable[Question] = ()
    server: Mapping[str, Any] | None = None
    scores: Path | None = None
    first_chains: FirstChainsCheck | None = None


class Teacher(Protocol):
    """A source of chains that a recipe describes.

    Methods without `abstractmethod` have defaults for a teacher that costs nothing and depends on no model.

    metered              whether a server bills the chains or their scores; the run then keeps a ledger
    generates            whether the chains are generated on request, from prompts
    right_by_definition  whether every chain has the right answer
    samples_per_request  maximum number of chains that are generated and stored together
    is_one_of_several    whether the recipe has other teachers, too; then all of its chains have its name as their source
    """

    metered: bool = False
    generates: ClassVar[bool] = False
    right_by_definition: bool = False
    samples_per_request: int = 1
    is_one_of_several: bool = False
    recipe: Recipe

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe

    @abstractmethod
    def sample(self, questions: Sequence[Question], state: SamplingState | None = None) -> Iterator[list[Chain]]:
        """The chains of the questions, in batches. Raises UserError for an error that the user can fix."""
        ...

    def sample_rows(
        self, questions: Sequence[Question], state: SamplingState | None = None
    ) -> Generator[list[FlatChain]]:
        """The same chains as rows to store. A teacher that reads its chains as rows overrides it."""
        batches = self.sample(questions, state)
        try:
            for batch in batches:
                yield list(map(flatten, batch))
        finally:
            if isinstance(batches, Generator):
                batches.close()

    # --- What the chains depend on

    @property
    def source(self) -> str:
        """The name of the teacher in the keys of its chains."""
        return self.recipe.teacher.name or self.recipe.teacher.kind

    def input_files(self) -> dict[str, str]:
        """Recipe key -> path of a file or folder on whose content the chains depend.

        These are the keys of the section `teacher` that are marked with `recipe.teacher.INPUT_FILE`.
        """
        return self.recipe.teacher.input_files

    def inputs(self) -> dict[str, str]:
        """Inputs of the chains other than the recipe's keys: digests of files, and versions of other packages."""
        return {key: _digest_input(self.find_path(path, key)) for key, path in self.input_files().items()}

    def free_keys(self) -> set[str]:
        """Recipe keys that may change during a run, because no chain depends on them."""
        keys = {*recipes.flatten_keys(self.recipe, "teacher.budget"), "teacher.none_right_limit", "teacher.chat"}
        keys |= {f"teacher.vllm.{name}" for name in recipes.VllmSection.FREE}  # teacher.chat: see LocalModel.inputs
        later = {"unsolved": "stop", "reasoning": "both", "dtype": "float32"}  # keys that earlier runs do not have
        keys |= {f"teacher.{name}" for name, value in later.items() if getattr(self.recipe.teacher, name) == value}
        return keys | set(recipes.flatten_keys(self.recipe, "teacher.enough", "teacher.server"))

    # --- Checks and forecasts before a run

    def checks(self, *, weights: bool = True) -> Iterator[Callable[[], object]]:
        """Functions that raise UserError if sampling would fail.

        weights  whether to check the weights of models, too; this takes as long as reading their files once
        """
        return iter(())

    def check_questions(self, questions: Sequence[Question]) -> None:
        """Raise UserError if the teacher has no chains for these training questions, or lacks some that it may not skip.

        The plan calls this method. Sampling must also raise the error.
        """

    def count_chains(self, questions: Sequence[Question]) -> int | None:
        """The maximum number of chains for the questions; None if it is unknown."""
        return len(questions) * self.recipe.teacher.samples

    def forecast(
        self, questions: Sequence[Question], stored: Mapping[str, int] | None = None, scores: Path | None = None
    ) -> list[str]:
        """Lines for `potstill run --dry-run`: the work and the cost of the chains that are missing.

        stored  question id -> number of chains that the run has stored; None: no chain is stored
        scores  as in `SamplingState`; None: no score is stored
        """
        return [f"teacher           {self.recipe.teacher.kind}"]

    # --- For other stages and the report

    def prompt_builder(self) -> PromptBuilder | None:
        """The function from a question to the teacher's prompt; None for a teacher without prompts."""
        return None

    def tokenizer_folder(self) -> Path | None:
        """The folder of the tokenizer whose tokens have the log-probabilities; None if it is not local."""
        return None

    def describe_chains(self) -> str:
        """A phrase for the report that says what a student of this teacher learns from."""
        return f"chains of {self.source}"

    def report_notes(self) -> list[str]:
        """Sentences about the chains, for the report."""
        return []

    # --- Servers, see `openai_api.teacher`

    def probe(
        self, questions: Sequence[Question], before: Mapping[str, Any] | None = None, usage: UsageMeter | None = None
    ) -> dict[str, Any] | None:
        """The capabilities of the teacher's server, as plain JSON; None without a server.

        before  capabilities from an earlier process of the run, which stay valid. UserError if the server now differs in
                a capability that the chains depend on
        usage   the cost of the probe is added to it
        """
        return None

    def is_complete(self, questions: Sequence[Question], state: SamplingState) -> bool:
        """Whether no request is left. False if this cannot be known without sampling."""
        return False

    def budget_error(self, questions: Sequence[Question], state: SamplingState) -> UserError | None:
        """The error for a budget that allows no further request; None if it allows one."""
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

        server    result of `probe`
        identity  JSON value that determines the chains of the run
        failed    rows of earlier results that gave no chain
        usage     usage of the run; updated
        """
        raise NotImplementedError

    # --- Helpers

    def find_path(self, path: str | None, key: str) -> Path:
        """The path of the file or folder that a recipe key names. Raises UserError if it does not exist.

        The key must be in `input_files`, so that a change of the file is always noticed.
        """
        assert path is not None, f"the recipe's schema requires {key}"
        assert key in self.input_files(), f"mark {key} in recipe/teacher.py: json_schema_extra=INPUT_FILE"
        return recipes.find_path(self.recipe, path, key)

    def find_path_or_none(self, path: str | None, key: str) -> Path | None:
        try:
            return self.find_path(path, key)
        except UserError:
            return None


class Scorer(Teacher, Protocol):
    """A teacher that also assigns log-probabilities to the tokens of existing chains (`teacher.score`)."""

    def score(
        self, questions: Sequence[Question], batches: Iterable[list[Chain]], state: SamplingState | None = None
    ) -> Iterator[list[Chain]]:
        """The batches of chains with unchanged texts and keys, and with the tokens and log-probabilities of this model.

        A scorer that is billed for each chain leaves out the chains that `state` has stored, and keeps every score that it
        receives (`state.scores`).
        """
        ...

    def forecast_scores(self, rows: Iterable[tuple[Question, str]], scores: Path | None = None) -> list[str]:
        """Lines for the plan: the work and the cost of the scores of texts. The first one names the scorer.

        rows    pairs of a question and a text, for the chains that are not stored
        scores  as for `forecast`
        """
        score = self.recipe.teacher.score
        assert score is not None, "a scorer is described by teacher.score"
        count = sum(1 for _ in rows)
        return [f"scores            {score.kind}: {score.model} scores {count} texts in this process"]


def _digest_input(path: Path) -> str:
    """Digest of a file (of all of its bytes) or of a folder (see `folder_fingerprint`)."""
    is_large_file = path.is_file() and path.stat().st_size > 2 << 20
    return storage.file_digest(path) if is_large_file else storage.folder_fingerprint(path)


STYLES: Final = {"teacher": prompts.TEACHER_STYLE, "student": prompts.PAPER_STYLE}  # by teacher.prompt_style


def load_prompt_builder(recipe: Recipe) -> PromptBuilder:
    """The prompt builder of a recipe's teacher. The text of `teacher.prompt`, if any, precedes each question.

    Raises UserError if the file does not exist or is not UTF-8.
    """
    instructions, style = labels.instructions(recipe), STYLES[recipe.teacher.prompt_style]
    if recipe.teacher.prompt is None:
        return make_prompt_builder(style=style, instructions=instructions)
    path = recipes.find_path(recipe, recipe.teacher.prompt, "teacher.prompt")
    try:
        prefix = storage.read_bytes(path).decode("utf-8")
        return make_prompt_builder(style=style, prefix=prefix, instructions=instructions)
    except UnicodeDecodeError as error:
        raise UserError(
            "the file is not UTF-8 text",
            code="E-data-not-utf8",
            where=path,
            found=error.reason,
            hint="name a text file",
        ) from None


def make_prompt_builder(
    *,
    style: PromptStyle = prompts.TEACHER_STYLE,
    demonstrations: Sequence[Demonstration] = (),
    prefix: str = "",
    instructions: Mapping[str, str] | None = None,
) -> PromptBuilder:
    """A function from a question to the teacher's prompt, in which demonstrations or a fixed text precede the question.

    prefix  the fixed text; it stays unchanged, and one newline separates it from the question (Fu et al. 2023: the eight
            complex demonstrations, in a file that ends with a newline)
    instructions  task -> text at the start of the prompt, after the prefix (the labels of a classification)

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
        if not isinstance(question, Question):
            what, hint = (
                "a teacher is asked questions that are records",
                'potstill.Question("mine/1", "2 + 2?", gold="4", ...)',
            )
            raise UserError(what, code="E-teacher-not-a-question", found=repr(question)[:80], hint=hint)
        prompt_format = PromptFormat(bool(demonstrations), True)
        instruction = (instructions or {}).get(question.task, "")
        prompt = prompts.build_prompt(
            question.text, prompt_format, demonstrations, style=style, instruction=instruction
        )
        if not prefix:
            return prompt
        first, *others = prompt.turns
        return Prompt((Turn(first.role, f"{prefix}\n{first.text}"), *others), prompt.lead)

    return build_prompt
