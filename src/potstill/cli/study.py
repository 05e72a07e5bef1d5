"""`potstill study`: makes all runs of a study file, or says what they are.

    potstill study studies/findings.yaml --dry-run
    potstill study studies/findings.yaml --jobs 2

Heavy libraries are imported only when a command runs.
"""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Optional

import typer

from potstill.cli.shards import parse_shard
from potstill.cli.stage_commands import RecipeChanges, refuse_plan
from potstill.errors import UserError

if TYPE_CHECKING:
    from potstill.study import RunResult, Study, StudyProblem


def add_study_command(app: typer.Typer) -> None:
    """Add the command `study` to an application."""
    app.command("study", epilog="Example: potstill study studies/findings.yaml --jobs 2")(_study)


def _study(
    path: Annotated[Path, typer.Argument(metavar="STUDY", help="Study file (YAML).", show_default=False)],
    changes: RecipeChanges = None,
    jobs: Annotated[int, typer.Option(metavar="N", min=1, help="Number of runs at a time.")] = 1,
    shard: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(
            metavar="I/N",
            help="Make only every N-th run, from the I-th; other processes may make the others. `auto`: as for"
            " `potstill sample`.",
            show_default=False,
        ),
    ] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="Make the small version: the section `quick` applies.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the runs and what they share, then exit.")] = False,
    only_results: Annotated[
        bool, typer.Option("--results", help="Write tables and page of the runs that are finished, then exit.")
    ] = False,
    run: Annotated[str, typer.Option(metavar="NAME", help="Make only this run, in this process.")] = "",
    redo_outdated: Annotated[
        bool,
        typer.Option("--redo-outdated", help="Make stages again whose recipe has changed; paid chains are kept."),
    ] = False,
    keep_going: Annotated[
        bool, typer.Option("--keep-going", help="Make the other runs, even if some are known to be impossible.")
    ] = False,
) -> None:
    """Make all runs of a grid of changes, or resume them.

    Runs share every stage that they can. The folder of the study is runs/NAME, and
    that of a run is runs/NAME/RUN.
    """
    from potstill import study
    from potstill.cli.tables import print_wrapped
    from potstill.study.plan import describe_problems, describe_study

    part = parse_shard(shard, os.environ if shard else {})
    plan = study.open_study(path, changes or (), quick=quick)
    if run:
        _refuse_options(
            *(jobs > 1 and "--jobs", shard and "--shard", dry_run and "--dry-run", keep_going and "--keep-going"),
            only_results and "--results",
        )
        study.make_run(plan, plan.find(run), redo_outdated=redo_outdated)
        return
    study.check_folder(plan)
    if only_results:
        _print_results(plan)
        return
    problems = study.find_problems(plan, redo_outdated=redo_outdated)
    if dry_run:
        print_wrapped(describe_study(plan, problems))
        _refuse_problems(plan, problems)
        return
    if not keep_going and any(not problem.later for problem in problems):
        print_wrapped(describe_problems(plan, problems))
        _refuse_problems(plan, problems)
    words = [*plan.words, *(["--redo-outdated"] if redo_outdated else [])]
    command = [sys.executable, "-m", "potstill", *words, "--run"]
    results = study.make_runs(plan, command, jobs=jobs, shard=(part.number, part.count) if part else (1, 1))
    if part is not None and not all(map(study.is_finished, plan.runs)):
        rest = shlex.join(["potstill", *words])
        typer.echo(f"when all {part.count} shards are done, write the tables with: {rest}", err=True)
    else:
        _print_results(plan)
    _refuse_failures(path, results)


def _refuse_options(*given: str | bool | None) -> None:
    """Raise UserError if options were given that do not exist for one run."""
    if named := [option for option in given if option]:
        what, hint = "--run makes one run in this process", "remove --run, or the other options"
        raise UserError(what, code="E-cli-study-run", where="--run", found=", ".join(map(str, named)), hint=hint)


def _refuse_problems(study: Study, problems: Sequence[StudyProblem]) -> None:
    """Raise UserError if runs of a study would stop before they make anything."""
    if codes := [problem.fault.code for problem in problems if not problem.later]:
        hint = "each problem above has its own hint; --keep-going makes the runs that have none"
        raise refuse_plan(study.path, codes, hint)


def _print_results(study: Study) -> None:
    """Print the table of every experiment, and write the tables and the page."""
    from potstill.study import lock_files

    with lock_files(study):
        _write_results(study)


def _write_results(study: Study) -> None:
    from potstill.cli.compare_groups import print_tables
    from potstill.cli.tables import print_note
    from potstill.study import find_finished, read_tables, remove_stale_files, write_page, write_table

    written, finished = [], find_finished(study)
    print_note(f"finished: {len(finished)} of {len(study.runs)} runs")
    for table in read_tables(study, finished):
        print_note(f"\n{table.experiment.name}: {table.experiment.title or study.title}".rstrip(": "))
        if table.fault:
            print_note(f"no table: {table.fault}")
            continue
        print_tables(table.groups, table.scores, "test")
        if table.missing:
            print_note(f"not in the table, because they are not finished: {', '.join(table.missing)}")
        paths = write_table(study, table)
        print_note(f"tables: {', '.join(map(str, paths))}")
        written += paths
    page, *figures = write_page(study, finished)
    remove_stale_files(study, {*written, *figures})
    typer.echo(f"page: {page}")


def _refuse_failures(path: Path, results: Sequence[RunResult]) -> None:
    """Raise UserError if a run has failed. All others are finished."""
    failed = [result for result in results if not result.ok]
    if not failed:
        return
    first = failed[0]
    what = f"{len(failed)} of {len(results)} runs failed, finished: {len(results) - len(failed)}"
    by_message: dict[str, list[str]] = {}
    for result in failed:
        by_message.setdefault(result.message, []).append(result.name)
    found = "; ".join(f"{', '.join(names)}: {message}" for message, names in list(by_message.items())[:5])
    outdated = any(result.code == "E-run-stage-differs" for result in failed)
    hint = "stages that were made from another recipe need --redo-outdated, or another name of the study"
    hint = f"{hint if outdated else first.hint or 'correct what failed'}; the messages are in {first.log}. The same command"
    hint += " tries the failed runs again"
    raise UserError(what, code="E-study-failed", where=path, found=found, hint=hint)
