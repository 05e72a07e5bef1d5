"""Bits per byte of given texts before and after training, which show how much general language ability is lost.

    evaluate:
      texts:
        prose: docs/*.md                                       # .txt and .md: one text per paragraph
        gsm8k: {file: gsm8k/test.jsonl, field: question, limit: 200}

In the stage `test`, the base and the chosen checkpoint read the same texts. Fewer bits per byte are better. Only the tokens
of the text are predicted, without a prompt format.

    >>> split_paragraphs("One\\ntwo.\\n\\n\\n  Three.\\n")
    ['One\\ntwo.', 'Three.']
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Final

from potstill import progress, storage
from potstill.errors import UserError
from potstill.recipe import Recipe, TextsSection, find_paths
from potstill.records import Checkpoint, TextScore
from potstill.storage import dataset_files

if TYPE_CHECKING:
    from potstill.models import Student

TEXTS_FILE: Final = "texts.json"
PARAGRAPH_SUFFIXES: Final = (".txt", ".md")


def text_digests(recipe: Recipe) -> dict[str, str]:
    """Name -> digest, for the files of `evaluate.texts`. Raises UserError if a file is missing."""
    files = {name: _text_paths(recipe, name, section) for name, section in (recipe.evaluate.texts or {}).items()}
    return {
        f"evaluate.texts {name} file {number}": storage.file_digest(path)
        for name, paths in files.items()
        for number, path in enumerate(paths, 1)
    }


def read_texts(recipe: Recipe) -> dict[str, list[str]]:
    """Name -> texts, for `evaluate.texts`. Raises UserError if a file is missing or has no text."""
    return {name: _read_texts(recipe, name, section) for name, section in (recipe.evaluate.texts or {}).items()}


def _text_paths(recipe: Recipe, name: str, section: TextsSection) -> list[Path]:
    return find_paths(recipe, section.file, f"evaluate.texts.{name}.file")


def _read_texts(recipe: Recipe, name: str, section: TextsSection) -> list[str]:
    texts: list[str] = []
    for path in _text_paths(recipe, name, section):
        if path.suffix in PARAGRAPH_SUFFIXES:
            texts += split_paragraphs(dataset_files.decode_text(path.read_bytes(), path))
            continue
        for _, place, row in dataset_files.read_dataset_rows(path):
            value = row.get(section.field)
            if not isinstance(value, str) or not value.strip():
                raise UserError(
                    "this record has no text",
                    code="E-evaluate-no-text",
                    where=f"{path} {place}",
                    found=f"{section.field}: {value!r}",
                    hint=f"name the column of the text in evaluate.texts.{name}.field",
                )
            texts.append(value)
    if not texts:
        raise UserError(
            "there is no text",
            code="E-evaluate-no-text",
            where=f"evaluate.texts.{name}",
            found=section.file,
            hint="name a file with text",
        )
    return texts[: section.limit]


def split_paragraphs(text: str) -> list[str]:
    """The parts of a text between empty lines, without surrounding white space."""
    return [part.strip() for part in re.split(r"\n[ \t]*\n", text.replace("\r\n", "\n")) if part.strip()]


def encoder_decoder_error() -> UserError:
    return UserError(
        "bits per byte need a decoder-only student: an encoder-decoder predicts no text without an input",
        code="E-evaluate-texts-family",
        where="evaluate.texts",
        hint="remove evaluate.texts",
    )


def measure(student: Student, texts: Mapping[str, list[str]], checkpoint: Checkpoint) -> list[TextScore]:
    """One score per name, with the bits and bytes of each text, in order. Raises UserError for an encoder-decoder."""
    from potstill.inference import likelihood

    if student.family == "t5":
        raise encoder_decoder_error()
    scores = []
    with progress.bar(f"step {checkpoint.label}", sum(map(len, texts.values())), "texts") as advance:
        for name, rows in texts.items():
            measured = likelihood.measure_texts(student, rows, advance=lambda: advance(1, "bits per byte"))
            bits, sizes = tuple(row.bits for row in measured), tuple(row.bytes for row in measured)
            scores.append(TextScore(checkpoint, name, bits, sizes))
    return scores
