"""Files in a student's folder with which plain transformers queries the student exactly as it was measured.

    generation_config.json   greedy decoding, the measured number of tokens, the end tokens: `generate` needs no options
    chat_template.jinja      for a decoder-only student without a chat template: the prompt around one user message

    >>> print(build_prompt_template("Q: ", "\\nLet's think step by step\\n").splitlines()[-1])
    {{- "Q: " + messages[0]["content"] + "\\nLet's think step by step\\n" -}}

Such a template begins with `TEMPLATE_MARK`. It contains the prompt of a run, which potstill writes itself, so
`student.chat: auto` does not use it (`chat_template.has_chat_template`).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Final

from transformers import AutoTokenizer, GenerationConfig, PreTrainedTokenizerFast

from potstill import storage
from potstill.models.chat_template import TEMPLATE_FILE, TEMPLATE_MARK, has_chat_template
from potstill.models.student import Student, quiet_transformers

# Classes of transformers that open a folder's tokenizer. The card names the first class that gives the student's ids.
TOKENIZER_CLASSES: Final = {"AutoTokenizer": AutoTokenizer, "PreTrainedTokenizerFast": PreTrainedTokenizerFast}


def write_generation_config(folder: Path, student: Student, *, max_tokens: int, end_tokens: Sequence[int]) -> None:
    """Write a generation_config.json with the settings of the evaluation, instead of those of the base.

    max_tokens  maximum number of tokens of an answer
    end_tokens  ids of the tokens that end an answer
    """
    own = student.model.generation_config
    settings = GenerationConfig(
        do_sample=False,
        max_new_tokens=max_tokens,
        eos_token_id=list(end_tokens) if len(end_tokens) > 1 else end_tokens[0],
        pad_token_id=student.tokenizer.pad,
        bos_token_id=own.bos_token_id,
        decoder_start_token_id=own.decoder_start_token_id,
    )
    with quiet_transformers():
        settings.save_pretrained(folder)


def find_tokenizer_class(folder: Path, student: Student, prompts: Iterable[str]) -> str | None:
    """The name of a transformers class that encodes the rendered prompts as the student does; None without such a class.

    Some classes rebuild a tokenizer according to the type of the model, and no class reads a tiktoken file.
    """
    prompts = list(prompts)
    expected = [list(student.encode(prompt)) for prompt in prompts]
    for name, kind in TOKENIZER_CLASSES.items():
        tokenizer = _open_tokenizer(kind, folder)
        if tokenizer is not None:
            ids = [tokenizer(prompt, add_special_tokens=student.chat is None)["input_ids"] for prompt in prompts]
            if ids == expected:
                return name
    return None


def build_prompt_template(before: str, after: str) -> str:
    """A chat template that writes two texts around a single user message, and refuses any other conversation."""
    refusal = "this model answers one question: give a single user message"
    return (
        f"{TEMPLATE_MARK} the prompt that this model was trained on, around one question #}}\n"
        '{%- if messages | length != 1 or messages[0]["role"] != "user" -%}\n'
        f"{{{{- raise_exception({json.dumps(refusal)}) -}}}}\n"
        "{%- endif -%}\n"
        f'{{{{- {json.dumps(before)} + messages[0]["content"] + {json.dumps(after)} -}}}}'
    )


def write_prompt_template(folder: Path, student: Student, before: str, after: str, questions: Sequence[str]) -> bool:
    """Write such a template for a decoder-only student without a chat template. Returns whether it was written.

    questions  the template is written only if it gives the student's ids for all of these questions
    """
    if student.family != "causal" or student.chat is not None or has_chat_template(folder):
        return False
    names = {token: name for name, token in student.tokenizer.vocabulary.specials.items()}
    if not set(student.tokenizer.prefix) <= names.keys():
        return False
    prefix = "".join(names[token] for token in student.tokenizer.prefix)
    storage.write_file(folder / TEMPLATE_FILE, build_prompt_template(prefix + before, after).encode("utf-8"))
    tokenizer = _open_tokenizer(AutoTokenizer, folder)
    if tokenizer is not None and all(
        _encode_message(tokenizer, question) == list(student.encode(before + question + after))
        for question in questions
    ):
        return True
    storage.remove(folder / TEMPLATE_FILE)
    return False


def _encode_message(tokenizer: Any, question: str) -> list[int]:
    text = tokenizer.apply_chat_template([{"role": "user", "content": question}], tokenize=False)
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def _open_tokenizer(kind: Any, folder: Path) -> Any | None:
    try:
        with quiet_transformers():
            return kind.from_pretrained(folder, local_files_only=True)
    except Exception:  # many types of errors, for a folder that this class cannot read
        return None
