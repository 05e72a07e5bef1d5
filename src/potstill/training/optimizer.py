"""How the learning rate goes.

    >>> schedule = Schedule("linear", peak=1e-3, warmup=2, last=10, hold=4)
    >>> [round(schedule(step) * 1e3, 2) for step in (1, 2, 6, 8, 10)]
    [0.5, 1.0, 1.0, 0.6, 0.2]

Counted in optimizer steps from 1, so that accumulation does not bend it (in the paper's code it did: PAPER section 6).

AdamW and Adafactor, and what they remember as a flat file of tensors.

    >>> layer = torch.nn.Linear(2, 1)
    >>> adam = build_optimizer(layer, 0.1, weight_decay=0.01)
    >>> layer(torch.ones(1, 2)).sum().backward(); adam.step()
    >>> sorted(optimizer_state(adam))[:3]
    ['bias/exp_avg', 'bias/exp_avg_sq', 'bias/step']
    >>> restore_optimizer_bytes(adam, optimizer_state_bytes(adam))

Names are those of the parameters, so a state of another model is refused, not shuffled.
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
    """Learning rate as a function of the optimizer step, counted from 1.

    kind    constant, linear or cosine: how it falls after warm-up and hold
    peak    the highest rate; step s of the warm-up has peak * s / warmup
    warmup  steps until the peak is reached; 0 or 1 for none
    last    the last step of training, for linear and cosine; the step after it would have the rate 0
    hold    steps at the peak between warm-up and fall
    """

    kind: Literal["constant", "linear", "cosine"]
    peak: float
    warmup: int = 0
    last: int = 0
    hold: int = 0

    def __call__(self, step: int) -> float:
        assert step >= 1, f"steps are counted from 1, not {step}"
        if step <= self.warmup:
            return self.peak * step / self.warmup
        start = max(self.warmup, 1) + self.hold
        if self.kind == "constant" or step <= start:
            return self.peak
        assert step <= self.last, f"step {step} of a schedule of {self.last}"
        done = (step - start) / (self.last + 1 - start)
        return self.peak * (1 - done if self.kind == "linear" else 0.5 * (1 + math.cos(math.pi * done)))


Optimizer = torch.optim.Optimizer
OptimizerName = Literal["adamw", "adafactor"]
PARAMETER_KEY: Final = "itself"


def build_optimizer(
    model: nn.Module,
    rate: float = 5e-4,
    *,
    weight_decay: float = 0.0,
    betas: tuple[float, float] = (0.9, 0.999),
    epsilon: float = 1e-8,
    factors: Mapping[str, float] | None = None,
    rule: OptimizerName = "adamw",
) -> Optimizer:
    """AdamW or Adafactor over all parameters that need a gradient.

    rule          adafactor (Shazeer and Stern 2018) keeps a row and a column of second moments for each matrix where
                  AdamW keeps two matrices, and takes steps relative to the size of the parameter; it has no betas
    rate          learning rate until a schedule sets it
    weight_decay  decoupled, on matrices only (not on norms and biases)
    factors       by a part of a parameter's name: what its learning rate is multiplied with
                  (`relative_attention_bias`: 10)

    Raises UserError where a factor names no parameter.
    """
    factors = factors or {}
    inner = model.module if isinstance(model, nn.parallel.DistributedDataParallel) else model
    named = [(name, value) for name, value in inner.named_parameters() if value.requires_grad]
    for part in factors:
        if not any(part in name for name, _ in named):
            raise UserError("no parameter has such a name", where="train.lr_multipliers", found=part)
    sets: dict[tuple[float, float], list[tuple[str, Tensor]]] = {}
    for name, value in named:
        factor = math.prod(factor for part, factor in factors.items() if part in name)
        sets.setdefault((factor, weight_decay if value.ndim > 1 else 0.0), []).append((name, value))
    made = [
        {"params": own, "factor": factor, "weight_decay": own_decay, "lr": rate * factor}
        for (factor, own_decay), own in sets.items()
    ]
    if rule == "adafactor":
        assert not any(isinstance(value, DTensor) for _, value in named), "Adafactor of weights that are spread"
        return torch.optim.Adafactor(made)
    return torch.optim.AdamW(made, betas=betas, eps=epsilon, fused=True)  # on a CPU a third of the time


def optimizer_from_recipe(recipe: Recipe, model: nn.Module, rate: float) -> Optimizer:
    """The optimizer that a recipe's section `train` names; rate and model may be others than there."""
    asked = recipe.train
    first, second = asked.betas
    return build_optimizer(
        model,
        rate,
        weight_decay=asked.weight_decay,
        betas=(first, second),
        factors=asked.lr_multipliers,
        rule=asked.optimizer,
    )


def optimizer_state(optimizer: Optimizer, *, parameters: bool = False) -> dict[str, Tensor]:
    """What the optimizer remembers, flat: `<parameter>/<what>` -> tensor. Empty before its first step.

    parameters  the parameters themselves as well, as `<parameter>/itself`: where the weights are not saved as they are
    """
    found = {}
    for name, parameter in named_parameters(optimizer):
        if parameters:
            found[f"{name}/{PARAMETER_KEY}"] = parameter
        for what, value in optimizer.state.get(parameter, {}).items():
            found[f"{name}/{what}"] = value
    return found


def restore_optimizer(optimizer: Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """The reverse of `state`, into an optimizer over the same parameters. Raises UserError where names or sizes
    differ."""
    left = dict(tensors)
    for name, parameter in named_parameters(optimizer):
        own = {key: value for key, value in left.items() if key.rpartition("/")[0] == name}
        for key, value in own.items():
            if value.ndim and value.shape != _state_shape(key.rpartition("/")[2], parameter):
                raise mismatch_error(f"{key} of {tuple(value.shape)}, parameter of {tuple(parameter.shape)}")
            del left[key]
        if not own and tensors:
            raise mismatch_error(f"nothing for {name}")
        if (itself := own.pop(f"{name}/{PARAMETER_KEY}", None)) is not None:
            with torch.no_grad():
                parameter.copy_(itself)
        optimizer.state[parameter] = {
            key.rpartition("/")[2]: _move_state(value, parameter, optimizer) for key, value in own.items()
        }
    if left:
        raise mismatch_error(f"{next(iter(left))}, which no parameter has")


def optimizer_state_bytes(optimizer: Optimizer, *, parameters: bool = False) -> bytes:
    """`state` as one safetensors file."""
    return safetensors.torch.save(_cpu_tensors(optimizer_state(optimizer, parameters=parameters)))


def save_optimizer_state(tensors: Mapping[str, Tensor], path: Path) -> None:
    """What `state` gave, as the file that `state_bytes` makes, without its bytes in memory: into a folder that is not
    there yet for others (`files.folder`). Raises OSError where the disk is full or may not be written to."""
    with disk_full_as_oserror():
        safetensors.torch.save_file(_cpu_tensors(tensors), path)


def restore_optimizer_bytes(optimizer: Optimizer, content: bytes) -> None:
    """`restore` from what `state_bytes` made. Raises UserError also where it is no such file."""
    try:
        tensors = safetensors.torch.load(content)
    except safetensors.SafetensorError as error:
        raise UserError(
            "the optimizer's state cannot be read", found=error, hint="train again (--redo train)"
        ) from None
    restore_optimizer(optimizer, tensors)


def _cpu_tensors(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.detach().cpu().contiguous() for name, value in tensors.items()}


def _move_state(value: Tensor, parameter: Tensor, optimizer: Optimizer) -> Tensor:
    """A copy of what was remembered: on the parameter's device (a count only where the fused kernel reads it there),
    and in as many parts as the parameter, where it comes whole."""
    if value.ndim == 0 and not optimizer.defaults.get("fused"):
        return value.clone()
    if isinstance(parameter, DTensor) and value.ndim and not isinstance(value, DTensor):
        whole = value.to(parameter.device)
        return distribute_tensor(whole, parameter.device_mesh, parameter.placements, src_data_rank=None)
    return value.to(parameter.device, copy=True)


def _state_shape(what: str, parameter: Tensor) -> tuple[int, ...]:
    """Of what is remembered of a parameter: as large as itself, but for the row and the column that Adafactor keeps."""
    whole = tuple(parameter.shape)
    return {"row_var": (*whole[:-1], 1), "col_var": (*whole[:-2], 1, *whole[-1:])}.get(what, whole)


def named_parameters(optimizer: Optimizer) -> Iterator[tuple[str, Tensor]]:
    """The parameters that it changes, with their names."""
    for group in optimizer.param_groups:
        yield from zip(group["param_names"], group["params"], strict=True)


def mismatch_error(found: str) -> UserError:
    """What is said of a state that does not fit."""
    return UserError(
        "the optimizer's state belongs to another model", found=found, hint="train again from the start (--redo train)"
    )
