"""One step's gradient, and the loop over steps."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from hashlib import blake2b
from typing import Final, get_args

import torch
from torch import distributed
from torch.nn.parallel import DistributedDataParallel

from potstill.errors import UserError
from potstill.models import Example, Student
from potstill.records import TargetKind
from potstill.training.data_order import micro_batches_of_rank
from potstill.training.distributed import Model, Precision
from potstill.training.distributed import clip_gradients as clipped
from potstill.training.optimizer import Optimizer

POSITION_KINDS: Final[tuple[str, ...]] = get_args(TargetKind)


@dataclass(frozen=True, slots=True)
class StepMetrics:
    """What one optimizer step did. Same on every process.

    loss           sum(w * loss) / sum(w) over the step's supervised positions, in nats
    losses         the same by format; `kinds` by kind of position (same, merged, split, mixed, hard, end)
    kept           mean of the probability that the targets show, over the same positions with the same weights
    taught         supervised positions by format
    gradient_norm  before clipping
    rate           the learning rate that was used
    positions      supervised positions; `weight` is the sum of their weights
    tokens         that the model read, a shared prompt once; `padding` is the share of places that held none
    """

    step: int
    loss: float
    losses: Mapping[str, float]
    kinds: Mapping[str, float]
    kept: float
    taught: Mapping[str, int]
    gradient_norm: float
    rate: float
    positions: int
    weight: float
    tokens: int
    padding: float


@dataclass(frozen=True, slots=True)
class GradientSums:
    """What `gradient` adds up beside the gradient, over all processes. `losses` are sums(w * loss) by format, not
    divided; `kinds` are means by kind of position, of those that the step has; `kept` is a mean."""

    losses: Mapping[str, float]
    weights: Mapping[str, float]
    kinds: Mapping[str, float]
    kept: float
    taught: Mapping[str, int]
    tokens: int
    slots: int
    positions: int


def accumulate_gradient(
    model: Model,
    micro_batches: Sequence[Sequence[Example]],
    *,
    step: int,
    seed: int,
    precision: Precision = "float32",
) -> GradientSums:
    """Add the gradient of a step to `.grad`, already divided by the weight of the whole step.

    micro_batches  all of the step, on every process the same; each computes its share, and where it has none a filler
                   of weight 0
    precision      bfloat16: products under autocast, weights and loss in float32

    Raises UserError where a loss is not finite, with the questions of its micro-batch.
    """
    student = _unwrap(model)
    rank, world = _rank_and_world()
    formats = sorted({example.format for batch in micro_batches for example in batch})
    weights, taught = dict.fromkeys(formats, 0.0), dict.fromkeys(formats, 0)
    for batch in micro_batches:
        for example in batch:
            weights[example.format] += example.weight * len(example.target)
            taught[example.format] += len(example.target)
    total = sum(weights.values())
    assert total > 0, f"step {step} has no weight"
    own = micro_batches_of_rank(micro_batches, rank, world)
    sums = torch.zeros(len(formats) + 2 * len(POSITION_KINDS) + 3, dtype=torch.float64)
    wrong = len(micro_batches)  # the first micro-batch here whose loss is not finite
    model.train()
    for turn, examples in enumerate(own):
        batch = student.filler() if examples is None else student.batch(examples)
        last = turn == len(own) - 1
        hold = model.no_sync() if isinstance(model, DistributedDataParallel) and not last else nullcontext()
        with hold, torch.random.fork_rng(devices=_cuda_devices(student)):
            torch.manual_seed(_dropout_seed(seed, step, turn * world + rank))
            there = batch.to(student.device)
            with torch.autocast(student.device.type, torch.bfloat16, enabled=precision == "bfloat16"):
                summed, losses = model(there, summed=True)
            # DDP and FSDP take the mean over processes; the step's loss is a sum over them.
            (summed * (world / total)).backward()
        if examples is None:
            continue
        weighted = (there.weights * losses).double().cpu()
        first = len(formats)
        of_format = torch.tensor([formats.index(example.format) for example in examples])[batch.rows]
        of_kind = torch.tensor(
            [first + POSITION_KINDS.index(kind) for example in examples for kind in example.target.kinds]
        )
        sums.index_add_(0, of_format, weighted).index_add_(0, of_kind, weighted)
        sums.index_add_(0, of_kind + len(POSITION_KINDS), batch.weights.double())
        kept = float((batch.probabilities.sum(1) * batch.weights).sum())
        sums[-3:] += torch.tensor([kept, batch.tokens, batch.slots], dtype=torch.float64)
        if not bool(torch.isfinite(sums).all()):
            if world == 1:
                raise _not_finite_error(step, examples)
            wrong = min(wrong, turn * world + rank)
    if world > 1:
        reduced = sums.to(student.device) if student.device.type == "cuda" else sums
        distributed.all_reduce(reduced)
        sums = reduced.cpu()
        if not bool(torch.isfinite(sums).all()):  # on all processes at once, so that none waits for another
            found = torch.tensor(wrong, device=reduced.device)
            distributed.all_reduce(found, distributed.ReduceOp.MIN)
            raise _not_finite_error(step, micro_batches[int(found)])
    values = sums.tolist()
    parts = zip(POSITION_KINDS, values[len(formats) :], values[len(formats) + len(POSITION_KINDS) :], strict=False)
    return GradientSums(
        losses=dict(zip(formats, values, strict=False)),
        weights=weights,
        kinds={kind: value / weight for kind, value, weight in parts if weight},
        kept=values[-3] / total,
        taught=taught,
        tokens=int(values[-2]),
        slots=int(values[-1]),
        positions=sum(len(example.target) for batch in micro_batches for example in batch),
    )


def train_steps(
    model: Model,
    optimizer: Optimizer,
    micro_batches: Callable[[int], Sequence[Sequence[Example]]],
    *,
    first: int,
    last: int,
    schedule: Callable[[int], float],
    seed: int,
    clip: float | None = 1.0,
    precision: Precision = "float32",
) -> Iterator[StepMetrics]:
    """Train from step `first` to step `last`, both included; yields after each, with the model in evaluation mode.

    micro_batches  by step: all its micro-batches as examples, the same on every process
    schedule       learning rate by step
    clip           the largest norm of the gradient; None to leave it as it is

    Raises UserError where loss or gradient is not finite, before it reaches the weights.
    """
    parameters = [value for group in optimizer.param_groups for value in group["params"]]
    optimizer.zero_grad(set_to_none=True)
    for step in range(first, last + 1):
        batches = micro_batches(step)
        sums = accumulate_gradient(model, batches, step=step, seed=seed, precision=precision)
        norm = clipped(parameters, math.inf if clip is None else clip)
        if not math.isfinite(norm):
            raise _not_finite_error(step, [example for batch in batches for example in batch], "the gradient")
        rate = schedule(step)
        for group in optimizer.param_groups:
            group["lr"] = rate * group.get("factor", 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)  # so that what is done between steps has the memory
        model.eval()
        weight = sum(sums.weights.values())
        yield StepMetrics(
            step=step,
            loss=sum(sums.losses.values()) / weight,
            losses={name: sums.losses[name] / own for name, own in sums.weights.items() if own},
            kinds=sums.kinds,
            kept=sums.kept,
            taught=sums.taught,
            gradient_norm=norm,
            rate=rate,
            positions=sums.positions,
            weight=weight,
            tokens=sums.tokens,
            padding=1 - sums.tokens / sums.slots,
        )


def _unwrap(model: Model) -> Student:
    inner = model.module if isinstance(model, DistributedDataParallel) else model
    assert isinstance(inner, Student), f"not a student: {type(inner).__name__}"
    return inner


def _rank_and_world() -> tuple[int, int]:
    if not distributed.is_initialized():
        return 0, 1
    return distributed.get_rank(), distributed.get_world_size()


def _cuda_devices(student: Student) -> list[torch.device]:
    return [student.device] if student.device.type == "cuda" else []


def _dropout_seed(seed: int, step: int, index: int) -> int:
    digest = blake2b(f"{('dropout', seed, step, index)}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def _not_finite_error(step: int, examples: Sequence[Example], what: str = "the loss") -> UserError:
    names = list(dict.fromkeys(example.question for example in examples if example.question))
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return UserError(
        f"{what} is not a finite number",
        where=f"training step {step}",
        found=f"questions {', '.join(names[:5])}{more}",
        hint="lower train.learning_rate, use float32, or look at these targets; the last checkpoint is whole",
    )
