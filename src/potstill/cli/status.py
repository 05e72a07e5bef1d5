"""The output of `status`, `check`, `run` and `demo` about a whole run: its stages, damaged files and results."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from potstill import progress, runner
from potstill.errors import UserError, escape_hidden
from potstill.evaluation import checkpoint as checkpoints
from potstill.evaluation import cut_thoughts
from potstill.records import BASE
from potstill.report import collect, summary
from potstill.report.model import SET_GROUPS
from potstill.report.summary import ScoreCell, SummaryRow, format_bits, format_points, percent_number
from potstill.run_reader import open_run
from potstill.stages import ALL_STAGES, STAGES, recipe_stages
from potstill.storage import ledger, manifest, parquet, segments
from potstill.storage.manifest import DamagedFile, Manifest


def plain_text(value: object, style: str = "") -> Text:
    """A text for the terminal. Markup is not interpreted, and control characters are escaped."""
    return Text(escape_hidden(str(value)), style)


def _new_table(*columns: str, title: object) -> Table:
    """A table in which all columns except the first contain numbers."""
    table = Table(*columns[:1], title=plain_text(title), title_justify="left", box=None, pad_edge=False)
    for column in columns[1:]:
        table.add_column(column, justify="right", no_wrap=True)
    return table


# Stages


def print_status(run_dir: Path) -> None:
    """Print a table of the stages, with their states and counts."""
    names = recipe_stages(open_run(run_dir).recipe)
    columns = ("stage", "state", "counts")
    table = Table(*columns, title=plain_text(run_dir), title_justify="left", box=None, pad_edge=False)
    for stage in names if len(names) > len(STAGES) else STAGES:
        table.add_row(stage, *_stage_state(run_dir / stage))
    Console().print(table)
    _print_warnings(run_dir)


def _print_warnings(run_dir: Path) -> None:
    """Print warnings that a reader must know before the scores."""
    for warning in cut_thoughts.read_warnings(run_dir):
        Console().print(plain_text(warning, "yellow"), soft_wrap=True)


def _stage_state(folder: Path) -> tuple[Text, Text]:
    """The state of a stage in one word, and its counts or its error."""
    try:
        finished, begun = manifest.read_finished(folder), manifest.read_begun(folder)
    except UserError as error:
        return Text("broken", "red"), plain_text(error)
    if finished:
        return Text("done", "green"), plain_text(json.dumps(finished.counts, ensure_ascii=False)[1:-1])
    if begun is None:
        return Text("-", "dim"), Text()
    counts = ""
    if folder.name == "sample":
        counts = f'"chains": {len(segments.stored_keys(segments.segment_paths(folder)))}'
        if any(ledger.ledger_paths(folder.parent)):
            counts += f", {ledger.describe_usage(folder.parent)}"
    return Text("begun", "yellow"), plain_text(counts)


def print_overview(run_dir: Path) -> None:
    """Print the state of the run, and the options that show its records."""
    print_status(run_dir)
    first = next(parquet.read_stored_chains(run_dir / "sample"), None)
    if first is not None:
        key = f"{first.question}#{first.index}"
        Console().print(plain_text(f"\nRecords: potstill show {run_dir} --chain {key}, --target {key}, --batch 1"))


# Files


def check_file_sizes(run_dir: Path) -> None:
    """Raise UserError if a file of a finished stage is missing, or does not have the size in the manifest."""
    for path in sorted(run_dir.glob(f"*/{manifest.MANIFEST_FILE}")):
        manifest.read_finished(path.parent)


def check_run(run_dir: Path) -> bool:
    """Read every file of a run's finished stages, and print every difference from the manifests.

    Returns whether all files are unchanged. Raises UserError if the directory is not a run.
    """
    damaged = []
    try:
        run = open_run(run_dir)
        _ = run.recipe
    except UserError as error:
        if error.code == "E-run-not-a-run":
            raise
        damaged.append(DamagedFile(run_dir / "recipe.yaml", _describe_error(error)))
    finished: list[tuple[Path, Manifest]] = []
    for folder in _stage_dirs(run_dir):
        try:
            manifest.read_begun(folder)
            if (folder / manifest.MANIFEST_FILE).exists():
                finished.append((folder, manifest.read_manifest(folder / manifest.MANIFEST_FILE)))
            elif folder.parent == run_dir:
                typer.echo(f"{folder.name}: not finished, nothing to check yet")
        except UserError as error:
            damaged.append(DamagedFile(Path(error.where), _describe_error(error)))
    by_stage = {done.identity.stage: done for _, done in finished}
    for stage, done in by_stage.items():
        for source, digest in done.identity.inputs.items():
            if source in by_stage and "/" not in stage and by_stage[source].digest != digest:
                path = run_dir / stage / manifest.MANIFEST_FILE
                damaged.append(DamagedFile(path, f"was made from other files of {source}"))
    total = sum(manifest.unverified_bytes(folder.parent, done.outputs) for folder, done in finished)
    with progress.bar("check", total >> 20, "MiB") if total > runner.SLOW_VERIFY_BYTES else nullcontext() as advance:
        for folder, done in finished:
            counter = manifest.mebibyte_counter(advance)
            damaged += manifest.find_damaged_files(folder.parent, done.outputs, counter)
    differences = list(dict.fromkeys(damaged))
    for difference in differences:
        typer.echo(escape_hidden(f"{difference.path}: {difference.problem}"))
    files = {folder.parent / name for folder, done in finished for name in done.outputs}
    stages = sum(folder.parent == run_dir for folder, _ in finished)
    number = len(differences)
    result = f"{number or 'no'} difference{'s' if number > 1 else ''}"
    typer.echo(f"{len(files)} files of {stages} finished stages: {result}")
    return not differences


def _stage_dirs(run_dir: Path) -> Iterator[Path]:
    """The directories of all stages, and of their checkpoints with a manifest."""
    for stage in ALL_STAGES:
        for folder in (run_dir / stage, *sorted((run_dir / stage).glob("[0-9]*"))):
            if any((folder / name).exists() for name in (manifest.BEGUN_FILE, manifest.MANIFEST_FILE)):
                yield folder


def _describe_error(error: UserError) -> str:
    return error.what + (f" ({error.found})" if error.found else "")


# Results


def print_summary(run_dir: Path) -> None:
    """Print a table of the base, the specialized student and the controls on every test set, with paired intervals.

    The path of the report page follows the table.
    """
    data = collect.collect_report(run_dir, open_run(run_dir).recipe)
    title = f"{data.name}: right answers on test, in percent"
    table = _new_table("", "right", "against base", "95 % interval", title=title)
    students = summary.summary_rows(data)
    for group in SET_GROUPS:
        sets = [name for name in (students[0].sets if students else ()) if data.groups[name] == group]
        if sets:
            table.add_row(Text(group, "bold"))
        for name in sets:
            _add_students(table, name, [(row, row.sets[name]) for row in students])
        if len(sets) > 1:
            _add_students(table, f"mean of {len(sets)} sets", [(row, row.groups[group]) for row in students])
    console = Console()
    console.print(table)
    formats = dict.fromkeys((row.chosen.format, row.chosen.decoding) for row in data.comparisons)
    if others := [" ".join(pair) for pair in formats if pair != summary.main_format(data)]:
        console.print(plain_text(f"also evaluated (see the page): {', '.join(others)}", "dim"))
    for row in data.texts:
        change = f"{format_bits(row.difference.value, signed=True)}"
        if len(row.base.bytes) > 1:
            change += (
                f" ({format_bits(row.difference.low, signed=True)} to {format_bits(row.difference.high, signed=True)})"
            )
        text = f"bits per byte of {row.base.name}: {format_bits(row.base.bits_per_byte)} before,"
        console.print(plain_text(f"{text} {format_bits(row.chosen.bits_per_byte)} after, {change}"), soft_wrap=True)
    assert data.choice is not None, "the report comes after select"
    console.print(f"chosen: step {data.choice.checkpoint.label} ({data.choice.rule})", style="dim")
    note = "intervals are over the questions of one seed; they do not include the variation between seeds"
    console.print(note, style="dim", soft_wrap=True)
    _print_warnings(run_dir)
    console.print(plain_text(f"page: {run_dir / 'report' / 'index.html'}"), soft_wrap=True)


def _add_students(table: Table, name: str, cells: Sequence[tuple[SummaryRow, ScoreCell]]) -> None:
    """Add one row per student for a set, or for the mean of several sets."""
    table.add_row(plain_text(f"  {name}, {cells[0][1].n} questions"))
    for row, cell in cells:
        title = plain_text(f"    {row.title}", "bold" if row.name == "specialized" else "")
        texts, style = ("", ""), ""
        if change := cell.difference:
            style = "green" if change.low > 0 else "red" if change.high < 0 else ""
            texts = (format_points(change.value), f"{format_points(change.low)} to {format_points(change.high)}")
        table.add_row(title, percent_number(cell.accuracy.value), *(Text(text, style) for text in texts))


def print_scores(run_dir: Path) -> None:
    """Print the scores of a run that only evaluates, in percent, by set and format; and the path of the answers."""
    columns = ("set", "n", "right", "95 % interval", "wrong", "no answer", "truncated")
    table = _new_table(*columns, title=f"{run_dir.name}: answers on test, in percent")
    heading = None
    for score in checkpoints.read_scores(run_dir / "test", BASE):
        if (score.format, score.decoding) != heading:
            heading = score.format, score.decoding
            table.add_row(Text(" ".join(heading), "bold"))
        wrong = score.n - score.right - score.no_answer - score.truncated
        shares = [percent_number(count / score.n) for count in (wrong, score.no_answer, score.truncated)]
        if score.repeated:
            shares[-1] += f" ({percent_number(score.repeated / score.n)} repeating)"
        table.add_row(f"  {score.set}", str(score.n), *_format_accuracy(score.accuracy, score.low, score.high), *shares)
        if score.macro is not None:  # a set of several tasks: both means, with intervals over tasks
            assert score.tasks_low is not None and score.tasks_high is not None
            assert score.macro_low is not None and score.macro_high is not None
            micro = _format_accuracy(score.accuracy, score.tasks_low, score.tasks_high)
            macro = _format_accuracy(score.macro, score.macro_low, score.macro_high)
            table.add_row("    over tasks", "", *micro, "", "", "")
            table.add_row("    mean over tasks", "", *macro, "", "", "")
    console = Console()
    console.print(table)
    _print_warnings(run_dir)
    for row in checkpoints.read_text_scores(run_dir / "test", BASE):
        console.print(plain_text(f"bits per byte of {row.name}: {format_bits(row.bits_per_byte)}"), soft_wrap=True)
    console.print(plain_text(f"answers: {run_dir / 'test' / '0'}"), soft_wrap=True)


def _format_accuracy(value: float, low: float, high: float) -> tuple[str, str]:
    return percent_number(value), f"{percent_number(low)} to {percent_number(high)}"
