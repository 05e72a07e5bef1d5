"""Several processes in one run: how they meet, how the student is distributed, and how its optimizer's state is saved.

torchrun or srun starts the processes. The first one makes every stage; all of them train.

    first process     collect ... align  call  train  evaluate ... report
    every other       wait ............  come  train  end

Only the first process takes the run's lock and writes. The others wait at a store of torch.distributed until it calls
them to a stage, or dismisses them because no stage needs them. They read the run's folder, which all machines must see.

The student is distributed in one of two ways (`train.sharding`):

    none   every process holds all weights, gradients and optimizer state; gradients are averaged (DDP)
    full   every process holds one part of each weight, gradient and state (FSDP2); the weights of a layer are gathered
           while it is computed, forward and backward, and released afterwards

    >>> distribute_student(torch.nn.Linear(1, 1), "none")                       # one process: unchanged
    Linear(in_features=1, out_features=1, bias=True)

Embedding and head, which may be one matrix, belong to no layer. They are gathered when `Student.forward` begins and
stay until its backward pass ends, so the loss reads the head as it does in one process.

Every process writes its own part of a sharded optimizer state, and any number of processes can read it:

    engine/shard-00001-model-00001-of-00001.safetensors    of the first process
    engine/shard-00002-model-00001-of-00001.safetensors    of the second process
    engine/digests.json                                    of every file, written last

torch.distributed.checkpoint writes and reshards it in its safetensors form, which holds nothing but tensors. Its
default form contains a pickle, which could run code when it is read.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from typing import Any, Final, Literal, TypeVar, cast

import torch
from safetensors import SafetensorError
from torch import Tensor, distributed, nn
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.rendezvous import rendezvous
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from potstill import process, storage
from potstill.errors import UserError
from potstill.models import Student, default_device
from potstill.process import ProcessRank
from potstill.training.optimizer import Optimizer, mismatch_error, named_parameters, optimizer_state, restore_optimizer

T = TypeVar("T")
RECIPE_KEY: Final = "verdict"  # in the store: the recipe of the called stage as text, or null to dismiss
RENDEZVOUS_TIMEOUT: Final = timedelta(minutes=30)  # until all processes have started
STAGE_TIMEOUT: Final = timedelta(days=30)  # while the first process makes stages alone
COLLECTIVE_TIMEOUT: Final = timedelta(hours=1)  # how much slower one process may be, as when it writes a checkpoint


class ProcessGroup:
    """This process among the others. Every process creates one at the same time; this waits until all have come."""

    def __init__(self, rank: ProcessRank) -> None:
        host, port = process.read_main_address()
        self.rank, self._called = rank, False
        self._store, _, _ = next(rendezvous(f"tcp://{host}:{port}", rank.rank, rank.world, timeout=RENDEZVOUS_TIMEOUT))

    @contextmanager
    def call(self, recipe: str) -> Iterator[None]:
        """The first process calls the others to the stage that this block makes. recipe: its text."""
        self._called = True
        self._store.set(RECIPE_KEY, json.dumps(recipe))
        with self._collectives():
            yield

    @contextmanager
    def follow(self, recipe: str) -> Iterator[bool]:
        """Wait for the first process. Yields True if it calls, and then the block makes the stage with it.

        Raises UserError if the first process has another recipe.
        """
        self._store.wait([RECIPE_KEY], STAGE_TIMEOUT)
        called_with = json.loads(self._store.get(RECIPE_KEY))
        self._store.set(f"heard {self.rank.rank}", "")
        if called_with is None:
            yield False
            return
        if called_with != recipe:
            raise UserError(
                "the processes of this run were started with different recipes",
                code="E-train-different-recipes",
                where=f"process {self.rank.rank} of {self.rank.world}",
                hint="start all of them with the same command, on the same files",
            )
        with self._collectives():
            yield True

    def dismiss(self) -> None:
        """Tell the other processes to end. Does nothing if they were called."""
        if self._called:
            return
        self._store.set(RECIPE_KEY, json.dumps(None))
        with suppress(RuntimeError):  # a killed process never confirms
            self._store.wait([f"heard {rank}" for rank in range(1, self.rank.world)], timedelta(seconds=30))

    @contextmanager
    def _collectives(self) -> Iterator[None]:
        device = default_device()
        if device.type == "cuda":
            torch.cuda.set_device(device)
        distributed.init_process_group(
            "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo",
            store=distributed.PrefixStore("group", self._store),  # pyright: ignore
            rank=self.rank.rank,
            world_size=self.rank.world,
            timeout=COLLECTIVE_TIMEOUT,
        )
        try:
            yield
        finally:
            distributed.destroy_process_group()


def rank_and_world() -> tuple[int, int]:
    """The number of this process, and of how many it is one."""
    return (distributed.get_rank(), distributed.get_world_size()) if distributed.is_initialized() else (0, 1)


def is_main_process() -> bool:
    """Whether this process is the one that writes."""
    return rank_and_world()[0] == 0


def broadcast_from_main(compute: Callable[[], T]) -> T:
    """The first process's result on every process, for what they could see differently, such as the files of a run."""
    if not distributed.is_initialized():
        return compute()
    values: list[Any] = [compute() if is_main_process() else None]
    distributed.broadcast_object_list(values, src=0, device=torch.device("cpu"))
    return values[0]


def all_gather(value: T) -> list[T]:
    """The values of all processes on every process, in the order of their ranks."""
    if not distributed.is_initialized():
        return [value]
    values: list[Any] = [None] * distributed.get_world_size()
    distributed.all_gather_object(values, value)
    return values


Model = Student | DistributedDataParallel
Precision = Literal["float32", "bfloat16"]
Sharding = Literal["none", "full"]


def distribute_student(student: Student, sharding: Sharding = "none", precision: Precision = "float32") -> Model:
    """Move the student to this process's GPU, if there is one. With several processes, wrap it in DDP or shard it.

    precision  bfloat16: the weights of layers are gathered in bfloat16; the stored ones stay in float32

    Raises UserError for `full` if nobody started several processes (torchrun with one process is fine).
    """
    started_alone = not distributed.is_initialized() and not process.read_process_rank().launched
    if sharding == "full" and started_alone:
        raise UserError(
            "sharding needs several processes, and this one was started alone",
            code="E-train-sharding-needs-processes",
            where="train.sharding",
            found=sharding,
            hint="start it with torchrun --nproc-per-node N or srun (docs/how-to/eight-gpus.md), or set train.sharding: none",
        )
    student.to(default_device())
    _, world = rank_and_world()
    if world == 1:
        return student
    if sharding == "none":
        return DistributedDataParallel(student, gradient_as_bucket_view=True)
    modules = student.shardable_modules()
    if not modules:
        what, hint = "the layers of this kind of model are unknown, so it cannot be sharded", "set train.sharding: none"
        kind = student.model.config.model_type
        raise UserError(what, code="E-train-sharding-unsupported", where="train.sharding", found=kind, hint=hint)
    mesh = init_device_mesh(default_device().type, (world,))
    low = MixedPrecisionPolicy(torch.bfloat16, torch.float32, cast_forward_inputs=False)
    for module in modules:
        # Embeddings (T5's position biases) are lookups, not products: they stay in float32.
        use_low = precision == "bfloat16" and not isinstance(module, nn.Embedding)
        fully_shard(module, mesh=mesh, mp_policy=low if use_low else MixedPrecisionPolicy())
    student.register_fsdp_methods()
    fully_shard(student, mesh=mesh)
    return student


def is_sharded(model: nn.Module) -> bool:
    """Whether this process holds only parts of the model's weights."""
    return isinstance(model, FSDPModule)


def full_state_dict(student: Student) -> dict[str, Tensor] | None:
    """The state_dict of a sharded student's model on the CPU of the first process, {} on others; all must call it.

    None for a student that is not sharded. Tied weights share their memory. Memory beside the result: one weight on
    every process.
    """
    if not is_sharded(student):
        return None
    cast(FSDPModule, student).reshard()  # `forward` leaves embedding and head gathered
    is_main = is_main_process()
    full: dict[int, Tensor] = {}  # by identity of the tensor
    state = student.model.state_dict(keep_vars=True)
    for value in state.values():
        if id(value) not in full:
            whole = full_tensor(value.detach())
            full[id(value)] = whole.cpu() if is_main else whole.new_empty(0)
    return {name: full[id(value)] for name, value in state.items()} if is_main else {}


def clip_gradients(parameters: Sequence[Tensor], max_norm: float) -> float:
    """Scale the gradients so that their total norm is at most `max_norm`. Returns the norm before, the same on every
    process."""
    return float(full_tensor(nn.utils.clip_grad_norm_(parameters, max_norm)))


def full_tensor(value: Any) -> Tensor:
    """The whole of a tensor that may be sharded. Every process must call it."""
    return value.full_tensor() if isinstance(value, DTensor) else value


DIGESTS_FILE: Final = "digests.json"
_SHARD_PATTERN: Final = "shard-{:05d}-*.safetensors"  # the files of one process, counted from 1


def save_optimizer_shards(optimizer: Optimizer, folder: Path, *, parameters: bool = False) -> None:
    """Write `optimizer_state` into a new folder; every process must call it. `parameters` as in `optimizer_state`."""
    # Sorted by name, because a restored state has another order than one that grew step by step.
    state = sorted(optimizer_state(optimizer, parameters=parameters).items())
    tensors = {name: value.detach() for name, value in state}
    with warnings.catch_warnings(action="ignore", category=UserWarning):  # of a group of one process
        save(tensors, storage_writer=HuggingFaceStorageWriter(str(folder), save_distributed=True))
    files = sorted(folder.glob(_SHARD_PATTERN.format(rank_and_world()[0] + 1)))
    digests = all_gather({path.name: storage.file_digest(path) for path in files})
    if is_main_process():
        merged = {name: digest for part in digests for name, digest in sorted(part.items())}
        storage.write_json(folder / DIGESTS_FILE, merged)


def restore_optimizer_shards(optimizer: Optimizer, folder: Path) -> None:
    """The inverse of `save_optimizer_shards`, for any number of processes; every process must call it.

    Raises UserError if a file is not the one that was written, or belongs to another model.
    """
    _check_shards(folder)
    reader = HuggingFaceStorageReader(str(folder))
    by_name = dict(named_parameters(optimizer))
    tensors: dict[str, Tensor] = {}
    try:
        for key, stored in reader.read_metadata().state_dict_metadata.items():
            assert isinstance(stored, TensorStorageMetadata)
            parameter = by_name.get(key.rpartition("/")[0])
            if parameter is None or (stored.size and stored.size != parameter.shape):
                raise mismatch_error(f"{key} of {tuple(stored.size)}")
            like = parameter.detach() if stored.size else torch.zeros(())
            tensors[key] = torch.zeros_like(like, dtype=stored.properties.dtype)
        with warnings.catch_warnings(action="ignore", category=UserWarning):  # of a group of one process
            load(tensors, storage_reader=reader)
    except (SafetensorError, OSError, KeyError) as error:
        raise _damaged_error(folder, str(error)) from None
    restore_optimizer(optimizer, tensors)


def _check_shards(folder: Path) -> None:
    """Check the digests: each process reads its share of the files, and all raise the same error."""
    rank, world = rank_and_world()
    fault: str | None = None
    try:
        digests = storage.read_json(folder / DIGESTS_FILE)
        for name in sorted(digests)[rank::world]:
            if not (folder / name).is_file() or storage.file_digest(folder / name) != digests[name]:
                fault = name
    except UserError as error:
        fault = str(error)
    for other in all_gather(fault):
        if other is not None:
            raise _damaged_error(folder, other)


def _damaged_error(folder: Path, found: str) -> UserError:
    return UserError(
        "the optimizer's state was changed after it was written",
        code="E-train-optimizer-state-damaged",
        where=folder,
        found=found,
        hint="restore it, or remove the folder: training then continues from an older checkpoint, or from the start",
    )
