"""`potstill grade`: answers of any tool, one row a line, graded in the order of the file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from potstill import answers, files, progress
from potstill.errors import UserError


def grade_file(path: Path, out: Path) -> None:
    """Read rows with `text`, `gold`, optional `task` and `stop`; write them to `out` with `verdict` and `found`.

    Raises UserError naming the line for a row without text or gold; then nothing is written.
    """
    rows = list(files.read_jsonl(path))
    with progress.bar("grade", len(rows), "rows") as tick:
        graded = [_graded(path, number, row, tick) for number, row in rows]
    files.write_jsonl(out, graded)
    progress.say(f"{len(graded)} rows: {_summary(graded)}")


def _graded(path: Path, number: int, row: Mapping[str, Any], tick: progress.Tick) -> dict[str, Any]:
    where = f"{path} line {number}"
    for name in ("text", "gold"):
        if not isinstance(row.get(name), str):
            raise UserError(
                f"{name} must be text", where=where, found=repr(row.get(name)), do=f'write {{"{name}": "..."}}'
            )
    for name in ("task", "stop"):
        if row.get(name) is not None and not isinstance(row[name], str):
            raise UserError(f"{name} must be text", where=where, found=repr(row[name]), do=f"mend or leave out {name}")
    try:
        verdict = answers.grade(row["text"], row["gold"], row.get("task"), row.get("stop"))
    except UserError as fault:
        raise UserError(fault.what, where=where, found=fault.found, do=fault.do) from None
    tick()
    return {**row, "verdict": verdict.grade, "found": verdict.found}


def _summary(graded: list[dict[str, Any]]) -> str:
    kinds = dict.fromkeys(row["verdict"] for row in graded)
    return ", ".join(f"{sum(row['verdict'] == kind for row in graded)} {kind}" for kind in kinds) or "nothing"
