"""Models: T5-style and decoder-only students that are trained on sparse distributions.

    >>> sorted(SHAPES)[:2], count_parameters(SHAPES["flan-t5-xl"])
    (['flan-t5-base', 'flan-t5-large'], 2849757184)

`open_student` reads a Hugging Face folder, `random_student` draws random weights, `from_recipe` is the base student of
a recipe, and `Student.save` writes a folder that any tool can load.
"""

from __future__ import annotations

from typing import Final

from potstill.models.batch import Batch, Example
from potstill.models.chat_template import ChatTemplate
from potstill.models.load import (
    auto_uses_chat_template,
    chat_template_from_recipe,
    check_tokenizer,
    check_weights,
    count_stored_parameters,
    from_checkpoint,
    from_recipe,
    interpolate_weights,
    open_student,
    random_student,
    read_family,
    shape_from_recipe,
    tokenizer_folder,
    weights_identity,
)
from potstill.models.lora import add_adapters
from potstill.models.shape import SHAPES, Shape, count_parameters
from potstill.models.student import Head, Student, default_device, disk_full_as_oserror

VERSION: Final = 1  # of prompts as a model reads them, of random weights, and of what the models compute

__all__ = [
    "SHAPES",
    "VERSION",
    "Batch",
    "ChatTemplate",
    "Example",
    "Head",
    "Shape",
    "Student",
    "add_adapters",
    "auto_uses_chat_template",
    "chat_template_from_recipe",
    "check_tokenizer",
    "check_weights",
    "count_parameters",
    "count_stored_parameters",
    "default_device",
    "disk_full_as_oserror",
    "from_checkpoint",
    "from_recipe",
    "interpolate_weights",
    "open_student",
    "random_student",
    "read_family",
    "shape_from_recipe",
    "tokenizer_folder",
    "weights_identity",
]
