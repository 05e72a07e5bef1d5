"""The section of a recipe that says how the chosen student is repaired."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from potstill.recipe.section import Name, Positive, Section, Share


class Repair(Section):
    """After the choice: the chosen student answers questions of generic sets itself, and is taught by what the base (or
    another model) says of each token of these answers. What comes of it is tested beside the choice.
    """

    sets: list[Name] = Field(min_length=1, description="sets whose training questions it answers")
    scorer: str | None = Field(
        default=None,
        description="a folder: the model that scores, of the student's tokens or others; the base if not given",
    )
    divergence: Literal["reverse", "forward"] = Field(
        default="reverse",
        description="reverse: of the scorer from the student; forward: of the student from the scorer",
    )
    candidates: Positive = Field(default=20, description="of the scorer's likeliest tokens at each position")
    keep: Share | None = Field(
        default=None,
        description="share of all questions that are training ones of the task, scored by the chosen student as it was",
    )
    steps: Positive = 100
    groups: Positive = Field(default=32, description="questions a step")
    samples: Positive = Field(default=1, description="answers a question")
    temperature: float = Field(default=1.0, gt=0, description="of the answers")
    max_tokens: Positive = Field(default=256, description="most tokens of an answer")
    learning_rate: float = Field(default=1e-4, gt=0)
    warm_up: Positive = 10
    checkpoint_every: Positive = Field(default=50, description="from which an interrupted repair goes on")
