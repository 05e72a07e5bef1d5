"""Which transfer rule trains the better student? The demo's chains, equal steps, several seeds.

    potstill demo
    python benchmarks/rules.py [--rules one-hot paper span text] [--seeds 1 2 3] [--steps 420] [--run runs/demo]
        [--set "questions.limit={train: 40, validation: 8, test: 12}"]

Prints one JSON line for each rule and seed: right answers on the test split of every set. Then one line for each rule, over
the in-distribution set and over the out-of-distribution sets, compared with `one-hot`: the mean over seeds of the paired
difference in points, the difference of each seed, and its 95 % interval over questions. A seed changes only the order of
training. The runs are kept in runs/rules-<rule>-<seed>.
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
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rules", nargs="+", default=["one-hot", "paper", "span", "text"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3])
    parser.add_argument("--steps", type=int, default=420)
    parser.add_argument("--run", type=Path, default=Path("runs/demo"), help="the run with the chains and the student")
    parser.add_argument("--set", nargs="+", default=[], metavar="KEY=VALUE", help="recipe keys, for a short trial")
    args = parser.parse_args()
    right_by_group = {}
    for seed in args.seeds:
        for rule in args.rules:
            recipe = make_recipe(args.run, rule, seed, args.steps, args.set)
            run_dir = runner.run(recipe, until="test")
            right = right_answers(run_dir, args.steps)
            right_by_group[rule, seed] = group_sets(recipe, right)
            shares = {name: round(100 * fmean(values), 1) for name, values in right.items()}
            row = {"name": "rule", "rule": rule, "seed": seed, "steps": args.steps, "right": shares}
            print(json.dumps(row), flush=True)
    for rule in args.rules:
        if rule != BASELINE and BASELINE in args.rules:
            print(json.dumps(compare(rule, args.seeds, right_by_group)), flush=True)


def make_recipe(source: Path, rule: str, seed: int, steps: int, changes: list[str]) -> Recipe:
    text = resources.files("potstill.demo").joinpath("demo.yaml").read_text("utf-8")
    chains = (source / "sample" / "chains.parquet").absolute()
    all_changes = (
        f"data={source.parent}",
        f"name=rules-{rule}-{seed}",
        f"seed={seed}",
        f"teacher={{kind: replay, chains: {chains}}}",
        f"transfer.rule={rule}",
        f"train.steps={steps}",
        f"train.checkpoint_every={steps}",
        "train.replay=null",
        "select.retain=null",
        "report.controls=[]",
        *changes,
    )
    return parse_recipe(text, "demo.yaml", all_changes)


def right_answers(run_dir: Path, step: int) -> dict[str, list[bool]]:
    """Set -> right or not, in the order of the questions."""
    right: dict[str, dict[str, bool]] = {}
    for answer in checkpoint.read_predictions(run_dir / "test", Checkpoint(step), "zero-shot-rationale", "greedy"):
        right.setdefault(answer.set, {})[answer.question] = answer.grade == "right"
    return {name: [answers[question] for question in sorted(answers)] for name, answers in sorted(right.items())}


def group_sets(recipe: Recipe, right: dict[str, list[bool]]) -> dict[str, list[bool]]:
    sets = recipe.questions
    groups = {"in-distribution": sets.in_distribution, "out-of-distribution": sets.out_of_distribution}
    return {group: [value for name in names for value in right[name]] for group, names in groups.items()}


def compare(rule: str, seeds: list[int], right: dict[tuple[str, int], dict[str, list[bool]]]) -> dict[str, Any]:
    row: dict[str, Any] = {"name": "rule against one-hot", "rule": rule, "seeds": seeds, "unit": "points"}
    for group in ("in-distribution", "out-of-distribution"):
        pairs = [(right[rule, seed][group], right[BASELINE, seed][group]) for seed in seeds]
        differences = [intervals.paired_difference(answers, base) for answers, base in pairs]
        row[group] = {
            "n": len(pairs[0][0]),
            "difference": round(100 * fmean([value for value, _, _ in differences]), 2),
            "seeds": [round(100 * value, 2) for value, _, _ in differences],
            "intervals": [[round(100 * low, 2), round(100 * high, 2)] for _, low, high in differences],
        }
    return row


if __name__ == "__main__":
    main()
