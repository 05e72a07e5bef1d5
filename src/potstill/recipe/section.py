"""What every section of a recipe is, and the kinds of its values."""

from __future__ import annotations

from typing import Annotated, Final, Literal

from pydantic import BaseModel, ConfigDict, Field

FormatName = Literal["zero-shot-answer", "zero-shot-rationale", "few-shot-answer", "few-shot-rationale"]
DECODING: Final = r"^(greedy|vote-[1-9][0-9]{0,3}|best-[1-9][0-9]{0,3})(\+calculator)?$"
NAME: Final = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$"
DecodingName = Annotated[str, Field(pattern=DECODING)]
Positive = Annotated[int, Field(ge=1)]
Count = Annotated[int, Field(ge=0)]
Name = Annotated[str, Field(pattern=NAME)]
Share = Annotated[float, Field(gt=0, lt=1)]
Probability = Annotated[float, Field(ge=0, le=1)]
Decay = Annotated[float, Field(ge=0, lt=1)]
Character = Annotated[str, Field(min_length=1, max_length=1)]


class Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)
