"""One command per stage, which runs all stages up to it that are not finished.

Nothing heavy is imported before a command runs.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Optional

import typer

from potstill import stages

RunOrRecipe = Annotated[
    Path,
    typer.Argument(metavar="RUN", help="Directory of a run, such as runs/demo, or a recipe file.", show_default=False),
]


def add_stage_commands(app: typer.Typer) -> None:
    """Adds the commands to an application."""
    for stage, entry in stages.TABLE.items():
        add = _add_sample if stage == "sample" else _add_stage
        add(app, stage, f"{entry.summary}\n\nEarlier stages that are not finished run first.")


def _add_stage(app: typer.Typer, stage: str, help: str) -> None:
    def command(path: RunOrRecipe) -> None:
        from potstill import runner
        from potstill.cli.run_folder import open_run_or_recipe

        runner.run(*open_run_or_recipe(path), until=stage)

    app.command(stage, help=help, epilog=f"Example: potstill {stage} runs/demo")(command)


def _add_sample(app: typer.Typer, stage: str, help: str) -> None:
    def command(
        path: RunOrRecipe,
        shard: Annotated[
            Optional[str],  # noqa: UP045
            typer.Option(
                metavar="I/N",
                help="Sample only part I of N, counted from 1; several processes may each sample one. `auto`: the rank"
                " of torchrun or srun, or the task of a SLURM array. Without this option: the rank of torchrun or"
                " srun, else the whole run, which also merges the finished parts.",
                show_default=False,
            ),
        ] = None,
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
                help="Read the results of such requests: a file, or a folder of files; repeatable. When no chain is"
                " missing, the stage is finished.",
                show_default=False,
            ),
        ] = None,
    ) -> None:
        from potstill import runner
        from potstill.cli import sample_options
        from potstill.cli.run_folder import open_run_or_recipe

        part = sample_options.parse_shard(shard, os.environ)
        recipe, run_dir = open_run_or_recipe(path)
        if batch_out is not None or batch_in:
            sample_options.check_batch_options(recipe, part)
            runner.run_batch(recipe, sample_options.batch_result_files(batch_in or ()), batch_out, run_dir=run_dir)
        elif part is None:
            runner.run(recipe, run_dir, until=stage)
        else:
            runner.run_shard(recipe, part, run_dir=run_dir)

    app.command(stage, help=help, epilog="Example: potstill sample runs/demo --shard 1/8")(command)
