"""`potstill compare`: two runs, or two checkpoints of one run, on the questions that both answered.

    potstill compare runs/a runs/b            # the chosen checkpoints, on test
    potstill compare runs/a@0 runs/a@500      # two checkpoints, on test if both were tested, otherwise on validation
    potstill compare runs/a runs/b runs/c --page page.html    # one page for two or more
    potstill compare runs/a runs/b runs/c     # more than two: a table of recipes, see `compare_groups`

A difference is the accuracy of the second minus that of the first, as in the tables of many runs. Its interval is
Newcombe's interval for paired proportions. For a set of several tasks, the mean over tasks is also compared, with an
interval clustered by task. Both intervals are over questions.

McNemar's exact test (p) says whether these two sets of weights differ. It is printed for two checkpoints of the same
training, and for two students that potstill did not train. It is not printed for two trainings, because two seeds of the
same recipe also differ, and one run per recipe cannot show by how much.
"""

from __future__ import annotations

import contextlib
import json
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, NoReturn

from rich.table import Table

from potstill import progress, storage
from potstill.cli.tables import NARROWEST_NAME, plain_text, print_note, print_table
from potstill.data import run_questions, splits
from potstill.errors import UserError
from potstill.evaluation import checkpoint as checkpoints
from potstill.evaluation import intervals
from potstill.records import BASE, Checkpoint, Prediction
from potstill.report import group_files, html, model_comparison
from potstill.report.example_questions import share_out
from potstill.report.group_scores import GroupScore, SeedGroup
from potstill.report.model import FIXED_WEIGHTS_NOTE, ONE_SEED_NOTE, QuotedScore, set_groups
from potstill.report.summary import format_points, percent_number
from potstill.run_reader import is_study, open_run
from potstill.storage import manifest
from potstill.study_status import read_study_status

SEEDS_HINT = "potstill compare --seeds compares recipes over several seeds."
PAGE_QUESTIONS = 30  # questions that the page shows
AnswerPair = tuple[Prediction, Prediction]


@dataclass(frozen=True, slots=True)
class ComparedCheckpoint:
    """A checkpoint of a run, with its answers.

    answers   format and decoding -> question (`run_questions.question_key`) -> answer
    training  digest of the training that made the weights; empty for a base student
    """

    name: str
    answers: dict[str, dict[str, Prediction]]
    run_dir: Path
    training: str


@dataclass(frozen=True, slots=True)
class SetComparison:
    """Two checkpoints on the questions of a set that both answered.

    answers      format and decoding
    tasks        0 for the share of right answers; otherwise, this is the mean over so many tasks
    first        share of right answers of the first checkpoint; `second` likewise
    difference   second minus first, with its 95 % interval
    p            McNemar's exact test; None if it says nothing about a difference between two trainings, and for means
    only_first   number of questions that only the first answers right; None for means
    """

    answers: str
    set: str
    tasks: int
    n: int
    first: float
    second: float
    difference: float
    low: float
    high: float
    p: float | None = None
    only_first: int | None = None
    only_second: int | None = None


def list_runs(names: Sequence[str]) -> list[str]:
    """The names of runs and checkpoints, where the folder of a study stands for its finished runs.

    Raises UserError if they are fewer than two.
    """
    runs: list[str] = []
    for name in names:
        if not is_study(Path(name)):
            runs.append(name)
            continue
        states = {run.name: run.state for run in read_study_status(Path(name)).runs}
        runs += [str(Path(name) / run) for run, state in states.items() if state == "done"]
        if left_out := [run for run, state in states.items() if state != "done"]:
            progress.print_line(f"left out, because they are not finished: {', '.join(left_out)}", "yellow")
    if len(runs) < 2:
        what, hint = "there is nothing to compare", "name two or more runs, such as runs/a and runs/b, or a study"
        raise UserError(what, code="E-cli-compare-one", where=", ".join(names), found=f"{len(runs)} run", hint=hint)
    return runs


def compare_runs(first: str, second: str, out: Path | None = None, *, as_json: bool = False) -> None:
    """Print the comparison, as tables or as one JSON object.

    out  output file for the questions that only one of them answers right, one per line

    Raises UserError if a run or a checkpoint is missing, or if the checkpoints have no question in common.
    """
    (a, b), _ = open_all([first, second])
    separate = _are_separate(a, b)
    changed: list[dict[str, Any]] = []
    comparisons: list[SetComparison] = []
    for name in sorted(a.answers.keys() & b.answers.keys()):
        first_answers, second_answers = a.answers[name], b.answers[name]
        common = sorted(first_answers.keys() & second_answers.keys())
        if common:
            pairs = [(first_answers[question], second_answers[question]) for question in common]
            omitted = len(first_answers) + len(second_answers) - 2 * len(common)
            rows = list(_compare_sets(name, pairs, tested=not separate))
            comparisons += rows
            changed += _changed_rows(name, pairs)
            if not as_json:
                note = f"; {omitted} answers to questions that only one answered are left out" if omitted else ""
                print_note(f"{name}{note}\nfirst: {a.name}; second: {b.name}")
                print_table(_comparison_table(rows))
    note = _describe_note([a, b])
    quoted = [row for row in _list_quoted([a, b]) if row.set in {comparison.set for comparison in comparisons}]
    if as_json:
        rows = [asdict(row) for row in comparisons]
        about = {"first": a.name, "second": b.name, "note": note, "quoted": [asdict(row) for row in quoted]}
        print(json.dumps({**about, "comparisons": rows}, ensure_ascii=False))
    else:
        for row in quoted:
            of = "" if row.n is None else f", {row.n} questions"
            text = f"quoted for {row.set}: {row.name} {percent_number(row.share)} ({row.source}{of})"
            print_note(text, "dim")
        print_note(note, "dim")
    if out is not None:
        storage.write_jsonl(out, changed)
        progress.print_line(f"{len(changed)} questions that only one of them answers right: {out}")


def write_page(
    names: Sequence[str],
    page: Path,
    groups_of_seeds: Sequence[SeedGroup] = (),
    scores: Sequence[GroupScore] = (),
    options: Sequence[str] = (),
) -> None:
    """Write the page that compares two or more runs or checkpoints with the first of them, on the same questions.

    groups_of_seeds, scores  table of recipes, which the page shows first
    options                  the options that make this table
    """
    models, split = open_all(names)
    shared = sorted(set(models[0].answers).intersection(*(model.answers for model in models[1:])))
    answers = {name: [model.answers[name] for model in models] for name in shared}
    sets = [row for name in shared for row in model_comparison.compare_sets(name, answers[name])]
    first = open_run(models[0].run_dir).recipe.questions
    groups = set_groups(first.in_distribution, first.out_of_distribution, first.generic)
    differing = model_comparison.differing_questions(answers[sets[0].answers])
    questions = {
        run_questions.question_key(question): question
        for question in run_questions.read_questions(models[0].run_dir, [row.set for row in sets], split)
    }
    picked = []
    for asked, share in zip(
        differing.values(),
        share_out(PAGE_QUESTIONS, [len(asked) for asked in differing.values()]),
        strict=True,
    ):
        for question in splits.sample_by_hash([questions[key] for key in asked], share):
            key = run_questions.question_key(question)
            given = tuple(rows[key] for rows in answers[sets[0].answers])
            picked.append(model_comparison.ComparedQuestion(question, given))
    given = sum(len(rows) for name in shared for rows in answers[name])
    common = sum(len(models) * len(model_comparison.common_questions(answers[name])) for name in shared)
    comparison = model_comparison.ModelComparison(
        models=tuple(model.name for model in models),
        split=split,
        groups=groups,
        sets=tuple(sets),
        questions=tuple(picked),
        differing={name: len(asked) for name, asked in differing.items()},
        omitted=given - common,
        command=shlex.join(["potstill", "compare", *names, *options, "--page", str(page)]),
        note=_describe_note(models),
        quoted=_list_quoted(models),
        recipes=tuple(groups_of_seeds),
        recipe_scores=tuple(scores),
    )
    storage.write_file(page, html.render_comparison(comparison).encode("utf-8"))
    progress.print_line(f"page: {page}")


def _are_separate(a: ComparedCheckpoint, b: ComparedCheckpoint) -> bool:
    """Whether two different trainings made them, so that another seed could reverse the result."""
    return a.training != b.training and a.run_dir != b.run_dir and bool(a.training or b.training)


def _describe_note(models: Sequence[ComparedCheckpoint]) -> str:
    """What the intervals do not include."""
    separate = any(_are_separate(models[0], model) for model in models[1:])
    return f"{ONE_SEED_NOTE} {SEEDS_HINT}" if separate else FIXED_WEIGHTS_NOTE


def _list_quoted(models: Sequence[ComparedCheckpoint]) -> tuple[QuotedScore, ...]:
    """The figures from the literature that the runs' recipes quote, each once."""
    recipes = [open_run(model.run_dir).recipe for model in models]
    return tuple(dict.fromkeys(row for recipe in recipes for row in group_files.quoted_scores(recipe)))


def _compare_sets(name: str, pairs: list[AnswerPair], *, tested: bool) -> Iterator[SetComparison]:
    """The comparison on every set, and for a set of several tasks the mean over its tasks.

    name    format and decoding
    tested  whether McNemar's test is part of it
    """
    for set_name in sorted({first.set for first, _ in pairs}):
        tasks: dict[str, list[tuple[bool, bool]]] = {}
        for first, second in pairs:
            if first.set == set_name:
                tasks.setdefault(first.task, []).append((first.grade == "right", second.grade == "right"))
        right = [pair for task in tasks.values() for pair in task]
        a, b = [x for x, _ in right], [y for _, y in right]
        difference, low, high = intervals.paired_difference(b, a)
        yield SetComparison(
            answers=name,
            set=set_name,
            tasks=0,
            n=len(right),
            first=sum(a) / len(a),
            second=sum(b) / len(b),
            difference=difference,
            low=low,
            high=high,
            p=intervals.mcnemar_p_value(a, b) if tested else None,
            only_first=right.count((True, False)),
            only_second=right.count((False, True)),
        )
        if len(tasks) > 1:
            by_task = [tasks[task] for task in sorted(tasks)]
            _, mean = intervals.clustered_intervals([[float(y) - float(x) for x, y in task] for task in by_task])
            means = [sum(sum(pair[i] for pair in task) / len(task) for task in by_task) / len(tasks) for i in (0, 1)]
            yield SetComparison(name, set_name, len(tasks), len(right), means[0], means[1], *mean)


def _comparison_table(rows: list[SetComparison]) -> Table:
    tested = any(row.p is not None for row in rows)
    columns = (
        "n",
        "first",
        "second",
        "against first",
        "95 % interval",
        *(("p",) if tested else ()),
        "only 1st/2nd",
    )
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("set", overflow="fold", min_width=NARROWEST_NAME)
    for column in columns:
        table.add_column(column, justify="right", no_wrap=True)
    for row in rows:
        title = f"  mean of {row.tasks} tasks" if row.tasks else row.set
        only = "" if row.only_first is None else f"{row.only_first}/{row.only_second}"
        p = [] if not tested else ["" if row.p is None else f"{row.p:.2g}"]
        shares = percent_number(row.first), percent_number(row.second)
        difference = format_points(row.difference), f"{format_points(row.low)} to {format_points(row.high)}"
        table.add_row(plain_text(title), str(row.n), *shares, *difference, *p, only)
    return table


def _changed_rows(name: str, pairs: list[AnswerPair]) -> Iterator[dict[str, Any]]:
    def answer(row: Prediction) -> dict[str, Any]:
        return {"grade": row.grade, "found": row.answer, "text": row.text}

    for first, second in pairs:
        if (first.grade == "right") != (second.grade == "right"):
            labels = {"question": first.question, "set": first.set, "task": first.task, "format": name}
            yield {**labels, "first": answer(first), "second": answer(second)}


def open_all(names: Sequence[str]) -> tuple[list[ComparedCheckpoint], Literal["validation", "test"]]:
    """All checkpoints, with their answers on test if all were tested, otherwise on validation."""
    split = find_split(names)
    found = [_open_checkpoint(*parse_run(text), split) for text in names]
    shared = set(found[0].answers).intersection(*(model.answers for model in found[1:]))
    if not any(set(found[0].answers[name]).intersection(*(row.answers[name] for row in found)) for name in shared):
        refuse_nothing(names)
    return found, split


def refuse_nothing(names: Sequence[str]) -> NoReturn:
    """Raise the UserError for checkpoints without a common question."""
    what = "the checkpoints have no question in common"
    hint = (
        "compare runs that were evaluated on the same sets in the same format and decoding; questions are the same if their "
        "id, text, task and gold answer are"
    )
    raise UserError(what, code="E-cli-compare-nothing", where=", ".join(names), hint=hint)


def find_split(names: Sequence[str]) -> Literal["validation", "test"]:
    """`test` if all checkpoints were tested, otherwise validation. Raises UserError if one of them was not evaluated."""
    runs = [parse_run(text) for text in names]
    for split, stage in group_files.STAGES.items():
        found = [checkpoint or group_files.find_checkpoint(run_dir, stage) for run_dir, checkpoint in runs]
        if all(
            checkpoint is not None and manifest.read_finished(run_dir / stage / checkpoint.name) is not None
            for (run_dir, _), checkpoint in zip(runs, found, strict=True)
        ):
            return split
    what = "one of the runs has not been evaluated"
    evaluated = [
        f"{run_dir}: {', '.join(row.name for row in checkpoints.list_answered_checkpoints(run_dir / 'evaluate')) or 'none'}"
        for run_dir in dict.fromkeys(run_dir for run_dir, _ in runs)
    ]
    hint = "name finished runs, or checkpoints that were all evaluated (RUN@STEP)"
    answered, where = f"evaluated checkpoints of {'; of '.join(evaluated)}", ", ".join(names)
    raise UserError(what, code="E-cli-compare-unevaluated", where=where, found=answered, hint=hint)


def parse_run(text: str) -> tuple[Path, Checkpoint | None]:
    """The directory in `runs/a`, `runs/a@500` or `runs/a@500-0.3`, and the checkpoint; None without a checkpoint."""
    path, at, name = text.rpartition("@")
    checkpoint = None
    if at:
        with contextlib.suppress(ValueError):
            checkpoint = Checkpoint.parse(name)
    run_dir = Path(text if checkpoint is None else path)
    _ = open_run(run_dir).recipe
    return run_dir, checkpoint


def _open_checkpoint(
    run_dir: Path, checkpoint: Checkpoint | None, split: Literal["validation", "test"]
) -> ComparedCheckpoint:
    """The named checkpoint with its answers; without a name, as in `group_files.find_checkpoint`."""
    stage, asked = group_files.STAGES[split], open_run(run_dir).recipe.questions
    checkpoint = checkpoint or group_files.find_checkpoint(run_dir, stage)
    assert checkpoint is not None, "the split was found for all checkpoints"
    sets = [*asked.in_distribution, *asked.out_of_distribution, *asked.generic]
    keys = group_files.read_question_keys(run_dir, sets, split)
    answers = {}
    for path in sorted((run_dir / stage / checkpoint.name).glob("*.jsonl")):
        rows = storage.iter_records(Prediction, path)
        answers[path.stem] = {keys[row.question]: row for row in rows if row.index == 0}
    training = "" if checkpoint == BASE else group_files.training_digest(run_dir)
    is_trained = open_run(run_dir).recipe.has_teacher
    name = f"{run_dir.name} step {checkpoint.label}" if is_trained else run_dir.name
    return ComparedCheckpoint(name, answers, run_dir.resolve(), training)
