"""Preflight checks: find problems of later stages before a run spends anything.

    for problem in find_problems(recipe, ("sample", "train")):
        print(problem.stage, problem.fault)

`--dry-run` prints all problems. Before it samples, a run raises the first problem of a stage that it will make, and prints
the problems of later stages. There is no other list of checks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from potstill import models, teachers, tokenization
from potstill.data.assemble import Sets, training_questions
from potstill.errors import UserError
from potstill.evaluation import texts
from potstill.inference import check_decoder_only, check_installed
from potstill.recipe import Recipe
from potstill.stages import collect, open_stage, recipe_stages
from potstill.storage import manifest, segments
from potstill.training import examples, loss_from_recipe, on_policy_divergence, scorer_models


@dataclass(frozen=True, slots=True)
class Problem:
    """A problem that would stop a stage. later: whether it may still be fixed while earlier stages are made."""

    stage: str
    fault: UserError
    later: bool = False


def find_problems(
    recipe: Recipe,
    stages: Sequence[str],
    run_dir: Path | None = None,
    *,
    weights: bool = True,
    sets: Sets | None = None,
) -> list[Problem]:
    """The problems that would stop the stages of a recipe, in the order of the stages, each problem once.

    run_dir    the folder of the run; its finished stages are skipped
    weights    whether to check the weights of models, too; this takes as long as reading their files once
    sets       set -> split -> questions, if they are known; then it is checked whether there are demonstrations for the
               few-shot formats, and whether the teacher has chains for the training questions
    """
    problems: dict[tuple[str, str], Problem] = {}
    for stage, check in _iter_checks(recipe, stages, run_dir, weights, sets):
        if stage not in stages or (run_dir is not None and (run_dir / stage / manifest.MANIFEST_FILE).exists()):
            continue
        try:
            check()
        except UserError as fault:
            if fault.code == models.NOT_DOWNLOADED:  # the stage downloads them
                continue
            problems.setdefault((fault.what, fault.where), Problem(stage, fault, later=stage == "report"))
    return sorted(problems.values(), key=lambda problem: stages.index(problem.stage))


def list_problems(
    recipe: Recipe,
    run_dir: Path | None = None,
    *,
    weights: bool = True,
    sets: Sets | None = None,
) -> list[Problem]:
    """`find_problems` for all stages of a recipe. If no check could be made, such as those of a teacher that cannot be read,
    the error is the only problem."""
    stages = recipe_stages(recipe)
    try:
        return find_problems(recipe, stages, run_dir, weights=weights, sets=sets)
    except UserError as fault:
        return [Problem(stages[0], fault)]


def _iter_checks(
    recipe: Recipe,
    stages: Sequence[str],
    run_dir: Path | None,
    weights: bool,
    sets: Sets | None,
) -> Iterator[tuple[str, Callable[[], object]]]:
    """Pairs of a stage and a function that raises UserError if the stage lacks something that it needs."""
    for stage in stages:
        yield stage, lambda stage=stage: open_stage(stage).inputs(recipe, run_dir)
    if sets is not None:
        yield "collect", lambda: collect.build_task_prompts(recipe, sets)
    if recipe.has_teacher:
        teacher = teachers.from_recipe(recipe)
        for name, source in recipe.sources.items():
            if teachers.from_recipe(source).generates:
                yield "sample", lambda name=name, source=source: _check_temperature(source, run_dir, name)
        for check in teacher.checks(weights=weights):
            yield "sample", check
        if sets is not None:
            yield "sample", lambda: teacher.check_questions(training_questions(recipe.questions.train, sets))
    first, weights_stage = ("align", "train") if recipe.has_teacher else ("test", "test")
    trusted = recipe.student.trust_remote_code
    if recipe.student.model is not None:
        yield first, lambda: models.check_tokenizer(recipe, _student_folder(recipe))
        yield first, lambda: models.chat_template_from_recipe(recipe, _student_folder(recipe))
        if weights:
            yield weights_stage, lambda: models.check_weights(_student_folder(recipe), trust_remote_code=trusted)
    else:
        yield first, lambda: _student_shape(recipe)
    if recipe.train.lora:
        yield "train", lambda: check_installed("peft", "train.lora", "remove train.lora")
    if recipe.train.load_in_4bit:
        yield "train", models.check_quantization
    if recipe.has_teacher:
        yield "train", lambda: loss_from_recipe(recipe)
    if recipe.on_policy is not None:
        yield "repair", lambda: on_policy_divergence(recipe, "on_policy")
    if recipe.train.on_policy is not None and recipe.has_teacher:
        yield "train", lambda: on_policy_divergence(recipe, "train.on_policy")
        yield "train", lambda: scorer_models.check_scorers(recipe, weights=weights)
    if recipe.train.loss_weights is not None and recipe.has_teacher:
        yield "train", lambda: examples.check_format_mix(recipe)
    if recipe.train.replay is not None:
        yield "train", lambda: examples.replay_rows_per_step(recipe)
    for stage in ("evaluate", "test"):
        yield stage, lambda: _check_engine(recipe)
        yield stage, lambda: models.weights_identity(recipe)
    if recipe.evaluate.texts:
        yield "test", lambda: _check_texts(recipe)
    if recipe.on_policy is not None and recipe.on_policy.scorer is not None and weights:
        yield "repair", lambda: _check_scorer(recipe)


def _student_folder(recipe: Recipe) -> Path:
    return models.model_folder(recipe)


def _student_shape(recipe: Recipe) -> models.Shape:
    """The size of a student with random weights. Raises UserError if it or its tokenizer is missing."""
    return models.shape_from_recipe(recipe, tokenization.load_tokenizer(models.tokenizer_folder(recipe)).size)


def _check_scorer(recipe: Recipe) -> None:
    models.check_weights(models.find_scorer(recipe).folder, trust_remote_code=recipe.student.trust_remote_code)


def _check_engine(recipe: Recipe) -> None:
    engine = recipe.evaluate.engine
    if engine == "vllm" or engine.startswith("ctranslate2"):
        check_installed(engine.partition("-")[0], "evaluate.engine", "set evaluate.engine: transformers")
    if engine == "vllm" and recipe.student.model is not None:
        check_decoder_only(_student_folder(recipe), "evaluate.engine")


def _check_texts(recipe: Recipe) -> None:
    texts.read_texts(recipe)
    random_weights = recipe.student.model is None
    family = _student_shape(recipe).family if random_weights else models.read_family(_student_folder(recipe))
    if family == "t5":
        raise texts.encoder_decoder_error()


def _check_temperature(recipe: Recipe, run_dir: Path | None, name: str) -> None:
    """Raise UserError if the user would pay for several samples of a question that are the same text.

    A run that has started to sample may continue.
    """
    teacher = recipe.teacher
    folder = None if run_dir is None else run_dir / "sample"
    begun = folder is not None and ((folder / "chains.parquet").exists() or segments.segment_paths(folder))
    if teacher.temperature == 0 and teacher.samples > 1 and not begun:
        what = f"temperature 0 gives the same text {teacher.samples} times, and all of them are paid for"
        found = f"{teacher.samples} with teacher.temperature 0"
        where, hint = teachers.key_of_source("teacher.samples", name), "set samples: 1, or a temperature above 0"
        raise UserError(what, code="E-recipe-equal-samples", where=where, found=found, hint=hint)
