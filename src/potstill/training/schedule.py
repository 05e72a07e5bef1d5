"""How the learning rate goes.

    >>> schedule = Schedule("linear", peak=1e-3, warmup=2, last=10, hold=4)
    >>> [round(schedule(step) * 1e3, 2) for step in (1, 2, 6, 8, 10)]
    [0.5, 1.0, 1.0, 0.6, 0.2]

Counted in optimizer steps from 1, so that accumulation does not bend it (in the paper's code it did: PAPER section 6).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal


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
