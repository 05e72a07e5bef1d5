"""Builds what the demo starts from: the sets of the small world, a tiny teacher and a tiny base student.

    python -m potstill.miniature.build FOLDER

FOLDER then holds `sets/<family>.jsonl`, and `teacher/` and `student/` as any Hugging Face tool reads them. A base model
is a student trained on hard targets by the house's own loop: there is no second trainer. Everything follows from the
seed; on one thread the same seed gives the same bytes.

    >>> from tempfile import TemporaryDirectory
    >>> with TemporaryDirectory() as folder:
    ...     write_sets(Path(folder), questions("demo", World(), 3))
    ...     sorted(path.name for path in (Path(folder) / "sets").iterdir())
    ['diverse.jsonl', 'generic.jsonl', 'multi.jsonl', 'steps.jsonl', 'varied.jsonl']
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Final

from potstill import files, progress, prompts, splits, tokenizers, training
from potstill.miniature import diet, skills, world
from potstill.miniature.problem import World
from potstill.prompts import Style
from potstill.records import Chain, Question
from potstill.students import Example, Shape, Student, initialise
from potstill.tokenizers import Tokenizer
from potstill.training import Schedule
from potstill.transfer import transfer

BLOCK: Final = 8  # steps whose rows are drawn together and sorted by length, so that little is padded
SEED: Final = "potstill"
SETTINGS: Final = "built.json"  # in the folder: what it was made of; written first, so that parts never mix
VERSION: Final = 1  # of the world's texts and of the diets; a new one makes the demo build anew
SIZES: Final[Mapping[str, int]] = {"steps": 2400, "multi": 1200, "diverse": 1200, "varied": 1200, "generic": 2400}


@dataclass(frozen=True, slots=True)
class Phase:
    """So many steps on one diet: rows of each dish a step. The short rows of the skills are a batch of their own."""

    steps: int
    rows: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class Course:
    """How one base model is made. The learning rate rises over `warmup` steps and falls over the last `fall` of all."""

    shape: Shape
    style: Style
    phases: Sequence[Phase]
    peak: float
    warmup: int = 50
    fall: float = 0.5
    factors: Mapping[str, float] = field(default_factory=dict)

    @property
    def steps(self) -> int:
        return sum(phase.steps for phase in self.phases)


EASY: Final = World(largest=20, shares=(0.6, 0.35, 0.05), frames=4, names=16)
TEACHER: Final = Course(
    shape=Shape("causal", d_model=64, layers=2, heads=4, d_ff=128, d_kv=16, vocabulary=700, length=512),
    style=prompts.TEACHER,
    phases=(Phase(900, {"steps": 16, "facts": 24, "copying": 8}),),
    peak=4e-3,
)
STUDENT: Final = Course(
    shape=Shape("t5", d_model=64, layers=2, heads=4, d_ff=128, d_kv=16, vocabulary=1000),
    style=prompts.PAPER,
    phases=(Phase(500, {"facts": 12, "equations": 8, "extraction": 8, "generic": 20, "plain": 2}),),
    peak=4e-3,
)
COURSES: Final[Mapping[str, Course]] = {"teacher": TEACHER, "student": STUDENT}


def build(
    folder: Path,
    *,
    seed: str = SEED,
    own: World = EASY,
    courses: Mapping[str, Course] = COURSES,
    sizes: Mapping[str, int] = SIZES,
) -> None:
    """Make FOLDER: its sets, then one model a course. What is there from the same settings is kept, else replaced.

    sizes  questions of each family, before they are split
    """
    made_of = {"version": VERSION, "settings": repr((seed, own, dict(courses), dict(sizes)))}
    parts = [folder / name for name in ("sets", *courses)]
    if not _is(folder / SETTINGS, made_of):
        for part in parts:
            files.remove(part)
        files.write_json(folder / SETTINGS, made_of)
    sets = questions(seed, own, sizes)
    if not parts[0].exists():
        write_sets(folder, sets)
    without = frozenset(splits.canonical(question.text) for question in sets)
    for part, (name, course) in zip(parts[1:], courses.items(), strict=True):
        if not part.exists():
            student = train(name, course, seed, diet.Kitchen(own, without, course.style))
            with files.folder(part) as beside:
                student.save(beside)


def questions(seed: str, own: World, sizes: Mapping[str, int] | int) -> list[Question]:
    """All questions of all families."""
    wanted = {family: sizes if isinstance(sizes, int) else sizes[family] for family in world.SETS}
    return [question for family, n in wanted.items() for question in world.questions(family, seed, n, own)]


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


def _is(path: Path, made_of: Mapping[str, object]) -> bool:
    return path.is_file() and files.read_json(path) == made_of


def train(name: str, course: Course, seed: str, kitchen: diet.Kitchen) -> Student:
    """A base model, from random weights and a tokenizer of its own."""
    tokenizer = tokenizer_of(course, seed, kitchen)
    student = initialise(course.shape, tokenizer, seed=_number(f"{seed}/{name}/weights"))
    last = course.steps
    fall = round(last * course.fall)
    schedule = Schedule("linear", course.peak, course.warmup, last, hold=max(0, last - fall - course.warmup))
    optimizer = training.optimizer(student, course.peak, betas=(0.9, 0.98), factors=course.factors)
    with progress.bar(name, last) as tick:
        for metrics in training.steps(
            student,
            optimizer,
            rows(student, course, seed, kitchen),
            first=1,
            last=last,
            schedule=schedule,
            seed=_number(f"{seed}/{name}/steps"),
        ):
            tick(1, f"loss {metrics.loss:.3f}")
    return student


def tokenizer_of(course: Course, seed: str, kitchen: diet.Kitchen) -> Tokenizer:
    """Trained on all dishes, and on the plain text, in which every word of every family stands."""
    texts = [
        meal.prompt.plain + meal.prompt.lead + meal.reply
        for dish in diet.DISHES
        for meal in diet.serve(dish, f"{seed}/tokenizer", 300, kitchen)
    ]
    make = tokenizers.train_unigram if course.shape.family == "t5" else tokenizers.train_bpe
    return make(texts, course.shape.vocabulary)


def rows(
    student: Student, course: Course, seed: str, kitchen: diet.Kitchen
) -> Callable[[int], Sequence[Sequence[Example]]]:
    """The micro-batches of a step, counted from 1: one of skills, one of everything longer, rows alike in length."""

    @lru_cache(maxsize=2)
    def block(phase: int, number: int) -> list[list[list[Example]]]:
        batches: dict[bool, list[list[Example]]] = {}
        for dish, n in course.phases[phase].rows.items():
            label = f"{seed}/{phase}/{number}/{dish}"
            examples = [_example(student, meal, dish) for meal in diet.serve(dish, label, n * BLOCK, kitchen)]
            examples.sort(key=lambda example: (len(example.prompt), len(example.target)))
            steps = batches.setdefault(dish in skills.SKILLS, [[] for _ in range(BLOCK)])
            for place, batch in enumerate(steps):
                batch += examples[place * n : (place + 1) * n]
        mixed = [random.Random(f"{seed}/{phase}/{number}").sample(steps, BLOCK) for steps in batches.values()]
        return [list(step) for step in zip(*mixed, strict=True)]

    def of(step: int) -> list[list[Example]]:
        before = 0
        for phase, own in enumerate(course.phases):
            if step <= before + own.steps:
                number, place = divmod(step - before - 1, BLOCK)
                return block(phase, number)[place]
            before += own.steps
        raise AssertionError(f"step {step} of {before}")

    return of


def _example(student: Student, meal: diet.Meal, dish: str) -> Example:
    chain = Chain.from_text(dish, 0, meal.reply, source="world")
    target = transfer(chain, student.tokenizer, "one-hot")
    return Example(tuple(student.encode(student.render(meal.prompt))), target, format=dish)


def _number(label: str) -> int:
    return random.Random(label).getrandbits(31)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m potstill.miniature.build",
        description="Build the sets, the teacher and the student of the demo.",
    )
    parser.add_argument("folder", type=Path, help="where sets, teacher and student are put")
    parser.add_argument("--seed", default=SEED, help="the same seed gives the same bytes on one thread")
    given = parser.parse_args(arguments)
    for family, far in distances(questions(given.seed, EASY, SIZES)).items():
        progress.say(f"of {family}, found in the in-distribution problems: {far}")
    build(given.folder, seed=given.seed)


if __name__ == "__main__":
    main()
