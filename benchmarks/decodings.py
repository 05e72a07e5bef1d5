"""What each decoding makes of a student: the embedded world's test questions, every decoding, with intervals.

    python benchmarks/decodings.py [--models student-causal FOLDER ...] [--questions 200] [--samples 16] [--sets steps]

A model is the name of one of the package's or a folder. One JSON line a model, set and decoding: accuracy with its 95 %
interval (Wilson), and the paired difference against greedy on the same questions (Newcombe). Then one line a number of
samples k: the vote, the likeliest, and any right one, as means over all choices of k of the samples.
"""

from __future__ import annotations

import argparse
import json
import os
from importlib import resources
from pathlib import Path
from tempfile import TemporaryDirectory

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch

from potstill import decoding, engines, evaluation, intervals, prompts, splits, students
from potstill.contenders import BASE
from potstill.miniature import build
from potstill.records import Prediction, Question


def main() -> None:
    asked = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    asked.add_argument("--models", nargs="+", default=["student", "student-causal"])
    asked.add_argument("--sets", nargs="+", default=["steps"])
    asked.add_argument("--questions", type=int, default=200)
    asked.add_argument("--samples", type=int, default=16)
    asked.add_argument("--temperature", type=float, default=0.7)
    told = asked.parse_args()
    torch.set_num_threads(1)
    names = [f"{choice}{end}" for end in ("", "+calculator") for choice in choices(told.samples)]
    for model in told.models:
        embedded = Path(str(resources.files("potstill.miniature"))) / "models" / model
        engine = engines.open(students.open(embedded if embedded.is_dir() else Path(model)))
        for name in told.sets:
            questions = of_world(name, told.questions)
            drawn = {each.name: answers(engine, questions, each, told.temperature) for each in decoding.drawings(names)}
            report(model, name, names, drawn)


def choices(samples: int) -> list[str]:
    return ["greedy", f"vote-{samples}", f"best-{samples}"]


def of_world(name: str, count: int) -> list[Question]:
    """Test questions of a set of the embedded world, those with the lowest digests."""
    with TemporaryDirectory() as folder:
        build.build(Path(folder) / "world")
        rows = (Path(folder) / "world" / "sets" / f"{name}.jsonl").read_text("utf-8").splitlines()
    told = [json.loads(row) for row in rows]
    found = [
        Question(f"{name}/{row['id']}", row["question"], row["answer"], name, "test", row["task"])
        for row in told
        if splits.split(row["question"], 0.25, 0.25) == "test"
    ]
    return splits.take(found, count)


def answers(
    engine: engines.Engine, questions: list[Question], drawing: decoding.Drawing, temperature: float
) -> list[Prediction]:
    form = prompts.FORMATS["zero-shot-rationale"]
    batches = evaluation.predict(
        engine,
        questions,
        lambda question: prompts.build(question.text, form),
        max_tokens=64,
        budget=32768,
        drawing=drawing,
        temperature=temperature,
        seed=1,
    )
    return [each for batch in batches for each in batch]


def report(model: str, name: str, names: list[str], drawn: dict[str, list[Prediction]]) -> None:
    right: dict[str, dict[str, bool]] = {}
    for each in names:
        chosen = decoding.choose(each, drawn[decoding.drawing_of(each)])
        right[each] = {one.question: one.grade == "right" for one in chosen}
    order = sorted(right["greedy"])
    for each, own in right.items():
        total, n = sum(own.values()), len(own)
        low, high = intervals.wilson(total, n)
        change = intervals.paired_difference([own[key] for key in order], [right["greedy"][key] for key in order])
        row = {"name": "decoding", "model": model, "set": name, "decoding": each, "n": n, "right": shown(total / n)}
        row |= {"interval": [shown(low), shown(high)], "against greedy": [shown(value) for value in change]}
        print(json.dumps(row), flush=True)
    for drawing, samples in drawn.items():
        for one in decoding.tries(samples, contender=BASE, split="test", format="zero-shot-rationale", drawing=drawing):
            if drawing.startswith("samples") and one.k & (one.k - 1) == 0:
                row = {"name": "tries", "model": model, "set": name, "drawing": drawing, "how": one.how, "k": one.k}
                row |= {"right": shown(one.accuracy), "interval": [shown(one.low), shown(one.high)]}
                print(json.dumps(row), flush=True)


def shown(share: float) -> float:
    return round(100 * share, 1)


if __name__ == "__main__":
    main()
