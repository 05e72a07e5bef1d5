"""Every name of potstill that the documentation's generators use: a move in `src/` is followed here alone."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any, Final

ROOT: Final = Path(__file__).parent.parent.parent
SOURCE: Final = ROOT / "src" / "potstill"
REFERENCE: Final = ROOT / "docs" / "reference"
TOY_STUDENT: Final = SOURCE / "demo" / "models" / "student"

RECIPE: Final = "potstill.recipe:Recipe"
CLI: Final = "potstill.cli:app"

# Builds a prompt; its format; a demonstration; the style of all sets but BBH; the style of a BBH task.
PROMPTS: Final = (
    "potstill.prompts:build_prompt",
    "potstill.prompts:PromptFormat",
    "potstill.prompts:Demonstration",
    "potstill.prompts:PAPER_STYLE",
    "potstill.data.bbh:bbh_prompt_style",
)

# The public names by subject, as `import potstill as ps` has them.
API: Final = {
    "Run and read": ("potstill:run", "potstill:open_run", "potstill:Run"),
    "Align and transfer": (
        "potstill.alignment:dtw",
        "potstill.alignment:spans",
        "potstill:transfer",
        "potstill:completions",
        "potstill:Target",
    ),
    "Losses": ("potstill.losses:sparse_kl",),
    "Grading": ("potstill:grade",),
    "Records": ("potstill:Question", "potstill:Chain", "potstill:Verdict", "potstill:Prediction", "potstill:Score"),
}

# Recipe keys as they are still called in `src/`, and what the documentation calls them. An entry whose key is gone from
# the recipe has no effect, so the whole table can go once the recipe has the new names.
NEW_KEYS: Final = {
    "teacher.candidates": "teacher.top_logprobs",
    "teacher.server.per_request": "teacher.server.samples_per_request",
    "filter.cap": "filter.max_per_question",
    "filter.near": "filter.near_duplicate_threshold",
    "filter.shortest": "filter.min_chars",
    "filter.longest": "filter.max_chars",
    "filter.contamination": "filter.contamination_threshold",
    "transfer.marks": "transfer.calculator_marks",
    "transfer.drop_below": "transfer.min_probability",
    "transfer.least_coverage": "transfer.min_coverage",
    "train.groups": "train.prompts_per_step",
    "train.mass": "train.missing_probability",
    "train.warm_up": "train.warmup_steps",
    "train.hold": "train.stable_steps",
    "train.clip": "train.max_grad_norm",
    "train.recompute": "train.gradient_checkpointing",
    "train.stop_after": "train.early_stopping_patience",
    "train.snapshot": "train.async_checkpoints",
    "train.peak": "train.peak_flops",
    "train.factors": "train.lr_multipliers",
    "evaluate.mix": "evaluate.interpolate",
    "report.read": "report.examples",
    "repair": "on_policy",
}


def load(name: str) -> Any:
    """The object that `module:attribute` names."""
    module, _, attribute = name.partition(":")
    return getattr(importlib.import_module(module), attribute)


def new_key(key: str) -> str:
    """What the documentation calls a recipe key."""
    if key in NEW_KEYS:
        return NEW_KEYS[key]
    for old, new in NEW_KEYS.items():
        if key.startswith(old + "."):
            return new + key[len(old) :]
    return key
