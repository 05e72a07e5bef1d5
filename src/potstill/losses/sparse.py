"""Kullback-Leibler divergence of the student from a sparse teacher, and its gradient by formula.

    >>> hidden, lm_head = torch.randn(3, 2), torch.randn(9, 2)
    >>> ids, probs = torch.tensor([[3], [0], [8]]), torch.tensor([[1.0], [0.5], [1.0]])
    >>> weights = torch.tensor([1.0, 0.5, 2.0])
    >>> total, values = weighted_sparse_kl(hidden, lm_head, ids, probs, weights)
    >>> bool(torch.isclose(total, (weights * sparse_kl(hidden, lm_head, ids, probs)).sum()))
    True

All functions process the rows in chunks, so that only one chunk of logits exists at a time. `sparse_kl` returns a value
for every position. It computes the logits in the forward pass and again in the backward pass, which takes four matrix
products. `weighted_sparse_kl` knows the weight of every value in advance, so it computes the gradient while the chunk's
logits exist, which takes three products. `chunked_logit_function` is the general form of `sparse_kl`.

Between its matrix products the plain kernel reads and writes a chunk's logits about ten times, and the compiled kernel
about four times. On a CPU that time is small compared with the products, and compiling changes the rounding, so a CPU
always uses the plain kernel. On a GPU the products are fast compared with its memory, so training measures which kernel
is faster.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any, Final, Literal, NamedTuple, get_args

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.utils.benchmark import Timer

from potstill.errors import UserError

MissingProbability = Literal["raw", "renormalised", "tail"]
MISSING_PROBABILITY_MODES: Final[tuple[str, ...]] = get_args(MissingProbability)
MIN_TAIL: Final = 1e-6  # a smaller difference to 1 comes from rounding and is no tail
CHUNK_ELEMENTS: Final = 1 << 24  # logits of a chunk: 64 MiB in float32
MIN_CHUNK_ROWS: Final = 256  # every chunk reads the head and updates its gradient, so short chunks are slow
Kernel = Literal["plain", "compiled"]
KERNELS: Final[tuple[str, ...]] = get_args(Kernel)
WeightedKernel = Callable[[Tensor, Tensor, Tensor, Tensor, str, float | None], tuple[Tensor, Tensor]]


def sparse_kl(
    hidden: Tensor,
    lm_head: Tensor,
    ids: Tensor,
    probs: Tensor,
    *,
    missing_probability: MissingProbability = "raw",
    bias: Tensor | None = None,
    scale: float = 1.0,
    softcap: float | None = None,
    chunk_rows: int | None = None,
) -> Tensor:
    """KL(teacher || student) per position, in nats, not reduced: [n] float32 (float64 for float64 inputs).

    hidden               [n, d] float: the last hidden states, at the supervised positions only
    lm_head              [v, d] float: the output embedding. Rows beyond the tokenizer's size (padding) are part of the
                         softmax, as in generation
    ids                  [n, k] int64 in [0, v): the candidates of each position, distinct within a position
    probs                [n, k] float in [0, 1], not logarithms. A slot with probability 0 is padding; its id may be any
    missing_probability  how the probability outside the candidates is treated: see the table in `potstill.losses`
    bias                 [v], added to the logits
    scale                factor of hidden @ lm_head.T (d_model^-0.5 in T5 v1.0)
    softcap              logits become softcap * tanh(logits / softcap) (Gemma 2)
    chunk_rows           number of rows whose logits are computed at a time; the value does not depend on it

    Matrix products are computed in float32 even for bfloat16 inputs and under autocast (then as TF32 on a GPU, see
    `matmul_precision`). Gradients have the dtypes of hidden, lm_head and bias. The loss of a position without any
    probability is 0 under `raw` and `tail`; under `renormalised` it raises UserError. Asserts shapes and ids.
    """
    p = _checked_probabilities(hidden, lm_head, ids, probs, missing_probability, bias)

    def compute(logits: Tensor, ids: Tensor, p: Tensor) -> tuple[Tensor, ...]:
        return compute_values(logits, ids, p, missing_probability)

    def differentiate(
        logits: Tensor, grad: Tensor, _: Tensor, normaliser: Tensor, log_rest: Tensor, ids: Tensor, p: Tensor
    ) -> Tensor:
        return compute_logit_gradient(logits, ids, p, normaliser, log_rest, missing_probability, grad)

    settings = HeadSettings(float(scale), softcap, chunk_rows or default_chunk_rows(lm_head))
    return chunked_logit_function(compute, differentiate, hidden, lm_head, bias, settings, ids, p)


def weighted_sparse_kl(
    hidden: Tensor,
    lm_head: Tensor,
    ids: Tensor,
    probs: Tensor,
    weights: Tensor,
    *,
    missing_probability: MissingProbability = "raw",
    bias: Tensor | None = None,
    scale: float = 1.0,
    softcap: float | None = None,
    chunk_rows: int | None = None,
    kernel: Kernel = "plain",
) -> tuple[Tensor, Tensor]:
    """sum(weights * sparse_kl(...)) as [] float32, and the values of `sparse_kl` as constants [n] float32.

    weights  [n] float: constants
    kernel   `plain` or `compiled`, which changes only the rounding. All other arguments are those of `sparse_kl`

    The forward pass computes the gradient and keeps it for the backward pass, which can run only once. The gradient
    takes as much memory as the hidden states and the head.
    """
    p = _checked_probabilities(hidden, lm_head, ids, probs, missing_probability, bias)
    assert weights.shape == hidden.shape[:1] and not weights.requires_grad, f"weights of {tuple(weights.shape)}"
    settings = HeadSettings(float(scale), softcap, chunk_rows or default_chunk_rows(lm_head))
    result: Any = _WeightedSparseKL.apply(
        hidden, lm_head, bias, settings, ids, p, weights.to(p.dtype), missing_probability, kernel
    )
    return result


def default_chunk_rows(lm_head: Tensor) -> int:
    """The default number of rows whose logits exist at a time."""
    return max(MIN_CHUNK_ROWS, CHUNK_ELEMENTS // lm_head.shape[0])


def check_shapes(hidden: Tensor, lm_head: Tensor, ids: Tensor, bias: Tensor | None) -> None:
    """Assert that the shapes match and all ids are rows of the head. The head may have more rows than the tokenizer has
    tokens, never fewer."""
    size, fits = lm_head.shape[0], hidden.ndim == 2 and lm_head.ndim == 2 and hidden.shape[1] == lm_head.shape[1]
    assert fits, f"hidden states {tuple(hidden.shape)} do not fit a head of {tuple(lm_head.shape)}"
    assert not ids.is_floating_point(), f"candidate ids of {ids.dtype}; give ids, then probs"
    assert hidden.shape[0] == ids.shape[0], f"{hidden.shape[0]} hidden states, candidates {tuple(ids.shape)}"
    assert bias is None or bias.shape == (size,), f"a bias of {tuple(bias.shape)} for {size} logits"
    if len(ids):
        low, high = int(ids.min()), int(ids.max())
        assert low >= 0 and high < size, f"candidate ids {low} to {high} for a head of {size} rows"


def _checked_probabilities(
    hidden: Tensor, lm_head: Tensor, ids: Tensor, probs: Tensor, missing_probability: str, bias: Tensor | None
) -> Tensor:
    """Check all inputs, and return the probabilities in the dtype of the products, scaled to sum 1 under
    `renormalised`."""
    modes = MISSING_PROBABILITY_MODES
    assert missing_probability in modes, (
        f"missing_probability is one of {', '.join(modes)}, not {missing_probability!r}"
    )
    check_shapes(hidden, lm_head, ids, bias)
    assert probs.shape == ids.shape, f"candidates {tuple(ids.shape)}, probabilities {tuple(probs.shape)}"
    assert not probs.requires_grad, "the teacher's probabilities are constants"
    assert not len(ids) or float(probs.min()) >= 0, "probs are negative: give probabilities, not log-probabilities"
    p = probs.to(_product_dtype(hidden))
    if missing_probability != "renormalised":
        return p
    check_renormalisable(probs)
    return p / p.sum(1, keepdim=True)


def check_renormalisable(probs: Tensor) -> None:
    """Raises UserError if the probabilities of a position add up to 0, so that they cannot be scaled to sum 1."""
    if len(probs) and bool((probs.sum(1) <= 0).any()):
        raise UserError(
            "the target of a position has no probability, so it cannot be renormalised",
            code="E-train-nothing-to-renormalise",
            where="train.missing_probability",
            hint="use missing_probability: raw or tail, or a transfer rule that keeps the chain's own token",
        )


# The values of one chunk of rows, and their gradient with respect to the logits.


def compute_values(logits: Tensor, ids: Tensor, p: Tensor, missing_probability: str) -> tuple[Tensor, Tensor, Tensor]:
    """The values, the log-normalisers, and the student's log-probability outside the candidates, all [rows]. The last one
    is computed only under `tail`, and 0 otherwise."""
    normaliser = logits.logsumexp(1)
    is_candidate = p > 0
    log_q = logits.gather(1, ids) - normaliser.unsqueeze(1)
    # xlogy is 0 at p = 0. In a padded slot log_q may be -inf, and the mask drops the NaN of 0 * -inf.
    values = torch.where(is_candidate, torch.xlogy(p, p) - p * log_q, 0.0).sum(1)
    if missing_probability != "tail":
        return values, normaliser, torch.zeros_like(values)
    # Add up the tokens that are not candidates, because the difference 1 - Q would lose all its digits near Q = 1.
    log_rest = mask_candidates(logits, ids, is_candidate).logsumexp(1) - normaliser
    tail = tail_probability(p)
    values = values + torch.where(tail > 0, torch.xlogy(tail, tail) - tail * log_rest, 0.0)
    return values, normaliser, log_rest


def compute_logit_gradient(
    logits: Tensor,
    ids: Tensor,
    p: Tensor,
    normaliser: Tensor,
    log_rest: Tensor,
    missing_probability: str,
    weights: Tensor,
) -> Tensor:
    """The gradient of sum(weights * values) with respect to the logits, [rows, v]. May overwrite `logits`."""
    if missing_probability != "tail":  # M q - p
        q = logits.sub_(normaliser.unsqueeze(1)).exp_()
        return q.mul_((p.sum(1) * weights).unsqueeze(1)).scatter_add_(1, ids, p * -weights.unsqueeze(1))
    q = (logits - normaliser.unsqueeze(1)).exp_()
    is_candidate, tail = p > 0, tail_probability(p)
    candidate_q = torch.where(is_candidate, q.gather(1, ids), 0.0)
    # Outside the candidates q (M - Q) / (1 - Q) = M q - (1 - M) Q q / (1 - Q). The last factor q / (1 - Q) is one
    # exponential, exp(logit - normaliser - log_rest), because both q and 1 - Q may underflow. For a candidate the
    # gradient is q - p = M q + (1 - M) q - p. So all columns get M q, and the candidates get the other terms by scatter.
    relative = torch.where(tail > 0, normaliser + log_rest, torch.inf).unsqueeze(1)
    outside = (mask_candidates(logits, ids, is_candidate) - relative).exp_()
    outside.mul_((tail * candidate_q.sum(1)).unsqueeze(1))
    q.mul_((1 - tail).unsqueeze(1)).sub_(outside)
    q.scatter_add_(1, ids, torch.where(is_candidate, candidate_q * tail.unsqueeze(1) - p, 0.0))
    return q.mul_(weights.unsqueeze(1))


def compute_values_and_gradient(
    logits: Tensor, ids: Tensor, p: Tensor, weights: Tensor, missing_probability: str, softcap: float | None
) -> tuple[Tensor, Tensor]:
    """The values [rows], and the gradient [rows, v] of sum(weights * values) with respect to the logits before the softcap.
    May overwrite `logits`."""
    slope = softcap_slope(logits, softcap)
    values, normaliser, log_rest = compute_values(logits, ids, p, missing_probability)
    gradient = compute_logit_gradient(logits, ids, p, normaliser, log_rest, missing_probability, weights)
    return values, gradient if slope is None else gradient.mul_(slope)


def mask_candidates(logits: Tensor, ids: Tensor, is_candidate: Tensor) -> Tensor:
    """The logits with -inf at the candidates. A padded slot changes nothing: it takes the minimum of its logit and +inf."""
    mask = torch.where(is_candidate, -torch.inf, torch.inf).to(logits.dtype)
    return logits.scatter_reduce(1, ids, mask, "amin")


def tail_probability(p: Tensor) -> Tensor:
    """1 - sum(p) of each row [n]; 0 if the difference is only rounding (at most MIN_TAIL)."""
    tail = 1 - p.sum(1)
    return torch.where(tail > MIN_TAIL, tail, 0.0)


# The logits, computed in chunks of rows.


class HeadSettings(NamedTuple):
    """logits = softcap * tanh((scale * hidden @ lm_head.T + bias) / softcap), computed for `chunk_rows` rows at a time."""

    scale: float
    softcap: float | None
    chunk_rows: int

    def chunks(self, rows: int) -> Iterator[slice]:
        return (slice(start, start + self.chunk_rows) for start in range(0, rows, self.chunk_rows))


class _Head:
    """The output layer in the dtype of its matrix products, and the sums of its gradients over the chunks.

    needs  whether to compute the gradients of hidden, lm_head and bias
    """

    def __init__(
        self,
        hidden: Tensor,
        lm_head: Tensor,
        bias: Tensor | None,
        settings: HeadSettings,
        needs: Sequence[bool] = (False, False, False),
    ) -> None:
        dtype = _product_dtype(hidden)
        self._inputs, self._settings = (hidden, lm_head, bias), settings
        self._weight, self._bias = lm_head.to(dtype), None if bias is None else bias.to(dtype)
        self._hidden_gradient = torch.empty_like(hidden) if needs[0] else None
        self._weight_gradient = torch.zeros_like(self._weight) if needs[1] else None
        self._bias_gradient = torch.zeros_like(self._bias) if needs[2] and self._bias is not None else None

    def logits(self, rows: slice) -> tuple[Tensor, Tensor]:
        """The hidden states [rows, d] of a chunk in the dtype of the products, and its logits [rows, v]."""
        states = self._inputs[0][rows].to(self._weight.dtype)
        # Every step is in place, because the chunk's logits are the largest tensor of the loss.
        logits = states @ self._weight.T
        if self._settings.scale != 1.0:
            logits.mul_(self._settings.scale)
        if self._bias is not None:
            logits.add_(self._bias)
        softcap = self._settings.softcap
        return states, logits if softcap is None else logits.div_(softcap).tanh_().mul_(softcap)

    def add_gradient(self, rows: slice, states: Tensor, gradient: Tensor) -> None:
        """Add the gradients of a chunk.

        states    [rows, d] hidden states of the chunk
        gradient  [rows, v] gradient of the loss with respect to the logits before the softcap
        """
        if self._bias_gradient is not None:
            self._bias_gradient += gradient.sum(0)
        if self._hidden_gradient is not None:
            self._hidden_gradient[rows] = (gradient @ self._weight).mul_(self._settings.scale)
        if self._weight_gradient is not None:
            self._weight_gradient.addmm_(gradient.T, states, alpha=self._settings.scale)

    def gradients(self) -> list[Tensor | None]:
        """The gradients of hidden, lm_head and bias, in the dtypes of these tensors; None for one that was not needed."""
        sums = self._hidden_gradient, self._weight_gradient, self._bias_gradient
        return [
            None if sum is None or tensor is None else sum.to(tensor.dtype)
            for sum, tensor in zip(sums, self._inputs, strict=True)
        ]


def softcap_slope(logits: Tensor, softcap: float | None) -> Tensor | None:
    """The derivative 1 - tanh(x / softcap)^2 of the softcap, computed from the logits after it; None without a softcap."""
    return None if softcap is None else 1 - (logits / softcap).square()


def _product_dtype(hidden: Tensor) -> torch.dtype:
    return torch.float64 if hidden.dtype == torch.float64 else torch.float32


def is_low_precision(hidden: Tensor) -> bool:
    """Whether the model computes in a lower precision than float32, by the dtype of its hidden states or by autocast."""
    return hidden.dtype in (torch.bfloat16, torch.float16) or torch.is_autocast_enabled(hidden.device.type)


@contextmanager
def matmul_precision(device_type: str, low: bool) -> Iterator[None]:
    """Turn autocast off, so that matrix products inside the block keep float32 inputs.

    If the model computes in less than float32 (`low`), a GPU ("cuda") multiplies in TF32 on its tensor cores: factors are
    rounded to 10 bits (a bfloat16 has 7), and sums stay in float32. For a float32 model nothing is rounded to TF32.
    """
    matmul = torch.backends.cuda.matmul
    with torch.autocast(device_type, enabled=False):
        if device_type != "cuda" or not low:
            yield
            return
        before, matmul.fp32_precision = matmul.fp32_precision, "tf32"
        try:
            yield
        finally:
            matmul.fp32_precision = before


def chunked_logit_function(
    compute: Callable[..., tuple[Tensor, ...]],
    differentiate: Callable[..., Tensor],
    hidden: Tensor,
    lm_head: Tensor,
    bias: Tensor | None,
    settings: HeadSettings,
    *inputs: Tensor,
) -> Tensor:
    """Compute a function of the logits in chunks of rows. It is differentiable with respect to hidden, lm_head and bias.

    compute        function of a chunk: (logits, *inputs) -> (values, *other tensors that the gradient needs)
    differentiate  function of a chunk: (logits, gradient of the values, values, *other tensors, *inputs) -> gradient
                   with respect to the logits [rows, v]; it may overwrite the logits
    inputs         tensors [n, ...], constants
    """
    return _ChunkedLogitFunction.apply(  # type: ignore[return-value]
        hidden, lm_head, bias, settings, compute, differentiate, *inputs
    )


class _ChunkedLogitFunction(torch.autograd.Function):
    """Keeps no logits: the backward pass computes the logits of each chunk again."""

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any,
        hidden: Tensor,
        lm_head: Tensor,
        bias: Tensor | None,
        settings: HeadSettings,
        compute: Callable[..., tuple[Tensor, ...]],
        differentiate: Callable[..., Tensor],
        *inputs: Tensor,
    ) -> Tensor:
        low = is_low_precision(hidden)
        with matmul_precision(hidden.device.type, low):
            head = _Head(hidden, lm_head, bias, settings)
            chunks = [
                compute(head.logits(rows)[1], *(tensor[rows] for tensor in inputs))
                for rows in settings.chunks(max(len(hidden), 1))  # without rows one empty chunk, for the shapes
            ]
        outputs = [torch.cat(parts) for parts in zip(*chunks, strict=True)]
        ctx.save_for_backward(hidden, lm_head, bias, *outputs, *inputs)
        ctx.constants = settings, differentiate, low
        return outputs[0]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        hidden, lm_head, bias, *tensors = ctx.saved_tensors
        settings, differentiate, low = ctx.constants
        with matmul_precision(hidden.device.type, low):
            head = _Head(hidden, lm_head, bias, settings, ctx.needs_input_grad[:3])
            for rows in settings.chunks(len(hidden)):
                states, logits = head.logits(rows)
                slope = softcap_slope(logits, settings.softcap)
                gradient = differentiate(logits, grad[rows], *(tensor[rows] for tensor in tensors))
                head.add_gradient(rows, states, gradient if slope is None else gradient.mul_(slope))
        return (*head.gradients(), *[None] * (len(ctx.needs_input_grad) - 3))


class _WeightedSparseKL(torch.autograd.Function):
    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any,
        hidden: Tensor,
        lm_head: Tensor,
        bias: Tensor | None,
        settings: HeadSettings,
        ids: Tensor,
        p: Tensor,
        weights: Tensor,
        missing_probability: str,
        kernel: Kernel,
    ) -> tuple[Tensor, Tensor]:
        compute = get_kernel(kernel)
        with matmul_precision(hidden.device.type, is_low_precision(hidden)):
            head = _Head(hidden, lm_head, bias, settings, ctx.needs_input_grad[:3])
            values = torch.empty_like(weights)
            for rows in settings.chunks(len(hidden)):
                states, logits = head.logits(rows)
                values[rows], gradient = compute(
                    logits, ids[rows], p[rows], weights[rows], missing_probability, settings.softcap
                )
                head.add_gradient(rows, states, gradient)
        ctx.gradients = head.gradients()
        ctx.mark_non_differentiable(values)
        return (values * weights).sum(), values

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        gradients, ctx.gradients = ctx.gradients, None
        assert gradients is not None, "weighted_sparse_kl computes its gradient once, so its backward pass can run once"
        return (*(None if gradient is None else gradient.mul_(grad) for gradient in gradients), *[None] * 6)


# Kernels, which compute the part between the matrix products.


@dataclass(frozen=True, slots=True)
class KernelTiming:
    """The faster kernel, the seconds for one chunk by kernel, and why compiling failed (None if it did not fail)."""

    kernel: Kernel
    seconds: dict[Kernel, float]
    failure: str | None = None


@cache
def get_kernel(kernel: Kernel) -> WeightedKernel:
    """`compute_values_and_gradient`, plain or compiled. If the machine cannot compile, the first call of the compiled
    function raises torch's error."""
    if kernel == "plain":
        return compute_values_and_gradient
    # Sizes stay dynamic, because they differ between micro-batches and compiling takes seconds. Torch still compiles
    # separate versions for a size of one and for two equal sizes, in each mode, which exceeds its default limit of 8.
    return torch.compile(  # type: ignore[return-value]
        compute_values_and_gradient, dynamic=True, fullgraph=True, recompile_limit=64
    )


def measure_kernels(
    rows: int,
    vocabulary: int,
    candidates: int,
    missing_probability: str,
    softcap: float | None,
    device: torch.device,
    low: bool,
) -> KernelTiming:
    """Time both kernels on one chunk of float32 logits [rows, vocabulary].

    Apart from compiling, each kernel takes at most about a second. Needs the memory of a few chunks.

    low  whether the model computes in less than float32 (`is_low_precision`), as it will in training
    """
    logits = torch.randn(rows, vocabulary, device=device)
    ids = torch.arange(candidates, device=device).expand(rows, -1).contiguous()
    p, weights = torch.full(ids.shape, 0.9 / candidates, device=device), torch.ones(rows, device=device)

    def seconds(kernel: Kernel) -> float:
        function = get_kernel(kernel)  # it overwrites its logits
        scope = {"run": lambda: function(logits.clone(), ids, p, weights, missing_probability, softcap)}
        with torch.no_grad(), matmul_precision(device.type, low):
            scope["run"]()
            timer = Timer("run()", globals=scope, num_threads=torch.get_num_threads())
            return timer.blocked_autorange(min_run_time=0.3).median

    plain = seconds("plain")
    try:
        compiled = seconds("compiled")
    except Exception as error:  # a compiler may raise anything
        reason = (str(error).strip() or "no reason given").splitlines()[0][:200]
        return KernelTiming("plain", {"plain": plain}, f"{type(error).__name__}: {reason}")
    return KernelTiming("compiled" if compiled < plain else "plain", {"plain": plain, "compiled": compiled})
