"""What can answer a run's questions and be chosen, with its label and its folder's name in one place.

>>> Contender(350).name, Contender(350, 0.3).name, Contender(350, 0.3).label
('350', '350-0.3', '350 × 0.3')
>>> Contender.read("350-0.3"), Contender.read(350).written
(Contender(step=350, share=0.3, repaired=0), 350)
>>> Contender(350, repaired=100).name, Contender.read("350-0.3+100").label
('350+100', '350 × 0.3 + 100')
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Self


@dataclass(frozen=True, slots=True, order=True)
class Contender:
    """What can answer and be chosen: the student after a step of training, or its weights mixed with the base's.

    share     of the student's weights, the rest are the base's; 1 is the checkpoint itself
    repaired  steps of repair that came after it; what was repaired answers, and is not chosen
    """

    step: int
    share: float = 1.0
    repaired: int = 0

    @property
    def name(self) -> str:
        """Of its folder."""
        mixed = "" if self.share == 1 else f"-{self.share!r}"
        return f"{self.step}{mixed}" + (f"+{self.repaired}" if self.repaired else "")

    @property
    def label(self) -> str:
        """For people: the step, what its weights were multiplied with, and the steps of repair after it."""
        return f"{self.step}{self.further}"

    @property
    def pure(self) -> bool:
        """Whether it is a checkpoint of training itself."""
        return self.share == 1 and not self.repaired

    @property
    def further(self) -> str:
        """What stands behind the step."""
        mixed = "" if self.share == 1 else f" × {self.share!r}"
        return mixed + (f" + {self.repaired}" if self.repaired else "")

    @property
    def written(self) -> int | str:
        """In JSON: a step is a number, anything else its name."""
        return self.step if self.pure else self.name

    @classmethod
    def read(cls, written: int | str) -> Self:
        """The reverse of `written` and of `name`. Raises ValueError on anything else."""
        chosen, _, repaired = str(written).partition("+")
        step, mixed, share = chosen.partition("-")
        found = cls(int(step), float(share) if mixed else 1.0, int(repaired or 0))
        if found.name != str(written):
            raise ValueError(f"no contender: {written!r}")
        return found


BASE: Final = Contender(0)
