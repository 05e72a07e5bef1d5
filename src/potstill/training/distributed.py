"""The processes of one run, as torchrun or srun started them: one makes every stage, all of them train.

    first process     collect ... align  call  train  evaluate ... report
    every other       wait ............  come  train  end

The first alone takes the run's lock and writes; the others wait at a store of torch.distributed until it calls them to
a stage, or dismisses them because no stage needs them. They read the run's folder, which all machines must see.

A student on several processes: whole on each of them, or spread over them with torch's FSDP2.

    none   every process holds all weights, gradients and optimizer state; gradients are averaged (DDP)
    full   of every weight, gradient and state a process holds one part; a layer's weights are gathered when it is
           computed, forward and backward, and let go after it

    >>> distribute_student(torch.nn.Linear(1, 1), "none")                       # one process: as it is
    Linear(in_features=1, out_features=1, bias=True)

Embedding and head, one matrix where they are tied, belong to no layer. They are gathered when `Student.forward` begins
and stay until its backward pass is through, so the loss reads the head as it does in one process.

The optimizer's state where it is spread over processes: every process writes its own part, and any number reads it.

    engine/shard-00001-model-00001-of-00001.safetensors    of the first process
    engine/shard-00002-model-00001-of-00001.safetensors    of the second
    engine/digests.json                                    of every file, and last

Written and cut anew by torch.distributed.checkpoint in its safetensors form, which holds nothing but tensors: its own
form has a pickle, which could run code when it is read.
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
RECIPE_KEY: Final = "verdict"
RENDEZVOUS_TIMEOUT: Final = timedelta(minutes=30)  # until all processes are there
STAGE_TIMEOUT: Final = timedelta(days=30)  # that the others wait for what the first makes alone
COLLECTIVE_TIMEOUT: Final = timedelta(
    hours=1
)  # that one may be slower than the others, such as in writing a checkpoint


class ProcessGroup:
    """This process and its team. Made by every process at once: waits until all have come."""

    def __init__(self, place: ProcessRank) -> None:
        host, port = process.read_main_address()
        self.place, self._called = place, False
        self._store, _, _ = next(
            rendezvous(f"tcp://{host}:{port}", place.rank, place.world, timeout=RENDEZVOUS_TIMEOUT)
        )

    @contextmanager
    def call(self, recipe: str) -> Iterator[None]:
        """The first process calls the others to the stage that is made in this block. plan: the recipe, as text."""
        self._called = True
        self._store.set(RECIPE_KEY, json.dumps(recipe))
        with self._group():
            yield

    @contextmanager
    def follow(self, recipe: str) -> Iterator[bool]:
        """Wait for the first process. Yields whether it calls; if so, the block makes the stage with it.

        Raises UserError where it has another recipe.
        """
        self._store.wait([RECIPE_KEY], STAGE_TIMEOUT)
        verdict = json.loads(self._store.get(RECIPE_KEY))
        self._store.set(f"heard {self.place.rank}", "")
        if verdict is None:
            yield False
            return
        if verdict != recipe:
            raise UserError(
                "the processes of this run were started with different recipes",
                where=f"process {self.place.rank} of {self.place.world}",
                hint="start all of them with the same command, on the same files",
            )
        with self._group():
            yield True

    def dismiss(self) -> None:
        """The first process needs the others no more. Does nothing where it called them."""
        if self._called:
            return
        self._store.set(RECIPE_KEY, json.dumps(None))
        with suppress(RuntimeError):  # one that was killed hears nothing
            self._store.wait([f"heard {rank}" for rank in range(1, self.place.world)], timedelta(seconds=30))

    @contextmanager
    def _group(self) -> Iterator[None]:
        own = default_device()
        if own.type == "cuda":
            torch.cuda.set_device(own)
        distributed.init_process_group(
            "cpu:gloo,cuda:nccl" if own.type == "cuda" else "gloo",
            store=distributed.PrefixStore("group", self._store),  # pyright: ignore
            rank=self.place.rank,
            world_size=self.place.world,
            timeout=COLLECTIVE_TIMEOUT,
        )
        try:
            yield
        finally:
            distributed.destroy_process_group()


def is_main_process() -> bool:
    """Whether this process is the one that writes."""
    return not distributed.is_initialized() or distributed.get_rank() == 0


def broadcast_from_main(find: Callable[[], T]) -> T:
    """What the first process finds, on every process: where what they see may differ from moment to moment."""
    if not distributed.is_initialized():
        return find()
    found: list[Any] = [find() if is_main_process() else None]
    distributed.broadcast_object_list(found, src=0, device=torch.device("cpu"))
    return found[0]


def all_gather(value: T) -> list[T]:
    """What every process has, on every process, in the order of their ranks."""
    if not distributed.is_initialized():
        return [value]
    found: list[Any] = [None] * distributed.get_world_size()
    distributed.all_gather_object(found, value)
    return found


Model = Student | DistributedDataParallel
Precision = Literal["float32", "bfloat16"]
Sharding = Literal["none", "full"]


def distribute_student(student: Student, sharding: Sharding = "none", precision: Precision = "float32") -> Model:
    """The student on this process's own GPU, where there is one; where torch.distributed was started with several
    processes, wrapped so that gradients are summed, or spread over them in place.

    precision  bfloat16: the weights of layers are gathered in it; those that are kept and learn stay in float32

    Raises UserError for `full` where nobody started several processes (one that was started alone stays plain).
    """
    if sharding == "full" and not distributed.is_initialized() and not process.read_process_rank().launched:
        raise UserError(
            "weights are spread over several processes, and this is one that was started alone",
            where="train.sharding",
            found=sharding,
            hint="start it with torchrun --nproc-per-node N or srun (docs/training.md), or set train.sharding: none",
        )
    student.to(default_device())
    if not distributed.is_initialized() or distributed.get_world_size() == 1:
        return student
    if sharding == "none":
        return DistributedDataParallel(student, gradient_as_bucket_view=True)
    parts = student.parts()
    if not parts:
        raise UserError(
            "this kind of model does not say what its layers are",
            where="train.sharding",
            found=student.model.config.model_type,
            hint="set it to none",
        )
    mesh = init_device_mesh(default_device().type, (distributed.get_world_size(),))
    low = MixedPrecisionPolicy(torch.bfloat16, torch.float32, cast_forward_inputs=False)
    for part in parts:
        layer = precision == "bfloat16" and not isinstance(part, nn.Embedding)
        fully_shard(part, mesh=mesh, mp_policy=low if layer else MixedPrecisionPolicy())
    student.gathering()
    fully_shard(student, mesh=mesh)
    return student


def is_sharded(model: nn.Module) -> bool:
    """Whether this process holds only parts of the model's weights."""
    return isinstance(model, FSDPModule)


def full_state_dict(student: Student) -> dict[str, Tensor] | None:
    """The model's state_dict in the memory of the first process, which alone gets it; every process takes part.

    None where the student is whole. Tied weights share their memory. Memory beside it: one weight on every process.
    """
    if not is_sharded(student):
        return None
    cast(FSDPModule, student).reshard()  # what `forward` left gathered
    whole: dict[int, Tensor] = {}
    found = {}
    for name, value in student.model.state_dict(keep_vars=True).items():
        if id(value) not in whole:
            full = full_tensor(value.detach())
            whole[id(value)] = full.cpu() if distributed.get_rank() == 0 else full.new_empty(0)
        found[name] = whole[id(value)]
    return found if distributed.get_rank() == 0 else {}


def clip_gradients(parameters: Sequence[Tensor], most: float) -> float:
    """Scale gradients so that the norm of all of them is at most `most`; returns the norm that they had, on every
    process the same."""
    return float(full_tensor(nn.utils.clip_grad_norm_(parameters, most)))


def full_tensor(value: Any) -> Tensor:
    """The whole of a tensor of which every process may hold a part. All of them have to ask for it."""
    return value.full_tensor() if isinstance(value, DTensor) else value


DIGESTS_FILE: Final = "digests.json"
_SHARD_PATTERN: Final = "shard-{:05d}-*.safetensors"  # of a process, counted from 1


def save_optimizer_shards(optimizer: Optimizer, folder: Path, *, parameters: bool = False) -> None:
    """`state` into a new folder; every process takes part. `parameters` as there."""
    # In the order of names: what was restored stands in another order than what grew.
    tensors = {
        name: value.detach() for name, value in sorted(optimizer_state(optimizer, parameters=parameters).items())
    }
    with _ignore_user_warnings():
        save(tensors, storage_writer=HuggingFaceStorageWriter(str(folder), save_distributed=True))
    own = sorted(
        folder.glob(_SHARD_PATTERN.format((distributed.get_rank() if distributed.is_initialized() else 0) + 1))
    )
    digests = all_gather({path.name: storage.file_digest(path) for path in own})
    if is_main_process():
        storage.write_json(folder / DIGESTS_FILE, {name: one for each in digests for name, one in sorted(each.items())})


def restore_optimizer_shards(optimizer: Optimizer, folder: Path) -> None:
    """The reverse of `save_shards`, by as many processes as there are now; every one takes part.

    Raises UserError where a file is not the one that was written, or belongs to another model.
    """
    _check_shards(folder)
    reader = HuggingFaceStorageReader(str(folder))
    try:
        found = reader.read_metadata().state_dict_metadata
        by_name = dict(named_parameters(optimizer))
        tensors: dict[str, Tensor] = {}
        for key, stored in found.items():
            assert isinstance(stored, TensorStorageMetadata)
            parameter = by_name.get(key.rpartition("/")[0])
            if parameter is None or (stored.size and stored.size != parameter.shape):
                raise mismatch_error(f"{key} of {tuple(stored.size)}")
            like = parameter.detach() if stored.size else torch.zeros(())
            tensors[key] = torch.zeros_like(like, dtype=stored.properties.dtype)
        with _ignore_user_warnings():
            load(tensors, storage_reader=reader)
    except (SafetensorError, OSError, KeyError) as error:
        raise _damaged_error(folder, str(error)) from None
    restore_optimizer(optimizer, tensors)


def _check_shards(folder: Path) -> None:
    """Each process looks at every so manieth file, and all agree on what is wrong."""
    rank, world = (distributed.get_rank(), distributed.get_world_size()) if distributed.is_initialized() else (0, 1)
    wrong: str | None = None
    try:
        digests = storage.read_json(folder / DIGESTS_FILE)
        for name in sorted(digests)[rank::world]:
            if not (folder / name).is_file() or storage.file_digest(folder / name) != digests[name]:
                wrong = name
    except UserError as error:
        wrong = str(error)
    for each in all_gather(wrong):
        if each is not None:
            raise _damaged_error(folder, each)


def _damaged_error(folder: Path, found: str) -> UserError:
    return UserError(
        "the optimizer's state is not what was written",
        where=folder,
        found=found,
        hint="restore it, or remove the folder: training then goes on from an older state, or begins anew",
    )


@contextmanager
def _ignore_user_warnings() -> Iterator[None]:
    # One process alone saves and loads as a group of one, and torch says so every time.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        yield
