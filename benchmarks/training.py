"""A training step, compared with the trainers of other projects.

    python benchmarks/training.py --peers ENV/bin/python [--data FOLDER] [--cases t5 causal] [--layers 2] [--rounds 3]
    python benchmarks/training.py --count

    t5       FlanT5-base's shape with `--layers` instead of 12 + 12 layers, T5's tokenizer, against Seq2SeqTrainer
    causal   Qwen2.5-0.5B's shape with `--layers` instead of 24, GPT-2's tokenizer (Qwen's is not among the data),
             against TRL's SFTTrainer on the same rows, with complete logits and with its chunked loss

Random weights, the same on both sides; GSM8K; about `--examples` rows a step: 48.3 % few-shot chains, 48.3 % zero-shot
chains and 1.7 % bare answers of either kind, as in the paper; 4 demonstrations; m chains a prompt (`--chains`; the paper
has 1). GSM8K has one solution a question, so further chains are solutions of other questions. Every supervised token
weighs the same, because the peers have no weights of formats. Targets are hard, so that both sides have the same objective;
AdamW, learning rate 1e-4, clipping at 1, no gradient checkpointing. Every step takes all rows once. The peers use
micro-batches of `--rows` rows grouped by length, potstill micro-batches of `--budget` tokens.

Each side is a process that waits between steps; steps of all sides alternate, and the first is not counted. Prints one
JSON line for each case: `ours` and `theirs` are examples per second of one core (medians), `spread` their minima and
maxima, `ratio` ours / theirs, `ratios` those of the single rounds; `MiB` is the peak memory beyond the loaded weights
(including gradients and AdamW's state), `loss` the loss of each step. With --parts, at the first m above 1, further
lines measure potstill without sharing, then also with padding, then also with complete logits. `trainers.py` describes
the peers' environment; `training_parts.py` is potstill's side.

With --count nothing is trained: the lines have the tokens that each side would compute, `pairs` the share of padding in the
pairs of potstill's attention, `least padding` the share if its rows were padded and cut for the least padding, and
`micro-batches` their numbers with and without padding.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch

from potstill import models, prompts, tokenization
from potstill.alignment import cross_tokenizer
from potstill.data import word_problems
from potstill.models import SHAPES, Example, Student
from potstill.records import Chain
from potstill.training import data_order
from training_parts import group_by_prompt

ROWS = {"few-shot-rationale": 483, "few-shot-answer": 17, "zero-shot-rationale": 483, "zero-shot-answer": 17}
PARTS = ("no sharing", "padding", "whole logits")
RATE = 1e-4


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peers", help="the python of the peers' environment")
    parser.add_argument("--data", type=Path, default=os.environ.get("POTSTILL_DATA"))
    parser.add_argument("--cases", nargs="+", default=["t5", "causal"])
    parser.add_argument("--chains", nargs="+", type=int, default=[1, 4, 8])
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--examples", type=int, default=60, help="approximate number of rows of a step")
    parser.add_argument("--rows", type=int, default=10, help="rows of the peers' micro-batches")
    parser.add_argument("--budget", type=int, default=8192, help="tokens of potstill's micro-batches")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--precisions", nargs="+", default=["float32", "bfloat16"], help="all but the first only at the first m"
    )
    parser.add_argument("--parts", action="store_true", help="measure potstill without some parts too")
    parser.add_argument("--count", action="store_true", help="only count tokens")
    args = parser.parse_args()
    if args.peers is None and not args.parts and not args.count:
        parser.error("--peers is needed, or --parts, or --count")
    for case in args.cases:
        with TemporaryDirectory() as folder:
            student = make_student(case, args.layers, Path(args.data), Path(folder))
            for m in args.chains:
                examples = make_examples(student, Path(args.data), m, args.examples)
                if args.count:
                    print(json.dumps({"name": case, "m": m} | count_tokens(student, examples, args)), flush=True)
                else:
                    measure(case, m, student, Path(folder), args, examples)


def count_tokens(student: Student, examples: list[Example], args: argparse.Namespace) -> dict[str, Any]:
    """The tokens that each side computes. Peers: rows sorted by length, micro-batches of `--rows` rows, each row padded to
    the longest. potstill: the existing tokens, a shared prompt once."""
    lengths = [(len(row.prompt), len(row.target)) for row in examples]
    if student.family == "causal":
        lengths = [(prompt + target, 0) for prompt, target in lengths]
    lengths.sort(reverse=True)
    theirs, real = [0, 0], sum(map(sum, lengths))
    for start in range(0, len(lengths), args.rows):
        batch_lengths = lengths[start : start + args.rows]
        for side in (0, 1):
            theirs[side] += len(batch_lengths) * max(length[side] for length in batch_lengths)
    groups = list(group_by_prompt(examples).values())
    sizes = [(len(group[0].prompt), sum(len(row.target) for row in group)) for group in groups]
    cuts = data_order.split_into_micro_batches(sizes, args.budget, padded=False)
    batches = [student.batch([row for index in cut for row in groups[index]]) for cut in cuts]
    ours = sum(batch.tokens for batch in batches)
    rows = [(len(row.prompt), len(row.target)) for row in examples]
    padded = data_order.split_into_micro_batches(rows, args.budget)
    slots = sum(len(cut) * sum(max(rows[i][side] for i in cut) for side in (0, 1)) for cut in padded)
    computed = pairs = 0
    for cut, batch in zip(cuts, batches, strict=True):
        packing, first = batch.packing, batch.layouts[:1]
        blocks = packing.blocks if packing is not None else first[0].blocks
        computed += sum(block.rows * block.queries * block.keys for block in blocks)
        for group in (groups[index] for index in cut):
            prompt, inputs = len(group[0].prompt), [len(row.target) - 1 for row in group]
            if packing is None:
                pairs += prompt**2
            elif len(inputs) == 1:
                pairs += (prompt + inputs[0]) ** 2
            else:
                pairs += prompt**2 + sum(length * (prompt + length) for length in inputs)
    return {
        "rows": len(examples),
        "formats": dict(Counter(row.format for row in examples)),
        "theirs": theirs,
        "theirs without padding": real,
        "ours": ours,
        "ratio": round(sum(theirs) / ours, 2),
        "micro-batches": [len(padded), len(cuts)],
        "least padding": round(1 - real / slots, 3),
        "supervised": sum(len(row.target) for row in examples),
        "pairs": round(1 - pairs / computed, 3),
    }


def measure(
    case: str, m: int, student: Student, folder: Path, args: argparse.Namespace, examples: list[Example]
) -> None:
    rows = [(list(example.prompt), list(example.target.ids)) for example in examples]
    common = {"folder": str(folder), "examples": rows, "rows": args.rows, "budget": args.budget, "rate": RATE}
    common |= {"family": student.family, "steps": args.rounds + 1}
    for precision in args.precisions if m == args.chains[0] else args.precisions[:1]:
        half = precision == "bfloat16"
        sides = {"ours": [sys.executable, str(Path(__file__).parent / "training_parts.py")]}
        jobs: dict[str, dict[str, Any]] = {"ours": {"what": "ours", "bf16": half}}
        if args.parts and m == next((n for n in args.chains if n > 1), 0) and not half:
            for part in PARTS:
                sides[part], jobs[part] = sides["ours"], {"what": part, "bf16": False}
        if args.peers:
            command = [args.peers, str(Path(__file__).parent / "trainers.py")]
            peers = (
                {"Seq2SeqTrainer": "nll"}
                if case == "t5"
                else {"SFTTrainer": "nll", "SFTTrainer, chunked": "chunked_nll"}
            )
            for name, loss in peers.items():
                sides[name], jobs[name] = command, {"what": name.split(",")[0], "loss": loss, "bf16": half}
        results = alternate(sides, {name: common | job for name, job in jobs.items()}, args.rounds)
        formats = dict(Counter(example.format for example in examples))
        about = {"m": m, "examples": len(rows), "formats": formats, "rows": args.rows}
        about |= {"layers": args.layers, "precision": precision}
        for name, theirs in results.items():
            if name != "ours":
                print_row(f"{case}: {name}", len(rows), results["ours"], theirs, about)


def alternate(
    sides: dict[str, list[str]], jobs: dict[str, dict[str, Any]], rounds: int
) -> dict[str, list[dict[str, float]] | str]:
    """The steps of each side, or the reason why it has none. The sides take turns."""
    results: dict[str, list[dict[str, float]] | str] = {}
    running = {}
    for name, command in sides.items():
        running[name] = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        first = ask(running[name], json.dumps(jobs[name]))
        results[name] = [] if "ready" in first else first.get("why", "failed")
    for turn in range(rounds + 1):
        for name, worker in running.items():
            if isinstance(steps := results[name], list):
                step = ask(worker, "step")
                if "s" not in step:
                    results[name] = step.get("why", "failed")
                elif turn:
                    steps.append(step)
                else:
                    steps.append(step | {"s": -1.0})
    for worker in running.values():
        assert worker.stdin is not None
        worker.stdin.close()
        worker.wait()
    return results


def ask(worker: subprocess.Popen[str], line: str) -> dict[str, Any]:
    assert worker.stdin is not None and worker.stdout is not None
    try:
        worker.stdin.write(line + "\n")
        worker.stdin.flush()
    except BrokenPipeError:
        return {"why": "ended"}
    answer = worker.stdout.readline()
    return json.loads(answer) if answer else {"why": f"ended ({worker.wait()})"}


def print_row(name: str, rows: int, ours: Any, theirs: Any, about: dict[str, Any]) -> None:
    if isinstance(ours, str) or isinstance(theirs, str):
        print(json.dumps({"name": name, "ours": ours, "theirs": theirs} | about), flush=True)
        return
    rates = [[rows / step["s"] for step in side if step["s"] > 0] for side in (ours, theirs)]
    medians = [statistics.median(side) for side in rates]
    row = {"name": name, "ours": round(medians[0], 3), "theirs": round(medians[1], 3)}
    row |= {"ratio": round(medians[0] / medians[1], 2), "unit": "examples/s", "n": len(rates[0])}
    row |= {"ratios": [round(one / other, 2) for one, other in zip(*rates, strict=True)]}
    row |= {"spread": [[round(end(side), 3) for end in (min, max)] for side in rates]}
    row |= {"MiB": [round(side[-1]["MiB"]) for side in (ours, theirs)]}
    row |= {"loss": [[round(step["loss"], 4) for step in side] for side in (ours, theirs)]}
    machine = f"{platform.machine()}, one thread, load {os.getloadavg()[0]:.1f}, torch {torch.__version__}"
    print(json.dumps(row | about | {"machine": machine}), flush=True)


def make_student(case: str, layers: int, data: Path, folder: Path) -> Student:
    """The student of a case, saved in the folder that both sides read."""
    if case == "t5":
        tokenizer = tokenization.load_tokenizer(data / "tokenizers" / "t5")
        student = models.random_student(replace(SHAPES["flan-t5-base"], layers=layers), tokenizer, 0)
        student.save(folder)
        return student
    from transformers import Qwen2Config, Qwen2ForCausalLM

    tokenizer = tokenization.load_tokenizer(data / "tokenizers" / "gpt2")
    config = Qwen2Config(
        vocab_size=151936, hidden_size=896, intermediate_size=4864, num_hidden_layers=layers, num_attention_heads=14,
        num_key_value_heads=2, tie_word_embeddings=True, pad_token_id=tokenizer.pad, eos_token_id=tokenizer.eos,
    )  # fmt: skip
    torch.manual_seed(0)
    Qwen2ForCausalLM(config).save_pretrained(folder)
    for name, content in tokenizer.files.items():
        (folder / name).write_bytes(content)
    return models.open_student(folder)


def make_examples(student: Student, data: Path, m: int, examples: int) -> list[Example]:
    """About `examples` rows in the paper's mix. A group of a rationale format has m rows, a group of bare answers one."""
    quotas = {name: rows if prompts.FORMATS[name].rationale else rows * m for name, rows in ROWS.items()}
    rows_per_group = sum(ROWS.values()) * m / sum(quotas.values())
    questions = [raw for raw in word_problems.read_gsm8k(data) if raw.rationale][:400]
    order = data_order.DataOrder(
        seed=1,
        groups_per_step=max(1, round(examples / rows_per_group)),
        quotas={prompts.FORMATS[name]: quota for name, quota in quotas.items()},
        questions=[(str(index), m) for index in range(len(questions))],
        chains_per_prompt=m,
    )
    solved = {str(i): prompts.Demonstration(raw.text, raw.gold, raw.rationale or "") for i, raw in enumerate(questions)}
    rows = []
    for group in data_order.draw_groups(order, 1):
        chosen = data_order.draw_demonstrations(1, group.turn, group.question, group.format, tuple(solved), 4)
        demonstrations = [solved[name] for name in chosen] if group.format.few_shot else []
        question = questions[int(group.question)]
        ids = tuple(student.encode(student.render(prompts.build_prompt(question.text, group.format, demonstrations))))
        texts = [prompts.format_answer(question.gold)]
        if group.format.rationale:
            others = [questions[(int(group.question) + chain) % len(questions)] for chain in group.chains]
            texts = [prompts.format_solution(other.rationale or "", other.gold) for other in others]
        for text in texts:
            chain = Chain.from_text(group.question, 0, text, source="human")
            target = cross_tokenizer.transfer(chain, student.tokenizer, "one-hot")
            rows.append(Example(ids, target, 1.0, group.question, group.format.name))
    return rows


if __name__ == "__main__":
    main()
