"""`potstill compare --seeds`: recipes that were run with several seeds each, in one table with intervals.

    potstill compare --seeds runs/forward-1 runs/forward-2 runs/reverse-1 runs/reverse-2

Runs whose recipes differ only in seeds (`seed`, `train.seed`, ...), `name` and `report` are one group. Groups are in the
order of their first run, and each is compared with the first. The table has a row for each set and group: the mean
accuracy over seeds, and its difference from the first group (`report.group_scores`).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import Final, NoReturn

from rich.console import Console
from rich.table import Table

from potstill.cli.compare import find_split, parse_run, refuse_nothing
from potstill.cli.tables import plain_text
from potstill.errors import UserError
from potstill.report.group_files import read_run
from potstill.report.group_scores import GroupScore, SeedGroup, group_runs, score_groups
from potstill.report.summary import format_points, percent_number

NOTE: Final = "Intervals hold for other seeds and other questions of the same kind, not for other data sets."


def compare_seeds(names: Sequence[str], *, as_json: bool = False) -> None:
    """Print one table for each format and decoding, or one JSON object.

    names  runs or checkpoints (`runs/a`, `runs/a@500`)

    Raises UserError if a run or checkpoint is missing, if a group has fewer than two seeds or one seed twice, or if the
    runs have no question in common.
    """
    names = list(dict.fromkeys(names))
    split = find_split(names)
    groups = group_runs([read_run(*parse_run(name), name=name, split=split) for name in names])
    if any(len(group.runs) < 2 for group in groups):
        _refuse_single(groups)
    scores = score_groups(groups)
    if not scores:
        refuse_nothing(names)
    runs = {group.label: tuple(run.name for run in group.runs) for group in groups}
    if as_json:
        of_groups = [{"label": group.label, "runs": runs[group.label], "seeds": group.seeds} for group in groups]
        rows = {"groups": of_groups, "scores": [asdict(score) for score in scores]}
        print(json.dumps({"split": split, **rows, "note": NOTE}, ensure_ascii=False))
        return
    console = Console(soft_wrap=True)
    for answers in dict.fromkeys(score.answers for score in scores):
        console.print(plain_text(f"{answers}, {split}: percent right, mean over seeds"))
        console.print(_table([score for score in scores if score.answers == answers], groups))
    for group in groups:
        named = ", ".join(f"{run} (seed {seed})" for run, seed in zip(runs[group.label], group.seeds, strict=True))
        console.print(plain_text(f"{group.label}: {named}"))
    console.print(NOTE, style="dim")


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


def _table(scores: Sequence[GroupScore], groups: Sequence[SeedGroup]) -> Table:
    table = Table("", box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for column in ("seeds", "right", "95 % interval", "against first", "95 % interval"):
        table.add_column(column, justify="right", no_wrap=True)
    seeds = {group.label: len(group.seeds) for group in groups}
    before = ""
    for score in scores:
        if score.set != before:
            table.add_row(plain_text(f"{score.set}, {score.n} questions"))
            before = score.set
        change = ["", ""]
        if score.difference is not None and score.difference_low is not None and score.difference_high is not None:
            bounds = max(score.difference_low, -1.0), min(score.difference_high, 1.0)
            change = [format_points(score.difference), f"{format_points(bounds[0])} to {format_points(bounds[1])}"]
        interval = f"{percent_number(score.low)} to {percent_number(score.high)}"
        row = str(seeds[score.group]), percent_number(score.share), interval, *change
        table.add_row(plain_text(f"  {score.group}"), *row)
    return table
