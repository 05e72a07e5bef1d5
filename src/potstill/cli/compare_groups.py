"""`potstill compare` for many runs: recipes with one or several seeds each, in one table with intervals.

    potstill compare --seeds runs/forward-1 runs/forward-2 runs/reverse-1 runs/reverse-2
    potstill compare runs/* --by student.model,train.divergence --out table.tex

Runs whose recipes differ only in seeds (`seed`, `train.seed`, ...), `name` and `report` are one group. Groups are in the
order of their first run, and each is compared with the first. The table has a row for each set and group: the mean
accuracy over seeds, and its difference from the first group (`report.group_scores`).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Final, NoReturn

from rich.cells import cell_len
from rich.console import Console
from rich.table import Table

from potstill import progress, storage
from potstill.cli.compare import find_split, parse_run, refuse_nothing, write_page
from potstill.cli.tables import NARROWEST_NAME, plain_text, print_note, print_table
from potstill.errors import UserError
from potstill.report.group_files import read_run
from potstill.report.group_scores import GroupScore, SeedGroup, describe_keys, group_runs, score_groups
from potstill.report.score_tables import WRITERS, build_score_tables, list_quoted, table_notes

COLUMNS: Final = ("seeds", "right", "95 % interval", "against first", "95 % interval")


def compare_groups(
    names: Sequence[str],
    by: str | None = None,
    *,
    several_seeds: bool = False,
    out: Path | None = None,
    page: Path | None = None,
    as_json: bool = False,
) -> None:
    """Print one table for each format and decoding, or one JSON object, and write the table to a file and a page.

    names          runs or checkpoints (`runs/a`, `runs/a@500`)
    by             keys or sections of the recipe that name the groups, separated by commas, as in `group_runs`
    several_seeds  whether each group needs two or more seeds
    out            output file for the table: .csv, .md or .tex
    page           output file for the page about all runs, with the table

    Raises UserError if a run or checkpoint is missing, if the groups are no groups of seeds, if the runs have no question
    in common, or for another form of the table.
    """
    if out is not None and out.suffix not in WRITERS:
        _refuse_suffix(out)
    groups, scores, split = _read_scores(names, by, several_seeds=several_seeds)
    if as_json:
        of_groups = [
            {"label": group.label, "runs": [run.name for run in group.runs], "seeds": group.seeds} for group in groups
        ]
        rows = {
            "groups": of_groups,
            "scores": [asdict(score) for score in scores],
            "quoted": [asdict(row) for row in list_quoted(groups)],
        }
        print(json.dumps({"split": split, **rows, "note": " ".join(table_notes(groups, scores))}, ensure_ascii=False))
    else:
        print_tables(groups, scores, split)
    if out is not None:
        storage.write_file(out, WRITERS[out.suffix](groups, scores, split).encode("utf-8"))
        progress.print_line(f"table: {out}")
    if page is not None:
        options = [*(["--seeds"] if several_seeds else []), *(["--by", by] if by is not None else [])]
        write_page(list(dict.fromkeys(names)), page, groups, scores, options)


def _read_scores(
    names: Sequence[str], by: str | None = None, *, several_seeds: bool = False
) -> tuple[tuple[SeedGroup, ...], tuple[GroupScore, ...], str]:
    """The groups, their scores and the split."""
    names = list(dict.fromkeys(names))
    split = find_split(names)
    runs = [read_run(*parse_run(name), name=name, split=split) for name in names]
    groups = group_runs(runs, None if by is None else [key.strip() for key in by.split(",") if key.strip()])
    if several_seeds and any(len(group.runs) < 2 for group in groups):
        _refuse_single(groups)
    scores = score_groups(groups)
    if not scores:
        refuse_nothing(names)
    return groups, scores, split


def print_tables(groups: Sequence[SeedGroup], scores: Sequence[GroupScore], split: str) -> None:
    """Print a table for each format and decoding, the runs of each group, and what the intervals hold for."""
    for answers, sets in build_score_tables(groups, scores):
        lines = [line._replace(group=f"  {line.group}") for _, of_set in sets for line in of_set]
        widths = [max(map(cell_len, column)) for column in zip(("", *COLUMNS), *lines, strict=True)]
        widths[0] = max(NARROWEST_NAME, min(widths[0], Console().width - sum(widths[1:]) - len(COLUMNS)))
        print_note(f"{answers}, {split}: percent right, mean over seeds")
        print_table(_new_table(widths, show_header=True))
        for title, of_set in sets:  # a title is as long as it is: it is in no column
            table = _new_table(widths)
            for line in of_set:
                table.add_row(plain_text(f"  {line.group}"), *line[1:])
            print_note(title)
            print_table(table)
    for group in groups:
        named = ", ".join(f"{run.name} (seed {seed})" for run, seed in zip(group.runs, group.seeds, strict=True))
        about = describe_keys(group.keys)
        print_note(f"{group.label}: {named}" + ("" if not group.keys or about in group.label else f"; {about}"))
    for note in table_notes(groups, scores):
        print_note(note, "dim")


def _new_table(widths: Sequence[int], *, show_header: bool = False) -> Table:
    """A table without rows. widths: of all columns, the names first"""
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0), show_header=show_header)
    table.add_column("", overflow="fold", width=widths[0])
    for column, width in zip(COLUMNS, widths[1:], strict=True):
        table.add_column(column, justify="right", no_wrap=True, width=width)
    return table


def _refuse_suffix(out: Path) -> NoReturn:
    """Raise the UserError for an output file that is no table."""
    what, found = "a table of many runs has another form", out.suffix or "no suffix"
    hint = f"name a file that ends in {', '.join(WRITERS)}; FILE.jsonl is for two runs without --by and --seeds"
    raise UserError(what, code="E-cli-compare-table", where=out, found=found, hint=hint)


def _refuse_single(groups: Sequence[SeedGroup]) -> NoReturn:
    found = "; ".join(
        f"{group.label}: "
        + ", ".join(f"{run.name} (seed {seed})" for run, seed in zip(group.runs, group.seeds, strict=True))
        for group in groups
    )
    what = "each recipe needs two or more runs with different seeds"
    hint = (
        "runs of a group differ only in seeds and name: run each recipe again with --set train.seed=2 --set name=NAME-2"
    )
    raise UserError(what, code="E-cli-compare-seeds", where="--seeds", found=found, hint=hint)
