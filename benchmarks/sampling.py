"""Requests a second of the stage `sample` against those of a bare loop with the same HTTP library.

    python benchmarks/sampling.py [--requests 2000] [--latency 0 0.3]

The server is the stub of the tests in a process of its own: about 100 tokens with 5 outcomes each, 50 KB a body. The
bare loop posts the same bodies with the same number under way, from the first moment, and reads the answers; it does
not decode them. Both keep their connections. The stage asks, decodes, grades, cuts, and stores. Without latency the
processor is all that both sides wait for, which is the hardest case; with latency the server is the bottleneck, as with
a model. Three JSON lines a case, each the median of `--repeat` pairs of runs, taken in turn:

requests/s               of the whole stage: its probe, its ramp from a quarter of the concurrency, its sealing count
requests/s under way     of both from the first quarter of the answers to the last answer stored, as in a run of hours
processor ms a request   of this process alone, which other work on the machine changes less

    python benchmarks/sampling.py --memory 1000 10000 100000

Peak memory of a process that runs the stage for so many chains (of 27 tokens, 8 a request), and bytes a chain at rest.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import httpx2
import msgspec

from potstill import progress, runner
from potstill.data import run_questions
from potstill.recipe import Recipe, parse_recipe
from potstill.stages import sample
from potstill.teachers import protocol
from potstill.teachers.openai_api import request
from potstill.teachers.openai_api.teacher import settings_from_recipe

STUB = Path(__file__).parent.parent / "tests" / "support" / "stub.py"
RECIPE = """
name: bench
sets:
  sums: {{file: {file}, task: number}}
  sums2: {{file: {file2}, task: number}}
questions:
  {{train: [sums], in_distribution: [sums], out_of_distribution: [sums2], generic: [], validation: 0.01, test: 0.01}}
teacher:
  kind: openai
  model: stub
  samples: {samples}
  server: {{urls: ["{url}"], samples_per_request: {per_request}, concurrency: {concurrency}}}
"""


def prepared(folder: Path, url: str, requests: int, concurrency: int, per_request: int = 1) -> tuple[Recipe, Path]:
    """A recipe and a run whose questions are collected: `requests` chains, ten or forty a question."""
    samples = 10 if per_request == 1 else 40
    rows = max(2, requests // samples)
    for name, word in (("sums", "What is"), ("sums2", "Add")):
        lines = [{"question": f"{word} {i} + {i % 9}?", "answer": str(i + i % 9)} for i in range(rows + 40)]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    text = RECIPE.format(
        file=folder / "sums.jsonl",
        file2=folder / "sums2.jsonl",
        url=url,
        samples=samples,
        concurrency=concurrency,
        per_request=per_request,
    )
    plan = parse_recipe(text, "bench.yaml", [f"questions.limit.train={rows}"])
    return plan, runner.run(plan, run_dir=folder / "run", until="collect")


Rates = tuple[float, float, float]  # requests a second in all and under way, processor seconds a request


def under_way(moments: list[float]) -> float:
    """Requests a second from the first quarter of some moments to the last."""
    first = len(moments) // 4
    return (len(moments) - 1 - first) / max(moments[-1] - moments[first], 1e-9)


def ours(plan: Recipe, at: Path) -> Rates:
    """Of the whole stage."""
    (at / "sample").mkdir(exist_ok=True)
    moments: list[float] = []

    @contextlib.contextmanager
    def bar(*_: object, **__: object) -> Iterator[progress.Advance]:
        yield lambda more=1, note="": moments.extend([time.perf_counter()] * more)

    shown, progress.bar = progress.bar, bar
    began, worked = time.perf_counter(), time.process_time()
    _, counts = sample.Sample().make(at, plan)
    seconds, worked = time.perf_counter() - began, time.process_time() - worked
    progress.bar = shown
    for file in (at / "sample").iterdir():
        file.unlink()
    return counts["chains"] / seconds, under_way(moments), worked / counts["chains"]


def theirs(plan: Recipe, at: Path) -> Rates:
    """Of a bare loop."""
    asked = settings_from_recipe(plan, "bench")
    prompt_of = protocol.load_prompt_builder(plan)
    bodies = [
        msgspec.json.encode(
            request.build_body(
                asked, request.Capabilities(), prompt_of(q), n=1, seed=request.derive_seed(0, q.id, (i,))
            )
        )
        for q in run_questions.read_questions(at, plan.questions.train, "train")
        for i in range(plan.teacher.samples)
    ]

    async def main() -> Rates:
        source, moments = iter(bodies), list[float]()
        limits = httpx2.Limits(max_connections=None, max_keepalive_connections=asked.concurrency)
        async with httpx2.AsyncClient(
            limits=limits, timeout=60, headers={"Content-Type": "application/json"}
        ) as client:

            async def worker() -> None:
                for body in source:
                    response = await client.post(asked.urls[0] + "/completions", content=body)
                    assert response.status_code == 200 and response.content
                    moments.append(time.perf_counter())

            began, worked = time.perf_counter(), time.process_time()
            await asyncio.gather(*(worker() for _ in range(asked.concurrency)))
            seconds, worked = time.perf_counter() - began, time.process_time() - worked
            return len(bodies) / seconds, under_way(moments), worked / len(bodies)

    return asyncio.run(main())


@contextlib.contextmanager
def stub(latency: float, length: int) -> Iterator[str]:
    """The url of a stub in a process of its own."""
    command = [sys.executable, str(STUB), "--latency", str(latency), "--length", str(length)]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert server.stdout is not None
        yield f"http://127.0.0.1:{int(server.stdout.readline())}/v1"
    finally:
        server.kill()
        server.wait()


def say(name: str, ours: float, theirs: float | None, ratio: float | None, unit: str) -> None:
    row = {"name": name, "ours": round(ours, 2), "theirs": theirs and round(theirs, 2), "ratio": ratio, "unit": unit}
    print(json.dumps(row | {"machine": platform.machine()}), flush=True)


def rates(latency: float, concurrency: int, requests: int, repeat: int) -> None:
    with stub(latency, 93) as url, tempfile.TemporaryDirectory() as folder:
        plan, at = prepared(Path(folder), url, requests, concurrency)
        pairs = [(ours(plan, at), theirs(plan, at)) for _ in range(repeat)]
    name = f"sampling, concurrency {concurrency}, latency {latency:g} s"
    for place, unit in enumerate(("requests/s", "requests/s under way", "processor ms a request")):
        scale = (1, 1, 1000)[place]
        stage, bare = (statistics.median(pair[side][place] * scale for pair in pairs) for side in (0, 1))
        ratio = statistics.median(one[place] / other[place] for one, other in pairs)
        say(f"{name}, {requests} requests", stage, bare, round(ratio if place < 2 else 1 / ratio, 3), unit)


def memory(count: int) -> None:
    with stub(0.0, 20) as url, tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, __file__, "--one", str(count), url, folder]
        told = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    say(f"sampling and sealing, {count} chains: peak memory", told["peak"], None, None, "MiB")
    say(f"sampling and sealing, {count} chains: memory over the start", told["grown"], None, None, "MiB")
    say(f"sampling and sealing, {count} chains: bytes a chain at rest", told["bytes"], None, None, "bytes")
    say(f"sampling, {count} chains", told["rate"], None, None, "chains/s")
    say(f"sealing, {count} chains", told["seal"], None, None, "s")


def one(count: int, url: str, folder: Path) -> None:
    """The stage in this process, measured."""
    import pyarrow.parquet  # noqa: F401 - so that its own size is not counted as ours

    plan, at = prepared(folder, url, count, 16, per_request=8)
    (at / "sample").mkdir(exist_ok=True)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    began = time.perf_counter()
    stored = sample.sample_missing(at, plan)
    sampled = time.perf_counter()
    _, counts = sample.Sample().make(at, plan)
    ended = time.perf_counter()
    assert stored == counts["chains"]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    size = (at / "sample" / "chains.parquet").stat().st_size
    told = {"peak": peak, "grown": peak - before, "bytes": size / stored, "rate": stored / (sampled - began)}
    print(json.dumps(told | {"seal": ended - sampled}))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--requests", type=int, default=2000)
    parser.add_argument("--latency", type=float, nargs="*", default=[0.0, 0.3])
    parser.add_argument("--concurrency", type=int, nargs="*", default=[1, 16, 128])
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--memory", type=int, nargs="+")
    parser.add_argument("--one", nargs=3)
    chosen = parser.parse_args()
    if chosen.one:
        one(int(chosen.one[0]), chosen.one[1], Path(chosen.one[2]))
        return
    for count in chosen.memory or ():
        memory(count)
    for latency in () if chosen.memory else chosen.latency:
        for concurrency in chosen.concurrency:
            requests = chosen.requests if concurrency > 1 else chosen.requests // 5
            if latency:
                requests = min(requests, int(30 * concurrency / latency))
            rates(latency, concurrency, requests, chosen.repeat)


if __name__ == "__main__":
    main()
