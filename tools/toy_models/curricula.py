"""Shapes and curricula of the toy models.

    >>> shape = CURRICULA["student"].shape
    >>> Curriculum(shape, prompts.PAPER_STYLE, (Phase(2, {"facts": 8}), Phase(3, {"single": 8})), peak=1e-3).steps
    5

A base student learns the parts of solving a problem one after another. A share of each part stays in the mix, because a
skill that leaves the mix is forgotten within a minute of training. It never sees a solved word problem, only the numbers
of some.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

from potstill import prompts
from potstill.models import Shape
from potstill.prompts import PromptStyle
from potstill.training import Schedule


@dataclass(frozen=True, slots=True)
class Phase:
    """A number of steps on one task mix: rows of each task per step.

    rest   the learning rate falls to 0 at the end of the phase and rises again after it
    scale  factor of the curriculum's peak, from this phase to the next rest
    """

    steps: int
    rows: Mapping[str, int]
    rest: bool = False
    scale: float = 1.0


@dataclass(frozen=True, slots=True)
class Curriculum:
    """How one model is trained.

    peak, warmup, fall  the learning rate rises over `warmup` steps to its peak and falls over the last share `fall` of
                        the steps; again after each rest
    factors             part of a parameter's name -> factor of the learning rate
    weights             task -> weight of its positions in the loss; 1 by default
    preset              whether to use `inits`
    """

    shape: Shape
    style: PromptStyle
    phases: Sequence[Phase]
    peak: float
    warmup: int = 50
    fall: float = 0.45
    factors: Mapping[str, float] = field(default_factory=dict)
    weights: Mapping[str, float] = field(default_factory=dict)
    preset: bool = False

    @property
    def steps(self) -> int:
        return sum(phase.steps for phase in self.phases)

    @property
    def has_whole_problems(self) -> bool:
        """Whether it has whole word problems, not only their parts."""
        return any("steps" in phase.rows for phase in self.phases)

    def rate(self, step: int) -> float:
        """The learning rate of a step, counted from 1."""
        before = 0
        for length, scale in self._cycles():
            if step <= before + length:
                hold = max(0, length - round(length * self.fall) - self.warmup)
                return Schedule("linear", self.peak * scale, self.warmup, length, stable=hold)(step - before)
            before += length
        raise AssertionError(f"step {step} of {before}")

    def _cycles(self) -> list[tuple[int, float]]:
        """Steps and scale from one rest to the next."""
        cycles: list[tuple[int, float]] = []
        rested = True
        for phase in self.phases:
            length, scale = (0, phase.scale) if rested else cycles.pop()
            cycles.append((length + phase.steps, scale))
            rested = phase.rest
        return cycles


def _t5(width: int, layers: int, heads: int, d_ff: int) -> Shape:
    return Shape("t5", width, layers, heads, d_ff, d_kv=width // heads, vocabulary=1000)


def _skills(*steps: int) -> tuple[Phase, ...]:
    """The curriculum of the base students: four phases, then two more, each after a rest."""
    rows: tuple[Mapping[str, int], ...] = (
        {"copying": 64},
        {"copying": 16, "lookup": 48, "facts": 96},
        {"equations": 48, "clauses": 48, "facts": 96, "extraction": 24, "lookup": 24, "copying": 8, "generic": 24},
        {
            "equations": 24, "clauses": 80, "facts": 64, "extraction": 24, "lookup": 16, "copying": 8, "generic": 56,
            "plain": 4,
        },
        {
            "equations": 32, "clauses": 64, "facts": 48, "extraction": 24, "lookup": 8, "copying": 8, "generic": 96,
            "plain": 4,
        },
        {
            "equations": 32, "clauses": 64, "facts": 32, "extraction": 48, "lookup": 12, "copying": 32, "generic": 40,
            "plain": 2,
        },
    )  # fmt: skip
    return tuple(
        Phase(n, phase_rows, rest=index in (3, 4), scale=0.5 if index == 5 else 1.0)
        for index, (n, phase_rows) in enumerate(zip(steps, rows, strict=True))
    )


_FACTORS: Final[Mapping[str, float]] = {"relative_attention_bias": 10.0, "shared": 3.0}

_TEACHER: Final = Curriculum(
    shape=Shape("causal", d_model=128, layers=4, heads=4, d_ff=384, d_kv=32, vocabulary=900, length=512),
    style=prompts.TEACHER_STYLE,
    phases=(Phase(2000, {"steps": 40, "facts": 96, "copying": 16}),),
    peak=3e-3,
    weights={"facts": 2.0},
)


def _base_student(shape: Shape, peak: float, *steps: int) -> Curriculum:
    """A base student that learns the skills in these steps. peak: largest learning rate"""
    return Curriculum(shape, prompts.PAPER_STYLE, _skills(*steps), peak=peak, factors=_FACTORS, preset=True)


CURRICULA: Final[Mapping[str, Curriculum]] = {
    "teacher": _TEACHER,
    # After 900 steps it solves about half of the problems, and samples of it differ in what they add to what.
    "teacher-unsure": replace(_TEACHER, phases=(replace(_TEACHER.phases[0], steps=900),)),
    "student": _base_student(_t5(128, 3, 4, 256), 2e-3, 100, 250, 250, 350, 450, 400),
    "student-small": _base_student(_t5(48, 2, 3, 64), 3e-3, 100, 400, 500, 600, 700, 700),
    "student-medium": _base_student(_t5(80, 3, 4, 160), 2.5e-3, 100, 350, 350, 450, 550, 500),
    "student-large": _base_student(_t5(160, 3, 5, 256), 1.5e-3, 100, 200, 200, 300, 350, 300),
    "student-causal": Curriculum(
        Shape("causal", d_model=120, layers=4, heads=4, d_ff=360, d_kv=30, vocabulary=1000, length=512),
        prompts.PAPER_STYLE,
        _skills(100, 250, 250, 350, 450, 400),
        peak=2e-3,
        factors={"embed_tokens": 3.0},
        preset=True,
    ),
    "student-raw": Curriculum(
        _t5(128, 3, 4, 256), prompts.PAPER_STYLE, (Phase(300, {"plain": 64}),), peak=2e-3, factors=_FACTORS, preset=True
    ),
}
