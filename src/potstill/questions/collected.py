"""The questions of a run as `collect` stored them, and the demonstrations that go with them.

    >>> shots = {"": Shots(PAPER, "", (Demonstration("What is 2 + 2?", "4"),))}
    >>> question = Question("m/1", "What is 1 + 1?", "2", "m", "validation", "number")
    >>> prompt_of(question, FORMATS["few-shot-answer"], shots).plain
    'Q: What is 2 + 2?\\nA: The answer is 4\\n\\nQ: What is 1 + 1?\\nA:'

After `collect` no stage opens the data folder, and only `test` asks for the split `test`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from potstill import files
from potstill.errors import UserError
from potstill.prompts import FORMATS, PAPER, Demonstration, Format, Style, build
from potstill.records import Prompt, Question, Split

SHOTS = "demonstrations.json"
OTHERS = "others.jsonl"
OVERLAPS = "overlaps.json"
TEMPLATES = "templates.json"
REPLAY = "replay.jsonl"

__all__ = [
    "FORMATS",
    "OTHERS",
    "OVERLAPS",
    "PAPER",
    "REPLAY",
    "SHOTS",
    "TEMPLATES",
    "Shots",
    "others",
    "overlaps",
    "prompt_of",
    "questions",
    "replayed",
    "shots",
    "shots_json",
    "templates",
]


@dataclass(frozen=True, slots=True)
class Shots:
    """How the questions of a task are asked: the wording, what stands before it, and the demonstrations."""

    style: Style
    instruction: str
    demonstrations: tuple[Demonstration, ...]


def questions(run: Path, sets: Iterable[str], split: Split) -> list[Question]:
    """The questions of some sets in one split, in the order of the sets and of their files."""
    paths = [run / "collect" / f"{name}.{split}.jsonl" for name in dict.fromkeys(sets)]
    return [question for path in paths for question in files.records(Question, path)]


def replayed(run: Path, sets: Iterable[str]) -> list[Question]:
    """What a run may replay: the training questions of some sets, then the rows of a file, if the recipe named one."""
    path = run / "collect" / REPLAY
    return [*questions(run, sets, "train"), *(files.records(Question, path) if path.exists() else ())]


def others(run: Path) -> Iterator[Question]:
    """The questions of the training sets that are not trained on: held out, left out as leaks, or over a limit.

    Without their answers: they are here so that stored chains about them can be told from chains about nothing.
    """
    return files.records(Question, run / "collect" / OTHERS)


def overlaps(run: Path) -> dict[str, float]:
    """Training question -> the share of its runs of words that one validation or test question has; see `splits`."""
    path = run / "collect" / OVERLAPS
    with files.as_written(path):
        return {name: float(share) for name, share in files.read_json(path).items()}


def templates(run: Path, split: Split) -> dict[str, set[str]]:
    """Set -> its validation or test questions that are training questions but for numbers and names; see
    `splits.repeated`. Sets without any are left out."""
    path = run / "collect" / TEMPLATES
    rows = files.read_json(path)
    with files.as_written(path):
        return {name: set(by_split[split]) for name, by_split in rows.items() if by_split.get(split)}


def shots(run: Path) -> dict[str, Shots]:
    """Task -> how it is asked; the empty name stands for every task that has no entry of its own."""
    path = run / "collect" / SHOTS
    rows = files.read_json(path)
    with files.as_written(path):
        rows[""]  # every run has it
        return {task: _shots(row) for task, row in rows.items()}


def _shots(row: Mapping[str, Any]) -> Shots:
    shown = tuple(Demonstration(**shot) for shot in row["demonstrations"])
    return Shots(Style(**row["style"]), row["instruction"], shown)


def shots_json(table: Mapping[str, Shots]) -> dict[str, Any]:
    return {task: asdict(entry) for task, entry in sorted(table.items())}


def prompt_of(question: Question, format: Format, table: Mapping[str, Shots]) -> Prompt:
    """The prompt with which a question is evaluated. Raises UserError where a few-shot format has nothing to show."""
    entry = table.get(question.task) or table[""]
    if format.few_shot and not entry.demonstrations:
        raise UserError(
            f"there are no demonstrations for the format {format.name}",
            where="evaluate.formats",
            found="too few training questions have a rationale",
            do="name a file of solved examples in evaluate.demonstrations, or leave the few-shot formats out",
        )
    return build(question.text, format, entry.demonstrations, style=entry.style, instruction=entry.instruction)
