"""Exams: one checkpoint answers one split of every set, in every format; shared by `evaluate` and `test`.

Every contender has its own folder with its own manifest, so that more training adds some and repeats none. In it lie
`<format>.<decoding>.jsonl` (every prediction, the set as a field) and `scores.json`. Decodings that choose among
samples have `<format>.samples.jsonl` beside them, with every sample, and `tries.json`: what fewer of them come to.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from potstill import calculator, grading, inference, progress, prompts, storage
from potstill.data import custom_set, run_questions
from potstill.errors import UserError
from potstill.evaluation import decoding, self_consistency
from potstill.evaluation.decoding import SamplingSpec
from potstill.prompts import FORMATS
from potstill.recipe import Recipe, VllmSection, flatten_keys
from potstill.records import BASE, Checkpoint, Choice, PassCurve, Prediction, Question, Score, Split
from potstill.serialization import to_json
from potstill.storage import manifest, run_folder

if TYPE_CHECKING:
    from potstill.inference import Engine
    from potstill.models import Student

VERSION = 1  # of who answers what, and in which order
SCORES_FILE = "scores.json"
PASS_CURVE_FILE = "tries.json"
CHOICE_FILE = "choice.json"


def versions() -> dict[str, int]:
    """Of the packages that an answer and its score come from."""
    from potstill import evaluation, models, tokenization
    from potstill.evaluation import intervals

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


def read_saved_steps(run_dir: Path) -> list[int]:
    """The steps that training kept, step 0 not among them."""
    done = manifest.read_finished(run_dir / "train")
    assert done is not None, "train is finished before its checkpoints are read"
    return list(done.counts["checkpoints"])


def read_evaluated_checkpoints(run_dir: Path) -> list[Checkpoint]:
    """What `evaluate` measured and the rule may choose from: the checkpoints and their mixes."""
    done = manifest.read_finished(run_dir / "evaluate")
    assert done is not None, "evaluate is finished before its contenders are read"
    return [each for each in map(Checkpoint.read, done.counts["steps"]) if each != BASE]


def list_checkpoints_to_evaluate(run_dir: Path, recipe: Recipe) -> list[Checkpoint]:
    """What a recipe wants measured: the base, every checkpoint, and after each its mixes with the base."""
    shares = sorted({*(recipe.evaluate.mix or ()), 1.0})
    return [BASE, *(Checkpoint(step, share) for step in read_saved_steps(run_dir) for share in shares)]


def list_checkpoints_to_test(run_dir: Path, recipe: Recipe) -> list[Checkpoint]:
    """What answers the test questions: the base, the choice, and what became of the choice where it was repaired."""
    if recipe.teacher.kind == "none":
        return [BASE]
    chosen = read_choice(run_dir).contender
    return [BASE, chosen, *([replace(chosen, repaired=recipe.repair.steps)] if recipe.repair else [])]


def evaluate_checkpoint(run_dir: Path, recipe: Recipe, folder: Path, contender: Checkpoint, split: Split) -> list[Path]:
    """Let one contender answer; resumes by batch. Returns the files made, those of an earlier run included."""
    at, names = folder / contender.name, list_decodings(recipe, split)
    keys = {
        key: value
        for key, value in flatten_keys(recipe, "evaluate", "questions").items()
        if key not in list_unused_keys(split)
    }
    inputs = {**_collect_inputs(run_dir, recipe, contender), **collect_grader_digests(recipe, split)}
    identity = manifest.Identity(f"{folder.name}/{contender.name}", versions(), keys, inputs)
    done = manifest.begin_stage(at, identity)
    if done is not None:
        manifest.verify_files(folder, done)  # before its files are taken for this stage's own
    else:
        asked = _read_questions(run_dir, recipe, split)
        paths = []
        with open_checkpoint_engine(run_dir, recipe, contender) as engine:
            for name in recipe.evaluate.formats:
                for drawing in decoding.list_sampling_specs(names):
                    paths.append(_write_predictions(run_dir, recipe, at, engine, asked, name, drawing, contender))
                paths += [
                    _write_chosen_answers(at, name, each, contender)
                    for each in names
                    if each != decoding.find_sampling_name(each)
                ]
        scores = [
            s
            for name in recipe.evaluate.formats
            for each in names
            for s in _score_decoding(at, name, each, contender, split)
        ]
        storage.write_json(at / SCORES_FILE, [to_json(score) for score in scores])
        tried = [
            row for name in recipe.evaluate.formats for row in _compute_pass_curves(at, name, names, contender, split)
        ]
        if tried:
            storage.write_json(at / PASS_CURVE_FILE, [to_json(row) for row in tried])
        paths += [at / SCORES_FILE, *([at / PASS_CURVE_FILE] if tried else [])]
        done = manifest.finish_stage(at, identity, paths, {"questions": len(asked)})
    return [folder / name for name in done.outputs]


def list_unused_checkpoints(run_dir: Path, recipe: Recipe) -> tuple[str, ...]:
    """Names of checkpoints that nobody opens after the choice: those of other steps."""
    try:
        opened = {_checkpoint_dir(run_dir, each) for each in list_checkpoints_to_test(run_dir, recipe) if each != BASE}
    except UserError:  # there is no choice, or a damaged one: who asks finds that out by its digest
        return ()
    kept = [path for stage in ("train", "repair") for path in (run_dir / stage / "checkpoints").glob("[0-9]*")]
    return tuple(f"{path.relative_to(run_dir).as_posix()}/" for path in kept if path not in opened)


def _checkpoint_dir(run_dir: Path, contender: Checkpoint) -> Path:
    """The checkpoint of a contender that is not the base, before it is mixed with the base."""
    stage, step = ("repair", contender.repaired) if contender.repaired else ("train", contender.step)
    return run_dir / stage / "checkpoints" / str(step)


def read_selection_outcomes(run_dir: Path, recipe: Recipe, contender: Checkpoint) -> dict[str, list[bool]]:
    """What the rule of selection reads: of every out-of-distribution set, by question, whether the answer was right."""
    sets, found = set(recipe.questions.out_of_distribution), dict[str, list[tuple[str, bool]]]()
    for each in read_predictions(run_dir / "evaluate", contender, recipe.select.format, recipe.evaluate.decodings[0]):
        if each.set in sets:
            found.setdefault(each.set, []).append((each.question, each.grade == "right"))
    return {name: [value for _, value in sorted(rows)] for name, rows in found.items()}


def list_decodings(recipe: Recipe, split: Split) -> list[str]:
    """The decodings that a split is answered with; the first one is that of the choice."""
    return [*recipe.evaluate.decodings, *(recipe.evaluate.test_decodings if split == "test" else ())]


def list_unused_keys(split: Split) -> tuple[str, ...]:
    """Recipe keys of `evaluate` that the answers of a split do not depend on."""
    own = ("evaluate.cache", "evaluate.mix", *(f"evaluate.vllm.{name}" for name in VllmSection.FREE))
    return own if split == "test" else (*own, "evaluate.test_decodings")


def read_predictions(folder: Path, contender: Checkpoint, format: str, decoding: str) -> Iterator[Prediction]:
    """What a contender answered, in the order of its file."""
    return storage.iter_records(Prediction, folder / contender.name / f"{format}.{decoding}.jsonl")


def list_answered_checkpoints(folder: Path) -> list[Checkpoint]:
    """The contenders that have a folder of answers, finished or not, in their order."""
    names = [path.name for path in folder.glob("*") if path.name[0].isdigit()]
    return sorted(map(Checkpoint.read, names))


def read_scores(folder: Path, contender: Checkpoint) -> list[Score]:
    return storage.read_records(Score, folder / contender.name / SCORES_FILE)


def read_pass_curve(folder: Path, contender: Checkpoint) -> list[PassCurve]:
    """What fewer samples come to; empty where no decoding draws samples."""
    path = folder / contender.name / PASS_CURVE_FILE
    return storage.read_records(PassCurve, path) if path.exists() else []


def read_choice(run_dir: Path) -> Choice:
    """The selected checkpoint, as `select` stored it."""
    return storage.read_record(Choice, run_dir / "select" / CHOICE_FILE)


def open_checkpoint(run_dir: Path, recipe: Recipe, contender: Checkpoint, *, weights: bool = True) -> Student:
    """The student of a contender: the base, from the recipe; a checkpoint of the run; or a mix of the two, which is
    made here and lies in no folder.

    weights  False: without them, if they lie in a folder; see `students.open`
    """
    from potstill import models

    if contender == BASE:
        return models.from_recipe(recipe, weights=weights)
    path = _checkpoint_dir(run_dir, contender)
    if contender.repaired:
        return models.from_checkpoint(recipe, path, weights=weights)
    if not path.is_dir():
        raise UserError("no such checkpoint", where=path, hint=f"one of {read_saved_steps(run_dir)}")
    student = models.from_checkpoint(recipe, path, weights=weights or contender.share != 1)
    if contender.share != 1:
        models.interpolate_weights(student, models.from_recipe(recipe), contender.share)
    return student


def _collect_inputs(run_dir: Path, recipe: Recipe, contender: Checkpoint) -> dict[str, str]:
    collect = manifest.read_finished(run_dir / "collect")
    assert collect is not None
    return {"collect": collect.digest, **_collect_weight_digests(run_dir, recipe, contender)}


def _collect_weight_digests(run_dir: Path, recipe: Recipe, contender: Checkpoint) -> dict[str, str]:
    """Digests of what the weights of a contender are made from."""
    from potstill import models

    if contender == BASE:
        return models.weights_identity(recipe)
    folder = _checkpoint_dir(run_dir, contender)
    train = manifest.read_finished(folder.parent.parent)
    prefix = f"{folder.relative_to(run_dir).as_posix()}/"
    if train is None:  # training itself asks
        own = sorted(path for path in folder.iterdir() if path.is_file())
        digests = {prefix + path.name: storage.file_digest(path) for path in own}
    else:
        digests = {name: row["sha256"] for name, row in train.outputs.items() if name.startswith(prefix)}
    # The engine's state (one file, or a folder of them) is not part of what answers, and older steps lose it.
    weights = {name: digest for name, digest in digests.items() if not name.startswith(f"{prefix}engine")}
    if contender.share == 1 or contender.repaired:
        return weights
    return {**models.weights_identity(recipe), **weights, "share": repr(contender.share)}


def collect_grader_digests(recipe: Recipe, split: Split) -> dict[str, str]:
    """Digests of the functions of the user that grade answers, and how a calculator deals with marks if one answers."""
    found = custom_set.grader_digests(each.task for each in recipe.sets.values())
    if any(drawing.calculator for drawing in decoding.list_sampling_specs(list_decodings(recipe, split))):
        found["calculator marks"] = str(calculator.MARKS_VERSION)
    return found


def _read_questions(run_dir: Path, recipe: Recipe, split: Split) -> list[Question]:
    sets = recipe.questions
    return run_questions.read_questions(
        run_dir, [*sets.in_distribution, *sets.out_of_distribution, *sets.generic], split
    )


def _write_predictions(
    run_dir: Path,
    recipe: Recipe,
    at: Path,
    engine: Engine,
    asked: list[Question],
    name: str,
    drawing: SamplingSpec,
    who: Checkpoint,
) -> Path:
    from potstill import evaluation

    path = at / f"{name}.{drawing.name}.jsonl"
    table = run_questions.read_task_prompts(run_dir)
    with storage.Appender(path, ordered=True) as lines:
        done = {(row["question"], row["index"]) for _, row in storage.read_jsonl(path)}
        total = len(asked) * drawing.samples
        with progress.bar(f"step {who.label}", total, "answers", done=len(done)) as tick:
            for batch in evaluation.predict_answers(
                engine,
                asked,
                lambda question: run_questions.evaluation_prompt(question, FORMATS[name], table),
                max_tokens=recipe.evaluate.max_tokens,
                budget=recipe.evaluate.batch_tokens,
                drawing=drawing,
                temperature=recipe.evaluate.temperature,
                seed=recipe.seed,
                stop_at_answer=recipe.evaluate.stop_at_answer,
                done=done,
            ):
                new = [prediction for prediction in batch if (prediction.question, prediction.index) not in done]
                lines.append(to_json(prediction) for prediction in new)
                tick(len(new), f"{name} {drawing.name}")
    return path


@contextlib.contextmanager
def open_checkpoint_engine(run_dir: Path, recipe: Recipe, contender: Checkpoint) -> Iterator[Engine]:
    """The engine of a contender, remembering what it wrote if the recipe names a folder for that."""
    from potstill import models
    from potstill.inference import cache

    asked = recipe.evaluate
    student = open_checkpoint(run_dir, recipe, contender, weights=asked.engine != "vllm")
    if asked.engine == "transformers":
        student.to(models.default_device())
    engine = inference.open_engine(
        student, asked.engine, trust_remote_code=recipe.student.trust_remote_code, vllm=asked.vllm
    )
    if recipe.evaluate.cache is None:
        yield engine
        return
    weights = {**_collect_weight_digests(run_dir, recipe, contender), "engine": asked.engine}
    if asked.engine == "vllm":
        weights["dtype"] = asked.vllm.dtype or "float32"
    if contender == BASE and recipe.student.model is None:  # random weights: a function of shape and seed
        weights |= {"seed": str(recipe.seed), "shape": repr(recipe.student.shape)}
    at = Path(recipe.evaluate.cache) / cache.build_cache_key(weights)
    with run_folder.lock_run(at), cache.CachingEngine(engine, at / "answers.jsonl") as memory:
        yield memory
        progress.print_line(f"{memory.reused} answers from the cache, {memory.generated} generated", "dim")


def _write_chosen_answers(at: Path, name: str, each: str, contender: Checkpoint) -> Path:
    """The answers that a decoding chooses from its drawing's samples, as a file of their own."""
    path = at / f"{name}.{each}.jsonl"
    drawn = read_predictions(at.parent, contender, name, decoding.find_sampling_name(each))
    storage.write_jsonl(path, (to_json(chosen) for chosen in decoding.choose_answers(each, drawn)))
    return path


def _score_decoding(at: Path, name: str, each: str, contender: Checkpoint, split: Split) -> list[Score]:
    from potstill import evaluation

    answered = list(read_predictions(at.parent, contender, name, each))
    return evaluation.score_predictions(answered, contender=contender, split=split, format=name, decoding=each)


def _compute_pass_curves(at: Path, name: str, names: list[str], contender: Checkpoint, split: Split) -> list[PassCurve]:
    found = []
    for drawing in decoding.list_sampling_specs(names):
        if drawing.sampled:
            drawn = read_predictions(at.parent, contender, name, drawing.name)
            found += decoding.compute_pass_curves(
                drawn, contender=contender, split=split, format=name, drawing=drawing.name
            )
    return found
