"""The questions of a run, as the stage `collect` stored them, and their prompts.

    >>> from potstill.prompts import FORMATS, PAPER_STYLE
    >>> table = {"": TaskPrompt(PAPER_STYLE, "", (Demonstration("What is 2 + 2?", "4"),))}
    >>> question = Question("m/1", "What is 1 + 1?", "2", "m", "validation", "number")
    >>> evaluation_prompt(question, FORMATS["few-shot-answer"], table).plain
    'Q: What is 2 + 2?\\nA: The answer is 4\\n\\nQ: What is 1 + 1?\\nA:'

After `collect`, no stage opens the data folder, and only the stage `test` reads the test split.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from potstill import storage
from potstill.errors import UserError
from potstill.prompts import Demonstration, PromptFormat, PromptStyle, build_prompt
from potstill.records import Prompt, Question, Split

TASK_PROMPTS_FILE: Final = "demonstrations.json"
UNUSED_FILE: Final = "others.jsonl"
OVERLAPS_FILE: Final = "overlaps.json"
TEMPLATES_FILE: Final = "templates.json"
REPLAY_FILE: Final = "replay.jsonl"


@dataclass(frozen=True, slots=True)
class TaskPrompt:
    """The prompt of a task: its wording, its instruction and its demonstrations."""

    style: PromptStyle
    instruction: str
    demonstrations: tuple[Demonstration, ...]


def read_questions(run_dir: Path, sets: Iterable[str], split: Split) -> list[Question]:
    """The questions of the sets in one split, in the order of the sets and of their files."""
    paths = [run_dir / "collect" / f"{name}.{split}.jsonl" for name in dict.fromkeys(sets)]
    return [question for path in paths for question in storage.iter_records(Question, path)]


def question_key(question: Question) -> str:
    """The question's name among several runs: its id, and a digest of its text, task and gold answer.

    An id is unique in one run only. Another file under the same set name, or a corrected gold answer, gives the same id to
    another question.

    >>> question_key(Question("m/1", "What is 1 + 1?", "2", "m", "test", "number"))
    'm/1 0fdad0f2e10d'
    """
    content = json.dumps([question.text, question.task, question.gold]).encode()
    return f"{question.id} {hashlib.sha256(content).hexdigest()[:12]}"


def read_replay(run_dir: Path, sets: Iterable[str]) -> list[Question]:
    """The training questions of the sets, then the rows of the replay file, if the recipe names one."""
    path = run_dir / "collect" / REPLAY_FILE
    rows = storage.iter_records(Question, path) if path.exists() else ()
    return [*read_questions(run_dir, sets, "train"), *rows]


def read_unused(run_dir: Path) -> Iterator[Question]:
    """The questions of the training sets that are not trained on: held out, dropped as leaks, or over a limit.

    They have no answers, because they are only needed to recognize stored chains for them.
    """
    return storage.iter_records(Question, run_dir / "collect" / UNUSED_FILE)


def read_overlaps(run_dir: Path) -> dict[str, float]:
    """Training question id -> share of its n-grams in an evaluation question (see `contamination.overlap_shares`)."""
    path = run_dir / "collect" / OVERLAPS_FILE
    with storage.as_format_errors(path):
        return {name: float(share) for name, share in storage.read_json(path).items()}


def read_templates(run_dir: Path, split: Split) -> dict[str, set[str]]:
    """Set -> ids of its questions in `split` that differ from a training question only in numbers and names.

    See `contamination.find_same_templates`. Sets without such questions are left out.
    """
    path = run_dir / "collect" / TEMPLATES_FILE
    rows = storage.read_json(path)
    with storage.as_format_errors(path):
        return {name: set(by_split[split]) for name, by_split in rows.items() if by_split.get(split)}


def read_task_prompts(run_dir: Path) -> dict[str, TaskPrompt]:
    """Task -> its prompt. The entry "" is the prompt of all tasks without an entry."""
    path = run_dir / "collect" / TASK_PROMPTS_FILE
    rows = storage.read_json(path)
    with storage.as_format_errors(path):
        rows[""]  # every run has this entry
        return {
            task: TaskPrompt(
                PromptStyle(**row["style"]),
                row["instruction"],
                tuple(Demonstration(**d) for d in row["demonstrations"]),
            )
            for task, row in rows.items()
        }


def task_prompts_to_json(table: Mapping[str, TaskPrompt]) -> dict[str, Any]:
    return {task: asdict(entry) for task, entry in sorted(table.items())}


def evaluation_prompt(question: Question, format: PromptFormat, table: Mapping[str, TaskPrompt]) -> Prompt:
    """The evaluation prompt of a question. Raises UserError if a few-shot format has no demonstrations."""
    entry = table.get(question.task) or table[""]
    if format.few_shot and not entry.demonstrations:
        what, found = f"the format {format.name} has no demonstrations", "too few training questions have a rationale"
        hint = "name a file of solved examples in evaluate.demonstrations, or remove the few-shot formats"
        raise UserError(what, code="E-data-no-demonstrations", where="evaluate.formats", found=found, hint=hint)
    return build_prompt(question.text, format, entry.demonstrations, style=entry.style, instruction=entry.instruction)
