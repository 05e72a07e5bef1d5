"""The rank of this process among the processes of torchrun or srun, its peak memory, and worker processes.

    >>> read_process_rank({"RANK": "3", "WORLD_SIZE": "16", "LOCAL_RANK": "3"})
    ProcessRank(rank=3, world=16, local=3, launched=True)
    >>> read_process_rank({"SLURM_NTASKS": "16"})
    ProcessRank(rank=0, world=1, local=0, launched=False)
    >>> read_main_address({"SLURM_JOB_NODELIST": "gpu[003-010],big1", "SLURM_JOB_ID": "20007"})
    ('gpu003', 20007)

SLURM_NTASKS is not used, because a batch script, which is one process, also has it. Only the processes of a job step have
the variables in `LAUNCHER_VARIABLES`.
"""

from __future__ import annotations

import atexit
import contextlib
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

# For each launcher, the variables of the rank, the number of processes, and the rank on this machine.
LAUNCHER_VARIABLES: Final = (
    ("RANK", "WORLD_SIZE", "LOCAL_RANK"),
    ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID"),
)
PORT_RANGE: Final = 20000  # the number of ports that are used, and also the first port
# Numbers of matrix kernels that oneDNN and torch's interface to it keep on a CPU; 1,024 each by default. Every number of
# tokens needs other kernels, so most are never used again: with the defaults, training a model of 135 million parameters
# took 3 GiB more after 72 steps than after the first.
KERNEL_CACHES: Final = {"ONEDNN_PRIMITIVE_CACHE_CAPACITY": "16", "LRU_CACHE_CAPACITY": "1"}


def limit_kernel_caches() -> None:
    """Limit the memory of matrix kernels (see KERNEL_CACHES), unless the environment sets it. Has no effect after the first
    product of this process."""
    for name, value in KERNEL_CACHES.items():
        os.environ.setdefault(name, value)


@dataclass(frozen=True, slots=True)
class ProcessRank:
    """The rank of a process among the processes of its launcher.

    rank      number of the process, from 0
    world     number of processes
    local     number of the process on its machine, from 0
    launched  whether a launcher (torchrun, srun) started the process
    """

    rank: int = 0
    world: int = 1
    local: int = 0
    launched: bool = False

    @property
    def is_main(self) -> bool:
        return self.rank == 0


def read_process_rank(environment: Mapping[str, str] | None = None) -> ProcessRank:
    """The rank of this process from the environment variables of its launcher. Without a launcher it is rank 0 of 1."""
    variables = os.environ if environment is None else environment
    for rank, world, local in LAUNCHER_VARIABLES:
        if rank in variables and world in variables:
            return ProcessRank(int(variables[rank]), int(variables[world]), int(variables.get(local, "0")), True)
    return ProcessRank()


def read_main_address(environment: Mapping[str, str] | None = None) -> tuple[str, int]:
    """The host and port of the first process.

    They are MASTER_ADDR and MASTER_PORT, which torchrun sets. In a SLURM job without these variables, they are the first
    machine of the job and a port computed from the job's number. Raises UserError if the host or the port is unknown.
    """
    variables = os.environ if environment is None else environment
    host, port = variables.get("MASTER_ADDR"), variables.get("MASTER_PORT")
    nodes = variables.get("SLURM_STEP_NODELIST") or variables.get("SLURM_JOB_NODELIST", "")
    if not host and (match := re.match(r"([^\[,]+)(?:\[([0-9]+))?", nodes)):
        host = match[1] + (match[2] or "")
    if not port and "SLURM_JOB_ID" in variables:
        port = str(PORT_RANGE + int(variables["SLURM_JOB_ID"]) % PORT_RANGE)
    if not host or not port:
        what = "several processes were started, but the address of the first process is not set"
        hint = "start the processes with torchrun or srun, or set both variables"
        raise UserError(what, code="E-run-missing-main-address", where="MASTER_ADDR, MASTER_PORT", hint=hint)
    return host, int(port)


def peak_memory() -> int:
    """The peak memory of this process so far, in bytes."""
    unit = 1 if platform.system() == "Darwin" else 1 << 10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def machine_info() -> dict[str, Any]:
    """Host, process and versions, for the log of a run."""
    from importlib.metadata import PackageNotFoundError, version

    versions = {name: version(name) for name in ("potstill", "torch", "transformers", "tokenizers", "numpy", "pyarrow")}
    for name in ("peft", "bitsandbytes"):  # of the extras lora and qlora
        with contextlib.suppress(PackageNotFoundError):
            versions[name] = version(name)
    return {
        "host": platform.node(),
        "pid": os.getpid(),
        "machine": platform.machine(),
        "python": platform.python_version(),
        "versions": versions,
    }


WORKER_START_SECONDS = 120.0  # time limit for a worker to load its libraries


class WorkerProcess:
    """A process `python -m module` that reads one JSON value per line and writes one JSON value per line.

    It is for a library whose calls may never return, such as symbolic algebra: if a request takes too long, the process
    is killed. A signal handler would not be enough, because it runs only in the main thread and cannot interrupt C code.
    The process starts with the first request, writes one value when it is ready, and ends with this process.
    """

    def __init__(self, module: str) -> None:
        self.module = module
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._owner = 0
        atexit.register(self.close)

    def ask(self, request: Any, seconds: float) -> Any:
        """The answer to a request; None if it took longer than `seconds`, or if the worker ended. Thread-safe."""
        with self._lock:
            if self._owner != os.getpid():  # this is a forked process, and the worker belongs to its parent
                self._process, self._owner = None, os.getpid()
            if self._process is None or self._process.poll() is not None:
                self._start()
            process = self._process
            assert process is not None and process.stdin is not None
            try:
                process.stdin.write(json.dumps(request).encode() + b"\n")
                process.stdin.flush()
                return self._read_line(seconds)
            except OSError:
                self._stop()
                return None

    def close(self) -> None:
        """End the worker process if this process started one."""
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
        if self._read_line(WORKER_START_SECONDS) is None:
            raise RuntimeError(f"{self.module} did not start")

    def _read_line(self, seconds: float) -> Any:
        """The value of the worker's next line. If the line takes longer than `seconds`, end the worker and return None."""
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
