"""`potstill grade`: answers of any tool, one row a line, graded in the order of the file.

A row has `text`, `gold`, optional `task` and `stop`; a sample that lm-evaluation-harness logged is read as such a row.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from potstill import answers, files, progress
from potstill.cli import lm_eval
from potstill.errors import UserError


def grade_file(path: Path, out: Path, task: str | None = None) -> None:
    """Read rows with `text`, `gold`, optional `task` and `stop`; write them to `out` with `verdict` and `found`.

    task  for the rows that name none; only here may it be a function
    Raises UserError naming the line for a row without text or gold; then nothing is written.
    """
    if task is not None:
        answers.check(task)
    rows = list(files.read_jsonl(path))
    with progress.bar("grade", len(rows), "rows") as tick:
        graded = [_graded(path, number, row, task, tick) for number, row in rows]
    files.write_jsonl(out, graded)
    progress.say(f"{len(graded)} rows: {_summary(graded)}")


def _graded(path: Path, number: int, row: Mapping[str, Any], task: str | None, tick: progress.Tick) -> dict[str, Any]:
    where = f"{path} line {number}"
    own, row = row, lm_eval.as_row(row, where) if lm_eval.is_sample(row) else row
    for name in ("text", "gold"):
        if not isinstance(row.get(name), str):
            raise UserError(
                f"{name} must be text", where=where, found=repr(row.get(name)), do=f'write {{"{name}": "..."}}'
            )
    for name in ("task", "stop"):
        if row.get(name) is not None and not isinstance(row[name], str):
            raise UserError(f"{name} must be text", where=where, found=repr(row[name]), do=f"mend or leave out {name}")
    try:
        if row.get("task") and answers.functions.named(row["task"]) is not None:
            do = "leave `task` out of the rows, and say --task, which is yours"
            raise UserError("a row cannot name a function to run", found=row["task"], do=do)
        verdict = answers.grade(row["text"], row["gold"], row.get("task") or task, row.get("stop"))
    except UserError as fault:
        raise UserError(fault.what, where=where, found=fault.found, do=fault.do) from None
    tick()
    return {**own, "verdict": verdict.grade, "found": verdict.found}


def _summary(graded: list[dict[str, Any]]) -> str:
    kinds = dict.fromkeys(row["verdict"] for row in graded)
    return ", ".join(f"{sum(row['verdict'] == kind for row in graded)} {kind}" for kind in kinds) or "nothing"
