"""What a run measured by step, as three streams of points, read from its files while they grow.

    >>> flat("train", {"step": 7, "loss": 0.5, "losses": {"few-shot-answer": 0.25}, "utilisation": None})
    {'train/loss': 0.5, 'train/losses/few-shot-answer': 0.25}

`train` is every line of `metrics.jsonl`, `speed` what the machine took beside it, `validation` the accuracies of the
checkpoints that have answered. A file is read up to its last whole line: somebody may be writing to it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from potstill import exam, files

STREAMS: Final = {"train": "metrics.jsonl", "speed": "speed.jsonl"}
Streams = dict[str, list["Point"]]


@dataclass(frozen=True, slots=True)
class Point:
    """Numbers of one step by name: `train/loss`, `speed/seconds`, `validation/<format>.<decoding>/<set>`."""

    step: int
    values: Mapping[str, float]


def read(run: Path) -> Streams:
    """Every stream of a run, in the order of its file; a stream without a file yet is empty."""
    found = {
        name: [_point(name, row) for row in files.whole_rows(run / "train" / file)] for name, file in STREAMS.items()
    }
    return {**found, "validation": list(_validation(run / "evaluate"))}


def flat(stream: str, row: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of a record by name; its step, and what is no number, left out."""
    found: dict[str, float] = {}
    for name, value in row.items():
        if isinstance(value, Mapping):
            found |= {f"{stream}/{name}/{key}": float(inner) for key, inner in value.items() if inner is not None}
        elif name != "step" and isinstance(value, (int, float)) and not isinstance(value, bool):
            found[f"{stream}/{name}"] = float(value)
    return found


def _point(stream: str, row: Mapping[str, Any]) -> Point:
    return Point(row["step"], flat(stream, row))


def _validation(folder: Path) -> Iterator[Point]:
    """The checkpoints that have answered, in their order; mixes with the base share their steps and are left out."""
    for who in exam.answered(folder):
        if who.pure and (folder / who.name / exam.SCORES).exists():
            scores = exam.scores(folder, who)
            names = {f"validation/{score.format}.{score.decoding}/{score.set}": score.accuracy for score in scores}
            yield Point(who.step, names)
