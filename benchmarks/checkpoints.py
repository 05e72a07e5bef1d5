"""What a checkpoint costs the loop, and how much memory: one JSON line a way.

    python benchmarks/checkpoints.py [--layers 2] [--checkpoints 3] [--steps 6] [--rows 4] [--threads 1]

    bytes     between two steps, the optimizer's state made as bytes in memory and then written (as it was)
    between   between two steps, `train.async_checkpoints: false`
    beside    a copy between two steps, written by a thread beside the next ones (the default)
    none      no checkpoint at all

FlanT5-base's shape with `--layers` in place of 12 + 12 layers, random weights, AdamW in float32, `--rows` rows of
64 + 32 tokens a step. A checkpoint comes after every `--steps` steps, the last at the end. `stood` is for how many
seconds the loop stood still for each by the clock (one written beside: for its copy, the last also until it was
written), `used` for how many it used the processor itself; `step` is the median of the seconds of a step, `step_after`
of the first one after a checkpoint, `all` the seconds of everything. `peak` is the most memory that the process had,
`before` what it had when it was ready to train, in MiB. Each way is a process of its own, in turn.
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

from potstill import models, storage, tokenization, training
from potstill.models import SHAPES, Example
from potstill.records import Target
from potstill.training.checkpoints import OPTIMIZER_FILE, CheckpointWriter

WAYS = ("none", "bytes", "between", "beside")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, value in (("layers", 2), ("checkpoints", 3), ("steps", 6), ("rows", 4), ("threads", 1)):
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--ways", nargs="+", default=WAYS, choices=WAYS)
    parser.add_argument("--folder", help="on the disk that is to be measured; a temporary one if not given")
    asked = parser.parse_args()
    tokenizer = tokenization.train_unigram(["Q: 2 + 3 A: The answer is 5"] * 3, 40)
    fork = multiprocessing.get_context("fork")
    for way in asked.ways:
        results = fork.SimpleQueue()
        process = fork.Process(target=measure, args=(way, asked, tokenizer, results))
        process.start()
        print(json.dumps({"name": f"checkpoint {way}", **results.get(), "machine": platform.machine()}), flush=True)
        process.join()


def measure(way: str, asked: argparse.Namespace, tokenizer: tokenization.Tokenizer, results) -> None:
    torch.set_num_threads(asked.threads)
    student = models.random_student(replace(SHAPES["flan-t5-base"], layers=asked.layers), tokenizer, 1)
    optimizer = training.build_optimizer(student)
    ids = [1 + place % (tokenizer.size - 1) for place in range(64)]
    target = Target(ids[:32], range(33), ids[:32], [1.0] * 32, ["hard"] * 32)
    batches = [[Example(tuple(ids), target)] * asked.rows]
    last = asked.checkpoints * asked.steps
    stood, used, times = list[float](), list[float](), list[float]()
    schedule = training.Schedule("constant", 1e-4)
    before = resident()
    with tempfile.TemporaryDirectory(dir=asked.folder) as at:
        folder = Path(at) / "checkpoints"
        began = mark = time.monotonic()
        with CheckpointWriter(folder, student, optimizer, background=way == "beside") as checkpoints:
            for step in training.train_steps(
                student, optimizer, lambda _: batches, first=1, last=last, schedule=schedule, seed=1
            ):
                times.append(time.monotonic() - mark)
                if step.step % asked.steps == 0 and way != "none":
                    mark, own = time.monotonic(), time.thread_time()
                    if way == "bytes":
                        as_it_was(folder, step.step, student, optimizer)
                    else:
                        checkpoints.save(step.step)
                    if step.step == last:
                        checkpoints.wait()
                    stood.append(time.monotonic() - mark)
                    used.append(time.thread_time() - own)
                checkpoints.check()
                mark = time.monotonic()
        whole = time.monotonic() - began
        kept = sum(path.stat().st_size for path in (folder / str(last)).glob("*"))
    after = times[asked.steps :: asked.steps]
    plain = [value for place, value in enumerate(times) if place % asked.steps]
    results.put(
        {
            "stood": [round(value, 2) for value in stood],
            "used": [round(value, 2) for value in used],
            "step": round(statistics.median(plain), 2),
            "step_after": round(statistics.median(after), 2) if after else None,
            "all": round(whole, 1),
            "before": before >> 20,
            "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10,
            "checkpoint_mib": kept >> 20,
            "parameters": sum(value.numel() for value in student.parameters()),
            "threads": asked.threads,
            "load": round(os.getloadavg()[0], 1),
        }
    )


def as_it_was(folder: Path, step: int, student: models.Student, optimizer: torch.optim.Optimizer) -> None:
    with storage.write_folder(folder / str(step)) as inside:
        student.save(inside)
        storage.write_file(inside / OPTIMIZER_FILE, training.optimizer_state_bytes(optimizer))


def resident() -> int:
    """Bytes of this process in memory now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize()


if __name__ == "__main__":
    main()
