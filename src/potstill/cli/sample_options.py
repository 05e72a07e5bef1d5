"""The options of `potstill sample`: which shard a process samples, and which batch files are read.

>>> parse_shard("2/8", {}), parse_shard(None, {"RANK": "3", "WORLD_SIZE": "4"}), parse_shard(None, {})
(Shard(number=2, count=8), Shard(number=4, count=4), None)
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from potstill import process
from potstill.errors import UserError
from potstill.recipe import Recipe
from potstill.storage.segments import Shard


def parse_shard(text: str | None, environment: Mapping[str, str]) -> Shard | None:
    """The shard; None for the whole run. Raises UserError if the text is no shard.

    text  `I/N`; `auto` for the launcher's rank or the task of a SLURM array; None for the launcher's rank alone, since
          the tasks of an array may be different runs
    """
    if text is not None and text != "auto":
        return _parse_explicit(text)
    rank = process.read_process_rank(environment)
    if rank.launched:
        return Shard(rank.rank + 1, rank.world) if rank.world > 1 else None
    return _slurm_shard(environment) if text == "auto" else None


def _parse_explicit(text: str) -> Shard | None:
    match = re.fullmatch(r"([0-9]{1,6})/([0-9]{1,6})", text)
    if not match or not 1 <= int(match[1]) <= int(match[2]):
        raise UserError(
            "not a shard",
            code="E-cli-shard",
            where="--shard",
            found=text,
            hint="write I/N with I from 1 to N, such as 1/8",
        )
    shard = Shard(int(match[1]), int(match[2]))
    return shard if shard.count > 1 else None


def _slurm_shard(environment: Mapping[str, str]) -> Shard | None:
    names = ("SLURM_ARRAY_TASK_ID", "SLURM_ARRAY_TASK_MIN", "SLURM_ARRAY_TASK_MAX", "SLURM_ARRAY_TASK_STEP")
    if names[0] not in environment:
        raise UserError(
            "no launcher has set the shard of this process",
            code="E-cli-shard-launcher",
            where="--shard auto",
            found="neither RANK nor SLURM variables",
            hint="start it with torchrun, srun or as a SLURM array, or write I/N",
        )
    task, first, last, step = (int(environment.get(name, default)) for name, default in zip(names, "0001", strict=True))
    shard = Shard((task - first) // step + 1, (last - first) // step + 1)
    return shard if shard.count > 1 else None


def check_batch_options(recipe: Recipe, shard: Shard | None) -> None:
    """Raises UserError if the run cannot use batch files."""
    from potstill import teachers

    if not teachers.from_recipe(recipe).metered:
        raise UserError(
            "this teacher is not behind a server",
            code="E-cli-batch-teacher",
            where="teacher.kind",
            found=recipe.teacher.kind,
            hint="batch files need a teacher of the kind openai",
        )
    if shard is not None:
        raise UserError(
            "batch files are for the whole run",
            code="E-cli-batch-shard",
            where="--shard",
            found=shard,
            hint="leave --shard out, and start the command without torchrun or srun",
        )


def batch_result_files(paths: Sequence[Path]) -> list[Path]:
    """The given files, and the *.jsonl files of the given folders in the order of their names.

    Raises UserError for a folder without any.
    """
    files = []
    for path in paths:
        inside = sorted(path.glob("*.jsonl")) if path.is_dir() else [path]
        if not inside:
            raise UserError(
                "no batch results",
                code="E-cli-batch-empty",
                where=path,
                found="a folder without *.jsonl",
                hint="name the files",
            )
        files += inside
    return files
