"""Which shard a process is to sample: what the command line says, else what a launcher has set.

>>> parse("2/8", {}), parse(None, {"RANK": "3", "WORLD_SIZE": "4"}), parse(None, {})
(Shard(number=2, count=8), Shard(number=4, count=4), None)
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from potstill import processes
from potstill.errors import UserError
from potstill.files.segments import Shard


def parse(text: str | None, environment: Mapping[str, str]) -> Shard | None:
    """The shard, None for the whole. Raises UserError for a text that is no shard.

    text  `I/N`; `auto` for the launcher's rank or the task of a SLURM array; None for the launcher's rank alone: the
          tasks of an array may well be different runs
    """
    if text is not None and text != "auto":
        return _said(text)
    place = processes.here(environment)
    if place.launched:
        return Shard(place.rank + 1, place.world) if place.world > 1 else None
    if text == "auto":
        return _array(environment)
    return None


def _said(text: str) -> Shard | None:
    found = re.fullmatch(r"([0-9]{1,6})/([0-9]{1,6})", text)
    if not found or not 1 <= int(found[1]) <= int(found[2]):
        raise UserError("not a shard", where="--shard", found=text, do="write I/N with I from 1 to N, such as 1/8")
    shard = Shard(int(found[1]), int(found[2]))
    return shard if shard.count > 1 else None


def _array(environment: Mapping[str, str]) -> Shard | None:
    names = ("SLURM_ARRAY_TASK_ID", "SLURM_ARRAY_TASK_MIN", "SLURM_ARRAY_TASK_MAX", "SLURM_ARRAY_TASK_STEP")
    if names[0] not in environment:
        raise UserError(
            "no launcher says which shard this is",
            where="--shard auto",
            found="neither RANK nor SLURM variables",
            do="start it with torchrun, srun or as a SLURM array, or write I/N",
        )
    task, first, last, step = (int(environment.get(name, default)) for name, default in zip(names, "0001", strict=True))
    shard = Shard((task - first) // step + 1, (last - first) // step + 1)
    return shard if shard.count > 1 else None
