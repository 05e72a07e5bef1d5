"""On-policy distillation against TRL's DistillationTrainer, with one vocabulary, on the same texts, on the CPU.

    python -m venv ENV && ENV/bin/pip install -e . && ENV/bin/pip install trl==1.16.0 datasets accelerate
    ENV/bin/python benchmarks/on_policy.py [--rows 16] [--rounds 5]

Student and teacher are random Llama-like models. Both sides get the same token ids, and compute the teacher's
distributions, the loss and its gradient. First the losses are compared, with all tokens of the vocabulary as candidates,
for forward KL, reverse KL and generalized Jensen-Shannon (beta 0.5), and the norm of the gradient. Then the times are
compared, in alternating rounds: TRL compares whole distributions; potstill takes the teacher's 20 most likely tokens, the
written token and a tail. Prints JSON lines: losses of both, seconds of processor time per example (medians), and peak
memory of a process of its own for each side, beyond models and texts.

The texts are drawn, not written by the student: writing costs both sides the same decoding, and TRL decodes with
transformers' `generate`, which `benchmarks/generation.py` compares.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from potstill import demo, models, tokenization
from potstill.inference.transformers import hard_example
from potstill.losses import Loss, OnPolicyLoss
from potstill.models import Example, Shape, Student, WrittenText
from potstill.training import accumulate_gradient
from potstill.training.scorers import teacher_forced_scores

DIVERGENCES = {"forward_kl": 0.0, "generalized_jsd": 0.5, "reverse_kl": 1.0}  # TRL's beta
PROMPT, TEXT, TOP_K = 64, 96, 20  # tokens; candidates


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rows", type=int, default=16, help="number of texts")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--side", help="for internal use: measure the memory of one side")
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.side:
        print(json.dumps(measure_memory(args.side, args.rows)))
        return
    student, teacher = build_models()
    texts = draw_texts(student, args.rows)
    trainer = open_trainer(student, teacher)
    for name, beta in DIVERGENCES.items():
        ours, our_norm = our_step(student, teacher, texts, name, student.tokenizer.size)()
        trainer.beta = beta
        theirs, their_norm = their_step(trainer, student, texts)()
        row = {"name": f"loss {name}", "ours": ours, "theirs": theirs, "gradient": [our_norm, their_norm]}
        print(json.dumps(row), flush=True)
    steps = {
        "ours": our_step(student, teacher, texts, "reverse_kl", TOP_K),
        "theirs": their_step(trainer, student, texts),
    }
    seconds: dict[str, list[float]] = {side: [] for side in steps}
    for _ in range(args.rounds):
        for side, step in steps.items():
            began = time.process_time()
            step()
            seconds[side].append((time.process_time() - began) / args.rows)
    medians = {side: statistics.median(values) for side, values in seconds.items()}
    memory = {side: run_side(side, args.rows) for side in steps}
    for unit, values in (("s per example", medians), ("MiB", memory)):
        ratio = round(values["theirs"] / values["ours"], 2)
        print(
            json.dumps(
                {"name": "reverse_kl", **{s: round(v, 4) for s, v in values.items()}, "ratio": ratio, "unit": unit}
            )
        )


def build_models() -> tuple[Student, Student]:
    tokenizer = tokenization.load_tokenizer(demo.DATA / "models" / "teacher")
    v = tokenizer.size
    sizes = [Shape("causal", 256, 4, 4, 704, 64, v), Shape("causal", 384, 6, 6, 1056, 64, v)]
    student, teacher = (models.random_student(size, tokenizer, seed) for seed, size in enumerate(sizes))
    with torch.no_grad():  # distributions that differ visibly
        teacher.head.weight.mul_(5)
        student.head.weight.mul_(3)
    return student.eval(), teacher.eval()


def draw_texts(student: Student, rows: int) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    """Prompts and texts of random tokens, of different lengths."""
    draw, size = random.Random(1), student.tokenizer.size

    def ids(n: int) -> tuple[int, ...]:
        return tuple(draw.randrange(3, size) for _ in range(n))

    return [(ids(draw.randint(PROMPT // 2, PROMPT)), ids(draw.randint(TEXT // 2, TEXT))) for _ in range(rows)]


def our_step(
    student: Student,
    teacher: Student,
    texts: list[tuple[tuple[int, ...], tuple[int, ...]]],
    divergence: str,
    top_k: int,
) -> Callable[[], tuple[float, float]]:
    loss = OnPolicyLoss(Loss(divergence, "tail", 0.5))

    def step() -> tuple[float, float]:
        student.zero_grad(set_to_none=True)
        rows = [hard_example(prompt, text, None, "q", "own") for prompt, text in texts]
        rows = teacher_forced_scores(teacher, rows, top_k)
        batch = [Example(row.prompt, row.target, 1.0, "q", "own", WrittenText()) for row in rows]
        sums = accumulate_gradient(student, [batch], step=1, seed=1, on_policy_loss=loss)
        return sums.losses["own"] / sums.weights["own"], gradient_norm(student.model)

    return step


def open_trainer(student: Student, teacher: Student) -> Any:
    """TRL's trainer of copies of the models."""
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import DistillationConfig, DistillationTrainer  # pyright: ignore[reportMissingImports]

    folder = Path(tempfile.mkdtemp())
    for name, model in (("student", student), ("teacher", teacher)):
        (folder / name).mkdir()
        model.save(folder / name)
    opened = [
        AutoModelForCausalLM.from_pretrained(folder / name, dtype=torch.float32) for name in ("student", "teacher")
    ]
    tokenizer = AutoTokenizer.from_pretrained(folder / "student", padding_side="left")
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    config = DistillationConfig(output_dir=str(folder / "out"), use_cpu=True, report_to=[], beta=1.0, bf16=False)
    rows = Dataset.from_list([{"prompt": "2 + 2"}] * 8)
    return DistillationTrainer(
        model=opened[0], teacher_model=opened[1], args=config, processing_class=tokenizer, train_dataset=rows
    )


def their_step(
    trainer: Any, student: Student, texts: list[tuple[tuple[int, ...], tuple[int, ...]]]
) -> Callable[[], tuple[float, float]]:
    pad = student.tokenizer.eos

    def padded(rows: list[tuple[int, ...]], left: bool) -> tuple[torch.Tensor, torch.Tensor]:
        width = max(map(len, rows))
        ids, mask = torch.full((len(rows), width), pad), torch.zeros(len(rows), width, dtype=torch.long)
        for index, row in enumerate(rows):
            columns = slice(width - len(row), width) if left else slice(0, len(row))
            ids[index, columns], mask[index, columns] = torch.tensor(row), 1
        return ids, mask

    prompt_ids, prompt_mask = padded([prompt for prompt, _ in texts], True)
    completion_ids, completion_mask = padded([text for _, text in texts], False)
    inputs = {"prompt_ids": prompt_ids, "prompt_mask": prompt_mask}
    inputs |= {"completion_ids": completion_ids, "completion_mask": completion_mask}

    def step() -> tuple[float, float]:
        trainer.model.zero_grad(set_to_none=True)
        loss, _, _ = trainer._compute_loss(trainer.accelerator.unwrap_model(trainer.model), inputs, None)
        loss.backward()
        return float(loss), gradient_norm(trainer.model)

    return step


def gradient_norm(model: torch.nn.Module) -> float:
    values = [value.grad.norm() for value in model.parameters() if value.grad is not None]
    return float(torch.stack(values).norm())


def measure_memory(side: str, rows: int) -> float:
    """The peak memory of a step, in MiB, beyond what models, texts and libraries need."""
    student, teacher = build_models()
    texts = draw_texts(student, rows)
    if side == "ours":
        step = our_step(student, teacher, texts, "reverse_kl", TOP_K)
    else:
        step = their_step(open_trainer(student, teacher), student, texts)
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak (Linux)
    before = read_peak()
    step()
    return read_peak() - before


def read_peak() -> float:
    """The peak memory of this process since the last reset, in MiB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) / 1024


def run_side(side: str, rows: int) -> float:
    command = [sys.executable, __file__, "--side", side, "--rows", str(rows)]
    return json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()[-1])


if __name__ == "__main__":
    main()
