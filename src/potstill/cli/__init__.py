"""The command line. It imports nothing heavy before a command is chosen; the work is done in the rooms below.

Exit codes: 0 done; 1 a fault of potstill (traceback); 2 something the user has to mend (one message); 130 interrupted.
"""

from __future__ import annotations

import os
import signal
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Optional

import typer

from potstill.cli import stage_commands, terminal
from potstill.errors import UserError

app = typer.Typer(
    name="potstill",
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="Distil the reasoning of a large language model into a small one, and measure what it cost.",
    epilog="Exit codes: 0 done, 1 a fault of potstill, 2 something to mend, 130 interrupted (run the command again).",
)

RunArgument = Annotated[
    Path, typer.Argument(metavar="RUN", help="A run's folder, such as runs/demo.", show_default=False)
]


class ExportFormat(StrEnum):
    messages = "messages"
    jsonl = "jsonl"
    lm_eval = "lm-eval"


class TrackerName(StrEnum):
    tensorboard = "tensorboard"
    wandb = "wandb"
    trackio = "trackio"


@app.command("run")
def run_command(
    path: Annotated[Path, typer.Argument(metavar="RECIPE", help="A recipe (YAML).", show_default=False)],
    changes: Annotated[
        Optional[list[str]],  # noqa: UP045 - typer reads this form
        typer.Option(
            "--set", metavar="KEY=VALUE", help="Change a key of the recipe; may be given again.", show_default=False
        ),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Resolve everything, print the plan, do nothing.")] = False,
    redo: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(
            metavar="STAGE", help="Remove this stage and all later ones, then make them again.", show_default=False
        ),
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", help="With --redo: chains of a paid teacher may be removed.")] = False,
) -> None:
    """Run a recipe: all nine stages into runs/NAME, going on where an earlier run stopped."""
    from potstill import process, runner, stages
    from potstill.recipe import load_recipe

    chosen = load_recipe(path, changes or ())
    if dry_run:
        from potstill.dry_run import describe_run

        typer.echo(describe_run(chosen))
        return
    folder = runner.run(chosen, redo=redo, yes=yes or _confirm_removal)
    if not process.read_process_rank().is_main:
        return  # it helped the first one, which now evaluates
    from potstill.cli import show

    if stages.recipe_stages(chosen) == stages.EVALUATION_STAGES:
        show.print_scores(folder)
    else:
        show.print_summary(folder)


def _confirm_removal(lost: str) -> bool:
    """Ask a person at a terminal; a script has nobody to answer."""
    from potstill import process
    from potstill.errors import escape_hidden

    if not (sys.stdin.isatty() and sys.stderr.isatty()) or process.read_process_rank().launched:
        return False
    return typer.confirm(f"{escape_hidden(lost)}\nRemove them?", err=True)


@app.command()
def demo() -> None:
    """The embedded main job: a small world, a small teacher and a small student, into runs/demo."""
    # Before torch is loaded: its models are so small that threads only wait for each other, and on one thread the same
    # seed gives the same bytes.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    from potstill import demo
    from potstill.cli import show

    show.print_summary(demo.run_demo())


@app.command()
def status(folder: RunArgument) -> None:
    """What a run has finished, what it has begun, and what it counted."""
    from potstill.cli import show

    show.print_status(folder)


@app.command("check")
def check_command(folder: RunArgument) -> None:
    """Read every file that a run's finished stages made, and list what has changed since (exit code 2 if anything)."""
    from potstill.cli import check

    if not check.check_run(folder):
        sys.exit(2)


@app.command("show")
def show_command(
    folder: RunArgument,
    chain: Annotated[str, typer.Option(metavar="KEY", help="A chain: QUESTION or QUESTION#INDEX.")] = "",
    target: Annotated[str, typer.Option(metavar="KEY", help="A chain as the student is taught it.")] = "",
    batch: Annotated[int, typer.Option(metavar="STEP", help="The groups of a training step.", show_default=False)] = 0,
    prediction: Annotated[str, typer.Option(metavar="QUESTION", help="What each step answered to a question.")] = "",
) -> None:
    """Look at the records of a run: a chain, a target, a batch, a prediction."""
    from potstill.cli import run_folder, show

    run_folder.check_file_sizes(folder)
    if chain:
        show.print_chain(folder, chain)
    elif target:
        show.print_target(folder, target)
    elif batch:
        show.print_batch(folder, batch)
    elif prediction:
        show.print_predictions(folder, prediction)
    else:
        show.print_overview(folder)


@app.command()
def export(
    folder: RunArgument,
    form: Annotated[
        ExportFormat,
        typer.Option("--as", help="Chat rows for other trainers, whole chain records, or tasks of other evaluations."),
    ],
    out: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(metavar="FOLDER", help="Where the files of lm-eval go.", show_default=False),
    ] = None,
) -> None:
    """Write the kept chains of a run to standard output, one JSON object a line; or its questions as tasks."""
    from potstill.cli import lm_eval, run_folder, show

    run_folder.check_file_sizes(folder)
    if (form is ExportFormat.lm_eval) != (out is not None):
        raise UserError("lm-eval writes a folder, the other forms to standard output", where="--out", hint="see --help")
    if out is not None:
        lm_eval.export_tasks(folder, out)
        return
    for row in show.export_rows(folder, form.value):
        typer.echo(row, nl=False)  # bytes: UTF-8 wherever it goes


@app.command()
def grade(
    path: Annotated[Path, typer.Argument(metavar="FILE", help="Rows with `text`, `gold`, optional `task`, `stop`.")],
    out: Annotated[Path, typer.Option(metavar="GRADED.jsonl", help="Where the graded rows go.", show_default=False)],
    task: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(help="gsm8k, bbh/navigate, number, ..., for rows that name none.", show_default=False),
    ] = None,
) -> None:
    """Grade answers: each line comes back with `verdict` and `found`, in the same order.

    Samples that lm-evaluation-harness logged are read as they are.
    """
    from potstill.cli import grade_rows

    grade_rows.grade_file(path, out, task)


@app.command("compare")
def compare_command(
    first: Annotated[str, typer.Argument(metavar="RUN[@STEP]", help="A run, or one step of it.", show_default=False)],
    second: Annotated[
        str, typer.Argument(metavar="RUN[@STEP]", help="Another run, or another step.", show_default=False)
    ],
    out: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(metavar="CHANGED.jsonl", help="Where answers go of which one is right.", show_default=False),
    ] = None,
) -> None:
    """Compare two runs or steps on the questions that both answered: paired intervals and tests."""
    from potstill.cli import compare

    compare.compare_runs(first, second, out)


@app.command()
def track(
    folder: RunArgument,
    to: Annotated[
        TrackerName, typer.Option(help="What shows it; each is an extra of its own name.", show_default=False)
    ],
    follow: Annotated[bool, typer.Option("--follow", help="Go on until the run's training is finished.")] = False,
    project: Annotated[str, typer.Option(metavar="NAME", help="Where wandb and trackio show it.")] = "potstill",
) -> None:
    """Show a run's metrics in a tracker: brought from its files, each step once."""
    from potstill import tracking
    from potstill.cli.run_folder import read_run_recipe

    name = read_run_recipe(folder).name
    brought = tracking.track(folder, name, to.value, project=project, follow=follow)
    typer.echo(f"{brought} points brought to {to.value}")


stage_commands.add_stage_commands(app)


class Interrupted(BaseException):
    """Ctrl-C. Not a KeyboardInterrupt, which the argument parser would turn into exit code 1."""


def _raise_interrupted(*_: object) -> None:
    raise Interrupted


def main() -> None:
    signal.signal(signal.SIGINT, _raise_interrupted)
    terminal.replace_unencodable()
    try:
        app()
    except UserError as fault:
        print(fault, file=sys.stderr)
        sys.exit(2)
    except Interrupted:
        print("interrupted; run the same command again to go on", file=sys.stderr)
        sys.exit(130)
