"""The section `student` of a recipe: a model by name, or the size of a model with random weights.

>>> StudentSection.model_validate("google/flan-t5-base").model
'google/flan-t5-base'
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, model_validator

from potstill.recipe.fields import Positive, Section, refuse


class ShapeSection(Section):
    """The size of a model with random weights."""

    family: Literal["t5", "causal"] = Field(description="Encoder-decoder (t5) or decoder-only (causal).")
    d_model: Positive = Field(description="Width of the hidden states.")
    layers: Positive = Field(description="Number of decoder layers, and for t5 of encoder layers.")
    heads: Positive = Field(description="Number of attention heads.")
    d_ff: Positive = Field(description="Width of the feed-forward layers.")
    d_kv: Positive | None = Field(default=None, description="Width of an attention head; d_model / heads by default.")


def _shape_tag(shape: Any) -> str:
    return "name" if isinstance(shape, str) else "numbers"


# A tagged union: without tags, an error in the numbers of a shape would be reported as "not a string".
ShapeOrName = Annotated[
    Annotated[str, Tag("name")] | Annotated[ShapeSection, Tag("numbers")], Discriminator(_shape_tag)
]


class StudentSection(Section):
    model: str | None = Field(
        default=None,
        description="Model folder in Hugging Face format, name on the Hugging Face hub, GGUF file, package:NAME, or "
        "URL in an object store (s3://BUCKET/PATH).",
    )
    revision: str | None = Field(default=None, description="Branch, tag or commit of a model on the hub.")
    shape: ShapeOrName | None = Field(
        default=None, description="Size of a model with random weights: numbers, or a name such as flan-t5-base."
    )
    tokenizer: str | None = Field(default=None, description="Tokenizer folder; the model's own if not given.")
    dropout: float = Field(default=0.0, ge=0, lt=1, description="Dropout probability in training.")
    chat: Literal["auto"] | bool = Field(
        default="auto",
        description="Whether prompts use the model's chat template; auto: if a decoder-only model has one.",
    )
    chat_template_kwargs: dict[str, Any] | None = Field(
        default=None, description="Arguments of the chat template, such as {enable_thinking: false}."
    )
    system_prompt: str | None = Field(
        default=None,
        description="System message of every prompt; an empty text replaces the template's default message.",
    )
    trust_remote_code: bool = Field(
        default=False, description="Whether to run Python code that comes with the model folder."
    )

    @model_validator(mode="after")
    def _complete(self) -> StudentSection:
        if self.model is None and (self.shape is None or self.tokenizer is None):
            refuse("E-recipe-student-incomplete", "a student needs a model, or a shape with a tokenizer")
        if self.chat is True and self.model is None:
            refuse("E-recipe-student-chat", "chat: true needs a model: only a model folder has a chat template")
        if (self.chat_template_kwargs is not None or self.system_prompt is not None) and (
            self.model is None or self.chat is False
        ):
            refuse(
                "E-recipe-chat-settings", "chat_template_kwargs and system_prompt need a model and its chat template"
            )
        return self

    @model_validator(mode="before")
    @classmethod
    def _folder(cls, value: Any) -> Any:
        """Expand `student: FOLDER`, the short form of `student: {model: FOLDER}`."""
        return {"model": value} if isinstance(value, str) else value
