"""Requests per second of the stage `sample`, compared with a bare loop over the same HTTP library.

    python benchmarks/sampling.py [--requests 2000] [--latency 0 0.3]

The server is the tests' stub in its own process: about 100 tokens with 5 candidates each, 50 KB a response. The bare loop
sends the same requests with the same concurrency from the beginning, and reads the responses without decoding them. Both keep
connections open. The stage also decodes, grades, truncates and stores. Without latency both sides wait only for the
processor, which is the hardest case; with latency the server is the bottleneck, as with a model. Prints three JSON lines
for each case, each the median of `--repeat` alternating pairs of runs, and a fourth with the rate of a bare loop that also
stores what the stage stores: a line for each answer, flushed every second, and the table at the end.

requests/s               the whole stage, including its probe, its ramp from a quarter of the concurrency, and sealing
requests/s under way     from the first quarter of the answers to the last stored answer, as in a run of hours
processor ms a request   of this process, which other load on the machine changes less

    python benchmarks/sampling.py --memory 1000 10000 100000

Prints the peak memory of a process that runs the stage for these numbers of chains (27 tokens, 8 a request), and the
bytes of a stored chain. With fewer than about a thousand requests or chains a split may be empty, which is an error.

    python benchmarks/sampling.py --parts 1000

Prints the processor time of each part of a chain, each measured alone: requests with 128 at a time and 0.3 s of latency, then
the work on their responses. In the stage the parts take turns, which costs the processor's caches, so its chains take longer.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import gc
import itertools
import json
import platform
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import aiohttp
import msgspec

from potstill import grading, progress, runner, storage
from potstill.data import run_questions
from potstill.recipe import Recipe, parse_recipe
from potstill.stages import sample
from potstill.storage import parquet, segments
from potstill.storage.flat_chains import encode_row
from potstill.teachers import protocol
from potstill.teachers.openai_api import chain_reader, request, response
from potstill.teachers.openai_api.client import Client
from potstill.teachers.openai_api.settings import settings_from_recipe
from potstill.teachers.openai_api.token_entries import ReaderContext

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


def prepare_run(folder: Path, url: str, requests: int, concurrency: int, per_request: int = 1) -> tuple[Recipe, Path]:
    """A recipe and its run with collected questions: `requests` chains, ten or forty for each question."""
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
    recipe = parse_recipe(text, "bench.yaml", [f"questions.limit.train={rows}"])
    return recipe, runner.run(recipe, run_dir=folder / "run", until="collect")


Rates = tuple[float, float, float]  # requests a second in all and under way, processor seconds a request


def under_way(moments: list[float]) -> float:
    """Requests per second from the first quarter of the moments to the last."""
    first = len(moments) // 4
    return (len(moments) - 1 - first) / max(moments[-1] - moments[first], 1e-9)


class Stored(NamedTuple):
    """What the stage stores: the line of each chain in a segment, and the table."""

    lines: list[bytes]
    table: bytes


def stage_rates(recipe: Recipe, run_dir: Path) -> tuple[Rates, Stored]:
    """The rates of the stage, and what it stored."""
    (run_dir / "sample").mkdir(exist_ok=True)
    moments: list[float] = []

    @contextlib.contextmanager
    def bar(*_: object, **__: object) -> Iterator[progress.Advance]:
        yield lambda more=1, note="": moments.extend([time.perf_counter()] * more)

    original, progress.bar = progress.bar, bar
    start, processor_start = time.perf_counter(), time.process_time()
    _, counts = sample.Sample().make(run_dir, recipe)
    seconds, processor = time.perf_counter() - start, time.process_time() - processor_start
    progress.bar = original
    table = run_dir / "sample" / sample.TABLE_FILE
    stored = Stored(list(map(segments.encode_chain, parquet.read_chains(table))), table.read_bytes())
    for file in (run_dir / "sample").iterdir():
        file.unlink()
    return (counts["chains"] / seconds, under_way(moments), processor / counts["chains"]), stored


def bare_rates(recipe: Recipe, run_dir: Path, stored: Stored | None = None) -> Rates:
    """The rates of a bare loop. stored: it also stores these bytes."""
    settings = settings_from_recipe(recipe, "bench")
    prompt_of = protocol.load_prompt_builder(recipe)
    bodies = [
        msgspec.json.encode(
            request.build_body(
                settings, request.Capabilities(), prompt_of(q), n=1, seed=request.derive_seed(0, q.id, (i,))
            )
        )
        for q in run_questions.read_questions(run_dir, recipe.questions.train, "train")
        for i in range(recipe.teacher.samples)
    ]

    async def main() -> Rates:
        source, moments = iter(bodies), list[float]()
        lines = iter(stored.lines if stored else ())
        connector, headers = aiohttp.TCPConnector(limit=0), {"Content-Type": "application/json"}
        async with aiohttp.ClientSession(connector=connector, headers=headers) as client:
            folder = run_dir / "bare"
            segment = storage.Appender(folder / "lines.jsonl")

            async def worker() -> None:
                for body in source:
                    async with client.post(settings.urls[0] + "/completions", data=body) as response:
                        assert response.status == 200 and await response.read()
                    segment.append_lines(itertools.islice(lines, 1))
                    moments.append(time.perf_counter())

            start, processor_start = time.perf_counter(), time.process_time()
            with segment:
                await asyncio.gather(*(worker() for _ in range(settings.concurrency)))
            if stored:
                storage.write_file(folder / "table", stored.table)
            seconds, processor = time.perf_counter() - start, time.process_time() - processor_start
            shutil.rmtree(folder)
            return len(bodies) / seconds, under_way(moments), processor / len(bodies)

    return asyncio.run(main())


@contextlib.contextmanager
def stub(latency: float, length: int) -> Iterator[str]:
    """The url of a stub in its own process."""
    command = [sys.executable, str(STUB), "--latency", str(latency), "--length", str(length)]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert server.stdout is not None
        yield f"http://127.0.0.1:{int(server.stdout.readline())}/v1"
    finally:
        server.kill()
        server.wait()


def print_row(name: str, ours: float, theirs: float | None, ratio: float | None, unit: str, decimals: int = 2) -> None:
    ours, theirs = round(ours, decimals), theirs and round(theirs, decimals)
    row = {"name": name, "ours": ours, "theirs": theirs, "ratio": ratio, "unit": unit}
    print(json.dumps(row | {"machine": platform.machine()}), flush=True)


def rates(latency: float, concurrency: int, requests: int, repeat: int) -> None:
    with stub(latency, 93) as url, tempfile.TemporaryDirectory() as folder:
        recipe, run_dir = prepare_run(Path(folder), url, requests, concurrency)
        pairs, storing = [], []
        for _ in range(repeat):
            stage_run, stored = stage_rates(recipe, run_dir)
            pairs.append((stage_run, bare_rates(recipe, run_dir)))
            storing.append(bare_rates(recipe, run_dir, stored)[0])
    name = f"sampling, concurrency {concurrency}, latency {latency:g} s"
    for index, unit in enumerate(("requests/s", "requests/s under way", "processor ms a request")):
        scale = (1, 1, 1000)[index]
        stage, bare = (statistics.median(pair[side][index] * scale for pair in pairs) for side in (0, 1))
        ratio = statistics.median(stage_run[index] / bare_run[index] for stage_run, bare_run in pairs)
        print_row(f"{name}, {requests} requests", stage, bare, round(ratio if index < 2 else 1 / ratio, 3), unit)
    ratio = statistics.median(rate / pair[1][0] for rate, pair in zip(storing, pairs, strict=True))
    bare = statistics.median(pair[1][0] for pair in pairs)
    name = f"{name}, {requests} requests: a bare loop that stores"
    print_row(name, statistics.median(storing), bare, round(ratio, 3), "requests/s")


def parts(count: int, repeat: int) -> None:
    """Print the processor time of each part of a chain, as medians over `repeat` times `count` chains."""
    gc.disable()  # the stage lets it run rarely
    with stub(0.3, 93) as url, tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        recipe, run_dir = prepare_run(folder, url, count, 128)
        settings, capabilities = settings_from_recipe(recipe, "bench"), request.Capabilities()
        questions = run_questions.read_questions(run_dir, recipe.questions.train, "train")
        requests = list(
            request.iter_requests(settings, 1, questions, protocol.load_prompt_builder(recipe), frozenset(), {})
        )
        context = ReaderContext("bench", "raw", end_names=frozenset({"<end>"}))
        times: dict[str, list[float]] = {"a bare request": [bare_rates(recipe, run_dir)[2] for _ in range(repeat)]}
        for _ in range(repeat):
            start = time.process_time()
            replies = asyncio.run(send_all(settings, capabilities, requests))
            times.setdefault("request and response", []).append((time.process_time() - start) / len(requests))
            lines = []
            for one, reply in zip(requests, replies, strict=True):
                marks = [time.process_time()]
                body = response.decode_body(reply)
                marks.append(time.process_time())
                row = chain_reader.read_row(body.choices[0], one.question.id, one.indices[0], context)
                assert row is not None
                marks.append(time.process_time())
                grading.grade(body.choices[0].text or "", one.question.gold, one.question.task)
                marks.append(time.process_time())
                lines.append(encode_row(row))
                marks.append(time.process_time())
                for part, (begin, end) in zip(("decode", "read", "grade", "line"), pairwise(marks), strict=True):
                    times.setdefault(part, []).append(end - begin)
            (folder / segments.segment_name(segments.UNSHARDED)).write_bytes(b"".join(lines))
            start = time.process_time()
            parquet.write_chains(folder / "chains.parquet", segments.merge_segments(folder))
            times.setdefault("merge", []).append((time.process_time() - start) / len(requests))
    for part, values in times.items():
        print_row(
            f"sampling, a part: {part}",
            statistics.median(values) * 1000,
            None,
            None,
            "processor ms a chain",
            decimals=3,
        )


async def send_all(
    settings: request.ServerSettings, capabilities: request.Capabilities, requests: list[request.SampleRequest]
) -> list[bytes]:
    """The undecoded responses to the requests, in their order."""
    client, rest, received = Client(settings), iter(enumerate(requests)), [b""] * len(requests)

    async def worker() -> None:
        for index, one in rest:
            reply = await client.post(settings.urls[0], request.build_request(settings, capabilities, one))
            assert reply.data is not None, reply.message
            received[index] = reply.data

    await asyncio.gather(*(worker() for _ in range(settings.concurrency)))
    await client.close()
    return received


def memory(count: int) -> None:
    with stub(0.0, 20) as url, tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, __file__, "--one", str(count), url, folder]
        result = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    print_row(f"sampling and sealing, {count} chains: peak memory", result["peak"], None, None, "MiB")
    print_row(f"sampling and sealing, {count} chains: memory over the start", result["grown"], None, None, "MiB")
    print_row(f"sampling and sealing, {count} chains: bytes a chain at rest", result["bytes"], None, None, "bytes")
    print_row(f"sampling, {count} chains", result["rate"], None, None, "chains/s")
    print_row(f"sealing, {count} chains", result["seal"], None, None, "s")


def measure_memory(count: int, url: str, folder: Path) -> None:
    """Run the stage in this process and print its memory and times."""
    import pyarrow.parquet  # noqa: F401 - so that its memory is not counted

    recipe, run_dir = prepare_run(folder, url, count, 16, per_request=8)
    (run_dir / "sample").mkdir(exist_ok=True)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    start = time.perf_counter()
    stored = sample.sample_missing(run_dir, recipe)
    sampled = time.perf_counter()
    _, counts = sample.Sample().make(run_dir, recipe)
    ended = time.perf_counter()
    assert stored == counts["chains"]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    size = (run_dir / "sample" / "chains.parquet").stat().st_size
    result = {"peak": peak, "grown": peak - before, "bytes": size / stored, "rate": stored / (sampled - start)}
    print(json.dumps(result | {"seal": ended - sampled}))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--requests", type=int, default=2000)
    parser.add_argument("--latency", type=float, nargs="*", default=[0.0, 0.3])
    parser.add_argument("--concurrency", type=int, nargs="*", default=[1, 16, 128])
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--memory", type=int, nargs="+")
    parser.add_argument("--parts", type=int)
    parser.add_argument("--one", nargs=3)
    args = parser.parse_args()
    if args.one:
        measure_memory(int(args.one[0]), args.one[1], Path(args.one[2]))
        return
    if args.parts:
        parts(args.parts, args.repeat)
        return
    for count in args.memory or ():
        memory(count)
    for latency in () if args.memory else args.latency:
        for concurrency in args.concurrency:
            requests = args.requests if concurrency > 1 else args.requests // 5
            if latency:
                requests = min(requests, int(30 * concurrency / latency))
            rates(latency, concurrency, requests, args.repeat)


if __name__ == "__main__":
    main()
