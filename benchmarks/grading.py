"""Accuracy and speed of the grader, compared with others, on the pairs of tests/support/grading_cases.py.

    POTSTILL_DATA=... python benchmarks/grading.py [--peers ENV/bin/python] [--categories]

The pairs were written for this project and follow its policies (percent is a unit, a hedge is wrong, ...). Other graders
were not made for all of them, so each answer type is counted separately, and `--categories` prints every category. Only
right or not right is compared. Answer types that no other grader has (regex, json, exact) are left out.

Prints one JSON line for each case: name, ours, theirs, ratio, unit, machine. Speed is texts per second of processor time on
one thread, on GSM8K's reference solutions. `graders.py` describes the peers' environment.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent / "tests" / "support"))

from alignment import machine
from graders import GRADERS
from grading_cases import CASES  # type: ignore[import-not-found]
from potstill import data
from potstill.grading import grade, infer_answer_type

OURS_ONLY = ("regex", "json", "exact")
PEERS = Path(__file__).parent / "graders.py"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peers", help="the python of the peers' environment")
    parser.add_argument("--texts", type=int, default=2000, help="for the speed")
    parser.add_argument("--categories", action="store_true")
    args = parser.parse_args()
    rows = [
        (category, infer_answer_type(gold, task), text, gold, task, expected == "right")
        for category, cases in CASES.items()
        for text, gold, task, expected in cases
        if infer_answer_type(gold, task) not in OURS_ONLY and len(text) < 1000
    ]
    ours = [grade(text, gold, task).grade == "right" for _, _, text, gold, task, _ in rows]
    # Other graders get only the number of "9 (apples)", as in lm-evaluation-harness with ASDiv.
    pairs = [
        (text, gold.split(" (")[0] if kind == "number" else gold, task or kind, kind)
        for _, kind, text, gold, task, _ in rows
    ]
    solutions = [(f"{q.rationale}\nThe answer is {q.gold}", q.gold, "gsm8k", "number") for q in reference(args.texts)]
    rate = speed(solutions)
    for name in GRADERS:
        theirs = ask(args.peers, name, pairs)
        accuracy(name, rows, ours, theirs)
        if args.categories and isinstance(theirs, dict):
            categories(name, rows, ours, theirs["right"])
        fast = ask(args.peers, name, solutions)
        other = round(len(solutions) / fast["seconds"]) if isinstance(fast, dict) else fast
        if isinstance(theirs, dict):
            print(json.dumps({"name": f"errors raised; {name}", "theirs": theirs["errors"], "unit": "of all pairs"}))
        line(f"grading {len(solutions)} reference solutions; {name}", rate, other, "texts/s")


def reference(n: int) -> list[data.Question]:
    return data.load_set("gsm8k", Path(os.environ["POTSTILL_DATA"]))[:n]


def speed(pairs: list[tuple[str, str, str, str]]) -> int:
    seconds = []
    for _ in range(5):
        start = time.process_time()
        for text, gold, task, _ in pairs:
            grade(text, gold, task)
        seconds.append(time.process_time() - start)
    return round(len(pairs) / min(seconds))


def accuracy(name: str, rows: list[Any], ours: list[bool], theirs: dict[str, Any] | str) -> None:
    groups: dict[str, list[int]] = {"all": list(range(len(rows)))}
    for index, row in enumerate(rows):
        groups.setdefault(row[1], []).append(index)
    for group, indices in groups.items():
        other = agreement(rows, indices, theirs["right"]) if isinstance(theirs, dict) else theirs
        line(f"grading accuracy, {group}, {len(indices)} pairs; {name}", agreement(rows, indices, ours), other, "%")


def agreement(rows: list[Any], indices: list[int], right: list[bool]) -> float:
    return round(100 * sum(right[index] == rows[index][5] for index in indices) / len(indices), 1)


def categories(name: str, rows: list[Any], ours: list[bool], theirs: list[bool]) -> None:
    groups: dict[str, list[int]] = defaultdict(list)
    for index, row in enumerate(rows):
        groups[row[0]].append(index)
    for group, indices in groups.items():
        shares = agreement(rows, indices, ours), agreement(rows, indices, theirs)
        line(f"grading accuracy, category {group}, {len(indices)} pairs; {name}", *shares, "%")


def ask(python: str | None, what: str, pairs: list[Any]) -> dict[str, Any] | str:
    """Which pairs a peer calls right and its seconds, or the reason why there is no answer."""
    if python is None:
        return "not installed"
    job = json.dumps({"what": what, "pairs": pairs})
    done = subprocess.run([python, str(PEERS)], input=job, capture_output=True, text=True)
    if done.returncode:
        return f"failed: {done.stderr.strip().splitlines()[-1]}"
    answer = json.loads(done.stdout.strip().splitlines()[-1])
    return f"not installed: {answer['missing']}" if "missing" in answer else answer


def line(name: str, ours: float, theirs: float | str, unit: str) -> None:
    ratio = round(ours / theirs, 3) if isinstance(theirs, int | float) and theirs else None
    row = {"name": name, "ours": ours, "theirs": theirs, "ratio": ratio, "unit": unit, "machine": machine()}
    print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
