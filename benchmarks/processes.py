"""What training in two processes costs and saves.

    python benchmarks/processes.py [--width 256] [--layers 4] [--steps 3]

Prints one JSON line for each way:

    one     one process, without torch.distributed
    none    two processes with `train.sharding: none`; each holds everything
    full    two processes with `train.sharding: full` (FSDP2)

The student is a T5 with random weights and a vocabulary of 32,128; AdamW, float32, eight rows of 64 + 32 tokens a step in
four micro-batches, gloo on one machine. `seconds` is the processor time of the first process in the fastest step,
including its gloo threads; each of two processes computes half of the micro-batches. `held` is the memory of weights and
optimizer state between steps, `peak` the maximum resident memory, both in MiB and of the first process.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import platform
import resource
import tempfile
import time

import torch
from torch import distributed
from torch.distributed.tensor import DTensor

from potstill import demo, models, tokenization, training
from potstill.models import Example, Shape
from potstill.records import Target, TargetKind

HARD: list[TargetKind] = ["hard"] * 32
VOCABULARY = 32128


def main() -> None:
    parser = argparse.ArgumentParser()
    for name, value in (("width", 256), ("layers", 4), ("steps", 3)):
        parser.add_argument(f"--{name}", type=int, default=value)
    args = parser.parse_args()
    torch.set_num_threads(1)
    tokenizer = tokenization.load_tokenizer(demo.DATA / "models" / "student")
    fork = multiprocessing.get_context("fork")
    for way, world in (("one", 1), ("none", 2), ("full", 2)):
        with tempfile.TemporaryDirectory() as folder:
            results = fork.SimpleQueue()
            started = [
                fork.Process(target=measure, args=(way, rank, world, folder, args, tokenizer, results))
                for rank in range(world)
            ]
            for process in started:
                process.start()
            result = results.get()
            for process in started:
                process.join()
        size = f"T5 {args.width} x {args.layers}, {result.pop('parameters') / 1e6:.1f} M"
        print(
            json.dumps({"name": f"processes {way} ({size})", "world": world, **result, "machine": platform.machine()})
        )


def measure(way, rank, world, folder, args, tokenizer, results) -> None:
    if world > 1:
        distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=world)
    shape = Shape("t5", args.width, args.layers, args.width // 64, 4 * args.width, 64, VOCABULARY)
    student = models.random_student(shape, tokenizer, 1)
    count = sum(value.numel() for value in student.parameters())
    model = training.distribute_student(student, "full" if way == "full" else "none")
    optimizer = training.build_optimizer(model)
    ids = [1 + index % (tokenizer.size - 1) for index in range(64)]
    target = Target(ids[:32], range(33), ids[:32], [1.0] * 32, HARD)
    batches = [[Example(tuple(ids), target)] * 2] * 4
    schedule = training.Schedule("constant", 1e-3)
    times, began = [], time.process_time()
    for _ in training.train_steps(
        model, optimizer, lambda _: batches, first=1, last=args.steps, schedule=schedule, seed=1
    ):
        times.append(time.process_time() - began)
        began = time.process_time()
    state = training.optimizer_state(optimizer).values()
    tensors = [*state, *(value for group in optimizer.param_groups for value in group["params"])]
    held = sum((value.to_local() if isinstance(value, DTensor) else value).numel() * 4 for value in tensors)
    if rank == 0:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
        results.put({"parameters": count, "seconds": round(min(times), 2), "held": round(held / 2**20), "peak": peak})
    if world > 1:
        distributed.destroy_process_group()


if __name__ == "__main__":
    main()
