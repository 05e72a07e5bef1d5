"""The command line: parses arguments, imports the modules of the command, and prints results.

Exit codes: 0 success; 1 an error in potstill (traceback); 2 an error that the user can fix (one message);
130 interrupted. Heavy libraries are imported only when a command runs, so that `potstill --help` takes under 0.3 s.
"""

from __future__ import annotations

import os
import signal
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Optional

import typer

import potstill
from potstill import progress
from potstill.cli import answer_commands, init, push_commands, stage_commands, study
from potstill.cli.stage_commands import PrintsJson
from potstill.errors import UserError

app = typer.Typer(
    name="potstill",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="Distil the chains of thought of a large language model into a small one.",
    epilog="Example: potstill run recipes/gsm8k.yaml\n\n"
    "Exit codes: 0 success, 1 an error in potstill, 2 an error that you can fix, 130 interrupted (run the same command"
    " again to resume).",
)

RunArgument = Annotated[
    Path, typer.Argument(metavar="RUN", help="Directory of a run, such as runs/demo.", show_default=False)
]


class ExportFormat(StrEnum):
    messages = "messages"
    jsonl = "jsonl"
    preference = "preference"
    gguf = "gguf"
    ctranslate2 = "ctranslate2"
    lm_eval = "lm-eval"
    merged = "merged"
    adapter = "adapter"


class TrackerName(StrEnum):
    tensorboard = "tensorboard"
    wandb = "wandb"
    trackio = "trackio"


def _print_version(requested: bool) -> None:
    if requested:
        typer.echo(f"potstill {potstill.__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    pass


@app.command("run", epilog="Example: potstill run recipes/gsm8k.yaml --set train.steps=500")
def run_command(
    path: Annotated[
        Path,
        typer.Argument(metavar="RECIPE", help="Recipe file (YAML), or the directory of a run.", show_default=False),
    ],
    changes: stage_commands.RecipeChanges = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check the recipe and print what would be done, then exit.")
    ] = False,
    redo: stage_commands.RedoneStage = None,
    yes: stage_commands.Yes = False,
) -> None:
    """Run all stages of a recipe into runs/NAME, or resume them."""
    from potstill import process, runner, stages

    loaded, run_dir = stage_commands.open_run_or_recipe(path, changes or ())
    if dry_run:
        stage_commands.print_run_plan(loaded, run_dir, redo)
        return
    runner.run(loaded, run_dir, redo=redo, yes=yes or stage_commands.confirm_removal)
    if process.read_process_rank().is_main:  # only the main process prints results
        from potstill.cli import results

        only_evaluates = stages.recipe_stages(loaded) == stages.EVALUATION_STAGES
        (results.print_scores if only_evaluates else results.print_summary)(run_dir)


init.add_init_command(app)
study.add_study_command(app)


@app.command("demo", epilog="Example: potstill demo")
def demo_command() -> None:
    """Run the built-in demo: word problems and tiny models.

    The run directory is runs/demo; a CPU needs about five minutes.
    """
    # Before torch is loaded: tiny models gain nothing from threads, and one thread makes results reproducible.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    from potstill import demo
    from potstill.cli import results

    results.print_summary(demo.run_demo())


@app.command("data", epilog="Example: potstill data gsm8k svamp bbh")
def data_command(
    names: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Argument(metavar="NAME", help="Sets to fetch; without a name, all sets are listed.", show_default=False),
    ] = None,
    to: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(metavar="FOLDER", help="Data folder; POTSTILL_DATA if not given.", show_default=False),
    ] = None,
    replace: Annotated[bool, typer.Option("--replace", help="Replace files that have another content.")] = False,
) -> None:
    """Fetch the built-in sets, prompts and T5's tokenizer by name.

    Without a name, list all sets with their state, size and licence.
    """
    from potstill.cli import public_sets

    public_sets.run(names or (), to, replace)


@app.command("recipes", epilog="Example: potstill recipes flan-t5-base")
def recipes_command(
    names: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Argument(metavar="NAME", help="Recipes to copy; without a name, all are listed.", show_default=False),
    ] = None,
    to: Annotated[Path, typer.Option(metavar="FOLDER", help="Folder of the copies.")] = Path("recipes"),
) -> None:
    """Copy recipes that come with potstill.

    Without a name, list all of them. The files that a recipe names are copied, too.
    """
    from potstill.cli import recipe_files

    recipe_files.run(names or (), to)


@app.command("status", epilog="Example: potstill status runs/demo")
def status_command(run_dir: RunArgument, as_json: PrintsJson = False) -> None:
    """Show how far a run or a study is, and how to continue it.

    Reads only what is stored, also while the run works.
    """
    from potstill.cli import status

    status.print_status(run_dir, as_json=as_json)


@app.command("env", epilog="Example: potstill env")
def env_command() -> None:
    """Print versions and devices, for a bug report.

    No key, path or user name is printed.
    """
    from potstill.cli import env, tables

    tables.print_wrapped(env.describe_environment())


@app.command("check", epilog="Example: potstill check runs/demo")
def check_command(run_dir: RunArgument) -> None:
    """Verify the files of all finished stages against their manifests.

    Reads every file in full and lists the differences. Exit code 2 if there are any.
    """
    from potstill.cli import check

    if not check.check_run(run_dir):
        sys.exit(2)


@app.command("show", epilog="Example: potstill show runs/demo --chain steps/12#0")
def show_command(
    run_dir: RunArgument,
    chain: Annotated[str, typer.Option(metavar="KEY", help="A chain: QUESTION[[#SOURCE]#INDEX].")] = "",
    target: Annotated[str, typer.Option(metavar="KEY", help="The training target of a chain.")] = "",
    batch: Annotated[int, typer.Option(metavar="STEP", help="The prompts of a training step.", show_default=False)] = 0,
    prediction: Annotated[
        str, typer.Option(metavar="QUESTION", help="Every checkpoint's answer to a validation question.")
    ] = "",
    wrong: Annotated[
        bool, typer.Option("--wrong", help="The test questions that the chosen checkpoint did not answer right.")
    ] = False,
    as_json: PrintsJson = False,
) -> None:
    """Show a chain, target, training batch or answers of a run."""
    from potstill.cli import check, show, status

    check.check_file_sizes(run_dir)
    if chain:
        show.print_chain(run_dir, chain, as_json=as_json)
    elif target:
        show.print_target(run_dir, target, as_json=as_json)
    elif batch:
        show.print_batch(run_dir, batch, as_json=as_json)
    elif prediction:
        show.print_predictions(run_dir, prediction, as_json=as_json)
    elif wrong:
        show.print_wrong_answers(run_dir, as_json=as_json)
    else:
        status.print_overview(run_dir, as_json=as_json)


answer_commands.add_ask_command(app)


@app.command("export", epilog="Example: potstill export runs/demo --as gguf --to exported")
def export_command(
    run_dir: RunArgument,
    form: Annotated[
        ExportFormat,
        typer.Option(
            "--as",
            help="messages: kept chains as chat rows for other trainers. jsonl: kept chains as whole records. preference:"
            " right and wrong chains of one question as pairs for TRL. gguf: the student as a file for llama.cpp and"
            " Ollama. ctranslate2: the student for CTranslate2. lm-eval: the questions as tasks of"
            " lm-evaluation-harness. merged: a checkpoint as a whole model. adapter: its LoRA adapter for peft.",
        ),
    ],
    to: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(
            "--to",
            "--out",
            metavar="FOLDER",
            help="Output folder; messages and jsonl go to standard output.",
            show_default=False,
        ),
    ] = None,
    weights: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(
            metavar="KIND",
            help="Type of the weights. gguf: F32, F16, BF16 or Q8_0; by default, as the student. ctranslate2: float32"
            " (default) or int8. merged: float32, bfloat16 or float16; by default, as the base.",
            show_default=False,
        ),
    ] = None,
    questions: Annotated[
        int, typer.Option(min=1, help="Validation questions that compare answers, for gguf and ctranslate2.")
    ] = 40,
    pairs: Annotated[int, typer.Option(min=1, help="Maximum number of pairs per question, for preference.")] = 1,
    checkpoint: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(
            metavar="NAME",
            help="Checkpoint for merged and adapter, such as 500, or 500-0.3 for an interpolation; by default, the"
            " selected one.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Export chains, the student or the questions for other programs.

    The exported files are read back and compared with the run; the parity figures are printed.
    """
    from potstill.cli import check, export

    check.check_file_sizes(run_dir)
    to_output = form in (ExportFormat.messages, ExportFormat.jsonl)
    if to_output != (to is None):
        what = f"--to is {'not ' if to_output else ''}needed for {form.value}"
        hint = "messages and jsonl go to standard output; add --to FOLDER for all other formats"
        raise UserError(what, code="E-cli-export-out", where="--to", hint=hint)
    if to is None:
        for row in export.export_rows(run_dir, form.value):
            typer.echo(row, nl=False)  # bytes: UTF-8 on every system
        return
    for line in export.export_folder(run_dir, form.value, to, weights, questions, pairs, checkpoint):
        typer.echo(line)


push_commands.add_push_commands(app)


answer_commands.add_grade_command(app)


@app.command("compare", epilog="Example: potstill compare runs/a runs/b@500")
def compare_command(
    runs: Annotated[
        list[str],
        typer.Argument(
            metavar="RUN[@STEP]",
            help="Two or more runs, or checkpoints of runs. A study stands for its finished runs.",
            show_default=False,
        ),
    ],
    by: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(
            metavar="KEY,KEY",
            help="Recipe keys or sections whose values are the rows, such as student.model. All other keys"
            " must be equal or seeds.",
            show_default=False,
        ),
    ] = None,
    seeds: Annotated[
        bool,
        typer.Option("--seeds", help="One row for each recipe; each must have several seeds."),
    ] = False,
    out: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(
            metavar="FILE",
            help="Output file: a table (.csv, .md or .tex), or the questions that only one of two runs answers right"
            " (.jsonl).",
            show_default=False,
        ),
    ] = None,
    page: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(metavar="PAGE.html", help="Output file for a page about all of them.", show_default=False),
    ] = None,
    as_json: PrintsJson = False,
) -> None:
    """Compare runs on the same questions: two, or a table of many."""
    from potstill.cli import compare, compare_groups

    names, named = compare.list_runs(runs), seeds or by is not None
    is_table = out is not None and out.suffix in compare_groups.WRITERS
    if page is not None and not named:
        compare.write_page(names, page)
    if named or is_table or (len(names) > 2 and (page is None or out is not None or as_json)):
        page = page if named else None
        compare_groups.compare_groups(names, by, several_seeds=seeds, out=out, page=page, as_json=as_json)
    elif len(names) == 2:
        compare.compare_runs(names[0], names[1], out, as_json=as_json)


@app.command("track", epilog="Example: potstill track runs/demo --to tensorboard --follow")
def track_command(
    run_dir: RunArgument,
    to: Annotated[TrackerName, typer.Option(help="Tracker; it needs the extra of the same name.", show_default=False)],
    follow: Annotated[bool, typer.Option("--follow", help="Continue until the run has ended.")] = False,
    project: Annotated[str, typer.Option(metavar="NAME", help="Project in wandb and trackio.")] = "potstill",
) -> None:
    """Send a run's recipe and metrics to a tracker, each step once."""
    from potstill import tracking
    from potstill.run_reader import open_run

    recipe = open_run(run_dir).recipe
    points = tracking.track(run_dir, recipe, to.value, project=project, follow=follow)
    typer.echo(f"{points} points sent to {to.value}")


stage_commands.add_stage_commands(app)


class Interrupted(BaseException):
    """Raised for Ctrl-C. It is not a KeyboardInterrupt, because typer would exit with code 1."""


def _raise_interrupted(*_: object) -> None:
    raise Interrupted


def _print_error(error: UserError) -> None:
    """Print an error. Its lines are wrapped on a terminal only: elsewhere, found and hint stay one line each."""
    text = str(error)
    if sys.stderr.isatty():
        from potstill.cli import tables

        text = "\n".join(tables.wrap_line(line, tables.line_width()) for line in text.split("\n"))
    print(text, file=sys.stderr)


def main() -> None:
    signal.signal(signal.SIGINT, _raise_interrupted)
    progress.replace_unencodable()
    try:
        app()
    except UserError as error:
        _print_error(error)
        sys.exit(2)
    except Interrupted:
        print("interrupted; run the same command again to resume", file=sys.stderr)
        sys.exit(130)
