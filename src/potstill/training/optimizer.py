"""The learning-rate schedule, the optimizers (AdamW, Adafactor), and the optimizer's state as a flat file of tensors.

    >>> schedule = Schedule("linear", peak=1e-3, warmup=2, last=10, stable=4)
    >>> [round(schedule(step) * 1e3, 2) for step in (1, 2, 6, 8, 10)]
    [0.5, 1.0, 1.0, 0.6, 0.2]
    >>> layer = torch.nn.Linear(2, 1)
    >>> adam = build_optimizer(layer, 0.1, weight_decay=0.01)
    >>> layer(torch.ones(1, 2)).sum().backward(); adam.step()
    >>> sorted(optimizer_state(adam))[:3]
    ['bias/exp_avg', 'bias/exp_avg_sq', 'bias/step']
    >>> restore_optimizer_bytes(adam, optimizer_state_bytes(adam))

The schedule counts optimizer steps from 1, so gradient accumulation does not change it (in the code of Fu et al. it did).
The keys of the state contain the names of the parameters, so the state of another model is refused.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

from potstill.errors import UserError
from potstill.models import disk_full_as_oserror
from potstill.recipe import Recipe


@dataclass(frozen=True, slots=True)
class Schedule:
    """The learning rate as a function of the optimizer step, counted from 1.

    kind    constant, linear or cosine: how the rate falls after the warmup and the stable steps
    peak    the highest rate; the rate at step s of the warmup is peak * s / warmup
    warmup  number of steps until the peak; 0 or 1 for no warmup
    last    for linear and cosine, the last step of training; the rate would be 0 at the step after it
    stable  number of steps at the peak between the warmup and the fall
    """

    kind: Literal["constant", "linear", "cosine"]
    peak: float
    warmup: int = 0
    last: int = 0
    stable: int = 0

    def __call__(self, step: int) -> float:
        assert step >= 1, f"steps are counted from 1, not {step}"
        if step <= self.warmup:
            return self.peak * step / self.warmup
        start = max(self.warmup, 1) + self.stable
        if self.kind == "constant" or step <= start:
            return self.peak
        assert step <= self.last, f"step {step} of a schedule of {self.last}"
        done = (step - start) / (self.last + 1 - start)
        return self.peak * (1 - done if self.kind == "linear" else 0.5 * (1 + math.cos(math.pi * done)))


Optimizer = torch.optim.Optimizer
OptimizerName = Literal["adamw", "adafactor"]
PARAMETER_KEY: Final = "itself"  # the entry of the state that has the parameter's value


def build_optimizer(
    model: nn.Module,
    rate: float = 5e-4,
    *,
    weight_decay: float = 0.0,
    betas: tuple[float, float] = (0.9, 0.999),
    epsilon: float = 1e-8,
    lr_multipliers: Mapping[str, float] | None = None,
    rule: OptimizerName = "adamw",
) -> Optimizer:
    """AdamW or Adafactor over all parameters that need a gradient.

    rate            learning rate until a schedule sets it
    weight_decay    decoupled, and only for matrices (not for norms and biases)
    betas, epsilon  of AdamW; Adafactor ignores them
    lr_multipliers  a part of a parameter's name to the factor of its learning rate (`relative_attention_bias`: 10)
    rule            adamw stores two moments of the size of a matrix. adafactor (Shazeer and Stern 2018) stores only a row
                    and a column of second moments, and its steps are relative to the size of the parameter

    Raises UserError if a multiplier matches no parameter.
    """
    lr_multipliers = lr_multipliers or {}
    named = [(name, value) for name, value in unwrap(model).named_parameters() if value.requires_grad]
    for part in lr_multipliers:
        if not any(part in name for name, _ in named):
            what, where = "no parameter's name contains this text", "train.lr_multipliers"
            raise UserError(what, code="E-train-no-such-parameter", where=where, found=part)
    groups: dict[tuple[float, float], list[tuple[str, Tensor]]] = {}
    for name, value in named:
        factor = math.prod(factor for part, factor in lr_multipliers.items() if part in name)
        groups.setdefault((factor, weight_decay if value.ndim > 1 else 0.0), []).append((name, value))
    param_groups = [
        {"params": group, "factor": factor, "weight_decay": decay, "lr": rate * factor}
        for (factor, decay), group in groups.items()
    ]
    if rule == "adafactor":
        assert not any(isinstance(value, DTensor) for _, value in named), "Adafactor does not support sharded weights"
        return torch.optim.Adafactor(param_groups)
    return torch.optim.AdamW(
        param_groups, betas=betas, eps=epsilon, fused=True
    )  # fused takes a third of the time on a CPU


def unwrap(model: nn.Module) -> nn.Module:
    """The module inside DDP. A module without DDP is returned unchanged."""
    return model.module if isinstance(model, nn.parallel.DistributedDataParallel) else model


def optimizer_from_recipe(recipe: Recipe, model: nn.Module, rate: float) -> Optimizer:
    """The optimizer of a recipe's section `train`, with the given learning rate."""
    settings = recipe.train
    beta1, beta2 = settings.betas
    return build_optimizer(
        model,
        rate,
        weight_decay=settings.weight_decay,
        betas=(beta1, beta2),
        lr_multipliers=settings.lr_multipliers,
        rule=settings.optimizer,
    )


def optimizer_state(optimizer: Optimizer) -> dict[str, Tensor]:
    """The optimizer's state as a dict from `<parameter>/<entry>` to tensors; empty before its first step."""
    state = {}
    for name, parameter in named_parameters(optimizer):
        for entry, value in optimizer.state.get(parameter, {}).items():
            state[f"{name}/{entry}"] = value
    return state


def restore_optimizer(optimizer: Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """The inverse of `optimizer_state`, for an optimizer over the same parameters.

    Earlier versions stored adapters here, as `<parameter>/itself`; these parameters are restored, too. Raises UserError if
    names or shapes differ.
    """
    entries_of: dict[str, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        name, _, entry = key.rpartition("/")
        entries_of.setdefault(name, {})[entry] = value
    for name, parameter in named_parameters(optimizer):
        entries = entries_of.pop(name, {})
        for entry, value in entries.items():
            if value.ndim and value.shape != _state_shape(entry, parameter):
                found = f"{name}/{entry} of {tuple(value.shape)}, parameter of {tuple(parameter.shape)}"
                raise mismatch_error(found)
        if not entries and tensors:
            raise mismatch_error(f"nothing for {name}")
        if (saved := entries.pop(PARAMETER_KEY, None)) is not None:
            with torch.no_grad():
                parameter.copy_(_move_state(saved, parameter, optimizer))
        moved = {entry: _move_state(value, parameter, optimizer) for entry, value in entries.items()}
        optimizer.state[parameter] = moved
    if entries_of:
        raise mismatch_error(f"{next(iter(entries_of))}, which is no parameter")


def optimizer_state_bytes(optimizer: Optimizer) -> bytes:
    """`optimizer_state` as one safetensors file."""
    return safetensors.torch.save(_cpu_tensors(optimizer_state(optimizer)))


def save_optimizer_state(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Write a result of `optimizer_state` as one safetensors file, without a copy of its bytes in memory.

    The folder must still be hidden from readers (`storage.write_folder`). Raises OSError if the disk is full or
    read-only.
    """
    with disk_full_as_oserror():
        safetensors.torch.save_file(_cpu_tensors(tensors), path)


def restore_optimizer_bytes(optimizer: Optimizer, content: bytes) -> None:
    """Restore the state from the bytes of `optimizer_state_bytes`. Raises UserError if they are damaged or belong to another
    model."""
    try:
        tensors = safetensors.torch.load(content)
    except safetensors.SafetensorError as error:
        what, hint = "the optimizer's state cannot be read", "train again (--redo train)"
        raise UserError(what, code="E-train-optimizer-state-damaged", found=error, hint=hint) from None
    restore_optimizer(optimizer, tensors)


def named_parameters(optimizer: Optimizer) -> Iterator[tuple[str, Tensor]]:
    """The parameters that the optimizer changes, with their names."""
    for group in optimizer.param_groups:
        yield from zip(group["param_names"], group["params"], strict=True)


def mismatch_error(found: str) -> UserError:
    """The error for a state that does not match the model's parameters."""
    what, hint = "the optimizer's state belongs to another model", "train again from the start (--redo train)"
    return UserError(what, code="E-train-optimizer-state-of-another-model", found=found, hint=hint)


def _cpu_tensors(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.detach().cpu().contiguous() for name, value in tensors.items()}


def _move_state(value: Tensor, parameter: Tensor, optimizer: Optimizer) -> Tensor:
    """A copy of an entry on the parameter's device, sharded like the parameter. A step count stays on the CPU, unless the
    optimizer is fused, which needs it on the device."""
    if value.ndim == 0 and not optimizer.defaults.get("fused"):
        return value.clone()
    if isinstance(parameter, DTensor) and value.ndim and not isinstance(value, DTensor):
        full = value.to(parameter.device)
        return distribute_tensor(full, parameter.device_mesh, parameter.placements, src_data_rank=None)
    return value.to(parameter.device, copy=True)


def _state_shape(entry: str, parameter: Tensor) -> tuple[int, ...]:
    """The shape of an entry, which is the parameter's shape, except for the row and the column of Adafactor."""
    shape = tuple(parameter.shape)
    return {"row_var": (*shape[:-1], 1), "col_var": (*shape[:-2], 1, *shape[-1:])}.get(entry, shape)
