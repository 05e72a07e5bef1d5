"""Training with several processes: the distribution of the student, and its optimizer's state.

torchrun or srun starts the processes, and the first process calls the others to the stage (`process_group`). While they
train, only the first process writes, except for the optimizer's state. All read the run's folder, so all machines need
access to it.

`train.sharding` chooses how the student is distributed:

    none   every process has all weights, gradients and optimizer state; gradients are averaged (DDP)
    full   every process has one part of each weight, gradient and state (FSDP2). The weights of a layer are gathered for
           its forward and its backward pass, and released afterwards

    >>> distribute_student(torch.nn.Linear(1, 1), "none")                       # one process: unchanged
    Linear(in_features=1, out_features=1, bias=True)

The embedding and the head, which may be one matrix, belong to no layer. They are gathered at the start of
`Student.forward` and released at the end of the backward pass, so the loss reads the head as in a single process.

Every process writes its own part of a sharded optimizer state, and any number of processes can read the state:

    engine/shard-00001-model-00001-of-00001.safetensors    the part of the first process
    engine/shard-00002-model-00001-of-00001.safetensors    the part of the second process
    engine/digests.json                                    the digest of every file, written last

torch.distributed.checkpoint writes and reshards the state in its safetensors format, which contains only tensors. Its
default format contains a pickle, which could run code when it is loaded.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
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
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from potstill import process, storage
from potstill.errors import UserError
from potstill.models import Student, default_device
from potstill.training.optimizer import Optimizer, mismatch_error, named_parameters, optimizer_state, restore_optimizer

S = TypeVar("S")
T = TypeVar("T")


def rank_and_world() -> tuple[int, int]:
    """The rank of this process, and the number of processes."""
    return (distributed.get_rank(), distributed.get_world_size()) if distributed.is_initialized() else (0, 1)


def is_main_process() -> bool:
    """Whether this is the first process, which alone writes."""
    return rank_and_world()[0] == 0


def broadcast_from_main(compute: Callable[[], T]) -> T:
    """Return the first process's result on every process. Used if they could differ, for example for files of a run."""
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


def share_work(items: Sequence[S], compute: Callable[[S], T]) -> list[T]:
    """compute(item) for every item, on every process. Each process computes a part of the items, and sends its results to
    the others; the results must be picklable."""
    rank, world = rank_and_world()
    results: list[Any] = [None] * len(items)
    for other, part in enumerate(all_gather([compute(item) for item in items[rank::world]])):
        results[other::world] = part
    return results


Model = Student | DistributedDataParallel
Precision = Literal["float32", "bfloat16"]
Sharding = Literal["none", "full"]


def distribute_student(student: Student, sharding: Sharding = "none", precision: Precision = "float32") -> Model:
    """Move the student to this process's GPU, if there is one. With several processes, wrap it in DDP or shard it.

    precision  with bfloat16, the gathered weights of layers are in bfloat16, and the stored weights stay in float32

    Raises UserError for `full` if the process was not started by a launcher (torchrun with one process is enough).
    """
    started_alone = not distributed.is_initialized() and not process.read_process_rank().launched
    if sharding == "full" and started_alone:
        raise UserError(
            "sharding needs several processes, but this process was started alone",
            code="E-train-sharding-needs-processes",
            where="train.sharding",
            found=sharding,
            hint="start with torchrun --nproc-per-node N or srun (docs/how-to/eight-gpus.md), or set train.sharding: none",
        )
    student.to(default_device())
    _, world = rank_and_world()
    if world == 1:
        return student
    if sharding == "none":
        return DistributedDataParallel(student, gradient_as_bucket_view=True)
    modules = student.shardable_modules()
    if not modules:
        what, hint = "a model of this kind cannot be sharded: its layers are unknown", "set train.sharding: none"
        kind = student.model.config.model_type
        raise UserError(what, code="E-train-sharding-unsupported", where="train.sharding", found=kind, hint=hint)
    mesh = init_device_mesh(default_device().type, (world,))
    low = MixedPrecisionPolicy(torch.bfloat16, torch.float32, cast_forward_inputs=False)
    for module in modules:
        # Embeddings (T5's position biases) stay in float32, because they are lookups and not products.
        use_low = precision == "bfloat16" and not isinstance(module, nn.Embedding)
        fully_shard(module, mesh=mesh, mp_policy=low if use_low else MixedPrecisionPolicy())
    student.register_fsdp_methods()
    fully_shard(student, mesh=mesh)
    return student


def is_sharded(model: nn.Module) -> bool:
    """Whether this process has only parts of the model's weights."""
    return isinstance(model, FSDPModule)


def full_state_dict(student: Student) -> dict[str, Tensor] | None:
    """What a checkpoint of a sharded student contains, on the CPU of the first process; {} on the others.

    Every process must call it. Returns None for a student that is not sharded. Tied weights share their memory. The
    memory in addition to the result is one weight on every process.
    """
    if not is_sharded(student):
        return None
    is_main, full = is_main_process(), dict[str, Tensor]()
    state = student.checkpoint_state(student.model.state_dict(keep_vars=True))
    for names, weight in _gather_weights(student, state):
        full |= dict.fromkeys(names, weight.cpu() if is_main else weight.new_empty(0))
    return {name: full[name] for name in state} if is_main else {}


def copy_weights(student: Student, whole: Student) -> None:
    """Copy the weights of a student, which may be sharded, into another student of the same kind, which is not.

    Every process must call it. The memory in addition to `whole` is one weight on every process.
    """
    copies = whole.model.state_dict(keep_vars=True)
    with torch.no_grad():
        for names, weight in _gather_weights(student, student.model.state_dict(keep_vars=True)):
            copies[names[0]].copy_(weight)


def _gather_weights(student: Student, state: Mapping[str, Tensor]) -> Iterator[tuple[list[str], Tensor]]:
    """The names of each weight in a state of the student, several for a tied weight, and the whole weight, gathered one at a
    time."""
    if is_sharded(student):
        cast(FSDPModule, student).reshard()  # after `forward` the embedding and the head are still gathered
    names: dict[int, list[str]] = {}  # by identity of the tensor
    for name, value in state.items():
        names.setdefault(id(value), []).append(name)
    for tied in names.values():
        yield tied, full_tensor(state[tied[0]].detach())


def clip_gradients(parameters: Sequence[Tensor], max_norm: float) -> float:
    """Scale the gradients so that their total norm is at most `max_norm`. Returns the norm before scaling, which is the
    same on every process."""
    return float(full_tensor(nn.utils.clip_grad_norm_(parameters, max_norm)))


def full_tensor(value: Any) -> Tensor:
    """The full tensor, gathered if the tensor is sharded. Every process must call it."""
    return value.full_tensor() if isinstance(value, DTensor) else value


DIGESTS_FILE: Final = "digests.json"
_SHARD_PATTERN: Final = "shard-{:05d}-*.safetensors"  # the files of one process, counted from 1


def save_optimizer_shards(optimizer: Optimizer, folder: Path) -> None:
    """Write `optimizer_state` into a new folder; every process must call it."""
    # Sorted by name, because a restored state has another order than the state of a training without a resume.
    state = sorted(optimizer_state(optimizer).items())
    tensors = {name: value.detach() for name, value in state}
    with warnings.catch_warnings(action="ignore", category=UserWarning):  # it warns about a group of one process
        save(tensors, storage_writer=HuggingFaceStorageWriter(str(folder), save_distributed=True))
    files = sorted(folder.glob(_SHARD_PATTERN.format(rank_and_world()[0] + 1)))
    digests = all_gather({path.name: storage.file_digest(path) for path in files})
    if is_main_process():
        merged = {name: digest for part in digests for name, digest in sorted(part.items())}
        storage.write_json(folder / DIGESTS_FILE, merged)


def restore_optimizer_shards(optimizer: Optimizer, folder: Path) -> None:
    """The inverse of `save_optimizer_shards`, for any number of processes; every process must call it.

    Raises UserError if a file was changed, or if the state belongs to another model.
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
        with warnings.catch_warnings(action="ignore", category=UserWarning):  # it warns about a group of one process
            load(tensors, storage_reader=reader)
    except (SafetensorError, OSError, KeyError) as error:
        raise _damaged_error(folder, str(error)) from None
    restore_optimizer(optimizer, tensors)


def _check_shards(folder: Path) -> None:
    """Check the digests of the files. Every process reads a share of the files, and all processes raise the same error."""
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
        "the optimizer's state was changed after training wrote it",
        code="E-train-optimizer-state-damaged",
        where=folder,
        found=found,
        hint="restore the files, or remove the folder: training then resumes from an older checkpoint, or from the start",
    )
