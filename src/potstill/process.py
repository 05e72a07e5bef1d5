"""Which of several processes this is, as torchrun or srun have told it, and what memory it took.

    >>> read_process_rank({"RANK": "3", "WORLD_SIZE": "16", "LOCAL_RANK": "3"})
    ProcessRank(rank=3, world=16, local=3, launched=True)
    >>> read_process_rank({"SLURM_NTASKS": "16"})
    ProcessRank(rank=0, world=1, local=0, launched=False)
    >>> read_main_address({"SLURM_JOB_NODELIST": "gpu[003-010],big1", "SLURM_JOB_ID": "20007"})
    ('gpu003', 20007)

Only what a step of SLURM has says that there are others: SLURM_NTASKS stands in a batch script too, which runs once.

Workers: a process of its own that answers one request after the other, and is ended when it takes too long.

A library that may not come to an end (symbolic algebra) runs there. A signal would not do: it reaches the main thread
only, and no call that is busy inside a C library. A worker starts when it is first asked and ends with the process that
asked.
"""

from __future__ import annotations

import atexit
import json
import os
import platform
import re
import resource
import select
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from potstill.errors import UserError

# Rank from 0, number of processes, rank on this machine.
LAUNCHER_VARIABLES: Final = (
    ("RANK", "WORLD_SIZE", "LOCAL_RANK"),
    ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID"),
)
PORT_RANGE: Final = 20000  # so many, from the port of the same number on


@dataclass(frozen=True, slots=True)
class ProcessRank:
    """`rank` of `world` processes, the `local`-th on its machine; `launched`: whether somebody said so."""

    rank: int = 0
    world: int = 1
    local: int = 0
    launched: bool = False

    @property
    def first(self) -> bool:
        return self.rank == 0


def read_process_rank(environment: Mapping[str, str] | None = None) -> ProcessRank:
    """This process among those that were started together."""
    known = os.environ if environment is None else environment
    for rank, world, local in LAUNCHER_VARIABLES:
        if rank in known and world in known:
            return ProcessRank(int(known[rank]), int(known[world]), int(known.get(local, "0")), True)
    return ProcessRank()


def read_main_address(environment: Mapping[str, str] | None = None) -> tuple[str, int]:
    """Host and port where the first process is found: MASTER_ADDR and MASTER_PORT, which torchrun sets; in a job of
    SLURM the job's first machine, and a port from the job's number. Raises UserError where nothing says it."""
    known = os.environ if environment is None else environment
    host, port = known.get("MASTER_ADDR"), known.get("MASTER_PORT")
    machines = known.get("SLURM_STEP_NODELIST") or known.get("SLURM_JOB_NODELIST", "")
    if not host and (found := re.match(r"([^\[,]+)(?:\[([0-9]+))?", machines)):
        host = found[1] + (found[2] or "")
    if not port and "SLURM_JOB_ID" in known:
        port = str(PORT_RANGE + int(known["SLURM_JOB_ID"]) % PORT_RANGE)
    if not host or not port:
        raise UserError(
            "several processes were started, but nothing says where they meet",
            where="MASTER_ADDR, MASTER_PORT",
            hint="start them with torchrun or srun, or set both",
        )
    return host, int(port)


def peak_memory() -> int:
    """The most bytes that this process has held so far."""
    unit = 1 if platform.system() == "Darwin" else 1 << 10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


WORKER_START_SECONDS = 120.0  # seconds that a worker may take to load its libraries


class WorkerProcess:
    """A process `python -m module` that reads a JSON value a line and writes one a line, the first when it is ready."""

    def __init__(self, module: str) -> None:
        self.module = module
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._owner = 0
        atexit.register(self.close)

    def ask(self, request: Any, seconds: float) -> Any:
        """The answer to a request, None where none came in time or the worker ended. Any thread may ask."""
        with self._lock:
            if self._owner != os.getpid():  # after a fork the worker is the parent's
                self._process, self._owner = None, os.getpid()
            if self._process is None or self._process.poll() is not None:
                self._start()
            process = self._process
            assert process is not None and process.stdin is not None
            try:
                process.stdin.write(json.dumps(request).encode() + b"\n")
                process.stdin.flush()
                return self._line(seconds)
            except OSError:
                self._stop()
                return None

    def close(self) -> None:
        """End the worker, if this process has one."""
        if self._owner == os.getpid():
            self._stop()

    def _start(self) -> None:
        paths = os.pathsep.join(path or os.getcwd() for path in sys.path)
        self._process = subprocess.Popen(
            [sys.executable, "-m", self.module],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "PYTHONPATH": paths},
        )
        if self._line(WORKER_START_SECONDS) is None:
            raise RuntimeError(f"{self.module} did not start")

    def _line(self, seconds: float) -> Any:
        """The next line of the worker; None, and no worker any more, where it does not come in time."""
        assert self._process is not None and self._process.stdout is not None
        descriptor, line = self._process.stdout.fileno(), b""
        end = time.monotonic() + seconds
        while not line.endswith(b"\n"):
            ready, _, _ = select.select([descriptor], [], [], max(0.0, end - time.monotonic()))
            part = os.read(descriptor, 1 << 16) if ready else b""
            if not part:
                self._stop()
                return None
            line += part
        return json.loads(line)

    def _stop(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.wait()
            for pipe in (process.stdin, process.stdout):
                if pipe is not None:
                    pipe.close()
