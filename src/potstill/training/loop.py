"""The gradient of a step, and the loop over the steps. `potstill.training` has an example."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from hashlib import blake2b
from typing import Any, Final, Literal, get_args

import torch
from torch import distributed
from torch.nn.parallel import DistributedDataParallel

from potstill.errors import UserError
from potstill.losses import DEFAULT_LOSS, ON_POLICY_MEASURES, Loss, OnPolicyLoss
from potstill.models import Example, Student
from potstill.recipe import Recipe
from potstill.records import TargetKind
from potstill.training.data_order import micro_batches_of_rank
from potstill.training.distributed import Model, Precision, clip_gradients, rank_and_world
from potstill.training.optimizer import Optimizer, unwrap

POSITION_KINDS: Final[tuple[str, ...]] = get_args(TargetKind)


@dataclass(frozen=True, slots=True)
class StepMetrics:
    """The metrics of one optimizer step, which are the same on every process. A line of metrics.jsonl.

    loss           sum(w * loss) / sum(w) over the step's supervised positions, in nats
    losses         the same mean by format
    kinds          the same mean by kind of position (same, merged, split, mixed, hard, end)
    kept           weighted mean over the same positions of the sum of a target's probabilities
    taught         number of supervised positions by format
    gradient_norm  norm of the gradient before clipping
    rate           learning rate of this step
    positions      number of supervised positions
    weight         sum of the weights of these positions
    tokens         number of tokens that the model read; a shared prompt counts once
    padding        share of the slots of the batches that have no token
    written        weighted means of `losses.ON_POLICY_MEASURES` over the positions of texts that the student wrote; None if
                   the step has no such text. The loss of these positions is their divergence alone
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
    written: Mapping[str, float] | None = None


@dataclass(frozen=True, slots=True)
class GradientSums:
    """The sums that `accumulate_gradient` returns in addition to the gradient, over all processes.

    losses   sum(w * loss) by format, in nats
    weights  sum(w) by format
    kinds    sum(w * loss) / sum(w) by kind of position, for the kinds that occur
    kept     weighted mean of the sum of a target's probabilities
    taught   number of supervised positions by format
    tokens   number of tokens that the model read
    slots    number of slots of the batches, with padding
    written  weighted means of `losses.ON_POLICY_MEASURES` over the positions of texts that the student wrote; None if the
             step has no such text
    """

    losses: Mapping[str, float]
    weights: Mapping[str, float]
    kinds: Mapping[str, float]
    kept: float
    taught: Mapping[str, int]
    tokens: int
    slots: int
    written: Mapping[str, float] | None = None

    @property
    def positions(self) -> int:
        return sum(self.taught.values())


def accumulate_gradient(
    model: Model,
    micro_batches: Sequence[Sequence[Example]],
    *,
    step: int,
    seed: int,
    precision: Precision = "float32",
    loss: Loss = DEFAULT_LOSS,
    on_policy_loss: OnPolicyLoss | None = None,
) -> GradientSums:
    """Add the gradient of a step to `.grad`, already divided by the weight of the whole step.

    micro_batches  all micro-batches of the step, the same on every process. Each process computes a share of them, and a
                   filler of weight 0 if others have one micro-batch more
    precision      with bfloat16, matrix products run under autocast; weights and loss stay in float32
    loss           the loss at each supervised position
    on_policy_loss the loss of micro-batches of texts that the student wrote (`Example.written`)

    Raises UserError if a loss is not finite; the message names the questions of its micro-batch.
    """
    student = unwrap(model)
    assert isinstance(student, Student), f"the model is a {type(student).__name__}, not a Student"
    rank, world = rank_and_world()
    formats = sorted({example.format for batch in micro_batches for example in batch})
    weights, taught = dict.fromkeys(formats, 0.0), dict.fromkeys(formats, 0)
    for batch in micro_batches:
        for example in batch:
            weights[example.format] += example.weight * len(example.target)
            taught[example.format] += len(example.target)
    total = sum(weights.values())
    assert total > 0, f"step {step} has no weight"
    rank_batches = micro_batches_of_rank(micro_batches, rank, world)
    # One vector needs only one all-reduce. Its parts: losses by format; losses and weights by kind; kept, tokens, slots;
    # measures of the texts that the student wrote, and their weight.
    sizes = (len(formats), len(POSITION_KINDS), len(POSITION_KINDS), 3, len(ON_POLICY_MEASURES) + 1)
    sums = torch.zeros(sum(sizes), dtype=torch.float64)
    faulty = len(micro_batches)  # the index of this process's first micro-batch whose loss is not finite
    cuda_devices = [student.device] if student.device.type == "cuda" else []
    model.train()
    for turn, examples in enumerate(rank_batches):
        batch = student.filler_batch() if examples is None else student.batch(examples)
        is_last = turn == len(rank_batches) - 1
        # DDP averages gradients over processes in every backward pass, but only the last one of a step needs it.
        delay = model.no_sync() if isinstance(model, DistributedDataParallel) and not is_last else nullcontext()
        with delay, torch.random.fork_rng(devices=cuda_devices):
            torch.manual_seed(_dropout_seed(seed, step, turn * world + rank))
            device_batch = batch.to(student.device)
            used = loss
            if batch.written is not None:
                assert on_policy_loss is not None, "texts that the student wrote need an on-policy loss"
                used = on_policy_loss
            with torch.autocast(student.device.type, torch.bfloat16, enabled=precision == "bfloat16"):
                summed, losses = model(device_batch, used, summed=True)
            # DDP and FSDP average over the processes, but the step's loss is their sum.
            (summed * (world / total)).backward()
        if examples is None:
            continue
        by_format, by_kind, kind_weights, counts, measures = sums.split(sizes)  # views of `sums`
        if batch.written is not None:
            columns = (device_batch.weights[:, None] * losses).double().sum(0).cpu()
            measures += torch.cat([columns[1:], batch.weights.double().sum()[None]])
            losses = losses[:, 0]
        weighted = (device_batch.weights * losses).double().cpu()
        kinds = torch.tensor([POSITION_KINDS.index(kind) for example in examples for kind in example.target.kinds])
        by_format.index_add_(0, torch.tensor([formats.index(e.format) for e in examples])[batch.rows], weighted)
        by_kind.index_add_(0, kinds, weighted)
        kind_weights.index_add_(0, kinds, batch.weights.double())
        kept = float((batch.probabilities.sum(1) * batch.weights).sum())
        counts += torch.tensor([kept, batch.tokens, batch.slots], dtype=torch.float64)
        if not bool(torch.isfinite(sums).all()):
            if world == 1:
                raise _not_finite_error(step, examples)
            faulty = min(faulty, turn * world + rank)
    if world > 1:
        reduced = sums.to(student.device) if student.device.type == "cuda" else sums
        distributed.all_reduce(reduced)
        sums = reduced.cpu()
        if not bool(torch.isfinite(sums).all()):  # all processes see this, so that no process waits for another
            first_faulty = torch.tensor(faulty, device=reduced.device)
            distributed.all_reduce(first_faulty, distributed.ReduceOp.MIN)
            raise _not_finite_error(step, micro_batches[int(first_faulty)])
    losses, kind_losses, kind_weights, (kept, tokens, slots), measures = (part.tolist() for part in sums.split(sizes))
    *measures, written_weight = measures
    kinds = zip(POSITION_KINDS, kind_losses, kind_weights, strict=True)
    return GradientSums(
        losses=dict(zip(formats, losses, strict=True)),
        weights=weights,
        kinds={kind: value / weight for kind, value, weight in kinds if weight},
        kept=kept / total,
        taught=taught,
        tokens=int(tokens),
        slots=int(slots),
        written={name: value / written_weight for name, value in zip(ON_POLICY_MEASURES, measures, strict=True)}
        if written_weight
        else None,
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
    max_grad_norm: float | None = 1.0,
    precision: Precision = "float32",
    loss: Loss = DEFAULT_LOSS,
    on_policy_loss: OnPolicyLoss | None = None,
) -> Iterator[StepMetrics]:
    """Train from step `first` to step `last`, both included. Yields after every step, with the model in evaluation mode.

    micro_batches  function from a step to all of its micro-batches, the same on every process
    schedule       function from a step to its learning rate
    max_grad_norm  the gradient is scaled down to this norm; None does not scale it

    Raises UserError if the loss or the gradient is not finite, before the weights change.
    """
    parameters = [value for group in optimizer.param_groups for value in group["params"]]
    optimizer.zero_grad(set_to_none=True)
    for step in range(first, last + 1):
        batches = micro_batches(step)
        settings: Any = {"precision": precision, "loss": loss, "on_policy_loss": on_policy_loss}
        sums = accumulate_gradient(model, batches, step=step, seed=seed, **settings)
        norm = clip_gradients(parameters, math.inf if max_grad_norm is None else max_grad_norm)
        if not math.isfinite(norm):
            raise _not_finite_error(step, [example for batch in batches for example in batch], "the gradient")
        rate = schedule(step)
        for group in optimizer.param_groups:
            group["lr"] = rate * group.get("factor", 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)  # frees the memory for the caller's work between steps
        model.eval()
        total = sum(sums.weights.values())
        yield StepMetrics(
            step=step,
            loss=sum(sums.losses.values()) / total,
            losses={name: sums.losses[name] / weight for name, weight in sums.weights.items() if weight},
            kinds=sums.kinds,
            kept=sums.kept,
            taught=sums.taught,
            gradient_norm=norm,
            rate=rate,
            positions=sums.positions,
            weight=total,
            tokens=sums.tokens,
            padding=1 - sums.tokens / sums.slots,
            written=sums.written,
        )


def metrics_row(step: StepMetrics) -> dict[str, Any]:
    """The line of metrics.jsonl for a step. It has the key `written` only if the step has texts of the student."""
    return {name: value for name, value in asdict(step).items() if value is not None}


def loss_from_recipe(recipe: Recipe) -> Loss:
    """The loss of stored chains. Raises UserError for an unknown divergence, and for one that refuses the recipe's missing
    probability."""
    section = recipe.train
    return Loss(section.divergence, section.missing_probability, section.divergence_beta)


def on_policy_divergence(recipe: Recipe, key: Literal["on_policy", "train.on_policy"]) -> Loss:
    """The divergence of a recipe's on-policy section. Its targets are a model's top-k tokens, so the rest is always a tail.

    Raises UserError for an unknown divergence.
    """
    section = recipe.on_policy if key == "on_policy" else recipe.train.on_policy
    assert section is not None, f"the recipe has the section {key}"
    beta = recipe.train.divergence_beta if section.divergence_beta is None else section.divergence_beta
    try:
        return Loss(section.divergence, "tail", beta)
    except UserError as error:
        where = error.where.replace("train.", f"{key}.")
        raise UserError(error.what, code=error.code, where=where, found=error.found, hint=error.hint) from None


def on_policy_loss_from_recipe(recipe: Recipe, key: Literal["on_policy", "train.on_policy"]) -> OnPolicyLoss | None:
    """The loss of texts that the student writes during training, or after the selection; None without the section."""
    if key == "on_policy":
        return None if recipe.on_policy is None else OnPolicyLoss(on_policy_divergence(recipe, key))
    section = recipe.train.on_policy
    if section is None:
        return None
    cap = section.ratio_cap if section.stores_probabilities else None
    return OnPolicyLoss(
        on_policy_divergence(recipe, key),
        divergence_weight=section.divergence_weight,
        clip=section.rewards.clip,
        ratio_cap=cap,
    )


def _dropout_seed(seed: int, step: int, index: int) -> int:
    digest = blake2b(f"{('dropout', seed, step, index)}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def _not_finite_error(step: int, examples: Sequence[Example], subject: str = "the loss") -> UserError:
    names = list(dict.fromkeys(example.question for example in examples if example.question))
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return UserError(
        f"{subject} is not a finite number",
        code="E-train-not-finite",
        where=f"training step {step}",
        found=f"questions {', '.join(names[:5])}{more}",
        hint="lower train.learning_rate, use float32, or check these questions' targets; the last checkpoint is intact",
    )
