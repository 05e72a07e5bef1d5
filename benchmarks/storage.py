"""What chains cost at rest and on their way there: `python benchmarks/storage.py [CHAINS ...]`.

Every phase runs in a process of its own, so that its peak memory is its own: `write` appends the chains one by one,
`resume` reads which are stored, `seal` puts them in the order of keys into Parquet, `read` reads them back. One JSON
line a figure; `theirs` is the same chains as plain JSON lines (gzip for the bytes at rest), `ratio` is theirs / ours.
Chains are synthetic: 100 tokens, five candidates each, four samples a question, arriving in a
shuffled order. Without numbers: 1000, 10000 and 100000 chains.
"""

from __future__ import annotations

import gzip
import json
import platform
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from potstill.records import Chain
from potstill.serialization import to_json
from potstill.storage import Appender, encode_json_line, parquet, segments

WORDS = "so the answer is of and 1 2 3 4 5 10 25 apples pens each had gave left then + - = times total costs"
TOKENS, CANDIDATES, SAMPLES = 100, 5, 4


def chains(count: int) -> Iterator[Chain]:
    draw = random.Random(0)
    pieces = [f" {word}".encode() for word in WORDS.split()]
    keys = [(f"gsm8k/train/{number // SAMPLES}", number % SAMPLES) for number in range(count)]
    for start in range(0, count, 4000):  # what arrives is out of order, but not over the whole run
        part = keys[start : start + 4000]
        draw.shuffle(part)
        for question, index in part:
            tokens, steps = [], []
            for _ in range(TOKENS):
                shown = draw.sample(pieces, CANDIDATES)
                first = round(-draw.expovariate(4), 6)
                tokens.append(shown[0])
                steps.append(
                    [(shown[0], first), *((what, round(first - draw.expovariate(0.3), 6)) for what in shown[1:])]
                )
            yield Chain.from_tokens(question, index, tokens, steps, "cut")


def write(folder: Path, count: int) -> dict[str, float]:
    spent = 0.0
    with Appender(folder / segments.segment_name(segments.UNSHARDED)) as lines:
        for chain in chains(count):
            began = time.perf_counter()
            lines.append([to_json(chain)])
            spent += time.perf_counter() - began
    return {"microseconds": spent / count * 1e6}


def resume(folder: Path, count: int) -> dict[str, float]:
    assert len(segments.stored_keys(segments.segment_paths(folder))) == count
    return {}


def seal(folder: Path, count: int) -> dict[str, float]:
    parquet.write_chains(folder / "chains.parquet", segments.merge_segments(folder))
    return {"bytes": (folder / "chains.parquet").stat().st_size / count}


def read(folder: Path, count: int) -> dict[str, float]:
    assert sum(1 for _ in parquet.read_chains(folder / "chains.parquet")) == count
    return {}


PHASES = {"write": write, "resume": resume, "seal": seal, "read": read}


def one(phase: str, folder: Path, count: int) -> None:
    import pyarrow.parquet  # noqa: F401 - so that its own size is not counted as ours

    before, began = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.perf_counter()
    measured = PHASES[phase](folder, count)
    seconds = time.perf_counter() - began
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(json.dumps({**measured, "seconds": seconds, "peak": peak / 1024, "grown": (peak - before) / 1024}))


def say(name: str, ours: float, unit: str, theirs: float | None = None) -> None:
    ratio = None if theirs is None else round(theirs / ours, 3)
    machine = f"{platform.machine()}, Python {platform.python_version()}"
    row = {"name": name, "ours": round(ours, 3), "theirs": theirs, "ratio": ratio, "unit": unit, "machine": machine}
    print(json.dumps(row), flush=True)


def main(counts: list[int]) -> None:
    for count in counts:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            for phase in PHASES:
                command = [sys.executable, __file__, "--one", phase, name, str(count)]
                told = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
                say(f"{phase}, {count} chains: peak memory", told["peak"], "MiB")
                say(f"{phase}, {count} chains: memory over the start", told["grown"], "MiB")
                if phase == "write":
                    say(f"write, {count} chains: the writer's time a chain", told["microseconds"], "microseconds")
                else:
                    say(f"{phase}, {count} chains: time", told["seconds"], "seconds")
                if phase == "seal":
                    first = b"".join(
                        encode_json_line(to_json(chain)) for _, chain in zip(range(500), chains(500), strict=False)
                    )
                    packed = round(len(gzip.compress(first)) / 500, 1)
                    stored = (folder / segments.segment_name(segments.UNSHARDED)).stat().st_size / count
                    say(f"segment, {count} chains: bytes a chain", stored, "bytes")
                    say(f"sealed, {count} chains: bytes a chain", told["bytes"], "bytes", packed)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--one"]:
        one(sys.argv[2], Path(sys.argv[3]), int(sys.argv[4]))
    else:
        main([int(each) for each in sys.argv[1:]] or [1_000, 10_000, 100_000])
