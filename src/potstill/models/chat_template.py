"""Chat templates: how the prompts of an instruction-tuned decoder-only model are written, for a student or a teacher.

    turns      user: Q: 2 + 2 A:
    rendered   <|user|>Q: 2 + 2 A:<|end|><|assistant|>

The template is the model's own, from its folder. transformers renders it and encodes the result, so the model reads
what it read when it was tuned. A template that writes today's date always gets the same day, because sampling, training
and evaluation happen on different days.

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
from potstill.storage import read_bytes, read_json

ChatSetting = Literal["auto"] | bool
TEMPLATE_FILE: Final = "chat_template.jinja"
TEMPLATE_MARK: Final = "{#- potstill:"  # a template that potstill wrote (`query_files`) begins with it
TOKENIZER_CONFIG: Final = "tokenizer_config.json"
# transformers passes a function of this name to the template. A macro inside the template takes precedence.
FIXED_DATE_MACRO: Final = "{%- macro strftime_now(format) -%}26 Jul 2024{%- endmacro -%}"


@dataclass(frozen=True, eq=False)
class ChatTemplate:
    """A template, and the tokenizer that encodes its special tokens. key: the recipe's key, for messages."""

    tokenizer: Any
    source: str
    special: re.Pattern[str] | None
    where: Path
    key: str = "student.chat"

    def render(self, prompt: Prompt) -> str:
        """The turns in the template, up to where the assistant's answer begins.

        Raises UserError if a turn contains a special token as text, and if the template refuses the turns.
        """
        for turn in prompt.turns:
            self.check_text(turn.text)
        try:
            return self.tokenizer.apply_chat_template(
                prompt.messages, chat_template=self.source, tokenize=False, add_generation_prompt=True
            )
        except Exception as error:  # transformers lets jinja2's errors through
            raise UserError(
                "the chat template refuses the turns of a prompt",
                code="E-model-chat-template-refused",
                where=self.where,
                found=error,
                hint=f"correct the template, or set {self.key}: false",
            ) from None

    def check_text(self, text: str) -> None:
        """Raises UserError if a text of a turn contains a special token."""
        if self.special and (match := self.special.search(text)):
            raise UserError(
                "a prompt contains a special token of the model, which would end or fake a turn",
                code="E-model-special-token-in-prompt",
                where=text[:60],
                found=match[0],
                hint=f"change the question, or set {self.key}: false, where it is plain text",
            )

    def encode(self, text: str) -> list[int]:
        """A rendered prompt as token ids: its special tokens are recognised, and none is added."""
        return self.tokenizer(text, add_special_tokens=False)["input_ids"]


def has_chat_template(folder: Path) -> bool:
    """Whether the folder of a model has a chat template of its own: not the prompt of a run, which potstill wrote."""
    if (folder / TEMPLATE_FILE).is_file():
        return not read_bytes(folder / TEMPLATE_FILE).startswith(TEMPLATE_MARK.encode())
    config = read_json(folder / TOKENIZER_CONFIG) if (folder / TOKENIZER_CONFIG).is_file() else None
    return isinstance(config, dict) and bool(config.get("chat_template"))


def open_chat_template(
    folder: Path, setting: ChatSetting, family: str, key: str = "student.chat"
) -> ChatTemplate | None:
    """The chat template of the model in a folder; None for plain prompts. setting: `auto` takes a template if there is
    one, True requires it, False ignores it.

    Raises UserError for True if there is no template or the model is a T5, which has no turns.
    """
    if setting is True and family != "causal":
        hint = "leave it out, or set it to false"
        raise UserError("a T5 has no chat template", code="E-model-chat-template-unsupported", where=key, hint=hint)
    if setting is True and not has_chat_template(folder):
        what, hint = "the folder has no chat template", f"add {TEMPLATE_FILE}, or set {key}: false (plain prompts)"
        raise UserError(what, code="E-model-chat-template-missing", where=folder, hint=hint)
    if setting is False or family != "causal" or not has_chat_template(folder):
        return None
    try:
        tokenizer = PreTrainedTokenizerFast.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # the library raises errors of many types for a faulty file
        raise UserError(
            "the tokenizer cannot be opened",
            code="E-model-tokenizer-unreadable",
            where=folder,
            found=f"{error}"[:300],
            hint=f"download the folder again, or set {key}: false",
        ) from error
    try:
        source = tokenizer.get_chat_template()
    except ValueError as error:
        what = "the model has several chat templates and no default one"
        raise UserError(what, code="E-model-chat-template-ambiguous", where=folder, found=error) from None
    if not isinstance(source, str):
        what, found = "the chat template is not a string", type(source).__name__
        raise UserError(what, code="E-model-chat-template-invalid", where=folder, found=found)
    added = tokenizer.added_tokens_decoder.values()
    names = sorted((token.content for token in added if token.special and token.content), key=len)
    # Longest first: an alternation takes the first name that matches.
    special = re.compile("|".join(map(re.escape, reversed(names)))) if names else None
    return ChatTemplate(tokenizer, FIXED_DATE_MACRO + source, special, folder, key)
