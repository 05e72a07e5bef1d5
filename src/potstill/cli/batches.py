"""What the command line says of batch files: which ones are read, and that one process does it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from potstill.errors import UserError
from potstill.files.segments import Shard
from potstill.recipe import Recipe


def check(plan: Recipe, part: Shard | None) -> None:
    """Raises UserError where batch files are of no use."""
    if plan.teacher.kind != "openai":
        do = "only a teacher of the kind openai can be asked through batch files"
        raise UserError("this teacher is not behind a server", where="teacher.kind", found=plan.teacher.kind, do=do)
    if part is not None:
        do = "leave --shard out, and start it without torchrun or srun"
        raise UserError("batch files are of the whole run", where="--shard", found=part, do=do)


def files(named: Sequence[Path]) -> list[Path]:
    """The files that are named, and those of folders that are, in the order of their names.

    Raises UserError for a folder without any.
    """
    found = []
    for path in named:
        inside = sorted(path.glob("*.jsonl")) if path.is_dir() else [path]
        if not inside:
            raise UserError("no results", where=path, found="a folder without *.jsonl", do="name the files themselves")
        found += inside
    return found
