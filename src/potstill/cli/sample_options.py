"""Which shard a process is to sample: what the command line says, else what a launcher has set.

>>> parse_shard("2/8", {}), parse_shard(None, {"RANK": "3", "WORLD_SIZE": "4"}), parse_shard(None, {})
(Shard(number=2, count=8), Shard(number=4, count=4), None)

What the command line says of batch files: which ones are read, and that one process does it.
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
    """The shard, None for the whole. Raises UserError for a text that is no shard.

    text  `I/N`; `auto` for the launcher's rank or the task of a SLURM array; None for the launcher's rank alone: the
          tasks of an array may well be different runs
    """
    if text is not None and text != "auto":
        return _parse_explicit(text)
    place = process.read_process_rank(environment)
    if place.launched:
        return Shard(place.rank + 1, place.world) if place.world > 1 else None
    if text == "auto":
        return _slurm_shard(environment)
    return None


def _parse_explicit(text: str) -> Shard | None:
    found = re.fullmatch(r"([0-9]{1,6})/([0-9]{1,6})", text)
    if not found or not 1 <= int(found[1]) <= int(found[2]):
        raise UserError("not a shard", where="--shard", found=text, hint="write I/N with I from 1 to N, such as 1/8")
    shard = Shard(int(found[1]), int(found[2]))
    return shard if shard.count > 1 else None


def _slurm_shard(environment: Mapping[str, str]) -> Shard | None:
    names = ("SLURM_ARRAY_TASK_ID", "SLURM_ARRAY_TASK_MIN", "SLURM_ARRAY_TASK_MAX", "SLURM_ARRAY_TASK_STEP")
    if names[0] not in environment:
        raise UserError(
            "no launcher says which shard this is",
            where="--shard auto",
            found="neither RANK nor SLURM variables",
            hint="start it with torchrun, srun or as a SLURM array, or write I/N",
        )
    task, first, last, step = (int(environment.get(name, default)) for name, default in zip(names, "0001", strict=True))
    shard = Shard((task - first) // step + 1, (last - first) // step + 1)
    return shard if shard.count > 1 else None


def check_batch_options(recipe: Recipe, part: Shard | None) -> None:
    """Raises UserError where batch files are of no use."""
    from potstill import teachers

    if not teachers.from_recipe(recipe).metered:
        hint = "only a teacher of the kind openai can be asked through batch files"
        raise UserError(
            "this teacher is not behind a server", where="teacher.kind", found=recipe.teacher.kind, hint=hint
        )
    if part is not None:
        hint = "leave --shard out, and start it without torchrun or srun"
        raise UserError("batch files are of the whole run", where="--shard", found=part, hint=hint)


def batch_result_files(named: Sequence[Path]) -> list[Path]:
    """The files that are named, and those of folders that are, in the order of their names.

    Raises UserError for a folder without any.
    """
    found = []
    for path in named:
        inside = sorted(path.glob("*.jsonl")) if path.is_dir() else [path]
        if not inside:
            raise UserError(
                "no results", where=path, found="a folder without *.jsonl", hint="name the files themselves"
            )
        found += inside
    return found
