"""Estimates of the time and memory of training and of evaluation, made before either begins.

    >>> from potstill.models import Shape
    >>> shape = Shape("causal", d_model=8, layers=2, heads=2, d_ff=16, d_kv=4, vocabulary=100, tied=True)
    >>> training_operations(shape, tokens=10, supervised=4) == 6 * (10 * 2 * (4 * 8 * 8 + 3 * 8 * 16) + 4 * 8 * 100)
    True
    >>> decoding_operations(shape, tokens=10) == 2 * 10 * (2 * (4 * 8 * 8 + 3 * 8 * 16) + 8 * 100)
    True

A product of [n, a] and [a, b] takes 2 n a b operations. `measure_product_rate` measures how many a device does per second on
matrices of the model's size. Training also does other work for each token (attention, norms, conversions), whose time
grows with the numbers that a layer stores for its backward pass, so `measure_training_rate` measures an elementwise function,
too: on a processor with fast products in bfloat16 most of the time is such work. The constants below are from one model on
two CPUs (docs/log.md): a time may be wrong by a factor of two.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final, Literal

import torch

from potstill.losses.sparse import CHUNK_ELEMENTS, MIN_CHUNK_ROWS
from potstill.models import Shape, count_matrix_elements, count_parameters, default_device

# Time of the other work of a training step, for a number that a layer stores: this many times that of `silu`.
ELEMENTWISE_PASSES: Final = 12
DECODING_SHARE: Final = 0.5  # share of the rate of products that decoding reaches
READING_FACTOR: Final = 0.6  # time of an operation in reading a prompt, relative to one in training
# For a token of a text whose scores the rule `text` transfers to the student's tokens: measured 3e-4 to 14e-4 with 20
# outcomes a token, over five pairs of tokenizers.
TRANSFER_SECONDS: Final = 8e-4
QUANTIZED_BYTES: Final = 0.52  # of a weight in 4 bits, with its share of the scales
PROCESS_BYTES: Final = 500 << 20  # Python and its libraries
MEASURED_SECONDS: Final = 0.15  # of one measurement
UNCACHED_ELEMENTS: Final = 1 << 25  # a matrix of this size does not fit in a processor's cache
Precision = Literal["float32", "bfloat16"]


def training_operations(shape: Shape, *, tokens: float, supervised: float, adapters: bool = False) -> float:
    """The operations of a forward and backward pass, without attention scores and without the optimizer.

    tokens      number of tokens that the model reads
    supervised  number of positions whose logits are computed
    adapters    only LoRA adapters are trained, so the weights get no gradient
    """
    return (4 if adapters else 6) * (
        tokens * count_matrix_elements(shape) + supervised * shape.vocabulary * shape.d_model
    )


def decoding_operations(shape: Shape, *, tokens: float) -> float:
    """The operations of writing `tokens` tokens, one at a time and with logits for each."""
    return 2 * tokens * (count_matrix_elements(shape) + shape.vocabulary * shape.d_model)


def scoring_operations(shape: Shape, *, tokens: float, scored: float) -> float:
    """The operations of reading `tokens` tokens with logits for `scored` of them, as of a training step without its
    backward pass."""
    return training_operations(shape, tokens=tokens, supervised=scored) / 3


def answering_seconds(shape: Shape, *, reads: float, writes: float, rates: tuple[float, float]) -> float:
    """The time to read prompts of `reads` tokens and to write `writes` tokens.

    rates  result of `measure_rates`
    """
    reading, writing = 2 * reads * count_matrix_elements(shape), decoding_operations(shape, tokens=writes)
    return reading / rates[0] * READING_FACTOR + writing / rates[1]


def training_memory(
    shape: Shape,
    *,
    tokens: float,
    precision: Precision = "float32",
    adapters: bool = False,
    quantized: bool = False,
    adafactor: bool = False,
    copies: bool = False,
    checkpointing: bool = False,
    writer: bool = False,
) -> dict[str, float]:
    """The peak memory of training in bytes, by part.

    tokens         number of tokens of a micro-batch
    precision      bfloat16: the products use copies of the weights with 16 bits
    adapters       only LoRA adapters are trained; their own size is not counted
    quantized      the weights of the linear layers are stored in 4 bits
    adafactor      the optimizer stores no moments of the size of a matrix
    copies         checkpoints are written from a copy of weights and optimizer (`train.async_checkpoints`)
    checkpointing  activations are computed again in the backward pass
    writer         all weights once more, because the student in training is sharded and another one writes its texts
    """
    parameters, width = count_parameters(shape), 2 if precision == "bfloat16" else 4
    moments = 0 if adapters or adafactor else 8
    per_parameter = 4 + (0 if adapters else 4) + moments
    stored = _stored_layers(shape)
    activations = tokens * _layer_activations(shape) * width * (1 if checkpointing else stored)
    if checkpointing:
        activations += tokens * shape.d_model * 4 * stored
    head = 4 * shape.vocabulary * shape.d_model
    saved = (4 - QUANTIZED_BYTES) * count_matrix_elements(shape) if quantized else 0
    rows = max(MIN_CHUNK_ROWS, CHUNK_ELEMENTS // shape.vocabulary)  # of logits that exist at a time
    parts = {
        "weights, gradients and optimizer": per_parameter * parameters - saved,
        "16-bit copies of the weights": 2 * parameters if precision == "bfloat16" else 0,
        "a copy for checkpoints": (4 + moments) * parameters if copies and not adapters else 0,
        "all weights, to write the student's own texts": 4 * parameters if writer else 0,
        "activations": activations,
        "logits and their gradients": 3 * 4 * rows * shape.vocabulary + (0 if adapters else 2 * head),
        "the process": PROCESS_BYTES,
    }
    return {name: size for name, size in parts.items() if size}


def evaluation_memory(shape: Shape, *, tokens: float, dtype: Precision) -> dict[str, float]:
    """The peak memory of evaluation in bytes, by part.

    tokens  number of tokens of a batch, prompts and answers
    """
    width, keys = 2 if dtype == "bfloat16" else 4, (shape.kv_heads or shape.heads) * shape.d_kv
    layers = _stored_layers(shape)
    return {
        "weights": width * count_parameters(shape),
        "keys and values": tokens * layers * 2 * keys * width,
        "the process": PROCESS_BYTES,
    }


def _stored_layers(shape: Shape) -> int:
    """The number of layers of a model: for T5, those of the encoder and of the decoder."""
    return shape.layers * (1 if shape.family == "causal" else 2)


def _layer_activations(shape: Shape) -> int:
    """The numbers that a layer keeps for its backward pass, per token: the inputs of its norms, products and activations."""
    attention, keys = shape.heads * shape.d_kv, (shape.kv_heads or shape.heads) * shape.d_kv
    return 8 * shape.d_model + 4 * attention + 4 * keys + 4 * shape.d_ff


def measure_product_rate(rows: int, width: int, columns: int, dtype: Precision) -> float:
    """The operations per second of products [rows, width] @ [width, columns] on the device that trains."""
    left, right = (_ones(size, dtype) for size in ((rows, width), (width, columns)))
    return 2 * rows * width * columns / _best_seconds(lambda: torch.mm(left, right))


def measure_elementwise_seconds(rows: int, columns: int, dtype: Precision) -> float:
    """The time of `silu` on a matrix [rows, columns] on the device that trains, in seconds per number."""
    matrix = _ones((rows, columns), dtype)
    return _best_seconds(lambda: torch.nn.functional.silu(matrix)) / (rows * columns)


def _ones(size: tuple[int, int], dtype: Precision) -> torch.Tensor:
    return torch.ones(size, dtype=getattr(torch, dtype), device=default_device())


def _best_seconds(work: Callable[[], object]) -> float:
    """The shortest time of at least three calls, and of as many as fit into MEASURED_SECONDS, because other work on the
    machine interrupts short ones."""
    device = default_device()
    best, began, number = float("inf"), time.perf_counter(), 0
    while number < 4 or time.perf_counter() - began < MEASURED_SECONDS:  # the first call also prepares the library
        _wait(device)
        start = time.perf_counter()
        work()
        _wait(device)
        best, number = min(best, time.perf_counter() - start), number + 1
    return best


def measure_training_rate(shape: Shape, *, tokens: float, precision: Precision) -> float:
    """The operations per second, as counted by `training_operations`, that training is expected to reach on this device.

    tokens     number of tokens of a micro-batch
    precision  type of the products
    """
    rows = max(1, int(tokens))
    products = measure_product_rate(rows, shape.d_model, shape.d_ff, precision)
    stored = _stored_layers(shape) * _layer_activations(shape)
    seconds_per_token = training_operations(shape, tokens=1, supervised=0) / products
    seconds_per_token += ELEMENTWISE_PASSES * stored * measure_elementwise_seconds(rows, shape.d_ff, precision)
    return training_operations(shape, tokens=1, supervised=0) / seconds_per_token


def measure_rates(
    shape: Shape, *, tokens: float, rows: float, precision: Precision, dtype: Precision
) -> tuple[float, float]:
    """The rates, in operations per second, that training and decoding are expected to reach on this machine.

    tokens     number of tokens of a micro-batch
    rows       number of answers that are written at the same time
    precision  type of the products in training; `dtype`: in evaluation
    """
    training = measure_training_rate(shape, tokens=tokens, precision=precision)
    # Every new token reads all weights, which do not stay in the cache.
    decoding = measure_product_rate(max(1, int(rows)), shape.d_model, UNCACHED_ELEMENTS // shape.d_model, dtype)
    return training, DECODING_SHARE * decoding


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
