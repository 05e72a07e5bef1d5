"""Writes the tables and verdicts of docs/findings.md from the finished study of studies/findings.yaml.

    potstill study studies/findings.yaml --jobs 2
    python tools/docs/findings.py runs/findings docs/findings.md

The text of the page is written by hand. Between the markers `<!-- NAME -->` and `<!-- end -->` stands what the study
gives: a table for each experiment, and the verdicts. A claim is *shown* if the 95 % interval of its difference, over
seeds and questions, lies on the side of the claim; *reversed* if it lies on the other side; otherwise it is *not shown*.

    >>> verdict(-5.0, -1.0, -1), verdict(-5.0, 0.5, -1), verdict(1.0, 5.0, -1)
    ('shown', 'not shown', 'reversed')
"""

from __future__ import annotations

import csv
import json
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

KINDS: Final = ("in-distribution", "out-of-distribution", "generic")
ZERO_SHOT: Final = "zero-shot-rationale.greedy"
FEW_SHOT: Final = "few-shot-rationale.greedy"
SELECTION: Final = ("mean-out-of-distribution", "in-distribution")


@dataclass(frozen=True, slots=True)
class Claim:
    """A finding as a comparison of two groups of an experiment: `group` against the first choice of the grid.

    sign  -1: the group is worse on the sets of this kind; +1: it is better
    """

    finding: str
    experiment: str
    group: str
    kind: str
    sign: int
    answers: str = ZERO_SHOT


CLAIMS: Final = (
    Claim("1: the base is worse in distribution", "distribution", "base", "in-distribution", -1),
    Claim("1: the base is worse out of distribution", "distribution", "base", "out-of-distribution", -1),
    Claim("2: the base is better on generic tasks", "distribution", "base", "generic", +1),
    *(
        Claim(f"3: {group} is better than small {kind.replace('-', ' ')}", "sizes", group, kind, +1)
        for group in ("medium", "demo", "large")
        for kind in KINDS[:2]
    ),
    Claim("4: hard targets are worse in distribution", "distribution", "one-hot", "in-distribution", -1),
    Claim("4: hard targets are worse out of distribution", "distribution", "one-hot", "out-of-distribution", -1),
    Claim("5: few-shot training answers few-shot prompts better", "formats", "few-shot", KINDS[0], +1, FEW_SHOT),
    Claim("5: training on both answers few-shot prompts better", "formats", "both", KINDS[0], +1, FEW_SHOT),
    Claim("5: few-shot training answers zero-shot prompts worse", "formats", "few-shot", KINDS[0], -1),
    Claim("6: random weights are worse in distribution", "start", "random", "in-distribution", -1),
    Claim("6: random weights are worse out of distribution", "start", "random", "out-of-distribution", -1),
    Claim("7: the best in distribution is worse out of distribution", "selection", SELECTION[1], KINDS[1], -1),
    Claim("one chain per question is worse in distribution", "source", "one-chain", "in-distribution", -1),
    Claim("one chain per question is worse out of distribution", "source", "one-chain", "out-of-distribution", -1),
    Claim("the sets' solutions are worse in distribution", "source", "human", "in-distribution", -1),
    Claim("the sets' solutions are worse out of distribution", "source", "human", "out-of-distribution", -1),
    Claim("replay keeps generic ability", "retention", "replay", "generic", +1),
    Claim("replay costs accuracy in distribution", "retention", "replay", "in-distribution", -1),
    Claim("LoRA keeps generic ability", "retention", "lora", "generic", +1),
    Claim("LoRA costs accuracy in distribution", "retention", "lora", "in-distribution", -1),
    *(
        Claim(f"own texts ({group}) are better {kind.replace('-', ' ')}", "on-policy", group, kind, +1)
        for group in ("half-own", "own", "half-own-rewards", "half-own-and-base")
        for kind in KINDS[:2]
    ),
    Claim("own texts scored by the base keep generic ability", "on-policy", "half-own-and-base", "generic", +1),
)


def verdict(low: float, high: float, sign: int) -> str:
    """What an interval says of a claim. low, high: bounds of the difference"""
    if low <= 0 <= high:
        return "not shown"
    return "shown" if (low > 0) == (sign > 0) else "reversed"


def read_rows(table: Path) -> list[dict[str, str]]:
    with table.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def table_lines(rows: Sequence[Mapping[str, str]]) -> list[str]:
    """A table of the means over sets for each format of the answers: right, its interval, and the difference."""
    lines: list[str] = []
    for answers in dict.fromkeys(row["answers"] for row in rows):
        own = [row for row in rows if row["answers"] == answers]
        kinds = [kind for kind in KINDS if any(_is_mean(row, kind) for row in own)]
        sizes = {kind: next(row["n"] for row in own if _is_mean(row, kind)) for kind in kinds}
        counts = ", ".join(f"{sizes[kind]} questions {kind.replace('-', ' ')}" for kind in kinds)
        lines += ["", f"{answers}; {counts}:", ""]
        lines += [
            f"| | seeds | {' | '.join(kind.replace('-', ' ') for kind in kinds)} |",
            "|---" * (len(kinds) + 2) + "|",
        ]
        for group in dict.fromkeys(row["group"] for row in own):
            cells = {kind: row for kind in kinds for row in own if _is_mean(row, kind) and row["group"] == group}
            seeds = max((row["seeds"] for row in cells.values()), default="")
            name, values = ", ".join(group.split(", ")[:2]), " | ".join(_cell(cells.get(kind)) for kind in kinds)
            lines.append(f"| {name} | {seeds} | {values} |")
    return lines


def verdict_lines(tables: Mapping[str, Sequence[Mapping[str, str]]]) -> list[str]:
    """A table of the claims whose experiment has results."""
    lines = ["", "| claim | seeds | difference in points | verdict |", "|---|---|---|---|"]
    for claim in CLAIMS:
        for row in tables.get(claim.experiment, ()):
            is_group = row["group"] == claim.group or (claim.group == "base" and row["group"].startswith("base"))
            if row["answers"] == claim.answers and _is_mean(row, claim.kind) and is_group and row["difference"]:
                low, high = (100 * float(row[name]) for name in ("difference_low", "difference_high"))
                said = verdict(low, high, claim.sign)
                difference = f"{100 * float(row['difference']):+.1f} ({low:+.1f} to {high:+.1f})"
                lines.append(f"| {claim.finding} | {row['seeds']} | {difference} | *{said}* |")
    return lines


def choice_lines(study: Path) -> list[str]:
    """For every seed, the steps that the two rules of finding 7 chose."""
    lines = ["", f"| seed | {' | '.join(SELECTION)} |", "|---|---|---|"]
    for folder in sorted(study.glob(f"selection.{SELECTION[0]}.*")):
        seed = folder.name.rpartition(".")[2]
        files = [study / f"selection.{rule}.{seed}" / "select" / "choice.json" for rule in SELECTION]
        steps = [str(json.loads(path.read_text("utf-8"))["step"]) if path.exists() else "-" for path in files]
        lines.append(f"| {seed.replace('-', ' ')} | {' | '.join(f'step {step}' for step in steps)} |")
    return lines


def time_lines(study: Path, experiment: str) -> list[str]:
    """The seconds of training of an experiment's runs, from their logs; the mean over seeds."""
    lines = ["", "| | steps | seconds of training, mean over seeds |", "|---|---|---|"]
    groups: dict[str, list[tuple[int, float]]] = {}
    experiments = json.loads((study / "study.json").read_text("utf-8"))["experiments"]
    listed = next(each for each in experiments if each["name"] == experiment)
    axis = next(name for name in listed["axes"] if "seed" not in name)
    for run in listed["runs"]:
        log = study / run["name"] / "log.jsonl"
        rows = [json.loads(line) for line in log.read_text("utf-8").splitlines()] if log.exists() else []
        made = [row for row in rows if row["event"] == "train"]
        if made:
            total = sum(row["steps"] for row in made), sum(row["seconds"] for row in made)
            groups.setdefault(run["choices"][axis], []).append(total)
    for name, values in groups.items():
        steps, seconds = values[0][0], sum(value for _, value in values) / len(values)
        lines.append(f"| {name} | {steps} | {seconds:.0f} |")
    return lines


def fill(page: str, parts: Mapping[str, Iterable[str]]) -> str:
    """The page with the lines of every part between its markers. Raises SystemExit for a marker without a part."""

    def replace(match: re.Match[str]) -> str:
        if match[1] not in parts:
            raise SystemExit(f"the study has no {match[1]}")
        return "\n".join([f"<!-- {match[1]} -->", *parts[match[1]], "", "<!-- end -->"])

    return re.sub(r"<!-- ([\w -]+) -->.*?<!-- end -->", replace, page, flags=re.S)


def _is_mean(row: Mapping[str, str], kind: str) -> bool:
    return row["of"] == "mean over sets" and row["set"] == kind


def _cell(row: Mapping[str, str] | None) -> str:
    if row is None:
        return "-"
    share, low, high = (100 * float(row[name]) for name in ("share", "low", "high"))
    return f"{share:.1f} ({low:.1f} to {high:.1f})"


def main(study: Path, page: Path) -> None:
    tables = {path.stem: read_rows(path) for path in sorted((study / "tables").glob("*.csv"))}
    parts = {name: table_lines(rows) for name, rows in tables.items()}
    parts |= {
        "verdicts": verdict_lines(tables),
        "choices": choice_lines(study),
        "times": time_lines(study, "on-policy"),
    }
    page.write_text(fill(page.read_text("utf-8"), parts), "utf-8")


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:3]))
