"""Which transfer rule trains the better student? The embedded world, the demo's chains, equal steps, several seeds.

    potstill demo
    python benchmarks/rules.py [--rules one-hot paper span text] [--seeds 1 2 3] [--steps 420] [--run runs/demo]
        [--set "questions.limit={train: 40, validation: 8, test: 12}"]

One JSON line a rule and seed: right answers on the test split of every set. Then one line a rule: the mean over the
out-of-distribution sets and the in-distribution set, each against `one-hot`: the mean over seeds of the paired
difference in points, the lowest and highest seed, and the 95 % interval over questions of each seed. Seeds change the
order of training and nothing else; the chains are the same. Runs lie in runs/rules-<rule>-<seed> and are kept.
"""

from __future__ import annotations

import argparse
import json
import os
from importlib import resources
from pathlib import Path
from statistics import fmean
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

from potstill import runner
from potstill.evaluation import checkpoint, intervals
from potstill.recipe import Recipe, parse_recipe
from potstill.records import Checkpoint

BASELINE = "one-hot"


def main() -> None:
    asked = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    asked.add_argument("--rules", nargs="+", default=["one-hot", "paper", "span", "text"])
    asked.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3])
    asked.add_argument("--steps", type=int, default=420)
    asked.add_argument("--run", type=Path, default=Path("runs/demo"), help="whose chains and student")
    asked.add_argument("--set", nargs="+", default=[], metavar="KEY=VALUE", help="recipe keys, for a trial of minutes")
    told = asked.parse_args()
    found = {}
    for seed in told.seeds:
        for rule in told.rules:
            plan = plan_of(told.run, rule, seed, told.steps, told.set)
            folder = runner.run(plan, until="test")
            right = answers(folder, told.steps)
            found[rule, seed] = grouped(plan, right)
            shares = {name: round(100 * fmean(each), 1) for name, each in right.items()}
            row = {"name": "rule", "rule": rule, "seed": seed, "steps": told.steps, "right": shares}
            print(json.dumps(row), flush=True)
    for rule in told.rules:
        if rule != BASELINE and BASELINE in told.rules:
            print(json.dumps(against(rule, told.seeds, found)), flush=True)


def plan_of(source: Path, rule: str, seed: int, steps: int, more: list[str]) -> Recipe:
    text = resources.files("potstill.demo").joinpath("demo.yaml").read_text("utf-8")
    chains = (source / "sample" / "chains.parquet").absolute()
    changes = (
        f"data={source.parent}",
        f"name=rules-{rule}-{seed}",
        f"seed={seed}",
        f"teacher={{kind: replay, chains: {chains}}}",
        f"transfer.rule={rule}",
        f"train.steps={steps}",
        f"train.checkpoint_every={steps}",
        "report.controls=[]",
        *more,
    )
    return parse_recipe(text, "demo.yaml", changes)


def answers(folder: Path, step: int) -> dict[str, list[bool]]:
    """Set -> right or not, in the order of the questions."""
    right: dict[str, dict[str, bool]] = {}
    for answer in checkpoint.read_predictions(folder / "test", Checkpoint(step), "zero-shot-rationale", "greedy"):
        right.setdefault(answer.set, {})[answer.question] = answer.grade == "right"
    return {name: [own[question] for question in sorted(own)] for name, own in sorted(right.items())}


def grouped(plan: Recipe, right: dict[str, list[bool]]) -> dict[str, list[bool]]:
    asked = plan.questions
    groups = {"in-distribution": asked.in_distribution, "out-of-distribution": asked.out_of_distribution}
    return {group: [value for name in names for value in right[name]] for group, names in groups.items()}


def against(rule: str, seeds: list[int], found: dict[tuple[str, int], dict[str, list[bool]]]) -> dict[str, Any]:
    row: dict[str, Any] = {"name": "rule against one-hot", "rule": rule, "seeds": seeds, "unit": "points"}
    for group in ("in-distribution", "out-of-distribution"):
        pairs = [(found[rule, seed][group], found[BASELINE, seed][group]) for seed in seeds]
        each = [intervals.paired_difference(own, base) for own, base in pairs]
        row[group] = {
            "n": len(pairs[0][0]),
            "difference": round(100 * fmean([value for value, _, _ in each]), 2),
            "seeds": [round(100 * value, 2) for value, _, _ in each],
            "intervals": [[round(100 * low, 2), round(100 * high, 2)] for _, low, high in each],
        }
    return row


if __name__ == "__main__":
    main()
