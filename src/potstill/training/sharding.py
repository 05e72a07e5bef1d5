"""A student on several processes: whole on each of them, or spread over them with torch's FSDP2.

    none   every process holds all weights, gradients and optimizer state; gradients are averaged (DDP)
    full   of every weight, gradient and state a process holds one part; a layer's weights are gathered when it is
           computed, forward and backward, and let go after it

    >>> distribute(torch.nn.Linear(1, 1), "none")                       # one process: as it is
    Linear(in_features=1, out_features=1, bias=True)

Embedding and head, one matrix where they are tied, belong to no layer. They are gathered when `Student.forward` begins
and stay until its backward pass is through, so the loss reads the head as it does in one process.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, cast

import torch
from torch import Tensor, distributed, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from potstill import processes
from potstill.errors import UserError
from potstill.students import Student, device

Model = Student | DistributedDataParallel
Precision = Literal["float32", "bfloat16"]
Sharding = Literal["none", "full"]


def distribute(student: Student, sharding: Sharding = "none", precision: Precision = "float32") -> Model:
    """The student on this process's own GPU, where there is one; where torch.distributed was started with several
    processes, wrapped so that gradients are summed, or spread over them in place.

    precision  bfloat16: the weights of layers are gathered in it; those that are kept and learn stay in float32

    Raises UserError for `full` where nobody started several processes (one that was started alone stays plain).
    """
    if sharding == "full" and not distributed.is_initialized() and not processes.here().launched:
        raise UserError(
            "weights are spread over several processes, and this is one that was started alone",
            where="train.sharding",
            found=sharding,
            do="start it with torchrun --nproc-per-node N or srun (docs/training.md), or set train.sharding: none",
        )
    student.to(device())
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
            do="set it to none",
        )
    mesh = init_device_mesh(device().type, (distributed.get_world_size(),))
    low = MixedPrecisionPolicy(torch.bfloat16, torch.float32, cast_forward_inputs=False)
    for part in parts:
        layer = precision == "bfloat16" and not isinstance(part, nn.Embedding)
        fully_shard(part, mesh=mesh, mp_policy=low if layer else MixedPrecisionPolicy())
    student.gathering()
    fully_shard(student, mesh=mesh)
    return student


def spread(model: nn.Module) -> bool:
    """Whether this process holds only parts of the model's weights."""
    return isinstance(model, FSDPModule)


def weights(student: Student) -> dict[str, Tensor] | None:
    """The model's state_dict in the memory of the first process, which alone gets it; every process takes part.

    None where the student is whole. Tied weights share their memory. Memory beside it: one weight on every process.
    """
    if not spread(student):
        return None
    cast(FSDPModule, student).reshard()  # what `forward` left gathered
    whole: dict[int, Tensor] = {}
    found = {}
    for name, value in student.model.state_dict(keep_vars=True).items():
        if id(value) not in whole:
            full = gathered(value.detach())
            whole[id(value)] = full.cpu() if distributed.get_rank() == 0 else full.new_empty(0)
        found[name] = whole[id(value)]
    return found if distributed.get_rank() == 0 else {}


def clip(parameters: Sequence[Tensor], most: float) -> float:
    """Scale gradients so that the norm of all of them is at most `most`; returns the norm that they had, on every
    process the same."""
    return float(gathered(nn.utils.clip_grad_norm_(parameters, most)))


def gathered(value: Any) -> Tensor:
    """The whole of a tensor of which every process may hold a part. All of them have to ask for it."""
    return value.full_tensor() if isinstance(value, DTensor) else value
