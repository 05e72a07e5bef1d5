"""`potstill compare --seeds`: recipes that were run with several seeds each, in one table with intervals.

    potstill compare --seeds runs/forward-1 runs/forward-2 runs/reverse-1 runs/reverse-2

Runs whose recipes differ only in seeds (`seed`, `train.seed`, ...), `name` and `report` are one group. Groups are in the
order of their first run, and each is compared with the first. The table has a row for each set and group: the mean
accuracy over seeds, and its difference from the first group. Intervals hold for other seeds and other questions of the
same kind (`intervals.seeds_difference`). Only questions that all runs answered count.

    >>> label_groups([{"train.divergence": "forward_kl", "seed": 1}, {"train.divergence": "reverse_kl", "seed": 1}])
    ['train.divergence=forward_kl', 'train.divergence=reverse_kl']
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final, NoReturn

from rich.console import Console
from rich.table import Table

from potstill.cli.compare import ComparedCheckpoint, open_all, parse_run
from potstill.cli.tables import plain_text
from potstill.errors import UserError
from potstill.evaluation import intervals
from potstill.recipe import Recipe, flatten_keys
from potstill.report.summary import format_points, percent_number
from potstill.run_reader import open_run

NOTE: Final = "Intervals hold for other seeds and other questions of the same kind, not for other data sets."
SEED_KEYS: Final = ("train.seed", "teacher.seed", "evaluate.seed")
LONGEST_VALUE: Final = 40  # characters of a key's value in the name of a group


@dataclass(frozen=True, slots=True)
class SeedGroup:
    """The runs of one recipe with different seeds.

    label  the keys in which the groups differ, with their values; the name of the first run if there is only one group
    runs   the runs as they were named
    seeds  the seed of each run's training
    """

    label: str
    runs: tuple[str, ...]
    seeds: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class GroupScore:
    """A group on one set. All shares and differences have 95 % intervals over seeds and questions.

    answers     format and decoding
    n           number of questions that all runs answered
    share       mean over seeds of the share of right answers
    by_seed     the share of each run
    difference  the share minus that of the first group; None for the first group, as are its bounds
    """

    answers: str
    set: str
    group: str
    n: int
    share: float
    low: float
    high: float
    by_seed: tuple[float, ...]
    difference: float | None = None
    difference_low: float | None = None
    difference_high: float | None = None


def compare_seeds(names: Sequence[str], *, as_json: bool = False) -> None:
    """Print one table for each format and decoding, or one JSON object.

    names  runs or checkpoints (`runs/a`, `runs/a@500`)

    Raises UserError if a run or checkpoint is missing, if a group has fewer than two seeds or one seed twice, or if the
    runs have no question in common.
    """
    groups = list(group_runs(names))
    models, split = open_all(names)
    of_run = dict(zip(names, models, strict=True))
    scores = list(score_groups(groups, of_run))
    if as_json:
        rows = {"groups": [asdict(group) for group in groups], "scores": [asdict(score) for score in scores]}
        print(json.dumps({"split": split, **rows, "note": NOTE}, ensure_ascii=False))
        return
    console = Console(soft_wrap=True)
    for answers in dict.fromkeys(score.answers for score in scores):
        console.print(plain_text(f"{answers}, {split}: percent right, mean over seeds"))
        console.print(_table([score for score in scores if score.answers == answers], groups))
    for group in groups:
        runs = ", ".join(f"{run} (seed {seed})" for run, seed in zip(group.runs, group.seeds, strict=True))
        console.print(plain_text(f"{group.label}: {runs}"))
    console.print(NOTE, style="dim")


def group_runs(names: Sequence[str]) -> Iterator[SeedGroup]:
    """The groups of the runs, in the order of their first run. Raises UserError if a group is no sample of seeds."""
    members: dict[str, list[tuple[str, Recipe]]] = {}
    keys: dict[str, dict[str, Any]] = {}
    for name in dict.fromkeys(names):
        run_dir, checkpoint = parse_run(name)
        recipe = open_run(run_dir).recipe
        values = _compared_keys(recipe) | ({} if checkpoint is None else {"step": checkpoint.label})
        identity = json.dumps(values, sort_keys=True)
        members.setdefault(identity, []).append((name, recipe))
        keys.setdefault(identity, values)
    labels = label_groups(list(keys.values()))
    if len(keys) == 1:
        labels = [next(iter(members.values()))[0][0]]
    for label, runs in zip(labels, members.values(), strict=True):
        if len(runs) < 2 or len({_seeds(recipe) for _, recipe in runs}) < len(runs):
            _refuse_group(labels, list(members.values()))
        yield SeedGroup(label, tuple(name for name, _ in runs), tuple(recipe.training_seed for _, recipe in runs))


def label_groups(keys: Sequence[Mapping[str, Any]]) -> list[str]:
    """A name for each group: the keys whose values differ between groups, with the group's values."""
    differing = [
        key
        for key in dict.fromkeys(key for row in keys for key in row)
        if len({json.dumps(row.get(key), sort_keys=True) for row in keys}) > 1
    ]
    return [
        ", ".join(f"{key}={_shorten(row[key])}" for key in differing if row.get(key) is not None) or "default"
        for row in keys
    ]


def score_groups(groups: Sequence[SeedGroup], models: Mapping[str, ComparedCheckpoint]) -> Iterator[GroupScore]:
    """The scores of every group on every set, in every format and decoding that all runs have.

    models  the answers of each run, by the name in `SeedGroup.runs`
    """
    everyone = [models[run] for group in groups for run in group.runs]
    for answers in sorted(set(everyone[0].answers).intersection(*(model.answers for model in everyone[1:]))):
        first = everyone[0].answers[answers]
        asked: dict[str, list[str]] = {}
        for question in sorted(set(first).intersection(*(model.answers[answers] for model in everyone[1:]))):
            asked.setdefault(first[question].set, []).append(question)
        for set_name, questions in sorted(asked.items()):
            if len(questions) < 2:
                continue  # one question has no interval
            tables = [
                [[float(models[run].answers[answers][id].grade == "right") for id in questions] for run in group.runs]
                for group in groups
            ]
            for group, table in zip(groups, tables, strict=True):
                share, low, high = intervals.seeds_interval(table)
                change = () if group is groups[0] else intervals.seeds_difference(table, tables[0])
                bounds = max(low, 0.0), min(high, 1.0)
                by_seed = tuple(statistics.fmean(row) for row in table)
                yield GroupScore(answers, set_name, group.label, len(questions), share, *bounds, by_seed, *change)


def _compared_keys(recipe: Recipe) -> dict[str, Any]:
    """Every key that makes two recipes different, apart from their seeds."""
    sections = [name for name in type(recipe).model_fields if name not in ("name", "seed", "report")]
    return {key: value for key, value in flatten_keys(recipe, *sections).items() if key not in SEED_KEYS}


def _seeds(recipe: Recipe) -> tuple[int, ...]:
    return recipe.seed, recipe.training_seed, recipe.sampling_seed, recipe.evaluation_seed


def _refuse_group(labels: Sequence[str], groups: Sequence[Sequence[tuple[str, Recipe]]]) -> NoReturn:
    found = "; ".join(
        f"{label}: " + ", ".join(f"{run} (seed {recipe.training_seed})" for run, recipe in runs)
        for label, runs in zip(labels, groups, strict=True)
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


def _shorten(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= LONGEST_VALUE else text[: LONGEST_VALUE - 3] + "..."
