"""Chat templates: how an instruction-tuned decoder-only model is spoken to, a student or a teacher.

    turns      user: Q: 2 + 2 A:
    rendered   <|user|>Q: 2 + 2 A:<|end|><|assistant|>

The template is the model's own, from its folder. Rendering and ids both come from transformers, so that the model reads
what it read when it was tuned. What a template says of today is always the same day: sampling, training and evaluation
happen on different ones.

    >>> has_chat_template(Path("no/such/folder"))
    False
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

from transformers import PreTrainedTokenizerFast

from potstill.errors import UserError
from potstill.records import Prompt
from potstill.storage import read_json

ChatSetting = Literal["auto"] | bool
TEMPLATE_FILE: Final = "chat_template.jinja"
TOKENIZER_CONFIG: Final = "tokenizer_config.json"
# A macro of the template's own wins over the clock that transformers hands to it.
FIXED_DATE_MACRO: Final = "{%- macro strftime_now(format) -%}26 Jul 2024{%- endmacro -%}"


@dataclass(frozen=True, eq=False)
class ChatTemplate:
    """A template, and the tokenizer that knows its special tokens inside a text. key: of the recipe, for messages."""

    tokenizer: Any
    source: str
    special: re.Pattern[str] | None
    where: Path
    key: str = "student.chat"

    def render(self, prompt: Prompt) -> str:
        """The turns in the template, up to where the assistant speaks.

        Raises UserError for a special token written in a turn, and where the template refuses the turns.
        """
        for turn in prompt.turns:
            if self.special and (found := self.special.search(turn.text)):
                raise UserError(
                    "a prompt holds a special token of the model, which would end or fake a turn",
                    where=turn.text[:60],
                    found=found[0],
                    hint=f"change the question, or set {self.key}: false, where it is text",
                )
        try:
            return self.tokenizer.apply_chat_template(
                prompt.messages, chat_template=self.source, tokenize=False, add_generation_prompt=True
            )
        except Exception as error:  # jinja2's own, which transformers lets through
            raise UserError(
                "the chat template does not take the turns of a prompt",
                where=self.where,
                found=error,
                hint=f"correct the template, or set {self.key}: false",
            ) from None

    def encode(self, text: str) -> list[int]:
        """A rendered prompt as ids: special tokens are found in it, and none is added."""
        return self.tokenizer(text, add_special_tokens=False)["input_ids"]


def has_chat_template(folder: Path) -> bool:
    """Whether a folder has a chat template."""
    if (folder / TEMPLATE_FILE).is_file():
        return True
    read = read_json(folder / TOKENIZER_CONFIG) if (folder / TOKENIZER_CONFIG).is_file() else None
    return isinstance(read, dict) and bool(read.get("chat_template"))


def open_chat_template(folder: Path, asked: ChatSetting, family: str, key: str = "student.chat") -> ChatTemplate | None:
    """The chat of the model in a folder, as a key of the recipe asks: auto takes the template where there is one.

    Raises UserError where it is asked for and there is none, and of a T5, which has no turns.
    """
    if asked is True and family != "causal":
        raise UserError("a T5 has no chat template", where=key, hint="leave it out, or set it to false")
    if asked is False or family != "causal":
        return None
    if not has_chat_template(folder):
        if asked is True:
            raise UserError(
                "there is no chat template",
                where=folder,
                hint=f"put {TEMPLATE_FILE} there, or set {key}: false (plain prompts)",
            )
        return None
    try:
        tokenizer = PreTrainedTokenizerFast.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # the library raises of all kinds where a file is not what it expects
        hint = f"get the folder again, or set {key}: false"
        raise UserError("the tokenizer cannot be opened", where=folder, found=f"{error}"[:300], hint=hint) from error
    try:
        source = tokenizer.get_chat_template()
    except ValueError as error:
        raise UserError("no chat template is the default one", where=folder, found=error) from None
    if not isinstance(source, str):
        raise UserError("the chat template is not a text", where=folder, found=type(source).__name__)
    added = tokenizer.added_tokens_decoder.values()
    names = sorted((token.content for token in added if token.special and token.content), key=len)
    special = re.compile("|".join(map(re.escape, reversed(names)))) if names else None
    return ChatTemplate(tokenizer, FIXED_DATE_MACRO + source, special, folder, key)
