"""One command per stage, which runs all unfinished stages up to that stage; and the options of `potstill sample`.

    potstill evaluate runs/demo
    potstill evaluate runs/demo --shard 2/8

Heavy libraries are imported only when a command runs.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final, Optional

import typer

from potstill import stages
from potstill.cli.shards import parse_shard
from potstill.errors import UserError, escape_hidden

if TYPE_CHECKING:
    from potstill.recipe import Recipe
    from potstill.storage.segments import Shard

RunOrRecipe = Annotated[
    Path,
    typer.Argument(metavar="RUN", help="Directory of a run, such as runs/demo, or a recipe file.", show_default=False),
]


def _complete_key(incomplete: str) -> list[str]:
    """The recipe keys that begin with what the user has typed, for shell completion."""
    from potstill.recipe import Recipe
    from potstill.recipe.load import ANY_NAME, known_keys

    keys = (".".join(key) for key in known_keys(Recipe) if ANY_NAME not in key)
    return [f"{key}=" for key in keys if key.startswith(incomplete)]


def _complete_stage(incomplete: str) -> list[str]:
    return [stage for stage in stages.ALL_STAGES if stage.startswith(incomplete)]


RecipeChanges = Annotated[
    Optional[list[str]],  # noqa: UP045 - typer does not read `list[str] | None`
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Override a recipe key; repeatable.",
        show_default=False,
        autocompletion=_complete_key,
    ),
]
PrintsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of tables.")]
RedoneStage = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option(
        "--redo",
        metavar="STAGE",
        help="Delete this stage and all later ones, then run them.",
        show_default=False,
        autocompletion=_complete_stage,
    ),
]
Yes = Annotated[bool, typer.Option("--yes", help="With --redo: delete chains of a paid teacher without asking.")]
ShardOption = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option(
        "--shard",
        metavar="I/N",
        help="Make only shard I of N (from 1); other processes may make the others, and the last one merges all. `auto`:"
        " the rank of torchrun or srun, the task of a SLURM array, or the node of SkyPilot. `auto/N`: the index of a"
        " Kubernetes Job with N completions.",
        show_default=False,
    ),
]


def print_run_plan(recipe: Recipe, run_dir: Path, redo: str | None) -> None:
    """Print the plan of a run. Raises UserError if the run would stop before it makes anything."""
    from potstill.cli.tables import print_wrapped
    from potstill.dry_run import plan_run

    plan = plan_run(recipe, run_dir, redo)
    print_wrapped(plan.text.split("\n"))
    if plan.faults:
        raise refuse_plan(recipe.name, [fault.code for fault in plan.faults])
    if not plan.checked:
        sys.exit(1)


def refuse_plan(name: object, codes: Sequence[str], hint: str = "each problem above has its own hint") -> UserError:
    """The error at the end of a plan with problems. codes: the codes of the problems that the plan lists"""
    what = "a run would stop before it makes anything"
    found = ", ".join(
        f"{codes.count(code)} x {code}" if codes.count(code) > 1 else code for code in dict.fromkeys(codes)
    )
    return UserError(what, code="E-plan-problems", where=name, found=found, hint=hint)


def confirm_removal(lost: str) -> bool:
    """Ask the user for confirmation. Without a terminal, and under a launcher, returns False."""
    from potstill import process

    if not (sys.stdin.isatty() and sys.stderr.isatty()) or process.read_process_rank().launched:
        return False
    return typer.confirm(f"{escape_hidden(lost)}\nDelete them?", err=True)


# The stages with the option `--shard` (`Stage.shared`, whose modules are not imported here).
SHARDED: Final = ("sample", "filter", "align", "evaluate", "test")


def add_stage_commands(app: typer.Typer) -> None:
    """Add the commands of the stages to an application."""
    for stage, entry in stages.TABLE.items():
        is_shared = stage in SHARDED
        command = _sample if stage == "sample" else (_sharded_command if is_shared else _stage_command)(stage)
        text = f"{entry.summary}\n\nEarlier stages that are not finished run first."
        example = f"potstill {stage} runs/demo" + (" --shard 1/8" if is_shared else "")
        app.command(stage, help=text, epilog=f"Example: {example}")(command)


def _stage_command(stage: str) -> Callable[..., None]:
    def command(path: RunOrRecipe, changes: RecipeChanges = None, redo: RedoneStage = None, yes: Yes = False) -> None:
        from potstill import runner

        recipe, run_dir = open_run_or_recipe(path, changes or ())
        runner.run(recipe, run_dir, until=stage, redo=redo, yes=yes or confirm_removal)

    return command


def _sharded_command(stage: str) -> Callable[..., None]:
    def command(
        path: RunOrRecipe,
        changes: RecipeChanges = None,
        shard: ShardOption = None,
        redo: RedoneStage = None,
        yes: Yes = False,
    ) -> None:
        part = None if shard is None else parse_shard(shard, os.environ)
        _run_stage(stage, part, path, changes, redo, yes=yes)

    return command


def _run_stage(
    stage: str, part: Shard | None, path: Path, changes: Sequence[str] | None, redo: str | None, *, yes: bool
) -> None:
    """Run all stages up to a stage, or one shard of the stage."""
    from potstill import runner

    recipe, run_dir = open_run_or_recipe(path, changes or ())
    if part is None:
        runner.run(recipe, run_dir, until=stage, redo=redo, yes=yes or confirm_removal)
        return
    if redo is not None:
        raise _shared_redo_error(redo)
    runner.run_shard(recipe, part, stage, run_dir=run_dir)


def _shared_redo_error(redo: str) -> UserError:
    what, hint = (
        "--redo is for one process that makes the whole stage",
        "remove --redo, or the options of shards and files",
    )
    return UserError(what, code="E-cli-redo-shared", where="--redo", found=redo, hint=hint)


def _sample(
    path: RunOrRecipe,
    changes: RecipeChanges = None,
    shard: ShardOption = None,
    batch_out: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(
            metavar="FOLDER",
            help="Send nothing: write the missing requests into a new folder, as files for a batch service"
            " (OpenAI's Batch API, vLLM's run-batch).",
            show_default=False,
        ),
    ] = None,
    batch_in: Annotated[
        Optional[list[Path]],  # noqa: UP045
        typer.Option(
            metavar="FILE",
            help="Read the results of batch requests: a file, or a folder of files; repeatable. When no chain is"
            " missing, the stage is finished.",
            show_default=False,
        ),
    ] = None,
    redo: RedoneStage = None,
    yes: Yes = False,
) -> None:
    part = parse_shard(shard, os.environ)
    if batch_out is None and not batch_in:
        _run_stage("sample", part, path, changes, redo, yes=yes)
        return
    if redo is not None:
        raise _shared_redo_error(redo)
    from potstill import runner

    recipe, run_dir = open_run_or_recipe(path, changes or ())
    _check_batch_options(recipe, part)
    runner.run_batch(recipe, _list_batch_results(batch_in or ()), batch_out, run_dir=run_dir)


def open_run_or_recipe(path: Path, changes: Sequence[str] = ()) -> tuple[Recipe, Path]:
    """The recipe and the directory of a run. path: the directory of the run, or its recipe file; changes: `--set`."""
    from potstill import object_store, runner
    from potstill.recipe import load_recipe
    from potstill.run_reader import open_run

    object_store.refuse_run_url(path)
    if path.is_dir():
        return load_recipe(open_run(path).run_dir / "recipe.yaml", changes), path
    recipe = load_recipe(path, changes)
    return recipe, runner.default_run_dir(recipe)


def _check_batch_options(recipe: Recipe, shard: Shard | None) -> None:
    """Raises UserError if the run cannot use batch files."""
    from potstill import teachers

    if recipe.teachers is not None:
        what, found = "batch files are for recipes with one teacher", f"teachers: {', '.join(recipe.teachers)}"
        hint = "sample the paid teacher in a run of its own, then write teachers.NAME: {kind: replay, chains: FILE}"
        raise UserError(what, code="E-cli-batch-teachers", where="teachers", found=found, hint=hint)
    teacher = teachers.from_recipe(recipe)
    if not (teacher.metered and teacher.generates):
        what, found = "this teacher is not behind a server", recipe.teacher.kind
        hint = "batch files need a teacher of the kind openai"
        raise UserError(what, code="E-cli-batch-teacher", where="teacher.kind", found=found, hint=hint)
    if shard is not None:
        what, hint = "batch files cannot be split into shards", "remove --shard, and do not use torchrun or srun"
        raise UserError(what, code="E-cli-batch-shard", where="--shard", found=shard, hint=hint)


def _list_batch_results(paths: Sequence[Path]) -> list[Path]:
    """The given files, and the *.jsonl files of the given folders in the order of their names.

    Raises UserError for a folder without *.jsonl files.
    """
    files = []
    for path in paths:
        inside = sorted(path.glob("*.jsonl")) if path.is_dir() else [path]
        if not inside:
            found, hint = "a folder without *.jsonl", "name the files"
            raise UserError("no batch results", code="E-cli-batch-empty", where=path, found=found, hint=hint)
        files += inside
    return files
