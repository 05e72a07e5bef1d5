"""The output of `potstill status`: the state of a run as a table of its stages, or of a study as a table of its runs, or as
one JSON object."""

from __future__ import annotations

import json
import shlex
from dataclasses import asdict
from pathlib import Path
from typing import Final

from rich.console import Console
from rich.table import Table
from rich.text import Text

from potstill import study_status
from potstill.cli.tables import numbers_table, plain_text, print_note, print_table, print_warnings
from potstill.run_reader import is_study, open_run
from potstill.run_status import State, read_status
from potstill.storage import ledger, manifest, parquet

COLOURS: Final[dict[State, str]] = {
    "done": "green",
    "running": "yellow",
    "unfinished": "yellow",
    "waiting": "dim",
    "broken": "red",
}


def print_status(run_dir: Path, *, as_json: bool = False) -> None:
    """Print the state of a run as a table of its stages, or as one JSON object; of a study, as a table of its runs."""
    if is_study(run_dir):
        _print_study(study_status.read_study_status(run_dir), as_json=as_json)
        return
    status = read_status(run_dir)
    if as_json:
        print(json.dumps(asdict(status), ensure_ascii=False))
        return
    table = Table(
        "stage", "state", "", title=plain_text(status.run_dir), title_justify="left", box=None, pad_edge=False
    )
    for stage in status.stages:
        table.add_row(stage.stage, Text(stage.state, COLOURS[stage.state]), plain_text(stage.text))
    print_table(table)
    if status.usage:
        limits = [f"{value:g} {name}" for name, value in status.budget.items() if value is not None]
        limit = f"; at most {' and '.join(limits)}" if limits else ""
        print_note(f"spent: {ledger.describe_usage(run_dir)}{limit}")
    for process in status.processes:
        print_note(f"working: {process}", "yellow")
    print_warnings(status.warnings)
    if status.resume is not None:
        verb = "when it has ended, continue with" if status.processes else "continue with"
        Console().print(plain_text(f"{verb}: {status.resume}"), soft_wrap=True)  # one line, to be copied


def _print_study(status: study_status.StudyStatus, *, as_json: bool) -> None:
    if as_json:
        print(json.dumps(asdict(status), ensure_ascii=False))
        return
    table = Table("run", "state", "", title=plain_text(status.folder), title_justify="left", box=None, pad_edge=False)
    for run in status.runs:
        text = run.text if run.log is None or run.state != "unfinished" else f"{run.text}; messages: {run.log}"
        table.add_row(plain_text(run.name), Text(run.state, COLOURS[run.state]), plain_text(text))
    print_table(table)
    done = sum(run.state == "done" for run in status.runs)
    print_note(f"finished: {done} of {len(status.runs)} runs")
    if status.resume is not None:
        working = any(run.state == "running" for run in status.runs)
        verb = "when it has ended, continue with" if working else "continue with"
        Console().print(plain_text(f"{verb}: {status.resume}"), soft_wrap=True)  # one line, to be copied


def print_overview(run_dir: Path, *, as_json: bool = False) -> None:
    """Print the state of the run, and the options that show its records."""
    print_status(run_dir, as_json=as_json)
    if not as_json:
        _print_sources(run_dir)
    first = None if as_json else next(parquet.read_stored_chains(run_dir / "sample"), None)
    if first is not None:
        key = shlex.quote(f"{first.question}#{first.index}")
        print("\nrecords:")
        for record in (f"--chain {key}", f"--target {key}", "--batch 1"):
            Console().print(plain_text(f"  potstill show {shlex.quote(str(run_dir))} {record}"), soft_wrap=True)


def _print_sources(run_dir: Path) -> None:
    """Print one line for each source of chains, if the run has several and has filtered their chains."""
    from potstill.report.collect import summarize_sources
    from potstill.report.run_files import RunFiles

    if manifest.read_finished(run_dir / "filter") is None:
        return
    sources = summarize_sources(RunFiles(run_dir, open_run(run_dir).recipe))
    if len(sources) < 2:
        return
    table = numbers_table("source", "chains", "right", "kept", "covers", "alone", "tokens", "cost", title="\nsources")
    for source in sources:
        money = "" if source.money is None else f"{source.money:.4f}"
        right, kept = source.grades.get("right", 0), source.kept
        numbers = (source.chains, right, kept, source.covered, source.covered_alone, source.tokens or "")
        table.add_row(plain_text(source.name), *map(str, numbers), money)
    print_table(table)
    print_note("covers: questions with a right chain; alone: those that no other source covers", "dim")
