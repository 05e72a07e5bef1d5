"""Bits per byte of given texts before and after training, which show how much general language ability is lost.

    evaluate:
      texts:
        prose: docs/*.md                                       # .txt and .md: one text per paragraph
        gsm8k: {file: gsm8k/test.jsonl, field: question, limit: 200}

In the stage `test`, the base and the chosen checkpoint read the same texts; of N shards, each reads every N-th text. Fewer
bits per byte are better. Only the tokens of the text are predicted, without a prompt format.

    >>> split_paragraphs("One\\ntwo.\\n\\n\\n  Three.\\n")
    ['One\\ntwo.', 'Three.']
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

from potstill import progress, storage
from potstill.errors import UserError
from potstill.recipe import Recipe, TextsSection, find_paths
from potstill.records import Checkpoint, TextScore
from potstill.storage import dataset_files
from potstill.storage.segments import Shard

if TYPE_CHECKING:
    from potstill.inference.likelihood import TextBits
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


def measure_shard(
    open_student: Callable[[], Student],
    texts: Mapping[str, list[str]],
    checkpoint: Checkpoint,
    folder: Path,
    shard: Shard,
) -> None:
    """Measure the texts of one shard that nobody has measured, and store them in `folder`.

    open_student  opens the student; it is called only if a text is missing
    Raises UserError for an encoder-decoder.
    """
    stored = _read_stored(folder)
    missing = [position for position in shard.of(range(_count(texts))) if position not in stored]
    if missing:
        path = folder / f"{Path(TEXTS_FILE).stem}.{shard.number:04}-of-{shard.count:04}.jsonl"
        with storage.Appender(path, ordered=True) as appender:
            for position, row in _measure(open_student(), texts, checkpoint, missing):
                appender.append([{"position": position, "bits": row.bits, "bytes": row.bytes}])


def measure(
    open_student: Callable[[], Student], texts: Mapping[str, list[str]], checkpoint: Checkpoint, folder: Path
) -> list[TextScore]:
    """One score per name, with the bits and bytes of each text, in order. Measures what no shard has stored in `folder`.

    open_student  opens the student; it is called only if a text is missing
    Raises UserError for an encoder-decoder.
    """
    rows = _read_stored(folder)
    if missing := [position for position in range(_count(texts)) if position not in rows]:
        rows |= {
            position: (row.bits, row.bytes) for position, row in _measure(open_student(), texts, checkpoint, missing)
        }
    scores, first = [], 0
    for name, own in texts.items():
        bits, sizes = zip(*(rows[position] for position in range(first, first + len(own))), strict=True)
        scores.append(TextScore(checkpoint, name, bits, sizes))
        first += len(own)
    return scores


def _count(texts: Mapping[str, list[str]]) -> int:
    return sum(map(len, texts.values()))


def _read_stored(folder: Path) -> dict[int, tuple[float, int]]:
    """Position among all texts -> bits and bytes, for the texts that shards have measured."""
    rows: dict[int, tuple[float, int]] = {}
    for path in sorted(folder.glob(f"{Path(TEXTS_FILE).stem}.[0-9]*-of-[0-9]*.jsonl")):
        with storage.as_format_errors(path):
            rows |= {row["position"]: (row["bits"], row["bytes"]) for row in storage.read_complete_lines(path)}
    return rows


def _measure(
    student: Student, texts: Mapping[str, list[str]], checkpoint: Checkpoint, positions: Sequence[int]
) -> Iterator[tuple[int, TextBits]]:
    """The positions with the bits and bytes of their texts. Each text is read alone, so its numbers depend on no other."""
    from potstill.inference import likelihood

    if student.family == "t5":
        raise encoder_decoder_error()
    rows = [text for own in texts.values() for text in own]
    with progress.bar(f"step {checkpoint.label}", len(positions), "texts") as advance:
        for position in positions:
            [row] = likelihood.measure_texts(student, [rows[position]])
            yield position, row
            advance(1, "bits per byte")
