"""The names of potstill that the documentation's generators use. After a move in `src/`, change them here."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any, Final

ROOT: Final = Path(__file__).parent.parent.parent
SOURCE: Final = ROOT / "src" / "potstill"
REFERENCE: Final = ROOT / "docs" / "reference"
TOY_STUDENT: Final = SOURCE / "demo" / "models" / "student"

RECIPE: Final = "potstill.recipe:Recipe"
STUDY: Final = "potstill.recipe.study:StudySection"
CLI: Final = "potstill.cli:app"

# The builder of prompts, its format, a demonstration, the style of all sets except BBH, and the style of a BBH task.
PROMPTS: Final = (
    "potstill.prompts:build_prompt",
    "potstill.prompts:PromptFormat",
    "potstill.prompts:Demonstration",
    "potstill.prompts:PAPER_STYLE",
    "potstill.data.bbh:bbh_prompt_style",
)


def load(name: str) -> Any:
    """The object that `module:attribute` names."""
    module, _, attribute = name.partition(":")
    return getattr(importlib.import_module(module), attribute)
