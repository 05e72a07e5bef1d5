"""Sets of your own: where each lies and how it is read and graded."""

from __future__ import annotations

from pydantic import Field, model_validator

from potstill.recipe.section import Section


class OwnSet(Section):
    """A set of your own: a JSONL or Parquet file, one question a line; here, at a URL, or on the Hugging Face hub."""

    file: str | None = Field(default=None, description="a path here; with hub the path in its repository")
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
    fields: dict[str, str] = Field(
        {}, description="our name -> the file's name, for question, answer, id, rationale, ..."
    )

    @model_validator(mode="after")
    def _one_place(self) -> OwnSet:
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
            if "\\" in self.file or any(part in ("", ".", "..") for part in self.file.split("/")):
                raise ValueError("with hub, file is a path in its repository such as data/test.jsonl")
        elif self.sha256 is not None or self.revision is not None:
            raise ValueError("sha256 and revision are for url and hub; a file here is digested by the run")
        return self
