"""Measurements on a GPU: the sparse loss, training steps, generation and NCCL, with random weights and synthetic data.

    benchmarks/gpu.sh > gpu.jsonl
    benchmarks/gpu.sh --only train --repeats 5

Prints one JSON line for each measurement, as soon as it is made:

    name         what was measured; `shape` has its sizes
    seconds      median over the repeats, after a warm-up; `all` has every repeat
    tokens/s     tokens that the model read (training) or wrote (generation) in a second; for the loss, positions
    peak MiB     peak memory of the GPU that PyTorch allocated; on a CPU, of the process; not for vLLM, which takes
                 nine tenths of the GPU
    skipped      why something was not measured, instead of these values

The first line describes the machine. Each measurement has a process and a time limit of its own, so one that fails or hangs
does not stop the others; what does not fit into `--seconds` is skipped. Training is that of `potstill train` with
`precision: bfloat16`: weights, moments and loss in float32, products of the model in bfloat16. `nccl` is one process, which
measures that NCCL starts and what DDP costs without another GPU.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import json
import os
import platform
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from potstill import demo, inference, models, process, tokenization, training
from potstill.inference import Decode, Request
from potstill.losses import weighted_sparse_kl
from potstill.models import SHAPES, Example, Shape, Student
from potstill.records import Target

SMOLLM2 = Shape("causal", 576, 30, 9, 1536, 64, 49152, kv_heads=3, tied=True)
TINY = {
    "flan-t5-base": Shape("t5", 32, 1, 2, 64, 16, 1200),
    "smollm2-135m": Shape("causal", 32, 1, 2, 64, 16, 1200, kv_heads=1, tied=True),
}
STUDENTS = {"flan-t5-base": SHAPES["flan-t5-base"], "smollm2-135m": SMOLLM2}
LOSSES = {
    "flan-t5-base": (4096, 768, 32128, 5),
    "smollm2-135m": (8192, 576, 49152, 20),
}  # positions, width, vocabulary, k
# A training step: prompts, chains of each, tokens of a prompt and of a chain, candidates, tokens of a micro-batch.
STEP = {"prompts": 64, "chains": 2, "prompt": 256, "chain": 128, "candidates": 5, "budget": 8192}
TINY_STEP = {"prompts": 4, "chains": 2, "prompt": 12, "chain": 8, "candidates": 3, "budget": 128}
# Generation: prompts, texts of each, tokens of a prompt and of a text.
WRITING = {"prompts": 64, "samples": 8, "prompt": 256, "tokens": 128}
TINY_WRITING = {"prompts": 3, "samples": 2, "prompt": 8, "tokens": 4}
# Measurement -> its time limit in seconds.
LIMITS = {
    **{f"loss {kernel} {name}": 90 for name in LOSSES for kernel in ("plain", "compiled")},
    **{f"train {name}": 90 for name in STUDENTS},
    **{f"generate {name}": 90 for name in STUDENTS},
    "nccl": 60,
    "generate vllm smollm2-135m": 240,
}
LEAST_SECONDS = 15  # a measurement that has less left is not started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--tiny", action="store_true", help="tiny sizes, to try the program out")
    parser.add_argument("--only", default="", metavar="TEXT", help="only measurements whose names contain this")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=570.0, help="time limit of everything")
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        print_row(args.measure, args, measure(args.measure, args))
        return
    end = time.monotonic() + args.seconds
    print(json.dumps({"name": "machine", **describe_machine(args.device)}), flush=True)
    for name, limit in LIMITS.items():
        if args.only in name:
            seconds = min(limit, end - time.monotonic())
            reason = why_not(name, args.device) or ("no time is left" if seconds < LEAST_SECONDS else "")
            reason = reason or run_alone(name, seconds)
            if reason:
                print_row(name, args, {"skipped": reason})


def why_not(name: str, device: str) -> str:
    """Why something cannot be measured here; empty if it can."""
    if device == "cuda" and not torch.cuda.is_available():
        return "PyTorch finds no GPU"
    if "vllm" in name and device == "cpu":
        return "vLLM is measured on a GPU only"
    if "vllm" in name and importlib.util.find_spec("vllm") is None:
        return "vLLM is not installed"
    if name == "nccl" and device == "cuda" and not torch.distributed.is_nccl_available():
        return "PyTorch was built without NCCL"
    return ""


def run_alone(name: str, seconds: float) -> str:
    """Measure in a process of its own, which prints the line. Returns why it has failed; empty if it has not."""
    command = [sys.executable, __file__, *sys.argv[1:], "--measure", name]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=seconds)
    except subprocess.TimeoutExpired:
        return f"it took more than {seconds:.0f} s"
    rows = [line for line in done.stdout.splitlines() if line.startswith('{"name": ')]  # libraries may print, too
    if done.returncode or not rows:
        return f"failed ({done.returncode}): {' '.join(done.stderr.split())[-300:]}"
    print(rows[-1], flush=True)
    return ""


def print_row(name: str, args: argparse.Namespace, values: dict[str, Any]) -> None:
    device = torch.cuda.get_device_name() if args.device == "cuda" and torch.cuda.is_available() else args.device
    row = {"name": name, "device": device, "torch": torch.__version__, **values}
    print(json.dumps(row | ({"tiny": True} if args.tiny else {})), flush=True)


def describe_machine(device: str) -> dict[str, Any]:
    versions = process.machine_info()["versions"]
    found: dict[str, Any] = {"python": platform.python_version(), "cpu": platform.processor() or platform.machine()}
    found |= {"cores": os.cpu_count(), "versions": versions, "cuda": torch.version.cuda}
    if device == "cuda" and torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(0)
        found |= {"gpu": properties.name, "gpu MiB": properties.total_memory >> 20, "gpus": torch.cuda.device_count()}
        found |= {"capability": f"{properties.major}.{properties.minor}"}
        found |= {
            "nccl": ".".join(map(str, torch.cuda.nccl.version())) if torch.distributed.is_nccl_available() else ""
        }
    with contextlib.suppress(OSError):
        git = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
        found["commit"] = subprocess.run(git, capture_output=True, text=True).stdout.strip()
    return found


def measure(name: str, args: argparse.Namespace) -> dict[str, Any]:
    kind, *rest = name.split()
    if kind == "loss":
        return measure_loss(rest[0], rest[1], args)
    if kind == "train":
        return measure_training(rest[0], args)
    if kind == "nccl":
        return measure_group(args)
    return measure_generation(rest[-1], args, with_vllm=rest[0] == "vllm")


def repeat(call: Callable[[], int], args: argparse.Namespace, warm_up: int = 1) -> dict[str, Any]:
    """Time a function that returns a number of tokens, after calls that do not count."""
    for _ in range(warm_up):
        call()
    clock(args.device)
    if args.device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    times, rates = [], []
    for _ in range(args.repeats):
        start = clock(args.device)
        tokens = call()
        times.append(clock(args.device) - start)
        rates.append(tokens / times[-1])
    peak = torch.cuda.max_memory_allocated() if args.device == "cuda" else process.peak_memory()
    measured = {"seconds": significant(statistics.median(times)), "all": [significant(each) for each in times]}
    return measured | {"tokens/s": significant(statistics.median(rates)), "peak MiB": peak >> 20}


def clock(device: str) -> float:
    """Seconds, after everything that was sent to the GPU is done."""
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def significant(value: float) -> float:
    return float(f"{value:.4g}")


# Loss


def measure_loss(kernel: Any, name: str, args: argparse.Namespace) -> dict[str, Any]:
    """Value and gradient, with hidden states of a model that computes in bfloat16."""
    n, d, v, k = (64, 16, 1200, 3) if args.tiny else LOSSES[name]
    torch.manual_seed(0)
    hidden = torch.randn(n, d, device=args.device, dtype=torch.bfloat16, requires_grad=True)
    head = torch.randn(v, d, device=args.device).div_(d**0.5).requires_grad_()
    ids = torch.randint(v // k, (n, k), device=args.device) + torch.arange(k, device=args.device) * (v // k)  # distinct
    probs = torch.rand(n, k, device=args.device).softmax(1).mul_(0.97)
    weights = torch.ones(n, device=args.device)

    def step() -> int:
        hidden.grad = head.grad = None
        total, _ = weighted_sparse_kl(hidden, head, ids, probs, weights, missing_probability="tail", kernel=kernel)
        total.backward()
        return n

    start = time.perf_counter()
    step()
    first = {"first call, seconds": significant(clock(args.device) - start)}  # with compiling
    shape = {"positions": n, "width": d, "vocabulary": v, "candidates": k}
    return {"shape": shape} | repeat(step, args) | first


# Training


def build_student(name: str, args: argparse.Namespace, dtype: Any = "float32") -> Student:
    """A student with random weights, on the CPU."""
    shape = TINY[name] if args.tiny else STUDENTS[name]
    tokenizer = tokenization.load_tokenizer(demo.DATA / "models" / "student")
    return models.random_student(shape, tokenizer, 0, dtype=dtype)


def build_micro_batches(vocabulary: int, sizes: dict[str, int]) -> list[list[Example]]:
    """Rows of random tokens with random candidates. The chains of a prompt share it."""
    draws = random.Random(0)
    rows = []
    for number in range(sizes["prompts"]):
        prompt = tuple(draws.choices(range(10, vocabulary), k=sizes["prompt"]))
        for _ in range(sizes["chains"]):
            length, k = sizes["chain"], sizes["candidates"]
            candidates = [draws.sample(range(10, vocabulary), k) for _ in range(length)]
            ids = [each[0] for each in candidates]
            probabilities = [0.5] + [0.4 / (k - 1)] * (k - 1)
            flat = [token for each in candidates for token in each]
            target = Target(ids, range(0, length * k + 1, k), flat, probabilities * length, ["same"] * length)
            rows.append(Example(prompt, target, 1.0, str(number), "zero-shot-rationale"))
    of_prompt = sizes["prompt"] + sizes["chains"] * sizes["chain"]
    count = max(1, sizes["budget"] // of_prompt) * sizes["chains"]
    return [rows[start : start + count] for start in range(0, len(rows), count)]


def train_steps(student: Student, model: Any, sizes: dict[str, int]) -> Iterator[training.StepMetrics]:
    batches = build_micro_batches(student.tokenizer.size, sizes)
    optimizer = training.build_optimizer(student, 1e-4)
    schedule = training.Schedule("constant", 1e-4)
    options: Any = {"schedule": schedule, "seed": 0, "precision": "bfloat16"}
    yield from training.train_steps(model, optimizer, lambda step: batches, first=1, last=1000, **options)


def measure_training(name: str, args: argparse.Namespace) -> dict[str, Any]:
    sizes = TINY_STEP if args.tiny else STEP
    student = build_student(name, args).to(args.device)
    steps = train_steps(student, student, sizes)
    found = repeat(lambda: next(steps).tokens, args, warm_up=2)
    parameters = sum(value.numel() for value in student.parameters())
    return {"shape": {"parameters": parameters, **sizes}, "precision": "bfloat16"} | found


# Generation


def measure_generation(name: str, args: argparse.Namespace, *, with_vllm: bool) -> dict[str, Any]:
    sizes = TINY_WRITING if args.tiny else WRITING
    student = build_student(name, args, "bfloat16")
    draws = random.Random(0)
    prompts = [
        tuple(draws.choices(range(10, student.tokenizer.size), k=sizes["prompt"])) for _ in range(sizes["prompts"])
    ]
    requests = [Request((str(i), j), prompt) for i, prompt in enumerate(prompts) for j in range(sizes["samples"])]
    with TemporaryDirectory() as folder:
        if with_vllm:
            student.save(folder)
            engine: Any = inference.open_engine(Path(folder), "vllm")
        else:
            engine = inference.open_engine(student.to(args.device))

        def write() -> int:
            texts = engine.generate(requests, Decode(max_tokens=sizes["tokens"], temperature=0.7))
            return sum(len(text.ids) for text in texts)

        if with_vllm:  # it has the GPU in a process of its own, and takes nine tenths of the memory in any case
            args = argparse.Namespace(**{**vars(args), "device": "cpu"})
        found = {"shape": sizes, "dtype": "bfloat16"} | repeat(write, args)
        return {name: value for name, value in found.items() if not (with_vllm and name == "peak MiB")}


# One process of torch.distributed


def measure_group(args: argparse.Namespace) -> dict[str, Any]:
    """An all-reduce of a buffer, and training steps with DDP; the backend is gloo on a CPU."""
    from torch import distributed

    backend = "nccl" if args.device == "cuda" else "gloo"
    with TemporaryDirectory() as folder:
        distributed.init_process_group(backend, init_method=f"file://{folder}/meet", rank=0, world_size=1)
        buffer = torch.ones((1 << 10) if args.tiny else (1 << 27), device=args.device)

        def reduce() -> int:
            distributed.all_reduce(buffer)
            return 0

        reduced = repeat(reduce, args)
        student = build_student("flan-t5-base", args).to(args.device)
        wrapped = torch.nn.parallel.DistributedDataParallel(student, gradient_as_bucket_view=True)
        steps = train_steps(student, wrapped, TINY_STEP if args.tiny else STEP)
        found = repeat(lambda: next(steps).tokens, args, warm_up=2)
        distributed.destroy_process_group()
    all_reduce = {"MiB": buffer.numel() * 4 >> 20, "seconds": reduced["seconds"]}
    return {"backend": backend, "all_reduce": all_reduce, "shape": "a step of flan-t5-base with DDP"} | found


if __name__ == "__main__":
    main()
