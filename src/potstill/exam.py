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

from potstill import answers, calculator, decoding, engines, files, progress, prompts, votes
from potstill.contenders import BASE, Contender
from potstill.decoding import Drawing
from potstill.encoding import to_json
from potstill.errors import UserError
from potstill.files import integrity, manifest, run_folder
from potstill.prompts import FORMATS
from potstill.questions import collected, own
from potstill.recipe import Recipe, Vllm, flat
from potstill.records import Choice, Prediction, Question, Score, Split, Tries

if TYPE_CHECKING:
    from potstill.engines import Engine
    from potstill.students import Student

VERSION = 1  # of who answers what, and in which order
SCORES = "scores.json"
TRIES = "tries.json"
CHOICE = "choice.json"


def versions() -> dict[str, int]:
    """Of the packages that an answer and its score come from."""
    from potstill import evaluation, intervals, students, tokenizers

    return {
        "answers": answers.VERSION,
        "calculator": calculator.VERSION,
        "decoding": decoding.VERSION,
        "engines": engines.VERSION,
        "evaluation": evaluation.VERSION,
        "exam": VERSION,
        "intervals": intervals.VERSION,
        "prompts": prompts.VERSION,
        "students": students.VERSION,
        "tokenizers": tokenizers.VERSION,
        "votes": votes.VERSION,
    }


def checkpoints(run: Path) -> list[int]:
    """The steps that training kept, step 0 not among them."""
    done = manifest.finished(run / "train")
    assert done is not None, "train is finished before its checkpoints are read"
    return list(done.counts["checkpoints"])


def contenders(run: Path) -> list[Contender]:
    """What `evaluate` measured and the rule may choose from: the checkpoints and their mixes."""
    done = manifest.finished(run / "evaluate")
    assert done is not None, "evaluate is finished before its contenders are read"
    return [each for each in map(Contender.read, done.counts["steps"]) if each != BASE]


def wanted(run: Path, plan: Recipe) -> list[Contender]:
    """What a recipe wants measured: the base, every checkpoint, and after each its mixes with the base."""
    shares = sorted({*(plan.evaluate.mix or ()), 1.0})
    return [BASE, *(Contender(step, share) for step in checkpoints(run) for share in shares)]


def tested(run: Path, plan: Recipe) -> list[Contender]:
    """What answers the test questions: the base, the choice, and what became of the choice where it was repaired."""
    if plan.teacher.kind == "none":
        return [BASE]
    chosen = choice(run).contender
    return [BASE, chosen, *([replace(chosen, repaired=plan.repair.steps)] if plan.repair else [])]


def sit(run: Path, plan: Recipe, folder: Path, contender: Contender, split: Split) -> list[Path]:
    """Let one contender answer; resumes by batch. Returns the files made, those of an earlier run included."""
    at, names = folder / contender.name, decodings(plan, split)
    keys = {key: value for key, value in flat(plan, "evaluate", "questions").items() if key not in free(split)}
    inputs = {**_inputs(run, plan, contender), **graders(plan, split)}
    identity = manifest.Identity(f"{folder.name}/{contender.name}", versions(), keys, inputs)
    done = manifest.begin(at, identity)
    if done is not None:
        integrity.verify(folder, done)  # before its files are taken for this stage's own
    else:
        asked = _questions(run, plan, split)
        paths = []
        with _engine(run, plan, contender) as engine:
            for name in plan.evaluate.formats:
                for drawing in decoding.drawings(names):
                    paths.append(_answer(run, plan, at, engine, asked, name, drawing, contender))
                paths += [_choose(at, name, each, contender) for each in names if each != decoding.drawing_of(each)]
        scores = [
            s for name in plan.evaluate.formats for each in names for s in _score(at, name, each, contender, split)
        ]
        files.write_json(at / SCORES, [to_json(score) for score in scores])
        tried = [row for name in plan.evaluate.formats for row in _tries(at, name, names, contender, split)]
        if tried:
            files.write_json(at / TRIES, [to_json(row) for row in tried])
        paths += [at / SCORES, *([at / TRIES] if tried else [])]
        done = manifest.finish(at, identity, paths, {"questions": len(asked)})
    return [folder / name for name in done.outputs]


def unread(run: Path, plan: Recipe) -> tuple[str, ...]:
    """Names of checkpoints that nobody opens after the choice: those of other steps."""
    try:
        opened = {_folder(run, each) for each in tested(run, plan) if each != BASE}
    except UserError:  # there is no choice, or a damaged one: who asks finds that out by its digest
        return ()
    kept = [path for stage in ("train", "repair") for path in (run / stage / "checkpoints").glob("[0-9]*")]
    return tuple(f"{path.relative_to(run).as_posix()}/" for path in kept if path not in opened)


def _folder(run: Path, contender: Contender) -> Path:
    """The checkpoint of a contender that is not the base, before it is mixed with the base."""
    stage, step = ("repair", contender.repaired) if contender.repaired else ("train", contender.step)
    return run / stage / "checkpoints" / str(step)


def right(run: Path, plan: Recipe, contender: Contender) -> dict[str, list[bool]]:
    """What the rule of selection reads: of every out-of-distribution set, by question, whether the answer was right."""
    sets, found = set(plan.questions.out_of_distribution), dict[str, list[tuple[str, bool]]]()
    for each in predictions(run / "evaluate", contender, plan.select.format, plan.evaluate.decodings[0]):
        if each.set in sets:
            found.setdefault(each.set, []).append((each.question, each.grade == "right"))
    return {name: [value for _, value in sorted(rows)] for name, rows in found.items()}


def decodings(plan: Recipe, split: Split) -> list[str]:
    """The decodings that a split is answered with; the first one is that of the choice."""
    return [*plan.evaluate.decodings, *(plan.evaluate.test_decodings if split == "test" else ())]


def free(split: Split) -> tuple[str, ...]:
    """Recipe keys of `evaluate` that the answers of a split do not depend on."""
    own = ("evaluate.cache", "evaluate.mix", *(f"evaluate.vllm.{name}" for name in Vllm.FREE))
    return own if split == "test" else (*own, "evaluate.test_decodings")


def predictions(folder: Path, contender: Contender, format: str, decoding: str) -> Iterator[Prediction]:
    """What a contender answered, in the order of its file."""
    return files.records(Prediction, folder / contender.name / f"{format}.{decoding}.jsonl")


def answered(folder: Path) -> list[Contender]:
    """The contenders that have a folder of answers, finished or not, in their order."""
    names = [path.name for path in folder.glob("*") if path.name[0].isdigit()]
    return sorted(map(Contender.read, names))


def scores(folder: Path, contender: Contender) -> list[Score]:
    return files.read_records(Score, folder / contender.name / SCORES)


def tries(folder: Path, contender: Contender) -> list[Tries]:
    """What fewer samples come to; empty where no decoding draws samples."""
    path = folder / contender.name / TRIES
    return files.read_records(Tries, path) if path.exists() else []


def choice(run: Path) -> Choice:
    """The selected checkpoint, as `select` stored it."""
    return files.read_record(Choice, run / "select" / CHOICE)


def open_contender(run: Path, plan: Recipe, contender: Contender, *, weights: bool = True) -> Student:
    """The student of a contender: the base, from the recipe; a checkpoint of the run; or a mix of the two, which is
    made here and lies in no folder.

    weights  False: without them, if they lie in a folder; see `students.open`
    """
    from potstill import students

    if contender == BASE:
        return students.base(plan, weights=weights)
    path = _folder(run, contender)
    if contender.repaired:
        return students.at(plan, path, weights=weights)
    if not path.is_dir():
        raise UserError("no such checkpoint", where=path, do=f"one of {checkpoints(run)}")
    student = students.at(plan, path, weights=weights or contender.share != 1)
    if contender.share != 1:
        students.mix(student, students.base(plan), contender.share)
    return student


def _inputs(run: Path, plan: Recipe, contender: Contender) -> dict[str, str]:
    collect = manifest.finished(run / "collect")
    assert collect is not None
    return {"collect": collect.digest, **_weights(run, plan, contender)}


def _weights(run: Path, plan: Recipe, contender: Contender) -> dict[str, str]:
    """Digests of what the weights of a contender are made from."""
    from potstill import students

    if contender == BASE:
        return students.identity(plan)
    folder = _folder(run, contender)
    train = manifest.finished(folder.parent.parent)
    prefix = f"{folder.relative_to(run).as_posix()}/"
    if train is None:  # training itself asks
        own = sorted(path for path in folder.iterdir() if path.is_file())
        digests = {prefix + path.name: files.digest(path) for path in own}
    else:
        digests = {name: row["sha256"] for name, row in train.outputs.items() if name.startswith(prefix)}
    # The engine's state (one file, or a folder of them) is not part of what answers, and older steps lose it.
    weights = {name: digest for name, digest in digests.items() if not name.startswith(f"{prefix}engine")}
    if contender.share == 1 or contender.repaired:
        return weights
    return {**students.identity(plan), **weights, "share": repr(contender.share)}


def graders(plan: Recipe, split: Split) -> dict[str, str]:
    """Digests of the functions of the user that grade answers, and how a calculator deals with marks if one answers."""
    found = own.graders(each.task for each in plan.sets.values())
    if any(drawing.calculator for drawing in decoding.drawings(decodings(plan, split))):
        found["calculator marks"] = str(calculator.MARKS)
    return found


def _questions(run: Path, plan: Recipe, split: Split) -> list[Question]:
    sets = plan.questions
    return collected.questions(run, [*sets.in_distribution, *sets.out_of_distribution, *sets.generic], split)


def _answer(
    run: Path,
    plan: Recipe,
    at: Path,
    engine: Engine,
    asked: list[Question],
    name: str,
    drawing: Drawing,
    who: Contender,
) -> Path:
    from potstill import evaluation

    path = at / f"{name}.{drawing.name}.jsonl"
    table = collected.shots(run)
    with files.Appender(path, ordered=True) as lines:
        done = {(row["question"], row["index"]) for _, row in files.read_jsonl(path)}
        total = len(asked) * drawing.samples
        with progress.bar(f"step {who.label}", total, "answers", done=len(done)) as tick:
            for batch in evaluation.predict(
                engine,
                asked,
                lambda question: collected.prompt_of(question, FORMATS[name], table),
                max_tokens=plan.evaluate.max_tokens,
                budget=plan.evaluate.batch_tokens,
                drawing=drawing,
                temperature=plan.evaluate.temperature,
                seed=plan.seed,
                stop_at_answer=plan.evaluate.stop_at_answer,
                done=done,
            ):
                new = [prediction for prediction in batch if (prediction.question, prediction.index) not in done]
                lines.append(to_json(prediction) for prediction in new)
                tick(len(new), f"{name} {drawing.name}")
    return path


@contextlib.contextmanager
def _engine(run: Path, plan: Recipe, contender: Contender) -> Iterator[Engine]:
    """The engine of a contender, remembering what it wrote if the recipe names a folder for that."""
    from potstill import students
    from potstill.engines import remembered

    asked = plan.evaluate
    student = open_contender(run, plan, contender, weights=asked.engine != "vllm")
    if asked.engine == "transformers":
        student.to(students.device())
    engine = engines.open(student, asked.engine, trust_remote_code=plan.student.trust_remote_code, vllm=asked.vllm)
    if plan.evaluate.cache is None:
        yield engine
        return
    weights = {**_weights(run, plan, contender), "engine": asked.engine}
    if asked.engine == "vllm":
        weights["dtype"] = asked.vllm.dtype or "float32"
    if contender == BASE and plan.student.model is None:  # random weights: a function of shape and seed
        weights |= {"seed": str(plan.seed), "shape": repr(plan.student.shape)}
    at = Path(plan.evaluate.cache) / remembered.key(weights)
    with run_folder.locked(at), remembered.Remembered(engine, at / "answers.jsonl") as memory:
        yield memory
        progress.say(f"{memory.remembered} answers remembered, {memory.written} written", "dim")


def _choose(at: Path, name: str, each: str, contender: Contender) -> Path:
    """The answers that a decoding chooses from its drawing's samples, as a file of their own."""
    path = at / f"{name}.{each}.jsonl"
    drawn = predictions(at.parent, contender, name, decoding.drawing_of(each))
    files.write_jsonl(path, (to_json(chosen) for chosen in decoding.choose(each, drawn)))
    return path


def _score(at: Path, name: str, each: str, contender: Contender, split: Split) -> list[Score]:
    from potstill import evaluation

    answered = list(predictions(at.parent, contender, name, each))
    return evaluation.score(answered, contender=contender, split=split, format=name, decoding=each)


def _tries(at: Path, name: str, names: list[str], contender: Contender, split: Split) -> list[Tries]:
    found = []
    for drawing in decoding.drawings(names):
        if drawing.sampled:
            drawn = predictions(at.parent, contender, name, drawing.name)
            found += decoding.tries(drawn, contender=contender, split=split, format=name, drawing=drawing.name)
    return found
