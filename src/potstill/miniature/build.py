"""Makes the models of the package, checks them, and lays out what the demo starts from.

    python -m potstill.miniature.build --into FOLDER [NAME ...]     trains them; goes on where it was interrupted
    python -m potstill.miniature.build --check                      examines the shipped ones again

A base model is a student trained on hard targets by the house's own loop: there is no second trainer. Everything
follows from the seed; on one thread the same seed gives the same bytes.

    >>> from tempfile import TemporaryDirectory
    >>> with TemporaryDirectory() as folder:
    ...     write_sets(Path(folder), draw_all("demo", World(), 3))
    ...     sorted(path.name for path in (Path(folder) / "sets").iterdir())
    ['diverse.jsonl', 'generic.jsonl', 'multi.jsonl', 'steps.jsonl', 'varied.jsonl']
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from potstill import models, progress, storage
from potstill.data import splits
from potstill.errors import UserError
from potstill.miniature import acceptance, model_cards, pretrain, task_mix, teacher_entropy, world
from potstill.miniature.acceptance import AcceptanceTest
from potstill.miniature.curricula import CURRICULA, Curriculum
from potstill.miniature.problem import World
from potstill.models import Student
from potstill.records import Question

SEED: Final = "potstill"
MODELS_DIR: Final = Path(__file__).parent / "models"  # the shipped ones
MODEL_NAMES: Final = ("teacher", "student", "student-small", "student-large", "student-causal")
SETTINGS_FILE: Final = "built.json"  # in the demo's folder: what it was made of; written first, so that parts never mix
VERSION: Final = 4  # of the world's texts; a new one makes the demo's sets anew


def lay_out(
    folder: Path,
    *,
    seed: str = SEED,
    own: World = world.DEMO_WORLD,
    sizes: Mapping[str, int] = world.SIZES,
    training: int = world.TRAINING_SIZE,
    models: Path = MODELS_DIR,
) -> None:
    """Lay out what the demo starts from: `sets/<family>.jsonl`, `teacher/` and `student/`, the shipped models.

    What is there from the same settings and models is kept, else replaced.

    sizes     questions of each family, before they are split
    training  further draws of the in-distribution family, before they are split, of which only training ones are kept
    """
    chosen = {"teacher": "teacher", "student": demo_student(models)}
    digests = {part: storage.folder_fingerprint(models / name) for part, name in chosen.items()}
    made_of = {"version": VERSION, "settings": repr((seed, own, dict(sizes), training)), "models": digests}
    parts = [folder / name for name in ("sets", *chosen)]
    if not _has_settings(folder / SETTINGS_FILE, made_of):
        for part in parts:
            storage.remove(part)
        storage.write_json(folder / SETTINGS_FILE, made_of)
    if not parts[0].exists():
        further = {family: training if family in world.IN_DISTRIBUTION else 0 for family in sizes}
        drawn = draw_all(seed, own, {family: n + further[family] for family, n in sizes.items()})
        held = [question for question in drawn if draw_number(question) < sizes[question.set]]
        # The shipped models were taught while the first draws were held back: of the others nothing may be measured.
        taught = [
            question for question in drawn if draw_number(question) >= sizes[question.set] and question.split == "train"
        ]
        write_sets(folder, balance_steps(held) + balance_steps(taught))
    for part, name in chosen.items():
        if not (folder / part).exists():
            with storage.write_folder(folder / part) as beside:
                for path in sorted((models / name).iterdir()):
                    storage.write_file(beside / path.name, storage.read_bytes(path))


def demo_student(models: Path = MODELS_DIR) -> str:
    """The base student of the demo: the T5 of the middle size if it passes its gates, else the causal one that does."""
    for name in ("student", "student-causal"):
        if (models / name).is_dir() and model_cards.read_card(models / name)["passed"]:
            return name
    return "student"


def draw_all(seed: str, own: World, sizes: Mapping[str, int] | int) -> list[Question]:
    """All questions that are drawn, of all families: none of them is ever taught."""
    wanted = {family: sizes if isinstance(sizes, int) else sizes[family] for family in world.SETS}
    return [question for family, n in wanted.items() for question in world.draw_questions(family, seed, n, own)]


def draw_number(question: Question) -> int:
    """Which draw of its family a question is, from 0."""
    return int(question.id.rpartition("/")[2])


def balance_steps(drawn: Iterable[Question]) -> list[Question]:
    """What is asked of the drawn: the in-distribution ones in the shares of `world.ASKED`.

    Longer problems leave the numbers of the world more often, so fewer are drawn than its own shares say.
    """
    drawn = list(drawn)
    by_steps: dict[int, list[Question]] = {}
    for question in drawn:
        if question.set in world.IN_DISTRIBUTION:
            by_steps.setdefault((question.rationale or "").count("="), []).append(question)
    kept = [question for question in drawn if question.set not in world.IN_DISTRIBUTION]
    shares = {steps: share for steps, share in enumerate(world.STEP_SHARES, 1) if share}
    whole = min(len(by_steps.get(steps, ())) / share for steps, share in shares.items())
    few: list[Question] = []
    for steps, share in shares.items():  # spread evenly, so that any first part of them has the shares too
        those, n = by_steps.get(steps, []), round(whole * share)
        few += [those[at * len(those) // n] for at in range(n)]
    return sorted(few, key=draw_number) + kept


def family_overlaps(sets: Iterable[Question]) -> dict[str, world.Overlap]:
    """How much of each other family is found in the in-distribution family, questions only."""
    texts: dict[str, list[str]] = {}
    for question in sets:
        texts.setdefault(question.set, []).append(question.text)
    known = [text for family in world.IN_DISTRIBUTION for text in texts.pop(family)]
    return {family: world.measure_overlap(known, own) for family, own in texts.items()}


def write_sets(folder: Path, sets: Iterable[Question]) -> None:
    """One file a family, in the form of one's own sets: the split is the digest's business, not the file's."""
    rows: dict[str, list[dict[str, str]]] = {}
    for question in sets:
        row = {"id": question.id.partition("/")[2], "question": question.text, "answer": question.gold}
        row |= {"rationale": question.rationale or "", "task": question.task}
        rows.setdefault(question.set, []).append(row)
    with storage.write_folder(folder / "sets") as beside:
        for family, own in rows.items():
            storage.write_jsonl(beside / f"{family}.jsonl", own)


def train_models(
    folder: Path,
    names: Iterable[str] = MODEL_NAMES,
    *,
    seed: str = SEED,
    own: World = world.DEMO_WORLD,
    sizes: Mapping[str, int] | int = world.SIZES,
    courses: Mapping[str, Curriculum] = CURRICULA,
    every: int = 100,
    n: int = acceptance.N,
) -> None:
    """Make the named models into FOLDER, each with its card; those that are there are kept.

    n  questions of each gate
    """
    asked = draw_all(seed, own, sizes)
    for name in names:
        if (folder / name).exists():
            progress.print_line(f"{name} is there", "dim")
            continue
        course = courses[name]
        kitchen = data_source_of(course, seed, own, asked)
        under_way = folder / f"{name}.partial"
        student, made = pretrain.pretrain(name, course, seed, kitchen, under_way, every=every)
        with storage.write_folder(folder / name) as beside:
            student.save(beside, dtype="bfloat16")
            found, more = run_acceptance(name, models.open_student(beside), kitchen, balance_steps(asked), n)
            more["first_digest"] = pretrain.first_steps_digest(name, course, seed, kitchen)
            written = model_cards.make_card(name, course, seed, own, made, found, **more)
            storage.write_json(beside / "card.json", written)
            storage.write_file(beside / "README.md", model_cards.card_markdown(written).encode())
        storage.remove(under_way)
        progress.print_line(f"{name}: {'passed' if written['passed'] else 'did not pass all gates'}")


def data_source_of(course: Curriculum, seed: str, own: World, asked: Iterable[Question]) -> task_mix.DataSource:
    """What a course is fed from: nothing that is asked later, of any family and split.

    A base student knows neither the further wordings nor numbers that do not matter. Held back from it are also the
    same draws without both, so that it has met no problem of the sets in plainer words either.
    """
    asked = list(asked)
    bare = replace(own, further=False, beside=0.0)
    n = sum(question.set == "steps" for question in asked)
    held = asked + (world.draw_questions("steps", seed, n, bare) if own != bare else [])
    without = frozenset(splits.canonical_question(question.text) for question in held)
    return task_mix.DataSource(own if course.teaches_whole else bare, without, course.style)


def run_acceptance(
    name: str, student: Student, kitchen: task_mix.DataSource, asked: Sequence[Question], n: int
) -> tuple[list[AcceptanceTest], dict[str, Any]]:
    """A model's gates, and what only a teacher has."""
    if name != "teacher":
        return list(acceptance.base_tests(student, kitchen, asked, n)), {}
    held = [question for question in asked if question.set == "steps" and question.split == "validation"][:n]
    gate, certainty = teacher_entropy.measure_teacher(student, kitchen, held)
    greedy = acceptance.problem_test(student, kitchen, "steps, greedy", held)
    entropy = {"tokens": certainty.tokens, "sentences": certainty.sentences, "sums": certainty.sums}
    return [gate, greedy], {"entropy": entropy}


def check_models(folder: Path = MODELS_DIR, *, n: int | None = None) -> bool:
    """Examine the models in FOLDER again: does each gate agree with its card, within its interval?

    The first steps are made again too; whether they give the same bytes is said, not judged: another kind of CPU adds
    up in another order.

    n  questions of each gate; None for as many as the card has (then the same ones are asked)
    """
    agreed = True
    for path in sorted(path for path in folder.iterdir() if (path / "card.json").is_file()):
        card = model_cards.read_card(path)
        if card["gates_version"] != acceptance.VERSION:
            raise UserError("the card is of other gates", where=path, hint="make the model again")
        own = World(**{**card["world"], "shares": tuple(card["world"]["shares"])})
        asked = draw_all(card["seed"], own, world.SIZES)
        student = models.open_student(path)
        kitchen = data_source_of(CURRICULA[card["name"]], card["seed"], own, asked)
        digest = pretrain.first_steps_digest(card["name"], CURRICULA[card["name"]], card["seed"], kitchen)
        same = digest == card["first_digest"]
        progress.print_line(
            f"{card['name']:<15} first {pretrain.FIRST_STEPS} steps: {'the same bytes' if same else 'other bytes'}"
        )
        found, _ = run_acceptance(card["name"], student, kitchen, balance_steps(asked), n or card["gates"][0]["n"])
        for gate, row in zip(found, card["gates"], strict=True):
            low, high = gate.interval
            same = row["name"] == gate.name and low <= row["right"] / row["n"] <= high
            agreed &= same
            said = f"{card['name']:<15} {gate.name:<28} {gate.share:6.1%}, card {row['right'] / row['n']:6.1%}"
            progress.print_line(f"{said}  {'' if same else 'differs'}", "" if same else "red")
    return agreed


def _has_settings(path: Path, made_of: Mapping[str, object]) -> bool:
    return path.is_file() and storage.read_json(path) == made_of


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m potstill.miniature.build", description="Train the models of the package, or check them."
    )
    parser.add_argument(
        "names", nargs="*", help=f"which models; all shipped ones if none is named: {', '.join(CURRICULA)}"
    )
    parser.add_argument("--into", type=Path, default=Path("runs") / "models", help="where they are put")
    parser.add_argument("--seed", default=SEED, help="the same seed gives the same bytes on one thread")
    parser.add_argument("--check", action="store_true", help="examine the shipped models again and compare their cards")
    given = parser.parse_args(arguments)
    if given.check:
        return 0 if check_models() else 1
    unknown = [name for name in given.names if name not in CURRICULA]
    if unknown:
        parser.error(f"no such model: {', '.join(unknown)}; there are {', '.join(CURRICULA)}")
    for family, far in family_overlaps(draw_all(given.seed, world.DEMO_WORLD, world.SIZES)).items():
        progress.print_line(f"of {family}, found in the in-distribution problems: {far}")
    train_models(given.into, given.names or MODEL_NAMES, seed=given.seed)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
