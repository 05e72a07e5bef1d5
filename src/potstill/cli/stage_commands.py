"""A command for each stage, which makes the stages before it where they are missing.

It imports nothing heavy before a command is chosen, as all of the command line.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Optional

import typer

from potstill import stages

RunOrRecipe = Annotated[
    Path,
    typer.Argument(metavar="RUN", help="A run's folder, such as runs/demo, or a recipe (YAML).", show_default=False),
]


def add_stage_commands(app: typer.Typer) -> None:
    """Give an application the commands."""
    for stage, entry in stages.TABLE.items():
        make = _add_sample if stage == "sample" else _add_stage
        make(app, stage, f"{entry.summary} Earlier stages are made if they are missing.")


def _add_stage(app: typer.Typer, stage: str, summary: str) -> None:
    def command(folder: RunOrRecipe) -> None:
        from potstill import runner
        from potstill.cli import show

        runner.run(*show.open_run_or_recipe(folder), until=stage)

    app.command(stage, help=summary, rich_help_panel="Stages")(command)


def _add_sample(app: typer.Typer, stage: str, summary: str) -> None:
    def command(
        folder: RunOrRecipe,
        shard: Annotated[
            Optional[str],  # noqa: UP045
            typer.Option(
                metavar="I/N",
                help="Only part I of N, counted from 1; many processes may do a part each. Without it: the rank that "
                "torchrun or srun gave, else the whole, which seals what shards have made. `auto`: also the task of "
                "a SLURM array.",
                show_default=False,
            ),
        ] = None,
        batch_out: Annotated[
            Optional[Path],  # noqa: UP045
            typer.Option(
                metavar="FOLDER",
                help="Ask no chain now: write the requests that are missing into a new folder, as files for a "
                "service that answers them later (OpenAI's Batch API, vLLM's run-batch).",
                show_default=False,
            ),
        ] = None,
        batch_in: Annotated[
            Optional[list[Path]],  # noqa: UP045
            typer.Option(
                metavar="FILE",
                help="Read the results of such requests, or a folder of them; may be given again. When no chain is "
                "missing they are sealed.",
                show_default=False,
            ),
        ] = None,
    ) -> None:
        from potstill import runner
        from potstill.cli import sample_options, show

        part = sample_options.parse_shard(shard, os.environ)
        recipe, at = show.open_run_or_recipe(folder)
        if batch_out is not None or batch_in:
            sample_options.check_batch_options(recipe, part)
            runner.run_batch(recipe, sample_options.batch_result_files(batch_in or ()), batch_out, run_dir=at)
        elif part is None:
            runner.run(recipe, at, until=stage)
        else:
            runner.run_shard(recipe, part, run_dir=at)

    app.command(stage, help=summary, rich_help_panel="Stages")(command)
