"""What every section of a recipe is, and the kinds of its values.

Sets of your own: where each lies and how it is read and graded.
"""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, model_validator

FormatName = Literal["zero-shot-answer", "zero-shot-rationale", "few-shot-answer", "few-shot-rationale"]
DECODING_PATTERN: Final = r"^(greedy|vote-[1-9][0-9]{0,3}|best-[1-9][0-9]{0,3})(\+calculator)?$"
NAME_PATTERN: Final = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$"
DecodingName = Annotated[str, Field(pattern=DECODING_PATTERN)]
Positive = Annotated[int, Field(ge=1)]
Count = Annotated[int, Field(ge=0)]
Name = Annotated[str, Field(pattern=NAME_PATTERN)]
Share = Annotated[float, Field(gt=0, lt=1)]
Probability = Annotated[float, Field(ge=0, le=1)]
Decay = Annotated[float, Field(ge=0, lt=1)]
Character = Annotated[str, Field(min_length=1, max_length=1)]


class Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class Column(Section):
    """A field of a set whose column does not hold the answer alone."""

    column: str = Field(description="what the file calls it")
    after: str | None = Field(
        default=None,
        min_length=1,
        description=r"what the answer stands behind, such as '####'; '\boxed': in its braces",
    )
    values: dict[str, str] = Field(
        default={}, description="whole answers -> how a text gives them, such as {true: yes, false: no}"
    )


def _yaml_kind(value: Any) -> str:
    return "[text]" if isinstance(value, str) else "[list]" if isinstance(value, list) else "[keys]"


# Tagged, so that a fault inside of a column or a list is not reported as "not a string".
ColumnOrName = Annotated[Annotated[str, Tag("[text]")] | Annotated[Column, Tag("[keys]")], Discriminator(_yaml_kind)]
Paths = Annotated[
    Annotated[str, Tag("[text]")] | Annotated[list[str], Field(min_length=1), Tag("[list]")], Discriminator(_yaml_kind)
]


class CustomSet(Section):
    """A set of your own, one question a record: JSON lines or an array, CSV, TSV, Parquet, Arrow, or a folder that
    `datasets` saved; here, at a URL, or on the Hugging Face hub."""

    file: Paths | None = Field(
        default=None,
        description="a path here, or several; with hub the paths in its repository; here * stands for names",
    )
    url: str | None = Field(default=None, pattern=r"^https?://", description="where the file lies, with its sha256")
    sha256: str | None = Field(default=None, pattern=r"^[0-9a-f]{64}$", description="digest of what is fetched")
    hub: str | None = Field(
        default=None,
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}/[A-Za-z0-9][A-Za-z0-9._-]{0,99}$",
        description="owner/name of a dataset on the Hugging Face hub, with file and revision",
    )
    revision: str | None = Field(default=None, pattern=r"^[0-9a-f]{40}$", description="commit of hub, in full")
    task: str | None = Field(
        default=None,
        description="how answers are graded: number, choice, boolean, text, regex, json, ..., function: module:name",
    )
    fields: dict[str, ColumnOrName] = Field(
        {},
        description="our name -> the file's name, for question, answer, id, rationale, choices, ...; for answer also "
        "{column, after, values}",
    )

    @model_validator(mode="before")
    @classmethod
    def _mapping(cls, value: Any) -> Any:
        if isinstance(value, str | list):
            named = value if isinstance(value, str) else f"[{', '.join(map(str, value))}]"
            raise ValueError(f"a set is a mapping of keys; write {{file: {named}}}")
        return value

    @property
    def paths(self) -> list[str]:
        """The files of the set, in the order given."""
        return [] if self.file is None else [self.file] if isinstance(self.file, str) else self.file

    @model_validator(mode="after")
    def _one_place(self) -> CustomSet:
        if self.url is not None:
            if self.file is not None or self.hub is not None or self.revision is not None:
                raise ValueError("url stands alone, without file, hub and revision")
            if self.sha256 is None:
                raise ValueError("url needs the sha256 of its file (sha256sum FILE)")
        elif self.file is None:
            raise ValueError("a set is a file, a url with sha256, or a file of hub at a revision")
        elif self.hub is not None:
            if self.revision is None:
                raise ValueError("hub needs a revision: a commit, since branches change")
            for path in self.paths:
                if "\\" in path or any(part in ("", ".", "..") for part in path.split("/")) or "*" in path:
                    raise ValueError("with hub, file is a path in its repository such as data/test.jsonl")
            if self.sha256 is not None and len(self.paths) > 1:
                raise ValueError("sha256 is the digest of one file, and hub names several")
        elif self.sha256 is not None or self.revision is not None:
            raise ValueError("sha256 and revision are for url and hub; a file here is digested by the run")
        for ours, named in self.fields.items():
            if isinstance(named, Column) and ours != "answer" and (named.after or named.values):
                raise ValueError(f"fields.{ours}: after and values are for answer")
        return self
