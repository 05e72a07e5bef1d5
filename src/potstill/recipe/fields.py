"""The base class of recipe sections, the value types that sections share, and the sections `sets` and `questions`.

>>> CustomSet(file="mine.jsonl", task="number").paths
['mine.jsonl']
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator
from typing import Annotated, Any, Final, Literal, NoReturn

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, model_validator
from pydantic_core import PydanticCustomError

FormatName = Literal["zero-shot-answer", "zero-shot-rationale", "few-shot-answer", "few-shot-rationale"]
DECODING_PATTERN: Final = r"^(greedy|vote-[1-9][0-9]{0,3}|best-[1-9][0-9]{0,3})(\+calculator)?$"
NAME_PATTERN: Final = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$"
# Latin letters that are no letter with an accent for Unicode.
LETTERS: Final = {"ß": "ss", "ẞ": "SS", "æ": "ae", "Æ": "AE", "œ": "oe", "Œ": "OE", "ø": "o", "Ø": "O", "ł": "l", "Ł": "L",
                  "đ": "d", "Đ": "D", "ð": "d", "Ð": "D", "þ": "th", "Þ": "Th", "ı": "i"}  # fmt: skip
DecodingName = Annotated[str, Field(pattern=DECODING_PATTERN)]
Positive = Annotated[int, Field(ge=1)]
Count = Annotated[int, Field(ge=0)]
Name = Annotated[str, Field(pattern=NAME_PATTERN)]
Share = Annotated[float, Field(gt=0, lt=1)]
Probability = Annotated[float, Field(ge=0, le=1)]
Decay = Annotated[float, Field(ge=0, lt=1)]
Character = Annotated[str, Field(min_length=1, max_length=1)]


def write_name(text: str, fallback: str) -> str:
    """A name of letters, digits, dots, underscores and hyphens that is as like a text as possible.

    fallback  the name of a text without any of these letters and digits

    >>> [write_name(text, "mine") for text in ("Täglich", "Größe (neu)", "Łódź", "отчёт 2024", "質問", "..")]
    ['Taglich', 'Grosse-neu', 'Lodz', '2024', 'mine', 'mine']
    """
    plain = "".join(LETTERS.get(letter, letter) for letter in unicodedata.normalize("NFC", text))
    decomposed = unicodedata.normalize("NFKD", plain)
    plain = "".join(letter for letter in decomposed if not unicodedata.combining(letter))
    return re.sub(r"[^A-Za-z0-9._-]+", "-", plain).strip("-._")[:100] or fallback


def refuse(code: str, message: str, *, hint: str = "", key: str = "") -> NoReturn:
    """Refuse a value in a validator. `load` converts the code and the message to a `UserError` with file and line.

    hint  what to write instead
    key   the wrong key, in a validator of a whole section
    """
    raise PydanticCustomError(code, message, {"hint": hint, "key": key})  # type: ignore[arg-type]


class Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    def __repr_args__(self) -> Iterator[tuple[str, Any]]:
        """The fields of `repr`: those that do not have their default."""
        for name, info in type(self).model_fields.items():
            if (value := getattr(self, name)) != info.get_default(call_default_factory=True, validated_data={}):
                yield name, value


class Column(Section):
    """A column that contains more than the answer, or writes answers in another way than the task."""

    column: str = Field(description="Name of the column in the file.")
    after: str | None = Field(
        default=None,
        min_length=1,
        description=r"Text that precedes the answer in the column, such as '####'; '\boxed' takes the text in braces.",
    )
    values: dict[str, str] = Field(
        default={}, description="Replacements for whole answers, such as {true: yes, false: no}."
    )


class ReferenceRow(Section):
    """A figure from the literature, which tables show beside the run's own."""

    name: str = Field(min_length=1, description="Name of the model or method, as tables show it.")
    source: str = Field(min_length=1, description="Where the figure is from, such as `arXiv:2301.12726, table 1`.")
    set: Name = Field(description="Evaluated set that the figure is about.")
    value: float = Field(ge=0, le=100, description="Accuracy in percent.", json_schema_extra={"unit": "percent"})
    n: Positive | None = Field(default=None, description="Number of questions, if the source states it.")


def _yaml_kind(value: Any) -> str:
    return "[text]" if isinstance(value, str) else "[list]" if isinstance(value, list) else "[keys]"


# Tagged unions: without tags, an error inside a column or a list would be reported as "not a string".
ColumnOrName = Annotated[Annotated[str, Tag("[text]")] | Annotated[Column, Tag("[keys]")], Discriminator(_yaml_kind)]
Paths = Annotated[
    Annotated[str, Tag("[text]")] | Annotated[list[str], Field(min_length=1), Tag("[list]")], Discriminator(_yaml_kind)
]


# `log`, or the steps themselves.
CheckpointSteps = Annotated[
    Annotated[Literal["log"], Tag("[text]")] | Annotated[list[Positive], Field(min_length=1), Tag("[list]")],
    Discriminator(lambda value: "[list]" if isinstance(value, list) else "[text]"),
]


class CustomSet(Section):
    """A custom set with one question per record: JSON lines, a JSON array, CSV, TSV, Parquet, Arrow, or a folder saved by
    `datasets`. It is a local file, a file at a URL, or a file of a dataset on the Hugging Face hub."""

    file: Paths | None = Field(
        default=None,
        description="Path of the file, or URL in an object store (s3://BUCKET/PATH), or a list of them; * matches any "
        "characters of a file name. With `hub`, paths in its repository.",
    )
    url: str | None = Field(default=None, pattern=r"^https?://", description="Address of the file; needs `sha256`.")
    sha256: str | None = Field(
        default=None, pattern=r"^[0-9a-f]{64}$", description="SHA-256 digest of the downloaded file, 64 hex digits."
    )
    hub: str | None = Field(
        default=None,
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}/[A-Za-z0-9][A-Za-z0-9._-]{0,99}$",
        description="Dataset on the Hugging Face hub as owner/name; needs `file` and `revision`.",
    )
    revision: str | None = Field(
        default=None, pattern=r"^[0-9a-f]{40}$", description="Commit of the hub dataset, all 40 hex digits."
    )
    task: str | None = Field(
        default=None,
        description="How answers are graded: number, choice, boolean, text, regex, json, ..., or `function: "
        "module:name` for your own function. If not given, the form of each answer decides.",
    )
    labels: list[str] | None = Field(
        default=None,
        description="The labels, if the set is a classification: every answer is one of them. Prompts list them, and page "
        "and scores have a table of the labels.",
    )
    split: Literal["train", "validation", "test"] | None = Field(
        default=None,
        description="Split of all records without a split; by default, these records are divided. A set with only test "
        "questions needs a recipe with `teacher: {kind: none}`, which selects no checkpoint.",
    )
    fields: dict[str, ColumnOrName] = Field(
        {},
        description="Names of the file's columns for question, answer, id, rationale, task, split and choices; for "
        "answer also {column, after, values}.",
    )

    @model_validator(mode="before")
    @classmethod
    def _mapping(cls, value: Any) -> Any:
        if isinstance(value, str | list):
            path = value if isinstance(value, str) else f"[{', '.join(map(str, value))}]"
            refuse("E-recipe-set-not-a-mapping", "a set must be a mapping of keys", hint=f"write {{file: {path}}}")
        return value

    @property
    def paths(self) -> list[str]:
        """The files of the set, in the order of the recipe."""
        return [] if self.file is None else [self.file] if isinstance(self.file, str) else self.file

    @model_validator(mode="after")
    def _one_source(self) -> CustomSet:
        if self.url is not None:
            if (self.file, self.hub, self.revision) != (None, None, None):
                refuse("E-recipe-set-source", "url cannot be combined with file, hub or revision")
            if self.sha256 is None:
                refuse("E-recipe-set-digest", "url needs the sha256 of its file (sha256sum FILE)")
        elif self.file is None:
            refuse("E-recipe-set-source", "a set needs file, or url with sha256, or hub with file and revision")
        elif self.hub is not None:
            if self.revision is None:
                refuse("E-recipe-set-revision", "hub needs a revision: a commit, because branches change")
            for path in self.paths:
                if "\\" in path or any(part in ("", ".", "..") for part in path.split("/")) or "*" in path:
                    message = "with hub, file must be a path in its repository such as data/test.jsonl"
                    refuse("E-recipe-set-hub-path", message)
            if self.sha256 is not None and len(self.paths) > 1:
                refuse("E-recipe-set-digest", "sha256 is the digest of one file, but file names several files")
        elif self.sha256 is not None or self.revision is not None:
            message = "sha256 and revision are for url and hub; the run computes the digest of a local file itself"
            refuse("E-recipe-set-digest", message)
        if self.labels is not None:
            self._check_labels(self.labels)
        for field, column in self.fields.items():
            if isinstance(column, Column) and field != "answer" and (column.after or column.values):
                refuse("E-recipe-set-fields", f"fields.{field}: only answer can have after and values")
        return self

    def _check_labels(self, labels: list[str]) -> None:
        if len({" ".join(label.split()).casefold() for label in labels} - {""}) != len(labels) or len(labels) < 2:
            refuse("E-recipe-labels", "labels needs at least two names, which differ in more than upper and lower case")
        if any("\n" in label or len(label) > 200 for label in labels):
            refuse("E-recipe-labels", "a label is one line of at most 200 characters")
        if self.task is not None or "choices" in self.fields:
            refuse("E-recipe-labels-task", "a set with labels is graded by its labels: remove task and fields.choices")


# A number for every set, or a mapping from sets to numbers; other sets then have no limit.
Limit = Annotated[
    Annotated[Positive, Tag("[number]")] | Annotated[dict[Name, Positive], Field(min_length=1), Tag("[keys]")],
    Discriminator(lambda value: "[keys]" if isinstance(value, dict) else "[number]"),
]


class LimitsSection(Section):
    train: Limit | None = Field(
        default=None, description="Maximum number of training questions per set; {gsm8k: 900} limits only that set."
    )
    validation: Limit | None = Field(
        default=None, description="Maximum number of validation questions per set; {bbh: 54} limits only that set."
    )
    test: Limit | None = Field(
        default=None, description="Maximum number of test questions per set; {bbh: 54} limits only that set."
    )

    def of_set(self, split: str, name: str) -> int | None:
        """The limit of a set in a split; None without a limit."""
        limit = getattr(self, split)
        return limit.get(name) if isinstance(limit, dict) else limit


class QuestionsSection(Section):
    """The sets for training and the sets for evaluation."""

    train: list[Name] = Field(default=["gsm8k"], description="Sets whose training questions are learnt.")
    in_distribution: list[Name] = Field(
        default=["gsm8k"], description="Evaluation sets of the task that the student learns."
    )
    out_of_distribution: list[Name] = Field(
        default=["multiarith", "asdiv", "svamp"],
        description="Evaluation sets that are not trained on. By default, the checkpoint is selected on them; [] needs "
        "`select: {rule: in-distribution}`.",
    )
    generic: list[Name] = Field(default=["bbh"], description="Evaluation sets of other abilities.")
    splits: Literal["digest", "paper"] = Field(
        default="digest",
        description="How sets are split: by the digests of their questions, or as in the paper, with 500 validation "
        "questions per set and the rest for test.",
    )
    validation: Share = Field(
        default=0.25, description="Fraction of a set's questions in its validation split, for splits: digest."
    )
    test: Share = Field(
        default=0.25,
        description="Fraction of a set's questions in its test split, for sets that are divided into three splits; of other "
        "sets, all questions outside validation are test questions.",
    )
    limit: LimitsSection = Field(
        default=LimitsSection(),
        description="Maximum questions per set and split; the questions with the lowest digests are kept.",
    )
    templates: Literal["keep", "drop"] = Field(
        default="keep",
        description="Whether to keep or drop training questions that differ from a validation or test question only "
        "in numbers and names; the dry run and the report count them.",
    )


def with_in_distribution_groups(recipe: Any) -> Any:
    """The keys of a recipe, with the groups of `questions` that it does not name if `select.rule` is in-distribution: what
    is trained on is evaluated, and nothing else is.

    >>> with_in_distribution_groups({"questions": {"train": ["a"]}, "select": {"rule": "in-distribution"}})["questions"]
    {'in_distribution': ['a'], 'out_of_distribution': [], 'generic': [], 'train': ['a']}
    """
    if not isinstance(recipe, dict):
        return recipe
    select, questions = recipe.get("select"), recipe.get("questions", {})
    if not isinstance(select, dict) or select.get("rule") != "in-distribution" or not isinstance(questions, dict):
        return recipe
    groups = {"in_distribution": questions.get("train", ["gsm8k"]), "out_of_distribution": [], "generic": []}
    return {**recipe, "questions": {**groups, **questions}}


class TextsSection(Section):
    """Texts on which the base and the chosen checkpoint are scored in bits per byte."""

    file: str = Field(
        description="Path of the file; * matches any characters of a file name. .txt and .md: one text per paragraph; "
        "other files: one text per record."
    )
    field: str = Field(default="text", description="Name of the column with the text.")
    limit: Positive | None = Field(default=None, description="Maximum number of texts; the first texts are kept.")

    @model_validator(mode="before")
    @classmethod
    def _file(cls, value: Any) -> Any:
        """Expand `prose: FILE`, the short form of `prose: {file: FILE}`."""
        return {"file": value} if isinstance(value, str) else value
