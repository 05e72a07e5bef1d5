"""The section of a recipe that says what is replayed in training, beside what is taught."""

from __future__ import annotations

from pydantic import Field, model_validator

from potstill.recipe.section import Name, Section, Share


class Replay(Section):
    """Generic rows mixed into every step, so that what the student could do before is not lost."""

    share: Share = Field(description="of the weight of each step")
    sets: list[Name] = Field(
        default=[], description="sets whose training questions are replayed, with their rationale or the bare answer"
    )
    file: str | None = Field(default=None, description="rows with prompt and answer (JSONL or Parquet)")

    @model_validator(mode="after")
    def _complete(self) -> Replay:
        if not self.sets and self.file is None:
            raise ValueError("replay needs sets, or a file of rows with prompt and answer")
        return self
