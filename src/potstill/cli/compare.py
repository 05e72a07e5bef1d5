"""`potstill compare`: two runs, or two checkpoints of one run, on the questions that both answered.

    potstill compare runs/a runs/b            # the chosen checkpoints, on test
    potstill compare runs/a@0 runs/a@500      # two checkpoints, on test if both were evaluated there, else on validation

A difference is the first minus the second. Its interval is Newcombe's for paired shares; for a set of several tasks the
mean over tasks is compared too, with an interval that is clustered by task. Both are over questions.

McNemar's exact test (p) says whether these weights differ. It is printed for two checkpoints of one training, and for
two students that potstill did not train. It is not printed for two trainings: one recipe with two seeds differs too, and
one run of each cannot show by how much.
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
from potstill.evaluation import checkpoint as checkpoints
from potstill.evaluation import intervals
from potstill.records import BASE, Checkpoint, Prediction
from potstill.report.formatting import format_points, percent_number
from potstill.report.model import FIXED_WEIGHTS_NOTE, ONE_SEED_NOTE
from potstill.storage import manifest

AnswerKey = tuple[str, int]


@dataclass(frozen=True, slots=True)
class ComparedCheckpoint:
    """One checkpoint of one run, with its answers by format and decoding, then by question.

    training  digest of the training that made its weights; empty for a base student
    """

    name: str
    answers: dict[str, dict[AnswerKey, Prediction]]
    run_dir: Path
    training: str = ""


def compare_runs(first: str, second: str, out: Path | None = None) -> None:
    """Prints the comparison; writes the questions on which only one is right to `out`, if given, one per line.

    Raises UserError if a run or checkpoint is missing, or if the two answered no question in common.
    """
    a, b = _open_both(first, second)
    changed: list[dict[str, Any]] = []
    console = Console(soft_wrap=True)
    separate = _have_different_trainings(a, b)
    for name in sorted(a.answers.keys() & b.answers.keys()):
        first_answers, second_answers = a.answers[name], b.answers[name]
        common = sorted(first_answers.keys() & second_answers.keys())
        if not common:
            continue
        pairs = [(first_answers[key], second_answers[key]) for key in common]
        omitted = len(first_answers) + len(second_answers) - 2 * len(common)
        note = f"; {omitted} answers to questions of only one are left out" if omitted else ""
        console.print(_comparison_table(f"{name}: {a.name} against {b.name}{note}", pairs, tested=not separate))
        changed += _changed_rows(name, pairs)
    console.print(ONE_SEED_NOTE if separate else FIXED_WEIGHTS_NOTE, style="dim")
    if out is not None:
        storage.write_jsonl(out, changed)
        console.print(f"{len(changed)} questions on which only one of the two is right: {out}")


def _have_different_trainings(a: ComparedCheckpoint, b: ComparedCheckpoint) -> bool:
    """Whether the two come from different trainings: another seed could then have reversed the result."""
    return a.training != b.training and a.run_dir != b.run_dir and bool(a.training or b.training)


def _comparison_table(title: str, pairs: list[tuple[Prediction, Prediction]], tested: bool) -> Table:
    p_column = ("p",) if tested else ()
    columns = ("set", "n", "first", "second", "difference", "95 % interval", *p_column, "only first", "only second")
    table = Table(*columns, title=Text(title), title_justify="left", box=None, pad_edge=False)
    for column in table.columns[1:]:
        column.justify = "right"
    for name in sorted({first.set for first, _ in pairs}):
        answers = [pair for pair in pairs if pair[0].set == name]
        right = [(first.grade == "right", second.grade == "right") for first, second in answers]
        a, b = [x for x, _ in right], [y for _, y in right]
        shares = (percent_number(sum(a) / len(a)), percent_number(sum(b) / len(b)))
        p = (f"{intervals.mcnemar_p_value(a, b):.2g}",) if tested else ()
        only = (str(right.count((True, False))), str(right.count((False, True))))
        difference = _format_difference(intervals.paired_difference(a, b))
        table.add_row(name, str(len(right)), *shares, *difference, *p, *only)
        tasks = sorted({first.task for first, _ in answers})
        if len(tasks) > 1:
            by_task = [
                [pair for pair, (first, _) in zip(right, answers, strict=True) if first.task == t] for t in tasks
            ]
            _, mean = intervals.clustered_intervals([[float(x) - float(y) for x, y in task] for task in by_task])
            means = [sum(sum(pair[i] for pair in task) / len(task) for task in by_task) / len(tasks) for i in (0, 1)]
            row = (f"  mean of {len(tasks)} tasks", str(len(right)), *map(percent_number, means))
            table.add_row(*row, *_format_difference(mean), *([""] * (2 + tested)))
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
    """Both checkpoints with their answers on test, or on validation if not both were evaluated on test."""
    runs = [_parse_run(text) for text in (first, second)]
    for stage in ("test", "evaluate"):
        opened = [_open_checkpoint(run_dir, named, stage) for run_dir, named in runs]
        a, b = opened
        if a is None or b is None:
            continue
        if not any(a.answers[name].keys() & b.answers[name].keys() for name in a.answers.keys() & b.answers.keys()):
            raise UserError(
                "the two have no question in common",
                code="E-cli-compare-nothing",
                where=f"{first}, {second}",
                hint="compare runs that were evaluated on the same sets in the same format and decoding",
            )
        return a, b
    raise UserError(
        "one of the runs has not been evaluated",
        code="E-cli-compare-unevaluated",
        where=f"{first}, {second}",
        hint="name finished runs, or checkpoints that were both evaluated",
    )


def _open_checkpoint(run_dir: Path, named: Checkpoint | None, stage: str) -> ComparedCheckpoint | None:
    """The named, else the chosen, else the only checkpoint, with its answers; None if it was not evaluated."""
    checkpoint = named or _default_checkpoint(run_dir, stage)
    if checkpoint is None or manifest.read_finished(run_dir / stage / checkpoint.name) is None:
        return None
    answers = _read_answers(run_dir / stage / checkpoint.name)
    name = f"{run_dir.name} step {checkpoint.label}"
    return ComparedCheckpoint(name, answers, run_dir.resolve(), _training_digest(run_dir, checkpoint))


def _parse_run(text: str) -> tuple[Path, Checkpoint | None]:
    """`runs/a@500`, `runs/a@500-0.3`: the directory, and the checkpoint if one is named."""
    path, at, name = text.rpartition("@")
    checkpoint = None
    if at:
        with contextlib.suppress(ValueError):
            checkpoint = Checkpoint.parse(name)
    run_dir = Path(text if checkpoint is None else path)
    read_run_recipe(run_dir)
    return run_dir, checkpoint


def _default_checkpoint(run_dir: Path, stage: str) -> Checkpoint | None:
    if (run_dir / "select" / "choice.json").is_file():
        return checkpoints.read_choice(run_dir).checkpoint
    answered = checkpoints.list_answered_checkpoints(run_dir / stage)
    return answered[0] if len(answered) == 1 else None


def _training_digest(run_dir: Path, checkpoint: Checkpoint) -> str:
    """What made the weights of a checkpoint: the digest of its training, which is the same in a copy of the run."""
    if checkpoint == BASE:
        return ""
    training = manifest.read_finished(run_dir / "train")
    return str(run_dir.resolve()) if training is None else training.digest


def _read_answers(folder: Path) -> dict[str, dict[AnswerKey, Prediction]]:
    answers: dict[str, dict[AnswerKey, Prediction]] = {}
    for path in sorted(folder.glob("*.jsonl")):
        rows = storage.iter_records(Prediction, path)
        answers[path.stem] = {(row.question, row.index): row for row in rows if row.index == 0}
    return answers


def _format_difference(difference: tuple[float, float, float]) -> tuple[str, str]:
    value, low, high = difference
    return format_points(value), f"{format_points(low)} to {format_points(high)}"
