"""`potstill study`: makes all runs of a study file, or says what they are.

    potstill study studies/findings.yaml --dry-run
    potstill study studies/findings.yaml --jobs 2

Heavy libraries are imported only when a command runs.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Optional

import typer

from potstill.cli.stage_commands import RecipeChanges, parse_shard
from potstill.errors import UserError

if TYPE_CHECKING:
    from potstill.study import RunResult, Study


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
            help="Make only every N-th run, from the I-th; other processes may make the others.",
            show_default=False,
        ),
    ] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="Make the small version: the section `quick` applies.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the runs and what they share, then exit.")] = False,
    run: Annotated[str, typer.Option(metavar="NAME", help="Make only this run, in this process.")] = "",
    redo_outdated: Annotated[
        bool,
        typer.Option("--redo-outdated", help="Make stages again whose recipe has changed; paid chains are kept."),
    ] = False,
) -> None:
    """Make all runs of a grid of changes, or resume them.

    Runs share every stage that they can. The folder of the study is runs/NAME, and
    that of a run is runs/NAME/RUN.
    """
    from potstill import study

    plan = study.open_study(path, changes or (), quick=quick)
    if dry_run:
        for line in describe_study(plan):
            typer.echo(line)
        return
    if run:
        study.make_run(plan, plan.find(run), redo_outdated=redo_outdated)
        return
    part = parse_shard(shard, {})
    command = [sys.executable, "-m", "potstill", "study", str(path)]
    for change in changes or ():
        command += ["--set", change]
    command += ["--quick"] * quick + ["--redo-outdated"] * redo_outdated + ["--run"]
    results = study.make_runs(plan, command, jobs=jobs, shard=(part.number, part.count) if part else (1, 1))
    _refuse_failures(path, results)


def describe_study(study: Study) -> Iterator[str]:
    """The plan of a study: its experiments, its runs, and how often each stage is made."""
    from potstill.stages import recipe_stages
    from potstill.study import count_shared, is_finished

    runs = {run.name: run for run in study.runs}
    yield f"plan of {study.name} (nothing is written); folder: {study.folder}"
    for experiment in study.experiments:
        yield ""
        yield f"{experiment.name}: {experiment.title or 'one grid'}"
        for axis in experiment.axes:
            names = dict.fromkeys(runs[name].choices.get(axis, "") for name in experiment.runs)
            yield f"  {axis:<30} {', '.join(filter(None, names))}"
        yield f"  {'runs':<30} {len(experiment.runs)}"
    yield ""
    finished = sum(map(is_finished, study.runs))
    yield f"{len(study.runs)} different runs, of which {finished} are finished"
    stages = Counter(name for run in study.runs for name in recipe_stages(run.recipe))
    for name, made in count_shared(study).items():
        times = "once" if made == 1 else f"{made} times"
        yield f"  {name:<10} made {times} for {stages[name]} runs"


def _refuse_failures(path: Path, results: Sequence[RunResult]) -> None:
    """Raise UserError if a run has failed. All others are finished."""
    failed = [result for result in results if not result.ok]
    if not failed:
        return
    first = failed[0]
    what = f"{len(failed)} of {len(results)} runs failed; the others are finished"
    found = "; ".join(f"{result.name}: {result.message}" for result in failed[:5])
    hint = f"the messages are in {first.log}; the same command tries the failed runs again"
    raise UserError(what, code="E-study-failed", where=path, found=found, hint=hint)
