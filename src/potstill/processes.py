"""Which of several processes this is, as torchrun or srun have told it, and what memory it took.

    >>> here({"RANK": "3", "WORLD_SIZE": "16", "LOCAL_RANK": "3"})
    Place(rank=3, world=16, local=3, launched=True)
    >>> here({"SLURM_NTASKS": "16"})
    Place(rank=0, world=1, local=0, launched=False)
    >>> address({"SLURM_JOB_NODELIST": "gpu[003-010],big1", "SLURM_JOB_ID": "20007"})
    ('gpu003', 20007)

Only what a step of SLURM has says that there are others: SLURM_NTASKS stands in a batch script too, which runs once.
"""

from __future__ import annotations

import os
import platform
import re
import resource
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from potstill.errors import UserError

# Rank from 0, number of processes, rank on this machine.
LAUNCHERS: Final = (
    ("RANK", "WORLD_SIZE", "LOCAL_RANK"),
    ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID"),
)
PORTS: Final = 20000  # so many, from the port of the same number on


@dataclass(frozen=True, slots=True)
class Place:
    """`rank` of `world` processes, the `local`-th on its machine; `launched`: whether somebody said so."""

    rank: int = 0
    world: int = 1
    local: int = 0
    launched: bool = False

    @property
    def first(self) -> bool:
        return self.rank == 0


def here(environment: Mapping[str, str] | None = None) -> Place:
    """This process among those that were started together."""
    known = os.environ if environment is None else environment
    for rank, world, local in LAUNCHERS:
        if rank in known and world in known:
            return Place(int(known[rank]), int(known[world]), int(known.get(local, "0")), True)
    return Place()


def address(environment: Mapping[str, str] | None = None) -> tuple[str, int]:
    """Host and port where the first process is found: MASTER_ADDR and MASTER_PORT, which torchrun sets; in a job of
    SLURM the job's first machine, and a port from the job's number. Raises UserError where nothing says it."""
    known = os.environ if environment is None else environment
    host, port = known.get("MASTER_ADDR"), known.get("MASTER_PORT")
    machines = known.get("SLURM_STEP_NODELIST") or known.get("SLURM_JOB_NODELIST", "")
    if not host and (found := re.match(r"([^\[,]+)(?:\[([0-9]+))?", machines)):
        host = found[1] + (found[2] or "")
    if not port and "SLURM_JOB_ID" in known:
        port = str(PORTS + int(known["SLURM_JOB_ID"]) % PORTS)
    if not host or not port:
        raise UserError(
            "several processes were started, but nothing says where they meet",
            where="MASTER_ADDR, MASTER_PORT",
            do="start them with torchrun or srun, or set both",
        )
    return host, int(port)


def peak_memory() -> int:
    """The most bytes that this process has held so far."""
    unit = 1 if platform.system() == "Darwin" else 1 << 10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
