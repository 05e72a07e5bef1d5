"""What can answer a run's questions and be chosen, with its label and its folder's name in one place.

>>> Contender(350).name, Contender(350, 0.3).name, Contender(350, 0.3).label
('350', '350-0.3', '350 × 0.3')
>>> Contender.read("350-0.3"), Contender.read(350).written
(Contender(step=350, share=0.3), 350)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Self


@dataclass(frozen=True, slots=True, order=True)
class Contender:
    """What can answer and be chosen: the student after a step of training, or its weights mixed with the base's.

    share  of the student's weights, the rest are the base's; 1 is the checkpoint itself
    """

    step: int
    share: float = 1.0

    @property
    def name(self) -> str:
        """Of its folder."""
        return f"{self.step}" if self.share == 1 else f"{self.step}-{self.share!r}"

    @property
    def label(self) -> str:
        """For people: the step, and what its weights were multiplied with."""
        return f"{self.step}{self.mixed}"

    @property
    def mixed(self) -> str:
        return "" if self.share == 1 else f" × {self.share!r}"

    @property
    def written(self) -> int | str:
        """In JSON: a step is a number, a mix is its name."""
        return self.step if self.share == 1 else self.name

    @classmethod
    def read(cls, written: int | str) -> Self:
        """The reverse of `written` and of `name`. Raises ValueError on anything else."""
        step, mixed, share = str(written).partition("-")
        found = cls(int(step), float(share) if mixed else 1.0)
        if found.name != str(written):
            raise ValueError(f"no contender: {written!r}")
        return found


BASE: Final = Contender(0)
