"""Which models may write thoughts, for the identities of stages whose results depend on how cut thoughts are read.

    digests |= identify_student_thoughts(recipe)        # {} for a student whose prompts open no thought

Stages of models that write no thoughts name no version of thoughts, so they stay valid when it changes.
"""

from __future__ import annotations

import functools
from pathlib import Path

from potstill import storage, thoughts, tokenization
from potstill.models.chat_template import ChatSettings, open_chat_template
from potstill.models.load import chat_template_from_recipe, model_folder
from potstill.recipe import Recipe
from potstill.storage.manifest import VERSION_PREFIX

_IDENTITY = {f"{VERSION_PREFIX}thoughts": str(thoughts.READING_VERSION)}


def identify_student_thoughts(recipe: Recipe) -> dict[str, str]:
    """The version of thoughts, if the prompts of the student open a thought; otherwise empty."""
    if recipe.student.model is None or recipe.student.chat is False:
        return {}
    chat = chat_template_from_recipe(recipe, model_folder(recipe))
    return dict(_IDENTITY) if chat is not None and chat.opens_thought else {}


def identify_teacher_thoughts(folder: Path, settings: ChatSettings) -> dict[str, str]:
    """The version of thoughts, if the chat template or the tokenizer in a folder has tags of thoughts; otherwise empty."""
    if settings.template is False or not _has_tags(folder, storage.folder_fingerprint(folder)):
        return {}
    return dict(_IDENTITY)


@functools.lru_cache(maxsize=16)
def _has_tags(folder: Path, fingerprint: str) -> bool:
    chat = open_chat_template(folder, ChatSettings("auto"), "causal")
    if chat is None:
        return False
    names = tokenization.load_tokenizer(folder).vocabulary.thought_tags.values()
    return any(map(thoughts.has_tags, (chat.source, *(name.decode() for name in names))))
