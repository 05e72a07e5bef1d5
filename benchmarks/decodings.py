"""Accuracy of every decoding on the demo's test questions, with intervals.

    python benchmarks/decodings.py [--models teacher FOLDER ...] [--questions 200] [--samples 8 40] [--sets steps]

A model is the name of a toy model (the prompts of `teacher` are those it was trained on) or a folder, such as the student
of a finished run. Prints one JSON line for each model, set and decoding: accuracy with its 95 % interval (Wilson), and
the paired difference from greedy on the same questions (Newcombe). Then one line for each number of samples k: the
vote, the likeliest text, and whether any is right, as means over all choices of k samples. The last lines are a table
of all decodings. Models and sets can be measured in separate calls.
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
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["teacher", "student", "student-causal"])
    parser.add_argument("--sets", nargs="+", default=["steps"])
    parser.add_argument("--questions", type=int, default=200)
    parser.add_argument("--samples", nargs="+", type=int, default=[8, 40])
    parser.add_argument("--temperature", type=float, default=0.7)
    args = parser.parse_args()
    torch.set_num_threads(1)
    names = [f"{choice}{end}" for end in ("", "+calculator") for choice in choices(args.samples)]
    table = ["| model | set | decoding | right | 95 % interval | against greedy | 95 % interval, paired |"]
    with TemporaryDirectory() as folder:
        demo.copy_data(Path(folder))
        sets = {name: read_questions(Path(folder) / "sets" / f"{name}.jsonl", name) for name in args.sets}
    for model in args.models:
        folder = TOY_MODELS.get(model, Path(model))
        label = folder.parent.name if model not in TOY_MODELS and folder.name == "student" else folder.name
        engine = inference.open_engine(folder)
        for name, all_questions in sets.items():
            questions = splits.sample_by_hash(all_questions, args.questions)
            samples: dict[str, list[Prediction]] = {}
            for spec in decoding.list_sampling_specs(names):
                start = time.process_time()
                samples[spec.name] = answers(engine, questions, spec, args.temperature, model == "teacher")
                row = {"name": "generated", "model": label, "set": name, "drawing": spec.name}
                seconds = round(time.process_time() - start, 1)
                print(json.dumps(row | {"texts": len(samples[spec.name]), "seconds of CPU": seconds}), flush=True)
            table += report(label, name, names, samples)
    print("\n".join([table[0], "|---|---|---|---|---|---|---|", *table[1:]]))


def choices(samples: list[int]) -> list[str]:
    return ["greedy", *(f"{choice}-{number}" for choice in ("vote", "best") for number in samples)]


def read_questions(path: Path, name: str) -> list[Question]:
    """The test questions of one of the demo's sets."""
    rows = [json.loads(row) for row in path.read_text("utf-8").splitlines()]
    return [
        Question(f"{name}/{row['id']}", row["question"], row["answer"], name, "test", row["task"])
        for row in rows
        if splits.split_of(row["question"], 0.25, 0.25) == "test"
    ]


def answers(
    engine: inference.Engine,
    questions: list[Question],
    spec: decoding.SamplingSpec,
    temperature: float,
    teacher_prompts: bool,
) -> list[Prediction]:
    form, style = (
        prompts.FORMATS["zero-shot-rationale"],
        prompts.TEACHER_STYLE if teacher_prompts else prompts.PAPER_STYLE,
    )
    batches = evaluation.predict_answers(
        engine,
        questions,
        lambda question: prompts.build_prompt(question.text, form, style=style),
        inference.Decode(
            max_tokens=96 if teacher_prompts else 64,
            temperature=temperature if spec.sampled else 0.0,
            seed=1,
            calculator=spec.calculator,
            likelihood=spec.sampled,
        ),
        samples=spec.samples,
        budget=32768,
    )
    return [prediction for batch in batches for prediction in batch]


def report(model: str, name: str, names: list[str], samples_of: dict[str, list[Prediction]]) -> list[str]:
    """Print the lines of one model and set, and return the rows of the table."""
    right: dict[str, dict[str, bool]] = {}
    table = []
    for decoder in names:
        chosen = decoding.choose_answers(decoder, samples_of[decoding.parse_decoding(decoder).spec.name])
        right[decoder] = {answer.question: answer.grade == "right" for answer in chosen}
    order = sorted(right["greedy"])
    for decoder, right_answers in right.items():
        total, n = sum(right_answers.values()), len(right_answers)
        low, high = intervals.wilson_interval(total, n)
        greedy = [right["greedy"][key] for key in order]
        change = intervals.paired_difference([right_answers[key] for key in order], greedy)
        row = {
            "name": "decoding",
            "model": model,
            "set": name,
            "decoding": decoder,
            "n": n,
            "right": percent(total / n),
        }
        row |= {"interval": [percent(low), percent(high)], "against greedy": [percent(value) for value in change]}
        print(json.dumps(row), flush=True)
        against = [f"{percent(value):+}" for value in change]
        cells = [model, f"{name}, {n}", decoder, percent(total / n), f"{percent(low)} to {percent(high)}"]
        cells += [against[0], f"{against[1]} to {against[2]}"] if decoder != "greedy" else ["", ""]
        table.append(f"| {' | '.join(map(str, cells))} |")
    for drawing, samples in samples_of.items():
        if drawing.startswith("greedy"):
            continue
        for point in decoding.compute_pass_curves(
            samples, checkpoint=BASE, split="test", format="zero-shot-rationale", drawing=drawing
        ):
            if point.k & (point.k - 1) == 0 or point.k == len(samples) // point.n:
                row = {"name": "tries", "model": model, "set": name, "drawing": drawing, "how": point.how, "k": point.k}
                row |= {"right": percent(point.accuracy), "interval": [percent(point.low), percent(point.high)]}
                print(json.dumps(row), flush=True)
    return table


def percent(share: float) -> float:
    return round(100 * share, 1)


if __name__ == "__main__":
    main()
