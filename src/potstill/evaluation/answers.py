"""The answers of a checkpoint in one format and decoding: one file, which one process or several shards make.

    file = AnswerFile(checkpoint_dir / "zero-shot-rationale.greedy.jsonl", total=len(questions))
    write_answers(file, engine, questions, prompt_of, decode, samples=1, budget=4096, label="step 250")

The batches of a file, and so the order of its answers, do not depend on the number of processes. A process without a
shard appends the batches to the file itself. A shard appends every `count`-th batch to a segment of its own, with the
position of each answer in the file:

    shards/zero-shot-rationale.greedy.0002-of-0008.jsonl     {"position": 40, "prediction": {...}}

A process without a shard that finds segments generates the batches that nobody has stored, and merges all of them into
the file in the order of the positions. The bytes are the same for any number of shards.
"""

from __future__ import annotations

import glob
import heapq
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from potstill import evaluation, progress, storage
from potstill.inference import Decode, Engine, SampleKey
from potstill.records import Prompt, Question
from potstill.serialization import to_json
from potstill.storage import atomic
from potstill.storage.segments import UNSHARDED, Shard

SHARDS_FOLDER: Final = "shards"  # in the folder of a checkpoint


@dataclass(frozen=True, slots=True)
class AnswerFile:
    """A file of answers, and the segments from which it may be merged.

    total  the number of answers in the complete file
    """

    path: Path
    total: int

    def segment(self, shard: Shard) -> Path:
        return self._folder / f"{self.path.stem}.{shard.number:04}-of-{shard.count:04}.jsonl"

    def segments(self) -> list[Path]:
        return sorted(self._folder.glob(f"{glob.escape(self.path.stem)}.[0-9]*-of-[0-9]*.jsonl"))

    def stored_keys(self) -> set[SampleKey]:
        """The keys of the answers that are stored in the file or in a segment."""
        return {(row["question"], row["index"]) for _, row in self._iter_stored()}

    def is_complete(self) -> bool:
        """Whether all answers are stored, in the file or in segments."""
        return len(self.stored_keys()) == self.total

    def merge_segments(self) -> None:
        """Write the file from all stored answers, which are complete, and remove the segments, if there are any."""
        if not self.segments():
            return
        with atomic.write_stream(self.path) as file:
            for _, row in self._iter_stored():
                file.write(storage.encode_json_line(row))
        for segment in self.segments():
            storage.remove(segment)

    @property
    def _folder(self) -> Path:
        return self.path.parent / SHARDS_FOLDER

    def _iter_stored(self) -> Iterator[tuple[int, dict[str, Any]]]:
        """The position and record of every stored answer once, in the order of the positions."""
        last = -1
        for position, row in heapq.merge(
            _iter_rows(self.path), *map(_iter_segment, self.segments()), key=lambda pair: pair[0]
        ):
            if position != last:
                yield position, row
            last = position


def _iter_rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """The answers of the file itself, which may be incomplete: its lines are the first answers in their order."""
    if path.exists():
        yield from ((number - 1, row) for number, row in storage.read_jsonl(path, torn=True))


def _iter_segment(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """The answers of a segment. Their positions ascend, because a shard generates its batches in order."""
    with storage.as_format_errors(path):
        for row in storage.read_complete_lines(path):
            yield row["position"], row["prediction"]


def write_answers(
    file: AnswerFile,
    engine: Engine,
    questions: Sequence[Question],
    prompt_of: Callable[[Question], Prompt],
    decode: Decode,
    *,
    samples: int,
    budget: int,
    label: str,
    shard: Shard = UNSHARDED,
    rotation: int = 0,
) -> None:
    """Generate and store the missing answers of a file, or of one shard of it.

    samples, budget  see `evaluation.predict_answers`
    label            label of the progress bar
    rotation         the number of the batch, among those of shard 1, with which the file begins. With another number for
                     each file, files of a few batches are shared evenly
    """
    in_segments = shard.count > 1 or bool(file.segments())
    path = file.segment(shard) if in_segments else file.path
    with storage.Appender(path, ordered=True) as appender:
        done = file.stored_keys()
        stored = len(done) if shard == UNSHARDED else sum(1 for _ in storage.read_complete_lines(path))
        with progress.bar(label, file.total // shard.count, "answers", done=stored) as advance:
            counter = TokenCounter(file.path.stem.replace(".", " "), advance)
            options: Any = {"samples": samples, "budget": budget, "done": done, "on_tokens": counter.add}
            if len(done) < file.total:
                advance(0, counter.note)
            if not in_segments:
                for batch in evaluation.predict_answers(engine, questions, prompt_of, decode, **options):
                    new = [prediction for prediction in batch if (prediction.question, prediction.index) not in done]
                    appender.append(map(to_json, new))
                    advance(len(new), counter.note)
                return
            options["chosen"] = lambda number: (number + rotation) % shard.count == shard.number - 1
            for position, batch in evaluation.answer_batches(engine, questions, prompt_of, decode, **options):
                rows = [
                    {"position": place, "prediction": to_json(prediction)}
                    for place, prediction in enumerate(batch, position)
                    if (prediction.question, prediction.index) not in done
                ]
                appender.append(rows)
                advance(len(rows), counter.note)
    if shard == UNSHARDED:
        assert file.is_complete(), f"{file.path.name}: an engine left out answers"
        file.merge_segments()


class TokenCounter:
    """Counts the tokens of an evaluation for the progress bar, also within a batch, which may take minutes."""

    def __init__(self, name: str, advance: progress.Advance) -> None:
        self.name, self.advance = name, advance
        self.tokens, self.start = 0, time.monotonic()

    def add(self, tokens: int) -> None:
        self.tokens += tokens
        self.advance(0, self.note)

    @property
    def note(self) -> str:
        """The text for the progress bar: the name, the number of tokens, and tokens per second."""
        speed = self.tokens / max(time.monotonic() - self.start, 1e-9)
        return f"{self.name}, {self.tokens} tokens, {speed:.0f} tokens/s" if self.tokens else self.name
