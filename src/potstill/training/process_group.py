"""The connection between the processes that torchrun or srun started: the first process calls the others to its stages.

    first process     collect ... call  align   wait  train  evaluate ... dismiss  report
    every other       wait        come  shard   done  train  shard    ... end

The processes meet at a store of torch.distributed. The first process runs every stage. It calls the others to stages that
all processes make together (`train`), and to stages of which each process makes a shard. A process that fails reports its
error to the store; a process that was killed no longer holds the lock of its shard. In both cases the first process stops
with a message, and nobody waits for a process that has ended.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import Any, Final

import torch
from torch import distributed
from torch.distributed.rendezvous import rendezvous

from potstill import process
from potstill.errors import UserError
from potstill.models import default_device
from potstill.process import ProcessRank

RENDEZVOUS_TIMEOUT: Final = timedelta(minutes=30)  # until all processes have started
COLLECTIVE_TIMEOUT: Final = timedelta(
    hours=1
)  # while one process is slower, for example because it writes a checkpoint
CALL_TIMEOUT: Final = 600.0  # seconds until all processes have come to a stage
DISMISS_TIMEOUT: Final = 30.0  # seconds until all processes have read that no stage needs them
POLL_SECONDS: Final = 0.2  # between looks at the store; a wait in the store would not notice a signal
LOCK_SECONDS: Final = 2.0  # between looks at the lock of a shard


class ProcessGroup:
    """The connection of this process to the others. Every process creates one; the call waits until all have done so."""

    def __init__(self, rank: ProcessRank) -> None:
        host, port = process.read_main_address()
        self.rank, self._call = rank, 0
        self._store, _, _ = next(rendezvous(f"tcp://{host}:{port}", rank.rank, rank.world, timeout=RENDEZVOUS_TIMEOUT))

    # The first process

    def call(self, stage: str, recipe: str) -> None:
        """Call the others to a stage, and wait until all have come. recipe: the text of the recipe.

        Raises UserError if a process does not come, or has another recipe.
        """
        self._publish({"stage": stage, "recipe": recipe})
        missing, end = set(range(1, self.rank.world)), time.monotonic() + CALL_TIMEOUT
        while missing:
            missing -= {rank for rank in missing if self._store.check([f"came {self._call} {rank}"])}
            self._raise_reported(missing)
            if time.monotonic() > end:
                raise _ended_error(stage, min(missing), self.rank.world, "it did not come to this stage")
            time.sleep(POLL_SECONDS if missing else 0)

    def wait_for_shards(self, stage: str, is_running: Callable[[int], bool]) -> None:
        """Wait until every other process has made its shard of the stage.

        is_running  whether the process of a rank still holds the lock of its shard

        Raises UserError if a process has failed or was killed.
        """
        missing, looked = set(range(1, self.rank.world)), time.monotonic()
        while missing:
            missing -= self._raise_reported(missing)
            if time.monotonic() - looked > LOCK_SECONDS:
                for rank in sorted(missing):
                    if is_running(rank) or rank in self._raise_reported({rank}):
                        continue
                    time.sleep(LOCK_SECONDS)  # a process that fails reports it after it has released the lock
                    if rank not in self._raise_reported({rank}):
                        raise _ended_error(stage, rank, self.rank.world, "it was killed")
                looked = time.monotonic()
            time.sleep(POLL_SECONDS if missing else 0)

    def dismiss(self, seconds: float = DISMISS_TIMEOUT) -> None:
        """Tell the other processes to end, and wait at most `seconds` until they have read it."""
        with suppress(RuntimeError):  # a killed process never answers
            self._publish(None)
            names = [f"came {self._call} {rank}" for rank in range(1, self.rank.world)]
            end = time.monotonic() + seconds
            while not self._store.check(names) and time.monotonic() < end:
                time.sleep(POLL_SECONDS)

    # The other processes

    def follow(self, recipe: str) -> Iterator[str]:
        """Wait for the first process, and yield each stage to which it calls, until it dismisses this process.

        The caller makes each stage in `report_failure`, and calls `come` and `finish`. Raises UserError if the first
        process has another recipe, or has ended.
        """
        while True:
            self._call += 1
            called = self._wait_for_call()
            if called is None:
                self._store.set(f"came {self._call} {self.rank.rank}", "")
                return
            if called["recipe"] != recipe:
                fault = UserError(
                    "the processes of this run were started with different recipes",
                    code="E-train-different-recipes",
                    where=f"process {self.rank.rank} of {self.rank.world}",
                    hint="start all processes with the same command and the same files",
                )
                self._report(fault)
                raise fault
            yield called["stage"]

    @contextmanager
    def report_failure(self) -> Iterator[None]:
        """Report an error of the block, which makes the stage to which this process was called, to the first process."""
        try:
            yield
        except BaseException as fault:
            with suppress(RuntimeError):
                self._report(fault)
            raise

    def come(self) -> None:
        """Tell the first process that this process begins with the stage. It then holds the lock of its shard."""
        self._store.set(f"came {self._call} {self.rank.rank}", "")

    def finish(self) -> None:
        """Tell the first process that this process has made the stage. It still holds the lock of its shard."""
        self._report(None)

    # All processes

    @contextmanager
    def collectives(self) -> Iterator[None]:
        """The default process group of torch.distributed, for the stage to which the processes were called."""
        device = default_device()
        if device.type == "cuda":
            torch.cuda.set_device(device)
        distributed.init_process_group(
            "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo",
            store=distributed.PrefixStore(f"group {self._call}", self._store),  # pyright: ignore
            rank=self.rank.rank,
            world_size=self.rank.world,
            timeout=COLLECTIVE_TIMEOUT,
        )
        try:
            yield
        finally:
            distributed.destroy_process_group()

    def _publish(self, value: Any) -> None:
        self._call += 1
        self._store.set(f"call {self._call}", json.dumps(value))

    def _wait_for_call(self) -> Any:
        try:
            while not self._store.check([f"call {self._call}"]):
                time.sleep(POLL_SECONDS)
            return json.loads(self._store.get(f"call {self._call}"))
        except RuntimeError as fault:
            raise UserError(
                "the first process of this run has ended",
                code="E-run-process-ended",
                where=f"process {self.rank.rank} of {self.rank.world}",
                found=str(fault).splitlines()[0],
                hint="its message says why; all stored work is kept, and the same command continues",
            ) from None

    def _report(self, fault: BaseException | None) -> None:
        message = "" if fault is None else str(fault) or type(fault).__name__
        self._store.set(f"done {self._call} {self.rank.rank}", message)

    def _raise_reported(self, ranks: set[int]) -> set[int]:
        """The processes among `ranks` that have made the stage. Raises UserError if one of them has failed."""
        done = {rank for rank in ranks if self._store.check([f"done {self._call} {rank}"])}
        for rank in sorted(done):
            if message := self._store.get(f"done {self._call} {rank}").decode():
                raise _ended_error("this stage", rank, self.rank.world, message)
        return done


def _ended_error(stage: str, rank: int, world: int, found: str) -> UserError:
    return UserError(
        f"another process has ended before its part of {stage} was done",
        code="E-run-process-ended",
        where=f"process {rank} of {world} (from 0)",
        found=found,
        hint="all stored work is kept, and the same command continues",
    )
