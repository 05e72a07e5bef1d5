"""What targets at rest cost in bytes, in time to read, and in exactness: one JSON line a case.

    python benchmarks/targets.py [RUN]

Without RUN the rows are made up, with the figures that the paper prints of a real one; with a run's folder (such as
runs/demo) its chains are measured too. Bytes are those of every file, keys and digests included. DistillKit's 344 bytes
a token (vocabulary 151,936) and its 115 microseconds a token to collate were measured earlier on another machine.
"""

from __future__ import annotations

import json
import os
import platform
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parent.parent / "tests" / "support"))

import printed_rows  # type: ignore[import-not-found]
from potstill import models, storage, tokenization
from potstill.alignment import cross_tokenizer, rewrite, target_store, text_rule_completions
from potstill.recipe import load_recipe
from potstill.records import Chain, Target
from potstill.storage import parquet

DISTILLKIT_BYTES, DISTILLKIT_MICROSECONDS = 344.0, 115.0
THRESHOLDS = (0.0, 1e-4, 3e-4, 1e-3, 1e-2)
Pairs = list[tuple[Chain, Target]]


def say(name: str, ours: float, theirs: float | None, unit: str, **more: object) -> None:
    ratio = None if theirs is None else round(theirs / ours, 2)
    row = {"name": name, "ours": round(ours, 4), "theirs": theirs, "ratio": ratio, "unit": unit, **more}
    print(json.dumps({**row, "machine": f"{platform.machine()} {platform.python_version()}"}), flush=True)


def of_run(folder: Path) -> Pairs:
    """The kept chains of a run with their targets, as its recipe says."""
    plan = load_recipe(folder / "recipe.yaml")
    tokenizer = tokenization.load_tokenizer(models.tokenizer_folder(plan))
    verdicts = parquet.read_verdicts(folder / "filter" / "verdicts.parquet")
    kept = [c for c in parquet.read_chains(folder / "sample" / "chains.parquet") if verdicts[c.key].kept]
    taught = [rewrite.replace_characters(chain, plan.transfer.rewrite) for chain in kept]
    rule = plan.transfer.rule
    told = {"completions": text_rule_completions.completions(taught, tokenizer)} if rule == "text" else {}
    return [(c, cross_tokenizer.transfer(t, tokenizer, rule, **told)) for c, t in zip(kept, taught, strict=True)]


def size(arrays: dict[str, np.ndarray]) -> int:
    """Bytes of the files."""
    return sum(array.nbytes + 128 for array in arrays.values())


def lost(pairs: Pairs, folder: Path) -> tuple[float, float]:
    """Total variation between the soft positions and what is read of them: mean, largest."""
    read = target_store.TargetStore(folder)
    found = []
    for place, (_, target) in enumerate(pairs):
        own = read[place]
        for position in range(len(target)):
            before, after = target.distribution(position), own.distribution(position)
            if len(before) > 1:
                moved = sum(abs(after.get(token, 0.0) - share) for token, share in before.items())
                found.append((moved + abs(target.tail(position) - own.tail(position))) / 2)
    return (statistics.fmean(found), max(found)) if found else (0.0, 0.0)


def measure(name: str, pairs: Pairs) -> None:
    tokens = sum(len(target) for _, target in pairs)
    candidates = sum(len(target.candidate_ids) for _, target in pairs)
    with tempfile.TemporaryDirectory() as scratch:
        for threshold in THRESHOLDS:
            arrays = target_store.pack_targets(pairs, threshold)
            folder = Path(scratch, str(threshold))
            for part, array in arrays.items():
                parquet.write_array(folder / f"{part}.npy", array)
            mean, most = lost(pairs, folder)
            kept = {"candidates": candidates, "kept": len(arrays["probabilities"]), "moved": mean, "moved_most": most}
            theirs = DISTILLKIT_BYTES
            say(
                f"{name}, drop below {threshold:g}",
                size(arrays) / tokens,
                theirs,
                "bytes a token",
                tokens=tokens,
                **kept,
            )
        read = target_store.TargetStore(Path(scratch, str(THRESHOLDS[0])))
        times = [spent / n for spent, n in batches(read, 400)]
        micro = 1e6 * statistics.median(times)
        say(f"{name}, a random batch of 32", micro, DISTILLKIT_MICROSECONDS, "microseconds a token", batches=len(times))
    began = time.perf_counter()
    target_store.pack_targets(pairs)
    say(f"{name}, packing", 1e6 * (time.perf_counter() - began) / tokens, None, "microseconds a token")


def batches(read: target_store.TargetStore, n: int) -> Iterator[tuple[float, int]]:
    """Seconds to read batches of random targets, and their tokens."""
    draw = random.Random(0)
    for _ in range(n):
        places: Sequence[int] = [draw.randrange(len(read)) for _ in range(32)]
        began = time.perf_counter()
        tokens = sum(len(read[place]) for place in places)
        yield time.perf_counter() - began, tokens


def main() -> None:
    measure("rows as the paper prints them", printed_rows.targets(200_000))
    measure("the same, all of 151,936 ids", printed_rows.targets(200_000, pool=range(151_936)))
    if data := os.environ.get("POTSTILL_DATA"):
        texts = [row["answer"] for _, row in storage.read_jsonl(Path(data, "gsm8k", "train.jsonl"))]
        tokenizer = tokenization.load_tokenizer(Path(data, "tokenizers", "cl100k_base"))
        pool = [token for encoding in tokenizer.encode_batch(texts) for token in encoding.ids]
        name = f"the same, {len(set(pool))} ids of {tokenizer.size} that GSM8K uses"
        measure(name, printed_rows.targets(200_000, pool=pool))
    for folder in sys.argv[1:]:
        storage.read_bytes(Path(folder, "recipe.yaml"))
        measure(f"chains of {Path(folder).name}", of_run(Path(folder)))


if __name__ == "__main__":
    main()
