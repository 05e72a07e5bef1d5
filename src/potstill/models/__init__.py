"""Models: T5-style and decoder-only students that are trained on sparse distributions.

`open_student` reads a Hugging Face folder, `random_student` draws random weights, `from_recipe` returns the base student
of a recipe, and `Student.save` writes a folder that any tool can load.
"""

from __future__ import annotations

from typing import Final

from potstill.models.adapter_files import (
    ADAPTER_FOLDER,
    AdapterBase,
    check_base,
    copy_adapter,
    digest_weights,
    find_adapter,
    is_adapter,
    load_adapter,
)
from potstill.models.batch import Batch, Example, WrittenText
from potstill.models.chat_template import ChatSettings, ChatTemplate, open_chat_template
from potstill.models.load import (
    adapter_base,
    auto_uses_chat_template,
    base_dtype,
    chat_template_from_recipe,
    check_tokenizer,
    check_weights,
    count_stored_parameters,
    end_of_turn_identity,
    from_checkpoint,
    from_recipe,
    interpolate_weights,
    model_folder,
    open_adapter_base,
    open_student,
    random_student,
    read_family,
    read_shape,
    round_weights,
    shape_from_recipe,
    tokenizer_folder,
    tokenizer_from_recipe,
    weights_identity,
)
from potstill.models.lora import add_adapters, check_quantization, quantize_layers
from potstill.models.sources import NOT_DOWNLOADED, ModelSource, find_model, find_scorer, locate_model, without_weights
from potstill.models.student import (
    SHAPES,
    Head,
    Shape,
    Student,
    count_adapter_parameters,
    count_matrix_elements,
    count_parameters,
    default_device,
    describe_devices,
    disk_full_as_oserror,
)
from potstill.models.thought_identity import identify_student_thoughts, identify_teacher_thoughts
from potstill.models.weight_files import StoredDType

VERSION: Final = 1  # version of the rendering of prompts, of random weights, and of the computation of models

__all__ = [
    "ADAPTER_FOLDER",
    "NOT_DOWNLOADED",
    "SHAPES",
    "VERSION",
    "AdapterBase",
    "Batch",
    "ChatSettings",
    "ChatTemplate",
    "Example",
    "Head",
    "ModelSource",
    "Shape",
    "StoredDType",
    "Student",
    "WrittenText",
    "adapter_base",
    "add_adapters",
    "auto_uses_chat_template",
    "base_dtype",
    "chat_template_from_recipe",
    "check_base",
    "check_quantization",
    "check_tokenizer",
    "check_weights",
    "copy_adapter",
    "count_adapter_parameters",
    "count_matrix_elements",
    "count_parameters",
    "count_stored_parameters",
    "default_device",
    "describe_devices",
    "digest_weights",
    "disk_full_as_oserror",
    "end_of_turn_identity",
    "find_adapter",
    "find_model",
    "find_scorer",
    "from_checkpoint",
    "from_recipe",
    "identify_student_thoughts",
    "identify_teacher_thoughts",
    "interpolate_weights",
    "is_adapter",
    "load_adapter",
    "locate_model",
    "model_folder",
    "open_adapter_base",
    "open_chat_template",
    "open_student",
    "quantize_layers",
    "random_student",
    "read_family",
    "read_shape",
    "round_weights",
    "shape_from_recipe",
    "tokenizer_folder",
    "tokenizer_from_recipe",
    "weights_identity",
    "without_weights",
]
