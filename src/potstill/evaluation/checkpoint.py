"""Evaluation of a checkpoint: it answers a split of every set, in every prompt format and decoding.

    paths = evaluate_checkpoint(run_dir, recipe, run_dir / "test", BASE, "test")

Every checkpoint has a folder with a manifest, so more training adds folders and does not repeat evaluations:

    <format>.<decoding>.jsonl   one prediction per question
    <format>.samples.jsonl      all samples, if a decoding chooses among samples
    scores.json                 one `Score` per set, format and decoding
    tries.json                  `PassCurve`s: accuracy by number of samples, if there are samples
    labels.json                 `LabelTable`s: confusion matrices of the sets with labels, if there are any
    texts.json                  `TextScore`s: bits per byte of the texts in `evaluate.texts`, on test
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from potstill import calculator, cut_thoughts, evaluation, grading, inference, progress, prompts, storage, thoughts
from potstill.data import custom_set, grader_tasks, run_questions
from potstill.errors import UserError
from potstill.evaluation import answers, decoding, intervals, label_tables, self_consistency, texts
from potstill.evaluation.decoding import SamplingSpec
from potstill.inference import Decode, Engine
from potstill.recipe import Recipe, VllmSection, flatten_keys
from potstill.records import BASE, Checkpoint, Choice, PassCurve, Prediction, Score, Split, TextScore
from potstill.serialization import to_json
from potstill.storage import manifest, run_folder
from potstill.storage.segments import UNSHARDED, Shard

if TYPE_CHECKING:
    from potstill.models import StoredDType, Student

VERSION: Final = 1  # version of the choice and order of the questions that a checkpoint answers
CACHE_LOCK_SECONDS: Final = 24 * 3600  # maximum wait for another run that evaluates the same checkpoint with this cache
SCORES_FILE: Final = "scores.json"
PASS_CURVE_FILE: Final = "tries.json"
CHOICE_FILE: Final = "choice.json"
ROUNDING_KEY: Final = "weights rounded to"


def versions() -> dict[str, int]:
    """Name in manifests -> version, for all packages that determine an answer and its score."""
    from potstill import models, tokenization

    return {
        "answers": grading.VERSION,
        "calculator": calculator.VERSION,
        "decoding": decoding.VERSION,
        "engines": inference.VERSION,
        "evaluation": evaluation.VERSION,
        "exam": VERSION,
        "intervals": intervals.VERSION,
        "prompts": prompts.VERSION,
        "students": models.VERSION,
        "tokenizers": tokenization.VERSION,
        "votes": self_consistency.VERSION,
    }


# Which checkpoints


def read_saved_steps(run_dir: Path) -> list[int]:
    """The steps of the checkpoints that training saved, without step 0."""
    return list(_finished(run_dir, "train").counts["checkpoints"])


def read_evaluated_checkpoints(run_dir: Path) -> list[Checkpoint]:
    """The checkpoints that `evaluate` has scored and that can be selected: all except the base."""
    checkpoints = map(Checkpoint.parse, _finished(run_dir, "evaluate").counts["steps"])
    return [checkpoint for checkpoint in checkpoints if checkpoint != BASE]


def list_checkpoints_to_evaluate(run_dir: Path, recipe: Recipe) -> list[Checkpoint]:
    """The base, and all saved checkpoints with their interpolations with the base."""
    shares = sorted({*(recipe.evaluate.interpolate or ()), 1.0})
    return [BASE, *(Checkpoint(step, share) for step in read_saved_steps(run_dir) for share in shares)]


def list_answered_checkpoints(folder: Path) -> list[Checkpoint]:
    """The checkpoints with answers in a stage's folder, sorted; also unfinished checkpoints."""
    return sorted(Checkpoint.parse(path.name) for path in folder.glob("[0-9]*"))


def _finished(run_dir: Path, stage: str) -> manifest.Manifest:
    finished = manifest.read_finished(run_dir / stage)
    assert finished is not None, f"{stage} is finished before its results are read"
    return finished


def weights_dir(run_dir: Path, checkpoint: Checkpoint) -> Path:
    """The folder with the weights of a checkpoint before interpolation. Not for the base."""
    stage, step = ("repair", checkpoint.on_policy_steps) if checkpoint.on_policy_steps else ("train", checkpoint.step)
    return run_dir / stage / "checkpoints" / str(step)


# Answers and scores


def evaluate_checkpoint(
    run_dir: Path, recipe: Recipe, folder: Path, checkpoint: Checkpoint, split: Split
) -> list[Path]:
    """Generate, grade and score the answers of a checkpoint. Returns all of its files, including earlier files.

    folder  folder of the stage; the files are in its subfolder `checkpoint.name`

    An interrupted evaluation continues with the first missing batch. Answers of shards are merged.
    """
    checkpoint_dir = folder / checkpoint.name
    identity, finished = begin_checkpoint(run_dir, recipe, folder, checkpoint, split)
    if finished is None:
        paths, questions = _write_answers(run_dir, recipe, checkpoint_dir, checkpoint, split)
        # Before the scores: `potstill track` reads the time of all scores.
        run_folder.append_log(run_dir, "evaluated", stage=folder.name, step=checkpoint.json_value)
        paths += _write_scores(recipe, checkpoint_dir, checkpoint, split)
        paths += label_tables.write_tables(run_dir, recipe, folder, checkpoint, split)
        if split == "test" and recipe.evaluate.texts:
            paths.append(checkpoint_dir / texts.TEXTS_FILE)
            scores = texts.measure(*_text_arguments(run_dir, recipe, checkpoint_dir, checkpoint))
            storage.write_json(paths[-1], [to_json(score) for score in scores])
        storage.remove(checkpoint_dir / answers.SHARDS_FOLDER)
        thoughts = _count_cut_thoughts(run_dir, recipe, folder, checkpoint, split)
        finished = manifest.finish_stage(checkpoint_dir, identity, paths, {"questions": questions, **thoughts})
    else:
        manifest.verify_files(folder, finished)  # before the stage's manifest lists these files
    return [folder / name for name in finished.outputs]


def begin_checkpoint(
    run_dir: Path, recipe: Recipe, folder: Path, checkpoint: Checkpoint, split: Split
) -> tuple[manifest.Identity, manifest.Manifest | None]:
    """Begin or resume the evaluation of a checkpoint. Returns its identity, and its manifest if it is finished.

    Raises UserError if the evaluation was started with other inputs. The arguments are those of `evaluate_checkpoint`.
    """
    unused = list_unused_keys(recipe, split)
    keys = {k: value for k, value in flatten_keys(recipe, "evaluate", "questions").items() if k not in unused}
    inputs = {
        "collect": _finished(run_dir, "collect").digest,
        **_weight_digests(run_dir, recipe, checkpoint),
        **collect_grader_digests(recipe, split),
        **(texts.text_digests(recipe) if split == "test" else {}),
    }
    identity = manifest.Identity(f"{folder.name}/{checkpoint.name}", versions(), keys, inputs)
    return identity, manifest.begin_stage(folder / checkpoint.name, identity)


def answer_shard(
    run_dir: Path, recipe: Recipe, folder: Path, checkpoints: Sequence[Checkpoint], split: Split, shard: Shard
) -> None:
    """Generate and store the answers of one shard. Another process has begun the evaluation of the checkpoints."""
    files = len(recipe.evaluate.formats) * len(decoding.list_sampling_specs(list_decodings(recipe, split)))
    for number, checkpoint in enumerate(checkpoints):
        checkpoint_dir = folder / checkpoint.name
        if not (checkpoint_dir / manifest.MANIFEST_FILE).exists():
            _write_answers(run_dir, recipe, checkpoint_dir, checkpoint, split, shard, number * files)
            if split == "test" and recipe.evaluate.texts:
                texts.measure_shard(*_text_arguments(run_dir, recipe, checkpoint_dir, checkpoint), shard=shard)


def launcher_conflict(recipe: Recipe) -> str:
    """Why the processes of a launcher cannot share the answers, in a phrase; empty if they can."""
    return "vLLM chooses its GPUs itself" if recipe.evaluate.engine == "vllm" else ""


def list_decodings(recipe: Recipe, split: Split) -> list[str]:
    """The decodings of a split. The selection uses the first one."""
    return [*recipe.evaluate.decodings, *(recipe.evaluate.test_decodings if split == "test" else ())]


def list_unused_keys(recipe: Recipe, split: Split) -> tuple[str, ...]:
    """Recipe keys of `evaluate` on which the results of a split do not depend.

    Keys with default values are also included, so that manifests do not name them.
    """
    keys = ["evaluate.cache", "evaluate.interpolate", *(f"evaluate.vllm.{name}" for name in VllmSection.FREE)]
    evaluate, defaults = recipe.evaluate, {"dtype": "float32", "stop_repeats": False, "base_max_tokens": None}
    keys += [f"evaluate.{name}" for name, default in defaults.items() if getattr(evaluate, name) == default]
    return (*keys, *(() if split == "test" else ("evaluate.test_decodings", *flatten_keys(recipe, "evaluate.texts"))))


def max_tokens(recipe: Recipe, checkpoint: Checkpoint) -> int:
    """The maximum number of tokens of a checkpoint's answers."""
    evaluate = recipe.evaluate
    return evaluate.base_max_tokens if checkpoint == BASE and evaluate.base_max_tokens else evaluate.max_tokens


def collect_grader_digests(recipe: Recipe, split: Split) -> dict[str, str]:
    """Name -> digest of the user's grading functions; the versions of calculator marks and of the engine ctranslate2 if
    they are used; and the special tokens that answers contain as tags of thoughts."""
    from potstill import models, tokenization

    digests = custom_set.grader_digests(grader_tasks(recipe)) | inference.engine_identity(recipe.evaluate.engine)
    if any(spec.calculator for spec in decoding.list_sampling_specs(list_decodings(recipe, split))):
        digests["calculator marks"] = str(calculator.MARKS_VERSION)
    digests |= models.identify_student_thoughts(recipe)
    return digests | tokenization.thought_tags_identity(models.tokenizer_folder(recipe), "student.tokenizer")


def _write_answers(
    run_dir: Path,
    recipe: Recipe,
    checkpoint_dir: Path,
    checkpoint: Checkpoint,
    split: Split,
    shard: Shard = UNSHARDED,
    rotation: int = 0,
) -> tuple[list[Path], int]:
    """Write the answers, or those of a shard. Returns the files of predictions, and the number of questions."""
    sets, decodings, evaluate = recipe.questions, list_decodings(recipe, split), recipe.evaluate
    set_names = [*sets.in_distribution, *sets.out_of_distribution, *sets.generic]
    questions = run_questions.read_questions(run_dir, set_names, split)
    task_prompts = run_questions.read_task_prompts(run_dir)
    specs = [(format, spec) for format in evaluate.formats for spec in decoding.list_sampling_specs(decodings)]
    files = [
        answers.AnswerFile(checkpoint_dir / f"{format}.{spec.name}.jsonl", len(questions) * spec.samples)
        for format, spec in specs
    ]
    if all(file.is_complete() for file in files):  # shards have answered everything: no engine is needed
        if shard == UNSHARDED:
            for file in files:
                file.merge_segments()
    else:
        shards = [] if shard == UNSHARDED else [shard]
        with open_checkpoint_engine(run_dir, recipe, checkpoint, *shards) as engine:
            for number, ((format, spec), file) in enumerate(zip(specs, files, strict=True), rotation):
                answers.write_answers(
                    file,
                    engine,
                    questions,
                    partial(run_questions.evaluation_prompt, format=prompts.FORMATS[format], table=task_prompts),
                    _decode_settings(recipe, checkpoint, spec),
                    samples=spec.samples,
                    budget=evaluate.batch_tokens,
                    label=f"step {checkpoint.label}",
                    shard=shard,
                    rotation=number,
                )
    paths = [file.path for file in files]
    if shard == UNSHARDED:
        paths += _choose_answers(recipe, checkpoint_dir, checkpoint, decodings)
    return paths, len(questions)


def _decode_settings(recipe: Recipe, checkpoint: Checkpoint, spec: SamplingSpec) -> Decode:
    evaluate = recipe.evaluate
    return Decode(
        max_tokens=max_tokens(recipe, checkpoint),
        temperature=evaluate.temperature if spec.sampled else 0.0,
        seed=recipe.evaluation_seed,
        stop_at_answer="sentence" if evaluate.stop_at_answer else None,
        calculator=spec.calculator,
        likelihood=spec.sampled,
        stop_repeats=evaluate.stop_repeats,
    )


def _choose_answers(
    recipe: Recipe, checkpoint_dir: Path, checkpoint: Checkpoint, decodings: Sequence[str]
) -> Iterator[Path]:
    """Write the answers of the decodings that choose among samples, and yield their files."""
    for format in recipe.evaluate.formats:
        for name in decodings:
            source = decoding.parse_decoding(name).spec.name
            if name != source:
                samples = read_predictions(checkpoint_dir.parent, checkpoint, format, source)
                path = checkpoint_dir / f"{format}.{name}.jsonl"
                storage.write_jsonl(path, map(to_json, decoding.choose_answers(name, samples)))
                yield path


def _count_cut_thoughts(
    run_dir: Path, recipe: Recipe, folder: Path, checkpoint: Checkpoint, split: Split
) -> dict[str, Any]:
    """The number of answers that were cut inside a thought, for the manifest. Prints a warning if there are such answers."""
    from potstill import models

    specs = decoding.list_sampling_specs(list_decodings(recipe, split))
    read = partial(read_predictions, folder, checkpoint)
    answers = {f"{format}.{spec.name}": read(format, spec.name) for format in recipe.evaluate.formats for spec in specs}
    chat = None
    if recipe.student.model is not None and recipe.student.chat is not False:
        own = weights_dir(run_dir, checkpoint)
        of_base = checkpoint == BASE or models.is_adapter(own)
        chat = models.chat_template_from_recipe(recipe, models.model_folder(recipe) if of_base else own)
    counts = cut_thoughts.count_cut_thoughts(answers, chat)
    if warning := thoughts.describe_cut_thoughts(counts, is_base=checkpoint == BASE):
        progress.print_line(f"step {checkpoint.label}: {warning}", "yellow")
    return counts


def _write_scores(recipe: Recipe, checkpoint_dir: Path, checkpoint: Checkpoint, split: Split) -> list[Path]:
    """Write the scores and, if answers were sampled, the pass curves. Returns their files."""
    decodings = list_decodings(recipe, split)
    scores: list[Score] = []
    curves: list[PassCurve] = []
    for format in recipe.evaluate.formats:
        labels: Any = {"checkpoint": checkpoint, "split": split, "format": format}
        read = partial(read_predictions, checkpoint_dir.parent, checkpoint, format)
        labels_and_rule = {**labels, "stop_repeats": recipe.evaluate.stop_repeats}
        for name in decodings:
            scores += evaluation.score_predictions(read(name), decoding=name, **labels_and_rule)
        for spec in decoding.list_sampling_specs(decodings):
            if spec.sampled:
                curves += decoding.compute_pass_curves(read(spec.name), drawing=spec.name, **labels)
    tables = {SCORES_FILE: scores, **({PASS_CURVE_FILE: curves} if curves else {})}
    for name, rows in tables.items():
        storage.write_json(checkpoint_dir / name, [to_json(row) for row in rows])
    return [checkpoint_dir / name for name in tables]


def _text_arguments(run_dir: Path, recipe: Recipe, checkpoint_dir: Path, checkpoint: Checkpoint) -> Any:
    """The arguments of `texts.measure`."""
    from potstill import models

    def open_student() -> Student:
        return open_checkpoint(run_dir, recipe, checkpoint).to(models.default_device())

    return open_student, texts.read_texts(recipe), checkpoint, checkpoint_dir / answers.SHARDS_FOLDER


def read_text_scores(folder: Path, checkpoint: Checkpoint) -> list[TextScore]:
    """The scores of `evaluate.texts` in bits per byte; empty without such texts."""
    path = folder / checkpoint.name / texts.TEXTS_FILE
    return storage.read_records(TextScore, path) if path.exists() else []


def read_predictions(folder: Path, checkpoint: Checkpoint, format: str, decoding: str) -> Iterator[Prediction]:
    """The answers of a checkpoint in a stage's folder, in the order of their file."""
    return storage.iter_records(Prediction, folder / checkpoint.name / f"{format}.{decoding}.jsonl")


def list_answers(folder: Path) -> list[str]:
    """The files of answers in a stage's folder, as `CHECKPOINT/FORMAT.DECODING`, sorted."""
    return sorted(path.relative_to(folder).with_suffix("").as_posix() for path in folder.glob("[0-9]*/*.jsonl"))


def read_scores(folder: Path, checkpoint: Checkpoint) -> list[Score]:
    return storage.read_records(Score, folder / checkpoint.name / SCORES_FILE)


def read_pass_curve(folder: Path, checkpoint: Checkpoint) -> list[PassCurve]:
    """The pass curves of a checkpoint: accuracy by number of samples. Empty if no decoding samples."""
    path = folder / checkpoint.name / PASS_CURVE_FILE
    return storage.read_records(PassCurve, path) if path.exists() else []


def read_choice(run_dir: Path) -> Choice:
    """The selected checkpoint, as the stage `select` stored it."""
    return storage.read_record(Choice, run_dir / "select" / CHOICE_FILE)


# Weights and engines


@contextlib.contextmanager
def open_checkpoint_engine(
    run_dir: Path, recipe: Recipe, checkpoint: Checkpoint, shard: Shard = UNSHARDED
) -> Iterator[Engine]:
    """The engine of a checkpoint, with a cache if the recipe names a folder for it. Each shard has its own cache file."""
    from potstill import models, tokenization
    from potstill.inference import cache

    evaluate = recipe.evaluate
    # vLLM reads the folder itself, unless the weights must be rounded.
    weights = evaluate.engine != "vllm" or bool(_rounding(recipe, checkpoint))
    student = open_checkpoint(run_dir, recipe, checkpoint, weights=weights)
    if evaluate.dtype != "float32":
        student.convert_weights(evaluate.dtype)
    if evaluate.engine == "transformers":
        student.to(models.default_device())
    engine = inference.open_engine(
        student, evaluate.engine, trust_remote_code=recipe.student.trust_remote_code, vllm=evaluate.vllm
    )
    if evaluate.cache is None:
        yield engine
        return
    key = {**_weight_digests(run_dir, recipe, checkpoint), "engine": evaluate.engine}
    key |= inference.engine_identity(evaluate.engine)
    key |= tokenization.thought_tags_identity(models.tokenizer_folder(recipe), "student.tokenizer")
    if evaluate.engine == "vllm":
        key["dtype"] = evaluate.vllm.dtype or "float32"
    elif evaluate.dtype != "float32":
        key["dtype"] = evaluate.dtype
    if checkpoint == BASE and recipe.student.model is None:  # random weights: a function of shape and seed
        key |= {"seed": str(recipe.seed), "shape": repr(recipe.student.shape)}
    cache_dir = Path(evaluate.cache) / cache.build_cache_key(key)
    name = "answers" if shard == UNSHARDED else f"answers-{shard.number}-of-{shard.count}"
    with _lock_cache(cache_dir, name), cache.CachingEngine(engine, cache_dir / f"{name}.jsonl") as caching_engine:
        yield caching_engine
        counts = f"{caching_engine.reused} answers from the cache, {caching_engine.generated} generated"
        progress.print_line(counts, "dim")


@contextlib.contextmanager
def _lock_cache(cache_dir: Path, name: str) -> Iterator[None]:
    """Lock a file of a checkpoint's answers in the cache.

    If another run evaluates the same checkpoint, wait until it finishes; this run then reads the answers from the cache.
    """
    message = "another process is answering the questions of this checkpoint"
    lock = ".lock" if name == "answers" else f".{name}.lock"
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(storage.hold_lock(cache_dir, lock, 0, message))
        except UserError as error:
            if error.code != "E-run-locked":
                raise
            progress.print_line(f"waiting for the cache {cache_dir}: {message}", "yellow")
            stack.enter_context(storage.hold_lock(cache_dir, lock, CACHE_LOCK_SECONDS, message))
        yield


def open_checkpoint(
    run_dir: Path, recipe: Recipe, checkpoint: Checkpoint, *, weights: bool = True, rounded: bool = True
) -> Student:
    """The student of a checkpoint: the base, a checkpoint of the run, or an interpolation between them.

    weights  False: open the student without weights if they are in a folder (see `models.open_student`)
    rounded  whether to round the weights to the dtype of the shipped student, which is that of the base; training needs
             the weights without rounding

    Raises UserError if the run has no such checkpoint.
    """
    from potstill import models

    if checkpoint == BASE:
        return models.from_recipe(recipe, weights=weights)
    path = weights_dir(run_dir, checkpoint)
    if checkpoint.on_policy_steps:
        return models.from_checkpoint(recipe, path, weights=weights)
    if not path.is_dir():
        hint = f"use one of {storage.list_saved_steps(path.parent)}"
        raise UserError("there is no such checkpoint", code="E-evaluate-no-checkpoint", where=path, hint=hint)
    student = models.from_checkpoint(recipe, path, weights=weights or checkpoint.share != 1)
    if checkpoint.share != 1:
        models.interpolate_weights(student, models.from_recipe(recipe), checkpoint.share)
    if rounded and weights and _rounding(recipe, checkpoint):
        models.round_weights(student, models.base_dtype(recipe))
    return student


def _rounding(recipe: Recipe, checkpoint: Checkpoint) -> dict[str, str]:
    """`rounding_identity` for a checkpoint; empty for checkpoints that are not rounded.

    The base needs no rounding. The result of on-policy distillation is a float32 folder, which is measured unrounded.
    """
    return {} if checkpoint == BASE or checkpoint.on_policy_steps else rounding_identity(recipe)


def rounding_identity(recipe: Recipe) -> dict[str, str]:
    """The dtype to which trained weights are rounded before evaluation, for identities; empty for float32."""
    from potstill import models

    dtype = models.base_dtype(recipe)
    return {} if dtype == "float32" else {ROUNDING_KEY: dtype}


def read_measured_dtype(run_dir: Path, checkpoint: Checkpoint) -> StoredDType:
    """The dtype to which the weights of a checkpoint were rounded in the stage `test`."""
    measured = manifest.read_finished(run_dir / "test" / checkpoint.name)
    assert measured is not None, "the test is finished before its student is shipped"
    dtype: Any = measured.identity.inputs.get(ROUNDING_KEY, "float32")
    return dtype


def copy_adapter(run_dir: Path, checkpoint: Checkpoint, folder: Path) -> None:
    """Write the LoRA adapter of a checkpoint into a folder. Raises UserError if the checkpoint has none."""
    from potstill import models

    models.copy_adapter(models.find_adapter(weights_dir(run_dir, checkpoint)), folder, checkpoint.share)


def _weight_digests(run_dir: Path, recipe: Recipe, checkpoint: Checkpoint) -> dict[str, str]:
    """Name -> digest, for everything that determines the weights of a checkpoint."""
    from potstill import models

    if checkpoint == BASE:
        return models.weights_identity(recipe)
    folder = weights_dir(run_dir, checkpoint)
    train = manifest.read_finished(folder.parent.parent)
    prefix = f"{folder.relative_to(run_dir).as_posix()}/"
    if train is None:  # the checkpoint is evaluated during training
        files = sorted(path for path in folder.iterdir() if path.is_file())
        digests = {prefix + path.name: storage.file_digest(path) for path in files}
    else:
        digests = {name: row["sha256"] for name, row in train.outputs.items() if name.startswith(prefix)}
    # The optimizer's state (`engine...`, a file or a folder) does not affect answers, and is deleted for older steps. The
    # merged weights of earlier versions already contain the folder `adapter`.
    unread = (f"{prefix}engine", f"{prefix}{models.ADAPTER_FOLDER}/")
    weights = {name: digest for name, digest in digests.items() if not name.startswith(unread)}
    weights |= _rounding(recipe, checkpoint)
    if checkpoint.share == 1 or checkpoint.on_policy_steps:
        return weights
    return {**models.weights_identity(recipe), **weights, "share": repr(checkpoint.share)}
