"""test: exactly the base and the chosen step on the test questions, once. Nothing else opens a test split."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from potstill import answers, engines, exam, files, prompts
from potstill.encoding import from_json
from potstill.recipe import Recipe
from potstill.records import Choice

READS = ("evaluate", "questions", "seed")
AFTER = ("collect", "train", "select")
VERSIONS = {"answers": answers.VERSION, "engines": engines.VERSION, "prompts": prompts.VERSION}


def make(run: Path, plan: Recipe) -> tuple[list[Path], dict[str, Any]]:
    choice = from_json(Choice, files.read_json(run / "select" / "choice.json"))
    paths = [path for step in (0, choice.step) for path in exam.sit(run, plan, run / "test", step, "test", VERSIONS)]
    return paths, {"steps": [0, choice.step]}
