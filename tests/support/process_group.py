"""Several processes of one test, forked from it, so that nothing is imported again; they form a process group like
torchrun's."""

from __future__ import annotations

import multiprocessing
import os
import socket
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import distributed

CONTEXT = multiprocessing.get_context("fork")


def together(world: int, work: Callable[..., Any], *arguments: object, timeout: float = 120) -> list[int]:
    """work(rank, *arguments) in so many processes at once; their exit codes."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    started = [CONTEXT.Process(target=_run, args=(rank, world, port, work, arguments)) for rank in range(world)]
    for process in started:
        process.start()
    for process in started:
        process.join(timeout)
    codes = [process.exitcode for process in started]
    for process in started:
        process.kill()
    return [-1 if code is None else code for code in codes]


def _run(rank: int, world: int, port: int, work: Callable[..., Any], arguments: Sequence[object]) -> None:
    names = {"RANK": rank, "WORLD_SIZE": world, "LOCAL_RANK": rank, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in names.items()})
    torch.set_num_threads(1)
    try:
        work(rank, *arguments)
    except BaseException:
        traceback.print_exc(file=sys.stderr)
        sys.stderr.flush()
        os._exit(1)
    os._exit(0)


def gloo(folder: Path, rank: int) -> None:
    distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)


__all__ = ["gloo", "together"]
