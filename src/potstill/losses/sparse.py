"""The precision of a loss's matrix products, whatever the model's own products are made in.

>>> is_low_precision(torch.zeros(1, dtype=torch.bfloat16)), is_low_precision(torch.zeros(1))
(True, False)

The formulas of one chunk of rows: logits, values, and the gradient of the values in the logits.

>>> logits = compute_logits(torch.zeros(1, 2), torch.zeros(4, 2), None, 1.0, None)
>>> compute_values(logits, torch.tensor([[3]]), torch.tensor([[1.0]]), "raw")[0]
tensor([1.3863])

Gradients of hidden states, head and bias, added up from the slopes of one chunk of logits after another.

>>> hidden, head = torch.ones(2, 1), torch.ones(3, 1)
>>> gradients = HeadGradients(hidden, head, None, (True, True, False), scale=1.0)
>>> gradients.add(slice(0, 2), hidden, torch.ones(2, 3))
>>> [None if own is None else own.tolist() for own in gradients.made(head, None)]
[[[3.0], [3.0]], [[2.0], [2.0], [2.0]], None]

Kernels: one chunk's formula as it is written, or compiled into fewer passes over the logits; which is faster where.

    >>> logits, ids, p = torch.zeros(1, 4), torch.tensor([[3]]), torch.tensor([[1.0]])
    >>> values, slope = get_kernel("plain")(logits, ids, p, torch.tensor([1.0]), "raw", None)
    >>> values, slope
    (tensor([1.3863]), tensor([[ 0.2500,  0.2500,  0.2500, -0.7500]]))

Between its matrix products the loss reads and writes the logits of a chunk about ten times, compiled about four. On a
CPU that is little beside the products, and other bits; on a GPU, whose products are faster than its memory, it may be
as much as they are. So a CPU is never asked, and a GPU measured.

Kullback-Leibler divergence from a sparse teacher, whose gradient in the logits is known.

    >>> hidden, head = torch.randn(3, 2), torch.randn(9, 2)
    >>> ids, p = torch.tensor([[3], [0], [8]]), torch.tensor([[1.0], [0.5], [1.0]])
    >>> weights = torch.tensor([1.0, 0.5, 2.0])
    >>> total, values = weighted_sparse_kl(hidden, head, ids, p, weights)
    >>> bool(torch.isclose(total, (weights * sparse_kl(hidden, head, ids, p)).sum()))
    True

Two ways through the same formulas, row chunk by row chunk. `sparse` gives a value for every position and computes
logits twice, once forward and once backward: four matrix products. `weighted` is told what each value counts, so the
gradient is complete when its chunk of logits is there: three products, and nothing is computed again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any, Final, Literal, get_args

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.utils.benchmark import Timer

from potstill.errors import UserError


def is_low_precision(hidden: Tensor) -> bool:
    """Whether a model works in less than float32 here: its states say so, or autocast does."""
    return hidden.dtype in (torch.bfloat16, torch.float16) or torch.is_autocast_enabled(hidden.device.type)


@contextmanager
def matmul_precision(kind: str, low: bool) -> Iterator[None]:
    """Inside, products take float32 as it is, on this kind of device ("cuda"). Of a model that works in less, a GPU
    makes them as TF32: factors are rounded to its 10 bits (a bfloat16 has 7), sums stay in float32, and tensor cores
    compute it; a model in float32 keeps all its digits."""
    matmul = torch.backends.cuda.matmul
    with torch.autocast(kind, enabled=False):
        if kind != "cuda" or not low:
            yield
            return
        before, matmul.fp32_precision = matmul.fp32_precision, "tf32"
        try:
            yield
        finally:
            matmul.fp32_precision = before


MIN_TAIL: Final = 1e-6  # what is missing to 1 below this is the rounding of a sum, not a tail


def compute_logits(hidden: Tensor, head: Tensor, bias: Tensor | None, scale: float, cap: float | None) -> Tensor:
    logits = hidden @ head.T
    if scale != 1.0:
        logits.mul_(scale)
    if bias is not None:
        logits.add_(bias)
    return logits if cap is None else logits.div_(cap).tanh_().mul_(cap)


def compute_values(logits: Tensor, ids: Tensor, p: Tensor, mass: str) -> tuple[Tensor, Tensor, Tensor]:
    """Values, log-normalisers and the student's log-probability outside the candidates (0 where it is not needed)."""
    normaliser = logits.logsumexp(1)
    shown = p > 0
    log_q = logits.gather(1, ids) - normaliser.unsqueeze(1)
    values = torch.where(shown, torch.xlogy(p, p) - p * log_q, 0.0).sum(1)
    if mass != "tail":
        return values, normaliser, torch.zeros_like(values)
    # The sum over what is not a candidate, not 1 - Q: near Q = 1 the difference would have no digits left.
    rest = mask_candidates(logits, ids, shown).logsumexp(1) - normaliser
    tail = tail_probability(p)
    values = values + torch.where(tail > 0, torch.xlogy(tail, tail) - tail * rest, 0.0)
    return values, normaliser, rest


def compute_logit_gradient(
    logits: Tensor,
    ids: Tensor,
    p: Tensor,
    normaliser: Tensor,
    rest: Tensor,
    mass: str,
    count: Tensor,
    *,
    free: bool = False,
) -> Tensor:
    """The gradient of sum(count * values) in the logits, [rows, v]; `free`: whose memory may be written over."""
    shifted = logits.sub_(normaliser.unsqueeze(1)) if free and mass != "tail" else logits - normaliser.unsqueeze(1)
    q = shifted.exp_()
    if mass != "tail":
        return q.mul_((p.sum(1) * count).unsqueeze(1)).scatter_add_(1, ids, p * -count.unsqueeze(1))
    shown, tail = p > 0, tail_probability(p)
    seen = torch.where(shown, q.gather(1, ids), 0.0)
    # Elsewhere M q - (1 - M) Q q / (1 - Q), the last factor as one exponential; on a candidate M q + (1 - M) q - p.
    relative = torch.where(tail > 0, normaliser + rest, torch.inf).unsqueeze(1)
    elsewhere = (mask_candidates(logits, ids, shown) - relative).exp_().mul_((tail * seen.sum(1)).unsqueeze(1))
    q.mul_((1 - tail).unsqueeze(1)).sub_(elsewhere)
    q.scatter_add_(1, ids, torch.where(shown, seen * tail.unsqueeze(1) - p, 0.0))
    return q.mul_(count.unsqueeze(1))


def compute_values_and_gradient(
    logits: Tensor, ids: Tensor, p: Tensor, count: Tensor, mass: str, cap: float | None
) -> tuple[Tensor, Tensor]:
    """Values, and the gradient of sum(count * values) in the logits as they were before the cap; writes over them."""
    bend = None if cap is None else 1 - (logits / cap).square()
    values, normaliser, rest = compute_values(logits, ids, p, mass)
    slope = compute_logit_gradient(logits, ids, p, normaliser, rest, mass, count, free=True)
    return values, slope if bend is None else slope.mul_(bend)


def mask_candidates(logits: Tensor, ids: Tensor, shown: Tensor) -> Tensor:
    """The logits with the candidates' own taken out; the ids of padded slots stay."""
    hide = torch.where(shown, -torch.inf, torch.inf).to(logits.dtype)
    return logits.scatter_reduce(1, ids, hide, "amin")


def tail_probability(p: Tensor) -> Tensor:
    tail = 1 - p.sum(1)
    return torch.where(tail > MIN_TAIL, tail, 0.0)


class HeadGradients:
    """Of logits = scale * hidden @ head.T + bias; two of the three matrix products of a loss.

    wide, wide_bias  head and bias in the dtype of the products
    needs            which gradients are wanted: of hidden, head, bias
    """

    def __init__(
        self, hidden: Tensor, wide: Tensor, wide_bias: Tensor | None, needs: Sequence[bool], scale: float
    ) -> None:
        self._wide, self._scale = wide, scale
        self._hidden = torch.empty_like(hidden) if needs[0] else None
        self._head = torch.zeros_like(wide) if needs[1] else None
        self._bias = torch.zeros_like(wide_bias) if needs[2] and wide_bias is not None else None

    def add(self, at: slice, states: Tensor, slope: Tensor) -> None:
        """at: the rows of the chunk; states: [rows, d], their hidden states; slope: [rows, v] in their logits."""
        if self._bias is not None:
            self._bias += slope.sum(0)
        if self._hidden is not None:
            self._hidden[at] = (slope @ self._wide).mul_(self._scale)
        if self._head is not None:
            self._head.addmm_(slope.T, states, alpha=self._scale)

    def made(self, head: Tensor, bias: Tensor | None) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """All of them, in the dtypes of what they belong to."""
        return (
            self._hidden,
            None if self._head is None else self._head.to(head.dtype),
            None if self._bias is None or bias is None else self._bias.to(bias.dtype),
        )


Kernel = Literal["plain", "compiled"]
KERNELS: Final[tuple[str, ...]] = get_args(Kernel)
ChunkFunction = Callable[[Tensor, Tensor, Tensor, Tensor, str, float | None], tuple[Tensor, Tensor]]


@dataclass(frozen=True, slots=True)
class KernelTiming:
    """kernel: the faster one; seconds: of a chunk, by kernel; why: what stood against compiling, None if nothing."""

    kernel: Kernel
    seconds: dict[Kernel, float]
    why: str | None = None


@cache
def get_kernel(kernel: Kernel) -> ChunkFunction:
    """`formula.both_of`. Compiled, it raises torch's own errors at its first call where nothing can be compiled."""
    if kernel == "plain":
        return compute_values_and_gradient
    # Sizes are left open, since every micro-batch has other ones and a compilation takes seconds. Sizes of one, and two
    # that happen to be equal, still are compiled apart, for each mass: more often than torch expects.
    return torch.compile(compute_values_and_gradient, dynamic=True, fullgraph=True, recompile_limit=64)  # type: ignore[return-value]


def measure_kernels(
    rows: int, vocabulary: int, candidates: int, mass: str, cap: float | None, device: torch.device, low: bool
) -> KernelTiming:
    """Both kernels on one chunk of float32 logits [rows, vocabulary] on this device: a fraction of a second each, after
    compiling. Needs a few chunks of memory.

    low  whether the model works in less than float32, see `precision`: what is compiled here is what training runs
    """
    logits = torch.randn(rows, vocabulary, device=device)
    ids = torch.arange(candidates, device=device).expand(rows, -1).contiguous()
    p, count = torch.full(ids.shape, 0.9 / candidates, device=device), torch.ones(rows, device=device)

    def seconds(kernel: Kernel) -> float:
        own = get_kernel(kernel)
        work = {"once": lambda: own(logits.clone(), ids, p, count, mass, cap)}  # a chunk's logits are written over
        with torch.no_grad(), matmul_precision(device.type, low):
            work["once"]()
            timer = Timer("once()", globals=work, num_threads=torch.get_num_threads())
            return timer.blocked_autorange(min_run_time=0.3).median

    plain = seconds("plain")
    try:
        compiled = seconds("compiled")
    except Exception as error:  # whatever a compiler says
        why = (str(error).strip() or "no reason given").splitlines()[0][:200]
        return KernelTiming("plain", {"plain": plain}, f"{type(error).__name__}: {why}")
    return KernelTiming("compiled" if compiled < plain else "plain", {"plain": plain, "compiled": compiled})


MissingProbability = Literal["raw", "renormalised", "tail"]
MISSING_PROBABILITY_MODES: Final[tuple[str, ...]] = get_args(MissingProbability)
CHUNK_ELEMENTS: Final = 1 << 24  # logits that live at a time: 64 MiB in float32
CHUNK_ROWS: Final = 256  # at least: for every chunk the head is read, and its gradient read and written


def sparse_kl(
    hidden: Tensor,
    head: Tensor,
    ids: Tensor,
    probabilities: Tensor,
    *,
    mass: MissingProbability = "raw",
    bias: Tensor | None = None,
    scale: float = 1.0,
    cap: float | None = None,
    chunk: int | None = None,
) -> Tensor:
    """Kullback-Leibler divergence of the student from a sparse teacher, per position, in nats; not reduced.

    hidden         [n, d] float: the last hidden state at the supervised positions only
    head           [v, d] float: the output embedding; its rows beyond the tokenizer (padding) are part of the softmax,
                   as they are when the model generates
    ids            [n, k] int64 in [0, v): the candidates of each position, distinct within it
    probabilities  [n, k] float in [0, 1]; a slot of probability 0 is padding, whatever its id
    mass           what becomes of a kept mass under 1: see the table above
    bias           [v] added to the logits; `scale` multiplies hidden @ head.T (d_model^-0.5 in T5 v1.0)
    cap            logits become cap * tanh(logits / cap) (Gemma 2)
    chunk          rows whose logits live at a time; the value does not depend on it

    Returns [n] float32 (float64 for float64 inputs). Products are computed in float32 also for bfloat16 inputs and
    under autocast (on a GPU then as TF32, see `precision`); gradients come back in the dtype of hidden, head and bias.
    A position without any probability has the loss 0 under `raw` and `tail`. Raises UserError where `renormalised`
    meets such a position; asserts shapes and ids.
    """
    _check_inputs(hidden, head, ids, probabilities, mass, bias)
    rows = chunk or chunk_rows(head)
    values = _SparseKL.apply(hidden, head, bias, ids, probabilities, mass, float(scale), cap, rows)
    assert isinstance(values, Tensor)
    return values


def weighted_sparse_kl(
    hidden: Tensor,
    head: Tensor,
    ids: Tensor,
    probabilities: Tensor,
    weights: Tensor,
    *,
    mass: MissingProbability = "raw",
    bias: Tensor | None = None,
    scale: float = 1.0,
    cap: float | None = None,
    chunk: int | None = None,
    kernel: Kernel = "plain",
) -> tuple[Tensor, Tensor]:
    """sum(weights * sparse(...)), and the values of `sparse`, which are constants here.

    weights  [n] float: constants
    kernel   see `kernels`; the value does not depend on it but for rounding. All else as in `sparse`

    The gradient is made in the forward pass and held until the backward pass, which can be run once: as much memory as
    hidden states and head have. Returns ([] float32, [n] float32).
    """
    _check_inputs(hidden, head, ids, probabilities, mass, bias)
    assert weights.shape == hidden.shape[:1] and not weights.requires_grad, f"weights of {tuple(weights.shape)}"
    rows = chunk or chunk_rows(head)
    found: Any = _WeightedSparseKL.apply(
        hidden, head, bias, ids, probabilities, weights, mass, float(scale), cap, rows, kernel
    )
    return found


def _check_inputs(
    hidden: Tensor, head: Tensor, ids: Tensor, probabilities: Tensor, mass: str, bias: Tensor | None
) -> None:
    assert mass in MISSING_PROBABILITY_MODES, f"mass is one of {', '.join(MISSING_PROBABILITY_MODES)}, not {mass!r}"
    check_shapes(hidden, head, ids, bias)
    assert probabilities.shape == ids.shape, (
        f"candidates {tuple(ids.shape)}, probabilities {tuple(probabilities.shape)}"
    )
    assert not probabilities.requires_grad, "the teacher's probabilities are constants"
    if mass == "renormalised" and len(ids) and bool((probabilities.sum(1) <= 0).any()):
        raise UserError(
            "a position has no kept probability, so there is nothing to renormalise",
            where="loss",
            hint="use missing_probability: raw or tail, or a transfer rule that keeps the written token",
        )


def chunk_rows(head: Tensor) -> int:
    """How many rows of logits live at a time where the caller does not say."""
    return max(CHUNK_ROWS, CHUNK_ELEMENTS // head.shape[0])


def check_shapes(hidden: Tensor, head: Tensor, ids: Tensor, bias: Tensor | None) -> None:
    """Assertions on what cannot match. A head may have more rows than the tokenizer has tokens, never fewer."""
    assert hidden.ndim == 2 and head.ndim == 2 and hidden.shape[1] == head.shape[1], (
        f"hidden states {tuple(hidden.shape)} do not fit a head of {tuple(head.shape)}"
    )
    assert hidden.shape[0] == ids.shape[0], f"{hidden.shape[0]} hidden states, candidates {tuple(ids.shape)}"
    assert bias is None or bias.shape == (head.shape[0],), f"a bias of {tuple(bias.shape)} for {head.shape[0]} logits"
    if len(ids):
        low, high = int(ids.min()), int(ids.max())
        assert low >= 0 and high < head.shape[0], f"candidate ids {low} to {high} for a head of {head.shape[0]} rows"


class _SparseKL(torch.autograd.Function):
    """Keeps the log-normaliser of every row, and computes the logits of a chunk a second time in the backward pass."""

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any,
        hidden: Tensor,
        head: Tensor,
        bias: Tensor | None,
        ids: Tensor,
        probabilities: Tensor,
        mass: str,
        scale: float,
        cap: float | None,
        rows: int,
    ) -> Tensor:
        low = is_low_precision(hidden)
        with matmul_precision(hidden.device.type, low):
            kind = torch.float64 if hidden.dtype == torch.float64 else torch.float32
            p = probabilities.to(kind)
            p = p / p.sum(1, keepdim=True) if mass == "renormalised" else p
            wide, wide_bias = head.to(kind), None if bias is None else bias.to(kind)
            values = hidden.new_empty(len(hidden), dtype=kind)
            normaliser, rest = torch.empty_like(values), torch.empty_like(values)
            for start in range(0, len(hidden), rows):
                at = slice(start, start + rows)
                logits = compute_logits(hidden[at].to(kind), wide, wide_bias, scale, cap)
                values[at], normaliser[at], rest[at] = compute_values(logits, ids[at], p[at], mass)
        ctx.save_for_backward(hidden, head, bias, ids, p, normaliser, rest)
        ctx.settings = mass, scale, cap, rows, low
        return values

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        hidden, head, bias, ids, p, normaliser, rest = ctx.saved_tensors
        mass, scale, cap, rows, low = ctx.settings
        with matmul_precision(hidden.device.type, low):
            wide, wide_bias = head.to(p.dtype), None if bias is None else bias.to(p.dtype)
            gradients = HeadGradients(hidden, wide, wide_bias, ctx.needs_input_grad[:3], scale)
            for start in range(0, len(hidden), rows):
                at = slice(start, start + rows)
                states = hidden[at].to(p.dtype)
                logits = compute_logits(states, wide, wide_bias, scale, cap)
                slope = compute_logit_gradient(logits, ids[at], p[at], normaliser[at], rest[at], mass, grad[at])
                if cap is not None:
                    slope.mul_(1 - (logits / cap).square())
                gradients.add(at, states, slope)
        return (*gradients.made(head, bias), *[None] * 6)


class _WeightedSparseKL(torch.autograd.Function):
    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any,
        hidden: Tensor,
        head: Tensor,
        bias: Tensor | None,
        ids: Tensor,
        probabilities: Tensor,
        weights: Tensor,
        mass: str,
        scale: float,
        cap: float | None,
        rows: int,
        kernel: Kernel,
    ) -> tuple[Tensor, Tensor]:
        both = get_kernel(kernel)
        with matmul_precision(hidden.device.type, is_low_precision(hidden)):
            kind = torch.float64 if hidden.dtype == torch.float64 else torch.float32
            p, count = probabilities.to(kind), weights.to(kind)
            p = p / p.sum(1, keepdim=True) if mass == "renormalised" else p
            wide, wide_bias = head.to(kind), None if bias is None else bias.to(kind)
            values = hidden.new_empty(len(hidden), dtype=kind)
            gradients = HeadGradients(hidden, wide, wide_bias, ctx.needs_input_grad[:3], scale)
            for start in range(0, len(hidden), rows):
                at = slice(start, start + rows)
                states = hidden[at].to(kind)
                logits = compute_logits(states, wide, wide_bias, scale, cap)
                values[at], slope = both(logits, ids[at], p[at], count[at], mass, cap)
                gradients.add(at, states, slope)
        ctx.made = gradients.made(head, bias)
        ctx.mark_non_differentiable(values)
        return (values * count).sum(), values

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        made, ctx.made = ctx.made, None
        assert made is not None, "the gradient of a weighted sum is made once, and given once"
        return (*(None if own is None else own.mul_(grad) for own in made), *[None] * 8)
