"""The processes of one run, as torchrun or srun started them: one makes every stage, all of them train.

    first process     collect ... align  call  train  evaluate ... report
    every other       wait ............  come  train  end

The first alone takes the run's lock and writes; the others wait at a store of torch.distributed until it calls them to
a stage, or dismisses them because no stage needs them. They read the run's folder, which all machines must see.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import Any, Final, TypeVar

import torch
from torch import distributed
from torch.distributed.rendezvous import rendezvous

from potstill import processes
from potstill.errors import UserError
from potstill.processes import Place
from potstill.students import device

T = TypeVar("T")
VERDICT: Final = "verdict"
MEET: Final = timedelta(minutes=30)  # until all processes are there
CALL: Final = timedelta(days=30)  # that the others wait for what the first makes alone
TOGETHER: Final = timedelta(hours=1)  # that one may be slower than the others, such as in writing a checkpoint


class Team:
    """This process and its team. Made by every process at once: waits until all have come."""

    def __init__(self, place: Place) -> None:
        host, port = processes.address()
        self.place, self._called = place, False
        self._store, _, _ = next(rendezvous(f"tcp://{host}:{port}", place.rank, place.world, timeout=MEET))

    @contextmanager
    def call(self, plan: str) -> Iterator[None]:
        """The first process calls the others to the stage that is made in this block. plan: the recipe, as text."""
        self._called = True
        self._store.set(VERDICT, json.dumps(plan))
        with self._group():
            yield

    @contextmanager
    def follow(self, plan: str) -> Iterator[bool]:
        """Wait for the first process. Yields whether it calls; if so, the block makes the stage with it.

        Raises UserError where it has another recipe.
        """
        self._store.wait([VERDICT], CALL)
        verdict = json.loads(self._store.get(VERDICT))
        self._store.set(f"heard {self.place.rank}", "")
        if verdict is None:
            yield False
            return
        if verdict != plan:
            raise UserError(
                "the processes of this run were started with different recipes",
                where=f"process {self.place.rank} of {self.place.world}",
                do="start all of them with the same command, on the same files",
            )
        with self._group():
            yield True

    def dismiss(self) -> None:
        """The first process needs the others no more. Does nothing where it called them."""
        if self._called:
            return
        self._store.set(VERDICT, json.dumps(None))
        with suppress(RuntimeError):  # one that was killed hears nothing
            self._store.wait([f"heard {rank}" for rank in range(1, self.place.world)], timedelta(seconds=30))

    @contextmanager
    def _group(self) -> Iterator[None]:
        own = device()
        if own.type == "cuda":
            torch.cuda.set_device(own)
        distributed.init_process_group(
            "cpu:gloo,cuda:nccl" if own.type == "cuda" else "gloo",
            store=distributed.PrefixStore("group", self._store),  # pyright: ignore
            rank=self.place.rank,
            world_size=self.place.world,
            timeout=TOGETHER,
        )
        try:
            yield
        finally:
            distributed.destroy_process_group()


def first() -> bool:
    """Whether this process is the one that writes."""
    return not distributed.is_initialized() or distributed.get_rank() == 0


def agreed(find: Callable[[], T]) -> T:
    """What the first process finds, on every process: where what they see may differ from moment to moment."""
    if not distributed.is_initialized():
        return find()
    found: list[Any] = [find() if first() else None]
    distributed.broadcast_object_list(found, src=0, device=torch.device("cpu"))
    return found[0]


def gather(value: T) -> list[T]:
    """What every process has, on every process, in the order of their ranks."""
    if not distributed.is_initialized():
        return [value]
    found: list[Any] = [None] * distributed.get_world_size()
    distributed.all_gather_object(found, value)
    return found
