"""Requests a second of the stage `sample` against those of a bare loop with the same HTTP library.

    python benchmarks/sampling.py [--requests 2000] [--latency 0 0.3]

The server is the stub of the tests in a process of its own: about 100 tokens with 5 outcomes each, 50 KB a body. The
bare loop posts the same bodies with the same number under way and reads the answers; it does not decode them. The stage
asks, decodes, grades, cuts, and stores; its probe and its sealing count. Without latency the processor is all that both
sides wait for, which is the hardest case; with latency the server is the bottleneck, as with a model.
One JSON line a case: ours and theirs in requests a second, the best of `--repeat` runs of each, taken in turn.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import httpx2
import msgspec

from potstill import recipe, run
from potstill.questions import collected
from potstill.stages import sample
from potstill.teachers import local
from potstill.teachers.openai import asking, settings

STUB = Path(__file__).parent.parent / "tests" / "stub.py"
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
  server: {{urls: ["{url}"], per_request: 1, concurrency: {concurrency}}}
"""


def prepared(folder: Path, url: str, requests: int, concurrency: int) -> tuple[recipe.Recipe, Path]:
    """A recipe and a run whose questions are collected: `requests` chains, ten a question."""
    rows = max(2, requests // 10)
    for name, word in (("sums", "What is"), ("sums2", "Add")):
        lines = [{"question": f"{word} {i} + {i % 9}?", "answer": str(i + i % 9)} for i in range(rows + 40)]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    text = RECIPE.format(
        file=folder / "sums.jsonl", file2=folder / "sums2.jsonl", url=url, samples=10, concurrency=concurrency
    )
    plan = recipe.parse(text, "bench.yaml", [f"questions.limit.train={rows}"])
    return plan, run.run(plan, folder=folder / "run", until="collect")


def ours(plan: recipe.Recipe, at: Path) -> float:
    """Requests a second of the whole stage."""
    (at / "sample").mkdir(exist_ok=True)
    began = time.perf_counter()
    _, counts = sample.make(at, plan)
    seconds = time.perf_counter() - began
    for file in (at / "sample").iterdir():
        file.unlink()
    return counts["chains"] / seconds


def theirs(plan: recipe.Recipe, at: Path) -> float:
    """Requests a second of a bare loop."""
    asked = settings(plan, "bench")
    prompt_of = local.asked(plan)
    bodies = [
        msgspec.json.encode(
            asking.payload(asked, asking.Manner(), prompt_of(q), n=1, seed=asking.seed_of(0, q.id, (i,)))
        )
        for q in collected.questions(at, plan.questions.train, "train")
        for i in range(plan.teacher.samples)
    ]

    async def main() -> float:
        source = iter(bodies)
        limits = httpx2.Limits(max_connections=None, max_keepalive_connections=asked.concurrency)
        async with httpx2.AsyncClient(
            limits=limits, timeout=60, headers={"Content-Type": "application/json"}
        ) as client:

            async def worker() -> None:
                for body in source:
                    response = await client.post(asked.urls[0] + "/completions", content=body)
                    assert response.status_code == 200 and response.content

            began = time.perf_counter()
            await asyncio.gather(*(worker() for _ in range(asked.concurrency)))
            return len(bodies) / (time.perf_counter() - began)

    return asyncio.run(main())


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--requests", type=int, default=2000)
    parser.add_argument("--latency", type=float, nargs="*", default=[0.0, 0.3])
    parser.add_argument("--concurrency", type=int, nargs="*", default=[1, 16, 128])
    parser.add_argument("--repeat", type=int, default=2)
    chosen = parser.parse_args()
    for latency in chosen.latency:
        for concurrency in chosen.concurrency:
            command = [sys.executable, str(STUB), "--latency", str(latency), "--length", "93"]
            server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
            try:
                assert server.stdout is not None
                url = f"http://127.0.0.1:{int(server.stdout.readline())}/v1"
                requests = chosen.requests if concurrency > 1 else chosen.requests // 5
                if latency:
                    requests = min(requests, int(30 * concurrency / latency))
                with tempfile.TemporaryDirectory() as folder:
                    plan, at = prepared(Path(folder), url, requests, concurrency)
                    rates = [(theirs(plan, at), ours(plan, at)) for _ in range(chosen.repeat)]
            finally:
                server.kill()
                server.wait()
            bare, stage = max(rate for rate, _ in rates), max(rate for _, rate in rates)
            row = {"name": f"sampling, concurrency {concurrency}, latency {latency:g} s", "ours": round(stage, 1)}
            row |= {"theirs": round(bare, 1), "ratio": round(stage / bare, 3), "unit": "requests/s"}
            print(json.dumps(row | {"machine": platform.machine()}), flush=True)


if __name__ == "__main__":
    main()
