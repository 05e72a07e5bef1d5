"""What spreading a student over processes costs and saves: one JSON line a way.

    python benchmarks/processes.py [--width 256] [--layers 4] [--steps 3]

    one     one process, without torch.distributed
    none    two processes of `train.sharding: none`, each of which holds everything
    full    two processes of `train.sharding: full` (FSDP2)

A T5 of random weights with a vocabulary of 32,128, AdamW, fp32, eight rows of 64 + 32 tokens a step in four
micro-batches, gloo on the cores of one machine. `seconds` is the first process's processor time of the best step, its
threads for gloo included: of two processes each has half of the micro-batches. `held` is what it keeps between steps
(weights and optimizer), `peak` its resident memory at most; both in MiB.
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

from potstill import models, tokenization, training
from potstill.models import Example, Shape
from potstill.records import Target

VOCABULARY = 32128


def main() -> None:
    parser = argparse.ArgumentParser()
    for name, value in (("width", 256), ("layers", 4), ("steps", 3)):
        parser.add_argument(f"--{name}", type=int, default=value)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    tokenizer = tokenization.train_unigram(["Q: 2 + 3 A: The answer is 5"] * 3, 40)
    fork = multiprocessing.get_context("fork")
    for way, world in (("one", 1), ("none", 2), ("full", 2)):
        with tempfile.TemporaryDirectory() as folder:
            results = fork.SimpleQueue()
            started = [
                fork.Process(target=measure, args=(way, rank, world, folder, asked, tokenizer, results))
                for rank in range(world)
            ]
            for process in started:
                process.start()
            found = results.get()
            for process in started:
                process.join()
        size = f"T5 {asked.width} x {asked.layers}, {found.pop('parameters') / 1e6:.1f} M"
        print(json.dumps({"name": f"processes {way} ({size})", "world": world, **found, "machine": platform.machine()}))


def measure(way, rank, world, folder, asked, tokenizer, results) -> None:
    if world > 1:
        distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=world)
    shape = Shape("t5", asked.width, asked.layers, asked.width // 64, 4 * asked.width, 64, VOCABULARY)
    student = models.random_student(shape, tokenizer, 1)
    count = sum(value.numel() for value in student.parameters())
    model = training.distribute_student(student, "full" if way == "full" else "none")
    optimizer = training.build_optimizer(model)
    ids = [1 + place % (tokenizer.size - 1) for place in range(64)]
    target = Target(ids[:32], range(33), ids[:32], [1.0] * 32, ["hard"] * 32)
    batches = [[Example(tuple(ids), target)] * 2] * 4
    schedule = training.Schedule("constant", 1e-3)
    times, began = [], time.process_time()
    for _ in training.train_steps(
        model, optimizer, lambda _: batches, first=1, last=asked.steps, schedule=schedule, seed=1
    ):
        times.append(time.process_time() - began)
        began = time.process_time()
    kept = training.optimizer_state(optimizer, parameters=True).values()
    held = sum((value.to_local() if isinstance(value, DTensor) else value).numel() * 4 for value in kept)
    if rank == 0:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
        results.put({"parameters": count, "seconds": round(min(times), 2), "held": round(held / 2**20), "peak": peak})
    if world > 1:
        distributed.destroy_process_group()


if __name__ == "__main__":
    main()
