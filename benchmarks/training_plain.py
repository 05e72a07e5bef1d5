"""A training step of a real model's whole shape, compared with a plain loop of transformers.

    python benchmarks/training_plain.py [--data FOLDER] [--shapes smollm2 qwen] [--prompts 16] [--rounds 3]

    smollm2  SmolLM2-135M: 30 layers of width 576, tied embeddings of 49,152 tokens
    qwen     Qwen2.5-0.5B: 24 layers of width 896, tied embeddings of 151,936 tokens (without the biases of q, k and v)

Random weights, the same on both sides; T5's tokenizer; ASDiv's questions, each with one rationale written from its
formula, behind the same system message of 25 tokens, as a chat template adds it (with `--no-system` without it). Both sides
take the same rows in every step, in bfloat16 autocast with fused AdamW, clipping at 1 and one thread. The plain loop pads
micro-batches of `--rows` rows of similar lengths, passes labels to the model, and so computes logits at every position, as
transformers' Trainer does; potstill's micro-batches have at most `--budget` tokens. Sides alternate, and the first step of
each is not counted. Prints one JSON line per shape: `ours` and `theirs` are CPU seconds per step (medians), `ratio` theirs /
ours, `ratios` those of the single rounds, `losses` the mean loss of the counted steps on both sides.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch

from potstill import models, prompts, tokenization
from potstill.data import word_problems
from potstill.models import Example, Shape
from potstill.records import Target
from potstill.training import examples as batches
from potstill.training import loop, optimizer

SHAPES = {
    "smollm2": Shape("causal", 576, 30, 9, 1536, 64, 49152, kv_heads=3, tied=True),
    "qwen": Shape("causal", 896, 24, 14, 4864, 64, 151936, kv_heads=2, tied=True),
}
SYSTEM = "system\nYou are a careful assistant who solves word problems step by step and states the answer last.\nuser\n"
RATE = 1e-4


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=os.environ.get("POTSTILL_DATA"))
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=list(SHAPES))
    parser.add_argument("--prompts", type=int, default=16, help="rows per step")
    parser.add_argument("--rows", type=int, default=8, help="rows of the plain loop's micro-batches")
    parser.add_argument("--budget", type=int, default=2048, help="tokens of potstill's micro-batches")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--no-system", action="store_true")
    args = parser.parse_args()
    if args.data is None:
        parser.error("set POTSTILL_DATA or give --data")
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    for name in args.shapes:
        print(json.dumps({"shape": name, **compare(SHAPES[name], args)}), flush=True)


def compare(shape: Shape, args: argparse.Namespace) -> dict[str, Any]:
    tokenizer = tokenization.load_tokenizer(args.data / "tokenizers" / "t5")
    rows = list(read_rows(tokenizer, args))
    steps = [rows[start : start + args.prompts] for start in range(0, len(rows), args.prompts)][: args.rounds + 1]
    seconds: dict[str, list[float]] = {"ours": [], "theirs": []}
    losses: dict[str, list[float]] = {"ours": [], "theirs": []}
    with TemporaryDirectory() as folder:
        models.random_student(shape, tokenizer, 1).save(Path(folder))
        sides = {"ours": train_ours(Path(folder), steps, args), "theirs": train_theirs(Path(folder), steps, args)}
        for step in range(len(steps)):
            for name, side in sides.items():
                start = time.process_time()
                loss = next(side)
                if step:
                    seconds[name].append(time.process_time() - start)
                    losses[name].append(loss)
    ratios = [theirs / ours for ours, theirs in zip(seconds["ours"], seconds["theirs"], strict=True)]
    return {
        **{name: round(statistics.median(values), 2) for name, values in seconds.items()},
        "ratio": round(statistics.median(ratios), 2),
        "ratios": [round(ratio, 2) for ratio in ratios],
        "losses": [round(statistics.fmean(losses[name]), 4) for name in ("ours", "theirs")],
        "tokens per step": round(statistics.fmean(count_tokens(step) for step in steps[1:])),
        "supervised": round(statistics.fmean(sum(len(row.target) for row in step) for step in steps[1:])),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "machine": platform.processor() or platform.machine(),
    }


def count_tokens(rows: list[Example]) -> int:
    return sum(len(row.prompt) + len(row.target) - 1 for row in rows)


def read_rows(tokenizer: tokenization.Tokenizer, args: argparse.Namespace) -> Iterator[Example]:
    questions = [question for question in word_problems.read_asdiv(args.data) if question.rationale]
    system = "" if args.no_system else SYSTEM
    for question in questions[: args.prompts * (args.rounds + 1)]:
        turns = prompts.build_prompt(question.text, prompts.FORMATS["zero-shot-rationale"], ())
        prompt = tokenizer.encode(system + turns.plain)
        ids = (*tokenizer.encode(prompts.format_solution(question.rationale or "", question.gold)).ids, tokenizer.eos)
        kinds = ("hard",) * len(ids)
        yield Example(tuple(prompt.ids), Target(ids, range(len(ids) + 1), ids, [1.0] * len(ids), kinds))


def train_ours(folder: Path, steps: list[list[Example]], args: argparse.Namespace) -> Iterator[float]:
    student = models.open_student(folder)
    adam = optimizer.build_optimizer(student, RATE)
    groups = [[[row] for row in step] for step in steps]

    def micro_batches(step: int) -> list[list[Example]]:
        return batches.build_micro_batches(groups[step - 1], args.budget, student.padded)

    results = loop.train_steps(
        student, adam, micro_batches, first=1, last=len(steps), schedule=lambda _: RATE, seed=1, precision="bfloat16"
    )
    for result in results:
        yield result.loss


def train_theirs(folder: Path, steps: list[list[Example]], args: argparse.Namespace) -> Iterator[float]:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    model.train()
    adam = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=0.0, fused=True)
    for rows in steps:
        ordered = sorted(rows, key=lambda row: len(row.prompt) + len(row.target))
        supervised = sum(len(row.target) for row in rows)
        total = 0.0
        for start in range(0, len(ordered), args.rows):
            group = [pad_row(row) for row in ordered[start : start + args.rows]]
            width = max(len(ids) for ids, _ in group)
            ids = torch.tensor([[*ids, *[0] * (width - len(ids))] for ids, _ in group])
            mask = torch.tensor([[1] * len(ids) + [0] * (width - len(ids)) for ids, _ in group])
            labels = torch.tensor([[*labels, *[-100] * (width - len(labels))] for _, labels in group])
            with torch.autocast("cpu", torch.bfloat16):
                loss = model(ids, attention_mask=mask, labels=labels, num_items_in_batch=supervised).loss
            loss.backward()
            total += loss.item()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        adam.step()
        adam.zero_grad(set_to_none=True)
        yield total


def pad_row(row: Example) -> tuple[list[int], list[int]]:
    """The input ids and the labels of a row; the prompt has no labels."""
    ids = [*row.prompt, *row.target.ids]
    return ids, [-100] * len(row.prompt) + list(row.target.ids)


if __name__ == "__main__":
    main()
