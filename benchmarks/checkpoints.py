"""What a checkpoint costs the training loop, in time and memory.

    python benchmarks/checkpoints.py [--layers 2] [--checkpoints 3] [--steps 6] [--rows 4] [--threads 1]

Prints one JSON line for each way to save:

    none      no checkpoint
    bytes     between two steps, with the optimizer's state serialized in memory first (an earlier version)
    between   between two steps, `train.async_checkpoints: false`
    beside    a copy between two steps, written by a thread during the next steps (the default)

The student has FlanT5-base's shape with `--layers` instead of 12 + 12 layers and random weights; AdamW, float32,
`--rows` rows of 64 + 32 tokens a step. There is a checkpoint after every `--steps` steps. Each way runs in its own process.

    stood            seconds for which the loop stood still at each checkpoint (with `beside`: for the copy, at the last
                     one also until it was written); `used` is the loop's processor time in them
    step, step_after median seconds of a step, and of the first step after a checkpoint; `all`: of everything
    before, peak     memory in MiB before training and at most
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import platform
import resource
import statistics
import tempfile
import time
from dataclasses import replace
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch

from potstill import demo, models, storage, tokenization, training
from potstill.models import SHAPES, Example
from potstill.records import Target, TargetKind
from potstill.training.checkpoints import OPTIMIZER_FILE, CheckpointWriter

HARD: list[TargetKind] = ["hard"] * 32
WAYS = ("none", "bytes", "between", "beside")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, value in (("layers", 2), ("checkpoints", 3), ("steps", 6), ("rows", 4), ("threads", 1)):
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--ways", nargs="+", default=WAYS, choices=WAYS)
    parser.add_argument("--folder", help="on the disk that is to be measured; a temporary one if not given")
    args = parser.parse_args()
    tokenizer = tokenization.load_tokenizer(demo.DATA / "models" / "student")
    fork = multiprocessing.get_context("fork")
    for way in args.ways:
        results = fork.SimpleQueue()
        process = fork.Process(target=measure, args=(way, args, tokenizer, results))
        process.start()
        print(json.dumps({"name": f"checkpoint {way}", **results.get(), "machine": platform.machine()}), flush=True)
        process.join()


def measure(way: str, args: argparse.Namespace, tokenizer: tokenization.Tokenizer, results) -> None:
    torch.set_num_threads(args.threads)
    student = models.random_student(replace(SHAPES["flan-t5-base"], layers=args.layers), tokenizer, 1)
    optimizer = training.build_optimizer(student)
    ids = [1 + index % (tokenizer.size - 1) for index in range(64)]
    target = Target(ids[:32], range(33), ids[:32], [1.0] * 32, HARD)
    batches = [[Example(tuple(ids), target)] * args.rows]
    last = args.checkpoints * args.steps
    stood, used, times = list[float](), list[float](), list[float]()
    schedule = training.Schedule("constant", 1e-4)
    before = resident()
    with tempfile.TemporaryDirectory(dir=args.folder) as temporary:
        folder = Path(temporary) / "checkpoints"
        began = mark = time.monotonic()
        with CheckpointWriter(folder, student, optimizer, background=way == "beside") as checkpoints:
            for step in training.train_steps(
                student, optimizer, lambda _: batches, first=1, last=last, schedule=schedule, seed=1
            ):
                times.append(time.monotonic() - mark)
                if step.step % args.steps == 0 and way != "none":
                    mark, thread_mark = time.monotonic(), time.thread_time()
                    if way == "bytes":
                        save_serialized(folder, step.step, student, optimizer)
                    else:
                        checkpoints.save(step.step)
                    if step.step == last:
                        checkpoints.wait()
                    stood.append(time.monotonic() - mark)
                    used.append(time.thread_time() - thread_mark)
                checkpoints.check()
                mark = time.monotonic()
        total = time.monotonic() - began
        size = sum(path.stat().st_size for path in (folder / str(last)).glob("*"))
    after = times[args.steps :: args.steps]
    others = [seconds for index, seconds in enumerate(times) if index % args.steps]
    results.put(
        {
            "stood": [round(value, 2) for value in stood],
            "used": [round(value, 2) for value in used],
            "step": round(statistics.median(others), 2),
            "step_after": round(statistics.median(after), 2) if after else None,
            "all": round(total, 1),
            "before": before >> 20,
            "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10,
            "checkpoint_mib": size >> 20,
            "parameters": sum(value.numel() for value in student.parameters()),
            "threads": args.threads,
            "load": round(os.getloadavg()[0], 1),
        }
    )


def save_serialized(folder: Path, step: int, student: models.Student, optimizer: torch.optim.Optimizer) -> None:
    with storage.write_folder(folder / str(step)) as inside:
        student.save(inside)
        storage.write_file(inside / OPTIMIZER_FILE, training.optimizer_state_bytes(optimizer))


def resident() -> int:
    """Bytes of this process in memory now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize()


if __name__ == "__main__":
    main()
