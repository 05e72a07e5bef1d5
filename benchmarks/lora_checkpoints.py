"""What a checkpoint of a training with LoRA costs on disk and in time, as the adapter alone and with merged weights.

    python benchmarks/lora_checkpoints.py [--rank 16] [--threads 1] [--times 3] [--folder DISK]

Prints one JSON line for each shape: the demo's student, and SmolLM2-135M with random weights.

    adapter, merged            bytes of a checkpoint without the optimizer's state; `merged` is what earlier versions wrote
    state                      bytes of the optimizer's state, which the newest checkpoint has besides
    save_adapter, save_merged  median seconds to write it, with all data on the disk; without the time to merge
    open_adapter, open_merged  median seconds until its weights are in memory, from base and adapter, or from one folder
    equal                      whether both give the same weights to the bit
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

from potstill import demo, models, storage, tokenization, training
from potstill.models import AdapterBase, Shape, Student, adapter_files

DEMO_STUDENT = demo.DATA / "models" / "student"
SMOLLM2 = Shape("causal", 576, 30, 9, 1536, 64, 49152, kv_heads=3, tied=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, value in (("rank", 16), ("threads", 1), ("times", 3)):
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--folder", help="on the disk that is to be measured; a temporary one if not given")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    tokenizer = tokenization.load_tokenizer(DEMO_STUDENT)
    for name in ("demo", "SmolLM2-135M"):
        with tempfile.TemporaryDirectory(dir=args.folder) as temporary:
            base = Path(temporary) / "base"
            base.mkdir()
            student = (
                models.open_student(DEMO_STUDENT) if name == "demo" else models.random_student(SMOLLM2, tokenizer, 1)
            )
            student.save(base)
            print(json.dumps({"name": name, **measure(base, args)}), flush=True)


def measure(base: Path, args: argparse.Namespace) -> dict[str, object]:
    student = models.open_student(base)
    parameters = sum(value.numel() for value in student.parameters())
    models.add_adapters(student.model, args.rank, seed=1)
    student.adapter_base = AdapterBase(str(base), digests={"student.model": storage.folder_fingerprint(base)})
    trained = [value for value in student.parameters() if value.requires_grad]
    optimizer = training.build_optimizer(student)
    for value in trained:  # a step that moves every matrix
        value.grad = torch.ones_like(value)
    optimizer.step()
    adapter, merged = base.with_name("adapter"), base.with_name("merged")

    def save_adapter() -> None:
        with storage.write_folder(adapter) as inside:
            student.save_checkpoint(inside)

    def open_adapter() -> Student:
        opened = models.open_student(base)
        adapter_files.check_base(adapter, AdapterBase(digests={"student.model": storage.folder_fingerprint(base)}))
        adapter_files.merge_adapter(opened.model, adapter)
        return opened

    seconds = {"save_adapter": median(save_adapter, args.times)}
    plain = open_adapter()

    def save_merged() -> None:
        with storage.write_folder(merged) as inside:
            plain.save(inside)

    seconds["save_merged"] = median(save_merged, args.times)
    seconds["open_adapter"] = median(open_adapter, args.times)
    seconds["open_merged"] = median(lambda: models.open_student(merged), args.times)
    state = training.optimizer_state_bytes(optimizer)
    own, other = open_adapter().weights(), models.open_student(merged).weights()
    return {
        "parameters": parameters,
        "trained": sum(value.numel() for value in trained),
        "rank": args.rank,
        "adapter": size(adapter),
        "merged": size(merged),
        "state": len(state),
        **seconds,
        "equal": own.keys() == other.keys() and all(torch.equal(own[name], other[name]) for name in own),
        "threads": args.threads,
        "load": round(os.getloadavg()[0], 1),
    }


def median(work: Callable[[], object], times: int) -> float:
    taken = []
    for _ in range(times):
        began = time.monotonic()
        work()
        taken.append(time.monotonic() - began)
    return round(statistics.median(taken), 3)


def size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


if __name__ == "__main__":
    main()
