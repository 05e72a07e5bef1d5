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

from potstill import storage
from potstill.cli.run_folder import read_run_recipe
from potstill.errors import UserError
from potstill.evaluation import checkpoint, intervals
from potstill.records import BASE, Checkpoint, Prediction
from potstill.report import model
from potstill.storage import manifest

AnswerKey = tuple[str, int]


@dataclass(frozen=True, slots=True)
class ComparedCheckpoint:
    """One step of one run: how it was named, and what it answered, by format and decoding, then by question."""

    name: str
    answers: dict[str, dict[AnswerKey, Prediction]]
    run: Path
    training: str = ""  # the digest of the training that made its weights; empty for a base student


def compare_runs(first: str, second: str, out: Path | None = None) -> None:
    """Print the comparison; write the questions on which only one is right to `out`, if given, one a line.

    Raises UserError where a run or step is not there, or the two answered no question in common.
    """
    a, b = _open_both(first, second)
    changed: list[dict[str, Any]] = []
    console = Console(soft_wrap=True)
    apart = _have_different_trainings(a, b)
    for name in sorted(a.answers.keys() & b.answers.keys()):
        mine, other = a.answers[name], b.answers[name]
        common = [key for key in sorted(mine) if key in other]
        if not common:
            continue
        alone = len(mine) + len(other) - 2 * len(common)
        title = f"{name}: {a.name} against {b.name}" + (f"; {alone} answers of one only left out" if alone else "")
        console.print(_comparison_table(title, [(mine[key], other[key]) for key in common], tested=not apart))
        changed += _changed_rows(name, [(mine[key], other[key]) for key in common])
    console.print(model.ONE_SEED_NOTE if apart else model.FIXED_WEIGHTS_NOTE, style="dim")
    if out is not None:
        storage.write_jsonl(out, changed)
        console.print(f"{len(changed)} questions on which one is right and the other is not: {out}")


def _have_different_trainings(a: ComparedCheckpoint, b: ComparedCheckpoint) -> bool:
    """Whether two sides are not of one training: then another seed might have turned them round."""
    return a.training != b.training and a.run != b.run and bool(a.training or b.training)


def _comparison_table(title: str, pairs: list[tuple[Prediction, Prediction]], tested: bool) -> Table:
    p_name = ("p",) if tested else ()
    columns = ("set", "n", "first", "second", "difference", "95 % interval", *p_name, "only first", "only second")
    table = Table(*columns, title=Text(title), title_justify="left", box=None, pad_edge=False)
    for column in table.columns[1:]:
        column.justify = "right"
    for name in sorted({first.set for first, _ in pairs}):
        own = [pair for pair in pairs if pair[0].set == name]
        right = [(first.grade == "right", second.grade == "right") for first, second in own]
        mine, others = [x for x, _ in right], [y for _, y in right]
        row = (model.percent_number(sum(mine) / len(own)), model.percent_number(sum(others) / len(own)))
        lost, won = (str(sum(pair == kind for pair in right)) for kind in ((True, False), (False, True)))
        difference = intervals.paired_difference(mine, others)
        p = (f"{intervals.mcnemar_p_value(mine, others):.2g}",) if tested else ()
        table.add_row(name, str(len(own)), *row, *_format_difference(difference), *p, lost, won)
        tasks = sorted({first.task for first, _ in own})
        if len(tasks) > 1:
            by_task = [[pair for pair, (first, _) in zip(right, own, strict=True) if first.task == t] for t in tasks]
            _, macro = intervals.clustered_intervals([[float(x) - float(y) for x, y in task] for task in by_task])
            sides = [sum(sum(pair[i] for pair in task) / len(task) for task in by_task) / len(tasks) for i in (0, 1)]
            label = f"  mean of {len(tasks)} tasks"
            table.add_row(
                label,
                str(len(own)),
                *map(model.percent_number, sides),
                *_format_difference(macro),
                *([""] * (2 + tested)),
            )
    return table


def _changed_rows(name: str, pairs: list[tuple[Prediction, Prediction]]) -> Iterator[dict[str, Any]]:
    for first, second in pairs:
        if (first.grade == "right") != (second.grade == "right"):
            yield {
                "question": first.question,
                "set": first.set,
                "task": first.task,
                "format": name,
                "first": {"grade": first.grade, "found": first.answer, "text": first.text},
                "second": {"grade": second.grade, "found": second.answer, "text": second.text},
            }


def _open_both(first: str, second: str) -> tuple[ComparedCheckpoint, ComparedCheckpoint]:
    named = [_parse_run(each) for each in (first, second)]
    for stage in ("test", "evaluate"):
        folders = [run / stage for run, _ in named]
        steps = [_resolve_checkpoint(run, who, stage) for run, who in named]
        pairs = list(zip(folders, steps, strict=True))
        there = [manifest.read_finished(folder / who.name) if who else None for folder, who in pairs]
        if all(made is not None for made in there):
            a, b = (
                ComparedCheckpoint(
                    f"{run.name} step {who.label}",
                    _read_answers(folder / who.name),
                    run.resolve(),
                    _training_digest(run, who),
                )
                for (run, _), folder, who in zip(named, folders, steps, strict=True)
                if who is not None
            )
            if not any(a.answers[name].keys() & b.answers[name].keys() for name in a.answers.keys() & b.answers.keys()):
                hint = "compare runs that measured the same sets in the same format and decoding"
                raise UserError("the two answered no question in common", where=f"{first}, {second}", hint=hint)
            return a, b
    missing = f"{first}, {second}"
    raise UserError(
        "not both have answered", where=missing, hint="name finished runs, or steps that both were evaluated"
    )


def _parse_run(text: str) -> tuple[Path, Checkpoint | None]:
    """`runs/a@500`, `runs/a@500-0.3`: the folder, and the step or mix if one is named."""
    path, at, name = text.rpartition("@")
    found = None
    if at:
        with contextlib.suppress(ValueError):
            found = Checkpoint.parse(name)
    path = Path(text if found is None else path)
    read_run_recipe(path)
    return path, found


def _resolve_checkpoint(run_dir: Path, named: Checkpoint | None, stage: str) -> Checkpoint | None:
    """What is meant: the one named, else the chosen one, else the only one."""
    if named is not None:
        return named
    if (run_dir / "select" / "choice.json").is_file():
        return checkpoint.read_choice(run_dir).checkpoint
    there = checkpoint.list_answered_checkpoints(run_dir / stage)
    return there[0] if len(there) == 1 else None


def _training_digest(run_dir: Path, who: Checkpoint) -> str:
    """What made the weights of a step: the digest of its training, which a copy of the run has too."""
    made = None if who == BASE else manifest.read_finished(run_dir / "train")
    return str(run_dir.resolve()) if made is None and who != BASE else "" if made is None else made.digest


def _read_answers(folder: Path) -> dict[str, dict[AnswerKey, Prediction]]:
    found: dict[str, dict[AnswerKey, Prediction]] = {}
    for path in sorted(folder.glob("*.jsonl")):
        rows = storage.iter_records(Prediction, path)
        found[path.stem] = {(row.question, row.index): row for row in rows if row.index == 0}
    return found


def _format_difference(difference: tuple[float, float, float]) -> tuple[str, str]:
    value, low, high = difference
    return model.format_points(value), f"{model.format_points(low)} to {model.format_points(high)}"
