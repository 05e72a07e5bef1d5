"""The section of a recipe that says how vLLM holds a model, a teacher's or a student's."""

from __future__ import annotations

from typing import Any, ClassVar, Final, Literal

from pydantic import Field

from potstill.recipe.section import Positive, Section

TOKENS: Final = 1_048_576  # of a batch: vLLM keeps house with the device's memory itself, and wants many texts at once


class Vllm(Section):
    """`dtype` decides what is written; the other keys may change while a run goes on."""

    FREE: ClassVar = ("length", "memory", "gpus", "eager")

    dtype: Literal["float32", "bfloat16", "float16"] | None = Field(
        default=None, description="if not given: a teacher as its weights are stored, a student in float32"
    )
    length: Positive | None = Field(
        default=None, description="most tokens of prompt and answer; the model's own if not"
    )
    memory: float = Field(default=0.9, gt=0, le=1, description="share of each device's memory that it takes")
    gpus: Positive = Field(default=1, description="devices over which the model is spread")
    eager: bool = Field(default=False, description="compile nothing: starts sooner, writes slower")


def roomy(section: Any, key: str) -> Any:
    """A section as it was written, with the batches that vLLM wants if its `key` names vLLM and it names no others."""
    if isinstance(section, dict) and section.get(key) == "vllm":
        return {"batch_tokens": TOKENS, **section}
    return section
