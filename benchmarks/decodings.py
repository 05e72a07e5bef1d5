"""What each decoding makes of a student: the embedded world's test questions, every decoding, with intervals.

    python benchmarks/decodings.py [--models teacher FOLDER ...] [--questions 200] [--samples 8 40] [--sets steps]

A model is the name of one of the package's (`teacher` is asked as it was taught) or a folder, such as the student of a
finished run. One JSON line a model, set and decoding: accuracy with its 95 % interval (Wilson), and the paired
difference against greedy on the same questions (Newcombe). Then one line a number of samples k: the vote, the
likeliest, and any right one, as means over all choices of k of the largest number of samples; and one line of what was
generated. The last lines are all decodings in one table. Every model and set stands alone: parts can be run one after
the other.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from pathlib import Path
from tempfile import TemporaryDirectory

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch

from potstill import demo, evaluation, inference, prompts
from potstill.data import splits
from potstill.evaluation import decoding, intervals
from potstill.records import BASE, Prediction, Question

ROOT = Path(__file__).parent.parent
TOY_MODELS = {
    path.name: path
    for folder in ("src/potstill/demo/models", "tools/toy_models/models")
    for path in sorted((ROOT / folder).iterdir())
}


def main() -> None:
    asked = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    asked.add_argument("--models", nargs="+", default=["teacher", "student", "student-causal"])
    asked.add_argument("--sets", nargs="+", default=["steps"])
    asked.add_argument("--questions", type=int, default=200)
    asked.add_argument("--samples", nargs="+", type=int, default=[8, 40])
    asked.add_argument("--temperature", type=float, default=0.7)
    told = asked.parse_args()
    torch.set_num_threads(1)
    names = [f"{choice}{end}" for end in ("", "+calculator") for choice in choices(told.samples)]
    table = ["| model | set | decoding | right | 95 % interval | against greedy | 95 % interval, paired |"]
    with TemporaryDirectory() as folder:
        demo.copy_data(Path(folder))
        asked_of = {name: of_world(Path(folder) / "sets" / f"{name}.jsonl", name) for name in told.sets}
    for model in told.models:
        own = model in TOY_MODELS
        at = TOY_MODELS[model] if own else Path(model)
        shown_as = model if own else at.parent.name if at.name == "student" else at.name
        engine = inference.open_engine(at)
        for name, found in asked_of.items():
            questions, drawn = splits.sample_by_hash(found, told.questions), {}
            for each in decoding.list_sampling_specs(names):
                before = time.process_time()
                drawn[each.name] = answers(engine, questions, each, told.temperature, model == "teacher")
                row = {"name": "generated", "model": shown_as, "set": name, "drawing": each.name}
                spent = round(time.process_time() - before, 1)
                print(json.dumps(row | {"texts": len(drawn[each.name]), "seconds of CPU": spent}), flush=True)
            table += report(shown_as, name, names, drawn)
    print("\n".join([table[0], "|---|---|---|---|---|---|---|", *table[1:]]))


def choices(samples: list[int]) -> list[str]:
    return ["greedy", *(f"{choice}-{number}" for choice in ("vote", "best") for number in samples)]


def of_world(path: Path, name: str) -> list[Question]:
    """Test questions of a set of the embedded world."""
    told = [json.loads(row) for row in path.read_text("utf-8").splitlines()]
    return [
        Question(f"{name}/{row['id']}", row["question"], row["answer"], name, "test", row["task"])
        for row in told
        if splits.split_of(row["question"], 0.25, 0.25) == "test"
    ]


def answers(
    engine: inference.Engine,
    questions: list[Question],
    drawing: decoding.SamplingSpec,
    temperature: float,
    taught: bool,
) -> list[Prediction]:
    form, style = prompts.FORMATS["zero-shot-rationale"], prompts.TEACHER_STYLE if taught else prompts.PAPER_STYLE
    batches = evaluation.predict_answers(
        engine,
        questions,
        lambda question: prompts.build_prompt(question.text, form, style=style),
        inference.Decode(
            max_tokens=96 if taught else 64,
            temperature=temperature if drawing.sampled else 0.0,
            seed=1,
            calculator=drawing.calculator,
            likelihood=drawing.sampled,
        ),
        samples=drawing.samples,
        budget=32768,
    )
    return [each for batch in batches for each in batch]


def report(model: str, name: str, names: list[str], drawn: dict[str, list[Prediction]]) -> list[str]:
    """Prints the lines of one model and set; returns the rows of the table."""
    right: dict[str, dict[str, bool]] = {}
    table = []
    for each in names:
        chosen = decoding.choose_answers(each, drawn[decoding.parse_decoding(each).spec.name])
        right[each] = {one.question: one.grade == "right" for one in chosen}
    order = sorted(right["greedy"])
    for each, own in right.items():
        total, n = sum(own.values()), len(own)
        low, high = intervals.wilson_interval(total, n)
        change = intervals.paired_difference([own[key] for key in order], [right["greedy"][key] for key in order])
        row = {"name": "decoding", "model": model, "set": name, "decoding": each, "n": n, "right": shown(total / n)}
        row |= {"interval": [shown(low), shown(high)], "against greedy": [shown(value) for value in change]}
        print(json.dumps(row), flush=True)
        against = [f"{shown(value):+}" for value in change]
        cells = [model, f"{name}, {n}", each, shown(total / n), f"{shown(low)} to {shown(high)}"]
        cells += [against[0], f"{against[1]} to {against[2]}"] if each != "greedy" else ["", ""]
        table.append(f"| {' | '.join(map(str, cells))} |")
    for drawing, samples in drawn.items():
        if drawing.startswith("greedy"):
            continue
        for one in decoding.compute_pass_curves(
            samples, checkpoint=BASE, split="test", format="zero-shot-rationale", drawing=drawing
        ):
            if one.k & (one.k - 1) == 0 or one.k == len(samples) // one.n:
                row = {"name": "tries", "model": model, "set": name, "drawing": drawing, "how": one.how, "k": one.k}
                row |= {"right": shown(one.accuracy), "interval": [shown(one.low), shown(one.high)]}
                print(json.dumps(row), flush=True)
    return table


def shown(share: float) -> float:
    return round(100 * share, 1)


if __name__ == "__main__":
    main()
