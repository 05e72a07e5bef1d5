"""Exams: one checkpoint answers one split of every set, in every format; shared by `evaluate` and `test`.

Every step has its own folder with its own manifest, so that more training adds steps and repeats none. In it lie
`<format>.<decoding>.jsonl` (every prediction, the set as a field) and `scores.json`. Decodings that choose among
samples have `<format>.samples.jsonl` beside them, with every sample, and `tries.json`: what fewer of them come to.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from potstill import answers, calculator, decoding, engines, files, progress, prompts, votes
from potstill.decoding import Drawing
from potstill.encoding import from_json, to_json
from potstill.errors import UserError
from potstill.files import manifest, run_folder
from potstill.prompts import FORMATS
from potstill.questions import collected, own
from potstill.recipe import Recipe, flat
from potstill.records import Choice, Prediction, Question, Score, Split, Tries

if TYPE_CHECKING:
    from potstill.engines import Engine
    from potstill.students import Student

SCORES = "scores.json"
TRIES = "tries.json"
# Of the rooms that an answer and its score come from.
VERSIONS = {
    "answers": answers.VERSION,
    "calculator": calculator.VERSION,
    "engines": engines.VERSION,
    "prompts": prompts.VERSION,
    "votes": votes.VERSION,
}


def checkpoints(run: Path) -> list[int]:
    """The steps that training kept, step 0 not among them."""
    done = manifest.finished(run / "train")
    assert done is not None, "train is finished before its checkpoints are read"
    return list(done.counts["checkpoints"])


def sit(run: Path, plan: Recipe, folder: Path, step: int, split: Split) -> list[Path]:
    """Let one step answer; resumes by batch. Returns the files made, those of an earlier run included."""
    at, names = folder / str(step), decodings(plan, split)
    keys = {key: value for key, value in flat(plan, "evaluate", "questions").items() if key not in free(split)}
    inputs = {**_inputs(run, plan, step), **graders(plan)}
    identity = manifest.Identity(f"{folder.name}/{step}", VERSIONS, keys, inputs)
    done = manifest.begin(at, identity)
    if done is None:
        asked = _questions(run, plan, split)
        paths = []
        with _engine(run, plan, step) as engine:
            for name in plan.evaluate.formats:
                for drawing in decoding.drawings(names):
                    paths.append(_answer(run, plan, at, engine, asked, name, drawing, step))
                paths += [_choose(at, name, each) for each in names if each != decoding.drawing_of(each)]
        scores = [s for name in plan.evaluate.formats for each in names for s in _score(at, name, each, step, split)]
        files.write_json(at / SCORES, [to_json(score) for score in scores])
        tried = [row for name in plan.evaluate.formats for row in _tries(at, name, names, step, split)]
        if tried:
            files.write_json(at / TRIES, [to_json(row) for row in tried])
        paths += [at / SCORES, *([at / TRIES] if tried else [])]
        done = manifest.finish(at, identity, paths, {"questions": len(asked)})
    return [folder / name for name in done.outputs]


def decodings(plan: Recipe, split: Split) -> list[str]:
    """The decodings that a split is answered with; the first one is that of the choice."""
    return [*plan.evaluate.decodings, *(plan.evaluate.test_decodings if split == "test" else ())]


def free(split: Split) -> tuple[str, ...]:
    """Recipe keys of `evaluate` that the answers of a split do not depend on."""
    return ("evaluate.cache",) if split == "test" else ("evaluate.cache", "evaluate.test_decodings")


def predictions(folder: Path, step: int, format: str, decoding: str) -> Iterator[Prediction]:
    """What a step answered, in the order of its file."""
    return files.records(Prediction, folder / str(step) / f"{format}.{decoding}.jsonl")


def scores(folder: Path, step: int) -> list[Score]:
    return [from_json(Score, row) for row in files.read_json(folder / str(step) / SCORES)]


def tries(folder: Path, step: int) -> list[Tries]:
    """What fewer samples come to; empty where no decoding draws samples."""
    path = folder / str(step) / TRIES
    return [from_json(Tries, row) for row in files.read_json(path)] if path.exists() else []


def choice(run: Path) -> Choice:
    """The selected checkpoint, as `select` stored it."""
    return from_json(Choice, files.read_json(run / "select" / "choice.json"))


def open_step(run: Path, plan: Recipe, step: int) -> Student:
    """The student at a step: 0 is the base, from the recipe; another is a checkpoint of the run."""
    from potstill import students

    if step == 0:
        return students.base(plan)
    path = run / "train" / "checkpoints" / str(step)
    if not path.is_dir():
        raise UserError("no such checkpoint", where=path, do=f"one of {checkpoints(run)}")
    return students.at(plan, path)


def _inputs(run: Path, plan: Recipe, step: int) -> dict[str, str]:
    collect = manifest.finished(run / "collect")
    assert collect is not None
    return {"collect": collect.digest, **_weights(run, plan, step)}


def _weights(run: Path, plan: Recipe, step: int) -> dict[str, str]:
    """Digests of what the weights of a step are made from."""
    from potstill import students

    if step == 0:
        weights = students.identity(plan)
    else:
        train = manifest.finished(run / "train")
        assert train is not None
        prefix = f"train/checkpoints/{step}/"
        # the engine's state is not part of what answers, and older steps lose it
        weights = {
            name: row["sha256"]
            for name, row in train.outputs.items()
            if name.startswith(prefix) and not name.endswith("engine.safetensors")
        }
    return weights


def graders(plan: Recipe) -> dict[str, str]:
    """Digests of the functions of the user that grade answers."""
    return own.graders(each.task for each in plan.sets.values())


def _questions(run: Path, plan: Recipe, split: Split) -> list[Question]:
    asked = plan.questions
    return collected.questions(run, [*asked.in_distribution, *asked.out_of_distribution, *asked.generic], split)


def _answer(
    run: Path, plan: Recipe, at: Path, engine: Engine, asked: list[Question], name: str, drawing: Drawing, step: int
) -> Path:
    from potstill import evaluation

    path = at / f"{name}.{drawing.name}.jsonl"
    table = collected.shots(run)
    with files.Appender(path) as lines:
        done = {(row["question"], row["index"]) for _, row in files.read_jsonl(path)}
        total = len(asked) * drawing.samples
        with progress.bar(f"step {step}", total, "answers", done=len(done)) as tick:
            for batch in evaluation.predict(
                engine,
                asked,
                lambda question: collected.prompt_of(question, FORMATS[name], table),
                max_tokens=plan.evaluate.max_tokens,
                budget=plan.evaluate.batch_tokens,
                drawing=drawing,
                temperature=plan.evaluate.temperature,
                seed=plan.seed,
                done=done,
            ):
                new = [prediction for prediction in batch if (prediction.question, prediction.index) not in done]
                lines.append(to_json(prediction) for prediction in new)
                tick(len(new), f"{name} {drawing.name}")
    return path


@contextlib.contextmanager
def _engine(run: Path, plan: Recipe, step: int) -> Iterator[Engine]:
    """The engine of a step, remembering what it wrote if the recipe names a folder for that."""
    from potstill.engines import remembered

    engine = engines.open(open_step(run, plan, step), plan.evaluate.engine)
    if plan.evaluate.cache is None:
        yield engine
        return
    weights = {**_weights(run, plan, step), "engine": plan.evaluate.engine}
    if step == 0 and plan.student.model is None:  # random weights: a function of shape and seed
        weights |= {"seed": str(plan.seed), "shape": repr(plan.student.shape)}
    at = Path(plan.evaluate.cache) / remembered.key(weights)
    with run_folder.locked(at), remembered.Remembered(engine, at / "answers.jsonl") as memory:
        yield memory
        progress.say(f"{memory.remembered} answers remembered, {memory.written} written", "dim")


def _choose(at: Path, name: str, each: str) -> Path:
    """The answers that a decoding chooses from its drawing's samples, as a file of their own."""
    path = at / f"{name}.{each}.jsonl"
    drawn = predictions(at.parent, int(at.name), name, decoding.drawing_of(each))
    files.write_jsonl(path, (to_json(chosen) for chosen in decoding.choose(each, drawn)))
    return path


def _score(at: Path, name: str, each: str, step: int, split: Split) -> list[Score]:
    from potstill import evaluation

    answered = list(predictions(at.parent, step, name, each))
    return evaluation.score(answered, step=step, split=split, format=name, decoding=each)


def _tries(at: Path, name: str, names: list[str], step: int, split: Split) -> list[Tries]:
    found = []
    for drawing in decoding.drawings(names):
        if drawing.sampled:
            drawn = predictions(at.parent, step, name, drawing.name)
            found += decoding.tries(drawn, step=step, split=split, format=name, drawing=drawing.name)
    return found
