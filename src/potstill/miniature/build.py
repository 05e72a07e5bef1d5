"""Makes the models of the package, checks them, and lays out what the demo starts from.

    python -m potstill.miniature.build --into FOLDER [NAME ...]     trains them; goes on where it was interrupted
    python -m potstill.miniature.build --check                      examines the shipped ones again

A base model is a student trained on hard targets by the house's own loop: there is no second trainer. Everything
follows from the seed; on one thread the same seed gives the same bytes.

    >>> from tempfile import TemporaryDirectory
    >>> with TemporaryDirectory() as folder:
    ...     write_sets(Path(folder), questions("demo", World(), 3))
    ...     sorted(path.name for path in (Path(folder) / "sets").iterdir())
    ['diverse.jsonl', 'generic.jsonl', 'multi.jsonl', 'steps.jsonl', 'varied.jsonl']
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from potstill import files, progress, splits, students
from potstill.errors import UserError
from potstill.miniature import branching, cards, diet, gates, making, world
from potstill.miniature.courses import COURSES, Course
from potstill.miniature.gates import Gate
from potstill.miniature.problem import World
from potstill.records import Question
from potstill.students import Student

SEED: Final = "potstill"
MODELS: Final = Path(__file__).parent / "models"  # the shipped ones
SHIPPED: Final = ("teacher", "student", "student-small", "student-large", "student-causal")
SETTINGS: Final = "built.json"  # in the demo's folder: what it was made of; written first, so that parts never mix
VERSION: Final = 4  # of the world's texts; a new one makes the demo's sets anew


def build(
    folder: Path,
    *,
    seed: str = SEED,
    own: World = world.SHIPPED,
    sizes: Mapping[str, int] = world.SIZES,
    training: int = world.TRAINING,
    models: Path = MODELS,
) -> None:
    """Lay out what the demo starts from: `sets/<family>.jsonl`, `teacher/` and `student/`, the shipped models.

    What is there from the same settings and models is kept, else replaced.

    sizes     questions of each family, before they are split
    training  further draws of the in-distribution family, before they are split, of which only training ones are kept
    """
    chosen = {"teacher": "teacher", "student": student_of(models)}
    digests = {part: files.fingerprint(models / name) for part, name in chosen.items()}
    made_of = {"version": VERSION, "settings": repr((seed, own, dict(sizes), training)), "models": digests}
    parts = [folder / name for name in ("sets", *chosen)]
    if not _is(folder / SETTINGS, made_of):
        for part in parts:
            files.remove(part)
        files.write_json(folder / SETTINGS, made_of)
    if not parts[0].exists():
        further = {family: training if family in world.IN_DISTRIBUTION else 0 for family in sizes}
        drawn = questions(seed, own, {family: n + further[family] for family, n in sizes.items()})
        held = [question for question in drawn if place(question) < sizes[question.set]]
        # The shipped models were taught while the first draws were held back: of the others nothing may be measured.
        taught = [
            question for question in drawn if place(question) >= sizes[question.set] and question.split == "train"
        ]
        write_sets(folder, balanced(held) + balanced(taught))
    for part, name in chosen.items():
        if not (folder / part).exists():
            with files.folder(folder / part) as beside:
                for path in sorted((models / name).iterdir()):
                    files.write(beside / path.name, files.read_bytes(path))


def student_of(models: Path = MODELS) -> str:
    """The base student of the demo: the T5 of the middle size if it passes its gates, else the causal one that does."""
    for name in ("student", "student-causal"):
        if (models / name).is_dir() and cards.read(models / name)["passed"]:
            return name
    return "student"


def questions(seed: str, own: World, sizes: Mapping[str, int] | int) -> list[Question]:
    """All questions that are drawn, of all families: none of them is ever taught."""
    wanted = {family: sizes if isinstance(sizes, int) else sizes[family] for family in world.SETS}
    return [question for family, n in wanted.items() for question in world.questions(family, seed, n, own)]


def place(question: Question) -> int:
    """Which draw of its family a question is, from 0."""
    return int(question.id.rpartition("/")[2])


def balanced(drawn: Iterable[Question]) -> list[Question]:
    """What is asked of the drawn: the in-distribution ones in the shares of `world.ASKED`.

    Longer problems leave the numbers of the world more often, so fewer are drawn than its own shares say.
    """
    drawn = list(drawn)
    by_steps: dict[int, list[Question]] = {}
    for question in drawn:
        if question.set in world.IN_DISTRIBUTION:
            by_steps.setdefault((question.rationale or "").count("="), []).append(question)
    kept = [question for question in drawn if question.set not in world.IN_DISTRIBUTION]
    shares = {steps: share for steps, share in enumerate(world.ASKED, 1) if share}
    whole = min(len(by_steps.get(steps, ())) / share for steps, share in shares.items())
    few: list[Question] = []
    for steps, share in shares.items():  # spread evenly, so that any first part of them has the shares too
        those, n = by_steps.get(steps, []), round(whole * share)
        few += [those[at * len(those) // n] for at in range(n)]
    return sorted(few, key=place) + kept


def distances(sets: Iterable[Question]) -> dict[str, world.Overlap]:
    """How much of each other family is found in the in-distribution family, questions only."""
    texts: dict[str, list[str]] = {}
    for question in sets:
        texts.setdefault(question.set, []).append(question.text)
    known = [text for family in world.IN_DISTRIBUTION for text in texts.pop(family)]
    return {family: world.overlap(known, own) for family, own in texts.items()}


def write_sets(folder: Path, sets: Iterable[Question]) -> None:
    """One file a family, in the form of one's own sets: the split is the digest's business, not the file's."""
    rows: dict[str, list[dict[str, str]]] = {}
    for question in sets:
        row = {"id": question.id.partition("/")[2], "question": question.text, "answer": question.gold}
        row |= {"rationale": question.rationale or "", "task": question.task}
        rows.setdefault(question.set, []).append(row)
    with files.folder(folder / "sets") as beside:
        for family, own in rows.items():
            files.write_jsonl(beside / f"{family}.jsonl", own)


def train(
    folder: Path,
    names: Iterable[str] = SHIPPED,
    *,
    seed: str = SEED,
    own: World = world.SHIPPED,
    sizes: Mapping[str, int] | int = world.SIZES,
    courses: Mapping[str, Course] = COURSES,
    every: int = 100,
    n: int = gates.N,
) -> None:
    """Make the named models into FOLDER, each with its card; those that are there are kept.

    n  questions of each gate
    """
    asked = questions(seed, own, sizes)
    for name in names:
        if (folder / name).exists():
            progress.say(f"{name} is there", "dim")
            continue
        course = courses[name]
        kitchen = kitchen_of(course, seed, own, asked)
        under_way = folder / f"{name}.partial"
        student, made = making.make(name, course, seed, kitchen, under_way, every=every)
        with files.folder(folder / name) as beside:
            student.save(beside, dtype="bfloat16")
            found, more = examine(name, students.open(beside), kitchen, balanced(asked), n)
            more["first_digest"] = making.first(name, course, seed, kitchen)
            written = cards.card(name, course, seed, own, made, found, **more)
            files.write_json(beside / "card.json", written)
            files.write(beside / "README.md", cards.markdown(written).encode())
        files.remove(under_way)
        progress.say(f"{name}: {'passed' if written['passed'] else 'did not pass all gates'}")


def kitchen_of(course: Course, seed: str, own: World, asked: Iterable[Question]) -> diet.Kitchen:
    """What a course is fed from: nothing that is asked later, of any family and split.

    A base student knows neither the further wordings nor numbers that do not matter. Held back from it are also the
    same draws without both, so that it has met no problem of the sets in plainer words either.
    """
    asked = list(asked)
    bare = replace(own, further=False, beside=0.0)
    n = sum(question.set == "steps" for question in asked)
    held = asked + (world.questions("steps", seed, n, bare) if own != bare else [])
    without = frozenset(splits.canonical(question.text) for question in held)
    return diet.Kitchen(own if course.teaches_whole else bare, without, course.style)


def examine(
    name: str, student: Student, kitchen: diet.Kitchen, asked: Sequence[Question], n: int
) -> tuple[list[Gate], dict[str, Any]]:
    """A model's gates, and what only a teacher has."""
    if name != "teacher":
        return list(gates.base(student, kitchen, asked, n)), {}
    held = [question for question in asked if question.set == "steps" and question.split == "validation"][:n]
    gate, certainty = branching.teacher(student, kitchen, held)
    greedy = gates.problems(student, kitchen, "steps, greedy", held)
    entropy = {"tokens": certainty.tokens, "sentences": certainty.sentences, "sums": certainty.sums}
    return [gate, greedy], {"entropy": entropy}


def check(folder: Path = MODELS, *, n: int | None = None) -> bool:
    """Examine the models in FOLDER again: does each gate agree with its card, within its interval?

    The first steps are made again too; whether they give the same bytes is said, not judged: another kind of CPU adds
    up in another order.

    n  questions of each gate; None for as many as the card has (then the same ones are asked)
    """
    agreed = True
    for path in sorted(path for path in folder.iterdir() if (path / "card.json").is_file()):
        card = cards.read(path)
        if card["gates_version"] != gates.VERSION:
            raise UserError("the card is of other gates", where=path, do="make the model again")
        own = World(**{**card["world"], "shares": tuple(card["world"]["shares"])})
        asked = questions(card["seed"], own, world.SIZES)
        student = students.open(path)
        kitchen = kitchen_of(COURSES[card["name"]], card["seed"], own, asked)
        digest = making.first(card["name"], COURSES[card["name"]], card["seed"], kitchen)
        same = digest == card["first_digest"]
        progress.say(f"{card['name']:<15} first {making.FIRST} steps: {'the same bytes' if same else 'other bytes'}")
        found, _ = examine(card["name"], student, kitchen, balanced(asked), n or card["gates"][0]["n"])
        for gate, row in zip(found, card["gates"], strict=True):
            low, high = gate.interval
            same = row["name"] == gate.name and low <= row["right"] / row["n"] <= high
            agreed &= same
            said = f"{card['name']:<15} {gate.name:<28} {gate.share:6.1%}, card {row['right'] / row['n']:6.1%}"
            progress.say(f"{said}  {'' if same else 'differs'}", "" if same else "red")
    return agreed


def _is(path: Path, made_of: Mapping[str, object]) -> bool:
    return path.is_file() and files.read_json(path) == made_of


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m potstill.miniature.build", description="Train the models of the package, or check them."
    )
    parser.add_argument(
        "names", nargs="*", help=f"which models; all shipped ones if none is named: {', '.join(COURSES)}"
    )
    parser.add_argument("--into", type=Path, default=Path("runs") / "models", help="where they are put")
    parser.add_argument("--seed", default=SEED, help="the same seed gives the same bytes on one thread")
    parser.add_argument("--check", action="store_true", help="examine the shipped models again and compare their cards")
    given = parser.parse_args(arguments)
    if given.check:
        return 0 if check() else 1
    unknown = [name for name in given.names if name not in COURSES]
    if unknown:
        parser.error(f"no such model: {', '.join(unknown)}; there are {', '.join(COURSES)}")
    for family, far in distances(questions(given.seed, world.SHIPPED, world.SIZES)).items():
        progress.say(f"of {family}, found in the in-distribution problems: {far}")
    train(given.into, given.names or SHIPPED, seed=given.seed)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
