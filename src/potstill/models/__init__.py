"""Students: T5-style and decoder-only models that are taught by sparse distributions.

    >>> sorted(SHAPES)[:2], count_parameters(SHAPES["flan-t5-xl"])
    (['flan-t5-base', 'flan-t5-large'], 2849757184)

`open` reads a Hugging Face folder, `initialise` makes random weights, `Student.save` writes a folder that any tool
loads. `base` is the student that a recipe names.
"""

from __future__ import annotations

from typing import Final

from potstill.models.batch import Batch, Example
from potstill.models.chat_template import ChatTemplate
from potstill.models.flops import count_training_flops
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
from potstill.models.score import hard_example, teacher_forced_scores
from potstill.models.shape import SHAPES, Shape, count_parameters
from potstill.models.student import Head, Student, default_device, disk_full_as_oserror

VERSION: Final = 1  # of prompts as a model reads them, of random weights, and of what the modules compute

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
    "count_training_flops",
    "default_device",
    "disk_full_as_oserror",
    "from_checkpoint",
    "from_recipe",
    "hard_example",
    "interpolate_weights",
    "open_student",
    "random_student",
    "read_family",
    "shape_from_recipe",
    "teacher_forced_scores",
    "tokenizer_folder",
    "weights_identity",
]
