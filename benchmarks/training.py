"""A training step, ours beside the trainers of other projects: one JSON line a case.

    python benchmarks/training.py --peers ENV/bin/python [--data FOLDER] [--cases t5 causal] [--layers 2] [--rounds 3]
    python benchmarks/training.py --count

    t5       FlanT5-base's shape with `--layers` in place of 12 + 12 layers, T5's tokenizer, against Seq2SeqTrainer
    causal   Qwen2.5-0.5B's shape with `--layers` in place of 24, GPT-2's tokenizer (Qwen's is not among the data),
             against TRL's SFTTrainer on the same rows of text, with whole logits and with its chunked loss

Random weights, the same on both sides; GSM8K; a step has about `--examples` rows, of which 48.3 % are few-shot chains,
48.3 % zero-shot chains and 1.7 % bare answers of either kind, as in the paper; 4 demonstrations, m chains a prompt
(`--chains`; the paper: 1). GSM8K has one solution a question: further chains are other questions' solutions, which are
as long as solutions are. Every supervised token weighs the same, since the other side knows no weights of formats.
Targets are hard, so that both sides have one objective; AdamW, rate 1e-4, clipping at 1, no recomputing of layers.
Every step takes the same rows once, which is one epoch of theirs. They use micro-batches of `--rows` rows grouped by
length, we of `--budget` tokens.

Each side is a process of its own that waits between steps; steps of all sides alternate, the first is not counted.
`ours` and `theirs` are examples a second of one core's time (medians), `spread` the least and the most of each, `ratio`
ours / theirs, `ratios` those of the single rounds; `MiB` is the peak beyond the loaded weights (gradients and AdamW's
state are in it), `loss` that of each step. With --parts, at the first m above 1, lines are ours with one more part
taken away: no sharing; padding as well; whole logits as well. peers: see `trainers.py`; our side: `training_parts.py`.

With --count nothing is computed: lines are the tokens for which each side would compute, `pairs` the share of padding
in the pairs of our attention, `least padding` that of the places if our rows were padded and cut for the least of it,
and `micro-batches` how many that would be and how many ours are.
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
from training_parts import together

ROWS = {"few-shot-rationale": 483, "few-shot-answer": 17, "zero-shot-rationale": 483, "zero-shot-answer": 17}
PARTS = ("no sharing", "padding", "whole logits")
RATE = 1e-4


def main() -> None:
    asked = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    asked.add_argument("--peers", help="the python of the peers' environment")
    asked.add_argument("--data", type=Path, default=os.environ.get("POTSTILL_DATA"))
    asked.add_argument("--cases", nargs="+", default=["t5", "causal"])
    asked.add_argument("--chains", nargs="+", type=int, default=[1, 4, 8])
    asked.add_argument("--layers", type=int, default=2)
    asked.add_argument("--examples", type=int, default=60, help="rows of a step, about")
    asked.add_argument("--rows", type=int, default=10, help="of their micro-batches")
    asked.add_argument("--budget", type=int, default=8192, help="tokens of our micro-batches")
    asked.add_argument("--rounds", type=int, default=3)
    asked.add_argument(
        "--precisions", nargs="+", default=["float32", "bfloat16"], help="the latter at the first m only"
    )
    asked.add_argument("--parts", action="store_true", help="what each part brings")
    asked.add_argument("--count", action="store_true", help="count tokens, and compute nothing")
    told = asked.parse_args()
    if told.peers is None and not told.parts and not told.count:
        asked.error("--peers is needed, or --parts, or --count")
    for case in told.cases:
        with TemporaryDirectory() as folder:
            student = make(case, told.layers, Path(told.data), Path(folder))
            for m in told.chains:
                examples = step(student, Path(told.data), m, told.examples)
                if told.count:
                    print(json.dumps({"name": case, "m": m} | count(student, examples, told)), flush=True)
                else:
                    measure(case, m, student, Path(folder), told, examples)


def count(student: Student, examples: list[Example], told: argparse.Namespace) -> dict[str, Any]:
    """For how many tokens each side computes: theirs sorted by length, micro-batches of `--rows` rows, each padded to
    its longest; ours the tokens that there are, a shared prompt once."""
    lengths = [(len(row.prompt), len(row.target)) for row in examples]
    if student.family == "causal":
        lengths = [(prompt + target, 0) for prompt, target in lengths]
    lengths.sort(reverse=True)
    theirs, real = [0, 0], sum(map(sum, lengths))
    for start in range(0, len(lengths), told.rows):
        own = lengths[start : start + told.rows]
        for side in (0, 1):
            theirs[side] += len(own) * max(length[side] for length in own)
    parts = list(together(examples).values())
    sizes = [(len(part[0].prompt), sum(len(row.target) for row in part)) for part in parts]
    cuts = data_order.split_into_micro_batches(sizes, told.budget, padded=False)
    batches = [student.batch([row for place in cut for row in parts[place]]) for cut in cuts]
    ours = sum(batch.tokens for batch in batches)
    rows = [(len(row.prompt), len(row.target)) for row in examples]
    padded = data_order.split_into_micro_batches(rows, told.budget)
    slots = sum(len(cut) * sum(max(rows[i][side] for i in cut) for side in (0, 1)) for cut in padded)
    squares = pairs = 0
    for cut, batch in zip(cuts, batches, strict=True):
        packing, first = batch.packing, batch.layouts[:1]
        own = packing.blocks if packing is not None else first[0].blocks
        squares += sum(square.rows * square.queries * square.keys for square in own)
        for part in (parts[place] for place in cut):
            prompt, read = len(part[0].prompt), [len(row.target) - 1 for row in part]
            if packing is None:
                pairs += prompt**2
            elif len(read) == 1:
                pairs += (prompt + read[0]) ** 2
            else:
                pairs += prompt**2 + sum(each * (prompt + each) for each in read)
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
        "pairs": round(1 - pairs / squares, 3),
    }


def measure(
    case: str, m: int, student: Student, folder: Path, told: argparse.Namespace, examples: list[Example]
) -> None:
    rows = [(list(example.prompt), list(example.target.ids)) for example in examples]
    common = {"folder": str(folder), "examples": rows, "rows": told.rows, "budget": told.budget, "rate": RATE}
    common |= {"family": student.family, "steps": told.rounds + 1}
    for precision in told.precisions if m == told.chains[0] else told.precisions[:1]:
        half = precision == "bfloat16"
        sides = {"ours": [sys.executable, str(Path(__file__).parent / "training_parts.py")]}
        jobs: dict[str, dict[str, Any]] = {"ours": {"what": "ours", "bf16": half}}
        if told.parts and m == next((n for n in told.chains if n > 1), 0) and not half:
            for part in PARTS:
                sides[part], jobs[part] = sides["ours"], {"what": part, "bf16": False}
        if told.peers:
            other = [told.peers, str(Path(__file__).parent / "trainers.py")]
            peers = (
                {"Seq2SeqTrainer": "nll"}
                if case == "t5"
                else {"SFTTrainer": "nll", "SFTTrainer, chunked": "chunked_nll"}
            )
            for name, loss in peers.items():
                sides[name], jobs[name] = other, {"what": name.split(",")[0], "loss": loss, "bf16": half}
        found = alternate(sides, {name: common | job for name, job in jobs.items()}, told.rounds)
        formats = dict(Counter(example.format for example in examples))
        about = {"m": m, "examples": len(rows), "formats": formats, "rows": told.rows}
        about |= {"layers": told.layers, "precision": precision}
        for name, theirs in found.items():
            if name != "ours":
                tell(f"{case}: {name}", len(rows), found["ours"], theirs, about)


def alternate(
    sides: dict[str, list[str]], jobs: dict[str, dict[str, Any]], rounds: int
) -> dict[str, list[dict[str, float]] | str]:
    """What each side says of its steps, or why it has nothing to say. One of them computes at a time."""
    found: dict[str, list[dict[str, float]] | str] = {}
    running = {}
    for name, command in sides.items():
        running[name] = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        first = ask(running[name], json.dumps(jobs[name]))
        found[name] = [] if "ready" in first else first.get("why", "failed")
    for turn in range(rounds + 1):
        for name, worker in running.items():
            if isinstance(own := found[name], list):
                step = ask(worker, "step")
                if "s" not in step:
                    found[name] = step.get("why", "failed")
                elif turn:
                    own.append(step)
                else:
                    own.append(step | {"s": -1.0})
    for worker in running.values():
        assert worker.stdin is not None
        worker.stdin.close()
        worker.wait()
    return found


def ask(worker: subprocess.Popen[str], line: str) -> dict[str, Any]:
    assert worker.stdin is not None and worker.stdout is not None
    try:
        worker.stdin.write(line + "\n")
        worker.stdin.flush()
    except BrokenPipeError:
        return {"why": "ended"}
    told = worker.stdout.readline()
    return json.loads(told) if told else {"why": f"ended ({worker.wait()})"}


def tell(name: str, rows: int, ours: Any, theirs: Any, about: dict[str, Any]) -> None:
    if isinstance(ours, str) or isinstance(theirs, str):
        print(json.dumps({"name": name, "ours": ours, "theirs": theirs} | about), flush=True)
        return
    rates = [[rows / step["s"] for step in side if step["s"] > 0] for side in (ours, theirs)]
    middle = [statistics.median(own) for own in rates]
    row = {"name": name, "ours": round(middle[0], 3), "theirs": round(middle[1], 3)}
    row |= {"ratio": round(middle[0] / middle[1], 2), "unit": "examples/s", "n": len(rates[0])}
    row |= {"ratios": [round(one / other, 2) for one, other in zip(*rates, strict=True)]}
    row |= {"spread": [[round(end(own), 3) for end in (min, max)] for own in rates]}
    row |= {"MiB": [round(side[-1]["MiB"]) for side in (ours, theirs)]}
    row |= {"loss": [[round(step["loss"], 4) for step in side] for side in (ours, theirs)]}
    machine = f"{platform.machine()}, one thread, load {os.getloadavg()[0]:.1f}, torch {torch.__version__}"
    print(json.dumps(row | about | {"machine": machine}), flush=True)


def make(case: str, layers: int, data: Path, folder: Path) -> Student:
    """The student of a case, saved in the folder from which both sides read it."""
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


def step(student: Student, data: Path, m: int, examples: int) -> list[Example]:
    """About so many rows, in the paper's mix: a group of a rationale format has m of them, one of bare answers one."""
    quotas = {name: rows if prompts.FORMATS[name].rationale else rows * m for name, rows in ROWS.items()}
    each = sum(ROWS.values()) * m / sum(quotas.values())  # rows of a group, on average
    asked = [raw for raw in word_problems.read_gsm8k(data) if raw.rationale][:400]
    plan = data_order.DataOrder(
        seed=1,
        groups_per_step=max(1, round(examples / each)),
        quotas={prompts.FORMATS[name]: quota for name, quota in quotas.items()},
        questions=[(str(place), m) for place in range(len(asked))],
        chains_per_prompt=m,
    )
    solved = {str(i): prompts.Demonstration(raw.text, raw.gold, raw.rationale or "") for i, raw in enumerate(asked)}
    made = []
    for group in data_order.draw_groups(plan, 1):
        chosen = data_order.draw_demonstrations(1, group.turn, group.question, group.format, tuple(solved), 4)
        shown = [solved[name] for name in chosen] if group.format.few_shot else []
        own = asked[int(group.question)]
        ids = tuple(student.encode(student.render(prompts.build_prompt(own.text, group.format, shown))))
        texts = [prompts.format_answer(own.gold)]
        if group.format.rationale:
            others = [asked[(int(group.question) + chain) % len(asked)] for chain in group.chains]
            texts = [prompts.format_solution(other.rationale or "", other.gold) for other in others]
        for text in texts:
            chain = Chain.from_text(group.question, 0, text, source="human")
            target = cross_tokenizer.transfer(chain, student.tokenizer, "one-hot")
            made.append(Example(ids, target, 1.0, group.question, group.format.name))
    return made


if __name__ == "__main__":
    main()
