"""Students: T5-style and decoder-only models that are taught by sparse distributions.

    >>> sorted(SHAPES)[:2], parameters(SHAPES["flan-t5-xl"])
    (['flan-t5-base', 'flan-t5-large'], 2849757184)

`open` reads a Hugging Face folder, `initialise` makes random weights, `Student.save` writes a folder that any tool
loads. `base` is the student that a recipe names.
"""

from __future__ import annotations

from typing import Final

from potstill.students.base import (
    at,
    base,
    check_tokenizer,
    count,
    family,
    has_template,
    identity,
    shape,
    spoken,
    tokenizer_folder,
)
from potstill.students.batch import Batch, Example
from potstill.students.chat import Chat
from potstill.students.lora import adapt
from potstill.students.mixing import mix
from potstill.students.opening import check_weights, initialise, open
from potstill.students.shape import SHAPES, Shape, parameters
from potstill.students.student import Head, Student, device, refused
from potstill.students.telling import told, written
from potstill.students.work import operations

VERSION: Final = 1  # of prompts as a model reads them, of random weights, and of what the modules compute

__all__ = [
    "SHAPES",
    "VERSION",
    "Batch",
    "Chat",
    "Example",
    "Head",
    "Shape",
    "Student",
    "adapt",
    "at",
    "base",
    "check_tokenizer",
    "check_weights",
    "count",
    "device",
    "family",
    "has_template",
    "identity",
    "initialise",
    "mix",
    "open",
    "operations",
    "parameters",
    "refused",
    "shape",
    "spoken",
    "tokenizer_folder",
    "told",
    "written",
]
