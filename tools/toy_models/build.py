"""Trains the toy models of the demo, checks them, and writes the demo's question sets.

    python -m tools.toy_models --into FOLDER [NAME ...]     trains the models; resumes after an interruption
    python -m tools.toy_models --check                      repeats the acceptance tests of the models in the repository
    python -m tools.toy_models --sets                       writes src/potstill/demo/sets

A base model is a student that potstill's training loop trains on hard targets. Everything follows from the seed; on
one thread the same seed gives the same bytes.

    >>> from tempfile import TemporaryDirectory
    >>> with TemporaryDirectory() as folder:
    ...     write_sets(Path(folder) / "sets", draw_all("demo", World(), 3))
    ...     sorted(path.name for path in (Path(folder) / "sets").iterdir())
    ['diverse.jsonl.xz', 'generic.jsonl.xz', 'multi.jsonl.xz', 'steps.jsonl.xz', 'varied.jsonl.xz']
"""

from __future__ import annotations

import argparse
import lzma
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Final

from potstill import models, progress, storage
from potstill.data import splits
from potstill.errors import UserError
from potstill.models import Student
from potstill.records import Question
from tools.toy_models import acceptance, model_cards, pretrain, task_mix, teacher_entropy, world
from tools.toy_models.acceptance import AcceptanceTest
from tools.toy_models.curricula import CURRICULA, Curriculum
from tools.toy_models.problem import World

SEED: Final = "potstill"
ROOT: Final = Path(__file__).parent.parent.parent
DEMO_DIR: Final = ROOT / "src" / "potstill" / "demo"
MODEL_DIRS: Final = (DEMO_DIR / "models", Path(__file__).parent / "models")  # the demo's models, and the others
MODEL_NAMES: Final = (
    "teacher",
    "teacher-unsure",
    "student",
    "student-small",
    "student-medium",
    "student-large",
    "student-causal",
)


def draw_demo_sets(
    seed: str = SEED,
    toy_world: World = world.DEMO_WORLD,
    sizes: Mapping[str, int] = world.SIZES,
    training: int = world.TRAINING_SIZE,
) -> list[Question]:
    """The questions of the demo, balanced.

    sizes     questions of each family, before they are split
    training  additional draws of the in-distribution family, before the split; only training questions are kept
    """
    further = {family: training if family in world.IN_DISTRIBUTION else 0 for family in sizes}
    drawn = draw_all(seed, toy_world, {family: n + further[family] for family, n in sizes.items()})
    held_out = [question for question in drawn if draw_number(question) < sizes[question.set]]
    # Only the first draws were held out of the models' training, so no additional one may be used for evaluation.
    extra = [q for q in drawn if draw_number(q) >= sizes[q.set] and q.split == "train"]
    return balance_steps(held_out) + balance_steps(extra)


def draw_all(seed: str, toy_world: World, sizes: Mapping[str, int] | int) -> list[Question]:
    """All questions of all families. No model is trained on them."""
    wanted = {family: sizes if isinstance(sizes, int) else sizes[family] for family in world.SETS}
    return [question for family, n in wanted.items() for question in world.draw_questions(family, seed, n, toy_world)]


def draw_number(question: Question) -> int:
    """The number of a question's draw in its family, from 0."""
    return int(question.id.rpartition("/")[2])


def balance_steps(drawn: Iterable[Question]) -> list[Question]:
    """The drawn questions; in-distribution ones are thinned to the shares of `world.STEP_SHARES`.

    Longer problems leave the range of numbers more often, so fewer are drawn than `World.shares` asks for.
    """
    drawn = list(drawn)
    by_steps: dict[int, list[Question]] = {}
    for question in drawn:
        if question.set in world.IN_DISTRIBUTION:
            by_steps.setdefault((question.rationale or "").count("="), []).append(question)
    kept = [question for question in drawn if question.set not in world.IN_DISTRIBUTION]
    shares = {steps: share for steps, share in enumerate(world.STEP_SHARES, 1) if share}
    total = min(len(by_steps.get(steps, ())) / share for steps, share in shares.items())
    thinned: list[Question] = []
    for steps, share in shares.items():  # spread evenly, so that a prefix has the same shares
        available, n = by_steps.get(steps, []), round(total * share)
        thinned += [available[number * len(available) // n] for number in range(n)]
    return sorted(thinned, key=draw_number) + kept


def family_overlaps(sets: Iterable[Question]) -> dict[str, world.Overlap]:
    """How much of the questions of each other family occurs in the in-distribution family."""
    texts: dict[str, list[str]] = {}
    for question in sets:
        texts.setdefault(question.set, []).append(question.text)
    known = [text for family in world.IN_DISTRIBUTION for text in texts.pop(family)]
    return {family: world.measure_overlap(known, other) for family, other in texts.items()}


def write_sets(folder: Path, sets: Iterable[Question]) -> None:
    """Writes one compressed file per family, in the form of custom sets; the split follows from a question's digest."""
    rows: dict[str, list[dict[str, str]]] = {}
    for question in sets:
        row = {"id": question.id.partition("/")[2], "question": question.text, "answer": question.gold}
        row |= {"rationale": question.rationale or "", "task": question.task}
        rows.setdefault(question.set, []).append(row)
    with storage.write_folder(folder) as new_folder:
        for family, family_rows in rows.items():
            lines = b"".join(storage.encode_json_line(row) for row in family_rows)
            storage.write_file(new_folder / f"{family}.jsonl.xz", lzma.compress(lines, preset=9 | lzma.PRESET_EXTREME))


def train_models(
    folder: Path,
    names: Iterable[str] = MODEL_NAMES,
    *,
    seed: str = SEED,
    toy_world: World = world.DEMO_WORLD,
    sizes: Mapping[str, int] | int = world.SIZES,
    curricula: Mapping[str, Curriculum] = CURRICULA,
    every: int = 100,
    n: int = acceptance.N,
) -> None:
    """Trains the named models into a folder, each with its card; finished ones are kept.

    n  questions of each acceptance test
    """
    questions = draw_all(seed, toy_world, sizes)
    for name in names:
        if (folder / name).exists():
            progress.print_line(f"{name}: up to date", "dim")
            continue
        curriculum = curricula[name]
        source = data_source_of(curriculum, seed, toy_world, questions)
        partial = folder / f"{name}.partial"
        student, training = pretrain.pretrain(name, curriculum, seed, source, partial, every=every)
        with storage.write_folder(folder / name) as new_folder:
            student.save(new_folder, dtype="bfloat16")
            saved = models.open_student(new_folder)
            results, more = run_acceptance(name, saved, source, balance_steps(questions), n)
            more["first_digest"] = pretrain.first_steps_digest(name, curriculum, seed, source)
            card = model_cards.make_card(name, curriculum, seed, toy_world, training, results, **more)
            storage.write_json(new_folder / "card.json", card)
            storage.write_file(new_folder / "README.md", model_cards.card_markdown(card).encode())
        storage.remove(partial)
        progress.print_line(f"{name}: {'passed' if card['passed'] else 'did not pass all acceptance tests'}")


def data_source_of(
    curriculum: Curriculum, seed: str, toy_world: World, questions: Iterable[Question]
) -> task_mix.DataSource:
    """The training data of a curriculum, without the demo's questions of all families and splits.

    A base student knows neither the further wordings nor irrelevant numbers. The same draws without these are held out
    too, so that it has not seen a problem of the sets in simpler words.
    """
    held_out = list(questions)
    simple = replace(toy_world, further=False, beside=0.0)
    if toy_world != simple:
        n = sum(question.set == "steps" for question in held_out)
        held_out += world.draw_questions("steps", seed, n, simple)
    without = frozenset(splits.canonical_question(question.text) for question in held_out)
    return task_mix.DataSource(toy_world if curriculum.has_whole_problems else simple, without, curriculum.style)


def run_acceptance(
    name: str, student: Student, source: task_mix.DataSource, questions: Sequence[Question], n: int
) -> tuple[list[AcceptanceTest], dict[str, Any]]:
    """The acceptance tests of a model, and the additional entries of a teacher's card."""
    if name not in teacher_entropy.ACCURACY_BOUNDS:
        return list(acceptance.base_tests(student, source, questions, n)), {}
    validation = [question for question in questions if question.set == "steps" and question.split == "validation"][:n]
    sampled, entropy = teacher_entropy.measure_teacher(name, student, source, validation)
    greedy = acceptance.problem_test(student, source, "steps, greedy", validation)
    return [sampled, greedy], {"entropy": asdict(entropy)}


def check_models(folders: Iterable[Path] = MODEL_DIRS, *, n: int | None = None) -> bool:
    """Repeats the acceptance tests of all models, and returns whether each result agrees with the card, within its interval.

    The first training steps are repeated too. Whether they give the same bytes is only printed, because another kind of
    CPU adds in another order.

    n  questions of each test; None: the same ones as in the card
    """
    agreed = True
    for path in sorted(path.parent for folder in folders for path in folder.glob("*/card.json")):
        card = model_cards.read_card(path)
        name = card["name"]
        if card["gates_version"] != acceptance.VERSION:
            raise UserError(
                "the card has results of other acceptance tests",
                code="E-toy-card-version",
                where=path,
                hint="train the model again",
            )
        toy_world = World(**{**card["world"], "shares": tuple(card["world"]["shares"])})
        questions = draw_all(card["seed"], toy_world, world.SIZES)
        source = data_source_of(CURRICULA[name], card["seed"], toy_world, questions)
        digest = pretrain.first_steps_digest(name, CURRICULA[name], card["seed"], source)
        same = "the same bytes" if digest == card["first_digest"] else "other bytes"
        progress.print_line(f"{name:<15} first {pretrain.FIRST_STEPS} steps: {same}")
        count = n or card["gates"][0]["n"]
        results, _ = run_acceptance(name, models.open_student(path), source, balance_steps(questions), count)
        for result, row in zip(results, card["gates"], strict=True):
            low, high = result.interval
            agrees = row["name"] == result.name and low <= row["right"] / row["n"] <= high
            agreed &= agrees
            line = f"{name:<15} {result.name:<28} {result.share:6.1%}, card {row['right'] / row['n']:6.1%}"
            progress.print_line(line + ("" if agrees else "  differs"), "" if agrees else "red")
    return agreed


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tools.toy_models", description="Trains the toy models, checks them, or writes the demo's sets."
    )
    parser.add_argument("names", nargs="*", help=f"models to train (default: {', '.join(MODEL_NAMES)})")
    parser.add_argument(
        "--into", type=Path, default=Path("runs") / "models", help="output folder (default: %(default)s)"
    )
    parser.add_argument("--seed", default=SEED, help="on one thread, the same seed gives the same bytes")
    parser.add_argument(
        "--check", action="store_true", help="repeat the acceptance tests of the models in the repository"
    )
    parser.add_argument(
        "--sets", action="store_true", help="write the demo's question sets into src/potstill/demo/sets"
    )
    options = parser.parse_args(arguments)
    if options.check:
        return 0 if check_models() else 1
    if options.sets:
        write_sets(DEMO_DIR / "sets", draw_demo_sets(options.seed))
        return 0
    unknown = [name for name in options.names if name not in CURRICULA]
    if unknown:
        parser.error(f"no such model: {', '.join(unknown)}; the models are {', '.join(CURRICULA)}")
    for family, overlap in family_overlaps(draw_all(options.seed, world.DEMO_WORLD, world.SIZES)).items():
        progress.print_line(f"{family}, shared with the in-distribution problems: {overlap}")
    train_models(options.into, options.names or MODEL_NAMES, seed=options.seed)
    return 0
