"""What a step took: never part of a result, written beside it.

    >>> compute_step_speed(7, 0.5, tokens=1000, operations=4_000_000, peak=16e6, memory=1 << 30).utilisation
    0.5

The peak of a device is what its maker says of dense products; where nobody knows it, nothing is claimed. On a CPU it is
unknown unless the recipe gives it (`train.peak_flops`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import torch
from torch import distributed

from potstill import process

# Operations a second of dense products, by a part of the device's name: in bfloat16, and in float32 without TF32.
DEVICE_PEAK_FLOPS: Final = {
    "H200": (989e12, 67e12),
    "H100 PCIe": (756e12, 51e12),
    "H100": (989e12, 67e12),
    "A100": (312e12, 19.5e12),
    "L40S": (362e12, 91.6e12),
    "L4": (121e12, 30.3e12),
}


@dataclass(frozen=True, slots=True)
class StepSpeed:
    """Of one optimizer step, without what was saved or evaluated after it.

    tokens_per_second  that the model read
    operations         that the step needed, counted from the shapes, over all processes
    utilisation        operations a second over the peak of all devices together; None where that is not known
    memory_mib         the most that was held so far: on the GPU, or by this process
    """

    step: int
    seconds: float
    tokens_per_second: float
    operations: int
    utilisation: float | None
    memory_mib: int


def compute_step_speed(
    step: int, seconds: float, *, tokens: int, operations: int, peak: float | None, memory: int
) -> StepSpeed:
    """peak in operations a second, memory in bytes."""
    used = None if peak is None else round(operations / seconds / peak, 6)
    return StepSpeed(step, round(seconds, 6), round(tokens / seconds, 3), operations, used, memory >> 20)


def total_peak_flops(device: torch.device, precision: str, given: float | None = None) -> float | None:
    """Operations a second that the devices of all processes could do, all like this one: as it was given for one, or as
    the table has it; None where its name is not there."""
    count = distributed.get_world_size() if distributed.is_initialized() else 1
    if given is not None or device.type != "cuda":
        return None if given is None else given * count
    name = torch.cuda.get_device_name(device)
    found = next((peaks for part, peaks in DEVICE_PEAK_FLOPS.items() if part in name), None)
    return None if found is None else found[0 if precision == "bfloat16" else 1] * count


def peak_memory_bytes(device: torch.device) -> int:
    """The most bytes that were held so far: of the GPU, or of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return process.peak_memory()
