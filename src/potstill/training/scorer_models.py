"""The scorers that a recipe names in `train.on_policy.scorers`: where their models are, and how they score.

    scorer = open_scorer(run_dir, recipe, "big", student, questions)
    scorer.by_step(rows)         # the same rows, with the distributions of the scorer

    >>> find_scorer_teacher(Recipe(name="mine", teacher={"kind": "openai", "model": "qwen"}), "teacher")
    'openai'

A scorer is a teacher of the recipe, which reads the texts after its own prompts; the base student; or another model,
which reads them after the student's prompts, in its own chat template if it has another tokenizer.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Literal

from potstill import alignment, grading, inference, models, teachers, tokenization
from potstill.errors import UserError
from potstill.models import Example, Student
from potstill.recipe import Recipe, find_path
from potstill.recipe.on_policy import BASE_STUDENT, TEACHER, OnPolicyScorerSection
from potstill.recipe.teacher import TeacherSection
from potstill.records import Prompt, Question
from potstill.storage import ledger
from potstill.teachers import local_model
from potstill.teachers.local_model import LocalModel
from potstill.teachers.openai_api import stored_scores
from potstill.teachers.openai_api.teacher import FREE_SERVER_KEYS
from potstill.teachers.protocol import load_prompt_builder
from potstill.training import own_texts
from potstill.training.distributed import broadcast_from_main, is_main_process
from potstill.training.scorers import ScoreChains, teacher_forced_scores, transfer_scores

PromptOf = Callable[[str], Prompt]  # question id -> the prompt that a scorer reads
Rescore = Callable[[list[Example]], list[Example]]


@dataclass(frozen=True, slots=True)
class Scorer:
    """How texts get the distributions of a model. One of the two functions is given.

    by_step   takes all rows of a step. For another tokenizer: the completions come from the texts of the whole step
    by_batch  takes the rows of a micro-batch
    """

    by_step: Rescore | None = None
    by_batch: Rescore | None = None


def from_model(
    scorer: Student,
    student: Student,
    prompt_of: PromptOf,
    *,
    top_k: int,
    budget: int,
    own_prompts: bool = False,
    only_answer: bool = False,
) -> Scorer:
    """A scorer in this process.

    top_k        number of its most likely tokens at each position, in addition to the written token
    budget       largest number of tokens in a batch, if it has another tokenizer
    own_prompts  whether a scorer with the student's tokenizer reads `prompt_of` instead of the student's prompts
    only_answer  as in `transfer_scores`
    """
    if scorer.tokenizer.digest != student.tokenizer.digest:
        engine = inference.open_engine(scorer)
        score = partial(local_model.score_chains, engine, top_logprobs=top_k, batch_tokens=budget)
        transfer = partial(transfer_scores, score, scorer.tokenizer, student.tokenizer, prompt_of)
        return Scorer(by_step=partial(transfer, only_answer=only_answer))
    if not own_prompts:
        return Scorer(by_batch=partial(teacher_forced_scores, scorer, top_k=top_k))

    def after_own_prompts(rows: list[Example]) -> list[Example]:
        asked = [tuple(scorer.encode(scorer.render(prompt_of(row.question)))) for row in rows]
        moved = [replace(row, prompt=prompt) for row, prompt in zip(rows, asked, strict=True)]
        scored = teacher_forced_scores(scorer, moved, top_k)
        return [replace(row, target=new.target) for row, new in zip(rows, scored, strict=True)]

    return Scorer(by_batch=after_own_prompts)


def open_scorer(
    run_dir: Path,
    recipe: Recipe,
    name: str,
    student: Student,
    questions: Mapping[str, Question],
    prompt_of: PromptOf,
    stack: ExitStack,
) -> Scorer | None:
    """The scorer of an entry of `train.on_policy.scorers`; None if the entry names no model.

    prompt_of  the student's prompts, for a scorer that is not a teacher
    stack      closes the connection to a server

    Raises UserError if the model is missing, or if a teacher has no model that can score.
    """
    section = recipe.train.on_policy
    assert section is not None, "the recipe has the section train.on_policy"
    found, only_answer = find_scorer_model(recipe, name), section.scorers[name].part == "answer"
    if found is None:
        return None
    if (build_prompt := found.prompt_of) is not None:
        prompt_of = lambda question: build_prompt(questions[question])  # noqa: E731
    if found.server is not None:
        score, tokenizer = _open_server(run_dir, found.server, name, stack), _server_tokenizer(found.server)
        transfer = partial(transfer_scores, score, tokenizer, student.tokenizer, prompt_of)
        return Scorer(by_step=partial(transfer, only_answer=only_answer))
    if found.folder is None:
        model = models.from_recipe(recipe)
    elif found.teacher is not None:
        teacher = found.teacher.recipe.teacher
        model = models.open_student(
            found.folder,
            trust_remote_code=teacher.trust_remote_code,
            chat_template=found.teacher.chat_settings,
            dtype=teacher.dtype,
        )
    elif tokenization.load_tokenizer(found.folder).digest == student.tokenizer.digest:
        model = models.from_checkpoint(recipe, found.folder)
    else:
        trusted = recipe.student.trust_remote_code
        model = models.open_student(found.folder, chat_template="auto", trust_remote_code=trusted)
    return from_model(
        model.to(student.device),
        student,
        prompt_of,
        top_k=section.top_logprobs,
        budget=recipe.train.batch_tokens,
        own_prompts=found.teacher is not None,
        only_answer=only_answer,
    )


def _server_recipe(source: Recipe, top_logprobs: int) -> Recipe:
    """The recipe whose teacher is the model that scores behind a server."""
    teacher = source.teacher
    if teacher.score is not None:  # a teacher of existing chains, whose scorer is behind the server
        keys = {"model": teacher.score.model, "prompt": teacher.prompt, "prompt_style": teacher.prompt_style}
        teacher = TeacherSection(kind="openai", server=teacher.server, **keys)
    return source.model_copy(update={"teacher": teacher.model_copy(update={"top_logprobs": top_logprobs})})


def _server_tokenizer(recipe: Recipe) -> tokenization.Tokenizer | None:
    """The tokenizer that the recipe names for its server."""
    named = recipe.teacher.server.tokenizer
    return None if named is None else tokenization.load_tokenizer(find_path(recipe, named, "teacher.server.tokenizer"))


def _open_server(run_dir: Path, recipe: Recipe, name: str, stack: ExitStack) -> ScoreChains:
    """The function that scores chains through a server. Only the main process sends requests.

    The scores are stored beside the stages, in `scores/NAME`, so that no redo of a stage removes what was paid for.
    """
    if not is_main_process():
        return lambda pairs: broadcast_from_main(list)
    folder, ledger_name = run_dir / "scores" / name, f"{ledger.SCORES}.{name}"
    usage = stored_scores.open_usage(run_dir, ledger_name)
    scorer = stack.enter_context(stored_scores.StoredScorer(recipe, folder=folder, usage=usage))
    return lambda pairs: broadcast_from_main(partial(scorer.score, pairs))


def describe_scorer(recipe: Recipe, name: str) -> str | None:
    """The scorer of an entry of `train.on_policy.scorers` in words; None if the entry names no model."""
    section = recipe.train.on_policy
    assert section is not None, "the recipe has the section train.on_policy"
    entry = section.scorers[name]
    if entry.model is None:
        return None
    if entry.model == BASE_STUDENT:
        return "the base student"
    if entry.kind == "local" and _teacher_source(recipe, entry) is not None:
        return "the teacher" if entry.model == TEACHER else f"the teacher {entry.model}"
    return f"{entry.model} on a server" if entry.kind == "openai" else entry.model


@dataclass(frozen=True, slots=True)
class ScorerModel:
    """Where the model of a scorer is.

    folder       folder of a model in this process; None for the base student and for a server
    teacher      the teacher whose model it is; None for other models
    server       the recipe whose teacher is a server's model
    prompt_of    function from a question to the scorer's prompt; None: it reads the student's prompts
    """

    folder: Path | None = None
    teacher: LocalModel | None = None
    server: Recipe | None = None
    prompt_of: Callable[[Question], Prompt] | None = None


def find_scorer_model(recipe: Recipe, name: str) -> ScorerModel | None:
    """The model of an entry of `train.on_policy.scorers`; None if the entry names none. Raises UserError if it is missing."""
    section = recipe.train.on_policy
    assert section is not None, "the recipe has the section train.on_policy"
    entry = section.scorers[name]
    if entry.model is None:
        return None
    if entry.model == BASE_STUDENT:
        return ScorerModel()
    source = _teacher_source(recipe, entry)
    if source is None:
        return ScorerModel(models.find_model(recipe, entry.model, _scorer_key(name), entry.revision).folder)
    prompt_of = load_prompt_builder(source) if entry.kind == "local" else None
    if find_scorer_teacher(source, entry.model) == "openai":
        return ScorerModel(server=_server_recipe(source, section.top_logprobs), prompt_of=prompt_of)
    teacher = _local_teacher(source)
    return ScorerModel(teacher.folder, teacher, prompt_of=prompt_of)


def scorer_inputs(recipe: Recipe) -> dict[str, str]:
    """Name -> digest, for the models and prompts of all scorers of `train.on_policy`, except the base student."""
    section, digests = recipe.train.on_policy, dict[str, str]()
    for name, entry in section.scorers.items() if section else ():
        key, found = _scorer_key(name), find_scorer_model(recipe, name)
        if found is None or found.folder is None:
            continue
        if found.teacher is not None:
            digests |= {f"{key}: {part}": digest for part, digest in found.teacher.inputs().items()}
        elif entry.model is not None:
            digests |= models.find_model(recipe, entry.model, key, entry.revision).identity(key)
    return digests


def free_keys(name: str) -> list[str]:
    """The keys of a scorer, under `train.on_policy`, that do not change its scores: where its server is, what it may cost,
    and its revision, whose commit is in `scorer_inputs`."""
    budget = ("tokens", "money", "spent", "prices.prompt", "prices.completion")
    keys = (*(f"server.{key}" for key in FREE_SERVER_KEYS), *(f"budget.{key}" for key in budget), "revision")
    return [f"scorers.{name}.{key}" for key in keys]


def versions(recipe: Recipe) -> dict[str, int]:
    """Name in the manifest -> version, for the packages that determine the scores and grades of the student's own texts."""
    section = recipe.train.on_policy
    assert section is not None, "the recipe has the section train.on_policy"
    found = {"alignment": alignment.VERSION, "engines": inference.VERSION, "teachers": teachers.VERSION}
    found["own texts"] = own_texts.VERSION
    if section.engine == "ctranslate2":
        found["ctranslate2"] = inference.CTRANSLATE2_VERSION
    if any(scorer.rewards for scorer in section.scorers.values()):
        found["answers"] = grading.VERSION
    sources = ((entry, _teacher_source(recipe, entry)) for entry in section.scorers.values())
    if any(source and find_scorer_teacher(source, entry.model or "") == "openai" for entry, source in sources):
        found["scores"] = stored_scores.VERSION
    return found


def check_scorers(recipe: Recipe, *, weights: bool = True) -> None:
    """Raise UserError if a scorer of `train.on_policy` cannot be opened. weights: check the files of its weights, too."""
    section = recipe.train.on_policy
    for name in section.scorers if section else ():
        found = find_scorer_model(recipe, name)
        if weights and found is not None and found.folder is not None:
            trusting = recipe.student if found.teacher is None else found.teacher.recipe.teacher
            models.check_weights(found.folder, trust_remote_code=trusting.trust_remote_code)


def _local_teacher(source: Recipe) -> LocalModel:
    """The teacher, or the scorer of a teacher with existing chains, as a model in this process."""
    teacher = teachers.from_recipe(source)
    model = teacher if source.teacher.score is None else getattr(teacher, "scorer", None)
    assert isinstance(model, LocalModel), f"{source.teacher.kind} is not a model in this process"
    return model


def _scorer_key(name: str) -> str:
    return f"train.on_policy.scorers.{name}.model"


def find_scorer_teacher(source: Recipe, name: str) -> Literal["local", "openai"]:
    """How a teacher scores texts. Raises UserError if it has no model."""
    teacher = source.teacher
    if teacher.score is not None:
        return teacher.score.kind
    if teacher.kind in ("local", "vllm"):
        return "local"
    if teacher.kind == "openai":
        return "openai"
    what = "the teacher has no model that could score texts"
    hint = "name a model in train.on_policy.scorers, or set teacher.score"
    raise UserError(what, code="E-train-scorer-without-model", where=name, found=teacher.kind, hint=hint)


def _teacher_source(recipe: Recipe, entry: OnPolicyScorerSection) -> Recipe | None:
    """The recipe with only the teacher that the entry names, also for a server of its own; None for another model."""
    if entry.kind == "openai":
        section = TeacherSection(kind="openai", model=entry.model, server=entry.server, budget=entry.budget)
        return recipe.model_copy(update={"teacher": section, "teachers": None})
    if entry.model == TEACHER and recipe.teachers is None:
        return recipe
    return recipe.sources.get(entry.model or "") if recipe.teachers is not None else None
