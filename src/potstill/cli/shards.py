"""The option `--shard`: which part of the work is this process's.

    >>> parse_shard("2/8", {}), parse_shard(None, {"RANK": "3", "WORLD_SIZE": "4"}), parse_shard(None, {})
    (Shard(number=2, count=8), Shard(number=4, count=4), None)
    >>> parse_shard("auto", {"SKYPILOT_NODE_RANK": "0", "SKYPILOT_NUM_NODES": "2"})
    Shard(number=1, count=2)
    >>> parse_shard("auto/8", {"JOB_COMPLETION_INDEX": "7"})
    Shard(number=8, count=8)

`auto` reads the variables of these launchers:

    torchrun                      RANK, WORLD_SIZE
    srun                          SLURM_PROCID, SLURM_STEP_NUM_TASKS
    a SLURM array                 SLURM_ARRAY_TASK_ID, _MIN, _MAX, _STEP and _COUNT
    an indexed Job of Kubernetes  JOB_COMPLETION_INDEX. No variable has the number of pods, so write `auto/N`
    SkyPilot                      SKYPILOT_NODE_RANK, SKYPILOT_NUM_NODES

torchrun may run inside another launcher, once on each of its machines: then its ranks count.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Final

from potstill.errors import UserError

if TYPE_CHECKING:
    from potstill.storage.segments import Shard

Place = tuple[int, int | None]  # the number of a process, from 1, and the number of processes; None: unknown
# Launchers with a variable for the rank, from 0, and one for the number of processes.
RANK_VARIABLES: Final = {
    "torchrun": ("RANK", "WORLD_SIZE"),
    "srun": ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS"),
    "SkyPilot": ("SKYPILOT_NODE_RANK", "SKYPILOT_NUM_NODES"),
}
WRITE_HINT: Final = "write --shard I/N"


def parse_shard(text: str | None, environment: Mapping[str, str]) -> Shard | None:
    """The shard; None for the whole work. Raises UserError if the text is not a shard, or no launcher has set one.

    text  `I/N`; `auto` for the place that a launcher gave to this process; `auto/N`, if the launcher does not tell the
          number of processes; None for only the rank of torchrun or srun, because the tasks of an array may be different
          runs
    """
    from potstill import process
    from potstill.storage.segments import Shard

    if text is None:
        rank = process.read_process_rank(environment)
        number, count = rank.rank + 1, rank.world
    elif match := re.fullmatch(r"auto(?:/([0-9]{1,6}))?", text):
        number, count = _find_place(environment, int(match[1]) if match[1] else None)
    else:
        match = re.fullmatch(r"([0-9]{1,6})/([0-9]{1,6})", text)
        if not match or not 1 <= int(match[1]) <= int(match[2]):
            hint = "write I/N with I from 1 to N, such as 1/8, or auto"
            raise UserError("not a shard", code="E-cli-shard", where="--shard", found=text, hint=hint)
        number, count = int(match[1]), int(match[2])
    return Shard(number, count) if count > 1 else None


def _find_place(environment: Mapping[str, str], count: int | None) -> tuple[int, int]:
    """The place that launchers gave to this process. Raises UserError if there is none, or if they contradict each other.

    count  the number of processes that the user has written
    """
    places = find_places(environment)
    if not places:
        what, found = "no launcher has set the shard of this process", "none of their variables"
        hint = (
            "start potstill with torchrun or srun, as a SLURM array, an indexed Job of Kubernetes or with SkyPilot, or"
        )
        raise _error(what, found, f"{hint} {WRITE_HINT}")
    named = {name: place for name, place in places.items() if place[1] != 1}  # a launcher of one process says nothing
    if "torchrun" in named and (machines := _integer(environment, "GROUP_WORLD_SIZE", 0)):
        named = {name: place for name, place in named.items() if name == "torchrun" or place[1] not in (machines, None)}
    distinct = set(named.values())
    if len(distinct) > 1:
        found = "; ".join(f"{name}: {number}/{total or '?'}" for name, (number, total) in sorted(named.items()))
        raise _error("several launchers contradict each other about the shard of this process", found, WRITE_HINT)
    number, total = distinct.pop() if distinct else (1, 1)
    if total is None and count is None:
        what, found = "Kubernetes does not tell a pod the number of pods", f"JOB_COMPLETION_INDEX={number - 1}"
        raise _error(what, found, "write --shard auto/N, where N is `completions` of the Job")
    if (total is not None and count not in (None, total)) or (count is not None and not 1 <= number <= count):
        found = f"{count}, but this is process {number}" + (f" of {total}" if total is not None else "")
        raise _error("the number of shards differs from that of the launcher", found, "write --shard auto, or I/N")
    return number, total if count is None else count  # type: ignore[return-value]


def find_places(environment: Mapping[str, str]) -> dict[str, Place]:
    """Launcher -> the place that it gave to this process."""
    places: dict[str, Place] = {}
    for name, (rank, world) in RANK_VARIABLES.items():
        if rank in environment and world in environment:
            places[name] = _integer(environment, rank) + 1, _integer(environment, world)
    if "SLURM_ARRAY_TASK_ID" in environment:
        defaults = {"ID": 0, "MIN": 0, "MAX": 0, "STEP": 1}
        task, first, last, step = (
            _integer(environment, f"SLURM_ARRAY_TASK_{name}", default) for name, default in defaults.items()
        )
        total = (last - first) // step + 1
        if (tasks := _integer(environment, "SLURM_ARRAY_TASK_COUNT", total)) != total:
            what, found = "the tasks of this SLURM array are not a range", f"{tasks} tasks from {first} to {last}"
            raise _error(what, found, f"submit a range, such as --array=1-8, or {WRITE_HINT}")
        places["a SLURM array"] = (task - first) // step + 1, total
    if "JOB_COMPLETION_INDEX" in environment:
        places["Kubernetes"] = _integer(environment, "JOB_COMPLETION_INDEX") + 1, None
    return places


def _integer(environment: Mapping[str, str], name: str, default: int | None = None) -> int:
    text = environment.get(name) or ("" if default is None else str(default))
    if not re.fullmatch(r"[0-9]{1,9}", text):
        raise _error("a variable of the launcher is not a number", f"{name}={text}", WRITE_HINT)
    return int(text)


def _error(what: str, found: str, hint: str) -> UserError:
    return UserError(what, code="E-cli-shard-launcher", where="--shard auto", found=found, hint=hint)
