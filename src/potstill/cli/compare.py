"""`potstill compare`: two runs, or two steps of one, on the questions that both answered.

    potstill compare runs/a runs/b            # the chosen steps, on test
    potstill compare runs/a@0 runs/a@500      # two steps of a run, on test if both stand there, else on validation

A difference is the first minus the second. Its interval is Newcombe's for paired shares; of a set with several tasks
the mean over tasks is compared too, with an interval that is clustered by task. Both are over questions. Two steps of
one training, or two students that nobody trained here, also get p, McNemar's exact test: whether these weights differ.
Two trainings do not: the same recipe with another seed differs too, and one run of each cannot say by how much.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from potstill import exam, files, intervals, story
from potstill.cli.recipes import recipe_of
from potstill.contenders import BASE, Contender
from potstill.errors import UserError
from potstill.files import manifest
from potstill.records import Prediction

Key = tuple[str, int]


@dataclass(frozen=True, slots=True)
class Side:
    """One step of one run: how it was named, and what it answered, by format and decoding, then by question."""

    name: str
    answers: dict[str, dict[Key, Prediction]]
    run: Path
    training: str = ""  # the digest of the training that made its weights; empty for a base student


def compare(first: str, second: str, out: Path | None = None) -> None:
    """Print the comparison; write the questions on which only one is right to `out`, if given, one a line.

    Raises UserError where a run or step is not there, or the two answered no question in common.
    """
    a, b = _sides(first, second)
    changed: list[dict[str, Any]] = []
    console = Console(soft_wrap=True)
    apart = _apart(a, b)
    for name in sorted(a.answers.keys() & b.answers.keys()):
        mine, other = a.answers[name], b.answers[name]
        common = [key for key in sorted(mine) if key in other]
        if not common:
            continue
        alone = len(mine) + len(other) - 2 * len(common)
        title = f"{name}: {a.name} against {b.name}" + (f"; {alone} answers of one only left out" if alone else "")
        console.print(_table(title, [(mine[key], other[key]) for key in common], tested=not apart))
        changed += _changed(name, [(mine[key], other[key]) for key in common])
    console.print(story.ONE_SEED if apart else story.THESE_WEIGHTS, style="dim")
    if out is not None:
        files.write_jsonl(out, changed)
        console.print(f"{len(changed)} questions on which one is right and the other is not: {out}")


def _apart(a: Side, b: Side) -> bool:
    """Whether two sides are not of one training: then another seed might have turned them round."""
    return a.training != b.training and a.run != b.run and bool(a.training or b.training)


def _table(title: str, pairs: list[tuple[Prediction, Prediction]], tested: bool) -> Table:
    p_name = ("p",) if tested else ()
    columns = ("set", "n", "first", "second", "difference", "95 % interval", *p_name, "only first", "only second")
    table = Table(*columns, title=Text(title), title_justify="left", box=None, pad_edge=False)
    for column in table.columns[1:]:
        column.justify = "right"
    for name in sorted({first.set for first, _ in pairs}):
        own = [pair for pair in pairs if pair[0].set == name]
        right = [(first.grade == "right", second.grade == "right") for first, second in own]
        mine, others = [x for x, _ in right], [y for _, y in right]
        row = (story.percent(sum(mine) / len(own)), story.percent(sum(others) / len(own)))
        lost, won = (str(sum(pair == kind for pair in right)) for kind in ((True, False), (False, True)))
        difference = intervals.paired_difference(mine, others)
        p = (f"{intervals.mcnemar(mine, others):.2g}",) if tested else ()
        table.add_row(name, str(len(own)), *row, *_shown(difference), *p, lost, won)
        tasks = sorted({first.task for first, _ in own})
        if len(tasks) > 1:
            by_task = [[pair for pair, (first, _) in zip(right, own, strict=True) if first.task == t] for t in tasks]
            _, macro = intervals.clustered([[float(x) - float(y) for x, y in task] for task in by_task])
            sides = [sum(sum(pair[i] for pair in task) / len(task) for task in by_task) / len(tasks) for i in (0, 1)]
            label = f"  mean of {len(tasks)} tasks"
            table.add_row(label, str(len(own)), *map(story.percent, sides), *_shown(macro), *([""] * (2 + tested)))
    return table


def _changed(name: str, pairs: list[tuple[Prediction, Prediction]]) -> Iterator[dict[str, Any]]:
    for first, second in pairs:
        if (first.grade == "right") != (second.grade == "right"):
            yield {
                "question": first.question,
                "set": first.set,
                "task": first.task,
                "format": name,
                "first": {"grade": first.grade, "found": first.found, "text": first.text},
                "second": {"grade": second.grade, "found": second.found, "text": second.text},
            }


def _sides(first: str, second: str) -> tuple[Side, Side]:
    named = [_named(each) for each in (first, second)]
    for stage in ("test", "evaluate"):
        folders = [run / stage for run, _ in named]
        steps = [_contender(run, who, stage) for run, who in named]
        pairs = list(zip(folders, steps, strict=True))
        there = [manifest.finished(folder / who.name) if who else None for folder, who in pairs]
        if all(made is not None for made in there):
            a, b = (
                Side(f"{run.name} step {who.label}", _answers(folder / who.name), run.resolve(), _training(run, who))
                for (run, _), folder, who in zip(named, folders, steps, strict=True)
                if who is not None
            )
            if not any(a.answers[name].keys() & b.answers[name].keys() for name in a.answers.keys() & b.answers.keys()):
                do = "compare runs that measured the same sets in the same format and decoding"
                raise UserError("the two answered no question in common", where=f"{first}, {second}", do=do)
            return a, b
    missing = f"{first}, {second}"
    raise UserError("not both have answered", where=missing, do="name finished runs, or steps that both were evaluated")


def _named(text: str) -> tuple[Path, Contender | None]:
    """`runs/a@500`, `runs/a@500-0.3`: the folder, and the step or mix if one is named."""
    path, at, name = text.rpartition("@")
    found = None
    if at:
        with contextlib.suppress(ValueError):
            found = Contender.read(name)
    path = Path(text if found is None else path)
    recipe_of(path)
    return path, found


def _contender(run: Path, named: Contender | None, stage: str) -> Contender | None:
    """What is meant: the one named, else the chosen one, else the only one."""
    if named is not None:
        return named
    if (run / "select" / "choice.json").is_file():
        return exam.choice(run).contender
    there = exam.answered(run / stage)
    return there[0] if len(there) == 1 else None


def _training(run: Path, who: Contender) -> str:
    """What made the weights of a step: the digest of its training, which a copy of the run has too."""
    made = None if who == BASE else manifest.finished(run / "train")
    return str(run.resolve()) if made is None and who != BASE else "" if made is None else made.digest


def _answers(folder: Path) -> dict[str, dict[Key, Prediction]]:
    found: dict[str, dict[Key, Prediction]] = {}
    for path in sorted(folder.glob("*.jsonl")):
        rows = files.records(Prediction, path)
        found[path.stem] = {(row.question, row.index): row for row in rows if row.index == 0}
    return found


def _shown(difference: tuple[float, float, float]) -> tuple[str, str]:
    value, low, high = difference
    return story.points(value), f"{story.points(low)} to {story.points(high)}"
