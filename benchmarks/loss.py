"""Time and memory of the loss, compared with its unavoidable matrix products and with other implementations.

    python benchmarks/loss.py [--peers ENV/bin/python] [--rows N] [--device cuda]

    ours          `potstill.losses.weighted_sparse_kl`: value and gradient in one pass
    compiled      the same with the compiled kernel, without the time of compiling
    sparse        `potstill.losses.sparse_kl`: a value for every position; logits are computed twice
    products      hidden @ head.T, gradient @ head, gradient.T @ hidden: the unavoidable part
    dense         KL against a dense [n, v] teacher with torch's log_softmax
    gkd           TRL 1.16's generalized_jsd_loss (beta 0) on complete logits of both sides
    chunked       TRL 1.16's chunked divergence, which also computes the teacher's logits from its hidden states

Forward and backward in float32, each case in its own process. Prints one JSON line for each case: seconds of processor
time (on a GPU, wall-clock time), the best of several runs; and peak memory beyond hidden states, head and candidates. For
`dense` and `gkd` the memory includes the teacher's [n, v]. `ratio` is theirs / ours. `--rows` limits n for both sides.
`peers.py` describes the peers' environment; TRL's two functions are taken from its files, without its dependencies.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import importlib
import json
import os
import platform
import random
import resource
import subprocess
import sys
import time
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional as F

SIZES = ((4096, 768, 32128, 5), (4096, 2048, 32128, 20), (512, 896, 151936, 20))
WAYS = ("ours", "compiled", "sparse", "products", "dense", "gkd", "chunked")
THEIRS = ("gkd", "chunked")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--peers", help="the python of the peers' environment")
    parser.add_argument("--rows", type=int, help="maximum number of rows")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--runs", type=int, default=2)
    parser.add_argument("--way", help="for internal use")
    parser.add_argument("--size", help="for internal use")
    args = parser.parse_args()
    if args.way:
        print(json.dumps(measure(args.way, tuple(map(int, args.size.split(","))), args.device, args.runs)))
        return
    for n, *rest in SIZES:
        size = (min(n, args.rows or n), *rest)
        results = {way: run_alone(way, size, args) for way in WAYS}
        ours = results["ours"]
        for way in WAYS[1:]:
            for unit in ("s", "MiB"):
                theirs = results[way]
                ratio = round(theirs[unit] / ours[unit], 2) if unit in theirs and unit in ours else None
                row = {
                    "name": f"{way} {size}",
                    "ours": ours.get(unit),
                    "theirs": theirs.get(unit, theirs.get("why")),
                    "ratio": ratio,
                    "unit": unit,
                }
                print(json.dumps({**row, "machine": machine(args.device)}), flush=True)


def run_alone(way: str, size: tuple[int, ...], args: argparse.Namespace) -> dict[str, Any]:
    python = args.peers if way in THEIRS else sys.executable
    if python is None:
        return {"why": "not installed"}
    command = [python, __file__, "--way", way, "--size", ",".join(map(str, size)), "--device", args.device]
    done = subprocess.run([*command, "--runs", str(args.runs)], capture_output=True, text=True)
    if done.returncode:
        return {"why": f"failed ({done.returncode}): {(done.stderr.strip().splitlines() or ['killed'])[-1][:200]}"}
    return json.loads(done.stdout.splitlines()[-1])


def measure(way: str, size: tuple[int, ...], device: str, runs: int) -> dict[str, float]:
    torch.set_num_threads(1)
    n, d, v, k = size
    torch.manual_seed(1)
    hidden = torch.randn(n, d, device=device)
    head = torch.randn(v, d, device=device).div_(d**0.5)
    # No permutations of the vocabulary: memory that was used before the measurement would hide the peak.
    draws = random.Random(1)
    ids = torch.tensor([draws.sample(range(v), k) for _ in range(n)], device=device)
    p = torch.rand(n, k, device=device).softmax(1).mul_(0.97)
    step = prepare(way, hidden, head, ids, p)
    base, best = peak(device), float("inf")
    for _ in range(runs):
        hidden.grad = head.grad = None
        began = clock(device)
        step()
        best = min(best, clock(device) - began)
    return {"s": round(best, 3), "MiB": round(peak(device) - base, 1)}


def prepare(
    way: str, hidden: torch.Tensor, head: torch.Tensor, ids: torch.Tensor, p: torch.Tensor
) -> Callable[[], Any]:
    """One forward and backward pass. Tensors that only this way needs are made inside, so that they count."""
    n = len(hidden)

    def teacher() -> torch.Tensor:
        rest = (1 - p.sum(1, keepdim=True)) / (len(head) - p.shape[1])
        return rest.expand(-1, len(head)).clone().scatter_(1, ids, p)

    if way == "products":

        def products() -> None:
            logits = hidden @ head.T
            to_hidden, to_head = logits @ head, logits.T @ hidden
            assert len(to_hidden) == n and len(to_head) == len(head)

        return products
    hidden.requires_grad_()
    head.requires_grad_()
    if way in ("ours", "compiled", "sparse"):
        from potstill import losses

        weights = torch.full((n,), 1 / n, device=hidden.device)
        if way != "sparse":
            kernel: losses.Kernel = "plain" if way == "ours" else "compiled"
            return lambda: losses.weighted_sparse_kl(hidden, head, ids, p, weights, kernel=kernel)[0].backward()
        return lambda: (weights * losses.sparse_kl(hidden, head, ids, p)).sum().backward()
    if way == "dense":
        return lambda: F.kl_div((hidden @ head.T).log_softmax(1), teacher(), reduction="sum").div(n).backward()
    if way == "gkd":
        divergence = function_of("trl/experimental/gkd/gkd_trainer.py", "generalized_jsd_loss")
        return lambda: divergence((hidden @ head.T)[None], teacher().log_()[None], beta=0).backward()
    function, teacher_state = chunked(), (torch.randn_like(hidden), torch.randn_like(head).div_(head.shape[1] ** 0.5))
    return lambda: function.apply(hidden, head, None, *teacher_state, None, 0.0)[0].mean().backward()


def function_of(path: str, name: str) -> Callable[..., Any]:
    """A function from a file, without importing the file; its globals are torch and F."""
    folder = next(Path(entry) for entry in sys.path if (Path(entry) / path).is_file())
    for node in ast.walk(ast.parse((folder / path).read_text("utf-8"))):
        if isinstance(node, ast.FunctionDef) and node.name == name:
            node.decorator_list = []
            namespace: dict[str, Any] = {"torch": torch, "F": F}
            exec(compile(ast.Module([node], []), path, "exec"), namespace)
            return namespace[name]
    raise LookupError(name)


def chunked() -> Any:
    """TRL's kernel module with an empty module in place of its trainer, which would need a dozen packages."""
    for name in ("trl.trainer", "trl.trainer.utils"):
        sys.modules[name] = types.ModuleType(name)
    sys.modules["trl.trainer"].__path__ = []
    gather = lambda *_: contextlib.nullcontext()  # noqa: E731
    sys.modules["trl.trainer.utils"].maybe_gather_lm_head_ctx = gather  # type: ignore[attr-defined]
    return importlib.import_module("trl.kernels.chunked_divergence").ChunkedDivergenceFunction


def clock(device: str) -> float:
    if device == "cpu":
        return time.process_time()
    torch.cuda.synchronize()
    return time.monotonic()


def peak(device: str) -> float:
    """The peak memory of the process so far, in MiB."""
    if device == "cpu":
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return torch.cuda.max_memory_allocated() / 2**20


def machine(device: str) -> str:
    name = torch.cuda.get_device_name() if device == "cuda" else f"{platform.machine()}, one thread"
    return f"{name}, load {os.getloadavg()[0]:.1f}, torch {torch.__version__}"


if __name__ == "__main__":
    main()
