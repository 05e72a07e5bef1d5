"""Chat templates: the prompts of an instruction-tuned decoder-only model, for a student or a teacher.

    turns      user: Q: 2 + 2 A:
    rendered   <|user|>Q: 2 + 2 A:<|end|><|assistant|>

The template comes from the model's folder. transformers renders it and encodes the result, so prompts have the form that
the model was tuned on. A template that writes today's date always gets the same date, because sampling, training and
evaluation happen on different days.

    >>> has_chat_template(Path("no/such/folder"))
    False
    >>> sorted(find_template_arguments("{% if enable_thinking %}<think>{% endif %}{{ messages[0].content }}"))
    ['enable_thinking', 'messages']
"""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Final, Literal, Protocol

from jinja2 import Environment, TemplateError, meta
from transformers import PreTrainedTokenizerFast

from potstill.errors import UserError
from potstill.records import Prompt, Turn
from potstill.storage import read_bytes, read_json
from potstill.thoughts import ends_in_thought

ChatSetting = Literal["auto"] | bool
TEMPLATE_FILE: Final = "chat_template.jinja"
TEMPLATE_MARK: Final = "{#- potstill:"  # a template that potstill wrote (`query_files`) begins with it
TOKENIZER_CONFIG: Final = "tokenizer_config.json"
# transformers passes a function with this name to the template; a macro in the template takes precedence.
FIXED_DATE_MACRO: Final = "{%- macro strftime_now(format) -%}26 Jul 2024{%- endmacro -%}"
THINKING_SWITCHES: Final = ("enable_thinking", "thinking")  # arguments with which templates turn thoughts off
# Names of the variables that transformers passes to a template, and of the parameters of its function.
RESERVED_ARGUMENTS: Final = frozenset(
    ("messages", *inspect.signature(PreTrainedTokenizerFast.apply_chat_template).parameters)
)
GENERATION_TAG: Final = re.compile(r"\{%-?\s*(?:end)?generation\s*-?%\}")  # a tag that only transformers knows
PROBE: Final = "potstill0probe"


class _Section(Protocol):
    """The section `student` or `teacher` of a recipe."""

    @property
    def chat(self) -> ChatSetting: ...
    @property
    def chat_template_kwargs(self) -> dict[str, Any] | None: ...
    @property
    def system_prompt(self) -> str | None: ...


@dataclass(frozen=True)
class ChatSettings:
    """The settings of a recipe section for the rendering of prompts.

    template       `auto`: use the model's chat template if there is one; True: require it; False: ignore it
    kwargs         arguments of the template, such as {"enable_thinking": False}
    system_prompt  the system message; "": no system message; None: the template decides
    section        name of the recipe's section, for messages
    """

    template: ChatSetting = False
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    system_prompt: str | None = None
    section: str = "student"

    @classmethod
    def from_section(cls, section: _Section, name: str) -> ChatSettings:
        return cls(section.chat, section.chat_template_kwargs or {}, section.system_prompt, name)

    @property
    def identity(self) -> dict[str, str]:
        """Recipe key -> value, for the settings that are given and do not follow from the model's folder."""
        rows: dict[str, str] = {}
        if self.kwargs:
            rows[f"{self.section}.chat_template_kwargs"] = json.dumps(self.kwargs, sort_keys=True)
        if self.system_prompt is not None:
            rows[f"{self.section}.system_prompt"] = self.system_prompt
        return rows


@dataclass(frozen=True, eq=False)
class ChatTemplate:
    """A chat template, and the tokenizer that encodes its special tokens.

    source       text of the template
    special      matches any special token of the model
    where        folder of the model, for messages
    system       system message of every prompt: one turn, or empty
    end_of_turn  token that ends an answer in this template; None if no single token does
    """

    tokenizer: Any
    source: str
    special: re.Pattern[str] | None
    where: Path
    settings: ChatSettings
    system: tuple[Turn, ...] = ()
    end_of_turn: int | None = None

    def render(self, prompt: Prompt) -> str:
        """The text of the turns in the template, up to the beginning of the assistant's answer.

        Raises UserError if a turn contains a special token as text, or if the template refuses the turns.
        """
        turns = (*self.system, *prompt.turns)
        for turn in turns:
            self.check_text(turn.text)
        try:
            return self._apply(turns)
        except Exception as error:  # transformers does not catch jinja2's errors
            without = f"remove {self.settings.section}.system_prompt, " if self.system else ""
            raise UserError(
                "the chat template refuses the turns of a prompt",
                code="E-model-chat-template-refused",
                where=self.where,
                found=error,
                hint=f"{without}correct the template, or set {self.settings.section}.chat: false",
            ) from None

    def check_text(self, text: str) -> None:
        """Raise UserError if the text of a turn contains a special token."""
        if self.special and (match := self.special.search(text)):
            raise UserError(
                "a prompt contains a special token of the model, which would end or fake a turn",
                code="E-model-special-token-in-prompt",
                where=text[:60],
                found=match[0],
                hint=f"change the question, or set {self.settings.section}.chat: false, which makes prompts plain text",
            )

    def encode(self, text: str) -> list[int]:
        """A rendered prompt as token ids. Special tokens in the text are recognised; no special token is added."""
        return self.tokenizer(text, add_special_tokens=False)["input_ids"]

    @cached_property
    def opens_thought(self) -> bool:
        """Whether a prompt ends inside a thought, which the model must close before it answers."""
        return ends_in_thought(self.render(Prompt((Turn("user", PROBE),))))

    @property
    def thinking_switch(self) -> str | None:
        """The argument with which this template turns thoughts off; None without one, or if the recipe sets it."""
        arguments = find_template_arguments(self.source)
        return next((name for name in THINKING_SWITCHES if name in arguments - self.settings.kwargs.keys()), None)

    def _apply(self, turns: Sequence[Turn], *, answer: bool = True) -> str:
        return self.tokenizer.apply_chat_template(
            Prompt(tuple(turns)).messages,
            chat_template=self.source,
            tokenize=False,
            add_generation_prompt=answer,
            **self.settings.kwargs,
        )


def has_chat_template(folder: Path) -> bool:
    """Whether a model's folder has a chat template. The prompt of a run, which potstill wrote there, does not count."""
    if (folder / TEMPLATE_FILE).is_file():
        return not read_bytes(folder / TEMPLATE_FILE).startswith(TEMPLATE_MARK.encode())
    config = read_json(folder / TOKENIZER_CONFIG) if (folder / TOKENIZER_CONFIG).is_file() else None
    return isinstance(config, dict) and bool(config.get("chat_template"))


def find_template_arguments(source: str) -> frozenset[str]:
    """The names of the arguments that a template reads. Raises jinja2's TemplateError for a text that is no template."""
    environment = Environment(extensions=["jinja2.ext.loopcontrols"])
    return frozenset(meta.find_undeclared_variables(environment.parse(GENERATION_TAG.sub("", source))))


def open_chat_template(folder: Path, settings: ChatSettings, family: str) -> ChatTemplate | None:
    """The chat template of the model in a folder; None for plain prompts.

    Raises UserError for `template=True` if there is no template, or if the model is a T5, which has no turns. Also raises
    UserError for arguments or a system message without effect.
    """
    key = f"{settings.section}.chat"
    if settings.template is True and family != "causal":
        hint = "remove the key, or set it to false"
        raise UserError("a T5 has no chat template", code="E-model-chat-template-unsupported", where=key, hint=hint)
    if settings.template is True and not has_chat_template(folder):
        what, hint = "the folder has no chat template", f"add {TEMPLATE_FILE}, or set {key}: false (plain prompts)"
        raise UserError(what, code="E-model-chat-template-missing", where=folder, hint=hint)
    if settings.template is False or family != "causal" or not has_chat_template(folder):
        if unused := list(settings.identity):
            raise UserError(
                "prompts are plain text, because no chat template is used",
                code="E-model-chat-settings-unused",
                where=unused[0],
                found=folder,
                hint=f"remove {' and '.join(unused)}, or use an instruction-tuned model with {key}: true",
            )
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
        what = "the model has several chat templates, but no default template"
        raise UserError(what, code="E-model-chat-template-ambiguous", where=folder, found=error) from None
    if not isinstance(source, str):
        what, found = "the chat template is not a string", type(source).__name__
        raise UserError(what, code="E-model-chat-template-invalid", where=folder, found=found)
    _check_arguments(source, settings, folder)
    added = tokenizer.added_tokens_decoder
    special = _any_of([token.content for token in added.values() if token.special])
    chat = ChatTemplate(tokenizer, FIXED_DATE_MACRO + source, special, folder, settings)
    system = _system_turns(chat)
    end_of_turn = _find_end_of_turn(chat, {token.content: number for number, token in added.items()})
    return ChatTemplate(tokenizer, chat.source, special, folder, settings, system, end_of_turn)


def _any_of(names: Sequence[str]) -> re.Pattern[str] | None:
    """A regular expression that matches the longest of the names; empty names are ignored."""
    longest_first = sorted(filter(None, names), key=len, reverse=True)
    return re.compile("|".join(map(re.escape, longest_first))) if longest_first else None


def _check_arguments(source: str, settings: ChatSettings, folder: Path) -> None:
    """Raise UserError for arguments that potstill passes itself, or that the template never reads."""
    if not settings.kwargs:
        return
    where = f"{settings.section}.chat_template_kwargs"
    if reserved := sorted(RESERVED_ARGUMENTS & settings.kwargs.keys()):
        raise UserError(
            "potstill passes this argument to the template itself",
            code="E-model-template-argument-reserved",
            where=where,
            found=reserved[0],
            hint="remove the argument",
        )
    try:
        read = find_template_arguments(source)
    except TemplateError as error:
        what, hint = "the chat template cannot be parsed", "correct the template"
        raise UserError(what, code="E-model-chat-template-invalid", where=folder, found=error, hint=hint) from None
    if unknown := sorted(settings.kwargs.keys() - read):
        others = sorted(read - RESERVED_ARGUMENTS - {"bos_token", "eos_token", "raise_exception", "strftime_now"})
        raise UserError(
            "the chat template never reads this argument",
            code="E-model-template-argument-unknown",
            where=where,
            found=unknown[0],
            hint=f"it reads {', '.join(others)}" if others else "remove the argument: this template has no arguments",
        )


def _system_turns(chat: ChatTemplate) -> tuple[Turn, ...]:
    """The system message of every prompt, as turns.

    An empty message replaces the default message of the template; without a default message, there is no turn.
    """
    text = chat.settings.system_prompt
    if text is None:
        return ()
    user, where = Turn("user", PROBE), f"{chat.settings.section}.system_prompt"
    probe = f"{PROBE}0system"
    try:
        with_system, without = chat._apply([Turn("system", text.strip() or probe), user]), chat._apply([user])
    except Exception as error:
        if not text.strip():
            return ()
        raise UserError(
            "the chat template refuses a system message",
            code="E-model-system-prompt-refused",
            where=where,
            found=error,
            hint=f"remove {where}, because this model was tuned without system messages",
        ) from None
    if text.strip():
        if text.strip() not in with_system:
            raise UserError(
                "the chat template ignores the system message",
                code="E-model-system-prompt-ignored",
                where=where,
                found=chat.where,
                hint=f"remove {where}, or use a template that writes system messages",
            )
        return (Turn("system", text),)
    # The default message is at the position of the probe, between the common beginning and end of the two texts.
    before, _, after = with_system.partition(probe)
    writes_its_own = without.startswith(before) and without.endswith(after) and without != before + after
    return (Turn("system", ""),) if writes_its_own else ()


def _find_end_of_turn(chat: ChatTemplate, tokens: Mapping[str, int]) -> int | None:
    """The token that follows an answer in a whole conversation; None without one. tokens: name -> id of added tokens."""
    try:
        text = chat._apply([Turn("user", "x"), Turn("assistant", PROBE)], answer=False)
    except Exception:  # a template that writes no answers has no end of turn
        return None
    pattern, (_, _, rest) = _any_of(list(tokens)), text.rpartition(PROBE)
    match = pattern.match(rest.lstrip()) if pattern and PROBE in text else None
    return None if match is None else tokens[match[0]]
